//! The run directory of a switch: `/run/firedoor/NAME`, or `$FIREDOOR_RUN_DIR/NAME`.
//!
//! Everything that the roles of one running switch share on disk lies here: their sockets, the
//! saved snapshot, what control must remember over a restart, the capture, and who runs. The
//! directory is the switch's, not the config's: two switches of one name cannot run at once, any
//! number of different names can.
//!
//! Who runs is told by process files: process id and start time, so that a file left behind by a
//! killed process is not taken for whoever has its number now.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use crate::pins;

/// Where run directories lie unless `FIREDOOR_RUN_DIR` says otherwise.
pub(crate) const DEFAULT_BASE: &str = "/run/firedoor";

/// The process file of `firedoor run`.
const SUPERVISOR: &str = "run.pid";
/// What `firedoor upgrade` asks of it.
const UPGRADE: &str = "upgrade";
/// The locks of those who live.
const LIFELINE: &str = "lifeline";
/// How long the roles of a killed supervisor may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Files that the switch itself makes here. A lab keeps its own beside them.
const OWN_FILES: &[&str] = &[
    "dataplane.sock",
    "control.sock",
    "snapshot",
    "snapshot.new",
    "snapshot.before",
    "applied.json",
    "applied.json.new",
    "applied.json.before",
    "denies.pcapng",
    "denies.1.pcapng",
    SUPERVISOR,
    UPGRADE,
    LIFELINE,
    Role::Dataplane.process_file(),
    Role::Control.process_file(),
];

/// A role that runs as a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The control role.
    Control,
    /// The data plane role.
    Dataplane,
}

impl Role {
    const ALL: [Self; 2] = [Self::Control, Self::Dataplane];

    const fn process_file(self) -> &'static str {
        match self {
            Self::Control => "control.pid",
            Self::Dataplane => "dataplane.pid",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Dataplane => "the data plane",
        })
    }
}

/// One switch's run directory, which need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// The name asked for has no living switch.
    #[error(
        "no switch named {name:?} is running: start one with `firedoor run CONFIG`{}",
        others(running)
    )]
    NotRunning {
        /// The name.
        name: String,
        /// Those that run.
        running: Vec<String>,
    },
    /// No name was asked for, and nothing runs.
    #[error(
        "no switch is running (none in {}): start one with `firedoor run CONFIG`",
        base.display()
    )]
    NoneRunning {
        /// Where running switches are looked for.
        base: PathBuf,
    },
    /// No name was asked for, and several run.
    #[error("several switches are running: choose one with --switch ({})", running.join(", "))]
    Ambiguous {
        /// Their names.
        running: Vec<String>,
    },
    /// The switch to be started runs already.
    #[error(
        "switch {name:?} is already running as process {pid}: stop that one first, or give this \
         config another [switch] name"
    )]
    AlreadyRunning {
        /// Its name.
        name: String,
        /// The process.
        pid: u32,
    },
    /// The file system said no.
    #[error("cannot {what} {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// What may be done about an error of the file system, where there is something to say.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            ": use sudo, or name a directory of your own in FIREDOOR_RUN_DIR"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::ReadOnlyFilesystem => {
            ": make room, or name another place in FIREDOOR_RUN_DIR"
        }
        _ => "",
    }
}

fn others(running: &[String]) -> String {
    if running.is_empty() { String::new() } else { format!(" (running: {})", running.join(", ")) }
}

impl RunDir {
    /// The run directory of the switch of this name.
    pub fn of(switch: &str) -> Self {
        Self { path: base().join(switch) }
    }

