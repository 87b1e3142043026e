//! Keeps both roles alive.
//!
//! A role that ends is started again, later each time if it keeps ending. The other one is left
//! alone: frames move without control, and control waits for a data plane. Roles are children in
//! process groups of their own, so Ctrl-C reaches only the supervisor, which then stops them in
//! order; and they end by themselves when it is gone.
//!
//! A data plane that is killed takes the kernel longer to take apart than its heir takes to get ready. So this one is
//! started at the [first sign](watch) of the other's end, and gets the ports when that one is gone.

mod watch;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use firedoor_api::control::{Reply, Request, Status};
use firedoor_control::client::ControlClient;
use firedoor_control::pins::{self, Place};
use firedoor_control::rundir::RunDir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use self::watch::Watch;
use crate::huge_pages;

/// A role that ends is started again at once. If it goes on ending: the first, and the longest, wait.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A role that lived this long, of a switch that was up, was well: it is started again at once.
const WELL: Duration = Duration::from_secs(1);
/// How often a role may end, before the switch was ever up, until that is given up.
const ATTEMPTS: u32 = 5;
/// How long the data plane of another program may take until it has taken over.
const TAKEOVER: Duration = Duration::from_secs(30);
/// How long a role may take to stop.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the answer to `firedoor upgrade` begins with if it was not done. No path does.
pub(crate) const FAILED: &str = "failed: ";
/// How often to look whether the switch is up, until it is.
const LOOK: Duration = Duration::from_millis(100);

/// Both roles of one switch. Dropping it stops them.
pub(crate) struct Supervisor {
    run_dir: RunDir,
    signals: Receiver<i32>,
    dataplane: Role,
    control: Role,
}

impl Supervisor {
    /// Starts both roles. The config must be named from the root on.
    pub(crate) fn start(
        run_dir: RunDir,
        config: PathBuf,
        capture: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let (sender, signals) = watch_signals()?;
        let mut arguments = role_arguments("dataplane", &run_dir);
        arguments.extend(pins_of(&run_dir).into_iter().flat_map(|pins| ["--pins".into(), pins]));
        let mut dataplane = Role::new("data plane", arguments, true);
        dataplane.watched = Some((run_dir.clone(), sender));
        let mut arguments = role_arguments("control", &run_dir);
        arguments.extend(["--config".into(), config]);
        arguments.extend(capture.into_iter().flat_map(|dir| ["--capture".into(), dir]));
        let control = Role::new("control", arguments, false);
        let mut supervisor = Self { run_dir, signals, dataplane, control };
        supervisor.dataplane.start()?;
        supervisor.control.start()?;
        Ok(supervisor)
    }

    /// Keeps both roles alive until SIGTERM or SIGINT. Calls `announce` once,
    /// when the policy is in force.
    pub(crate) fn run(
        mut self,
        mut announce: impl FnMut(&Status) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut is_up = false;
        let outcome = loop {
            match self.next_signal(is_up) {
                Some(SIGHUP) if self.control.child.is_none() => {
                    tracing::warn!("control is not running: send SIGHUP again once it is");
                }
                Some(SIGHUP) => self.control.signal(Signal::SIGHUP),
                Some(SIGUSR1) => self.upgrade(),
                Some(SIGCHLD) | None => {}
                Some(_) => break Ok(()),
            }
            self.tend_successor();
            let tended = self.dataplane.tend(is_up).and_then(|()| self.control.tend(is_up));
            if tended.is_err() {
                break tended;
            }
            if !is_up && let Some(status) = status_when_up(&self.run_dir) {
                is_up = true;
                if let Err(error) = announce(&status) {
                    tracing::warn!("the switch is up, but nobody could be told: {error}");
                }
            }
        };
        tracing::info!("stopping");
        outcome
    }

    /// Starts the data plane of the program that `firedoor upgrade` has named, beside the one that runs.
    fn upgrade(&mut self) {
        let named =
            fs::read(self.run_dir.upgrade()).map(|name| PathBuf::from(OsString::from_vec(name)));
        let started = named
            .map_err(anyhow::Error::from)
            .and_then(|path| Program::open(&path))
            .and_then(|program| self.dataplane.start_successor(program));
        if let Err(error) = started {
            self.answer(Err(error));
        }
    }

    /// Notices how an upgrade goes: the old data plane ends when the new one has taken over; if the new
    /// one ends before, nothing has changed.
    fn tend_successor(&mut self) {
        match self.dataplane.settle_successor() {
            None => {}
            Some(Ok(program)) => {
                self.control.program = program;
                self.control.is_replaced = true;
                self.control.signal(Signal::SIGTERM);
                self.answer(Ok(()));
            }
            Some(Err(error)) => self.answer(Err(error)),
        }
    }

    /// Tells `firedoor upgrade` what came of it.
    fn answer(&self, result: anyhow::Result<()>) {
        let file = self.run_dir.upgrade();
        let told = match result {
            Ok(()) => fs::remove_file(&file),
            Err(error) => {
                tracing::warn!("no upgrade: {error:#}");
                fs::write(&file, format!("{FAILED}{error:#}"))
            }
        };
        if let Err(error) = told {
            tracing::warn!(%error, "nobody could be told how the upgrade went");
        }
    }

