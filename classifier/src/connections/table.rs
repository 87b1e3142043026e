//! Where entries lie and how they are found: a slab, an index over it, and the timeout lists.
//!
//! - **Slab.** Entries lie in segments that are allocated as they fill and never move, so growth
//!   copies nothing, and an entry's number is its place for life. Free slots form a list.
//! - **Index.** Hash tables of entry numbers, sharded by hash: each shard holds a few hundred and
//!   grows by itself, so an insertion rehashes a shard at most, never the table. At the bound of
//!   connections a shard is six sevenths full.
//! - **Lists** by timeout: [`timers`](super::timers).
//!
//! Invariant: an entry is live iff the index has its number, under its key's hash, exactly once,
//! and its class's list has it exactly once. Every method that is public here keeps that.

use hashbrown::HashTable;

use super::entry::{Entry, NIL, State};
use super::key::{Hasher, Key};
use super::timers::{Class, Queues, tick};
use crate::time::Nanos;

/// Entries per segment: a power of two.
const SEGMENT: usize = 4096;

/// Connections per shard of the index at the bound: six sevenths of what 512 buckets hold.
const PER_SHARD: u32 = 384;

/// Most shards. Their own headers take 2 MiB then; beyond 25 million connections shards grow.
const MAX_SHARDS: u32 = 65_536;

/// Entries by number.
pub(super) struct Slab {
    segments: Vec<Vec<Entry>>,
    first_free: u32,
}

impl Slab {
    const fn new() -> Self {
        Self { segments: Vec::new(), first_free: NIL }
    }

    /// The slot of this number, free or not.
    pub(super) fn get(&self, id: u32) -> Option<&Entry> {
        let id = id as usize;
        self.segments.get(id / SEGMENT)?.get(id % SEGMENT)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Entry> {
        let id = id as usize;
        self.segments.get_mut(id / SEGMENT)?.get_mut(id % SEGMENT)
    }

    /// Number of slots, free ones included.
    pub(super) fn slots(&self) -> usize {
        let full = self.segments.len().saturating_sub(1);
        full * SEGMENT + self.segments.last().map_or(0, Vec::len)
    }

    /// Puts an entry into a free slot. Allocates a segment when all are full.
    fn insert(&mut self, entry: Entry) -> u32 {
        let id = self.first_free;
        if let Some(slot) = self.get_mut(id) {
            let next = slot.next;
            *slot = entry;
            self.first_free = next;
            return id;
        }
        let id = self.slots() as u32;
        match self.segments.last_mut() {
            Some(segment) if segment.len() < SEGMENT => segment.push(entry),
            _ => {
                let mut segment = Vec::with_capacity(SEGMENT);
                segment.push(entry);
                self.segments.push(segment);
            }
        }
        id
    }

    fn free(&mut self, id: u32) {
        let next = self.first_free;
        if let Some(slot) = self.get_mut(id) {
            slot.state = State::Free;
            slot.next = next;
            self.first_free = id;
        }
    }
}

/// Live connections by key, by number, and by age.
pub(super) struct Table {
    slab: Slab,
    shards: Vec<HashTable<u32>>,
    hasher: Hasher,
    queues: Queues,
    len: usize,
}

impl Table {
    /// An empty table whose index is laid out for `max` connections.
    pub(super) fn new(max: u32, seed: u64) -> Self {
        let shards = max.div_ceil(PER_SHARD).clamp(1, MAX_SHARDS);
        Self {
            slab: Slab::new(),
            shards: (0..shards).map(|_| HashTable::new()).collect(),
            hasher: Hasher::new(seed),
            queues: Queues::new(),
            len: 0,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn slab(&self) -> &Slab {
        &self.slab
    }

    /// The entry of a key. Cost: one hash, one probe of the index, one entry compared.
    pub(super) fn find(&self, key: &Key) -> Option<(u32, &Entry)> {
        self.find_hashed(key, self.hash(key))
    }

    /// The hash of a key, in this table.
    pub(super) fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash(key)
    }

    /// [`Table::find`] of a key whose hash is known.
    pub(super) fn find_hashed(&self, key: &Key, hash: u64) -> Option<(u32, &Entry)> {
        let has_key = |&id: &u32| self.slab.get(id).is_some_and(|entry| entry.key == *key);
        let &id = self.shards.get(shard_of(hash, self.shards.len()))?.find(hash, has_key)?;
        self.slab.get(id).map(|entry| (id, entry))
    }

    /// The live entry of this number.
    pub(super) fn get(&self, id: u32) -> Option<&Entry> {
        self.slab.get(id).filter(|entry| !entry.is_free())
    }

    /// The live entry of this number, to change anything but key, state and links.
    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.slab.get_mut(id).filter(|entry| !entry.is_free())
    }

