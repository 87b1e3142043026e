//! Masks: which bits of a flow key a verdict consulted.
//!
//! # The family
//!
//! Tuple space search keeps one subtable per distinct mask and probes them one after the other, so
//! its cost is the number of masks. Where masks are cut to the exact bits that a lookup consulted, a
//! sender chooses them: with 8,192 crafted packets Csikor et al. ("Tuple Space Explosion", CoNEXT
//! '19; CVE-2019-25076) made 8,192 subtables. Here a mask is an index into a table of [`MASKS`] rows
//! that is computed when this crate is compiled:
//!
//! - ingress port, VLAN, ethertype, protocol and both MAC addresses: always whole;
//! - TCP flags and source port (ICMP identifier): never. A verdict that a rule reached by them
//!   ([conditions](crate::snapshot::Conditions)) is not cached; the connection it begins is;
//! - source and destination address: the first 0, 64, 112, 120 or 128 bits. An IPv4 address is the
//!   tail of 96 bits that the ethertype already fixes, so for it these are /0, /0, /16, /24 and /32;
//! - destination port (ICMP type and code): whole or absent.
//!
//! # Why no traffic can add a mask
//!
//! [`Mask`] has no constructor but [`Mask::covering`], which rounds what was consulted up to a row.
//! Its only state is the row's number. However many keys are sent, there are 5 × 5 × 2 numbers.
//!
//! # Why a cached verdict equals the uncached one
//!
//! Let *f* be [`classify`](crate::classify::classify) under one policy, *k* a key it was called
//! with, and *C(k)* the bits it reported as consulted. Claim: *f(k′) = f(k)* for every *k′* that
//! agrees with *k* on *C(k)*.
//!
//! 1. *f* reads a key in five ways: whole fields that are in every mask, VLAN and ethertype among
//!    them; an address, by [`Addresses::owner`](crate::policy::Addresses::owner); the destination
//!    port, by comparing it with a service; source port and TCP flags, by comparing them with a
//!    rule's conditions; and the learned MAC table.
//! 2. `owner` returns, with its answer, a prefix length *n* such that all addresses that share the
//!    first *n* bits lie in one range of one owner. So *k′* gets the same answer and, all of its
//!    block being in that range, may be given the same *n*.
//! 3. The ACL reports the destination port as consulted as soon as it compared it with anything; and
//!    likewise source port and TCP flags, upon which there is no mask, and nothing is cached: the
//!    claim is about keys that have one.
//! 4. Each branch of *f* depends on answers of 1 to 3 alone; by induction along the branches, *k*
//!    and *k′* take the same ones.
//! 5. The MAC table can change under one policy. A verdict that took its answer from there carries
//!    the port it got, and the cache gives it out only while the table still says the same.
//!
//! Rounding up turns *C(k)* into a superset: fewer keys *k′* agree on it, so the claim still holds.
//! The entry is only narrower. A mask that left out a consulted bit would be a hole; one that has a
//! bit too many costs another upcall.
//!
//! Since every mask has the whole ingress port, an entry covers frames of one port alone. So each
//! port can have its own subtables, and its lookups probe them in any order: entries of one epoch
//! that cover a key have one verdict, *f(k)*. And since no mask has the TCP flags, the flow cache
//! may use their place in a masked key for the mask's number. `tests` flips every bit outside the
//! mask, and the pipeline's property test compares cached, uncached and [linear](crate::oracle)
//! verdicts.

use crate::key::KEY_WORDS;

/// Steps that a consulted address prefix is rounded up to, in bits of the 128-bit address.
pub(crate) const STEPS: [u8; 5] = [0, 64, 112, 120, 128];

/// Number of masks there are. No traffic and no policy changes it.
pub const MASKS: usize = STEPS.len() * STEPS.len() * 2;

/// Which bits of a flow key a verdict depends on: one row of the fixed family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mask(u8);

impl Mask {
    /// The narrowest mask of the family that covers these bits: the first `src_bits` of the source
    /// and `dst_bits` of the destination address (0 to 128), and the destination port if `port`.
    pub const fn covering(src_bits: u8, dst_bits: u8, port: bool) -> Self {
        Self((step(src_bits) * STEPS.len() as u8 + step(dst_bits)) * 2 + port as u8)
    }

