//! The kernel's verdicts by flow: which slot of the array each has.
//!
//! A program that runs while its entry goes may read the slot a moment longer. So a slot rests for
//! [`REST`] before another flow gets it, and the program believes an entry only if it names the
//! frame's own flow.
//!
//! A flow gets the lowest slot that is free. So the slots in use are close together whatever came and went before,
//! and ten thousand flows after a hundred thousand short ones lie as they would in a new table.
//!
//! Each time that a slot is given to a flow is another *lease* of it, and a handle is of one. A connection that
//! has ended at one worker may begin anew at another one before the first has looked: the second gets a slot of
//! its own, and what the first one's handle is good for then is to read what came of the flow until then, for as
//! long as the slot rests.
//!
//! Everybody may look a flow up at any time; whoever gives or takes a verdict does so under one lock. A
//! port whose workload begins flows as fast as it can fills no more than [leaves the others
//! theirs](Slots::take).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;
use thiserror::Error;

use super::resizing::{Regions, Resizing};
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
    leases: Leases,
    slots: Mutex<Slots>,
}

/// Handle of a flow in the table; good until it is removed, or put there by another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    number: u32,
    lease: u8,
}

impl Slot {
    /// Its number: slots in use are close together, and below [`FlowTable::capacity`].
    pub(super) const fn number(self) -> usize {
        self.number as usize
    }
}

/// By slot: which lease of it is the last one. Counted from 1 to 255, and again: with the rests between them
/// that many take minutes, and a worker looks at each of its flows every second.
type Leases = Box<[AtomicU8]>;

/// The lease of a flow that another process has left: nobody's, until somebody puts the same flow there.
const NOBODYS: u8 = 0;

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
    /// How long they rest.
    rest: Duration,
    /// How many are in use, or rest, by who [pays](FlowVerdict::payer) for them.
    by_payer: HashMap<u32, u32>,
    /// Slots whose flows have verdicts, as the index has them.
    index: Resizing,
}

impl FlowTable {
    /// The table of a program. If its maps have outlived another process, what they hold is not known before
    /// [`resume`](Self::resume) has said it, and nothing may be given before.
    pub(super) fn new(program: Arc<Program>) -> Self {
        let count = program.slots().count();
        Self { leases: leases(count), slots: Mutex::new(Slots::new(count)), program }
    }

    /// Finds out what another process has left. Cost: a look at every slot.
    pub(super) fn resume(&self) -> Vec<Inherited> {
        let mut slots = self.slots.lock();
        // Half-open connections have ended with their process.
        self.program.slots().iter().filter(express::Slot::is_asked).for_each(|cell| cell.close());
        let inherited;
        (*slots, inherited) = Slots::resume(self.program.index());
        inherited
    }

    /// Gives the kernel a verdict. It replaces the flow's older one, whoever gave that: handles of it are good
    /// for nothing but to read what came of it. Its first frames still go the long way, until those before
    /// them have left the switch. A flow that another process has left, of which the kernel does the same
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
        self.slots.lock().put(self.shared(), id, verdict, begin)
    }

    /// Says that a flow's verdict is that of another policy, too: by that rule of that epoch. Does nothing if
    /// it was removed, or another has put it there.
    pub fn renew(&self, slot: Slot, rule: u32, epoch: u64) {
        if let Some(cell) = self.cell(slot) {
            cell.renew(rule, epoch);
        }
    }

    /// Takes a verdict from the kernel: the flow's next frame is a miss. Does nothing if another
    /// has taken its place.
    pub fn remove(&self, id: &FlowId, slot: Slot) {
        self.slots.lock().remove(self.shared(), id, slot);
    }

    fn shared(&self) -> Shared<'_> {
        let (regions, leases) = (self.program.index(), &self.leases);
        Shared { regions, leases, ports: self.program.ports() }
    }

    fn cell(&self, slot: Slot) -> Option<express::Slot<'_>> {
        self.shared().cell(slot)
    }

    /// The entries of flows that have verdicts.
    fn open_cells(&self) -> impl Iterator<Item = express::Slot<'_>> {
        self.program.slots().iter().filter(express::Slot::is_open)
    }

    /// What came of a flow so far, or until it was removed. `None` if another has its slot by now.
    pub fn progress(&self, slot: Slot) -> Option<Progress> {
        self.cell(slot).map(|cell| cell.progress())
    }

    /// Whether the flow's frames still go the long way, because others before them do.
    pub fn is_held(&self, slot: Slot) -> bool {
        self.cell(slot).is_some_and(|cell| cell.is_held())
    }

    /// The SYN-ACK that a flow waited for has taken the long way.
    pub(super) fn answered(&self, slot: Slot, begin: Begin) {
        if let Some(cell) = self.cell(slot) {
            cell.answered(begin);
        }
    }

    /// Counts a flow's frames on the long way anew, after some of them were lost there.
    pub fn restart(&self, slot: Slot) {
        // Under the lock: it closes the slot for a moment, and nobody else is to close it meanwhile.
        let _slots = self.slots.lock();
        if let Some(cell) = self.cell(slot)
            && cell.is_open()
        {
            cell.restart(next_mark(cell.mark()));
        }
    }

    /// Where the flow is, if it has a verdict.
    pub(super) fn find(&self, id: &FlowId) -> Option<Slot> {
        self.shared().find(id)
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
        let slot = self.shared().find(id)?;
        let mark = tag & (COUNTED | !0 << GENERATION);
        let is_counted = self.cell(slot)?.mark() == mark;
        is_counted.then_some(Counted { slot: slot.number, mark })
    }

    /// A counted frame of the flow has left the switch.
    pub(super) fn pass(&self, Counted { slot, mark }: Counted) {
        if let Some(cell) = self.program.slots().get(slot)
            && cell.mark() == mark
        {
            cell.pass();
        }
    }
}