    /// Waits for a signal, or until there is something to do without one.
    fn next_signal(&self, is_up: bool) -> Option<i32> {
        let look = (!is_up).then_some(LOOK);
        let dataplane = [self.dataplane.until_restart(), self.dataplane.until_given_up()];
        let waits = dataplane.into_iter().chain([self.control.until_restart(), look]);
        match waits.flatten().min() {
            Some(wait) => self.signals.recv_timeout(wait).ok(),
            // The thread that sends lives as long as the process.
            None => self.signals.recv().ok(),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // The data plane first: what it still mirrors is captured.
        self.dataplane.stop(&self.signals);
        self.control.stop(&self.signals);
    }
}

/// One role, running or about to be started again.
struct Role {
    name: &'static str,
    program: Program,
    arguments: Vec<PathBuf>,
    has_large_tables: bool,
    child: Option<Child>,
    started: Instant,
    /// How often in a row it has ended without having been well.
    failures: u32,
    restart_at: Option<Instant>,
    /// It was told to end, to be started again from another program.
    is_replaced: bool,
    successor: Option<Successor>,
    /// Where its end shows first, and who is to hear of it, if it may have an heir.
    watched: Option<(RunDir, Sender<i32>)>,
    watch: Option<Watch>,
    /// The same role, which waits for the end of the one that was killed.
    heir: Option<Child>,
}

/// The same role of another program, which has not taken over yet.
struct Successor {
    program: Program,
    child: Child,
    started: Instant,
}

/// The file that a role is started from. Not by path: that may name another version since.
#[derive(Clone)]
struct Program(Option<Arc<File>>);

impl Program {
    /// The one that runs here.
    const THIS: Self = Self(None);

    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self(Some(Arc::new(file))))
    }

    fn command(&self) -> Command {
        match &self.0 {
            None => Command::new("/proc/self/exe"),
            Some(file) => Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())),
        }
    }
}

impl Role {
    fn new(name: &'static str, arguments: Vec<PathBuf>, has_large_tables: bool) -> Self {
        Self {
            name,
            program: Program::THIS,
            arguments,
            has_large_tables,
            child: None,
            started: Instant::now(),
            failures: 0,
            restart_at: None,
            is_replaced: false,
            successor: None,
            watched: None,
            watch: None,
            heir: None,
        }
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let child = self.spawn(&self.program, &[], Stdio::null())?;
        self.install(child);
        self.is_replaced = false;
        Ok(())
    }

    /// From now on that is its process.
    fn install(&mut self, child: Child) {
        let watched = self.watched.as_ref();
        self.watch = watched.map(|(dir, signals)| Watch::begin(dir, child.id(), WELL, signals));
        self.child = Some(child);
        self.started = Instant::now();
        self.restart_at = None;
    }

