//! A frame: the owned handle of one umem chunk.

/// Owned handle of one umem chunk and where the frame's bytes lie in it.
///
/// There is one `Frame` per chunk that the kernel does not hold. It cannot be cloned. It goes back
/// to a ring or a [`FramePool`](crate::pool::FramePool); dropping it anywhere else is a leak, which
/// is counted and shown by `status`.
#[derive(Debug)]
pub struct Frame {
    chunk: u32,
    offset: u16,
    len: u16,
    umem: u32,
}
