//! The flow cache: tuple space search over a fixed family of masks.
//!
//! # What
//!
//! A verdict holds for every key that agrees with the judged one on the bits of its [`Mask`]. An
//! entry is a masked key and its verdict; entries that share a mask are a subtable. A lookup masks
//! the frame's key once per subtable in use and probes for the result. Entries of one epoch never
//! disagree on a key (the essay of [`mask`](crate::mask) says why), so the first hit decides.
//! Source: Srinivasan et al., "Packet Classification using Tuple Space Search", SIGCOMM '99; Pfaff
//! et al., "The Design and Implementation of Open vSwitch", NSDI '15.
//!
//! # Cost
//!
//! At most [`MASKS`] probes, each one hash and one cache line of fingerprints. Subtables are probed
//! in the order of their recent hits, so that common traffic takes one or two. No allocation after
//! [`FlowCache::new`], and no rehashing.
//!
//! # Bounds
//!
//! All subtables share one array of sets with [`WAYS`] entries each. A masked key can stand in one
//! set only, chosen by a [keyed hash](crate::hash), so nobody can aim at a set. Half of a set's ways
//! are for verdicts that forward and half for drops: however many refused flows a scan makes, it
//! evicts refused flows only. Within its half, an entry is evicted by second chance: first what is
//! stale, then what was not hit since the last eviction looked at it.
//!
//! # When an entry counts
//!
//! It must be of the asked epoch. If its verdict rests on a learned MAC address, the MAC table must
//! still say the same. Entries that fail are dropped when a lookup meets them.

use crate::fdb::Fdb;
use crate::hash::KeyedHash;
use crate::key::{FlowKey, KEY_WORDS};
use crate::mask::{MASKS, Mask};
use crate::snapshot::PortId;
use crate::time::Nanos;
use crate::verdict::Verdict;

/// Entries that may stand in one set: half of them forward, half drop.
const WAYS: usize = 8;

/// Lookups between two rankings of the subtables.
const RANKING_INTERVAL: u32 = 4_096;

/// Verdicts by masked key. Bounded in entries and, by construction, in masks.
pub struct FlowCache {
    hash: KeyedHash,
    /// A few bits of each entry's hash, never 0; 0 marks a free way.
    fingerprints: Vec<[u32; WAYS]>,
    entries: Vec<Entry>,
    subtables: [Subtable; MASKS],
    /// Masks in use, most often hit first.
    ranking: Vec<Mask>,
    until_ranking: u32,
}

/// What the entries of one mask have in common.
#[derive(Clone, Copy, Default)]
struct Subtable {
    entries: u32,
    /// Hits, halved at each ranking.
    hits: u32,
}

#[derive(Clone, Copy)]
struct Entry {
    /// The masked key, in words.
    words: [u64; KEY_WORDS],
    mask: Mask,
    verdict: Verdict,
    /// The port that the MAC table named for the destination, if it was asked.
    learned: Option<PortId>,
    epoch: u64,
    frames: u64,
    last: Nanos,
    /// Hit since an eviction last looked at it.
    referenced: bool,
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

impl FlowCache {
    /// An empty cache of at most `max` entries (but room for one set, at least).
    pub fn new(max: u32) -> Self {
        let sets = (max as usize / WAYS).max(1);
        let sets = if sets.is_power_of_two() { sets } else { sets.next_power_of_two() / 2 };
        Self {
            hash: KeyedHash::random(),
            fingerprints: vec![[0; WAYS]; sets],
            entries: vec![Entry::FREE; sets * WAYS],
            subtables: [Subtable::default(); MASKS],
            ranking: Vec::with_capacity(MASKS),
            until_ranking: RANKING_INTERVAL,
        }
    }

    /// The verdict that covers `key`, if a current one is cached.
    ///
    /// Cost: one hash and one set per subtable probed; no allocation.
    pub fn lookup(&mut self, key: &FlowKey, epoch: u64, fdb: &Fdb, now: Nanos) -> Option<Verdict> {
        self.rank();
        let words = key.words();
        let mut rank = 0;
        while let Some(&mask) = self.ranking.get(rank) {
            if let Some(at) = self.find(mask, &mask.apply(&words)) {
                if self.is_current(at, key, epoch, fdb, now) {
                    return Some(self.hit(at, now));
                }
                self.free(at);
                if self.ranking.get(rank) != Some(&mask) {
                    continue; // Its subtable is empty now, and the next one stands in its place.
                }
            }
            rank += 1;
        }
        None
    }

    /// Remembers that every key equal to `key` under the mask has this verdict.
    pub fn install(&mut self, key: &FlowKey, flow: Cacheable, now: Nanos) {
        let Cacheable { mask, verdict, learned, epoch } = flow;
        let words = mask.apply(&key.words());
        if let Some(old) = self.find(mask, &words) {
            self.free(old);
        }
        let hash = self.hash.hash(&words, mask.index() as u64);
        let at = self.claim(self.set(hash), verdict.is_forwarded(), epoch);
        self.fingerprints[at / WAYS][at % WAYS] = fingerprint(hash);
        self.entries[at] =
            Entry { words, mask, verdict, learned, epoch, frames: 1, last: now, referenced: false };
        let subtable = &mut self.subtables[mask.index()];
        subtable.entries += 1;
        if subtable.entries == 1 {
            self.ranking.push(mask);
        }
    }

