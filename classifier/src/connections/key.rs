//! The connection key: what both directions of a conversation have in common.
//!
//! A key is *canonical*: two frames of one conversation give the same key, whichever side they are
//! from, so one hash and one lookup serve both. What was turned round to get there is kept beside
//! it, as [`FrameKey::turned`]; a frame is from the original side iff it was turned as the
//! connection's first frame was.
//!
//! - Nearly all protocols: the lower port stands first, of equal ones that with the lower address,
//!   whose last 32 bits come first in this. Protocols without ports have zero for both.
//! - ICMP queries (RFC 792, RFC 4443 §4): the one who asks stands first, whatever its address.
//!   Requests from *A* to *B* and the replies from *B* to *A* are one conversation; requests from
//!   *B* to *A* under the same identifier are another one, and are judged on their own.

use crate::extract::{Embedded, Headers, Kind};
use crate::key::FlowKey;
use crate::wire::ethernet::ether_type;
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

/// What both directions of one conversation share, in canonical order. All that tells IPv4's apart
/// stands in two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Of each endpoint, from the lowest bit: the lower 32 bits of the address, and the port. Above
    /// them the first has the VLAN, and the second the protocol and the [spare](SPARE) byte.
    ///
    /// ICMP queries have the identifier for the first port, and the request's `type << 8` for the
    /// second.
    pub(super) endpoints: [u64; 2],
    /// The rest of the addresses, of IPv6 alone: the upper halves of both, and their bits 32 to 63
    /// side by side.
    pub(super) upper: Option<Upper>,
}

/// See [`Key::upper`].
pub(super) type Upper = [u64; 3];

/// Where a byte stands in the second endpoint, of which a key uses [`IPV6`] alone.
pub(super) const SPARE: u32 = 56;

/// In the second of a [frame's endpoints](FrameKey::endpoints): the frame is turned.
pub(super) const TURNED: u64 = 0x80 << SPARE;

/// Marks the endpoints of keys that have [`Key::upper`].
const IPV6: u64 = 0x20 << SPARE;

/// The upper 96 bits of an IPv4 address.
const MAPPED: u128 = 0xffff;

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
        let &FlowKey { vlan, protocol, src, dst, src_port, dst_port, .. } = &headers.key;
        let direction = Direction { src, dst, src_port, dst_port };
        if may_have_key(&headers.kind) { Self::new(vlan, protocol, direction) } else { None }
    }

    /// What [`FrameKey::of_frame`] gives, if it is IPv4 and the protocol has ports: nearly every frame's
    /// key, without a branch that depends on addresses or ports.
    #[inline(always)]
    pub(super) fn of_plain_frame(headers: &Headers) -> Option<Self> {
        let &FlowKey { vlan, protocol, ether_type, src, dst, src_port, dst_port, .. } =
            &headers.key;
        let is_plain = matches!(headers.kind, Kind::Plain);
        if !is_plain || ether_type != ether_type::IPV4 || !has_ports(protocol) {
            return None;
        }
        let (source, destination) = (endpoint(src, src_port), endpoint(dst, dst_port));
        let turned = destination.wrapping_sub(source) & TURNED != 0;
        let [first, second] = in_order([source, destination], turned);
        let endpoints = [first | u64::from(vlan) << 48, second | u64::from(protocol) << 48];
        Some(Self { key: Key { endpoints, upper: None }, turned })
    }

    /// The key's endpoints, marked if the frame is [`TURNED`].
    #[inline(always)]
    pub(super) const fn endpoints(&self) -> [u64; 2] {
        let [first, second] = self.key.endpoints;
        [first, second | if self.turned { TURNED } else { 0 }]
    }

    /// The key of a packet that an ICMP error quotes, as if it had been seen in `vlan`.
    pub(super) fn of_embedded(embedded: &Embedded, vlan: u16) -> Option<Self> {
        let &Embedded { protocol, src, dst, src_port, dst_port, .. } = embedded;
        Self::new(vlan, protocol, Direction { src, dst, src_port, dst_port })
    }

    fn new(vlan: u16, protocol: u8, direction: Direction) -> Option<Self> {
        let Direction { src, dst, src_port, dst_port } = direction;
        let (ports, turned) = match protocol {
            ICMP | ICMPV6 => {
                let Query { request, is_reply, .. } = query(protocol, dst_port)?;
                (in_order([src_port, u16::from(request) << 8], is_reply), is_reply)
            }
            _ => {
                let ports = if has_ports(protocol) { [src_port, dst_port] } else { [0; 2] };
                let [from, to] = ports;
                (ports, (endpoint(src, from), src) > (endpoint(dst, to), dst))
            }
        };
        let [from, to] = ports;
        let [first, second] = in_order([endpoint(src, from), endpoint(dst, to)], turned);
        let endpoints = [first | u64::from(vlan) << 48, second | u64::from(protocol) << 48];
        let key = if direction.is_ipv4() {
            Key { endpoints, upper: None }
        } else {
            let [first, second] = endpoints;
            let upper = upper(in_order([src, dst], turned));
            Key { endpoints: [first, second | IPV6], upper: Some(upper) }
        };
        Some(Self { key, turned })
    }
}

