//! The ACL: (source tag, destination tag, service) to an action.
//!
//! # Structure
//!
//! Five steps lead from a rule to a verdict; each has a file.
//!
//! 1. [`selectors`]: each distinct set of tags that rules name on one side is a selector, and each
//!    distinct list of selectors that some tag is in is a class. Rules tell tags of one class not
//!    apart.
//! 2. [`groups`]: the rules that name one selector as source and one as destination are a group.
//! 3. [`memo`]: for a pair of classes, the groups that speak of it are merged into a program when
//!    the pair is first asked for.
//! 4. [`lanes`]: a program is a list of rules in evaluation order, eight side by side, and judging is
//!    a search for the first that matches.
//! 5. [`terms`]: where a rule asks for a VLAN, ethertype or TCP flags, is about one permission alone, is
//!    under audit or passes, that stands beside its lanes, and the search goes on until the matches have
//!    settled both permissions.
//!
//! A verdict costs two array reads (tags to classes), one probe (classes to program) and one search.
//! [`Acl::judge_batch`] takes each of these steps for up to 64 conversations before the next step,
//! so what one waits for from memory the others wait for at the same time.
//!
//! # Why a program says what the rules say
//!
//! A rule matches a pair of tags iff its sets have both: iff both of its selectors are in the pair's
//! classes. It stands in the group of its two selectors and in no other. So the groups found for a
//! pair hold exactly the rules that name both tags, each once. Merging sorts them by evaluation order
//! and leaves out a lane only if an earlier one, without terms and of the same tier, matches all that it
//! does: whatever has come that far is decided there, or has left that tier by a `pass`. So the lanes
//! that match are, in evaluation order, those rules that match, but for some that come too late. If no
//! lane has terms, each decides whatever it matches, so the first that matches tells the rule. If some
//! have, matches are taken one by one and each does what its rule does. Tests compare both with a walk
//! over all rules that name both tags.
//!
//! # What a miss costs
//!
//! Let a source's class have *s* selectors, a destination's *d*, and *g* be the groups there are.
//! Finding a pair's groups takes at most min(*s·d*, *g*) steps. With prefixes as tags, *s* and *d* are
//! depths of nesting, about 5. The first time, the groups are searched where they are, first rule
//! first. A pair that is asked for again has up to 64 lanes copied and sorted; of a pair with more,
//! only groups of less than 16 lanes are. So who can choose addresses, and with them pairs, makes us
//! do little for each, and the memo is bounded in pairs and in bytes.
//!
//! # What a change costs
//!
//! [`Acl::insert`] and [`Acl::remove`] read the rule's sets to find its selectors, and touch one block
//! of one group. A set that no rule named before also moves each of its tags to another class. What
//! such changes leave behind is tidied up once it is more than half. Other
//! pairs' programs stay as they are: the ACL remembers the last changes' selectors, and a [`Memo`]
//! finds a pair out anew only if a change since was about both of its classes.
//!
//! # Judging
//!
//! A conversation needs two permissions, the source's to send (egress) and the destination's to
//! receive (ingress). Each is judged by walking the pair's rules in order, those of the other
//! direction left out: the first whose service matches decides; `pass` leaves its tier; none means
//! deny. The conversation is allowed iff both permissions are given; if not, the egress judgement is
//! the cause if it refused, else the ingress one.
//!
//! Rules under audit decide nothing. The walk is repeated with them in force, and if that refuses
//! what was allowed, the judgement says so.

mod explain;
mod groups;
mod lanes;
mod memo;
mod reach;
mod selectors;
mod shadow;
mod terms;

use std::collections::{BTreeMap, VecDeque};

use crate::key::FlowKey;
use crate::snapshot::{
    Conditions, Direction, Rule, RuleAction, RuleId, Service, Services, Snapshot, Tag,
};
use crate::verdict::{Cause, DropReason};
use crate::wire::ethernet::ether_type;
use crate::wire::protocol;

