//! A switch of many workloads under 1,000 rules, and conversations between them.

use std::sync::Arc;
use std::time::Instant;

use fastrand::Rng;
use firedoor_classifier::build::{self, TcpFlags};
use firedoor_classifier::extract::{Headers, extract};
use firedoor_classifier::snapshot::{Rule, Service, Services, Settings, Snapshot, TagSet};
use firedoor_classifier::wire::protocol::TCP;
use firedoor_classifier::{Nanos, Pipeline, Policy, PortId};

use super::{ROUNDS, median};
use crate::scene::{Segments, allow, ends};

/// Rules of the policy.
const RULES: usize = 1_000;

/// Workloads that ask. Their ports come first.
pub(super) const CLIENTS: u16 = 32;

/// Workloads that answer.
const SERVERS: u16 = 32;

/// Segments that the workloads are spread over.
const SEGMENTS: Segments = Segments(16);

/// Size of the flow cache, where it takes part.
pub(super) const FLOWS: u32 = 65_536;

/// The server that every client may reach on any TCP port.
pub(super) const fn server() -> PortId {
    PortId(CLIENTS)
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
    let mut rules: Vec<Rule> = (1..RULES).map(|n| SEGMENTS.random_rule(n, rng)).collect();
    let tcp = Services::Only(vec![Service::Protocol(TCP)]);
    rules.push(allow("rest".to_owned(), TagSet::Any, TagSet::Any, tcp));
    SEGMENTS.snapshot(CLIENTS + SERVERS, settings, rules)
}
