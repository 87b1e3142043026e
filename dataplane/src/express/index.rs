//! Where in the arrays of flows each flow is, as the programs look it up.
//!
//! The flows themselves stand close together in arrays, in whatever slots are free: a table that is
//! large and mostly empty would cost a walk through page tables for nearly every frame. The index is
//! much smaller, and [as large as its flows need](super::resizing). It has *buckets* of sixteen cells, a
//! cache line each. A cell is the number of a slot plus one, and in the bits above a *tag* of its flow's
//! hash, so that hardly ever a slot of another flow is looked at; 0 is an empty cell. A flow stands in
//! its first bucket, which its hash says; if that is full, in its second; if that is full too, another flow
//! of the first is sent to its own second.
//!
//! The hash is keyed, as those in `firedoor_classifier` are: nobody can aim at a bucket. So buckets are full
//! by chance alone: with cells for twice the slots, one flow in a thousand of a full table is in its second, and
//! none is turned away.
//!
//! Invariants:
//! - There is one writer. Cells are written after the slots that they name, and emptied before these
//!   are closed; a flow that moves is in both buckets for a moment. So who searches while it is written
//!   finds every flow that is there all the while.
//! - A cell may be of a flow that was removed a moment ago, or replaced: the slot itself says whose it is.
//!
//! `find` in dataplane/bpf/express.h is the same in C.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::express::{Bucket, CELLS, FlowId, Hashing, Slot, Slots};

/// The index, and the slots that it is of.
#[derive(Clone, Copy)]
pub(crate) struct Index<'a> {
    buckets: &'a [Bucket],
    slots: Slots<'a>,
    hashing: &'a Hashing,
}

/// Where a flow may stand.
#[derive(Clone, Copy)]
struct Place {
    /// Numbers of its buckets.
    buckets: [usize; 2],
    /// The cell of them that is looked at first.
    first: usize,
    tag: u32,
}

impl Place {
    /// Among so many buckets, a power of two.
    fn of(id: &FlowId, hashing: &Hashing, buckets: usize) -> Self {
        let hash = hash_of(id, hashing);
        let bucket = |hash: u64| hash as u32 as usize & buckets.saturating_sub(1);
        Self {
            buckets: [bucket(hash), bucket(hash >> 24)],
            first: (hash >> 48) as usize % CELLS,
            tag: (hash >> 32) as u32 & hashing.tag,
        }
    }
}

/// NH (RFC 4418, section 5.2) over all but the protocol, of IPv4 without what all its addresses begin with, and
/// a multiplication that spreads it over all bits.
fn hash_of(id: &FlowId, hashing: &Hashing) -> u64 {
    let (near, far) = id.words();
    let far = if id.is_ipv6() { &far[..] } else { &[] };
    let pairs = near.as_chunks::<2>().0.iter().chain(far.as_chunks::<2>().0);
    let products = pairs.zip(hashing.secret.as_chunks::<2>().0).map(|([a, b], [c, d])| {
        u64::from(a.wrapping_add(*c)).wrapping_mul(b.wrapping_add(*d).into())
    });
    let hash = products.fold(0, u64::wrapping_add).wrapping_mul(hashing.factor);
    hash ^ hash >> 32
}

impl<'a> Index<'a> {
    pub(crate) const fn new(buckets: &'a [Bucket], slots: Slots<'a>, hashing: &'a Hashing) -> Self {
        Self { buckets, slots, hashing }
    }

    fn place_of(&self, id: &FlowId) -> Place {
        Place::of(id, self.hashing, self.buckets.len())
    }

    /// The slot of a flow that has a verdict.
    pub(crate) fn find(&self, id: &FlowId) -> Option<u32> {
        let place = self.place_of(id);
        let slots = place.buckets.into_iter().flat_map(|bucket| self.tagged(bucket, place));
        slots.map(|(_, slot)| slot).find(|&slot| {
            let slot = self.slots.get(slot);
            slot.is_some_and(|slot| slot.is_open() && slot.id() == *id)
        })
    }

