//! IPv4 (RFC 791 §3.1).
//!
//! ```text
//!  version, header length (1) | service (1) | total length (2)
//!  identification (2) | flags, fragment offset (2)
//!  time to live (1) | protocol (1) | header checksum (2)
//!  source (4) | destination (4) | options (0..40)
//! ```

use std::net::Ipv4Addr;

use super::{bytes_at, put, u16_at};
use crate::checksum::Sum;

/// Byte ranges of the header.
pub mod field {
    use std::ops::Range;

    /// Version (high 4 bits) and header length in 4-byte words (low 4 bits).
    pub const VERSION_IHL: usize = 0;
    /// Bytes of header and payload.
    pub const TOTAL_LEN: Range<usize> = 2..4;
    /// Names the packet that a fragment is of, for its source, destination and protocol.
    pub const IDENTIFICATION: Range<usize> = 4..6;
    /// Reserved (1 bit), don't fragment, more fragments, offset in 8-byte units (13 bits).
    pub const FRAGMENT: Range<usize> = 6..8;
    /// Routers left to pass.
    pub const TTL: usize = 8;
    /// Protocol of the payload.
    pub const PROTOCOL: usize = 9;
    /// Checksum of the header, options included.
    pub const CHECKSUM: Range<usize> = 10..12;
    /// Source address.
    pub const SOURCE: Range<usize> = 12..16;
    /// Destination address.
    pub const DESTINATION: Range<usize> = 16..20;
}

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

const DONT_FRAGMENT: u16 = 0x4000;
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// View of a packet: version 4, and 20 ≤ header length ≤ total length.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// A view of the packet that `bytes` begin with; `None` if its header contradicts itself or
    /// not all of its total length is there.
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        let packet = Self::new_cut(bytes)?;
        (packet.len() == packet.total_len()).then_some(packet)
    }

    /// A view of a packet whose payload may be cut off early, as ICMP errors quote it; `None` if
    /// its header contradicts itself or is not all there.
    pub fn new_cut(bytes: &'a [u8]) -> Option<Self> {
        let (header, _) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let [version_ihl, ..] = *header;
        let header_len = usize::from(version_ihl & 0x0f) * 4;
        let total_len = usize::from(u16_at(header, field::TOTAL_LEN));
        if version_ihl >> 4 != 4 || header_len > total_len {
            return None;
        }
        let options = bytes.get(HEADER_LEN..header_len)?;
        let payload = bytes.get(header_len..total_len.min(bytes.len()))?;
        Some(Self { header, options, payload })
    }

    fn len(&self) -> usize {
        self.header_len() + self.payload.len()
    }

    /// Bytes of the header with its options: 20..=60, a multiple of 4.
    pub fn header_len(&self) -> usize {
        HEADER_LEN + self.options.len()
    }

    /// Bytes of header and payload, as the header says.
    pub fn total_len(&self) -> usize {
        usize::from(u16_at(self.header, field::TOTAL_LEN))
    }

    /// True if the header checksum is right.
    pub fn checksum_is_right(&self) -> bool {
        let sum = Sum::default().header(self.header);
        if self.options.is_empty() { sum.verifies() } else { sum.bytes(self.options).verifies() }
    }

    /// True for a fragment: more follow, or it is not the first.
    pub fn is_fragment(&self) -> bool {
        u16_at(self.header, field::FRAGMENT) & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// Bytes of the whole packet's payload before this one's: 0..=65,528, a multiple of 8.
    pub fn fragment_offset(&self) -> u16 {
        (u16_at(self.header, field::FRAGMENT) & OFFSET_MASK) * 8
    }

    /// True if more of the whole packet's payload follows this one's.
    pub fn has_more_fragments(&self) -> bool {
        u16_at(self.header, field::FRAGMENT) & MORE_FRAGMENTS != 0
    }

    /// Which packet a fragment is of.
    pub fn identification(&self) -> u16 {
        u16_at(self.header, field::IDENTIFICATION)
    }

    /// Protocol of the payload.
    pub fn protocol(&self) -> u8 {
        self.header[field::PROTOCOL]
    }

    /// Source address.
    pub fn source(&self) -> Ipv4Addr {
        Ipv4Addr::from(bytes_at::<_, 4>(self.header, field::SOURCE))
    }

    /// Destination address.
    pub fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::from(bytes_at::<_, 4>(self.header, field::DESTINATION))
    }

    /// The options, in order.
    pub fn options(&self) -> Options<'a> {
        Options(self.options)
    }

    /// What the packet carries, without Ethernet padding.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Option types (IANA "IP Option Numbers").
pub mod option {
    /// Nothing follows.
    pub const END: u8 = 0;
    /// One byte of nothing.
    pub const NOP: u8 = 1;
    /// Loose source and record route.
    pub const LOOSE_SOURCE_ROUTE: u8 = 131;
    /// Strict source and record route.
    pub const STRICT_SOURCE_ROUTE: u8 = 137;
}

