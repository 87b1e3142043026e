//! The table alone.

use std::hint::black_box;
use std::time::Instant;

use fastrand::Rng;
use firedoor_classifier::build;
use firedoor_classifier::connections::{BATCH, Commit, Connections, Hints, Limits, Lookup};
use firedoor_classifier::extract::{Headers, extract};
use firedoor_classifier::snapshot::Timeouts;
use firedoor_classifier::verdict::Cause;
use firedoor_classifier::{Nanos, PortId};
use firedoor_dataplane::path::ENTRIES_AHEAD;
use firedoor_dataplane::sys::prefetch::prefetch;

use super::scene::server;
use super::{ROUNDS, median};
use crate::scene::ends;

/// The seed of the table's hash and of the order of frames, so that runs repeat.
const SEED: u64 = 1;

/// When everything happens, unless time is what it is about.
const NOW: Nanos = Nanos::from_secs(1_000);

/// Connections per client address.
const PER_ADDRESS: u32 = 32_768;

/// Least lookups of a round.
const LOOKUPS: usize = 1 << 20;

/// A full table and how it came about.
pub(super) struct Growth {
    pub(super) table: Connections,
    pub(super) insert_ns: f64,
    pub(super) longest_us: f64,
}

/// Records `count` connections, several times over.
pub(super) fn grow(count: u32) -> Growth {
    let mut least = vec![u32::MAX; count as usize];
    let mut frames = Frames::new(0);
    let mut insert_ns = Vec::new();
    let mut grown = None;
    for _ in 0..ROUNDS {
        drop(grown.take());
        let mut table = empty(count);
        insert_ns.push(fill(&mut table, &mut frames, count));
        grown = Some(table);
    }
    for _ in 0..ROUNDS {
        let mut table = empty(count);
        for (n, least) in (0..count).zip(&mut least) {
            let headers = frames.of(n);
            let begun = Instant::now();
            record(&mut table, headers);
            *least = (*least).min(begun.elapsed().as_nanos().try_into().unwrap_or(u32::MAX));
        }
    }
    let longest_us = f64::from(least.iter().copied().max().unwrap_or(0)) / 1e3;
    let table = grown.unwrap_or_else(|| empty(0));
    Growth { table, insert_ns: median(insert_ns) - frames.cost(1), longest_us }
}

/// A table with room for `count` connections, all of them of one port, its memory set aside as the
/// data plane does.
fn empty(count: u32) -> Connections {
    let limits = Limits {
        connections: count,
        per_port: count,
        timeouts: Timeouts::default(),
        tcp_window_check: true,
    };
    let mut table = Connections::with_seed(limits, SEED);
    table.set_aside();
    table
}

/// Fills an empty table, and returns the nanoseconds that each connection took.
fn fill(table: &mut Connections, frames: &mut Frames, count: u32) -> f64 {
    let begun = Instant::now();
    (0..count).for_each(|n| record(table, frames.of(n)));
    begun.elapsed().as_nanos() as f64 / f64::from(count)
}

fn record(table: &mut Connections, headers: &Headers) {
    let commit = Commit {
        output: server(),
        reply_mac: headers.key.eth_dst,
        cause: Cause::Default,
        would_drop: None,
        epoch: 1,
    };
    let made = table.commit(headers, commit, 60, NOW);
    assert!(made.is_ok(), "the table has room for every connection");
}

/// Nanoseconds to find a connection.
pub(super) fn hit(table: &mut Connections, count: u32, batch: usize) -> f64 {
    let is_found = |lookup: Lookup| matches!(lookup, Lookup::Current(_));
    lookups(count, batch, 0, |headers, hints| {
        each(table, headers, hints).for_each(|lookup| assert!(is_found(lookup)));
    })
}

/// Nanoseconds to find a connection, and to let a frame of it pass: to count it, and say who allowed it.
pub(super) fn observe(table: &mut Connections, count: u32, batch: usize) -> f64 {
    lookups(count, batch, 0, |headers, hints| {
        table.prepare(headers, hints, prefetch);
        (0..ENTRIES_AHEAD).for_each(|at| table.prepare_to_observe(hints, at, prefetch));
        for (at, headers) in headers.iter().enumerate() {
            table.prepare_to_observe(hints, at + ENTRIES_AHEAD, prefetch);
            let found = hints.get(at).map(|hint| table.lookup_hinted(headers, hint, 1, NOW));
            let Some(Lookup::Current(hit)) = found else { panic!("every frame has one") };
            table.observe(&hit, headers, 60, NOW);
            black_box(table.verdict(hit.id));
        }
    })
}

