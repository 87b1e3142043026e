//! A port in memory: queues of owned bytes, for tests and in-process benchmarks.
//!
//! A port may have several queues; how its far end chooses one for each frame is the caller's
//! affair, as it is the driver's on a real port. The far end ([`Wire`]) sends and receives
//! `Vec<u8>`s; the port copies them into and out of umem frames, as the kernel does for a real
//! port. A port made by [`pair`] is polled; one made [`with_wakeup`](MemoryPort::with_wakeup) also
//! wakes a sleeping worker.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use crate::frame::Frame;
use crate::pool::FramePool;
use crate::port::{BURST, Port};
use crate::sys::umem::{MAX_FRAME, Umem};

/// The switch's end of a memory port, or of one of its queues.
#[derive(Debug)]
pub struct MemoryPort {
    umem: Arc<Umem>,
    queue: usize,
    queues: Arc<Mutex<Queues>>,
    sent: Vec<Frame>,
    max_frame: usize,
    wakeup: Option<Arc<EventFd>>,
}

/// The far end: what the workload holds.
#[derive(Clone, Debug)]
pub struct Wire {
    queues: Arc<Mutex<Queues>>,
}

#[derive(Debug)]
struct Queues {
    /// By queue.
    to_switch: Vec<VecDeque<Vec<u8>>>,
    choose: Choose,
    from_switch: VecDeque<Vec<u8>>,
    /// Most frames that wait for the far end; more stay with the switch.
    depth: usize,
    /// By queue: written for each frame to the switch, if the queue has one.
    wakeups: Vec<Option<Arc<EventFd>>>,
}

/// Chooses the queue that a frame arrives at: a number that is taken modulo the number of queues.
pub type Choose = fn(&[u8]) -> usize;

/// A port and its far end.
pub fn pair(umem: Arc<Umem>) -> (MemoryPort, Wire) {
    let queues = Queues::new(1, |_| 0);
    (MemoryPort::new(umem, 0, &queues), Wire { queues })
}

/// A port of `count` queues and its far end, which chooses among them.
pub fn spread(umem: &Arc<Umem>, count: u16, choose: Choose) -> (Vec<MemoryPort>, Wire) {
    let queues = Queues::new(count.into(), choose);
    let port = |queue| MemoryPort::new(Arc::clone(umem), queue, &queues);
    ((0..count.into()).map(port).collect(), Wire { queues })
}

impl Queues {
    fn new(count: usize, choose: Choose) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            to_switch: vec![VecDeque::new(); count],
            choose,
            from_switch: VecDeque::new(),
            depth: usize::MAX,
            wakeups: vec![None; count],
        }))
    }
}

impl MemoryPort {
    fn new(umem: Arc<Umem>, queue: usize, queues: &Arc<Mutex<Queues>>) -> Self {
        let (queues, sent) = (Arc::clone(queues), Vec::new());
        Self { umem, queue, queues, sent, max_frame: MAX_FRAME, wakeup: None }
    }

    /// The same port with a smaller MTU: frames of more than `max_frame` bytes are too big for it.
    #[must_use]
    pub fn with_max_frame(mut self, max_frame: usize) -> Self {
        self.max_frame = max_frame.min(MAX_FRAME);
        self
    }

    /// The same port with a far end that lets at most `depth` frames wait, as a full tx ring does.
    #[must_use]
    pub fn with_depth(self, depth: usize) -> Self {
        self.queues.lock().depth = depth;
        self
    }

    /// The same port with something to wait on: one system call for each frame sent to it.
    ///
    /// # Errors
    /// If the kernel has no file descriptor left.
    pub fn with_wakeup(mut self) -> io::Result<Self> {
        let wakeup = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        self.queues.lock().wakeups[self.queue] = Some(Arc::clone(&wakeup));
        self.wakeup = Some(wakeup);
        Ok(self)
    }
}

impl Wire {
    /// Sends a frame to the switch. Frames longer than a chunk holds vanish, as on a real wire.
    pub fn send(&self, frame: impl Into<Vec<u8>>) {
        let mut queues = self.queues.lock();
        let frame = frame.into();
        let queue = (queues.choose)(&frame) % queues.to_switch.len();
        queues.to_switch[queue].push_back(frame);
        if let Some(wakeup) = &queues.wakeups[queue] {
            // Fails only if the counter is full: then it has been readable for long.
            let _ = wakeup.write(1);
        }
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
        let to_switch = &mut queues.to_switch[self.queue];
        while batch.len() - before < BURST {
            let Some(bytes) = to_switch.pop_front() else { break };
            if bytes.len() > MAX_FRAME {
                continue;
            }
            let Some(frame) = pool.copy_of(&bytes) else {
                to_switch.push_front(bytes);
                break;
            };
            batch.push(frame);
        }
        batch.len() - before
    }

    fn transmit(&mut self, frames: &mut Vec<Frame>) -> usize {
        let mut queues = self.queues.lock();
        let count = frames.len().min(queues.depth.saturating_sub(queues.from_switch.len()));
        for frame in frames.drain(..count) {
            queues.from_switch.push_back(self.umem.bytes(&frame).to_vec());
            self.sent.push(frame);
        }
        count
    }

    fn reclaim(&mut self, pool: &mut FramePool) {
        self.sent.drain(..).for_each(|frame| pool.give_sent(frame));
    }

    fn fd(&self) -> Option<RawFd> {
        self.wakeup.as_ref().map(AsRawFd::as_raw_fd)
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
