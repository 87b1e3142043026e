//! The flow cache: tuple space search over a fixed family of masks.
//!
//! # What
//!
//! A verdict holds for every key that agrees with the judged one on the bits of its [`Mask`]. An
//! entry is a masked key and its verdict; entries that share a mask are a subtable. A lookup masks
//! the frame's key once per subtable and probes for the result. Entries of one epoch never disagree
//! on a key (the essay of [`mask`](crate::mask) says why), so the first hit decides.
//! Source: Srinivasan et al., "Packet Classification using Tuple Space Search", SIGCOMM '99; Pfaff
//! et al., "The Design and Implementation of Open vSwitch", NSDI '15.
//!
//! # Cost
//!
//! Every mask covers the ingress port, so each port has subtables of its own, and frames of one port
//! never probe for another's. A lookup probes
//!
//! 1. the mask that answered this frame's kind last: a byte in a small table that is indexed by a
//!    keyed hash of all that masks may cover (a port with one subtable has no need of that);
//! 2. the port's other subtables, those with the most recent hits first: at most [`MASKS`] in all.
//!
//! The first step keeps a flow's cost what it is when somebody behind the same port fills all
//! subtables and ranks them at will. He may overwrite a flow's byte by chance, of which there is one
//! in [`PREDICTIONS`] per frame; the flow's next frame then takes the second step and writes it back.
//!
//! One probe is one [hash](TupleHash), whose expensive parts are computed once for all masks, one
//! line of fingerprints, and the entry if a fingerprint matches. [`FlowCache::prepare`] takes these
//! steps for a whole burst ahead, so that the waits for memory overlap. Nothing is allocated but when
//! a port's first entry comes, and nothing is rehashed.
//!
//! # Bounds
//!
//! All subtables share one array of sets with [`WAYS`] entries each. A masked key can stand in one
//! set only, chosen by a keyed hash, so nobody can aim at a set. Half of a set's ways are for
//! verdicts that forward and half for drops: however many refused flows a scan makes, it evicts
//! refused flows only. Within a half, what is stale goes first. Else
//!
//! - a port that holds [`SHARE`] ways evicts one of its own;
//! - a port that holds fewer evicts from ports that hold more than [`SHARE`], or if there is none,
//!   from all alike;
//!
//! and among these by second chance (Smith, "Sequentiality and Prefetching in Database Systems",
//! TODS '78: the generalised clock): each hit earns an entry a chance, up to [`CHANCES`]; the one
//! with the fewest goes, of several the longest unused, and the others lose as many as it had. So
//! flows in use lose nothing to flows that are seen once. And whatever one port sends, it takes a
//! flow from another port only while it holds less than its share of that set, and then holds one
//! more: a scan costs others at most [`SHARE`] entries of a half set, once, and none of them if
//! they hold no more than theirs. How fast a port may insert is bounded besides, by the
//! [pressure](crate::pressure) it may put.
//!
//! # When an entry counts
//!
//! It must be of the asked epoch. If its verdict rests on a learned MAC address, the MAC table must
//! still say the same. Entries that fail are dropped when a lookup meets them. One of another epoch
//! is worth a word to the caller, [`Lookup::Stale`]: its flow was there before the policy changed.

use crate::fdb::Fdb;
use crate::hash::TupleHash;
use crate::key::{FlowKey, KEY_WORDS};
use crate::mask::{MASKS, Mask};
use crate::snapshot::PortId;
use crate::time::Nanos;
use crate::verdict::{DropReason, Verdict};

/// Entries that may stand in one set: half of them forward, half drop.
const WAYS: usize = 8;
/// Ways of a half set that a port may take from others.
const SHARE: usize = WAYS / 4;
/// Evictions that a flow in use may be passed over by, at most, since its last hit.
const CHANCES: u8 = 3;
/// Masks that are remembered to have answered.
const PREDICTIONS: usize = 65_536;
/// Lookups of a port between two rankings of its subtables.
const RANKING_INTERVAL: u16 = 1_024;

