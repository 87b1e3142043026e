//! Rules by what they name: all rules of one selector as source and one as destination are a group.
//!
//! A rule stands in one group, so to add or to take one touches one group. The rules that speak of a
//! pair of classes are those of the groups of (selectors of the one) × (selectors of the other).
//! Which of these exist is found from the source's side: each selector knows its groups, and either
//! these are looked through or the destination's selectors are probed, whichever are fewer.

use hashbrown::HashMap;

use super::lanes::{Block, LANES, Lane};
use super::terms::{Strip, TermBlock, Terms};

/// Rules of one pair of selectors.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) from: u32,
    pub(super) to: u32,
    /// Where it stands in the list of its source's selector.
    at: u32,
    /// Its rules' lanes in evaluation order. No block is empty; no list either, until it is deleted.
    blocks: Vec<Block>,
    /// The terms of each block's lanes; empty if no lane has any.
    terms: Vec<TermBlock>,
    /// Lanes in use.
    len: usize,
    /// Those of them that have terms.
    with_terms: usize,
}

impl Group {
    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(super) fn strip(&self) -> Strip<'_> {
        Strip { blocks: &self.blocks, terms: &self.terms }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn has_terms(&self) -> bool {
        self.with_terms > 0
    }

    /// The number of its first rule.
    pub(super) fn first(&self) -> u32 {
        self.blocks[0].rule(0)
    }

    /// The lanes of one block.
    fn lanes_of(&self, block: usize) -> Vec<Lane> {
        let one = block..block + 1;
        let terms = self.terms.get(one.clone()).unwrap_or_default();
        Strip { blocks: &self.blocks[one], terms }.lanes().collect()
    }

    /// Puts other lanes in a block.
    fn set(&mut self, block: usize, lanes: &[Lane]) {
        self.blocks[block] = Block::of(lanes);
        if let Some(terms) = self.terms.get_mut(block) {
            *terms = TermBlock::of(lanes);
        }
    }

    /// Puts a lane behind all that `stays_before` holds for. Cost: one binary search over the
    /// blocks; a full block is split, which moves the blocks behind it.
    fn insert(&mut self, lane: Lane, stays_before: impl Fn(u32) -> bool) {
        self.len += 1;
        if lane.terms != Terms::NONE {
            self.with_terms += 1;
            self.terms.resize(self.blocks.len(), TermBlock::NONE);
        }
        let after = self.blocks.partition_point(|block| stays_before(block.rule(0)));
        let block = after.saturating_sub(1);
        let mut lanes = self.lanes_of(block);
        let place = lanes.partition_point(|lane| stays_before(lane.rule));
        lanes.insert(place, lane);
        if lanes.len() <= LANES {
            self.set(block, &lanes);
        } else {
            // At the end of the list, as when a policy is compiled, blocks stay full.
            let cut =
                if block + 1 == self.blocks.len() && place == LANES { LANES } else { LANES / 2 };
            self.set(block, &lanes[..cut]);
            self.blocks.insert(block + 1, Block::of(&lanes[cut..]));
            if self.has_terms() {
                self.terms.insert(block + 1, TermBlock::of(&lanes[cut..]));
            }
        }
    }

    /// Takes out the lanes of a rule, which `stays_before` tells from those before it.
    fn remove(&mut self, rule: u32, stays_before: impl Fn(u32) -> bool) {
        let first = self.blocks.partition_point(|block| stays_before(block.rule(0)));
        let mut block = first.saturating_sub(1);
        while let Some(found) = self.blocks.get(block) {
            if block >= first && found.rule(0) != rule {
                break;
            }
            let (gone, kept): (Vec<Lane>, Vec<Lane>) =
                self.lanes_of(block).into_iter().partition(|lane| lane.rule == rule);
            self.len -= gone.len();
            self.with_terms -= gone.iter().filter(|lane| lane.terms != Terms::NONE).count();
            self.set(block, &kept);
            if kept.is_empty() {
                self.blocks.remove(block);
                if block < self.terms.len() {
                    self.terms.remove(block);
                }
            } else {
                block += 1;
            }
        }
        if !self.has_terms() {
            self.terms = Vec::new();
        }
    }
}

/// All groups.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    groups: Vec<Group>,
    /// Numbers of groups that were deleted.
    free: Vec<u32>,
    by_pair: HashMap<(u32, u32), u32>,
    /// For each selector of the source's side: its destinations' selectors, and the groups.
    by_source: Vec<Vec<(u32, u32)>>,
}

impl Groups {
    pub(super) fn group(&self, number: u32) -> &Group {
        &self.groups[number as usize]
    }

