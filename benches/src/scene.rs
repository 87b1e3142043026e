//! The scene: a policy of many workloads and rules, and the frames that two of them exchange.

use fastrand::Rng;
use firedoor_bench::scene::{Segments, allow};
pub use firedoor_bench::scene::{ends, ends6};
use firedoor_classifier::PortId;
use firedoor_classifier::build::{self, Ends};
use firedoor_classifier::snapshot::{
    Rule, RuleAction, Service, Services, Settings, Snapshot, TagSet,
};
use firedoor_classifier::wire::protocol::UDP;

/// Workloads, and so ports.
pub const WORKLOADS: u16 = 200;
/// Segments that the workloads are spread over.
const SEGMENTS: Segments = Segments(40);

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
    let others = (2..rules).map(|n| random_rule(n, rng));
    let last = [udp("ask", CLIENT, SERVER), udp("answer", SERVER, CLIENT)];
    let rules = others.chain(last).collect();
    SEGMENTS.snapshot(WORKLOADS, Settings::default(), rules)
}

/// One in five or so denies.
fn random_rule(n: usize, rng: &mut Rng) -> Rule {
    let action = if rng.u8(..) < 200 { RuleAction::Allow } else { RuleAction::Deny };
    Rule { action, ..SEGMENTS.random_rule(n, rng) }
}

fn udp(name: &str, from: PortId, to: PortId) -> Rule {
    let [from, to] = [from, to].map(|port| TagSet::Only(vec![SEGMENTS.of(port)]));
    let service = Service::Ports { protocol: UDP, first: 1, last: u16::MAX };
    allow(name.to_owned(), from, to, Services::Only(vec![service]))
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

/// The client's port in one of these frames, either way.
pub fn client_port(frame: &[u8]) -> u16 {
    let [src, dst] = [34, 36].map(|at| u16::from_be_bytes([frame[at], frame[at + 1]]));
    if src == SERVICE_PORT { dst } else { src }
}

/// The client's ports, in random order.
fn shuffled_ports(flows: u16) -> Vec<u16> {
    let mut ports: Vec<u16> = (1_024..1_024 + flows).collect();
    Rng::with_seed(1).shuffle(&mut ports);
    ports
}
