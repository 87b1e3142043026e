//! The control role: compiles intent to a snapshot, installs it, receives denied frames, answers
//! the command line.
//!
//! A config takes this line through the modules:
//!
//! 1. [`intent`]: text to what the operator wrote, each value with its place; [`service`] and [`condition`]
//!    read the small languages in it. What is wrong becomes a [`diagnostic`].
//! 2. [`compile`]: intent to a snapshot, in which labels are tags and rules are numbers. [`lint`] says what is
//!    in vain, [`connectivity`] and [`trace`] what it comes to.
//! 3. [`publish`]: the snapshot is installed in the data plane; [`applied`] and [`edit`] keep what was
//!    applied, with the ports that were added by hand.
//!
//! Denied frames come back the other way: into [`capture`] and [`denies`]. [`daemon`] is the process,
//! [`server`] its socket and [`client`] the other end, [`rundir`] where all of it lies, [`pins`] where the
//! kernel keeps the express lane meanwhile, and [`lifeline`] how a supervisor sees a role die.
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
pub mod lifeline;
pub mod lint;
mod mirror;
pub mod pins;
pub mod publish;
pub mod rundir;
pub mod server;
pub mod service;
pub mod trace;
