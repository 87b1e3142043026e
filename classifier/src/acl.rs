//! The ACL: (source tag, destination tag, service) to an action.
//!
//! # Structure
//!
//! Rules stand in evaluation order and are numbered by it. For each tag there is a bitmap of the
//! rules that name it as source, and another of those that name it as destination; rules that match
//! any tag have a shared bitmap each. The rules that speak of a pair of tags are the intersection,
//! word by word: cost depends on rules / 64, not on workloads squared. A [`Memo`] keeps the
//! intersection of each pair it has seen as a list, so that the next upcall for the pair walks only
//! the rules that speak of it.
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
mod reach;

use hashbrown::HashMap;

use crate::key::FlowKey;
use crate::snapshot::{
    Conditions, Direction, Rule, RuleAction, RuleId, Service, Services, Snapshot, Tag, TagSet,
};
use crate::verdict::{Cause, DropReason};
use crate::wire::ethernet::ether_type;
use crate::wire::protocol;

pub use explain::{Considered, Outcome};
pub use reach::{Permission, Protocols};

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

/// A snapshot's rules, compiled. Immutable.
#[derive(Clone, Debug)]
pub struct Acl {
    rules: Vec<CompiledRule>,
    /// Services of all rules, each rule's side by side.
    services: Vec<Service>,
    /// Rules by source tag.
    from: TagIndex,
    /// Rules by destination tag.
    to: TagIndex,
    /// Whether any rule is under audit.
    has_audit: bool,
}

#[derive(Clone, Copy, Debug)]
struct CompiledRule {
    tier: u8,
    action: RuleAction,
    direction: Direction,
    audit: bool,
    conditions: Conditions,
    /// Range in [`Acl::services`]; `None` matches every service.
    services: Option<(u32, u32)>,
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
    /// Compiles the rules of a snapshot whose invariants hold.
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut services = Vec::new();
        let rules = snapshot.rules.iter().map(|rule| compile(rule, &mut services)).collect();
        let tags = snapshot.tags.len();
        Self {
            rules,
            services,
            from: TagIndex::new(tags, snapshot.rules.iter().map(|rule| &rule.from)),
            to: TagIndex::new(tags, snapshot.rules.iter().map(|rule| &rule.to)),
            has_audit: snapshot.rules.iter().any(|rule| rule.audit),
        }
    }

    /// Judges one conversation. Cost: a walk over the rules that speak of its pair of tags, after an
    /// intersection of rules / 64 words if `memo` has not seen the pair.
    pub fn judge(&self, conversation: &Conversation, memo: &mut Memo) -> Judgement {
        let candidates = memo.candidates(self, conversation.from, conversation.to);
        self.judge_by(candidates, conversation)
    }

    /// Whether any conversation at all from one tag to the other is allowed. Cost: as
    /// [`Acl::allowed_services`], once per pair and `memo`.
    pub fn may_talk(&self, from: Tag, to: Tag, memo: &mut Memo) -> bool {
        let pair = memo.pair(self, from, to);
        if let Some(known) = pair.may_talk {
            return known;
        }
        let candidates = memo.candidates(self, from, to);
        let may_talk = self.cuts(candidates).any(|(protocol, dst_port)| {
            let opening = Opening::COMMON;
            let conversation = Conversation { from, to, protocol, dst_port, opening };
            self.judge_by(candidates, &conversation).action == RuleAction::Allow
        });
        memo.pairs.insert((from, to), Pair { may_talk: Some(may_talk), ..pair });
        may_talk
    }

    fn judge_by(&self, candidates: &[u32], conversation: &Conversation) -> Judgement {
        let mut used = Used::default();
        let (action, cause) = self.walk(candidates, conversation, false, &mut used);
        let mut audit = None;
        if self.has_audit && action == RuleAction::Allow {
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
        let Some((first, end)) = rule.services else { return true };
        let services = &self.services[first as usize..end as usize];
        used.ports |= services.iter().any(|service| names_ports(service, with.protocol));
        services.iter().any(|service| service.matches(with.protocol, with.dst_port))
    }
}

