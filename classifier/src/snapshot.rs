//! A snapshot: everything the data plane needs to know, as plain data.
//!
//! Control compiles intent to a snapshot and sends it whole; the data plane saves it, builds a
//! [`Policy`](crate::Policy) of it and enforces one at a time. Names are carried along so that
//! every counter, event and capture can speak of workloads and rules instead of numbers.
//!
//! Invariants (checked by [`Policy::build`](crate::Policy::build), relied on everywhere):
//! rules stand in evaluation order; workload names, port ids, MACs and addresses are unique; every
//! tag is below `tags.len()`.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::connections::Limits;
use crate::mac::MacAddr;

/// A port's number within one switch. Stays with the workload's name from snapshot to snapshot.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct PortId(pub u16);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A segment's compiled integer: workloads with one tag are treated alike by every rule.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Tag(pub u32);

/// A rule's index in [`Snapshot::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleId(pub u32);

/// The whole configuration that the data plane enforces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Version of everything below. Grows with each installed snapshot; 0 is never used.
    pub epoch: u64,
    /// The switch's name.
    pub switch: String,
    /// What happens to frames that policy denies.
    pub mode: Mode,
    /// Limits and timeouts.
    pub settings: Settings,
    /// One port each.
    pub workloads: Vec<Workload>,
    /// What each tag stands for, for people; the index is the tag.
    pub tags: Vec<TagInfo>,
    /// Tags of addresses outside the switch. The longest matching prefix decides; an address that
    /// none matches has [`Snapshot::world`].
    pub prefixes: Vec<Prefix>,
    /// Tag of addresses that belong to no workload and to no group.
    pub world: Tag,
    /// In evaluation order: tier, then priority, then place in the file. The first that matches
    /// decides, in each direction.
    pub rules: Vec<Rule>,
}

/// What the switch does with a verdict of "denied".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing is blocked; conversations are recorded.
    Learn,
    /// Nothing is blocked; what would be denied is recorded and mirrored.
    Audit,
    /// What is denied is dropped, recorded and mirrored.
    #[default]
    Enforce,
}

/// Limits and timeouts, all settable in the config's `[switch]` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Number of workers.
    pub workers: u16,
    /// Frames in the umem. A power of two.
    pub frames: u32,
    /// Bound on live connections of the switch.
    pub max_connections: u32,
    /// Bound on those of them that frames of one port began.
    pub max_connections_per_port: u32,
    /// Bound on directions of connections that the kernel forwards. 0: it forwards nothing.
    pub express_flows: u32,
    /// Bound on flow cache entries per worker.
    pub max_flows: u32,
    /// Most upcalls a second that the frames of one port get, per worker.
    pub upcalls_per_sec: u32,
    /// Whether TCP connections without a seen handshake may be picked up, if policy allows them.
    pub midstream: bool,
    /// Whether TCP segments outside their connection's windows are refused.
    pub tcp_window_check: bool,
    /// Seconds a learned MAC address is kept without being seen.
    pub mac_ageing_secs: u32,
    /// Timeouts of connections.
    pub timeouts: Timeouts,
    /// Most denied frames a second copied to the capture, per worker.
    pub mirror_per_sec: u32,
    /// Bytes of each denied frame that are kept in the capture.
    pub mirror_snaplen: u16,
    /// Bound on fragments that wait for the first of their packet, per worker; a port may have a
    /// quarter of them.
    pub max_fragments: u32,
    /// Seconds that a fragmented packet is followed from its earliest fragment on.
    pub fragment_timeout_secs: u32,
    /// Seconds for which the kernel goes on by the verdicts it has when no data plane looks after them;
    /// then it drops everything.
    pub express_grace_secs: u32,
    /// Most microseconds that a processor may take to wake while frames come often; none if processors sleep as they
    /// like.
    pub wake_within_us: Option<u32>,
}

