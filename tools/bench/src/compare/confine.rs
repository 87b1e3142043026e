//! Everything on one processor, for as long as a measurement wants it.
//!
//! Threads and processes run where the one that started them may, and the kernel does a packet's work
//! where it was sent; so it is enough to confine who starts all the others.

use std::io;

use firedoor_dataplane::sys::affinity;

/// Confines the calling thread and what it starts; dropping it lets that thread go where it could before.
#[derive(Debug)]
pub(super) struct Confined {
    before: Vec<usize>,
}

impl Confined {
    /// To the first processor that the calling thread may use.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn to_one_core() -> io::Result<Self> {
        let before = affinity::available()?;
        affinity::allow_current_thread(before.get(..1).unwrap_or_default())?;
        Ok(Self { before })
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        // They were allowed a moment ago.
        let _ = affinity::allow_current_thread(&self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_started_meanwhile_have_one_processor() {
        let here = || affinity::available().unwrap();
        let before = here();
        let confined = Confined::to_one_core().unwrap();
        assert_eq!(std::thread::spawn(here).join().unwrap(), before[..1]);
        drop(confined);
        assert_eq!(here(), before);
    }
}
