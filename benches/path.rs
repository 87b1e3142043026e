//! The whole path over ports in memory, per frame of 64 bytes, with 1,000 rules.
//!
//! `memory` is over the ports that tests use: they allocate and copy. `switch` is over ports that
//! cost next to nothing, and `ports alone` is what those do cost: the difference is the switch's own
//! part.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use firedoor_benches::scene::{CLIENT, SERVER, requests, snapshot};
use firedoor_benches::switch::Switch;
use firedoor_benches::traffic::{TrafficPort, Way};
use firedoor_classifier::PortId;
use firedoor_dataplane::pool::{FramePool, FrameStore};
use firedoor_dataplane::port::{BURST, Port, memory};
use firedoor_dataplane::sys::umem::Umem;

const RULES: usize = 1_000;

fn path(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for flows in [1, 10_000] {
        group.bench_function(format!("memory, {flows} flows"), |bencher| {
            let mut switch = Switch::new(snapshot(RULES), 1);
            let (client, client_wire) = memory::pair(Arc::clone(&switch.umem));
            let (server, server_wire) = memory::pair(Arc::clone(&switch.umem));
            switch.plug(CLIENT, 0, client);
            switch.plug(SERVER, 0, server);
            let load = requests(flows);
            let mut frames = load.iter().cycle();
            bencher.iter_custom(|count| {
                per_frame(count, || {
                    for frame in frames.by_ref().take(BURST) {
                        client_wire.send(frame.clone());
                    }
                    switch.turn();
                    server_wire.receive_all().len()
                })
            });
        });
        for ports in [2, 200] {
            group.bench_function(format!("switch, {flows} flows, {ports} ports"), |bencher| {
                let mut switch = loaded(flows, ports);
                bencher.iter_custom(|count| per_frame(count, || switch.turn()));
            });
        }
    }
    group.bench_function("ports alone", |bencher| {
        let (umem, frames) = Umem::new(16_384).expect("memory for a umem");
        let mut pool = FramePool::new(Arc::new(umem), FrameStore::new(frames));
        let arrived = Way::default();
        let mut port = TrafficPort::new(requests(10_000), &arrived, &arrived);
        let mut batch = Vec::new();
        bencher.iter_custom(|count| {
            per_frame(count, || {
                port.reclaim(&mut pool);
                port.receive(&mut pool, &mut batch);
                port.transmit(&mut batch)
            })
        });
    });
    group.finish();
}

/// A switch with frames on their way from one of its ports to another; the rest are idle.
fn loaded(flows: u16, ports: u16) -> Switch {
    let mut switch = Switch::new(snapshot(RULES), 1);
    let (to_client, to_server) = (Way::default(), Way::default());
    let requests = requests(flows);
    switch.plug(CLIENT, 0, TrafficPort::new(requests, &to_server, &to_client));
    switch.plug(SERVER, 0, TrafficPort::new(Vec::new(), &to_client, &to_server));
    for idle in 2..ports {
        let none = Way::default();
        switch.plug(PortId(idle), 0, TrafficPort::new(Vec::new(), &none, &none));
    }
    let rounds = 2 * usize::from(flows).div_ceil(BURST);
    (0..rounds).for_each(|_| assert_eq!(switch.turn(), BURST, "every frame arrives"));
    switch
}

/// The time that `count` frames take, in turns of [`BURST`].
fn per_frame(count: u64, mut turn: impl FnMut() -> usize) -> Duration {
    let turns = count.div_ceil(BURST as u64);
    let start = Instant::now();
    for _ in 0..turns {
        assert_eq!(turn(), BURST, "every frame arrives");
    }
    start.elapsed().mul_f64(count as f64 / (turns * BURST as u64) as f64)
}

criterion_group! {
    name = benches;
    config = firedoor_benches::settings!();
    targets = path
}
criterion_main!(benches);
