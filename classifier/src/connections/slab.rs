//! Where connections lie: by number, in segments that are allocated as they fill and never move.
//!
//! So growth copies nothing, and a connection's number is its place for life. The three parts of an
//! entry lie in arrays of their own, each part on as few cache lines as it can. Free slots form a
//! list.

use super::entry::{Activity, Entry, Identity, NIL, Record, State};

/// Entries per segment: a power of two.
const SEGMENT: usize = 4_096;

/// Entries by number.
pub(super) struct Slab {
    segments: Vec<Segment>,
    first_free: u32,
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

    fn push(&mut self, entry: Entry) {
        self.identities.push(entry.identity);
        self.activities.push(entry.activity);
        self.records.push(entry.record);
    }
}

const fn place(id: u32) -> (usize, usize) {
    (id as usize / SEGMENT, id as usize % SEGMENT)
}

impl Slab {
    pub(super) const fn new() -> Self {
        Self { segments: Vec::new(), first_free: NIL }
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

    /// Number of slots, free ones included.
    pub(super) fn slots(&self) -> usize {
        let full = self.segments.len().saturating_sub(1);
        full * SEGMENT + self.segments.last().map_or(0, |last| last.identities.len())
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
        let id = self.slots() as u32;
        match self.segments.last_mut() {
            Some(segment) if segment.identities.len() < SEGMENT => segment.push(entry),
            _ => {
                let mut segment = Segment::new();
                segment.push(entry);
                self.segments.push(segment);
            }
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

    /// Bytes held, free slots and spare room included.
    pub(super) fn memory(&self) -> usize {
        let of_segment = |segment: &Segment| {
            segment.identities.capacity() * size_of::<Identity>()
                + segment.activities.capacity() * size_of::<Activity>()
                + segment.records.capacity() * size_of::<Record>()
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
