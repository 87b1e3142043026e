//! What the rules say: each is looked at, in order, for each permission.

use std::collections::BTreeSet;

use super::{Oracle, Refusal};
use crate::snapshot::{Direction, Rule, RuleAction, RuleId, Service, Services, Tag, TagSet};
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
    pub(super) fn opinion(&self, from: Tag, to: Tag, protocol: u8, port: u16) -> Opinion {
        let (allowed_by, refusal) = self.both_permissions(from, to, protocol, port, false);
        let mut audited = None;
        if refusal.is_none() {
            let would_be = self.both_permissions(from, to, protocol, port, true).1;
            audited = would_be.map(|(_, cause)| (DropReason::Denied, cause));
        }
        Opinion { allowed_by, refusal, audited }
    }

    /// Whether any service at all may go from one tag to the other: tried at every port that a rule
    /// names and beside it, for every protocol that a rule names and one that none does.
    pub(super) fn may_say_anything(&self, from: Tag, to: Tag) -> bool {
        let mut protocols = BTreeSet::from([0]);
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
            ports
                .iter()
                .any(|&port| self.both_permissions(from, to, protocol, port, false).1.is_none())
        })
    }

    fn both_permissions(
        &self,
        from: Tag,
        to: Tag,
        protocol: u8,
        port: u16,
        audit: bool,
    ) -> (Cause, Option<Refusal>) {
        let matches = |rule: &Rule| {
            includes(&rule.from, from) && includes(&rule.to, to) && serves(rule, protocol, port)
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

fn serves(rule: &Rule, protocol: u8, port: u16) -> bool {
    match &rule.services {
        Services::Any => true,
        Services::Only(list) => list.iter().any(|service| service.matches(protocol, port)),
    }
}
