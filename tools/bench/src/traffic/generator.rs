//! Offering a load.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use firedoor_dataplane::link::{LinkError, Netlink};
use firedoor_dataplane::sys::live_frames::{LENGTHS, LiveFrames, Maps, Orders};
use firedoor_dataplane::sys::packet::{self, PacketSender};
use firedoor_lab::netns::{Netns, NetnsError};
use nix::errno::Errno;
use nix::sys::prctl::set_timerslack;
use nix::time::{ClockId, clock_gettime};

use super::frames::{self, Frames};
use super::pacer::Pacer;
use super::{Kind, Load, Sent, TrafficError};

/// Longer than anything runs.
const FOREVER: Duration = Duration::MAX;

/// Shorter waits are spun, because going to sleep and waking up takes some of that.
const SHORTEST_SLEEP: Duration = Duration::from_micros(30);

/// What sends a load into one interface.
pub struct Generator {
    netns: Netns,
    ifname: String,
    rate: Option<u64>,
    lengths: [u16; LENGTHS],
    /// The first frame's number.
    first: u64,
    /// Frames sent so far.
    sent: u64,
    source: Source,
}

/// Where frames come from.
enum Source {
    Live(LiveFrames),
    Packet(Packets),
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
        let (lengths, first) = (recipe.lengths, recipe.sequence);
        let source = netns.run(|| {
            let index = index(netns, ifname)?;
            match kind {
                Kind::LiveFrames => LiveFrames::load(index, &recipe).map(Source::Live),
                Kind::Packet => PacketSender::open(index).map(|socket| {
                    let sequence = Arc::new(AtomicU64::new(first));
                    let frames = Frames::new(recipe, packet::MAX_BATCH);
                    Source::Packet(Packets { socket, frames, sequence })
                }),
            }
            .map_err(|source| refused("prepare to send from", ifname, netns.name(), source))
        })??;
        let netns = Netns::open(netns.name())?;
        let (ifname, rate) = (ifname.to_owned(), load.rate);
        Ok(Self { netns, ifname, rate, lengths, first, sent: 0, source })
    }

    /// Sends for that long, at the load's rate if it has one.
    ///
    /// # Errors
    /// If the kernel refuses a frame, as when the interface goes down.
    pub fn run(&mut self, duration: Duration) -> Result<Sent, TrafficError> {
        self.inside(|generator| generator.offer(u64::MAX, duration, &AtomicBool::new(false)))
    }

    /// Sends that many frames, at the load's rate if it has one.
    ///
    /// # Errors
    /// If the kernel refuses a frame, as when the interface goes down.
    pub fn send(&mut self, frames: u64) -> Result<Sent, TrafficError> {
        self.inside(|generator| generator.offer(frames, FOREVER, &AtomicBool::new(false)))
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
        let progress = self.source.progress();
        let first = self.first + self.sent;
        let stop = Arc::<AtomicBool>::default();
        let inside = Netns::open(self.netns.name())?;
        let (mut generator, stopped) = (self, Arc::clone(&stop));
        let thread = inside.spawn("generate", move || {
            let sent = generator.offer(u64::MAX, FOREVER, &stopped);
            (generator, sent)
        })?;
        Ok(Running { thread, stop, progress, first, since: Instant::now() })
    }

    fn inside<T: Send>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, TrafficError> + Send,
    ) -> Result<T, TrafficError> {
        let netns = Netns::open(self.netns.name())?;
        netns.run(|| work(self))?
    }

    /// Sends until `frames` are sent, `duration` is over or it is told to `stop`. The thread is in
    /// the interface's namespace.
    fn offer(
        &mut self,
        frames: u64,
        duration: Duration,
        stop: &AtomicBool,
    ) -> Result<Sent, TrafficError> {
        let planned = self.rate.map_or(u64::MAX, |rate| Pacer::new(rate).planned(duration));
        let frames = frames.min(planned);
        let start = Instant::now();
        let sent = match &mut self.source {
            Source::Live(live) => live.send(&Orders { rate: self.rate, frames, duration }, stop),
            Source::Packet(packets) => packets.send(self.rate, frames, duration, stop),
        };
        // Live frames that are sent no more still take their time.
        let elapsed = start.elapsed().min(duration);
        let sent =
            sent.map_err(|source| refused("send from", &self.ifname, self.netns.name(), source))?;
        let bytes = frames::bytes(&self.lengths, self.sent, sent);
        self.sent += sent;
        Ok(Sent { frames: sent, bytes, elapsed })
    }
}

impl Source {
    fn progress(&self) -> Progress {
        match self {
            Self::Live(live) => Progress::Live(live.maps()),
            Self::Packet(packets) => Progress::Packet(Arc::clone(&packets.sequence)),
        }
    }
}

/// Frames from a packet socket.
struct Packets {
    socket: PacketSender,
    frames: Frames,
    /// The next frame's number.
    sequence: Arc<AtomicU64>,
}

impl Packets {
    /// Sends until `frames` are sent, `duration` is over or it is told to `stop`; returns how many.
    fn send(
        &mut self,
        rate: Option<u64>,
        frames: u64,
        duration: Duration,
        stop: &AtomicBool,
    ) -> io::Result<u64> {
        // So that a sleep ends when it should. Not granted, it ends 50 µs later.
        let _ = set_timerslack(1);
        let mut pacer = rate.map(Pacer::new);
        let mut left = frames;
        let start = Instant::now();
        while left > 0 && !stop.load(Ordering::Relaxed) {
            let elapsed = start.elapsed();
            if elapsed >= duration {
                break;
            }
            let mut count = packet::MAX_BATCH as u64;
            if let Some(pacer) = &mut pacer {
                wait(pacer.due().saturating_sub(elapsed));
                count = pacer.take(start.elapsed());
            }
            let sent = send_batch(&self.socket, &self.frames.next(count.min(left) as usize))?;
            self.sequence.fetch_add(sent, Ordering::Relaxed);
            left -= sent;
        }
        Ok(frames - left)
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

/// How a generator in the background ends.
type End = (Generator, Result<Sent, TrafficError>);

/// A generator in the background.
pub struct Running {
    thread: JoinHandle<Result<End, NetnsError>>,
    stop: Arc<AtomicBool>,
    progress: Progress,
    /// The number of the first frame, and when it was sent.
    first: u64,
    since: Instant,
}

/// Where a source says how far it is.
enum Progress {
    Live(Arc<Maps>),
    Packet(Arc<AtomicU64>),
}

impl Running {
    /// How many frames it has sent so far.
    pub fn frames(&self) -> u64 {
        let sequence = match &self.progress {
            Progress::Live(maps) => maps.sequence().unwrap_or(self.first),
            Progress::Packet(sequence) => sequence.load(Ordering::Relaxed),
        };
        sequence - self.first
    }

    /// Stops it, and says what it sent.
    ///
    /// # Errors
    /// What ended it early, if something did.
    pub fn stop(self) -> Result<(Generator, Sent), TrafficError> {
        self.stop.store(true, Ordering::Relaxed);
        let mut elapsed = Duration::MAX;
        if let Progress::Live(maps) = &self.progress {
            // At once; at the end of its call, when no frame is sent any more, it stops anyway.
            let _ = maps.stop();
            elapsed = self.since.elapsed();
        }
        let (generator, sent) = match self.thread.join() {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let sent = sent?;
        Ok((generator, Sent { elapsed: sent.elapsed.min(elapsed), ..sent }))
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
