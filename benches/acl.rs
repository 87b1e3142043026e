//! Step 5: the upcall of a frame that neither connections nor flow cache know, by number of rules.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use firedoor_benches::scene::{WORKLOADS, ends, snapshot};
use firedoor_benches::switch::NOW;
use firedoor_classifier::acl::Memo;
use firedoor_classifier::build::{self, TcpFlags};
use firedoor_classifier::classify::{Classified, Context, classify};
use firedoor_classifier::extract::{Headers, extract};
use firedoor_classifier::fdb::Fdb;
use firedoor_classifier::{Policy, PortId};

fn upcall(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("upcall");
    let frames = conversations();
    for rules in [10, 1_000, 10_000] {
        let policy = Policy::build(snapshot(rules)).expect("a valid snapshot");
        let mut memo = Memo::default();
        let mut order = frames.iter().cycle();
        group.bench_function(format!("pair of segments known, {rules} rules"), |bencher| {
            bencher.iter(|| order.next().map(|frame| judge(&policy, &mut memo, black_box(frame))));
        });
        group.bench_function(format!("pair of segments new, {rules} rules"), |bencher| {
            bencher.iter(|| {
                memo.clear();
                order.next().map(|frame| judge(&policy, &mut memo, black_box(frame)))
            });
        });
    }
    group.finish();
}

fn judge(policy: &Policy, memo: &mut Memo, headers: &Headers) -> Classified {
    let fdb = Fdb::new(300);
    let receivers = &mut Vec::new();
    classify(Context { policy, fdb: &fdb, memo, receivers, related: None, now: NOW }, headers)
}

/// Frames that begin conversations between random workloads.
fn conversations() -> Vec<Headers> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut conversation = || {
        let (from, to) = (PortId(rng.u16(..WORKLOADS)), PortId(rng.u16(..WORKLOADS)));
        let syn = build::tcp(ends(from, to), rng.u16(1_024..), rng.u16(1..), TcpFlags::SYN);
        extract(&syn, from).expect("a well-formed frame")
    };
    (0..10_000).map(|_| conversation()).collect()
}

criterion_group! {
    name = benches;
    config = firedoor_benches::settings!();
    targets = upcall
}
criterion_main!(benches);
