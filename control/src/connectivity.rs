//! Who may reach whom on what, by policy alone: no frame is sent.
//!
//! A permission that hangs on how a conversation begins (source port, TCP flags, ethertype, VLAN) is told
//! with what it hangs on: every way to begin that rules tell apart is asked for.
//!
//! Ends are the workloads and, if the switch has a router, the segments of addresses outside: every
//! combination of groups, and the world. A pair can talk if some VLAN joins it, both have addresses
//! of one family, and the ACL allows something. Whether it is on-link, up, and listening is not
//! policy's to know.

mod cells;

use std::net::IpAddr;

use firedoor_classifier::Policy;
use firedoor_classifier::acl::{Conversation, Memo, Permission, Protocols};
use firedoor_classifier::snapshot::{Conditions, Rule, RuleAction, Tag, VlanMode, Workload};
use firedoor_classifier::verdict::Cause;
use firedoor_classifier::wire::ethernet::ether_type;
use firedoor_classifier::wire::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};
use serde::Serialize;

use self::cells::{Cell, cells, describe};
use crate::{condition, service};

/// One end of a conversation.
#[derive(Clone, Copy, Debug)]
pub enum End<'p> {
    /// A workload of the switch.
    Workload(&'p Workload),
    /// Addresses outside the switch with one tag.
    Outside {
        /// What they are called.
        name: &'p str,
        /// Their tag.
        tag: Tag,
    },
}

/// What one end may begin with another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Who begins.
    pub from: String,
    /// Who is reached.
    pub to: String,
    /// On what; empty if on nothing.
    pub allowed: Vec<Allowed>,
}

/// Services that one rule allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Allowed {
    /// Their text, as `tcp/8080`, `tcp/9000-9100` or `ethertype/0x88b5`.
    pub service: String,
    /// On which condition of the first frame, as `source_port 1024-65535`; `None` if on none.
    pub when: Option<String>,
    /// The rule.
    pub rule: String,
    /// The rule that would refuse them if it were not under audit.
    pub audit: Option<String>,
}

impl<'p> End<'p> {
    /// What it is called.
    pub fn name(&self) -> &'p str {
        match self {
            Self::Workload(workload) => &workload.name,
            Self::Outside { name, .. } => name,
        }
    }

    fn tag(&self) -> Tag {
        match self {
            Self::Workload(workload) => workload.tag,
            Self::Outside { tag, .. } => *tag,
        }
    }
}

/// Every end that a policy knows: workloads in the order of the config, then what is outside.
pub fn ends(policy: &Policy) -> Vec<End<'_>> {
    let snapshot = policy.snapshot();
    let mut ends: Vec<_> = snapshot.workloads.iter().map(End::Workload).collect();
    if snapshot.workloads.iter().any(|workload| workload.router) {
        let mut tags: Vec<_> = snapshot.prefixes.iter().map(|prefix| prefix.tag).collect();
        tags.push(snapshot.world);
        tags.sort_unstable();
        tags.dedup();
        ends.extend(tags.into_iter().map(|tag| End::Outside { name: policy.name_of(tag), tag }));
    }
    ends
}

/// Every ordered pair of ends, rows of `from` in the order of [`ends`]. Two ends outside are no
/// pair: what they say to each other is not the switch's business.
pub fn connectivity(policy: &Policy) -> Vec<Pair> {
    let rules = &policy.snapshot().rules;
    let conditional: Vec<_> =
        rules.iter().filter(|rule| rule.conditions != Conditions::default()).collect();
    let ends = ends(policy);
    let mut pairs = Vec::new();
    for (i, from) in ends.iter().enumerate() {
        for (j, to) in ends.iter().enumerate() {
            if i != j && !matches!((from, to), (End::Outside { .. }, End::Outside { .. })) {
                pairs.push(pair(policy, from, to, &conditional));
            }
        }
    }
    pairs
}

