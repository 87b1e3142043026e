//! What can go wrong with a comparison.

use std::fmt;
use std::io;

use firedoor_dataplane::link::LinkError;
use firedoor_lab::netns::NetnsError;

use super::tool::ToolError;
use crate::traffic::TrafficError;

/// Why the wires or a system could not be built, or a measurement not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// An interface.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A generator or a sink.
    #[error(transparent)]
    Traffic(#[from] TrafficError),
    /// Another program.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A step.
    #[error("cannot {what}: {source}")]
    Step {
        /// The step.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// It did not become ready.
    #[error("{what} was not ready after {seconds} s{}", last_words(.log))]
    NotReady {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
    /// It ended too early.
    #[error("{what} ended ({status}){}", last_words(.log))]
    Ended {
        /// What ended.
        what: String,
        /// How.
        status: std::process::ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// Nothing gets through.
    #[error("nothing got from {from} to {to} and back within {seconds} s")]
    Silence {
        /// Who asked.
        from: String,
        /// Who did not answer.
        to: String,
        /// How long.
        seconds: u64,
    },
    /// Someone asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Names the step that a result is of.
pub(super) fn building<T>(what: impl fmt::Display, result: io::Result<T>) -> Result<T, BuildError> {
    result.map_err(|source| BuildError::Step { what: what.to_string(), source })
}

fn last_words(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; its last words:\n{log}") }
}