    /// The least recently used connection of a class.
    pub(super) fn oldest(&self, class: Class) -> Option<(u32, &Entry)> {
        let id = self.queues.oldest(class)?;
        self.slab.get(id).map(|entry| (id, entry))
    }

    /// Adds an entry whose key is not in the table.
    pub(super) fn insert(&mut self, entry: Entry) -> u32 {
        let Self { slab, shards, hasher, queues, len } = self;
        let hash = hasher.hash(&entry.key);
        let class = entry.state.class();
        let id = slab.insert(entry);
        queues.push(slab, class, id);
        let shard = shard_of(hash, shards.len());
        if let Some(shard) = shards.get_mut(shard) {
            let hash_of = |&id: &u32| slab.get(id).map_or(0, |entry| hasher.hash(&entry.key));
            shard.insert_unique(hash, id, hash_of);
        }
        *len += 1;
        id
    }

    /// Takes an entry out. Returns whether it was live.
    pub(super) fn remove(&mut self, id: u32) -> bool {
        let Some(entry) = self.get(id) else { return false };
        let (hash, class) = (self.hasher.hash(&entry.key), entry.state.class());
        let shard = shard_of(hash, self.shards.len());
        if let Some(shard) = self.shards.get_mut(shard)
            && let Ok(found) = shard.find_entry(hash, |&other| other == id)
        {
            found.remove();
        }
        self.queues.unlink(&mut self.slab, class, id);
        self.slab.free(id);
        self.len -= 1;
        true
    }

    /// Notes that a frame at `now` keeps a live entry alive in `state`.
    pub(super) fn touch(&mut self, id: u32, state: State, now: Nanos) {
        let Some(entry) = self.slab.get_mut(id) else { return };
        let (from, to) = (entry.state.class(), state.class());
        let is_in_order = from == to && tick(entry.last) >= tick(now);
        entry.state = state;
        entry.last = entry.last.max(now);
        if !is_in_order {
            self.queues.unlink(&mut self.slab, from, id);
            self.queues.push(&mut self.slab, to, id);
        }
    }
}

/// The shard that a hash belongs to: its middle bits, scaled. A shard itself uses the lowest ones
/// to place and the highest seven to tell apart.
const fn shard_of(hash: u64, shards: usize) -> usize {
    let middle = (hash >> 24) as u32;
    ((middle as u64 * shards as u64) >> 32) as usize
}

#[cfg(test)]
impl Table {
    /// Checks the invariant: index, lists and free list share out the slots, each in order.
    pub(super) fn check(&self) {
        let mut listed = 0;
        for class in Class::ALL {
            let (mut previous, mut at, mut age) = (NIL, self.queues.oldest(class), 0);
            while let Some(id) = at {
                let entry = self.get(id).expect("a list holds live entries");
                assert_eq!((entry.previous, entry.state.class()), (previous, class));
                assert!(tick(entry.last) >= age, "{class:?} is out of order");
                assert_eq!(self.find(&entry.key).map(|(found, _)| found), Some(id));
                (previous, age) = (id, tick(entry.last));
                at = (entry.next != NIL).then_some(entry.next);
                listed += 1;
            }
            assert_eq!(self.queues.newest(class), (previous != NIL).then_some(previous));
        }
        let mut free = 0;
        let mut at = self.slab.get(self.slab.first_free);
        while let Some(slot) = at {
            assert!(slot.is_free());
            at = self.slab.get(slot.next);
            free += 1;
        }
        assert_eq!((listed, listed + free), (self.len, self.slab.slots()));
        assert_eq!(self.shards.iter().map(HashTable::len).sum::<usize>(), self.len);
    }

    /// Bytes that the table holds, spare ones included.
    pub(super) fn bytes(&self) -> usize {
        let segments: usize = self.slab.segments.iter().map(Vec::capacity).sum();
        let shards: usize = self.shards.iter().map(HashTable::allocation_size).sum();
        segments * size_of::<Entry>()
            + shards
            + self.slab.segments.capacity() * size_of::<Vec<Entry>>()
            + self.shards.capacity() * size_of::<HashTable<u32>>()
    }
}
