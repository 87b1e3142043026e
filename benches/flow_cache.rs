//! Step 4: the tuple space, per frame that hits, with 10,000 flows under one mask and under four.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use firedoor_benches::scene::SERVER;
use firedoor_benches::switch::NOW;
use firedoor_classifier::cache::{Cacheable, FlowCache};
use firedoor_classifier::fdb::Fdb;
use firedoor_classifier::verdict::{Action, Cause, Verdict};
use firedoor_classifier::{FlowKey, Mask};

const FLOWS: u32 = 10_000;
/// So many that no flow evicts another.
const ROOM: u32 = 262_144;

const MASKS: [Mask; 4] = [
    Mask::covering(128, 128, true),
    Mask::covering(128, 128, false),
    Mask::covering(128, 112, true),
    Mask::covering(120, 128, false),
];

fn hit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow cache");
    for masks in [1, MASKS.len()] {
        let keys = keys();
        let fdb = Fdb::new(300);
        let mut cache = FlowCache::new(ROOM);
        for (key, mask) in keys.iter().zip(MASKS[..masks].iter().cycle()) {
            let action = Action::Forward(SERVER);
            let verdict = Verdict { action, cause: Cause::Default, would_drop: None };
            let flow = Cacheable { mask: *mask, verdict, learned: None, epoch: 1 };
            cache.install(key, flow, NOW);
        }
        let mut order = keys.iter().cycle();
        group.bench_function(format!("hit, {masks} masks"), |bencher| {
            bencher.iter(|| order.next().map(|key| cache.lookup(black_box(key), 1, &fdb, NOW)));
        });
    }
    group.finish();
}

/// Keys that differ in every field that a mask may leave out, in random order.
fn keys() -> Vec<FlowKey> {
    let key = |n: u32| FlowKey {
        src: u128::from(n) << 16,
        dst: u128::from(n) << 20,
        dst_port: n as u16,
        ..FlowKey::default()
    };
    let mut keys: Vec<FlowKey> = (1..=FLOWS).map(key).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut keys);
    keys
}

criterion_group! {
    name = benches;
    config = firedoor_benches::settings!();
    targets = hit
}
criterion_main!(benches);
