//! UDP (RFC 768).
//!
//! ```text
//!  source port (2) | destination port (2) | length (2) | checksum (2)
//! ```

use super::{put, u16_at};

/// Byte ranges of the header.
pub mod field {
    use std::ops::Range;

    /// Source port; 0 means that no answer is wanted.
    pub const SOURCE_PORT: Range<usize> = 0..2;
    /// Destination port.
    pub const DESTINATION_PORT: Range<usize> = 2..4;
    /// Bytes of header and payload.
    pub const LENGTH: Range<usize> = 4..6;
    /// Checksum of pseudo-header, header and payload; over IPv4, 0 means none.
    pub const CHECKSUM: Range<usize> = 6..8;
}

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// Well-known ports that the switch looks at.
pub mod port {
    /// DHCP servers and relays (RFC 2131 §4.1).
    pub const DHCP_SERVER: u16 = 67;
    /// DHCP clients.
    pub const DHCP_CLIENT: u16 = 68;
    /// DHCPv6 clients (RFC 8415 §7.2).
    pub const DHCPV6_CLIENT: u16 = 546;
    /// DHCPv6 servers and relays.
    pub const DHCPV6_SERVER: u16 = 547;
}

/// View of a datagram: 8 ≤ length ≤ the bytes there are, or will be when all fragments are.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Datagram<'a> {
    /// A view of the datagram that `bytes` begin with; `None` if its header is short or its
    /// length impossible.
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        let datagram = Self(bytes.first_chunk()?);
        (HEADER_LEN..=bytes.len()).contains(&datagram.length()).then_some(datagram)
    }

    /// A view of the datagram that a first fragment begins with: its length may reach beyond.
    /// `None` if its header is short or its length impossible.
    pub fn new_first_fragment(bytes: &'a [u8]) -> Option<Self> {
        let datagram = Self(bytes.first_chunk()?);
        (datagram.length() >= HEADER_LEN).then_some(datagram)
    }

    /// Source port.
    pub fn source_port(&self) -> u16 {
        u16_at(self.0, field::SOURCE_PORT)
    }

    /// Destination port.
    pub fn destination_port(&self) -> u16 {
        u16_at(self.0, field::DESTINATION_PORT)
    }

    /// Bytes of header and payload. The IP payload may be longer: RFC 9868 keeps options there.
    pub fn length(&self) -> usize {
        usize::from(u16_at(self.0, field::LENGTH))
    }
}

/// A header to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Bytes of payload: at most 65,527; more makes a header that no receiver accepts.
    pub payload_len: usize,
}

impl Repr {
    /// The header's bytes, with a zero checksum.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let length = u16::try_from(HEADER_LEN + self.payload_len).unwrap_or(u16::MAX);
        let mut header = [0; HEADER_LEN];
        put(&mut header, field::SOURCE_PORT, &self.source_port.to_be_bytes());
        put(&mut header, field::DESTINATION_PORT, &self.destination_port.to_be_bytes());
        put(&mut header, field::LENGTH, &length.to_be_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let repr = Repr { source_port: 5353, destination_port: 53, payload_len: 3 };
        let mut bytes = repr.to_bytes().to_vec();
        bytes.extend([0; 3]);
        let datagram = Datagram::new_checked(&bytes).unwrap();
        assert_eq!((datagram.source_port(), datagram.destination_port()), (5353, 53));
        assert_eq!(datagram.length(), 11);
    }

    #[test]
    fn the_length_must_lie_within() {
        let mut bytes = [0; 12];
        for (length, fits) in [(0, false), (7, false), (8, true), (12, true), (13, false)] {
            bytes[5] = length;
            assert_eq!(Datagram::new_checked(&bytes).is_some(), fits, "length {length}");
        }
        bytes[5] = 8;
        assert!(Datagram::new_checked(&bytes[..7]).is_none());
    }
}