    /// The run directory at this path.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The running switch of this name; without a name, the only one that runs.
    ///
    /// # Errors
    /// If there is no such switch, or no name and several switches.
    pub fn select(switch: Option<&str>) -> Result<Self, RunDirError> {
        let mut running = running()?;
        match switch {
            Some(name) if running.iter().any(|r| r == name) => Ok(Self::of(name)),
            Some(name) => Err(RunDirError::NotRunning { name: name.to_owned(), running }),
            None if running.len() > 1 => Err(RunDirError::Ambiguous { running }),
            None => running
                .pop()
                .map(|name| Self::of(&name))
                .ok_or_else(|| RunDirError::NoneRunning { base: base() }),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The switch's name: the directory's.
    pub fn switch(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The socket that the data plane listens on.
    pub fn dataplane_socket(&self) -> PathBuf {
        self.path.join("dataplane.sock")
    }

    /// The socket that control listens on.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// What control remembers over a restart.
    pub fn applied(&self) -> PathBuf {
        self.path.join("applied.json")
    }

    /// Makes the directory, for its owner and group alone, with all above it.
    ///
    /// # Errors
    /// If the file system says no.
    pub fn create(&self) -> Result<(), RunDirError> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
        match DirBuilder::new().mode(0o750).create(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.path.is_dir() => Ok(()),
            result => result.map_err(io_error("create", &self.path)),
        }
    }

    /// Makes the directory and this process its switch's supervisor. What a killed predecessor
    /// left is removed: a new `firedoor run` begins with its config, not with an old snapshot.
    ///
    /// # Errors
    /// If the switch runs already, or the file system says no.
    pub fn claim(&self) -> Result<(), RunDirError> {
        self.create()?;
        // The file appears whole or not at all, and only for one of several who try at once.
        let draft = self.path.join(format!("{SUPERVISOR}.{}", process::id()));
        write_process_file(&draft)?;
        let claimed = self.claim_with(&draft);
        let _ = fs::remove_file(&draft);
        claimed
    }

    fn claim_with(&self, draft: &Path) -> Result<(), RunDirError> {
        let file = self.path.join(SUPERVISOR);
        let taken = |pid| Err(RunDirError::AlreadyRunning { name: self.switch(), pid });
        if let Some(pid) = living(&file) {
            return taken(pid);
        }
        // Roles end after their supervisor; one that still does would remove a successor's socket.
        let deadline = Instant::now() + PATIENCE;
        while let Some(pid) = self.living_role() {
            if Instant::now() > deadline {
                return taken(pid);
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.remove_own_files()?;
        match fs::hard_link(draft, &file) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                taken(living(&file).unwrap_or_default())
            }
            result => result.map_err(io_error("create", &file)),
        }
    }

    /// Makes this process known as one of the switch's roles.
    ///
    /// # Errors
    /// If the file system says no.
    pub fn enter(&self, role: Role) -> Result<(), RunDirError> {
        write_process_file(&self.path.join(role.process_file()))
    }

    /// Forgets that this process was one of the switch's roles.
    pub fn leave(&self, role: Role) {
        let file = self.path.join(role.process_file());
        // It may be a successor's by now. A file that stays is recognised as stale.
        if living(&file) == Some(process::id()) {
            let _ = fs::remove_file(file);
        }
    }

    /// The process that supervises this switch's roles, if it lives.
    pub fn supervisor(&self) -> Option<u32> {
        living(&self.path.join(SUPERVISOR))
    }

    /// Where a program is named that is to take the place of the one that runs.
    pub fn upgrade(&self) -> PathBuf {
        self.path.join(UPGRADE)
    }

    /// The file of [lifelines](crate::lifeline).
    pub(crate) fn lifeline(&self) -> PathBuf {
        self.path.join(LIFELINE)
    }

    /// Whether a process of this switch lives.
    pub fn is_running(&self) -> bool {
        living(&self.path.join(SUPERVISOR)).or_else(|| self.living_role()).is_some()
    }

    /// Whether this user may not look inside.
    fn is_closed(&self) -> bool {
        fs::read_dir(&self.path).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
    }

    fn living_role(&self) -> Option<u32> {
        Role::ALL.iter().find_map(|role| living(&self.path.join(role.process_file())))
    }

    /// Removes what the switch made here, and the directory if nothing else is in it.
    ///
    /// # Errors
    /// If the file system says no.
    pub fn remove(&self) -> Result<(), RunDirError> {
        self.remove_own_files()?;
        pins::remove(&self.path).map_err(io_error("remove the pins of", &self.path))?;
        match fs::remove_dir(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => absent_is_fine(result).map_err(io_error("remove", &self.path)),
        }
    }

    fn remove_own_files(&self) -> Result<(), RunDirError> {
        for file in OWN_FILES {
            let path = self.path.join(file);
            absent_is_fine(fs::remove_file(&path)).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }
}

/// Names of the switches that run on this host, sorted; also of those that this user may not see.
///
/// # Errors
/// If the directory of run directories exists and cannot be read.
pub fn running() -> Result<Vec<String>, RunDirError> {
    running_in(&base())
}

fn running_in(base: &Path) -> Result<Vec<String>, RunDirError> {
    let entries = match fs::read_dir(base) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(io_error("list", base))?,
    };
    let directories = entries.filter_map(|entry| Some(RunDir::at(entry.ok()?.path())));
    // Whoever may not look inside is told so when they connect.
    let candidates =
        directories.filter(|directory| directory.is_running() || directory.is_closed());
    let mut names: Vec<String> = candidates.map(|directory| directory.switch()).collect();
    names.sort();
    Ok(names)
}

fn base() -> PathBuf {
    std::env::var_os("FIREDOOR_RUN_DIR")
        .filter(|v| !v.is_empty())
        .map_or_else(|| DEFAULT_BASE.into(), PathBuf::from)
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunDirError {
    move |source| RunDirError::Io { what, path: path.to_owned(), source }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Writes this process's id and start time, as `PID TICKS`.
fn write_process_file(path: &Path) -> Result<(), RunDirError> {
    let pid = process::id();
    let start = start_time(pid).unwrap_or_default();
    fs::write(path, format!("{pid} {start}\n")).map_err(io_error("write", path))
}

/// The process that a process file speaks of, if it still lives.
fn living(path: &Path) -> Option<u32> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, start) = text.trim().split_once(' ')?;
    let (pid, start): (u32, u64) = (pid.parse().ok()?, start.parse().ok()?);
    (start_time(pid)? == start).then_some(pid)
}

/// When a process started, in clock ticks since boot (proc(5), field 22 of `/proc/PID/stat`);
/// `None` if there is no such process, or it is a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command's name in parentheses, and may itself hold `) `.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    if state == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_runs_once_and_leaves_only_what_is_not_its_own() {
        let base = tempfile::tempdir().unwrap();
        let dir = RunDir::at(base.path().join("lab0"));
        dir.claim().unwrap();
        assert!(dir.is_running());
        assert_eq!(running_in(base.path()).unwrap(), ["lab0"]);
        assert!(matches!(
            dir.claim(),
            Err(RunDirError::AlreadyRunning { pid, .. }) if pid == process::id()
        ));

        fs::write(dir.path().join("snapshot"), "x").unwrap();
        fs::write(dir.path().join("lab.json"), "{}").unwrap();
        dir.remove().unwrap();
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["lab.json"]);

