//! The scene: a policy of many workloads and rules, and the frames that two of them exchange.

use std::net::{IpAddr, Ipv6Addr};

use fastrand::Rng;
use firedoor_classifier::build::{self, Ends};
use firedoor_classifier::snapshot::{
    Conditions, Direction, Kind, Lane, Mode, Rule, RuleAction, Service, Services, Settings,
    Snapshot, TagInfo, TagSet, VlanMode, Workload,
};
use firedoor_classifier::wire::protocol::{TCP, UDP};
use firedoor_classifier::{MacAddr, PortId, Tag};

/// Workloads, and so ports.
pub const WORKLOADS: u16 = 200;
/// Segments that the workloads are spread over.
const SEGMENTS: u32 = 40;
/// Tags that a rule names on each side.
const TAGS_PER_RULE: usize = 4;

/// Asks.
pub const CLIENT: PortId = PortId(0);
/// Answers.
pub const SERVER: PortId = PortId(1);
/// Where the server listens.
pub const SERVICE_PORT: u16 = 8080;

/// A policy of `rules` rules. All but two are about TCP between random segments; the last two let
/// client and server begin UDP conversations with each other.
pub fn snapshot(rules: usize) -> Snapshot {
    let rng = &mut Rng::with_seed(rules as u64);
    let (client, server) = (tag(CLIENT), tag(SERVER));
    let udp = Service::Ports { protocol: UDP, first: 1, last: u16::MAX };
    let last = [
        rule("ask", RuleAction::Allow, vec![client], vec![server], udp),
        rule("answer", RuleAction::Allow, vec![server], vec![client], udp),
    ];
    let others = (last.len()..rules).map(|n| random_rule(n, rng));
    Snapshot {
        epoch: 1,
        switch: "bench".to_owned(),
        mode: Mode::Enforce,
        settings: Settings::default(),
        workloads: (0..WORKLOADS).map(workload).collect(),
        tags: (0..=SEGMENTS).map(|n| TagInfo { name: format!("segment={n}") }).collect(),
        prefixes: Vec::new(),
        world: Tag(SEGMENTS),
        rules: others.chain(last).collect(),
    }
}

/// The segment of the workload at a port.
pub fn tag(port: PortId) -> Tag {
    Tag(u32::from(port.0) % SEGMENTS)
}

/// From the workload at one port to that at another, over IPv4.
pub fn ends(from: PortId, to: PortId) -> Ends {
    Ends { eth_src: mac(from.0), eth_dst: mac(to.0), src: v4(from.0), dst: v4(to.0) }
}

/// Likewise over IPv6.
pub fn ends6(from: PortId, to: PortId) -> Ends {
    Ends { src: v6(from.0), dst: v6(to.0), ..ends(from, to) }
}

/// One UDP frame of 64 bytes on the wire, which is 60 without the frame check sequence.
pub fn small_udp(ends: Ends, src_port: u16, dst_port: u16) -> Vec<u8> {
    build::udp(ends, src_port, dst_port, &[0; 18])
}

/// One frame of each of `flows` (at most 60,000) flows from client to server, in random order.
pub fn requests(flows: u16) -> Vec<Vec<u8>> {
    let frame = |port| small_udp(ends(CLIENT, SERVER), port, SERVICE_PORT);
    shuffled_ports(flows).into_iter().map(frame).collect()
}

/// The answers to [`requests`], in another order.
pub fn answers(flows: u16) -> Vec<Vec<u8>> {
    let frame = |port| small_udp(ends(SERVER, CLIENT), SERVICE_PORT, port);
    shuffled_ports(flows).into_iter().rev().map(frame).collect()
}

/// The client's ports, in random order.
fn shuffled_ports(flows: u16) -> Vec<u16> {
    let mut ports: Vec<u16> = (1_024..1_024 + flows).collect();
    Rng::with_seed(1).shuffle(&mut ports);
    ports
}

fn workload(n: u16) -> Workload {
    Workload {
        name: format!("w{n}"),
        port: PortId(n),
        tag: tag(PortId(n)),
        kind: Kind::Container,
        ifname: format!("fd{n}"),
        mac: Some(mac(n)),
        addresses: vec![v4(n), v6(n)],
        vlan: VlanMode::Access(0),
        lane: Lane::Auto,
        router: false,
        dhcp_server: false,
    }
}

fn random_rule(n: usize, rng: &mut Rng) -> Rule {
    let action = if rng.u8(..) < 200 { RuleAction::Allow } else { RuleAction::Deny };
    let first = rng.u16(1..60_000);
    let service = Service::Ports { protocol: TCP, first, last: first + rng.u16(..16) };
    rule(&format!("r{n}"), action, random_tags(rng), random_tags(rng), service)
}

fn random_tags(rng: &mut Rng) -> Vec<Tag> {
    let mut tags: Vec<Tag> = (0..TAGS_PER_RULE).map(|_| Tag(rng.u32(..SEGMENTS))).collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}

fn rule(name: &str, action: RuleAction, from: Vec<Tag>, to: Vec<Tag>, service: Service) -> Rule {
    Rule {
        name: name.to_owned(),
        tier: 3,
        priority: 100,
        action,
        from: TagSet::Only(from),
        to: TagSet::Only(to),
        services: Services::Only(vec![service]),
        direction: Direction::Both,
        conditions: Conditions::default(),
        audit: false,
    }
}

fn mac(n: u16) -> MacAddr {
    let [high, low] = n.to_be_bytes();
    MacAddr([2, 0, 0, 0, high, low])
}

fn v4(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    IpAddr::from([10, 10, high, low])
}

fn v6(n: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n))
}
