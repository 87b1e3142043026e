//! The data plane role: ports, umem, workers, and the path of a frame.
//!
//! Read [`path`] first: it is the line every frame takes. Around it, from the kernel up:
//!
//! - [`sys`]: the kernel boundary, all of the crate's `unsafe`; [`frame`] and [`pool`]: who owns
//!   which chunk of the umem.
//! - [`port`]: where frames come in and go out: AF_XDP, memory, capture files.
//! - [`worker`]: a thread that owns ports and walks the path in turns; [`handoff`]: frames that
//!   change worker; [`outbox`]: frames queued for output; [`mirror`]: copies of denied frames.
//! - [`engine`]: umem, workers and ports as one thing that a snapshot is installed into;
//!   [`daemon`]: the process around it, its socket and its saved snapshot.
#![deny(unsafe_code)]
#![deny(missing_docs)]

pub mod counters;
pub mod daemon;
mod describe;
pub mod engine;
pub mod express;
pub mod fragments;
pub mod frame;
pub mod handoff;
pub mod interface;
pub mod link;
pub mod mirror;
pub mod outbox;
pub mod pacing;
pub mod path;
pub mod policy;
pub mod pool;
pub mod port;
pub mod redirect_targets;
pub mod sys;
pub mod vlan;
pub mod worker;