    /// The one that covers everything that any mask covers.
    pub const WIDEST: Self = Self::covering(128, 128, true);

    /// The mask at this position of the family; the last one, if there is none.
    pub(crate) const fn of_index(index: u8) -> Self {
        if (index as usize) < MASKS { Self(index) } else { Self::WIDEST }
    }

    /// Positions of its source and destination prefix lengths among the steps.
    pub(crate) const fn steps(self) -> (usize, usize) {
        let (src, dst) = PAIRS[self.0 as usize];
        (src as usize, dst as usize)
    }

    /// Every mask there is.
    pub fn family() -> impl Iterator<Item = Self> {
        (0..MASKS as u8).map(Self)
    }

    /// Its position in [`Mask::family`], below [`MASKS`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// One bit set for each bit of [`FlowKey::words`](crate::FlowKey::words) that it covers.
    pub const fn words(self) -> &'static [u64; KEY_WORDS] {
        &FAMILY[self.0 as usize]
    }

    /// How many leading bits of the source address it covers, of 128.
    pub const fn src_bits(self) -> u8 {
        STEPS[self.steps().0]
    }

    /// How many leading bits of the destination address it covers, of 128.
    pub const fn dst_bits(self) -> u8 {
        STEPS[self.steps().1]
    }

    /// Whether it covers the destination port.
    pub const fn has_port(self) -> bool {
        self.0 % 2 == 1
    }

    /// The words of `key` with everything outside the mask zero.
    pub fn apply(self, key: &[u64; KEY_WORDS]) -> [u64; KEY_WORDS] {
        let mask = self.words();
        std::array::from_fn(|i| key[i] & mask[i])
    }
}

/// The steps of each mask, which would take divisions to find.
static PAIRS: [(u8, u8); MASKS] = {
    let mut pairs = [(0, 0); MASKS];
    let mut i = 0;
    while i < MASKS {
        pairs[i] = ((i / 2 / STEPS.len()) as u8, (i / 2 % STEPS.len()) as u8);
        i += 1;
    }
    pairs
};

/// Index of the first step of at least `bits`.
const fn step(bits: u8) -> u8 {
    let mut i = 0;
    while i + 1 < STEPS.len() && STEPS[i] < bits {
        i += 1;
    }
    i as u8
}

/// The first `bits` of 128 set.
pub(crate) const fn prefix(bits: u8) -> u128 {
    if bits == 0 { 0 } else { u128::MAX << (128 - bits) }
}

/// The rows, in the word layout of [`FlowKey::words`](crate::FlowKey::words).
static FAMILY: [[u64; KEY_WORDS]; MASKS] = {
    const TCP_FLAGS: u64 = 0xff;
    const MAC: u64 = !0xffff;
    let mut rows = [[0; KEY_WORDS]; MASKS];
    let mut i = 0;
    while i < MASKS {
        let mask = Mask(i as u8);
        let src = prefix(mask.src_bits());
        let dst = prefix(mask.dst_bits());
        let port = if mask.has_port() { 0xffff } else { 0 };
        rows[i] = [
            !TCP_FLAGS,
            MAC | port,
            MAC,
            (src >> 64) as u64,
            src as u64,
            (dst >> 64) as u64,
            dst as u64,
        ];
        i += 1;
    }
    rows
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::FlowKey;
    use crate::snapshot::PortId;

    #[test]
    fn the_family_is_small_and_its_rows_differ() {
        const { assert!(MASKS <= 64) };
        let rows: Vec<_> = Mask::family().map(Mask::words).collect();
        assert_eq!(rows.len(), MASKS);
        for (i, row) in rows.iter().enumerate() {
            assert!(rows[..i].iter().all(|other| other != row));
            let [first, ..] = FlowKey { ingress: PortId(u16::MAX), ..FlowKey::default() }.words();
            assert_eq!((row[0] & first, row[0] & 0xff), (first, 0), "the port, and no TCP flags");
        }
    }

    proptest! {
        #[test]
        fn rounding_up_never_loses_a_consulted_bit(src in 0u8..=128, dst in 0u8..=128, port: bool) {
            let mask = Mask::covering(src, dst, port);
            prop_assert!(mask.src_bits() >= src && mask.dst_bits() >= dst);
            prop_assert_eq!(mask.has_port(), port);
        }
    }
}
