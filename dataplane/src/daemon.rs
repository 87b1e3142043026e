//! The data plane role as a process: an engine, a socket, a saved snapshot.
//!
//! It attaches no port before a snapshot is in force: the one it saved when it was last told one, or
//! else the first that control installs. It answers on `RUN_DIR/dataplane.sock` and ends on SIGTERM
//! or SIGINT, with every port detached and its socket removed. The snapshot stays, for the next
//! data plane.

mod link_watch;
mod predecessor;
mod saved;
mod server;
mod subscribers;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use firedoor_api::dataplane::{Event, PortStatus, Reply, Request, Takeover};
use firedoor_classifier::snapshot::Snapshot;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use parking_lot::Mutex;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::engine::{Engine, EngineError, Halted, Opener};
use crate::sys::bpf;
use crate::wakefulness::WINDOW;
use crate::{describe, express, interface};
use predecessor::Predecessor;
pub use saved::SavedError;
use subscribers::Subscribers;

/// Where a data plane lives.
#[derive(Clone, Debug)]
pub struct Options {
    /// The switch's run directory, which exists.
    pub run_dir: PathBuf,
    /// Where in a BPF file system the express lane outlives the process, if it is to.
    pub pins: Option<PathBuf>,
    /// Whose place it takes.
    pub succession: Succession,
    /// The version that it tells.
    pub version: &'static str,
}

/// Whose place a data plane takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// Nobody's, or that of one that has ended.
    None,
    /// That of one that runs, which is asked to retire.
    OfLiving,
    /// That of one that was killed, and that the kernel has not taken apart yet: standard input ends when it has.
    OfDying,
}

/// Why the data plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The socket.
    #[error("cannot listen on {path}: {source}")]
    Listen {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Signals.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    /// A thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The data plane to be replaced.
    #[error("the data plane that runs does not retire, and goes on: {0}")]
    Predecessor(io::Error),
    /// What is to replace it.
    #[error("the data plane that runs goes on, because this one cannot do what it does: {0}")]
    Unprepared(Unenforced),
}

/// Why the saved snapshot is not in force.
#[derive(Debug, thiserror::Error)]
pub enum Unenforced {
    /// It cannot be read.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// It cannot be put in force.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Runs the data plane until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start. A saved snapshot that cannot be read or enforced is reported and ignored:
/// then no frame moves until control installs one.
pub fn run(options: &Options) -> Result<(), DaemonError> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(DaemonError::Signals)?;
    let shared = Arc::new(Shared::new(options));
    shared.resume(options.succession)?;
    let listener = server::listen(&options.run_dir)?;
    spawn("mirror", &shared, Shared::drain_mirrors)?;
    spawn("links", &shared, link_watch::run)?;
    spawn("load", &shared, Shared::watch_load)?;
    spawn("server", &shared, move |shared| server::run(&listener, shared))?;
    if let Some(signal) = signals.forever().next() {
        tracing::info!(signal, "ending");
    }
    // The socket of one that has retired is its successor's by now.
    if !shared.has_retired() {
        server::unlisten(&options.run_dir);
        shared.stop();
    }
    Ok(())
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    body: impl FnOnce(&Arc<Shared>) + Send + 'static,
) -> Result<(), DaemonError> {
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name(name.into())
        .spawn(move || body(&shared))
        .map(drop)
        .map_err(DaemonError::Thread)
}

/// What the daemon's threads share.
pub(crate) struct Shared {
    run_dir: PathBuf,
    pins: Option<PathBuf>,
    version: &'static str,
    engine: Mutex<Option<Engine>>,
    /// Held while a snapshot is saved and put in force, so that the two stay the same.
    installing: Mutex<()>,
    subscribers: Subscribers,
    retired: AtomicBool,
    /// How it took its predecessor's place, if it did.
    takeover: Mutex<Option<Takeover>>,
}

impl Shared {
    fn new(options: &Options) -> Self {
        let Options { run_dir, pins, version, .. } = options.clone();
        Self {
            run_dir,
            pins,
            version,
            engine: Mutex::new(None),
            installing: Mutex::new(()),
            subscribers: Subscribers::default(),
            retired: AtomicBool::new(false),
            takeover: Mutex::new(None),
        }
    }

