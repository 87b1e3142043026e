//! The pool of free frames: a stack per worker, and a store that all workers share.
//!
//! A frame is freed where its transmission completes, which may be at another worker than the one
//! that will need it for receiving. So each worker keeps a stack of its own, gives surplus to the
//! shared store in batches, and takes from it when it runs dry. The stack is touched per frame, the
//! store once in [`BATCH`] frames.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::express::leaving::Leaving;
use crate::frame::Frame;
use crate::sys::umem::{HEADROOM, Umem};

/// Frames moved between a worker's stack and the shared store at once.
pub const BATCH: usize = 256;

/// Free frames that any worker may take. As large as the umem, so it is never full.
pub struct FrameStore {
    free: ArrayQueue<Frame>,
    /// Told of every frame that comes back to a pool.
    leaving: Leaving,
}

impl FrameStore {
    /// A store that holds `frames`, all there are.
    pub fn new(frames: Vec<Frame>) -> Arc<Self> {
        let leaving = Leaving::new(frames.len());
        let free = ArrayQueue::new(frames.len().max(1));
        for frame in frames {
            if let Err(frame) = free.push(frame) {
                drop(frame);
            }
        }
        Arc::new(Self { free, leaving })
    }

    /// Free frames in the store, not counting the workers' stacks.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// Whether the store holds none.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }
}

impl Drop for FrameStore {
    /// The end of the umem: its free frames are not leaks.
    fn drop(&mut self) {
        while let Some(frame) = self.free.pop() {
            frame.release();
        }
    }
}

/// One worker's free frames.
pub struct FramePool {
    umem: Arc<Umem>,
    store: Arc<FrameStore>,
    stack: Vec<Frame>,
}

impl FramePool {
    /// A worker's view of `store`.
    pub fn new(umem: Arc<Umem>, store: Arc<FrameStore>) -> Self {
        Self { umem, store, stack: Vec::with_capacity(4 * BATCH) }
    }

    /// The memory the frames lie in.
    pub fn umem(&self) -> &Arc<Umem> {
        &self.umem
    }

    /// The frames whose way is counted until they are given back.
    pub(crate) fn leaving(&self) -> &Leaving {
        &self.store.leaving
    }

    /// A free frame, empty, with the kernel's usual headroom before it.
    pub fn take(&mut self) -> Option<Frame> {
        if self.stack.is_empty() {
            self.refill();
        }
        let mut frame = self.stack.pop()?;
        frame.set_span(HEADROOM, 0);
        Some(frame)
    }

    /// Takes a frame back that was not sent.
    pub fn give(&mut self, frame: Frame) {
        self.store.leaving.forget(&frame);
        self.put(frame);
    }

    /// Takes a frame back whose transmission is complete.
    pub fn give_sent(&mut self, frame: Frame) {
        self.store.leaving.pass(&frame);
        self.put(frame);
    }

    fn put(&mut self, frame: Frame) {
        self.stack.push(frame);
        if self.stack.len() >= 3 * BATCH {
            self.spill(BATCH);
        }
    }

    /// A free frame with these bytes, or `None` if no frame is free or the bytes do not fit.
    pub fn copy_of(&mut self, bytes: &[u8]) -> Option<Frame> {
        if bytes.len() > crate::sys::umem::MAX_FRAME {
            return None;
        }
        let mut frame = self.take()?;
        frame.set_span(HEADROOM, bytes.len());
        self.umem.bytes_mut(&mut frame).copy_from_slice(bytes);
        Some(frame)
    }

    /// A second frame with the same bytes, or `None` if no frame is free.
    pub fn duplicate(&mut self, original: &Frame) -> Option<Frame> {
        let mut copy = self.take()?;
        copy.set_span(HEADROOM.min(crate::sys::umem::CHUNK - original.len()), original.len());
        self.umem.bytes_mut(&mut copy).copy_from_slice(self.umem.bytes(original));
        Some(copy)
    }

    /// Free frames in this worker's stack.
    pub fn len(&self) -> usize {
        self.stack.len()
    }

    /// Whether this worker's stack is empty. The store may still have frames.
    pub fn is_empty(&self) -> bool {
        self.stack.is_empty()
    }

    /// Gives the whole stack to the store.
    pub fn flush(&mut self) {
        self.spill(self.stack.len());
    }

    fn refill(&mut self) {
        self.stack.extend(std::iter::from_fn(|| self.store.free.pop()).take(BATCH));
    }

    fn spill(&mut self, count: usize) {
        for frame in self.stack.drain(self.stack.len() - count..) {
            if let Err(frame) = self.store.free.push(frame) {
                debug_assert!(false, "the store is as large as the umem");
                drop(frame);
            }
        }
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        self.flush();
    }
}
