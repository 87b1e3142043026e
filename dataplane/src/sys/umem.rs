//! The umem: one memory area, cut into chunks of equal size, that all ports share.
//!
//! Each AF_XDP socket registers the same area (`XDP_UMEM_REG`), so a frame received on one port is
//! transmitted on another without a copy, ports come and go in any order, and no socket depends on
//! another one's life. See docs/adr/0002.
//!
//! Invariant: at any time, each chunk is owned by exactly one [`Frame`] handle or by the kernel.
//! `Umem::new` makes one handle per chunk; [`Loans::lend`] turns a handle into kernel ownership and
//! [`Loans::take_back`] turns it back, once, checked against a table. So two handles of one
//! chunk cannot exist, and a `&mut Frame` gives exclusive access to the chunk's bytes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use parking_lot::Mutex;

use super::prefetch::prefetch;
use super::xsk;
use crate::frame::Frame;

/// Bytes per chunk. Holds the kernel's headroom and a frame of up to [`MAX_FRAME`] bytes.
pub const CHUNK: usize = 4096;

/// Bytes the kernel keeps free before a received frame (`XDP_PACKET_HEADROOM`).
pub const HEADROOM: usize = 256;

/// Longest frame a chunk holds.
pub const MAX_FRAME: usize = CHUNK - HEADROOM;

/// Owner of a chunk that a [`Frame`] handle owns.
const USER: u16 = 0;

/// Distinguishes umems, so that a frame cannot be used with another one's memory.
static NEXT_ID: AtomicU32 = AtomicU32::new(1);

/// One memory area, shared by all ports of a process.
#[derive(Debug)]
pub struct Umem {
    id: u32,
    base: NonNull<u8>,
    frames: u32,
    /// Who owns each chunk: [`USER`], or the number of the socket it was lent to.
    owners: Box<[AtomicU16]>,
    /// The numbers of which there are [`Loans`].
    lenders: Mutex<BTreeSet<u16>>,
    /// Sockets that have registered it, for ports that are to be opened soon.
    spares: Mutex<Vec<OwnedFd>>,
}

// SAFETY: the area is plain memory, mapped for the life of the Umem; access to each chunk is
// exclusive to the owner of its Frame, which is itself Send.
unsafe impl Send for Umem {}
// SAFETY: as above; `&Umem` gives access only through `&Frame` (read) or `&mut Frame` (write).
unsafe impl Sync for Umem {}

impl Umem {
    /// Maps an area of `frames` chunks and hands out a [`Frame`] for each.
    ///
    /// # Errors
    /// If the memory cannot be mapped.
    pub fn new(frames: u32) -> io::Result<(Self, Vec<Frame>)> {
        let bytes = frames as usize * CHUNK;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice affects no memory
        // that exists already.
        let area = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if area == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(area.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // Each chunk is a page otherwise, and its first byte a walk through the page tables. Refused,
        // nothing is lost but that.
        // SAFETY: advice about the mapping that was just made; it changes none of its bytes.
        unsafe { libc::madvise(area, bytes, libc::MADV_HUGEPAGE) };
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let owners = (0..frames).map(|_| AtomicU16::new(USER)).collect();
        let handles =
            (0..frames).map(|chunk| Frame::claim(id, chunk, HEADROOM as u16, 0)).collect();
        let (lenders, spares) = Default::default();
        Ok((Self { id, base, frames, owners, lenders, spares }, handles))
    }

    /// Registers it with so many sockets in advance: the first makes the kernel find the memory, and each pins
    /// all of it. What cannot be done now is done, or fails, when a socket is opened.
    pub(crate) fn set_spares(&self, count: usize) {
        let spares = (0..count).map_while(|_| xsk::registered(self).ok()).collect();
        *self.spares.lock() = spares;
    }

    /// A socket that has registered it, if one is left.
    pub(super) fn take_spare(&self) -> Option<OwnedFd> {
        self.spares.lock().pop()
    }

    /// Number of chunks.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Address and length of the area, for `XDP_UMEM_REG`.
    pub fn area(&self) -> (u64, u64) {
        (self.base.as_ptr() as u64, self.frames as u64 * CHUNK as u64)
    }

    /// The frame's bytes.
    ///
    /// # Panics
    /// If the frame is of another umem.
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let start = self.start_of(frame);
        // SAFETY: `start_of` checked that the span lies in the area; the shared borrow of the
        // chunk's only handle keeps writers away for the life of the slice.
        unsafe { std::slice::from_raw_parts(start, frame.len()) }
    }