/// What may be looked at without the lock.
#[derive(Clone, Copy)]
struct Shared<'a> {
    regions: Regions<'a>,
    leases: &'a [AtomicU8],
    /// Ports that are open.
    ports: u32,
}

impl<'a> Shared<'a> {
    /// Where the flow is, if it has a verdict.
    fn find(self, id: &FlowId) -> Option<Slot> {
        let number = self.regions.current().find(id)?;
        Some(Slot { number, lease: self.lease(number)?.load(Ordering::Acquire) })
    }

    /// What is of that lease still.
    fn cell(self, Slot { number, lease }: Slot) -> Option<express::Slot<'a>> {
        let is_it = self.lease(number)?.load(Ordering::Acquire) == lease;
        self.regions.slots.get(number).filter(|_| is_it)
    }

    /// The next lease of a slot begins.
    fn let_out(self, number: u32) -> Option<Slot> {
        let last = self.lease(number)?;
        let lease = last.load(Ordering::Relaxed).checked_add(1).unwrap_or(NOBODYS + 1);
        last.store(lease, Ordering::Release);
        Some(Slot { number, lease })
    }

    fn lease(self, number: u32) -> Option<&'a AtomicU8> {
        self.leases.get(number as usize)
    }
}

/// Of so many slots, which nobody has had.
fn leases(count: u32) -> Leases {
    (0..count).map(|_| AtomicU8::new(NOBODYS)).collect()
}

impl Slots {
    /// Of a table of so many: all are free.
    fn new(count: u32) -> Self {
        Self {
            free: SlotSet::all_below(count),
            resting: VecDeque::new(),
            rest: REST,
            by_payer: HashMap::new(),
            index: Resizing::new(count),
        }
    }

    /// As another process has left them, and what it has left in them.
    fn resume(regions: Regions<'_>) -> (Self, Vec<Inherited>) {
        let index = regions.current();
        index.tidy(0..index.len());
        let mut inherited = Vec::new();
        let mut slots = Self::new(regions.slots.count());
        for (number, cell) in (0..).zip(regions.slots.iter()) {
            let Some((id, verdict)) = cell.read() else { continue };
            slots.free.remove(number);
            *slots.by_payer.entry(verdict.payer(&id)).or_default() += 1;
            // The process may have died before it had done so.
            if index.find(&id) == Some(number)
                || index.find(&id).is_none() && index.insert(&id, number)
            {
                slots.index.resume(number);
                let slot = Slot { number, lease: NOBODYS };
                inherited.push(Inherited { id, slot, verdict });
            } else {
                cell.close();
                slots.resting.push_back((Instant::now(), number));
            }
        }
        (slots, inherited)
    }

