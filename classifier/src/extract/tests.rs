use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::build::tests::{ENDS, ENDS_V6, one_of_each};
use crate::build::{self, Ends, TcpFlags};
use crate::checksum::Sum;
use crate::wire::icmp::Repr;

const PORT: PortId = PortId(3);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10);
const OTHER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x20);

/// Also in place of others, of which nothing is left.
fn headers(frame: &[u8]) -> Headers {
    let headers = extract(frame, PORT).unwrap_or_else(|reason| panic!("{reason:?}: {frame:02x?}"));
    for (name, other) in one_of_each() {
        let mut place = extract(&other, PORT).unwrap_or(headers);
        assert_eq!(extract_into(frame, PORT, &mut place), Ok(()));
        assert_eq!(place, headers, "in place of {name}");
    }
    headers
}

fn reason(frame: &[u8]) -> Option<DropReason> {
    extract(frame, PORT).err()
}

/// `frame` with `bytes` written at `at`.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// An untagged IPv4 frame with `bytes` written at `at` of its header, checksum made right.
fn with_v4(frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    resum(with(frame, ethernet::HEADER_LEN + at, bytes))
}

fn resum(mut frame: Vec<u8>) -> Vec<u8> {
    let header_len = usize::from(frame[14] & 0x0f) * 4;
    frame[14 + 10..14 + 12].fill(0);
    let checksum = Sum::default().bytes(&frame[14..14 + header_len]).checksum();
    with(frame, 14 + 10, &checksum.to_be_bytes())
}

/// A UDP frame with these IPv4 options: a multiple of 4 bytes.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut frame = build::udp(ENDS, 1000, 53, b"query");
    frame.splice(34..34, options.iter().copied());
    let total_len = (frame.len() - 14) as u16;
    frame[14] = 0x45 + (options.len() / 4) as u8;
    with_v4(frame, 2, &total_len.to_be_bytes())
}

/// An IPv6 frame with `chain` between its header and an empty UDP datagram. The first byte of the
/// chain's last header must be 17.
fn with_chain(first: u8, chain: &[u8]) -> Vec<u8> {
    let datagram = &build::udp(ENDS_V6, 1000, 53, &[])[54..];
    build::ip(ENDS_V6, first, &[chain, datagram].concat())
}

/// A destination or hop-by-hop options header of 8 bytes, all padding.
const fn padding(next: u8) -> [u8; 8] {
    [next, 0, 1, 4, 0, 0, 0, 0]
}

fn tcp(ends: Ends, flags: TcpFlags) -> Vec<u8> {
    build::tcp(ends, 40_000, 8080, flags)
}

mod ethernet_and_arp {
    use super::*;

    #[test]
    fn all_of_the_key_is_filled_in() {
        let frame = build::tagged(tcp(ENDS, TcpFlags::SYN), &[10]);
        let headers = headers(&frame);
        assert_eq!(
            headers.key,
            FlowKey {
                ingress: PORT,
                vlan: 10,
                ether_type: 0x0800,
                protocol: 6,
                tcp_flags: 2,
                eth_dst: ENDS.eth_dst,
                eth_src: ENDS.eth_src,
                src: 0xffff_0a0a_000a,
                dst: 0xffff_0a0a_0014,
                src_port: 40_000,
                dst_port: 8080,
            }
        );
        assert_eq!((headers.vlan_tags, headers.l3, headers.l4, headers.end), (1, 18, 38, 58));
        assert_eq!(headers.kind, Kind::Plain);
    }

    #[test]
    fn short_frames_are_truncated() {
        let frame = build::tagged(tcp(ENDS, TcpFlags::SYN), &[1, 2]);
        for len in (0..14).chain(14..22) {
            assert_eq!(reason(&frame[..len]), Some(DropReason::FrameTruncated), "{len} bytes");
        }
    }

    #[test]
    fn two_tags_are_looked_behind_and_no_more() {
        let frame = tcp(ENDS, TcpFlags::SYN);
        let double = headers(&build::tagged(frame.clone(), &[100, 200]));
        assert_eq!((double.vlan_tags, double.key.vlan, double.l3), (2, 100, 22));
        let triple = build::tagged(frame, &[100, 200, 300]);
        assert_eq!(reason(&triple), Some(DropReason::UnknownEtherType));
    }

    #[test]
    fn lengths_in_place_of_an_ethertype_are_unknown() {
        for length in [0, 0x0026, 0x05dc, 0x05ff] {
            let frame = build::ethernet(ENDS.eth_src, ENDS.eth_dst, length, &[0; 46]);
            assert_eq!(reason(&frame), Some(DropReason::UnknownEtherType), "{length:04x}");
        }
    }

    #[test]
    fn of_other_ethertypes_nothing_but_the_ends_is_read() {
        for ether_type in [0x0600, 0x8035, 0x88b5, 0x88cc, 0x9100, 0xffff] {
            let frame = build::ethernet(ENDS.eth_src, ENDS.eth_dst, ether_type, &[0x45; 46]);
            let frame = build::tagged(frame, &[7]);
            let Headers { key, kind, l3, l4, end, .. } = headers(&frame);
            assert_eq!((kind, l3, l4, end), (Kind::NonIp, 18, 64, 64), "{ether_type:04x}");
            let FlowKey { eth_src, eth_dst, .. } = key;
            let expected =
                FlowKey { ingress: key.ingress, vlan: 7, ether_type, ..FlowKey::default() };
            assert_eq!(key, FlowKey { eth_src, eth_dst, ..expected });
            assert_eq!((eth_src, eth_dst), (ENDS.eth_src, ENDS.eth_dst));
        }
    }

