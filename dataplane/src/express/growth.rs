//! An index as large as the slots that were ever in use, so that flows stand close together.
//!
//! Spread over an index for as many flows as may ever come, each flow would have a cache line of its own, and a
//! few have a page: ten thousand would push each other out of the second-level cache. So the index begins
//! small, and where it has less than two cells a slot it is laid out anew, twice as large, beside the old one: *regions*
//! of 2^n buckets lie in one array, each at the bucket of that number. Whoever searches learns from one word
//! which region is in use, and then searches that.
//!
//! It is laid out a few slots at a time, with each flow that gets a verdict; slots are close together, so it
//! goes by their numbers. Slots count, not flows: where flows come and go quickly, the slots of those that are gone
//! rest, and there are far more to visit than flows. An index of as many cells as its few flows need would be
//! full before all were. Meanwhile what comes and goes does so in both regions. Once all slots were visited, the
//! word changes. The old region stays as it was for who searches it still, and is never used again: a table
//! that empties keeps its index.
//!
//! Invariants, beside [`Index`]'s:
//! - The larger region has every flow of the slots below `Growth::next`, and of those from it on only what came
//!   since.
//! - A region that is not in use yet is empty but for what a growth put there, unless one found no room in it.
//!   Such an index stays as it is.

use std::sync::atomic::{AtomicU32, Ordering};

use super::index::Index;
use crate::sys::express::{Bucket, CELLS, FlowId, Hashing, Slot, Slots};

/// Slots that each new flow brings into the larger region: then a table grows while it gets a thirtieth more flows.
const PER_FLOW: u32 = 32;

/// An array of regions, and which one is in use.
#[derive(Clone, Copy)]
pub(crate) struct Regions<'a> {
    /// Twice as many as the largest region has.
    pub(crate) buckets: &'a [Bucket],
    /// Buckets of the region that is in use: a power of two.
    pub(crate) in_use: &'a AtomicU32,
    pub(crate) slots: Slots<'a>,
    pub(crate) hashing: &'a Hashing,
}

impl<'a> Regions<'a> {
    /// The region in use.
    pub(crate) fn current(&self) -> Index<'a> {
        self.region(self.in_use.load(Ordering::Acquire)).unwrap_or_else(|| self.index(&[]))
    }

    /// The region of so many buckets, if there is one.
    fn region(&self, buckets: u32) -> Option<Index<'a>> {
        let from = buckets as usize;
        self.buckets.get(from..2 * from).map(|buckets| self.index(buckets))
    }

    fn larger(&self) -> Option<Index<'a>> {
        self.region(2 * self.in_use.load(Ordering::Acquire))
    }

    fn index(&self, buckets: &'a [Bucket]) -> Index<'a> {
        Index::new(buckets, self.slots, self.hashing)
    }

    /// Empties what a process has left half done that ended at any time.
    pub(crate) fn tidy(&self) {
        self.current().tidy();
        let unused = 2 * self.in_use.load(Ordering::Acquire) as usize;
        let cells = self.buckets.iter().skip(unused).flat_map(|bucket| &bucket.cells);
        cells.filter(|cell| cell.load(Ordering::Relaxed) != 0).for_each(|cell| {
            cell.store(0, Ordering::Relaxed);
        });
    }
}

/// How far an index has grown.
#[derive(Default)]
pub(crate) struct Growth {
    /// While there is a larger region: the slot to bring there next.
    next: Option<u32>,
    /// Somebody found no room in a larger region.
    is_over: bool,
}

impl Growth {
    /// Says that a flow, which is in none, is in that slot. Returns whether there was room for it.
    #[must_use]
    pub(crate) fn insert(&mut self, regions: &Regions<'_>, id: &FlowId, slot: u32) -> bool {
        let is_in = regions.current().insert(id, slot);
        if is_in && self.next.is_some_and(|next| slot < next) {
            self.bring(regions, id, slot);
        }
        is_in
    }

    /// A flow is in that slot no more.
    pub(crate) fn remove(&self, regions: &Regions<'_>, id: &FlowId, slot: u32) {
        regions.current().remove(id, slot);
        if let Some(larger) = self.larger(regions) {
            larger.remove(id, slot);
        }
    }

    /// Goes on, or begins, if the slots below `fresh` are too many for the region in use. The others were
    /// never used.
    pub(crate) fn advance(&mut self, regions: &Regions<'_>, fresh: u32) {
        let cells = regions.in_use.load(Ordering::Acquire).saturating_mul(CELLS as u32);
        let is_due = fresh > cells / 2 && !self.is_over && regions.larger().is_some();
        let Some(from) = self.next.or_else(|| is_due.then_some(0)) else { return };
        let to = fresh.min(from.saturating_add(PER_FLOW));
        self.next = Some(to);
        for number in from..to {
            let slot = regions.slots.get(number);
            if let Some(slot) = slot.filter(Slot::is_open) {
                self.bring(regions, &slot.id(), number);
            }
        }
        if to == fresh && self.next.take().is_some() {
            regions.in_use.fetch_add(regions.in_use.load(Ordering::Acquire), Ordering::SeqCst);
        }
    }

