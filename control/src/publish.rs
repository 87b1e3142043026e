//! Putting policy in force: compile, compare, install, await the data plane's word.
//!
//! The data plane knows what is in force, so it is asked each time. That makes every way to get
//! here the same: the first start, a restarted control, a restarted data plane, a changed config,
//! an expired rule. The epoch grows by one with each snapshot that is installed; a policy equal to
//! the one in force is not installed again, so nothing that was judged needs to be judged anew.
//!
//! What is applied is saved before it is installed, and put back if it cannot be. A control that is
//! killed in between therefore completes the change when it restarts, and never takes one back
//! that was acknowledged.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firedoor_api::dataplane::{PortStatus, Reply, Request};
use firedoor_classifier::Snapshot;
use jiff::civil::Date;

use crate::applied::{Applied, AppliedError};
use crate::client::{ClientError, DataplaneClient};
use crate::intent;
use crate::rundir::{Role, RunDir};

/// Why a policy is not in force. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The config cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The config.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was applied before control was restarted cannot be read.
    #[error(
        "cannot read what was applied last, {}: {source}: remove that file to begin with the \
         config again",
        path.display()
    )]
    Saved {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not compile, or the change to it makes no sense.
    #[error(transparent)]
    Applied(#[from] AppliedError),
    /// It is another switch's.
    #[error(
        "this config is for switch {theirs:?}, but {ours:?} is running here: choose the switch \
         with --switch, or correct `name` in [switch]"
    )]
    OtherSwitch {
        /// The switch it names.
        theirs: String,
        /// The switch that runs.
        ours: String,
    },
    /// What is applied cannot be saved.
    #[error("cannot save what is applied in {}: {source}", path.display())]
    Save {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The data plane did not take it.
    #[error(transparent)]
    Dataplane(#[from] ClientError),
}

/// A policy is in force.
#[derive(Clone, Debug)]
pub struct Published {
    /// What is in force.
    pub snapshot: Arc<Snapshot>,
    /// Whether it was installed just now, or was in force already.
    pub installed: bool,
    /// Warnings, one line each.
    pub notices: Vec<String>,
    /// The ports as they are now.
    pub ports: Vec<PortStatus>,
}

/// Keeps the data plane's policy equal to what was applied.
#[derive(Debug)]
pub struct Publisher {
    run_dir: RunDir,
    config: PathBuf,
    applied: Applied,
    /// Whether that is what a restarted control would find.
    is_saved: bool,
    /// The last snapshot that is known to have been in force: it gives ports their numbers, and
    /// the next epoch, even if the data plane has lost it.
    known: Option<Arc<Snapshot>>,
    next_expiry: Option<Date>,
}

impl Publisher {
    /// Begins with what was applied before control was restarted, else with the config file.
    /// Compiles it, but installs nothing yet.
    ///
    /// # Errors
    /// If there is neither, or it does not compile.
    pub fn open(run_dir: RunDir, config: PathBuf, today: Date) -> Result<Self, PublishError> {
        let saved = Applied::load(&run_dir.applied());
        let is_saved = matches!(saved, Ok(Some(_)));
        let applied = match saved {
            Ok(Some(applied)) => {
                tracing::info!(
                    "going on with what was applied last; changes to {} since then take effect \
                     with SIGHUP or `firedoor policy apply`",
                    config.display()
                );
                applied
            }
            Ok(None) => Applied::of(config.display().to_string(), read(&config)?),
            Err(source) => return Err(PublishError::Saved { path: run_dir.applied(), source }),
        };
        let next_expiry = applied.compile(None, today)?.next_expiry;
        Ok(Self { run_dir, config, applied, is_saved, known: None, next_expiry })
    }

    /// The day (UTC) on which the next rule expires: call
    /// [`reconcile`](Self::reconcile) when it begins.
    pub fn next_expiry(&self) -> Option<Date> {
        self.next_expiry
    }

    /// Makes the data plane enforce what is applied, if it does not already.
    ///
    /// # Errors
    /// If it cannot be reached, or refuses.
    pub fn reconcile(&mut self, today: Date) -> Result<Published, PublishError> {
        self.publish(self.applied.clone(), today)
    }

    /// Applies the config file as it is now.
    ///
    /// # Errors
    /// If it cannot be put in force. Nothing changed.
    pub fn reload(&mut self, today: Date) -> Result<Published, PublishError> {
        let text = read(&self.config)?;
        self.apply(self.config.display().to_string(), text, today)
    }

    /// Applies a config. Workloads that were added by hand stay, those that were taken out by hand
    /// are in again if the config has them.
    ///
    /// # Errors
    /// If it cannot be put in force. Nothing changed.
    pub fn apply(
        &mut self,
        path: String,
        text: String,
        today: Date,
    ) -> Result<Published, PublishError> {
        let (applied, mut notices) = self.applied.with_config(path, text);
        let mut published = self.publish(applied, today)?;
        notices.append(&mut published.notices);
        Ok(Published { notices, ..published })
    }

    /// Adds a workload, the text of one `[[workload]]` table.
    ///
    /// # Errors
    /// If it cannot be put in force. Nothing changed.
    pub fn add_port(&mut self, workload: &str, today: Date) -> Result<Published, PublishError> {
        self.publish(self.applied.with_workload(workload)?, today)
    }

    /// Takes a workload out.
    ///
    /// # Errors
    /// If it cannot be put in force. Nothing changed.
    pub fn remove_port(&mut self, name: &str, today: Date) -> Result<Published, PublishError> {
        self.publish(self.applied.without_workload(name)?, today)
    }

    fn publish(&mut self, applied: Applied, today: Date) -> Result<Published, PublishError> {
        let connected = self.connect();
        // What is wrong with the config is told even while the data plane is away.
        let compiled = applied.compile(self.known.as_deref(), today)?;
        let (mut dataplane, is_in_force) = connected?;
        let mut snapshot = compiled.snapshot;
        let epoch = match &self.known {
            Some(known) if known.switch != snapshot.switch => {
                let (theirs, ours) = (snapshot.switch, known.switch.clone());
                return Err(PublishError::OtherSwitch { theirs, ours });
            }
            Some(known) => known.epoch,
            None => 0,
        };

        snapshot.epoch = epoch;
        let installed = !is_in_force || self.known.as_deref() != Some(&snapshot);
        if installed {
            snapshot.epoch = epoch + 1;
        }
        let snapshot = Arc::new(snapshot);
        let ports = self.replacing(&applied, || {
            if installed { install(&mut dataplane, &snapshot) } else { ports(&mut dataplane) }
        })?;
        self.applied = applied;
        self.known = Some(Arc::clone(&snapshot));
        self.next_expiry = compiled.next_expiry;
        let notices = compiled.notices.iter().map(ToString::to_string).collect();
        Ok(Published { snapshot, installed, notices, ports })
    }

    /// Connects, and learns what is in force: returns whether anything is.
    fn connect(&mut self) -> Result<(DataplaneClient, bool), ClientError> {
        let mut dataplane = DataplaneClient::to_dataplane(&self.run_dir)?;
        match dataplane.ask(&Request::Snapshot)? {
            Reply::Snapshot(None) => Ok((dataplane, false)),
            Reply::Snapshot(Some(snapshot)) => {
                self.known = Some(Arc::new(*snapshot));
                Ok((dataplane, true))
            }
            _ => Err(ClientError::Unexpected { role: Role::Dataplane }),
        }
    }

    /// Runs `change` with `applied` saved, as it may be already; if that fails, what was saved before is again.
    fn replacing<T>(
        &mut self,
        applied: &Applied,
        change: impl FnOnce() -> Result<T, ClientError>,
    ) -> Result<T, PublishError> {
        if self.is_saved && *applied == self.applied {
            return Ok(change()?);
        }
        let path = self.run_dir.applied();
        let failed = |source| PublishError::Save { path: path.clone(), source };
        applied.save(&path).map_err(failed)?;
        match change() {
            Ok(changed) => {
                Applied::settle(&path);
                self.is_saved = true;
                Ok(changed)
            }
            Err(error) => {
                if let Err(source) = Applied::take_back(&path) {
                    tracing::error!(%source, "what was refused stays saved in {}", path.display());
                    self.is_saved = false;
                }
                Err(error.into())
            }
        }
    }
}

fn read(config: &Path) -> Result<String, PublishError> {
    File::open(config)
        .and_then(intent::read)
        .map_err(|source| PublishError::Read { path: config.to_owned(), source })
}

fn install(
    dataplane: &mut DataplaneClient,
    snapshot: &Snapshot,
) -> Result<Vec<PortStatus>, ClientError> {
    match dataplane.ask(&Request::Install(Box::new(snapshot.clone())))? {
        Reply::Installed { epoch, ports } if epoch == snapshot.epoch => Ok(ports),
        _ => Err(ClientError::Unexpected { role: Role::Dataplane }),
    }
}

fn ports(dataplane: &mut DataplaneClient) -> Result<Vec<PortStatus>, ClientError> {
    match dataplane.ask(&Request::Ports)? {
        Reply::Ports(ports) => Ok(ports),
        _ => Err(ClientError::Unexpected { role: Role::Dataplane }),
    }
}