/// Whether connections are kept for a kind of frame.
#[inline]
const fn may_have_key(kind: &Kind) -> bool {
    match kind {
        Kind::Plain | Kind::DhcpClient | Kind::DhcpServer => true,
        Kind::Arp { .. } | Kind::Nd(_) | Kind::IcmpError(_) | Kind::NonIp | Kind::LaterFragment => {
            false
        }
    }
}

#[inline]
const fn has_ports(protocol: u8) -> bool {
    // No branch between the two that are mixed.
    const COMMON: u64 = 1 << TCP | 1 << UDP;
    protocol < 64 && COMMON >> protocol & 1 != 0 || protocol == SCTP
}

impl Direction {
    const fn is_ipv4(&self) -> bool {
        self.src >> 32 == MAPPED && self.dst >> 32 == MAPPED
    }
}

impl Key {
    pub(super) const fn vlan(&self) -> u16 {
        let [first, _] = self.endpoints;
        (first >> 48) as u16
    }

    pub(super) const fn protocol(&self) -> u8 {
        let [_, second] = self.endpoints;
        (second >> 48) as u8
    }

    /// The same conversation in any VLAN.
    #[inline]
    pub(super) const fn without_vlan(&self) -> Self {
        let [first, second] = self.endpoints;
        Self { endpoints: [first & ((1 << 48) - 1), second], upper: self.upper }
    }

    /// The direction in which a frame that is `turned` like this travels. For ICMP queries only
    /// `false`, the request, has ports of its own.
    pub(super) fn direction(&self, turned: bool) -> Direction {
        let upper = self.upper.map_or([MAPPED << 32; 2], |[first, second, middle]| {
            [join(first, middle & !0xffff_ffff), join(second, middle << 32)]
        });
        let [first, second] = self.endpoints;
        let address = |upper, endpoint: u64| upper | u128::from(endpoint as u32);
        let port = |endpoint: u64| (endpoint >> 32) as u16;
        let [src, dst] = in_order([address(upper[0], first), address(upper[1], second)], turned);
        let [src_port, dst_port] = in_order([port(first), port(second)], turned);
        Direction { src, dst, src_port, dst_port }
    }
}

/// Whether these are endpoints of a key that has [`Key::upper`].
#[inline]
pub(super) const fn has_upper([_, second]: [u64; 2]) -> bool {
    second & IPV6 != 0
}

#[inline]
const fn upper([first, second]: [u128; 2]) -> Upper {
    let middle = (first as u64 >> 32) << 32 | second as u64 >> 32;
    [(first >> 64) as u64, (second >> 64) as u64, middle]
}

/// The lower 32 bits of an address, and a port above.
#[inline(always)]
const fn endpoint(address: u128, port: u16) -> u64 {
    (port as u64) << 32 | address as u32 as u64
}

/// Two in this order, or the other if `turned`.
#[inline]
fn in_order<T>([first, second]: [T; 2], turned: bool) -> [T; 2] {
    if turned { [second, first] } else { [first, second] }
}

/// The source and the destination port, as a [flow key](FlowKey) has them, of what answers a frame
/// with these. An ICMP query's answer has its identifier, and the other type.
pub fn ports_of_answer(protocol: u8, [source, destination]: [u16; 2]) -> [u16; 2] {
    match query(protocol, destination) {
        Some(query) => [source, u16::from(query.answer) << 8],
        None => [destination, source],
    }
}

/// An ICMP message that asks or answers.
struct Query {
    /// The type that asks.
    request: u8,
    /// The type of the other side's messages.
    answer: u8,
    is_reply: bool,
}

/// `None` for what neither asks nor answers; the code of both is 0.
fn query(protocol: u8, type_code: u16) -> Option<Query> {
    let [kind, code] = type_code.to_be_bytes();
    let of_kind = |&&(p, request, reply): &&(u8, u8, u8)| {
        p == protocol && code == 0 && (kind == request || kind == reply)
    };
    QUERIES.iter().find(of_kind).map(|&(_, request, reply)| {
        let is_reply = kind == reply;
        Query { request, answer: if is_reply { request } else { reply }, is_reply }
    })
}

const fn join(high: u64, low: u64) -> u128 {
    (high as u128) << 64 | low as u128
}

/// Hashes keys so that nobody who does not know the seed can choose keys that collide.
///
/// Pair-multiply-shift on the halves of words: two keys, whichever, have the same one of *N* ≤ 2³² equal
/// parts of all hashes with probability at most 2/*N*. For where one half of a word differs, what their
/// sums differ by has that difference times the other half's coefficient in it, which is any of 2⁶⁴
/// with the same probability; a difference of two halves ends in less than 32 zeros, and the hash is
/// the upper half of the sum. (The whole word stands for its lower half here: if the upper halves
/// are the same that is no difference, and if not, theirs decides.)
/// Cost: a multiplication of 64 bits for each word, two for IPv4 and five for IPv6.
/// Source: Thorup, *High Speed Hashing for Integers and Strings*, arXiv:1504.06804, on vectors.
pub(super) struct Hasher {
    coefficients: [[u64; 2]; 5],
}

