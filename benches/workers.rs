//! One worker against two on two threads, per frame: requests and answers of 10,000 flows, whose
//! directions arrive at different workers (docs/adr/0003).
//!
//! With one worker, both ports are its own. With two, the client's port is the first one's and the
//! server's the second one's: every frame changes worker, at once or after it was judged.
//!
//! Needs two idle cores; on a busy machine compare the best of several runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use firedoor_benches::scene::{CLIENT, SERVER, answers, requests, snapshot};
use firedoor_benches::switch::{NOW, Switch};
use firedoor_benches::traffic::{Delivered, TrafficPort};

const FLOWS: u16 = 10_000;
const RULES: usize = 1_000;
/// Frames per frame that is asked for, so that starting threads does not count.
const ROUND: u64 = 50_000;

fn workers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("workers");
    for count in [1, 2] {
        group.bench_function(count.to_string(), |bencher| {
            let mut bout = Bout::new(count);
            bout.run(8 * u64::from(FLOWS));
            bencher.iter_custom(|frames| bout.run(frames * ROUND) / ROUND as u32);
        });
    }
    group.finish();
}

/// A switch with two ports that send to each other, and what has arrived.
struct Bout {
    switch: Switch,
    to_client: Delivered,
    to_server: Delivered,
}

impl Bout {
    fn new(workers: u16) -> Self {
        let mut switch = Switch::new(snapshot(RULES), workers);
        let (to_client, to_server) = (Delivered::default(), Delivered::default());
        let requests = TrafficPort::new(requests(FLOWS), &to_server, &to_client);
        let answers = TrafficPort::new(answers(FLOWS), &to_client, &to_server);
        switch.plug(CLIENT, 0, requests);
        switch.plug(SERVER, workers - 1, answers);
        Self { switch, to_client, to_server }
    }

    /// The time until `frames` more frames have arrived, both directions together.
    fn run(&mut self, frames: u64) -> Duration {
        let arrived = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (to_client, to_server) = (&self.to_client, &self.to_server);
        let goal = arrived(to_client) + arrived(to_server) + frames;
        let start = Instant::now();
        std::thread::scope(|scope| {
            for worker in self.switch.workers() {
                scope.spawn(move || {
                    while arrived(to_client) + arrived(to_server) < goal {
                        if worker.turn(NOW) == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        start.elapsed()
    }
}

criterion_group! {
    name = benches;
    config = firedoor_benches::settings!();
    targets = workers
}
criterion_main!(benches);
