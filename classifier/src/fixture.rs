//! A small switch for tests.
//!
//! | name | port | VLAN | |
//! |---|---|---|---|
//! | web | 1 | 0 | |
//! | api | 2 | 0 | |
//! | db | 3 | 0 | |
//! | gateway | 4 | 0 | router |
//! | dhcp | 5 | 0 | DHCP server |
//!
//! Workload n has tag n, MAC 02:00:00:00:00:0n, addresses 10.10.0.n and fd00::n and its link-local
//! one. The group `office`, 192.0.2.0/24, has tag 8; the world has tag 9.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::build::Ends;
use crate::extract::{Headers, extract};
use crate::mac::MacAddr;
use crate::policy::Policy;
use crate::snapshot::{
    Conditions, Direction, Kind, Lane, Mode, PortId, Prefix, Rule, RuleAction, Service, Services,
    Settings, Snapshot, Tag, TagInfo, TagSet, VlanMode, Workload,
};

pub(crate) const WEB: u16 = 1;
pub(crate) const API: u16 = 2;
pub(crate) const DB: u16 = 3;
pub(crate) const GATEWAY: u16 = 4;
pub(crate) const DHCP: u16 = 5;
pub(crate) const OFFICE: u32 = 8;
pub(crate) const WORLD: u32 = 9;

/// An address of the office group, and one of nobody's.
pub(crate) const IN_OFFICE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
pub(crate) const IN_WORLD: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

pub(crate) fn mac(n: u16) -> MacAddr {
    let [a, b] = n.to_be_bytes();
    MacAddr([2, 0, 0, 0, a, b])
}

pub(crate) fn v4(n: u16) -> IpAddr {
    IpAddr::from([10, 10, 0, n as u8])
}

pub(crate) fn v6(n: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n))
}

pub(crate) fn link_local(n: u16) -> Ipv6Addr {
    let MacAddr([_, b, c, d, e, f]) = mac(n);
    let [eui_a, eui_b, eui_c, eui_d] = [0, b, c, 0xff].map(u16::from);
    let d = u16::from(d);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        eui_a << 8 | eui_b,
        eui_c << 8 | eui_d,
        0xfe00 | d,
        u16::from_be_bytes([e, f]),
    )
}

/// From workload `from` to workload `to`, over IPv4.
pub(crate) fn ends(from: u16, to: u16) -> Ends {
    Ends { eth_src: mac(from), eth_dst: mac(to), src: v4(from), dst: v4(to) }
}

/// Likewise over IPv6.
pub(crate) fn ends6(from: u16, to: u16) -> Ends {
    Ends { src: v6(from), dst: v6(to), ..ends(from, to) }
}

pub(crate) fn headers(port: u16, frame: &[u8]) -> Headers {
    extract(frame, PortId(port)).expect("the frame is well-formed")
}

pub(crate) fn workload(n: u16, name: &str) -> Workload {
    Workload {
        name: name.to_owned(),
        port: PortId(n),
        tag: Tag(n.into()),
        kind: Kind::Container,
        ifname: format!("fd{n}"),
        mac: Some(mac(n)),
        addresses: vec![v4(n), v6(n), link_local(n).into()],
        vlan: VlanMode::Access(0),
        lane: Lane::Auto,
        router: false,
        dhcp_server: false,
    }
}

pub(crate) fn rule(name: &str, action: RuleAction, from: u32, to: u32, service: Service) -> Rule {
    Rule {
        name: name.to_owned(),
        tier: 3,
        priority: 100,
        action,
        from: TagSet::Only(vec![Tag(from)]),
        to: TagSet::Only(vec![Tag(to)]),
        services: Services::Only(vec![service]),
        direction: Direction::Both,
        conditions: Conditions::default(),
        audit: false,
    }
}

pub(crate) const fn tcp(port: u16) -> Service {
    Service::Ports { protocol: 6, first: port, last: port }
}

pub(crate) const fn udp(port: u16) -> Service {
    Service::Ports { protocol: 17, first: port, last: port }
}

/// Rules: web may reach api on tcp/8080 and udp/53; api may not reach web on tcp/22 (deny) and
/// tcp/23 (reject); web may reach the office on tcp/443; the office may reach api on tcp/8080.
pub(crate) fn snapshot() -> Snapshot {
    let (web, api) = (u32::from(WEB), u32::from(API));
    Snapshot {
        epoch: 1,
        switch: "fixture".to_owned(),
        mode: Mode::Enforce,
        settings: Settings { max_connections: 1024, max_flows: 1024, ..Settings::default() },
        workloads: vec![
            workload(WEB, "web"),
            workload(API, "api"),
            workload(DB, "db"),
            Workload { router: true, ..workload(GATEWAY, "gateway") },
            Workload { dhcp_server: true, ..workload(DHCP, "dhcp") },
        ],
        tags: (0..10).map(|n| TagInfo { name: format!("tag {n}") }).collect(),
        prefixes: vec![Prefix {
            net: "192.0.2.0/24".parse().expect("a literal prefix"),
            tag: Tag(OFFICE),
        }],
        world: Tag(WORLD),
        rules: vec![
            rule("web-to-api", RuleAction::Allow, web, api, tcp(8080)),
            rule("web-to-api-dns", RuleAction::Allow, web, api, udp(53)),
            rule("no-ssh", RuleAction::Deny, api, web, tcp(22)),
            rule("no-telnet", RuleAction::Reject, api, web, tcp(23)),
            rule("web-to-office", RuleAction::Allow, web, OFFICE, tcp(443)),
            rule("office-to-api", RuleAction::Allow, OFFICE, api, tcp(8080)),
        ],
    }
}

/// Two more ports for VLANs: 6 is a router with trunk 10 and 20 and no MAC address of its own, 7 an
/// access port of VLAN 10, 8 another router like 6.
pub(crate) fn with_vlans() -> Snapshot {
    let mut snapshot = snapshot();
    let router = |n, name| Workload {
        router: true,
        mac: None,
        addresses: Vec::new(),
        vlan: VlanMode::Trunk(vec![10, 20]),
        tag: Tag(6),
        ..workload(n, name)
    };
    snapshot.workloads.extend([
        router(6, "uplink-a"),
        Workload { vlan: VlanMode::Access(10), ..workload(7, "member") },
        router(8, "uplink-b"),
    ]);
    snapshot.rules.push(rule("member-out", RuleAction::Allow, 7, OFFICE, tcp(443)));
    snapshot.rules.push(rule("office-in", RuleAction::Allow, OFFICE, 7, tcp(80)));
    snapshot
}

pub(crate) fn policy(snapshot: Snapshot) -> Policy {
    Policy::build(snapshot).expect("the fixture is valid")
}
