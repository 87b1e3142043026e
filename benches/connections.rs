//! Step 3: the exact entry, per frame. Frames come in random order, so large tables miss the
//! processor's caches as they would under real traffic.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use firedoor_benches::scene::{CLIENT, SERVER, requests};
use firedoor_benches::switch::NOW;
use firedoor_classifier::connections::{Commit, Connections, Limits, Lookup};
use firedoor_classifier::extract::{Headers, extract};
use firedoor_classifier::snapshot::Timeouts;
use firedoor_classifier::verdict::Cause;
use firedoor_classifier::{MacAddr, Nanos};

const MAX: u32 = 1 << 20;
const SEED: u64 = 1;
/// Connections per client address.
const PER_ADDRESS: u16 = 1_000;

/// `count` different frames, in random order.
fn headers(count: usize) -> Vec<Headers> {
    let frames = requests(PER_ADDRESS);
    let of_client = |client: u128| {
        frames.iter().map(move |frame| {
            let mut headers = extract(frame, CLIENT).expect("a well-formed frame");
            headers.key.src += client << 16;
            headers
        })
    };
    let mut all: Vec<Headers> = (0..).flat_map(of_client).take(count).collect();
    fastrand::Rng::with_seed(SEED).shuffle(&mut all);
    all
}

fn commit(reply_mac: MacAddr) -> Commit {
    Commit { output: SERVER, reply_mac, cause: Cause::Default, would_drop: None, epoch: 1 }
}

fn empty() -> Connections {
    let limits = Limits {
        connections: MAX,
        per_port: MAX,
        timeouts: Timeouts::default(),
        tcp_window_check: true,
    };
    Connections::with_seed(limits, SEED)
}

fn table(entries: &[Headers]) -> Connections {
    let mut connections = empty();
    for headers in entries {
        let made = connections.commit(headers, commit(headers.key.eth_dst), 60, NOW);
        made.expect("there is room");
    }
    connections
}

fn hit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("connections");
    for count in [1_000, 100_000] {
        let entries = headers(count);
        let mut connections = table(&entries);
        let mut frames = entries.iter().cycle();
        group.bench_function(format!("hit and observe, {count}"), |bencher| {
            bencher.iter(|| {
                let Some(headers) = frames.next() else { return };
                let Lookup::Current(hit) = connections.lookup(black_box(headers), 1, NOW) else {
                    panic!("every frame has its connection");
                };
                connections.observe(&hit, headers, 60, NOW);
            });
        });
        let strangers: Vec<Headers> = entries
            .iter()
            .map(|headers| {
                let mut stranger = *headers;
                stranger.key.dst += 1 << 16;
                stranger
            })
            .collect();
        let mut frames = strangers.iter().cycle();
        group.bench_function(format!("miss, {count}"), |bencher| {
            bencher.iter(|| frames.next().map(|headers| connections.lookup(headers, 1, NOW)));
        });
    }
    group.finish();
}

/// A connection begins in each millisecond, and one that began half a minute before times out.
fn turnover(criterion: &mut Criterion) {
    let entries = headers(100_000);
    let mut connections = empty();
    let mut frames = entries.iter().cycle();
    let mut now = 1_000_000;
    criterion.bench_function("connections/insert and expire", |bencher| {
        bencher.iter(|| {
            now += 1;
            let Some(headers) = frames.next() else { return };
            let commit = commit(headers.key.eth_dst);
            let made = connections.commit(headers, commit, 60, Nanos::from_millis(now));
            made.expect("there is room");
            connections.expire(Nanos::from_millis(now), 4);
        });
    });
}

criterion_group! {
    name = benches;
    config = firedoor_benches::settings!();
    targets = hit, turnover
}
criterion_main!(benches);
