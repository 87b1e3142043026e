//! Verdicts: what becomes of a frame, and why.
//!
//! A frame's fate is a value, never an error. Every way to be dropped is one [`DropReason`], which
//! has a counter, a sentence for people, and a test.

use serde::{Deserialize, Serialize};

use crate::snapshot::{PortId, RuleId};

/// What becomes of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Where it goes.
    pub action: Action,
    /// Who decided.
    pub cause: Cause,
    /// In learn and audit mode, and for rules under audit: the reason it would have been dropped
    /// for. The frame is forwarded all the same.
    pub would_drop: Option<DropReason>,
}

impl Verdict {
    /// A drop that no rule asked for.
    pub const fn drop(reason: DropReason) -> Self {
        Self { action: Action::Drop(reason), cause: Cause::Switch, would_drop: None }
    }

    /// The reason, if the frame is dropped.
    pub const fn drop_reason(&self) -> Option<DropReason> {
        match self.action {
            Action::Drop(reason) => Some(reason),
            Action::Forward(_) | Action::Flood => None,
        }
    }

    /// True if the frame leaves by at least one port.
    pub const fn is_forwarded(&self) -> bool {
        self.drop_reason().is_none()
    }

    /// The reason that a denial is recorded and mirrored under: the drop's, or the one it would
    /// have had.
    pub const fn denied(&self) -> Option<DropReason> {
        match self.drop_reason() {
            Some(reason) => Some(reason),
            None => self.would_drop,
        }
    }
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Out of one port.
    Forward(PortId),
    /// Out of every port in the pipeline's
    /// [`receivers`](crate::pipeline::Pipeline::receivers), a copy each.
    Flood,
    /// Nowhere.
    Drop(DropReason),
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// This rule of the snapshot the verdict was reached under.
    Rule(RuleId),
    /// No rule matched: the default, deny.
    Default,
    /// The switch's own protections or limits; the drop reason tells which.
    Switch,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $slug:literal, $group:ident, $text:literal;)*) => {
        /// Why a frame was dropped.
        ///
        /// The numeric value is an index into counter arrays and is sent between roles.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $name,)*
        }

        impl DropReason {
            /// All reasons, in the order of their numeric values.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Stable short name, as counters and `--json` print it.
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)* }
            }

            /// One clause for people, to stand after "dropped: ".
            pub const fn explain(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What kind of refusal this is.
            pub const fn group(self) -> DropGroup {
                match self { $(Self::$name => DropGroup::$group,)* }
            }
        }
    };
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DropGroup {
    /// The bytes are not what they claim to be.
    Malformed,
    /// Well-formed, but no policy can judge it.
    Unjudged,
    /// It claims an identity or a role that its port does not have. Mirrored; only recorded, not
    /// dropped, in learn and audit mode.
    Spoofed,
    /// Policy says no. Mirrored; only recorded, not dropped, in learn and audit mode.
    Policy,
    /// Nobody to give it to.
    Delivery,
    /// A bound was reached.
    Limit,
}

impl DropGroup {
    /// Whether learn and audit mode let such a frame pass.
    pub const fn is_relaxed_by_mode(self) -> bool {
        matches!(self, Self::Spoofed | Self::Policy)
    }
}

