//! The lookup on ports of the switch lane: frames whose verdict is known are redirected in XDP, before
//! the kernel makes an skb of them, to ports that take them so; the rest reach their AF_XDP sockets as
//! ever.
//!
//! In front of each frame that the program hands over are four bytes, which nobody else can write:
//! the mark of the frame's flow if its way is being counted, else 0. They do what the punt device's
//! tag does on the express lane, so that frames of one flow keep their order (docs/adr/0004).
//!
//! docs/adr/0008 says which ports take redirected frames, and how checksums come right.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::arrivals::Arrivals;
use super::{ExpressError, Kernel};
use crate::frame::Frame;
use crate::pool::FramePool;
use crate::port::xdp::{self, MAX_MTU, XdpOptions, XdpPort};
use crate::port::{BURST, Port};
use crate::sys::express::{Intake, Lookup, MARK};
use crate::sys::umem::Umem;

/// One receive queue of a port of the switch lane, behind the program that looks frames up.
pub struct LookupPort {
    kernel: Arc<Kernel>,
    tag: u16,
    ifindex: u32,
    port: XdpPort,
    received: Vec<Frame>,
    arrivals: Arrivals,
}

pub(super) fn open(
    kernel: &Arc<Kernel>,
    umem: &Arc<Umem>,
    owner_base: u16,
    tag: u16,
    ifname: &str,
    options: &XdpOptions,
    pool: &mut FramePool,
) -> Result<xdp::Opened<LookupPort>, ExpressError> {
    let lookup = Lookup::new(Arc::clone(&kernel.program), tag);
    let allow = |queues: usize| {
        if let Some(intake) = kernel.program.intake(tag) {
            intake.open(u64::from(options.fill) * queues as u64);
        }
    };
    allow(1);
    let opened =
        xdp::open_steered(umem, owner_base, ifname, options, pool, |_| Ok(Box::new(lookup)))?;
    let xdp::Opened { queues, mode, notices, link } = opened;
    if link.mtu + MARK as u32 > MAX_MTU {
        queues.into_iter().for_each(|port| Box::new(port).close(pool));
        let (ifname, mtu) = (link.name, link.mtu);
        return Err(ExpressError::MtuTooLarge { ifname, mtu, limit: MAX_MTU - MARK as u32 });
    }
    allow(queues.len());
    let queues = queues.into_iter().map(|port| LookupPort {
        kernel: Arc::clone(kernel),
        tag,
        ifindex: link.index,
        port,
        received: Vec::with_capacity(BURST),
        arrivals: Arrivals::new(),
    });
    Ok(xdp::Opened { queues: queues.collect(), mode: format!("{mode}, lookup"), notices, link })
}

impl Port for LookupPort {
    fn receive(&mut self, pool: &mut FramePool, batch: &mut Vec<Frame>) -> usize {
        let before = batch.len();
        let count = self.port.receive(pool, &mut self.received);
        if let Some(intake) = self.kernel.program.intake(self.tag) {
            self.arrivals.note(intake, count);
        }
        for mut frame in self.received.drain(..) {
            let Some(mark) = unmark(pool.umem(), &mut frame) else {
                pool.give(frame);
                continue;
            };
            self.kernel.follow(&frame, self.ifindex, mark, pool);
            batch.push(frame);
        }
        batch.len() - before
    }

    fn transmit(&mut self, frames: &mut Vec<Frame>) -> usize {
        self.port.transmit(frames)
    }

    fn reclaim(&mut self, pool: &mut FramePool) {
        self.port.reclaim(pool);
    }

    fn fd(&self) -> Option<RawFd> {
        self.port.fd()
    }

    fn max_frame(&self) -> usize {
        self.port.max_frame()
    }

    fn is_busy(&self) -> bool {
        let intake = self.kernel.program.intake(self.tag);
        self.port.is_busy() || intake.is_some_and(Intake::is_on_the_way)
    }

    fn close(self: Box<Self>, pool: &mut FramePool) {
        Box::new(self.port).close(pool);
    }

    fn abandon(self: Box<Self>) {
        std::mem::forget(self.received);
        Box::new(self.port).abandon();
    }
}

/// Takes the mark off a frame's front and returns it.
fn unmark(umem: &Umem, frame: &mut Frame) -> Option<u16> {
    let mark = u32::from_ne_bytes(*umem.bytes(frame).first_chunk::<MARK>()?);
    let (offset, len) = (usize::from(frame.offset()), frame.len());
    frame.set_span(offset + MARK, len - MARK);
    u16::try_from(mark).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_comes_off_and_the_frame_stays() {
        let (umem, mut frames) = Umem::new(1).unwrap();
        let mut frame = frames.pop().unwrap();
        let mut bytes = u32::to_ne_bytes(0xf000).to_vec();
        bytes.extend(1..=20);
        frame.set_span(256, bytes.len());
        umem.bytes_mut(&mut frame).copy_from_slice(&bytes);
        assert_eq!(unmark(&umem, &mut frame), Some(0xf000));
        assert_eq!(umem.bytes(&frame), &bytes[MARK..]);
        frame.set_span(256, 3);
        assert_eq!(unmark(&umem, &mut frame), None, "too short");
        frame.release();
    }
}
