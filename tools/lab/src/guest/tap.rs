//! The guest's network device: frames are read from and written to a tap's file, one at a time.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// Longest frame, Ethernet header included, in bytes.
const MAX_FRAME: usize = 1514;

/// Most frames taken from the tap in one turn of the event loop, so that everything else gets one.
const BURST: usize = 64;

/// An open tap without packet information (`IFF_NO_PI`), non-blocking.
pub(super) struct Tap {
    file: File,
    received: Box<[u8]>,
    budget: usize,
}

impl Tap {
    pub(super) fn new(file: File) -> Self {
        Self { file, received: vec![0; MAX_FRAME + 4].into(), budget: BURST }
    }

    /// Begins another turn. True if the last one ended before the tap was empty.
    pub(super) fn begin_turn(&mut self) -> bool {
        std::mem::replace(&mut self.budget, BURST) == 0
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl phy::Device for Tap {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        self.budget = self.budget.checked_sub(1)?;
        // An interface that is down reads as an error; to a guest that is a cable pulled out.
        let length = self.file.read(&mut self.received).ok()?;
        Some((RxToken(self.received.get(..length)?), TxToken(&self.file)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        Some(TxToken(&self.file))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities
    }
}

/// One frame that came.
pub(super) struct RxToken<'a>(&'a [u8]);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// Leave to send one frame.
pub(super) struct TxToken<'a>(&'a File);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, length: usize, fill: F) -> R {
        let mut frame = [0; MAX_FRAME];
        let frame = &mut frame[..length.min(MAX_FRAME)];
        let result = fill(frame);
        // What a full or absent wire does not take is lost, as on any wire.
        let _ = self.0.write(frame);
        result
    }
}