        fs::remove_file(dir.path().join("lab.json")).unwrap();
        dir.remove().unwrap();
        assert!(!dir.path().exists());
        dir.remove().unwrap();
    }

    #[test]
    fn a_stale_process_file_is_recognised() {
        let base = tempfile::tempdir().unwrap();
        let dir = RunDir::at(base.path().join("lab0"));
        dir.create().unwrap();
        let file = dir.path().join(SUPERVISOR);
        let other_start = start_time(process::id()).unwrap() + 1;
        for stale in [format!("{} {other_start}\n", process::id()), "junk".into(), String::new()] {
            fs::write(&file, &stale).unwrap();
            assert!(!dir.is_running(), "{stale:?}");
            assert!(running_in(base.path()).unwrap().is_empty());
        }
        dir.claim().unwrap();
        assert!(dir.is_running());
    }

    #[test]
    fn errors_say_what_to_do_where_there_is_something() {
        let said =
            |kind: io::ErrorKind| io_error("create", Path::new("/x"))(kind.into()).to_string();
        assert!(said(io::ErrorKind::PermissionDenied).contains("use sudo"));
        assert!(said(io::ErrorKind::StorageFull).ends_with("another place in FIREDOOR_RUN_DIR"));
        assert_eq!(said(io::ErrorKind::NotADirectory), "cannot create /x: not a directory");
        let none = RunDirError::NoneRunning { base: "/run/x".into() }.to_string();
        assert_eq!(
            none,
            "no switch is running (none in /run/x): start one with `firedoor run CONFIG`"
        );
    }

    #[test]
    fn a_role_alone_counts_as_running_until_it_leaves() {
        let base = tempfile::tempdir().unwrap();
        let dir = RunDir::at(base.path().join("lab0"));
        dir.create().unwrap();
        for role in Role::ALL {
            dir.enter(role).unwrap();
            assert!(dir.is_running());
            dir.leave(role);
            assert!(!dir.is_running());
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = RunDirError::NotRunning { name: "a".into(), running: vec!["b".into()] };
        assert_eq!(
            error.to_string(),
            "no switch named \"a\" is running: start one with `firedoor run CONFIG` (running: b)"
        );
        let error = RunDirError::Ambiguous { running: vec!["a".into(), "b".into()] };
        assert_eq!(
            error.to_string(),
            "several switches are running: choose one with --switch (a, b)"
        );
    }
}
