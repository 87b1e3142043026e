//! Lab networks: a whole network of containers and taps from one config, with the switch in its
//! middle, and the traffic to try it with.
//!
//! A [lab](Lab) keeps to itself. Every container workload is a [network namespace](netns) of its
//! own; the other ends of their wires, the taps of vm workloads, and the switch are together in one
//! more. Nothing touches the host's own interfaces, deleting the namespaces deletes everything in
//! them, and [what is written down](state) lets anyone clean up after a builder that was killed.
//!
//! What the switch does is then asked of real traffic: [`probe`] finds out who reaches whom,
//! [`reach`] holds that against what policy promises, [`throughput`] measures, and [`guest`] stands
//! in for a virtual machine behind a tap.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod address;
mod build;
mod error;
pub mod guest;
mod lab;
pub mod netns;
pub mod plan;
pub mod probe;
pub mod reach;
pub mod state;
pub mod throughput;

pub use error::LabError;
pub use lab::{Lab, Options, Temporary};
