//! The kernel's verdicts by flow: which slot of the array each has.
//!
//! A program that runs while its entry goes may read the slot a moment longer. So a slot rests for
//! [`REST`] before another flow gets it, and the program believes an entry only if it names the
//! frame's own flow.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;
use thiserror::Error;

use crate::sys::express::{self, FlowId, FlowVerdict, Program, Progress};

/// How long a slot stays unused after its flow is gone: a program runs for microseconds.
const REST: Duration = Duration::from_secs(2);

/// Set in the tag of a frame that belongs to a flow of the table.
pub(crate) const COUNTED: u16 = 1 << 12;

/// Where the generation of a flow is in the tag: three bits.
const GENERATION: u16 = 13;

/// The flows whose verdicts the kernel has.
pub struct FlowTable {
    program: Arc<Program>,
    state: Mutex<State>,
}

/// Handle of a flow in the table; good until it is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot(u32);

/// A flow whose verdict has outlived the process that wrote it.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    /// The flow.
    pub id: FlowId,
    /// Where it is.
    pub slot: Slot,
    /// What was written.
    pub verdict: FlowVerdict,
}

/// Why a verdict is not in the table.
#[derive(Debug, Error)]
pub enum InstallError {
    /// Every slot is taken, or rests.
    #[error("the express lane's {0} flows are all in use")]
    Full(u32),
    /// The kernel refused.
    #[error("the kernel refused a flow of the express lane")]
    Kernel(#[from] io::Error),
}

#[derive(Default)]
struct State {
    slots: HashMap<FlowId, u32>,
    free: Vec<u32>,
    /// Slots whose flows are gone, and since when.
    resting: VecDeque<(Instant, u32)>,
}

impl FlowTable {
    pub(super) fn new(program: Arc<Program>) -> Self {
        let free = (0..program.slots()).rev().collect();
        Self { program, state: Mutex::new(State { free, ..State::default() }) }
    }

    /// The table of a program whose maps have outlived another process, and what it holds. Cost: a
    /// system call per flow.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn resume(program: Arc<Program>) -> io::Result<(Self, Vec<Inherited>)> {
        let (mut state, mut inherited) = (State::default(), Vec::new());
        for slot in (0..program.slots()).rev() {
            match program.slot(slot).and_then(express::Slot::read) {
                None => state.free.push(slot),
                Some((id, verdict)) => {
                    // The process may have died before it had done so.
                    program.insert(&id, slot)?;
                    state.slots.insert(id, slot);
                    inherited.push(Inherited { id, slot: Slot(slot), verdict });
                }
            }
        }
        Ok((Self { program, state: Mutex::new(state) }, inherited))
    }

    /// Gives the kernel a verdict. It replaces the flow's older one. Its first frames still go the
    /// long way, until those before them have left the switch. A flow that has this very verdict
    /// already keeps it, and what came of it so far.
    ///
    /// # Errors
    /// If there is no room, or the kernel refuses.
    pub fn install(&self, id: &FlowId, verdict: &FlowVerdict) -> Result<Slot, InstallError> {
        let mut state = self.state.lock();
        if let Some(&old) = state.slots.get(id) {
            if let Some(cell) = self.program.slot(old)
                && cell.read() == Some((*id, *verdict))
            {
                if cell.is_held() {
                    cell.restart(next_mark(cell.mark()));
                }
                return Ok(Slot(old));
            }
            state.slots.remove(id);
            self.rest(&mut state, id, old);
        }
        let full = || InstallError::Full(self.program.slots());
        let slot = state.take_free().ok_or_else(full)?;
        let cell = self.program.slot(slot).ok_or_else(full)?;
        cell.write(id, verdict, next_mark(cell.mark()));
        if let Err(error) = self.program.insert(id, slot) {
            cell.close();
            state.free.push(slot);
            return Err(error.into());
        }
        state.slots.insert(*id, slot);
        Ok(Slot(slot))
    }

    /// Takes a verdict from the kernel: the flow's next frame is a miss. Does nothing if another
    /// has taken its place.
    pub fn remove(&self, id: &FlowId, slot: Slot) {
        let mut state = self.state.lock();
        if state.slots.get(id) == Some(&slot.0) {
            state.slots.remove(id);
            self.rest(&mut state, id, slot.0);
        }
    }

    /// Out of the index first: should the process die in between, its successor finds either a flow
    /// that it can put back, or no trace.
    fn rest(&self, state: &mut State, id: &FlowId, slot: u32) {
        self.program.remove(id);
        if let Some(cell) = self.program.slot(slot) {
            cell.close();
        }
        state.resting.push_back((Instant::now(), slot));
    }

    /// What came of a flow so far.
    pub fn progress(&self, slot: Slot) -> Progress {
        self.program.slot(slot.0).map(express::Slot::progress).unwrap_or_default()
    }

    /// Whether the flow's frames still go the long way, because others before them do.
    pub fn is_held(&self, slot: Slot) -> bool {
        self.program.slot(slot.0).is_some_and(express::Slot::is_held)
    }

    /// Counts a flow's frames on the long way anew, after some of them were lost there.
    pub fn restart(&self, slot: Slot) {
        if let Some(cell) = self.program.slot(slot.0) {
            cell.restart(next_mark(cell.mark()));
        }
    }

    /// Whether the flow has a verdict.
    pub fn contains(&self, id: &FlowId) -> bool {
        self.state.lock().slots.contains_key(id)
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.state.lock().slots.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The flow of a frame with this tag, if its way is being counted still.
    pub(super) fn counted(&self, id: &FlowId, tag: u16) -> Option<Slot> {
        let slot = *self.state.lock().slots.get(id)?;
        let cell = self.program.slot(slot)?;
        let mark = COUNTED | !0 << GENERATION;
        (cell.mark() == tag & mark).then_some(Slot(slot))
    }

    /// A counted frame of the flow has left the switch.
    pub(super) fn pass(&self, slot: Slot) {
        if let Some(cell) = self.program.slot(slot.0) {
            cell.pass();
        }
    }
}

impl State {
    fn take_free(&mut self) -> Option<u32> {
        while let Some(&(since, slot)) = self.resting.front()
            && since.elapsed() >= REST
        {
            self.resting.pop_front();
            self.free.push(slot);
        }
        self.free.pop()
    }
}

/// The mark of the next generation.
const fn next_mark(mark: u16) -> u16 {
    mark.wrapping_add(1 << GENERATION) | COUNTED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_differ_from_their_neighbours_and_from_ports() {
        let mut mark = next_mark(0);
        for _ in 0..20 {
            let next = next_mark(mark);
            assert_ne!(next, mark);
            assert_eq!(next & 0x1fff, COUNTED, "no bit of a VLAN identifier");
            mark = next;
        }
    }
}
