//! What the rules say: each is looked at, in order, for each permission.

use std::collections::BTreeSet;

use super::{Oracle, Refusal};
use crate::key::FlowKey;
use crate::snapshot::{
    Conditions, Direction, FlagMatch, Rule, RuleAction, RuleId, Service, Services, Tag, TagSet,
};
use crate::verdict::{Cause, DropReason};

/// What the rules say of one conversation.
pub(super) struct Opinion {
    /// The rule of the source's permission.
    pub(super) allowed_by: Cause,
    pub(super) refusal: Option<Refusal>,
    /// How it would be refused if rules under audit were in force.
    pub(super) audited: Option<Refusal>,
}

impl Oracle {
    pub(super) fn opinion(&self, from: Tag, to: Tag, first: &FlowKey) -> Opinion {
        let (allowed_by, refusal) = self.both_permissions(from, to, first, false);
        let mut audited = None;
        if refusal.is_none() {
            let would_be = self.both_permissions(from, to, first, true).1;
            audited = would_be.map(|(_, cause)| (DropReason::Denied, cause));
        }
        Opinion { allowed_by, refusal, audited }
    }

    /// Whether any service at all may go from one tag to the other: tried at every port that a rule
    /// names and beside it, for every protocol that has ports or that a rule names, and one that
    /// none does.
    pub(super) fn may_say_anything(&self, from: Tag, to: Tag) -> bool {
        let mut protocols = BTreeSet::from([0, 6, 17, 132]);
        let mut ports = BTreeSet::from([0, u16::MAX]);
        for service in self.snapshot.rules.iter().flat_map(|rule| match &rule.services {
            Services::Any => &[],
            Services::Only(list) => list.as_slice(),
        }) {
            let (protocol, first, last) = match *service {
                Service::Ports { protocol, first, last } => (protocol, first, last),
                Service::Icmp { protocol, kind, code } => {
                    let first = u16::from(kind) << 8 | u16::from(code.unwrap_or(0));
                    (protocol, first, u16::from(kind) << 8 | u16::from(code.unwrap_or(255)))
                }
                Service::Protocol(protocol) => (protocol, 0, 0),
            };
            protocols.extend([protocol, protocol.wrapping_add(1)]);
            ports.extend([first.saturating_sub(1), first, last, last.saturating_add(1)]);
        }
        protocols.into_iter().any(|protocol| {
            ports.iter().any(|&dst_port| {
                let first = FlowKey { protocol, dst_port, ..common() };
                self.both_permissions(from, to, &first, false).1.is_none()
            })
        })
    }

    fn both_permissions(
        &self,
        from: Tag,
        to: Tag,
        first: &FlowKey,
        audit: bool,
    ) -> (Cause, Option<Refusal>) {
        let matches = |rule: &Rule| {
            includes(&rule.from, from) && includes(&rule.to, to) && serves(rule, first)
        };
        let egress = self.first_match(Direction::Egress, audit, matches);
        let ingress = self.first_match(Direction::Ingress, audit, matches);
        let refusal = refusal_of(egress).or(refusal_of(ingress));
        (egress.map_or(Cause::Default, |(_, id)| Cause::Rule(id)), refusal)
    }

    fn first_match(
        &self,
        permission: Direction,
        audit: bool,
        matches: impl Fn(&Rule) -> bool,
    ) -> Option<(RuleAction, RuleId)> {
        let mut passed_tiers = Vec::new();
        for (id, rule) in self.snapshot.rules.iter().enumerate() {
            let concerned = rule.direction == Direction::Both || rule.direction == permission;
            let in_force = audit || !rule.audit;
            if !concerned || !in_force || passed_tiers.contains(&rule.tier) || !matches(rule) {
                continue;
            }
            if rule.action == RuleAction::Pass {
                passed_tiers.push(rule.tier);
            } else {
                return Some((rule.action, RuleId(id as u32)));
            }
        }
        None
    }
}

fn refusal_of(matched: Option<(RuleAction, RuleId)>) -> Option<Refusal> {
    match matched {
        None => Some((DropReason::DefaultDeny, Cause::Default)),
        Some((RuleAction::Allow, _)) => None,
        Some((RuleAction::Reject, id)) => Some((DropReason::Rejected, Cause::Rule(id))),
        Some((_, id)) => Some((DropReason::Denied, Cause::Rule(id))),
    }
}

fn includes(set: &TagSet, tag: Tag) -> bool {
    match set {
        TagSet::Any => true,
        TagSet::Only(tags) => tags.contains(&tag),
    }
}

fn serves(rule: &Rule, first: &FlowKey) -> bool {
    let serves = match &rule.services {
        Services::Any => true,
        Services::Only(list) => {
            list.iter().any(|service| service.matches(first.protocol, first.dst_port))
        }
    };
    serves && meets(rule, first)
}

/// Whether the frame meets the rule's conditions.
fn meets(rule: &Rule, first: &FlowKey) -> bool {
    let Conditions { ether_type, vlan, src_ports, tcp_flags } = rule.conditions;
    let ether_type_meets = match ether_type {
        Some(named) => first.ether_type == named,
        None => [0x0800, 0x86dd].contains(&first.ether_type),
    };
    let vlan_meets = vlan.is_none() || vlan == Some(first.vlan);
    let src_port_meets = match src_ports {
        Some((low, high)) => {
            [6, 17, 132].contains(&first.protocol)
                && low <= first.src_port
                && first.src_port <= high
        }
        None => true,
    };
    let flags_meet = match tcp_flags {
        Some(FlagMatch { mask, value }) => first.protocol == 6 && first.tcp_flags & mask == value,
        None => true,
    };
    ether_type_meets && vlan_meets && src_port_meets && flags_meet
}

/// The first frame that "anything at all" is tried with: as a common client's.
fn common() -> FlowKey {
    FlowKey { ether_type: 0x0800, src_port: 49_152, tcp_flags: 2, ..FlowKey::default() }
}
