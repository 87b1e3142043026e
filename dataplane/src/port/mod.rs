//! Ports: where frames come in and go out.
//!
//! [`xdp`] is a kernel interface through AF_XDP, [`memory`] a pair of queues for tests and
//! in-process benchmarks, [`pcap`] a capture file played once. All look alike to the path of a
//! frame, which deals in batches: one virtual call per batch, none per frame.

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::frame::Frame;
use crate::handoff::Doorstep;
use crate::pool::FramePool;

pub mod memory;
pub mod pcap;
pub(crate) mod silence;
pub mod xdp;

/// Most frames that [`Port::receive`] returns at once.
pub const BURST: usize = 64;

/// One attachment point of the switch.
///
/// Frames are conserved: whatever a port takes from the pool or from the path it gives back, by
/// [`receive`](Port::receive), [`reclaim`](Port::reclaim) or at the latest by
/// [`close`](Port::close).
pub trait Port: Send {
    /// Step 1 of the path: appends up to [`BURST`] received frames to `batch`, and refills what the
    /// kernel receives into. Returns how many.
    fn receive(&mut self, pool: &mut FramePool, batch: &mut Vec<Frame>) -> usize;

    /// Step 7: sends `frames` in order, as one tx batch with one kick, and leaves in the vector what
    /// did not fit. Returns how many were taken.
    fn transmit(&mut self, frames: &mut Vec<Frame>) -> usize;

    /// Step 8: gives frames whose transmission is complete back to the pool.
    fn reclaim(&mut self, pool: &mut FramePool);

    /// What becomes readable when frames arrive; `None` if there is nothing to wait for.
    fn fd(&self) -> Option<RawFd>;

    /// Names the worker that asks this port for frames. A port that may come by another one's frames
    /// wakes that one's worker then.
    fn set_doorstep(&mut self, _doorstep: &Arc<Doorstep>) {}

    /// Longest frame the port can send, Ethernet header included, in bytes.
    fn max_frame(&self) -> usize;

    /// Whether frames it was given are still being sent and want another
    /// [`reclaim`](Port::reclaim) soon.
    fn is_busy(&self) -> bool;

    /// Detaches, and gives back every frame the port still had.
    fn close(self: Box<Self>, pool: &mut FramePool);

    /// Closes its sockets, for a successor who wants its queues, and leaves all else as it is to the end of the
    /// process: the interface, what is attached to it, and the frames, which nobody may use any more.
    fn abandon(self: Box<Self>) {
        std::mem::forget(self);
    }
}
