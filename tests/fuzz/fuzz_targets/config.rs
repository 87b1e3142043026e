//! Any text as a config: see `checks/config.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/config.rs"]
mod check;

fuzz_target!(|text: &str| check::check(text));