drop_reasons! {
    /// Shorter than an Ethernet header, or than its VLAN tags say.
    FrameTruncated = "frame-truncated", Malformed, "shorter than its Ethernet header";
    /// ARP that is short, or not Ethernet/IPv4.
    ArpMalformed = "arp-malformed", Malformed, "the ARP message is malformed";
    /// Bad version, lengths or header checksum.
    Ipv4Malformed = "ipv4-malformed", Malformed, "the IPv4 header is malformed";
    /// Bad version, lengths, or an IPv4-mapped address in an IPv6 header.
    Ipv6Malformed = "ipv6-malformed", Malformed, "the IPv6 header is malformed";
    /// Short header, bad data offset, or an impossible set of flags.
    TcpMalformed = "tcp-malformed", Malformed, "the TCP header is malformed";
    /// Short header or bad length.
    UdpMalformed = "udp-malformed", Malformed, "the UDP header is malformed";
    /// Short header.
    SctpMalformed = "sctp-malformed", Malformed, "the SCTP header is malformed";
    /// Short header, or an error without the packet it is about.
    IcmpMalformed = "icmp-malformed", Malformed, "the ICMP message is malformed";
    /// Neighbour discovery with a bad hop limit, code, option or target (RFC 4861 §7.1).
    NdMalformed = "nd-malformed", Malformed, "the neighbour discovery message is malformed";
    /// A first fragment without all of its packet's headers, or a later one that would stand in them
    /// (RFC 1858 §3, RFC 3128, RFC 7112 §5).
    FragmentTiny = "fragment-tiny", Malformed, "its packet's headers are not all in the first fragment";
    /// A fragment that reaches beyond 65,535 bytes of packet.
    FragmentTooLong = "fragment-too-long", Malformed, "the fragment reaches beyond the longest packet there is";
    /// A fragment that repeats, overlaps or contradicts another one, or whose packet has such
    /// (RFC 1858 §4, RFC 5722).
    FragmentOverlap = "fragment-overlap", Malformed, "it overlaps or contradicts another fragment of its packet";
    /// The source address is multicast, broadcast or loopback.
    SourceInvalid = "source-invalid", Malformed, "the source address is not one that can send";

    /// Neither ARP, IPv4 nor IPv6, nor an ethertype that a rule names.
    UnknownEtherType = "unknown-ethertype", Unjudged, "the ethertype is none that policy speaks of";
    /// A fragment whose first did not come, or was judged by a policy that is no longer in force.
    FragmentExpired = "fragment-expired", Unjudged, "no first fragment came in time to judge its packet by";
    /// IPv4 source routing (RFC 7126 §4.3, §4.4).
    Ipv4SourceRoute = "ipv4-source-route", Unjudged, "it asks for IPv4 source routing";
    /// An extension header chain that is too long, out of order, or has a routing header.
    Ipv6Extension = "ipv6-extension", Unjudged, "its IPv6 extension headers cannot be judged";
    /// A tag on an access port, none on a trunk, a VLAN the port does not carry, or two tags.
    VlanNotAllowed = "vlan-not-allowed", Unjudged, "its port does not carry this VLAN tagging";

    /// Source MAC is not the port's.
    SpoofedMac = "spoofed-mac", Spoofed, "the source MAC is not this workload's";
    /// Source address is not the port's.
    SpoofedIp = "spoofed-ip", Spoofed, "the source address is not this workload's";
    /// ARP sender's MAC or address is not the port's.
    SpoofedArp = "spoofed-arp", Spoofed, "the ARP sender is not this workload";
    /// ND source, target or link-layer option is not the port's.
    SpoofedNd = "spoofed-nd", Spoofed, "the neighbour discovery sender is not this workload";
    /// Router advertisement or redirect from a workload that is not a router.
    RogueRouter = "rogue-router", Spoofed, "only a workload marked router may advertise routes";
    /// DHCP server message from a workload that is not a DHCP server.
    RogueDhcp = "rogue-dhcp", Spoofed, "only a workload marked dhcp_server may answer DHCP";

    /// A deny rule.
    Denied = "denied", Policy, "a rule denies it";
    /// A reject rule; the sender is told.
    Rejected = "rejected", Policy, "a rule rejects it";
    /// No rule allows it.
    DefaultDeny = "default-deny", Policy, "no rule allows it";
    /// TCP that is not the beginning of a connection, and belongs to none.
    TcpNotSyn = "tcp-not-syn", Policy, "it belongs to no TCP connection that the switch has seen begin";
    /// TCP that its connection's state does not permit.
    TcpState = "tcp-state", Policy, "its TCP connection's state does not permit it";
    /// TCP outside its connection's windows.
    TcpWindow = "tcp-window", Policy, "it lies outside its TCP connection's windows";
    /// ICMP error about no live connection of the receiver's.
    IcmpUnrelated = "icmp-unrelated", Policy, "the ICMP error is about no live connection";

    /// No port has this destination.
    UnknownDestination = "unknown-destination", Delivery, "no port has this destination";
    /// The destination is where it came from.
    Hairpin = "hairpin", Delivery, "its destination is the port it came from";
    /// The destination address is not the workload's that owns the destination MAC.
    AddressMismatch = "address-mismatch", Delivery, "its destination address is not that of the workload with this MAC";
    /// Broadcast or multicast that no other workload may receive.
    NoReceiver = "no-receiver", Delivery, "no workload that policy allows listens to this group";
    /// 802.1D reserved group address.
    BridgeReserved = "bridge-reserved", Delivery, "a bridge keeps frames to this reserved address";
    /// The output port is gone or down.
    PortDown = "port-down", Delivery, "the output port is down";
    /// Larger than the output port's MTU.
    TooBig = "too-big", Delivery, "it is larger than the output port's MTU";
    /// No policy is in force yet.
    NoPolicy = "no-policy", Delivery, "no policy is in force";

    /// The connection table is full.
    ConnectionsFull = "connections-full", Limit, "the connection table is full";
    /// It needs an upcall, and its port has had as many as it may.
    UpcallLimit = "upcall-limit", Limit, "its port begins more than upcalls_per_sec allows";
    /// Too many fragments wait for the first of their packet.
    FragmentsFull = "fragments-full", Limit, "too many fragments wait for the first of their packet";
    /// The port has begun as many connections as it may.
    PortConnectionsFull = "port-connections-full", Limit, "its port has used up its share of the connection table";
    /// No frame was left in the umem for a copy.
    NoFrame = "no-frame", Limit, "the umem had no free frame";
    /// The output port's queue is full.
    TxFull = "tx-full", Limit, "the output port's transmit queue is full";
    /// The queue to another worker is full.
    HandoffFull = "handoff-full", Limit, "the queue between two workers is full";
    /// Datagrams of a flow that the kernel is to forward from now on, while earlier ones are still on
    /// their way through the switch.
    LaneChange = "lane-change", Limit, "its flow changes to the express lane, and too much of it is under way";
    /// The kernel dropped it at its port: on the express lane for the sake of other ports, on the
    /// switch lane because the port's rings are full.
    LaneFull = "lane-full", Limit, "its port has as much on the way to the switch as it may";

    /// The kernel dropped it: no data plane had looked after the express lane for `express_grace_secs`.
    LaneShut = "lane-shut", Delivery, "no data plane had looked after the express lane for express_grace_secs";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_indexed_by_value_and_have_distinct_names() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(DropReason::ALL[..i].iter().all(|r| r.slug() != reason.slug()));
        }
    }
}