/// Most frames that [`FlowCache::prepare`] looks ahead.
pub const BATCH: usize = 64;

/// Verdicts by masked key. Bounded in entries and, by construction, in masks.
pub struct FlowCache {
    hash: TupleHash,
    sets: Vec<Set>,
    entries: Vec<Entry>,
    /// By ingress port.
    ports: Vec<Subtables>,
    /// The mask that last answered for keys of this hash.
    predictions: Vec<Mask>,
    /// Entries by mask, of all ports.
    counts: [u32; MASKS],
}

/// Some bits of the hash of each entry of a set, never 0; 0 marks a free way. Four to a word, way 0
/// in the lowest bits.
#[derive(Clone, Copy, Default)]
#[repr(align(16))]
struct Set([u64; WAYS / LANES]);

/// Fingerprints in a word.
const LANES: usize = 4;
/// Bits of a fingerprint.
const LANE: usize = 16;
/// A one in each lane of a word.
const ONES: u64 = 0x0001_0001_0001_0001;

/// One port's subtables.
#[derive(Clone)]
struct Subtables {
    /// Masks in use, most often hit first.
    ranking: Vec<Mask>,
    entries: [u32; MASKS],
    /// Hits, halved at each ranking.
    hits: [u32; MASKS],
    until_ranking: u16,
}

/// Two cache lines, the first of which decides whether it is the one.
#[derive(Clone, Copy)]
#[repr(align(128))]
struct Entry {
    /// The masked key, and the mask's number where the key has its TCP flags, which no mask covers.
    words: [u64; KEY_WORDS],
    epoch: u64,
    verdict: Verdict,
    /// The port that the MAC table named for the destination, if it was asked.
    learned: Option<PortId>,
    /// Earned by hits, taken by evictions; at most [`CHANCES`].
    chances: u8,
    frames: u64,
    last: Nanos,
}

/// A verdict to remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cacheable {
    /// The bits of the key it depends on.
    pub mask: Mask,
    /// The verdict.
    pub verdict: Verdict,
    /// The port that the MAC table named for the destination, if it was asked.
    pub learned: Option<PortId>,
    /// Epoch it was judged under.
    pub epoch: u64,
}

/// What the cache knows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Its verdict.
    Current(Verdict),
    /// Nothing any more: its verdict was of another epoch, and is gone now.
    Stale,
    /// Nothing.
    Miss,
}

impl Lookup {
    /// The verdict, if it is known.
    pub const fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Current(verdict) => Some(verdict),
            Self::Stale | Self::Miss => None,
        }
    }
}

/// One cached flow, for `firedoor flows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// The masked key.
    pub key: FlowKey,
    /// The mask.
    pub mask: Mask,
    /// The verdict.
    pub verdict: Verdict,
    /// Frames that hit it.
    pub frames: u64,
    /// When it was last hit.
    pub last: Nanos,
}

/// Where the entries of a burst's frames are, as far as [`FlowCache::prepare`] found them.
///
/// A hint stays right whatever happens to the cache in between: it saves time or nothing.
pub struct FlowHints([Option<FlowHint>; BATCH]);

/// Where one frame's entry is.
#[derive(Clone, Copy, Debug)]
pub struct FlowHint {
    mask: Mask,
    position: u32,
}

impl FlowHints {
    /// No hints.
    pub const fn new() -> Self {
        Self([None; BATCH])
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.fill(None);
    }

    /// The hint for the frame that stood at this place of the burst.
    pub fn get(&self, at: usize) -> Option<FlowHint> {
        self.0.get(at).copied().flatten()
    }
}

impl Default for FlowHints {
    fn default() -> Self {
        Self::new()
    }
}