    /// Puts the saved snapshot in force, if there is one. A data plane that runs in its place retires when
    /// all is ready that takes time, and goes on if it does not come to that.
    fn resume(&self, succession: Succession) -> Result<(), DaemonError> {
        // Beside all else, which takes as long.
        let _ = thread::Builder::new().name("loader".into()).spawn(bpf::prepare);
        let mut engine = match self.prepare() {
            Err(error) if succession == Succession::OfLiving => {
                return Err(DaemonError::Unprepared(error));
            }
            prepared => prepared.unwrap_or_else(|error| {
                tracing::error!(%error, "the saved snapshot is not in force");
                None
            }),
        };
        let mut predecessor = None;
        if succession != Succession::None {
            engine.iter().for_each(Engine::take_misses);
        }
        if succession == Succession::OfLiving {
            predecessor = predecessor::retire(&self.run_dir).map_err(|error| {
                engine.take().into_iter().for_each(Engine::give_up);
                DaemonError::Predecessor(error)
            })?;
        }
        if predecessor.is_some()
            && let Some(engine) = &mut engine
            && let Err(error) = self.renew(engine)
        {
            tracing::error!(%error, "the newest snapshot is not in force");
        }
        let Some(mut engine) = engine else { return Ok(()) };
        let await_queues = || match succession {
            Succession::None => {}
            Succession::OfLiving => predecessor.iter_mut().for_each(Predecessor::await_queues),
            Succession::OfDying => predecessor::await_end(),
        };
        let flows = engine.begin(await_queues) as u64;
        if let Some(Predecessor { pid, stopped, .. }) = predecessor {
            let blackout_us = now_ns().saturating_sub(stopped) / 1_000;
            tracing::info!(predecessor = pid, flows, blackout_us, "took over");
            *self.takeover.lock() = Some(Takeover { predecessor: pid, flows, blackout_us });
        }
        engine.clear_away();
        self.subscribers.read_from(engine.mirrors());
        *self.engine.lock() = Some(engine);
        Ok(())
    }

    /// An engine that is to begin with the saved snapshot, if there is one.
    fn prepare(&self) -> Result<Option<Engine>, Unenforced> {
        let Some(snapshot) = saved::load(&self.run_dir)? else {
            tracing::info!("no saved snapshot: no frame moves until control installs one");
            // Of a switch that was killed whole: its epochs say nothing in this run.
            self.pins.iter().for_each(|pins| express::forget_verdicts(pins));
            return Ok(None);
        };
        let epoch = snapshot.epoch;
        let engine = Engine::prepare(snapshot, self.opener())?;
        tracing::info!(epoch, "saved snapshot in force");
        Ok(Some(engine))
    }

    /// Puts what was saved since the engine was prepared in force there.
    fn renew(&self, engine: &mut Engine) -> Result<(), Unenforced> {
        saved::load(&self.run_dir)?.map_or(Ok(()), |latest| Ok(engine.renew(latest)?))
    }

    fn opener(&self) -> Box<dyn Opener> {
        Box::new(interface::Interfaces::new(self.pins.clone()))
    }

    /// Stops forwarding for a successor's sake. What the kernel forwards goes on; ports stay as they
    /// are, so nothing of them is closed in order.
    pub(crate) fn retire(&self) -> (Reply, Option<Halted>) {
        let _installing = self.installing.lock();
        self.retired.store(true, Ordering::SeqCst);
        server::unlisten(&self.run_dir);
        let halted = self.engine.lock().take().map(Engine::halt);
        tracing::info!("retired: another data plane takes over");
        (Reply::Retired { pid: std::process::id(), stopped: now_ns() }, halted)
    }

    fn has_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Ends the process, in the way that SIGTERM does.
    pub(crate) fn end(&self) -> io::Result<()> {
        Ok(kill(Pid::this(), Signal::SIGTERM)?)
    }

