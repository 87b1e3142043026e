//! A history: frames, fragments, policy changes and waits, lived through three times. The pipeline with
//! its connections and caches, the same without use of any cache, and the linear oracle must say the same
//! of every frame. Shared by the property test that draws histories and the fuzz target that reads them
//! from bytes.

use std::collections::BTreeSet;
use std::fmt;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use firedoor_classifier::classify::admit;
use firedoor_classifier::extract::{Embedded, Fragment, Headers, Kind, TcpFields};
use firedoor_classifier::fragments::{Fragments, Release, Verdicts};
use firedoor_classifier::key::to_bits;
use firedoor_classifier::mask::MASKS;
use firedoor_classifier::oracle::{Oracle, Ruling};
use firedoor_classifier::snapshot::{Rule, Settings, Timeouts, VlanMode};
use firedoor_classifier::verdict::{Action, DropReason};
use firedoor_classifier::{FlowKey, MacAddr, Nanos, Pipeline, Policy, PortId, Snapshot, Verdict};

/// What happens to a switch.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Frame(Box<Headers>),
    /// A part of the nth last frame that was sent, or of what that is a part of.
    Part(usize, Fragment),
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

/// Ethertypes that are neither ARP nor IP: one that rules name, and one that none does.
pub(crate) const OTHER_ETHER_TYPES: [u16; 2] = [0x88b5, 0x88cc];

/// The MAC address of station `n`.
pub(crate) fn mac(n: u16) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n as u8])
}

/// An address of workload `n`.
pub(crate) fn own(n: u16, is_v6: bool) -> IpAddr {
    if is_v6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n).into()
    } else {
        Ipv4Addr::new(10, 0, 0, n as u8).into()
    }
}

/// A frame that is nothing special: by which port, from whom, to whom, the number of its VLAN tags and
/// the first one's VLAN, its protocol, TCP flags and ports.
pub(crate) fn plain(
    (port, eth_src, src): (u16, MacAddr, IpAddr),
    (eth_dst, dst): (MacAddr, IpAddr),
    (vlan_tags, vlan): (u8, u16),
    (protocol, tcp_flags, src_port, dst_port): (u8, u8, u16, u16),
) -> Headers {
    let key = FlowKey {
        ingress: PortId(port),
        vlan,
        ether_type: if src.is_ipv6() { 0x86dd } else { 0x0800 },
        protocol,
        tcp_flags,
        eth_dst,
        eth_src,
        src: to_bits(src),
        dst: to_bits(dst),
        src_port,
        dst_port,
    };
    with_key(key, vlan_tags)
}

/// A frame without anything that its key does not say.
pub(crate) fn with_key(key: FlowKey, vlan_tags: u8) -> Headers {
    let (tcp, kind, fragment) = (TcpFields::default(), Kind::Plain, None);
    Headers { key, vlan_tags, l3: 14, l4: 34, end: 54, tcp, kind, fragment }
}

/// What histories were made of, and what they made the pipeline do.
#[derive(Default)]
pub(crate) struct Seen {
    /// Policies that histories began with.
    pub(crate) policies: u64,
    /// Changes of a policy in force.
    pub(crate) updates: u64,
    /// Frames that the three switches judged alike. A whole frame counts twice, as it is sent twice.
    pub(crate) frames: u64,
    pub(crate) reasons: BTreeSet<DropReason>,
    pub(crate) would_drop: u64,
    pub(crate) floods: u64,
    pub(crate) connection_hits: u64,
    pub(crate) cache_hits: u64,
    pub(crate) mac_moves: u64,
    pub(crate) related_errors: u64,
    pub(crate) non_ip_forwarded: u64,
    pub(crate) later_fragments: u64,
}

/// A pipeline, behind what puts fragments in order: what a worker judges by.
struct Worker {
    pipeline: Pipeline,
    fragments: Fragments<(usize, Headers)>,
    verdicts: Verdicts,
    /// The policy's that fragments follow. The pipeline's own may differ.
    epoch: u64,
}

/// What became of frames, by their numbers.
type Fates = Vec<(usize, Ruling)>;

/// The three switches.
struct Triplets {
    snapshot: Snapshot,
    cached: Worker,
    uncached: Worker,
    /// The policy that `uncached` enforces, once more: the two take turns, each time as another epoch,
    /// so that nothing that it remembers is of the epoch in force.
    other: Arc<Policy>,
    oracle: Oracle,
    /// How many frames they have judged.
    frames: u64,
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
    seen.policies += 1;
    let (mut sent, mut passed) = (Vec::<Headers>::new(), Vec::new());
    for event in events {
        let nth = |nth| passed.iter().rev().nth(nth);
        let headers = match event {
            Event::Wait(ms) => {
                triplets.wait(ms);
                continue;
            }
            Event::Change(next) => {
                triplets.install(*next);
                seen.updates += 1;
                continue;
            }
            Event::Frame(headers) => Some(*headers),
            Event::Part(n, fragment) => {
                sent.iter().rev().nth(n).and_then(|headers| part(headers, fragment))
            }
            Event::Repeat(n) => nth(n).map(|&(headers, _)| headers),
            Event::Reply(n) => nth(n).and_then(|frame| reply(frame, triplets.policy())),
            Event::Error(n, right) => {
                nth(n).and_then(|frame| error(frame, right, triplets.policy()))
            }
        };
        let Some(headers) = headers else { continue };
        sent.push(headers);
        for (number, ruling) in triplets.arrive(sent.len() - 1, &headers) {
            let headers = sent[number];
            seen.note(&headers, &ruling);
            if let (Ok([output, ..]), Kind::Plain) = (ruling.fate.as_deref(), headers.kind) {
                passed.push((headers, *output));
            }
        }
    }
    seen.frames += triplets.frames;
    let stats = triplets.cached.pipeline.stats();
    seen.connection_hits += stats.connection_hits;
    seen.cache_hits += stats.cache_hits;
    seen.mac_moves += stats.mac_moves;
}

