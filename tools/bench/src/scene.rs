//! What the switches that are measured are made of: workloads, spread over segments, and rules about
//! them. Each measurement adds what it is about.
//!
//! A workload is its port: names, addresses and MACs follow from its number. What is random comes from
//! the caller's generator, so a scene is the same in every run.

use std::net::{IpAddr, Ipv6Addr};

use fastrand::Rng;
use firedoor_classifier::build::Ends;
use firedoor_classifier::snapshot::{
    Conditions, Direction, Kind, Lane, Mode, Rule, RuleAction, Service, Services, Settings,
    Snapshot, TagInfo, TagSet, VlanMode, Workload,
};
use firedoor_classifier::wire::protocol::TCP;
use firedoor_classifier::{MacAddr, PortId, Tag};

/// Tags that a random rule names on each side, at most.
const TAGS_PER_RULE: usize = 4;

/// How many segments the workloads are spread over. What is outside the switch has a tag of its own.
#[derive(Clone, Copy, Debug)]
pub struct Segments(pub u32);

impl Segments {
    /// The segment of the workload at a port.
    pub const fn of(self, port: PortId) -> Tag {
        Tag(port.0 as u32 % self.0)
    }

    /// A policy of these rules for `workloads` workloads, at ports 0 and up.
    pub fn snapshot(self, workloads: u16, settings: Settings, rules: Vec<Rule>) -> Snapshot {
        Snapshot {
            epoch: 1,
            switch: "bench".to_owned(),
            mode: Mode::Enforce,
            settings,
            workloads: (0..workloads).map(PortId).map(|n| workload(n, self.of(n))).collect(),
            tags: (0..=self.0).map(|n| TagInfo { name: format!("segment={n}") }).collect(),
            prefixes: Vec::new(),
            world: Tag(self.0),
            rules,
        }
    }

    /// Lets random segments reach others on a few TCP ports.
    pub fn random_rule(self, n: usize, rng: &mut Rng) -> Rule {
        let first = rng.u16(1..60_000);
        let service = Service::Ports { protocol: TCP, first, last: first + rng.u16(..16) };
        let (from, to) = (self.random_tags(rng), self.random_tags(rng));
        allow(format!("r{n}"), from, to, Services::Only(vec![service]))
    }

    fn random_tags(self, rng: &mut Rng) -> TagSet {
        let mut tags: Vec<Tag> = (0..TAGS_PER_RULE).map(|_| Tag(rng.u32(..self.0))).collect();
        tags.sort_unstable();
        tags.dedup();
        TagSet::Only(tags)
    }
}

/// A rule that lets one side reach the other.
pub fn allow(name: String, from: TagSet, to: TagSet, services: Services) -> Rule {
    Rule {
        name,
        tier: 3,
        priority: 100,
        action: RuleAction::Allow,
        from,
        to,
        services,
        direction: Direction::Both,
        conditions: Conditions::default(),
        audit: false,
    }
}

/// The workload at a port.
pub fn workload(port: PortId, tag: Tag) -> Workload {
    Workload {
        name: format!("w{port}"),
        port,
        tag,
        kind: Kind::Container,
        ifname: format!("fd{port}"),
        mac: Some(mac(port)),
        addresses: vec![v4(port), v6(port)],
        vlan: VlanMode::Access(0),
        lane: Lane::Auto,
        router: false,
        dhcp_server: false,
    }
}

/// From the workload at one port to that at another, over IPv4.
pub fn ends(from: PortId, to: PortId) -> Ends {
    Ends { eth_src: mac(from), eth_dst: mac(to), src: v4(from), dst: v4(to) }
}

/// Likewise over IPv6.
pub fn ends6(from: PortId, to: PortId) -> Ends {
    Ends { src: v6(from), dst: v6(to), ..ends(from, to) }
}

/// The MAC address of the workload at a port.
pub const fn mac(port: PortId) -> MacAddr {
    let [high, low] = port.0.to_be_bytes();
    MacAddr([2, 0, 0, 0, high, low])
}

fn v4(port: PortId) -> IpAddr {
    let [high, low] = port.0.to_be_bytes();
    IpAddr::from([10, 10, high, low])
}

fn v6(port: PortId) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, port.0))
}
