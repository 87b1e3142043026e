//! The connection key: what both directions of a conversation have in common.
//!
//! A key is *canonical*: two frames of one conversation give the same key, whichever side they are
//! from, so one hash and one lookup serve both. What was turned round to get there is kept beside
//! it, as [`FrameKey::turned`]; a frame is from the original side iff it was turned as the
//! connection's first frame was.
//!
//! - Protocols with ports: the lower (address, port) stands first.
//! - Protocols without: the lower address stands first, ports are zero.
//! - ICMP queries (RFC 792, RFC 4443 §4): the one who asks stands first, whatever its address.
//!   Requests from *A* to *B* and the replies from *B* to *A* are one conversation; requests from
//!   *B* to *A* under the same identifier are another one, and are judged on their own.

use crate::extract::{Embedded, Headers, Kind};
use crate::wire::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};
use crate::wire::{icmp, icmpv6};

/// The queries that connections follow: protocol, type of the request, type of the reply.
/// The other pairs that RFC 792 and RFC 950 define are deprecated by RFC 6918, and an extended echo
/// reply (RFC 8335) answers in its code, so it is judged by itself.
const QUERIES: [(u8, u8, u8); 3] = [
    (ICMP, icmp::kind::ECHO_REQUEST, icmp::kind::ECHO_REPLY),
    (ICMP, icmp::kind::TIMESTAMP_REQUEST, icmp::kind::TIMESTAMP_REPLY),
    (ICMPV6, icmpv6::kind::ECHO_REQUEST, icmpv6::kind::ECHO_REPLY),
];

/// What both directions of one conversation share, in canonical order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// First and second address, high half before low half.
    addresses: [u64; 4],
    /// First and second port. For ICMP queries: identifier, then the request's `type << 8`.
    ports: [u16; 2],
    vlan: u16,
    pub(super) protocol: u8,
}

/// A frame's key, and whether its source stands second in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameKey {
    pub(super) key: Key,
    /// The frame's source is the key's second endpoint.
    pub(super) turned: bool,
}

/// Addresses and ports in one direction, as a flow key has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Direction {
    pub(super) src: u128,
    pub(super) dst: u128,
    pub(super) src_port: u16,
    pub(super) dst_port: u16,
}

impl FrameKey {
    /// The key of a frame. `None` if no connection is kept for its kind: what is not IP, neighbour
    /// discovery, ICMP errors, ICMP messages that are neither query nor reply, and later fragments.
    pub(super) fn of_frame(headers: &Headers) -> Option<Self> {
        match headers.kind {
            Kind::Plain | Kind::DhcpClient | Kind::DhcpServer => {}
            Kind::Arp { .. }
            | Kind::Nd(_)
            | Kind::IcmpError(_)
            | Kind::NonIp
            | Kind::LaterFragment => return None,
        }
        let key = &headers.key;
        let direction = Direction {
            src: key.src,
            dst: key.dst,
            src_port: key.src_port,
            dst_port: key.dst_port,
        };
        Self::new(key.vlan, key.protocol, direction)
    }

    /// The key of a packet that an ICMP error quotes, as if it had been seen in `vlan`.
    pub(super) fn of_embedded(embedded: &Embedded, vlan: u16) -> Option<Self> {
        let &Embedded { protocol, src, dst, src_port, dst_port } = embedded;
        Self::new(vlan, protocol, Direction { src, dst, src_port, dst_port })
    }

    fn new(vlan: u16, protocol: u8, direction: Direction) -> Option<Self> {
        let Direction { src, dst, src_port, dst_port } = direction;
        let (turned, ports) = match protocol {
            ICMP | ICMPV6 => {
                let (request, is_reply) = query(protocol, dst_port)?;
                (is_reply, [src_port, u16::from(request) << 8])
            }
            TCP | UDP | SCTP => {
                let turned = (src, src_port) > (dst, dst_port);
                (turned, if turned { [dst_port, src_port] } else { [src_port, dst_port] })
            }
            _ => (src > dst, [0, 0]),
        };
        let (first, second) = if turned { (dst, src) } else { (src, dst) };
        let [a, b] = halves(first);
        let [c, d] = halves(second);
        Some(Self { key: Key { addresses: [a, b, c, d], ports, vlan, protocol }, turned })
    }
}

impl Key {
    pub(super) const fn vlan(&self) -> u16 {
        self.vlan
    }

    /// The direction in which a frame that is `turned` like this travels. For ICMP queries only
    /// `false`, the request, has ports of its own.
    pub(super) fn direction(&self, turned: bool) -> Direction {
        let [a, b, c, d] = self.addresses;
        let (first, second) = (join(a, b), join(c, d));
        let [first_port, second_port] = self.ports;
        if turned {
            Direction { src: second, dst: first, src_port: second_port, dst_port: first_port }
        } else {
            Direction { src: first, dst: second, src_port: first_port, dst_port: second_port }
        }
    }

    /// The key in fixed words, for hashing. Injective.
    fn words(&self) -> [u64; 6] {
        let [a, b, c, d] = self.addresses;
        let [first, second] = self.ports.map(u64::from);
        let rest = u64::from(self.vlan) << 8 | u64::from(self.protocol);
        [a, b, c, d, first << 16 | second, rest]
    }
}

/// The type that asks, and whether this message answers. `None` for what is neither; the code of
/// both is 0.
fn query(protocol: u8, type_code: u16) -> Option<(u8, bool)> {
    let [kind, code] = type_code.to_be_bytes();
    let of_kind = |&&(p, request, reply): &&(u8, u8, u8)| {
        p == protocol && code == 0 && (kind == request || kind == reply)
    };
    QUERIES.iter().find(of_kind).map(|&(_, request, reply)| (request, kind == reply))
}

