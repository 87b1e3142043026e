//! Counters: one writer each, any number of readers.
//!
//! Every worker counts in cells of its own, so that counting is a plain add on a cache line nobody
//! else writes. Readers sum over workers and may see a count a moment late, never a torn one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use firedoor_api::dataplane::PortCounters;
use firedoor_classifier::pipeline::PipelineStats;
use firedoor_classifier::{DropReason, PortId};
use parking_lot::RwLock;

/// A count with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the count. Only the owning worker may: two writers would lose counts.
    pub fn add(&self, n: u64) {
        self.0.store(self.get() + n, Ordering::Relaxed);
    }

    /// Replaces the count. Only the owning worker may.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One worker's counters.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerCounters {
    drops: [Counter; DropReason::COUNT],
    would_drops: [Counter; DropReason::COUNT],
    /// Frames sent.
    pub sent: Counter,
    /// Frames received.
    pub received: Counter,
    /// Frames that the kernel received in its stead, as last credited: up to a second late.
    pub received_by_kernel: Counter,
    /// Partial checksums completed.
    pub checksums_completed: Counter,
    /// Denied frames given to the mirror.
    pub mirrored: Counter,
    /// Denied frames that the mirror did not take.
    pub mirror_lost: Counter,
    /// Live connections.
    pub connections: Counter,
    pipeline: [Counter; 6],
    ports: RwLock<Vec<Arc<PortCells>>>,
}

/// One worker's counters of one port.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PortCells {
    /// Frames from it.
    pub rx_frames: Counter,
    /// Bytes from it.
    pub rx_bytes: Counter,
    /// Frames to it.
    pub tx_frames: Counter,
    /// Bytes to it.
    pub tx_bytes: Counter,
    /// Frames from it that were dropped.
    pub drops: Counter,
}

impl Default for WorkerCounters {
    fn default() -> Self {
        Self {
            drops: std::array::from_fn(|_| Counter::default()),
            would_drops: std::array::from_fn(|_| Counter::default()),
            sent: Counter::default(),
            received: Counter::default(),
            received_by_kernel: Counter::default(),
            checksums_completed: Counter::default(),
            mirrored: Counter::default(),
            mirror_lost: Counter::default(),
            connections: Counter::default(),
            pipeline: std::array::from_fn(|_| Counter::default()),
            ports: RwLock::default(),
        }
    }
}

impl WorkerCounters {
    /// Counts a dropped frame.
    pub fn dropped(&self, reason: DropReason) {
        self.dropped_many(reason, 1);
    }

    /// Counts dropped frames.
    pub fn dropped_many(&self, reason: DropReason, frames: u64) {
        self.drops[reason as usize].add(frames);
    }

    /// Counts a frame that enforcing would have dropped.
    pub fn would_drop(&self, reason: DropReason) {
        self.would_drops[reason as usize].add(1);
    }

    /// Frames dropped for this reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }

    /// Frames that enforcing would have dropped for this reason.
    pub fn would_drops(&self, reason: DropReason) -> u64 {
        self.would_drops[reason as usize].get()
    }

    /// Publishes the pipeline's totals.
    pub fn publish(&self, stats: PipelineStats, connections: usize) {
        let PipelineStats {
            connection_hits,
            cache_hits,
            upcalls,
            connections_created,
            connections_ended,
            mac_moves,
        } = stats;
        let totals = [
            connection_hits,
            cache_hits,
            upcalls,
            connections_created,
            connections_ended,
            mac_moves,
        ];
        for (cell, total) in self.pipeline.iter().zip(totals) {
            cell.set(total);
        }
        self.connections.set(connections as u64);
    }

    /// The pipeline's totals as last published.
    pub fn pipeline(&self) -> PipelineStats {
        let [hits, cached, upcalls, created, ended, moves] = &self.pipeline;
        PipelineStats {
            connection_hits: hits.get(),
            cache_hits: cached.get(),
            upcalls: upcalls.get(),
            connections_created: created.get(),
            connections_ended: ended.get(),
            mac_moves: moves.get(),
        }
    }

    /// This worker's cells of a port, made if they do not exist yet.
    pub fn port(&self, id: PortId) -> Arc<PortCells> {
        let mut ports = self.ports.write();
        let index = id.0 as usize;
        if ports.len() <= index {
            ports.resize_with(index + 1, Arc::default);
        }
        Arc::clone(&ports[index])
    }

    /// Forgets a port's counts, because its number may go to another workload.
    pub fn reset_port(&self, id: PortId) {
        if let Some(cells) = self.ports.write().get_mut(id.0 as usize) {
            *cells = Arc::default();
        }
    }

    /// Adds this worker's counts of a port to `total`.
    pub fn sum_port(&self, id: PortId, total: &mut PortCounters) {
        let ports = self.ports.read();
        let Some(cells) = ports.get(id.0 as usize) else { return };
        total.rx_frames += cells.rx_frames.get();
        total.rx_bytes += cells.rx_bytes.get();
        total.tx_frames += cells.tx_frames.get();
        total.tx_bytes += cells.tx_bytes.get();
        total.drops += cells.drops.get();
    }
}
