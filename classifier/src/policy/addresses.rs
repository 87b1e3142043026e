//! Whom an address belongs to: longest prefix match that tells how many bits it consulted.
//!
//! Prefixes nest or are disjoint, so a set of them cuts the address space into ranges within which
//! the longest match is the same. The ranges' starts stand in one sorted array; neighbouring ranges
//! of one owner are merged. So an exception, which is a longer prefix of another owner, costs no more
//! than any other prefix.
//!
//! An IPv6 address is looked up by binary search. For IPv4 there is a trie over the array, of 16, 8
//! and 8 bits of the address: each slot says which range it lies in, or where the next level is if
//! it is cut. A lookup reads three slots whatever it finds, and branches on none of them: a level
//! that is not needed reads a slot of no meaning. So lookups side by side do not wait for each other.
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
    ipv4: Trie,
}

/// The ranges of IPv4 addresses by 16, 8 and 8 bits.
#[derive(Clone, Debug, Default)]
struct Trie {
    /// By the first 16 bits: a range's number, or [`Trie::CUT`] and a node's.
    root: Vec<u32>,
    /// Nodes of [`Trie::SLOTS`] slots each, which are as the root's. The first has no meaning.
    nodes: Vec<u32>,
}

impl Addresses {
    /// Compiles `pieces`: the longest that covers an address owns it, of two equal ones the later;
    /// what none covers is `world`'s. Cost: n log n.
    pub fn new(mut pieces: Vec<Piece>, world: Tag) -> Self {
        pieces.sort_by_key(|piece| (piece.start, piece.len));
        let mut ranges =
            Self { starts: vec![0], owners: vec![Owner::Outside(world)], ipv4: Trie::default() };
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
        ranges.ipv4 = Trie::new(&ranges.starts);
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
    /// bits has that owner. Cost: three reads for IPv4, one binary search for IPv6.
    pub fn owner(&self, addr: u128) -> (Owner, u8) {
        let range = self.range(addr);
        let (start, owner) = (self.starts[range], self.owners[range]);
        let below = start.checked_sub(1).map_or(0, |outside| bits_to_tell(addr, outside));
        let above = self.starts.get(range + 1).map_or(0, |&outside| bits_to_tell(addr, outside));
        (owner, below.max(above))
    }

    /// The owner of each address. Reads for one do not wait for those of another.
    pub fn owners(&self, addrs: &[u128], owners: &mut [Owner]) {
        for (addr, owner) in addrs.iter().zip(owners) {
            *owner = self.owners[self.range(*addr)];
        }
    }

    /// The range that `addr` lies in.
    #[inline]
    fn range(&self, addr: u128) -> usize {
        if addr >> 32 == IPV4 >> 32 {
            return self.ipv4.range(addr as u32);
        }
        self.search(addr)
    }

    #[inline(never)]
    fn search(&self, addr: u128) -> usize {
        // The first range starts at 0, so at least one start is not above `addr`.
        self.starts.partition_point(|&start| start <= addr) - 1
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.starts.capacity() * size_of::<u128>()
            + self.owners.capacity() * size_of::<Owner>()
            + (self.ipv4.root.capacity() + self.ipv4.nodes.capacity()) * size_of::<u32>()
    }
}

/// The first IPv4 address, mapped (RFC 4291 §2.5.5.2).
const IPV4: u128 = 0xffff << 32;

impl Trie {
    /// Slots of a node.
    const SLOTS: usize = 256;
    /// Says that a slot is cut into ranges, and names the node that tells them.
    const CUT: u32 = 1 << 31;

