//! A frame: the owned handle of one umem chunk.

use std::sync::atomic::{AtomicU64, Ordering};

/// Handles that were dropped instead of given back, over the life of the process.
static LEAKED: AtomicU64 = AtomicU64::new(0);

/// Frames lost by this process so far. Anything but 0 is a bug.
pub fn leaked() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// Owned handle of one umem chunk, and where the frame's bytes lie in it.
///
/// There is one `Frame` per chunk that the kernel does not hold, and it cannot be cloned: who has
/// the handle has the chunk's bytes to itself. It goes back to a ring or to a
/// [`FramePool`](crate::pool::FramePool); dropping it anywhere else is counted by [`leaked`].
#[derive(Debug)]
pub struct Frame {
    umem: u32,
    chunk: u32,
    offset: u16,
    len: u16,
}

impl Frame {
    /// Takes ownership of a chunk. Only the `sys` layer may, and only of a chunk that it knows
    /// nobody else owns: one that it just mapped, or one that the kernel just gave back.
    pub(crate) const fn claim(umem: u32, chunk: u32, offset: u16, len: u16) -> Self {
        Self { umem, chunk, offset, len }
    }

    /// Gives ownership of the chunk up, to the kernel or to the end of the umem.
    pub(crate) const fn release(self) -> u32 {
        let chunk = self.chunk;
        std::mem::forget(self);
        chunk
    }

    /// Which umem it is of.
    pub(crate) const fn umem(&self) -> u32 {
        self.umem
    }

    /// Index of its chunk in the umem.
    pub const fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Where its bytes begin, in bytes from the chunk's start.
    pub const fn offset(&self) -> u16 {
        self.offset
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Says where the frame's bytes lie: `len` bytes from `offset` on. Out of bounds requests are
    /// cut to the chunk.
    pub fn set_span(&mut self, offset: usize, len: usize) {
        let offset = offset.min(crate::sys::umem::CHUNK);
        self.offset = offset as u16;
        self.len = len.min(crate::sys::umem::CHUNK - offset) as u16;
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        LEAKED.fetch_add(1, Ordering::Relaxed);
    }
}
