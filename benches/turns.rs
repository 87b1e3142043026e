//! Turns of the `path` benchmark, a fixed number, for tools that count instructions.
//!
//! ```sh
//! cargo build --release -p firedoor-benches --bin turns
//! valgrind --tool=callgrind target/release/turns 2000 10000 1000
//! ```
//!
//! Arguments: turns of 64 frames, flows, rules, ports (2). The difference of two runs, divided by
//! the difference of their frames, is the cost of a frame without that of the set-up.

use firedoor_benches::traffic::{TrafficPort, Way};
use firedoor_benches::{scene, switch::Switch};
use firedoor_classifier::PortId;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let mut next = |default: u16| numbers.next().unwrap_or(default);
    let (turns, flows, rules, ports) = (next(1_000), next(10_000), next(1_000), next(2));
    let mut switch = Switch::new(scene::snapshot(rules.into()), 1);
    let (client, server) = (Way::default(), Way::default());
    let requests = scene::requests(flows);
    switch.plug(scene::CLIENT, 0, TrafficPort::new(requests, &server, &client));
    switch.plug(scene::SERVER, 0, TrafficPort::new(Vec::new(), &client, &server));
    for idle in 2..ports {
        let none = Way::default();
        switch.plug(PortId(idle), 0, TrafficPort::new(Vec::new(), &none, &none));
    }
    let moved: usize = (0..turns).map(|_| switch.turn()).sum();
    println!("{moved} frames received, {} sent", switch.sent());
}
