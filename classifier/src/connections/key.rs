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
    pub(super) addresses: [u64; 4],
    /// From the top: first port, second port (for ICMP queries: identifier, then the request's
    /// `type << 8`), VLAN, protocol, and a byte that is zero.
    pub(super) rest: u64,
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
    #[inline]
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
        let &Embedded { protocol, src, dst, src_port, dst_port, .. } = embedded;
        Self::new(vlan, protocol, Direction { src, dst, src_port, dst_port })
    }

    #[inline]
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
        Some(Self { key: Key::new([first, second], ports, vlan, protocol), turned })
    }
}

impl Key {
    #[inline]
    fn new(addresses: [u128; 2], ports: [u16; 2], vlan: u16, protocol: u8) -> Self {
        let [[a, b], [c, d]] = addresses.map(halves);
        let [first, second] = ports.map(u64::from);
        let below = u64::from(vlan) << 16 | u64::from(protocol) << 8;
        Self { addresses: [a, b, c, d], rest: first << 48 | second << 32 | below }
    }

    pub(super) const fn vlan(&self) -> u16 {
        (self.rest >> 16) as u16
    }

    pub(super) const fn protocol(&self) -> u8 {
        (self.rest >> 8) as u8
    }

    /// The direction in which a frame that is `turned` like this travels. For ICMP queries only
    /// `false`, the request, has ports of its own.
    pub(super) fn direction(&self, turned: bool) -> Direction {
        let [a, b, c, d] = self.addresses;
        let (first, second) = (join(a, b), join(c, d));
        let (first_port, second_port) = ((self.rest >> 48) as u16, (self.rest >> 32) as u16);
        if turned {
            Direction { src: second, dst: first, src_port: second_port, dst_port: first_port }
        } else {
            Direction { src: first, dst: second, src_port: first_port, dst_port: second_port }
        }
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
/// First NH, the inner hash of UMAC on 64-bit words: two keys have one 128-bit sum with probability at
/// most 2⁻⁶⁴. Then pair-multiply-shift on that sum, which is strongly universal, so each of the 64
/// bits that come out is as good as any other.
/// Cost: six 64-bit multiplications.
/// Source: Black et al., *UMAC*, CRYPTO '99, §3; Thorup, *High Speed Hashing for Integers and
/// Strings*, arXiv:1504.06804, on vectors.
pub(super) struct Hasher {
    words: [u64; 6],
    sum: [u128; 3],
}

impl Hasher {
    /// A hasher whose coefficients are expanded from `seed`.
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        let words = std::array::from_fn(|_| split_mix(&mut state));
        let sum = std::array::from_fn(|_| join(split_mix(&mut state), split_mix(&mut state)));
        Self { words, sum }
    }

    #[inline]
    pub(super) fn hash(&self, key: &Key) -> u64 {
        let [a, b, c, d] = key.addresses;
        let [i, j, k, l, m, n] = self.words;
        let product = |x: u64, y: u64| u128::from(x) * u128::from(y);
        let sum = product(a.wrapping_add(i), b.wrapping_add(j))
            .wrapping_add(product(c.wrapping_add(k), d.wrapping_add(l)))
            .wrapping_add(product(key.rest.wrapping_add(m), n));
        let [high, low] = halves(sum).map(u128::from);
        let [p, q, r] = self.sum;
        let mixed = p.wrapping_add(low).wrapping_mul(q.wrapping_add(high)).wrapping_add(r);
        (mixed >> 64) as u64
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
    fn a_key_says_what_is_in_it() {
        let key = key(UDP, 1, 2, u16::MAX, 3).unwrap().key;
        assert_eq!((key.vlan(), key.protocol(), key.rest & 0xff), (5, UDP, 0));
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
        for bit in 8..64 {
            hashes.push(hasher.hash(&Key { rest: base.rest ^ (1 << bit), ..base }));
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
            let key = key(TCP, 1, 2, port, 0).unwrap().key;
            buckets[(hasher.hash(&key) >> 58) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| (512..2048).contains(&n)), "{buckets:?}");
    }
}