    #[test]
    fn bpdus_are_named_for_where_they_go() {
        let bridges = MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]);
        let frame = build::ethernet(ENDS.eth_src, bridges, 0x0026, &[0x42, 0x42, 3]);
        assert_eq!(reason(&frame), Some(DropReason::BridgeReserved));
    }

    #[test]
    fn a_group_or_nobody_cannot_send() {
        for eth_src in [MacAddr::BROADCAST, MacAddr([1, 0, 0x5e, 0, 0, 1]), MacAddr::ZERO] {
            let frame = tcp(Ends { eth_src, ..ENDS }, TcpFlags::SYN);
            assert_eq!(reason(&frame), Some(DropReason::SourceInvalid), "{eth_src}");
        }
    }

    #[test]
    fn arp_is_in_the_key() {
        let (a, b) = (Ipv4Addr::new(10, 10, 0, 10), Ipv4Addr::new(10, 10, 0, 20));
        let mut frame = build::arp_request(ENDS.eth_src, a, b);
        frame.resize(60, 0);
        let headers = headers(&frame);
        assert_eq!((headers.key.src_addr(), headers.key.dst_addr()), (a.into(), b.into()));
        assert_eq!((headers.key.protocol, headers.l4, headers.end), (1, 42, 42));
        assert_eq!(headers.kind, Kind::Arp { sender: ENDS.eth_src, target: MacAddr::ZERO });
    }

    #[test]
    fn arp_must_be_a_request_or_reply_for_ipv4() {
        let frame = build::arp_request(ENDS.eth_src, [10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let malformed = Some(DropReason::ArpMalformed);
        assert_eq!(reason(&frame[..41]), malformed, "short");
        assert_eq!(reason(&with(frame.clone(), 16, &[0x86, 0xdd])), malformed, "protocol");
        assert_eq!(reason(&with(frame.clone(), 18, &[8])), malformed, "hardware length");
        for operation in [0u16, 3, 8, 0x0101, 0x0201] {
            let frame = with(frame.clone(), 20, &operation.to_be_bytes());
            assert_eq!(reason(&frame), malformed, "operation {operation}");
        }
    }

    #[test]
    fn arp_senders_must_be_able_to_send() {
        let sent_by = |mac, addr| {
            let frame = build::arp_request(ENDS.eth_src, addr, [10, 0, 0, 2].into());
            reason(&with(frame, 22, &MacAddr(mac).0))
        };
        let invalid = Some(DropReason::SourceInvalid);
        assert_eq!(sent_by([2, 0, 0, 0, 0, 1], [0, 0, 0, 0].into()), None, "a probe");
        assert_eq!(sent_by([3, 0, 0, 0, 0, 1], [10, 0, 0, 1].into()), invalid);
        assert_eq!(sent_by([0; 6], [10, 0, 0, 1].into()), invalid);
        assert_eq!(sent_by([2, 0, 0, 0, 0, 1], [255; 4].into()), invalid);
        assert_eq!(sent_by([2, 0, 0, 0, 0, 1], [224, 0, 0, 1].into()), invalid);
    }
}

mod ipv4_packets {
    use super::*;

    #[test]
    fn padding_is_not_part_of_the_packet() {
        let mut frame = build::udp(ENDS, 1000, 53, &[]);
        frame.resize(60, 0xee);
        assert_eq!(headers(&frame).end, 42);
    }

    #[test]
    fn header_and_lengths_must_agree() {
        let frame = build::udp(ENDS, 1000, 53, b"query");
        let malformed = Some(DropReason::Ipv4Malformed);
        assert_eq!(reason(&with_v4(frame.clone(), 0, &[0x65])), malformed, "version");
        assert_eq!(reason(&with(frame.clone(), 14, &[0x44])), malformed, "header length");
        assert_eq!(reason(&with_v4(frame.clone(), 2, &[0, 19])), malformed, "total length");
        assert_eq!(reason(&with_v4(frame.clone(), 2, &[0, 34])), malformed, "total length");
        assert_eq!(reason(&with(frame.clone(), 24, &[0, 0])), malformed, "checksum");
        assert_eq!(reason(&frame[..33]), malformed, "cut");
    }

    #[test]
    fn options_are_walked() {
        assert_eq!(headers(&with_options(&[148, 4, 0, 0])).l4, 38, "router alert");
        assert_eq!(headers(&with_options(&[7, 7, 4, 0, 0, 0, 0, 0])).l4, 42, "record route");
        let why = |options| reason(&with_options(options));
        assert_eq!(why(&[131, 3, 4, 0]), Some(DropReason::Ipv4SourceRoute));
        assert_eq!(why(&[1, 137, 3, 4]), Some(DropReason::Ipv4SourceRoute));
        assert_eq!(why(&[0, 131, 3, 4]), None, "behind the end");
        assert_eq!(why(&[7, 5, 4, 0]), Some(DropReason::Ipv4Malformed));
        assert_eq!(why(&[1, 1, 1, 7]), Some(DropReason::Ipv4Malformed));
    }

    /// A frame of 24 bytes of payload, cut as `word` says.
    fn part(protocol: u8, word: u16) -> Result<Headers, DropReason> {
        let payload = [0x9c, 0x40, 0, 53, 0, 99, 0, 0, 0, 0, 0, 0, 0x60, 0x10, 0, 0, 0, 0, 0, 0]
            .iter()
            .copied()
            .chain([0; 4])
            .collect::<Vec<_>>();
        let frame = with_v4(build::ip(ENDS, protocol, &payload), 4, &[0xab, 0xcd]);
        extract(&with_v4(frame, 6, &word.to_be_bytes()), PORT)
    }

    #[test]
    fn a_first_fragment_has_ports_and_a_later_one_none() {
        for (word, more) in [(0x2000, true), (0x6000, true)] {
            let first = part(17, word).unwrap();
            let fragment = Fragment { id: 0xabcd, offset: 0, len: 24, more };
            assert_eq!((first.kind, first.fragment), (Kind::Plain, Some(fragment)));
            assert_eq!((first.key.src_port, first.key.dst_port), (40_000, 53));
        }
        for (word, offset, more) in [(3, 24, false), (0x2003, 24, true), (0x1ff0, 65_408, false)] {
            let later = part(17, word).unwrap();
            let fragment = Fragment { id: 0xabcd, offset, len: 24, more };
            assert_eq!((later.kind, later.fragment), (Kind::LaterFragment, Some(fragment)));
            assert_eq!((later.key.protocol, later.key.src_port, later.key.dst_port), (17, 0, 0));
            assert_eq!((later.l4, later.end), (34, 58));
        }
        let whole = headers(&build::udp(ENDS, 1000, 53, b"query"));
        assert_eq!(whole.fragment, None);
    }

    #[test]
    fn fragments_in_or_before_the_end_of_the_transport_header_are_tiny() {
        let tiny = Some(DropReason::FragmentTiny);
        assert_eq!(part(6, 0x2000).err(), None, "24 bytes of TCP header, and no payload");
        for (protocol, shortest) in [(6, 24), (17, 8), (1, 8), (132, 16), (47, 8)] {
            for len in [8, 16, 24] {
                let frame = build::ip(
                    ENDS,
                    protocol,
                    &build::tcp(ENDS, 9, 7, TcpFlags::ACK)[34..][..len.min(20)],
                );
                let mut frame = frame;
                frame.resize(34 + len, 0x50);
                let total = (20 + len) as u16;
                let frame = with_v4(with_v4(frame, 2, &total.to_be_bytes()), 6, &[0x20, 0]);
                assert_eq!(reason(&frame) == tiny, len < shortest, "{protocol}: {len} bytes");
            }
            for units in 1..4 {
                let offset = usize::from(units) * 8;
                assert_eq!(
                    part(protocol, units).err() == tiny,
                    offset < shortest,
                    "{protocol}: {offset}"
                );
            }
        }
    }

    #[test]
    fn fragments_must_have_a_possible_place_and_length() {
        let malformed = Some(DropReason::Ipv4Malformed);
        let frame = build::ip(ENDS, 47, &[1, 2, 3, 4]);
        let cut = |word: u16| reason(&with_v4(frame.clone(), 6, &word.to_be_bytes()));
        assert_eq!(cut(0x2000), malformed, "four bytes, and more to come");
        assert_eq!(cut(0x2001), malformed, "likewise");
        assert_eq!(cut(0x0001), None, "the last may be of any length");
        assert_eq!(reason(&with_v4(build::ip(ENDS, 47, &[]), 6, &[0, 1])), malformed, "empty");
        assert_eq!(part(17, 0x1ffa).err(), None, "65,488, 24, and 20 of header: 65,532");
        assert_eq!(part(17, 0x1ffb).err(), Some(DropReason::FragmentTooLong), "8 more");
    }

    #[test]
    fn some_addresses_cannot_send() {
        let from = |src: [u8; 4]| reason(&tcp(Ends { src: src.into(), ..ENDS }, TcpFlags::SYN));
        for src in [[224, 0, 0, 1], [239, 1, 2, 3], [255, 255, 255, 255], [127, 0, 0, 1]] {
            assert_eq!(from(src), Some(DropReason::SourceInvalid), "{src:?}");
        }
        assert_eq!(from([0, 0, 0, 0]), None, "the pipeline's to judge");
    }

    #[test]
    fn other_protocols_have_no_ports() {
        let headers = headers(&build::ip(ENDS, 47, &[1, 2, 3, 4]));
        assert_eq!((headers.key.protocol, headers.key.src_port, headers.key.dst_port), (47, 0, 0));
        assert_eq!((headers.l4, headers.end), (34, 38));
    }

    #[test]
    fn a_packet_may_not_end_beyond_what_an_offset_can_say() {
        let longest = build::udp(ENDS, 1, 2, &vec![0; 65_535 - 14 - 20 - 8]);
        assert_eq!(headers(&longest).end, 65_535);
        let longer = build::udp(ENDS, 1, 2, &vec![0; 65_535 - 14 - 20 - 7]);
        assert_eq!(reason(&longer), Some(DropReason::Ipv4Malformed));
    }
}

mod ipv6_packets {
    use super::*;

    #[test]
    fn header_and_lengths_must_agree() {
        let frame = build::udp(ENDS_V6, 1000, 53, b"query");
        let malformed = Some(DropReason::Ipv6Malformed);
        assert_eq!(reason(&with(frame.clone(), 14, &[0x40])), malformed, "version");
        assert_eq!(reason(&with(frame.clone(), 18, &[0, 14])), malformed, "payload length");
        assert_eq!(reason(&frame[..53]), malformed, "cut");
    }

    #[test]
    fn jumbograms_are_malformed() {
        let jumbo = [17, 0, 0xc2, 4, 0, 1, 0, 0];
        assert_eq!(reason(&with_chain(0, &jumbo)), Some(DropReason::Ipv6Malformed));
        let zero_length = with(with_chain(0, &jumbo), 18, &[0, 0]);
        assert_eq!(reason(&zero_length), Some(DropReason::Ipv6Malformed));
    }

    #[test]
    fn mapped_addresses_are_malformed() {
        let mapped: IpAddr = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().into();
        for ends in [Ends { src: mapped, ..ENDS_V6 }, Ends { dst: mapped, ..ENDS_V6 }] {
            assert_eq!(reason(&tcp(ends, TcpFlags::SYN)), Some(DropReason::Ipv6Malformed));
        }
    }

    #[test]
    fn some_addresses_cannot_send() {
        for src in ["ff02::1", "::1"] {
            let ends = Ends { src: src.parse().unwrap(), ..ENDS_V6 };
            assert_eq!(reason(&tcp(ends, TcpFlags::SYN)), Some(DropReason::SourceInvalid));
        }
    }

    #[test]
    fn options_headers_are_walked() {
        let one = headers(&with_chain(0, &padding(17)));
        assert_eq!((one.key.protocol, one.key.dst_port, one.l4), (17, 53, 62));
        let chain = [padding(60), padding(60), padding(60), padding(17)].concat();
        assert_eq!(headers(&with_chain(0, &chain)).l4, 86);
        let sixteen = [&[17, 1][..], &[5, 2, 0, 0, 1, 8], &[0; 8]].concat();
        assert_eq!(headers(&with_chain(0, &sixteen)).l4, 70, "router alert");
    }

    #[test]
    fn chains_that_cannot_be_judged_are_refused() {
        let long = |units: u8| {
            let mut header = vec![0; (usize::from(units) + 1) * 8];
            header[..2].copy_from_slice(&[17, units]);
            header
        };
        assert_eq!(reason(&with_chain(60, &long(31))), None, "256 bytes");
        let refused = Some(DropReason::Ipv6Extension);
        assert_eq!(reason(&with_chain(60, &long(32))), refused, "264 bytes");
        let five = [padding(60), padding(60), padding(60), padding(60), padding(17)].concat();
        assert_eq!(reason(&with_chain(60, &five)), refused, "five headers");
        let late = [padding(0), padding(17)].concat();
        assert_eq!(reason(&with_chain(60, &late)), refused, "late hop-by-hop");
        let home = [17, 0, 0xc9, 4, 0, 0, 0, 0];
        assert_eq!(reason(&with_chain(60, &home)), refused, "home address");
        for header in [43, 51, 135, 139, 140] {
            assert_eq!(reason(&with_chain(header, &padding(17))), refused, "{header}");
            let behind = [padding(header), padding(17)].concat();
            assert_eq!(reason(&with_chain(60, &behind)), refused, "{header} behind options");
        }
    }

    #[test]
    fn cut_or_malformed_options_are_malformed() {
        let malformed = Some(DropReason::Ipv6Malformed);
        assert_eq!(reason(&build::ip(ENDS_V6, 60, &[17, 1, 0, 0, 0, 0, 0, 0])), malformed);
        assert_eq!(reason(&build::ip(ENDS_V6, 60, &[17])), malformed);
        assert_eq!(reason(&with_chain(60, &[17, 0, 5, 9, 0, 0, 0, 0])), malformed);
    }

    /// A fragment header before an empty UDP datagram.
    const fn cut(next: u8, offset_and_more: [u8; 2]) -> [u8; 8] {
        [next, 0, offset_and_more[0], offset_and_more[1], 1, 2, 3, 4]
    }

    #[test]
    fn a_first_fragment_has_ports_and_a_later_one_none() {
        let id = 0x0102_0304;
        let behind = |fragment: [u8; 8]| [padding(44), fragment].concat();
        for (first, chain, l4) in
            [(44, cut(17, [0, 1]).to_vec(), 62), (0, behind(cut(17, [0, 1])), 70)]
        {
            let headers = headers(&with_chain(first, &chain));
            let fragment = Fragment { id, offset: 0, len: 8, more: true };
            assert_eq!((headers.kind, headers.fragment), (Kind::Plain, Some(fragment)));
            assert_eq!((headers.key.dst_port, headers.l4), (53, l4));
        }
        for (offset_and_more, offset, more) in [([0, 8], 8, false), ([5, 0xa9], 1448, true)] {
            let headers = headers(&with_chain(0, &behind(cut(17, offset_and_more))));
            let fragment = Fragment { id, offset, len: 8, more };
            assert_eq!((headers.kind, headers.fragment), (Kind::LaterFragment, Some(fragment)));
            assert_eq!((headers.key.protocol, headers.key.dst_port, headers.l4), (17, 0, 70));
        }
    }

    #[test]
    fn an_atomic_fragment_is_a_whole_packet_but_not_of_discovery() {
        let headers = headers(&with_chain(44, &cut(17, [0, 6])));
        assert_eq!((headers.fragment, headers.kind, headers.key.dst_port), (None, Kind::Plain, 53));
        let ends = Ends { src: LINK_LOCAL.into(), ..ENDS_V6 };
        let plain = build::neighbor_advertisement(ends, LINK_LOCAL);
        let message = [&cut(58, [0, 0])[..], &plain[54..]].concat();
        let hidden = with(build::ip(ends, 44, &message), 14 + 7, &[255]);
        assert_eq!(reason(&hidden), Some(DropReason::NdMalformed), "RFC 6980");
    }

    #[test]
    fn all_headers_stand_in_the_first_fragment() {
        let tiny = Some(DropReason::FragmentTiny);
        let first = |next, rest: &[u8]| {
            reason(&build::ip(ENDS_V6, 44, &[&cut(next, [0, 1]), rest].concat()))
        };
        let segment = build::tcp(ENDS_V6, 1, 2, TcpFlags::SYN);
        assert_eq!(first(6, &segment[54..70]), tiny);
        assert_eq!(first(60, &[17, 1, 1, 4, 0, 0, 0, 0]), tiny, "cut in the options");
        assert_eq!(first(60, &padding(17)), tiny, "cut behind them");
        assert_eq!(first(58, &[128, 0, 0, 0, 0, 7, 0, 1]), None);
        let later = [&cut(6, [0, 16])[..], &[0; 8]].concat();
        assert_eq!(reason(&build::ip(ENDS_V6, 44, &later)), tiny, "in the header's place");
    }

    #[test]
    fn fragments_of_fragments_and_impossible_ones_are_refused() {
        let twice = [cut(44, [0, 0]), cut(17, [0, 0])].concat();
        assert_eq!(reason(&with_chain(44, &twice)), Some(DropReason::Ipv6Extension));
        let late = [padding(60), padding(60), padding(60), padding(44), cut(17, [0, 0])].concat();
        assert_eq!(reason(&with_chain(60, &late)), Some(DropReason::Ipv6Extension), "the fifth");
        let malformed = Some(DropReason::Ipv6Malformed);
        assert_eq!(reason(&build::ip(ENDS_V6, 44, &cut(17, [0, 8])[..7])), malformed, "cut");
        assert_eq!(reason(&build::ip(ENDS_V6, 44, &cut(17, [0, 8]))), malformed, "empty");
        let odd = [&cut(17, [0, 9])[..], &[0; 12]].concat();
        assert_eq!(reason(&build::ip(ENDS_V6, 44, &odd)), malformed, "12 bytes, and more to come");
        let long = |before: usize| {
            let chain = [&vec![padding(60); before].concat()[..], &cut(17, [0xff, 0xf0]), &[0; 15]];
            let mut bytes = chain.concat();
            if before > 0 {
                bytes[before * 8 - 8] = 44;
            }
            reason(&build::ip(ENDS_V6, if before > 0 { 60 } else { 44 }, &bytes))
        };
        assert_eq!(long(0), None, "65,535 bytes in all");
        assert_eq!(long(1), Some(DropReason::FragmentTooLong), "with a header that all have");
    }

    #[test]
    fn nothing_may_follow_and_esp_is_a_protocol() {
        let nothing = headers(&build::ip(ENDS_V6, 59, &[1, 2, 3]));
        assert_eq!((nothing.key.protocol, nothing.l4, nothing.end), (59, 57, 57));
        let esp = headers(&build::ip(ENDS_V6, 50, &[1, 2, 3]));
        assert_eq!((esp.key.protocol, esp.l4, esp.end), (50, 54, 57));
    }

    #[test]
    fn a_packet_may_not_end_beyond_what_an_offset_can_say() {
        let longer = build::udp(ENDS_V6, 1, 2, &vec![0; 65_535 - 14 - 40 - 7]);
        assert_eq!(reason(&longer), Some(DropReason::Ipv6Malformed));
    }
}

mod transports {
    use super::*;
    use crate::wire::tcp::Repr as Tcp;

    #[test]
    fn tcp_gives_its_sequence_space() {
        let header = Tcp {
            source_port: 1,
            destination_port: 2,
            sequence: 7,
            acknowledgement: 9,
            flags: TcpFlags::ACK | TcpFlags::PSH | TcpFlags::CWR,
            window: 11,
        };
        for ends in [ENDS, ENDS_V6] {
            let headers = headers(&build::tcp_segment(ends, header, b"hello"));
            assert_eq!(
                headers.tcp,
                TcpFields { seq: 7, ack: 9, window: 11, payload: 5, window_scale: None }
            );
            assert_eq!(headers.key.tcp_flags, header.flags.bits());
        }
    }

    #[test]
    fn impossible_tcp_is_malformed() {
        let malformed = Some(DropReason::TcpMalformed);
        for (ends, l4) in [(ENDS, 34), (ENDS_V6, 54)] {
            let frame = tcp(ends, TcpFlags::SYN);
            assert_eq!(reason(&with(frame.clone(), l4 + 12, &[0x40])), malformed, "offset 16");
            assert_eq!(reason(&with(frame.clone(), l4 + 12, &[0x60])), malformed, "offset 24");
            assert_eq!(reason(&with(frame.clone(), l4, &[0, 0])), malformed, "source port 0");
            assert_eq!(reason(&with(frame.clone(), l4 + 2, &[0, 0])), malformed, "port 0");
            assert_eq!(reason(&build::ip(ends, 6, &frame[l4..l4 + 19])), malformed, "short");
            for flags in [
                TcpFlags::empty(),
                TcpFlags::FIN,
                TcpFlags::FIN | TcpFlags::PSH | TcpFlags::URG,
                TcpFlags::SYN | TcpFlags::FIN,
                TcpFlags::SYN | TcpFlags::RST,
                TcpFlags::all(),
            ] {
                assert_eq!(reason(&tcp(ends, flags)), malformed, "{flags:?}");
            }
        }
    }

    #[test]
    fn udp_length_must_lie_within_the_packet() {
        let malformed = Some(DropReason::UdpMalformed);
        for (ends, l4) in [(ENDS, 34), (ENDS_V6, 54)] {
            let frame = build::udp(ends, 1000, 53, b"query");
            let length = |len| reason(&with(frame.clone(), l4 + 4, &[0, len]));
            assert_eq!((length(0), length(7), length(14)), (malformed, malformed, malformed));
            assert_eq!((length(8), length(12), length(13)), (None, None, None));
            assert_eq!(reason(&build::ip(ends, 17, &[0, 1, 0, 2, 0, 7, 0])), malformed, "short");
            assert_eq!(reason(&build::udp(ends, 1, 0, &[])), malformed, "destination port 0");
            assert_eq!(reason(&build::udp(ends, 0, 1, &[])), None, "source port 0");
        }
    }

    #[test]
    fn sctp_needs_its_header_and_ports() {
        let malformed = Some(DropReason::SctpMalformed);
        let frame = build::sctp(ENDS, 1000, 3868, &[]);
        assert_eq!((headers(&frame).key.src_port, headers(&frame).key.dst_port), (1000, 3868));
        assert_eq!(reason(&build::ip(ENDS, 132, &frame[34..45])), malformed, "short");
        assert_eq!(reason(&build::sctp(ENDS, 0, 1, &[])), malformed);
        assert_eq!(reason(&build::sctp(ENDS_V6, 1, 0, &[])), malformed);
    }

    #[test]
    fn dhcp_is_told_by_its_ports() {
        let kind = |ends, from, to| headers(&build::udp(ends, from, to, &[])).kind;
        assert_eq!(kind(ENDS, 68, 67), Kind::DhcpClient);
        assert_eq!(kind(ENDS, 67, 68), Kind::DhcpServer);
        assert_eq!(kind(ENDS, 67, 67), Kind::DhcpServer);
        assert_eq!(kind(ENDS, 4000, 68), Kind::DhcpServer, "clients hear it");
        assert_eq!(kind(ENDS, 4000, 67), Kind::Plain);
        assert_eq!(kind(ENDS_V6, 546, 547), Kind::DhcpClient);
        assert_eq!(kind(ENDS_V6, 547, 546), Kind::DhcpServer);
        assert_eq!(kind(ENDS_V6, 547, 547), Kind::DhcpServer);
        assert_eq!(kind(ENDS_V6, 68, 67), Kind::Plain, "the other family's");
        assert_eq!(kind(ENDS, 546, 547), Kind::Plain, "the other family's");
    }
}

mod icmp_messages {
    use super::*;

    /// The packet of a frame without tags.
    fn packet(frame: &[u8]) -> &[u8] {
        &frame[ethernet::HEADER_LEN..]
    }

    fn embedded(frame: &[u8]) -> Embedded {
        match headers(frame).kind {
            Kind::IcmpError(embedded) => embedded,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn queries_and_replies_have_their_identifier() {
        for (frame, kind_and_code) in [
            (build::echo_request(ENDS, 7, 1), 0x0800),
            (build::echo_reply(ENDS, 7, 1), 0x0000),
            (build::echo_request(ENDS_V6, 7, 1), 0x8000),
            (build::echo_reply(ENDS_V6, 7, 1), 0x8100),
            (build::icmp_message(ENDS, Repr::query(13, 7, 1), &[0; 12]), 0x0d00),
        ] {
            let key = headers(&frame).key;
            assert_eq!((key.src_port, key.dst_port), (7, kind_and_code));
        }
        let router_solicitation = build::icmp_message(ENDS, Repr::query(10, 7, 1), &[]);
        assert_eq!(headers(&router_solicitation).key.src_port, 0);
    }

    #[test]
    fn short_and_foreign_messages_are_malformed() {
        let malformed = Some(DropReason::IcmpMalformed);
        assert_eq!(reason(&build::ip(ENDS, 1, &[8, 0, 0, 0, 0, 0, 0])), malformed);
        assert_eq!(reason(&build::ip(ENDS_V6, 58, &[128, 0, 0, 0, 0, 0, 0])), malformed);
        assert_eq!(reason(&build::ip(ENDS, 58, &[128, 0, 0, 0, 0, 0, 0, 0])), malformed);
        assert_eq!(reason(&build::ip(ENDS_V6, 1, &[8, 0, 0, 0, 0, 0, 0, 0])), malformed);
    }

    #[test]
    fn errors_carry_the_conversation_they_are_about() {
        for (ends, kinds, quotes) in [
            (ENDS, &[3, 4, 5, 11, 12][..], [6, 17, 132, 1, 47]),
            (ENDS_V6, &[1, 2, 3, 4], [6, 17, 132, 58, 47]),
        ] {
            let sent = [
                tcp(ends, TcpFlags::SYN),
                build::udp(ends, 1000, 53, b"a long query"),
                build::sctp(ends, 1000, 3868, &[1, 0, 0, 4]),
                build::echo_request(ends, 7, 1),
                build::ip(ends, 47, &[0; 8]),
            ];
            for (sent, protocol) in sent.iter().zip(quotes) {
                let Headers { key, tcp, .. } = headers(sent);
                for &kind in kinds {
                    let error = build::icmp_error(ends.reversed(), kind, 0, packet(sent));
                    let quote = embedded(&error);
                    assert_eq!(quote.seq, (protocol == 6).then_some(tcp.seq));
                    assert_eq!(quote.protocol, protocol);
                    assert_eq!((quote.src, quote.dst), (key.src, key.dst));
                    assert_eq!((quote.src_port, quote.dst_port), (key.src_port, key.dst_port));
                }
            }
        }
    }

    #[test]
    fn a_quote_may_be_cut_behind_eight_bytes_of_transport() {
        for (ends, kind, header_len) in [(ENDS, 3, 20), (ENDS_V6, 1, 40)] {
            let sent = tcp(ends, TcpFlags::SYN);
            for len in 0..packet(&sent).len() {
                let error = build::icmp_error(ends.reversed(), kind, 0, &packet(&sent)[..len]);
                let expected = (len < header_len + 8).then_some(DropReason::IcmpMalformed);
                assert_eq!(reason(&error), expected, "{len} bytes");
            }
        }
    }

    #[test]
    fn quotes_of_what_the_switch_refuses_are_malformed() {
        let about_v4 = |frame: &[u8]| reason(&build::icmp_error(ENDS, 3, 0, packet(frame)));
        let about_v6 = |frame: &[u8]| reason(&build::icmp_error(ENDS_V6, 1, 0, packet(frame)));
        let malformed = Some(DropReason::IcmpMalformed);
        let datagram = build::udp(ENDS, 1000, 53, b"query");
        let fragment = |word: u16| with_v4(datagram.clone(), 6, &word.to_be_bytes());
        assert_eq!(about_v4(&fragment(0x2000)), None, "first fragment");
        assert_eq!(about_v6(&with_chain(43, &padding(17))), malformed, "routing header");
        assert_eq!(about_v6(&with_chain(60, &padding(17))), None, "options");
        let error = build::icmp_error(ENDS, 3, 0, packet(&datagram));
        assert_eq!(about_v4(&error), malformed, "error about an error");
        assert_eq!(about_v6(&error), malformed, "the other family");
        let mapped = Ends { src: Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), ..ENDS_V6 };
        assert_eq!(about_v6(&build::udp(mapped, 1, 2, &[])), malformed, "mapped address");
        assert_eq!(about_v4(&build::ip(ENDS, 58, &[128, 0, 0, 0, 0, 0, 0, 0])), malformed);
        assert_eq!(about_v6(&build::ip(ENDS_V6, 1, &[8, 0, 0, 0, 0, 0, 0, 0])), malformed);
    }
}

mod quoted_fragments {
    use super::*;

    fn quoted(frame: &[u8]) -> (u8, u16, u16) {
        match headers(frame).kind {
            Kind::IcmpError(embedded) => (embedded.protocol, embedded.src_port, embedded.dst_port),
            other => panic!("{other:?}"),
        }
    }

    /// What a router quotes of one fragment: its first 75 bytes, so the quote is cut in its payload.
    fn about(frame: &[u8], part: std::ops::Range<usize>) -> (u8, u16, u16) {
        let fragment = build::fragment(frame, 1, part);
        let (ends, kind) = if frame[12] == 0x08 { (ENDS, 3) } else { (ENDS_V6, 2) };
        quoted(&build::icmp_error(ends, kind, 0, &fragment[14..][..75]))
    }

    #[test]
    fn a_first_one_has_ports_and_a_later_one_those_of_no_connection() {
        for (ends, icmp) in [(ENDS, 1), (ENDS_V6, 58)] {
            let datagram = build::udp(ends, 1000, 53, &[0; 200]);
            assert_eq!(about(&datagram, 0..80), (17, 1000, 53));
            assert_eq!(about(&datagram, 80..160), (17, 0, 0));
            let kind = if icmp == 1 { 8 } else { 128 };
            let ping = build::icmp_message(ends, Repr::query(kind, 7, 1), &[0; 200]);
            assert_eq!(about(&ping, 0..80), (icmp, 7, u16::from(kind) << 8));
            assert_eq!(about(&ping, 80..160), (icmp, 0, 0xffff));
        }
    }
}

mod neighbour_discovery {
    use super::*;
    use crate::wire::nd::link_addr_option;

    const MALFORMED: Option<DropReason> = Some(DropReason::NdMalformed);
    const TARGET: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10);

    fn nd(frame: &[u8]) -> Nd {
        match headers(frame).kind {
            Kind::Nd(nd) => nd,
            other => panic!("{other:?}"),
        }
    }

    fn message(src: Ipv6Addr, message: NdMessage, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
        let ends = Ends { src: src.into(), dst: OTHER_LINK_LOCAL.into(), ..ENDS_V6 };
        build::neighbor_discovery(ends, message, rest, body)
    }

    fn redirect(src: Ipv6Addr, target: Ipv6Addr, redirected: Ipv6Addr) -> Vec<u8> {
        let body = [target.octets(), redirected.octets()].concat();
        message(src, NdMessage::Redirect, [0; 4], &body)
    }

    #[test]
    fn messages_give_target_and_link_layer_address() {
        let (mac, target) = (Some(ENDS.eth_src), TARGET.to_bits());
        let solicitation = nd(&build::neighbor_solicitation(ENDS.eth_src, LINK_LOCAL, TARGET));
        assert_eq!(
            solicitation,
            Nd { message: NdMessage::NeighborSolicitation, target, link_addr: mac }
        );
        let dad = nd(&build::neighbor_solicitation(ENDS.eth_src, Ipv6Addr::UNSPECIFIED, TARGET));
        assert_eq!(dad, Nd { link_addr: None, ..solicitation });
        let advertisement = nd(&build::neighbor_advertisement(ENDS_V6, TARGET));
        assert_eq!(
            advertisement,
            Nd { message: NdMessage::NeighborAdvertisement, target, link_addr: mac }
        );
        let router = nd(&build::router_advertisement(ENDS.eth_src, LINK_LOCAL));
        assert_eq!(
            router,
            Nd { message: NdMessage::RouterAdvertisement, target: 0, link_addr: mac }
        );
        let solicitation = nd(&build::router_solicitation(ENDS.eth_src, LINK_LOCAL));
        assert_eq!(
            solicitation,
            Nd { message: NdMessage::RouterSolicitation, target: 0, link_addr: None }
        );
        let redirect = nd(&redirect(LINK_LOCAL, OTHER_LINK_LOCAL, TARGET));
        let target = OTHER_LINK_LOCAL.to_bits();
        assert_eq!(redirect, Nd { message: NdMessage::Redirect, target, link_addr: None });
    }

    #[test]
    fn hop_limit_code_and_length_are_checked_for_every_message() {
        let fine = [
            build::router_solicitation(ENDS.eth_src, LINK_LOCAL),
            build::router_advertisement(ENDS.eth_src, LINK_LOCAL),
            build::neighbor_solicitation(ENDS.eth_src, LINK_LOCAL, TARGET),
            build::neighbor_advertisement(ENDS_V6, TARGET),
            redirect(LINK_LOCAL, OTHER_LINK_LOCAL, TARGET),
        ];
        for (frame, fixed) in fine.into_iter().zip([8usize, 16, 24, 24, 40]) {
            nd(&frame);
            assert_eq!(reason(&with(frame.clone(), 14 + 7, &[254])), MALFORMED, "hop limit");
            assert_eq!(reason(&with(frame.clone(), 54 + 1, &[1])), MALFORMED, "code");
            if fixed > 8 {
                let mut short = frame[..54 + fixed - 1].to_vec();
                short[18..20].copy_from_slice(&(fixed as u16 - 1).to_be_bytes());
                assert_eq!(reason(&short), MALFORMED, "short");
            }
        }
    }

    #[test]
    fn options_are_checked() {
        let solicit = |options: &[u8]| {
            let body = [&TARGET.octets()[..], options].concat();
            extract(&message(LINK_LOCAL, NdMessage::NeighborSolicitation, [0; 4], &body), PORT)
        };
        let (source, target) =
            (link_addr_option(1, ENDS.eth_src), link_addr_option(2, ENDS.eth_dst));
        let link_addr = |options: &[u8]| match solicit(options).unwrap().kind {
            Kind::Nd(nd) => nd.link_addr,
            other => panic!("{other:?}"),
        };
        assert_eq!(link_addr(&[]), None);
        assert_eq!(link_addr(&[target, source].concat()), Some(ENDS.eth_src));
        assert_eq!(link_addr(&[14, 1, 0, 0, 0, 0, 0, 0]), None, "a nonce");
        let malformed = |options: &[u8]| solicit(options).err() == MALFORMED;
        assert!(malformed(&[1, 0, 0, 0, 0, 0, 0, 0]), "empty");
        assert!(malformed(&[1, 2, 0, 0, 0, 0, 0, 0]), "beyond the message");
        assert!(malformed(&[14]), "one byte");
        assert!(malformed(&[source, source].concat()), "twice");
        assert!(malformed(&[&[1, 2][..], &[0; 14]].concat()), "not an Ethernet address");
        assert!(malformed(&link_addr_option(1, MacAddr::BROADCAST)), "a group's");
        assert!(malformed(&link_addr_option(1, MacAddr::ZERO)), "nobody's");
        assert!(malformed(&[200, 1, 0, 0, 0, 0, 0, 0]), "of an unknown kind");
        assert!(malformed(&[&[14, 2][..], &[0; 14]].concat()), "a long nonce");
        assert!(malformed(&[14, 1, 0, 0, 0, 0, 0, 0].repeat(4)), "many");
    }

    #[test]
    fn addresses_are_checked() {
        let unspecified = Ipv6Addr::UNSPECIFIED;
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let source = link_addr_option(1, ENDS.eth_src);
        let dad = build::neighbor_solicitation(ENDS.eth_src, unspecified, TARGET);
        let neighbor = |target: Ipv6Addr| {
            let body = target.octets();
            reason(&message(LINK_LOCAL, NdMessage::NeighborSolicitation, [0; 4], &body))
        };
        assert_eq!(neighbor(TARGET), None);
        assert_eq!(neighbor(group), MALFORMED, "multicast target");
        assert_eq!(neighbor(Ipv4Addr::LOCALHOST.to_ipv6_mapped()), MALFORMED, "mapped target");
        assert_eq!(reason(&with(dad, 38, &TARGET.octets())), MALFORMED, "not to the group");
        let anonymous = [&TARGET.octets()[..], &source].concat();
        let anonymous = message(unspecified, NdMessage::NeighborSolicitation, [0; 4], &anonymous);
        assert_eq!(reason(&anonymous), MALFORMED, "an address of nobody");
        let anonymous = message(unspecified, NdMessage::RouterSolicitation, [0; 4], &source);
        assert_eq!(reason(&anonymous), MALFORMED, "an address of nobody");
        let routable = build::router_advertisement(ENDS.eth_src, TARGET);
        assert_eq!(reason(&routable), MALFORMED, "router without link-local address");
        let unsolicited = Ends { dst: group.into(), ..ENDS_V6 };
        let unsolicited = build::neighbor_advertisement(unsolicited, TARGET);
        assert_eq!(reason(&unsolicited), None);
        assert_eq!(reason(&with(unsolicited, 58, &[0x40])), MALFORMED, "solicited by a group");
        let advertisement = Ends { src: unspecified.into(), ..ENDS_V6 };
        let advertisement = build::neighbor_advertisement(advertisement, TARGET);
        assert_eq!(reason(&advertisement), MALFORMED, "from nobody");
        assert_eq!(reason(&redirect(LINK_LOCAL, TARGET, TARGET)), None, "on-link");
        assert_eq!(reason(&redirect(TARGET, OTHER_LINK_LOCAL, TARGET)), MALFORMED, "source");
        assert_eq!(reason(&redirect(LINK_LOCAL, TARGET, group)), MALFORMED, "multicast");
        let elsewhere = redirect(LINK_LOCAL, TARGET, "fd00::99".parse().unwrap());
        assert_eq!(reason(&elsewhere), MALFORMED, "first hop not link-local");
    }
}

/// What another parser, smoltcp's, reads in the same frame: protocol, addresses, and ports or, for a
/// fragment, its place: identification, offset, whether more follow.
mod second_opinion {
    use smoltcp::wire::{
        ArpPacket, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6ExtHeader,
        Ipv6FragmentHeader, Ipv6Packet, TcpPacket, UdpPacket,
    };

    use super::*;

    pub(super) type Tuple = (u8, IpAddr, IpAddr, Rest);

    #[derive(Debug, PartialEq)]
    pub(super) enum Rest {
        Ports(u16, u16),
        Place(u32, u16, bool),
    }

    pub(super) fn tuple(frame: &[u8]) -> Option<Tuple> {
        let mut untagged = frame.to_vec();
        while matches!(untagged.get(12..14)?, [0x81, 0x00] | [0x88, 0xa8]) {
            untagged.drain(12..16.min(untagged.len()));
        }
        let ethernet = EthernetFrame::new_checked(&untagged[..]).ok()?;
        let packet = ethernet.payload();
        match ethernet.ethertype() {
            EthernetProtocol::Arp => {
                let arp = ArpPacket::new_checked(packet).ok()?;
                let sender = <[u8; 4]>::try_from(arp.source_protocol_addr()).ok()?;
                let target = <[u8; 4]>::try_from(arp.target_protocol_addr()).ok()?;
                let operation = u16::from(arp.operation()) as u8;
                Some((operation, sender.into(), target.into(), Rest::Ports(0, 0)))
            }
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(packet).ok()?;
                assert!(ip.verify_checksum());
                let rest = match (ip.frag_offset(), ip.more_frags()) {
                    (0, false) => ports(ip.next_header(), ip.payload())?,
                    (offset, more) => Rest::Place(ip.ident().into(), offset, more),
                };
                Some((ip.next_header().into(), ip.src_addr().into(), ip.dst_addr().into(), rest))
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(packet).ok()?;
                let (mut next, mut rest) = (ip.next_header(), ip.payload());
                let mut place = None;
                while place.is_none_or(|(_, offset, _)| offset == 0) {
                    let len = match next {
                        IpProtocol::HopByHop | IpProtocol::Ipv6Opts => {
                            let header = Ipv6ExtHeader::new_checked(rest).ok()?;
                            (usize::from(header.header_len()) + 1) * 8
                        }
                        IpProtocol::Ipv6Frag => {
                            let header = Ipv6FragmentHeader::new_checked(rest.get(2..)?).ok()?;
                            let (offset, more) = (header.frag_offset() * 8, header.more_frags());
                            place = (offset > 0 || more).then_some((header.ident(), offset, more));
                            8
                        }
                        _ => break,
                    };
                    (next, rest) = (rest[0].into(), &rest[len..]);
                }
                let rest = match place {
                    None => ports(next, rest)?,
                    Some((id, offset, more)) => Rest::Place(id, offset, more),
                };
                Some((next.into(), ip.src_addr().into(), ip.dst_addr().into(), rest))
            }
            EthernetProtocol::Unknown(_) => None,
        }
    }

    fn ports(protocol: IpProtocol, payload: &[u8]) -> Option<Rest> {
        let (from, to) = match protocol {
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(payload).ok()?;
                (tcp.src_port(), tcp.dst_port())
            }
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(payload).ok()?;
                (udp.src_port(), udp.dst_port())
            }
            _ => (0, 0),
        };
        Some(Rest::Ports(from, to))
    }

    /// The same of ours, where smoltcp has an opinion: its ports are those of TCP and UDP.
    pub(super) fn ours(headers: &Headers) -> Tuple {
        let key = &headers.key;
        let rest = match (headers.fragment, key.ether_type, key.protocol) {
            (Some(Fragment { id, offset, more, .. }), ..) => Rest::Place(id, offset, more),
            (_, ether_type::IPV4 | ether_type::IPV6, protocol::TCP | protocol::UDP) => {
                Rest::Ports(key.src_port, key.dst_port)
            }
            _ => Rest::Ports(0, 0),
        };
        (key.protocol, key.src_addr(), key.dst_addr(), rest)
    }
}

