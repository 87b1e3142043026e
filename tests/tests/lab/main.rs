//! The whole switch, in labs of real namespaces, with real programs: what issue after issue has
//! promised, shown. Needs root, and for some tests programs that are named in what they need; a
//! test that cannot run here is reported as ignored, with the reason before its name.
//!
//! Tests wait more than they compute, so two run at a time unless `--test-threads` says otherwise; but those that
//! [measure](ALONE), or make what there is one of, run alone. All that they make is named after this process, so
//! several runs do not meet.
#![forbid(unsafe_code)]

mod attack;
mod compare;
mod cost;
mod disk;
mod express;
mod failure;
mod fallback;
mod fixture;
mod flood;
mod fragments;
mod order;
mod parity;
mod policy;
mod restart;
mod stand_in;
mod storm;
mod traffic;
mod verdicts;
mod walls;
mod workers;

use std::sync::{PoisonError, RwLock};

use libtest_mimic::{Arguments, Failed, Trial};

/// What a test comes to: shown, or why not.
type Shown = Result<(), Failed>;

/// Programs that a test needs besides the switch.
type Needs = &'static [&'static str];

/// A test's name, what it needs, and the test.
type Test = (&'static str, Needs, fn() -> Shown);

/// Tests beside which no other runs, by whatever variant's name: they measure, or make what there is one of.
const ALONE: [&[Test]; 5] =
    [order::TESTS, storm::TESTS, cost::TESTS, compare::TESTS, failure::OF_THE_DEMO];

fn main() {
    if let Some(stood_in) = stand_in::run_if_asked() {
        return stood_in.expect("a stand-in fails as it was asked to");
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(2);
    let tests = [
        traffic::TESTS,
        fragments::TESTS,
        policy::TESTS,
        express::TESTS,
        order::TESTS,
        restart::TESTS,
        fallback::TESTS,
        storm::TESTS,
        failure::TESTS,
        failure::OF_NO_LANE,
        failure::OF_THE_DEMO,
        disk::TESTS,
        cost::TESTS,
        compare::TESTS,
        verdicts::TESTS,
    ]
    .concat();
    let plain = tests.into_iter().map(|(name, needs, test)| trial(name.to_owned(), needs, test));
    let switch = tests_on_switch().into_iter().map(|(name, needs, test)| {
        trial(format!("on_switch_lane_{name}"), needs, move || fixture::on_lane("switch", test))
    });
    let by_two = [workers::TESTS, traffic::TESTS, fragments::TESTS, failure::TESTS].concat();
    let by_two = by_two.into_iter().map(|(name, needs, test)| {
        trial(format!("by_two_workers_{name}"), needs, move || fixture::by_workers(2, test))
    });
    let each = tests_on_each_lane().map(|(name, needs, test)| trial(name, needs, test));
    let trials = plain.chain(switch).chain(by_two).chain(each).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(name: String, needs: &[&str], test: impl FnOnce() -> Shown + Send + 'static) -> Trial {
    static OTHERS: RwLock<()> = RwLock::new(());
    let is_alone = ALONE.iter().copied().flatten().any(|(alone, ..)| name.ends_with(alone));
    let trial = Trial::test(name, move || {
        if is_alone {
            let _others_wait = OTHERS.write().unwrap_or_else(PoisonError::into_inner);
            test()
        } else {
            let _none_is_alone = OTHERS.read().unwrap_or_else(PoisonError::into_inner);
            test()
        }
    });
    match lacking(needs) {
        Some(lacking) => {
            trial.with_kind(format!("skipped: needs {lacking}")).with_ignored_flag(true)
        }
        None => trial,
    }
}

/// The tests that show the same on the switch lane, whereas `auto` is the express lane for all of a
/// lab's ports: those that are of a lane at all, and not of the switch lane in any case.
fn tests_on_switch() -> Vec<Test> {
    const NOT_AGAIN: [&str; 2] =
        ["tcp_works_with_offloads_on_and_leaves_them_so", "lab_exec_runs_where_the_workload_is"];
    let mut tests =
        [traffic::TESTS, fragments::TESTS, policy::TESTS, failure::TESTS, cost::TESTS].concat();
    tests.retain(|(name, ..)| !NOT_AGAIN.contains(name));
    tests
}

/// Runs a test with its labs' ports on one lane.
type OnLane = fn(fn() -> Shown) -> Shown;

/// The tests of what is the same on every lane, on each.
fn tests_on_each_lane()
-> impl Iterator<Item = (String, Needs, impl FnOnce() -> Shown + Send + 'static)> {
    const LANES: [(&str, OnLane); 4] = [
        ("on_express_lane", |test| test()),
        ("by_clsact", |test| fixture::by_clsact(test)),
        ("on_switch_lane", |test| fixture::on_lane("switch", test)),
        ("by_sockets", |test| fixture::by_sockets(test)),
    ];
    LANES.into_iter().flat_map(|(lane, on_lane)| {
        let tests =
            [parity::TESTS, attack::TESTS, walls::TESTS, flood::TESTS, restart::ON_EACH_LANE];
        tests.into_iter().flatten().map(move |&(name, needs, test)| {
            (format!("{lane}_{name}"), needs, move || on_lane(test))
        })
    })
}

fn lacking(needs: &[&str]) -> Option<String> {
    if !fixture::is_root() {
        return Some("root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|d| d.join(program).exists());
    needs.iter().find(|program| !there(program)).map(ToString::to_string)
}
