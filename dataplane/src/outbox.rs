//! The outbox: frames queued for output, by port, until the turn's end.
//!
//! One queue per port makes one tx batch and one kick per port and turn. What a full tx ring leaves
//! behind waits for the next turn, up to [`DEPTH`] frames.

use std::sync::Arc;

use firedoor_classifier::{DropReason, PortId};

use crate::counters::PortCells;
use crate::frame::Frame;
use crate::pool::FramePool;

/// Most frames that wait for one port.
const DEPTH: usize = 1024;

/// What a worker knows of each port of the switch.
#[derive(Debug, Default)]
pub struct Outbox {
    slots: Vec<Option<Slot>>,
    /// Ports with frames queued, each once.
    waiting: Vec<PortId>,
}

#[derive(Debug)]
struct Slot {
    home: Home,
    cells: Arc<PortCells>,
    frames: Vec<Frame>,
}

/// Who sends a port's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// This worker, if they are at most so many bytes long.
    Here {
        /// The longest frame the port takes.
        max_frame: usize,
        /// Every worker has a queue of the port, so all send their own.
        everywhere: bool,
    },
    /// That worker.
    Worker(u16),
}

impl Outbox {
    /// This worker sends the port's frames from now on.
    pub fn add_local(
        &mut self,
        id: PortId,
        max_frame: usize,
        everywhere: bool,
        cells: Arc<PortCells>,
    ) {
        self.set(id, Home::Here { max_frame, everywhere }, cells);
    }

    /// Another worker sends the port's frames from now on.
    pub fn add_remote(&mut self, id: PortId, worker: u16, cells: Arc<PortCells>) {
        self.set(id, Home::Worker(worker), cells);
    }

    /// The port is gone. Returns what was queued for it.
    pub fn remove(&mut self, id: PortId) -> Vec<Frame> {
        self.waiting.retain(|&waiting| waiting != id);
        let slot = self.slots.get_mut(id.0 as usize).and_then(Option::take);
        slot.map(|slot| slot.frames).unwrap_or_default()
    }

    /// Who sends the port's frames; `None` if the port is not attached.
    pub fn home(&self, id: PortId) -> Option<Home> {
        self.slot(id).map(|slot| slot.home)
    }

    /// This worker's counters of the port.
    pub fn cells(&self, id: PortId) -> Option<&PortCells> {
        self.slot(id).map(|slot| &*slot.cells)
    }

    /// Queues a frame for a port of this worker.
    ///
    /// # Errors
    /// The frame, and the reason it cannot be sent.
    pub fn push(&mut self, id: PortId, frame: Frame) -> Result<(), (Frame, DropReason)> {
        let Some(Some(slot)) = self.slots.get_mut(id.0 as usize) else {
            return Err((frame, DropReason::PortDown));
        };
        let Home::Here { max_frame, .. } = slot.home else {
            return Err((frame, DropReason::PortDown));
        };
        if frame.len() > max_frame {
            return Err((frame, DropReason::TooBig));
        }
        if slot.frames.len() >= DEPTH {
            return Err((frame, DropReason::TxFull));
        }
        if slot.frames.is_empty() {
            self.waiting.push(id);
        }
        slot.frames.push(frame);
        Ok(())
    }

    /// Step 7: gives what is queued to `transmit`, one batch per port, which takes frames from the
    /// front and says how many. Returns frames sent.
    pub fn flush(&mut self, mut transmit: impl FnMut(PortId, &mut Vec<Frame>) -> usize) -> u64 {
        let mut total = 0;
        let slots = &mut self.slots;
        self.waiting.retain(|&id| {
            let Some(Some(slot)) = slots.get_mut(id.0 as usize) else { return false };
            let queued: u64 = slot.frames.iter().map(|frame| frame.len() as u64).sum();
            let sent = transmit(id, &mut slot.frames) as u64;
            let left: u64 = slot.frames.iter().map(|frame| frame.len() as u64).sum();
            slot.cells.tx_frames.add(sent);
            slot.cells.tx_bytes.add(queued - left);
            total += sent;
            !slot.frames.is_empty()
        });
        total
    }

    /// Whether a full ring left frames behind.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Gives every queued frame back, as a worker's end wants it.
    pub fn clear(&mut self, pool: &mut FramePool) {
        self.waiting.clear();
        for slot in self.slots.iter_mut().flatten() {
            slot.frames.drain(..).for_each(|frame| pool.give(frame));
        }
    }

    fn slot(&self, id: PortId) -> Option<&Slot> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    fn set(&mut self, id: PortId, home: Home, cells: Arc<PortCells>) {
        let index = id.0 as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        let frames = self.remove(id);
        self.slots[index] = Some(Slot { home, cells, frames });
        if !self.slots[index].as_ref().is_none_or(|slot| slot.frames.is_empty()) {
            self.waiting.push(id);
        }
    }
}
