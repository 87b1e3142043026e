//! The control role.
//!
//! Who may change what: one thread, the *clerk*, owns the [`Publisher`] and takes one order after
//! the other, so changes of policy never interleave. Connections of the command line
//! ([`server`](crate::server)) are threads that read what is shared (the table of denies, the view
//! of what is in force), ask the data plane themselves for what only it knows, and give orders for
//! everything else. The [mirror](crate::mirror) thread receives denied frames, and orders the
//! policy reconciled when a data plane appears.
//!
//! Control holds nothing that the data plane needs to go on: killed at any moment, it takes up
//! again from the data plane's snapshot and its own record of what was applied.

use std::io;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use firedoor_api::control::{Deny, Reply, Request, Status};
use firedoor_api::dataplane::{self, PortStatus};
use firedoor_classifier::Snapshot;
use firedoor_classifier::snapshot::PortId;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::capture::Capture;
use crate::client::{ClientError, DataplaneClient};
use crate::denies::{Cursor, Denies};
use crate::mirror::{Mirror, MirrorTotals, Sinks};
use crate::publish::{PublishError, Published, Publisher};
use crate::rundir::{Role, RunDir, RunDirError};
use crate::server::{Handler, Server, ServerError};

/// How long the command line waits for a change to be made, others before it included.
const PATIENCE: Duration = Duration::from_secs(110);
/// How long the data plane may take to tell how it is, until it passes for not alive.
const STATUS_PATIENCE: Duration = Duration::from_secs(3);
/// How long until a reconciliation that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often to look whether a rule's day has come: the wait itself does not see a clock that is
/// set, nor the time that a host sleeps.
const CLOCK_CHECK: Duration = Duration::from_secs(600);

/// How control is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The switch's run directory.
    pub run_dir: PathBuf,
    /// The config file.
    pub config: PathBuf,
    /// Where captures are written; the run directory if absent.
    pub capture_dir: Option<PathBuf>,
    /// The version that it tells.
    pub version: &'static str,
}

/// Why control cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The run directory cannot be used.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// There is no policy to begin with.
    #[error(transparent)]
    Policy(#[from] PublishError),
    /// There is no socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The capture cannot be written.
    #[error(
        "cannot write the capture in {}: {source}: make room there, or name another directory with \
         `firedoor run --capture DIR`",
        directory.display()
    )]
    Capture {
        /// Its directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system gives no thread or no signal handler.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// Runs the control role until SIGTERM or SIGINT. SIGHUP applies the config file again.
///
/// # Errors
/// If it cannot start. Once it runs, errors are logged and changes refused.
pub fn run(options: Options) -> Result<(), DaemonError> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let daemon = Daemon::start(options)?;
    for signal in signals.forever() {
        match signal {
            SIGHUP => daemon.reload(),
            _ => break,
        }
    }
    Ok(())
}

/// A running control role. Dropping it stops it; the data plane goes on.
pub struct Daemon {
    run_dir: RunDir,
    orders: Sender<Order>,
    clerk: Option<JoinHandle<()>>,
    server: Option<Server>,
    mirror: Option<Mirror>,
}

impl Daemon {
    /// Starts the role's threads. The policy is put in force as soon as a data plane is there.
    ///
    /// # Errors
    /// If the config does not compile, or the system refuses socket, capture or thread.
    pub fn start(options: Options) -> Result<Self, DaemonError> {
        let run_dir = RunDir::at(options.run_dir);
        run_dir.create()?;
        let publisher = Publisher::open(run_dir.clone(), options.config, today())?;
        let directory = options.capture_dir.unwrap_or_else(|| run_dir.path().to_owned());
        let capture = Capture::open(&directory)
            .map_err(|source| DaemonError::Capture { directory, source })?;

        let (orders, inbox) = mpsc::channel();
        let view = Arc::new(Mutex::new(View::default()));
        let denies = Arc::new(Denies::default());
        let totals = Arc::new(MirrorTotals::default());
        let desk = Desk {
            run_dir: run_dir.clone(),
            version: options.version,
            started: Instant::now(),
            capture: capture.path(),
            orders: orders.clone(),
            view: Arc::clone(&view),
            denies: Arc::clone(&denies),
            totals: Arc::clone(&totals),
        };
        let server = Server::start(&run_dir.control_socket(), Arc::new(desk))?;
        run_dir.enter(Role::Control)?;
        let clerk = Clerk { publisher, view: Arc::clone(&view), inbox, retry: None };
        let clerk = thread::Builder::new().name("clerk".into()).spawn(move || clerk.work())?;
        let arrived = orders.clone();
        let sinks = Sinks { capture, denies, totals, view };
        let mirror = Mirror::start(run_dir.clone(), sinks, move || {
            // The clerk outlives the mirror, except when both are being stopped.
            let _ = arrived.send(Order::Reconcile);
        })?;
        Ok(Self { run_dir, orders, clerk: Some(clerk), server: Some(server), mirror: Some(mirror) })
    }

