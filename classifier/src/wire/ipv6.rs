//! IPv6, its option-carrying extension headers, and the fragment header (RFC 8200 §3, §4).
//!
//! ```text
//!  version, class, flow label (4) | payload length (2) | next header (1) | hop limit (1)
//!  source (16) | destination (16)
//! ```

use std::net::Ipv6Addr;

use super::{bytes_at, put, u16_at, u32_at};

/// Byte ranges of the header.
pub mod field {
    use std::ops::Range;

    /// Version (high 4 bits), then the beginning of the traffic class.
    pub const VERSION: usize = 0;
    /// Bytes behind the header, extension headers included.
    pub const PAYLOAD_LEN: Range<usize> = 4..6;
    /// Protocol of what follows.
    pub const NEXT_HEADER: usize = 6;
    /// Routers left to pass.
    pub const HOP_LIMIT: usize = 7;
    /// Source address.
    pub const SOURCE: Range<usize> = 8..24;
    /// Destination address.
    pub const DESTINATION: Range<usize> = 24..40;
}

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;

/// View of a packet: version 6, 40 bytes of header.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// A view of the packet that `bytes` begin with; `None` if it is not version 6 or not all of
    /// its payload length is there.
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        let packet = Self::new_cut(bytes)?;
        (packet.payload.len() == packet.payload_len()).then_some(packet)
    }

    /// A view of a packet whose payload may be cut off early, as ICMPv6 errors quote it; `None` if
    /// it is not version 6 or its header is not all there.
    pub fn new_cut(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let payload_len = usize::from(u16_at(header, field::PAYLOAD_LEN));
        let payload = rest.get(..payload_len.min(rest.len()))?;
        (header[field::VERSION] >> 4 == 6).then_some(Self { header, payload })
    }

    /// Bytes behind the header, as it says.
    pub fn payload_len(&self) -> usize {
        usize::from(u16_at(self.header, field::PAYLOAD_LEN))
    }

    /// Protocol of the first header in [`payload`](Self::payload).
    pub fn next_header(&self) -> u8 {
        self.header[field::NEXT_HEADER]
    }

    /// Routers left to pass.
    pub fn hop_limit(&self) -> u8 {
        self.header[field::HOP_LIMIT]
    }

    /// Source address.
    pub fn source(&self) -> Ipv6Addr {
        Ipv6Addr::from(bytes_at::<_, 16>(self.header, field::SOURCE))
    }

    /// Destination address.
    pub fn destination(&self) -> Ipv6Addr {
        Ipv6Addr::from(bytes_at::<_, 16>(self.header, field::DESTINATION))
    }

    /// Extension headers and what they lead to, without Ethernet padding.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// View of a hop-by-hop or destination options header: all of its length is there.
///
/// ```text
///  next header (1) | length in 8-byte units, the first left out (1) | options (6, 14, 22, …)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct OptionsHeader<'a> {
    next_header: u8,
    options: &'a [u8],
}

impl<'a> OptionsHeader<'a> {
    /// A view of the header that `bytes` begin with, and the bytes behind; `None` if it is cut.
    pub fn new_checked(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let [next_header, units, ..] = *bytes else { return None };
        let (header, rest) = bytes.split_at_checked((usize::from(units) + 1) * 8)?;
        Some((Self { next_header, options: header.get(2..)? }, rest))
    }

    /// Protocol of what follows.
    pub fn next_header(&self) -> u8 {
        self.next_header
    }

    /// The options, in order.
    pub fn options(&self) -> Options<'a> {
        Options(self.options)
    }
}

/// Bytes of a fragment header.
pub const FRAGMENT_LEN: usize = 8;

/// View of a fragment header (RFC 8200 §4.5).
///
/// ```text
///  next header (1) | reserved (1) | offset in 8-byte units (13 bits), reserved (2), more (1)
///  identification (4)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct FragmentHeader<'a>(&'a [u8; FRAGMENT_LEN]);

impl<'a> FragmentHeader<'a> {
    /// A view of the header that `bytes` begin with, and the bytes behind; `None` if it is cut.
    pub fn new_checked(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (header, rest) = bytes.split_first_chunk()?;
        Some((Self(header), rest))
    }

    /// Protocol of what the whole packet's fragmentable part begins with. Only the first fragment's
    /// word counts.
    pub fn next_header(&self) -> u8 {
        self.0[0]
    }

    /// Bytes of the fragmentable part before this piece of it: 0..=65,528, a multiple of 8.
    pub fn offset(&self) -> u16 {
        u16_at(self.0, 2..4) & !7
    }

    /// True if more of the fragmentable part follows.
    pub fn has_more(&self) -> bool {
        u16_at(self.0, 2..4) & 1 != 0
    }

    /// Which packet the fragment is of, for its source and destination.
    pub fn identification(&self) -> u32 {
        u32_at(self.0, 4..8)
    }

    /// True if the fragment is all of its packet (RFC 6946).
    pub fn is_atomic(&self) -> bool {
        self.offset() == 0 && !self.has_more()
    }
}

