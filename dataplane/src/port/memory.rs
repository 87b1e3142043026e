//! A port in memory: two queues of owned bytes, for tests and in-process benchmarks.
//!
//! The far end ([`Wire`]) sends and receives `Vec<u8>`s; the port copies them into and out of umem
//! frames, as the kernel does for a real port.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::frame::Frame;
use crate::pool::FramePool;
use crate::port::{BURST, Port};
use crate::sys::umem::{MAX_FRAME, Umem};

/// The switch's end of a memory port.
#[derive(Debug)]
pub struct MemoryPort {
    umem: Arc<Umem>,
    queues: Arc<Mutex<Queues>>,
    sent: Vec<Frame>,
    max_frame: usize,
}

/// The far end: what the workload holds.
#[derive(Clone, Debug)]
pub struct Wire {
    queues: Arc<Mutex<Queues>>,
}

#[derive(Debug, Default)]
struct Queues {
    to_switch: VecDeque<Vec<u8>>,
    from_switch: VecDeque<Vec<u8>>,
}

/// A port and its far end.
pub fn pair(umem: Arc<Umem>) -> (MemoryPort, Wire) {
    let queues = Arc::new(Mutex::new(Queues::default()));
    let port =
        MemoryPort { umem, queues: Arc::clone(&queues), sent: Vec::new(), max_frame: MAX_FRAME };
    (port, Wire { queues })
}

impl MemoryPort {
    /// The same port with a smaller MTU: frames of more than `max_frame` bytes are too big for it.
    #[must_use]
    pub fn with_max_frame(mut self, max_frame: usize) -> Self {
        self.max_frame = max_frame.min(MAX_FRAME);
        self
    }
}

impl Wire {
    /// Sends a frame to the switch. Frames longer than a chunk holds vanish, as on a real wire.
    pub fn send(&self, frame: impl Into<Vec<u8>>) {
        self.queues.lock().to_switch.push_back(frame.into());
    }

    /// The next frame from the switch.
    pub fn receive(&self) -> Option<Vec<u8>> {
        self.queues.lock().from_switch.pop_front()
    }

    /// Every frame from the switch so far.
    pub fn receive_all(&self) -> Vec<Vec<u8>> {
        self.queues.lock().from_switch.drain(..).collect()
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, pool: &mut FramePool, batch: &mut Vec<Frame>) -> usize {
        let before = batch.len();
        let mut queues = self.queues.lock();
        while batch.len() - before < BURST {
            let Some(bytes) = queues.to_switch.pop_front() else { break };
            if bytes.len() > MAX_FRAME {
                continue;
            }
            let Some(frame) = pool.copy_of(&bytes) else {
                queues.to_switch.push_front(bytes);
                break;
            };
            batch.push(frame);
        }
        batch.len() - before
    }

    fn transmit(&mut self, frames: &mut Vec<Frame>) -> usize {
        let mut queues = self.queues.lock();
        queues.from_switch.extend(frames.iter().map(|frame| self.umem.bytes(frame).to_vec()));
        let count = frames.len();
        self.sent.append(frames);
        count
    }

    fn reclaim(&mut self, pool: &mut FramePool) {
        self.sent.drain(..).for_each(|frame| pool.give(frame));
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn max_frame(&self) -> usize {
        self.max_frame
    }

    fn is_busy(&self) -> bool {
        !self.sent.is_empty()
    }

    fn close(mut self: Box<Self>, pool: &mut FramePool) {
        self.reclaim(pool);
    }
}