    /// Answers one request.
    pub(crate) fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Install(snapshot) => self.install(*snapshot),
            Request::Snapshot => Reply::Snapshot(self.snapshot().map(Box::new)),
            Request::Status => {
                let engine = self.engine.lock();
                let mut status = engine.as_ref().map_or_else(Default::default, Engine::status);
                status.pid = std::process::id();
                self.version.clone_into(&mut status.version);
                status.takeover = *self.takeover.lock();
                status.mirror_lost += self.subscribers.lost();
                Reply::Status(Box::new(status))
            }
            Request::Ports => {
                Reply::Ports(self.engine.lock().as_ref().map_or_else(Vec::new, Engine::ports))
            }
            Request::Flows => {
                Reply::Flows(self.engine.lock().as_ref().map_or_else(Vec::new, describe::flows))
            }
            Request::Subscribe | Request::Retire => Reply::Refused {
                message: "Subscribe and Retire have a connection of their own".into(),
            },
        }
    }

    /// Saves the snapshot, then puts it in force: a data plane that dies in between comes back with
    /// the policy that control wanted.
    fn install(&self, snapshot: Snapshot) -> Reply {
        let _installing = self.installing.lock();
        if self.has_retired() {
            return Reply::Refused {
                message: "another data plane takes over: ask that one".into(),
            };
        }
        let epoch = snapshot.epoch;
        if let Err(error) = saved::store(&self.run_dir, &snapshot) {
            return Reply::Refused { message: error.to_string() };
        }
        match self.put_in_force(snapshot) {
            Ok(ports) => {
                saved::settle(&self.run_dir);
                tracing::info!(epoch, "snapshot in force");
                self.subscribers.publish(&Event::Epoch(epoch));
                Reply::Installed { epoch, ports }
            }
            Err(error) => {
                saved::take_back(&self.run_dir);
                Reply::Refused { message: error.to_string() }
            }
        }
    }

    fn put_in_force(&self, snapshot: Snapshot) -> Result<Vec<PortStatus>, EngineError> {
        let mut engine = self.engine.lock();
        if let Some(engine) = engine.as_mut() {
            engine.install(snapshot)?;
            return Ok(engine.ports());
        }
        let started = engine.insert(Engine::start(snapshot, self.opener())?);
        self.subscribers.read_from(started.mirrors());
        Ok(started.ports())
    }

    fn snapshot(&self) -> Option<Snapshot> {
        let engine = self.engine.lock();
        engine.as_ref()?.policy().map(|policy| policy.snapshot().clone())
    }

    pub(crate) fn subscribers(&self) -> &Subscribers {
        &self.subscribers
    }

    /// An interface changed: lets the engine see to its port, and tells the subscribers.
    pub(crate) fn link_changed(&self, ifname: &str, ifindex: Option<u32>) {
        let changed =
            self.engine.lock().as_mut().and_then(|engine| engine.link_changed(ifname, ifindex));
        if let Some(port) = changed {
            tracing::warn!(port = port.workload, ifname, state = ?port.state, "port changed");
            self.subscribers.publish(&Event::Port(Box::new(port)));
        }
    }

    /// Interfaces have begun or ceased to take frames that are redirected in XDP.
    pub(crate) fn targets_changed(&self) {
        if let Some(engine) = self.engine.lock().as_ref() {
            engine.targets_changed();
        }
    }

    /// Every port's interface.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        self.engine.lock().as_ref().map_or_else(Vec::new, Engine::interfaces)
    }

    /// Tries ports again that could not be attached.
    pub(crate) fn retry_ports(&self) {
        let changed = self.engine.lock().as_mut().map_or_else(Vec::new, Engine::retry_ports);
        for port in changed {
            self.subscribers.publish(&Event::Port(Box::new(port)));
        }
    }

    /// Describes denied frames and passes them on, for the life of the process.
    fn drain_mirrors(self: &Arc<Self>) {
        loop {
            self.subscribers.drain(|record| {
                self.engine.lock().as_ref().and_then(|engine| describe::denied(engine, record))
            });
            let lost = self.engine.lock().as_ref().map_or(0, Engine::mirror_lost);
            self.subscribers.report_lost(lost);
            thread::park_timeout(Duration::from_secs(1));
        }
    }

    /// Keeps processors awake while frames come often, for the life of the process.
    fn watch_load(self: &Arc<Self>) {
        loop {
            thread::sleep(Duration::from_nanos(WINDOW.0));
            if let Some(engine) = self.engine.lock().as_mut() {
                engine.watch_load(engine.clock().now());
            }
        }
    }

    fn stop(&self) {
        let Some(engine) = self.engine.lock().take() else { return };
        let frames = engine.status().frames as usize;
        let back = engine.stop();
        if back != frames {
            tracing::error!(lost = frames.saturating_sub(back), "frames did not come back");
        }
    }
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use firedoor_classifier::snapshot::{Settings, TagInfo};

    fn snapshot(epoch: u64) -> Snapshot {
        Snapshot {
            epoch,
            switch: "daemon".into(),
            mode: Default::default(),
            settings: Settings { frames: 64, ..Default::default() },
            workloads: Vec::new(),
            tags: vec![TagInfo { name: "world".into() }],
            prefixes: Vec::new(),
            world: Default::default(),
            rules: Vec::new(),
        }
    }

    /// One that runs is not asked to retire by one that could not do its work.
    #[test]
    fn a_successor_that_cannot_enforce_what_is_saved_leaves_the_predecessor_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let predecessor = UnixListener::bind(server::path_of(dir.path())).unwrap();
        predecessor.set_nonblocking(true).unwrap();
        let succession = Succession::OfLiving;
        let options = Options { run_dir: dir.path().into(), pins: None, succession, version: "" };
        let refused = || Shared::new(&options).resume(succession).unwrap_err().to_string();
        saved::store(dir.path(), &Snapshot { tags: Vec::new(), ..snapshot(1) }).unwrap();
        let error = refused();
        assert!(error.contains("goes on") && error.contains("there are only 0 tags"), "{error}");
        std::fs::write(dir.path().join("snapshot"), "?").unwrap();
        let error = refused();
        assert!(error.contains("goes on") && error.contains("is cut short"), "{error}");
        assert_eq!(predecessor.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    /// Two that install at once, as an old control process and its successor may.
    #[test]
    fn what_is_saved_is_what_is_in_force_whoever_installs() {
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared::new(&Options {
            run_dir: dir.path().into(),
            pins: None,
            succession: Succession::None,
            version: "",
        });
        thread::scope(|scope| {
            for offset in 0..4 {
                let shared = &shared;
                scope.spawn(move || {
                    (0..25).for_each(|round| _ = shared.install(snapshot(1 + 4 * round + offset)));
                });
            }
        });
        assert_eq!(saved::load(dir.path()).unwrap(), shared.snapshot());
        shared.stop();
    }
}
