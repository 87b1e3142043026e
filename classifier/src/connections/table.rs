//! Live connections by key, by number, and by age.
//!
//! Invariant: an entry is live iff the [index](super::index) has its number, under its key's hash,
//! exactly once, and its payer's list of its class has it exactly once. Every method that is public
//! here keeps that.

use std::ptr::{from_ref, null};

use super::entry::{Activity, Entry, Identity, Record, State};
use super::index::Index;
use super::key::{Hasher, Key, Upper};
use super::shares::Shares;
use super::slab::Slab;
use super::timers::{Class, Patience, Stamp, tick};
use crate::snapshot::{PortId, Timeouts};
use crate::time::Nanos;

/// Lists that one call of [`Table::take_expired`] may look at in vain.
const LOOKS: usize = 64;

/// Connections that stay in the cache next to the processor beside all else that a frame needs: half a
/// megabyte of index and entries.
const SMALL: usize = 2_048;

pub(super) struct Table {
    slab: Slab,
    index: Index,
    hasher: Hasher,
    shares: Shares,
    patience: Patience,
    len: usize,
}

impl Table {
    /// An empty table whose index is laid out for `max` connections.
    pub(super) fn new(max: u32, timeouts: &Timeouts, seed: u64) -> Self {
        Self {
            slab: Slab::new(max),
            index: Index::new(max),
            hasher: Hasher::new(seed),
            shares: Shares::new(),
            patience: Patience::new(timeouts),
            len: 0,
        }
    }

    /// Puts other timeouts in force.
    pub(super) fn set_timeouts(&mut self, timeouts: &Timeouts) {
        self.patience = Patience::new(timeouts);
        self.shares.hurry();
    }

