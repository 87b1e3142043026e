//! From a key's hash to the numbers of the entries that may have it.
//!
//! - A **bucket** is one cache line: the numbers of twelve entries, and eight bits of each one's hash
//!   to tell them apart, which are compared at once. So a lookup touches the one bucket and, nearly
//!   always, the one entry.
//! - An entry whose bucket is full goes to the next one that is not. A full bucket counts those that
//!   it has turned away, so a lookup knows where to stop, and a removal leaves nothing behind.
//! - A **row** of buckets is laid out for a bound of entries and never grows: at the bound its buckets
//!   hold seven each. All of it is taken when the bound is set, nine bytes for each entry, so no insertion
//!   waits for memory and a lookup is one step from its bucket. A bound that is raised adds a row, as
//!   large as all before it at least, and lookups that find nothing in one go on to the next.

use std::num::NonZeroU32;

use wide::u8x16;

use super::entry::NIL;

/// Entries per bucket.
const SLOTS: usize = 12;

/// Entries per bucket, on average, when there are as many as the bound allows.
const PER_BUCKET: usize = 7;

/// The tag of an empty slot.
const EMPTY: u8 = 0;

/// What counts in a bucket's head: the bytes behind the tags.
const ONE_TURNED_AWAY: u128 = 1 << (8 * SLOTS);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    /// From the lowest byte: what [`tag_of`] gives for each entry, and the number of entries that
    /// would be here or before, and are in a bucket behind.
    head: u128,
    ids: [u32; SLOTS],
}

impl Bucket {
    const NEW: Self = Self { head: 0, ids: [0; SLOTS] };

    /// The slots with this tag.
    #[inline]
    fn matches(&self, tag: u8) -> Matches {
        let tags = u8x16::new(self.head.to_le_bytes());
        Matches(tags.simd_eq(u8x16::splat(tag)).to_bitmask() & ((1 << SLOTS) - 1))
    }

    #[inline]
    fn id(&self, slot: usize) -> u32 {
        self.ids.get(slot).copied().unwrap_or(NIL)
    }

    fn has_turned_away(&self) -> bool {
        self.head >= ONE_TURNED_AWAY
    }

    fn tag(&self, slot: usize) -> u8 {
        (self.head >> (8 * slot)) as u8
    }

    fn set(&mut self, slot: usize, tag: u8, id: u32) {
        self.head ^= u128::from(self.tag(slot) ^ tag) << (8 * slot);
        if let Some(place) = self.ids.get_mut(slot) {
            *place = id;
        }
    }

    /// The slot that holds an entry.
    fn slot_of(&self, id: u32) -> Option<usize> {
        (0..SLOTS).find(|&slot| self.tag(slot) != EMPTY && self.ids.get(slot) == Some(&id))
    }
}

/// Slots, a bit each.
struct Matches(u32);

impl Iterator for Matches {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let Self(bits) = self;
        let slot = NonZeroU32::new(*bits)?.trailing_zeros() as usize;
        *bits &= *bits - 1;
        Some(slot)
    }
}

/// Where entries are, by hash.
pub(super) struct Index {
    row: Row,
    /// Of bounds that were raised.
    added: Vec<Row>,
}

/// A hash table of entry numbers.
struct Row {
    buckets: Box<[Bucket]>,
    /// Most entries.
    bound: usize,
    len: usize,
}

impl Index {
    /// An empty index, laid out for `max` entries.
    pub(super) fn new(max: u32) -> Self {
        Self { row: Row::new(max as usize), added: Vec::new() }
    }

    /// Has room for `max` entries from now on, or for as many as it had if that is more.
    pub(super) fn extend(&mut self, max: u32) {
        let bound: usize = self.rows().map(|row| row.bound).sum();
        let missing = (max as usize).saturating_sub(bound);
        if missing > 0 {
            self.added.push(Row::new(missing.max(bound)));
        }
    }

