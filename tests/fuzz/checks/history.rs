//! A history: frames, policy changes and waits, lived through three times. The pipeline with its
//! connections and caches, the same without use of any cache, and the linear oracle must say the same of
//! every frame. Shared by the property test that draws histories and the fuzz target that reads them
//! from bytes.

use std::collections::BTreeSet;
use std::sync::Arc;

use firedoor_classifier::classify::admit;
use firedoor_classifier::extract::{Embedded, Headers, Kind};
use firedoor_classifier::mask::MASKS;
use firedoor_classifier::oracle::{Oracle, Ruling};
use firedoor_classifier::snapshot::{Timeouts, VlanMode};
use firedoor_classifier::verdict::{Action, DropReason};
use firedoor_classifier::{FlowKey, Nanos, Pipeline, Policy, PortId, Snapshot, Verdict};

/// What happens to a switch.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Frame(Box<Headers>),
    /// The nth last frame that passed, again.
    Repeat(usize),
    /// An answer to it, from where it went.
    Reply(usize),
    /// An ICMP error about it, from where it went; to its sender, or to another address there.
    Error(usize, bool),
    /// Milliseconds.
    Wait(u64),
    /// Another policy; its epoch is set here.
    Change(Box<Snapshot>),
}

/// Timeouts that no history outlives: the oracle knows none.
pub(crate) const ENDLESS: Timeouts = Timeouts {
    tcp_handshake: u32::MAX,
    tcp_established: u32::MAX,
    tcp_closing: u32::MAX,
    tcp_time_wait: u32::MAX,
    tcp_reset: u32::MAX,
    udp_single: u32::MAX,
    udp_both: u32::MAX,
    icmp: u32::MAX,
    other: u32::MAX,
};

/// What a history made the pipeline do.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) reasons: BTreeSet<DropReason>,
    pub(crate) would_drop: u64,
    pub(crate) floods: u64,
    pub(crate) connection_hits: u64,
    pub(crate) cache_hits: u64,
    pub(crate) mac_moves: u64,
    pub(crate) related_errors: u64,
    pub(crate) non_ip_forwarded: u64,
}

/// The three switches.
struct Triplets {
    snapshot: Snapshot,
    cached: Pipeline,
    uncached: Pipeline,
    /// Counts up with every frame, so that nothing that `uncached` remembers is of its epoch.
    epoch: u64,
    oracle: Oracle,
    now: Nanos,
}

/// Lives through a history.
///
/// # Panics
/// If the three disagree on a frame.
pub(crate) fn live_through(
    first: Snapshot,
    events: impl IntoIterator<Item = Event>,
    seen: &mut Seen,
) {
    let mut triplets = Triplets::new(Snapshot { epoch: 1, ..first });
    let mut passed = Vec::new();
    for event in events {
        let nth = |nth| passed.iter().rev().nth(nth);
        let headers = match event {
            Event::Wait(ms) => {
                triplets.now = triplets.now.plus(ms * 1_000_000);
                continue;
            }
            Event::Change(next) => {
                triplets.install(*next);
                continue;
            }
            Event::Frame(headers) => Some(*headers),
            Event::Repeat(n) => nth(n).map(|&(headers, _)| headers),
            Event::Reply(n) => nth(n).and_then(|frame| reply(frame, &triplets.snapshot)),
            Event::Error(n, right) => {
                nth(n).and_then(|frame| error(frame, right, &triplets.snapshot))
            }
        };
        let Some(headers) = headers else { continue };
        let (verdict, output) = triplets.judge(&headers);
        seen.note(&headers, &verdict);
        if let (Some(output), Kind::Plain) = (output, headers.kind) {
            passed.push((headers, output));
        }
    }
    let stats = triplets.cached.stats();
    seen.connection_hits += stats.connection_hits;
    seen.cache_hits += stats.cache_hits;
    seen.mac_moves += stats.mac_moves;
}

impl Triplets {
    fn new(snapshot: Snapshot) -> Self {
        Self {
            cached: Pipeline::new(policy(&snapshot)),
            uncached: Pipeline::new(policy(&snapshot)),
            epoch: snapshot.epoch,
            oracle: Oracle::new(snapshot.clone()),
            now: Nanos::from_secs(1),
            snapshot,
        }
    }

    fn install(&mut self, next: Snapshot) {
        self.snapshot = Snapshot { epoch: self.snapshot.epoch + 1, ..next };
        self.cached.set_policy(policy(&self.snapshot));
        self.oracle.install(self.snapshot.clone());
    }

    /// The verdict on a frame, and the first port that it leaves by.
    fn judge(&mut self, headers: &Headers) -> (Verdict, Option<PortId>) {
        let first = self.judge_alike(headers);
        // Now a connection or the flow cache answers.
        self.judge_alike(headers);
        first
    }