const fn halves(bits: u128) -> [u64; 2] {
    [(bits >> 64) as u64, bits as u64]
}

const fn join(high: u64, low: u64) -> u128 {
    (high as u128) << 64 | low as u128
}

/// Hashes keys so that nobody who does not know the seed can choose keys that collide.
///
/// Pair-multiply-shift: with random 128-bit coefficients it is strongly universal, that is, any two
/// keys chosen without knowing them have the same 64-bit hash with probability 2⁻⁶⁴.
/// Cost: nine 64-bit multiplications, without a loop-carried chain.
/// Source: Thorup, *High Speed Hashing for Integers and Strings*, arXiv:1504.06804, on vectors.
pub(super) struct Hasher {
    coefficients: [u128; 6],
    offset: u128,
}

impl Hasher {
    /// A hasher whose coefficients are expanded from `seed`.
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        let mut next = || join(split_mix(&mut state), split_mix(&mut state));
        Self { coefficients: std::array::from_fn(|_| next()), offset: next() }
    }

    pub(super) fn hash(&self, key: &Key) -> u64 {
        let [a, b, c, d, e, f] = key.words().map(u128::from);
        let [p, q, r, s, t, u] = self.coefficients;
        let pair =
            |p: u128, q: u128, x: u128, y: u128| p.wrapping_add(y).wrapping_mul(q.wrapping_add(x));
        let sum = pair(p, q, a, b).wrapping_add(pair(r, s, c, d)).wrapping_add(pair(t, u, e, f));
        (sum.wrapping_add(self.offset) >> 64) as u64
    }
}

/// One step of SplitMix64 (Steele, Lea and Flood, OOPSLA '14, figure 16).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(protocol: u8, src: u128, dst: u128, src_port: u16, dst_port: u16) -> Option<FrameKey> {
        FrameKey::new(5, protocol, Direction { src, dst, src_port, dst_port })
    }

    #[test]
    fn both_directions_have_one_key_and_differ_in_turn() {
        for protocol in [TCP, UDP, SCTP, 47] {
            let there = key(protocol, 1 << 70, 2, 1000, 80).unwrap();
            let back = key(protocol, 2, 1 << 70, 80, 1000).unwrap();
            assert_eq!(there.key, back.key, "{protocol}");
            assert_ne!(there.turned, back.turned, "{protocol}");
        }
    }

    #[test]
    fn a_direction_is_what_was_put_in() {
        for (src, dst, src_port, dst_port) in [(1, 2, 9, 8), (2, 1, 8, 9), (3, 3, 1, 2)] {
            let made = key(TCP, src, dst, src_port, dst_port).unwrap();
            let expected = Direction { src, dst, src_port, dst_port };
            assert_eq!(made.key.direction(made.turned), expected);
        }
    }

    #[test]
    fn an_echo_reply_belongs_to_its_request_and_not_to_the_others_request() {
        for (protocol, request, reply) in QUERIES {
            let [request, reply] = [request, reply].map(|kind| u16::from(kind) << 8);
            let asked = key(protocol, 1, 2, 77, request).unwrap();
            assert_eq!(key(protocol, 2, 1, 77, reply).unwrap().key, asked.key);
            assert_ne!(key(protocol, 2, 1, 77, request).unwrap().key, asked.key);
            assert_ne!(key(protocol, 1, 2, 77, reply).unwrap().key, asked.key);
            assert_ne!(key(protocol, 2, 1, 78, reply).unwrap().key, asked.key);
        }
    }

    #[test]
    fn icmp_that_is_no_query_has_no_key() {
        let type_codes = [(ICMP, 3 << 8), (ICMP, 8 << 8 | 1), (ICMP, 128 << 8), (ICMPV6, 8 << 8)];
        for (protocol, type_code) in type_codes {
            assert_eq!(key(protocol, 1, 2, 0, type_code), None, "{protocol} {type_code:#x}");
        }
    }

    #[test]
    fn ports_of_protocols_that_have_none_are_ignored() {
        assert_eq!(key(47, 1, 2, 3, 4), key(47, 1, 2, 5, 6));
    }

    #[test]
    fn every_bit_of_a_key_and_of_the_seed_changes_the_hash() {
        let hasher = Hasher::new(1);
        let base = key(TCP, 0, 0, 0, 0).unwrap().key;
        let mut hashes = vec![hasher.hash(&base), Hasher::new(2).hash(&base)];
        for bit in 0..128 {
            let mut other = base;
            other.addresses[usize::from(bit >= 64)] ^= 1 << (bit % 64);
            hashes.push(hasher.hash(&other));
            other = base;
            other.addresses[2 + usize::from(bit >= 64)] ^= 1 << (bit % 64);
            hashes.push(hasher.hash(&other));
        }
        for bit in 0..16 {
            hashes.push(hasher.hash(&Key { ports: [1 << bit, 0], ..base }));
            hashes.push(hasher.hash(&Key { ports: [0, 1 << bit], ..base }));
            hashes.push(hasher.hash(&Key { vlan: 1 << bit, ..base }));
        }
        for bit in 0..8 {
            hashes.push(hasher.hash(&Key { protocol: base.protocol ^ (1 << bit), ..base }));
        }
        let count = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }

    #[test]
    fn keys_that_differ_in_one_port_spread_evenly() {
        let hasher = Hasher::new(3);
        let mut buckets = [0_u32; 64];
        for port in 0..=u16::MAX {
            let base = key(TCP, 1, 2, 0, 0).unwrap().key;
            buckets[(hasher.hash(&Key { ports: [port, 0], ..base }) >> 58) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| (512..2048).contains(&n)), "{buckets:?}");
    }
}
