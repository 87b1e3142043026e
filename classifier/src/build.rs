//! Builds whole, valid frames: for `trace`, for tests, and for the switch's own answers.
//!
//! Each function returns one untagged frame with right checksums. What is to be different about it
//! is done to the frame afterwards: [`tagged`] inserts VLAN tags, [`partial`] takes the transport
//! checksum back to what checksum offload leaves, and anything else is a write to the bytes.
//!
//! ```
//! use firedoor_classifier::build::{self, Ends, TcpFlags};
//!
//! let ends = Ends {
//!     eth_src: "02:00:00:00:00:10".parse().unwrap(),
//!     eth_dst: "02:00:00:00:00:20".parse().unwrap(),
//!     src: "10.10.0.10".parse().unwrap(),
//!     dst: "10.10.0.20".parse().unwrap(),
//! };
//! let syn = build::tagged(build::tcp(ends, 40000, 8080, TcpFlags::SYN), &[10]);
//! let syn_ack = build::tcp(ends.reversed(), 8080, 40000, TcpFlags::SYN | TcpFlags::ACK);
//! # assert_eq!(syn.len(), syn_ack.len() + 4);
//! ```
//!
//! Payloads are meant to fit a frame. One of more than about 65,000 bytes makes a frame whose
//! length fields are wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use crate::checksum;
use crate::extract::{Headers, NdMessage, extract};
use crate::mac::MacAddr;
use crate::snapshot::PortId;
pub use crate::wire::tcp::TcpFlags;
use crate::wire::{arp, ethernet, icmp, icmpv6, ipv4, ipv6, nd, protocol, sctp, tcp, udp};

/// TTL and hop limit of what is built; neighbour discovery has 255 as it must.
pub const HOP_LIMIT: u8 = 64;

/// Who sends a frame to whom.
///
/// The addresses are of one family. If they are not, the IPv4 one is mapped into IPv6, and the
/// frame is one that [`extract`] refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Source MAC address.
    pub eth_src: MacAddr,
    /// Destination MAC address.
    pub eth_dst: MacAddr,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
}

impl Ends {
    /// The way back.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { eth_src: self.eth_dst, eth_dst: self.eth_src, src: self.dst, dst: self.src }
    }
}

/// An Ethernet frame.
pub fn ethernet(eth_src: MacAddr, eth_dst: MacAddr, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let header = ethernet::Repr { destination: eth_dst, source: eth_src, ether_type };
    [&header.to_bytes(), payload].concat()
}

/// An IP packet of any protocol. `payload` goes in as it is: its checksum is the caller's.
pub fn ip(ends: Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ip_with_hop_limit(ends, protocol, HOP_LIMIT, payload)
}

/// An ARP request for `target`, broadcast.
pub fn arp_request(sender_mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let target_mac = MacAddr::ZERO;
    let message = arp::Repr { operation: arp::REQUEST, sender_mac, sender, target_mac, target };
    ethernet(sender_mac, MacAddr::BROADCAST, ethernet::ether_type::ARP, &message.to_bytes())
}

/// An ARP reply: "`sender` is at `sender_mac`".
pub fn arp_reply(
    sender_mac: MacAddr,
    sender: Ipv4Addr,
    target_mac: MacAddr,
    target: Ipv4Addr,
) -> Vec<u8> {
    let message = arp::Repr { operation: arp::REPLY, sender_mac, sender, target_mac, target };
    ethernet(sender_mac, target_mac, ethernet::ether_type::ARP, &message.to_bytes())
}

/// A TCP segment without payload, sequence and acknowledgement numbers zero.
pub fn tcp(ends: Ends, src_port: u16, dst_port: u16, flags: TcpFlags) -> Vec<u8> {
    let header = tcp::Repr {
        source_port: src_port,
        destination_port: dst_port,
        flags,
        window: 64_240,
        ..Default::default()
    };
    tcp_segment(ends, header, &[])
}

