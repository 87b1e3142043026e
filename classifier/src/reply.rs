//! The answers that a `reject` rule sends to the refused frame's sender.
//!
//! An answer goes back the way the frame came, tags included, in the name of whom the frame was
//! for: the switch has no address of its own. So it ends the sender's attempt at once, instead of
//! leaving it to time out.

use std::net::IpAddr;

use crate::build::HOP_LIMIT;
use crate::checksum;
use crate::extract::{Headers, Kind};
use crate::key::FlowKey;
use crate::mac::MacAddr;
use crate::wire::ethernet::{self, ether_type};
use crate::wire::tcp::TcpFlags;
use crate::wire::{icmp, icmpv6, ipv4, ipv6, protocol, tcp};

/// Most bytes an answer can have: two tags, IPv6, ICMPv6 and a quote.
pub const MAX_REPLY: usize = 14 + 8 + 40 + 8 + 576;

/// Most bytes of the refused packet that ICMP quotes, so that the answer has 576 (RFC 1812
/// §4.3.2.3).
const MAX_QUOTE_V4: usize = 576 - 20 - 8;
/// Most bytes that ICMPv6 quotes. RFC 4443 §2.4(c) would allow an answer of 1280; a sender knows
/// its packet by far less.
const MAX_QUOTE_V6: usize = 576;

/// Writes into `out` the answer to the refused `frame`: a TCP RST (RFC 9293 §3.5.2), or an ICMP or
/// ICMPv6 "administratively prohibited" (RFC 1812 §5.2.7.1, RFC 4443 §3.1). Returns its length, or
/// `None` if this frame must not be answered (an RST, an ICMP error, a group address).
///
/// `headers` are the frame's own. RFC 1122 §3.2.2 and RFC 4443 §2.4(e) list what must not be
/// answered; the one addition is that of ICMP messages, only requests are.
pub fn refuse(frame: &[u8], headers: &Headers, out: &mut [u8; MAX_REPLY]) -> Option<usize> {
    if !may_be_answered(headers) {
        return None;
    }
    let packet = frame.get(usize::from(headers.l3)..usize::from(headers.end))?;
    let mut answer = Answer { out, len: 0 };
    answer.link(frame, headers)?;
    if headers.key.protocol == protocol::TCP {
        let reset = reset(headers).to_bytes();
        answer.packet(&headers.key, protocol::TCP, tcp::field::CHECKSUM.start, &reset, &[])?;
    } else {
        let (protocol, kind, code, longest) = match headers.key.ether_type {
            ether_type::IPV4 => {
                (protocol::ICMP, icmp::kind::UNREACHABLE, icmp::PROHIBITED, MAX_QUOTE_V4)
            }
            _ => (protocol::ICMPV6, icmpv6::kind::UNREACHABLE, icmpv6::PROHIBITED, MAX_QUOTE_V6),
        };
        let header = icmp::Repr { kind, code, rest: [0; 4] }.to_bytes();
        let quote = packet.get(..longest).unwrap_or(packet);
        answer.packet(&headers.key, protocol, icmp::field::CHECKSUM.start, &header, quote)?;
    }
    Some(answer.len)
}

fn may_be_answered(headers: &Headers) -> bool {
    let key = &headers.key;
    let has_one_owner = match key.dst_addr() {
        IpAddr::V4(dst) => {
            !(dst.is_multicast() || dst.is_broadcast() || dst.is_unspecified() || dst.is_loopback())
        }
        IpAddr::V6(dst) => !(dst.is_multicast() || dst.is_unspecified() || dst.is_loopback()),
    };
    let is_ip = matches!(key.ether_type, ether_type::IPV4 | ether_type::IPV6);
    let [icmp_kind, _] = key.dst_port.to_be_bytes();
    let is_answerable_protocol = match key.protocol {
        protocol::TCP => !TcpFlags::from_bits_retain(key.tcp_flags).contains(TcpFlags::RST),
        protocol::ICMP => icmp::is_request(icmp_kind),
        protocol::ICMPV6 => icmpv6::is_request(icmp_kind),
        _ => true,
    };
    is_ip
        && is_answerable_protocol
        && has_one_owner
        && !key.src_addr().is_unspecified()
        && !key.eth_dst.is_multicast()
        && key.eth_dst != MacAddr::ZERO
        && !matches!(headers.kind, Kind::IcmpError(_) | Kind::Nd(_) | Kind::LaterFragment)
}

