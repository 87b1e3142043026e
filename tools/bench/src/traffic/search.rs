//! The highest rate that a system forwards without loss.
//!
//! Throughput as RFC 2544, section 26.1, has it: the fastest rate at which as many frames come out
//! as went in. Found by halving the range between a rate that passed and one that failed, as binary
//! search with loss verification does (ETSI GS NFV-TST 009): on a shared machine a trial may fail
//! because somebody else had the processor, so a failure counts only if it can be repeated; and one
//! pass may be luck, so the answer has to pass again. If it does not, the search goes on below it.

use serde::Serialize;

use super::Sent;

/// How to search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Options {
    /// The lowest rate worth knowing, in frames per second.
    pub lowest: u64,
    /// The highest rate to try, in frames per second.
    pub highest: u64,
    /// How near to get, as a part of the rate: 0.01 is one percent.
    pub resolution: f64,
    /// Loss that passes, as a part of what was sent; 0 for none at all.
    pub tolerated_loss: f64,
    /// How often in a row a rate fails before it has failed; at least once.
    pub failures: u32,
    /// How often the answer must have passed; at least once.
    pub passes: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lowest: 1_000,
            highest: 20_000_000,
            resolution: 0.01,
            tolerated_loss: 0.0,
            failures: 2,
            passes: 3,
        }
    }
}

/// What came of offering a load once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// What was sent.
    pub sent: Sent,
    /// How many frames of it were received.
    pub received: u64,
}

impl Trial {
    /// The part of what was sent that was not received.
    pub fn loss(&self) -> f64 {
        let lost = self.sent.frames.saturating_sub(self.received);
        lost as f64 / self.sent.frames.max(1) as f64
    }
}

/// The answer, and how it was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Throughput {
    /// The highest rate that passed, in frames per second; `None` if not even the lowest did.
    pub rate: Option<u64>,
    /// Whether the generator could not offer more, so that the system may be faster.
    pub limited_by_generator: bool,
    /// Every trial, in order: the rate that was asked for, and what came of it.
    pub trials: Vec<(u64, Trial)>,
}

/// How much slower than asked for a generator may be and still have offered that rate.
const SLACK: f64 = 0.02;

/// Searches with `trial`, which offers a load at the rate it is given.
///
/// Cost: about log2(1 / resolution) trials, more where failures have to be repeated.
///
/// # Errors
/// The first of `trial`.
pub fn search<E>(
    options: &Options,
    mut trial: impl FnMut(u64) -> Result<Trial, E>,
) -> Result<Throughput, E> {
    let mut search = Search::new(options);
    let mut trials = Vec::new();
    // The highest first: whatever forwards all that can be offered needs no search.
    let mut next = Some(search.high);
    while let Some(rate) = next {
        let mut offered = 0;
        let mut passes = false;
        for _ in 0..options.failures.max(1) {
            let trial = trial(rate)?;
            trials.push((rate, trial));
            offered = (trial.sent.rate() as u64).min(rate);
            passes = trial.loss() <= options.tolerated_loss;
            if passes {
                break;
            }
        }
        if passes {
            search.pass(rate, offered);
        } else {
            search.fail(rate, offered);
        }
        next = search.next();
    }
    let answer = search.passed.last();
    Ok(Throughput {
        rate: answer.map(|passed| passed.rate),
        limited_by_generator: answer.is_some_and(|passed| passed.limited_by_generator),
        trials,
    })
}

/// What is known so far. Each verdict narrows the range, or removes a rate that passed by luck, or
/// confirms one; so the search ends.
struct Search<'a> {
    options: &'a Options,
    lowest: u64,
    /// Failed, or cannot be offered, or is the highest of all.
    high: u64,
    /// In ascending order, none above `high`.
    passed: Vec<Passed>,
}

/// A rate that passed.
struct Passed {
    rate: u64,
    times: u32,
    limited_by_generator: bool,
}

impl<'a> Search<'a> {
    fn new(options: &'a Options) -> Self {
        let lowest = options.lowest.max(1);
        Self { options, lowest, high: options.highest.max(lowest), passed: Vec::new() }
    }

    /// No frame was lost at `rate`, of which the generator offered `offered`.
    fn pass(&mut self, rate: u64, offered: u64) {
        if let Some(again) = self.passed.last_mut().filter(|last| last.rate == rate) {
            again.times += 1;
        } else if (offered as f64) < rate as f64 * (1.0 - SLACK) {
            self.high = offered;
            self.passed.retain(|passed| passed.rate < offered);
            self.passed.push(Passed { rate: offered, times: 1, limited_by_generator: true });
        } else {
            self.passed.push(Passed { rate, times: 1, limited_by_generator: false });
        }
    }

    /// Frames were lost at `rate`, of which the generator offered `offered`.
    fn fail(&mut self, rate: u64, offered: u64) {
        self.high = self.high.min(offered);
        self.passed.retain(|passed| passed.rate < rate.min(offered));
    }

