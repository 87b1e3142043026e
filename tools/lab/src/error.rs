//! What can go wrong with a lab.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use firedoor_control::client::ClientError;
use firedoor_control::diagnostic::Diagnostics;
use firedoor_control::rundir::RunDirError;
use firedoor_dataplane::link::LinkError;

use crate::netns::NetnsError;

/// Why a lab could not be built, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The config cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The config.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The config does not compile.
    #[error(transparent)]
    Config(#[from] Box<Diagnostics>),
    /// A lab of this name is up.
    #[error("lab {name} is up already: `firedoor lab down --switch {name}` removes it")]
    Up {
        /// Its name.
        name: String,
    },
    /// A namespace that the lab would make is there, and not the lab's.
    #[error(
        "there is a network namespace {netns} already, which is not this lab's: give the lab or its \
         workload another name, or remove the namespace with `ip netns del {netns}`"
    )]
    Taken {
        /// The namespace.
        netns: String,
    },
    /// There is no lab of this name.
    #[error("there is no lab {name}: `firedoor lab list` shows those there are")]
    NotUp {
        /// The name.
        name: String,
    },
    /// The run directory's permissions forbid it.
    #[error("not permitted to read {}: run this as root, or as a member of its group", path.display())]
    NotPermitted {
        /// The run directory.
        path: PathBuf,
    },
    /// A workload that has no namespace to run something in.
    #[error("{workload} is not a workload of lab {lab}; it has {}", there_are.join(", "))]
    NoWorkload {
        /// The lab.
        lab: String,
        /// The name.
        workload: String,
        /// Those there are.
        there_are: Vec<String>,
    },
    /// A step of building failed.
    #[error("cannot {what}: {source}")]
    Build {
        /// The step.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The switch ended while the lab waited for it.
    #[error("the switch ended ({status}) before it was ready; its last words:\n{log}")]
    Ended {
        /// How.
        status: std::process::ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// The switch took too long.
    #[error("the switch was not ready after {} s: {waiting_for}", patience.as_secs())]
    NotReady {
        /// How long it had.
        patience: Duration,
        /// What was missing.
        waiting_for: String,
    },
    /// Someone asked to stop.
    #[error("interrupted; what was built is removed")]
    Interrupted,
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// An interface.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// A question to the switch.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Names the step that a result is of.
pub(crate) fn building<T>(what: impl fmt::Display, result: io::Result<T>) -> Result<T, LabError> {
    result.map_err(|source| LabError::Build { what: what.to_string(), source })
}
