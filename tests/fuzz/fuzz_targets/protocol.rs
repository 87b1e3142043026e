//! Any bytes as messages between roles: see `checks/protocol.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/protocol.rs"]
mod check;

fuzz_target!(|bytes: &[u8]| check::check(bytes));
