//! The long way: what the express lane's program does not know reaches the switch through one device
//! pair, and leaves it through a socket on its own port.
//!
//! The program sends a miss into the near end of a veth pair, under a VLAN tag that names its port.
//! The pair has no offloads to offer, so the kernel cuts large frames into segments, completes
//! checksums and writes the tag into the frame; at the far end an AF_XDP socket receives plain
//! frames. The tag is the outermost in any case, since the program pushes it last, so no workload can
//! claim another's port, whatever tags it sends.
//!
//! All ports share the pair. Whoever asks for frames empties the socket and sorts them into the ports'
//! inboxes; so a worker sees a port like any other. It wakes the workers whose ports' frames it found:
//! the kernel wakes nobody for a socket that is empty again. See docs/adr/0004.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use aya::util::KernelVersion;
use firedoor_classifier::wire::{icmp, protocol};

use super::arrivals::Arrivals;
use super::{ExpressError, Kernel};
use crate::frame::Frame;
use crate::handoff::Doorstep;
use crate::link::{Link, LinkError, Netlink, VethEnd};
use crate::pool::FramePool;
use crate::port::silence::Silence;
use crate::port::xdp::{self, MAX_VETH_PEER_MTU, XdpOptions, XdpPort, open_sender};
use crate::port::{BURST, Port};
use crate::sys::ethtool;
use crate::sys::express::{Attached, FlowId, Intake, TcHook};
use crate::sys::umem::Umem;
use crate::sys::wall::{Wall, Walls};

/// Largest MTU of a port: its frames under two VLAN tags fit the pair.
pub const MAX_MTU: u32 = MAX_VETH_PEER_MTU - 4;

/// What the names of every pair begin with.
const STEM: &str = "fdp";

/// Number under which the umem knows the pair's socket: above those of all ports.
const OWNER: u16 = u16::MAX;

/// First kernel in which a veth whose far end's ring is full keeps its queue waiting, instead of dropping
/// what does not fit, and does not forget to go on (`veth_xmit` in drivers/net/veth.c; it waits since 6.16).
const WAITS: KernelVersion = KernelVersion::new(6, 18, 0);

/// Frames that the far end's ring holds (`VETH_RING_SIZE`), and the queue before it (`txqueuelen`).
const RING: u32 = 256;
const QUEUE: u32 = 1000;

/// Most frames kept with the kernel for receiving.
const FILL: u32 = 2048;

/// Bytes of the two MAC addresses that begin a frame, and of a VLAN tag behind them.
const MACS: usize = 12;
const TAG: usize = 4;
/// The tag protocol that the program pushes (802.1Q), and the part of the tag that names the port.
const TPID: [u8; 2] = [0x81, 0x00];
const PORT: u16 = 0x0fff;

/// The device pair, its socket, and what was received and not asked for yet.
pub(super) struct Punt {
    near: Link,
    near_silence: Silence,
    port: XdpPort,
    /// For how many frames there is room before the socket.
    room: u32,
    /// Of all ports, at the socket.
    arrivals: Arrivals,
    /// By tag.
    inboxes: Vec<Option<Inbox>>,
    received: Vec<Frame>,
}

/// Frames of one port.
struct Inbox {
    ifindex: u32,
    frames: VecDeque<Frame>,
    /// Of the worker that takes them, once the port has one.
    doorstep: Option<Arc<Doorstep>>,
    arrivals: Arrivals,
}

impl Inbox {
    /// A worker sleeps only when its inboxes are empty, so the first frame is the one to wake it for.
    fn put(&mut self, frame: Frame) {
        self.frames.push_back(frame);
        if self.frames.len() == 1
            && let Some(doorstep) = &self.doorstep
        {
            doorstep.wake_if_asleep();
        }
    }
}

impl Punt {
    /// Makes the pair in the calling thread's namespace. `seed`, an interface of this switch, names it: in one
    /// of two ways, so that it fits beside a predecessor's, whose near end has the index `other`. A pair that a
    /// killed process left under these names is removed.
    pub(super) fn open(
        umem: &Arc<Umem>,
        seed: &str,
        other: u32,
        fill: u32,
        walls: &Arc<Walls>,
        pool: &mut FramePool,
    ) -> Result<Self, ExpressError> {
        let mut netlink = Netlink::open().map_err(ExpressError::Netlink)?;
        let [first, second] = names(seed);
        let is_first_taken = is_kept(&mut netlink, &first.0, other)?;
        is_kept(&mut netlink, &second.0, other)?;
        let (near, far) = if is_first_taken { second } else { first };
        let end = |name| VethEnd { mtu: Some(MAX_VETH_PEER_MTU), ..VethEnd::new(name) };
        netlink.create_veth(end(&near), end(&far), 1)?;
        let options = XdpOptions {
            fill,
            tx: 1,
            max_queues: 1,
            walls: Some(Arc::clone(walls)),
            ..XdpOptions::default()
        };
        let opened = Self::open_ends(umem, &mut netlink, [&near, &far], &options, pool);
        if opened.is_err() {
            let _ = netlink.delete(&near);
        }
        opened
    }

