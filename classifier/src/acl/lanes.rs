//! Rules side by side: eight per block, each field in a vector of its own.
//!
//! A lane is one service of one rule, as ranges: a port range is compared as it is, never cut into
//! prefixes. What a rule asks of protocol and kind of frame is one word with a mask. So a block is
//! six vectors of eight 16-bit integers and the rules' numbers, two cache lines in all, and comparing
//! it takes the same few instructions whatever it holds; nothing is branched on until a strip of
//! blocks is done. The loops are written for the compiler to vectorise with what every x86-64 has.
//!
//! What few rules ask for, and whatever else keeps a rule from deciding all that it matches, are its
//! [`terms`](super::terms). They stand in a block of their own beside this one, where there are any.
//!
//! Lanes stand in evaluation order. Of one rule's lanes, those that name ports come first: so the
//! rule's ports count as consulted if its turn came, whichever of its services matched.

use smallvec::SmallVec;
use wide::u16x8;

use super::Conversation;
use super::reach::range_of;
use super::terms::Terms;
use crate::snapshot::{Conditions, Rule, Service, Services};
use crate::wire::ethernet::ether_type;
use crate::wire::protocol;

/// Lanes of a block.
pub(super) const LANES: usize = 8;

/// Of a lane's word: the protocol is in the low byte.
const PROTOCOL: u16 = 0xff;
/// The frame is IPv4 or IPv6.
const IS_IP: u16 = 1 << 8;
/// Its protocol has ports.
const HAS_PORTS: u16 = 1 << 9;
/// Set in no query: what asks for it never matches.
const NEVER: u16 = 1 << 10;
/// Mark of a lane that names ports or types; not compared. The upper bit but one.
const NAMES_PORTS: u16 = 1 << 14;
/// Mark of a lane whose rule asks for source ports or TCP flags; not compared. The upper bit.
const OPENING: u16 = 1 << 15;

fn mark(is_set: bool, bit: u16) -> u16 {
    if is_set { bit } else { 0 }
}

/// What a conversation is compared as.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query {
    word: u16x8,
    dst_port: u16x8,
    src_port: u16x8,
}

impl Query {
    pub(super) fn new(conversation: &Conversation) -> Self {
        let Conversation { protocol, dst_port, opening, .. } = conversation;
        let has_ports = matches!(*protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
        let kind = mark(is_ip(opening.ether_type), IS_IP) | mark(has_ports, HAS_PORTS);
        Self {
            word: u16x8::splat(u16::from(*protocol) | kind),
            dst_port: u16x8::splat(*dst_port),
            src_port: u16x8::splat(opening.src_port),
        }
    }
}

/// One service of one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) test: Test,
    pub(super) terms: Terms,
    /// The rule's number.
    pub(super) rule: u32,
}

impl Lane {
    /// Whether it decides whatever of IP is asked.
    pub(super) fn is_everything(&self) -> bool {
        self.terms == Terms::NONE && self.test.is_everything()
    }

    /// Whether it decides whatever `other` matches.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let is_wider = self.test == other.test || self.test.is_everything() && other.test.asks_ip();
        self.terms == Terms::NONE && is_wider
    }
}

/// What a lane asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Test {
    word: u16,
    /// Which bits of `word` the query must have too.
    care: u16,
    dst_first: u16,
    /// Ports after the first that match too.
    dst_span: u16,
    src_first: u16,
    src_span: u16,
}

impl Test {
    const NOTHING: Self =
        Self { word: NEVER, care: NEVER, dst_first: 0, dst_span: 0, src_first: 0, src_span: 0 };

    /// Whether every IP frame matches.
    fn is_everything(&self) -> bool {
        self.care == IS_IP && (self.dst_span, self.src_span) == (u16::MAX, u16::MAX)
    }

    /// Whether no frame but an IP one matches.
    const fn asks_ip(&self) -> bool {
        self.care & IS_IP != 0
    }