/// `conditional` are the policy's rules that have conditions.
fn pair(policy: &Policy, from: &End<'_>, to: &End<'_>, conditional: &[&Rule]) -> Pair {
    let speaks = |rule: &&&Rule| rule.from.contains(from.tag()) && rule.to.contains(to.tag());
    let conditions: Vec<_> =
        conditional.iter().filter(speaks).map(|rule| &rule.conditions).collect();
    let vlans = shared_vlans(policy, from, to);
    let tags = (from.tag(), to.tag());
    let mut found = over_ip(policy, tags, &vlans, families(from, to), &conditions);
    if let (End::Workload(_), End::Workload(_)) = (from, to) {
        found.extend(beside_ip(policy, tags, &vlans, &conditions));
    }
    let rule = |cause| policy.rule_name(cause).to_owned();
    let allowed =
        found.into_iter().flat_map(|Found { service, causes: (cause, audit), some, all }| {
            let whens = describe(&some, &all);
            let whens =
                if whens.is_empty() { vec![None] } else { whens.into_iter().map(Some).collect() };
            whens.into_iter().map(move |when| Allowed {
                service: service.clone(),
                when,
                rule: rule(cause),
                audit: audit.map(rule),
            })
        });
    Pair { from: from.name().to_owned(), to: to.name().to_owned(), allowed: allowed.collect() }
}

/// Something that is allowed for some of all the ways in which it may begin.
struct Found {
    service: String,
    /// The rule that allows it, and what would refuse it without audit.
    causes: (Cause, Option<Cause>),
    some: Vec<Cell>,
    all: Vec<Cell>,
}

fn over_ip(
    policy: &Policy,
    (from, to): (Tag, Tag),
    vlans: &[u16],
    families: Families,
    conditions: &[&Conditions],
) -> Vec<Found> {
    let cells = cells(vlans, &families.ether_types(), conditions);
    let mut found: Vec<(Permission, Vec<Cell>)> = Vec::new();
    for &cell in &cells {
        let allowed = policy.acl().allowed_services(from, to, cell.opening());
        for permission in allowed.into_iter().flat_map(|allowed| apart(allowed, conditions)) {
            match found.iter_mut().find(|(known, _)| *known == permission) {
                Some((_, some)) => some.push(cell),
                None => found.push((permission, vec![cell])),
            }
        }
    }
    let names_family = conditions.iter().any(|conditions| conditions.ether_type.is_some());
    let told = found.into_iter().filter(|(permission, _)| families.carry(permission));
    let told = told.map(|(permission, mut some)| {
        // ICMP never begins in the other family, whatever a rule would say of it there.
        let may_be = |cell: &Cell| match permission.protocols {
            _ if !names_family => true,
            Protocols::One(ICMP) => cell.ether_type == ether_type::IPV4,
            Protocols::One(ICMPV6) => cell.ether_type == ether_type::IPV6,
            Protocols::One(_) | Protocols::Except(_) => true,
        };
        some.retain(may_be);
        Found {
            service: service_text(&permission),
            causes: (permission.cause, permission.audit),
            some,
            all: cells.iter().copied().filter(may_be).collect(),
        }
    });
    told.filter(|found| !found.some.is_empty()).collect()
}

/// The permission, with each protocol by itself that conditions are about: others do not hang on them.
fn apart(permission: Permission, conditions: &[&Conditions]) -> Vec<Permission> {
    let Protocols::Except(mut exceptions) = permission.protocols.clone() else {
        return vec![permission];
    };
    let names_ports = conditions.iter().any(|conditions| conditions.src_ports.is_some());
    let names_flags = conditions.iter().any(|conditions| conditions.tcp_flags.is_some());
    let about = [(TCP, names_ports || names_flags), (UDP, names_ports), (SCTP, names_ports)];
    let about = about.into_iter().filter(|(protocol, is)| *is && !exceptions.contains(protocol));
    let about: Vec<_> = about.map(|(protocol, _)| protocol).collect();
    exceptions.extend(&about);
    exceptions.sort_unstable();
    let one = |protocol| Permission {
        protocols: Protocols::One(protocol),
        ports: 0..=u16::MAX,
        ..permission.clone()
    };
    let mut parts: Vec<_> = about.into_iter().map(one).collect();
    parts.push(Permission { protocols: Protocols::Except(exceptions), ..permission });
    parts
}