/// Nanoseconds to find that a frame has no connection.
pub(super) fn miss(table: &mut Connections, count: u32, batch: usize) -> f64 {
    let is_none = |lookup: Lookup| lookup == Lookup::Miss;
    lookups(count, batch, 1, |headers, hints| {
        each(table, headers, hints).for_each(|lookup| assert!(is_none(lookup)));
    })
}

/// Looks up a batch; one frame alone needs no hint.
fn each<'a>(
    table: &'a Connections,
    headers: &'a [Headers],
    hints: &'a mut Hints,
) -> impl Iterator<Item = Lookup> + 'a {
    let is_batch = headers.len() > 1;
    if is_batch {
        table.prepare(headers, hints, prefetch);
    }
    headers.iter().enumerate().map(move |(at, headers)| match hints.get(at) {
        Some(hint) if is_batch => table.lookup_hinted(headers, hint, 1, NOW),
        _ => table.lookup(headers, 1, NOW),
    })
}

/// Nanoseconds a frame, over batches of frames in random order.
fn lookups(
    count: u32,
    batch: usize,
    server_port: u16,
    mut look_up: impl FnMut(&[Headers], &mut Hints),
) -> f64 {
    let mut order: Vec<u32> = (0..count).collect();
    Rng::with_seed(SEED).shuffle(&mut order);
    let times = LOOKUPS.div_ceil(order.len().max(1));
    let (mut frames, mut hints) = (Frames::new(server_port), Hints::new());
    let round = |_| {
        let begun = Instant::now();
        for _ in 0..times {
            for numbers in order.chunks(batch) {
                look_up(frames.batch(numbers), &mut hints);
            }
        }
        begun.elapsed().as_nanos() as f64 / (times * order.len()) as f64
    };
    let took = median((0..ROUNDS).map(round).collect());
    took - frames.cost(batch)
}

/// Nanoseconds to forget a connection that has timed out.
pub(super) fn expire(count: u32) -> f64 {
    let mut frames = Frames::new(0);
    let round = |_| {
        let mut table = empty(count);
        fill(&mut table, &mut frames, count);
        let later = NOW.plus(Nanos::from_secs(1_000).0);
        let begun = Instant::now();
        while table.expire(later, BATCH) > 0 {}
        assert!(table.is_empty(), "all have timed out");
        begun.elapsed().as_nanos() as f64 / f64::from(count)
    };
    median((0..ROUNDS).map(round).collect())
}

/// Makes headers of numbered connections.
struct Frames([Headers; BATCH]);

impl Frames {
    /// Frames to a server port; only those to port 0 of this numbering have connections.
    fn new(server_port: u16) -> Self {
        let frame = build::udp(ends(PortId(0), server()), 1, 8_080 + server_port, &[0; 18]);
        let headers = extract(&frame, PortId(0)).unwrap_or_else(|_| unreachable!("well-formed"));
        Self([headers; BATCH])
    }

    fn of(&mut self, number: u32) -> &Headers {
        let [headers, ..] = &mut self.0;
        write(headers, number);
        headers
    }

    fn batch(&mut self, numbers: &[u32]) -> &[Headers] {
        for (headers, &number) in self.0.iter_mut().zip(numbers) {
            write(headers, number);
        }
        self.0.get(..numbers.len()).unwrap_or(&[])
    }

    /// Nanoseconds that making one frame takes.
    fn cost(&mut self, batch: usize) -> f64 {
        let numbers: Vec<u32> = (0..1 << 16).collect();
        let mut round = |_| {
            let begun = Instant::now();
            for numbers in numbers.chunks(batch) {
                black_box(self.batch(black_box(numbers)));
            }
            begun.elapsed().as_nanos() as f64 / numbers.len() as f64
        };
        median((0..ROUNDS).map(&mut round).collect())
    }
}

/// Makes headers those of a numbered connection: by client address and port.
fn write(headers: &mut Headers, number: u32) {
    headers.key.src = 0xffff_0a01_0000 + u128::from(number / PER_ADDRESS);
    headers.key.src_port = 1_024 + (number % PER_ADDRESS) as u16;
}
