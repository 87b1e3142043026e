//! An index as large as its flows need, so that they stand close together.
//!
//! Spread over an index for as many flows as may ever come, each flow would have a cache line of its own, and a
//! few have a page: ten thousand would push each other out of the second-level cache. So the index begins
//! small. Where it has less than two cells a flow it is laid out anew, twice as large, and where it has more
//! than eight, half as large or less: *regions* of 2^n buckets lie in one array, each at the bucket of that number.
//! Whoever searches learns from one word which region is in use, and then searches that. Flows must double or
//! halve between two such changes, so each brings a few flows for one that came or went.
//!
//! A region is laid out some flows at a time, with each one that comes or goes. Meanwhile what comes and goes does so
//! in both. Once all flows are there, the word changes. The old region stays as it was for who searches it
//! still.
//!
//! So a region that was in use before has what was there then. It is not wiped, as somebody may be searching it
//! still for a flow that has been there all the while: what is no flow's any more is taken out, and the others stay.
//!
//! Invariants, beside [`Index`]'s:
//! - A region that is laid out has every flow of the slots below `Move::brought`, once it is tidy, and of the others
//!   some: those that it had, and those that came since.
//! - What is in a region that is neither in use nor laid out means nothing, and nobody changes it.

use std::sync::atomic::{AtomicU32, Ordering};

use super::index::Index;
use super::slot_set::SlotSet;
use crate::sys::express::{Bucket, CELLS, FlowId, Hashing, Slots};

/// Flows that each one which comes or goes brings into the next region.
const BROUGHT: u32 = 32;

/// Buckets of it that each one tidies before, which looks at as many slots if a quarter of their cells name any.
/// With both there are a tenth more flows, or fewer, before the region is in use.
const TIDIED: u32 = 8;

/// A region has too few cells if there are less than that many times the flows.
const FEWEST: u32 = 2;

/// And too many if there are more than that.
const MOST: u32 = 8;

/// An array of regions, and which one is in use.
#[derive(Clone, Copy)]
pub(crate) struct Regions<'a> {
    /// Twice as many as the largest region has.
    pub(crate) buckets: &'a [Bucket],
    /// Buckets of the region that is in use: a power of two.
    pub(crate) in_use: &'a AtomicU32,
    /// Buckets of the smallest one.
    pub(crate) least: u32,
    pub(crate) slots: Slots<'a>,
    pub(crate) hashing: &'a Hashing,
}

impl<'a> Regions<'a> {
    /// The region in use.
    pub(crate) fn current(&self) -> Index<'a> {
        self.region(self.size()).unwrap_or_else(|| self.index(&[]))
    }

    /// Buckets of the region in use.
    fn size(&self) -> u32 {
        self.in_use.load(Ordering::Acquire)
    }

    /// The region of so many buckets, if there is one.
    fn region(&self, buckets: u32) -> Option<Index<'a>> {
        let from = buckets as usize;
        self.buckets.get(from..2 * from).map(|buckets| self.index(buckets))
    }

    fn index(&self, buckets: &'a [Bucket]) -> Index<'a> {
        Index::new(buckets, self.slots, self.hashing)
    }

    /// Buckets of the region that so many flows should have instead of the one in use.
    fn wanted(&self, flows: u32) -> Option<u32> {
        let (size, flows) = (self.size(), u64::from(flows));
        let cells = u64::from(size) * CELLS as u64;
        let wanted = if cells < flows * u64::from(FEWEST) {
            size.checked_mul(2)?
        } else if cells > flows * u64::from(MOST) {
            let fitting = (flows * u64::from(MOST) / 2).div_ceil(CELLS as u64);
            u32::try_from(fitting.next_power_of_two()).ok()?.max(self.least)
        } else {
            return None;
        };
        (wanted != size && self.region(wanted).is_some()).then_some(wanted)
    }
}

/// The flows of an index, and how far it has come on its way to another size.
#[derive(Default)]
pub(crate) struct Resizing {
    /// Slots of the flows.
    flows: SlotSet,
    next: Option<Move>,
}

/// A region that is being laid out.
#[derive(Clone, Copy)]
struct Move {
    /// How many buckets it has.
    buckets: u32,
    /// Those below are tidy.
    tidied: u32,
    /// The flows of slots below are in it.
    brought: u32,
}

impl Resizing {
    /// An index of so many slots, without flows.
    pub(crate) fn new(slots: u32) -> Self {
        Self { flows: SlotSet::below(slots), next: None }
    }