    /// Applies the config file again, as SIGHUP does.
    pub fn reload(&self) {
        let _ = self.orders.send(Order::Reload);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // First nobody can ask any more, then nothing more is mirrored, then nothing changes.
        self.server = None;
        self.mirror = None;
        let _ = self.orders.send(Order::Stop);
        if let Some(clerk) = self.clerk.take() {
            let _ = clerk.join();
        }
        self.run_dir.leave(Role::Control);
    }
}

/// What is in force, for whoever asks.
#[derive(Debug, Default)]
pub(crate) struct View {
    snapshot: Option<Arc<Snapshot>>,
    ports: Vec<PortStatus>,
}

impl View {
    /// Name of the workload whose port this is.
    pub(crate) fn workload_at(&self, port: PortId) -> Option<String> {
        let workloads = &self.snapshot.as_ref()?.workloads;
        workloads.iter().find(|w| w.port == port).map(|w| w.name.clone())
    }

    /// Takes the latest word on a port.
    pub(crate) fn update_port(&mut self, port: PortStatus) {
        match self.ports.iter_mut().find(|p| p.workload == port.workload) {
            Some(known) => *known = port,
            None => self.ports.push(port),
        }
    }
}

enum Order {
    /// See that the data plane enforces what is applied.
    Reconcile,
    /// Apply the config file again.
    Reload,
    /// Make a change that the command line asked for, and answer it.
    Change(Request, SyncSender<Reply>),
    Stop,
}

/// Makes all changes, one after the other.
struct Clerk {
    publisher: Publisher,
    view: Arc<Mutex<View>>,
    inbox: Receiver<Order>,
    /// When to try again what failed.
    retry: Option<Instant>,
}

