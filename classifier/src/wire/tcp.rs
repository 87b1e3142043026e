//! TCP (RFC 9293 §3.1).
//!
//! ```text
//!  source port (2) | destination port (2) | sequence number (4) | acknowledgement number (4)
//!  data offset (4 bits) | reserved (4 bits) | flags (1) | window (2) | checksum (2) | urgent (2)
//!  options (0..40)
//! ```

use bitflags::bitflags;

use super::{put, u16_at, u32_at};

/// Byte ranges of the header.
pub mod field {
    use std::ops::Range;

    /// Source port.
    pub const SOURCE_PORT: Range<usize> = 0..2;
    /// Destination port.
    pub const DESTINATION_PORT: Range<usize> = 2..4;
    /// Sequence number.
    pub const SEQUENCE: Range<usize> = 4..8;
    /// Acknowledgement number.
    pub const ACKNOWLEDGEMENT: Range<usize> = 8..12;
    /// Header length in 4-byte words (high 4 bits).
    pub const DATA_OFFSET: usize = 12;
    /// [`TcpFlags`](super::TcpFlags).
    pub const FLAGS: usize = 13;
    /// Receive window, unscaled.
    pub const WINDOW: Range<usize> = 14..16;
    /// Checksum of pseudo-header, header and payload.
    pub const CHECKSUM: Range<usize> = 16..18;
}

/// Kinds of options (RFC 9293 §3.2, RFC 7323 §2.2).
mod option {
    /// Ends the list.
    pub(super) const END: u8 = 0;
    /// Padding of one byte.
    pub(super) const NOTHING: u8 = 1;
    /// The shift of all later windows.
    pub(super) const WINDOW_SCALE: u8 = 3;
}

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

bitflags! {
    /// The flags byte.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct TcpFlags: u8 {
        /// The sender has no more to send.
        const FIN = 0x01;
        /// Begins a connection.
        const SYN = 0x02;
        /// Aborts a connection.
        const RST = 0x04;
        /// Deliver without delay.
        const PSH = 0x08;
        /// The acknowledgement number counts.
        const ACK = 0x10;
        /// The urgent pointer counts.
        const URG = 0x20;
        /// Congestion was seen (RFC 3168 §6.1).
        const ECE = 0x40;
        /// The congestion window was reduced (RFC 3168 §6.1).
        const CWR = 0x80;
    }
}

impl TcpFlags {
    /// Whether a sender that follows RFC 9293 could ever set this combination.
    ///
    /// - SYN with FIN or RST would begin and end a connection at once (§3.5, §3.6). Scanners send
    ///   it because filters that look at SYN alone and hosts that look at the rest disagree.
    /// - RST with FIN would abort and close at once (§3.5.2 and §3.6 exclude each other).
    /// - With neither SYN nor RST, ACK must be set: every other segment belongs to a synchronised
    ///   connection, where "this field is always sent" (§3.1). That excludes the null scan (no
    ///   flag), the FIN scan (FIN alone) and the Xmas scan (FIN, PSH, URG).
    ///
    /// PSH, URG, ECE and CWR say nothing about a connection's state, so they are free. The Linux
    /// kernel's connection tracking refuses these too (`tcp_valid_flags`, nf_conntrack_proto_tcp.c).
    pub const fn is_possible(self) -> bool {
        let syn = self.contains(Self::SYN);
        let fin = self.contains(Self::FIN);
        let rst = self.contains(Self::RST);
        match (syn, rst, fin) {
            (true, false, false) | (false, true, false) => true,
            (false, false, _) => self.contains(Self::ACK),
            _ => false,
        }
    }
}

