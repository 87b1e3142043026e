//! Step 2: bytes to headers, per frame.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use firedoor_benches::scene::{CLIENT, SERVER, ends, ends6, small_udp};
use firedoor_classifier::build::{self, TcpFlags};
use firedoor_classifier::extract::extract;

fn extraction(criterion: &mut Criterion) {
    let (v4, v6) = (ends(CLIENT, SERVER), ends6(CLIENT, SERVER));
    let frames = [
        ("udp, IPv4", small_udp(v4, 40_000, 53)),
        ("udp, IPv6", small_udp(v6, 40_000, 53)),
        ("tcp, IPv4", build::tcp(v4, 40_000, 443, TcpFlags::ACK)),
        ("tcp, IPv6", build::tcp(v6, 40_000, 443, TcpFlags::ACK)),
        ("tcp, IPv4, VLAN", build::tagged(build::tcp(v4, 40_000, 443, TcpFlags::ACK), &[10])),
    ];
    let mut group = criterion.benchmark_group("extract");
    for (name, frame) in frames {
        group.bench_function(name, |bencher| {
            bencher.iter(|| extract(black_box(&frame), CLIENT));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = firedoor_benches::settings!();
    targets = extraction
}
criterion_main!(benches);
