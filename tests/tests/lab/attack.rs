//! What a workload may try with raw sockets that has no part in a conversation of others, on every lane: to be
//! somebody else, to end or redirect what goes on, and to slip past with frames that switches treat in ways of
//! their own. Nothing of it arrives, each frame is counted once under its reason, and the conversation goes on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::wire::ethernet::ether_type;
use firedoor_classifier::{DropReason, MacAddr};

use crate::fixture::{v4, v6};
use crate::parity::{FROM, Odd, TO, fare, set_checksum};
use crate::{Shown, Test};

pub(crate) const TESTS: &[Test] =
    &[("who_has_no_part_in_a_conversation_can_do_nothing_to_it", &[], attack)];

fn attack() -> Shown {
    fare("c", attempts)
}

/// What `c` sends, whom policy allows nothing.
fn attempts(macs: [MacAddr; 3], payload: &[u8]) -> Vec<Odd> {
    [identities(macs, payload), neighbours(macs), tags(macs, payload), odd_frames(macs, payload)]
        .concat()
}

/// Ends of a frame between two of the three, by their numbers.
fn ends(macs: [MacAddr; 3], from: u16, to: u16) -> Ends {
    let mac = |number: u16| macs[usize::from(number) - 1];
    Ends { eth_src: mac(from), eth_dst: mac(to), src: v4(from), dst: v4(to) }
}

fn address_v4(number: u16) -> Ipv4Addr {
    let IpAddr::V4(address) = v4(number) else { unreachable!("it is of IPv4") };
    address
}

fn address_v6(number: u16) -> Ipv6Addr {
    let IpAddr::V6(address) = v6(number) else { unreachable!("it is of IPv6") };
    address
}

fn dropped(what: &'static str, why: DropReason, frame: Vec<u8>) -> Odd {
    (what, Err(why), vec![frame])
}

/// Of somebody else's, or about it.
fn identities(macs: [MacAddr; 3], payload: &[u8]) -> Vec<Odd> {
    use DropReason as Why;
    let [_, _, c] = macs;
    let (its, own) = (ends(macs, 1, 2), ends(macs, 3, 2));
    let disguised = Ends { eth_src: c, ..its };
    let udp = |ends| build::udp(ends, FROM, TO, payload);
    let tcp = |ends, flags| build::tcp(ends, FROM, TO, flags);
    let quoted = |ends: Ends| build::udp(ends, FROM, TO, payload)[14..].to_vec();
    vec![
        dropped("the other's frame", Why::SpoofedMac, udp(its)),
        dropped("with its own MAC address", Why::SpoofedIp, udp(disguised)),
        dropped(
            "with the other's MAC address",
            Why::SpoofedMac,
            udp(Ends { eth_src: its.eth_src, ..own }),
        ),
        dropped(
            "with a group's MAC address",
            Why::SourceInvalid,
            udp(Ends { eth_src: MacAddr([0x03; 6]), ..own }),
        ),
        dropped("a reset of the other's", Why::SpoofedIp, tcp(disguised, TcpFlags::RST)),
        dropped(
            "data and an end of the other's",
            Why::SpoofedIp,
            tcp(disguised, TcpFlags::FIN | TcpFlags::ACK),
        ),
        dropped(
            "an answer in the other's name",
            Why::SpoofedIp,
            tcp(Ends { src: v4(2), ..ends(macs, 3, 1) }, TcpFlags::SYN | TcpFlags::ACK),
        ),
        dropped("a SYN of its own", Why::DefaultDeny, tcp(own, TcpFlags::SYN)),
        dropped("a RST of its own", Why::DefaultDeny, tcp(own, TcpFlags::RST)),
        dropped(
            "an error about the conversation",
            Why::IcmpUnrelated,
            build::icmp_error(ends(macs, 3, 1), 3, 3, &quoted(its)),
        ),
        dropped(
            "that its frames are too big",
            Why::IcmpUnrelated,
            build::icmp_error(ends(macs, 3, 1), 3, 4, &quoted(its)),
        ),
        dropped(
            "that there is a better way",
            Why::RogueRouter,
            build::icmp_error(ends(macs, 3, 1), 5, 1, &quoted(its)),
        ),
        dropped(
            "from this very host",
            Why::SourceInvalid,
            udp(Ends { src: Ipv4Addr::LOCALHOST.into(), ..own }),
        ),
        dropped(
            "from a group",
            Why::SourceInvalid,
            udp(Ends { src: Ipv4Addr::new(239, 1, 1, 1).into(), ..own }),
        ),
        dropped("an address within another", Why::DefaultDeny, build::ip(own, 4, &quoted(its))),
    ]
}

