//! `firedoor bench flows`: the connection table by itself, set-up through the whole pipeline, a flood
//! that nobody else may notice, and the kernel's half of the express lane.
//!
//! Headers are made in place, frame by frame, in random order, so the table's memory is all that
//! misses the processor's caches; the time that making them takes is measured and taken off. Every
//! figure is the median of [`ROUNDS`] rounds, and every lookup's answer is checked.

mod flood;
mod kernel;
mod scene;
mod table;

use firedoor_classifier::connections::BATCH;
use serde::Serialize;

pub use self::flood::{Flood, flood};
pub use self::kernel::{Kernel, KernelError, kernel};
use crate::Progress;

/// Rounds that each figure is the median of.
pub const ROUNDS: usize = 5;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Live connections.
    pub connections: u32,
    /// Frames that are looked up together, 1 to [`BATCH`].
    pub batch: usize,
}

/// What was measured. Times are per frame or connection.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Report {
    /// Live connections.
    pub connections: u32,
    /// Frames that were looked up together.
    pub batch: usize,
    /// Finding a connection, one frame at a time.
    pub hit_ns_batch1: f64,
    /// Finding a connection, `batch` frames at a time.
    pub hit_ns_batch: f64,
    /// Likewise, and letting the frame count and move its connection.
    pub observe_ns_batch: f64,
    /// Finding none, one frame at a time.
    pub miss_ns_batch1: f64,
    /// Finding none, `batch` frames at a time.
    pub miss_ns_batch: f64,
    /// Recording a connection.
    pub insert_ns: f64,
    /// The longest that one insertion took while the table grew from nothing. Interruptions by other
    /// programs are left out: what counts is the least that the same insertion took in any round.
    pub insert_longest_us: f64,
    /// Forgetting a connection that has timed out.
    pub expire_ns: f64,
    /// Memory that the full table holds, per connection.
    pub bytes_per_connection: f64,
    /// Connections set up in a second by the whole pipeline under 1,000 rules: lookup, flow cache,
    /// insertion.
    pub setups_per_sec: f64,
    /// Likewise, with the ACL asked for each.
    pub setups_per_sec_uncached: f64,
}

/// Measures. `options.batch` is taken as the nearest possible one.
pub fn measure(options: Options) -> Report {
    let Options { connections, batch } = options;
    let batch = batch.clamp(1, BATCH);
    let progress = Progress::new(7);
    progress.step("recording connections");
    let growth = table::grow(connections);
    let mut table = growth.table;
    progress.step("finding them, one at a time");
    let hit_ns_batch1 = table::hit(&mut table, connections, 1);
    progress.step("finding them in batches");
    let hit_ns_batch = table::hit(&mut table, connections, batch);
    let observe_ns_batch = table::observe(&mut table, connections, batch);
    progress.step("finding none");
    let miss_ns_batch1 = table::miss(&mut table, connections, 1);
    let miss_ns_batch = table::miss(&mut table, connections, batch);
    let bytes_per_connection = table.memory() as f64 / f64::from(connections);
    progress.step("forgetting them");
    drop(table);
    let expire_ns = table::expire(connections);
    progress.step("setting up through the pipeline");
    let setups_per_sec = scene::setups_per_sec(connections, scene::FLOWS);
    progress.step("setting up, the ACL asked for each");
    let setups_per_sec_uncached = scene::setups_per_sec(connections, 1);
    Report {
        connections,
        batch,
        hit_ns_batch1,
        hit_ns_batch,
        observe_ns_batch,
        miss_ns_batch1,
        miss_ns_batch,
        insert_ns: growth.insert_ns,
        insert_longest_us: growth.longest_us,
        expire_ns,
        bytes_per_connection,
        setups_per_sec,
        setups_per_sec_uncached,
    }
}

/// The middle one.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
