//! Lab networks.
#![forbid(unsafe_code)]

pub mod guest;
pub mod netns;
pub mod probe;
pub mod throughput;
