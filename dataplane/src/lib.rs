//! The data plane role: ports, umem, workers, and the path of a frame.
//!
//! Read [`path`] first: it is the line every frame takes. Around it, from the kernel up:
//!
//! - [`sys`]: the kernel boundary, all of the crate's `unsafe`; [`frame`] and [`pool`]: who owns
//!   which chunk of the umem.
//! - [`port`]: where frames come in and go out: AF_XDP, memory, capture files.
//! - [`worker`]: a thread that owns ports and walks the path in turns; [`pacing`]: how it spends the
//!   time between two; [`handoff`]: frames that change worker; [`outbox`]: frames queued for output;
//!   [`mirror`]: copies of denied frames; [`fragments`] and [`vlan`]: what is put in order on the way in,
//!   and tagged on the way out.
//! - [`express`]: the other lane, where the kernel forwards by verdicts that were reached on the path;
//!   [`redirect_targets`]: which ports take what it redirects in XDP.
//! - [`interface`] and [`link`]: workloads' interfaces, opened, and watched as they come and go.
//! - [`engine`]: umem, workers and ports as one thing that a snapshot is installed into;
//!   [`wakefulness`]: processors that are kept from sleeping while frames come often;
//!   [`daemon`]: the process around it, its socket and its saved snapshot; [`policy`] and [`counters`]: what
//!   it shares with workers without making them wait.
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
pub mod wakefulness;
pub mod worker;
