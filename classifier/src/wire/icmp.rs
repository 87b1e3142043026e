//! ICMP (RFC 792), and the eight bytes that ICMPv6 messages begin with too.
//!
//! ```text
//!  type (1) | code (1) | checksum (2) | identifier (2) | sequence number (2) | data
//!                                       └ in errors: unused, or a pointer, MTU or gateway
//! ```

use super::{bytes_at, u16_at};

/// Byte ranges of the header.
pub mod field {
    use std::ops::Range;

    /// What it is about.
    pub const TYPE: usize = 0;
    /// Detail of the type.
    pub const CODE: usize = 1;
    /// Checksum of the message; ICMPv6's covers a pseudo-header too.
    pub const CHECKSUM: Range<usize> = 2..4;
    /// In queries: tells the sender's conversations apart.
    pub const IDENTIFIER: Range<usize> = 4..6;
    /// Four bytes whose meaning depends on the type.
    pub const REST: Range<usize> = 4..8;
}

/// Bytes before a query's data, or before the packet that an error quotes.
pub const HEADER_LEN: usize = 8;

/// Message types (IANA "ICMP Type Numbers").
pub mod kind {
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 0;
    /// Error: destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Error: source quench, deprecated by RFC 6633.
    pub const SOURCE_QUENCH: u8 = 4;
    /// Error-like: use another gateway.
    pub const REDIRECT: u8 = 5;
    /// Asks for an echo.
    pub const ECHO_REQUEST: u8 = 8;
    /// Error: time to live exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Error: bad header field.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Asks for the time.
    pub const TIMESTAMP_REQUEST: u8 = 13;
    /// Answer to a timestamp request.
    pub const TIMESTAMP_REPLY: u8 = 14;
    /// Asks for the network's number, deprecated by RFC 6918.
    pub const INFORMATION_REQUEST: u8 = 15;
    /// Answer to an information request.
    pub const INFORMATION_REPLY: u8 = 16;
    /// Asks for the address mask, deprecated by RFC 6918.
    pub const MASK_REQUEST: u8 = 17;
    /// Answer to an address mask request.
    pub const MASK_REPLY: u8 = 18;
    /// Asks about an interface (RFC 8335).
    pub const EXTENDED_ECHO_REQUEST: u8 = 42;
    /// Answer to an extended echo request.
    pub const EXTENDED_ECHO_REPLY: u8 = 43;
}

/// Code of [`kind::UNREACHABLE`]: communication administratively prohibited (RFC 1812 §5.2.7.1).
pub const PROHIBITED: u8 = 13;

/// True for messages that quote the packet they are about.
pub const fn is_error(kind: u8) -> bool {
    use kind::{PARAMETER_PROBLEM, REDIRECT, SOURCE_QUENCH, TIME_EXCEEDED, UNREACHABLE};
    matches!(kind, UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// True for requests that carry an identifier, which their reply repeats.
pub const fn is_request(kind: u8) -> bool {
    use kind::{
        ECHO_REQUEST, EXTENDED_ECHO_REQUEST, INFORMATION_REQUEST, MASK_REQUEST, TIMESTAMP_REQUEST,
    };
    matches!(
        kind,
        ECHO_REQUEST
            | TIMESTAMP_REQUEST
            | INFORMATION_REQUEST
            | MASK_REQUEST
            | EXTENDED_ECHO_REQUEST
    )
}

/// True for replies that carry their request's identifier.
pub const fn is_reply(kind: u8) -> bool {
    use kind::{ECHO_REPLY, EXTENDED_ECHO_REPLY, INFORMATION_REPLY, MASK_REPLY, TIMESTAMP_REPLY};
    matches!(
        kind,
        ECHO_REPLY | TIMESTAMP_REPLY | INFORMATION_REPLY | MASK_REPLY | EXTENDED_ECHO_REPLY
    )
}

/// View of an ICMP or ICMPv6 message: 8 bytes are there. Every message that either protocol
/// defines has that many.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    header: &'a [u8; HEADER_LEN],
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// A view of the message that `bytes` are, to their end; `None` if it is short.
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = bytes.split_first_chunk()?;
        Some(Self { header, body })
    }

    /// What it is about.
    pub fn kind(&self) -> u8 {
        self.header[field::TYPE]
    }

    /// Detail of the type.
    pub fn code(&self) -> u8 {
        self.header[field::CODE]
    }

    /// `type << 8 | code`, as flow keys hold it.
    pub fn kind_and_code(&self) -> u16 {
        u16::from_be_bytes([self.kind(), self.code()])
    }

    /// The identifier; meaningful in queries alone.
    pub fn identifier(&self) -> u16 {
        u16_at(self.header, field::IDENTIFIER)
    }

    /// The four bytes whose meaning depends on the type.
    pub fn rest(&self) -> [u8; 4] {
        bytes_at(self.header, field::REST)
    }

    /// What follows the first eight bytes: data, or the quoted packet.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }
}

/// The first eight bytes of a message to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// What it is about.
    pub kind: u8,
    /// Detail of the type.
    pub code: u8,
    /// The four bytes whose meaning depends on the type.
    pub rest: [u8; 4],
}

impl Repr {
    /// An echo request or reply.
    pub fn query(kind: u8, identifier: u16, sequence: u16) -> Self {
        let ([a, b], [c, d]) = (identifier.to_be_bytes(), sequence.to_be_bytes());
        Self { kind, code: 0, rest: [a, b, c, d] }
    }

    /// The bytes, with a zero checksum.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let [a, b, c, d] = self.rest;
        [self.kind, self.code, 0, 0, a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let bytes = Repr::query(kind::ECHO_REQUEST, 0x1234, 1).to_bytes();
        let message = Message::new_checked(&bytes).unwrap();
        assert_eq!((message.kind_and_code(), message.identifier()), (0x0800, 0x1234));
        assert!(message.body().is_empty());
        assert!(Message::new_checked(&bytes[..7]).is_none());
    }

    #[test]
    fn a_type_is_one_thing_at_most() {
        for kind in 0..=255 {
            let roles = [is_error(kind), is_request(kind), is_reply(kind)];
            assert!(roles.iter().filter(|role| **role).count() <= 1, "type {kind}");
        }
    }
}
