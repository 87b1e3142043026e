//! `firedoor bench replay`: what a switch makes of a capture, and how long it takes.
//!
//! The capture is read into memory, each frame comes in by the port of the workload that has its
//! source address (or all by one port), and the path of a frame takes it from there: the real
//! extraction, connections, flow cache, policy and outbox, over no kernel. Frames that arrive are
//! discarded. Time stands still, so nothing expires and limits per second do not apply.
//!
//! Three things are timed, each over the whole capture and then again, with the tables as the pass
//! before left them: reading headers, judging in bursts, and the whole path from a frame's bytes to
//! the outbox, which includes copying it to the umem as the kernel would.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use firedoor_classifier::extract::{Headers, Kind, extract};
use firedoor_classifier::policy::PolicyError;
use firedoor_classifier::verdict::Cause;
use firedoor_classifier::wire::ethernet;
use firedoor_classifier::{DropReason, MacAddr, Nanos, Pipeline, Policy, PortId, Snapshot};
use firedoor_dataplane::counters::{PortCells, WorkerCounters};
use firedoor_dataplane::fragments::Fragmented;
use firedoor_dataplane::frame::Frame;
use firedoor_dataplane::mirror::{Mirror, MirrorSender};
use firedoor_dataplane::outbox::Outbox;
use firedoor_dataplane::path::{Burst, Path};
use firedoor_dataplane::pool::{FramePool, FrameStore};
use firedoor_dataplane::port::BURST;
use firedoor_dataplane::port::pcap::{PcapOpenError, Recording};
use firedoor_dataplane::sys::prefetch::prefetch;
use firedoor_dataplane::sys::umem::{MAX_FRAME, Umem};
use serde::Serialize;

use crate::Progress;

/// The time, which stands still.
const NOW: Nanos = Nanos::from_secs(1_000);

/// Unknown source addresses that a report names.
const STRANGERS: usize = 5;

/// What to replay.
#[derive(Clone, Debug)]
pub struct Options {
    /// The capture, pcap or pcapng.
    pub capture: PathBuf,
    /// The workload that every frame comes from; by source address if `None`.
    pub port: Option<String>,
    /// Timed passes after the first.
    pub passes: usize,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The capture.
    pub capture: PathBuf,
    /// The switch whose policy it was.
    pub switch: String,
    /// Frames that came in.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that went out: more than came in where some were flooded or answered.
    pub sent: u64,
    /// Frames dropped, by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// Frames that enforcing would have dropped, by reason.
    pub would_drop: BTreeMap<&'static str, u64>,
    /// Who decided over how many frames. Later fragments go with their first and are not in here.
    pub rules: Vec<Decided>,
    /// Frames of the capture that did not come in.
    pub left_out: LeftOut,
    /// Timed passes after the first.
    pub passes: usize,
    /// Times per frame.
    pub ns_per_frame: Times,
}

/// What a rule, or the default, or the switch itself decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decided {
    /// Its name.
    pub rule: String,
    /// Frames that it let pass.
    pub forwarded: u64,
    /// Frames that it dropped.
    pub dropped: u64,
}

/// Frames of the capture that did not come in.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LeftOut {
    /// Cut when they were captured, longer than a chunk, or not Ethernet.
    pub unplayable: u64,
    /// From no workload's address.
    pub strangers: u64,
    /// The addresses that most of those came from, and how many did.
    pub stranger_macs: Vec<(String, u64)>,
    /// Why the rest of the file cannot be read, if it is damaged.
    pub damage: Option<String>,
}

/// Times per frame, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Times {
    /// From bytes to headers.
    pub extract: Time,
    /// From headers to a verdict.
    pub judge: Time,
    /// From bytes to the outbox.
    pub path: Time,
}

/// A time per frame, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Time {
    /// In the first pass, with empty tables.
    pub first: f64,
    /// The median of the passes after it.
    pub median: f64,
}