    /// Distinct masks in use: what a lookup that misses has to probe.
    pub fn masks(&self) -> usize {
        self.ranking.len()
    }

    /// Entries, stale ones that no lookup has met yet included.
    pub fn len(&self) -> usize {
        self.subtables.iter().map(|subtable| subtable.entries as usize).sum()
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.ranking.is_empty()
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
                let Entry { words, mask, verdict, frames, last, .. } = *entry;
                flows.push(FlowInfo {
                    key: FlowKey::from_words(&words),
                    mask,
                    verdict,
                    frames,
                    last,
                });
            }
        }
        (flows, None)
    }

    /// Whether the entry may still be given out for `key`.
    fn is_current(&self, at: usize, key: &FlowKey, epoch: u64, fdb: &Fdb, now: Nanos) -> bool {
        let Entry { learned, epoch: judged, .. } = self.entries[at];
        judged == epoch && (learned.is_none() || learned == fdb.port(key.vlan, key.eth_dst, now))
    }

    /// Counts a hit and gives out the verdict.
    fn hit(&mut self, at: usize, now: Nanos) -> Verdict {
        let entry = &mut self.entries[at];
        entry.frames += 1;
        entry.last = now;
        entry.referenced = true;
        let subtable = &mut self.subtables[entry.mask.index()];
        subtable.hits = subtable.hits.saturating_add(1);
        entry.verdict
    }

    /// Position of the entry with this mask and masked key.
    fn find(&self, mask: Mask, words: &[u64; KEY_WORDS]) -> Option<usize> {
        let hash = self.hash.hash(words, mask.index() as u64);
        let set = self.set(hash);
        let wanted = fingerprint(hash);
        let ways = self.fingerprints[set].iter().enumerate();
        ways.filter(|&(_, &found)| found == wanted)
            .map(|(way, _)| set * WAYS + way)
            .find(|&at| self.entries[at].mask == mask && self.entries[at].words == *words)
    }

    /// A free position in the half of `set` for this kind of verdict; evicts if there is none.
    fn claim(&mut self, set: usize, forwards: bool, epoch: u64) -> usize {
        let first = set * WAYS + if forwards { 0 } else { WAYS / 2 };
        let half = first..first + WAYS / 2;
        if let Some(free) = half.clone().find(|&at| !self.is_used(at)) {
            return free;
        }
        let entries = &self.entries;
        let victim = half
            .clone()
            .min_by_key(|&at| {
                (entries[at].epoch == epoch, entries[at].referenced, entries[at].last)
            })
            .unwrap_or(first);
        for at in half {
            self.entries[at].referenced = false;
        }
        self.free(victim);
        victim
    }

    /// Empties a used position.
    fn free(&mut self, at: usize) {
        self.fingerprints[at / WAYS][at % WAYS] = 0;
        let mask = self.entries[at].mask;
        let subtable = &mut self.subtables[mask.index()];
        subtable.entries -= 1;
        if subtable.entries == 0 {
            subtable.hits = 0;
            self.ranking.retain(|&other| other != mask);
        }
    }

    fn is_used(&self, at: usize) -> bool {
        self.fingerprints[at / WAYS][at % WAYS] != 0
    }

    fn set(&self, hash: u64) -> usize {
        hash as usize & (self.fingerprints.len() - 1)
    }

    /// Now and then, puts the subtables with the most recent hits first.
    fn rank(&mut self) {
        self.until_ranking -= 1;
        if self.until_ranking > 0 {
            return;
        }
        self.until_ranking = RANKING_INTERVAL;
        let subtables = &mut self.subtables;
        self.ranking.sort_unstable_by_key(|mask| std::cmp::Reverse(subtables[mask.index()].hits));
        for subtable in subtables {
            subtable.hits /= 2;
        }
    }
}

impl Entry {
    /// What a way holds before it is first used.
    const FREE: Self = Self {
        words: [0; KEY_WORDS],
        mask: Mask::covering(0, 0, false),
        verdict: Verdict::drop(crate::verdict::DropReason::NoPolicy),
        learned: None,
        epoch: 0,
        frames: 0,
        last: Nanos(0),
        referenced: false,
    };
}