/// About who is where.
fn neighbours(macs: [MacAddr; 3]) -> Vec<Odd> {
    use DropReason as Why;
    let [a, b, c] = macs;
    let [one, two, three] = [1, 2, 3].map(address_v4);
    let to_a = Ends { src: v6(2), dst: v6(1), ..ends(macs, 3, 1) };
    let to_all =
        Ends { eth_dst: build::group_mac(ALL_NODES), src: v6(2), dst: ALL_NODES.into(), ..to_a };
    vec![
        dropped(
            "that the other's address is here",
            Why::SpoofedArp,
            build::arp_reply(c, two, a, one),
        ),
        dropped("that its address is there", Why::SpoofedMac, build::arp_reply(b, three, a, one)),
        dropped("who asks in the other's name", Why::SpoofedArp, build::arp_request(c, two, one)),
        dropped(
            "an advertisement of the other's",
            Why::SpoofedNd,
            build::neighbor_advertisement(to_a, address_v6(2)),
        ),
        dropped(
            "likewise to all",
            Why::SpoofedNd,
            build::neighbor_advertisement(to_all, address_v6(2)),
        ),
        dropped(
            "likewise from itself",
            Why::SpoofedNd,
            build::neighbor_advertisement(Ends { src: v6(3), ..to_a }, address_v6(2)),
        ),
        dropped(
            "a solicitation of the other's",
            Why::SpoofedNd,
            build::neighbor_solicitation(c, address_v6(2), address_v6(1)),
        ),
        dropped(
            "that it is the router",
            Why::RogueRouter,
            build::router_advertisement(c, link_local(c)),
        ),
        dropped("that it gives addresses", Why::RogueDhcp, build::dhcp_offer(ends(macs, 3, 1), a)),
    ]
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// By EUI-64 (RFC 4291, appendix A).
fn link_local(MacAddr([a, b, c, d, e, f]): MacAddr) -> Ipv6Addr {
    let words = [[a ^ 2, b], [c, 0xff], [0xfe, d], [e, f]].map(u16::from_be_bytes);
    let [a, b, c, d] = words;
    Ipv6Addr::new(0xfe80, 0, 0, 0, a, b, c, d)
}

/// Under tags that nobody gave it.
fn tags(macs: [MacAddr; 3], payload: &[u8]) -> Vec<Odd> {
    use DropReason as Why;
    let its = build::udp(ends(macs, 1, 2), FROM, TO, payload);
    let own = build::udp(ends(macs, 3, 2), FROM, TO, payload);
    let tagged = |frame: &Vec<u8>, tags: &[u16]| build::tagged(frame.clone(), tags);
    const PRIORITY: u16 = 7 << 13;
    vec![
        dropped("a frame with a priority", Why::DefaultDeny, tagged(&own, &[PRIORITY])),
        dropped("the other's with a priority", Why::SpoofedMac, tagged(&its, &[PRIORITY])),
        dropped("in another VLAN", Why::VlanNotAllowed, tagged(&own, &[1])),
        dropped("under the tag of a port", Why::VlanNotAllowed, tagged(&its, &[PRIORITY | 1])),
        dropped("with two priorities", Why::VlanNotAllowed, tagged(&own, &[PRIORITY, PRIORITY])),
        dropped("with three tags", Why::UnknownEtherType, tagged(&own, &[1, 2, 3])),
        dropped("with the reserved tag", Why::VlanNotAllowed, tagged(&own, &[0xfff])),
    ]
}

/// What switches treat in ways of their own.
fn odd_frames(macs: [MacAddr; 3], payload: &[u8]) -> Vec<Odd> {
    use DropReason as Why;
    let [_, b, c] = macs;
    let own = ends(macs, 3, 2);
    let to = |eth_dst, ether_type| build::ethernet(c, eth_dst, ether_type, payload);
    let reserved = |last| MacAddr([0x01, 0x80, 0xc2, 0, 0, last]);
    const LLC: u16 = 40;
    let mut routed = build::udp(own, FROM, TO, payload);
    // Loose source routing by way of nobody (RFC 791).
    routed.splice(34..34, [131, 7, 4, 10, 40, 0, 1, 0]);
    routed[14] = 0x47;
    routed[17] += 8;
    set_checksum(&mut routed);
    let own_v6 = Ends { src: v6(3), dst: v6(2), ..own };
    let mut jumbo = build::udp(own_v6, FROM, TO, payload);
    // A payload of 0 bytes, and of 65,536 in a hop-by-hop option (RFC 2675).
    jumbo.splice(54..54, [17, 0, 0xc2, 4, 0, 1, 0, 0]);
    jumbo[18..21].copy_from_slice(&[0, 0, 0]);
    vec![
        dropped("a spanning tree", Why::BridgeReserved, to(reserved(0), LLC)),
        dropped("a pause", Why::BridgeReserved, to(reserved(1), 0x8808)),
        dropped("an aggregate of links", Why::BridgeReserved, to(reserved(2), 0x8809)),
        dropped("who it claims to be", Why::BridgeReserved, to(reserved(3), 0x888e)),
        dropped("what it is next to", Why::BridgeReserved, to(reserved(0xe), 0x88cc)),
        dropped("the same to one", Why::UnknownEtherType, to(b, 0x88cc)),
        dropped(
            "what time it is",
            Why::UnknownEtherType,
            to(MacAddr([0x01, 0x1b, 0x19, 0, 0, 0]), 0x88f7),
        ),
        dropped("secrets", Why::UnknownEtherType, to(b, 0x88e5)),
        dropped("no type but a length", Why::UnknownEtherType, to(b, LLC)),
        dropped("MPLS", Why::UnknownEtherType, to(b, 0x8847)),
        dropped("PPPoE", Why::UnknownEtherType, to(b, 0x8864)),
        dropped(
            "half an ARP message",
            Why::ArpMalformed,
            build::ethernet(c, b, ether_type::ARP, &[0, 1, 8]),
        ),
        dropped("by a route of its own", Why::Ipv4SourceRoute, routed),
        dropped("a jumbogram", Why::Ipv6Malformed, jumbo),
        dropped(
            "to a group",
            Why::DefaultDeny,
            build::udp(
                Ends {
                    eth_dst: MacAddr([0x01, 0, 0x5e, 1, 1, 1]),
                    dst: Ipv4Addr::new(239, 1, 1, 1).into(),
                    ..own
                },
                FROM,
                TO,
                payload,
            ),
        ),
        dropped(
            "to everybody",
            Why::DefaultDeny,
            build::udp(
                Ends { eth_dst: MacAddr::BROADCAST, dst: Ipv4Addr::BROADCAST.into(), ..own },
                FROM,
                TO,
                payload,
            ),
        ),
        dropped(
            "to one, by a group's MAC address",
            Why::DefaultDeny,
            build::udp(Ends { eth_dst: MacAddr::BROADCAST, ..own }, FROM, TO, payload),
        ),
    ]
}