pub use explain::{Considered, Outcome};
pub use memo::Memo;
pub use reach::{Permission, Protocols};

use groups::Groups;
use lanes::{Block, Firsts, Met, Query, search, search_firsts};
use selectors::Selectors;

/// What the ACL says of one conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Allow, deny or reject; never pass.
    pub action: RuleAction,
    /// The rule that decided, or the default.
    pub cause: Cause,
    /// True if ports or ICMP type took part: some rule for this pair and protocol names them.
    pub used_ports: bool,
    /// True if source port or TCP flags took part, which no [mask](crate::mask) covers.
    pub used_opening: bool,
    /// Set if it is allowed, but would not be if the rules under audit were in force: what would
    /// refuse it then.
    pub audit: Option<Cause>,
}

impl Judgement {
    /// The reason to drop, if it is not allowed.
    pub const fn refusal(&self) -> Option<DropReason> {
        match (self.action, self.cause) {
            (RuleAction::Allow, _) => None,
            (RuleAction::Reject, _) => Some(DropReason::Rejected),
            (_, Cause::Rule(_)) => Some(DropReason::Denied),
            (_, Cause::Default | Cause::Switch) => Some(DropReason::DefaultDeny),
        }
    }
}

/// One conversation, as rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Source tag.
    pub from: Tag,
    /// Destination tag.
    pub to: Tag,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port, or ICMP `type << 8 | code`.
    pub dst_port: u16,
    /// What [conditions](Conditions) are asked of.
    pub opening: Opening,
}

/// The rest of what rules may ask of a conversation's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Ethertype.
    pub ether_type: u16,
    /// The VLAN that the frame belongs to.
    pub vlan: u16,
    /// Source port; 0 if the protocol has none.
    pub src_port: u16,
    /// TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
}

impl Opening {
    /// The first frame of a common client: IPv4 without VLAN, an ephemeral port (RFC 6335 §6), SYN.
    pub const COMMON: Self =
        Self { ether_type: ether_type::IPV4, vlan: 0, src_port: 49_152, tcp_flags: 2 };

    /// That of a frame with this key.
    pub const fn of(key: &FlowKey) -> Self {
        Self {
            ether_type: key.ether_type,
            vlan: key.vlan,
            src_port: key.src_port,
            tcp_flags: key.tcp_flags,
        }
    }
}

/// A snapshot's rules, compiled. Rules can be added and removed one at a time.
#[derive(Clone, Debug)]
pub struct Acl {
    /// By number. What was removed stays until its number is given again.
    rules: Vec<CompiledRule>,
    /// The same rules' outcomes, which every judgement reads.
    ranks: Vec<Rank>,
    /// Numbers of rules that were removed.
    free: Vec<u32>,
    in_order: BTreeMap<u64, RuleId>,
    from: Selectors,
    to: Selectors,
    groups: Groups,
    /// Rules under audit.
    audits: usize,
    /// Counts changes.
    version: u32,
    /// The selectors, source's and destination's, that the last changes were about.
    changes: VecDeque<(u32, u32)>,
}

#[derive(Clone, Debug)]
struct CompiledRule {
    tier: u8,
    action: RuleAction,
    direction: Direction,
    audit: bool,
    conditions: Conditions,
    services: Services,
    /// Selectors.
    from: u32,
    to: u32,
}

/// Where a rule stands and what it decides.
#[derive(Clone, Copy, Debug)]
struct Rank {
    /// Rules are evaluated in ascending order.
    order: u64,
    action: RuleAction,
    tier: u8,
}

/// Which of a conversation's permissions is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permit {
    /// The source's, to send.
    Send,
    /// The destination's, to receive.
    Receive,
}

/// Which fields took part in a judgement.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    ports: bool,
    opening: bool,
}

