//! From a key's hash to the numbers of the entries that may have it.
//!
//! - A **bucket** is one cache line: the numbers of twelve entries, and eight bits of each one's hash
//!   to tell them apart, which are compared at once. So a lookup touches the one bucket and, nearly
//!   always, the one entry.
//! - An entry whose bucket is full goes to the next one that is not. A full bucket counts those that
//!   it has turned away, so a lookup knows where to stop, and a removal leaves nothing behind.
//! - Buckets are **sharded** by hash, and each shard grows by itself: an insertion rehashes some two
//!   hundred entries at most, never the table. The number of shards follows from the bound of
//!   connections; at the bound a shard is five sixths full.

/// Entries per bucket.
const SLOTS: usize = 12;

/// Connections per shard at the bound: five sixths of what 24 buckets hold.
const PER_SHARD: u32 = 240;

/// Buckets of a shard that is set aside: it grows if it gets five standard deviations more than its
/// mean of [`PER_SHARD`].
const SET_ASIDE: usize = 28;

/// The tag of an empty slot.
const EMPTY: u8 = 0;

/// The lowest bit of each slot's tag.
const ONES: u128 = u128::from_le_bytes([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);

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
        // A byte is zero iff neither it nor what its lower bits carry into the highest has that bit.
        let differing = self.head ^ (ONES * u128::from(tag));
        let low = ONES * 0x7f;
        Matches(!(((differing & low) + low) | differing) & (ONES << 7))
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

/// Slots, by the highest bit of each one's byte.
struct Matches(u128);

impl Iterator for Matches {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let Self(bits) = self;
        let slot = (*bits != 0).then_some(bits.trailing_zeros() as usize / 8);
        *bits &= bits.wrapping_sub(1);
        slot
    }
}

/// Hash tables of entry numbers.
pub(super) struct Index {
    shards: Vec<Shard>,
}

#[derive(Clone, Default)]
struct Shard {
    buckets: Box<[Bucket]>,
    len: u32,
}

impl Index {
    /// An empty index, laid out for `max` entries.
    pub(super) fn new(max: u32) -> Self {
        Self { shards: vec![Shard::default(); max.div_ceil(PER_SHARD).max(1) as usize] }
    }

    /// The number of the entry that `is_it`, among those with this hash.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let (shard, within) = self.place(hash);
        let buckets = &*self.shards.get(shard)?.buckets;
        let home = scale(within, buckets.len());
        let mut at = home;
        loop {
            let bucket = buckets.get(at)?;
            for slot in bucket.matches(tag_of(hash)) {
                let &id = bucket.ids.get(slot)?;
                if is_it(id) {
                    return Some(id);
                }
            }
            at = if at + 1 < buckets.len() { at + 1 } else { 0 };
            if !bucket.has_turned_away() || at == home {
                return None;
            }
        }
    }

    /// Reads a word of the bucket that a hash belongs to, so that it is at hand afterwards.
    #[inline]
    pub(super) fn touch(&self, hash: u64) -> u32 {
        let (shard, within) = self.place(hash);
        let Some(shard) = self.shards.get(shard) else { return 0 };
        let bucket = shard.buckets.get(scale(within, shard.buckets.len()));
        bucket.map_or(0, |bucket| bucket.head as u32)
    }

    /// Adds an entry that is not in the index. `hash_of` gives the hashes of those that are.
    pub(super) fn insert(&mut self, hash: u64, id: u32, hash_of: impl Fn(u32) -> u64) {
        let shards = self.shards.len();
        let (shard, within) = place(hash, shards);
        let Some(shard) = self.shards.get_mut(shard) else { return };
        if shard.is_full() {
            shard.grow(|id| {
                let hash = hash_of(id);
                (place(hash, shards).1, tag_of(hash))
            });
        }
        shard.insert(within, tag_of(hash), id);
    }

    /// Takes out an entry.
    pub(super) fn remove(&mut self, hash: u64, id: u32) {
        let (shard, within) = self.place(hash);
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.remove(within, id);
        }
    }

    /// Bytes held.
    pub(super) fn memory(&self) -> usize {
        let buckets: usize = self.shards.iter().map(|shard| shard.buckets.len()).sum();
        buckets * size_of::<Bucket>() + self.shards.capacity() * size_of::<Shard>()
    }

    /// Has every shard as large as it will nearly always be.
    pub(super) fn set_aside(&mut self) {
        for shard in self.shards.iter_mut().filter(|shard| shard.buckets.is_empty()) {
            shard.buckets = vec![Bucket::NEW; SET_ASIDE].into_boxed_slice();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len as usize).sum()
    }

    fn place(&self, hash: u64) -> (usize, u32) {
        place(hash, self.shards.len())
    }
}