/// Why it could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The capture cannot be read.
    #[error(transparent)]
    Capture(#[from] PcapOpenError),
    /// There is no such workload.
    #[error("no workload is called {name:?}; there are {known}")]
    Port {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// No frame comes in.
    #[error(
        "no frame of {} comes from a workload of {switch}{}: name the port with --port",
        .capture.display(), from(.left_out)
    )]
    Nothing {
        /// The capture.
        capture: PathBuf,
        /// The switch.
        switch: String,
        /// What was in it.
        left_out: LeftOut,
    },
    /// The policy cannot be built.
    #[error("the snapshot makes no policy")]
    Policy(#[from] PolicyError),
    /// There is no memory to receive into.
    #[error("no memory for the umem")]
    Memory(#[from] std::io::Error),
}

/// Whom the frames come from instead.
fn from(left_out: &LeftOut) -> String {
    let macs: Vec<&str> = left_out.stranger_macs.iter().map(|(mac, _)| mac.as_str()).collect();
    match macs.is_empty() {
        true => String::new(),
        false => format!(", but from {}", macs.join(", ")),
    }
}

/// A frame of the capture, and where it comes in.
struct Arrival {
    ingress: PortId,
    bytes: Vec<u8>,
}

/// Replays a capture under a policy.
///
/// # Errors
/// See [`ReplayError`].
pub fn run(options: &Options, policy: &Policy) -> Result<Report, ReplayError> {
    let progress = Progress::new(4);
    progress.step("reading");
    let (arrivals, left_out) = arrivals(options, policy)?;
    let policy = timeless(policy.snapshot())?;
    progress.step("judging");
    let mut counted = Switch::new(&policy)?;
    let sent = counted.pass(&arrivals);
    let rules = decisions(&policy, &arrivals);
    progress.step("timing");
    let ns_per_frame = Times {
        extract: time_extract(options.passes, &arrivals),
        judge: time_judge(options.passes, &policy, &arrivals),
        path: time_path(options.passes, &policy, &arrivals)?,
    };
    let by_reason = |count: fn(&WorkerCounters, DropReason) -> u64| {
        let counts =
            DropReason::ALL.iter().map(|&reason| (reason, count(&counted.counters, reason)));
        counts.filter(|&(_, n)| n > 0).map(|(reason, n)| (reason.slug(), n)).collect()
    };
    Ok(Report {
        capture: options.capture.clone(),
        switch: policy.snapshot().switch.clone(),
        frames: arrivals.len() as u64,
        bytes: arrivals.iter().map(|arrival| arrival.bytes.len() as u64).sum(),
        sent,
        drops: by_reason(WorkerCounters::drops),
        would_drop: by_reason(WorkerCounters::would_drops),
        rules,
        left_out,
        passes: options.passes,
        ns_per_frame,
    })
}

/// The frames that come in, and those that do not.
fn arrivals(options: &Options, policy: &Policy) -> Result<(Vec<Arrival>, LeftOut), ReplayError> {
    let all = options.port.as_deref().map(|name| port_of(policy, name)).transpose()?;
    let recording = Recording::read(&options.capture)?;
    let mut strangers: BTreeMap<MacAddr, u64> = BTreeMap::new();
    let mut arrivals = Vec::with_capacity(recording.frames.len());
    for bytes in recording.frames {
        let header = ethernet::Header::new_checked(&bytes);
        let source = header.map_or(MacAddr::default(), |(header, _)| header.source());
        match all.or_else(|| policy.fixed(source)) {
            Some(ingress) => arrivals.push(Arrival { ingress, bytes }),
            None => *strangers.entry(source).or_default() += 1,
        }
    }
    let mut most: Vec<_> = strangers.iter().map(|(mac, &count)| (mac.to_string(), count)).collect();
    most.sort_by_key(|(_, count)| Reverse(*count));
    most.truncate(STRANGERS);
    let left_out = LeftOut {
        unplayable: recording.skipped,
        strangers: strangers.values().sum(),
        stranger_macs: most,
        damage: recording.damage.map(|error| error.to_string()),
    };
    if arrivals.is_empty() {
        let switch = policy.snapshot().switch.clone();
        return Err(ReplayError::Nothing { capture: options.capture.clone(), switch, left_out });
    }
    Ok((arrivals, left_out))
}

fn port_of(policy: &Policy, name: &str) -> Result<PortId, ReplayError> {
    match policy.workload(name) {
        Some(workload) => Ok(workload.port),
        None => {
            let workloads = policy.snapshot().workloads.iter();
            let known: Vec<&str> = workloads.map(|workload| workload.name.as_str()).collect();
            Err(ReplayError::Port { name: name.to_owned(), known: known.join(", ") })
        }
    }
}

/// The same policy without limits per second.
fn timeless(snapshot: &Snapshot) -> Result<Arc<Policy>, PolicyError> {
    let mut snapshot = snapshot.clone();
    snapshot.settings.upcalls_per_sec = u32::MAX;
    Policy::build(snapshot).map(Arc::new)
}

/// Who decides over how many frames, in the rules' order.
fn decisions(policy: &Arc<Policy>, arrivals: &[Arrival]) -> Vec<Decided> {
    let mut pipeline = Pipeline::new(Arc::clone(policy));
    let mut counts: BTreeMap<(bool, u32), (Cause, u64, u64)> = BTreeMap::new();
    for Arrival { ingress, bytes } in arrivals {
        let (cause, forwarded) = match extract(bytes, *ingress) {
            Ok(headers) if headers.kind == Kind::LaterFragment => continue,
            Ok(headers) => {
                let verdict = pipeline.judge(&headers, bytes.len(), NOW);
                (verdict.cause, verdict.is_forwarded())
            }
            Err(_) => (Cause::Switch, false),
        };
        let order = match cause {
            Cause::Rule(rule) => (false, rule.0),
            Cause::Default => (true, 0),
            Cause::Switch => (true, 1),
        };
        let (_, pass, drop) = counts.entry(order).or_insert((cause, 0, 0));
        *(if forwarded { pass } else { drop }) += 1;
    }
    let decided = |(cause, forwarded, dropped)| Decided {
        rule: policy.rule_name(cause).to_owned(),
        forwarded,
        dropped,
    };
    counts.into_values().map(decided).collect()
}

/// One worker's path, and nothing around it.
struct Switch {
    path: Path,
    cells: BTreeMap<PortId, Arc<PortCells>>,
    counters: Arc<WorkerCounters>,
    sent: Vec<Frame>,
    batch: Vec<Frame>,
}

impl Switch {
    fn new(policy: &Arc<Policy>) -> std::io::Result<Self> {
        let (umem, frames) = Umem::new(policy.settings().frames)?;
        let (umem, store) = (Arc::new(umem), FrameStore::new(frames));
        let counters = Arc::<WorkerCounters>::default();
        let mut path = Path {
            pipeline: Pipeline::new(Arc::clone(policy)),
            pool: FramePool::new(Arc::clone(&umem), store),
            outbox: Outbox::default(),
            counters: Arc::clone(&counters),
            mirror: MirrorSender::new(Mirror::new(0), 0, 0),
            peers: Default::default(),
            burst: Burst::default(),
            parcels: Vec::new(),
            offload: Default::default(),
            fragments: Fragmented::new(policy.settings(), umem.frames()),
        };
        let mut cells = BTreeMap::new();
        for workload in &policy.snapshot().workloads {
            let own = counters.port(workload.port);
            path.outbox.add_local(workload.port, MAX_FRAME, true, Arc::clone(&own));
            cells.insert(workload.port, own);
        }
        let (sent, batch) = (Vec::new(), Vec::with_capacity(BURST));
        Ok(Self { path, cells, counters, sent, batch })
    }

    /// Takes all frames in, in their order, and returns how many went out. Those that follow each
    /// other by the same port are one burst.
    fn pass(&mut self, arrivals: &[Arrival]) -> u64 {
        let mut sent = 0;
        for run in arrivals.chunk_by(|a, b| a.ingress == b.ingress) {
            for burst in run.chunks(BURST) {
                sent += self.turn(burst);
            }
        }
        sent
    }

    fn turn(&mut self, burst: &[Arrival]) -> u64 {
        let Some(ingress) = burst.first().map(|arrival| arrival.ingress) else { return 0 };
        let Some(cells) = self.cells.get(&ingress) else { return 0 };
        let Path { pool, .. } = &mut self.path;
        self.batch.extend(burst.iter().filter_map(|arrival| pool.copy_of(&arrival.bytes)));
        self.path.forward(ingress, cells, &mut self.batch, NOW);
        self.path.take_parcels(NOW);
        let sent = &mut self.sent;
        let count = self.path.outbox.flush(|_, frames| {
            let count = frames.len();
            sent.append(frames);
            count
        });
        self.sent.drain(..).for_each(|frame| self.path.pool.give(frame));
        count
    }
}

fn time_extract(passes: usize, arrivals: &[Arrival]) -> Time {
    timed(passes, arrivals.len(), || {
        for Arrival { ingress, bytes } in arrivals {
            let _ = black_box(extract(black_box(bytes), *ingress));
        }
    })
}

fn time_judge(passes: usize, policy: &Arc<Policy>, arrivals: &[Arrival]) -> Time {
    let headers: Vec<(Headers, usize)> = arrivals
        .iter()
        .filter_map(|arrival| {
            Some((extract(&arrival.bytes, arrival.ingress).ok()?, arrival.bytes.len()))
        })
        .filter(|(headers, _)| headers.kind != Kind::LaterFragment)
        .collect();
    let mut pipeline = Pipeline::new(Arc::clone(policy));
    let mut burst = Vec::with_capacity(BURST);
    timed(passes, headers.len(), || {
        for chunk in headers.chunks(BURST) {
            burst.clear();
            burst.extend(chunk.iter().map(|(headers, _)| *headers));
            pipeline.prepare(&mut burst, prefetch);
            for (at, (headers, (_, bytes))) in burst.iter().zip(chunk).enumerate() {
                black_box(pipeline.judge_next(headers, at, *bytes, NOW));
            }
        }
    })
}

fn time_path(
    passes: usize,
    policy: &Arc<Policy>,
    arrivals: &[Arrival],
) -> Result<Time, std::io::Error> {
    let mut switch = Switch::new(policy)?;
    Ok(timed(passes, arrivals.len(), || {
        black_box(switch.pass(arrivals));
    }))
}

/// The time per frame of a pass over `frames` frames.
fn timed(passes: usize, frames: usize, mut pass: impl FnMut()) -> Time {
    let mut once = || {
        let start = Instant::now();
        pass();
        start.elapsed()
    };
    let first = once();
    let mut others: Vec<Duration> = (0..passes.max(1)).map(|_| once()).collect();
    others.sort_unstable();
    let per_frame = |time: Duration| time.as_nanos() as f64 / frames.max(1) as f64;
    Time { first: per_frame(first), median: per_frame(others[others.len() / 2]) }
}
