//! Which processors a thread runs on.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The processors this thread may run on, in ascending order.
///
/// # Errors
/// The kernel's, as an `errno`.
pub fn available() -> nix::Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect())
}

/// Keeps the calling thread on one processor.
///
/// # Errors
/// `EINVAL` if there is no such processor or the process may not use it.
pub fn pin_current_thread(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_processor() {
        let cpu = available().unwrap()[0];
        let after = std::thread::spawn(move || {
            pin_current_thread(cpu).unwrap();
            available().unwrap()
        });
        assert_eq!(after.join().unwrap(), [cpu]);
    }

    #[test]
    fn a_processor_that_does_not_exist_is_refused() {
        assert!(pin_current_thread(CpuSet::count()).is_err());
    }
}
