//! The mirror path's receiving end: denied frames from the data plane into capture and table.
//!
//! One thread holds the subscription. It is the first to know that the data plane is there, or
//! gone, so it also says when policy must be [reconciled](crate::publish). Whatever goes wrong here
//! costs mirrored frames, which are counted, and never a frame's verdict.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use firedoor_api::dataplane::{Denied, Event, PortState, PortStatus};
use parking_lot::Mutex;

use crate::capture::{CURRENT, Capture, PREVIOUS};
use crate::channel::HangUp;
use crate::client::{ClientError, EventClient};
use crate::daemon::View;
use crate::denies::Denies;
use crate::rundir::RunDir;

/// Between attempts to reach a data plane that is not there: the first, and the longest, wait.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What the mirror path has carried since control started.
#[derive(Debug, Default)]
pub(crate) struct MirrorTotals {
    /// Frames written to the capture.
    pub(crate) captured: AtomicU64,
    /// Frames that could not be written.
    pub(crate) capture_lost: AtomicU64,
    /// Frames that the data plane did not mirror.
    pub(crate) mirror_lost: AtomicU64,
}

/// What the mirror thread works on.
pub(crate) struct Sinks {
    pub(crate) capture: Capture,
    pub(crate) denies: Arc<Denies>,
    pub(crate) totals: Arc<MirrorTotals>,
    pub(crate) view: Arc<Mutex<View>>,
}

/// The mirror thread. Dropping it ends it.
pub(crate) struct Mirror {
    stop: Option<Sender<()>>,
    subscription: Arc<Mutex<Option<HangUp>>>,
    thread: Option<JoinHandle<()>>,
}

impl Mirror {
    /// Subscribes, and stays subscribed. Calls `arrived` whenever the data plane was reached anew.
    pub(crate) fn start(
        run_dir: RunDir,
        mut sinks: Sinks,
        arrived: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let subscription = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&subscription);
        let thread = thread::Builder::new().name("mirror".into());
        let thread = thread
            .spawn(move || stay_subscribed(&run_dir, &mut sinks, &shared, &stopped, arrived))?;
        Ok(Self { stop: Some(stop), subscription, thread: Some(thread) })
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(subscription) = self.subscription.lock().as_ref() {
            subscription.hang_up();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn stay_subscribed(
    run_dir: &RunDir,
    sinks: &mut Sinks,
    shared: &Mutex<Option<HangUp>>,
    stopped: &Receiver<()>,
    arrived: impl Fn(),
) {
    let mut wait = BACKOFF.0;
    loop {
        match subscribe(run_dir, shared) {
            // Whoever stops this says so first and hangs up then: one of both is noticed.
            Ok(_) if is_over(stopped) => return,
            Ok(events) => {
                arrived();
                let ended = sinks.receive(events);
                if is_over(stopped) {
                    return;
                }
                tell_absence(&ended);
                wait = BACKOFF.0;
            }
            Err(error) => {
                // Once, and not again until it was there.
                if wait == BACKOFF.0 {
                    tell_absence(&error);
                }
                wait = (wait * 2).min(BACKOFF.1);
            }
        }
        if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// Subscribes, and leaves the means to end it in `shared`.
fn subscribe(run_dir: &RunDir, shared: &Mutex<Option<HangUp>>) -> Result<EventClient, ClientError> {
    let events = EventClient::subscribe(run_dir)?;
    *shared.lock() = Some(events.hang_up_handle()?);
    Ok(events)
}

fn is_over(stopped: &Receiver<()>) -> bool {
    stopped.try_recv() != Err(TryRecvError::Empty)
}

fn tell_absence(error: &ClientError) {
    match error {
        ClientError::Closed { .. } => tracing::info!("the data plane has ended"),
        ClientError::NotRunning { .. } => tracing::info!("waiting for the data plane"),
        error => tracing::warn!("cannot hear the data plane: {error}"),
    }
}

impl Sinks {
    /// Takes events until the stream ends, and returns why it did.
    fn receive(&mut self, mut events: EventClient) -> ClientError {
        loop {
            match events.receive(None) {
                Ok(Event::Denied(denied)) => self.take(&denied),
                Ok(Event::MirrorLost(frames)) => {
                    self.totals.mirror_lost.fetch_add(frames, Ordering::Relaxed);
                }
                Ok(Event::Port(port)) => {
                    tell(&port);
                    self.view.lock().update_port(*port);
                }
                Ok(Event::Epoch(epoch)) => tracing::debug!(epoch, "in force"),
                Err(error) => return error,
            }
        }
    }

    fn take(&mut self, denied: &Denied) {
        let port = self.view.lock().workload_at(denied.port);
        let port = port.unwrap_or_else(|| format!("port {}", denied.port.0));
        let before = self.capture.generation();
        let written = self.capture.append(denied, &port);
        if self.capture.generation() != before {
            self.denies.rename_captures(|name| if name == CURRENT { PREVIOUS } else { "" });
        }
        match written {
            Ok(offset) => {
                self.totals.captured.fetch_add(1, Ordering::Relaxed);
                self.denies.record(denied, CURRENT, offset);
            }
            Err(error) => {
                if self.totals.capture_lost.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::error!(
                        "cannot write to {}: {error}: denied frames are counted, but not captured",
                        self.capture.path().display()
                    );
                }
                self.denies.record(denied, "", 0);
            }
        }
    }
}

fn tell(port: &PortStatus) {
    let PortStatus { workload, ifname, state, mode, .. } = port;
    match state {
        PortState::Up => tracing::info!("port {workload} is up: {ifname}, {mode}"),
        PortState::Missing => {
            tracing::warn!("port {workload} is gone: no interface {ifname}; waiting for it");
        }
        PortState::Failed(why) => tracing::warn!("port {workload} failed: {ifname}: {why}"),
    }
    for notice in &port.notices {
        tracing::info!("port {workload}: {notice}");
    }
}