/// A TCP segment.
pub fn tcp_segment(ends: Ends, header: tcp::Repr, payload: &[u8]) -> Vec<u8> {
    let segment = [&header.to_bytes(), payload].concat();
    summed(ends, protocol::TCP, HOP_LIMIT, segment, tcp::field::CHECKSUM.start)
}

/// A UDP datagram.
pub fn udp(ends: Ends, src_port: u16, dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let header =
        udp::Repr { source_port: src_port, destination_port: dst_port, payload_len: payload.len() };
    let datagram = [&header.to_bytes(), payload].concat();
    summed(ends, protocol::UDP, HOP_LIMIT, datagram, udp::field::CHECKSUM.start)
}

/// An SCTP packet. `chunks` are bytes; an INIT chunk is `&[1, 0, 0, 20, …]`.
pub fn sctp(ends: Ends, src_port: u16, dst_port: u16, chunks: &[u8]) -> Vec<u8> {
    let header =
        sctp::Repr { source_port: src_port, destination_port: dst_port, verification_tag: 0 };
    let mut packet = [&header.to_bytes(), chunks].concat();
    let crc = crc32c::crc32c(&packet);
    packet[sctp::field::CHECKSUM].copy_from_slice(&crc.to_le_bytes());
    ip(ends, protocol::SCTP, &packet)
}

/// An echo request of the addresses' family: ping.
pub fn echo_request(ends: Ends, identifier: u16, sequence: u16) -> Vec<u8> {
    echo(ends, (icmp::kind::ECHO_REQUEST, icmpv6::kind::ECHO_REQUEST), identifier, sequence)
}

/// An echo reply of the addresses' family.
pub fn echo_reply(ends: Ends, identifier: u16, sequence: u16) -> Vec<u8> {
    echo(ends, (icmp::kind::ECHO_REPLY, icmpv6::kind::ECHO_REPLY), identifier, sequence)
}

fn echo(ends: Ends, (v4, v6): (u8, u8), identifier: u16, sequence: u16) -> Vec<u8> {
    let kind = if is_v4(ends) { v4 } else { v6 };
    icmp_message(ends, icmp::Repr::query(kind, identifier, sequence), b"firedoor")
}

/// An ICMP or ICMPv6 message, whichever the addresses' family is, of any type.
pub fn icmp_message(ends: Ends, header: icmp::Repr, body: &[u8]) -> Vec<u8> {
    let message = [&header.to_bytes(), body].concat();
    summed(ends, icmp_protocol(ends), HOP_LIMIT, message, icmp::field::CHECKSUM.start)
}

/// An ICMP or ICMPv6 error of any type about `packet`, which is a frame without its Ethernet
/// header, or the beginning of one.
pub fn icmp_error(ends: Ends, kind: u8, code: u8, packet: &[u8]) -> Vec<u8> {
    icmp_message(ends, icmp::Repr { kind, code, rest: [0; 4] }, packet)
}

/// A neighbour solicitation for `target`, sent to its solicited-node group. With an unspecified
/// `src` it is duplicate address detection, and has no link-layer address option.
pub fn neighbor_solicitation(eth_src: MacAddr, src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let group = nd::solicited_node(target);
    let mut body = target.octets().to_vec();
    if !src.is_unspecified() {
        body.extend(nd::link_addr_option(nd::option::SOURCE_LINK_ADDR, eth_src));
    }
    let ends = Ends { eth_src, eth_dst: group_mac(group), src: src.into(), dst: group.into() };
    neighbor_discovery(ends, NdMessage::NeighborSolicitation, [0; 4], &body)
}

/// A neighbour advertisement: "`target` is at `ends.eth_src`". To a group it is unsolicited.
pub fn neighbor_advertisement(ends: Ends, target: Ipv6Addr) -> Vec<u8> {
    let solicited = if ends.dst.is_multicast() { 0 } else { nd::SOLICITED };
    let option = nd::link_addr_option(nd::option::TARGET_LINK_ADDR, ends.eth_src);
    let body = [&target.octets()[..], &option].concat();
    let flags = [solicited | nd::OVERRIDE, 0, 0, 0];
    neighbor_discovery(ends, NdMessage::NeighborAdvertisement, flags, &body)
}

