//! Frames on the long way whose passing is counted, at either lane's ports.
//!
//! A frame with a mark is found to be of its flow when it arrives. It has left the switch when the
//! kernel has completed its transmission, which for a veth or tap is when the receiver's stack or
//! the tap has taken the packet from every queue. So it does not matter how many workers handed it
//! on, nor how long it waited for its port. A frame that the kernel redirects after that finds none
//! before it. One that is dropped says nothing of those before it, which no mark counts if they
//! came before the verdict; so it is forgotten, like one that is lost on the way to the switch.
//!
//! Cost for a frame that is not counted: one load when its chunk is given back, another one while any is
//! counted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::Kernel;
use super::punt::flow_of;
use super::table::{COUNTED, Counted, FlowTable};
use crate::frame::Frame;
use crate::pool::FramePool;

impl Kernel {
    /// Counts the way of a frame that the program has handed over under `mark`, if its flow wants it.
    /// `ifindex` is the interface that it came in by.
    pub(super) fn follow(&self, frame: &Frame, ifindex: u32, mark: u16, pool: &FramePool) {
        if mark & COUNTED == 0 {
            return;
        }
        let flow = flow_of(pool.umem().bytes(frame), ifindex);
        if let Some(counted) = flow.and_then(|flow| self.flows.counted(&flow, mark)) {
            pool.leaving().add(frame, counted, &self.flows);
        }
    }
}

/// Which chunks of a umem hold frames whose way is counted, and for which flows.
pub(crate) struct Leaving {
    /// How many there are.
    count: AtomicUsize,
    /// By chunk: [packed](Counted::pack), or 0.
    frames: Box<[AtomicU64]>,
    /// Who counts. A switch has one lane.
    flows: OnceLock<Arc<FlowTable>>,
}

impl Leaving {
    /// None yet, of that many chunks.
    pub(crate) fn new(chunks: usize) -> Self {
        let frames = (0..chunks).map(|_| AtomicU64::new(0)).collect();
        Self { count: AtomicUsize::new(0), frames, flows: OnceLock::new() }
    }

    /// One has arrived.
    fn add(&self, frame: &Frame, counted: Counted, flows: &Arc<FlowTable>) {
        self.flows.get_or_init(|| Arc::clone(flows));
        if let Some(place) = self.frames.get(frame.chunk() as usize) {
            place.store(counted.pack(), Ordering::Relaxed);
            // Whoever frees the chunk was given it since, and so sees this.
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A frame was sent: it has left, if it was counted.
    pub(crate) fn pass(&self, frame: &Frame) {
        if let Some(counted) = self.take(frame)
            && let Some(flows) = self.flows.get()
        {
            flows.pass(counted);
        }
    }

    /// Nobody knows of what stood before a frame: if it was counted, it is not any more.
    pub(crate) fn forget(&self, frame: &Frame) {
        self.take(frame);
    }

    fn take(&self, frame: &Frame) -> Option<Counted> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let place = self.frames.get(frame.chunk() as usize)?;
        let counted = Counted::unpack(place.load(Ordering::Relaxed))?;
        place.store(0, Ordering::Relaxed);
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(counted)
    }
}