impl Triplets {
    fn new(snapshot: Snapshot) -> Self {
        let policy = policy(&snapshot);
        let copy = || Arc::new(Policy::clone(&policy));
        Self {
            uncached: Worker::new(copy()),
            other: copy(),
            oracle: Oracle::new(snapshot.clone()),
            frames: 0,
            now: Nanos::from_secs(1),
            cached: Worker::new(policy),
            snapshot,
        }
    }

    fn policy(&self) -> &Policy {
        self.cached.pipeline.policy()
    }

    fn install(&mut self, next: Snapshot) {
        self.snapshot = Snapshot { epoch: self.snapshot.epoch + 1, ..next };
        let policy = policy(&self.snapshot);
        for _ in 0..2 {
            self.other = Arc::new(Policy::clone(&policy));
            self.renew_uncached();
        }
        self.cached.pipeline.set_policy(policy);
        let expected = sorted(self.oracle.forget_waiting());
        self.oracle.install(self.snapshot.clone());
        for worker in [&mut self.cached, &mut self.uncached] {
            assert_eq!(sorted(worker.forget_waiting(&self.snapshot, self.now)), expected);
        }
    }

    /// Puts the same policy in force again under another epoch, so that nothing cached counts.
    fn renew_uncached(&mut self) {
        let in_force = Arc::clone(self.uncached.pipeline.policy());
        let other = Arc::get_mut(&mut self.other).expect("the pipeline has let go of it");
        other.set_epoch(in_force.epoch() + 1);
        self.uncached.pipeline.set_policy(mem::replace(&mut self.other, in_force));
    }

    fn wait(&mut self, ms: u64) {
        self.now = self.now.plus(ms * 1_000_000);
        // A worker looks for what has waited too long once a second at most.
        if ms >= 1_000 {
            let expected = sorted(self.oracle.expire_fragments(self.now));
            for worker in [&mut self.cached, &mut self.uncached] {
                assert_eq!(sorted(worker.expire(self.now)), expected);
            }
        }
    }

    /// What becomes of a frame, and of what waited for it.
    fn arrive(&mut self, number: usize, headers: &Headers) -> Fates {
        let first = self.arrive_alike(number, headers);
        if headers.fragment.is_none() {
            // Now a connection or the flow cache answers.
            self.arrive_alike(number, headers);
        }
        first
    }

    fn arrive_alike(&mut self, number: usize, headers: &Headers) -> Fates {
        self.renew_uncached();
        let expected = self.oracle.arrive(number, headers, self.now);
        let uncached = self.uncached.arrive(number, headers, self.now);
        assert_eq!(uncached, expected, "uncached and oracle on {headers:?}");
        let cached = self.cached.arrive(number, headers, self.now);
        assert_eq!(cached, expected, "cached and oracle on {headers:?}");
        assert!(self.cached.pipeline.masks() <= MASKS);
        self.frames += 1;
        expected
    }
}

impl Worker {
    fn new(policy: Arc<Policy>) -> Self {
        Self {
            fragments: Fragments::new(&unbounded(policy.snapshot()), usize::MAX),
            verdicts: Verdicts::new(policy.settings()),
            epoch: policy.epoch(),
            pipeline: Pipeline::new(policy),
        }
    }

    fn forget_waiting(&mut self, next: &Snapshot, now: Nanos) -> Fates {
        self.fragments.configure(&unbounded(next), usize::MAX);
        self.verdicts.configure(&next.settings);
        self.epoch = next.epoch;
        self.fragments.forget_waiting();
        self.release(now)
    }

    fn expire(&mut self, now: Nanos) -> Fates {
        self.fragments.expire(now);
        self.release(now)
    }

    fn arrive(&mut self, number: usize, headers: &Headers, now: Nanos) -> Fates {
        self.fragments.arrive(headers, 0, (number, *headers), now);
        self.release(now)
    }

    fn release(&mut self, now: Nanos) -> Fates {
        let mut fates = Vec::new();
        while let Some(released) = self.fragments.release() {
            fates.push(match released {
                Release::Drop { item: (number, _), reason } => {
                    (number, ruling(Verdict::drop(reason), &[]))
                }
                Release::Pass { item: (number, headers), .. } => {
                    (number, self.judge(&headers, now))
                }
            });
        }
        fates
    }