impl FlowCache {
    /// An empty cache of at most `max` entries (but room for one set, at least).
    pub fn new(max: u32) -> Self {
        let sets = (max as usize / WAYS).max(1);
        let sets = if sets.is_power_of_two() { sets } else { sets.next_power_of_two() / 2 };
        Self {
            hash: TupleHash::random(),
            sets: vec![Set::default(); sets],
            entries: vec![Entry::FREE; sets * WAYS],
            ports: Vec::new(),
            predictions: vec![Mask::WIDEST; PREDICTIONS],
            counts: [0; MASKS],
        }
    }

    /// The verdict that covers `key`, if a current one is cached.
    ///
    /// Cost: one hash and one set per subtable probed; no allocation.
    pub fn lookup(&mut self, key: &FlowKey, epoch: u64, fdb: &Fdb, now: Nanos) -> Lookup {
        let port = usize::from(key.ingress.0);
        let words = key.words();
        let Some(first) = self.first(port, &words) else { return Lookup::Miss };
        self.ports[port].rank();
        let mut met_stale = false;
        let mut current = |entry: &Entry| {
            met_stale |= entry.epoch != epoch;
            entry.is_current(key, epoch, fdb, now)
        };
        let found = self
            .probe(first, self.hash.of(first, &words), &words, &mut current)
            .or_else(|| self.probe_others(port, first, &words, &mut current));
        match found {
            Some(at) => Lookup::Current(self.hit(at, now)),
            None if met_stale => Lookup::Stale,
            None => Lookup::Miss,
        }
    }