    /// How many flows there are.
    pub(crate) const fn len(&self) -> u32 {
        self.flows.len()
    }

    /// Says that there is a flow in that slot already.
    pub(crate) fn resume(&mut self, slot: u32) {
        self.flows.insert(slot);
    }

    /// Says that a flow, which is in none, is in that slot. Returns whether there was room for it.
    #[must_use]
    pub(crate) fn insert(&mut self, regions: &Regions<'_>, id: &FlowId, slot: u32) -> bool {
        let is_in = regions.current().insert(id, slot);
        if is_in {
            self.flows.insert(slot);
            if let Some(next) = self.next
                && slot < next.brought
            {
                self.next = bring(next, regions, id, slot);
            }
        }
        self.advance(regions);
        is_in
    }

    /// A flow is in that slot no more.
    pub(crate) fn remove(&mut self, regions: &Regions<'_>, id: &FlowId, slot: u32) {
        regions.current().remove(id, slot);
        self.flows.remove(slot);
        if let Some(next) = self.next.and_then(|next| regions.region(next.buckets)) {
            next.remove(id, slot);
        }
        self.advance(regions);
    }

    /// Goes on with the next region, or begins one, if the one in use is too small or too large.
    fn advance(&mut self, regions: &Regions<'_>) {
        let begin = |buckets| Move { buckets, tidied: 0, brought: 0 };
        let next = self.next.or_else(|| regions.wanted(self.flows.len()).map(begin));
        self.next = next.and_then(|next| {
            if next.tidied < next.buckets {
                tidy(next, regions)
            } else {
                self.bring_some(next, regions)
            }
        });
    }

    /// Brings some flows more into the next region. Once all are there, it is the one in use.
    fn bring_some(&self, mut next: Move, regions: &Regions<'_>) -> Option<Move> {
        for _ in 0..BROUGHT {
            let Some(number) = self.flows.next(next.brought) else {
                regions.in_use.store(next.buckets, Ordering::SeqCst);
                return None;
            };
            next.brought = number + 1;
            let slot = regions.slots.get(number)?;
            next = bring(next, regions, &slot.id(), number)?;
        }
        Some(next)
    }
}

/// Tidies some buckets more.
fn tidy(next: Move, regions: &Regions<'_>) -> Option<Move> {
    let to = next.buckets.min(next.tidied + TIDIED);
    regions.region(next.buckets)?.tidy(next.tidied as usize..to as usize);
    Some(Move { tidied: to, ..next })
}

