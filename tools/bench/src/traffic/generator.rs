//! Offering a load.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use firedoor_dataplane::link::{LinkError, Netlink};
use firedoor_dataplane::sys::live_frames::{LENGTHS, LiveFrames};
use firedoor_dataplane::sys::packet::{self, PacketSender};
use firedoor_lab::netns::{Netns, NetnsError};
use nix::errno::Errno;
use nix::sys::prctl::set_timerslack;
use nix::time::{ClockId, clock_gettime};

use super::frames::{self, Frames};
use super::pacer::Pacer;
use super::{Kind, Load, Sent, TrafficError};

/// Frames that one run of live frames makes when there is no rate: some milliseconds' worth.
const LIVE_RUN: u64 = 16_384;

/// Frames that the kernel makes before it sends them: as many as a veth's receiver polls at once.
const LIVE_BATCH: u32 = 64;

/// Shorter waits are spun, because going to sleep and waking up takes some of that.
const SHORTEST_SLEEP: Duration = Duration::from_micros(30);

/// What sends a load into one interface.
pub struct Generator {
    netns: Netns,
    ifname: String,
    rate: Option<u64>,
    lengths: [u16; LENGTHS],
    /// Frames sent so far.
    sent: u64,
    source: Source,
}

/// Where frames come from.
enum Source {
    Live(LiveFrames),
    Packet { socket: PacketSender, frames: Frames },
}

impl Generator {
    /// A generator on an interface of a namespace. With [`Kind::LiveFrames`] the far end of a veth
    /// must poll (an XDP program, a [`Sink`](super::Sink) or an AF_XDP socket there, or GRO), or it
    /// takes nothing.
    ///
    /// # Errors
    /// If the load is impossible, there is no such interface, or without root.
    pub fn new(kind: Kind, netns: &Netns, ifname: &str, load: &Load) -> Result<Self, TrafficError> {
        let recipe = frames::recipe(load, now())?;
        let lengths = recipe.lengths;
        let source = netns.run(|| {
            let index = index(netns, ifname)?;
            match kind {
                Kind::LiveFrames => LiveFrames::load(index, &recipe).map(Source::Live),
                Kind::Packet => PacketSender::open(index).map(|socket| {
                    let frames = Frames::new(recipe, packet::MAX_BATCH);
                    Source::Packet { socket, frames }
                }),
            }
            .map_err(|source| refused("prepare to send from", ifname, netns.name(), source))
        })??;
        let netns = Netns::open(netns.name())?;
        Ok(Self { netns, ifname: ifname.to_owned(), rate: load.rate, lengths, sent: 0, source })
    }

    /// Sends for that long, at the load's rate if it has one.
    ///
    /// # Errors
    /// If the kernel refuses a frame, as when the interface goes down.
    pub fn run(&mut self, duration: Duration) -> Result<Sent, TrafficError> {
        self.inside(|generator| generator.offer(u64::MAX, Some(duration), &Watch::default()))
    }

    /// Sends that many frames, at the load's rate if it has one.
    ///
    /// # Errors
    /// If the kernel refuses a frame, as when the interface goes down.
    pub fn send(&mut self, frames: u64) -> Result<Sent, TrafficError> {
        self.inside(|generator| generator.offer(frames, None, &Watch::default()))
    }

    /// Changes the rate; with `None`, as many frames as possible.
    pub fn set_rate(&mut self, rate: Option<u64>) {
        self.rate = rate;
    }

