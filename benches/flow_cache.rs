//! Step 4: the tuple space, with 10,000 flows of one port under one mask, four, and all there are.
//!
//! Bursts are timed whole: a frame's part is a 64th. A miss probes every subtable.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use firedoor_benches::scene::SERVER;
use firedoor_benches::switch::NOW;
use firedoor_classifier::cache::{BATCH, Cacheable, FlowCache, FlowHints};
use firedoor_classifier::fdb::Fdb;
use firedoor_classifier::verdict::{Action, Cause, Verdict};
use firedoor_classifier::{FlowKey, MacAddr, Mask};

const FLOWS: u32 = 10_000;
/// So many that no flow evicts another.
const ROOM: u32 = 262_144;

/// How many of the family's masks the flows are spread over.
const MASKS: [usize; 3] = [1, 4, 50];

fn hit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow cache");
    for masks in MASKS {
        let (keys, fdb) = (keys(), Fdb::new(300));
        let mut cache = cache(&keys, masks);
        let mut order = keys.iter().cycle();
        group.bench_function(format!("hit, {masks} masks"), |bencher| {
            bencher.iter(|| order.next().map(|key| cache.lookup(black_box(key), 1, &fdb, NOW)));
        });
        let mut hints = FlowHints::new();
        let mut bursts = keys.chunks_exact(BATCH).cycle();
        group.throughput(Throughput::Elements(BATCH as u64));
        group.bench_function(format!("hit, {masks} masks, burst of {BATCH}"), |bencher| {
            bencher.iter(|| {
                let burst = bursts.next().unwrap_or_default();
                cache.prepare(burst.iter().map(Some), &mut hints);
                for (at, key) in burst.iter().enumerate() {
                    black_box(cache.lookup_hinted(key, hints.get(at), 1, &fdb, NOW));
                }
            });
        });
        let strangers: Vec<FlowKey> =
            keys.iter().map(|key| FlowKey { ether_type: 1, ..*key }).collect();
        let mut order = strangers.iter().cycle();
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("miss, {masks} masks"), |bencher| {
            bencher.iter(|| order.next().map(|key| cache.lookup(black_box(key), 1, &fdb, NOW)));
        });
    }
    group.finish();
}

/// A cache in which the keys have one verdict each, under so many masks in turn.
fn cache(keys: &[FlowKey], masks: usize) -> FlowCache {
    let mut cache = FlowCache::new(ROOM);
    let family: Vec<Mask> = Mask::family().collect();
    for (key, mask) in keys.iter().zip(family.iter().rev().take(masks).cycle()) {
        let action = Action::Forward(SERVER);
        let verdict = Verdict { action, cause: Cause::Default, would_drop: None };
        cache.install(key, Cacheable { mask: *mask, verdict, learned: None, epoch: 1 }, NOW);
    }
    cache
}

/// Keys that differ in every field that a mask may leave out, and in one that none does, in random
/// order.
fn keys() -> Vec<FlowKey> {
    let key = |n: u32| FlowKey {
        eth_src: MacAddr([2, 0, 0, 0, (n >> 8) as u8, n as u8]),
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