    fn spawn(&self, program: &Program, more: &[&str], stdin: Stdio) -> anyhow::Result<Child> {
        let mut command = program.command();
        if self.has_large_tables {
            huge_pages::ask_for(&mut command);
        }
        command
            .arg0("firedoor")
            .args(&self.arguments)
            .args(more)
            .stdin(stdin)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))
    }

    /// Starts the same role from another program, which takes over by itself.
    fn start_successor(&mut self, program: Program) -> anyhow::Result<()> {
        if self.successor.is_some() {
            bail!("another upgrade is on its way");
        }
        if self.heir.is_some() {
            bail!("the {} has just been killed, and is started again: try once more", self.name);
        }
        let child = self.spawn(&program, &["--succeed"], Stdio::null())?;
        self.successor = Some(Successor { program, child, started: Instant::now() });
        Ok(())
    }

    /// Once an upgrade has come to an end: the program that runs now, or why it does not.
    fn settle_successor(&mut self) -> Option<anyhow::Result<Program>> {
        let name = self.name;
        let Successor { child, started, .. } = self.successor.as_mut()?;
        let is_late = started.elapsed() >= TAKEOVER;
        if let Ok(Some(status)) = child.try_wait() {
            self.successor = None;
            return Some(Err(anyhow!(
                "the new {name} ended ({}); its log says why",
                describe(status)
            )));
        }
        if self.child.is_some() && self.ended().is_none() {
            if !is_late {
                return None;
            }
            self.end_successor();
            let secs = TAKEOVER.as_secs();
            return Some(Err(anyhow!(
                "the new {name} has not taken over within {secs} s: it was ended"
            )));
        }
        let Successor { program, child, .. } = self.successor.take()?;
        self.program = program.clone();
        self.install(child);
        Some(Ok(program))
    }

    fn until_restart(&self) -> Option<Duration> {
        self.restart_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Until a successor has had its time.
    fn until_given_up(&self) -> Option<Duration> {
        self.successor.as_ref().map(|it| TAKEOVER.saturating_sub(it.started.elapsed()))
    }

    fn end_successor(&mut self) {
        if let Some(Successor { mut child, .. }) = self.successor.take() {
            let _ = child.kill().and_then(|()| child.wait());
        }
    }

    fn end_heir(&mut self) {
        if let Some(mut heir) = self.heir.take() {
            let _ = heir.kill().and_then(|()| heir.wait());
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child
            && let Ok(pid) = i32::try_from(child.id())
        {
            // It may have ended just now; then it is tended to next.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Starts its heir at the first sign of its end, if it was well.
    fn tend_heir(&mut self, is_up: bool) -> anyhow::Result<()> {
        let is_ending = self.watch.take_if(|watch| watch.is_ending()).is_some();
        let is_awaited = self.is_replaced || self.successor.is_some();
        if is_ending && is_up && !is_awaited && self.child.is_some() {
            // There must not be two, whatever the sign was.
            self.signal(Signal::SIGKILL);
            tracing::warn!("{} is ending; another one gets ready", self.name);
            self.heir = Some(self.spawn(&self.program, &["--inherit"], Stdio::piped())?);
        }
        Ok(())
    }

    /// The heir, if it has not ended. It goes on once its standard input has.
    fn take_heir(&mut self) -> Option<Child> {
        let mut heir = self.heir.take()?;
        drop(heir.stdin.take());
        matches!(heir.try_wait(), Ok(None)).then_some(heir)
    }

    /// Notices its end, and starts it again when it is time.
    fn tend(&mut self, is_up: bool) -> anyhow::Result<()> {
        self.tend_heir(is_up)?;
        if let Some(status) = self.ended() {
            self.child = None;
            if let Some(heir) = self.take_heir() {
                tracing::warn!("{} ended ({}); another one goes on", self.name, describe(status));
                self.failures = 0;
                self.install(heir);
                return Ok(());
            }
            if self.is_replaced {
                return self.start();
            }
            let was_well = is_up && self.started.elapsed() >= WELL;
            self.failures = if was_well { 0 } else { self.failures + 1 };
            if !is_up && self.failures >= ATTEMPTS {
                bail!(
                    "{} ended {ATTEMPTS} times before the switch was up; its log, above, says why",
                    self.name
                );
            }
            let wait = match self.failures {
                0 | 1 => Duration::ZERO,
                more => (BACKOFF.0 * 2u32.pow((more - 2).min(16))).min(BACKOFF.1),
            };
            let when = match wait {
                Duration::ZERO => "now".to_owned(),
                wait => format!("in {:.1} s", wait.as_secs_f32()),
            };
            tracing::warn!("{} ended ({}); starting it again {when}", self.name, describe(status));
            self.restart_at = Some(Instant::now() + wait);
        }
        if self.restart_at.is_some_and(|at| at <= Instant::now()) {
            self.start()?;
        }
        Ok(())
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        // An error would mean that it is not our child.
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// Stops it: asked at first, killed if it takes too long.
    fn stop(&mut self, signals: &Receiver<i32>) {
        (self.restart_at, self.watch) = (None, None);
        self.end_successor();
        self.end_heir();
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while self.child.is_some() && self.ended().is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if signals.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!("{} does not stop: killing it", self.name);
                if let Some(child) = &mut self.child {
                    let _ = child.kill().and_then(|()| child.wait());
                }
                break;
            }
        }
        self.child = None;
    }
}

/// Signals as messages, so that waiting for one can have a limit, and a way to send more.
fn watch_signals() -> anyhow::Result<(Sender<i32>, Receiver<i32>)> {
    let mut signals = Signals::new([SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1])?;
    let (sender, receiver) = mpsc::channel();
    let more = sender.clone();
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok((more, receiver))
}

fn role_arguments(role: &str, run_dir: &RunDir) -> Vec<PathBuf> {
    let supervisor = process::id().to_string();
    let path = Path::to_owned;
    vec![
        role.into(),
        "--supervisor".into(),
        supervisor.into(),
        "--run-dir".into(),
        path(run_dir.path()),
    ]
}

/// Where the express lane may outlive a data plane.
fn pins_of(run_dir: &RunDir) -> Option<PathBuf> {
    match pins::prepare(run_dir.path()) {
        Ok(Place { path, is_own }) => {
            if is_own {
                tracing::info!(path = %path.display(), "no BPF file system is mounted: made one");
            }
            Some(path)
        }
        Err(error) => {
            tracing::warn!(
                %error,
                "no BPF file system can be mounted, which takes CAP_SYS_ADMIN: express flows end with \
                 the data plane. `mount -t bpf bpf /sys/fs/bpf` before"
            );
            None
        }
    }
}

/// The switch's status, once its policy is in force.
fn status_when_up(run_dir: &RunDir) -> Option<Status> {
    let reply = ControlClient::to_control(run_dir).ok()?.ask(&Request::Status).ok()?;
    let Reply::Status(status) = reply else { return None };
    let is_up = status.dataplane.as_ref().is_some_and(|dataplane| dataplane.epoch > 0);
    is_up.then_some(*status)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => signal.to_string(),
            Err(_) => format!("signal {signal}"),
        },
        (None, None) => "for an unknown reason".into(),
    }
}
