//! Terms: what keeps a rule from deciding whatever its [lanes](super::lanes) match.
//!
//! A rule may ask for a VLAN, an ethertype or TCP flags; it may be about one of the two permissions
//! alone, be under audit, or pass. Few policies have such rules in every pair, so what they ask stands
//! in a block of its own beside the lanes' block, of one cache line, and pairs without any are searched
//! as if there were none.
//!
//! What is asked is compared for eight lanes at once, as lanes are. What remains is said by four bits of
//! each lane, and [`judge`] goes through the lanes that match, in evaluation order, until they have
//! settled both permissions. A pair's lanes may stand in several strips: those of its own, and groups
//! that it shares. Each is searched for its next match when the last one was taken, and the earliest of
//! all strips' is met first; a strip whose first rule is later than that is not looked at yet.
//!
//! Rules under audit are judged in the same pass. Until the first of them matches, what would be if they
//! were in force is what is; from then on, both are followed.

use smallvec::{SmallVec, smallvec};
use wide::u16x8;

use super::lanes::{Block, Compared, Lane, Query};
use super::{Acl, Conversation, Judgement, Opening};
use crate::snapshot::{Conditions, Direction, FlagMatch, Rule, RuleAction, RuleId};
use crate::verdict::Cause;

/// The terms of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// 0 for any that the lane's word asks for.
    ether_type: u16,
    /// [`Terms::ANY_VLAN`] for any.
    vlan: u16,
    /// Mask and value.
    tcp_flags: u16,
    /// What it does where it matches.
    role: Role,
}

/// What a rule does where it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Role {
    /// It is about the source's permission to send.
    sends: bool,
    /// It is about the destination's permission to receive.
    receives: bool,
    audits: bool,
    passes: bool,
}

impl Terms {
    /// Those of a rule that has none.
    pub(super) const NONE: Self = Self {
        ether_type: 0,
        vlan: Self::ANY_VLAN,
        tcp_flags: 0,
        role: Role { sends: true, receives: true, audits: false, passes: false },
    };

    const ANY_VLAN: u16 = u16::MAX;

    /// Those of a rule; `None` if no frame meets them.
    pub(super) fn of(rule: &Rule) -> Option<Self> {
        let Conditions { ether_type, vlan, tcp_flags, .. } = rule.conditions;
        let FlagMatch { mask, value } = tcp_flags.unwrap_or(FlagMatch { mask: 0, value: 0 });
        if ether_type == Some(0) || vlan == Some(Self::ANY_VLAN) || value & !mask != 0 {
            return None;
        }
        Some(Self {
            ether_type: ether_type.unwrap_or(0),
            vlan: vlan.unwrap_or(Self::ANY_VLAN),
            tcp_flags: u16::from_be_bytes([mask, value]),
            role: Role {
                sends: rule.direction != Direction::Ingress,
                receives: rule.direction != Direction::Egress,
                audits: rule.audit,
                passes: rule.action == RuleAction::Pass,
            },
        })
    }
}

/// The terms of a block's lanes.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct TermBlock {
    ether_type: u16x8,
    vlan: u16x8,
    tcp_flags: u16x8,
    /// What each lane does, by one bit each, the first the lowest.
    sends: u8,
    receives: u8,
    audits: u8,
    passes: u8,
}

// With its block, three cache lines.
const _: () = assert!(size_of::<TermBlock>() == 64);

impl TermBlock {
    /// Of lanes without terms.
    pub(super) const NONE: Self = Self {
        ether_type: u16x8::ZERO,
        vlan: u16x8::MAX,
        tcp_flags: u16x8::ZERO,
        sends: u8::MAX,
        receives: u8::MAX,
        audits: 0,
        passes: 0,
    };

    /// The terms of a block of these lanes.
    pub(super) fn of(lanes: &[Lane]) -> Self {
        let terms = |at: usize| lanes.get(at).map_or(Terms::NONE, |lane| lane.terms);
        let field =
            |field: fn(&Terms) -> u16| u16x8::new(std::array::from_fn(|at| field(&terms(at))));
        let bits = |bit: fn(&Role) -> bool| {
            let lanes = (0u8..).zip(lanes);
            lanes.fold(0, |bits, (at, lane)| bits | u8::from(bit(&lane.terms.role)) << at)
        };
        Self {
            ether_type: field(|terms| terms.ether_type),
            vlan: field(|terms| terms.vlan),
            tcp_flags: field(|terms| terms.tcp_flags),
            sends: bits(|role| role.sends),
            receives: bits(|role| role.receives),
            audits: bits(|role| role.audits),
            passes: bits(|role| role.passes),
        }
    }