    /// See [`FlowTable::put`].
    fn put(
        &mut self,
        shared: Shared<'_>,
        id: &FlowId,
        verdict: &FlowVerdict,
        begin: Begin,
    ) -> Result<Slot, InstallError> {
        let full = InstallError::Full(shared.regions.slots.count());
        if let Some(old) = shared.find(id) {
            if old.lease == NOBODYS
                && !begin.is_asked()
                && let Some(cell) = shared.cell(old)
                && let Some((_, earlier)) = cell.read()
                && earlier.does_as(verdict)
            {
                cell.renew(verdict.rule, verdict.epoch);
                return shared.let_out(old.number).ok_or(full);
            }
            self.lay_to_rest(shared, id, old);
        }
        let payer = verdict.payer(id);
        let number = self.take(payer, shared)?;
        let slot = shared.let_out(number).ok_or(full)?;
        let cell = shared.cell(slot).ok_or(full)?;
        cell.write(id, verdict, next_mark(cell.mark()), begin);
        if !self.index.insert(&shared.regions, id, number) {
            cell.close();
            self.give(payer, number);
            return Err(full);
        }
        Ok(slot)
    }

    /// See [`FlowTable::remove`].
    fn remove(&mut self, shared: Shared<'_>, id: &FlowId, slot: Slot) {
        if shared.find(id) == Some(slot) {
            self.lay_to_rest(shared, id, slot);
        }
    }

    /// Out of the index first: should the process die in between, its successor finds a flow that it can
    /// put back.
    fn lay_to_rest(&mut self, shared: Shared<'_>, id: &FlowId, slot: Slot) {
        self.index.remove(&shared.regions, id, slot.number);
        if let Some(cell) = shared.cell(slot) {
            cell.close();
        }
        self.resting.push_back((Instant::now(), slot.number));
    }

    /// A slot for a flow that the port of that interface pays for. Of the last eighth, only ports get one that have
    /// less than their share of the whole: those that are open, or have flows, have equal ones.
    fn take(&mut self, payer: u32, shared: Shared<'_>) -> Result<u32, InstallError> {
        self.wake(shared.regions.slots);
        let total = shared.regions.slots.count();
        let room = self.free.len();
        let own = self.by_payer.get(&payer).copied().unwrap_or(0);
        let ports = shared.ports.max(self.by_payer.len() as u32 + u32::from(own == 0));
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
            && since.elapsed() >= self.rest
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
    use std::collections::{BTreeMap, HashSet};
    use std::sync::atomic::AtomicU32;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::index::tests::{Memory, flow};
    use super::*;
    use crate::sys::express::{Bucket, Egress};

    /// Flows of a model, and slots for most of them.
    const FLOWS: u16 = 10;
    const SLOTS: u32 = 8;
    const WORKERS: usize = 3;

    /// A table in memory of its own, whose slots do not rest, and who should have what in it.
    struct Model {
        memory: Memory,
        buckets: Vec<Bucket>,
        in_use: AtomicU32,
        leases: Leases,
        slots: Slots,
        /// By worker and flow: what the worker was given last.
        handles: BTreeMap<(usize, u16), Slot>,
        /// By flow: which worker put it there, if not a process before, and the epoch of its verdict.
        owners: BTreeMap<u16, (Option<usize>, u64)>,
        epoch: u64,
    }

    /// What a worker does with a flow.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Put { is_reply: bool },
        Remove,
        Renew,
    }

    fn step() -> impl Strategy<Value = (Step, usize, u16)> {
        let put = any::<bool>().prop_map(|is_reply| Step::Put { is_reply });
        (prop_oneof![put, Just(Step::Remove), Just(Step::Renew)], 0..WORKERS, 0..FLOWS)
    }

    fn verdict(epoch: u64, is_reply: bool) -> FlowVerdict {
        FlowVerdict {
            eth_dst: [2, 0, 0, 0, 0, 1],
            eth_src: [2, 0, 0, 0, 0, 2],
            egress: Egress::Transmit(9),
            max_frame: 1514,
            rule: epoch as u32,
            epoch,
            is_reply,
            tcp_flags: 0,
        }
    }

    impl Model {
        /// A process before has left so many flows.
        fn new(inherited: u16) -> Self {
            let memory = Memory::new(SLOTS);
            for number in 0..inherited {
                let cell = memory.slot(number.into());
                cell.write(&flow(number), &verdict(1, false), COUNTED, Begin::AtOnce);
            }
            let buckets: Vec<Bucket> = (0..2).map(|_| Bucket::default()).collect();
            let in_use = AtomicU32::new(1);
            let (slots, hashing) = (memory.slots(), &memory.hashing);
            let regions = Regions { buckets: &buckets, in_use: &in_use, least: 1, slots, hashing };
            let (mut slots, found) = Slots::resume(regions);
            slots.rest = Duration::ZERO;
            assert_eq!(found.len(), usize::from(inherited));
            let (leases, handles) = (leases(SLOTS), BTreeMap::new());
            let owners = (0..inherited).map(|number| (number, (None, 1))).collect();
            Self { memory, buckets, in_use, leases, slots, handles, owners, epoch: 1 }
        }

