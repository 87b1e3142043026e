//! The kernel boundary, and the only place with `unsafe`: one file per kernel noun.
//!
//! Every block is one operation with a SAFETY comment that names the invariant and who upholds it.
#![allow(unsafe_code)]

pub mod affinity;
pub(crate) mod bpf;
pub mod ethtool;
pub mod express;
mod ifreq;
pub mod live_frames;
pub(crate) mod mmap;
pub mod packet;
pub(crate) mod pins;
pub mod prefetch;
pub(crate) mod promiscuous;
pub(crate) mod ring;
pub mod tally;
pub mod tap;
pub mod umem;
pub mod wall;
pub(crate) mod xsk;