    /// The terms of one lane.
    pub(super) fn terms(&self, at: usize) -> Terms {
        Terms {
            ether_type: self.ether_type.as_array()[at],
            vlan: self.vlan.as_array()[at],
            tcp_flags: self.tcp_flags.as_array()[at],
            role: self.role(at),
        }
    }

    fn role(&self, at: usize) -> Role {
        let has = |bits: u8| bits >> at & 1 != 0;
        Role {
            sends: has(self.sends),
            receives: has(self.receives),
            audits: has(self.audits),
            passes: has(self.passes),
        }
    }

    /// Compares all lanes of `block`, which these terms are of, at once.
    fn compare(&self, block: &Block, query: &Query, asked: &Asked) -> Compared {
        let any_type = self.ether_type.simd_eq(u16x8::ZERO);
        let any_vlan = self.vlan.simd_eq(u16x8::MAX);
        let beside =
            (self.ether_type ^ asked.ether_type) & !any_type | (self.vlan ^ asked.vlan) & !any_vlan;
        // Flags are compared in the upper bytes, where the masks are.
        let flags = (self.tcp_flags << 8 ^ asked.tcp_flags) & self.tcp_flags;
        block.compare(query, beside, flags)
    }
}

/// What terms are asked of.
struct Asked {
    ether_type: u16x8,
    vlan: u16x8,
    /// In the upper bytes.
    tcp_flags: u16x8,
}

impl Asked {
    fn new(&Opening { ether_type, vlan, tcp_flags, .. }: &Opening) -> Self {
        Self {
            ether_type: u16x8::splat(ether_type),
            vlan: u16x8::splat(vlan),
            tcp_flags: u16x8::splat(u16::from(tcp_flags) << 8),
        }
    }
}

/// Blocks in evaluation order and, if any of their lanes has terms, those of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strip<'a> {
    pub(super) blocks: &'a [Block],
    /// As many as blocks, or none.
    pub(super) terms: &'a [TermBlock],
}

impl<'a> Strip<'a> {
    /// The lanes in use.
    pub(super) fn lanes(self) -> impl Iterator<Item = Lane> + 'a {
        let all = self.blocks.iter().enumerate();
        all.flat_map(move |(at, block)| {
            let terms = self.terms.get(at).unwrap_or(&TermBlock::NONE);
            let tests = (0..).zip(block.tests());
            tests.map(|(at, (test, rule))| Lane { test, terms: terms.terms(at), rule })
        })
    }

    fn next(&mut self) -> Option<(&'a Block, &'a TermBlock)> {
        let (block, blocks) = self.blocks.split_first()?;
        self.blocks = blocks;
        let terms = match self.terms.split_first() {
            Some((terms, rest)) => {
                self.terms = rest;
                terms
            }
            None => &TermBlock::NONE,
        };
        Some((block, terms))
    }
}

/// Judges by a pair's own strip and those of `groups`, which stand in the order of their first rules.
pub(super) fn judge(
    acl: &Acl,
    own: Strip<'_>,
    groups: &[u32],
    conversation: &Conversation,
) -> Judgement {
    let question = (Query::new(conversation), Asked::new(&conversation.opening));
    let mut groups = groups.iter().peekable();
    let mut state = State::default();
    let mut searches: SmallVec<[Search<'_>; 4]> = smallvec![Search::new(own)];
    searches[0].go_on(acl, &question, &state);
    let end = loop {
        let earliest = searches.iter_mut().min_by_key(|search| search.order());
        let order = earliest.as_ref().map_or(u64::MAX, |search| search.order());
        if let Some(&group) = groups.next_if(|&&group| acl.order_of_group(group) < order) {
            let mut search = Search::new(acl.groups.group(group).strip());
            search.go_on(acl, &question, &state);
            searches.push(search);
            continue;
        }
        let Some((search, found)) = earliest.and_then(|one| one.found.map(|found| (one, found)))
        else {
            break u64::MAX;
        };
        state.meet(acl, &found);
        if state.is_settled() {
            break order;
        }
        search.go_on(acl, &question, &state);
    };
    let is_reached = |rule: Option<u32>| rule.is_some_and(|rule| acl.order(rule) <= end);
    let (action, cause) = state.real.outcome();
    let audit = state.audited.map(|audited| audited.outcome());
    let audit =
        audit.filter(|(audited, _)| action == RuleAction::Allow && *audited != RuleAction::Allow);
    Judgement {
        action,
        cause,
        used_ports: searches.iter().any(|search| is_reached(search.ports)),
        used_opening: searches.iter().any(|search| is_reached(search.opening)),
        audit: audit.map(|(_, cause)| cause),
    }
}

/// One strip, searched up to its next match.
struct Search<'a> {
    /// What is left after the block that is searched.
    rest: Strip<'a>,
    block: Option<(&'a Block, &'a TermBlock)>,
    /// Lanes of that block that match and were not found yet.
    hits: u32,
    found: Option<Found>,
    /// The first rule whose ports were compared.
    ports: Option<u32>,
    /// The first whose source ports or TCP flags were.
    opening: Option<u32>,
}