/// An option whose length field is below 2 or beyond the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedOption;

/// Iterates over option types, without padding. Ends after the first malformed one.
#[derive(Clone, Debug)]
pub struct Options<'a>(&'a [u8]);

impl Iterator for Options<'_> {
    type Item = Result<u8, MalformedOption>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match *self.0 {
                [] | [option::END, ..] => return None,
                [option::NOP, ref rest @ ..] => self.0 = rest,
                [kind, len, ..] if len >= 2 && usize::from(len) <= self.0.len() => {
                    self.0 = &self.0[usize::from(len)..];
                    return Some(Ok(kind));
                }
                _ => {
                    self.0 = &[];
                    return Some(Err(MalformedOption));
                }
            }
        }
    }
}

/// A header without options to be written, for an unfragmented packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Bytes of payload: at most 65,515; more makes a header that no receiver accepts.
    pub payload_len: usize,
    /// Routers left to pass.
    pub ttl: u8,
}

impl Repr {
    /// The header's bytes, checksum included. "Don't fragment" is set and the identification zero,
    /// as RFC 6864 §4.1 allows for packets that are never fragmented.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let total_len = u16::try_from(HEADER_LEN + self.payload_len).unwrap_or(u16::MAX);
        let mut header = [0; HEADER_LEN];
        header[field::VERSION_IHL] = 0x45;
        put(&mut header, field::TOTAL_LEN, &total_len.to_be_bytes());
        put(&mut header, field::FRAGMENT, &DONT_FRAGMENT.to_be_bytes());
        header[field::TTL] = self.ttl;
        header[field::PROTOCOL] = self.protocol;
        put(&mut header, field::SOURCE, &self.source.octets());
        put(&mut header, field::DESTINATION, &self.destination.octets());
        let checksum = Sum::default().bytes(&header).checksum();
        put(&mut header, field::CHECKSUM, &checksum.to_be_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPR: Repr = Repr {
        source: Ipv4Addr::new(10, 0, 0, 1),
        destination: Ipv4Addr::new(10, 0, 0, 2),
        protocol: 6,
        payload_len: 4,
        ttl: 64,
    };

    fn packet() -> Vec<u8> {
        let mut bytes = REPR.to_bytes().to_vec();
        bytes.extend([1, 2, 3, 4]);
        bytes
    }

    #[test]
    fn reads_what_it_writes_and_leaves_padding_out() {
        let mut bytes = packet();
        bytes.extend([0; 22]);
        let packet = Packet::new_checked(&bytes).unwrap();
        assert_eq!((packet.source(), packet.destination()), (REPR.source, REPR.destination));
        assert_eq!((packet.protocol(), packet.payload()), (6, &[1, 2, 3, 4][..]));
        assert!(packet.checksum_is_right() && !packet.is_fragment());
    }

    #[test]
    fn fragments_say_where_they_stand() {
        let mut bytes = packet();
        bytes[field::IDENTIFICATION].copy_from_slice(&[0xab, 0xcd]);
        for (word, offset, more) in
            [(0x2000_u16, 0, true), (0x0001, 8, false), (0x6002, 16, true), (0x1fff, 65_528, false)]
        {
            bytes[field::FRAGMENT].copy_from_slice(&word.to_be_bytes());
            let packet = Packet::new_checked(&bytes).unwrap();
            assert!(packet.is_fragment());
            assert_eq!((packet.fragment_offset(), packet.has_more_fragments()), (offset, more));
            assert_eq!(packet.identification(), 0xabcd);
        }
    }

    #[test]
    fn lengths_must_agree() {
        let bytes = packet();
        assert!(Packet::new_checked(&bytes[..23]).is_none(), "cut");
        assert_eq!(Packet::new_cut(&bytes[..23]).unwrap().payload(), [1, 2, 3]);
        for (byte, value, why) in [
            (field::VERSION_IHL, 0x65, "version 6"),
            (field::VERSION_IHL, 0x44, "16 bytes of header"),
            (field::VERSION_IHL, 0x47, "header longer than packet"),
            (field::TOTAL_LEN.end - 1, 19, "packet shorter than header"),
        ] {
            let mut bad = bytes.clone();
            bad[byte] = value;
            assert!(Packet::new_checked(&bad).is_none(), "{why}");
            assert!(Packet::new_cut(&bad).is_none(), "{why}");
        }
    }

    #[test]
    fn walks_options() {
        let walk = |bytes: &[u8]| Options(bytes).collect::<Vec<_>>();
        assert_eq!(walk(&[1, 1, 0, 9]), []);
        assert_eq!(walk(&[1, 148, 4, 0, 0, 7, 3, 4]), [Ok(148), Ok(7)]);
        for bad in [&[7][..], &[7, 0], &[7, 1], &[7, 3], &[1, 1, 7]] {
            assert_eq!(walk(bad), [Err(MalformedOption)], "{bad:?}");
        }
    }
}
