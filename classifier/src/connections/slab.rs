//! Where connections lie: by number, in segments that never move.
//!
//! So growth copies nothing, and a connection's number is its place for life. The three parts of an
//! entry lie in arrays of their own, each part on as few cache lines as it can. Slots that were freed
//! form a list; beyond the highest number that was ever given out nothing is in use.
//!
//! The first segment has room for the bound of connections, if that is at most [`SEGMENT`], so most
//! tables have no other. What is reserved takes no memory until it is filled, or
//! [set aside](Slab::set_aside) before. Arrays are large for the sake of large pages: with a million
//! connections, every other lookup would wait for a page walk otherwise.

use super::entry::{Activity, Entry, Identity, NIL, Record, State};

/// Most entries per segment.
const SEGMENT: u32 = 1 << 20;

/// Entries by number.
pub(super) struct Slab {
    first: Segment,
    /// Of [`SEGMENT`] entries each.
    others: Vec<Segment>,
    /// Entries that the first segment has room for.
    bound: u32,
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
    /// Reserves room for `count` entries. Nothing moves, as long as there are no more.
    fn with_room(count: usize) -> Self {
        Self {
            identities: Vec::with_capacity(count),
            activities: Vec::with_capacity(count),
            records: Vec::with_capacity(count),
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

impl Slab {
    /// No entries. There will be `max` of them, most likely.
    pub(super) fn new(max: u32) -> Self {
        let bound = max.min(SEGMENT);
        Self { first: Segment::default(), others: Vec::new(), bound, first_free: NIL, used: 0 }
    }

    /// A part of an entry. Nearly all lie in the first segment.
    #[inline]
    fn part<'a, T: 'a>(&'a self, id: u32, of: impl Fn(&'a Segment) -> &'a [T]) -> Option<&'a T> {
        let found = of(&self.first).get(id as usize);
        found.or_else(|| {
            let beyond = id.checked_sub(self.bound)?;
            of(self.others.get((beyond / SEGMENT) as usize)?).get((beyond % SEGMENT) as usize)
        })
    }

    /// The segment that an entry lies in, and its place there.
    fn place_mut(&mut self, id: u32) -> Option<(&mut Segment, usize)> {
        match id.checked_sub(self.bound) {
            None => Some((&mut self.first, id as usize)),
            Some(beyond) => {
                let segment = self.others.get_mut((beyond / SEGMENT) as usize)?;
                Some((segment, (beyond % SEGMENT) as usize))
            }
        }
    }

    /// The identity in this slot; its state says if the slot is free.
    #[inline]
    pub(super) fn identity(&self, id: u32) -> Option<&Identity> {
        self.part(id, |segment| &segment.identities)
    }

    pub(super) fn identity_mut(&mut self, id: u32) -> Option<&mut Identity> {
        let (segment, at) = self.place_mut(id)?;
        segment.identities.get_mut(at)
    }

    #[inline]
    pub(super) fn activity(&self, id: u32) -> Option<&Activity> {
        self.part(id, |segment| &segment.activities)
    }

    pub(super) fn activity_mut(&mut self, id: u32) -> Option<&mut Activity> {
        let (segment, at) = self.place_mut(id)?;
        segment.activities.get_mut(at)
    }

    #[inline]
    pub(super) fn record(&self, id: u32) -> Option<&Record> {
        self.part(id, |segment| &segment.records)
    }

    pub(super) fn record_mut(&mut self, id: u32) -> Option<&mut Record> {
        let (segment, at) = self.place_mut(id)?;
        segment.records.get_mut(at)
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
    pub(super) fn set_aside(&mut self, count: u32) {
        self.reserve(count);
        let (first, beyond) = (count.min(self.bound), count.saturating_sub(self.bound));
        self.first.set_aside(first as usize);
        for (at, segment) in (0..).zip(&mut self.others) {
            segment.set_aside(beyond.saturating_sub(at * SEGMENT).min(SEGMENT) as usize);
        }
    }

    /// Has segments for `count` entries.
    fn reserve(&mut self, count: u32) {
        if self.first.identities.capacity() == 0 {
            self.first = Segment::with_room(self.bound as usize);
        }
        let needed = count.saturating_sub(self.bound).div_ceil(SEGMENT) as usize;
        while self.others.len() < needed {
            self.others.push(Segment::with_room(SEGMENT as usize));
        }
    }

    /// Puts an entry into a free slot. Reserves a segment when all are full.
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
        self.reserve(id + 1);
        if let Some((segment, at)) = self.place_mut(id) {
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
        std::iter::once(&self.first).chain(&self.others).map(of_segment).sum::<usize>()
            + self.others.capacity() * size_of::<Segment>()
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
