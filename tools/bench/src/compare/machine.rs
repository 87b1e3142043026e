//! What the numbers were measured on.

use std::fs;

use nix::sys::utsname::uname;
use serde::Serialize;

/// A machine, as a report describes it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Its processors' model.
    pub processor: String,
    /// How many there are.
    pub processors: usize,
    /// Main memory, in MiB.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Load average over one minute before the first run: how quiet it was.
    pub load: f64,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let meminfo = read("/proc/meminfo");
        Self {
            processor: value(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: value(&meminfo, "MemTotal").and_then(first_number).unwrap_or(0) / 1_024,
            kernel: kernel(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or(0.0),
        }
    }
}

/// The kernel's release, as `uname -r` says it.
pub(super) fn kernel() -> String {
    uname().map_or_else(|_| "unknown".to_owned(), |u| u.release().to_string_lossy().into_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What follows `key` and a colon, on the first such line.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim_start().strip_prefix(':')?.trim())
}

fn first_number(text: &str) -> Option<u64> {
    text.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_values() {
        let text = "model\t\t: 17\nmodel name\t: AMD EPYC\nMemTotal:  1024 kB\n";
        assert_eq!(value(text, "model name"), Some("AMD EPYC"));
        assert_eq!(value(text, "MemTotal").and_then(first_number), Some(1_024));
        assert_eq!(value(text, "flags"), None);
    }

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::this();
        assert!(machine.processors > 0 && machine.memory_mib > 0);
        assert!(!machine.kernel.is_empty());
    }
}
