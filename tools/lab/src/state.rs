//! What is written down about a lab, so that whoever comes next can remove it, even if the process
//! that built it was killed at any point: `lab.json` in the switch's run directory, from before the
//! first namespace is made until after the last is gone.
//!
//! Processes are known by a token that the file holds and that each of them carries in its
//! environment, those of the switch under another name than what runs in the workloads, since a lab
//! lives as long as its switch does. A process id alone would not do: it may have passed on to a
//! stranger, or the builder may have died between starting a process and writing its id down.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::iter;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The file's name in the run directory.
const FILE: &str = "lab.json";

/// The environment variable that holds the token in the switch's processes.
pub(crate) const TOKEN_VARIABLE: &str = "FIREDOOR_LAB";

/// The one that holds it in what [`Lab::exec`](crate::Lab::exec) runs.
pub(crate) const GUEST_VARIABLE: &str = "FIREDOOR_LAB_GUEST";

/// How long processes may take to end when asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A lab, as `lab.json` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The switch's name, and the lab's.
    pub name: String,
    /// The config that it was built from.
    pub config: PathBuf,
    /// What its processes carry in their environment.
    pub token: String,
    /// Who builds it, until it is built; for a lab that ends with its builder, all along.
    pub builder: Option<Builder>,
    /// The namespace that the switch runs in.
    pub switch_netns: String,
    /// The namespace of each container workload.
    pub namespaces: BTreeMap<String, String>,
    /// The tap of each vm workload, in the switch's namespace.
    pub taps: BTreeMap<String, String>,
}

/// A process, known by its id and when it started, in clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builder {
    /// Its id.
    pub pid: u32,
    /// Its start.
    pub start: u64,
}

impl Builder {
    /// This process.
    pub(crate) fn this() -> Self {
        let pid = process::id();
        Self { pid, start: start_of(pid).unwrap_or_default() }
    }

    fn is_alive(self) -> bool {
        start_of(self.pid) == Some(self.start)
    }
}

