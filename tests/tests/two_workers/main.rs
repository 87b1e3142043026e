//! The suites over memory ports again, with two workers: each has a queue of every port, frames arrive at
//! either, and nobody should be able to tell.

#![allow(clippy::duplicate_mod, reason = "each suite brings what it shares with the others")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../drop_reasons.rs"]
mod drop_reasons;
#[path = "../fragments.rs"]
mod fragments;
mod interleavings;
#[path = "../path.rs"]
mod path;