    /// Has room for `max` connections, or for as many as it had if that is more.
    pub(super) fn extend(&mut self, max: u32) {
        self.index.extend(max);
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Whether lookups wait for memory.
    #[inline]
    pub(super) const fn is_large(&self) -> bool {
        self.len > SMALL
    }

    /// See [`Slab::set_aside`].
    pub(super) fn set_aside(&mut self, count: u32) {
        self.slab.set_aside(count);
    }

    /// Number of slots, free ones included.
    pub(super) fn slots(&self) -> usize {
        self.slab.slots()
    }

    pub(super) const fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Bytes held, spare ones included.
    pub(super) fn memory(&self) -> usize {
        self.slab.memory() + self.index.memory() + self.shares.memory()
    }

    #[inline]
    pub(super) fn hash(&self, key: &Key) -> u32 {
        self.hasher.hash(key)
    }

    /// The entry of a key, timed out or not. Cost: one bucket and one entry, two cache lines.
    #[inline]
    pub(super) fn find_key(&self, key: &Key, hash: u32) -> Option<(u32, &Identity)> {
        self.find(key.endpoints, &key.upper.unwrap_or_default(), hash)
    }

    /// Likewise, of a key's parts.
    #[inline(always)]
    pub(super) fn find(
        &self,
        endpoints: [u64; 2],
        upper: &Upper,
        hash: u32,
    ) -> Option<(u32, &Identity)> {
        let id = self.index.find(hash, |id| self.with_key(id, endpoints, upper).is_some())?;
        self.slab.identity(id).map(|identity| (id, identity))
    }

    /// The entry of this number, if it is a key's.
    #[inline]
    pub(super) fn with_key(
        &self,
        id: u32,
        endpoints: [u64; 2],
        upper: &Upper,
    ) -> Option<&Identity> {
        self.slab.identity(id).filter(|identity| identity.has_key(endpoints, upper))
    }

    /// An entry that a hash may stand for, or [`NIL`](super::entry::NIL).
    #[inline(always)]
    pub(super) fn candidate(&self, hash: u32) -> u32 {
        self.index.candidate(hash)
    }

    /// Likewise. `second` is called with the next one, if there is one as near.
    #[inline(always)]
    pub(super) fn candidates(&self, hash: u32, second: impl FnOnce(u32)) -> u32 {
        self.index.candidates(hash, second)
    }

    /// Where the bucket of a hash lies.
    #[inline(always)]
    pub(super) fn place_of_bucket(&self, hash: u32) -> *const () {
        self.index.place_of(hash)
    }

    /// Where an entry's identity lies; null if there is no such entry.
    #[inline(always)]
    pub(super) fn place_of_identity(&self, id: u32) -> *const () {
        self.slab.identity(id).map_or(null(), from_ref).cast()
    }

    /// Where its activity lies, likewise.
    #[inline(always)]
    pub(super) fn place_of_activity(&self, id: u32) -> *const () {
        self.slab.activity(id).map_or(null(), from_ref).cast()
    }

    #[inline]
    pub(super) fn identity(&self, id: u32) -> Option<&Identity> {
        self.slab.identity(id).filter(|identity| !identity.is_free())
    }

    pub(super) fn identity_mut(&mut self, id: u32) -> Option<&mut Identity> {
        self.slab.identity_mut(id).filter(|identity| !identity.is_free())
    }

    pub(super) fn activity(&self, id: u32) -> Option<&Activity> {
        self.slab.activity(id)
    }

    pub(super) fn activity_mut(&mut self, id: u32) -> Option<&mut Activity> {
        self.slab.activity_mut(id)
    }

    pub(super) fn record(&self, id: u32) -> Option<&Record> {
        self.slab.record(id)
    }

    pub(super) fn record_mut(&mut self, id: u32) -> Option<&mut Record> {
        self.slab.record_mut(id)
    }

    /// A copy of the live entry of this number.
    pub(super) fn entry(&self, id: u32) -> Option<Entry> {
        self.slab.entry(id)
    }

    #[inline]
    pub(super) fn has_expired(&self, identity: &Identity, now: Nanos) -> bool {
        self.patience.is_over(identity.code(), identity.last(), Stamp::of(now))
    }

    /// Adds an entry whose key, with this hash, is not in the table.
    pub(super) fn insert(&mut self, entry: Entry, hash: u32, now: Nanos) -> u32 {
        let Self { slab, index, shares, .. } = self;
        let (port, class) = (entry.identity.payer(), entry.identity.state().class());
        let due = self.patience.due(entry.identity.code(), entry.identity.last(), now);
        let id = slab.insert(entry);
        shares.push(slab, port, class, id, due);
        index.insert(hash, id);
        self.len += 1;
        id
    }

    /// Takes an entry out, if it is live.
    pub(super) fn remove(&mut self, id: u32) {
        let Some(identity) = self.identity(id) else { return };
        let (port, class) = (identity.payer(), identity.state().class());
        let hash = self.hasher.hash(&identity.key());
        self.index.remove(hash, id);
        self.shares.unlink(&mut self.slab, port, class, id);
        self.slab.free(id);
        self.len -= 1;
    }

    /// Notes that a frame at `now` keeps a live entry alive in `state`.
    pub(super) fn refresh(&mut self, id: u32, state: State, now: Nanos) {
        let stamp = Stamp::of(now);
        let Some(identity) = self.slab.identity_mut(id) else { return };
        if identity.code() == state.code() && identity.last() == stamp {
            return;
        }
        let (from, to) = (identity.state().class(), state.class());
        let last = identity.last();
        let is_in_order = from == to && (stamp.is_in_tick_of(last) || stamp.since(last) == 0);
        identity.set_state(state);
        if stamp.since(last) > 0 {
            identity.set_last(stamp);
        }
        if !is_in_order {
            let (port, code, last) = (identity.payer(), identity.code(), identity.last());
            let due = self.patience.due(code, last, now);
            self.shares.unlink(&mut self.slab, port, from, id);
            self.shares.push(&mut self.slab, port, to, id, due);
        }
    }

    /// The number of an entry that has timed out, if any list is due whose head has.
    pub(super) fn next_expired(&mut self, now: Nanos) -> Option<u32> {
        for _ in 0..LOOKS {
            let (port, class) = self.shares.take_due(tick(now))?;
            let Some(id) = self.shares.oldest(port, class) else { continue };
            let Some(identity) = self.slab.identity(id) else { continue };
            let has_expired = self.has_expired(identity, now);
            // What is due is looked at again, as long as it has expired heads.
            let due = self.patience.due(identity.code(), identity.last(), now);
            self.shares.wait(port, class, due);
            if has_expired {
                return Some(id);
            }
        }
        None
    }

    /// A port's least recently used connection of a class, if it has timed out.
    pub(super) fn expired_of(&self, port: PortId, class: Class, now: Nanos) -> Option<u32> {
        let id = self.shares.oldest(port, class)?;
        self.identity(id).filter(|identity| self.has_expired(identity, now)).map(|_| id)
    }
}

#[cfg(test)]
impl Table {
    /// Checks the invariant: index, lists and free list share out the slots, each in order.
    pub(super) fn check(&self, now: Nanos) {
        let mut listed = 0;
        for port in self.shares.check(&self.slab) {
            for class in Class::ALL {
                let mut age = u64::MAX;
                for id in self.shares.list(&self.slab, port, class) {
                    let identity = self.identity(id).expect("a list holds live entries");
                    assert_eq!((identity.payer(), identity.state().class()), (port, class));
                    let last = tick(identity.last().before(now));
                    assert!(age == u64::MAX || age <= last, "{class:?} is out of order");
                    age = last;
                    let key = identity.key();
                    assert_eq!(self.find_key(&key, self.hash(&key)).map(|(id, _)| id), Some(id));
                    listed += 1;
                }
            }
        }
        assert_eq!((listed, self.index.len()), (self.len, self.len));
        assert_eq!(self.slab.count_free() + listed, self.slab.slots());
    }
}