    /// Looks up to [`BATCH`] frames ahead, for [`FlowCache::lookup_hinted`]; `None` stands for a
    /// frame that will not ask. Reads only.
    pub fn prepare<'a>(
        &self,
        frames: impl IntoIterator<Item = Option<&'a FlowKey>>,
        hints: &mut FlowHints,
    ) {
        let mut probes = [(None, 0); BATCH];
        let mut count = 0;
        for (probe, key) in probes.iter_mut().zip(frames) {
            *probe = key
                .and_then(|key| self.first_probe(key))
                .map_or((None, 0), |(mask, hash)| (Some(mask), hash));
            count += 1;
        }
        if probes[..count].iter().all(|(mask, _)| mask.is_none()) {
            return hints.clear();
        }
        for (hint, &(mask, hash)) in hints.0.iter_mut().zip(&probes[..count]) {
            *hint = mask.and_then(|mask| {
                let position = self.candidates(hash).next()?;
                Some(FlowHint { mask, position: position as u32 })
            });
        }
        for hint in &mut hints.0[..count] {
            *hint = hint.filter(|hint| self.entries[hint.position as usize].mask() == hint.mask);
        }
        hints.0[count..].fill(None);
    }

    /// [`FlowCache::lookup`] of a key that [`FlowCache::prepare`] was shown: the same answer, whatever
    /// was installed and dropped since.
    pub fn lookup_hinted(
        &mut self,
        key: &FlowKey,
        hint: Option<FlowHint>,
        epoch: u64,
        fdb: &Fdb,
        now: Nanos,
    ) -> Lookup {
        if let Some(FlowHint { mask, position }) = hint {
            let at = position as usize;
            if self.is_used(at)
                && self.entries[at].covers(mask, &key.words())
                && self.entries[at].is_current(key, epoch, fdb, now)
            {
                self.ports[usize::from(key.ingress.0)].rank();
                return Lookup::Current(self.hit(at, now));
            }
        }
        self.lookup(key, epoch, fdb, now)
    }

    /// Remembers that every key equal to `key` under the mask has this verdict.
    pub fn install(&mut self, key: &FlowKey, flow: Cacheable, now: Nanos) {
        let Cacheable { mask, verdict, learned, epoch } = flow;
        let key_words = key.words();
        let words = tuple(mask, &key_words);
        let hash = self.hash.of(mask, &key_words);
        if let Some(old) =
            self.candidates(hash).find(|&at| self.entries[at].covers(mask, &key_words))
        {
            self.free(old);
        }
        let at = self.claim(hash, verdict.is_forwarded(), key.ingress, epoch);
        self.sets[at / WAYS].put(at % WAYS, fingerprint(hash));
        self.entries[at] =
            Entry { words, epoch, verdict, learned, chances: 0, frames: 1, last: now };
        self.counts[mask.index()] += 1;
        let port = usize::from(key.ingress.0);
        if self.ports.len() <= port {
            self.ports.resize(port + 1, Subtables::new());
        }
        self.ports[port].count(mask);
    }

    /// Distinct masks in use by all ports.
    pub fn masks(&self) -> usize {
        self.counts.iter().filter(|&&count| count > 0).count()
    }

    /// Those in use by the frames of one port: what a lookup that misses has to probe.
    pub fn masks_of(&self, port: PortId) -> usize {
        self.ports.get(usize::from(port.0)).map_or(0, |subtables| subtables.ranking.len())
    }

    /// Entries, stale ones that no lookup has met yet included.
    pub fn len(&self) -> usize {
        self.counts.iter().map(|&count| count as usize).sum()
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory that it holds, in bytes.
    pub fn bytes(&self) -> usize {
        let subtables = |port: &Subtables| size_of::<Subtables>() + port.ranking.capacity();
        size_of_val(&*self.sets)
            + size_of_val(&*self.entries)
            + size_of_val(&*self.predictions)
            + self.ports.iter().map(subtables).sum::<usize>()
    }

    /// Up to `limit` flows of `epoch` from position `from`. Returns them and the position to go on
    /// from, `None` at the end.
    pub fn list(&self, from: usize, limit: usize, epoch: u64) -> (Vec<FlowInfo>, Option<usize>) {
        let mut flows = Vec::new();
        for at in from..self.entries.len() {
            if flows.len() == limit {
                return (flows, Some(at));
            }
            let entry = &self.entries[at];
            if self.is_used(at) && entry.epoch == epoch {
                let Entry { verdict, frames, last, .. } = *entry;
                let (key, mask) = (entry.key(), entry.mask());
                flows.push(FlowInfo { key, mask, verdict, frames, last });
            }
        }
        (flows, None)
    }

    /// The mask to probe first for a frame of `port`; `None` if nothing is cached for the port.
    fn first(&self, port: usize, words: &[u64; KEY_WORDS]) -> Option<Mask> {
        let subtables = self.ports.get(port)?;
        match *subtables.ranking.as_slice() {
            [] => None,
            [mask] => Some(mask),
            [mask, ..] => {
                let predicted = self.predictions[self.prediction(words)];
                let is_used = subtables.entries[predicted.index()] > 0;
                Some(if is_used { predicted } else { mask })
            }
        }
    }

    /// The first probe that a lookup will make: the mask, and the hash under it.
    fn first_probe(&self, key: &FlowKey) -> Option<(Mask, u64)> {
        let words = key.words();
        let mask = self.first(key.ingress.0.into(), &words)?;
        Some((mask, self.hash.of(mask, &words)))
    }

    /// Probes a port's subtables but the first mask's, most often hit first, and remembers which one
    /// answered.
    fn probe_others(
        &mut self,
        port: usize,
        first: Mask,
        words: &[u64; KEY_WORDS],
        current: &mut impl FnMut(&Entry) -> bool,
    ) -> Option<usize> {
        if self.ports[port].ranking == [first] {
            return None;
        }
        let sums = self.hash.sums(words);
        let mut rank = 0;
        while let Some(&mask) = self.ports[port].ranking.get(rank) {
            if mask == first {
                rank += 1;
                continue;
            }
            if let Some(at) = self.probe(mask, self.hash.of_sums(mask, &sums), words, current) {
                let prediction = self.prediction(words);
                self.predictions[prediction] = mask;
                return Some(at);
            }
            // If its last entry was stale, the next mask stands in its place now.
            rank += usize::from(self.ports[port].entries[mask.index()] > 0);
        }
        None
    }

    /// The entry with this mask that covers the key, if it is current. One that is not goes.
    fn probe(
        &mut self,
        mask: Mask,
        hash: u64,
        words: &[u64; KEY_WORDS],
        current: &mut impl FnMut(&Entry) -> bool,
    ) -> Option<usize> {
        let at = self.candidates(hash).find(|&at| self.entries[at].covers(mask, words))?;
        if current(&self.entries[at]) {
            return Some(at);
        }
        self.free(at);
        None
    }

    /// Counts a hit and gives out the verdict.
    fn hit(&mut self, at: usize, now: Nanos) -> Verdict {
        let entry = &mut self.entries[at];
        entry.frames += 1;
        entry.last = now;
        entry.chances = CHANCES.min(entry.chances + 1);
        let hits = &mut self.ports[usize::from(entry.port().0)].hits[entry.mask().index()];
        *hits = hits.saturating_add(1);
        entry.verdict
    }

    /// Positions whose fingerprint is that of the hash.
    fn candidates(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let set = self.set(hash);
        let mut matches = self.sets[set].matches(fingerprint(hash));
        std::iter::from_fn(move || {
            let bit = matches.checked_ilog2()? as usize;
            matches ^= 1 << bit;
            Some(set * WAYS + Set::way(bit))
        })
    }

    /// A free position in the half of the hash's set for this kind of verdict, for an entry of
    /// `port`; evicts if there is none.
    fn claim(&mut self, hash: u64, forwards: bool, port: PortId, epoch: u64) -> usize {
        let first = self.set(hash) * WAYS + if forwards { 0 } else { WAYS / 2 };
        let half = first..first + WAYS / 2;
        if let Some(free) = half.clone().find(|&at| !self.is_used(at)) {
            return free;
        }
        let entries = &self.entries[half];
        let held = |by: PortId| entries.iter().filter(|entry| entry.port() == by).count();
        let has_share = held(port) >= SHARE;
        // Whom it meets: stale entries, then those that the newcomer may evict, then the rest.
        let class = |entry: &Entry| match entry.port() {
            _ if entry.epoch != epoch => 0,
            holder if has_share => 1 + u8::from(holder != port),
            holder => 1 + u8::from(held(holder) <= SHARE),
        };
        let classes: [u8; WAYS / 2] = std::array::from_fn(|way| class(&entries[way]));
        let order = |&way: &usize| (classes[way], entries[way].chances, entries[way].last);
        let victim = (0..WAYS / 2).min_by_key(order).unwrap_or(0);
        let chances = entries[victim].chances;
        for (way, &class) in classes.iter().enumerate() {
            if class == classes[victim] {
                let entry = &mut self.entries[first + way];
                entry.chances = entry.chances.saturating_sub(chances);
            }
        }
        self.free(first + victim);
        first + victim
    }

    /// Empties a used position.
    fn free(&mut self, at: usize) {
        self.sets[at / WAYS].put(at % WAYS, 0);
        let (port, mask) = (self.entries[at].port(), self.entries[at].mask());
        self.counts[mask.index()] -= 1;
        self.ports[usize::from(port.0)].discount(mask);
    }

    fn is_used(&self, at: usize) -> bool {
        self.sets[at / WAYS].get(at % WAYS) != 0
    }

    /// Where the mask that answers for a key is remembered.
    fn prediction(&self, words: &[u64; KEY_WORDS]) -> usize {
        self.hash.of(Mask::WIDEST, words) as usize % PREDICTIONS
    }

    fn set(&self, hash: u64) -> usize {
        hash as usize & (self.sets.len() - 1)
    }
}

