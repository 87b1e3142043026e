//! What was found out about each pair of classes that was asked for.
//!
//! For a pair, the lanes of all its groups are merged into blocks of their own, in evaluation order,
//! without what can never match: what stands behind a lane that matches everything, and what asks
//! for the same as one before. Groups of many lanes, which many pairs have, are not copied if the
//! pair has too much for a copy; the pair's program then is its own blocks and the numbers of those
//! groups. A pair of which any lane has [`terms`](super::terms) keeps them beside its blocks.
//!
//! Copying and sorting more than a block pays only for a pair that is asked for again. So such a pair
//! is left at the numbers of its groups the first time: who sends from many addresses once has us do
//! that much and no more.
//!
//! Everything here can be forgotten and found out again. When there is too much of it, all is.

use super::Acl;
use super::groups::Group;
use super::lanes::{Block, LANES, Lane};
use super::terms::{Strip, TermBlock};

/// Groups of at least this many lanes are shared between pairs that have too much to copy.
const LONG: usize = 2 * LANES;

/// Lanes that a pair has copied in any case.
const SHORT: usize = 8 * LANES;

/// What was found out about pairs. Bounded; belongs to one ACL.
#[derive(Clone, Debug, Default)]
pub struct Memo {
    /// Open addressing; the length is a power of two, of which at most half is in use.
    pairs: Vec<Pair>,
    /// Pairs in use.
    len: usize,
    /// Blocks of pairs' programs, side by side: those of pairs without terms.
    pub(super) blocks: Vec<Block>,
    /// Those of pairs with terms.
    with_terms: WithTerms,
    /// Numbers of groups, side by side.
    pub(super) numbers: Vec<u32>,
    /// Counts how often all was forgotten; never 0 once there is a pair.
    generation: u16,
    scratch: Scratch,
}

/// Blocks, and the terms of each.
#[derive(Clone, Debug, Default)]
struct WithTerms {
    blocks: Vec<Block>,
    terms: Vec<TermBlock>,
}

/// Lists that outlive one use, so that using them does not allocate.
#[derive(Clone, Debug, Default)]
struct Scratch {
    groups: Vec<u32>,
    lanes: Vec<(u64, Lane)>,
    kept: Vec<Lane>,
}

/// What is known of one pair of classes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    from: u32,
    to: u32,
    /// Its own blocks, in [`Memo::blocks`] or [`Memo::with_terms`].
    pub(super) blocks: Span,
    /// Groups besides, in [`Memo::numbers`], first rule first.
    pub(super) numbers: Span,
    /// The version of the ACL that it was last found true for.
    version: u32,
    /// The memo's when it was found out; places of another are free.
    generation: u16,
    /// What its program is.
    kind: Kind,
    /// Whether anything at all is allowed, once that was asked.
    pub(super) may_talk: Option<bool>,
}

/// What a pair's program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Groups. It was asked for once; if it is again, it is to be merged.
    New,
    /// Blocks, and groups besides.
    Merged,
    /// As [`Kind::New`], and lanes have terms.
    NewWithTerms,
    /// As [`Kind::Merged`], and lanes have terms.
    MergedWithTerms,
}

/// Part of a list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    first: u32,
    len: u32,
}

impl Span {
    #[inline]
    pub(super) fn of<T>(self, list: &[T]) -> &[T] {
        &list[self.first as usize..][..self.len as usize]
    }
}

impl Pair {
    /// No pair: no memo is of this generation.
    const FREE: Self = Self {
        from: 0,
        to: 0,
        blocks: Span { first: 0, len: 0 },
        numbers: Span { first: 0, len: 0 },
        version: 0,
        generation: 0,
        kind: Kind::New,
        may_talk: None,
    };

    /// Whether it has lanes with terms, and its own blocks are in [`Memo::with_terms`].
    #[inline]
    pub(super) const fn has_terms(&self) -> bool {
        matches!(self.kind, Kind::NewWithTerms | Kind::MergedWithTerms)
    }

    const fn is_new(&self) -> bool {
        matches!(self.kind, Kind::New | Kind::NewWithTerms)
    }

    #[inline]
    fn is(&self, from: u32, to: u32) -> bool {
        self.from == from && self.to == to
    }
}

// Two pairs share a cache line, and none lies in two.
const _: () = assert!(size_of::<Pair>() == 32);

