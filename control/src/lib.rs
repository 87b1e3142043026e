//! The control role: compiles intent to a snapshot, installs it, receives denied frames, answers
//! the command line.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod applied;
pub mod capture;
mod channel;
pub mod client;
pub mod compile;
pub mod condition;
pub mod connectivity;
pub mod daemon;
pub mod denies;
pub mod diagnostic;
pub mod edit;
pub mod intent;
pub mod lint;
mod mirror;
pub mod pins;
pub mod publish;
pub mod rundir;
pub mod server;
pub mod service;
pub mod trace;