/// View of a segment: 20 ≤ data offset ≤ its length.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// A view of the segment that `bytes` are, to their end; `None` if its header is short or
    /// its data offset impossible.
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        let (header, _) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let data_offset = usize::from(header[field::DATA_OFFSET] >> 4) * 4;
        if data_offset < HEADER_LEN {
            return None;
        }
        let options = bytes.get(HEADER_LEN..data_offset)?;
        Some(Self { header, options, payload: bytes.get(data_offset..)? })
    }

    /// Source port.
    pub fn source_port(&self) -> u16 {
        u16_at(self.header, field::SOURCE_PORT)
    }

    /// Destination port.
    pub fn destination_port(&self) -> u16 {
        u16_at(self.header, field::DESTINATION_PORT)
    }

    /// Sequence number.
    pub fn sequence(&self) -> u32 {
        u32_at(self.header, field::SEQUENCE)
    }

    /// Acknowledgement number.
    pub fn acknowledgement(&self) -> u32 {
        u32_at(self.header, field::ACKNOWLEDGEMENT)
    }

    /// The flags byte.
    pub fn flags(&self) -> TcpFlags {
        TcpFlags::from_bits_retain(self.header[field::FLAGS])
    }

    /// Receive window, unscaled.
    pub fn window(&self) -> u16 {
        u16_at(self.header, field::WINDOW)
    }

    /// The window scale option's shift, at most 14 (RFC 7323 §2.2, §2.3). `None` if there is none, or
    /// none that can be read.
    pub fn window_scale(&self) -> Option<u8> {
        let mut options = self.options;
        loop {
            match *options {
                [option::END, ..] | [] => return None,
                [option::NOTHING, ..] => options = options.get(1..)?,
                [option::WINDOW_SCALE, 3, shift, ..] => return Some(shift.min(14)),
                [_, len, ..] if len >= 2 => options = options.get(len.into()..)?,
                _ => return None,
            }
        }
    }

    /// The bytes it carries.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// A header without options to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repr {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// The flags byte.
    pub flags: TcpFlags,
    /// Receive window, unscaled.
    pub window: u16,
}

impl Repr {
    /// The header's bytes, with a zero checksum.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        put(&mut header, field::SOURCE_PORT, &self.source_port.to_be_bytes());
        put(&mut header, field::DESTINATION_PORT, &self.destination_port.to_be_bytes());
        put(&mut header, field::SEQUENCE, &self.sequence.to_be_bytes());
        put(&mut header, field::ACKNOWLEDGEMENT, &self.acknowledgement.to_be_bytes());
        header[field::DATA_OFFSET] = 5 << 4;
        header[field::FLAGS] = self.flags.bits();
        put(&mut header, field::WINDOW, &self.window.to_be_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let repr = Repr {
            source_port: 40_000,
            destination_port: 443,
            sequence: 0x0102_0304,
            acknowledgement: 0x0506_0708,
            flags: TcpFlags::PSH | TcpFlags::ACK,
            window: 512,
        };
        let mut bytes = repr.to_bytes().to_vec();
        bytes.extend(b"hello");
        let segment = Segment::new_checked(&bytes).unwrap();
        assert_eq!((segment.source_port(), segment.destination_port()), (40_000, 443));
        assert_eq!(segment.sequence(), repr.sequence);
        assert_eq!(segment.acknowledgement(), repr.acknowledgement);
        assert_eq!((segment.flags(), segment.window()), (repr.flags, 512));
        assert_eq!(segment.payload(), b"hello");
    }

    #[test]
    fn the_data_offset_must_lie_within() {
        let mut bytes = [0; 24];
        for (offset, fits) in [(4, false), (5, true), (6, true), (7, false), (15, false)] {
            bytes[field::DATA_OFFSET] = offset << 4;
            assert_eq!(Segment::new_checked(&bytes).is_some(), fits, "offset {offset}");
        }
        bytes[field::DATA_OFFSET] = 5 << 4;
        assert!(Segment::new_checked(&bytes[..19]).is_none());
    }

    #[test]
    fn the_window_scale_is_found_among_options() {
        let scale = |options: &[u8]| {
            let mut bytes = Repr::default().to_bytes().to_vec();
            bytes[field::DATA_OFFSET] = (5 + options.len() as u8 / 4) << 4;
            bytes.extend(options);
            Segment::new_checked(&bytes).unwrap().window_scale()
        };
        // As Linux sends it: MSS, SACK permitted, timestamps, padding, window scale.
        let linux = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, option::NOTHING, 3, 3, 7];
        assert_eq!(scale(&linux), Some(7));
        assert_eq!(scale(&[3, 3, 200, 0]), Some(14));
        for without in [&[][..], &[0, 3, 3, 7], &[2, 0, 3, 3], &[1, 1, 3, 3], &[8, 200, 0, 0]] {
            assert_eq!(scale(without), None, "{without:?}");
        }
    }

    /// The kernel's table, spelled out, for all 256 combinations.
    #[test]
    fn possible_flags_are_those_of_the_state_machine() {
        use TcpFlags as F;
        let possible = [F::SYN, F::SYN | F::ACK, F::RST, F::RST | F::ACK, F::FIN | F::ACK, F::ACK];
        let free = F::PSH | F::URG | F::ECE | F::CWR;
        for bits in 0..=255 {
            let flags = F::from_bits_retain(bits);
            assert_eq!(flags.is_possible(), possible.contains(&(flags - free)), "{flags:?}");
        }
    }
}
