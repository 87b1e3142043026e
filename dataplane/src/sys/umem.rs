//! The umem: one memory area, cut into chunks of equal size, that all ports share.
//!
//! Each AF_XDP socket registers the same area (`XDP_UMEM_REG`), so a frame received on one port is
//! transmitted on another without a copy, ports come and go in any order, and no socket depends on
//! another one's life. See docs/adr/0002.

use std::io;

use crate::frame::Frame;

/// Bytes per chunk. Holds the kernel's headroom and a frame of up to [`MAX_FRAME`] bytes.
pub const CHUNK: usize = 4096;

/// Bytes the kernel keeps free before a received frame (`XDP_PACKET_HEADROOM`).
pub const HEADROOM: usize = 256;

/// Longest frame a chunk holds.
pub const MAX_FRAME: usize = CHUNK - HEADROOM;

/// One memory area, shared by all ports of a process.
pub struct Umem {
    _private: (),
}

impl Umem {
    /// Maps an area of `frames` chunks and hands out a [`Frame`] for each.
    ///
    /// # Errors
    /// If the memory cannot be mapped.
    pub fn new(frames: u32) -> io::Result<(Self, Vec<Frame>)> {
        let _ = frames;
        todo!()
    }

    /// Number of chunks.
    pub fn frames(&self) -> u32 {
        todo!()
    }

    /// The frame's bytes.
    ///
    /// # Panics
    /// If the frame is of another umem.
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let _ = frame;
        todo!()
    }

    /// The frame's bytes, to write.
    ///
    /// # Panics
    /// If the frame is of another umem.
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let _ = frame;
        todo!()
    }
}
