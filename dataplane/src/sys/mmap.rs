//! A shared memory mapping, and checked pointers into it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Memory mapped for as long as this lives.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory, valid in every thread; what is done with its pointers is up
// to those who take them.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` itself reads and writes nothing.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a socket's memory, from page offset `offset` on, shared with the kernel.
    pub(crate) fn of_socket(fd: BorrowedFd<'_>, len: usize, offset: i64) -> io::Result<Self> {
        Self::map(len, libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset)
    }

    /// Maps the first `len` bytes of a BPF array's values (`BPF_F_MMAPABLE`), shared with the
    /// programs that use it.
    pub(crate) fn of_map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_SHARED, fd.as_raw_fd(), 0)
    }

    /// Maps `len` bytes of fresh memory, all zero.
    #[cfg(test)]
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    fn map(len: usize, flags: libc::c_int, fd: libc::c_int, offset: i64) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice affects no memory that exists
        // already.
        let area = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, offset) };
        if area == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(area.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// Pointer to `count` values of type `T`, `offset` bytes from the start; `None` if they do not
    /// lie in the mapping or are not aligned. Valid for as long as the mapping.
    pub(crate) fn at<T>(&self, offset: u64, count: usize) -> Option<NonNull<T>> {
        let offset = usize::try_from(offset).ok()?;
        let end = size_of::<T>().checked_mul(count)?.checked_add(offset)?;
        let start = NonNull::new(self.base.as_ptr().wrapping_add(offset))?.cast::<T>();
        (end <= self.len && start.is_aligned()).then_some(start)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, made by `map` with this length; whoever holds a pointer into
        // it also holds the mapping.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
