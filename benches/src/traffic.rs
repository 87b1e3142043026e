//! A port that costs next to nothing, so that what is left of a turn is the switch's own part.
//!
//! Its far end sends the same frames over and over, and swallows what it receives. Frames come from
//! the pool and go back to it, as with a real port; 60 bytes are copied where the kernel would have
//! copied them.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use firedoor_dataplane::frame::Frame;
use firedoor_dataplane::pool::FramePool;
use firedoor_dataplane::port::{BURST, Port};
use firedoor_dataplane::sys::umem::MAX_FRAME;

/// Frames that may be on their way at once, so that no queue of the switch overflows.
const WINDOW: u64 = 1_024;

/// Frames that a port has delivered to its far end.
pub type Delivered = Arc<AtomicU64>;

/// A port whose far end sends `load` in a circle.
pub struct TrafficPort {
    load: Vec<Vec<u8>>,
    next: usize,
    /// Frames the far end has sent.
    offered: u64,
    /// What has arrived of them.
    arrived: Delivered,
    delivered: Delivered,
    sent: Vec<Frame>,
}

impl TrafficPort {
    /// A port whose far end sends `load`, if any, and sends on while what it sent arrives, as
    /// counted by `arrived`. What arrives at this port is counted by `delivered`.
    pub fn new(load: Vec<Vec<u8>>, arrived: &Delivered, delivered: &Delivered) -> Self {
        Self {
            load,
            next: 0,
            offered: 0,
            arrived: Arc::clone(arrived),
            delivered: Arc::clone(delivered),
            sent: Vec::with_capacity(WINDOW as usize),
        }
    }

    /// Frames that may be sent now.
    fn credit(&self) -> usize {
        if self.load.is_empty() {
            return 0;
        }
        let on_their_way = self.offered - self.arrived.load(Ordering::Relaxed);
        (WINDOW - on_their_way).min(BURST as u64) as usize
    }
}

impl Port for TrafficPort {
    fn receive(&mut self, pool: &mut FramePool, batch: &mut Vec<Frame>) -> usize {
        let before = batch.len();
        for _ in 0..self.credit() {
            let Some(frame) = pool.copy_of(&self.load[self.next]) else { break };
            batch.push(frame);
            self.next += 1;
            if self.next == self.load.len() {
                self.next = 0;
            }
        }
        let received = batch.len() - before;
        self.offered += received as u64;
        received
    }

    fn transmit(&mut self, frames: &mut Vec<Frame>) -> usize {
        let count = frames.len();
        self.sent.append(frames);
        let delivered = self.delivered.load(Ordering::Relaxed) + count as u64;
        self.delivered.store(delivered, Ordering::Relaxed);
        count
    }

    fn reclaim(&mut self, pool: &mut FramePool) {
        self.sent.drain(..).for_each(|frame| pool.give(frame));
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn max_frame(&self) -> usize {
        MAX_FRAME
    }

    fn is_busy(&self) -> bool {
        !self.sent.is_empty()
    }

    fn close(mut self: Box<Self>, pool: &mut FramePool) {
        self.reclaim(pool);
    }
}