/// A router solicitation from `src`, sent to all routers.
pub fn router_solicitation(eth_src: MacAddr, src: Ipv6Addr) -> Vec<u8> {
    let all_routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let ends =
        Ends { eth_src, eth_dst: group_mac(all_routers), src: src.into(), dst: all_routers.into() };
    neighbor_discovery(ends, NdMessage::RouterSolicitation, [0; 4], &[])
}

/// A router advertisement from `src`, which must be link-local, sent to all nodes. It advertises
/// no prefix and a router lifetime of 30 minutes.
pub fn router_advertisement(eth_src: MacAddr, src: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let ends =
        Ends { eth_src, eth_dst: group_mac(all_nodes), src: src.into(), dst: all_nodes.into() };
    let [high, low] = 1800u16.to_be_bytes();
    let option = nd::link_addr_option(nd::option::SOURCE_LINK_ADDR, eth_src);
    let body = [&[0; 8][..], &option].concat();
    neighbor_discovery(ends, NdMessage::RouterAdvertisement, [HOP_LIMIT, 0, high, low], &body)
}

/// A neighbour discovery message: `rest` are bytes 4 to 8 of the ICMPv6 message, `body` what
/// follows, options included.
pub fn neighbor_discovery(ends: Ends, message: NdMessage, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let header = icmp::Repr { kind: nd::kind(message), code: 0, rest };
    let message = [&header.to_bytes(), body].concat();
    summed(ends, protocol::ICMPV6, 255, message, icmp::field::CHECKSUM.start)
}

/// A DHCP discover, broadcast by a client that has no address yet (RFC 2131 §4.1).
pub fn dhcp_discover(eth_src: MacAddr) -> Vec<u8> {
    let ends = Ends {
        eth_src,
        eth_dst: MacAddr::BROADCAST,
        src: Ipv4Addr::UNSPECIFIED.into(),
        dst: Ipv4Addr::BROADCAST.into(),
    };
    udp(ends, udp::port::DHCP_CLIENT, udp::port::DHCP_SERVER, &dhcp_message(1, 1, eth_src))
}

/// A DHCP offer from a server to the client at `client`, whose MAC address it names.
pub fn dhcp_offer(ends: Ends, client: MacAddr) -> Vec<u8> {
    udp(ends, udp::port::DHCP_SERVER, udp::port::DHCP_CLIENT, &dhcp_message(2, 2, client))
}

/// The fixed 236 bytes of RFC 2131 §2, the magic cookie, the message type option, and the end.
fn dhcp_message(operation: u8, message_type: u8, client: MacAddr) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..4].copy_from_slice(&[operation, 1, 6, 0]);
    message[28..34].copy_from_slice(&client.0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, message_type, 0xff]);
    message
}

/// `frame` with VLAN tags inserted, outermost first. A single tag is 802.1Q's; of two, the outer
/// is 802.1ad's.
#[must_use]
pub fn tagged(mut frame: Vec<u8>, vlans: &[u16]) -> Vec<u8> {
    for (i, vlan) in vlans.iter().enumerate().rev() {
        let outer = i + 1 < vlans.len();
        let tag_protocol =
            if outer { ethernet::ether_type::SERVICE_VLAN } else { ethernet::ether_type::VLAN };
        let [a, b] = tag_protocol.to_be_bytes();
        let [c, d] = vlan.to_be_bytes();
        let at = ethernet::field::ETHER_TYPE.start.min(frame.len());
        frame.splice(at..at, [a, b, c, d]);
    }
    frame
}

