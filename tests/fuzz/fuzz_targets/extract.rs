//! Any bytes as a frame: see `checks/extract.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/extract.rs"]
mod check;

fuzz_target!(|frame: &[u8]| check::check(frame));
