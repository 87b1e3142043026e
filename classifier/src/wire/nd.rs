//! Neighbour discovery (RFC 4861 §4): what follows the eight bytes that every ICMPv6 message
//! begins with.
//!
//! ```text
//!  router solicitation      options
//!  router advertisement     reachable time (4) | retransmission timer (4) | options
//!  neighbour solicitation   target (16) | options
//!  neighbour advertisement  target (16) | options
//!  redirect                 target (16) | destination (16) | options
//!
//!  option                   type (1) | length in 8-byte units (1) | value
//! ```

use std::net::Ipv6Addr;

use super::{bytes_at, icmp};
use crate::extract::NdMessage;
use crate::mac::MacAddr;

/// Byte ranges behind the message's first eight bytes.
pub mod field {
    use std::ops::Range;

    /// Target of a solicitation, advertisement or redirect.
    pub const TARGET: Range<usize> = 0..16;
    /// The destination that a redirect is about.
    pub const REDIRECTED: Range<usize> = 16..32;
}

/// In an advertisement's fifth byte: it answers a solicitation.
pub const SOLICITED: u8 = 0x40;
/// In an advertisement's fifth byte: it replaces what the receiver knew.
pub const OVERRIDE: u8 = 0x20;

/// Option types (IANA "IPv6 Neighbor Discovery Option Formats").
pub mod option {
    /// MAC address of the sender of a solicitation or router advertisement.
    pub const SOURCE_LINK_ADDR: u8 = 1;
    /// MAC address of the target of an advertisement or redirect.
    pub const TARGET_LINK_ADDR: u8 = 2;
    /// Six random bytes that tie an answer to its question (RFC 3971 §5.3.2, RFC 7527 §4.1).
    pub const NONCE: u8 = 14;
}

/// Which message an ICMPv6 type is, if it is neighbour discovery.
pub const fn message(kind: u8) -> Option<NdMessage> {
    match kind {
        133 => Some(NdMessage::RouterSolicitation),
        134 => Some(NdMessage::RouterAdvertisement),
        135 => Some(NdMessage::NeighborSolicitation),
        136 => Some(NdMessage::NeighborAdvertisement),
        137 => Some(NdMessage::Redirect),
        _ => None,
    }
}

/// The inverse of [`message`].
pub const fn kind(message: NdMessage) -> u8 {
    match message {
        NdMessage::RouterSolicitation => 133,
        NdMessage::RouterAdvertisement => 134,
        NdMessage::NeighborSolicitation => 135,
        NdMessage::NeighborAdvertisement => 136,
        NdMessage::Redirect => 137,
    }
}

/// Bytes between the message's first eight and its options.
const fn fixed_len(message: NdMessage) -> usize {
    match message {
        NdMessage::RouterSolicitation => 0,
        NdMessage::RouterAdvertisement => 8,
        NdMessage::NeighborSolicitation | NdMessage::NeighborAdvertisement => 16,
        NdMessage::Redirect => 32,
    }
}

/// View of a neighbour discovery message: everything before its options is there.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    message: NdMessage,
    fixed: &'a [u8],
    options: &'a [u8],
}

impl<'a> Body<'a> {
    /// A view of `icmp`; `None` if it is not neighbour discovery, or short.
    pub fn new_checked(icmp: &icmp::Message<'a>) -> Option<Self> {
        let message = message(icmp.kind())?;
        let (fixed, options) = icmp.body().split_at_checked(fixed_len(message))?;
        Some(Self { message, fixed, options })
    }

    /// Which message it is.
    pub fn message(&self) -> NdMessage {
        self.message
    }

    /// Target address; `None` for router solicitations and advertisements.
    pub fn target(&self) -> Option<Ipv6Addr> {
        let target: &[u8; 16] = self.fixed.first_chunk()?;
        Some(Ipv6Addr::from(*target))
    }

    /// The destination that a redirect is about; `None` for the others.
    pub fn redirected(&self) -> Option<Ipv6Addr> {
        let fixed: &[u8; 32] = self.fixed.first_chunk()?;
        Some(Ipv6Addr::from(bytes_at::<_, 16>(fixed, field::REDIRECTED)))
    }

    /// The options, in order.
    pub fn options(&self) -> Options<'a> {
        Options(self.options)
    }
}

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NdOption<'a> {
    /// What it is.
    pub kind: u8,
    /// Its value: 6, 14, 22, … bytes.
    pub value: &'a [u8],
}

/// An option that is empty or reaches beyond the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedOption;

/// Iterates over options. Ends after the first malformed one.
#[derive(Clone, Debug)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Result<NdOption<'a>, MalformedOption>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let split = match *self.0 {
            [_, units, ..] => self.0.split_at_checked(usize::from(units) * 8),
            _ => None,
        };
        match split {
            Some(([kind, _, value @ ..], rest)) => {
                self.0 = rest;
                Some(Ok(NdOption { kind: *kind, value }))
            }
            _ => {
                self.0 = &[];
                Some(Err(MalformedOption))
            }
        }
    }
}

/// The eight bytes of a link-layer address option.
pub fn link_addr_option(kind: u8, mac: MacAddr) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.0;
    [kind, 1, a, b, c, d, e, f]
}

/// The multicast group that solicitations for `target` go to (RFC 4291 §2.7.1).
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_messages_map_both_ways() {
        for kind_byte in 0..=255 {
            if let Some(message) = message(kind_byte) {
                assert_eq!(kind(message), kind_byte);
            } else {
                assert!(!(133..=137).contains(&kind_byte));
            }
        }
    }

    #[test]
    fn the_fixed_part_must_be_there() {
        for (kind, len) in [(133, 8), (134, 16), (135, 24), (136, 24), (137, 40)] {
            let mut bytes = [0; 40];
            bytes[0] = kind;
            let body = |len| {
                let icmp = icmp::Message::new_checked(&bytes[..len])?;
                Body::new_checked(&icmp)
            };
            assert!(body(len).is_some(), "type {kind}");
            assert!(body(len - 1).is_none(), "type {kind}");
        }
    }

    #[test]
    fn walks_options() {
        let walk = |bytes: &'static [u8]| Options(bytes).collect::<Vec<_>>();
        assert_eq!(walk(&[]), []);
        assert_eq!(
            walk(&[1, 1, 2, 0, 0, 0, 0, 9]),
            [Ok(NdOption { kind: 1, value: &[2, 0, 0, 0, 0, 9] })]
        );
        for bad in [&[1][..], &[1, 0, 0, 0, 0, 0, 0, 0], &[1, 1, 0, 0, 0, 0, 0]] {
            assert_eq!(walk(bad), [Err(MalformedOption)], "{bad:?}");
        }
    }

    #[test]
    fn solicited_node_takes_the_low_24_bits() {
        let target = "fd00::1234:5678".parse().unwrap();
        assert_eq!(solicited_node(target), "ff02::1:ff34:5678".parse::<Ipv6Addr>().unwrap());
    }
}
