//! Header views: what the bytes of each protocol mean, one protocol per file.
//!
//! Every file has the same parts:
//!
//! - `mod field`, the header diagram of its standard as named byte ranges;
//! - a *view* of received bytes, made by `new_checked`. **Contract:** a view exists only if the
//!   bytes it needs are there and its own length fields agree with them, so its accessors cannot
//!   fail and cannot read beyond the header. The fixed part is held as an array reference, which
//!   makes that contract a type;
//! - where the switch writes such headers, a `Repr` of the fields and `to_bytes`. Checksums that
//!   cover more than the header are left zero: [`checksum`](crate::checksum) fills them in.
//!
//! Views know nothing of policy. What is allowed to come in is decided in
//! [`extract`](crate::extract).
//!
//! All integers are host integers of big-endian fields.

pub mod arp;
pub mod ethernet;
pub mod icmp;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod nd;
pub mod sctp;
pub mod tcp;
pub mod udp;

use std::ops::Range;

use crate::mac::MacAddr;

/// IP protocol numbers (IANA "Protocol Numbers") that the switch knows by name.
pub mod protocol {
    /// IPv6 hop-by-hop options (RFC 8200 §4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// IPv6 routing header (RFC 8200 §4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200 §4.5).
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// Nothing follows (RFC 8200 §4.7).
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options (RFC 8200 §4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
    /// Mobility header (RFC 6275 §6.1).
    pub const MOBILITY: u8 = 135;
    /// Host identity protocol (RFC 7401).
    pub const HOST_IDENTITY: u8 = 139;
    /// Shim6 (RFC 5533).
    pub const SHIM6: u8 = 140;
}

// The ranges are constants inside arrays of constant length, so neither the slice nor the copy
// below can fail at run time; after inlining no check is left.

fn bytes_at<const LEN: usize, const N: usize>(header: &[u8; LEN], field: Range<usize>) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[field]);
    bytes
}

fn u16_at<const LEN: usize>(header: &[u8; LEN], field: Range<usize>) -> u16 {
    u16::from_be_bytes(bytes_at(header, field))
}

fn u32_at<const LEN: usize>(header: &[u8; LEN], field: Range<usize>) -> u32 {
    u32::from_be_bytes(bytes_at(header, field))
}

fn mac_at<const LEN: usize>(header: &[u8; LEN], field: Range<usize>) -> MacAddr {
    MacAddr(bytes_at(header, field))
}

fn put<const LEN: usize>(header: &mut [u8; LEN], field: Range<usize>, value: &[u8]) {
    header[field].copy_from_slice(value);
}