    fn open_ends(
        umem: &Arc<Umem>,
        netlink: &mut Netlink,
        [near, far]: [&str; 2],
        options: &XdpOptions,
        pool: &mut FramePool,
    ) -> Result<Self, ExpressError> {
        ethtool::transmit_offloads_off(near)
            .map_err(|source| ExpressError::Offloads { ifname: near.to_owned(), source })?;
        let link = netlink.link(near)?;
        let silence = Silence::of(&link);
        let room = lay_queue(netlink, &link).min(options.fill);
        // The near end last: it has a carrier then, and drops nothing until the kernel has noticed one.
        netlink.set_up(far, true)?;
        netlink.set_up(near, true)?;
        // Last, because it borrows frames, which only its end gives back.
        let opened = xdp::open(umem, OWNER, far, options, pool)?;
        let port = opened.queues.into_iter().next().ok_or(ExpressError::NoQueue)?;
        Ok(Self {
            near: link,
            near_silence: silence,
            port,
            room,
            arrivals: Arrivals::new(),
            inboxes: Vec::new(),
            received: Vec::with_capacity(BURST),
        })
    }

    /// Removes every pair that `seed` names, whoever made it.
    fn remove_all(seed: &str) -> Result<(), ExpressError> {
        let mut netlink = Netlink::open().map_err(ExpressError::Netlink)?;
        for (near, _) in names(seed) {
            is_kept(&mut netlink, &near, 0)?;
        }
        Ok(())
    }

    /// Removes the pair whose near end has that index, if there is one: a predecessor's.
    fn remove(index: u32) -> Result<(), ExpressError> {
        let mut netlink = Netlink::open().map_err(ExpressError::Netlink)?;
        let links = netlink.links().map_err(ExpressError::Netlink)?;
        // Its name is asked for, too: an index may be another interface's some day.
        let pair = links.iter().find(|link| link.index == index && link.name.starts_with(STEM));
        pair.map_or(Ok(()), |pair| Ok(netlink.delete(&pair.name)?))
    }

    /// Index of the interface that the program sends misses to.
    pub(super) fn ifindex(&self) -> u32 {
        self.near.index
    }

    fn add(&mut self, tag: u16, ifindex: u32) {
        let at = usize::from(tag);
        if self.inboxes.len() <= at {
            self.inboxes.resize_with(at + 1, || None);
        }
        let (frames, arrivals) = (VecDeque::new(), Arrivals::new());
        self.inboxes[at] = Some(Inbox { ifindex, frames, doorstep: None, arrivals });
    }

    /// A port is gone. Returns whether there are ports left.
    fn forget(&mut self, tag: u16, pool: &mut FramePool) -> bool {
        let inbox = self.inboxes.get_mut(usize::from(tag)).and_then(Option::take);
        for frame in inbox.into_iter().flat_map(|inbox| inbox.frames) {
            pool.give(frame);
        }
        self.has_ports()
    }

    fn has_ports(&self) -> bool {
        self.inboxes.iter().any(Option::is_some)
    }

    fn inbox(&mut self, tag: u16) -> Option<&mut Inbox> {
        self.inboxes.get_mut(usize::from(tag))?.as_mut()
    }

    /// Empties the socket into the inboxes.
    fn sort(&mut self, kernel: &Kernel, pool: &mut FramePool) {
        let Self { port, arrivals, inboxes, received, .. } = self;
        let mut count = 0;
        while port.receive(pool, received) > 0 {
            count += received.len();
            for mut frame in received.drain(..) {
                let tag = untag(pool.umem(), &mut frame);
                let inbox = tag.and_then(|tag| inboxes.get_mut(usize::from(tag & PORT))?.as_mut());
                let (Some(tag), Some(inbox)) = (tag, inbox) else {
                    // Of a port that was just closed, or from the host's own stack.
                    pool.give(frame);
                    continue;
                };
                kernel.follow(&frame, inbox.ifindex, tag, pool);
                inbox.put(frame);
            }
        }
        if let Some(all) = kernel.program.intake_of_all() {
            arrivals.note(all, count);
        }
    }