    /// Sends in the background until it is told to stop.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(self) -> Result<Running, TrafficError> {
        let watch = Arc::<Watch>::default();
        let inside = Netns::open(self.netns.name())?;
        let (mut generator, watched) = (self, Arc::clone(&watch));
        let thread = inside.spawn("generate", move || {
            let sent = generator.offer(u64::MAX, None, &watched);
            (generator, sent)
        })?;
        Ok(Running { thread, watch })
    }

    fn inside<T: Send>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, TrafficError> + Send,
    ) -> Result<T, TrafficError> {
        let netns = Netns::open(self.netns.name())?;
        netns.run(|| work(self))?
    }

    /// Sends until `frames` are sent, `duration` is over or it is told to stop. The thread is in the
    /// interface's namespace.
    fn offer(
        &mut self,
        frames: u64,
        duration: Option<Duration>,
        watch: &Watch,
    ) -> Result<Sent, TrafficError> {
        // So that a sleep ends when it should. Not granted, it ends 50 µs later.
        let _ = set_timerslack(1);
        let mut pacer = self.rate.map(Pacer::new);
        let planned = pacer.as_ref().zip(duration).map(|(pacer, time)| pacer.planned(time));
        let mut left = planned.unwrap_or(u64::MAX).min(frames);
        let mut sent = Sent::default();
        let start = Instant::now();
        while left > 0 && !watch.stop.load(Ordering::Relaxed) {
            let elapsed = start.elapsed();
            if duration.is_some_and(|duration| elapsed >= duration) {
                break;
            }
            let count = match &mut pacer {
                None => LIVE_RUN,
                Some(pacer) => {
                    wait(pacer.due().saturating_sub(elapsed));
                    pacer.take(start.elapsed())
                }
            };
            let count = self.send_now(count.min(left))?;
            left -= count;
            sent.frames += count;
            watch.frames.store(sent.frames, Ordering::Relaxed);
        }
        sent.elapsed = start.elapsed();
        sent.bytes = frames::bytes(&self.lengths, self.sent, sent.frames);
        self.sent += sent.frames;
        Ok(sent)
    }

    /// Sends some of the next `count` frames at once; returns how many.
    fn send_now(&mut self, count: u64) -> Result<u64, TrafficError> {
        let result = match &mut self.source {
            Source::Live(live) => {
                let count = count.min(LIVE_RUN);
                live.send(count as u32, LIVE_BATCH).map(|()| count)
            }
            Source::Packet { socket, frames } => send_batch(socket, &frames.next(count as usize)),
        };
        result.map_err(|source| refused("send from", &self.ifname, self.netns.name(), source))
    }
}

/// Sends all of the frames.
fn send_batch(socket: &PacketSender, frames: &[&[u8]]) -> io::Result<u64> {
    let mut sent = 0;
    while sent < frames.len() {
        match socket.send(&frames[sent..]) {
            Ok(count) => sent += count,
            // No room for this frame: it is offered and lost.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => sent += 1,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent as u64)
}

/// What a generator and whoever watches it share.
#[derive(Default)]
struct Watch {
    /// Frames sent so far.
    frames: AtomicU64,
    stop: AtomicBool,
}

/// How a generator in the background ends.
type End = (Generator, Result<Sent, TrafficError>);

/// A generator in the background.
pub struct Running {
    thread: JoinHandle<Result<End, NetnsError>>,
    watch: Arc<Watch>,
}

impl Running {
    /// How many frames it has sent so far.
    pub fn frames(&self) -> u64 {
        self.watch.frames.load(Ordering::Relaxed)
    }

    /// Stops it, and says what it sent.
    ///
    /// # Errors
    /// What ended it early, if something did.
    pub fn stop(self) -> Result<(Generator, Sent), TrafficError> {
        self.watch.stop.store(true, Ordering::Relaxed);
        let (generator, sent) = match self.thread.join() {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok((generator, sent?))
    }
}

/// Waits that long; the processor is free unless that is not worth it.
fn wait(duration: Duration) {
    if duration >= SHORTEST_SLEEP {
        return thread::sleep(duration);
    }
    let start = Instant::now();
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
}

/// Nanoseconds since boot, which no earlier generator's frames have numbers above.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(1, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// The index of an interface of the calling thread's namespace, which is `netns`.
pub(super) fn index(netns: &Netns, ifname: &str) -> Result<u32, TrafficError> {
    let link = Netlink::open()
        .map_err(|source| refused("look up", ifname, netns.name(), source))?
        .link(ifname);
    link.map(|link| link.index).map_err(|source: LinkError| TrafficError::Interface {
        ifname: ifname.to_owned(),
        netns: netns.name().to_owned(),
        source,
    })
}

fn refused(doing: &'static str, ifname: &str, netns: &str, source: io::Error) -> TrafficError {
    TrafficError::Kernel { doing, ifname: ifname.to_owned(), netns: netns.to_owned(), source }
}