/// Brings a flow into the next region, unless it is there. `None` if there is no room: the region is given up.
fn bring(next: Move, regions: &Regions<'_>, id: &FlowId, slot: u32) -> Option<Move> {
    let region = regions.region(next.buckets)?;
    (region.find(id) == Some(slot) || region.insert(id, slot)).then_some(next)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::index::tests::{Memory, flow};
    use super::*;

    /// A table whose index has at least one bucket, and as many as a test says at most.
    struct Table {
        buckets: Vec<Bucket>,
        in_use: AtomicU32,
        memory: Memory,
        resizing: Resizing,
        free: SlotSet,
        flows: HashMap<u16, u32>,
        /// By the size of each region that was in use: flows that were there then, and are still.
        left: HashMap<u32, HashMap<u16, u32>>,
    }

    impl Table {
        fn new(largest: u32) -> Self {
            let slots = (largest * CELLS as u32 / 2).max(256);
            Self {
                buckets: (0..2 * largest).map(|_| Bucket::default()).collect(),
                in_use: AtomicU32::new(1),
                memory: Memory::new(slots),
                resizing: Resizing::new(slots),
                free: SlotSet::all_below(slots),
                flows: HashMap::new(),
                left: HashMap::new(),
            }
        }

        fn put(&mut self, number: u16) {
            let slot = self.free.next(0).unwrap();
            self.memory.write(&flow(number), slot);
            if self.resize(|resizing, regions| resizing.insert(regions, &flow(number), slot)) {
                self.free.remove(slot);
                self.flows.insert(number, slot);
            } else {
                self.memory.slot(slot).close();
            }
        }

        fn take(&mut self, number: u16) {
            let Some(slot) = self.flows.remove(&number) else { return };
            self.left.values_mut().for_each(|flows| {
                flows.remove(&number);
            });
            self.resize(|resizing, regions| resizing.remove(regions, &flow(number), slot));
            self.memory.slot(slot).close();
            self.free.insert(slot);
        }

        fn resize<T>(&mut self, change: impl FnOnce(&mut Resizing, &Regions<'_>) -> T) -> T {
            let Self { buckets, in_use, memory, .. } = self;
            let (slots, hashing) = (memory.slots(), &memory.hashing);
            let before = in_use.load(Ordering::Relaxed);
            let regions = Regions { buckets, in_use, least: 1, slots, hashing };
            let result = change(&mut self.resizing, &regions);
            if self.in_use() != before {
                self.left.insert(before, self.flows.clone());
            }
            result
        }

        /// Whether who searches a region that was in use finds what has been there since.
        fn finds_what_stayed(&mut self) -> bool {
            let left = self.left.clone();
            self.resize(|_, regions| {
                left.iter().all(|(&buckets, flows)| {
                    let region = regions.region(buckets).unwrap();
                    flows.iter().all(|(&number, &slot)| region.find(&flow(number)) == Some(slot))
                })
            })
        }

        fn finds(&mut self, number: u16) -> Option<u32> {
            self.resize(|_, regions| regions.current().find(&flow(number)))
        }

        fn finds_all(&mut self) -> bool {
            let flows = self.flows.clone();
            flows.into_iter().all(|(number, slot)| self.finds(number) == Some(slot))
        }

        fn in_use(&self) -> u32 {
            self.in_use.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn an_index_is_as_large_as_its_flows_need_whatever_was_before() {
        let mut table = Table::new(64);
        // Other flows each time, so that what is left of the last ones is in the way.
        for begin in [0, 1_000, 2_000, 3_000] {
            let grown = (0..500).map(|number| {
                table.put(begin + number);
                assert!(table.finds_all(), "{number}");
                table.in_use()
            });
            let grown: Vec<u32> = grown.collect();
            assert!(grown.is_sorted(), "{grown:?}");
            assert_eq!((grown[7], grown[100], grown[499]), (1, 16, 64));
            let shrunk = (0..500).rev().map(|number| {
                table.take(begin + number);
                assert!(table.finds_all(), "{number}");
                table.in_use()
            });
            let shrunk: Vec<u32> = shrunk.collect();
            assert!(shrunk.is_sorted_by(|before, after| before >= after), "{shrunk:?}");
            assert_eq!((shrunk[250], shrunk[499]), (64, 1));
        }
    }

    #[test]
    fn flows_that_come_and_go_leave_a_small_index() {
        let mut table = Table::new(512);
        for number in 0..3_000 {
            table.put(number);
            table.take(number.wrapping_sub(20));
        }
        assert!(table.in_use() <= 8, "{}", table.in_use());
        assert!(table.flows.values().all(|&slot| slot <= 20), "in the lowest slots");
    }

    #[test]
    fn an_index_without_a_larger_region_stays_as_it_is() {
        let mut table = Table::new(2);
        (0..32).for_each(|number| table.put(number));
        assert!(table.in_use() == 2 && table.flows.len() > 24);
        assert!(table.finds_all());
    }

    #[test]
    fn what_a_killed_process_brought_into_a_region_does_no_harm() {
        let mut table = Table::new(32);
        (0..250).for_each(|number| table.put(number));
        // The process was on its way to the smaller region, and others were before it.
        table.in_use.store(16, Ordering::Relaxed);
        (0..250).for_each(|number| table.take(number));
        (250..500).for_each(|number| table.put(number));
        assert!(table.in_use() == 32 && table.finds_all());
        assert!((0..250).all(|number| table.finds(number).is_none()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Flows come and go, in floods and one by one, while the index changes its size as often as it can.
        #[test]
        fn flows_are_found_whatever_its_size(
            floods in vec((any::<bool>(), 0u16..200, 1u16..60), 1..16),
            largest in 0u32..6,
        ) {
            let mut table = Table::new(1 << largest);
            for (comes, from, count) in floods {
                for number in from..from + count {
                    match (comes, table.flows.contains_key(&number)) {
                        (true, false) => table.put(number),
                        (false, true) => table.take(number),
                        _ => {}
                    }
                    let slot = table.flows.get(&number).copied();
                    prop_assert_eq!(table.finds(number), slot);
                    prop_assert_eq!(table.resizing.len() as usize, table.flows.len());
                    prop_assert!(number % 8 != 0 || table.finds_what_stayed());
                }
                for number in 0..260 {
                    let slot = table.flows.get(&number).copied();
                    prop_assert_eq!(table.finds(number), slot);
                }
            }
        }
    }
}
