//! Replays the fuzz corpus on the stable toolchain, so that what fuzzing once found stays found.
//!
//! Files named for a message are the body of one, of the version that they were written by; a
//! later version may read them as something else, or not at all. `cargo test -p firedoor-api --test
//! corpus -- --ignored` writes them anew.

use std::fs;
use std::path::PathBuf;

use firedoor_api::control::{self, Deny};
use firedoor_api::dataplane::{
    self, AwakeStatus, Denied, Event, ExpressStatus, Flow, PortCounters, PortState, PortStatus,
    Takeover,
};
use firedoor_api::encode;
use firedoor_classifier::MacAddr;
use firedoor_classifier::snapshot::{
    Conditions, Direction, Kind, Lane, Mode, PortId, Prefix, Rule, RuleAction, Service, Services,
    Settings, Snapshot, Tag, TagInfo, TagSet, VlanMode, Workload,
};
use firedoor_classifier::verdict::DropReason;
use serde::Serialize;

#[path = "../../../tests/fuzz/checks/protocol.rs"]
mod check;

/// Bytes of the length and version fields.
const HEADER: usize = 6;

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus/protocol")
}

#[test]
fn the_codec_keeps_its_promises() {
    let entries = fs::read_dir(corpus()).expect("the corpus is in the repository");
    let mut cases = 0;
    for entry in entries {
        let path = entry.expect("the corpus is readable").path();
        println!("{}", path.display());
        check::check(&fs::read(path).expect("a case is a file"));
        cases += 1;
    }
    assert_ne!(cases, 0);
}

#[test]
fn every_message_comes_back_as_it_went() {
    for (name, body) in messages() {
        println!("{name}");
        // As a body it is decoded, encoded and compared, as the type that it is.
        check::check(&body);
    }
}

#[test]
#[ignore = "writes into the repository"]
fn write_the_corpus() {
    for (name, body) in messages() {
        fs::write(corpus().join(name), body).expect("the corpus is writable");
    }
}

fn body(message: &impl Serialize) -> Vec<u8> {
    encode(message).expect("it is short").split_off(HEADER)
}

/// A body of each kind of message, by name.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    use dataplane::{Reply, Request};
    let refused = "no: nothing changed".to_owned();
    vec![
        ("install", body(&Request::Install(Box::new(snapshot())))),
        ("subscribe", body(&Request::Subscribe)),
        ("retire", body(&Request::Retire)),
        ("retired", body(&Reply::Retired { pid: 4711, stopped: u64::MAX })),
        ("installed", body(&Reply::Installed { epoch: 7, ports: ports() })),
        ("snapshot", body(&Reply::Snapshot(Some(Box::new(snapshot()))))),
        ("no-snapshot", body(&Reply::Snapshot(None))),
        ("dataplane-status", body(&Reply::Status(Box::new(dataplane_status())))),
        ("ports", body(&Reply::Ports(ports()))),
        ("flows", body(&Reply::Flows(vec![flow()]))),
        ("dataplane-refused", body(&Reply::Refused { message: refused.clone() })),
        ("event-denied", body(&Event::Denied(Box::new(denied())))),
        ("event-mirror-lost", body(&Event::MirrorLost(1_000))),
        ("event-port", body(&Event::Port(Box::new(ports().swap_remove(0))))),
        ("event-epoch", body(&Event::Epoch(u64::MAX))),
        ("port-add", body(&control::Request::PortAdd { workload: "name = \"cache\"".into() })),
        ("port-del", body(&control::Request::PortDel { name: "cache".into() })),
        ("follow-denies", body(&control::Request::FollowDenies)),
        (
            "apply",
            body(&control::Request::Apply { path: "a.toml".into(), text: "[switch]\n".into() }),
        ),
        ("status", body(&control::Reply::Status(Box::new(status())))),
        ("denies", body(&control::Reply::Denies(vec![deny()]))),
        (
            "applied",
            body(&control::Reply::Applied {
                epoch: 8,
                notices: vec!["a.toml:3:1: a rule has expired".into()],
                ports: ports(),
            }),
        ),
        ("control-refused", body(&control::Reply::Refused { message: refused })),
    ]
}

