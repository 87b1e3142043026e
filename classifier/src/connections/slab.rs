//! Where connections lie: by number, in segments that never move.
//!
//! So growth copies nothing, and a connection's number is its place for life. The three parts of an
//! entry lie in arrays of their own, each part on as few cache lines as it can. Slots that were freed
//! form a list; beyond the highest number that was ever given out nothing is in use.
//!
//! Segments are allocated as they fill, or [set aside](Slab::set_aside) before. A segment's largest
//! arrays have the size of an x86-64 huge page (2 MiB): with a million connections, every other lookup
//! would wait for a page walk otherwise.

use super::entry::{Activity, Entry, Identity, NIL, Record, State};

/// Entries per segment: a power of two.
const SEGMENT: usize = 32_768;

/// Entries by number.
pub(super) struct Slab {
    segments: Vec<Segment>,
    first_free: u32,
    /// One more than the highest number ever given out.
    used: u32,
}

#[derive(Default)]
struct Segment {
    identities: Vec<Identity>,
    activities: Vec<Activity>,
    records: Vec<Record>,
}

impl Segment {
    fn new() -> Self {
        Self {
            identities: Vec::with_capacity(SEGMENT),
            activities: Vec::with_capacity(SEGMENT),
            records: Vec::with_capacity(SEGMENT),
        }
    }

    /// Has memory for `count` entries not only reserved but there.
    fn set_aside(&mut self, count: usize) {
        let Entry { identity, activity, record } = Entry::free();
        let count = count.max(self.identities.len());
        self.identities.resize(count, identity);
        self.activities.resize(count, activity);
        self.records.resize(count, record);
    }

    /// Puts an entry into this slot, the first that is not in use.
    fn put(&mut self, at: usize, entry: Entry) {
        let Self { identities, activities, records } = self;
        match (identities.get_mut(at), activities.get_mut(at), records.get_mut(at)) {
            (Some(identity), Some(activity), Some(record)) => {
                (*identity, *activity, *record) = (entry.identity, entry.activity, entry.record);
            }
            _ => {
                identities.push(entry.identity);
                activities.push(entry.activity);
                records.push(entry.record);
            }
        }
    }
}

const fn place(id: u32) -> (usize, usize) {
    (id as usize / SEGMENT, id as usize % SEGMENT)
}

impl Slab {
    pub(super) const fn new() -> Self {
        Self { segments: Vec::new(), first_free: NIL, used: 0 }
    }

    /// The identity in this slot; its state says if the slot is free.
    #[inline]
    pub(super) fn identity(&self, id: u32) -> Option<&Identity> {
        let (segment, at) = place(id);
        self.segments.get(segment)?.identities.get(at)
    }

    pub(super) fn identity_mut(&mut self, id: u32) -> Option<&mut Identity> {
        let (segment, at) = place(id);
        self.segments.get_mut(segment)?.identities.get_mut(at)
    }

    #[inline]
    pub(super) fn activity(&self, id: u32) -> Option<&Activity> {
        let (segment, at) = place(id);
        self.segments.get(segment)?.activities.get(at)
    }

    pub(super) fn activity_mut(&mut self, id: u32) -> Option<&mut Activity> {
        let (segment, at) = place(id);
        self.segments.get_mut(segment)?.activities.get_mut(at)
    }

    pub(super) fn record(&self, id: u32) -> Option<&Record> {
        let (segment, at) = place(id);
        self.segments.get(segment)?.records.get(at)
    }

    pub(super) fn record_mut(&mut self, id: u32) -> Option<&mut Record> {
        let (segment, at) = place(id);
        self.segments.get_mut(segment)?.records.get_mut(at)
    }

    /// A copy of a live entry.
    pub(super) fn entry(&self, id: u32) -> Option<Entry> {
        let identity = *self.identity(id).filter(|identity| !identity.is_free())?;
        Some(Entry { identity, activity: *self.activity(id)?, record: *self.record(id)? })
    }

    /// Number of slots that were ever in use.
    pub(super) const fn slots(&self) -> usize {
        self.used as usize
    }

    /// Takes memory for `count` entries now. No insertion waits for the operating system then, until
    /// there are more.
    ///
    /// Arrays of a kind are reserved side by side before any is written to, or the system could not
    /// lay huge pages across them.
    pub(super) fn set_aside(&mut self, count: u32) {
        let count = count as usize;
        let known = self.segments.len();
        self.segments.resize_with(count.div_ceil(SEGMENT).max(known), Segment::default);
        let added = self.segments.get_mut(known..).unwrap_or_default();
        added.iter_mut().for_each(|segment| segment.identities.reserve_exact(SEGMENT));
        added.iter_mut().for_each(|segment| segment.activities.reserve_exact(SEGMENT));
        added.iter_mut().for_each(|segment| segment.records.reserve_exact(SEGMENT));
        for (at, segment) in self.segments.iter_mut().enumerate() {
            segment.set_aside(count.saturating_sub(at * SEGMENT).min(SEGMENT));
        }
    }

    /// Puts an entry into a free slot. Allocates a segment when all are full.
    pub(super) fn insert(&mut self, entry: Entry) -> u32 {
        let id = self.first_free;
        if let Some(record) = self.record_mut(id) {
            let next = record.next;
            *record = entry.record;
            self.first_free = next;
            if let Some(identity) = self.identity_mut(id) {
                *identity = entry.identity;
            }
            if let Some(activity) = self.activity_mut(id) {
                *activity = entry.activity;
            }
            return id;
        }
        let id = self.used;
        let (segment, at) = place(id);
        if segment == self.segments.len() {
            self.segments.push(Segment::new());
        }
        if let Some(segment) = self.segments.get_mut(segment) {
            segment.put(at, entry);
            self.used += 1;
        }
        id
    }

    /// Makes a live entry's slot free.
    pub(super) fn free(&mut self, id: u32) {
        let next = self.first_free;
        if let Some(identity) = self.identity_mut(id) {
            identity.set_state(State::Free);
        }
        if let Some(record) = self.record_mut(id) {
            record.next = next;
            self.first_free = id;
        }
    }

    /// Bytes that entries take, in use or not. What a segment has reserved beyond them is not there
    /// yet.
    pub(super) fn memory(&self) -> usize {
        let of_segment = |segment: &Segment| {
            segment.identities.len() * size_of::<Identity>()
                + segment.activities.len() * size_of::<Activity>()
                + segment.records.len() * size_of::<Record>()
        };
        self.segments.iter().map(of_segment).sum::<usize>()
            + self.segments.capacity() * size_of::<Segment>()
    }

    /// Number of free slots, by walking their list.
    #[cfg(test)]
    pub(super) fn count_free(&self) -> usize {
        let mut count = 0;
        let mut at = self.first_free;
        while let (Some(identity), Some(record)) = (self.identity(at), self.record(at)) {
            assert!(identity.is_free());
            at = record.next;
            count += 1;
        }
        count
    }
}
