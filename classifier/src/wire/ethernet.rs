//! Ethernet II with 802.1Q and 802.1ad tags (IEEE 802.3 §3, IEEE 802.1Q-2018 §9).
//!
//! ```text
//!  destination (6) | source (6) | tag (4) … | ethertype (2) | payload | padding
//!                                 └ tag protocol (2), priority and VLAN identifier (2)
//! ```

use super::{mac_at, put, u16_at};
use crate::mac::MacAddr;

/// Byte ranges of the header and of one tag.
pub mod field {
    use std::ops::Range;

    /// Destination MAC address.
    pub const DESTINATION: Range<usize> = 0..6;
    /// Source MAC address.
    pub const SOURCE: Range<usize> = 6..12;
    /// Ethertype, or the first tag's protocol identifier.
    pub const ETHER_TYPE: Range<usize> = 12..14;

    /// In a tag: priority (3 bits), drop eligible (1 bit), VLAN identifier (12 bits).
    pub const TAG_CONTROL: Range<usize> = 0..2;
    /// In a tag: the ethertype, or the next tag's protocol identifier, that follows.
    pub const TAG_NEXT: Range<usize> = 2..4;
}

/// Bytes of the header without tags.
pub const HEADER_LEN: usize = 14;
/// Bytes that one tag adds.
pub const TAG_LEN: usize = 4;

/// The least ethertype: what is lower in its place is a length (IEEE 802.3 §3.2.6).
pub const FIRST_ETHER_TYPE: u16 = 0x0600;

/// Ethertypes (IANA "IEEE 802 Numbers").
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// A customer tag, 802.1Q.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// A service tag, 802.1ad.
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// View of the header without tags: 14 bytes are there.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Header<'a> {
    /// A view of the frame's first 14 bytes, and the bytes behind; `None` if it is shorter.
    pub fn new_checked(frame: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (header, rest) = frame.split_first_chunk()?;
        Some((Self(header), rest))
    }

    /// Destination MAC address.
    pub fn destination(&self) -> MacAddr {
        mac_at(self.0, field::DESTINATION)
    }

    /// Source MAC address.
    pub fn source(&self) -> MacAddr {
        mac_at(self.0, field::SOURCE)
    }

    /// Ethertype or tag protocol; below 0x600 it is an 802.3 length.
    pub fn ether_type(&self) -> u16 {
        u16_at(self.0, field::ETHER_TYPE)
    }
}

/// View of what follows a tag protocol: 4 bytes are there.
#[derive(Clone, Copy, Debug)]
pub struct Tag<'a>(&'a [u8; TAG_LEN]);

impl<'a> Tag<'a> {
    /// A view of the tag that `bytes` begin with, and the bytes behind; `None` if it is cut.
    pub fn new_checked(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (tag, rest) = bytes.split_first_chunk()?;
        Some((Self(tag), rest))
    }

    /// VLAN identifier; 0 means that only the priority counts.
    pub fn vlan(&self) -> u16 {
        u16_at(self.0, field::TAG_CONTROL) & 0x0fff
    }

    /// The ethertype or tag protocol that follows.
    pub fn next(&self) -> u16 {
        u16_at(self.0, field::TAG_NEXT)
    }
}

/// True for the two tag protocols that may stand in front of a packet.
pub const fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, ether_type::VLAN | ether_type::SERVICE_VLAN)
}

/// A header to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Destination MAC address.
    pub destination: MacAddr,
    /// Source MAC address.
    pub source: MacAddr,
    /// Ethertype.
    pub ether_type: u16,
}

impl Repr {
    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        put(&mut header, field::DESTINATION, &self.destination.0);
        put(&mut header, field::SOURCE, &self.source.0);
        put(&mut header, field::ETHER_TYPE, &self.ether_type.to_be_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let repr = Repr {
            destination: MacAddr([2, 0, 0, 0, 0, 1]),
            source: MacAddr([2, 0, 0, 0, 0, 2]),
            ether_type: ether_type::IPV6,
        };
        let bytes = repr.to_bytes();
        let (header, rest) = Header::new_checked(&bytes).unwrap();
        assert_eq!(header.destination(), repr.destination);
        assert_eq!(header.source(), repr.source);
        assert_eq!(header.ether_type(), repr.ether_type);
        assert!(rest.is_empty());
        assert!(Header::new_checked(&bytes[..13]).is_none());
    }

    #[test]
    fn a_tags_identifier_is_its_low_twelve_bits() {
        let (tag, rest) = Tag::new_checked(&[0xff, 0xfe, 0x08, 0x00, 9]).unwrap();
        assert_eq!((tag.vlan(), tag.next(), rest), (0xffe, ether_type::IPV4, &[9][..]));
        assert!(Tag::new_checked(&[0, 1, 8]).is_none());
    }
}