impl Conditions {
    /// Whether a frame of `protocol` meets them.
    fn hold(&self, protocol: u8, opening: &Opening) -> bool {
        let is_ip = matches!(opening.ether_type, ether_type::IPV4 | ether_type::IPV6);
        let has_ports = matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
        self.ether_type.map_or(is_ip, |named| named == opening.ether_type)
            && self.vlan.is_none_or(|vlan| vlan == opening.vlan)
            && self
                .src_ports
                .is_none_or(|(first, last)| has_ports && (first..=last).contains(&opening.src_port))
            && self.tcp_flags.is_none_or(|flags| {
                protocol == protocol::TCP && opening.tcp_flags & flags.mask == flags.value
            })
    }
}

impl CompiledRule {
    fn is_about(&self, permit: Permit) -> bool {
        match self.direction {
            Direction::Both => true,
            Direction::Egress => permit == Permit::Send,
            Direction::Ingress => permit == Permit::Receive,
        }
    }
}

impl Acl {
    /// Changes that are remembered: a [`Memo`] that missed more is found out anew.
    const MAX_CHANGES: usize = 64;
    /// Conversations that are judged at once in [`Acl::judge_batch`].
    const BATCH: usize = 64;

    /// Compiles the rules of a snapshot whose invariants hold.
    pub fn new(snapshot: &Snapshot) -> Self {
        let rules = &snapshot.rules;
        let (from, from_of) = Selectors::new(rules.iter().map(|rule| &rule.from));
        let (to, to_of) = Selectors::new(rules.iter().map(|rule| &rule.to));
        let order = |number: u32| u64::from(number + 1) << 32;
        let mut acl = Self {
            rules: Vec::with_capacity(rules.len()),
            ranks: Vec::with_capacity(rules.len()),
            free: Vec::new(),
            in_order: (0..rules.len() as u32).map(|id| (order(id), RuleId(id))).collect(),
            from,
            to,
            groups: Groups::default(),
            audits: 0,
            version: 0,
            changes: VecDeque::new(),
        };
        for ((number, rule), pair) in (0..).zip(rules).zip(from_of.into_iter().zip(to_of)) {
            acl.put(number, order(number), rule, pair);
        }
        acl
    }

    /// Adds a rule to be evaluated just before another, or last if there is no such rule. Tiers must
    /// stay together.
    ///
    /// Returns its number, by which judgements name it. Cost: its sets of tags are read; a set that
    /// no rule named before also gives each of its tags another class.
    pub fn insert(&mut self, rule: &Rule, before: Option<RuleId>) -> RuleId {
        let order = self.order_before(before);
        let number = self.free.pop().unwrap_or(self.rules.len() as u32);
        self.in_order.insert(order, RuleId(number));
        let pair = (self.from.add(&rule.from), self.to.add(&rule.to));
        self.put(number, order, rule, pair);
        self.note_change(pair);
        self.tidy();
        RuleId(number)
    }

    /// Removes a rule; false if there is none of this number.
    pub fn remove(&mut self, RuleId(number): RuleId) -> bool {
        if !self.has(RuleId(number)) {
            return false;
        }
        let order = self.order(number);
        self.in_order.remove(&order);
        let rule = &self.rules[number as usize];
        let (pair, ranks) = ((rule.from, rule.to), &self.ranks);
        self.audits -= usize::from(rule.audit);
        let is_before = |other: u32| ranks[other as usize].order < order;
        self.groups.remove(pair, number, is_before);
        self.free.push(number);
        self.from.release(pair.0);
        self.to.release(pair.1);
        self.note_change(pair);
        self.tidy();
        true
    }

    /// Forgets selectors and classes that changes have left without use, once there are more of them
    /// than of others: so a change costs no more by it, on average, and rules that come and go take no
    /// more memory than those that are there.
    fn tidy(&mut self) {
        if !self.from.is_untidy() && !self.to.is_untidy() {
            return;
        }
        let (from, to) = (self.from.tidy(), self.to.tidy());
        for &RuleId(number) in self.in_order.values() {
            let rule = &mut self.rules[number as usize];
            (rule.from, rule.to) = (from[rule.from as usize], to[rule.to as usize]);
        }
        self.groups.renumber(&from, &to);
        // Whatever a memo knows, it knows by the numbers of before.
        self.changes.clear();
    }