/// `frame` as checksum offload leaves it: only the pseudo-header's sum in the checksum field of TCP
/// and UDP, zero in SCTP's. Other frames are returned as they are.
#[must_use]
pub fn partial(mut frame: Vec<u8>) -> Vec<u8> {
    let Ok(Headers { key, l4, end, .. }) = extract(&frame, PortId(0)) else { return frame };
    let pseudo = checksum::pseudo_header(key.src, key.dst, key.protocol, end - l4);
    let pseudo = pseudo.to_be_bytes();
    let transport = &mut frame[usize::from(l4)..];
    match key.protocol {
        protocol::TCP => transport[tcp::field::CHECKSUM].copy_from_slice(&pseudo),
        protocol::UDP => transport[udp::field::CHECKSUM].copy_from_slice(&pseudo),
        protocol::SCTP => transport[sctp::field::CHECKSUM].fill(0),
        _ => {}
    }
    frame
}

/// `frame`, cut into fragments with `size` bytes of the IP payload each: a multiple of 8.
pub fn fragments(frame: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    let (_, payload) = split_packet(frame);
    let starts = (0..payload.len()).step_by(size.max(8));
    starts.map(|start| fragment(frame, id, start..start + size)).collect()
}

/// One fragment of `frame`, which is untagged IPv4 without options or IPv6 without extension headers:
/// these bytes of the IP payload, as many of them as there are. IPv4 takes 16 bits of `id`.
pub fn fragment(frame: &[u8], id: u32, part: Range<usize>) -> Vec<u8> {
    let (headers, payload) = split_packet(frame);
    let end = part.end.min(payload.len());
    let body = payload.get(part.start..end).unwrap_or_default();
    let place = u16::try_from(part.start).unwrap_or(u16::MAX) & !7;
    let more = end < payload.len();
    let mut headers = headers.to_vec();
    let packet = &mut headers[ethernet::HEADER_LEN..];
    if packet.len() == ipv4::HEADER_LEN {
        let flag = if more { ipv4::MORE_FRAGMENTS } else { 0 };
        let total_len = (ipv4::HEADER_LEN + body.len()) as u16;
        packet[ipv4::field::TOTAL_LEN].copy_from_slice(&total_len.to_be_bytes());
        packet[ipv4::field::IDENTIFICATION].copy_from_slice(&(id as u16).to_be_bytes());
        packet[ipv4::field::FRAGMENT].copy_from_slice(&((place / 8) | flag).to_be_bytes());
        packet[ipv4::field::CHECKSUM].fill(0);
        let checksum = checksum::Sum::default().bytes(packet).checksum();
        packet[ipv4::field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
        return [&headers, body].concat();
    }
    let payload_len = (ipv6::FRAGMENT_LEN + body.len()) as u16;
    packet[ipv6::field::PAYLOAD_LEN].copy_from_slice(&payload_len.to_be_bytes());
    let next = std::mem::replace(&mut packet[ipv6::field::NEXT_HEADER], protocol::FRAGMENT);
    let [high, low] = (place | u16::from(more)).to_be_bytes();
    [&headers, &[next, 0, high, low][..], &id.to_be_bytes(), body].concat()
}

/// The Ethernet and IP headers of an untagged frame without options, and what is behind them.
fn split_packet(frame: &[u8]) -> (&[u8], &[u8]) {
    let is_v4 =
        frame.get(ethernet::field::ETHER_TYPE) == Some(&ethernet::ether_type::IPV4.to_be_bytes());
    let len = if is_v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    frame.split_at(ethernet::HEADER_LEN + len)
}

/// The MAC address that an IPv6 group is reached by (RFC 2464 §7).
pub fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// An IP packet whose payload has an Internet checksum at `field`.
fn summed(ends: Ends, protocol: u8, hop_limit: u8, mut payload: Vec<u8>, field: usize) -> Vec<u8> {
    let checksum = checksum::of_message(ends.src, ends.dst, protocol, &payload);
    payload[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    ip_with_hop_limit(ends, protocol, hop_limit, &payload)
}

fn ip_with_hop_limit(ends: Ends, protocol: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let payload_len = payload.len();
    match (ends.src, ends.dst) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = ipv4::Repr { source, destination, protocol, payload_len, ttl: hop_limit };
            let packet = [&header.to_bytes(), payload].concat();
            ethernet(ends.eth_src, ends.eth_dst, ethernet::ether_type::IPV4, &packet)
        }
        (source, destination) => {
            let header = ipv6::Repr {
                source: v6(source),
                destination: v6(destination),
                next_header: protocol,
                payload_len,
                hop_limit,
            };
            let packet = [&header.to_bytes(), payload].concat();
            ethernet(ends.eth_src, ends.eth_dst, ethernet::ether_type::IPV6, &packet)
        }
    }
}

