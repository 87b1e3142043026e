//! The bare AF_XDP forwarder: the floor of every switch that moves frames in userspace.
//!
//! Two ports, one thread. What comes in by one ring goes out by the other, and nobody looks at it.
//! It uses Firedoor's own ports, so that the difference to the switch is what the switch does with
//! a frame, and nothing else.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use firedoor_dataplane::frame::Frame;
use firedoor_dataplane::pool::{FramePool, FrameStore};
use firedoor_dataplane::port::Port;
use firedoor_dataplane::port::xdp::{XdpOptions, XdpPort, open};
use firedoor_dataplane::sys::umem::Umem;
use firedoor_lab::netns::NetnsError;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::{Missing, Site, System, TWO_PORTS, Up};
use crate::compare::error::{BuildError, building};
use crate::compare::machine;

/// Frames of the umem, as many as the switch has by default.
const FRAMES: u32 = 16_384;
/// How long it looks for more before it sleeps, as the switch's workers do where nothing speaks for
/// longer.
const SPIN: Duration = Duration::from_micros(20);
/// How long it sleeps before it looks whether to stop.
const SLEEP: Duration = Duration::from_millis(100);

/// The bare AF_XDP forwarder.
pub(super) struct Forwarder;

impl System for Forwarder {
    fn name(&self) -> &'static str {
        "af_xdp"
    }

    fn about(&self) -> &'static str {
        "floor: rx ring to the other port's tx ring in userspace, no lookup"
    }

    fn version(&self) -> Result<String, Missing> {
        Ok(format!("{}, Linux {}", env!("CARGO_PKG_VERSION"), machine::kernel()))
    }

    fn port_limit(&self) -> Option<(usize, &'static str)> {
        Some(TWO_PORTS)
    }

    fn up(&self, site: &Site<'_>) -> Result<Up, BuildError> {
        site.topology.complete_checksums()?;
        let names: Vec<String> = site.topology.hosts.iter().map(|h| h.port.clone()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, told) = mpsc::sync_channel(1);
        let stopped = Arc::clone(&stop);
        let thread =
            site.topology.switch.spawn("forwarder", move || forward(&names, &stopped, &tell))?;
        let running = Running { stop, thread: Some(thread) };
        let started = told.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        building("start the forwarder", started)?;
        Ok(Up::new(running))
    }
}

/// The forwarder's thread, which ends when this is dropped.
struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), NetnsError>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens both ports, tells so, and forwards until told to stop.
fn forward(names: &[String], stop: &AtomicBool, tell: &SyncSender<io::Result<()>>) {
    let opened = open_all(names).and_then(|(pool, ports)| Ok((watch(&ports)?, pool, ports)));
    let (mut poll, mut pool, mut ports) = match opened {
        Ok(opened) => opened,
        Err(error) => return drop(tell.send(Err(error))),
    };
    let _ = tell.send(Ok(()));
    let mut events = Events::with_capacity(ports.len());
    let mut batch = Vec::new();
    let mut idle_since = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if turn(&mut ports, &mut pool, &mut batch) > 0 {
            idle_since = Instant::now();
        } else if idle_since.elapsed() > SPIN && !ports.iter().any(Port::is_busy) {
            // An interrupted sleep is a short one.
            let _ = poll.poll(&mut events, Some(SLEEP));
            idle_since = Instant::now();
        }
    }
    ports.into_iter().for_each(|port| Box::new(port).close(&mut pool));
}

/// What becomes ready when a frame comes.
fn watch(ports: &[XdpPort]) -> io::Result<Poll> {
    let poll = Poll::new()?;
    for (token, fd) in ports.iter().filter_map(Port::fd).enumerate() {
        poll.registry().register(&mut SourceFd(&fd), Token(token), Interest::READABLE)?;
    }
    Ok(poll)
}

fn open_all(names: &[String]) -> io::Result<(FramePool, Vec<XdpPort>)> {
    let (umem, frames) = Umem::new(FRAMES)?;
    let umem = Arc::new(umem);
    let mut pool = FramePool::new(Arc::clone(&umem), FrameStore::new(frames));
    let mut ports: Vec<XdpPort> = Vec::new();
    for (owner, name) in (1..).zip(names) {
        match open(&umem, owner, name, &XdpOptions::default(), &mut pool) {
            Ok(opened) => ports.extend(opened.queues),
            Err(error) => {
                ports.into_iter().for_each(|port| Box::new(port).close(&mut pool));
                return Err(io::Error::other(error));
            }
        }
    }
    Ok((pool, ports))
}

/// Once from each port to the other. Returns how many frames came.
fn turn(ports: &mut [XdpPort], pool: &mut FramePool, batch: &mut Vec<Frame>) -> usize {
    let [one, other] = ports else { return 0 };
    cross(one, other, pool, batch) + cross(other, one, pool, batch)
}

fn cross(
    from: &mut XdpPort,
    to: &mut XdpPort,
    pool: &mut FramePool,
    batch: &mut Vec<Frame>,
) -> usize {
    from.reclaim(pool);
    let received = from.receive(pool, batch);
    if received > 0 {
        to.transmit(batch);
        // What the other ring has no room for is lost, as in any switch.
        batch.drain(..).for_each(|frame| pool.give(frame));
    }
    received
}