impl Hasher {
    /// A hasher whose coefficients are expanded from `seed`.
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        let mut draw = || split_mix(&mut state);
        Self { coefficients: std::array::from_fn(|_| [draw(), draw()]) }
    }

    #[inline]
    pub(super) fn hash(&self, key: &Key) -> u32 {
        let product = |[p, q]: [u64; 2], word: u64| {
            p.wrapping_add(word >> 32).wrapping_mul(q.wrapping_add(word))
        };
        let [first, second, upper @ ..] = &self.coefficients;
        let [a, b] = key.endpoints;
        let mut sum = product(*first, a).wrapping_add(product(*second, b));
        for (coefficients, word) in upper.iter().zip(key.upper.into_iter().flatten()) {
            sum = sum.wrapping_add(product(*coefficients, word));
        }
        (sum >> 32) as u32
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
    use proptest::prelude::*;

    use super::*;
    use crate::extract::TcpFields;

    fn key(protocol: u8, src: u128, dst: u128, src_port: u16, dst_port: u16) -> Option<FrameKey> {
        let direction = Direction { src, dst, src_port, dst_port };
        FrameKey::new(5, protocol, direction)
    }

    fn of_ipv4(key: FlowKey) -> Headers {
        Headers {
            key: FlowKey { ether_type: ether_type::IPV4, ..key },
            vlan_tags: 0,
            l3: 14,
            l4: 34,
            end: 60,
            tcp: TcpFields::default(),
            kind: Kind::Plain,
            fragment: None,
        }
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
        for (src, dst, src_port, dst_port) in [
            (1, 2, 9, 8),
            (2, 1, 8, 9),
            (3, 3, 1, 2),
            (u128::MAX, 1 << 64, 5, 5),
            (MAPPED << 32 | 1, 7, 5, 5),
        ] {
            let made = key(TCP, src, dst, src_port, dst_port).unwrap();
            let expected = Direction { src, dst, src_port, dst_port };
            assert_eq!(made.key.direction(made.turned), expected);
        }
    }

    proptest! {
        #[test]
        fn the_short_way_leads_to_the_same_key(
            addresses: [u32; 3],
            picks in [0..3_usize, 0..3_usize],
            ports: [u16; 2],
            vlan in 0..4_096_u16,
            protocol in prop::sample::select(vec![TCP, UDP, SCTP, ICMP, 47]),
        ) {
            let [src, dst] = picks.map(|pick| MAPPED << 32 | u128::from(addresses[pick]));
            let [src_port, dst_port] = ports;
            let headers = of_ipv4(FlowKey { vlan, protocol, src, dst, src_port, dst_port, ..FlowKey::default() });
            let short = FrameKey::of_plain_frame(&headers);
            prop_assert_eq!(short.is_some(), has_ports(protocol));
            let whole = FrameKey::of_frame(&headers);
            prop_assert!(short.is_none() || short == whole);
            if let Some(FrameKey { key, turned }) = short {
                prop_assert_eq!(key.direction(turned), Direction { src, dst, src_port, dst_port });
                prop_assert_eq!((key.vlan(), key.protocol()), (vlan, protocol));
            }
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
    fn an_answer_has_the_ports_of_its_question() {
        let is_answered_by = |protocol, ports, answer| {
            assert_eq!(ports_of_answer(protocol, ports), answer, "{protocol}");
            assert_eq!(ports_of_answer(protocol, answer), ports, "{protocol}");
        };
        is_answered_by(TCP, [1000, 80], [80, 1000]);
        // As type and code it would ask.
        is_answered_by(UDP, [1000, 8 << 8], [8 << 8, 1000]);
        is_answered_by(ICMP, [77, 8 << 8], [77, 0]);
        is_answered_by(ICMP, [77, 13 << 8], [77, 14 << 8]);
        is_answered_by(ICMPV6, [77, 128 << 8], [77, 129 << 8]);
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
        assert_eq!((key.vlan(), key.protocol()), (5, UDP));
        assert_eq!(key.endpoints[1] & 0xff << SPARE, IPV6);
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
        let zero = [0; 3];
        let wide = |bit: usize| {
            let upper =
                std::array::from_fn(|at| zero[at] | u64::from(at == bit / 64) << (bit % 64));
            Key { upper: Some(upper), ..base }
        };
        hashes.extend((0..3 * 64).map(|bit| hasher.hash(&wide(bit))));
        for bit in 0..128 {
            let mut other = base;
            other.endpoints[bit / 64] ^= 1 << (bit % 64);
            hashes.push(hasher.hash(&other));
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
            buckets[(hasher.hash(&key) >> 26) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| (512..2048).contains(&n)), "{buckets:?}");
    }
}
