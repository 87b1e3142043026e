//! Numbers to names: what control and people are told of frames and flows.
//!
//! Runs beside the workers, never on the path of a frame.

use std::time::{SystemTime, UNIX_EPOCH};

use firedoor_api::dataplane::{Denied, Flow};
use firedoor_classifier::cache::FlowInfo;
use firedoor_classifier::connections::ConnectionInfo;
use firedoor_classifier::snapshot::Lane;
use firedoor_classifier::verdict::{Action, Cause, DropReason};
use firedoor_classifier::{Nanos, Policy};

use crate::engine::Engine;
use crate::express::Kept;
use crate::mirror::Record;

/// Ethertypes whose keys hold addresses: IPv4, ARP, IPv6.
const ADDRESSED: [u16; 3] = [0x0800, 0x0806, 0x86dd];
const ARP: u16 = 0x0806;

/// One denied frame in names.
pub(crate) fn denied(engine: &Engine, record: &Record) -> Option<Denied> {
    let policy = engine.policy()?;
    let key = &record.key;
    let age = engine.clock().now().since(record.now);
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let addressed = ADDRESSED.contains(&key.ether_type);
    Some(Denied {
        unix_ns: unix.saturating_sub(age),
        epoch: record.epoch,
        port: key.ingress,
        from: policy.source_name(key),
        to: policy.destination_name(key),
        rule: rule_name(engine, record.epoch, record.cause),
        reason: record.reason,
        dropped: record.dropped,
        protocol: if key.ether_type == ARP { 0 } else { key.protocol },
        ether_type: key.ether_type,
        src: addressed.then(|| key.src_addr()),
        dst: addressed.then(|| key.dst_addr()),
        src_port: key.src_port,
        dst_port: key.dst_port,
        length: u32::try_from(record.length).unwrap_or(u32::MAX),
        bytes: record.bytes.clone(),
    })
}

/// Every live connection and cached flow in names.
pub(crate) fn flows(engine: &Engine) -> Vec<Flow> {
    let Some(policy) = engine.policy() else { return Vec::new() };
    let connections = engine.connections();
    let cached = engine.flows();
    let connections = connections.iter().map(|(info, now)| connection(engine, &policy, info, *now));
    connections
        .chain(cached.iter().map(|(info, now)| cached_flow(engine, &policy, info, *now)))
        .collect()
}

fn connection(engine: &Engine, policy: &Policy, info: &ConnectionInfo, now: Nanos) -> Flow {
    let key = &info.original;
    let kept = engine.kept(policy, info);
    Flow {
        kind: "connection".into(),
        from: policy.source_name(key),
        to: policy.destination_name(key),
        protocol: key.protocol,
        src: Some(key.src_addr()),
        dst: Some(key.dst_addr()),
        src_port: Some(key.src_port),
        dst_port: Some(key.dst_port),
        verdict: info.would_drop.map_or("allow", DropReason::slug).into(),
        dropped: false,
        rule: rule_name(engine, info.epoch, info.cause),
        state: info.state.into(),
        lane: if kept.is_some() { Lane::Switch } else { Lane::Express },
        kept: kept.map_or("", Kept::slug).into(),
        frames: info.frames.iter().sum(),
        bytes: info.bytes.iter().sum(),
        age_ms: now.since(info.since) / 1_000_000,
        idle_ms: now.since(info.last) / 1_000_000,
    }
}

fn cached_flow(engine: &Engine, policy: &Policy, info: &FlowInfo, now: Nanos) -> Flow {
    let mask = info.mask;
    let key = &info.key;
    let addressed = ADDRESSED.contains(&key.ether_type);
    let (refused, dropped) = match info.verdict.action {
        Action::Drop(reason) => (Some(reason), true),
        Action::Forward(_) | Action::Flood => (info.verdict.would_drop, false),
    };
    Flow {
        kind: "cached".into(),
        from: policy.workload_name(key.ingress).to_owned(),
        to: policy.destination_name(key),
        protocol: key.protocol,
        src: (addressed && mask.src_bits() == 128).then(|| key.src_addr()),
        dst: (addressed && mask.dst_bits() == 128).then(|| key.dst_addr()),
        src_port: None,
        dst_port: mask.has_port().then_some(key.dst_port),
        verdict: refused.map_or("allow", DropReason::slug).into(),
        dropped,
        rule: rule_name(engine, policy.epoch(), info.verdict.cause),
        state: String::new(),
        lane: Lane::Switch,
        kept: String::new(),
        frames: info.frames,
        bytes: 0,
        age_ms: now.since(info.last) / 1_000_000,
        idle_ms: now.since(info.last) / 1_000_000,
    }
}

/// The deciding rule's name. Rules are numbered per snapshot; of an epoch long past, the number is
/// all that is left.
fn rule_name(engine: &Engine, epoch: u64, cause: Cause) -> String {
    match (engine.policy_at(epoch), cause) {
        (None, Cause::Rule(id)) => format!("rule {} of epoch {epoch}", id.0),
        (None, _) => format!("{cause:?}").to_lowercase(),
        (Some(policy), cause) => policy.rule_name(cause).to_owned(),
    }
}
