//! Internet checksums (RFC 1071), SCTP's CRC32c (RFC 9260 §6.8), and the completion of partial
//! checksums that a sender with checksum offload left behind.
//!
//! # Partial checksums
//!
//! Linux offers checksum offload on every veth and tap, so a container or guest does not compute
//! the checksums of what it sends: it writes the pseudo-header's folded sum *P*, not inverted, into
//! the field of TCP and UDP (`CHECKSUM_PARTIAL` in include/linux/skbuff.h, `tcp_v4_check` in
//! include/net/tcp.h), zero into SCTP's (`sctp_packet_pack`, net/sctp/output.c), and leaves a note
//! in the skb. Through AF_XDP the note is lost. [`complete_partial`] recognises such frames by the
//! field itself and finishes the job, so that nobody has to run ethtool in a container.
//!
//! That needs no note, and cannot break a frame:
//!
//! - A field that is not *P* (or zero, for SCTP) was not left partial. It is not touched, right or
//!   wrong.
//! - A field that is *P* and verifies is a right checksum that happens to equal *P*. It is not
//!   touched either; the checksum that would be computed is the one that stands there.
//! - A field that is *P* and does not verify is partial, or it is wrong. If it is partial it becomes
//!   right. If it is wrong (one in 65,536 of the frames that were damaged on their way has the sum
//!   that looks so) its receiver loses a chance to notice. On a veth or tap there is no wire that
//!   could damage frames; on a physical port Ethernet's own CRC has passed. A sender who wants a
//!   damaged payload accepted needs no such luck: he can compute checksums himself.
//!
//! *P* is never zero, since the protocol number is in it. So UDP's zero over IPv4, "no checksum",
//! is never mistaken for a partial one. Nor is SCTP's zero under RFC 9653 broken by completion: who
//! accepts zero checksums must accept right ones.
//!
//! ICMP and ICMPv6 need nothing: the kernel computes their checksums in software whatever the
//! device offers (`icmp_push_reply`, `rawv6_push_pending_frames`, `ndisc_send_skb`). Not handled:
//! a transport header inside a tunnel that the container itself made (VXLAN, GRE, IP in IP) with
//! the inner checksum partial.

use std::net::IpAddr;
use std::ops::Range;

use crate::extract::Headers;
use crate::key::to_bits;
use crate::wire::ethernet::ether_type;
use crate::wire::{protocol, sctp, tcp, udp};

/// A running ones'-complement sum of 16-bit words.
///
/// Words are summed in the machine's byte order, several at a time, and swapped once at the end:
/// the sum does not care (RFC 1071 §2 B). Cannot overflow below 16 GiB of input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds `bytes`, which begin at an even offset of what is summed. An odd last byte is padded
    /// with zero, so only the last slice may have one.
    ///
    /// Eight independent lanes of 32 bits in 64: the compiler makes vector additions of them.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (chunks, rest) = bytes.as_chunks::<32>();
        let mut lanes = [0u64; 8];
        for chunk in chunks {
            let (words, _) = chunk.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let (pairs, odd) = rest.as_chunks::<2>();
        let pairs: u64 = pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum();
        let odd = odd.first().map_or(0, |byte| u64::from(u16::from_ne_bytes([*byte, 0])));
        Self(self.0 + lanes.iter().sum::<u64>() + pairs + odd)
    }

    /// Adds bytes whose number is known, and a multiple of four: a header's, for which the lanes of
    /// [`Sum::bytes`] are too many.
    #[must_use]
    #[inline]
    pub fn header<const N: usize>(self, bytes: &[u8; N]) -> Self {
        const { assert!(N.is_multiple_of(4)) };
        let (words, _) = bytes.as_chunks::<4>();
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        Self(self.0 + sum)
    }

    /// Adds one word.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// The sum in 16 bits, not inverted.
    pub fn folded(self) -> u16 {
        u16::from_be(fold(self.0))
    }

    /// The checksum to write into a header whose field was summed as zero.
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// True if what was summed, its checksum field included, is undamaged.
    pub fn verifies(self) -> bool {
        self.folded() == 0xffff
    }
}

/// The folded sum of TCP's, UDP's or ICMPv6's pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1). Addresses are
/// as in [`FlowKey`](crate::FlowKey); `len` is that of the transport header and its payload.
///
/// IPv4-mapped addresses have the sum of the IPv4 ones: the word 0xffff that mapping adds is a zero
/// to ones' complement. Numbers are summed as they are, so nothing needs swapping.
pub fn pseudo_header(src: u128, dst: u128, protocol: u8, len: u16) -> u16 {
    let halves = [(src >> 64) as u64, src as u64, (dst >> 64) as u64, dst as u64];
    let sum = halves.into_iter().fold(u64::from(protocol) + u64::from(len), |sum, half| {
        sum + (half >> 32) + (half & 0xffff_ffff)
    });
    fold(sum)
}

