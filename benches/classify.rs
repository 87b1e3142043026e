//! Step 5's heart: one header's addresses and the ACL, by ClassBench rules, one at a time and in
//! batches. `firedoor bench classify` measures the same on files of your own.

use std::hint::black_box;
use std::path::Path;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use firedoor_bench::classify::{Batch, files, look_up, scene};
use firedoor_classifier::acl::Memo;
use firedoor_classifier::{Policy, RuleId};

/// Headers per pass.
const HEADERS: usize = 10_000;

fn classify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("classify");
    group.throughput(Throughput::Elements(HEADERS as u64));
    for set in ["acl1_1k", "fw1_1k", "ipc1_1k"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/classbench").join(set);
        let rules = files::read_rules(&path).expect("the tests' rules");
        let headers = scene::headers(&rules, HEADERS);
        let policy = Policy::build(scene::snapshot(&rules)).expect("a valid snapshot");
        let (acl, addresses) = (policy.acl(), policy.addresses());
        let (mut memo, mut batch) = (Memo::default(), Batch::new(32));
        group.bench_function(format!("one by one, {set}"), |bencher| {
            bencher.iter(|| {
                for header in &headers {
                    black_box(look_up(addresses, acl, &mut memo, header));
                }
            });
        });
        group.bench_function(format!("32 at a time, {set}"), |bencher| {
            bencher.iter(|| {
                for some in headers.chunks(32) {
                    black_box(batch.look_up(addresses, acl, &mut memo, some));
                }
            });
        });
        group.bench_function(format!("half of all rules removed and put back, {set}"), |bencher| {
            let rules = &policy.snapshot().rules;
            bencher.iter_batched_ref(
                || acl.clone(),
                |acl| {
                    for (number, rule) in (0..).zip(rules).step_by(2) {
                        acl.remove(RuleId(number));
                        acl.insert(rule, Some(RuleId(number + 1)));
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = firedoor_benches::settings!();
    targets = classify
}
criterion_main!(benches);