    /// Brings a flow into the larger region; if there is no room in it, it is given up.
    fn bring(&mut self, regions: &Regions<'_>, id: &FlowId, slot: u32) {
        if !self.larger(regions).is_some_and(|larger| larger.insert(id, slot)) {
            (self.next, self.is_over) = (None, true);
        }
    }

    fn larger<'a>(&self, regions: &Regions<'a>) -> Option<Index<'a>> {
        self.next.and_then(|_| regions.larger())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::index::tests::{Memory, flow};
    use super::*;

    /// A table whose index begins with as many buckets as a test says.
    struct Table {
        buckets: Vec<Bucket>,
        in_use: AtomicU32,
        memory: Memory,
        growth: Growth,
        fresh: u32,
        free: Vec<u32>,
        resting: Vec<u32>,
        flows: HashMap<u16, u32>,
    }

    impl Table {
        fn new(first: u32, largest: u32) -> Self {
            Self {
                buckets: (0..2 * largest).map(|_| Bucket::default()).collect(),
                in_use: AtomicU32::new(first),
                memory: Memory::new((largest * CELLS as u32 / 2).max(256)),
                growth: Growth::default(),
                fresh: 0,
                free: Vec::new(),
                resting: Vec::new(),
                flows: HashMap::new(),
            }
        }

        fn put(&mut self, number: u16) {
            let slot = self.free.pop().unwrap_or_else(|| {
                self.fresh += 1;
                self.fresh - 1
            });
            self.memory.write(&flow(number), slot);
            let Self { buckets, in_use, memory, growth, .. } = self;
            let hashing = &memory.hashing;
            let regions = Regions { buckets, in_use, slots: memory.slots(), hashing };
            if growth.insert(&regions, &flow(number), slot) {
                self.flows.insert(number, slot);
            } else {
                memory.slot(slot).close();
                self.free.push(slot);
            }
            growth.advance(&regions, self.fresh);
        }

        fn take(&mut self, number: u16) {
            let Some(slot) = self.flows.remove(&number) else { return };
            self.growth.remove(&self.regions(), &flow(number), slot);
            self.memory.slot(slot).close();
            self.free.push(slot);
        }

        fn regions(&self) -> Regions<'_> {
            let Self { buckets, in_use, memory, .. } = self;
            Regions { buckets, in_use, slots: memory.slots(), hashing: &memory.hashing }
        }

        fn finds(&self, number: u16) -> Option<u32> {
            self.regions().current().find(&flow(number))
        }

        fn in_use(&self) -> u32 {
            self.in_use.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn an_index_grows_with_its_flows_and_no_further() {
        let mut table = Table::new(1, 32);
        let sizes = (0..256).map(|number| {
            table.put(number);
            assert!((0..=number).all(|number| table.finds(number).is_some()), "{number}");
            table.in_use()
        });
        let sizes: Vec<u32> = sizes.collect();
        assert!(sizes.is_sorted());
        assert_eq!((sizes[7], sizes[100], sizes[255]), (1, 16, 32));
    }

    #[test]
    fn an_index_has_room_after_many_short_flows_whose_slots_rest() {
        let mut table = Table::new(1, 512);
        for number in 0..3_000 {
            table.put(number);
            table.take(number);
            table.resting.append(&mut table.free);
        }
        table.free = std::mem::take(&mut table.resting);
        (0..1_000).for_each(|number| table.put(number));
        assert!((0..1_000).all(|number| table.finds(number).is_some()));
    }

    #[test]
    fn an_index_without_a_larger_region_stays_as_it_is() {
        let mut table = Table::new(2, 2);
        (0..32).for_each(|number| table.put(number));
        assert!(table.in_use() == 2 && table.flows.len() > 24);
        assert!(table.flows.keys().all(|&number| table.finds(number).is_some()));
    }

    #[test]
    fn what_a_killed_process_brought_into_a_larger_region_is_gone() {
        let mut table = Table::new(1, 32);
        (0..250).for_each(|number| table.put(number));
        table.in_use.store(4, Ordering::Relaxed);
        table.regions().tidy();
        let taken =
            |bucket: &Bucket| bucket.cells.iter().any(|cell| cell.load(Ordering::Relaxed) != 0);
        assert!(table.buckets[..8].iter().any(taken) && !table.buckets[8..].iter().any(taken));
    }

    proptest! {
        /// Flows come and go while the index grows, as often as it can.
        #[test]
        fn flows_are_found_while_it_grows(
            steps in vec((0u8..4, 0u16..250), 1..1500),
            largest in 0u32..6,
        ) {
            let mut table = Table::new(1, 1 << largest);
            for (kind, number) in steps {
                match kind {
                    0 => table.take(number),
                    _ if !table.flows.contains_key(&number) => table.put(number),
                    _ => {}
                }
                prop_assert_eq!(table.finds(number), table.flows.get(&number).copied());
            }
            for number in 0..250 {
                prop_assert_eq!(table.finds(number), table.flows.get(&number).copied());
            }
        }
    }
}