impl Settings {
    /// What bounds each worker's connections: its part of the switch's bounds.
    pub fn connection_limits(&self) -> Limits {
        let part = |whole: u32| whole.div_ceil(self.workers.max(1).into());
        Limits {
            connections: part(self.max_connections),
            per_port: part(self.max_connections_per_port),
            timeouts: self.timeouts,
            tcp_window_check: self.tcp_window_check,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 1,
            frames: 16_384,
            max_connections: 262_144,
            max_connections_per_port: 131_072,
            express_flows: 524_288,
            max_flows: 65_536,
            upcalls_per_sec: 200_000,
            midstream: false,
            tcp_window_check: false,
            mac_ageing_secs: 300,
            timeouts: Timeouts::default(),
            mirror_per_sec: 1_000,
            mirror_snaplen: 256,
            max_fragments: 64,
            fragment_timeout_secs: 30,
            express_grace_secs: 10,
            wake_within_us: None,
        }
    }
}

/// Seconds a connection may stay silent in each state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// TCP before the handshake is complete.
    pub tcp_handshake: u32,
    /// TCP established (RFC 5382 REQ-5: at least 2 h 4 min).
    pub tcp_established: u32,
    /// TCP with one or both FINs seen.
    pub tcp_closing: u32,
    /// TCP after both FINs were acknowledged (RFC 9293 §3.3.2 TIME-WAIT).
    pub tcp_time_wait: u32,
    /// TCP after an RST.
    pub tcp_reset: u32,
    /// UDP with traffic in one direction only.
    pub udp_single: u32,
    /// UDP with traffic in both directions (RFC 4787 REQ-5: at least 2 min).
    pub udp_both: u32,
    /// ICMP queries (RFC 5508 REQ-1: at least 60 s).
    pub icmp: u32,
    /// Any other protocol.
    pub other: u32,
}

impl Timeouts {
    /// What holds where the config does not say.
    pub const DEFAULT: Self = Self {
        tcp_handshake: 30,
        tcp_established: 7_440,
        tcp_closing: 120,
        tcp_time_wait: 60,
        tcp_reset: 10,
        udp_single: 30,
        udp_both: 180,
        icmp: 60,
        other: 600,
    };
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// One workload and the port that it is attached by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Unique name.
    pub name: String,
    /// Its port.
    pub port: PortId,
    /// Its segment.
    pub tag: Tag,
    /// What it is.
    pub kind: Kind,
    /// The switch-side interface.
    pub ifname: String,
    /// The one MAC address it may send from; `None` only for a router, which may use any address
    /// that is not another workload's.
    pub mac: Option<MacAddr>,
    /// The addresses it may send from. A router may also send from any address that is not another
    /// workload's.
    pub addresses: Vec<IpAddr>,
    /// VLAN membership.
    pub vlan: VlanMode,
    /// Which lanes its port may use.
    pub lane: Lane,
    /// It forwards for others: may send router advertisements, and stands for all addresses outside
    /// the switch.
    pub router: bool,
    /// It may answer DHCP.
    pub dhcp_server: bool,
}

/// What a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A network namespace behind a veth pair.
    Container,
    /// A virtual machine behind a tap.
    Vm,
    /// An interface that exists already.
    External,
}

/// Which VLANs a port carries, and how they look on its wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VlanMode {
    /// Untagged frames belong to this VLAN (0 when the switch knows none); tagged ones are dropped.
    Access(u16),
    /// Frames tagged with one of these; untagged ones are dropped.
    Trunk(Vec<u16>),
}

/// Which lanes a port may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// The best one that works here.
    #[default]
    Auto,
    /// AF_XDP only.
    Switch,
    /// Kernel flow cache.
    Express,
}

/// A tag's meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagInfo {
    /// Labels or group names, as in `app=shop,tier=web` or `group office`.
    pub name: String,
}

/// A range of outside addresses with one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// The range.
    pub net: IpNet,
    /// Its tag.
    pub tag: Tag,
}

