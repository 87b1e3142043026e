//! The whole switch, in labs of real namespaces, with real programs: what issue after issue has
//! promised, shown. Needs root, and for some tests programs that are named in what they need; a
//! test that cannot run here is reported as ignored, with the reason before its name.
//!
//! Tests run one after the other unless `--test-threads` says otherwise, since they measure. All
//! that they make is named after this process, so several runs do not meet.
#![forbid(unsafe_code)]

mod compare;
mod cost;
mod failure;
mod fixture;
mod fragments;
mod policy;
mod traffic;

use libtest_mimic::{Arguments, Failed, Trial};

/// What a test comes to: shown, or why not.
type Shown = Result<(), Failed>;

/// Programs that a test needs besides the switch, and the test.
type Test = (&'static str, &'static [&'static str], fn() -> Shown);

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let tests = [
        traffic::TESTS,
        fragments::TESTS,
        policy::TESTS,
        failure::TESTS,
        cost::TESTS,
        compare::TESTS,
    ]
    .concat();
    let trials = tests.into_iter().map(|(name, needs, test)| trial(name, needs, test)).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(name: &'static str, needs: &[&str], test: fn() -> Shown) -> Trial {
    let trial = Trial::test(name, test);
    match lacking(needs) {
        Some(lacking) => {
            trial.with_kind(format!("skipped: needs {lacking}")).with_ignored_flag(true)
        }
        None => trial,
    }
}

fn lacking(needs: &[&str]) -> Option<String> {
    if !fixture::is_root() {
        return Some("root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|d| d.join(program).exists());
    needs.iter().find(|program| !there(program)).map(ToString::to_string)
}
