//! A switch of many workloads under 1,000 rules, and conversations between them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use fastrand::Rng;
use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::extract::{Headers, extract};
use firedoor_classifier::snapshot::{
    Conditions, Direction, Kind, Lane, Mode, Rule, RuleAction, Service, Services, Settings,
    Snapshot, TagInfo, TagSet, VlanMode, Workload,
};
use firedoor_classifier::wire::protocol::TCP;
use firedoor_classifier::{MacAddr, Nanos, Pipeline, Policy, PortId, Tag};

use super::{ROUNDS, median};

/// Rules of the policy.
const RULES: usize = 1_000;

/// Workloads that ask. Their ports come first.
pub(super) const CLIENTS: u16 = 32;

/// Workloads that answer.
const SERVERS: u16 = 32;

/// Segments that the workloads are spread over.
const SEGMENTS: u32 = 16;

/// Tags that a rule names on each side.
const TAGS_PER_RULE: usize = 4;

/// Size of the flow cache, where it takes part.
pub(super) const FLOWS: u32 = 65_536;

/// The server that every client may reach on any TCP port.
pub(super) const fn server() -> PortId {
    PortId(CLIENTS)
}

/// From the workload at one port to that at another.
pub(super) fn ends(from: PortId, to: PortId) -> Ends {
    Ends { eth_src: mac(from), eth_dst: mac(to), src: address(from), dst: address(to) }
}

/// A pipeline under the policy, with room for `connections`.
pub(super) fn pipeline(connections: u32, flows: u32) -> Pipeline {
    let settings = Settings {
        max_connections: connections,
        max_flows: flows,
        upcalls_per_sec: u32::MAX,
        ..Settings::default()
    };
    let policy = Policy::build(snapshot(settings));
    let policy = policy.unwrap_or_else(|_| unreachable!("the snapshot is valid"));
    let mut pipeline = Pipeline::new(Arc::new(policy));
    pipeline.set_aside();
    pipeline
}

/// A segment of a conversation, without data.
pub(super) fn segment(from: PortId, to: PortId, ports: (u16, u16), flags: TcpFlags) -> Headers {
    let frame = build::tcp(ends(from, to), ports.0, ports.1, flags);
    extract(&frame, from).unwrap_or_else(|_| unreachable!("well-formed"))
}

/// How many connections a pipeline sets up in a second: `connections`, between random workloads.
pub(super) fn setups_per_sec(connections: u32, flows: u32) -> f64 {
    let mut frames = Vec::new();
    let rng = &mut Rng::with_seed(2);
    for client in 0..CLIENTS {
        let to = PortId(CLIENTS + rng.u16(..SERVERS));
        frames.push(segment(PortId(client), to, (1, 1), TcpFlags::SYN));
    }
    let round = |_| {
        // Room for as many again: the ports' shares are not what is measured.
        let mut pipeline = pipeline(connections.saturating_mul(2), flows);
        let begun = Instant::now();
        for n in 0..connections {
            let at = n as usize % frames.len();
            let Some(headers) = frames.get_mut(at) else { continue };
            let number = n / u32::from(CLIENTS);
            headers.key.src_port = 1 + (number % 65_535) as u16;
            headers.key.dst_port = 1 + (number / 65_535) as u16 * 64 + (number % 61) as u16;
            let verdict = pipeline.judge(headers, 60, Nanos::from_secs(1_000));
            assert!(verdict.is_forwarded(), "the last rule allows it: {verdict:?}");
        }
        let took = begun.elapsed().as_secs_f64();
        assert_eq!(pipeline.connections(), connections as usize);
        f64::from(connections) / took
    };
    median((0..ROUNDS).map(round).collect())
}

/// Random rules about TCP between segments, none of which decides, and one that allows the rest.
fn snapshot(settings: Settings) -> Snapshot {
    let rng = &mut Rng::with_seed(1);
    let mut rules: Vec<Rule> = (1..RULES).map(|n| random_rule(n, rng)).collect();
    rules.push(rule("rest".to_owned(), TagSet::Any, TagSet::Any, Service::Protocol(TCP)));
    Snapshot {
        epoch: 1,
        switch: "bench".to_owned(),
        mode: Mode::Enforce,
        settings,
        workloads: (0..CLIENTS + SERVERS).map(|n| workload(PortId(n))).collect(),
        tags: (0..=SEGMENTS).map(|n| TagInfo { name: format!("segment={n}") }).collect(),
        prefixes: Vec::new(),
        world: Tag(SEGMENTS),
        rules,
    }
}

fn random_rule(n: usize, rng: &mut Rng) -> Rule {
    let first = rng.u16(1..60_000);
    let service = Service::Ports { protocol: TCP, first, last: first + rng.u16(..16) };
    rule(format!("r{n}"), random_tags(rng), random_tags(rng), service)
}

fn random_tags(rng: &mut Rng) -> TagSet {
    let mut tags: Vec<Tag> = (0..TAGS_PER_RULE).map(|_| Tag(rng.u32(..SEGMENTS))).collect();
    tags.sort_unstable();
    tags.dedup();
    TagSet::Only(tags)
}

fn rule(name: String, from: TagSet, to: TagSet, service: Service) -> Rule {
    Rule {
        name,
        tier: 3,
        priority: 100,
        action: RuleAction::Allow,
        from,
        to,
        services: Services::Only(vec![service]),
        direction: Direction::Both,
        conditions: Conditions::default(),
        audit: false,
    }
}

fn workload(port: PortId) -> Workload {
    Workload {
        name: format!("w{port}"),
        port,
        tag: Tag(u32::from(port.0) % SEGMENTS),
        kind: Kind::Container,
        ifname: format!("fd{port}"),
        mac: Some(mac(port)),
        addresses: vec![address(port)],
        vlan: VlanMode::Access(0),
        lane: Lane::Auto,
        router: false,
        dhcp_server: false,
    }
}

fn mac(port: PortId) -> MacAddr {
    let [high, low] = port.0.to_be_bytes();
    MacAddr([2, 0, 0, 0, high, low])
}

fn address(port: PortId) -> IpAddr {
    let [high, low] = port.0.to_be_bytes();
    IpAddr::from([10, 10, high, low])
}