    fn judge_alike(&mut self, headers: &Headers) -> (Verdict, Option<PortId>) {
        self.epoch += 1;
        let snapshot = Snapshot { epoch: self.epoch, ..self.snapshot.clone() };
        self.uncached.set_policy(policy(&snapshot));
        let expected = self.oracle.judge(headers, self.now);
        let verdict = self.uncached.judge(headers, 64, self.now);
        let uncached = ruling(verdict, self.uncached.receivers());
        assert_eq!(uncached, expected, "uncached and oracle on {headers:?}");
        let verdict = self.cached.judge(headers, 64, self.now);
        let cached = ruling(verdict, self.cached.receivers());
        assert_eq!(cached, expected, "cached and oracle on {headers:?}");
        assert!(self.cached.masks() <= MASKS);
        let output = expected.fate.ok().and_then(|ports| ports.first().copied());
        (verdict, output)
    }
}

fn ruling(verdict: Verdict, receivers: &[PortId]) -> Ruling {
    let fate = match verdict.action {
        Action::Drop(reason) => Err(reason),
        Action::Forward(port) => Ok(vec![port]),
        Action::Flood => {
            let mut ports = receivers.to_vec();
            ports.sort_unstable();
            Ok(ports)
        }
    };
    Ruling { fate, cause: verdict.cause, would_drop: verdict.would_drop }
}

/// A snapshot, compiled.
pub(crate) fn policy(snapshot: &Snapshot) -> Arc<Policy> {
    Arc::new(Policy::build(snapshot.clone()).expect("the generator keeps the invariants"))
}

/// The frame that the receiver of this one, at that port, would answer with. None for TCP, whose
/// states the oracle does not know.
fn reply(&(headers, output): &(Headers, PortId), snapshot: &Snapshot) -> Option<Headers> {
    let key = headers.key;
    let (src_port, dst_port) = match (key.protocol, key.dst_port >> 8) {
        (6, _) => return None,
        (1, 8) => (key.src_port, 0),
        (58, 128) => (key.src_port, 129 << 8),
        (1 | 58, _) => return None,
        _ => (key.dst_port, key.src_port),
    };
    let back = way_back(&headers, output, snapshot)?;
    Some(Headers { key: FlowKey { src_port, dst_port, ..back.key }, ..back })
}

/// The error that the receiver of this frame would answer with.
fn error(
    &(headers, output): &(Headers, PortId),
    to_sender: bool,
    snapshot: &Snapshot,
) -> Option<Headers> {
    let FlowKey { protocol, src, dst, src_port, dst_port, ether_type, .. } = headers.key;
    let (icmp, unreachable) = if ether_type == 0x86dd { (58, 1 << 8) } else { (1, 3 << 8) };
    let mut back = way_back(&headers, output, snapshot)?;
    if !to_sender {
        back.key.dst ^= 1;
    }
    Some(Headers {
        key: FlowKey {
            protocol: icmp,
            src_port: 0,
            dst_port: unreachable,
            tcp_flags: 0,
            ..back.key
        },
        kind: Kind::IcmpError(Embedded { protocol, src, dst, src_port, dst_port }),
        ..back
    })
}

/// The same frame with its ends exchanged, as it would come in by `port`.
fn way_back(headers: &Headers, port: PortId, snapshot: &Snapshot) -> Option<Headers> {
    let vlan = admit(&Policy::build(snapshot.clone()).ok()?, headers).ok()?.key.vlan;
    let workload = snapshot.workloads.iter().find(|workload| workload.port == port)?;
    let (vlan_tags, vlan) = match workload.vlan {
        VlanMode::Access(_) => (0, 0),
        VlanMode::Trunk(_) => (1, vlan),
    };
    let FlowKey { eth_src, eth_dst, src, dst, .. } = headers.key;
    let turned = FlowKey { eth_src: eth_dst, eth_dst: eth_src, src: dst, dst: src, ..headers.key };
    Some(Headers { key: FlowKey { ingress: port, vlan, ..turned }, vlan_tags, ..*headers })
}

impl Seen {
    fn note(&mut self, headers: &Headers, verdict: &Verdict) {
        self.reasons.extend(verdict.drop_reason());
        self.would_drop += u64::from(verdict.would_drop.is_some());
        self.floods += u64::from(verdict.action == Action::Flood);
        let is_error = matches!(headers.kind, Kind::IcmpError(_));
        self.related_errors +=
            u64::from(is_error && verdict.would_drop.is_none() && verdict.is_forwarded());
        self.non_ip_forwarded += u64::from(headers.kind == Kind::NonIp && verdict.is_forwarded());
    }
}