impl Shard {
    /// Whether it should grow before the next insertion: nineteen twentieths are taken.
    fn is_full(&self) -> bool {
        self.len as usize * 20 >= self.buckets.len() * SLOTS * 19
    }

    /// The buckets to look into, one after the other, for what belongs to one place.
    fn probes(&self, within: u32) -> impl Iterator<Item = usize> + use<> {
        let count = self.buckets.len();
        let first = scale(within, count);
        (first..count).chain(0..first)
    }

    fn insert(&mut self, within: u32, tag: u8, id: u32) {
        for at in self.probes(within) {
            let Some(bucket) = self.buckets.get_mut(at) else { return };
            if let Some(slot) = bucket.matches(EMPTY).next() {
                bucket.set(slot, tag, id);
                self.len += 1;
                return;
            }
            bucket.head += ONE_TURNED_AWAY;
        }
    }

    fn remove(&mut self, within: u32, id: u32) {
        let slot_in = |at: usize| self.buckets.get(at)?.slot_of(id);
        let found = self.probes(within).enumerate().find_map(|(n, at)| Some((n, slot_in(at)?)));
        let Some((distance, slot)) = found else { return };
        for (n, at) in self.probes(within).take(distance + 1).enumerate() {
            let Some(bucket) = self.buckets.get_mut(at) else { return };
            if n < distance {
                bucket.head -= ONE_TURNED_AWAY;
            } else {
                bucket.set(slot, EMPTY, 0);
            }
        }
        self.len -= 1;
    }

    /// Grows by a half or a third. `place_of` gives an entry's place within the shard, and its tag.
    fn grow(&mut self, place_of: impl Fn(u32) -> (u32, u8)) {
        let count = match self.buckets.len() {
            0 => 1,
            count if count.is_power_of_two() => count + count.div_ceil(2),
            count => count / 3 * 4,
        };
        let grown = vec![Bucket::NEW; count].into_boxed_slice();
        let old = std::mem::replace(self, Self { buckets: grown, len: 0 });
        for bucket in &old.buckets {
            for (slot, &id) in bucket.ids.iter().enumerate() {
                if bucket.tag(slot) != EMPTY {
                    let (within, tag) = place_of(id);
                    self.insert(within, tag, id);
                }
            }
        }
    }
}

/// The shard that a hash belongs to, and its place within it: the upper half of the hash as a
/// fraction of all shards.
const fn place(hash: u64, shards: usize) -> (usize, u32) {
    let product = (hash >> 32) * shards as u64;
    ((product >> 32) as usize, product as u32)
}

/// `fraction` of `count`, from 0 to `count - 1`.
const fn scale(fraction: u32, count: usize) -> usize {
    ((fraction as u64 * count as u64) >> 32) as usize
}

/// Eight bits of the hash that place it nowhere; never [`EMPTY`].
const fn tag_of(hash: u64) -> u8 {
    let tag = hash as u8;
    if tag == EMPTY { 1 } else { tag }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Few hashes, so that buckets overflow.
    fn hash_of(id: u32) -> u64 {
        u64::from(id % 7) << 40 | u64::from(id % 3)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_was_put_in_and_not_taken_out_is_found(ops in vec((any::<bool>(), 0..300_u32), 0..600)) {
            let mut index = Index::new(400);
            let mut members = std::collections::BTreeSet::new();
            for (adds, id) in ops {
                match adds {
                    true if members.insert(id) => index.insert(hash_of(id), id, hash_of),
                    false if members.remove(&id) => index.remove(hash_of(id), id),
                    _ => {}
                }
                let found = index.find(hash_of(id), |other| other == id);
                prop_assert_eq!(found.is_some(), members.contains(&id));
            }
            for id in 0..300 {
                let found = index.find(hash_of(id), |other| other == id);
                prop_assert_eq!(found.is_some(), members.contains(&id));
            }
            prop_assert_eq!(index.len(), members.len());
            members.iter().for_each(|&id| index.remove(hash_of(id), id));
            let mut buckets = index.shards.iter().flat_map(|shard| &shard.buckets);
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
