//! A port that costs next to nothing, so that what is left of a turn is the switch's own part.
//!
//! Its far end sends the same frames over and over, and swallows what it receives. Frames come from
//! the pool and go back to it, as with a real port; 60 bytes are copied where the kernel would have
//! copied them.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use firedoor_dataplane::frame::Frame;
use firedoor_dataplane::pool::FramePool;
use firedoor_dataplane::port::{BURST, Port};
use firedoor_dataplane::sys::umem::MAX_FRAME;

/// Frames that may be on their way at once for each queue, so that no queue of the switch overflows; up
/// to twice as many where two workers spend the same credit.
const WINDOW: u64 = 512;

/// From one port to another: how many frames were sent and how many have arrived.
#[derive(Clone)]
pub struct Way(Arc<[Ends]>);

/// What one queue has sent at the one port, and delivered at the other. Each is written by the worker
/// that has the queue.
#[derive(Default)]
struct Ends {
    offered: CachePadded<AtomicU64>,
    arrived: CachePadded<AtomicU64>,
}

impl Default for Way {
    fn default() -> Self {
        Self::of(1)
    }
}

impl Way {
    /// Between ports of so many queues.
    pub fn of(queues: u16) -> Self {
        Self((0..queues).map(|_| Ends::default()).collect())
    }

    /// Frames that have arrived.
    pub fn arrived(&self) -> u64 {
        self.0.iter().map(|ends| ends.arrived.load(Ordering::Relaxed)).sum()
    }

    /// Frames that may be sent now.
    fn credit(&self) -> u64 {
        let offered: u64 = self.0.iter().map(|ends| ends.offered.load(Ordering::Relaxed)).sum();
        (WINDOW * self.0.len() as u64).saturating_sub(offered - self.arrived().min(offered))
    }
}

/// One queue of a port whose far end sends `load` in a circle. Aligned, because another worker may have
/// the next one.
#[repr(align(128))]
pub struct TrafficPort {
    load: Vec<Vec<u8>>,
    next: usize,
    queue: usize,
    there: Way,
    back: Way,
    /// Frames that may be sent before others' counts are read again.
    credit: u64,
    sent: Vec<Frame>,
}

impl TrafficPort {
    /// A port whose far end sends `load`, if any, by the way `there`, as fast as it arrives. What is
    /// sent to this port arrives by the way `back`.
    pub fn new(load: Vec<Vec<u8>>, there: &Way, back: &Way) -> Self {
        Self::queue(0, load, there, back)
    }

    /// The queue of that number of such a port.
    pub fn queue(queue: u16, load: Vec<Vec<u8>>, there: &Way, back: &Way) -> Self {
        Self {
            load,
            next: 0,
            queue: queue.into(),
            there: there.clone(),
            back: back.clone(),
            credit: 0,
            sent: Vec::with_capacity(WINDOW as usize),
        }
    }

    /// Frames that may be sent now.
    fn credit(&mut self) -> usize {
        if self.load.is_empty() {
            return 0;
        }
        if self.credit < BURST as u64 {
            self.credit = self.there.credit();
        }
        self.credit.min(BURST as u64) as usize
    }
}

/// Adds to a count that nobody else writes.
fn add(count: &AtomicU64, frames: usize) {
    count.store(count.load(Ordering::Relaxed) + frames as u64, Ordering::Relaxed);
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
        self.credit -= received as u64;
        add(&self.there.0[self.queue].offered, received);
        received
    }

    fn transmit(&mut self, frames: &mut Vec<Frame>) -> usize {
        let count = frames.len();
        self.sent.append(frames);
        add(&self.back.0[self.queue].arrived, count);
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