impl Set {
    /// A [bit](Set::way) for each way that has this fingerprint; seldom one for a way that has not.
    /// All lanes of a word are compared at once (Warren, "Hacker's Delight", §6-1).
    fn matches(self, wanted: u16) -> u64 {
        let [low, high] = self.0.map(|word| {
            let different = word ^ ONES.wrapping_mul(wanted.into());
            different.wrapping_sub(ONES) & !different & ONES << (LANE - 1)
        });
        low >> 1 | high
    }

    /// The way that a bit of [`Set::matches`] stands for: of the two top bits of each lane, the lower
    /// one is for the first word.
    const fn way(bit: usize) -> usize {
        bit / LANE + if bit % LANE == LANE - 1 { LANES } else { 0 }
    }

    fn get(self, way: usize) -> u16 {
        (self.0[way / LANES] >> (way % LANES * LANE)) as u16
    }

    fn put(&mut self, way: usize, fingerprint: u16) {
        let shift = way % LANES * LANE;
        let word = &mut self.0[way / LANES];
        *word = *word & !(0xffff << shift) | u64::from(fingerprint) << shift;
    }
}

impl Subtables {
    const fn new() -> Self {
        Self {
            ranking: Vec::new(),
            entries: [0; MASKS],
            hits: [0; MASKS],
            until_ranking: RANKING_INTERVAL,
        }
    }