    /// Says that a flow, which is in none, is in that slot. Returns whether there was room for it.
    #[must_use]
    pub(crate) fn insert(&self, id: &FlowId, slot: u32) -> bool {
        let place = self.place_of(id);
        let empty = place.buckets.into_iter().find_map(|bucket| self.empty_in(bucket, place));
        let empty = empty.or_else(|| self.evict(place.buckets[0]));
        if let Some(cell) = empty {
            cell.store(place.tag | (slot + 1), Ordering::Release);
        }
        empty.is_some()
    }

    /// Sends a flow of a full bucket to its second one, and returns the cell that it had. Not to its first:
    /// who searches has looked there already.
    fn evict(&self, full: usize) -> Option<&'a AtomicU32> {
        self.cells(full, 0).find_map(|cell| {
            let named = load(cell);
            let place = self.place_of(&self.named(named)?.id());
            let [first, second] = place.buckets;
            if first != full {
                return None;
            }
            let room = self.empty_in(second, place)?;
            room.store(named, Ordering::Release);
            cell.store(0, Ordering::Release);
            Some(cell)
        })
    }

    /// A flow is in that slot no more.
    pub(crate) fn remove(&self, id: &FlowId, slot: u32) {
        let place = self.place_of(id);
        let found = place.buckets.into_iter().flat_map(|bucket| self.tagged(bucket, place));
        found
            .filter(|&(_, other)| other == slot)
            .for_each(|(cell, _)| cell.store(0, Ordering::SeqCst));
    }

    /// Empties those cells of some buckets that name no flow which may stand there.
    pub(crate) fn tidy(&self, buckets: Range<usize>) {
        for bucket in buckets {
            let is_right = |cell| self.may_stand(cell, bucket);
            for cell in
                self.cells(bucket, 0).filter(|cell| load(cell) != 0 && !is_right(load(cell)))
            {
                cell.store(0, Ordering::SeqCst);
            }
        }
    }

    /// How many buckets there are.
    pub(crate) const fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether a cell names a flow that may stand in that bucket.
    fn may_stand(&self, cell: u32, bucket: usize) -> bool {
        self.named(cell).filter(Slot::is_open).is_some_and(|slot| {
            let place = self.place_of(&slot.id());
            cell & self.hashing.tag == place.tag && place.buckets.contains(&bucket)
        })
    }

    /// The slot that a cell names.
    fn named(&self, cell: u32) -> Option<Slot<'a>> {
        self.slots.get(self.number(cell)?)
    }

    fn number(&self, cell: u32) -> Option<u32> {
        (cell & !self.hashing.tag).checked_sub(1)
    }

    fn empty_in(&self, bucket: usize, place: Place) -> Option<&'a AtomicU32> {
        self.cells(bucket, place.first).find(|cell| load(cell) == 0)
    }

    /// The cells of a bucket that bear a flow's tag, and the slots that they name.
    fn tagged(&self, bucket: usize, place: Place) -> impl Iterator<Item = (&'a AtomicU32, u32)> {
        let index = *self;
        self.cells(bucket, place.first).filter_map(move |cell| {
            let named = load(cell);
            let slot = index.number(named)?;
            (named & index.hashing.tag == place.tag).then_some((cell, slot))
        })
    }

    /// The cells of a bucket, from that one on.
    fn cells(&self, bucket: usize, first: usize) -> impl Iterator<Item = &'a AtomicU32> {
        let cells = self.buckets.get(bucket).map_or(&[][..], |bucket| &bucket.cells);
        let (before, from) = cells.split_at(first.min(cells.len()));
        from.iter().chain(before)
    }
}

