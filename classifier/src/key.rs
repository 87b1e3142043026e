//! The flow key: every field a verdict may depend on, in fixed words.
//!
//! All frames, whatever their headers, become one shape, so that hashing, masking and comparing
//! are loops over [`KEY_WORDS`] integers without a branch on protocol.
//!
//! | word | bits 63..16 | bits 15..0 |
//! |---|---|---|
//! | 0 | ingress port, VLAN, ethertype (16 each) | IP protocol (or ARP operation), TCP flags |
//! | 1 | destination MAC | destination port, or ICMP type and code |
//! | 2 | source MAC | source port, or ICMP identifier |
//! | 3, 4 | source address, high and low half | |
//! | 5, 6 | destination address, high and low half | |
//!
//! IPv4 addresses (and ARP's) stand as IPv4-mapped IPv6 addresses (RFC 4291 §2.5.5.2), so a prefix
//! of length n is 96 + n bits long here. Values are host integers of big-endian fields.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::mac::MacAddr;
use crate::snapshot::PortId;

/// Number of 64-bit words in a flow key.
pub const KEY_WORDS: usize = 7;

/// Every field of a frame that a verdict may depend on. Absent fields are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The port the frame came in by. Never taken from the frame.
    pub ingress: PortId,
    /// VLAN identifier of the frame's outermost tag, 0 if it has none.
    pub vlan: u16,
    /// Ethertype after any VLAN tags.
    pub ether_type: u16,
    /// IP protocol after extension headers; the operation for ARP.
    pub protocol: u8,
    /// TCP flags byte (FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32).
    pub tcp_flags: u8,
    /// Destination MAC address.
    pub eth_dst: MacAddr,
    /// Source MAC address.
    pub eth_src: MacAddr,
    /// Source address: IPv6, or IPv4-mapped; ARP's sender.
    pub src: u128,
    /// Destination address: IPv6, or IPv4-mapped; ARP's target.
    pub dst: u128,
    /// TCP, UDP or SCTP source port; ICMP echo identifier.
    pub src_port: u16,
    /// TCP, UDP or SCTP destination port; `type << 8 | code` for ICMP and ICMPv6.
    pub dst_port: u16,
}

impl FlowKey {
    /// The key as words, in the layout of the module's table.
    pub fn words(&self) -> [u64; KEY_WORDS] {
        [
            u64::from(self.ingress.0) << 48
                | u64::from(self.vlan) << 32
                | u64::from(self.ether_type) << 16
                | u64::from(self.protocol) << 8
                | u64::from(self.tcp_flags),
            mac_bits(self.eth_dst) << 16 | u64::from(self.dst_port),
            mac_bits(self.eth_src) << 16 | u64::from(self.src_port),
            (self.src >> 64) as u64,
            self.src as u64,
            (self.dst >> 64) as u64,
            self.dst as u64,
        ]
    }

    /// Source address as the family it came in.
    pub fn src_addr(&self) -> IpAddr {
        from_bits(self.src)
    }

    /// Destination address as the family it came in.
    pub fn dst_addr(&self) -> IpAddr {
        from_bits(self.dst)
    }
}

/// `addr` as 128 bits, IPv4 mapped into ::ffff:0:0/96.
pub fn to_bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The inverse of [`to_bits`].
pub fn from_bits(bits: u128) -> IpAddr {
    if bits >> 32 == 0xffff {
        IpAddr::V4(Ipv4Addr::from_bits(bits as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    }
}

fn mac_bits(mac: MacAddr) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}