impl Memo {
    /// Most pairs that are remembered.
    pub const MAX_PAIRS: usize = 1 << 17;
    /// Most blocks of lanes before those of one more batch of pairs, which fill up a power of two.
    const MAX_BLOCKS: usize = (1 << 17) - (1 << 12);
    /// Most numbers of groups, likewise.
    const MAX_NUMBERS: usize = (1 << 20) - (1 << 12);
    /// Places for pairs at first.
    const FIRST_PAIRS: usize = 1 << 10;

    /// Forgets everything: to be called when another policy comes into force. Cost: nothing, but once
    /// in 65,535 times a walk over all places.
    pub fn clear(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == Pair::FREE.generation {
            self.pairs.fill(Pair::FREE);
            self.generation += 1;
        }
        self.len = 0;
        self.blocks.clear();
        self.with_terms.blocks.clear();
        self.with_terms.terms.clear();
        self.numbers.clear();
    }

    /// Pairs that are remembered.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.pairs.capacity() * size_of::<Pair>()
            + (self.blocks.capacity() + self.with_terms.blocks.capacity()) * size_of::<Block>()
            + self.with_terms.terms.capacity() * size_of::<TermBlock>()
            + self.numbers.capacity() * size_of::<u32>()
    }

    /// Where a pair stands or would stand first.
    #[inline]
    fn home(&self, from: u32, to: u32) -> usize {
        let pair = u64::from(from) << 32 | u64::from(to);
        let hash = pair.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93) as usize >> 24
    }

    /// Which place has the pair, if it is remembered and true. Cost: one probe, mostly.
    #[inline]
    fn known(&self, version: u32, from: u32, to: u32) -> Option<u32> {
        let mask = self.pairs.len().checked_sub(1)?;
        let mut at = self.home(from, to) & mask;
        loop {
            let pair = &self.pairs[at];
            if pair.is(from, to) && pair.generation == self.generation {
                return (pair.version == version && !pair.is_new()).then_some(at as u32);
            }
            if pair.generation != self.generation {
                return None;
            }
            at = (at + 1) & mask;
        }
    }

    /// The place of a pair of classes, which is found out if it is not remembered. There must be
    /// [room](Memo::make_room). Holds until room is made.
    #[inline]
    pub(super) fn place(&mut self, acl: &Acl, from: u32, to: u32) -> u32 {
        match self.known(acl.version, from, to) {
            Some(place) => place,
            None => self.find_out(acl, from, to),
        }
    }

    /// What is known of the pair at a place.
    #[inline]
    pub(super) fn at(&self, place: u32) -> &Pair {
        &self.pairs[place as usize]
    }

    /// The own blocks of a pair that has terms.
    pub(super) fn strip(&self, pair: &Pair) -> Strip<'_> {
        let WithTerms { blocks, terms } = &self.with_terms;
        Strip { blocks: pair.blocks.of(blocks), terms: pair.blocks.of(terms) }
    }

    /// Remembers whether the pair at a place may talk.
    pub(super) fn set_may_talk(&mut self, place: u32, may_talk: bool) {
        self.pairs[place as usize].may_talk = Some(may_talk);
    }

    #[cold]
    fn find_out(&mut self, acl: &Acl, from: u32, to: u32) -> u32 {
        let at = self.seat(from, to);
        let known = self.pairs[at];
        let is_known = known.generation == self.generation;
        let is_true = is_known && !acl.has_changed(known.version, from, to);
        let pair = if is_true && !known.is_new() {
            Pair { version: acl.version, ..known }
        } else {
            self.len += usize::from(!is_known);
            let may_talk = known.may_talk.filter(|_| is_true);
            Pair { may_talk, ..self.compile(acl, from, to, is_known) }
        };
        self.pairs[at] = pair;
        at as u32
    }

    /// Makes room for `more` pairs, by forgetting everything if there is too much of it.
    #[inline]
    pub(super) fn make_room(&mut self, more: usize) {
        let is_full = self.len + more > Self::MAX_PAIRS
            || self.blocks.len() + self.with_terms.blocks.len() > Self::MAX_BLOCKS
            || self.numbers.len() > Self::MAX_NUMBERS;
        if is_full || 2 * (self.len + more) > self.pairs.len() {
            self.clear_or_grow(is_full, more);
        }
    }

    #[cold]
    fn clear_or_grow(&mut self, is_full: bool, more: usize) {
        if is_full || self.generation == Pair::FREE.generation {
            self.clear();
        }
        if 2 * (self.len + more) <= self.pairs.len() {
            return;
        }
        let len = (2 * self.pairs.len()).max(Self::FIRST_PAIRS);
        let pairs = std::mem::replace(&mut self.pairs, vec![Pair::FREE; len]);
        for pair in pairs.into_iter().filter(|pair| pair.generation == self.generation) {
            let at = self.seat(pair.from, pair.to);
            self.pairs[at] = pair;
        }
    }

    /// Where the pair stands, or is to stand.
    fn seat(&self, from: u32, to: u32) -> usize {
        let mask = self.pairs.len() - 1;
        let mut at = self.home(from, to) & mask;
        while self.pairs[at].generation == self.generation && !self.pairs[at].is(from, to) {
            at = (at + 1) & mask;
        }
        at
    }

    /// Finds a pair out; merges its groups if it was `asked_before` or they have few lanes.
    fn compile(&mut self, acl: &Acl, from: u32, to: u32, asked_before: bool) -> Pair {
        let mut scratch = std::mem::take(&mut self.scratch);
        acl.groups.find(acl.from.in_class(from), acl.to.in_class(to), &mut scratch.groups);
        let groups = || scratch.groups.iter().map(|&number| acl.groups.group(number));
        let has_terms = groups().any(Group::has_terms);
        let lanes = groups().map(Group::len).sum::<usize>();
        let is_new = !asked_before && lanes > LANES;
        let kind = match (has_terms, is_new) {
            (false, true) => Kind::New,
            (false, false) => Kind::Merged,
            (true, true) => Kind::NewWithTerms,
            (true, false) => Kind::MergedWithTerms,
        };
        let numbers = self.numbers.len();
        if is_new || lanes > SHORT {
            let stays = |number: &u32| is_new || acl.groups.group(*number).len() >= LONG;
            self.numbers.extend(scratch.groups.iter().filter(|number| stays(number)));
            scratch.groups.retain(|number| !stays(number));
            self.numbers[numbers..].sort_unstable_by_key(|&number| acl.order_of_group(number));
        }
        let blocks = |memo: &Self| {
            if has_terms { memo.with_terms.blocks.len() } else { memo.blocks.len() }
        };
        let first = blocks(self);
        self.merge(acl, &mut scratch, has_terms);
        self.scratch = scratch;
        let span =
            |first: usize, end: usize| Span { first: first as u32, len: (end - first) as u32 };
        Pair {
            from,
            to,
            blocks: span(first, blocks(self)),
            numbers: span(numbers, self.numbers.len()),
            version: acl.version,
            generation: self.generation,
            kind,
            may_talk: None,
        }
    }

    /// Adds blocks of the groups' lanes, in evaluation order.
    fn merge(&mut self, acl: &Acl, Scratch { groups, lanes, kept }: &mut Scratch, has_terms: bool) {
        lanes.clear();
        for &number in &*groups {
            let group = acl.groups.group(number).strip().lanes();
            lanes.extend(group.map(|lane| (acl.order(lane.rule), lane)));
        }
        // A rule's lanes come from one group and must stay as they stand there.
        lanes.sort_by_key(|&(order, _)| order);
        kept.clear();
        if !has_terms {
            keep_what_is_met(lanes, kept);
            self.blocks.extend(kept.chunks(LANES).map(Block::of));
            return;
        }
        keep_what_may_be_met(acl, lanes, kept);
        self.with_terms.blocks.extend(kept.chunks(LANES).map(Block::of));
        self.with_terms.terms.extend(kept.chunks(LANES).map(TermBlock::of));
    }
}

/// Keeps the lanes, of which none has terms, that may be the first to match.
fn keep_what_is_met(lanes: &[(u64, Lane)], kept: &mut Vec<Lane>) {
    for &(_, lane) in lanes {
        if kept.iter().all(|before| before.test != lane.test) {
            kept.push(lane);
        }
        if lane.is_everything() {
            break;
        }
    }
}

/// Keeps the lanes that may decide where an earlier one of their tier does not: a `pass` may have left
/// other tiers.
fn keep_what_may_be_met(acl: &Acl, lanes: &[(u64, Lane)], kept: &mut Vec<Lane>) {
    let tier = |lane: &Lane| acl.ranks[lane.rule as usize].tier;
    for &(_, lane) in lanes {
        let decides = |before: &Lane| before.covers(&lane) && tier(before) == tier(&lane);
        if !kept.iter().any(decides) {
            kept.push(lane);
        }
    }
}
