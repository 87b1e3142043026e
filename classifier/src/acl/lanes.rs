//! Rules side by side: eight per block, each field in a vector of its own.
//!
//! A lane is one service of one rule, as ranges: a port range is compared as it is, never cut into
//! prefixes. What a rule asks of protocol and kind of frame is one word with a mask. So a block is
//! six vectors of eight 16-bit integers and the rules' numbers, two cache lines in all, and comparing
//! it takes the same few instructions whatever it holds; nothing is branched on until a strip of
//! blocks is done. The loops are written for the compiler to vectorise with what every x86-64 has.
//!
//! Lanes stand in evaluation order. Of one rule's lanes, those that name ports come first: so the
//! rule's ports count as consulted if its turn came, whichever of its services matched.

use smallvec::SmallVec;
use wide::u16x8;

use super::Conversation;
use super::reach::range_of;
use crate::snapshot::{Conditions, Direction, Rule, RuleAction, Service, Services};
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
/// Mark of a lane whose rule asks for source ports; not compared. The upper bit.
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
    /// All ones if the frame is IP.
    is_ip: u16x8,
}

impl Query {
    pub(super) fn new(conversation: &Conversation) -> Self {
        let Conversation { protocol, dst_port, opening, .. } = conversation;
        let is_ip = matches!(opening.ether_type, ether_type::IPV4 | ether_type::IPV6);
        let has_ports = matches!(*protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
        let kind = mark(is_ip, IS_IP) | mark(has_ports, HAS_PORTS);
        Self {
            word: u16x8::splat(u16::from(*protocol) | kind),
            dst_port: u16x8::splat(*dst_port),
            src_port: u16x8::splat(opening.src_port),
            is_ip: u16x8::splat(mark(is_ip, u16::MAX)),
        }
    }
}

/// One service of one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) test: Test,
    /// The rule's number.
    pub(super) rule: u32,
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

    /// Whether every frame that any lane could match matches this one.
    pub(super) fn is_everything(&self) -> bool {
        self.care == IS_IP && (self.dst_span, self.src_span) == (u16::MAX, u16::MAX)
    }

    fn new(service: Option<&Service>, src_ports: Option<(u16, u16)>) -> Self {
        let (protocol, names_ports, (first, last)) = match service {
            None => (None, false, (0, u16::MAX)),
            Some(service) => {
                let (protocol, ports) = range_of(service);
                let names_ports = !matches!(service, Service::Protocol(_));
                (Some(protocol), names_ports, (*ports.start(), *ports.end()))
            }
        };
        let (src_first, src_last) = src_ports.unwrap_or((0, u16::MAX));
        let has_src = src_ports.is_some();
        let marks = mark(names_ports, NAMES_PORTS) | mark(has_src, OPENING);
        let kind = IS_IP | mark(has_src, HAS_PORTS);
        Self {
            word: marks | kind | protocol.map_or(0, u16::from),
            care: kind | protocol.map_or(0, |_| PROTOCOL),
            dst_first: first,
            dst_span: last.wrapping_sub(first),
            src_first,
            src_span: src_last.wrapping_sub(src_first),
        }
    }

    const fn names_ports(&self) -> bool {
        self.word & NAMES_PORTS != 0
    }
}

/// Whether lanes can say all that the rule says: it decides whatever it matches, for both
/// permissions, and asks for nothing but tags, services and source ports.
pub(super) fn is_plain(rule: &Rule) -> bool {
    let Conditions { ether_type, vlan, src_ports, tcp_flags } = rule.conditions;
    let asks_no_more = ether_type.is_none() && vlan.is_none() && tcp_flags.is_none();
    // An empty range matches nothing, but was compared. Only a walk tells that.
    let is_range = |(first, last): (u16, u16)| first <= last;
    let has_ranges = src_ports.is_none_or(is_range)
        && services(rule).iter().all(|service| {
            let ports = range_of(service).1;
            ports.start() <= ports.end()
        });
    let asks_for_some = !matches!(&rule.services, Services::Only(list) if list.is_empty());
    let decides = rule.action != RuleAction::Pass && !rule.audit;
    decides && rule.direction == Direction::Both && asks_no_more && asks_for_some && has_ranges
}

/// The lanes of a rule with this number. One that is not plain has a lane that never matches.
pub(super) fn lanes(rule: &Rule, number: u32) -> SmallVec<[Lane; 2]> {
    let lane = |test| Lane { test, rule: number };
    if !is_plain(rule) {
        return SmallVec::from_iter([lane(Test::NOTHING)]);
    }
    let src_ports = rule.conditions.src_ports;
    let mut lanes: SmallVec<[Lane; 2]> = match &rule.services {
        Services::Any => SmallVec::from_iter([lane(Test::new(None, src_ports))]),
        Services::Only(list) => {
            list.iter().map(|service| lane(Test::new(Some(service), src_ports))).collect()
        }
    };
    lanes.sort_by_key(|lane| !lane.test.names_ports());
    lanes
}

fn services(rule: &Rule) -> &[Service] {
    match &rule.services {
        Services::Any => &[],
        Services::Only(list) => list,
    }
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

    /// The lanes in use.
    pub(super) fn lanes(&self) -> impl Iterator<Item = Lane> + '_ {
        (0..self.len()).map(|at| self.lane(at))
    }

    fn lane(&self, at: usize) -> Lane {
        let of = |field: &u16x8| field.as_array()[at];
        let test = Test {
            word: of(&self.word),
            care: of(&self.care),
            dst_first: of(&self.dst_first),
            dst_span: of(&self.dst_span),
            src_first: of(&self.src_first),
            src_span: of(&self.src_span),
        };
        Lane { test, rule: self.rule[at] }
    }

    /// Compares all lanes at once.
    #[inline]
    fn compare(&self, query: &Query) -> Compared {
        // How much a field is beside what is asked for; 0 if it is that.
        let word = (self.word ^ query.word) & self.care;
        let src = (query.src_port - self.src_first).saturating_sub(self.src_span);
        let dst = (query.dst_port - self.dst_first).saturating_sub(self.dst_span);
        let reached = (word | src).simd_eq(u16x8::ZERO);
        // A vector's mask is made of the upper bits. Doubling a word moves its second mark there.
        let names_ports = reached & (self.word + self.word);
        Compared {
            hits: (word | src | dst).simd_eq(u16x8::ZERO).to_bitmask(),
            ports: names_ports.to_bitmask(),
            // Every lane asks for IP. Of another frame, none consults more than that.
            openings: (self.word & query.is_ip).to_bitmask(),
        }
    }
}

/// Lanes by one bit each, the first the lowest.
#[derive(Clone, Copy, Debug)]
struct Compared {
    /// Those that match.
    hits: u32,
    /// Those whose ports were compared.
    ports: u32,
    /// Those whose rule asks for source ports.
    openings: u32,
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
    /// Whether a rule until then asks for source ports.
    pub(super) opening: bool,
}

/// Searches blocks in order.
#[inline]
pub(super) fn search(blocks: &[Block], query: &Query) -> Met {
    let (mut ports, mut openings) = (0, 0);
    for block in blocks {
        let compared = block.compare(query);
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
    /// The first, not after that, that asks for source ports.
    pub(super) opening: Option<u32>,
}

/// As [`search`], where other lists may have earlier rules.
pub(super) fn search_firsts(blocks: &[Block], query: &Query) -> Firsts {
    let mut firsts = Firsts::default();
    for block in blocks {
        let compared = block.compare(query);
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
