//! Any bytes as a policy, its changes, and frames: see `checks/policy.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/policy.rs"]
mod check;
#[path = "../checks/history.rs"]
mod history;

fuzz_target!(|bytes: &[u8]| check::check(bytes));
