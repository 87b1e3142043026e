//! Any bytes as a sequence of frames into a whole switch: see `tests/src/storm.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| firedoor_tests::storm::run(bytes));