/// Option types (IANA "Destination Options and Hop-by-Hop Options").
pub mod option {
    /// One byte of padding.
    pub const PAD1: u8 = 0;
    /// Padding.
    pub const PADN: u8 = 1;
    /// The payload is longer than 65,535 bytes (RFC 2675 §2).
    pub const JUMBO_PAYLOAD: u8 = 0xc2;
    /// Receivers are to take this address for the source (RFC 6275 §6.3).
    pub const HOME_ADDRESS: u8 = 0xc9;
}

/// An option that reaches beyond its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedOption;

/// Iterates over option types, without padding. Ends after the first malformed one.
#[derive(Clone, Debug)]
pub struct Options<'a>(&'a [u8]);

impl Iterator for Options<'_> {
    type Item = Result<u8, MalformedOption>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (kind, len) = match *self.0 {
                [] => return None,
                [option::PAD1, ..] => (option::PAD1, 1),
                [kind, len, ..] => (kind, usize::from(len) + 2),
                [kind] => (kind, 2),
            };
            let Some(rest) = self.0.get(len..) else {
                self.0 = &[];
                return Some(Err(MalformedOption));
            };
            self.0 = rest;
            if !matches!(kind, option::PAD1 | option::PADN) {
                return Some(Ok(kind));
            }
        }
    }
}

/// A header to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
    /// Protocol of what follows.
    pub next_header: u8,
    /// Bytes behind the header: at most 65,535; more makes a header that no receiver accepts.
    pub payload_len: usize,
    /// Routers left to pass.
    pub hop_limit: u8,
}

impl Repr {
    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let payload_len = u16::try_from(self.payload_len).unwrap_or(u16::MAX);
        let mut header = [0; HEADER_LEN];
        header[field::VERSION] = 0x60;
        put(&mut header, field::PAYLOAD_LEN, &payload_len.to_be_bytes());
        header[field::NEXT_HEADER] = self.next_header;
        header[field::HOP_LIMIT] = self.hop_limit;
        put(&mut header, field::SOURCE, &self.source.octets());
        put(&mut header, field::DESTINATION, &self.destination.octets());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPR: Repr = Repr {
        source: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
        destination: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
        next_header: 17,
        payload_len: 2,
        hop_limit: 255,
    };

    #[test]
    fn reads_what_it_writes_and_leaves_padding_out() {
        let mut bytes = REPR.to_bytes().to_vec();
        bytes.extend([1, 2, 0, 0]);
        let packet = Packet::new_checked(&bytes).unwrap();
        assert_eq!((packet.source(), packet.destination()), (REPR.source, REPR.destination));
        assert_eq!((packet.next_header(), packet.hop_limit()), (17, 255));
        assert_eq!(packet.payload(), [1, 2]);
        assert!(Packet::new_checked(&bytes[..41]).is_none(), "cut payload");
        assert_eq!(Packet::new_cut(&bytes[..41]).unwrap().payload(), [1]);
        assert!(Packet::new_cut(&bytes[..39]).is_none(), "cut header");
        bytes[field::VERSION] = 0x40;
        assert!(Packet::new_checked(&bytes).is_none(), "version 4");
    }

    #[test]
    fn an_options_header_is_as_long_as_it_says() {
        let mut bytes = [0; 20];
        bytes[..2].copy_from_slice(&[6, 1]);
        let (header, rest) = OptionsHeader::new_checked(&bytes).unwrap();
        assert_eq!((header.next_header(), rest.len()), (6, 4));
        assert!(OptionsHeader::new_checked(&bytes[..15]).is_none());
        assert!(OptionsHeader::new_checked(&bytes[..1]).is_none());
    }

    #[test]
    fn a_fragment_header_says_where_its_piece_stands() {
        let bytes = [17, 0, 0x05, 0xa9, 1, 2, 3, 4, 9];
        let (header, rest) = FragmentHeader::new_checked(&bytes).unwrap();
        assert_eq!((header.next_header(), header.offset(), header.has_more()), (17, 1448, true));
        assert_eq!((header.identification(), rest), (0x0102_0304, &[9][..]));
        assert!(!header.is_atomic());
        assert!(FragmentHeader::new_checked(&bytes[..7]).is_none());
        let (atomic, _) = FragmentHeader::new_checked(&[17, 0, 0, 6, 0, 0, 0, 0]).unwrap();
        assert!(atomic.is_atomic(), "reserved bits do not count");
    }

    #[test]
    fn walks_options() {
        let walk = |bytes: &[u8]| Options(bytes).collect::<Vec<_>>();
        assert_eq!(walk(&[5, 2, 0, 0, 1, 0]), [Ok(5)]);
        assert_eq!(walk(&[0, 0, 1, 2, 9, 9]), []);
        assert_eq!(walk(&[0xc9, 3, 0, 0, 0, 0]), [Ok(0xc9)]);
        for bad in [&[5][..], &[5, 1], &[1, 1], &[1, 0, 1]] {
            assert_eq!(walk(bad), [Err(MalformedOption)], "{bad:?}");
        }
    }
}