    /// The number of the entry that `is_it`, among those with this hash.
    #[inline(always)]
    pub(super) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut found = self.row.find(hash, &mut is_it);
        for row in &self.added {
            found = found.or_else(|| row.find(hash, &mut is_it));
        }
        found
    }

    /// The number of an entry that a hash may stand for, most often the only one, or [`NIL`].
    #[inline(always)]
    pub(super) fn candidate(&self, hash: u32) -> u32 {
        let Some(bucket) = self.row.buckets.get(self.row.home(hash)) else { return NIL };
        let slot = bucket.matches(tag_of(hash)).next();
        slot.map_or_else(|| self.candidate_beyond(bucket, hash), |slot| bucket.id(slot))
    }

    /// Likewise. `second` is called with the next one, if there is one as near.
    #[inline(always)]
    pub(super) fn candidates(&self, hash: u32, second: impl FnOnce(u32)) -> u32 {
        let Some(bucket) = self.row.buckets.get(self.row.home(hash)) else { return NIL };
        let mut matches = bucket.matches(tag_of(hash));
        let Some(slot) = matches.next() else { return self.candidate_beyond(bucket, hash) };
        if let Some(slot) = matches.next() {
            second(bucket.id(slot));
        }
        bucket.id(slot)
    }

    /// Likewise, if there is none in the `bucket` that the hash belongs to.
    #[inline]
    fn candidate_beyond(&self, bucket: &Bucket, hash: u32) -> u32 {
        let ends_here = !bucket.has_turned_away() && self.added.is_empty();
        if ends_here { NIL } else { self.candidate_elsewhere(hash) }
    }

    #[cold]
    fn candidate_elsewhere(&self, hash: u32) -> u32 {
        self.find(hash, |_| true).unwrap_or(NIL)
    }

    /// Where the bucket lies that a hash belongs to.
    #[inline(always)]
    pub(super) fn place_of(&self, hash: u32) -> *const () {
        self.row.buckets.as_ptr().wrapping_add(self.row.home(hash)).cast()
    }

    /// Adds an entry that is not in the index.
    pub(super) fn insert(&mut self, hash: u32, id: u32) {
        let Self { row, added } = self;
        let has_room = |row: &&mut Row| row.len < row.bound;
        if let Some(row) = std::iter::once(row).chain(added).find(has_room) {
            row.insert(hash, id);
        }
    }

    /// Takes out an entry.
    pub(super) fn remove(&mut self, hash: u32, id: u32) {
        if !self.row.remove(hash, id) {
            self.added.iter_mut().any(|row| row.remove(hash, id));
        }
    }

    /// Bytes held.
    pub(super) fn memory(&self) -> usize {
        self.rows().map(Row::memory).sum()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.rows().map(|row| row.len).sum()
    }

    #[inline]
    fn rows(&self) -> impl Iterator<Item = &Row> {
        std::iter::once(&self.row).chain(&self.added)
    }
}

impl Row {
    fn new(bound: usize) -> Self {
        let buckets = vec![Bucket::NEW; bound.div_ceil(PER_BUCKET).max(1)];
        Self { buckets: buckets.into_boxed_slice(), bound, len: 0 }
    }

