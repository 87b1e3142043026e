//! How much the whole machine worked, whoever did the work.
//!
//! Counting the busy time of all processors compares systems fairly that do their work in threads
//! of their own, in the kernel's, or in the sender's system calls. It counts the work of sender
//! and receiver, too, which is the same for all; and of other programs, which is why a comparison
//! wants a quiet machine.

use std::fs;
use std::io;
use std::time::Instant;

use nix::unistd::{SysconfVar, sysconf};

/// Field of a `cpu` line of `/proc/stat`, after its name (proc_stat(5)).
const IDLE: usize = 3;
const IOWAIT: usize = 4;
const STEAL: usize = 7;
/// Guest time, and what follows, is contained in earlier fields.
const FIELDS: usize = 8;

/// Busy time of all processors up to some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy {
    seconds: f64,
    at: Instant,
}

impl Busy {
    /// Up to now.
    ///
    /// # Errors
    /// If `/proc/stat` cannot be read.
    pub(super) fn now() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let ticks = busy_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
        Ok(Self { seconds: ticks as f64 / per_second as f64, at: Instant::now() })
    }

    /// Processor seconds that were worked since.
    pub(super) fn seconds_until(&self, later: &Self) -> f64 {
        (later.seconds - self.seconds).max(0.0)
    }

    /// Processors that were busy since, on average: 1.5 is one and a half.
    pub(super) fn processors_until(&self, later: &Self) -> f64 {
        let passed = later.at.saturating_duration_since(self.at).as_secs_f64();
        if passed > 0.0 { self.seconds_until(later) / passed } else { 0.0 }
    }
}

/// Clock ticks that all processors together did not idle, wait or have stolen.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields = line.split_whitespace().take(FIELDS).map(str::parse);
    let fields: Vec<u64> = fields.collect::<Result<_, _>>().ok()?;
    let busy = fields.iter().enumerate().filter(|(i, _)| ![IDLE, IOWAIT, STEAL].contains(i));
    (fields.len() > IOWAIT).then(|| busy.map(|(_, ticks)| ticks).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_is_not_idle() {
        let stat = "cpu  100 20 30 1000 50 6 7 80 900 900\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ticks(stat), Some(100 + 20 + 30 + 6 + 7));
        assert_eq!(busy_ticks("cpu  1 2\n"), None);
        assert_eq!(busy_ticks("intr 5\n"), None);
    }

    #[test]
    fn this_machine_can_be_asked() {
        let before = Busy::now().unwrap();
        let after = Busy::now().unwrap();
        assert!(before.seconds_until(&after) >= 0.0);
        assert!(before.processors_until(&after).is_finite());
    }
}
