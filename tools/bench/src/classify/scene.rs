//! ClassBench rules as a policy, and headers that such rules are likely to match.
//!
//! Every distinct prefix becomes a group of addresses with a tag of its own: the tag of what is in
//! the prefix and in no longer one. A rule's side then names the tags of its prefix and of all
//! prefixes below. Tags are numbered in address order, longer prefixes after those around them, so
//! the tags under a prefix are one run of numbers. 0.0.0.0/0 is every tag, the world's included.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use firedoor_classifier::Tag;
use firedoor_classifier::acl::Conversation;
use firedoor_classifier::key::to_bits;
use firedoor_classifier::policy::Owner;
use firedoor_classifier::snapshot::{
    Conditions, Direction, Mode, Prefix, Rule, RuleAction, Service, Services, Settings, Snapshot,
    TagInfo, TagSet,
};
use firedoor_classifier::wire::protocol::{SCTP, TCP, UDP};
use ipnet::Ipv4Net;

use super::conditions;
use super::files::{Header, Line, Net};

const ALL_PORTS: (u16, u16) = (0, u16::MAX);

/// The policy of these rules, first line first. Every rule allows; what none matches is denied.
pub fn snapshot(rules: &[Line]) -> Snapshot {
    let nets = nets(rules);
    let name = |net: &Net| TagInfo { name: format!("{}/{}", Ipv4Addr::from(net.start), net.len) };
    let world = TagInfo { name: "world".to_owned() };
    Snapshot {
        epoch: 1,
        switch: "classify".to_owned(),
        mode: Mode::Enforce,
        settings: Settings::default(),
        workloads: Vec::new(),
        tags: nets.iter().map(name).chain([world]).collect(),
        prefixes: nets.iter().zip(0..).map(|(net, tag)| prefix(net, Tag(tag))).collect(),
        world: Tag(nets.len() as u32),
        rules: rules.iter().map(|line| rule(line, &nets)).collect(),
    }
}

/// Distinct prefixes but 0.0.0.0/0, in address order, the shorter of two that begin alike first.
fn nets(rules: &[Line]) -> Vec<Net> {
    let nets: BTreeSet<_> = rules.iter().flat_map(|rule| [rule.src, rule.dst]).collect();
    nets.into_iter().filter(|net| net.len > 0).collect()
}

fn prefix(net: &Net, tag: Tag) -> Prefix {
    let net = Ipv4Net::new_assert(net.start.into(), net.len);
    Prefix { net: net.into(), tag }
}

fn rule(line: &Line, nets: &[Net]) -> Rule {
    Rule {
        name: String::new(),
        tier: 0,
        priority: 0,
        action: RuleAction::Allow,
        from: tags(line.src, nets),
        to: tags(line.dst, nets),
        services: services(line),
        direction: Direction::Both,
        conditions: Conditions {
            src_ports: (line.src_ports != ALL_PORTS).then_some(line.src_ports),
            ..Conditions::default()
        },
        audit: false,
    }
}

fn tags(net: Net, nets: &[Net]) -> TagSet {
    if net.len == 0 {
        return TagSet::Any;
    }
    let first = nets.partition_point(|other| *other < net);
    let end = nets.partition_point(|other| other.start <= net.end());
    TagSet::Only((first..end).map(|tag| Tag(tag as u32)).collect())
}

/// Ports of any protocol are those of each that has some.
fn services(line: &Line) -> Services {
    let (first, last) = line.dst_ports;
    let ports = |protocol| Service::Ports { protocol, first, last };
    match line.protocol {
        Some(protocol) if line.dst_ports == ALL_PORTS => {
            Services::Only(vec![Service::Protocol(protocol)])
        }
        Some(protocol) => Services::Only(vec![ports(protocol)]),
        None if line.dst_ports == ALL_PORTS => Services::Any,
        None => Services::Only([TCP, UDP, SCTP].map(ports).to_vec()),
    }
}

/// `count` headers, each a random point of a random rule.
pub fn headers(rules: &[Line], count: usize) -> Vec<Header> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut header = || {
        let rule = rules[rng.usize(..rules.len())];
        Header {
            src: rng.u32(rule.src.start..=rule.src.end()),
            dst: rng.u32(rule.dst.start..=rule.dst.end()),
            src_port: rng.u16(rule.src_ports.0..=rule.src_ports.1),
            dst_port: rng.u16(rule.dst_ports.0..=rule.dst_ports.1),
            protocol: rule.protocol.unwrap_or_else(|| [TCP, UDP][rng.usize(..2)]),
        }
    };
    (0..count).map(|_| header()).collect()
}

/// A header's source and destination as a flow key holds them.
pub fn addresses(header: &Header) -> (u128, u128) {
    let bits = |addr: u32| to_bits(Ipv4Addr::from(addr).into());
    (bits(header.src), bits(header.dst))
}

/// The conversation that a header begins.
pub fn conversation(header: &Header, from: Owner, to: Owner) -> Conversation {
    let &Header { dst_port, protocol, .. } = header;
    let opening = conditions::opening(header);
    Conversation { from: tag(from), to: tag(to), protocol, dst_port, opening }
}

fn tag(owner: Owner) -> Tag {
    match owner {
        Owner::Workload(_, tag) | Owner::Outside(tag) => tag,
        Owner::Unspecified => Tag(u32::MAX),
    }
}