fn is_v4(ends: Ends) -> bool {
    ends.src.is_ipv4() && ends.dst.is_ipv4()
}

fn icmp_protocol(ends: Ends) -> u8 {
    if is_v4(ends) { protocol::ICMP } else { protocol::ICMPV6 }
}

fn v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::Sum;
    use crate::extract::Kind;
    use crate::key::FlowKey;
    use crate::verdict::DropReason;
    use crate::wire::ethernet::ether_type;

    /// Two IPv4 neighbours.
    pub(crate) const ENDS: Ends = Ends {
        eth_src: MacAddr([2, 0, 0, 0, 0, 0x10]),
        eth_dst: MacAddr([2, 0, 0, 0, 0, 0x20]),
        src: IpAddr::V4(Ipv4Addr::new(10, 10, 0, 10)),
        dst: IpAddr::V4(Ipv4Addr::new(10, 10, 0, 20)),
    };

    /// The same two by IPv6.
    pub(crate) const ENDS_V6: Ends = Ends {
        src: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10)),
        dst: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x20)),
        ..ENDS
    };

    const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10);

    /// One frame of everything that can be built, by name.
    pub(crate) fn one_of_each() -> Vec<(&'static str, Vec<u8>)> {
        let (v4, other) = (Ipv4Addr::new(10, 10, 0, 10), Ipv4Addr::new(10, 10, 0, 20));
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10);
        let mut frames = vec![
            ("arp-request", arp_request(ENDS.eth_src, v4, other)),
            ("arp-reply", arp_reply(ENDS.eth_src, v4, ENDS.eth_dst, other)),
            ("nd-solicitation", neighbor_solicitation(ENDS.eth_src, v6, v6)),
            ("nd-dad", neighbor_solicitation(ENDS.eth_src, Ipv6Addr::UNSPECIFIED, v6)),
            ("nd-advertisement", neighbor_advertisement(ENDS_V6, v6)),
            ("router-solicitation", router_solicitation(ENDS.eth_src, LINK_LOCAL)),
            ("router-advertisement", router_advertisement(ENDS.eth_src, LINK_LOCAL)),
            ("dhcp-discover", dhcp_discover(ENDS.eth_src)),
            ("dhcp-offer", dhcp_offer(ENDS, ENDS.eth_dst)),
            ("icmp-unreachable", icmp_error(ENDS, 3, 13, &udp(ENDS.reversed(), 53, 9, b"")[14..])),
            (
                "icmpv6-unreachable",
                icmp_error(ENDS_V6, 1, 1, &udp(ENDS_V6.reversed(), 53, 9, b"")[14..]),
            ),
        ];
        for (ends, names) in [
            (ENDS, ["tcp-v4", "udp-v4", "sctp-v4", "ping-v4", "pong-v4", "gre-v4"]),
            (ENDS_V6, ["tcp-v6", "udp-v6", "sctp-v6", "ping-v6", "pong-v6", "gre-v6"]),
        ] {
            frames.extend(names.into_iter().zip([
                tcp(ends, 40_000, 8080, TcpFlags::SYN),
                udp(ends, 40_000, 53, b"query"),
                sctp(ends, 40_000, 3868, &[1, 0, 0, 4]),
                echo_request(ends, 7, 1),
                echo_reply(ends, 7, 1),
                ip(ends, 47, &[0; 8]),
            ]));
        }
        frames
    }

    /// Either family, any protocol that has ports and a checksum, up to a big payload.
    pub(crate) fn transport_frames() -> impl Strategy<Value = Vec<u8>> {
        let ends = prop_oneof![Just(ENDS), Just(ENDS_V6)];
        let payload = proptest::collection::vec(any::<u8>(), 0..1400);
        (ends, 0u8..3, 1u16.., 1u16.., payload).prop_map(|(ends, protocol, from, to, payload)| {
            match protocol {
                0 => {
                    let header = tcp::Repr {
                        source_port: from,
                        destination_port: to,
                        flags: TcpFlags::ACK,
                        ..Default::default()
                    };
                    tcp_segment(ends, header, &payload)
                }
                1 => udp(ends, from, to, &payload),
                _ => sctp(ends, from, to, &payload),
            }
        })
    }

    /// A checksum is right if the sum with it verifies: asks every frame, without the builder.
    fn transport_checksum_is_right(frame: &[u8]) -> bool {
        let headers = extract(frame, PortId(1)).unwrap();
        let transport = &frame[usize::from(headers.l4)..usize::from(headers.end)];
        let addresses = match headers.key.ether_type {
            ether_type::IPV4 => &frame[usize::from(headers.l3)..][12..20],
            _ => &frame[usize::from(headers.l3)..][8..40],
        };
        let pseudo = Sum::default()
            .bytes(addresses)
            .word(u16::from(headers.key.protocol))
            .word(transport.len().try_into().unwrap());
        match headers.key.protocol {
            protocol::TCP | protocol::UDP | protocol::ICMPV6 => pseudo.bytes(transport).verifies(),
            protocol::ICMP => Sum::default().bytes(transport).verifies(),
            protocol::SCTP => {
                let mut zeroed = transport.to_vec();
                zeroed[8..12].fill(0);
                crc32c::crc32c(&zeroed).to_le_bytes() == transport[8..12]
            }
            _ => true,
        }
    }

    #[test]
    fn every_frame_is_valid_with_any_tags() {
        for (name, frame) in one_of_each() {
            let headers = extract(&frame, PortId(1)).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            assert_eq!(usize::from(headers.end), frame.len(), "{name}");
            if headers.key.ether_type != ether_type::ARP {
                assert!(transport_checksum_is_right(&frame), "{name}");
            }
            for (tags, vlans) in [(1, &[10][..]), (2, &[20, 30])] {
                let tagged = extract(&tagged(frame.clone(), vlans), PortId(1)).unwrap();
                assert_eq!((tagged.vlan_tags, tagged.key.vlan), (tags, vlans[0]), "{name}");
                assert_eq!(FlowKey { vlan: 0, ..tagged.key }, headers.key, "{name}");
            }
        }
    }

    #[test]
    fn partial_takes_only_offloaded_checksums_back() {
        for (name, frame) in one_of_each() {
            let offloaded = matches!(name.get(..3), Some("tcp" | "udp" | "sct" | "dhc"));
            assert_eq!(partial(frame.clone()) != frame, offloaded, "{name}");
        }
    }

    #[test]
    fn dhcp_is_recognised_as_what_it_is() {
        let kind = |frame: Vec<u8>| extract(&frame, PortId(1)).unwrap().kind;
        assert_eq!(kind(dhcp_discover(ENDS.eth_src)), Kind::DhcpClient);
        assert_eq!(kind(dhcp_offer(ENDS, ENDS.eth_dst)), Kind::DhcpServer);
    }

    #[test]
    fn mixed_families_and_oversized_payloads_build_what_is_refused() {
        let mixed = Ends { dst: ENDS_V6.dst, ..ENDS };
        let refused = |frame: Vec<u8>| extract(&frame, PortId(1)).unwrap_err();
        assert_eq!(refused(udp(mixed, 1, 2, &[])), DropReason::Ipv6Malformed);
        assert_eq!(refused(udp(ENDS, 1, 2, &vec![0; 70_000])), DropReason::Ipv4Malformed);
    }
}
