//! Whom an address belongs to: longest prefix match that tells how many bits it consulted.
//!
//! Prefixes nest or are disjoint, so a set of them cuts the address space into ranges within which
//! the longest match is the same. The ranges' starts stand in one sorted array: a lookup is one
//! binary search, whatever the prefixes are. Neighbouring ranges of one owner are merged.
//!
//! The number of bits consulted falls out of the range: it is the length of the shortest prefix of
//! the address that does not leave its range.

use crate::snapshot::{PortId, Tag};

/// Whom an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// One of this switch's workloads.
    Workload(PortId, Tag),
    /// A group, or the world.
    Outside(Tag),
    /// Nobody: the unspecified address of either family.
    Unspecified,
}

/// A prefix and its owner, as [`Addresses::new`] takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First address.
    pub start: u128,
    /// Length in bits, 0 to 128. Bits of `start` after it must be zero.
    pub len: u8,
    /// Its owner.
    pub owner: Owner,
}

/// All addresses, cut into ranges by owner.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// First address of each range; the first is 0.
    starts: Vec<u128>,
    /// Owner of each range.
    owners: Vec<Owner>,
}

impl Addresses {
    /// Compiles `pieces`: the longest that covers an address owns it, of two equal ones the later;
    /// what none covers is `world`'s. Cost: n log n.
    pub fn new(mut pieces: Vec<Piece>, world: Tag) -> Self {
        pieces.sort_by_key(|piece| (piece.start, piece.len));
        let mut ranges = Self { starts: vec![0], owners: vec![Owner::Outside(world)] };
        let mut open = vec![(u128::MAX, Owner::Outside(world))];
        for piece in pieces {
            while open.last().is_some_and(|&(end, _)| end < piece.start) {
                ranges.close(&mut open);
            }
            ranges.begin(piece.start, piece.owner);
            let end = piece.start | u128::MAX.checked_shr(piece.len.into()).unwrap_or(0);
            open.push((end, piece.owner));
        }
        while open.len() > 1 {
            ranges.close(&mut open);
        }
        ranges
    }

    /// The innermost open prefix ends: after it, the one around it owns again.
    fn close(&mut self, open: &mut Vec<(u128, Owner)>) {
        let ended = open.pop();
        if let (Some((end, _)), Some(&(_, outer))) = (ended, open.last())
            && let Some(next) = end.checked_add(1)
        {
            self.begin(next, outer);
        }
    }

    /// From `start` on, `owner` owns.
    fn begin(&mut self, start: u128, owner: Owner) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.owners.pop();
        }
        if self.owners.last() != Some(&owner) {
            self.starts.push(start);
            self.owners.push(owner);
        }
    }

    /// The owner of `addr`, and a number of bits n such that every address with the same first n
    /// bits has that owner. Cost: one binary search.
    pub fn owner(&self, addr: u128) -> (Owner, u8) {
        // The first range starts at 0, so at least one start is not above `addr`.
        let after = self.starts.partition_point(|&start| start <= addr);
        let (start, owner) = (self.starts[after - 1], self.owners[after - 1]);
        let below = start.checked_sub(1).map_or(0, |outside| bits_to_tell(addr, outside));
        let above = self.starts.get(after).map_or(0, |&outside| bits_to_tell(addr, outside));
        (owner, below.max(above))
    }
}

/// Length of the shortest prefix of `addr` that `outside` does not have.
fn bits_to_tell(addr: u128, outside: u128) -> u8 {
    (addr ^ outside).leading_zeros() as u8 + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(start: u128, len: u8) -> u128 {
        if len == 0 { 0 } else { start >> (128 - len) << (128 - len) }
    }

    fn piece() -> impl Strategy<Value = Piece> {
        // Few distinct leading and trailing bits, so that prefixes nest and touch.
        (0u128..16, 0u128..16, 0u8..=8, any::<bool>(), 0u32..4).prop_map(
            |(high, low, len, deep, tag)| {
                let len = if deep { 120 + len } else { len };
                let start = net(high << 120 | low, len);
                Piece { start, len, owner: Owner::Outside(Tag(tag)) }
            },
        )
    }

    fn linear(pieces: &[Piece], world: Tag, addr: u128) -> Owner {
        let covering = pieces.iter().filter(|p| net(addr, p.len) == p.start);
        covering.max_by_key(|p| p.len).map_or(Owner::Outside(world), |p| p.owner)
    }

    proptest! {
        #[test]
        fn finds_the_longest_prefix_and_consults_enough_bits(
            pieces in prop::collection::vec(piece(), 0..24),
            high in 0u128..16,
            low in 0u128..16,
            noise: u128,
        ) {
            let world = Tag(9);
            let addresses = Addresses::new(pieces.clone(), world);
            let addr = high << 120 | low;
            let (owner, bits) = addresses.owner(addr);
            prop_assert_eq!(owner, linear(&pieces, world, addr));
            let flipped = addr ^ noise.checked_shr(bits.into()).unwrap_or(0);
            prop_assert_eq!(addresses.owner(flipped).0, owner);
        }
    }

    #[test]
    fn an_empty_set_is_all_world_and_consults_nothing() {
        let addresses = Addresses::new(Vec::new(), Tag(3));
        assert_eq!(addresses.owner(42), (Owner::Outside(Tag(3)), 0));
    }
}