/// The part of a hash that is kept beside the entry.
fn fingerprint(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Action, Cause, DropReason};

    const WHOLE: Mask = Mask::covering(128, 128, true);

    fn key(n: u32) -> FlowKey {
        FlowKey { src: n.into(), dst: 1, dst_port: 80, ..FlowKey::default() }
    }

    fn forward(mask: Mask, epoch: u64) -> Cacheable {
        let verdict =
            Verdict { action: Action::Forward(PortId(1)), cause: Cause::Default, would_drop: None };
        Cacheable { mask, verdict, learned: None, epoch }
    }

    fn refuse(mask: Mask, epoch: u64) -> Cacheable {
        Cacheable { verdict: Verdict::drop(DropReason::DefaultDeny), ..forward(mask, epoch) }
    }

    fn fixture(max: u32) -> (FlowCache, Fdb) {
        (FlowCache::new(max), Fdb::new(300))
    }

    #[test]
    fn an_entry_covers_what_its_mask_leaves_out_and_nothing_else() {
        let (mut cache, fdb) = fixture(1024);
        cache.install(&key(1), forward(Mask::covering(0, 128, true), 1), Nanos(0));
        assert!(cache.lookup(&key(2), 1, &fdb, Nanos(1)).is_some());
        let other_port = FlowKey { dst_port: 81, ..key(1) };
        assert_eq!(cache.lookup(&other_port, 1, &fdb, Nanos(1)), None);
        let other_source_port = FlowKey { src_port: 5, tcp_flags: 2, ..key(1) };
        assert!(cache.lookup(&other_source_port, 1, &fdb, Nanos(1)).is_some());
    }

    #[test]
    fn a_stale_epoch_is_never_given_out_and_leaves() {
        let (mut cache, fdb) = fixture(1024);
        cache.install(&key(1), forward(WHOLE, 1), Nanos(0));
        cache.install(&key(1), refuse(Mask::covering(0, 0, false), 2), Nanos(0));
        let verdict = cache.lookup(&key(1), 2, &fdb, Nanos(1));
        assert_eq!(verdict, Some(Verdict::drop(DropReason::DefaultDeny)));
        assert_eq!((cache.masks(), cache.len()), (1, 1));
    }

    #[test]
    fn a_learned_destination_counts_while_the_mac_table_agrees() {
        let (mut cache, mut fdb) = fixture(1024);
        let learned = Cacheable { learned: Some(PortId(1)), ..forward(WHOLE, 1) };
        fdb.learn(0, key(1).eth_dst, PortId(1), Nanos(0));
        cache.install(&key(1), learned, Nanos(0));
        assert!(cache.lookup(&key(1), 1, &fdb, Nanos(1)).is_some());
        fdb.learn(0, key(1).eth_dst, PortId(2), Nanos(2));
        assert_eq!(cache.lookup(&key(1), 1, &fdb, Nanos(3)), None);
        assert!(cache.is_empty());
    }

    #[test]
    fn a_denied_scan_evicts_no_allowed_flow() {
        let (mut cache, fdb) = fixture(4096);
        let allowed: Vec<u32> = (0..256).collect();
        for &n in &allowed {
            cache.install(&key(n), forward(WHOLE, 1), Nanos(0));
        }
        let kept = |cache: &mut FlowCache| {
            allowed.iter().filter(|&&n| cache.lookup(&key(n), 1, &fdb, Nanos(1)).is_some()).count()
        };
        let before = kept(&mut cache);
        for n in 0..100_000 {
            cache.install(&key(1_000 + n), refuse(WHOLE, 1), Nanos(2));
        }
        assert_eq!(kept(&mut cache), before);
        assert!(cache.len() <= 4096);
    }

    #[test]
    fn flows_in_use_survive_a_flood_of_unused_ones() {
        let (mut cache, fdb) = fixture(64);
        cache.install(&key(0), forward(WHOLE, 1), Nanos(0));
        for n in 1..10_000 {
            assert!(cache.lookup(&key(0), 1, &fdb, Nanos(n.into())).is_some(), "after {n}");
            cache.install(&key(n), forward(WHOLE, 1), Nanos(n.into()));
        }
    }

    #[test]
    fn masks_and_entries_stay_bounded_whatever_is_installed() {
        let (mut cache, fdb) = fixture(512);
        for n in 0..20_000u32 {
            let mask = Mask::covering((n % 129) as u8, (n / 7 % 129) as u8, n % 3 == 0);
            let flow = if n % 2 == 0 { forward(mask, 1) } else { refuse(mask, 1) };
            cache.install(&key(n), flow, Nanos(n.into()));
            cache.lookup(&key(n / 2), 1, &fdb, Nanos(n.into()));
            assert!(cache.masks() <= MASKS && cache.len() <= 512);
        }
        let in_use = cache.subtables.iter().filter(|subtable| subtable.entries > 0).count();
        assert_eq!(in_use, cache.masks());
    }

    #[test]
    fn listing_goes_page_by_page_through_current_flows() {
        let (mut cache, _) = fixture(1024);
        for n in 0..10 {
            cache.install(&key(n), forward(WHOLE, u64::from(n % 2)), Nanos(0));
        }
        let (mut flows, mut from) = (Vec::new(), Some(0));
        while let Some(position) = from {
            let (page, next) = cache.list(position, 2, 1);
            assert!(page.len() <= 2);
            flows.extend(page);
            from = next;
        }
        assert_eq!(flows.len(), 5);
    }
}
