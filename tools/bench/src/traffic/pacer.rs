//! When the frames of a fixed rate are due.
//!
//! A pacer deals in bursts, because sending frame by frame costs a system call each: at most
//! [`MAX_BURST`] frames, evenly spaced, and as small as the rate allows a caller who sleeps about
//! [`INTERVAL`] between them. It has no clock; the caller says how much time has passed. Who comes
//! late catches up at twice the pace, not all at once: a burst of everything that was missed would
//! overflow queues that the rate itself does not.

use std::time::Duration;

/// Most frames in a burst: a quarter of a veth's ring.
pub const MAX_BURST: u64 = 64;

/// How far bursts should be apart.
const INTERVAL: Duration = Duration::from_micros(100);

const SECOND: u128 = 1_000_000_000;

/// The plan of a load with a rate.
#[derive(Clone, Debug)]
pub struct Pacer {
    rate: u64,
    burst: u64,
    sent: u64,
    /// No burst before this, in nanoseconds from the start.
    not_before: u128,
}

impl Pacer {
    /// A plan of `rate` frames per second, at least one.
    pub fn new(rate: u64) -> Self {
        let rate = rate.max(1);
        let burst = u128::from(rate) * INTERVAL.as_nanos() / SECOND;
        Self { rate, burst: (burst as u64).clamp(1, MAX_BURST), sent: 0, not_before: 0 }
    }

    /// How many frames a run of that length has.
    pub fn planned(&self, duration: Duration) -> u64 {
        u64::try_from(u128::from(self.rate) * duration.as_nanos() / SECOND).unwrap_or(u64::MAX)
    }

    /// When the next burst is due, from the start.
    pub fn due(&self) -> Duration {
        let due = u128::from(self.sent) * SECOND / u128::from(self.rate);
        Duration::from_nanos(u64::try_from(due.max(self.not_before)).unwrap_or(u64::MAX))
    }

    /// How many frames to send now, `elapsed` after the start: the next burst, or none before it is
    /// [due](Self::due).
    pub fn take(&mut self, elapsed: Duration) -> u64 {
        if elapsed < self.due() {
            return 0;
        }
        self.sent += self.burst;
        let spacing = u128::from(self.burst) * SECOND / u128::from(self.rate);
        self.not_before = elapsed.as_nanos() + spacing / 2;
        self.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows a plan for a second on a clock that stands still but for the caller's sleep, of which
    /// each lasts `late` too long. Returns the bursts: when and how many.
    fn follow(rate: u64, late: Duration) -> Vec<(Duration, u64)> {
        let mut pacer = Pacer::new(rate);
        let second = Duration::from_secs(1);
        let (mut now, mut left, mut bursts) = (Duration::ZERO, pacer.planned(second), Vec::new());
        while left > 0 && now < second {
            let count = pacer.take(now).min(left);
            if count > 0 {
                bursts.push((now, count));
                left -= count;
            }
            now = now.max(pacer.due()) + late;
        }
        bursts
    }

    #[test]
    fn a_second_has_as_many_frames_as_the_rate_says() {
        for rate in [1, 7, 999, 10_000, 123_457, 1_000_000, 14_880_952] {
            let bursts = follow(rate, Duration::ZERO);
            assert_eq!(bursts.iter().map(|&(_, count)| count).sum::<u64>(), rate);
        }
    }

    #[test]
    fn bursts_are_small_and_evenly_spaced() {
        for rate in [7, 10_000, 1_000_000] {
            let bursts = follow(rate, Duration::ZERO);
            let gaps = bursts.windows(2).map(|pair| pair[1].0 - pair[0].0);
            let (least, most) = (gaps.clone().min().unwrap(), gaps.max().unwrap());
            assert!(most - least <= Duration::from_nanos(1), "{rate}: {least:?} to {most:?}");
            assert!(bursts.iter().all(|&(_, count)| count <= MAX_BURST));
        }
    }

    #[test]
    fn who_comes_late_catches_up_without_a_heap() {
        let mut pacer = Pacer::new(1_000_000);
        assert_eq!(pacer.take(Duration::ZERO), 64);
        let late = Duration::from_millis(10);
        let spacing = pacer.due();
        assert_eq!(pacer.take(late), 64);
        assert_eq!(pacer.take(late), 0, "the next burst waits for half its spacing");
        assert_eq!(pacer.due(), late + spacing / 2);
    }

    #[test]
    fn a_sleeper_who_is_always_a_little_late_still_keeps_the_rate() {
        let bursts = follow(100_000, Duration::from_micros(40));
        let sent: u64 = bursts.iter().map(|&(_, count)| count).sum();
        assert!(sent >= 99_980, "{sent}");
    }
}
