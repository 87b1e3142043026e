//! Other programs: tools that do one thing and end, and daemons that run beside a measurement.
//!
//! They enter a network namespace by way of `ip netns exec`, which also shows them the `/sys` of
//! that namespace.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use firedoor_lab::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::{BuildError, building};

/// How long a daemon may take to end when asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Why a tool did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started.
    #[error("cannot run {program}: {source}")]
    Start {
        /// The tool.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// The command line.
        command: String,
        /// Its last line on standard error.
        said: String,
    },
}

/// A directory that programs are looked for in, besides `PATH`: daemons live there, and a user's
/// `PATH` may not have it.
const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Where a program is, if it is installed.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(SBIN.map(PathBuf::from));
    directories.map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// Runs a tool in a namespace, or in this process's, and returns what it printed.
///
/// # Errors
/// If it cannot be started or fails.
pub(super) fn tool<S: AsRef<OsStr>>(
    netns: Option<&Netns>,
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String, ToolError> {
    tool_with_input(netns, program, arguments, "")
}

/// Likewise, with `input` on its standard input.
///
/// # Errors
/// Likewise.
pub(super) fn tool_with_input<S: AsRef<OsStr>>(
    netns: Option<&Netns>,
    program: &str,
    arguments: impl IntoIterator<Item = S>,
    input: &str,
) -> Result<String, ToolError> {
    let failed = |source| ToolError::Start { program: program.to_owned(), source };
    let mut command = command(netns, program);
    command.args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // Both ends at once: the tool may answer before it has read everything.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        child.wait_with_output()
    });
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(ToolError::Failed { command: line(&command), said: said.trim().to_owned() })
}

/// A command that will run in a namespace.
pub(super) fn command(netns: Option<&Netns>, program: &str) -> Command {
    let path = find(program).unwrap_or_else(|| program.into());
    let Some(netns) = netns else { return Command::new(path) };
    let mut command = Command::new(find("ip").unwrap_or_else(|| "ip".into()));
    command.args(["netns", "exec", netns.name()]).arg(path);
    command
}

/// A command as one would type it, cut where it gets long.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let text = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A program that runs until this is dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`, with what it says in the file `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start(
        name: &str,
        mut command: Command,
        log: PathBuf,
    ) -> Result<Self, BuildError> {
        let file = building(format!("open {}", log.display()), File::create(&log))?;
        let too = building(format!("open {}", log.display()), file.try_clone())?;
        // Not ended by the Ctrl-C that ends the comparison, which ends it in order.
        command.stdin(Stdio::null()).stdout(file).stderr(too).process_group(0);
        let child = building(format!("start {name}"), command.spawn())?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// If it ends before, or takes longer than `patience`.
    pub(super) fn wait_until(
        &mut self,
        patience: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), BuildError> {
        let start = Instant::now();
        while !ready() {
            let what = self.name.clone();
            if let Some(status) = building(format!("watch {what}"), self.child.try_wait())? {
                return Err(BuildError::Ended { what, status, log: self.last_words() });
            }
            if start.elapsed() > patience {
                let seconds = patience.as_secs();
                return Err(BuildError::NotReady { what, seconds, log: self.last_words() });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        tail(&self.log)
    }
}

fn tail(log: &Path) -> String {
    let log = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let start = Instant::now();
        while start.elapsed() < STOP_PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_answers_or_says_why_not() {
        let answer = tool_with_input(None, "cat", [] as [&str; 0], "through\n").unwrap();
        assert_eq!(answer, "through\n");
        let error = tool(None, "sh", ["-c", "echo first >&2; echo last words >&2; exit 3"]);
        assert!(matches!(error, Err(ToolError::Failed { said, .. }) if said == "last words"));
        assert!(matches!(tool(None, "fd-no-such", [""]), Err(ToolError::Start { .. })));
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find("sh").is_some());
        assert_eq!(find("fd-no-such-program"), None);
    }

    #[test]
    fn a_daemon_that_ends_early_leaves_its_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no luck; exit 1"]);
        let log = directory.path().join("log");
        let mut daemon = Daemon::start("luck", command, log).unwrap();
        let ended = daemon.wait_until(Duration::from_secs(5), || false).unwrap_err();
        assert!(ended.to_string().contains("no luck"), "{ended}");
    }

    #[test]
    fn a_daemon_ends_with_its_handle() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let daemon = Daemon::start("sleep", command, directory.path().join("log")).unwrap();
        let process = PathBuf::from(format!("/proc/{}", daemon.child.id()));
        assert!(process.exists());
        drop(daemon);
        assert!(!process.exists());
    }
}
