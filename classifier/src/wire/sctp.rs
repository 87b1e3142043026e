//! SCTP's common header (RFC 9260 §3.1).
//!
//! ```text
//!  source port (2) | destination port (2) | verification tag (4) | checksum (4) | chunks
//! ```

use super::{put, u16_at, u32_at};

/// Byte ranges of the header.
pub mod field {
    use std::ops::Range;

    /// Source port.
    pub const SOURCE_PORT: Range<usize> = 0..2;
    /// Destination port.
    pub const DESTINATION_PORT: Range<usize> = 2..4;
    /// Proves knowledge of the association.
    pub const VERIFICATION_TAG: Range<usize> = 4..8;
    /// CRC32c of the packet, least significant byte first.
    pub const CHECKSUM: Range<usize> = 8..12;
}

/// Bytes of the common header.
pub const HEADER_LEN: usize = 12;

/// View of a packet: 12 bytes are there.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Packet<'a> {
    /// A view of the packet that `bytes` are; `None` if its header is short.
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        bytes.first_chunk().map(Self)
    }

    /// Source port.
    pub fn source_port(&self) -> u16 {
        u16_at(self.0, field::SOURCE_PORT)
    }

    /// Destination port.
    pub fn destination_port(&self) -> u16 {
        u16_at(self.0, field::DESTINATION_PORT)
    }

    /// Verification tag; 0 in an INIT.
    pub fn verification_tag(&self) -> u32 {
        u32_at(self.0, field::VERIFICATION_TAG)
    }
}

/// A header to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Verification tag.
    pub verification_tag: u32,
}

impl Repr {
    /// The header's bytes, with a zero checksum.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        put(&mut header, field::SOURCE_PORT, &self.source_port.to_be_bytes());
        put(&mut header, field::DESTINATION_PORT, &self.destination_port.to_be_bytes());
        put(&mut header, field::VERIFICATION_TAG, &self.verification_tag.to_be_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let repr = Repr { source_port: 3868, destination_port: 3869, verification_tag: 7 };
        let bytes = repr.to_bytes();
        let packet = Packet::new_checked(&bytes).unwrap();
        assert_eq!((packet.source_port(), packet.destination_port()), (3868, 3869));
        assert_eq!(packet.verification_tag(), 7);
        assert!(Packet::new_checked(&bytes[..11]).is_none());
    }
}
