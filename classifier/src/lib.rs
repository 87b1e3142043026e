//! From frame bytes to a verdict.
//!
//! This crate is the part of Firedoor that decides. It is pure: no I/O, no clock, no threads, no
//! `unsafe`. Bytes, the ingress port and the time come in; a [`Verdict`] comes out. What it
//! decides by is a [`Policy`], built from a [`Snapshot`].
//!
//! One frame takes this line through the modules:
//!
//! 1. [`extract`](extract::extract): bytes to [`Headers`](extract::Headers), a fixed-size
//!    [`FlowKey`] and where each layer begins; malformed bytes become a [`DropReason`].
//! 2. [`Connections::lookup`](connections::Connections::lookup): the exact 5-tuple, either
//!    direction.
//! 3. [`FlowCache::lookup`](cache::FlowCache::lookup): the tuple space, a small fixed family of
//!    masks.
//! 4. [`classify`]: on a miss, MAC table, tags and [ACL](acl) give a verdict and the
//!    mask of what was consulted.
//!
//! [`Pipeline::judge`](pipeline::Pipeline::judge) is that line. The [`fragments`] of a packet take it
//! with their first. [`oracle`] holds the slow and
//! obvious reference that every fast path is tested against.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod acl;
pub mod build;
pub mod cache;
pub mod checksum;
pub mod classify;
pub mod connections;
pub mod explain;
pub mod extract;
pub mod fdb;
#[cfg(test)]
mod fixture;
pub mod fragments;
mod hash;
pub mod key;
pub mod mac;
pub mod mask;
pub mod oracle;
pub mod pipeline;
pub mod policy;
pub mod pressure;
pub mod reply;
pub mod snapshot;
pub mod time;
pub mod verdict;
pub mod wire;

pub use key::FlowKey;
pub use mac::MacAddr;
pub use mask::Mask;
pub use pipeline::Pipeline;
pub use policy::Policy;
pub use snapshot::{PortId, RuleId, Snapshot, Tag};
pub use time::Nanos;
pub use verdict::{DropReason, Verdict};
