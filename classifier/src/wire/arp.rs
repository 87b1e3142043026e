//! ARP for IPv4 over Ethernet (RFC 826).
//!
//! ```text
//!  hardware type (2) | protocol type (2) | lengths (1, 1) | operation (2)
//!  sender MAC (6) | sender address (4) | target MAC (6) | target address (4)
//! ```

use std::net::Ipv4Addr;

use super::{bytes_at, mac_at, put, u16_at};
use crate::mac::MacAddr;

/// Byte ranges of the message.
pub mod field {
    use std::ops::Range;

    /// Hardware type, protocol type, and the lengths of their addresses.
    pub const SPACES: Range<usize> = 0..6;
    /// What is asked.
    pub const OPERATION: Range<usize> = 6..8;
    /// Sender MAC address.
    pub const SENDER_MAC: Range<usize> = 8..14;
    /// Sender IPv4 address.
    pub const SENDER: Range<usize> = 14..18;
    /// Target MAC address.
    pub const TARGET_MAC: Range<usize> = 18..24;
    /// Target IPv4 address.
    pub const TARGET: Range<usize> = 24..28;
}

/// Bytes of a message for IPv4 over Ethernet.
pub const MESSAGE_LEN: usize = 28;

/// Ethernet (1) with 6-byte, IPv4 (0x0800) with 4-byte addresses.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

/// Operation: who has the target address?
pub const REQUEST: u16 = 1;
/// Operation: the sender has the sender address.
pub const REPLY: u16 = 2;

/// View of a message: 28 bytes are there, and they are about IPv4 over Ethernet.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a>(&'a [u8; MESSAGE_LEN]);

impl<'a> Message<'a> {
    /// A view of the message that `bytes` begin with; `None` if it is short or about other
    /// address spaces.
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        let message = Self(bytes.first_chunk()?);
        (bytes_at(message.0, field::SPACES) == ETHERNET_IPV4).then_some(message)
    }

    /// [`REQUEST`], [`REPLY`] or something else.
    pub fn operation(&self) -> u16 {
        u16_at(self.0, field::OPERATION)
    }

    /// Sender MAC address.
    pub fn sender_mac(&self) -> MacAddr {
        mac_at(self.0, field::SENDER_MAC)
    }

    /// Sender IPv4 address.
    pub fn sender(&self) -> Ipv4Addr {
        Ipv4Addr::from(bytes_at::<_, 4>(self.0, field::SENDER))
    }

    /// Target MAC address; meaningless in a request.
    pub fn target_mac(&self) -> MacAddr {
        mac_at(self.0, field::TARGET_MAC)
    }

    /// Target IPv4 address.
    pub fn target(&self) -> Ipv4Addr {
        Ipv4Addr::from(bytes_at::<_, 4>(self.0, field::TARGET))
    }
}

/// A message to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// [`REQUEST`] or [`REPLY`].
    pub operation: u16,
    /// Sender MAC address.
    pub sender_mac: MacAddr,
    /// Sender IPv4 address.
    pub sender: Ipv4Addr,
    /// Target MAC address.
    pub target_mac: MacAddr,
    /// Target IPv4 address.
    pub target: Ipv4Addr,
}

impl Repr {
    /// The message's bytes.
    pub fn to_bytes(&self) -> [u8; MESSAGE_LEN] {
        let mut message = [0; MESSAGE_LEN];
        put(&mut message, field::SPACES, &ETHERNET_IPV4);
        put(&mut message, field::OPERATION, &self.operation.to_be_bytes());
        put(&mut message, field::SENDER_MAC, &self.sender_mac.0);
        put(&mut message, field::SENDER, &self.sender.octets());
        put(&mut message, field::TARGET_MAC, &self.target_mac.0);
        put(&mut message, field::TARGET, &self.target.octets());
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let repr = Repr {
            operation: REPLY,
            sender_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            sender: Ipv4Addr::new(10, 0, 0, 1),
            target_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            target: Ipv4Addr::new(10, 0, 0, 2),
        };
        let bytes = repr.to_bytes();
        let message = Message::new_checked(&bytes).unwrap();
        assert_eq!(message.operation(), REPLY);
        assert_eq!((message.sender_mac(), message.sender()), (repr.sender_mac, repr.sender));
        assert_eq!((message.target_mac(), message.target()), (repr.target_mac, repr.target));
    }

    #[test]
    fn refuses_short_and_foreign_messages() {
        let mut bytes = [0; MESSAGE_LEN];
        bytes[field::SPACES].copy_from_slice(&ETHERNET_IPV4);
        assert!(Message::new_checked(&bytes).is_some());
        assert!(Message::new_checked(&bytes[..27]).is_none());
        for i in field::SPACES {
            let mut foreign = bytes;
            foreign[i] ^= 0x80;
            assert!(Message::new_checked(&foreign).is_none(), "byte {i}");
        }
    }
}
