//! What one tag may say to another at all: every service there is, cut where a rule may tell two
//! neighbours apart, and each piece judged once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::{Acl, Conversation, Opening};
use crate::snapshot::{Conditions, RuleAction, Service, Services, Tag};
use crate::verdict::Cause;
use crate::wire::protocol::{SCTP, TCP, UDP};

/// Some services that are allowed, all by the same rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The IP protocols.
    pub protocols: Protocols,
    /// The destination ports; for ICMP and ICMPv6, `type << 8 | code`. Whole for protocols that
    /// have neither.
    pub ports: RangeInclusive<u16>,
    /// The rule that allows them.
    pub cause: Cause,
    /// Set if the rules under audit would refuse them: what would.
    pub audit: Option<Cause>,
}

/// A set of IP protocols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocols {
    /// This one.
    One(u8),
    /// All but these, in order. Empty means every protocol.
    Except(Vec<u8>),
}

impl Acl {
    /// Everything that may go from one tag to the other if it begins like `opening`: disjoint, exact
    /// over all protocols, ports and ICMP types, in order of protocol and port, what holds for all
    /// other protocols last.
    pub fn allowed_services(&self, from: Tag, to: Tag, opening: Opening) -> Vec<Permission> {
        let candidates = &self.candidates(from, to);
        let (pair, cuts) = ((from, to, opening), self.cuts_by_protocol(candidates));
        let others = self.unnamed_protocol(&cuts).map(|protocol| {
            let ports = BTreeSet::from([0]);
            self.permissions(candidates, pair, protocol, &ports)
        });
        let others = others.and_then(|mut permissions| permissions.pop());

        let mut allowed = Vec::new();
        let mut exceptions = Vec::new();
        for (&protocol, ports) in &cuts {
            let permissions = self.permissions(candidates, pair, protocol, ports);
            if !is_like(&permissions, others.as_ref()) {
                exceptions.push(protocol);
                allowed.extend(permissions);
            }
        }
        allowed.extend(
            others.map(|other| Permission { protocols: Protocols::Except(exceptions), ..other }),
        );
        allowed
    }

    /// One conversation for each piece of the service space that the candidates can tell apart, as
    /// (protocol, destination port).
    pub(super) fn cuts(&self, candidates: &[u32]) -> impl Iterator<Item = (u8, u16)> {
        let cuts = self.cuts_by_protocol(candidates);
        let other = self.unnamed_protocol(&cuts).map(|protocol| (protocol, 0));
        let named = cuts
            .into_iter()
            .flat_map(|(protocol, ports)| ports.into_iter().map(move |port| (protocol, port)));
        named.chain(other)
    }

    /// For each protocol that a candidate names, the ports at which its verdict may change.
    fn cuts_by_protocol(&self, candidates: &[u32]) -> BTreeMap<u8, BTreeSet<u16>> {
        let mut cuts: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
        let all = || BTreeSet::from([0]);
        for &id in candidates {
            let Conditions { src_ports, tcp_flags, .. } = self.rules[id as usize].conditions;
            if src_ports.is_some() || tcp_flags.is_some() {
                cuts.entry(TCP).or_insert_with(all);
            }
            if src_ports.is_some() {
                cuts.entry(UDP).or_insert_with(all);
                cuts.entry(SCTP).or_insert_with(all);
            }
            let Services::Only(services) = &self.rules[id as usize].services else { continue };
            for service in services {
                let (protocol, range) = range_of(service);
                let ports = cuts.entry(protocol).or_insert_with(all);
                ports.insert(*range.start());
                ports.extend(range.end().checked_add(1));
            }
        }
        cuts
    }

    /// A protocol that no candidate names, to stand for all such.
    fn unnamed_protocol(&self, cuts: &BTreeMap<u8, BTreeSet<u16>>) -> Option<u8> {
        (0..=u8::MAX).rev().find(|protocol| !cuts.contains_key(protocol))
    }

    /// What is allowed of one protocol, neighbours with the same cause merged.
    fn permissions(
        &self,
        candidates: &[u32],
        (from, to, opening): (Tag, Tag, Opening),
        protocol: u8,
        cuts: &BTreeSet<u16>,
    ) -> Vec<Permission> {
        let mut allowed: Vec<Permission> = Vec::new();
        let ends = cuts.iter().skip(1).map(|&next| next - 1).chain([u16::MAX]);
        for (&first, last) in cuts.iter().zip(ends) {
            let conversation = Conversation { from, to, protocol, dst_port: first, opening };
            let judgement = self.judge_by(candidates, &conversation);
            if judgement.action != RuleAction::Allow {
                continue;
            }
            let (cause, audit) = (judgement.cause, judgement.audit);
            match allowed.last_mut() {
                Some(before)
                    if before.ports.end().checked_add(1) == Some(first)
                        && (before.cause, before.audit) == (cause, audit) =>
                {
                    before.ports = *before.ports.start()..=last;
                }
                _ => allowed.push(Permission {
                    protocols: Protocols::One(protocol),
                    ports: first..=last,
                    cause,
                    audit,
                }),
            }
        }
        allowed
    }
}

/// Whether a protocol is permitted exactly as the unnamed ones are.
fn is_like(permissions: &[Permission], others: Option<&Permission>) -> bool {
    match (permissions, others) {
        ([], None) => true,
        ([one], Some(other)) => {
            (&one.ports, one.cause, one.audit) == (&other.ports, other.cause, other.audit)
        }
        _ => false,
    }
}

/// The protocol and ports that a service matches.
pub(super) fn range_of(service: &Service) -> (u8, RangeInclusive<u16>) {
    match *service {
        Service::Ports { protocol, first, last } => (protocol, first..=last),
        Service::Icmp { protocol, kind, code: Some(code) } => {
            let word = u16::from_be_bytes([kind, code]);
            (protocol, word..=word)
        }
        Service::Icmp { protocol, kind, code: None } => {
            (protocol, u16::from_be_bytes([kind, 0])..=u16::from_be_bytes([kind, 0xff]))
        }
        Service::Protocol(protocol) => (protocol, 0..=u16::MAX),
    }
}