/// One rule, its selectors resolved to tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The name it has in the config.
    pub name: String,
    /// Tier, by rank: lower is judged first.
    pub tier: u8,
    /// Priority within the tier: lower is judged first.
    pub priority: u32,
    /// What it says about a conversation it matches.
    pub action: RuleAction,
    /// Tags it matches as source.
    pub from: TagSet,
    /// Tags it matches as destination.
    pub to: TagSet,
    /// Services it matches.
    pub services: Services,
    /// Which permission it gives or takes.
    pub direction: Direction,
    /// What else it asks of a conversation's first frame.
    pub conditions: Conditions,
    /// Recorded, not enforced: judging goes on with the next rule.
    pub audit: bool,
}

/// What a rule asks of a conversation's first frame besides tags and services. All that is set must
/// hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Conditions {
    /// The ethertype. `None` stands for IPv4 and IPv6; frames of any other type match only rules
    /// that name it, and such rules have [`Services::Any`].
    pub ether_type: Option<u16>,
    /// The VLAN that the frame belongs to.
    pub vlan: Option<u16>,
    /// First and last source port, of a protocol that has ports.
    pub src_ports: Option<(u16, u16)>,
    /// Flags, of TCP.
    pub tcp_flags: Option<FlagMatch>,
}

/// TCP flags that a rule asks for, as in `tcp_flags & mask == value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FlagMatch {
    /// The flags that are looked at, as in [`FlowKey::tcp_flags`](crate::FlowKey::tcp_flags).
    pub mask: u8,
    /// Those of them that are set.
    pub value: u8,
}

/// A set of tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TagSet {
    /// Every tag, the world's included.
    Any,
    /// These, sorted, without repeats.
    Only(Vec<Tag>),
}

impl TagSet {
    /// Whether `tag` is in the set. Cost: a binary search.
    pub fn contains(&self, tag: Tag) -> bool {
        match self {
            Self::Any => true,
            Self::Only(tags) => tags.binary_search(&tag).is_ok(),
        }
    }
}

/// A set of services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Services {
    /// All of IP.
    Any,
    /// A conversation is in the set if one of these matches.
    Only(Vec<Service>),
}

/// One protocol with its ports or types. Judged on the first frame of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Service {
    /// TCP, UDP or SCTP destination ports, first and last included.
    Ports {
        /// IP protocol: 6, 17 or 132.
        protocol: u8,
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// ICMP (1) or ICMPv6 (58) type, and code if given.
    Icmp {
        /// IP protocol: 1 or 58.
        protocol: u8,
        /// Type.
        kind: u8,
        /// Code; `None` matches all.
        code: Option<u8>,
    },
    /// Every frame of an IP protocol.
    Protocol(u8),
}

impl Service {
    /// Whether it matches protocol and the key's `dst_port` word (for ICMP, `type << 8 | code`).
    pub fn matches(&self, protocol: u8, dst_port: u16) -> bool {
        match *self {
            Self::Ports { protocol: p, first, last } => {
                p == protocol && (first..=last).contains(&dst_port)
            }
            Self::Icmp { protocol: p, kind, code } => {
                let [frame_kind, frame_code] = dst_port.to_be_bytes();
                p == protocol && kind == frame_kind && code.is_none_or(|c| c == frame_code)
            }
            Self::Protocol(p) => p == protocol,
        }
    }
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleAction {
    /// The conversation may happen.
    Allow,
    /// It may not; frames vanish.
    Deny,
    /// It may not; the sender is told by TCP RST or ICMP "administratively prohibited".
    Reject,
    /// Leave this tier: go on with the first rule of the next one.
    Pass,
}

/// Which of a conversation's two permissions a rule is about. It needs both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The source's permission to send, and the destination's to receive.
    #[default]
    Both,
    /// The destination's permission to receive.
    Ingress,
    /// The source's permission to send.
    Egress,
}