/// The RST that a host without such a connection sends (RFC 9293 §3.10.7.1). If the segment
/// acknowledges something, RST takes that for its sequence number. Else it is a SYN, since extraction
/// lets nothing but SYN and RST come without ACK, and RST acknowledges it and what it carries.
fn reset(headers: &Headers) -> tcp::Repr {
    let (key, segment) = (&headers.key, &headers.tcp);
    let flags = TcpFlags::from_bits_retain(key.tcp_flags);
    let answer = tcp::Repr {
        source_port: key.dst_port,
        destination_port: key.src_port,
        ..Default::default()
    };
    if flags.contains(TcpFlags::ACK) {
        return tcp::Repr { sequence: segment.ack, flags: TcpFlags::RST, ..answer };
    }
    let acknowledgement = segment.seq.wrapping_add(u32::from(segment.payload) + 1);
    tcp::Repr { acknowledgement, flags: TcpFlags::RST | TcpFlags::ACK, ..answer }
}

/// An answer that grows layer by layer. Every step is `None` if the buffer cannot hold it.
struct Answer<'a> {
    out: &'a mut [u8; MAX_REPLY],
    len: usize,
}

impl Answer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        self.out.get_mut(self.len..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        self.len += bytes.len();
        Some(())
    }

    /// The refused frame's Ethernet header and tags, the other way round.
    fn link(&mut self, frame: &[u8], headers: &Headers) -> Option<()> {
        self.put(&headers.key.eth_src.0)?;
        self.put(&headers.key.eth_dst.0)?;
        self.put(frame.get(ethernet::field::ETHER_TYPE.start..usize::from(headers.l3))?)
    }

    /// An IP packet back to the sender of `refused`, whose transport header has its checksum at
    /// `field`.
    fn packet(
        &mut self,
        refused: &FlowKey,
        protocol: u8,
        field: usize,
        header: &[u8],
        payload: &[u8],
    ) -> Option<()> {
        let payload_len = header.len() + payload.len();
        let (source, destination) = (refused.dst_addr(), refused.src_addr());
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let ttl = HOP_LIMIT;
                let ip = ipv4::Repr { source, destination, protocol, payload_len, ttl };
                self.put(&ip.to_bytes())?;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (next_header, hop_limit) = (protocol, HOP_LIMIT);
                let ip = ipv6::Repr { source, destination, next_header, payload_len, hop_limit };
                self.put(&ip.to_bytes())?;
            }
            _ => return None,
        }
        let start = self.len;
        self.put(header)?;
        self.put(payload)?;
        let message = self.out.get_mut(start..self.len)?;
        let checksum = checksum::of_message(source, destination, protocol, message);
        message.get_mut(field..)?.first_chunk_mut()?.clone_from(&checksum.to_be_bytes());
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::{ENDS, ENDS_V6, one_of_each};
    use crate::build::{self, Ends};
    use crate::extract::extract;
    use crate::snapshot::PortId;
    use crate::wire::ipv4;

    fn answer(frame: &[u8]) -> Option<(Vec<u8>, Headers)> {
        let headers = extract(frame, PortId(1)).unwrap();
        let mut out = [0; MAX_REPLY];
        let len = refuse(frame, &headers, &mut out)?;
        let answer = out[..len].to_vec();
        let headers = extract(&answer, PortId(1)).unwrap();
        assert_eq!(usize::from(headers.end), len);
        Some((answer, headers))
    }

    fn segment(ends: Ends, flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
        let header = tcp::Repr {
            source_port: 40_000,
            destination_port: 80,
            sequence: u32::MAX,
            acknowledgement: 777,
            flags,
            window: 1,
        };
        build::tcp_segment(ends, header, payload)
    }

    #[test]
    fn a_syn_is_answered_by_a_reset_that_acknowledges_it() {
        for ends in [ENDS, ENDS_V6] {
            let (frame, reset) = answer(&segment(ends, TcpFlags::SYN, b"fast open")).unwrap();
            assert_eq!(reset.key.tcp_flags, (TcpFlags::RST | TcpFlags::ACK).bits());
            assert_eq!((reset.tcp.seq, reset.tcp.ack), (0, 9), "wraps over the last number");
            assert_eq!((reset.key.src_port, reset.key.dst_port), (80, 40_000));
            assert_eq!((reset.key.src_addr(), reset.key.dst_addr()), (ends.dst, ends.src));
            assert_eq!((reset.key.eth_src, reset.key.eth_dst), (ends.eth_dst, ends.eth_src));
            let mut resummed = frame.clone();
            assert!(!crate::checksum::complete_partial(&mut resummed, &reset));
            assert_eq!(
                build::tcp_segment(
                    ends.reversed(),
                    tcp::Repr {
                        source_port: 80,
                        destination_port: 40_000,
                        acknowledgement: 9,
                        flags: TcpFlags::RST | TcpFlags::ACK,
                        ..Default::default()
                    },
                    &[],
                ),
                frame,
                "as the builder would have built it"
            );
        }
    }

    #[test]
    fn an_acknowledging_segment_is_answered_by_a_reset_where_it_expects_one() {
        let (_, reset) = answer(&segment(ENDS, TcpFlags::ACK, b"data")).unwrap();
        assert_eq!(reset.key.tcp_flags, TcpFlags::RST.bits());
        assert_eq!((reset.tcp.seq, reset.tcp.ack), (777, 0));
    }

    #[test]
    fn datagrams_and_pings_are_answered_by_an_error_about_them() {
        for (ends, kind_and_code) in [(ENDS, 0x030d), (ENDS_V6, 0x0101)] {
            for frame in [
                build::udp(ends, 1000, 53, &[7; 1200]),
                build::udp(ends, 1000, 53, &[]),
                build::sctp(ends, 1000, 53, &[1, 0, 0, 4]),
                build::echo_request(ends, 7, 1),
                build::ip(ends, 47, &[0; 8]),
            ] {
                let refused = extract(&frame, PortId(1)).unwrap();
                let (_, error) = answer(&frame).unwrap();
                assert_eq!(error.key.dst_port, kind_and_code);
                let Kind::IcmpError(embedded) = error.kind else { panic!("{error:?}") };
                assert_eq!((embedded.src, embedded.dst), (refused.key.src, refused.key.dst));
                assert_eq!(embedded.src_port, refused.key.src_port);
                assert_eq!(embedded.dst_port, refused.key.dst_port);
            }
        }
    }

    #[test]
    fn tags_come_back() {
        for vlans in [&[10][..], &[10, 20]] {
            let frame = build::tagged(build::udp(ENDS_V6, 1, 2, &[0; 1400]), vlans);
            let (answer, headers) = answer(&frame).unwrap();
            assert_eq!((usize::from(headers.vlan_tags), headers.key.vlan), (vlans.len(), 10));
            assert!(answer.len() <= MAX_REPLY);
        }
    }

    #[test]
    fn what_must_not_be_answered_is_not() {
        let broadcast = Ends { eth_dst: MacAddr::BROADCAST, ..ENDS };
        let nowhere = Ends { eth_dst: MacAddr::ZERO, ..ENDS };
        let multicast = Ends { dst: "239.1.2.3".parse().unwrap(), ..ENDS };
        let loopback = Ends { dst: "127.0.0.1".parse().unwrap(), ..ENDS };
        let loopback_v6 = Ends { dst: "::1".parse().unwrap(), ..ENDS_V6 };
        let unspecified = Ends { src: "::".parse().unwrap(), ..ENDS_V6 };
        for (why, frame) in [
            ("reset", segment(ENDS, TcpFlags::RST, b"")),
            ("reset", segment(ENDS_V6, TcpFlags::RST | TcpFlags::ACK, b"")),
            ("broadcast MAC", build::udp(broadcast, 1, 2, &[])),
            ("zero MAC", build::udp(nowhere, 1, 2, &[])),
            ("multicast address", build::udp(multicast, 1, 2, &[])),
            ("loopback", build::udp(loopback, 1, 2, &[])),
            ("loopback", build::udp(loopback_v6, 1, 2, &[])),
            ("nobody's", build::udp(unspecified, 1, 2, &[])),
            ("unknown ICMP", build::icmp_error(ENDS_V6, 100, 0, &[])),
            ("unknown ICMP", build::icmp_error(ENDS, 9, 0, &[])),
        ] {
            assert_eq!(answer(&frame), None, "{why}");
        }
        for (name, frame) in one_of_each() {
            let silent = ["arp", "nd-", "rou", "pon", "icm"].contains(&&name[..3])
                || name == "dhcp-discover";
            assert_eq!(answer(&frame).is_none(), silent, "{name}");
        }
    }

    #[test]
    fn a_short_answer_fits_in_576_bytes() {
        let (answer, headers) = answer(&build::udp(ENDS, 1, 2, &[0; 1400])).unwrap();
        let packet = ipv4::Packet::new_checked(&answer[usize::from(headers.l3)..]).unwrap();
        assert_eq!(packet.total_len(), 576);
    }
}