/// A sum in 16 bits.
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum of a TCP, UDP, ICMP or ICMPv6 `message` between two addresses of one family, whose
/// checksum field is zero. ICMP's covers no pseudo-header. UDP's is never 0, which would mean none.
pub fn of_message(src: IpAddr, dst: IpAddr, protocol: u8, message: &[u8]) -> u16 {
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let pseudo = match protocol {
        protocol::ICMP => Sum::default(),
        _ => Sum::default().word(pseudo_header(to_bits(src), to_bits(dst), protocol, len)),
    };
    match pseudo.bytes(message).checksum() {
        0 if protocol == protocol::UDP => 0xffff,
        checksum => checksum,
    }
}

/// Completes the transport checksum of `frame` in place if its sender left it partial. Returns
/// whether it did. `headers` are the frame's own.
///
/// A container or guest with checksum offload sends TCP and UDP with only the pseudo-header's sum in
/// the checksum field (`CHECKSUM_PARTIAL` in the kernel's skbuff.h), and SCTP with zero.
///
/// Costs a sum over the addresses; over the whole packet only if it is partial. (SCTP: a CRC only
/// if the field is zero.)
pub fn complete_partial(frame: &mut [u8], headers: &Headers) -> bool {
    match headers.key.protocol {
        _ if headers.key.ether_type == ether_type::ARP => false,
        // A fragment's checksum covers bytes that are not here. Nor did offload leave it partial:
        // who cuts a packet sums it first (`skb_checksum_help` in Linux's ip_fragment).
        _ if headers.fragment.is_some() => false,
        protocol::TCP => complete_sum(frame, headers, tcp::field::CHECKSUM).is_some(),
        protocol::UDP => complete_sum(frame, headers, udp::field::CHECKSUM).is_some(),
        protocol::SCTP => complete_crc(frame, headers).is_some(),
        _ => false,
    }
}