    /// Whether there is a rule of this number.
    fn has(&self, rule: RuleId) -> bool {
        let rank = self.ranks.get(rule.0 as usize);
        rank.is_some_and(|rank| self.in_order.get(&rank.order) == Some(&rule))
    }

    fn put(&mut self, number: u32, order: u64, rule: &Rule, (from, to): (u32, u32)) {
        let compiled = CompiledRule {
            tier: rule.tier,
            action: rule.action,
            direction: rule.direction,
            audit: rule.audit,
            conditions: rule.conditions,
            services: rule.services.clone(),
            from,
            to,
        };
        let rank = Rank { order, action: rule.action, tier: rule.tier };
        self.audits += usize::from(rule.audit);
        if self.rules.len() == number as usize {
            self.rules.push(compiled);
            self.ranks.push(rank);
        } else {
            self.rules[number as usize] = compiled;
            self.ranks[number as usize] = rank;
        }
        let ranks = &self.ranks;
        let stays_before = |other: u32| ranks[other as usize].order <= order;
        self.groups.insert((from, to), &lanes::lanes(rule, number), stays_before);
    }

    /// A free place in the order, before a rule or last.
    fn order_before(&mut self, before: Option<RuleId>) -> u64 {
        let before = before.filter(|&rule| self.has(rule));
        for _ in 0..2 {
            let last = self.in_order.last_key_value().map_or(0, |(&order, _)| order);
            let (low, high) = match before {
                Some(RuleId(number)) => {
                    let high = self.order(number);
                    let low = self.in_order.range(..high).next_back().map_or(0, |(&low, _)| low);
                    (low, high)
                }
                None => (last, last.saturating_add(1 << 33)),
            };
            if high - low >= 2 {
                return low + (high - low) / 2;
            }
            self.spread();
        }
        unreachable!("rules are numbered by 32 bits, so there is room between 64-bit places")
    }

    /// Gives all rules places far apart.
    fn spread(&mut self) {
        let rules = std::mem::take(&mut self.in_order);
        let gap = u64::MAX / (rules.len() as u64 + 2);
        let places = rules.into_values().zip(1..).map(|(rule, place)| (place * gap, rule));
        self.in_order = places.collect();
        for (&order, &RuleId(number)) in &self.in_order {
            self.ranks[number as usize].order = order;
        }
    }

    fn note_change(&mut self, pair: (u32, u32)) {
        self.version = self.version.wrapping_add(1);
        self.changes.push_back(pair);
        if self.changes.len() > Self::MAX_CHANGES {
            self.changes.pop_front();
        }
    }

    /// Whether what was true of a pair of classes at `version` may not be any more.
    fn has_changed(&self, version: u32, from: u32, to: u32) -> bool {
        let missed = self.version.wrapping_sub(version) as usize;
        let (from, to) = (self.from.in_class(from), self.to.in_class(to));
        missed > self.changes.len()
            || self.changes.range(self.changes.len() - missed..).any(|(source, destination)| {
                from.binary_search(source).is_ok() && to.binary_search(destination).is_ok()
            })
    }

    /// Rules there are.
    pub fn len(&self) -> usize {
        self.in_order.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.in_order.is_empty()
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        let services = |rule: &CompiledRule| match &rule.services {
            Services::Any => 0,
            Services::Only(list) => size_of_val(&**list),
        };
        self.rules.iter().map(services).sum::<usize>()
            + self.rules.capacity() * size_of::<CompiledRule>()
            + self.ranks.capacity() * size_of::<Rank>()
            + self.in_order.len() * size_of::<(u64, RuleId)>()
            + self.from.bytes()
            + self.to.bytes()
            + self.groups.bytes()
    }

    fn order(&self, rule: u32) -> u64 {
        self.ranks[rule as usize].order
    }

    fn order_of_group(&self, group: u32) -> u64 {
        self.order(self.groups.group(group).first())
    }