    fn judge(&mut self, headers: &Headers, now: Nanos) -> Ruling {
        if headers.kind == Kind::LaterFragment {
            let mut receivers = Vec::new();
            let verdict = self.verdicts.follow(headers, self.epoch, now, &mut receivers);
            return ruling(verdict, &receivers);
        }
        let verdict = self.pipeline.judge(headers, 64, now);
        let receivers = self.pipeline.receivers();
        self.verdicts.remember(headers, verdict, receivers, self.epoch, now);
        ruling(verdict, receivers)
    }
}

/// The oracle knows no bound on fragments.
fn unbounded(snapshot: &Snapshot) -> Settings {
    Settings { max_fragments: u32::MAX, ..snapshot.settings }
}

/// Fates of several packets at once are in no order.
fn sorted(mut fates: Fates) -> Fates {
    fates.sort_by_key(|(number, _)| *number);
    fates
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

/// Puts a rule where its tier belongs, before or behind those that are there.
pub(crate) fn insert_rule(rules: &mut Vec<Rule>, rule: Rule, before: bool) {
    let at = rules.partition_point(|r| r.tier < rule.tier || !before && r.tier == rule.tier);
    rules.insert(at, rule);
}

/// A snapshot, compiled.
pub(crate) fn policy(snapshot: &Snapshot) -> Arc<Policy> {
    Arc::new(Policy::build(snapshot.clone()).expect("the generator keeps the invariants"))
}

/// A part of this packet, or of the one that this is a part of. None if it is not IP, or if what the
/// first part says is not known.
fn part(headers: &Headers, fragment: Fragment) -> Option<Headers> {
    let (mut kind, mut key) = (headers.kind, headers.key);
    match kind {
        Kind::Arp { .. } | Kind::Nd(_) | Kind::NonIp => return None,
        Kind::LaterFragment if fragment.is_first() => return None,
        _ if fragment.is_first() => {}
        _ => {
            kind = Kind::LaterFragment;
            (key.src_port, key.dst_port, key.tcp_flags) = (0, 0, 0);
        }
    }
    Some(Headers { key, kind, fragment: Some(fragment), ..*headers })
}

/// The frame that the receiver of this one, at that port, would answer with. None for TCP, whose
/// states the oracle does not know.
fn reply(&(headers, output): &(Headers, PortId), policy: &Policy) -> Option<Headers> {
    let key = headers.key;
    let (src_port, dst_port) = match (key.protocol, key.dst_port >> 8) {
        (6, _) => return None,
        (1, 8) => (key.src_port, 0),
        (58, 128) => (key.src_port, 129 << 8),
        (1 | 58, _) => return None,
        _ => (key.dst_port, key.src_port),
    };
    let back = way_back(&headers, output, policy)?;
    Some(Headers { key: FlowKey { src_port, dst_port, ..back.key }, ..back })
}

/// The error that the receiver of this frame would answer with.
fn error(
    &(headers, output): &(Headers, PortId),
    to_sender: bool,
    policy: &Policy,
) -> Option<Headers> {
    let FlowKey { protocol, src, dst, src_port, dst_port, ether_type, .. } = headers.key;
    let (icmp, unreachable) = if ether_type == 0x86dd { (58, 1 << 8) } else { (1, 3 << 8) };
    let mut back = way_back(&headers, output, policy)?;
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
        kind: Kind::IcmpError(Embedded { protocol, src, dst, src_port, dst_port, seq: None }),
        ..back
    })
}

/// The same frame with its ends exchanged, as it would come in by `port`.
fn way_back(headers: &Headers, port: PortId, policy: &Policy) -> Option<Headers> {
    let vlan = admit(policy, headers).ok()?.key.vlan;
    let (vlan_tags, vlan) = match policy.port(port)?.vlan {
        VlanMode::Access(_) => (0, 0),
        VlanMode::Trunk(_) => (1, vlan),
    };
    let FlowKey { eth_src, eth_dst, src, dst, .. } = headers.key;
    let turned = FlowKey { eth_src: eth_dst, eth_dst: eth_src, src: dst, dst: src, ..headers.key };
    Some(Headers { key: FlowKey { ingress: port, vlan, ..turned }, vlan_tags, ..*headers })
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policies, updates, frames, .. } = self;
        write!(f, "{policies} policies, {updates} updates of them, {frames} frames judged alike")
    }
}

impl Seen {
    fn note(&mut self, headers: &Headers, ruling: &Ruling) {
        let is_forwarded = ruling.fate.is_ok();
        self.reasons.extend(ruling.fate.as_ref().err());
        self.would_drop += u64::from(ruling.would_drop.is_some());
        self.floods += u64::from(ruling.fate.as_ref().is_ok_and(|ports| ports.len() > 1));
        let is_error = matches!(headers.kind, Kind::IcmpError(_));
        self.related_errors += u64::from(is_error && ruling.would_drop.is_none() && is_forwarded);
        self.non_ip_forwarded += u64::from(headers.kind == Kind::NonIp && is_forwarded);
        self.later_fragments += u64::from(headers.kind == Kind::LaterFragment && is_forwarded);
    }
}
