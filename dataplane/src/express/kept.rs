//! Why the switch forwards a connection itself: one answer for the worker, which gives the kernel what
//! has no such reason, and for people who ask.

use firedoor_classifier::connections::{ConnectionInfo, Stage};
use firedoor_classifier::snapshot::VlanMode;
use firedoor_classifier::wire::{icmp, icmpv6, protocol};
use firedoor_classifier::{FlowKey, Policy, PortId};

use super::Members;
use super::members::Way;
use super::offload::turned;

/// Frames of UDP, or pings, that nobody has answered after which they go to the kernel: the question for
/// a name does not.
const ENOUGH: u64 = 2;

/// Why the kernel does not forward a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Neither TCP nor UDP nor a ping.
    Protocol,
    /// Learn or audit mode alone lets it live, so each of its frames is recorded.
    Audit,
    /// A port of it is a router's, behind which addresses move.
    Router,
    /// A port of it is a trunk, whose frames are tagged.
    Trunk,
    /// TCP under `tcp_window_check`.
    WindowCheck,
    /// TCP that was not answered yet, or has ended.
    State,
    /// It was judged under an earlier policy, and will be again with its next frame.
    Stale,
    /// It has had few frames, and no answer.
    Short,
    /// The kernel has its verdicts, but waits until its first frames have left the switch.
    Held,
    /// No port of it is on the express lane.
    SwitchPort,
    /// The kernel's table has no room, or refused it.
    TableFull,
}

impl Kept {
    /// Stable short name.
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Audit => "audit",
            Self::Router => "router",
            Self::Trunk => "trunk",
            Self::WindowCheck => "window-check",
            Self::State => "state",
            Self::Stale => "stale",
            Self::Short => "short",
            Self::Held => "held",
            Self::SwitchPort => "switch-port",
            Self::TableFull => "table-full",
        }
    }

    /// What of a connection keeps it, whatever its state and age.
    pub(super) fn of(policy: &Policy, original: &FlowKey, output: PortId) -> Option<Self> {
        if !is_understood(original) {
            return Some(Self::Protocol);
        }
        if original.protocol == protocol::TCP && policy.settings().tcp_window_check {
            return Some(Self::WindowCheck);
        }
        for port in [original.ingress, output] {
            let workload = policy.port(port)?;
            if workload.router {
                return Some(Self::Router);
            }
            if !matches!(workload.vlan, VlanMode::Access(_)) {
                return Some(Self::Trunk);
            }
        }
        None
    }

    /// Whether a connection with so many frames so far is not worth the kernel's while yet.
    pub(super) const fn is_short(protocol: u8, [there, back]: [u64; 2]) -> bool {
        protocol != protocol::TCP && back == 0 && there < ENOUGH
    }

    /// Why a connection is not forwarded by the kernel; `None` if it is, in each direction that it has verdicts
    /// for, and in one at least.
    pub fn why(policy: &Policy, members: &Members, info: &ConnectionInfo) -> Option<Self> {
        let ways = [info.original, turned(&info.original, info.output)];
        let ways = ways.each_ref().map(|key| members.way_of(key));
        if ways.contains(&Some(Way::Long)) {
            return Some(Self::Held);
        }
        if ways.contains(&Some(Way::Short)) {
            return None;
        }
        let is_reached = members.receives(info.original.ingress) || members.receives(info.output);
        let reason = if !is_reached {
            Self::SwitchPort
        } else if info.would_drop.is_some() {
            Self::Audit
        } else if info.epoch != policy.epoch() {
            Self::Stale
        } else if let Some(reason) = Self::of(policy, &info.original, info.output) {
            reason
        } else if Self::is_short(info.original.protocol, info.frames) {
            Self::Short
        } else if matches!(info.stage, Some(Stage::Opening | Stage::Open)) {
            Self::TableFull
        } else {
            Self::State
        };
        Some(reason)
    }
}

/// Whether the programs know the frames of a connection that began with this key.
fn is_understood(original: &FlowKey) -> bool {
    let asks = |kind: u8| original.dst_port == u16::from(kind) << 8;
    match original.protocol {
        protocol::TCP | protocol::UDP => true,
        protocol::ICMP => asks(icmp::kind::ECHO_REQUEST),
        protocol::ICMPV6 => asks(icmpv6::kind::ECHO_REQUEST),
        _ => false,
    }
}