    /// The trie over ranges that start here. Cost: a fill of 65,536 slots, and 256 steps for each node.
    fn new(starts: &[u128]) -> Self {
        let mut trie = Self { root: Vec::with_capacity(1 << 16), nodes: vec![0; Self::SLOTS] };
        let mut range = starts.partition_point(|&start| start <= IPV4) - 1;
        while trie.root.len() < 1 << 16 {
            let at = trie.root.len();
            let slot = trie.slot(starts, &mut range, IPV4 | (at as u128) << 16, 16);
            let alike = if slot & Self::CUT == 0 {
                // All slots before the one in which the next range starts.
                let next = starts.get(range + 1).map_or(1 << 32, |next| next - IPV4);
                (next.min(1 << 32) >> 16) as usize
            } else {
                at + 1
            };
            trie.root.resize(alike, slot);
        }
        trie
    }

    /// The slot for the 2^`bits` addresses from `first` on. `range` is the one that `first` lies in,
    /// and then the one that their last lies in.
    fn slot(&mut self, starts: &[u128], range: &mut usize, first: u128, bits: u32) -> u32 {
        let next = |range: usize| starts.get(range + 1).copied().unwrap_or(u128::MAX);
        while next(*range) <= first && *range + 1 < starts.len() {
            *range += 1;
        }
        let is_cut = next(*range) < first + (1 << bits) && bits > 0;
        if !is_cut {
            return *range as u32;
        }
        let node = self.nodes.len();
        self.nodes.resize(node + Self::SLOTS, 0);
        let bits = bits - 8;
        for at in 0..Self::SLOTS {
            self.nodes[node + at] = self.slot(starts, range, first + ((at as u128) << bits), bits);
        }
        Self::CUT | (node / Self::SLOTS) as u32
    }

    #[inline]
    fn range(&self, addr: u32) -> usize {
        let slot = self.root[(addr >> 16) as usize];
        let slot = self.below(slot, addr >> 8 & 0xff);
        self.below(slot, addr & 0xff) as usize
    }

    /// What the node says that a slot names, or the slot as it is.
    #[inline]
    fn below(&self, slot: u32, at: u32) -> u32 {
        let is_cut = (slot as i32 >> 31) as u32;
        let here = self.nodes[(((slot & !Self::CUT) << 8 | at) & is_cut) as usize];
        here & is_cut | slot & !is_cut
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

    /// Prefixes of IPv4, so short, long and close that the trie's levels are all used.
    fn ipv4_piece() -> impl Strategy<Value = Piece> {
        let addr =
            prop_oneof![any::<u32>(), 0x0a00_00f0u32..0x0a00_0110, 0x0a00_fff0u32..0x0a01_0010];
        (addr, 0u8..=32, 0u32..4).prop_map(|(addr, len, tag)| {
            let start = net(IPV4 | u128::from(addr), 96 + len);
            Piece { start, len: 96 + len, owner: Owner::Outside(Tag(tag)) }
        })
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

        #[test]
        fn ipv4_addresses_find_the_longest_prefix(
            pieces in prop::collection::vec(ipv4_piece(), 0..24),
            addr: u32,
            noise: u128,
        ) {
            let world = Tag(9);
            let addresses = Addresses::new(pieces.clone(), world);
            let ends = pieces.iter().flat_map(|piece| {
                let end = piece.start | u128::MAX.checked_shr(piece.len.into()).unwrap_or(0);
                [piece.start.wrapping_sub(1), piece.start, end, end.wrapping_add(1)]
            });
            let addrs: Vec<u128> = ends.chain([IPV4 | u128::from(addr)]).collect();
            let mut owners = vec![Owner::Unspecified; addrs.len()];
            addresses.owners(&addrs, &mut owners);
            for (&addr, &batched) in addrs.iter().zip(&owners) {
                let (owner, bits) = addresses.owner(addr);
                prop_assert_eq!(owner, linear(&pieces, world, addr));
                prop_assert_eq!(owner, batched);
                let flipped = addr ^ noise.checked_shr(bits.into()).unwrap_or(0);
                prop_assert_eq!(addresses.owner(flipped).0, owner);
            }
        }
    }

    #[test]
    fn an_empty_set_is_all_world_and_consults_nothing() {
        let addresses = Addresses::new(Vec::new(), Tag(3));
        assert_eq!(addresses.owner(42), (Owner::Outside(Tag(3)), 0));
    }
}
