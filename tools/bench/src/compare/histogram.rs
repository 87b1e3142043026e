//! A histogram of times, from nanoseconds to minutes, with an error below 1.6 %.
//!
//! Log-linear, as HdrHistogram's: each power of two is divided into 64 buckets of equal width.

use std::time::Duration;

use serde::Serialize;

/// Buckets per power of two.
const LINEAR: u64 = 64;
/// Its logarithm.
const LINEAR_BITS: u32 = LINEAR.ilog2();

/// How often each time was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

/// One bar of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bar {
    /// Shortest time in it, in nanoseconds.
    pub from_ns: u64,
    /// First time beyond it.
    pub to_ns: u64,
    /// Times in it.
    pub count: u64,
}

impl Histogram {
    /// Adds one time.
    pub(super) fn record(&mut self, ns: u64) {
        let bucket = bucket_of(ns);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.total += 1;
    }

    /// Likewise.
    pub(super) fn record_time(&mut self, time: Duration) {
        self.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds all of another's times.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
    }

    /// The time, in nanoseconds, that a share of all is not longer than: 0.99 for the 99th
    /// percentile. 0 if nothing was recorded.
    pub(super) fn quantile(&self, share: f64) -> u64 {
        let rank = (share.clamp(0.0, 1.0) * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                let (from, to) = range_of(bucket);
                return from + (to - from) / 2;
            }
        }
        0
    }

    /// The buckets with something in them, from the shortest time to the longest.
    pub(super) fn bars(&self) -> Vec<Bar> {
        let filled = self.counts.iter().enumerate().filter(|&(_, &count)| count > 0);
        let bar = |(bucket, &count)| {
            let (from_ns, to_ns) = range_of(bucket);
            Bar { from_ns, to_ns, count }
        };
        filled.map(bar).collect()
    }
}

/// Times below [`LINEAR`] have a bucket each; from there on, [`LINEAR`] buckets per doubling.
fn bucket_of(ns: u64) -> usize {
    let doublings = ns.max(1).ilog2().saturating_sub(LINEAR_BITS);
    let within = ns >> doublings;
    (u64::from(doublings) * LINEAR + within) as usize
}

fn range_of(bucket: usize) -> (u64, u64) {
    let bucket = bucket as u64;
    let doublings = (bucket / LINEAR).saturating_sub(1);
    let within = bucket - doublings * LINEAR;
    (within << doublings, (within + 1) << doublings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_its_bucket_and_buckets_are_narrow() {
        let times = (0..62).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1]);
        for ns in times.chain([100, 1_000, 26_300, 44_700, 999_999_999]) {
            let (from, to) = range_of(bucket_of(ns));
            assert!((from..to).contains(&ns), "{ns} is not in {from}..{to}");
            assert!((to - from) as f64 <= (from as f64 / LINEAR as f64).max(1.0), "{from}..{to}");
        }
    }

    #[test]
    fn buckets_follow_each_other() {
        let ends = (0..2_000).map(range_of).collect::<Vec<_>>();
        assert!(ends.windows(2).all(|pair| pair[0].1 == pair[1].0));
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0);
        let mut times: Vec<u64> = (0..10_000).map(|i| i * i % 100_003).collect();
        times.iter().for_each(|&ns| histogram.record(ns));
        times.sort_unstable();
        for share in [0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let rank = ((share * times.len() as f64).ceil() as usize).max(1);
            let (exact, found) = (times[rank - 1] as f64, histogram.quantile(share) as f64);
            assert!((found - exact).abs() <= exact / 64.0 + 1.0, "{share}: {found}, not {exact}");
        }
    }

    #[test]
    fn merging_is_recording_both() {
        let (mut both, mut one, mut other) = <(Histogram, Histogram, Histogram)>::default();
        for ns in [5, 700, 90_000] {
            both.record(ns);
            one.record(ns);
        }
        for ns in [6, 700, 9_000_000] {
            both.record(ns);
            other.record(ns);
        }
        one.merge(&other);
        assert_eq!(one, both);
        assert_eq!(one.bars().iter().map(|bar| bar.count).sum::<u64>(), 6);
    }
}