    /// Adds a rule's lanes. `stays_before` says whether the rule of a number is evaluated before it
    /// or is it.
    pub(super) fn insert(
        &mut self,
        (from, to): (u32, u32),
        lanes: &[Lane],
        stays_before: impl Fn(u32) -> bool,
    ) {
        let Some((&first, rest)) = lanes.split_first() else { return };
        let mut rest = rest;
        let number = match self.by_pair.get(&(from, to)) {
            Some(&number) => {
                rest = lanes;
                number
            }
            None => self.create(from, to, first),
        };
        let group = &mut self.groups[number as usize];
        for &lane in rest {
            group.insert(lane, &stays_before);
        }
    }

    fn create(&mut self, from: u32, to: u32, first: Lane) -> u32 {
        let lane = &[first];
        let has_terms = first.terms != Terms::NONE;
        let terms = if has_terms { vec![TermBlock::of(lane)] } else { Vec::new() };
        let (blocks, with_terms) = (vec![Block::of(lane)], terms.len());
        self.seat(Group { from, to, at: 0, blocks, terms, len: 1, with_terms })
    }

    /// Gives a group its number, and lets it be found.
    fn seat(&mut self, group: Group) -> u32 {
        let (from, to) = (group.from, group.to);
        let number = self.free.pop().unwrap_or(self.groups.len() as u32);
        if self.by_source.len() <= from as usize {
            self.by_source.resize(from as usize + 1, Vec::new());
        }
        let partners = &mut self.by_source[from as usize];
        let group = Group { at: partners.len() as u32, ..group };
        partners.push((to, number));
        self.by_pair.insert((from, to), number);
        match self.groups.get_mut(number as usize) {
            Some(freed) => *freed = group,
            None => self.groups.push(group),
        }
        number
    }

    /// Goes over to other numbers of selectors: those at the place of the old ones. Groups are numbered
    /// anew, too.
    pub(super) fn renumber(&mut self, from: &[u32], to: &[u32]) {
        let groups = std::mem::take(self).groups;
        for group in groups.into_iter().filter(|group| !group.blocks.is_empty()) {
            let (from, to) = (from[group.from as usize], to[group.to as usize]);
            self.seat(Group { from, to, ..group });
        }
    }

    /// Takes a rule out of its group; see [`Groups::insert`].
    pub(super) fn remove(
        &mut self,
        pair: (u32, u32),
        rule: u32,
        stays_before: impl Fn(u32) -> bool,
    ) {
        let Some(&number) = self.by_pair.get(&pair) else { return };
        let group = &mut self.groups[number as usize];
        group.remove(rule, stays_before);
        if group.blocks.is_empty() {
            self.delete(number);
        }
    }

    /// Deletes an empty group. Its number is free for the next.
    fn delete(&mut self, number: u32) {
        let &Group { from, to, at, .. } = self.group(number);
        self.free.push(number);
        self.by_pair.remove(&(from, to));
        let partners = &mut self.by_source[from as usize];
        partners.swap_remove(at as usize);
        if let Some(&(_, moved)) = partners.get(at as usize) {
            self.groups[moved as usize].at = at;
        }
    }

    /// Fills `found` with the groups of these selectors. Cost: for each of `from`, the fewer of its
    /// groups and `to`; never more steps than groups there are, nor than from × to.
    pub(super) fn find(&self, from: &[u32], to: &[u32], found: &mut Vec<u32>) {
        found.clear();
        for &source in from {
            let partners = self.by_source.get(source as usize).map_or(&[][..], Vec::as_slice);
            if partners.len() <= to.len() {
                let here = partners.iter().filter(|(partner, _)| to.binary_search(partner).is_ok());
                found.extend(here.map(|&(_, group)| group));
            } else {
                found.extend(to.iter().filter_map(|&to| self.by_pair.get(&(source, to))));
            }
        }
    }

    /// Bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        let blocks: usize = self.groups.iter().map(|group| group.blocks.capacity()).sum();
        let terms: usize = self.groups.iter().map(|group| group.terms.capacity()).sum();
        let partners: usize = self.by_source.iter().map(Vec::capacity).sum();
        blocks * size_of::<Block>()
            + terms * size_of::<TermBlock>()
            + self.groups.capacity() * size_of::<Group>()
            + self.by_pair.capacity() * (size_of::<((u32, u32), u32)>() + 1)
            + partners * size_of::<(u32, u32)>()
            + self.by_source.capacity() * size_of::<Vec<(u32, u32)>>()
    }
}