/// What is allowed of ethertypes that are not IP.
fn beside_ip(
    policy: &Policy,
    (from, to): (Tag, Tag),
    vlans: &[u16],
    conditions: &[&Conditions],
) -> Vec<Found> {
    let named = conditions.iter().filter_map(|conditions| conditions.ether_type);
    let mut named: Vec<_> = named.filter(|&number| !condition::is_ip(number)).collect();
    named.sort_unstable();
    named.dedup();
    let mut found: Vec<Found> = Vec::new();
    for number in named {
        let all = cells(vlans, &[number], conditions);
        for &cell in &all {
            let conversation =
                Conversation { from, to, protocol: 0, dst_port: 0, opening: cell.opening() };
            let judgement = policy.acl().judge(&conversation, &mut Memo::default());
            if judgement.action != RuleAction::Allow {
                continue;
            }
            let service = format!("ethertype/{}", condition::ether_type_text(number));
            let causes = (judgement.cause, judgement.audit);
            match found
                .iter_mut()
                .find(|known| (&known.service, known.causes) == (&service, causes))
            {
                Some(known) => known.some.push(cell),
                None => found.push(Found { service, causes, some: vec![cell], all: all.clone() }),
            }
        }
    }
    found
}

/// Address families that both ends of a pair have.
#[derive(Clone, Copy)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    fn ether_types(self) -> Vec<u16> {
        let all = [(self.v4, ether_type::IPV4), (self.v6, ether_type::IPV6)];
        all.into_iter().filter(|(has, _)| *has).map(|(_, number)| number).collect()
    }

    /// Whether a permission is worth something: ICMP is IPv4's alone, ICMPv6 is IPv6's.
    fn carry(self, permission: &Permission) -> bool {
        match permission.protocols {
            Protocols::One(ICMP) => self.v4,
            Protocols::One(ICMPV6) => self.v6,
            Protocols::One(_) | Protocols::Except(_) => true,
        }
    }
}

/// The families that both ends have addresses of.
fn families(from: &End<'_>, to: &End<'_>) -> Families {
    let has = |end: &End<'_>, v4: bool| match end {
        End::Outside { .. } => true,
        End::Workload(workload) => {
            workload.addresses.iter().any(|addr| addr.is_ipv4() == v4 && !is_link_local(*addr))
        }
    };
    let both = |v4| has(from, v4) && has(to, v4);
    Families { v4: both(true), v6: both(false) }
}

/// The VLANs that join two ends.
fn shared_vlans(policy: &Policy, from: &End<'_>, to: &End<'_>) -> Vec<u16> {
    let shared = |a: &Workload, b: &Workload| -> Vec<u16> {
        vlans(a).iter().copied().filter(|vlan| vlans(b).contains(vlan)).collect()
    };
    match (from, to) {
        (End::Workload(a), End::Workload(b)) => shared(a, b),
        (End::Workload(inside), End::Outside { .. })
        | (End::Outside { .. }, End::Workload(inside)) => {
            // The way out of a router's own port is not through the switch.
            let workloads = policy.snapshot().workloads.iter();
            let routers = workloads.filter(|w| w.router && w.port != inside.port);
            let mut all: Vec<_> = routers.flat_map(|router| shared(inside, router)).collect();
            all.sort_unstable();
            all.dedup();
            all
        }
        (End::Outside { .. }, End::Outside { .. }) => Vec::new(),
    }
}

fn vlans(workload: &Workload) -> &[u16] {
    match &workload.vlan {
        VlanMode::Access(vlan) => std::slice::from_ref(vlan),
        VlanMode::Trunk(vlans) => vlans,
    }
}

/// Neighbours have these addresses whatever the config says; policy is seldom about them.
pub(crate) fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn service_text(permission: &Permission) -> String {
    match &permission.protocols {
        Protocols::One(protocol) => service::range_text(*protocol, &permission.ports),
        Protocols::Except(protocols) if protocols.is_empty() => "any".into(),
        Protocols::Except(protocols) => {
            let all = 0..=u16::MAX;
            let names: Vec<_> = protocols.iter().map(|p| service::range_text(*p, &all)).collect();
            format!("any but {}", names.join(", "))
        }
    }
}
