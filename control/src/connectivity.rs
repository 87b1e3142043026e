//! Who may reach whom on what, by policy alone: no frame is sent.
//!
//! Ends are the workloads and, if the switch has a router, the segments of addresses outside: every
//! combination of groups, and the world. A pair can talk if some VLAN joins it, both have addresses
//! of one family, and the ACL allows something. Whether it is on-link, up, and listening is not
//! policy's to know.

use std::net::IpAddr;

use firedoor_classifier::Policy;
use firedoor_classifier::acl::{Permission, Protocols};
use firedoor_classifier::snapshot::{Tag, VlanMode, Workload};
use firedoor_classifier::wire::protocol::{ICMP, ICMPV6};
use serde::Serialize;

use crate::service;

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
    /// Their text, as `tcp/8080` or `tcp/9000-9100`.
    pub service: String,
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
    let ends = ends(policy);
    let mut pairs = Vec::new();
    for (i, from) in ends.iter().enumerate() {
        for (j, to) in ends.iter().enumerate() {
            if i != j && !matches!((from, to), (End::Outside { .. }, End::Outside { .. })) {
                pairs.push(pair(policy, from, to));
            }
        }
    }
    pairs
}

fn pair(policy: &Policy, from: &End<'_>, to: &End<'_>) -> Pair {
    let families = families(policy, from, to);
    let permissions = if families.any() {
        policy.acl().allowed_services(from.tag(), to.tag())
    } else {
        Vec::new()
    };
    let rule = |cause| policy.rule_name(cause).to_owned();
    let allowed =
        permissions.iter().filter(|permission| families.carry(permission)).map(|permission| {
            Allowed {
                service: service_text(permission),
                rule: rule(permission.cause),
                audit: permission.audit.map(rule),
            }
        });
    Pair { from: from.name().to_owned(), to: to.name().to_owned(), allowed: allowed.collect() }
}

/// Address families that both ends of a pair have.
#[derive(Clone, Copy)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    fn any(self) -> bool {
        self.v4 || self.v6
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

/// The families that a pair can talk in, if a VLAN joins it.
fn families(policy: &Policy, from: &End<'_>, to: &End<'_>) -> Families {
    let (workload, other) = match (from, to) {
        (End::Workload(a), End::Workload(b)) => (*a, Some(*b)),
        (End::Workload(a), End::Outside { .. }) | (End::Outside { .. }, End::Workload(a)) => {
            (*a, None)
        }
        (End::Outside { .. }, End::Outside { .. }) => return Families { v4: false, v6: false },
    };
    let has = |workload: &Workload, v4: bool| {
        workload.addresses.iter().any(|addr| addr.is_ipv4() == v4 && !is_link_local(*addr))
    };
    let joined = match other {
        Some(other) => share_vlan(workload, other),
        // The way out of a router's own port is not through the switch.
        None => policy.snapshot().workloads.iter().any(|router| {
            router.router && router.port != workload.port && share_vlan(workload, router)
        }),
    };
    let both = |v4| joined && has(workload, v4) && other.is_none_or(|other| has(other, v4));
    Families { v4: both(true), v6: both(false) }
}

fn share_vlan(a: &Workload, b: &Workload) -> bool {
    vlans(a).iter().any(|vlan| vlans(b).contains(vlan))
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
