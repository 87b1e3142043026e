//! Which parts of a measurement the processors ran at their full speed in.
//!
//! A virtual processor may share its core with another machine's. While that one works, all of ours takes a third to
//! a half longer, for a tenth of a second or for several at a time: more than what most systems differ by.
//! So a measurement is cut into parts, before and after each of which a fixed piece of arithmetic is timed, and
//! only those count in which it took about the least time that it ever took. Where a processor is never that fast,
//! as beside a thread of the system under test that keeps the same core busy, all parts count.

use std::hint::black_box;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use firedoor_dataplane::sys::affinity;

use crate::compare::cpu::on_each_processor;

/// Steps of the arithmetic, about a nanosecond each.
const STEPS: u64 = 1_000;
/// How often it is timed at once; the shortest counts, which nobody interrupted.
const TRIES: usize = 3;
/// By how much longer than its least time it may take.
const TOLERANCE: f64 = 1.1;
/// If less than this share were to count, all does.
const LEAST_SHARE: f64 = 0.1;
/// How many times as long a measurement may take until as much counts as was asked for.
const PATIENCE: u32 = 2;

/// How fast processors are at best.
#[derive(Debug)]
pub(in crate::compare) struct Pace {
    processors: Vec<usize>,
    /// The least time that the arithmetic took so far, on any.
    least_ns: AtomicU64,
}

impl Pace {
    /// That of the processors that this thread may run on, of which nothing is known yet.
    pub(in crate::compare) fn unknown() -> Self {
        let processors = affinity::available().unwrap_or_default();
        Self { processors, least_ns: AtomicU64::new(u64::MAX) }
    }

    /// How long the arithmetic takes on this processor just now.
    pub(super) fn probe(&self) -> Duration {
        let least = (0..TRIES).map(|_| arithmetic()).min().unwrap_or_default();
        self.least_ns
            .fetch_min(u64::try_from(least.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        least
    }

    /// How long it takes on the slowest of all processors.
    pub(super) fn probe_all(&self) -> io::Result<Duration> {
        let probes = on_each_processor(&self.processors, || self.probe())?;
        Ok(probes.into_iter().max().unwrap_or_default())
    }

    fn bound(&self) -> Duration {
        Duration::from_nanos(self.least_ns.load(Ordering::Relaxed)).mul_f64(TOLERANCE)
    }
}

/// How long it takes once.
fn arithmetic() -> Duration {
    let start = Instant::now();
    let mut state = black_box(1_u64);
    for _ in 0..STEPS {
        // Each step needs the one before it.
        state = state.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(3_037_000_493);
        state ^= state >> 13;
    }
    black_box(state);
    start.elapsed()
}

/// The parts of a measurement.
#[derive(Debug)]
pub(super) struct Parts<'a, T> {
    pace: &'a Pace,
    parts: Vec<Part<T>>,
    last_probe: Duration,
    begun: Instant,
    /// How long those that count took together, as far as is known by now.
    steady: Duration,
}

#[derive(Debug)]
struct Part<T> {
    found: T,
    /// The longer of the probes around it.
    probe: Duration,
}

impl<'a, T> Parts<'a, T> {
    /// None yet. The first begins now, after a probe.
    pub(super) fn begin(pace: &'a Pace, probe: Duration) -> Self {
        let (parts, steady) = (Vec::new(), Duration::ZERO);
        Self { pace, parts, last_probe: probe, begun: Instant::now(), steady }
    }

    /// Whether there is more to measure, if `time` is to be measured at full speed.
    pub(super) fn want_more(&self, time: Duration) -> bool {
        self.steady < time && self.begun.elapsed() < time * PATIENCE
    }

    /// Ends a part that took `time`, after which comes a probe, and begins the next.
    pub(super) fn end(&mut self, found: T, time: Duration, probe: Duration) {
        let around = probe.max(self.last_probe);
        if around <= self.pace.bound() {
            self.steady += time;
        }
        self.parts.push(Part { found, probe: around });
        self.last_probe = probe;
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Those that count, and which share of all was at full speed.
    pub(super) fn steady(&self) -> (impl Iterator<Item = &T>, f64) {
        let bound = self.pace.bound();
        let steady = self.parts.iter().filter(|part| part.probe <= bound).count();
        let share = steady as f64 / self.parts.len().max(1) as f64;
        let bound = if share < LEAST_SHARE { Duration::MAX } else { bound };
        let counts = self.parts.iter().filter(move |part| part.probe <= bound);
        (counts.map(|part| &part.found), share)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Parts of a millisecond with probes of so many nanoseconds around them.
    fn parts<'a>(pace: &'a Pace, probes: &[u64]) -> Parts<'a, usize> {
        pace.least_ns.store(1_000, Ordering::Relaxed);
        let mut parts = Parts::begin(pace, Duration::from_nanos(probes[0]));
        for (part, &ns) in probes[1..].iter().enumerate() {
            parts.end(part, Duration::from_millis(1), Duration::from_nanos(ns));
        }
        parts
    }

    #[test]
    fn parts_next_to_a_slow_probe_do_not_count() {
        let pace = Pace::unknown();
        let parts = parts(&pace, &[1_000, 1_050, 1_400, 1_400, 1_010, 1_020]);
        let (steady, share) = parts.steady();
        assert_eq!(steady.copied().collect::<Vec<_>>(), [0, 4]);
        assert_eq!((share, parts.steady), (0.4, Duration::from_millis(2)));
    }

    #[test]
    fn all_count_where_hardly_any_would() {
        let pace = Pace::unknown();
        let mut probes = vec![1_000, 1_000];
        probes.extend([2_000; 30]);
        let parts = parts(&pace, &probes);
        assert_eq!(parts.steady().0.count(), 31);
        assert!(parts.steady().1 < LEAST_SHARE);
    }

    #[test]
    fn more_is_wanted_until_enough_counts() {
        let pace = Pace::unknown();
        let parts = parts(&pace, &[1_000, 1_000, 2_000, 1_000, 1_000]);
        assert!(parts.want_more(Duration::from_secs(60)));
        assert!(!parts.want_more(Duration::from_millis(2)));
        assert!(!parts.want_more(Duration::ZERO));
    }

    #[test]
    fn the_least_time_is_remembered() {
        let pace = Pace::unknown();
        let probe = pace.probe();
        assert!(!probe.is_zero() && pace.bound() > probe);
    }
}