    /// The frame's bytes, to write.
    ///
    /// # Panics
    /// If the frame is of another umem.
    #[allow(clippy::mut_from_ref)] // exclusive by the `&mut Frame`
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let start = self.start_of(frame);
        // SAFETY: `start_of` checked that the span lies in the area; the exclusive borrow of the
        // chunk's only handle makes the slice exclusive.
        unsafe { std::slice::from_raw_parts_mut(start, frame.len()) }
    }

    /// Has the processor fetch the frame's first bytes, which another one wrote, while it does other
    /// work.
    ///
    /// # Panics
    /// If the frame is of another umem.
    pub fn prefetch(&self, frame: &Frame) {
        prefetch(self.start_of(frame).cast_const().cast());
    }

    /// The loans of socket number `owner` (not 0): none yet, or what an earlier one of that number left.
    ///
    /// # Panics
    /// If there is one of that number already.
    pub fn loans(self: &Arc<Self>, owner: u16) -> Loans {
        let is_new = owner != USER && self.lenders.lock().insert(owner);
        assert!(is_new, "each socket has a number of its own");
        Loans { umem: Arc::clone(self), owner }
    }

    /// Checked pointer to the frame's first byte; `frame.len()` bytes from it lie in the area.
    fn start_of(&self, frame: &Frame) -> *mut u8 {
        assert_eq!(frame.umem(), self.id, "a frame is used with the umem it is of");
        debug_assert!(frame.offset() as usize + frame.len() <= CHUNK);
        let at = frame.chunk() as usize * CHUNK + frame.offset() as usize;
        // SAFETY: chunk < self.frames and offset + len <= CHUNK for every handle this umem made, so
        // the result is inside the mapping.
        unsafe { self.base.as_ptr().add(at) }
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        let bytes = self.frames as usize * CHUNK;
        // SAFETY: the mapping is ours, made by `new` with this length. No slice outlives `&self`.
        // Sockets pin the pages themselves, so one that still lives keeps its pages.
        unsafe { libc::munmap(self.base.as_ptr().cast(), bytes) };
    }
}

/// The chunks that are with the kernel by way of one socket.
///
/// Nobody else writes this socket's number into the table of owners, or takes it out. So lending and taking
/// back are plain loads and stores.
#[derive(Debug)]
pub struct Loans {
    umem: Arc<Umem>,
    owner: u16,
}

impl Loans {
    /// Gives a chunk to the kernel. Returns the descriptor address: the frame's first byte, in bytes from
    /// the area's start.
    ///
    /// # Panics
    /// If the frame is of another umem.
    pub fn lend(&mut self, frame: Frame) -> u64 {
        let Umem { id, owners, .. } = &*self.umem;
        assert_eq!(frame.umem(), *id, "a frame goes back to the umem it is of");
        let address = frame.chunk() as u64 * CHUNK as u64 + u64::from(frame.offset());
        let chunk = frame.release();
        owners[chunk as usize].store(self.owner, Ordering::Relaxed);
        address
    }

    /// Takes a chunk back that the kernel says, by a descriptor, it is done with. `None` if the address is
    /// outside the area or the chunk was not lent here: then the descriptor is ignored, because believing
    /// it would make a second handle.
    pub fn take_back(&mut self, address: u64, len: u32) -> Option<Frame> {
        let chunk = u32::try_from(address / CHUNK as u64).ok()?;
        let offset = (address % CHUNK as u64) as usize;
        if len as usize > CHUNK - offset {
            return None;
        }
        let Umem { id, owners, .. } = &*self.umem;
        let slot = owners.get(chunk as usize)?;
        if slot.load(Ordering::Relaxed) != self.owner {
            return None;
        }
        slot.store(USER, Ordering::Relaxed);
        Some(Frame::claim(*id, chunk, offset as u16, len as u16))
    }

    /// Takes everything back. Only after the socket is closed and the kernel has let go of its rings.
    pub fn take_all_back(&mut self) -> Vec<Frame> {
        let chunks = 0..self.umem.frames;
        chunks.filter_map(|chunk| self.take_back(u64::from(chunk) * CHUNK as u64, 0)).collect()
    }
}

impl Drop for Loans {
    fn drop(&mut self) {
        self.umem.lenders.lock().remove(&self.owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_chunk_comes_back_once() {
        let (umem, mut frames) = Umem::new(4).unwrap();
        let umem = Arc::new(umem);
        let [mut loans, mut others] = [7, 8].map(|owner| umem.loans(owner));
        let frame = frames.pop().unwrap();
        let chunk = frame.chunk();
        let address = loans.lend(frame);
        assert!(others.take_back(address, 60).is_none(), "lent to another socket");
        assert!(loans.take_back(4 * CHUNK as u64, 60).is_none(), "outside");
        assert!(loans.take_back(address, CHUNK as u32).is_none(), "past the chunk");
        let back = loans.take_back(address, 60).unwrap();
        assert_eq!((back.chunk(), back.len()), (chunk, 60));
        assert!(loans.take_back(address, 60).is_none(), "a second time");
        loans.lend(back);
        drop(loans);
        let all = umem.loans(7).take_all_back();
        assert_eq!(all.len(), 1);
        for frame in frames.into_iter().chain(all) {
            frame.release();
        }
    }

    #[test]
    #[should_panic(expected = "a number of its own")]
    fn two_sockets_do_not_share_a_number() {
        let (umem, frames) = Umem::new(1).unwrap();
        frames.into_iter().for_each(|frame| _ = frame.release());
        let umem = Arc::new(umem);
        let _loans = umem.loans(7);
        let _others = umem.loans(7);
    }

    #[test]
    #[should_panic(expected = "umem it is of")]
    fn a_frame_of_another_umem_is_refused() {
        let (one, frames) = Umem::new(1).unwrap();
        let (_other, others) = Umem::new(1).unwrap();
        std::mem::forget(frames);
        let frame = &others[0];
        let _ = one.bytes(frame);
    }
}