    /// Moves up to a burst of a port's frames to `batch`, and tells the program that they have arrived.
    fn take(&mut self, tag: u16, intake: &Intake, batch: &mut Vec<Frame>) -> usize {
        let Some(inbox) = self.inbox(tag) else { return 0 };
        let count = inbox.frames.len().min(BURST);
        batch.extend(inbox.frames.drain(..count));
        inbox.arrivals.note(intake, count);
        count
    }

    /// Gives everything back and removes the pair.
    pub(super) fn close(self, pool: &mut FramePool) {
        let Self { near, port, inboxes, received, .. } = self;
        let waiting = inboxes.into_iter().flatten().flat_map(|inbox| inbox.frames);
        waiting.chain(received).for_each(|frame| pool.give(frame));
        Box::new(port).close(pool);
        let removed = Netlink::open().map(|mut netlink| netlink.delete(&near.name));
        if !matches!(removed, Ok(Ok(()) | Err(LinkError::NotFound { .. }))) {
            tracing::warn!(interface = near.name, "cannot remove the express lane's device pair");
        }
    }
}

/// Gives the pair's near end a queue that waits for its far end, if this kernel has such. Returns how many frames
/// there is room for.
fn lay_queue(netlink: &mut Netlink, near: &Link) -> u32 {
    if !KernelVersion::current().is_ok_and(|version| version >= WAITS) {
        return RING;
    }
    match netlink.add_queue(near) {
        Ok(()) => QUEUE,
        Err(error) => {
            tracing::warn!(%error, "the express lane's misses have little room");
            RING
        }
    }
}

/// Names of the ends of the two pairs that `seed` may name.
fn names(seed: &str) -> [(String, String); 2] {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    let stem = format!("{STEM}{:08x}", hasher.finish() as u32);
    [('a', 'b'), ('c', 'd')].map(|(near, far)| (format!("{stem}{near}"), format!("{stem}{far}")))
}