impl State {
    /// Whether nobody will miss it: its builder died before it was done, or its switch did.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self.builder {
            Some(builder) => !builder.is_alive(),
            None => self.processes().is_empty(),
        }
    }

    /// Every namespace of the lab.
    pub fn all_netns(&self) -> impl Iterator<Item = &String> {
        self.namespaces.values().chain([&self.switch_netns])
    }

    /// Writes down that it is built and stays up.
    pub(crate) fn finish(&mut self, at: &Path) -> io::Result<()> {
        self.builder = None;
        let draft = self.write_draft(at)?;
        fs::rename(draft, at.join(FILE))
    }

    fn write_draft(&self, at: &Path) -> io::Result<PathBuf> {
        let draft = at.join(format!("{FILE}.{}", process::id()));
        fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        Ok(draft)
    }

    /// Writes it down in the run directory `at`, if no other lab is there.
    pub(crate) fn claim(&self, at: &Path) -> io::Result<()> {
        // Written aside and linked, the file is there whole or not at all, and only once.
        let draft = self.write_draft(at)?;
        let linked = fs::hard_link(&draft, at.join(FILE));
        fs::remove_file(&draft)?;
        linked
    }

    /// What was written down in the run directory `at`; `None` if no lab is there.
    pub(crate) fn load(at: &Path) -> io::Result<Option<Self>> {
        match fs::read(at.join(FILE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The lab is gone. Drafts of killed builders go too.
    pub(crate) fn forget(at: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let drafts = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let is_draft = |path: &PathBuf| {
            path.file_stem().is_some_and(|stem| stem == FILE) && path.extension().is_some()
        };
        drafts.filter(is_draft).try_for_each(fs::remove_file)?;
        match fs::remove_file(at.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The living processes of its switch.
    pub fn processes(&self) -> Vec<u32> {
        self.marked(TOKEN_VARIABLE)
    }

    /// Living processes that carry the token in this environment variable.
    fn marked(&self, variable: &str) -> Vec<u32> {
        let mark = format!("{variable}={}", self.token);
        processes(|environment| environment.split(|&b| b == 0).any(|v| v == mark.as_bytes()))
    }

    /// Ends the lab's processes: asks the supervisor, which ends the roles, and what runs in the
    /// workloads, and uses force on what is left after a while. Waits until all are gone, but for
    /// this process and those it was started from.
    pub(crate) fn stop_processes(&self) {
        let switch = self.processes();
        let is_child = |pid| parent_of(pid).is_some_and(|parent| switch.contains(&parent));
        for pid in switch.iter().copied().filter(|&pid| !is_child(pid)) {
            signal(pid, Signal::SIGTERM);
        }
        let spared: Vec<u32> =
            iter::successors(Some(process::id()), |&pid| parent_of(pid)).collect();
        let guests = || self.marked(GUEST_VARIABLE).into_iter().filter(|pid| !spared.contains(pid));
        for pid in guests() {
            signal(pid, Signal::SIGTERM);
            // Shells at a terminal ignore the other one.
            signal(pid, Signal::SIGHUP);
        }
        let start = Instant::now();
        loop {
            let left: Vec<u32> = self.processes().into_iter().chain(guests()).collect();
            if left.is_empty() {
                return;
            }
            if start.elapsed() > STOP_PATIENCE {
                left.into_iter().for_each(|pid| signal(pid, Signal::SIGKILL));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    // It may have ended by itself.
    let _ = i32::try_from(pid).map(|pid| kill(Pid::from_raw(pid), signal));
}

/// Processes whose initial environment (proc(5), `/proc/PID/environ`) is as wanted. Zombies have
/// none.
fn processes(wanted: impl Fn(&[u8]) -> bool) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|e| wanted(&e)))
        .collect()
}

/// How long all threads of a process ran, as the scheduler knows it, to the nanosecond: what it does itself,
/// however busy the machine is. Of threads that have ended it knows nothing.
///
/// Source: `/proc/PID/task/TID/schedstat`, Documentation/scheduler/sched-stats.rst.
///
/// # Errors
/// If there is no such process.
pub fn ran_for(pid: u32) -> io::Result<Duration> {
    let mut ran = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(statistics) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let nanoseconds = statistics.split(' ').next().and_then(|first| first.parse().ok());
        ran += Duration::from_nanos(nanoseconds.unwrap_or(0));
    }
    Ok(ran)
}

fn parent_of(pid: u32) -> Option<u32> {
    u32::try_from(stat_field(pid, 4)?).ok()
}

fn start_of(pid: u32) -> Option<u64> {
    stat_field(pid, 22)
}

/// A numeric field of `/proc/PID/stat`, counted from 1 as proc(5) does, from 4 on.
fn stat_field(pid: u32, field: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command's name in parentheses, and may itself hold `) `.
    stat.rsplit_once(") ")?.1.split(' ').nth(field.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn state() -> State {
        State {
            name: "lab0".to_owned(),
            config: "/lab0.toml".into(),
            token: format!("test-{}", std::process::id()),
            builder: Some(Builder::this()),
            switch_netns: "fd-lab0".to_owned(),
            namespaces: BTreeMap::new(),
            taps: BTreeMap::new(),
        }
    }

    #[test]
    fn only_one_lab_claims_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(State::load(directory.path()).unwrap(), None);
        state().claim(directory.path()).unwrap();
        let second = state().claim(directory.path()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(State::load(directory.path()).unwrap(), Some(state()));
        fs::write(directory.path().join("lab.json.77"), "of a killed builder").unwrap();
        State::forget(directory.path()).unwrap();
        State::forget(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lab_is_abandoned_when_its_builder_died_or_its_switch() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = state();
        assert!(!state.is_abandoned());
        state.builder = Some(Builder { start: 1, ..Builder::this() });
        assert!(state.is_abandoned());
        state.finish(directory.path()).unwrap();
        assert_eq!(State::load(directory.path()).unwrap().unwrap().builder, None);
        assert!(state.is_abandoned());
    }

    #[test]
    fn the_scheduler_says_how_long_a_process_ran() {
        // One of its own: threads of this one end meanwhile, and what they ran with them.
        let mut busy = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let (before, start) = (ran_for(busy.id()).unwrap(), Instant::now());
        let longer = || ran_for(busy.id()).unwrap() > before + Duration::from_millis(1);
        while !longer() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let holds = longer();
        busy.kill().unwrap();
        busy.wait().unwrap();
        assert!(holds);
    }

    #[test]
    fn processes_are_known_by_their_token() {
        let state = state();
        let sleeper = |variable: &str, token: &str| {
            let mut command = Command::new("sleep");
            command.arg("60").env(variable, token).stdin(Stdio::null());
            let child = command.spawn().unwrap();
            // A parent goes on before the kernel shows its child's new environment.
            while fs::read(format!("/proc/{}/environ", child.id())).unwrap().is_empty() {
                std::thread::yield_now();
            }
            child
        };
        let mut switch = sleeper(TOKEN_VARIABLE, &state.token);
        let mut guest = sleeper(GUEST_VARIABLE, &state.token);
        let mut others =
            [TOKEN_VARIABLE, GUEST_VARIABLE].map(|variable| sleeper(variable, "another lab"));
        assert_eq!(state.processes(), [switch.id()]);
        // As init would, reap them while `stop_processes` waits for their end.
        let reaper = std::thread::spawn(move || (switch.wait(), guest.wait()));
        state.stop_processes();
        let (switch, guest) = reaper.join().unwrap();
        assert!(!switch.unwrap().success() && !guest.unwrap().success());
        for other in &mut others {
            assert_eq!(other.try_wait().unwrap(), None);
            other.kill().unwrap();
            other.wait().unwrap();
        }
    }
}
