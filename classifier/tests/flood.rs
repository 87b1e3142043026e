//! Pressure on the connection table: a flood from one port costs that port, and nobody else.

#![allow(clippy::unwrap_used, reason = "test data")]

use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::connections::{Commit, Connections, Limits, Lookup};
use firedoor_classifier::extract::{Headers, extract};
use firedoor_classifier::snapshot::Timeouts;
use firedoor_classifier::verdict::Cause;
use firedoor_classifier::{DropReason, MacAddr, Nanos, PortId};

const SERVER: PortId = PortId(1_000);
const FLOODER: PortId = PortId(999);
const LIMITS: Limits = Limits {
    connections: 65_536,
    per_port: 32_768,
    timeouts: Timeouts::DEFAULT,
    tcp_window_check: true,
};

fn mac(port: PortId) -> MacAddr {
    let [high, low] = port.0.to_be_bytes();
    MacAddr([2, 0, 0, 0, high, low])
}

/// A segment without data from one workload to another.
fn segment(from: PortId, to: PortId, ports: (u16, u16), flags: TcpFlags) -> Headers {
    let address =
        |port: PortId| std::net::IpAddr::from((0x0a0a_0000 | u32::from(port.0)).to_be_bytes());
    let ends = Ends { eth_src: mac(from), eth_dst: mac(to), src: address(from), dst: address(to) };
    extract(&build::tcp(ends, ports.0, ports.1, flags), from).unwrap()
}

struct Scene {
    connections: Connections,
    now: Nanos,
}

impl Scene {
    fn new() -> Self {
        Self { connections: Connections::with_seed(LIMITS, 1), now: Nanos::from_secs(100) }
    }

    /// A SYN to the server.
    fn begin(&mut self, from: PortId, ports: (u16, u16)) -> Result<(), DropReason> {
        let headers = segment(from, SERVER, ports, TcpFlags::SYN);
        self.commit(&headers)
    }

    fn commit(&mut self, headers: &Headers) -> Result<(), DropReason> {
        let commit = Commit {
            output: SERVER,
            reply_mac: headers.key.eth_dst,
            cause: Cause::Default,
            would_drop: None,
            epoch: 1,
        };
        self.connections.commit(headers, commit, 60, self.now).map(drop)
    }

    /// The rest of the handshake.
    fn complete(&mut self, from: PortId, port: u16) -> bool {
        let mut answer = segment(SERVER, from, (443, port), TcpFlags::SYN | TcpFlags::ACK);
        answer.tcp.ack = 1;
        let mut ack = segment(from, SERVER, (port, 443), TcpFlags::ACK);
        (ack.tcp.seq, ack.tcp.ack) = (1, 1);
        self.passes(&answer) && self.passes(&ack)
    }

    fn passes(&mut self, headers: &Headers) -> bool {
        let Lookup::Current(hit) = self.connections.lookup(headers, 1, self.now) else {
            return false;
        };
        self.connections.observe(&hit, headers, 60, self.now);
        true
    }

    fn is_alive(&self, from: PortId, port: u16) -> bool {
        let mut ack = segment(from, SERVER, (port, 443), TcpFlags::ACK);
        (ack.tcp.seq, ack.tcp.ack) = (1, 1);
        matches!(self.connections.lookup(&ack, 1, self.now), Lookup::Current(_))
    }
}

/// Ten ports hold 10,000 established connections, and each has one handshake under way, while one
/// port sends `syns` different SYNs in as many microseconds.
fn flood(syns: u32) {
    let mut scene = Scene::new();
    for n in 0..10_000 {
        let (port, number) = (PortId(n % 10), 1_024 + n / 10);
        scene.begin(port, (number, 443)).unwrap();
        assert!(scene.complete(port, number));
    }
    let mut syn = segment(FLOODER, SERVER, (1, 1), TcpFlags::SYN);
    let mut late = 5_000;
    for n in 0..syns {
        if n % 20_000 == 0 {
            // Handshakes that begin now are completed after 20,000 more SYNs.
            (0..10).for_each(|port| scene.begin(PortId(port), (late + 1, 443)).unwrap());
            let under_way = n > 0;
            assert!(!under_way || (0..10).all(|port| scene.complete(PortId(port), late)));
            late += 1;
            scene.connections.expire(scene.now, 256);
        }
        (syn.key.src_port, syn.key.dst_port) = ((n % 65_535) as u16 + 1, (n / 65_535) as u16 + 1);
        scene.now = scene.now.plus(1_000);
        assert_eq!(scene.commit(&syn), Ok(()), "a flooder makes room among its own");
    }
    assert!((0..10_000).all(|n| scene.is_alive(PortId(n % 10), 1_024 + n / 10)));
    let handshakes = u64::from(syns.div_ceil(20_000)) * 10;
    let stats = scene.connections.stats();
    let made = 10_000 + u64::from(syns) + handshakes;
    assert_eq!((stats.created, stats.refused), (made, 0));
    assert!(stats.evicted > 0 && scene.connections.len() <= LIMITS.connections as usize);
}

#[test]
fn a_flood_evicts_none_but_the_flooders() {
    flood(200_000);
}

/// The figure. `cargo test --release -p firedoor-classifier --test flood -- --ignored`
#[test]
#[ignore = "takes a minute unless optimised"]
fn a_flood_of_ten_million_evicts_none_but_the_flooders() {
    flood(10_000_000);
}

/// Two ports fill the table. A third one that wants little still gets it, from the larger of them.
#[test]
fn a_newcomer_takes_room_from_who_holds_too_much() {
    let mut scene = Scene::new();
    let holders = [(PortId(1), 32_768), (PortId(2), 32_767)];
    for (port, count) in holders {
        for n in 0..count {
            scene.begin(port, ((n % 60_000) as u16 + 1, 80 + (n / 60_000) as u16)).unwrap();
        }
    }
    scene.begin(PortId(3), (1, 443)).unwrap();
    assert_eq!(scene.connections.len(), 65_536);
    for n in 2..1_000 {
        scene.begin(PortId(3), (n, 443)).unwrap();
    }
    assert!(scene.complete(PortId(3), 1), "its first handshake was not given up for its others");
    assert_eq!(scene.connections.stats().evicted, 998);
}

/// A port below its fair share takes nothing from others who are below it too.
#[test]
fn a_flood_does_not_take_from_a_port_below_its_fair_share() {
    let mut scene = Scene::new();
    for n in 0..1_000 {
        scene.begin(PortId(1), (n + 1, 443)).unwrap();
    }
    // The rest of the table is established, and so nobody's to take.
    for n in 0..64_536_u32 {
        let (port, number) = (PortId(10 + (n / 6_000) as u16), 1 + (n % 6_000) as u16);
        scene.begin(port, (number, 443)).unwrap();
        assert!(scene.complete(port, number));
    }
    for n in 0..10_000 {
        let refused = scene.begin(FLOODER, (n + 1, 443));
        assert_eq!(refused, Err(DropReason::ConnectionsFull));
    }
    assert!((0..1_000).all(|n| scene.complete(PortId(1), n + 1)));
}