    /// Where what has this hash belongs: the hash as a fraction of all buckets.
    #[inline]
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline]
    const fn after(&self, at: usize) -> usize {
        if at + 1 < self.buckets.len() { at + 1 } else { 0 }
    }

    #[inline(always)]
    fn find(&self, hash: u32, is_it: &mut impl FnMut(u32) -> bool) -> Option<u32> {
        let home = self.home(hash);
        let mut at = home;
        loop {
            let bucket = self.buckets.get(at)?;
            for slot in bucket.matches(tag_of(hash)) {
                let &id = bucket.ids.get(slot)?;
                if is_it(id) {
                    return Some(id);
                }
            }
            at = self.after(at);
            if !bucket.has_turned_away() || at == home {
                return None;
            }
        }
    }

    fn insert(&mut self, hash: u32, id: u32) {
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let Some(bucket) = self.buckets.get_mut(at) else { return };
            if let Some(slot) = bucket.matches(EMPTY).next() {
                bucket.set(slot, tag_of(hash), id);
                self.len += 1;
                return;
            }
            bucket.head += ONE_TURNED_AWAY;
            at = self.after(at);
        }
    }

    /// Returns whether it was here.
    fn remove(&mut self, hash: u32, id: u32) -> bool {
        let home = self.home(hash);
        let mut at = home;
        let slot = loop {
            let Some(bucket) = self.buckets.get(at) else { return false };
            if let Some(slot) = bucket.slot_of(id) {
                break slot;
            }
            at = self.after(at);
            if !bucket.has_turned_away() || at == home {
                return false;
            }
        };
        if let Some(bucket) = self.buckets.get_mut(at) {
            bucket.set(slot, EMPTY, 0);
            self.len -= 1;
        }
        let mut passed = home;
        while passed != at {
            if let Some(bucket) = self.buckets.get_mut(passed) {
                bucket.head -= ONE_TURNED_AWAY;
            }
            passed = self.after(passed);
        }
        true
    }

    fn memory(&self) -> usize {
        size_of_val(&*self.buckets)
    }
}

/// The lowest byte of the hash, which places it nowhere as long as there are less than 2²⁴ buckets; never
/// [`EMPTY`].
#[inline]
const fn tag_of(hash: u32) -> u8 {
    let tag = hash as u8;
    tag + (tag == EMPTY) as u8
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Few hashes, so that buckets overflow.
    fn hash_of(id: u32) -> u32 {
        ((id % 7) << 28) | (id % 3)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_was_put_in_and_not_taken_out_is_found(ops in vec((0..8_u8, 0..300_u32), 0..600)) {
            let mut index = Index::new(50);
            let mut max = 50;
            let mut members = std::collections::BTreeSet::new();
            for (op, id) in ops {
                match op {
                    0..5 if members.len() < max && members.insert(id) => index.insert(hash_of(id), id),
                    5..7 if members.remove(&id) => index.remove(hash_of(id), id),
                    7 => {
                        max = max.max(id as usize);
                        index.extend(id);
                    }
                    _ => {}
                }
                let found = index.find(hash_of(id), |other| other == id);
                prop_assert_eq!(found.is_some(), members.contains(&id));
                let has_like = members.iter().any(|&member| hash_of(member) == hash_of(id));
                let mut others = 0;
                let candidate = index.candidates(hash_of(id), |_| others += 1);
                prop_assert_eq!(index.candidate(hash_of(id)), candidate);
                prop_assert!(candidate != NIL || !has_like && others == 0);
            }
            for id in 0..300 {
                let found = index.find(hash_of(id), |other| other == id);
                prop_assert_eq!(found.is_some(), members.contains(&id));
            }
            prop_assert_eq!(index.len(), members.len());
            members.iter().for_each(|&id| index.remove(hash_of(id), id));
            let mut buckets = index.rows().flat_map(|row| &row.buckets);
            prop_assert!(buckets.all(|bucket| bucket.head == 0));
        }
    }

    #[test]
    fn matches_are_exact() {
        let mut bucket = Bucket::NEW;
        let tags = [1, 0x80, 0x81, 0xff, 0x7f, 1, 2, 0, 0x80, 0x01, 0xfe, 0];
        for (slot, tag) in tags.into_iter().enumerate() {
            bucket.set(slot, tag, 0);
        }
        bucket.head += 3 * ONE_TURNED_AWAY;
        for tag in 0..=u8::MAX {
            let expected: Vec<usize> = (0..SLOTS).filter(|&slot| tags[slot] == tag).collect();
            assert_eq!(bucket.matches(tag).collect::<Vec<_>>(), expected);
        }
        assert!(bucket.has_turned_away());
    }

    #[test]
    fn a_bucket_is_a_cache_line() {
        assert_eq!((size_of::<Bucket>(), align_of::<Bucket>()), (64, 64));
    }
}