        fn with<T>(&mut self, change: impl FnOnce(&mut Slots, Shared<'_>) -> T) -> T {
            let Self { memory, buckets, in_use, leases, slots: booked, .. } = self;
            let (slots, hashing) = (memory.slots(), &memory.hashing);
            let regions = Regions { buckets, in_use, least: 1, slots, hashing };
            change(booked, Shared { regions, leases, ports: 1 })
        }

        fn take(&mut self, step: Step, worker: usize, number: u16) {
            let id = flow(number);
            self.epoch += 1;
            let epoch = self.epoch;
            let handle = self.handles.get(&(worker, number)).copied();
            let is_owner = self.owners.get(&number).is_some_and(|it| it.0 == Some(worker));
            match (step, handle) {
                (Step::Put { is_reply }, _) => {
                    let verdict = verdict(epoch, is_reply);
                    let put = |slots: &mut Slots, shared: Shared<'_>| {
                        slots.put(shared, &id, &verdict, Begin::Held)
                    };
                    self.owners.remove(&number);
                    if let Ok(slot) = self.with(put) {
                        self.handles.insert((worker, number), slot);
                        self.owners.insert(number, (Some(worker), epoch));
                    }
                }
                (Step::Remove, Some(slot)) => {
                    self.with(|slots, shared| slots.remove(shared, &id, slot));
                    if is_owner {
                        self.owners.remove(&number);
                    }
                }
                (Step::Renew, Some(slot)) => {
                    let cell = |_: &mut Slots, shared: Shared<'_>| {
                        shared.cell(slot).into_iter().for_each(|cell| cell.renew(0, epoch));
                    };
                    self.with(cell);
                    if is_owner {
                        self.owners.insert(number, (Some(worker), epoch));
                    }
                }
                (Step::Remove | Step::Renew, None) => {}
            }
        }

        fn check(&mut self) -> Result<(), TestCaseError> {
            let (owners, handles) = (self.owners.clone(), self.handles.clone());
            self.with(|slots, shared| {
                let mut live = HashSet::new();
                for number in 0..FLOWS {
                    let found = shared.find(&flow(number));
                    let Some(&(owner, epoch)) = owners.get(&number) else {
                        prop_assert_eq!(found, None, "{}", number);
                        continue;
                    };
                    let slot = found.ok_or_else(|| TestCaseError::fail("it is not there"))?;
                    prop_assert!(live.insert(slot.number), "{} is of two flows", slot.number);
                    let read = shared.cell(slot).and_then(|cell| cell.read());
                    prop_assert_eq!(read.map(|it| (it.0, it.1.epoch)), Some((flow(number), epoch)));
                    for (&(worker, other), &handle) in &handles {
                        let is_its = (Some(worker), other) == (owner, number);
                        prop_assert_eq!(handle == slot, is_its, "{} of {}", worker, other);
                    }
                }
                let counts = [live.len(), slots.resting.len(), slots.free.len() as usize];
                prop_assert_eq!(counts.iter().sum::<usize>(), SLOTS as usize, "{:?}", counts);
                prop_assert_eq!(slots.index.len() as usize, live.len());
                let paid: u32 = slots.by_payer.values().sum();
                prop_assert_eq!(paid as usize, counts[0] + counts[1]);
                let open = shared.regions.slots.iter().filter(express::Slot::is_open).count();
                prop_assert_eq!(open, live.len());
                Ok(())
            })
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Workers put, renew and remove flows as if none knew of the others.
        #[test]
        fn each_flow_is_one_workers(inherited in 0..5u16, steps in vec(step(), 1..80)) {
            let mut model = Model::new(inherited);
            for (step, worker, number) in steps {
                model.take(step, worker, number);
                model.check()?;
            }
        }
    }

    #[test]
    fn what_a_process_has_left_is_taken_over_where_it_is_and_once() {
        let mut model = Model::new(1);
        let put = |model: &mut Model, worker| {
            model.take(Step::Put { is_reply: false }, worker, 0);
            model.check().unwrap();
            model.handles[&(worker, 0)]
        };
        // The flow's frames are counted there, and another worker's connection begins with none.
        let taken_over = put(&mut model, 0);
        assert_eq!(taken_over, Slot { number: 0, lease: 1 });
        model.slots.rest = REST;
        assert_eq!(put(&mut model, 1), Slot { number: 1, lease: 1 });
    }

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
