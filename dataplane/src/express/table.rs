//! The kernel's verdicts by flow: which slot of the array each has.
//!
//! A program that runs while its entry goes may read the slot a moment longer. So a slot rests for
//! [`REST`] before another flow gets it, and the program believes an entry only if it names the
//! frame's own flow.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::{DefaultHashBuilder, HashTable};
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

/// A punted frame whose way through the switch is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    slot: u32,
    /// The flow's when the frame was punted: if the flow began anew since, the frame counts no more.
    mark: u16,
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
    index: Index,
    /// Slots from here on were never used.
    fresh: u32,
    free: Vec<u32>,
    /// Slots whose flows are gone, and since when.
    resting: VecDeque<(Instant, u32)>,
}

/// The slots of the flows in the table. Whose a slot is stands in the slot, so a flow takes five bytes
/// here.
#[derive(Default)]
struct Index {
    slots: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Index {
    fn get(&self, program: &Program, id: &FlowId) -> Option<u32> {
        self.slots.find(self.hasher.hash_one(Some(*id)), |&slot| is_of(program, slot, id)).copied()
    }

    /// Adds a flow that is not there, and whose slot has been written.
    fn insert(&mut self, program: &Program, id: &FlowId, slot: u32) {
        let Self { slots, hasher } = self;
        let hash_of = |&slot: &u32| hasher.hash_one(program.slot(slot).map(express::Slot::id));
        slots.insert_unique(hasher.hash_one(Some(*id)), slot, hash_of);
    }

    fn remove(&mut self, program: &Program, id: &FlowId) -> Option<u32> {
        let hash = self.hasher.hash_one(Some(*id));
        let entry = self.slots.find_entry(hash, |&slot| is_of(program, slot, id));
        entry.ok().map(|entry| entry.remove().0)
    }
}

fn is_of(program: &Program, slot: u32, id: &FlowId) -> bool {
    program.slot(slot).is_some_and(|cell| cell.id() == *id)
}

impl FlowTable {
    pub(super) fn new(program: Arc<Program>) -> Self {
        Self { program, state: Mutex::default() }
    }

    /// The table of a program whose maps have outlived another process, and what it holds. Cost: a
    /// system call per flow.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn resume(program: Arc<Program>) -> io::Result<(Self, Vec<Inherited>)> {
        let fresh = program.slots();
        let (mut state, mut inherited) = (State { fresh, ..State::default() }, Vec::new());
        for slot in (0..program.slots()).rev() {
            match program.slot(slot).and_then(express::Slot::read) {
                None => state.free.push(slot),
                Some((id, verdict)) => {
                    // The process may have died before it had done so.
                    program.insert(&id, slot)?;
                    state.index.insert(&program, &id, slot);
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
        if let Some(old) = state.index.get(&self.program, id) {
            if let Some(cell) = self.program.slot(old)
                && cell.read() == Some((*id, *verdict))
            {
                if cell.is_held() {
                    cell.restart(next_mark(cell.mark()));
                }
                return Ok(Slot(old));
            }
            state.index.remove(&self.program, id);
            self.rest(&mut state, id, old);
        }
        let full = || InstallError::Full(self.program.slots());
        let slot = state.take_free(self.program.slots()).ok_or_else(full)?;
        let cell = self.program.slot(slot).ok_or_else(full)?;
        cell.write(id, verdict, next_mark(cell.mark()));
        if let Err(error) = self.program.insert(id, slot) {
            cell.close();
            state.free.push(slot);
            return Err(error.into());
        }
        state.index.insert(&self.program, id, slot);
        Ok(Slot(slot))
    }

    /// Takes a verdict from the kernel: the flow's next frame is a miss. Does nothing if another
    /// has taken its place.
    pub fn remove(&self, id: &FlowId, slot: Slot) {
        let mut state = self.state.lock();
        if state.index.get(&self.program, id) == Some(slot.0) {
            state.index.remove(&self.program, id);
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
        self.state.lock().index.get(&self.program, id).is_some()
    }

    /// How many frames the kernel has redirected of each, and to which interface.
    pub(super) fn redirected(&self) -> HashMap<FlowId, (u64, u32)> {
        let state = self.state.lock();
        let cells = state.index.slots.iter().filter_map(|&slot| self.program.slot(slot));
        cells.map(|cell| (cell.id(), (cell.progress().frames, cell.egress()))).collect()
    }

    /// Holds no flow any longer, whatever of it is on the long way.
    pub(super) fn let_go(&self) {
        let state = self.state.lock();
        let cells = state.index.slots.iter().filter_map(|&slot| self.program.slot(slot));
        cells.for_each(express::Slot::let_go);
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.state.lock().index.slots.len()
    }

    /// Most flows that fit.
    pub fn capacity(&self) -> u32 {
        self.program.slots()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The flow of a frame with this tag, if its way is being counted still.
    pub(super) fn counted(&self, id: &FlowId, tag: u16) -> Option<Counted> {
        let slot = self.state.lock().index.get(&self.program, id)?;
        let mark = tag & (COUNTED | !0 << GENERATION);
        (self.program.slot(slot)?.mark() == mark).then_some(Counted { slot, mark })
    }

    /// A counted frame of the flow has left the switch.
    pub(super) fn pass(&self, Counted { slot, mark }: Counted) {
        if let Some(cell) = self.program.slot(slot)
            && cell.mark() == mark
        {
            cell.pass();
        }
    }
}

impl State {
    fn take_free(&mut self, slots: u32) -> Option<u32> {
        while let Some(&(since, slot)) = self.resting.front()
            && since.elapsed() >= REST
        {
            self.resting.pop_front();
            self.free.push(slot);
        }
        self.free.pop().or_else(|| {
            let slot = self.fresh;
            self.fresh += u32::from(slot < slots);
            (slot < slots).then_some(slot)
        })
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