impl Clerk {
    fn work(mut self) {
        loop {
            let order = match self.until_next_duty() {
                Some(wait) => self.inbox.recv_timeout(wait.min(CLOCK_CHECK)),
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match order {
                Ok(Order::Reconcile) => self.reconcile(),
                Err(RecvTimeoutError::Timeout) => {
                    if self.until_next_duty() == Some(Duration::ZERO) {
                        self.reconcile();
                    }
                }
                Ok(Order::Reload) => {
                    let result = self.publisher.reload(today());
                    let _ = self.finish("the config was not applied again", result);
                }
                Ok(Order::Change(request, answer)) => {
                    let reply = self.change(request);
                    // Whoever asked may have given up.
                    let _ = answer.send(reply);
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// How long until something must be done without an order.
    fn until_next_duty(&self) -> Option<Duration> {
        let retry = self.retry.map(|at| at.saturating_duration_since(Instant::now()));
        let expiry = self.publisher.next_expiry().map(until_begin_of);
        [retry, expiry].into_iter().flatten().min()
    }

    fn reconcile(&mut self) {
        let result = self.publisher.reconcile(today());
        // While the data plane is away, the mirror thread waits for it. All else is tried again.
        let again = match &result {
            Err(PublishError::Dataplane(ClientError::NotRunning { .. })) | Ok(_) => false,
            Err(_) => true,
        };
        self.retry = again.then(|| Instant::now() + RETRY);
        let _ = self.finish("the policy could not be put in force", result);
    }

    fn change(&mut self, request: Request) -> Reply {
        let publisher = &mut self.publisher;
        let result = match request {
            Request::Apply { path, text } => publisher.apply(path, text, today()),
            Request::PortAdd { workload } => publisher.add_port(&workload, today()),
            Request::PortDel { name } => publisher.remove_port(&name, today()),
            _ => return Reply::Refused { message: "this request changes nothing".into() },
        };
        match self.finish("a change was refused", result) {
            Ok(published) => Reply::Applied {
                epoch: published.snapshot.epoch,
                notices: published.notices,
                ports: published.ports,
            },
            Err(error) => Reply::Refused { message: error.to_string() },
        }
    }

    /// Shows and tells what came of a change.
    fn finish(
        &mut self,
        failure: &str,
        result: Result<Published, PublishError>,
    ) -> Result<Published, PublishError> {
        match &result {
            Ok(published) => {
                let Published { snapshot, installed, notices, ports } = published;
                let mut view = self.view.lock();
                view.snapshot = Some(Arc::clone(snapshot));
                view.ports.clone_from(ports);
                drop(view);
                notices.iter().for_each(|notice| tracing::warn!("{notice}"));
                tracing::info!(
                    "epoch {} {}: {} workloads, {} rules",
                    snapshot.epoch,
                    if *installed { "is in force" } else { "was in force already" },
                    snapshot.workloads.len(),
                    snapshot.rules.len()
                );
            }
            Err(error) => tracing::error!("{failure}: {error}"),
        }
        result
    }
}

/// Answers the command line.
struct Desk {
    run_dir: RunDir,
    version: &'static str,
    started: Instant,
    capture: PathBuf,
    orders: Sender<Order>,
    view: Arc<Mutex<View>>,
    denies: Arc<Denies>,
    totals: Arc<MirrorTotals>,
}

impl Handler for Desk {
    fn answer(&self, request: Request) -> Reply {
        let answer = match request {
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Ports => self.ports().map(Reply::Ports),
            Request::Flows => self.flows(),
            Request::Denies | Request::FollowDenies => Ok(Reply::Denies(self.denies.list())),
            Request::Snapshot => {
                let snapshot = self.view.lock().snapshot.clone();
                Ok(Reply::Snapshot(snapshot.map(|s| Box::new(Snapshot::clone(&s)))))
            }
            Request::Apply { .. } | Request::PortAdd { .. } | Request::PortDel { .. } => {
                Ok(self.order(request))
            }
        };
        answer.unwrap_or_else(|error| Reply::Refused { message: error.to_string() })
    }

    fn denies(&self) -> (Vec<Deny>, Cursor) {
        // Taken first: what comes between is told twice rather than never.
        let cursor = self.denies.now();
        (self.denies.list(), cursor)
    }

    fn denies_since(&self, cursor: Cursor, patience: Duration) -> (Vec<Deny>, Cursor) {
        self.denies.since(cursor, patience)
    }
}

impl Desk {
    fn order(&self, request: Request) -> Reply {
        let (answer, answered) = mpsc::sync_channel(1);
        let sent = self.orders.send(Order::Change(request, answer)).is_ok();
        let reply = if sent { answered.recv_timeout(PATIENCE).ok() } else { None };
        reply.unwrap_or_else(|| Reply::Refused {
            message: "control did not get to it in time; `firedoor status` shows what is in force"
                .into(),
        })
    }

    fn ask(&self, request: &dataplane::Request) -> Result<dataplane::Reply, ClientError> {
        DataplaneClient::to_dataplane(&self.run_dir)?.ask(request)
    }

    /// The data plane's totals and ports, if it is well enough to tell.
    fn dataplane_status(&self) -> Option<(dataplane::Status, Vec<PortStatus>)> {
        let mut dataplane = DataplaneClient::to_dataplane(&self.run_dir).ok()?;
        let mut ask = |request| dataplane.ask_within(STATUS_PATIENCE, &request).ok();
        match (ask(dataplane::Request::Status)?, ask(dataplane::Request::Ports)?) {
            (dataplane::Reply::Status(status), dataplane::Reply::Ports(ports)) => {
                Some((*status, ports))
            }
            _ => None,
        }
    }

    fn ports(&self) -> Result<Vec<PortStatus>, ClientError> {
        match self.ask(&dataplane::Request::Ports)? {
            dataplane::Reply::Ports(ports) => Ok(ports),
            _ => Err(ClientError::Unexpected { role: Role::Dataplane }),
        }
    }

    fn flows(&self) -> Result<Reply, ClientError> {
        match self.ask(&dataplane::Request::Flows)? {
            dataplane::Reply::Flows(flows) => Ok(Reply::Flows(flows)),
            _ => Err(ClientError::Unexpected { role: Role::Dataplane }),
        }
    }

    /// What there is to say, with or without the data plane.
    fn status(&self) -> Status {
        let (dataplane, ports) = self.dataplane_status().unzip();
        let view = self.view.lock();
        let snapshot = view.snapshot.as_deref();
        Status {
            switch: snapshot.map_or_else(|| self.run_dir.switch(), |s| s.switch.clone()),
            mode: snapshot.map(|s| s.mode).unwrap_or_default(),
            control_version: self.version.to_owned(),
            control_pid: process::id(),
            control_uptime_secs: self.started.elapsed().as_secs(),
            dataplane,
            ports: ports.unwrap_or_else(|| view.ports.clone()),
            capture: self.capture.display().to_string(),
            captured: self.totals.captured.load(Ordering::Relaxed),
            capture_lost: self.totals.capture_lost.load(Ordering::Relaxed),
            mirror_lost: self.totals.mirror_lost.load(Ordering::Relaxed),
            settings: snapshot.map(|s| s.settings).unwrap_or_default(),
        }
    }
}

/// The day it is, in UTC: the one thing of the clock that policy depends on.
fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}

/// How long until a day begins; zero if it has begun.
fn until_begin_of(day: Date) -> Duration {
    let Ok(begin) = day.to_zoned(TimeZone::UTC) else { return Duration::MAX };
    let left = begin.timestamp().duration_since(Timestamp::now());
    Duration::try_from(left).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    #[test]
    fn days_are_waited_for_until_they_begin() {
        let today = today();
        assert_eq!(until_begin_of(today), Duration::ZERO);
        assert_eq!(until_begin_of(today.saturating_sub(3.days())), Duration::ZERO);
        let wait = until_begin_of(today.saturating_add(2.days()));
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(2 * 86_400), "{wait:?}");
    }
}
