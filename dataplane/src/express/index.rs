//! Where in the array of flows each flow is, as the programs look it up.
//!
//! The flows themselves stand close together in an array, in whatever slots are free: a table that is
//! large and mostly empty would cost a walk through page tables for nearly every frame. The index is
//! thirty times smaller. It has *buckets* of sixteen cells, a cache line each. A cell is the number of a
//! slot plus one, and in the bits above a *tag* of its flow's hash, so that hardly ever a slot of another
//! flow is looked at; 0 is an empty cell. A flow stands in its first bucket, which its hash says; if that is
//! full, in its second; if that is full too, another flow of the first is sent to its own second.
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

use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::express::{Bucket, CELLS, FlowId, Hashing, Slot};

/// The index, and the slots that it is of.
#[derive(Clone, Copy)]
pub(crate) struct Index<'a> {
    buckets: &'a [Bucket],
    slots: &'a [Slot],
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
    fn of(id: &FlowId, hashing: &Hashing) -> Self {
        let hash = hash_of(id, hashing);
        let bucket = |hash: u64| (hash as u32 & hashing.buckets) as usize;
        Self {
            buckets: [bucket(hash), bucket(hash >> 24)],
            first: (hash >> 48) as usize % CELLS,
            tag: (hash >> 32) as u32 & hashing.tag,
        }
    }
}

/// NH (RFC 4418, section 5.2) over all but the protocol, and a multiplication that spreads it over all
/// bits.
fn hash_of(id: &FlowId, hashing: &Hashing) -> u64 {
    let words = id.words();
    let pairs = words.as_chunks::<2>().0.iter().zip(hashing.secret.as_chunks::<2>().0);
    let products = pairs.map(|([a, b], [c, d])| {
        u64::from(a.wrapping_add(*c)).wrapping_mul(b.wrapping_add(*d).into())
    });
    let hash = products.fold(0, u64::wrapping_add).wrapping_mul(hashing.factor);
    hash ^ hash >> 32
}

impl<'a> Index<'a> {
    pub(crate) const fn new(
        buckets: &'a [Bucket],
        slots: &'a [Slot],
        hashing: &'a Hashing,
    ) -> Self {
        Self { buckets, slots, hashing }
    }

    /// The slot of a flow that has a verdict.
    pub(crate) fn find(&self, id: &FlowId) -> Option<u32> {
        let place = Place::of(id, self.hashing);
        let slots = place.buckets.into_iter().flat_map(|bucket| self.tagged(bucket, place));
        slots.map(|(_, slot)| slot).find(|&slot| {
            let slot = self.slots.get(slot as usize);
            slot.is_some_and(|slot| slot.is_open() && slot.id() == *id)
        })
    }

    /// Says that a flow, which is in none, is in that slot. Returns whether there was room for it.
    #[must_use]
    pub(crate) fn insert(&self, id: &FlowId, slot: u32) -> bool {
        let place = Place::of(id, self.hashing);
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
            let place = Place::of(&self.named(named)?.id(), self.hashing);
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
        let place = Place::of(id, self.hashing);
        let found = place.buckets.into_iter().flat_map(|bucket| self.tagged(bucket, place));
        found
            .filter(|&(_, other)| other == slot)
            .for_each(|(cell, _)| cell.store(0, Ordering::SeqCst));
    }

    /// Empties cells that name no verdict: of a process that ended between two stores.
    pub(crate) fn tidy(&self) {
        for cell in self.buckets.iter().flat_map(|bucket| &bucket.cells) {
            if load(cell) != 0 && !self.named(load(cell)).is_some_and(Slot::is_open) {
                cell.store(0, Ordering::SeqCst);
            }
        }
    }

    /// The slot that a cell names.
    fn named(&self, cell: u32) -> Option<&'a Slot> {
        self.slots.get(self.number(cell)? as usize)
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
mod tests {
    use std::collections::HashMap;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::sys::express::{Begin, Egress, FlowVerdict, HASHED};

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

    struct Table {
        buckets: Vec<Bucket>,
        slots: Vec<Slot>,
        hashing: Hashing,
    }

    impl Table {
        fn new(buckets: u32, slots: u32) -> Self {
            Self {
                buckets: (0..buckets).map(|_| Bucket::default()).collect(),
                slots: (0..slots).map(|_| Slot::default()).collect(),
                hashing: Hashing::random(buckets, slots),
            }
        }

        fn index(&self) -> Index<'_> {
            Index::new(&self.buckets, &self.slots, &self.hashing)
        }

        /// Gives a flow that slot, if the index has room.
        fn put(&self, id: &FlowId, slot: u32) -> bool {
            self.slots[slot as usize].write(id, &VERDICT, 0, Begin::Held);
            let is_in = self.index().insert(id, slot);
            if !is_in {
                self.slots[slot as usize].close();
            }
            is_in
        }

        fn take(&self, id: &FlowId, slot: u32) {
            self.index().remove(id, slot);
            self.slots[slot as usize].close();
        }

        fn taken_cells(&self) -> usize {
            let cells = self.buckets.iter().flat_map(|bucket| &bucket.cells);
            cells.filter(|cell| load(cell) != 0).count()
        }
    }

    fn flow(number: u16) -> FlowId {
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
            let place = Place::of(&flow(number), &table.hashing);
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
        table.slots[1].close();
        table.index().tidy();
        assert_eq!((table.index().find(&flow(1)), table.index().find(&flow(2))), (None, Some(2)));
        assert_eq!(table.taken_cells(), 1);
    }

    #[test]
    fn every_bit_of_a_flow_and_every_secret_take_part() {
        let hashing = Hashing::random(1, 1);
        let base = hash_of(&flow(1), &hashing);
        for word in 0..HASHED {
            for bit in 0..32 {
                let mut words = flow(1).words();
                words[word] ^= 1 << bit;
                assert_ne!(hash_of(&FlowId::of_words(words, 6), &hashing), base, "{word} {bit}");
            }
            let mut other = hashing;
            other.secret[word] ^= 1;
            assert_ne!(hash_of(&flow(1), &other), base, "{word}");
        }
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
                            let Place { buckets: [first, second], .. } = Place::of(&id, &table.hashing);
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
