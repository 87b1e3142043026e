//! UDP one way, from a generator to a sink, counted where it arrives.

use std::time::{Duration, Instant};

use firedoor_dataplane::sys::affinity;

use super::window::{Count, watch};
use super::{Manner, Sample};
use crate::compare::error::BuildError;
use crate::compare::metric::Metric;
use crate::compare::scenario::Load;
use crate::compare::tool::tool;
use crate::compare::topology::{Host, Topology};
use crate::traffic::search::{self, Trial, search};
use crate::traffic::{self, End, Generator, Kind, Place, Received, Running, Sink, TrafficError};

/// The sender's port in the first flow.
const SOURCE_PORT: u16 = 20_000;
/// The receiver's port in the first flow; no rule names it or those that follow.
const DESTINATION_PORT: u16 = 30_000;
/// Decides in which order flows take turns.
pub(in crate::compare) const SEED: u64 = 0xf1ed_0042;
/// How long frames flow at least before they are watched: after that, no system's rate was seen to rise.
const SETTLE: Duration = Duration::from_secs(1);
/// How often each flow has to be there, and how long frames flow at most until then.
const SETTLE_FRAMES: u64 = 8;
const SETTLE_LONGEST: Duration = Duration::from_secs(12);
/// Length of one trial of a search.
const TRIAL: Duration = Duration::from_millis(150);
/// How long the last frames of a trial may be under way.
const UNDER_WAY: Duration = Duration::from_millis(200);
/// How to search: to two percent, and a frame in 100,000 may get lost.
const SEARCH: search::Options = search::Options {
    lowest: 10_000,
    highest: 4_000_000,
    resolution: 0.02,
    tolerated_loss: 1e-5,
    failures: 2,
    passes: 2,
};

/// Measures the rate of frames that arrive, of a load at its own rate or at the highest.
pub(super) fn measure(
    load: Load,
    topology: &Topology,
    manner: &Manner<'_>,
) -> Result<Sample, BuildError> {
    let sinks = Sinks::attach(load.kind, topology)?;
    let generator = start(generator(load, topology)?)?;
    let watched = settle(load, &sinks, manner).and_then(|()| {
        let (ran_before, start) = (topology.ran_in_switch(), Instant::now());
        let count = || Ok(Count { arrived: sinks.read()?.frames, offered: generator.frames() });
        let window = watch(manner, count)?;
        let ran = topology.ran_in_switch().saturating_sub(ran_before);
        Ok((window, ran.as_nanos() as f64 / start.elapsed().as_secs_f64()))
    });
    generator.stop()?;
    let (window, own) = watched?;
    let (rate, offered) = (window.rate(), window.offered());
    Ok(Sample::of([
        (Metric::FramesPerSecond, rate),
        (Metric::CpuNsPerFrame, window.ns_each()),
        (Metric::OwnNsPerFrame, own / rate.max(1.0)),
        (Metric::Offered, offered),
        (Metric::Lost, (1.0 - rate / offered.max(1.0)).clamp(0.0, 1.0)),
        (Metric::Undisturbed, window.undisturbed),
    ]))
}

/// Searches for the highest rate without loss.
pub(super) fn measure_loss_free(
    load: Load,
    topology: &Topology,
    manner: &Manner<'_>,
) -> Result<Sample, BuildError> {
    let sinks = Sinks::attach(load.kind, topology)?;
    let mut generator = generator(load, topology)?;
    let found = search(&SEARCH, |rate| -> Result<Trial, BuildError> {
        manner.wait(Duration::ZERO)?;
        generator.set_rate(Some(rate));
        let before = sinks.read()?;
        let sent = generator.run(TRIAL)?;
        let received = (sinks.settle()? - before).frames;
        Ok(Trial { sent, received })
    })?;
    let mut sample = Sample::of([(Metric::LossFree, found.rate.unwrap_or(0) as f64)]);
    sample.note = found.limited_by_generator.then_some("as much as the generator offers");
    Ok(sample)
}

/// A load's generator at the sender.
pub(super) fn generator(load: Load, topology: &Topology) -> Result<Generator, BuildError> {
    let sender = topology.sender();
    if load.kind == Kind::LiveFrames {
        // Without generic receive offload, a veth takes no XDP frames unless it has an XDP program.
        tool(Some(&topology.switch), "ethtool", ["-K", &sender.port, "gro", "on"])?;
    }
    let described = traffic::Load {
        frame: load.size,
        flows: load.flows,
        rate: load.rate,
        from: end(sender, SOURCE_PORT),
        to: end(topology.receiver(), DESTINATION_PORT),
        seed: SEED,
    };
    Ok(Generator::new(load.kind, topology.sender_netns(), &sender.ifname, &described)?)
}

fn end(host: &Host, port: u16) -> End {
    End { mac: host.mac, ip: host.ip, port }
}

/// Starts a generator on the first processor, which it shares with the work that the kernel does on
/// the sender's behalf.
pub(super) fn start(generator: Generator) -> Result<Running, BuildError> {
    // Threads inherit where they may run from the one that starts them.
    let started = std::thread::scope(|scope| {
        let starter = scope.spawn(|| {
            if let Some(&first) = affinity::available().unwrap_or_default().first() {
                let _ = affinity::pin_current_thread(first);
            }
            generator.start()
        });
        starter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    Ok(started?)
}

/// Waits until all is as it will be: rates no longer rise after a start, and whoever remembers flows, or
/// carries them another way once it knows them, knows them all.
pub(super) fn settle(load: Load, sinks: &Sinks, manner: &Manner<'_>) -> Result<(), BuildError> {
    let start = Instant::now();
    let first = sinks.read()?.frames;
    loop {
        manner.wait(SETTLE)?;
        let seen = sinks.read()?.frames - first;
        if seen >= SETTLE_FRAMES * u64::from(load.flows) || start.elapsed() >= SETTLE_LONGEST {
            return Ok(());
        }
    }
}

/// What counts at the receiver.
pub(super) struct Sinks(Vec<Sink>);

impl Sinks {
    /// Counts XDP frames before the kernel makes skbs of them, unless they were skbs all along;
    /// and, since not all systems' frames pass there, at the stack's door.
    pub(super) fn attach(kind: Kind, topology: &Topology) -> Result<Self, BuildError> {
        let places: &[Place] = match kind {
            Kind::LiveFrames => &[Place::Xdp, Place::Stack],
            Kind::Packet => &[Place::Stack],
        };
        let attach = |&place: &Place| {
            Sink::attach(topology.receiver_netns(), &topology.receiver().ifname, place)
        };
        Ok(Self(places.iter().map(attach).collect::<Result<_, _>>()?))
    }

    pub(super) fn read(&self) -> Result<Received, TrafficError> {
        self.sum(Sink::read)
    }

    /// Once nothing is under way any more.
    fn settle(&self) -> Result<Received, TrafficError> {
        self.sum(|sink| sink.settle(UNDER_WAY))
    }

    fn sum(
        &self,
        read: impl Fn(&Sink) -> Result<Received, TrafficError>,
    ) -> Result<Received, TrafficError> {
        self.0.iter().try_fold(Received::default(), |sum, sink| {
            let received = read(sink)?;
            Ok(Received {
                frames: sum.frames + received.frames,
                bytes: sum.bytes + received.bytes,
                highest: sum.highest.max(received.highest),
                reordered: sum.reordered + received.reordered,
            })
        })
    }
}
