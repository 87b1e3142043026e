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
///
/// Fields stand in memory so that a MAC address and the port behind which it is are one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// Source address: IPv6, or IPv4-mapped; ARP's sender.
    pub src: u128,
    /// Destination address: IPv6, or IPv4-mapped; ARP's target.
    pub dst: u128,
    /// Source MAC address.
    pub eth_src: MacAddr,
    /// The port the frame came in by. Never taken from the frame.
    pub ingress: PortId,
    /// Destination MAC address.
    pub eth_dst: MacAddr,
    /// VLAN identifier of the frame's outermost tag, 0 if it has none.
    pub vlan: u16,
    /// TCP, UDP or SCTP source port; ICMP echo identifier.
    pub src_port: u16,
    /// TCP, UDP or SCTP destination port; `type << 8 | code` for ICMP and ICMPv6.
    pub dst_port: u16,
    /// Ethertype after any VLAN tags.
    pub ether_type: u16,
    /// IP protocol after extension headers; the operation for ARP.
    pub protocol: u8,
    /// TCP flags byte (FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32).
    pub tcp_flags: u8,
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

    /// The inverse of [`FlowKey::words`].
    pub fn from_words(words: &[u64; KEY_WORDS]) -> Self {
        let [layer2, dst_mac, src_mac, src_high, src_low, dst_high, dst_low] = *words;
        Self {
            ingress: PortId((layer2 >> 48) as u16),
            vlan: (layer2 >> 32) as u16,
            ether_type: (layer2 >> 16) as u16,
            protocol: (layer2 >> 8) as u8,
            tcp_flags: layer2 as u8,
            eth_dst: mac_of_bits(dst_mac >> 16),
            eth_src: mac_of_bits(src_mac >> 16),
            src: u128::from(src_high) << 64 | u128::from(src_low),
            dst: u128::from(dst_high) << 64 | u128::from(dst_low),
            src_port: src_mac as u16,
            dst_port: dst_mac as u16,
        }
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
    let (high, low) = (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f]));
    u64::from(high) << 16 | u64::from(low)
}

fn mac_of_bits(bits: u64) -> MacAddr {
    let [_, _, a, b, c, d, e, f] = bits.to_be_bytes();
    MacAddr([a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn words_hold_the_whole_key(words: [u64; KEY_WORDS]) {
            prop_assert_eq!(FlowKey::from_words(&words).words(), words);
        }
    }

    #[test]
    fn addresses_of_both_families_go_there_and_back() {
        for text in ["10.0.0.1", "0.0.0.0", "::", "fe80::1"] {
            let addr: IpAddr = text.parse().expect("a literal address");
            assert_eq!(from_bits(to_bits(addr)), addr);
        }
    }
}
