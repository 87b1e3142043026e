//! Frame bytes to headers: one pass, bounds-checked, no copy.

use crate::key::FlowKey;
use crate::mac::MacAddr;
use crate::snapshot::PortId;
use crate::verdict::DropReason;

/// What one frame's headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The fields a verdict may depend on.
    pub key: FlowKey,
    /// VLAN tags before the ethertype: 0, 1 or 2.
    pub vlan_tags: u8,
    /// Offset of the network header (ARP, IPv4, IPv6), in bytes from the frame's start.
    pub l3: u16,
    /// Offset of the transport header; equals `end` if there is none.
    pub l4: u16,
    /// Offset just past the network packet by its own length fields. Ethernet padding lies behind.
    pub end: u16,
    /// TCP's sequence space, if it is TCP.
    pub tcp: TcpFields,
    /// What is special about it.
    pub kind: Kind,
}

/// TCP fields that connections follow. Zero for other protocols. Flags are in the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFields {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window as it stands in the header, unscaled.
    pub window: u16,
    /// Bytes of payload.
    pub payload: u16,
}

/// Frames that need more than their key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing special: judged by its key.
    Plain,
    /// ARP for IPv4 over Ethernet (RFC 826). Sender and target addresses are in the key.
    Arp {
        /// Sender hardware address.
        sender: MacAddr,
        /// Target hardware address.
        target: MacAddr,
    },
    /// Neighbour discovery (RFC 4861).
    Nd(Nd),
    /// An ICMP or ICMPv6 error, with the packet it is about.
    IcmpError(Embedded),
    /// DHCP or DHCPv6, from client to server.
    DhcpClient,
    /// DHCP or DHCPv6, from server (or relay) to client.
    DhcpServer,
}

/// A neighbour discovery message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nd {
    /// Which message.
    pub message: NdMessage,
    /// Target address, for solicitation, advertisement and redirect; 0 otherwise.
    pub target: u128,
    /// Source or target link-layer address option, whichever the message carries.
    pub link_addr: Option<MacAddr>,
}

/// Neighbour discovery messages (RFC 4861 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NdMessage {
    /// ICMPv6 type 133.
    RouterSolicitation,
    /// ICMPv6 type 134.
    RouterAdvertisement,
    /// ICMPv6 type 135.
    NeighborSolicitation,
    /// ICMPv6 type 136.
    NeighborAdvertisement,
    /// ICMPv6 type 137.
    Redirect,
}

/// The packet that an ICMP error is about, as its sender sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// IP protocol.
    pub protocol: u8,
    /// Source address bits, as in [`FlowKey::src`].
    pub src: u128,
    /// Destination address bits.
    pub dst: u128,
    /// Source port or ICMP identifier.
    pub src_port: u16,
    /// Destination port, or ICMP `type << 8 | code`.
    pub dst_port: u16,
}

/// Reads the headers of `frame`, which came in by `ingress`.
///
/// # Errors
/// The reason to drop a frame that is malformed or that cannot be judged.
pub fn extract(frame: &[u8], ingress: PortId) -> Result<Headers, DropReason> {
    let _ = (frame, ingress);
    todo!()
}
