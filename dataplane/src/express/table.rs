//! The kernel's verdicts by flow: which slot of the array each has.
//!
//! A program that runs while its entry goes may read the slot a moment longer. So a slot rests for
//! [`REST`] before another flow gets it, and the program believes an entry only if it names the
//! frame's own flow.
//!
//! A flow gets the lowest slot that is free. So the slots in use are close together whatever came and went before,
//! and ten thousand flows after a hundred thousand short ones lie as they would in a new table.
//!
//! Everybody may look a flow up at any time; whoever gives or takes a verdict does so under one lock. A
//! port whose workload begins flows as fast as it can fills no more than [leaves the others
//! theirs](Slots::take).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;
use thiserror::Error;

use super::index::Index;
use super::resizing::Resizing;
use super::slot_set::SlotSet;
use crate::sys::express::{self, Begin, FlowId, FlowVerdict, Program, Progress};

/// How long a slot stays unused after its flow is gone: a program runs for microseconds.
const REST: Duration = Duration::from_secs(2);

/// Set in the tag of a frame that belongs to a flow of the table.
pub(crate) const COUNTED: u16 = 1 << 12;

/// Where the generation of a flow is in the tag: three bits.
const GENERATION: u16 = 13;

/// The flows whose verdicts the kernel has.
pub struct FlowTable {
    program: Arc<Program>,
    slots: Mutex<Slots>,
}

/// Handle of a flow in the table; good until it is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot(u32);

impl Slot {
    /// Its number: slots in use are close together, and below [`FlowTable::capacity`].
    pub(super) const fn number(self) -> usize {
        self.0 as usize
    }
}

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

impl Counted {
    /// As a number that is not 0.
    pub(super) fn pack(self) -> u64 {
        u64::from(self.mark) << 32 | u64::from(self.slot)
    }

    /// The other way round; `None` of 0.
    pub(super) fn unpack(packed: u64) -> Option<Self> {
        (packed != 0).then_some(Self { slot: packed as u32, mark: (packed >> 32) as u16 })
    }
}

/// Why a verdict is not in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InstallError {
    /// Every slot is taken, or rests.
    #[error("the express lane's {0} flows are all in use")]
    Full(u32),
    /// What is left is for ports that have less.
    #[error("the express lane's {0} flows are nearly all in use, and the port has its share")]
    Share(u32),
}

/// Which slots are in use, and by whose flows.
struct Slots {
    free: SlotSet,
    /// Slots whose flows are gone, and since when.
    resting: VecDeque<(Instant, u32)>,
    /// How many are in use, or rest, by who [pays](FlowVerdict::payer) for them.
    by_payer: HashMap<u32, u32>,
    /// Slots whose flows have verdicts, as the index has them.
    index: Resizing,
}

impl FlowTable {
    /// The table of a program whose maps are new.
    pub(super) fn new(program: Arc<Program>) -> Self {
        let mut slots = Slots::new(program.slots().count());
        (0..program.slots().count()).for_each(|slot| slots.free.insert(slot));
        Self { program, slots: Mutex::new(slots) }
    }

    /// The table of a program whose maps have outlived another process, and what it holds.
    pub(super) fn resume(program: Arc<Program>) -> (Self, Vec<Inherited>) {
        // Half-open connections have ended with their process.
        program.slots().iter().filter(express::Slot::is_asked).for_each(|cell| cell.close());
        let index = program.index().current();
        index.tidy(0..index.len());
        let mut inherited = Vec::new();
        let mut slots = Slots::new(program.slots().count());
        for (number, cell) in (0..).zip(program.slots().iter()) {
            let Some((id, verdict)) = cell.read() else {
                slots.free.insert(number);
                continue;
            };
            *slots.by_payer.entry(verdict.payer(&id)).or_default() += 1;
            // The process may have died before it had done so.
            if index.find(&id) == Some(number)
                || index.find(&id).is_none() && index.insert(&id, number)
            {
                slots.index.resume(number);
                inherited.push(Inherited { id, slot: Slot(number), verdict });
            } else {
                cell.close();
                slots.resting.push_back((Instant::now(), number));
            }
        }
        (Self { program, slots: Mutex::new(slots) }, inherited)
    }

    /// Gives the kernel a verdict. It replaces the flow's older one. Its first frames still go the
    /// long way, until those before them have left the switch. A flow of which the kernel does the same
    /// already, by whatever policy, goes on without them, and keeps what came of it so far. Cost: some
    /// stores to memory, no system call.
    ///
    /// # Errors
    /// If there is no room.
    pub fn install(&self, id: &FlowId, verdict: &FlowVerdict) -> Result<Slot, InstallError> {
        self.put(id, verdict, Begin::Held)
    }

    /// As [`install`](Self::install), and `begin` says what becomes of its first frames.
    ///
    /// # Errors
    /// If there is no room.
    pub(super) fn put(
        &self,
        id: &FlowId,
        verdict: &FlowVerdict,
        begin: Begin,
    ) -> Result<Slot, InstallError> {
        let mut slots = self.slots.lock();
        if let Some(old) = self.index().find(id) {
            if !begin.is_asked()
                && let Some(cell) = self.cell(old)
                && let Some((_, earlier)) = cell.read()
                && earlier.does_as(verdict)
            {
                cell.renew(verdict.rule, verdict.epoch);
                return Ok(Slot(old));
            }
            self.rest(&mut slots, id, old);
        }
        let payer = verdict.payer(id);
        let slot = slots.take(payer, &self.program)?;
        let full = InstallError::Full(self.capacity());
        let cell = self.cell(slot).ok_or(full)?;
        cell.write(id, verdict, next_mark(cell.mark()), begin);
        if !slots.index.insert(&self.program.index(), id, slot) {
            cell.close();
            slots.give(payer, slot);
            return Err(full);
        }
        Ok(Slot(slot))
    }