    /// One entry more.
    fn count(&mut self, mask: Mask) {
        let entries = &mut self.entries[mask.index()];
        *entries += 1;
        if *entries == 1 {
            self.ranking.push(mask);
        }
    }

    /// One entry less.
    fn discount(&mut self, mask: Mask) {
        let entries = &mut self.entries[mask.index()];
        *entries -= 1;
        if *entries == 0 {
            self.hits[mask.index()] = 0;
            self.ranking.retain(|&other| other != mask);
        }
    }

    /// Now and then, puts the masks with the most recent hits first.
    fn rank(&mut self) {
        self.until_ranking -= 1;
        if self.until_ranking > 0 {
            return;
        }
        self.until_ranking = RANKING_INTERVAL;
        let hits = &mut self.hits;
        self.ranking.sort_unstable_by_key(|mask| std::cmp::Reverse(hits[mask.index()]));
        for hits in hits {
            *hits /= 2;
        }
    }
}

impl Entry {
    /// What a way holds before it is first used.
    const FREE: Self = Self {
        words: [0; KEY_WORDS],
        epoch: 0,
        verdict: Verdict::drop(DropReason::NoPolicy),
        learned: None,
        chances: 0,
        frames: 0,
        last: Nanos(0),
    };

    /// Whether the entry may still be given out for `key`, which it covers.
    fn is_current(&self, key: &FlowKey, epoch: u64, fdb: &Fdb, now: Nanos) -> bool {
        let place = self.learned;
        self.epoch == epoch && (place.is_none() || place == fdb.port(key.vlan, key.eth_dst, now))
    }

    /// Whether it is the one for a key with these words under the mask. Without a branch per word.
    fn covers(&self, mask: Mask, words: &[u64; KEY_WORDS]) -> bool {
        let fields = self.words.iter().zip(words).zip(mask.words());
        let mut differences = fields.map(|((entry, word), mask)| entry ^ (word & mask));
        let first = differences.next().map(|difference| difference ^ mask.index() as u64);
        differences.fold(first.unwrap_or(0), |all, difference| all | difference) == 0
    }

    /// The ingress port, which stands in front.
    fn port(&self) -> PortId {
        PortId((self.words[0] >> 48) as u16)
    }

    fn key(&self) -> FlowKey {
        let mut words = self.words;
        words[0] &= !MASK_NUMBER;
        FlowKey::from_words(&words)
    }

    fn mask(&self) -> Mask {
        Mask::of_index((self.words[0] & MASK_NUMBER) as u8)
    }
}

/// Where in the first word of an entry its mask's number stands.
const MASK_NUMBER: u64 = 0xff;

/// The words that an entry for this key would have.
fn tuple(mask: Mask, words: &[u64; KEY_WORDS]) -> [u64; KEY_WORDS] {
    let mut masked = mask.apply(words);
    masked[0] |= mask.index() as u64;
    masked
}

/// The part of a hash that is kept beside the entry.
fn fingerprint(hash: u64) -> u16 {
    (hash >> 48) as u16 | 1
}

#[cfg(test)]
mod tests;
