//! What a second worker is worth: frames a second of one and of two, each on a thread of its own, over
//! ports that cost next to nothing. Requests and answers of 10,000 flows, 1,000 rules (docs/adr/0009).
//!
//! - `separate`: two switches of one worker each, which have nothing in common. No two workers of one
//!   switch can be faster: this is what the machine gives.
//! - `aligned`: each port has a queue at each worker, and both directions of a flow arrive at one
//!   worker's. No frame changes worker.
//! - `scattered`: likewise, but each direction arrives at a queue of its own choice. Half of the flows
//!   have one direction that changes worker.
//! - `apart`: each port has one queue, the client's at the first worker and the server's at the second.
//!   Every frame changes worker.
//!
//! Bouts of all of them take turns, so that what else the machine does meets all alike. `--quick` takes
//! fewer, and the name of a pattern that one alone. Needs as many idle cores as workers.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::{Duration, Instant};

use firedoor_benches::scene::{CLIENT, SERVER, answers, client_port, requests, snapshot};
use firedoor_benches::switch::{NOW, Switch};
use firedoor_benches::traffic::{TrafficPort, Way};

const FLOWS: u16 = 10_000;
const RULES: usize = 1_000;
/// Frames of one bout, enough that starting threads does not count.
const FRAMES: u64 = 2_000_000;

/// Turns between two looks at what has arrived.
const TURNS: usize = 8;

/// Where frames arrive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pattern {
    Separate,
    Aligned,
    Scattered,
    Apart,
}

const PATTERNS: [(&str, Pattern); 4] = [
    ("separate", Pattern::Separate),
    ("aligned", Pattern::Aligned),
    ("scattered", Pattern::Scattered),
    ("apart", Pattern::Apart),
];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let is_asked = |name: &str| args.iter().any(|arg| arg == name);
    let rounds = if is_asked("--quick") { 5 } else { 15 };
    let all = !PATTERNS.iter().any(|(name, _)| is_asked(name));
    let patterns = PATTERNS.iter().filter(|(name, _)| all || is_asked(name));
    let mut bouts: Vec<(&str, [Bout; 2])> = patterns
        .map(|&(name, pattern)| (name, [1, 2].map(|count| Bout::new(count, pattern))))
        .collect();
    let mut rates: Vec<[Vec<f64>; 2]> = bouts.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for ((_, pair), rates) in bouts.iter_mut().zip(&mut rates) {
            for (bout, rates) in pair.iter_mut().zip(rates) {
                rates.push(FRAMES as f64 / bout.run(FRAMES).as_secs_f64());
            }
        }
    }
    println!("{:<10} {:>12} {:>12} {:>7}", "pattern", "one worker", "two workers", "ratio");
    for ((name, _), [one, two]) in bouts.iter().zip(rates) {
        let (one, two) = (median(one) / 1e6, median(two) / 1e6);
        println!("{name:<10} {one:>7.2} Mpps {two:>7.2} Mpps {:>6.2}x", two / one);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Workers between two ports that send to each other.
struct Bout {
    switches: Vec<Switch>,
    /// What has arrived at either port of each switch.
    ways: Vec<Way>,
}

impl Bout {
    fn new(workers: u16, pattern: Pattern) -> Self {
        let mut bout = Self { switches: Vec::new(), ways: Vec::new() };
        match pattern {
            Pattern::Separate => (0..workers).for_each(|_| bout.add(1, pattern)),
            _ => bout.add(workers, pattern),
        }
        bout.run(8 * u64::from(FLOWS));
        bout
    }

    /// One more switch.
    fn add(&mut self, workers: u16, pattern: Pattern) {
        let mut switch = Switch::new(snapshot(RULES), workers);
        let (requests, answers) = (requests(FLOWS), answers(FLOWS));
        let queues = if pattern == Pattern::Apart { 1 } else { workers };
        let (there, back) = (Way::of(queues), Way::of(queues));
        if pattern == Pattern::Apart {
            switch.plug(CLIENT, 0, TrafficPort::new(requests, &there, &back));
            switch.plug(SERVER, workers - 1, TrafficPort::new(answers, &back, &there));
        } else {
            let salt = |of: u16| if pattern == Pattern::Scattered { of } else { 0 };
            let requests = spread(requests, queues, salt(1));
            let answers = spread(answers, queues, salt(2));
            switch.plug_spread(
                CLIENT,
                requests.map(|(queue, load)| TrafficPort::queue(queue, load, &there, &back)),
            );
            switch.plug_spread(
                SERVER,
                answers.map(|(queue, load)| TrafficPort::queue(queue, load, &back, &there)),
            );
        }
        self.switches.push(switch);
        self.ways.extend([there, back]);
    }

    /// The time until `frames` more frames have arrived, everywhere together.
    fn run(&mut self, frames: u64) -> Duration {
        let Self { switches, ways } = self;
        let arrived = || ways.iter().map(Way::arrived).sum::<u64>();
        let goal = arrived() + frames;
        let start = Instant::now();
        std::thread::scope(|scope| {
            for worker in switches.iter_mut().flat_map(Switch::workers) {
                scope.spawn(move || {
                    while arrived() < goal {
                        for _ in 0..TURNS {
                            worker.turn(NOW);
                        }
                    }
                });
            }
        });
        start.elapsed()
    }
}

/// The frames that arrive at each queue, by a hash of the flow and `salt`.
fn spread(load: Vec<Vec<u8>>, queues: u16, salt: u16) -> impl Iterator<Item = (u16, Vec<Vec<u8>>)> {
    let hasher = BuildHasherDefault::<DefaultHasher>::new();
    let mut parts = vec![Vec::new(); queues.into()];
    for frame in load {
        let hash = hasher.hash_one((client_port(&frame), salt));
        parts[(hash % u64::from(queues)) as usize].push(frame);
    }
    (0..queues).zip(parts)
}