/// A lane that matches.
#[derive(Clone, Copy)]
struct Found {
    rule: u32,
    order: u64,
    role: Role,
}

impl<'a> Search<'a> {
    const fn new(rest: Strip<'a>) -> Self {
        Self { rest, block: None, hits: 0, found: None, ports: None, opening: None }
    }

    /// Where what it found stands; behind everything if it found nothing.
    fn order(&self) -> u64 {
        self.found.map_or(u64::MAX, |found| found.order)
    }

    /// Finds the next match among lanes that are about what is not settled yet. Others do not matter,
    /// now or later.
    fn go_on(&mut self, acl: &Acl, (query, asked): &(Query, Asked), state: &State) {
        while self.hits == 0 {
            self.block = self.rest.next();
            let Some((block, terms)) = self.block else { break };
            let compared = terms.compare(block, query, asked);
            let open = state.open(terms);
            let first = |lanes: u32| {
                (lanes & open != 0).then(|| block.rule((lanes & open).trailing_zeros() as usize))
            };
            self.ports = self.ports.or_else(|| first(compared.ports));
            self.opening = self.opening.or_else(|| first(compared.openings));
            self.hits = compared.hits & open;
        }
        self.found = self.block.map(|(block, terms)| {
            let lane = self.hits.trailing_zeros() as usize;
            let rule = block.rule(lane);
            Found { rule, order: acl.order(rule), role: terms.role(lane) }
        });
        self.hits &= self.hits.wrapping_sub(1);
    }
}

/// How far a conversation is judged.
#[derive(Clone, Copy, Default)]
struct State {
    real: Permits,
    /// With rules under audit in force, once one of them has matched. Until then they are as `real`.
    audited: Option<Permits>,
}

/// Both permissions.
#[derive(Clone, Copy, Default)]
struct Permits {
    send: Permit,
    receive: Permit,
}

/// One permission.
#[derive(Clone, Copy, Default)]
struct Permit {
    /// The tier that a `pass` left.
    left: Option<u8>,
    decided: Option<(RuleAction, RuleId)>,
}

impl State {
    fn meet(&mut self, acl: &Acl, &Found { rule, role, .. }: &Found) {
        let rank = acl.ranks[rule as usize];
        let meet = |permits: &mut Permits| {
            for (is_about, permit) in
                [(role.sends, &mut permits.send), (role.receives, &mut permits.receive)]
            {
                if !is_about || permit.decided.is_some() || permit.left == Some(rank.tier) {
                    continue;
                }
                match rank.action {
                    RuleAction::Pass => permit.left = Some(rank.tier),
                    action => permit.decided = Some((action, RuleId(rule))),
                }
            }
        };
        if role.audits {
            meet(self.audited.get_or_insert(self.real));
        } else {
            meet(&mut self.real);
            self.audited.as_mut().map(meet);
        }
    }

    /// Whether no rule that is still to come matters.
    fn is_settled(&self) -> bool {
        let is_refused = self.real.is_settled() && self.real.outcome().0 != RuleAction::Allow;
        self.real.is_settled() && (is_refused || self.audited.is_none_or(|one| one.is_settled()))
    }

    /// The lanes, by one bit each, that are about a permission which is not decided.
    fn open(&self, terms: &TermBlock) -> u32 {
        let is_open = |permit: fn(&Permits) -> &Permit| {
            let is_open = |permits: &Permits| permit(permits).decided.is_none();
            is_open(&self.real) || self.audited.as_ref().is_some_and(is_open)
        };
        let sends = if is_open(|permits| &permits.send) { terms.sends } else { 0 };
        let receives = if is_open(|permits| &permits.receive) { terms.receives } else { 0 };
        u32::from(sends | receives)
    }
}

impl Permits {
    /// Whether its outcome is known: the permission to send comes first.
    fn is_settled(&self) -> bool {
        match self.send.decided {
            None => false,
            Some((RuleAction::Allow, _)) => self.receive.decided.is_some(),
            Some(_) => true,
        }
    }

    fn outcome(&self) -> (RuleAction, Cause) {
        let (send, receive) = (self.send.outcome(), self.receive.outcome());
        if send.0 == RuleAction::Allow && receive.0 != RuleAction::Allow { receive } else { send }
    }
}

impl Permit {
    /// What was decided; where nothing was, the default.
    fn outcome(&self) -> (RuleAction, Cause) {
        let decided = self.decided.map(|(action, rule)| (action, Cause::Rule(rule)));
        decided.unwrap_or((RuleAction::Deny, Cause::Default))
    }
}