fn snapshot() -> Snapshot {
    let workload = |name: &str, port: u16, vlan| Workload {
        name: name.into(),
        port: PortId(port),
        tag: Tag(u32::from(port)),
        kind: Kind::Container,
        ifname: format!("fd0000.{name}"),
        mac: Some(MacAddr([2, 0, 0, 0, 0, port as u8])),
        addresses: vec![[10, 10, 0, port as u8].into()],
        vlan,
        lane: Lane::Auto,
        router: port == 2,
        dhcp_server: false,
    };
    let service = Service::Ports { protocol: 6, first: 8080, last: 8080 };
    let echo = Service::Icmp { protocol: 1, kind: 8, code: None };
    Snapshot {
        epoch: 7,
        switch: "lab0".into(),
        mode: Mode::Enforce,
        settings: Settings::default(),
        workloads: vec![
            workload("web", 1, VlanMode::Access(0)),
            workload("gw", 2, VlanMode::Trunk(vec![10, 20])),
        ],
        tags: ["world", "tier=web", "app=gw"].map(|name| TagInfo { name: name.into() }).into(),
        prefixes: vec![Prefix { net: "192.0.2.0/24".parse().expect("a prefix"), tag: Tag(0) }],
        world: Tag(0),
        rules: vec![Rule {
            name: "web-to-gw".into(),
            tier: 3,
            priority: 100,
            action: RuleAction::Allow,
            from: TagSet::Only(vec![Tag(1)]),
            to: TagSet::Any,
            services: Services::Only(vec![service, echo, Service::Protocol(47)]),
            direction: Direction::Both,
            conditions: Conditions::default(),
            audit: true,
        }],
    }
}

fn ports() -> Vec<PortStatus> {
    let states = [PortState::Up, PortState::Missing, PortState::Failed("permission denied".into())];
    let port = |(i, state): (usize, PortState)| PortStatus {
        workload: format!("w{i}"),
        port: PortId(i as u16 + 1),
        ifname: format!("tap{i}"),
        state,
        lane: Lane::Switch,
        mode: "native copy".into(),
        workers: vec![0, 1],
        notices: vec!["generic XDP: the driver has no native one".into()],
        counters: PortCounters { rx_frames: 1, rx_bytes: 60, ..PortCounters::default() },
    };
    states.into_iter().enumerate().map(port).collect()
}

fn dataplane_status() -> dataplane::Status {
    dataplane::Status {
        version: "0.1.0 (a6a63b4)".into(),
        pid: 1,
        epoch: 7,
        workers: 2,
        received_by: vec![3, 4],
        connections: 5,
        connections_by: vec![2, 3],
        drops: vec![(DropReason::DefaultDeny, 3), (DropReason::SpoofedArp, u64::MAX)],
        would_drops: vec![(DropReason::Denied, 1)],
        awake: Some(AwakeStatus {
            within_us: 2,
            held: false,
            problem: Some("permission denied".into()),
        }),
        express: Some(ExpressStatus { flows: 6, ..ExpressStatus::default() }),
        takeover: Some(Takeover { predecessor: 4710, ..Takeover::default() }),
        ..dataplane::Status::default()
    }
}

fn status() -> control::Status {
    control::Status {
        switch: "lab0".into(),
        mode: Mode::Audit,
        control_version: "0.1.0 (a6a63b4)".into(),
        control_pid: 2,
        control_uptime_secs: 61,
        dataplane: Some(dataplane_status()),
        ports: ports(),
        capture: "/run/firedoor/lab0/denies.pcapng".into(),
        captured: 3,
        capture_lost: 0,
        mirror_lost: 9,
        settings: Settings::default(),
    }
}

fn flow() -> Flow {
    Flow {
        kind: "connection".into(),
        from: "web".into(),
        to: "gw".into(),
        protocol: 6,
        src: Some([10, 10, 0, 1].into()),
        dst: Some("fd00:10::2".parse().expect("an address")),
        src_port: Some(40_000),
        dst_port: None,
        verdict: "default-deny".into(),
        dropped: false,
        rule: "web-to-gw".into(),
        state: "established".into(),
        lane: Lane::Express,
        kept: String::new(),
        frames: 10,
        bytes: 9_000,
        age_ms: 1_500,
        idle_ms: 3,
    }
}

fn denied() -> Denied {
    Denied {
        unix_ns: 1_790_000_000_123_456_789,
        epoch: 7,
        port: PortId(1),
        from: "web".into(),
        to: "192.0.2.1".into(),
        rule: "default".into(),
        reason: DropReason::DefaultDeny,
        dropped: true,
        protocol: 17,
        ether_type: 0x0800,
        src: Some([10, 10, 0, 1].into()),
        dst: None,
        src_port: 1,
        dst_port: 53,
        length: 60,
        bytes: vec![0; 60],
    }
}

fn deny() -> Deny {
    Deny {
        first_unix_ns: 1,
        last_unix_ns: u64::MAX,
        from: "web".into(),
        to: "gw".into(),
        service: "udp/53".into(),
        rule: "default".into(),
        reason: "default-deny".into(),
        dropped: true,
        count: 17,
        capture: "denies.pcapng".into(),
        capture_offset: 1 << 33,
    }
}