    /// Judges one conversation. Cost: a search through the program of its pair, which is compiled
    /// first if `memo` does not have it.
    #[inline]
    pub fn judge(&self, conversation: &Conversation, memo: &mut Memo) -> Judgement {
        memo.make_room(1);
        let place = memo.place(self, self.from.of(conversation.from), self.to.of(conversation.to));
        self.judge_at(place, conversation, memo)
    }

    /// Judges many conversations into `judgements`, in the same order. What one of them waits for
    /// from memory, others wait for at the same time.
    pub fn judge_batch(
        &self,
        conversations: &[Conversation],
        memo: &mut Memo,
        judgements: &mut Vec<Judgement>,
    ) {
        judgements.clear();
        for some in conversations.chunks(Self::BATCH) {
            let mut classes = [(0, 0); Self::BATCH];
            for (classes, one) in classes.iter_mut().zip(some) {
                *classes = (self.from.of(one.from), self.to.of(one.to));
            }
            memo.make_room(some.len());
            let mut places = [0; Self::BATCH];
            for (place, &(from, to)) in places.iter_mut().zip(&classes[..some.len()]) {
                *place = memo.place(self, from, to);
            }
            judgements.extend(
                some.iter().zip(&places).map(|(one, &place)| self.judge_at(place, one, memo)),
            );
        }
    }

    /// Whether any conversation at all from one tag to the other is allowed. Cost: as
    /// [`Acl::allowed_services`], once per pair and `memo`.
    pub fn may_talk(&self, from: Tag, to: Tag, memo: &mut Memo) -> bool {
        memo.make_room(1);
        let place = memo.place(self, self.from.of(from), self.to.of(to));
        if let Some(known) = memo.at(place).may_talk {
            return known;
        }
        let candidates = &self.candidates(from, to);
        let may_talk = self.cuts(candidates).any(|(protocol, dst_port)| {
            let opening = Opening::COMMON;
            let conversation = Conversation { from, to, protocol, dst_port, opening };
            self.judge_by(candidates, &conversation).action == RuleAction::Allow
        });
        memo.set_may_talk(place, may_talk);
        may_talk
    }

    /// The rules that speak of this pair of tags, in order.
    fn candidates(&self, from: Tag, to: Tag) -> Vec<u32> {
        let (mut groups, mut rules) = (Vec::new(), Vec::new());
        let (from, to) = (self.from.of(from), self.to.of(to));
        self.groups.find(self.from.in_class(from), self.to.in_class(to), &mut groups);
        self.rules_of(&groups, &mut rules);
        rules
    }

    /// Adds the rules of these groups to `rules`, in order.
    fn rules_of(&self, groups: &[u32], rules: &mut Vec<u32>) {
        let first = rules.len();
        for &group in groups {
            rules.extend(self.groups.group(group).strip().lanes().map(|lane| lane.rule));
        }
        rules[first..].sort_unstable_by_key(|&rule| self.order(rule));
        let mut last = None;
        let mut at = first;
        for n in first..rules.len() {
            let rule = rules[n];
            if last != Some(rule) {
                rules[at] = rule;
                at += 1;
            }
            last = Some(rule);
        }
        rules.truncate(at);
    }

    #[inline]
    fn judge_at(&self, place: u32, conversation: &Conversation, memo: &Memo) -> Judgement {
        let pair = memo.at(place);
        let numbers = pair.numbers.of(&memo.numbers);
        if pair.has_terms() {
            return terms::judge(self, memo.strip(pair), numbers, conversation);
        }
        let query = Query::new(conversation);
        let blocks = pair.blocks.of(&memo.blocks);
        let Met { hit, ports, opening } = if numbers.is_empty() {
            search(blocks, &query)
        } else {
            self.search_all(blocks, numbers, &query)
        };
        let (action, cause) = match hit {
            Some(hit) => (self.ranks[hit as usize].action, Cause::Rule(RuleId(hit))),
            None => (RuleAction::Deny, Cause::Default),
        };
        Judgement { action, cause, used_ports: ports, used_opening: opening, audit: None }
    }

