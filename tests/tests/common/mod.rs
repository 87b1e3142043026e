//! The switch that the path tests use, and frames for it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "test data")]

use std::net::{IpAddr, Ipv6Addr};

use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::wire::tcp;
use firedoor_classifier::{MacAddr, Snapshot};
use firedoor_tests::fabric::{Fabric, scattered, snapshot};

/// Three tiers, and a rule of each kind.
pub const CONFIG: &str = r#"
[switch]
name = "path"
frames = 4096
max_connections = 1024
max_flows = 1024

[[workload]]
name = "web"
kind = "container"
labels = { tier = "web" }
ip = ["10.0.0.1/24", "fd00::1/64"]
mac = "02:00:00:00:00:01"

[[workload]]
name = "api"
kind = "container"
labels = { tier = "api" }
ip = ["10.0.0.2/24", "fd00::2/64"]
mac = "02:00:00:00:00:02"

[[workload]]
name = "db"
kind = "container"
labels = { tier = "db" }
ip = ["10.0.0.3/24", "fd00::3/64"]
mac = "02:00:00:00:00:03"

[[rule]]
name = "web-to-api"
from = { tier = "web" }
to = { tier = "api" }
service = ["tcp/8080", "udp/53", "icmp/echo", "icmp6/echo"]
action = "allow"

[[rule]]
name = "no-ssh"
from = { any = true }
to = { tier = "db" }
service = ["tcp/22"]
action = "deny"

[[rule]]
name = "ask-nicely"
from = { tier = "web" }
to = { tier = "db" }
service = ["tcp/5432", "udp/5432"]
action = "reject"
"#;

/// Two access ports in different VLANs, and a trunk that carries both.
pub const VLANS: &str = r#"
[switch]
name = "vlans"
frames = 512

[[workload]]
name = "a"
kind = "container"
ip = ["10.0.0.1/24"]
mac = "02:00:00:00:00:01"
vlan = 10

[[workload]]
name = "b"
kind = "container"
ip = ["10.0.0.2/24"]
mac = "02:00:00:00:00:02"
trunk = [10, 20]

[[workload]]
name = "c"
kind = "container"
ip = ["10.0.0.3/24"]
mac = "02:00:00:00:00:03"
vlan = 20

[[rule]]
name = "all"
from = { any = true }
to = { any = true }
action = "allow"
"#;

/// A switch that enforces `config`, of as many workers as the test binary is about.
pub fn switch(config: &str) -> Fabric {
    switch_of(snapshot(config))
}

/// A switch that enforces `snapshot`: of one worker, or of two, each with a queue of every port, where
/// frames arrive at either.
pub fn switch_of(snapshot: Snapshot) -> Fabric {
    if module_path!().starts_with("two_workers") {
        Fabric::with_queues(snapshot, 2, scattered)
    } else {
        Fabric::of(snapshot)
    }
}

/// A workload's MAC number and address.
pub type Host = (u8, &'static str);

pub const WEB: Host = (1, "10.0.0.1");
pub const API: Host = (2, "10.0.0.2");
pub const DB: Host = (3, "10.0.0.3");
pub const WEB_SIX: Host = (1, "fd00::1");
pub const API_SIX: Host = (2, "fd00::2");

pub fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

/// The link-local address of [`mac`]`(n)`, by EUI-64 (RFC 4291 appendix A).
pub fn link_local(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x00ff, 0xfe00, n.into())
}

pub fn ends(from: Host, to: Host) -> Ends {
    let addr = |text: &str| text.parse::<IpAddr>().unwrap();
    Ends { eth_src: mac(from.0), eth_dst: mac(to.0), src: addr(from.1), dst: addr(to.1) }
}

/// From web to all hosts of the link.
pub fn multicast() -> Ends {
    let eth_dst = MacAddr([0x01, 0, 0x5e, 0, 0, 1]);
    Ends { eth_dst, dst: "224.0.0.1".parse().unwrap(), ..ends(WEB, API) }
}

pub fn syn(from: Host, to: Host, port: u16) -> Vec<u8> {
    build::tcp(ends(from, to), 40_000, port, TcpFlags::SYN)
}

pub fn segment(
    ends: Ends,
    (source_port, destination_port): (u16, u16),
    flags: TcpFlags,
    sequence: u32,
    acknowledgement: u32,
) -> Vec<u8> {
    let header = tcp::Repr {
        source_port,
        destination_port,
        sequence,
        acknowledgement,
        flags,
        window: 64_240,
    };
    build::tcp_segment(ends, header, &[])
}

/// A neighbour solicitation by web.
pub fn solicit(source: &str, target: &str) -> Vec<u8> {
    build::neighbor_solicitation(mac(1), source.parse().unwrap(), target.parse().unwrap())
}

/// Opens web to api tcp/8080 from this port; checks that each step arrives unless `quiet`.
pub fn handshake_from(fabric: &mut Fabric, port: u16, quiet: bool) {
    let there = ends(WEB, API);
    let (out, back) = ((port, 8080), (8080, port));
    let syn_ack = TcpFlags::SYN | TcpFlags::ACK;
    let steps = [
        ("web", "api", segment(there, out, TcpFlags::SYN, 100, 0)),
        ("api", "web", segment(there.reversed(), back, syn_ack, 500, 101)),
        ("web", "api", segment(there, out, TcpFlags::ACK, 101, 501)),
    ];
    for (from, to, frame) in steps {
        let received = fabric.send(from, &frame);
        assert!(quiet || received == [(to.into(), frame)], "{from} to {to}: {received:?}");
    }
}

/// Opens web to api tcp/8080 from port 40000.
pub fn handshake(fabric: &mut Fabric) {
    handshake_from(fabric, 40_000, false);
}

/// Data from web to api in the connection that [`handshake`] opened.
pub fn data() -> Vec<u8> {
    segment(ends(WEB, API), (40_000, 8080), TcpFlags::ACK | TcpFlags::PSH, 101, 501)
}
