//! Asking for memory before it is needed: the processor fetches a cache line while it does other work.
//!
//! A prefetch changes nothing that a program could see and faults at no address, so both are safe to
//! call with any pointer.

/// Has the cache line of `at` fetched, to be read.
#[inline(always)]
pub fn prefetch(at: *const ()) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing, and faults at no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Has the cache line of `at` fetched, to be written to: no other processor keeps a copy.
#[inline(always)]
pub(crate) fn prefetch_to_write(at: *const ()) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as for `prefetch`. A processor that does not know this one does nothing.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