    /// What a rule asks for by one of its services; by any, if `None`.
    fn new(service: Option<&Service>, conditions: &Conditions) -> Self {
        let &Conditions { ether_type, src_ports, tcp_flags, .. } = conditions;
        let (protocol, names_ports, ports) = match service {
            None => (None, false, 0..=u16::MAX),
            Some(service) => {
                let (protocol, ports) = range_of(service);
                (Some(protocol), !matches!(service, Service::Protocol(_)), ports)
            }
        };
        let protocol =
            if tcp_flags.is_some() { protocol.or(Some(protocol::TCP)) } else { protocol };
        let (src_first, src_last) = src_ports.unwrap_or((0, u16::MAX));
        let is_never = ports.is_empty()
            || src_first > src_last
            || tcp_flags.is_some() && protocol != Some(protocol::TCP);
        if is_never {
            return Self::NOTHING;
        }
        let asks_opening = src_ports.is_some() || tcp_flags.is_some();
        let marks = mark(names_ports, NAMES_PORTS) | mark(asks_opening, OPENING);
        let asks_ip = ether_type.is_none_or(is_ip);
        let kind = mark(asks_ip, IS_IP) | mark(src_ports.is_some(), HAS_PORTS);
        Self {
            word: marks | kind | protocol.map_or(0, u16::from),
            care: kind | protocol.map_or(0, |_| PROTOCOL),
            dst_first: *ports.start(),
            dst_span: ports.end() - ports.start(),
            src_first,
            src_span: src_last - src_first,
        }
    }

    const fn names_ports(&self) -> bool {
        self.word & NAMES_PORTS != 0
    }
}

const fn is_ip(ether_type: u16) -> bool {
    matches!(ether_type, ether_type::IPV4 | ether_type::IPV6)
}

/// The lanes of a rule with this number; one at least, which may never match.
pub(super) fn lanes(rule: &Rule, number: u32) -> SmallVec<[Lane; 2]> {
    let never = Lane { test: Test::NOTHING, terms: Terms::NONE, rule: number };
    let Some(terms) = Terms::of(rule) else { return SmallVec::from_iter([never]) };
    let lane = |service: Option<&Service>| Lane {
        test: Test::new(service, &rule.conditions),
        terms,
        rule: number,
    };
    let mut lanes: SmallVec<[Lane; 2]> = match &rule.services {
        Services::Any => SmallVec::from_iter([lane(None)]),
        Services::Only(list) if list.is_empty() => SmallVec::from_iter([never]),
        Services::Only(list) => list.iter().map(|service| lane(Some(service))).collect(),
    };
    lanes.sort_by_key(|lane| !lane.test.names_ports());
    lanes
}

/// Eight lanes, in evaluation order; those that are not in use come last.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Block {
    word: u16x8,
    care: u16x8,
    dst_first: u16x8,
    dst_span: u16x8,
    src_first: u16x8,
    src_span: u16x8,
    rule: [u32; LANES],
}

impl Block {
    /// The number of a lane that is not in use.
    const UNUSED: u32 = u32::MAX;

    /// The lanes, packed. At most [`LANES`].
    pub(super) fn of(lanes: &[Lane]) -> Self {
        let mut rule = [Self::UNUSED; LANES];
        for (number, lane) in rule.iter_mut().zip(lanes) {
            *number = lane.rule;
        }
        let field = |field: fn(&Test) -> u16| {
            let of_lane =
                |at: usize| field(lanes.get(at).map_or(&Test::NOTHING, |lane| &lane.test));
            u16x8::new(std::array::from_fn(of_lane))
        };
        Self {
            word: field(|test| test.word),
            care: field(|test| test.care),
            dst_first: field(|test| test.dst_first),
            dst_span: field(|test| test.dst_span),
            src_first: field(|test| test.src_first),
            src_span: field(|test| test.src_span),
            rule,
        }
    }

    /// Lanes in use.
    pub(super) fn len(&self) -> usize {
        self.rule.iter().filter(|&&rule| rule != Self::UNUSED).count()
    }

    /// The number of a lane's rule.
    pub(super) fn rule(&self, at: usize) -> u32 {
        self.rule[at]
    }

