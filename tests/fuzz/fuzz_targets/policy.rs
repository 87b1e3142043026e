//! Any bytes as a policy, its changes, and frames: see `checks/policy.rs`.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

#[path = "../checks/policy.rs"]
mod check;
#[path = "../checks/history.rs"]
mod history;

use history::Seen;

/// How often to say how much was compared, in histories.
const TALLY: u64 = 50_000;

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::default();
}

fuzz_target!(|bytes: &[u8]| {
    SEEN.with_borrow_mut(|seen| {
        check::check(bytes, seen);
        if seen.policies % TALLY == 0 {
            eprintln!("{seen}");
        }
    });
});
