//! Which processors a thread runs on.

use std::fs;
use std::io;

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

/// The machine's processors that run, in ascending order.
///
/// # Errors
/// If the kernel does not say.
pub fn online() -> io::Result<Vec<usize>> {
    parse_list(fs::read_to_string("/sys/devices/system/cpu/online")?.trim())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Reads a list as the kernel writes it: `0-3,5`.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

/// Keeps the calling thread on one processor.
///
/// # Errors
/// `EINVAL` if there is no such processor or the process may not use it.
pub fn pin_current_thread(cpu: usize) -> nix::Result<()> {
    allow_current_thread(&[cpu])
}

/// Keeps the calling thread, and whatever it will start, on these processors.
///
/// # Errors
/// `EINVAL` if the process may use none of them.
pub fn allow_current_thread(cpus: &[usize]) -> nix::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|&cpu| set.set(cpu))?;
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
    fn lists_hold_single_processors_and_ranges() {
        assert_eq!(parse_list("0-2,5,8-9"), Some(vec![0, 1, 2, 5, 8, 9]));
        assert_eq!(parse_list("0"), Some(vec![0]));
        assert_eq!(parse_list("none"), None);
        assert!(!online().unwrap().is_empty());
    }

    #[test]
    fn a_processor_that_does_not_exist_is_refused() {
        assert!(pin_current_thread(CpuSet::count()).is_err());
    }
}