    /// Says that a flow's verdict is that of another policy, too: by that rule of that epoch.
    pub fn renew(&self, slot: Slot, rule: u32, epoch: u64) {
        if let Some(cell) = self.cell(slot.0) {
            cell.renew(rule, epoch);
        }
    }

    /// Takes a verdict from the kernel: the flow's next frame is a miss. Does nothing if another
    /// has taken its place.
    pub fn remove(&self, id: &FlowId, slot: Slot) {
        let mut slots = self.slots.lock();
        if self.index().find(id) == Some(slot.0) {
            self.rest(&mut slots, id, slot.0);
        }
    }

    /// Out of the index first: should the process die in between, its successor finds a flow that it can
    /// put back.
    fn rest(&self, slots: &mut Slots, id: &FlowId, slot: u32) {
        slots.index.remove(&self.program.index(), id, slot);
        if let Some(cell) = self.cell(slot) {
            cell.close();
        }
        slots.resting.push_back((Instant::now(), slot));
    }

    fn index(&self) -> Index<'_> {
        self.program.index().current()
    }

    fn cell(&self, slot: u32) -> Option<express::Slot<'_>> {
        self.program.slots().get(slot)
    }

    /// The entries of flows that have verdicts.
    fn open_cells(&self) -> impl Iterator<Item = express::Slot<'_>> {
        self.program.slots().iter().filter(express::Slot::is_open)
    }

    /// What came of a flow so far.
    pub fn progress(&self, slot: Slot) -> Progress {
        self.cell(slot.0).map(|cell| cell.progress()).unwrap_or_default()
    }

    /// Whether the flow's frames still go the long way, because others before them do.
    pub fn is_held(&self, slot: Slot) -> bool {
        self.cell(slot.0).is_some_and(|cell| cell.is_held())
    }

    /// The SYN-ACK that a flow waited for has taken the long way.
    pub(super) fn answered(&self, slot: Slot, begin: Begin) {
        if let Some(cell) = self.cell(slot.0) {
            cell.answered(begin);
        }
    }

    /// Counts a flow's frames on the long way anew, after some of them were lost there.
    pub fn restart(&self, slot: Slot) {
        if let Some(cell) = self.cell(slot.0) {
            cell.restart(next_mark(cell.mark()));
        }
    }

    /// Where the flow is, if it has a verdict.
    pub(super) fn find(&self, id: &FlowId) -> Option<Slot> {
        self.index().find(id).map(Slot)
    }

    /// How many frames the kernel has redirected of each, and to which interface.
    pub(super) fn redirected(&self) -> HashMap<FlowId, (u32, u32)> {
        let cells = self.open_cells();
        cells.map(|cell| (cell.id(), (cell.progress().frames, cell.egress()))).collect()
    }

    /// Holds no flow any longer, whatever of it is on the long way.
    pub(super) fn let_go(&self) {
        self.open_cells().for_each(|cell| cell.let_go());
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.slots.lock().index.len() as usize
    }

    /// Most flows that fit.
    pub fn capacity(&self) -> u32 {
        self.program.slots().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The flow of a frame with this tag, if its way is being counted still.
    pub(super) fn counted(&self, id: &FlowId, tag: u16) -> Option<Counted> {
        let slot = self.index().find(id)?;
        let mark = tag & (COUNTED | !0 << GENERATION);
        (self.cell(slot)?.mark() == mark).then_some(Counted { slot, mark })
    }

    /// A counted frame of the flow has left the switch.
    pub(super) fn pass(&self, Counted { slot, mark }: Counted) {
        if let Some(cell) = self.cell(slot)
            && cell.mark() == mark
        {
            cell.pass();
        }
    }
}

impl Slots {
    /// Of a table of so many: none is free yet.
    fn new(count: u32) -> Self {
        Self {
            free: SlotSet::below(count),
            resting: VecDeque::new(),
            by_payer: HashMap::new(),
            index: Resizing::new(count),
        }
    }

    /// A slot for a flow that the port of that interface pays for. Of the last eighth, only ports get one that have
    /// less than their share of the whole: those that are open, or have flows, have equal ones.
    fn take(&mut self, payer: u32, program: &Program) -> Result<u32, InstallError> {
        self.wake(program.slots());
        let total = program.slots().count();
        let room = self.free.len();
        let own = self.by_payer.get(&payer).copied().unwrap_or(0);
        let ports = program.ports().max(self.by_payer.len() as u32 + u32::from(own == 0));
        if room <= total / 8 && own >= total.div_ceil(ports) && room > 0 {
            return Err(InstallError::Share(total));
        }
        let slot = self.free.next(0).ok_or(InstallError::Full(total))?;
        self.free.remove(slot);
        *self.by_payer.entry(payer).or_default() += 1;
        Ok(slot)
    }

    /// Takes back a slot that no program has seen since it was taken, or that has rested.
    fn give(&mut self, payer: u32, slot: u32) {
        self.free.insert(slot);
        if let Some(count) = self.by_payer.get_mut(&payer) {
            *count -= 1;
            if *count == 0 {
                self.by_payer.remove(&payer);
            }
        }
    }

    /// Takes back what has rested.
    fn wake(&mut self, cells: express::Slots<'_>) {
        while let Some(&(since, slot)) = self.resting.front()
            && since.elapsed() >= REST
        {
            self.resting.pop_front();
            if let Some(cell) = cells.get(slot) {
                self.give(cell.payer(), slot);
            }
        }
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