    /// Searches a pair's own blocks and those of groups besides.
    fn search_all(&self, blocks: &[Block], groups: &[u32], query: &Query) -> Met {
        let mut firsts = search_firsts(blocks, query);
        for &group in groups {
            let end = firsts.hit.map_or(u64::MAX, |hit| self.order(hit));
            if end < self.order_of_group(group) {
                break;
            }
            let here = search_firsts(self.groups.group(group).blocks(), query);
            firsts = Firsts {
                hit: self.earlier(firsts.hit, here.hit),
                ports: self.earlier(firsts.ports, here.ports),
                opening: self.earlier(firsts.opening, here.opening),
            };
        }
        let end = firsts.hit.map_or(u64::MAX, |hit| self.order(hit));
        let is_reached = |rule: u32| self.order(rule) <= end;
        Met {
            hit: firsts.hit,
            ports: firsts.ports.is_some_and(is_reached),
            opening: firsts.opening.is_some_and(is_reached),
        }
    }

    fn earlier(&self, one: Option<u32>, other: Option<u32>) -> Option<u32> {
        one.into_iter().chain(other).min_by_key(|&rule| self.order(rule))
    }

    fn judge_by(&self, candidates: &[u32], conversation: &Conversation) -> Judgement {
        let mut used = Used::default();
        let (action, cause) = self.walk(candidates, conversation, false, &mut used);
        let mut audit = None;
        if self.audits > 0 && action == RuleAction::Allow {
            let (action, cause) = self.walk(candidates, conversation, true, &mut used);
            audit = (action != RuleAction::Allow).then_some(cause);
        }
        Judgement { action, cause, used_ports: used.ports, used_opening: used.opening, audit }
    }

    /// Both permissions. `audit` puts rules under audit in force.
    fn walk(
        &self,
        candidates: &[u32],
        conversation: &Conversation,
        audit: bool,
        used: &mut Used,
    ) -> (RuleAction, Cause) {
        let send = self.permission(candidates, conversation, Permit::Send, audit, used);
        if send.0 != RuleAction::Allow {
            return send;
        }
        let receive = self.permission(candidates, conversation, Permit::Receive, audit, used);
        if receive.0 != RuleAction::Allow { receive } else { send }
    }

    fn permission(
        &self,
        candidates: &[u32],
        conversation: &Conversation,
        permit: Permit,
        audit: bool,
        used: &mut Used,
    ) -> (RuleAction, Cause) {
        let mut left = None;
        for &id in candidates {
            let rule = &self.rules[id as usize];
            let in_force = audit || !rule.audit;
            if !in_force || !rule.is_about(permit) || left == Some(rule.tier) {
                continue;
            }
            if self.serves(rule, conversation, used) {
                match rule.action {
                    RuleAction::Pass => left = Some(rule.tier),
                    action => return (action, Cause::Rule(RuleId(id))),
                }
            }
        }
        (RuleAction::Deny, Cause::Default)
    }

    /// Whether the rule's services include the conversation's.
    fn serves(&self, rule: &CompiledRule, with: &Conversation, used: &mut Used) -> bool {
        let conditions = &rule.conditions;
        used.opening |= conditions.src_ports.is_some() || conditions.tcp_flags.is_some();
        if !conditions.hold(with.protocol, &with.opening) {
            return false;
        }
        let Services::Only(services) = &rule.services else { return true };
        used.ports |= services.iter().any(|service| names_ports(service, with.protocol));
        services.iter().any(|service| service.matches(with.protocol, with.dst_port))
    }
}

/// Whether a service tells the ports (or types) of `protocol` apart.
fn names_ports(service: &Service, protocol: u8) -> bool {
    match *service {
        Service::Ports { protocol: p, .. } | Service::Icmp { protocol: p, .. } => p == protocol,
        Service::Protocol(_) => false,
    }
}

#[cfg(test)]
mod tests;
