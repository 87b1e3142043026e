//! What the generators and sinks reach by themselves, over a plain wire: the ceiling of whatever is
//! measured with them on this machine.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use firedoor_classifier::MacAddr;
use serde::Serialize;

use super::search::{self, Throughput, Trial};
use super::wire::{RECEIVER, SENDER, Wire};
use super::{End, FrameSize, Generator, Kind, Load, Place, Received, Sent, Sink, TrafficError};
use crate::Progress;

/// How long what is still on its way may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who sends, and where it is counted. Live frames reach the stack only where the receiver polls
/// without an XDP program, which a plain wire does not.
const PAIRS: [(Kind, Place); 3] =
    [(Kind::LiveFrames, Place::Xdp), (Kind::Packet, Place::Xdp), (Kind::Packet, Place::Stack)];

/// What to offer.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the frames are.
    pub frame: FrameSize,
    /// How many flows they belong to.
    pub flows: u32,
    /// Frames per second; as many as possible if `None`.
    pub rate: Option<u64>,
    /// How long each trial is.
    pub duration: Duration,
    /// How to search for the highest rate without loss, if it is to be found.
    pub search: Option<search::Options>,
    /// Decides the order of flows.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How long the frames are.
    pub frame: FrameSize,
    /// How many flows they belong to.
    pub flows: u32,
    /// Decided the order of flows.
    pub seed: u64,
    /// Each generator with each sink.
    pub pairs: Vec<Pair>,
}

/// One generator with one sink.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// Who sent.
    pub generator: Kind,
    /// Where it was counted: `xdp` or `stack`.
    pub sink: &'static str,
    /// What was sent.
    pub sent: Sent,
    /// What was received.
    pub received: Received,
    /// The highest rate without loss, if it was to be found.
    pub search: Option<Throughput>,
}

/// Measures every pair, until `interrupted`.
///
/// # Errors
/// Without root, or if the load is impossible.
pub fn run(options: &Options, interrupted: &AtomicBool) -> Result<Report, TrafficError> {
    let progress = Progress::new(PAIRS.len() as u64);
    let mut pairs = Vec::new();
    for (generator, place) in PAIRS {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let sink = match place {
            Place::Xdp => "xdp",
            Place::Stack => "stack",
        };
        progress.step(format!("{generator}, counted in {sink}"));
        let bench = Bench::new(generator, place, options)?;
        pairs.push(bench.run(options, sink, interrupted)?);
    }
    Ok(Report { frame: options.frame, flows: options.flows, seed: options.seed, pairs })
}

/// A wire with a generator and a sink on it. The wire goes last.
struct Bench {
    kind: Kind,
    generator: Generator,
    sink: Sink,
    _wire: Wire,
}

impl Bench {
    fn new(kind: Kind, place: Place, options: &Options) -> Result<Self, TrafficError> {
        let wire = Wire::new()?;
        let end = |n, port| End {
            mac: MacAddr([2, 0, 0, 0, 0, n]),
            ip: Ipv4Addr::new(10, 0, 0, n),
            port,
        };
        let load = Load {
            frame: options.frame,
            flows: options.flows,
            rate: options.rate,
            from: end(1, 1_024),
            to: end(2, 9),
            seed: options.seed,
        };
        let sink = Sink::attach(&wire.receiver, RECEIVER, place)?;
        let generator = Generator::new(kind, &wire.sender, SENDER, &load)?;
        Ok(Self { kind, generator, sink, _wire: wire })
    }

    fn run(
        mut self,
        options: &Options,
        sink: &'static str,
        interrupted: &AtomicBool,
    ) -> Result<Pair, TrafficError> {
        let (sent, received) = self.offer(options.rate, options.duration)?;
        let search = match &options.search {
            None => None,
            Some(search) => self.search(search, options.duration, interrupted)?,
        };
        Ok(Pair { generator: self.kind, sink, sent, received, search })
    }

    /// The highest rate without loss; `None` if interrupted before it was found.
    fn search(
        &mut self,
        options: &search::Options,
        duration: Duration,
        interrupted: &AtomicBool,
    ) -> Result<Option<Throughput>, TrafficError> {
        let found = search::search(options, |rate| {
            if interrupted.load(Ordering::Relaxed) {
                return Err(None);
            }
            let (sent, received) = self.offer(Some(rate), duration).map_err(Some)?;
            Ok(Trial { sent, received: received.frames })
        });
        match found {
            Ok(found) => Ok(Some(found)),
            Err(None) => Ok(None),
            Err(Some(error)) => Err(error),
        }
    }

    /// Offers the load once, and waits for what is on its way.
    fn offer(
        &mut self,
        rate: Option<u64>,
        duration: Duration,
    ) -> Result<(Sent, Received), TrafficError> {
        let before = self.sink.settle(PATIENCE)?;
        self.generator.set_rate(rate);
        let sent = self.generator.run(duration)?;
        Ok((sent, self.sink.settle(PATIENCE)? - before))
    }
}