fn compile(rule: &Rule, services: &mut Vec<Service>) -> CompiledRule {
    let range = match &rule.services {
        Services::Any => None,
        Services::Only(list) => {
            let first = services.len() as u32;
            services.extend(list);
            Some((first, services.len() as u32))
        }
    };
    CompiledRule {
        tier: rule.tier,
        action: rule.action,
        direction: rule.direction,
        audit: rule.audit,
        conditions: rule.conditions,
        services: range,
    }
}

/// Whether a service tells the ports (or types) of `protocol` apart.
fn names_ports(service: &Service, protocol: u8) -> bool {
    match *service {
        Service::Ports { protocol: p, .. } | Service::Icmp { protocol: p, .. } => p == protocol,
        Service::Protocol(_) => false,
    }
}

/// For each tag, the rules that match it in one role.
#[derive(Clone, Debug)]
struct TagIndex {
    /// Rules that match every tag.
    any: Vec<u64>,
    /// Rules that name a tag, by tag. Bitmaps end with their last word that is not zero.
    named: Vec<Vec<u64>>,
}

impl TagIndex {
    fn new<'a>(tags: usize, sets: impl ExactSizeIterator<Item = &'a TagSet>) -> Self {
        let mut any = vec![0; sets.len().div_ceil(64)];
        let mut named = vec![Vec::new(); tags];
        for (rule, set) in sets.enumerate() {
            match set {
                TagSet::Any => set_bit(&mut any, rule),
                TagSet::Only(tags) => {
                    for tag in tags {
                        set_bit(&mut named[tag.0 as usize], rule);
                    }
                }
            }
        }
        Self { any, named }
    }

    /// Word `at` of the bitmap of rules that match `tag`.
    fn word(&self, tag: Tag, at: usize) -> u64 {
        let named = self.named.get(tag.0 as usize).and_then(|words| words.get(at));
        self.any[at] | named.copied().unwrap_or(0)
    }
}

fn set_bit(words: &mut Vec<u64>, bit: usize) {
    if words.len() <= bit / 64 {
        words.resize(bit / 64 + 1, 0);
    }
    words[bit / 64] |= 1 << (bit % 64);
}

/// What was found out about each pair of tags that was asked for. Bounded; belongs to one policy.
#[derive(Clone, Debug, Default)]
pub struct Memo {
    pairs: HashMap<(Tag, Tag), Pair>,
    /// The rules that speak of each pair, side by side.
    rules: Vec<u32>,
}

/// What is known of one pair of tags.
#[derive(Clone, Copy, Debug)]
struct Pair {
    /// Range in [`Memo::rules`] of the rules that speak of it.
    first: u32,
    end: u32,
    /// Whether anything at all is allowed, once that was asked.
    may_talk: Option<bool>,
}

impl Memo {
    /// Most pairs that are remembered.
    pub const MAX_PAIRS: usize = 65_536;
    /// Rule numbers that are remembered before all is forgotten, for all pairs together.
    pub const MAX_RULES: usize = 1 << 20;

    /// Forgets everything: to be called when another policy comes into force.
    pub fn clear(&mut self) {
        self.pairs.clear();
        self.rules.clear();
    }

    /// The rules of `acl` that speak of this pair, in order.
    fn candidates(&mut self, acl: &Acl, from: Tag, to: Tag) -> &[u32] {
        let Pair { first, end, .. } = self.pair(acl, from, to);
        &self.rules[first as usize..end as usize]
    }

    fn pair(&mut self, acl: &Acl, from: Tag, to: Tag) -> Pair {
        if let Some(&pair) = self.pairs.get(&(from, to)) {
            return pair;
        }
        if self.pairs.len() >= Self::MAX_PAIRS || self.rules.len() >= Self::MAX_RULES {
            self.clear();
        }
        let first = self.rules.len() as u32;
        for at in 0..acl.rules.len().div_ceil(64) {
            let mut word = acl.from.word(from, at) & acl.to.word(to, at);
            while word != 0 {
                self.rules.push(at as u32 * 64 + word.trailing_zeros());
                word &= word - 1;
            }
        }
        let pair = Pair { first, end: self.rules.len() as u32, may_talk: None };
        self.pairs.insert((from, to), pair);
        pair
    }
}

#[cfg(test)]
mod tests;