fn load(cell: &AtomicU32) -> u32 {
    cell.load(Ordering::Acquire)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::sys::express::{Begin, Details, Egress, FAR, Flow, FlowVerdict, NEAR};

    const VERDICT: FlowVerdict = FlowVerdict {
        eth_dst: [2, 0, 0, 0, 0, 1],
        eth_src: [2, 0, 0, 0, 0, 2],
        egress: Egress::Transmit(1),
        max_frame: 1514,
        rule: 0,
        epoch: 1,
        is_reply: false,
        tcp_flags: 0,
    };

    /// Slots, and how their index is asked.
    pub(in crate::express) struct Memory {
        flows: Vec<Flow>,
        details: Vec<Details>,
        pub(in crate::express) hashing: Hashing,
    }

    impl Memory {
        pub(in crate::express) fn new(slots: u32) -> Self {
            Self {
                flows: (0..slots).map(|_| Flow::default()).collect(),
                details: (0..slots).map(|_| Details::default()).collect(),
                hashing: Hashing::random(slots),
            }
        }

        pub(in crate::express) fn slots(&self) -> Slots<'_> {
            Slots::new(&self.flows, &self.details)
        }

        pub(in crate::express) fn slot(&self, number: u32) -> Slot<'_> {
            self.slots().get(number).unwrap()
        }

        pub(in crate::express) fn write(&self, id: &FlowId, slot: u32) {
            self.slot(slot).write(id, &VERDICT, 0, Begin::Held);
        }
    }

    struct Table {
        buckets: Vec<Bucket>,
        memory: Memory,
    }

    impl Table {
        fn new(buckets: u32, slots: u32) -> Self {
            let buckets = (0..buckets).map(|_| Bucket::default()).collect();
            Self { buckets, memory: Memory::new(slots) }
        }

        fn index(&self) -> Index<'_> {
            Index::new(&self.buckets, self.memory.slots(), &self.memory.hashing)
        }

        /// Gives a flow that slot, if the index has room.
        fn put(&self, id: &FlowId, slot: u32) -> bool {
            self.memory.write(id, slot);
            let is_in = self.index().insert(id, slot);
            if !is_in {
                self.memory.slot(slot).close();
            }
            is_in
        }

        fn take(&self, id: &FlowId, slot: u32) {
            self.index().remove(id, slot);
            self.memory.slot(slot).close();
        }

        fn taken_cells(&self) -> usize {
            let cells = self.buckets.iter().flat_map(|bucket| &bucket.cells);
            cells.filter(|cell| load(cell) != 0).count()
        }
    }

    pub(in crate::express) fn flow(number: u16) -> FlowId {
        let [high, low] = number.to_be_bytes();
        let (src, dst): (IpAddr, IpAddr) = if number.is_multiple_of(2) {
            (Ipv4Addr::new(10, 0, high, low).into(), Ipv4Addr::new(10, 1, 0, 1).into())
        } else {
            (Ipv6Addr::from(u128::from(number) << 40).into(), Ipv6Addr::LOCALHOST.into())
        };
        FlowId::new(u32::from(number % 5), 6, (src, number), (dst, 80))
    }

    #[test]
    fn a_full_table_turns_nobody_away() {
        let table = Table::new(512, 4096);
        assert!((0..4096).all(|number| table.put(&flow(number), number.into())));
        let is_found = |number| table.index().find(&flow(number)) == Some(number.into());
        assert!((0..4096).all(is_found));
        let is_second = |number| {
            let place = table.index().place_of(&flow(number));
            table.index().tagged(place.buckets[0], place).all(|(_, slot)| slot != number.into())
        };
        assert!(
            (0..4096).filter(|&number| is_second(number)).count() < 200,
            "hardly any is in its second"
        );
        (0..4096).for_each(|number| table.take(&flow(number), number.into()));
        assert_eq!(table.taken_cells(), 0);
    }

    #[test]
    fn flows_make_room_for_each_other() {
        // 64 cells, and a flow for each: nearly all find one.
        let table = Table::new(4, 64);
        let count = (0..64).filter(|&number| table.put(&flow(number), number.into())).count();
        assert!(count > 56, "{count}");
        assert_eq!(table.taken_cells(), count);
        let is_full = |bucket: &Bucket| bucket.cells.iter().all(|cell| load(cell) != 0);
        assert!(count == 64 || table.buckets.iter().any(is_full));
    }

    #[test]
    fn what_a_killed_process_left_half_done_is_tidied_up() {
        let table = Table::new(2, 8);
        assert!(table.put(&flow(1), 1) && table.put(&flow(2), 2));
        table.memory.slot(1).close();
        table.index().tidy(0..2);
        assert_eq!((table.index().find(&flow(1)), table.index().find(&flow(2))), (None, Some(2)));
        assert_eq!(table.taken_cells(), 1);
    }

    #[test]
    fn every_bit_of_a_flow_and_every_secret_take_part() {
        let hashing = Hashing::random(1);
        // Of the second one, IPv6's words too.
        for (id, words) in [(flow(2), NEAR), (flow(1), NEAR + FAR)] {
            let base = hash_of(&id, &hashing);
            for word in 0..words {
                for bit in 0..32 {
                    let (mut near, mut far) = id.words();
                    *near.iter_mut().chain(&mut far).nth(word).unwrap() ^= 1 << bit;
                    let other = FlowId::of_words(near, far, 6);
                    assert_ne!(hash_of(&other, &hashing), base, "{word} {bit}");
                }
                let mut other = hashing;
                other.secret[word] ^= 1;
                assert_ne!(hash_of(&id, &other), base, "{word}");
            }
        }
    }

    #[test]
    fn a_slot_tells_whose_it_is() {
        let memory = Memory::new(1);
        for id in (0..50).map(flow) {
            memory.write(&id, 0);
            assert_eq!(memory.slot(0).read(), Some((id, VERDICT)));
        }
        memory.slot(0).close();
        assert_eq!(memory.slot(0).read(), None);
    }

    #[test]
    fn what_is_on_the_long_way_is_counted_beyond_what_the_counter_holds() {
        let memory = Memory::new(1);
        memory.slot(0).write(&flow(1), &VERDICT, 0, Begin::AtOnce);
        assert!(!memory.slot(0).is_held());
        for _ in 0..3 << 16 {
            memory.slot(0).pass();
        }
        assert!(!memory.slot(0).is_held(), "what has passed does not carry into what was punted");
        memory.slot(0).pass();
        assert!(memory.slot(0).is_held());
        memory.slot(0).let_go();
        assert!(!memory.slot(0).is_held());
    }

    proptest! {
        /// Among few buckets, so that they overflow; slots are used again at once.
        #[test]
        fn flows_are_found_where_they_were_put(steps in vec((any::<bool>(), 0u16..200), 1..600)) {
            let table = Table::new(8, 128);
            let mut oracle = HashMap::new();
            let mut free: Vec<u32> = (0..128).collect();
            for (puts, number) in steps {
                let id = flow(number);
                prop_assert_eq!(table.index().find(&id), oracle.get(&number).copied());
                match oracle.get(&number).copied() {
                    None if puts => {
                        let Some(slot) = free.pop() else { continue };
                        if table.put(&id, slot) {
                            oracle.insert(number, slot);
                        } else {
                            free.push(slot);
                            let Place { buckets: [first, second], .. } = table.index().place_of(&id);
                            for bucket in [first, second] {
                                let cells = &table.buckets[bucket].cells;
                                prop_assert!(cells.iter().all(|cell| load(cell) != 0));
                            }
                        }
                    }
                    Some(slot) if !puts => {
                        table.take(&id, slot);
                        oracle.remove(&number);
                        free.push(slot);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.taken_cells(), oracle.len());
            }
            for number in 0..200 {
                prop_assert_eq!(table.index().find(&flow(number)), oracle.get(&number).copied());
            }
        }
    }
}
