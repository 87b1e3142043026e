//! How much the whole machine worked, whoever did the work.
//!
//! Counting the busy time of all processors compares systems fairly that do their work in threads
//! of their own, in the kernel's, or in the sender's system calls. It counts the work of sender
//! and receiver, too, which is the same for all; and of other programs, which is why a comparison
//! wants a quiet machine.
//!
//! Busy is what is not idle. A kernel that accounts by ticks guesses busy time from what runs when
//! the tick comes, and traffic that is sent in step with the tick makes it always the same guess:
//! all busy, or none. But whoever stops the tick while idle (`NO_HZ`) keeps idle time to the
//! nanosecond, and shows it in `/proc/timer_list`. It is added up when a processor leaves idleness, so
//! every processor is [visited](visit) first.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use firedoor_dataplane::sys::affinity;
use nix::unistd::{SysconfVar, sysconf};

/// Fields of `/proc/timer_list` that say how long a processor was idle, in nanoseconds.
const IDLE: [&str; 2] = [".idle_sleeptime", ".iowait_sleeptime"];
/// Field of a `cpu` line of `/proc/stat`, after its name, that says in ticks how long the machine that
/// this one is a guest of let processors wait (proc_stat(5)).
const STEAL: usize = 7;

/// What the processors had not worked, up to some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy {
    /// Time that all processors together were idle or had to wait.
    unused: Duration,
    processors: usize,
    at: Instant,
}

impl Busy {
    /// Up to now.
    ///
    /// # Errors
    /// If `/proc/timer_list`, which needs root, or `/proc/stat` cannot be read.
    pub(super) fn now() -> io::Result<Self> {
        let (timers, at) = visit(|| (fs::read_to_string("/proc/timer_list"), Instant::now()))?;
        let (processors, idle) = idle(&timers?);
        let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100).max(1);
        let stolen = stolen_ticks(&fs::read_to_string("/proc/stat")?);
        let stolen = Duration::from_secs_f64(stolen as f64 / per_second as f64);
        Ok(Self { unused: idle + stolen, processors, at })
    }

    /// Processor seconds that were worked since.
    pub(super) fn seconds_until(&self, later: &Self) -> f64 {
        let passed = self.passed_until(later) * self.processors as f64;
        (passed - later.unused.saturating_sub(self.unused).as_secs_f64()).max(0.0)
    }

    /// Processors that were busy since, on average: 1.5 is one and a half.
    pub(super) fn processors_until(&self, later: &Self) -> f64 {
        let passed = self.passed_until(later);
        if passed > 0.0 { self.seconds_until(later) / passed } else { 0.0 }
    }

    fn passed_until(&self, later: &Self) -> f64 {
        later.at.saturating_duration_since(self.at).as_secs_f64()
    }
}

/// Does `work` on every one of these processors, one after the other.
///
/// # Errors
/// If the kernel does not let it.
pub(super) fn on_each_processor<T: Send>(
    processors: &[usize],
    mut work: impl FnMut() -> T + Send,
) -> io::Result<Vec<T>> {
    let each = processors.iter().map(|&processor| {
        affinity::pin_current_thread(processor)?;
        Ok(work())
    });
    // A thread of its own: where it ran last is nobody else's business.
    on_a_thread(|| each.collect())
}

/// Wakes every processor, and does `work` on the last of them.
fn visit<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_a_thread(|| {
        // One that this process may not use it keeps no busier, either.
        for processor in affinity::online()? {
            let _ = affinity::pin_current_thread(processor);
        }
        Ok(work())
    })
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Processors, and how long they were idle altogether, of `/proc/timer_list`.
fn idle(timers: &str) -> (usize, Duration) {
    let processors = timers.lines().filter(|line| line.starts_with("cpu:")).count();
    let idle = timers.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim().trim_end_matches(" nsecs");
        IDLE.contains(&name.trim()).then(|| value.parse::<u64>().ok())?
    });
    (processors, Duration::from_nanos(idle.sum()))
}

/// Ticks stolen from all processors together; none where nothing is ever stolen.
fn stolen_ticks(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let field = line.and_then(|line| line.split_whitespace().nth(STEAL));
    field.and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_that_of_all_processors() {
        let timers = "Timer List Version: v0.10\nnow at 9 nsecs\n\ncpu: 0\n clock 0:\n\
                      \x20 .idle_sleeptime : 1000 nsecs\n  .iowait_sleeptime: 20 nsecs\n\ncpu: 1\n\
                      \x20 .idle_entrytime : 77 nsecs\n  .idle_sleeptime : 3 nsecs\n";
        assert_eq!(idle(timers), (2, Duration::from_nanos(1_023)));
    }

    #[test]
    fn steal_is_the_eighth_field() {
        let stat = "cpu  100 20 30 1000 50 6 7 80 900 900\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(stolen_ticks(stat), 80);
        assert_eq!(stolen_ticks("cpu  1 2\n"), 0);
    }

    #[test]
    fn busy_is_what_was_not_unused() {
        let at = Instant::now();
        let before = Busy { unused: Duration::from_secs(5), processors: 2, at };
        let at = at + Duration::from_secs(10);
        let after = Busy { unused: Duration::from_secs(20), at, ..before };
        assert_eq!(before.seconds_until(&after), 5.0);
        assert_eq!(before.processors_until(&after), 0.5);
    }
}