/// `Some` if the checksum at `field` of the transport header was partial and is complete now.
fn complete_sum(frame: &mut [u8], headers: &Headers, field: Range<usize>) -> Option<()> {
    let key = &headers.key;
    let segment = transport(frame, headers)?;
    let len = u16::try_from(segment.len()).ok()?;
    let pseudo = pseudo_header(key.src, key.dst, key.protocol, len);
    let stored = u16::from_be_bytes(*segment.get(field.clone())?.first_chunk()?);
    if stored != pseudo {
        return None;
    }
    let sum = Sum::default().word(pseudo).bytes(segment);
    if sum.verifies() {
        return None;
    }
    // Adding the complement takes the stored word out of the sum again (RFC 1624 §3).
    let checksum = match sum.word(!stored).checksum() {
        0 if key.protocol == protocol::UDP => 0xffff,
        checksum => checksum,
    };
    segment.get_mut(field)?.copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

/// `Some` if SCTP's checksum was zero and is the packet's CRC32c now.
fn complete_crc(frame: &mut [u8], headers: &Headers) -> Option<()> {
    let packet = transport(frame, headers)?;
    if packet.get(sctp::field::CHECKSUM)? != [0; 4] {
        return None;
    }
    let crc = crc32c::crc32c(packet);
    if crc == 0 {
        return None;
    }
    packet.get_mut(sctp::field::CHECKSUM)?.copy_from_slice(&crc.to_le_bytes());
    Some(())
}

/// The transport header and its payload: of UDP as long as its own length says, which may leave a
/// part of the IP payload out; of others all of the IP payload.
fn transport<'a>(frame: &'a mut [u8], headers: &Headers) -> Option<&'a mut [u8]> {
    let payload = frame.get_mut(usize::from(headers.l4)..usize::from(headers.end))?;
    if headers.key.protocol != protocol::UDP {
        return Some(payload);
    }
    let length = udp::Datagram::new_checked(payload)?.length();
    payload.get_mut(..length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::build::{self, TcpFlags};
    use crate::extract::extract;
    use crate::snapshot::PortId;

    /// RFC 1071 §4.1, word by word.
    fn slow_sum(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn complete(frame: &[u8]) -> (bool, Vec<u8>) {
        let headers = extract(frame, PortId(1)).unwrap();
        let mut completed = frame.to_vec();
        let changed = complete_partial(&mut completed, &headers);
        (changed, completed)
    }

    #[test]
    fn a_pseudo_header_is_its_bytes() {
        let src = 0xfd00_1234_89ab_cdef_ffff_0000_0a0b_0c0d_u128;
        let dst = u128::MAX - 1;
        let bytes = [src, dst].map(u128::to_be_bytes).concat();
        let sum = Sum::default().bytes(&bytes).word(17).word(0xff01);
        assert_eq!(pseudo_header(src, dst, 17, 0xff01), sum.folded());
    }

    #[test]
    fn rfc_1071_example() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
    }

    /// The test vector of RFC 3720 §B.4 (iSCSI, same CRC): 32 bytes of zeroes are aa 36 91 8a.
    #[test]
    fn crc32c_stands_least_significant_byte_first() {
        assert_eq!(crc32c::crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
    }

    #[test]
    fn udp_without_checksum_is_left_alone() {
        let mut frame = build::udp(build::tests::ENDS, 1000, 53, b"query");
        frame[40..42].fill(0);
        assert_eq!(complete(&frame), (false, frame));
    }

    /// The sum of this datagram is 0xffff, whose complement 0 would mean "none".
    #[test]
    fn udp_never_gets_a_zero_checksum() {
        let headers_only = build::partial(build::udp(build::tests::ENDS, 1000, 53, &[0, 0]));
        let (_, completed) = complete(&headers_only);
        let payload = <[u8; 2]>::try_from(&completed[40..42]).unwrap();
        let (changed, completed) =
            complete(&build::partial(build::udp(build::tests::ENDS, 1000, 53, &payload)));
        assert!(changed);
        assert_eq!(completed[40..42], [0xff, 0xff]);
    }

    /// Of all packets, one in 2³² has the CRC zero. Run the CRC backwards from there to find the
    /// last four bytes of one.
    #[test]
    fn sctp_whose_crc_is_zero_is_complete() {
        const POLYNOMIAL: u32 = 0x82f6_3b78;
        let register = (0..32).fold(u32::MAX, |register, _| match register >> 31 {
            0 => register << 1,
            _ => (register ^ POLYNOMIAL) << 1 | 1,
        });
        let mut frame = build::sctp(build::tests::ENDS, 1000, 3868, &[0; 4]);
        frame[42..46].fill(0);
        let last = register ^ !crc32c::crc32c(&frame[34..46]);
        frame[46..50].copy_from_slice(&last.to_le_bytes());
        assert_eq!(crc32c::crc32c(&frame[34..50]), 0);
        assert_eq!(complete(&frame), (false, frame));
    }

    #[test]
    fn a_wrong_checksum_is_not_made_right() {
        let mut frame = build::tcp(build::tests::ENDS, 1000, 80, TcpFlags::SYN);
        frame[50] ^= 0x55;
        assert_eq!(complete(&frame), (false, frame));
    }

    /// A right checksum may equal the pseudo-header's sum. Choose the payload so that it does.
    #[test]
    fn a_right_checksum_that_looks_partial_stays() {
        let ends = build::tests::ENDS;
        let pseudo = build::partial(build::udp(ends, 1000, 53, &[0, 0]));
        let pseudo = u16::from_be_bytes([pseudo[40], pseudo[41]]);
        let frame = build::udp(ends, 1000, 53, &[0, 0]);
        let checksum = u16::from_be_bytes([frame[40], frame[41]]);
        // !(sum + x) = pseudo, where !sum = checksum.
        let x = Sum::default().word(checksum).word(!pseudo).folded();
        let frame = build::udp(ends, 1000, 53, &x.to_be_bytes());
        assert_eq!(frame[40..42], pseudo.to_be_bytes());
        assert_eq!(complete(&frame), (false, frame));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn sum_equals_the_slow_one(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Sum::default().bytes(&bytes).folded(), slow_sum(&bytes));
        }

        #[test]
        fn sum_of_parts_is_the_sum(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            half in 0usize..150,
        ) {
            let (head, tail) = bytes.split_at((half * 2).min(bytes.len()));
            let parts = Sum::default().bytes(head).bytes(tail);
            prop_assert!(head.len() % 2 == 1 || parts.folded() == slow_sum(&bytes));
        }

        #[test]
        fn complete_checksums_stay_and_partial_ones_become_right(
            frame in build::tests::transport_frames(),
        ) {
            let (changed, same) = complete(&frame);
            prop_assert!(!changed);
            prop_assert_eq!(&same, &frame);

            let partial = build::partial(frame.clone());
            let (changed, completed) = complete(&partial);
            prop_assert_eq!(changed, partial != frame);
            prop_assert_eq!(&completed, &frame);
            prop_assert_eq!(complete(&completed), (false, completed));
        }
    }
}