    /// The rate to try next; `None` if the search is over.
    fn next(&self) -> Option<u64> {
        let low = self.passed.last().map_or(self.lowest, |last| last.rate);
        let width = self.high.saturating_sub(low);
        if width > 1 && width as f64 > self.high as f64 * self.options.resolution {
            return Some(low + width / 2);
        }
        match self.passed.last() {
            Some(last) => (last.times < self.options.passes).then_some(last.rate),
            None => (self.high > self.lowest).then_some(self.lowest),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use fastrand::Rng;

    use super::*;

    /// A second of a generator that offers `reach` frames at most, before a device that forwards
    /// `capacity` of them.
    fn second(rate: u64, reach: u64, capacity: u64) -> Trial {
        let frames = rate.min(reach);
        let sent = Sent { frames, bytes: 60 * frames, elapsed: Duration::from_secs(1) };
        Trial { sent, received: frames.min(capacity) }
    }

    fn find(options: &Options, mut device: impl FnMut(u64) -> Trial) -> Throughput {
        search(options, |rate| Ok::<_, Infallible>(device(rate))).unwrap()
    }

    fn assert_near(found: &Throughput, capacity: u64) {
        let rate = found.rate.expect("a rate") as f64;
        let capacity = capacity as f64;
        assert!(rate <= capacity && rate >= capacity * 0.98, "{rate} for {capacity}");
    }

    #[test]
    fn finds_what_a_device_forwards() {
        for capacity in [1_500, 100_000, 1_234_567, 9_000_000, 19_999_999] {
            let found = find(&Options::default(), |rate| second(rate, u64::MAX, capacity));
            assert_near(&found, capacity);
            assert!(!found.limited_by_generator);
            assert!(found.trials.len() < 50, "{} trials", found.trials.len());
        }
    }

    #[test]
    fn a_device_that_breaks_down_under_overload_has_a_rate_all_the_same() {
        let found = find(&Options::default(), |rate| {
            let capacity = if rate > 800_000 { 1_000 } else { 800_000 };
            second(rate, u64::MAX, capacity)
        });
        assert_near(&found, 800_000);
    }

    #[test]
    fn what_forwards_everything_is_limited_by_the_generator() {
        let found = find(&Options::default(), |rate| second(rate, 700_000, u64::MAX));
        assert_eq!(found.rate, Some(700_000));
        assert!(found.limited_by_generator);
        assert_eq!(found.trials.len(), 3, "it passes three times, and needs no search");
    }

    #[test]
    fn a_generator_that_is_little_faster_than_the_device_does_not_limit() {
        let found = find(&Options::default(), |rate| second(rate, 720_000, 700_000));
        assert_near(&found, 700_000);
        assert!(!found.limited_by_generator);
    }

    #[test]
    fn what_forwards_nothing_has_no_rate() {
        let found = find(&Options::default(), |rate| second(rate, u64::MAX, 0));
        assert_eq!(found.rate, None);
    }

    #[test]
    fn the_highest_rate_needs_no_search() {
        let options = Options { highest: 50_000, ..Options::default() };
        let found = find(&options, |rate| second(rate, u64::MAX, 1_000_000));
        assert_eq!((found.rate, found.trials.len()), (Some(50_000), 3));
    }

    #[test]
    fn a_frame_lost_now_and_then_is_not_a_limit() {
        let mut rng = Rng::with_seed(3);
        let options = Options { failures: 6, ..Options::default() };
        let found = find(&options, |rate| {
            let mut trial = second(rate, u64::MAX, 2_000_000);
            trial.received -= u64::from(rng.u8(..) < 64);
            trial
        });
        assert_near(&found, 2_000_000);
    }

    #[test]
    fn a_rate_that_passes_by_luck_is_not_the_answer() {
        for seed in 0..50 {
            let mut rng = Rng::with_seed(seed);
            let options = Options { passes: 8, failures: 1, ..Options::default() };
            let found = find(&options, |rate| {
                let lucky = rng.bool();
                second(rate, u64::MAX, if lucky { 1_200_000 } else { 1_000_000 })
            });
            // Eight passes by luck come once in 256 times, and above 1.2 million never.
            assert!(found.rate.is_some_and(|rate| rate < 1_200_000), "{:?}", found.rate);
            let last: Vec<u64> = found.trials.iter().rev().take(7).map(|trial| trial.0).collect();
            assert!(last.iter().all(|&rate| Some(rate) == found.rate), "{last:?}");
        }
    }

    #[test]
    fn tolerated_loss_passes() {
        let options = Options { tolerated_loss: 0.5, ..Options::default() };
        let found = find(&options, |rate| second(rate, u64::MAX, 1_000_000));
        assert_near(&found, 2_000_000);
    }

    #[test]
    fn it_ends_whatever_a_device_does() {
        let mut rng = Rng::with_seed(9);
        for _ in 0..200 {
            let options = Options {
                lowest: rng.u64(0..10_000),
                highest: rng.u64(0..1_000_000),
                resolution: rng.f64() / 10.0,
                ..Options::default()
            };
            let found =
                find(&options, |rate| second(rate, rng.u64(..1_000_000), rng.u64(..1_000_000)));
            assert!(found.trials.len() < 2_000, "{} trials", found.trials.len());
        }
    }
}