/// Removes the pair of that near end, unless its index is the one to keep. Returns whether it is there still.
fn is_kept(netlink: &mut Netlink, near: &str, kept: u32) -> Result<bool, LinkError> {
    match netlink.link(near) {
        Ok(link) if link.index == kept => Ok(true),
        Ok(_) => netlink.delete(near).map(|()| false),
        Err(LinkError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the outermost VLAN tag off a frame and returns it.
fn untag(umem: &Umem, frame: &mut Frame) -> Option<u16> {
    let bytes = umem.bytes_mut(frame);
    let [high, low] = *bytes.get(MACS + 2..)?.first_chunk()?;
    if bytes.get(MACS..MACS + 2)? != TPID {
        return None;
    }
    bytes.copy_within(..MACS, TAG);
    let (offset, len) = (usize::from(frame.offset()), frame.len());
    frame.set_span(offset + TAG, len - TAG);
    Some(u16::from_be_bytes([high, low]))
}

/// The flow of a frame that the program has taken apart: TCP, UDP or an echo message right behind an IP
/// header without options or extension headers.
pub(super) fn flow_of(frame: &[u8], ingress: u32) -> Option<FlowId> {
    let ether_type = frame.get(MACS..)?.first_chunk::<2>()?;
    let packet = frame.get(MACS + 2..)?;
    let mapped = |at: usize| {
        let mut address = [0; 16];
        address[10..12].fill(0xff);
        address[12..].copy_from_slice(packet.get(at..at + 4)?);
        Some(address)
    };
    let (number, src, dst, transport) = match ether_type {
        [0x08, 0x00] => (*packet.get(9)?, mapped(12)?, mapped(16)?, packet.get(20..)?),
        [0x86, 0xdd] => (
            *packet.get(6)?,
            *packet.get(8..)?.first_chunk()?,
            *packet.get(24..)?.first_chunk()?,
            packet.get(40..)?,
        ),
        _ => return None,
    };
    let [first, second] = [*transport.first_chunk()?, *transport.get(2..)?.first_chunk()?];
    let (src_port, dst_port) = match number {
        protocol::ICMP | protocol::ICMPV6 => {
            (*transport.get(icmp::field::IDENTIFIER)?.first_chunk()?, first)
        }
        _ => (first, second),
    };
    Some(FlowId { ingress, src, dst, src_port, dst_port, protocol: number.into() })
}

/// A port of the express lane. It receives what the program punts, and sends through a socket of its
/// own.
pub struct ExpressPort {
    kernel: Arc<Kernel>,
    tag: u16,
    link: Link,
    sender: XdpPort,
    /// Becomes readable when the pair's socket does.
    wakeup: OwnedFd,
    attached: Attached,
    silence: Silence,
    /// Where the program ends with the process.
    wall: Option<Wall>,
}

impl ExpressPort {
    /// Attaches the program to an interface, and makes the device pair if this is the first port.
    pub(super) fn open(
        kernel: &Arc<Kernel>,
        umem: &Arc<Umem>,
        owner: u16,
        tag: u16,
        link: Link,
        fill: u32,
        pool: &mut FramePool,
    ) -> Result<Self, ExpressError> {
        let silence = Silence::of(&link);
        let ends_with_process = !kernel.program.is_pinned() && kernel.program.hook() == TcHook::Tcx;
        let wall = ends_with_process.then(|| kernel.walls.raise_or_say_so(&link)).flatten();
        let sender = open_sender(umem, owner, &link, fill)?;
        let wakeup = kernel.join(umem, &link, tag, fill, pool)?;
        let attached = kernel
            .program
            .set_port(link.index, tag)
            .and_then(|()| kernel.program.attach(&link.name, link.index));
        let attached = match attached {
            Ok(attached) => attached,
            Err(source) => {
                drop(wakeup);
                kernel.leave(tag, link.index, pool);
                Box::new(sender).close(pool);
                return Err(ExpressError::Attach { ifname: link.name, source });
            }
        };
        let kernel = Arc::clone(kernel);
        let port = Self { kernel, tag, link, sender, wakeup, attached, silence, wall };
        // Up only now, with the program attached.
        let up = Netlink::open().map_err(ExpressError::Netlink).and_then(|mut netlink| {
            netlink.set_up(&port.link.name, true).map_err(ExpressError::Link)
        });
        match up {
            Ok(()) => Ok(port),
            Err(error) => {
                Box::new(port).close(pool);
                Err(error)
            }
        }
    }
}

impl Port for ExpressPort {
    fn receive(&mut self, pool: &mut FramePool, batch: &mut Vec<Frame>) -> usize {
        let mut punt = self.kernel.punt.lock();
        let Some(punt) = &mut *punt else { return 0 };
        punt.sort(&self.kernel, pool);
        let Some(intake) = self.kernel.program.intake(self.tag) else { return 0 };
        punt.take(self.tag, intake, batch)
    }

    fn transmit(&mut self, frames: &mut Vec<Frame>) -> usize {
        self.sender.transmit(frames)
    }

    fn reclaim(&mut self, pool: &mut FramePool) {
        self.sender.reclaim(pool);
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.wakeup.as_raw_fd())
    }

    fn set_doorstep(&mut self, doorstep: &Arc<Doorstep>) {
        if let Some(inbox) = self.kernel.punt.lock().as_mut().and_then(|punt| punt.inbox(self.tag))
        {
            inbox.doorstep = Some(Arc::clone(doorstep));
        }
    }

    fn max_frame(&self) -> usize {
        self.sender.max_frame()
    }

    fn is_busy(&self) -> bool {
        let is_deaf = |punt: &Punt| punt.port.is_busy();
        let program = &self.kernel.program;
        self.sender.is_busy()
            || program.intake(self.tag).is_some_and(Intake::is_on_the_way)
            || self.kernel.punt.lock().as_ref().is_some_and(is_deaf)
    }

    /// Takes the program off, with the interface down, and gives every frame back;
    /// the last port removes the device pair.
    fn close(self: Box<Self>, pool: &mut FramePool) {
        let Self { kernel, tag, link, sender, attached, mut silence, wakeup, wall } = *self;
        silence.shut();
        drop((attached, wall, silence));
        // It is the device pair's socket too, which must be gone before its chunks are used again.
        drop(wakeup);
        kernel.leave(tag, link.index, pool);
        Box::new(sender).close(pool);
    }

    fn abandon(self: Box<Self>) {
        let Self { sender, attached, silence, wakeup, wall, .. } = *self;
        std::mem::forget((attached, silence, wall));
        drop(wakeup);
        Box::new(sender).abandon();
    }
}

/// Frames that the pair's socket may keep for receiving, where a port has that many.
pub(super) fn fill_of(port: u32) -> u32 {
    port.saturating_mul(4).min(FILL)
}

impl Kernel {
    /// Removes the device pair of a predecessor.
    pub(super) fn remove_other_pair(&self) {
        let other = self.other_pair;
        if other != 0
            && let Err(error) = Punt::remove(other)
        {
            tracing::warn!(%error, "the last data plane's device pair stays");
        }
    }

    /// Removes what a successor that did not come up has left of a pair.
    pub(super) fn remove_pairs(&self) {
        if let Some(Err(error)) = self.seed.get().map(|seed| Punt::remove_all(seed)) {
            tracing::warn!(%error, "a device pair of the express lane stays");
        }
    }

    /// Nothing is received by the device pair any more, which stays.
    pub(super) fn abandon(&self) {
        self.program.remove_receiver();
        if let Some(Punt { near_silence, port, inboxes, received, .. }) = self.punt.lock().take() {
            std::mem::forget((near_silence, inboxes, received));
            Box::new(port).abandon();
        }
    }

    /// A port begins to use the device pair, which is made if it is the first. Returns what becomes
    /// readable when frames arrive.
    fn join(
        &self,
        umem: &Arc<Umem>,
        link: &Link,
        tag: u16,
        fill: u32,
        pool: &mut FramePool,
    ) -> Result<OwnedFd, ExpressError> {
        let mut punt = self.punt.lock();
        let punt = match &mut *punt {
            Some(punt) => punt,
            none => none.insert(Punt::open(umem, &link.name, 0, fill_of(fill), &self.walls, pool)?),
        };
        self.seed.get_or_init(|| link.name.clone());
        let wakeup = punt.port.duplicate().map_err(|source| ExpressError::Descriptor { source })?;
        let received = self.program.set_receiver(wakeup.as_fd());
        received.map_err(|source| ExpressError::Receiver { source })?;
        self.program.set_punt(punt.ifindex());
        let all = self.program.intake_of_all().filter(|_| !punt.has_ports());
        for intake in self.program.intake(tag).into_iter().chain(all) {
            intake.open(punt.room.into());
        }
        punt.add(tag, link.index);
        Ok(wakeup)
    }

    /// A port stops to use the device pair, which goes with the last.
    fn leave(&self, tag: u16, ifindex: u32, pool: &mut FramePool) {
        self.program.remove_port(ifindex);
        if self.punt.lock().as_mut().is_some_and(|punt| !punt.forget(tag, pool)) {
            self.close_pair(pool);
        }
    }

    /// Removes the device pair.
    pub(super) fn close_pair(&self, pool: &mut FramePool) {
        if let Some(punt) = self.punt.lock().take() {
            punt.close(pool);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn the_tag_comes_off_and_the_rest_stays() {
        let (umem, mut frames) = Umem::new(1).unwrap();
        let mut frame = frames.pop().unwrap();
        let mut bytes: Vec<u8> = (0..12).collect();
        bytes.extend([0x81, 0, 0xf0, 0x2a, 0x81, 0, 0, 7, 1, 2, 3]);
        frame.set_span(256, bytes.len());
        umem.bytes_mut(&mut frame).copy_from_slice(&bytes);
        assert_eq!(untag(&umem, &mut frame), Some(0xf02a));
        bytes.drain(12..16);
        assert_eq!(umem.bytes(&frame), bytes, "the workload's own tag is still there");
        assert_eq!(untag(&umem, &mut frame), Some(7));
        assert_eq!(untag(&umem, &mut frame), None, "no tag");
        frame.set_span(256, 15);
        assert_eq!(untag(&umem, &mut frame), None, "too short");
        frame.release();
    }

    #[test]
    fn flows_are_read_where_the_program_reads_them() {
        let mut v4 = vec![0; 12];
        v4.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        v4.extend([0x12, 0x34, 0, 53, 0, 8, 0, 0]);
        let [one, two]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        assert_eq!(flow_of(&v4, 9), Some(FlowId::new(9, 17, (one, 0x1234), (two, 53))));
        let mut ping = v4.clone();
        ping[23] = 1;
        ping[34..].copy_from_slice(&[8, 0, 0xab, 0xcd, 0, 77, 0, 1]);
        assert_eq!(flow_of(&ping, 9), Some(FlowId::new(9, 1, (one, 77), (two, 0x0800))));
        assert_eq!(flow_of(&ping[..39], 9), None);
        let mut v6 = vec![0; 12];
        v6.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 6, 64]);
        let [one, two]: [IpAddr; 2] = ["fd00::1", "fd00::2"].map(|ip| ip.parse().unwrap());
        for address in [one, two] {
            let IpAddr::V6(address) = address else { unreachable!() };
            v6.extend(address.octets());
        }
        v6.extend([0, 80, 0x12, 0x34]);
        assert_eq!(flow_of(&v6, 9), Some(FlowId::new(9, 6, (one, 80), (two, 0x1234))));
        for end in 0..v6.len() {
            assert_eq!(flow_of(&v6[..end], 9), None);
        }
    }
}