fn valid_frames() -> impl Strategy<Value = Vec<u8>> {
    let mut frames: Vec<_> = one_of_each().into_iter().map(|(_, frame)| frame).collect();
    frames.push(with_options(&[148, 4, 0, 0]));
    frames.push(with_chain(0, &[padding(60), padding(17)].concat()));
    for ends in [ENDS, ENDS_V6] {
        let datagram = build::udp(ends, 1000, 53, &[0; 64]);
        frames.extend([0..16, 16..48, 48..72].map(|part| build::fragment(&datagram, 7, part)));
    }
    frames.push(with_chain(44, &[17, 0, 0, 0, 0, 0, 0, 1]));
    let tags = prop_oneof![Just(&[][..]), Just(&[10][..]), Just(&[10, 20][..])];
    (proptest::sample::select(frames), tags).prop_map(|(frame, tags)| build::tagged(frame, tags))
}

/// Valid frames with a few bytes replaced, mostly in their headers, the IPv4 checksum put right
/// again so that the damage is looked at.
fn mutated_frames() -> impl Strategy<Value = Vec<u8>> {
    let mutations = proptest::collection::vec((0usize..90, any::<u8>()), 1..5);
    (valid_frames(), mutations).prop_map(|(mut frame, mutations)| {
        for (at, value) in mutations {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        let header_len = frame.get(14).map_or(0, |byte| usize::from(byte & 0x0f) * 4);
        let is_v4 = frame.get(12..14) == Some(&[0x08, 0x00]);
        if is_v4 && header_len >= 20 && frame.len() >= 14 + header_len {
            resum(frame)
        } else {
            frame
        }
    })
}

fn check_invariants(frame: &[u8]) -> Result<(), TestCaseError> {
    let Ok(headers) = extract(frame, PORT) else { return Ok(()) };
    let (l3, l4, end) = (headers.l3, headers.l4, headers.end);
    prop_assert!(l3 <= l4 && l4 <= end && usize::from(end) <= frame.len(), "{headers:?}");
    prop_assert_eq!(l3, 14 + 4 * u16::from(headers.vlan_tags));
    prop_assert_eq!(headers.key.ingress, PORT);
    let ours = (headers.kind != Kind::NonIp).then(|| second_opinion::ours(&headers));
    prop_assert_eq!(ours, second_opinion::tuple(frame));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_never_panic(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        check_invariants(&frame)?;
    }

    #[test]
    fn mutated_frames_never_panic_and_smoltcp_agrees(frame in mutated_frames()) {
        check_invariants(&frame)?;
    }

    /// The lengths in its headers tell that a frame is cut.
    #[test]
    fn cut_frames_are_refused(frame in valid_frames(), len in any::<proptest::sample::Index>()) {
        let end = usize::from(headers(&frame).end);
        let len = len.index(end);
        prop_assert!(extract(&frame[..len], PORT).is_err(), "{} of {} bytes", len, end);
    }

    #[test]
    fn padding_changes_nothing(frame in valid_frames(), padding in 0usize..64) {
        let mut padded = frame.clone();
        padded.resize(frame.len() + padding, 0xee);
        prop_assert_eq!(extract(&padded, PORT), extract(&frame, PORT));
    }
}