    /// What each lane in use asks for, and its rule's number.
    pub(super) fn tests(&self) -> impl Iterator<Item = (Test, u32)> + '_ {
        (0..self.len()).map(|at| (self.test(at), self.rule[at]))
    }

    fn test(&self, at: usize) -> Test {
        let of = |field: &u16x8| field.as_array()[at];
        Test {
            word: of(&self.word),
            care: of(&self.care),
            dst_first: of(&self.dst_first),
            dst_span: of(&self.dst_span),
            src_first: of(&self.src_first),
            src_span: of(&self.src_span),
        }
    }

    /// Compares all lanes at once. How much a frame is beside a lane's terms is 0 where there are none:
    /// in what every mask covers, and in what only its opening says.
    #[inline]
    pub(super) fn compare(&self, query: &Query, beside: u16x8, beside_opening: u16x8) -> Compared {
        // How much a field is beside what is asked for; 0 if it is that.
        let word = (self.word ^ query.word) & self.care | beside;
        let src = (query.src_port - self.src_first).saturating_sub(self.src_span) | beside_opening;
        let dst = (query.dst_port - self.dst_first).saturating_sub(self.dst_span);
        let reached = (word | src).simd_eq(u16x8::ZERO);
        // A vector's mask is made of the upper bits. Doubling a word moves its second mark there.
        let names_ports = reached & (self.word + self.word);
        Compared {
            hits: (word | src | dst).simd_eq(u16x8::ZERO).to_bitmask(),
            ports: names_ports.to_bitmask(),
            openings: (word.simd_eq(u16x8::ZERO) & self.word).to_bitmask(),
        }
    }
}

/// Lanes by one bit each, the first the lowest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compared {
    /// Those that match.
    pub(super) hits: u32,
    /// Those whose ports were compared.
    pub(super) ports: u32,
    /// Those whose source ports or TCP flags were compared.
    pub(super) openings: u32,
}

impl Compared {
    /// The lanes up to the first that matches; all if none does.
    #[inline]
    const fn reached(&self) -> u32 {
        self.hits ^ self.hits.wrapping_sub(1)
    }
}

/// What one search found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Met {
    /// The number of the first rule that matches.
    pub(super) hit: Option<u32>,
    /// Whether ports were compared until then.
    pub(super) ports: bool,
    /// Whether source ports were.
    pub(super) opening: bool,
}

/// Searches blocks in order, of lanes without terms.
#[inline]
pub(super) fn search(blocks: &[Block], query: &Query) -> Met {
    let (mut ports, mut openings) = (0, 0);
    for block in blocks {
        let compared = block.compare(query, u16x8::ZERO, u16x8::ZERO);
        ports |= compared.ports & compared.reached();
        openings |= compared.openings & compared.reached();
        if compared.hits != 0 {
            let hit = Some(block.rule[compared.hits.trailing_zeros() as usize % LANES]);
            return Met { hit, ports: ports != 0, opening: openings != 0 };
        }
    }
    Met { hit: None, ports: ports != 0, opening: openings != 0 }
}

/// Rules that were met first in one search, by number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Firsts {
    /// The first that matches.
    pub(super) hit: Option<u32>,
    /// The first, not after that, whose ports were compared.
    pub(super) ports: Option<u32>,
    /// The first, not after that, whose source ports were.
    pub(super) opening: Option<u32>,
}

/// As [`search`], where other lists may have earlier rules.
pub(super) fn search_firsts(blocks: &[Block], query: &Query) -> Firsts {
    let mut firsts = Firsts::default();
    for block in blocks {
        let compared = block.compare(query, u16x8::ZERO, u16x8::ZERO);
        let first =
            |lanes: u32| (lanes != 0).then(|| block.rule[lanes.trailing_zeros() as usize % LANES]);
        let Compared { hits, ports, openings } = compared;
        firsts.ports = firsts.ports.or(first(ports & compared.reached()));
        firsts.opening = firsts.opening.or(first(openings & compared.reached()));
        firsts.hit = first(hits);
        if hits != 0 {
            break;
        }
    }
    firsts
}
