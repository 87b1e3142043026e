//! Every drop reason can happen over the whole path, alone, and is counted.

#![allow(clippy::unwrap_used, reason = "test data")]

mod common;

use common::*;
use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::snapshot::Workload;
use firedoor_classifier::{DropReason, MacAddr};
use firedoor_dataplane::port::memory::MemoryPort;
use firedoor_tests::fabric::{Fabric, snapshot};

/// A reason without a provocation fails the test.
#[test]
fn every_drop_reason_can_happen_and_is_counted() {
    let (frames, scenes) = (frames(), scenes());
    // The kernel counts these; the tests of the express lane show them.
    let of_kernel = [DropReason::LaneChange, DropReason::LaneFull, DropReason::LaneShut];
    for reason in DropReason::ALL.iter().filter(|reason| !of_kernel.contains(reason)) {
        let known =
            frames.iter().any(|(r, _)| r == reason) || scenes.iter().any(|(r, _)| r == reason);
        assert!(known, "no provocation for {}", reason.slug());
    }
    for (reason, frame) in frames {
        let mut fabric = switch(CONFIG);
        fabric.send("web", &frame);
        assert_eq!(fabric.drops(), [(reason, 1)], "{}", reason.slug());
        fabric.finish();
    }
    for (reason, scene) in scenes {
        assert!(scene() > 0, "{} was not counted", reason.slug());
    }
}

/// One frame from web, each dropped for its reason and no other.
fn frames() -> Vec<(DropReason, Vec<u8>)> {
    use DropReason as R;
    let (four, six) = (ends(WEB, API), ends(WEB_SIX, API_SIX));
    let good = syn(WEB, API, 8080);
    let good_six = build::tcp(six, 40_000, 8080, TcpFlags::SYN);
    let ip = |text: &str| text.parse().unwrap();
    let bad_hop_limit = {
        let mut frame = solicit("fd00::1", "fd00::3");
        frame[14 + 7] = 64;
        frame
    };
    vec![
        (R::FrameTruncated, vec![0; 13]),
        (
            R::ArpMalformed,
            build::arp_request(mac(1), ip("10.0.0.1"), ip("10.0.0.3"))[..20].to_vec(),
        ),
        (R::Ipv4Malformed, good[..30].to_vec()),
        (R::Ipv6Malformed, good_six[..40].to_vec()),
        (R::TcpMalformed, build::tcp(four, 40_000, 8080, TcpFlags::SYN | TcpFlags::FIN)),
        (R::UdpMalformed, build::ip(four, 17, &[0, 53, 0, 53, 0, 4, 0, 0])),
        (R::SctpMalformed, build::ip(four, 132, &[0; 8])),
        (R::IcmpMalformed, build::ip(four, 1, &[8, 0])),
        (R::NdMalformed, bad_hop_limit),
        (R::SourceInvalid, syn((1, "224.0.0.1"), API, 8080)),
        (R::UnknownEtherType, build::ethernet(mac(1), mac(2), 0x88cc, &[0; 46])),
        (R::FragmentTiny, build::fragment(&good, 1, 8..16)),
        (R::FragmentTooLong, long_fragment(four)),
        (R::Ipv4SourceRoute, source_routed(four)),
        (R::Ipv6Extension, build::ip(six, 43, &[6, 0, 0, 0, 0, 0, 0, 0])),
        (R::VlanNotAllowed, build::tagged(good.clone(), &[5])),
        (R::SpoofedMac, syn((3, "10.0.0.1"), API, 8080)),
        (R::SpoofedIp, syn((1, "10.0.0.3"), API, 8080)),
        (R::SpoofedArp, build::arp_request(mac(1), ip("10.0.0.3"), ip("10.0.0.2"))),
        (R::SpoofedNd, build::neighbor_advertisement(six, "fd00::3".parse().unwrap())),
        (R::RogueRouter, build::router_advertisement(mac(1), link_local(1))),
        (R::RogueDhcp, build::dhcp_offer(four, mac(2))),
        (R::Denied, syn(WEB, DB, 22)),
        (R::Rejected, syn(WEB, DB, 5432)),
        (R::DefaultDeny, syn(WEB, DB, 80)),
        (R::TcpNotSyn, build::tcp(four, 40_000, 8080, TcpFlags::ACK)),
        (
            R::IcmpUnrelated,
            build::icmp_error(four, 3, 1, &build::udp(four.reversed(), 1, 53, b"")[14..]),
        ),
        (R::UnknownDestination, syn(WEB, (9, "10.0.0.9"), 80)),
        (R::AddressMismatch, syn(WEB, (2, "10.0.0.3"), 8080)),
        (R::NoReceiver, build::router_solicitation(mac(1), link_local(1))),
        (
            R::BridgeReserved,
            build::ethernet(mac(1), MacAddr([1, 0x80, 0xc2, 0, 0, 0]), 0x0800, &good[14..]),
        ),
    ]
}

/// What takes more than one frame. Each returns how often its reason was counted.
fn scenes() -> Vec<(DropReason, fn() -> u64)> {
    vec![
        (DropReason::Hairpin, a_frame_to_oneself),
        (DropReason::TcpState, a_reset_out_of_sequence),
        (DropReason::TcpWindow, data_out_of_the_window),
        (DropReason::PortDown, a_port_that_is_not_there),
        (DropReason::TooBig, a_frame_above_the_mtu),
        (DropReason::NoPolicy, a_port_without_a_workload),
        (DropReason::ConnectionsFull, more_connections_than_fit),
        (DropReason::PortConnectionsFull, more_connections_than_a_port_may_have),
        (DropReason::UpcallLimit, more_questions_than_the_port_may_ask),
        (DropReason::NoFrame, a_copy_without_a_free_frame),
        (DropReason::TxFull, a_receiver_that_does_not_take),
        (DropReason::HandoffFull, a_worker_that_does_not_take),
        (DropReason::FragmentOverlap, fragments_that_overlap),
        (DropReason::FragmentExpired, a_fragment_whose_first_never_comes),
        (DropReason::FragmentsFull, more_waiting_fragments_than_may),
    ]
}

/// Ends the switch and returns how often `reason` was counted.
fn counted(fabric: Fabric, reason: DropReason) -> u64 {
    let count = fabric.count(|counters| counters.drops(reason));
    fabric.finish();
    count
}

/// Policy speaks first, so it takes a rule that allows the conversation.
fn a_frame_to_oneself() -> u64 {
    let open = CONFIG.replace("to = { tier = \"api\" }", "to = { tier = \"web\" }");
    let mut fabric = switch(&open);
    fabric.send("web", &syn(WEB, WEB, 8080));
    counted(fabric, DropReason::Hairpin)
}

fn a_reset_out_of_sequence() -> u64 {
    let mut fabric = switch(CONFIG);
    handshake(&mut fabric);
    fabric.send("web", &segment(ends(WEB, API), (40_000, 8080), TcpFlags::RST, 0x8000_0000, 0));
    counted(fabric, DropReason::TcpState)
}

fn data_out_of_the_window() -> u64 {
    let mut strict = snapshot(CONFIG);
    strict.settings.tcp_window_check = true;
    let mut fabric = Fabric::of(strict);
    handshake(&mut fabric);
    fabric.send("web", &segment(ends(WEB, API), (40_000, 8080), TcpFlags::ACK, 0x4000_0000, 1));
    counted(fabric, DropReason::TcpWindow)
}

fn a_port_that_is_not_there() -> u64 {
    let shape = |workload: &Workload, port| (workload.name != "api").then_some(port);
    let mut fabric = Fabric::with_ports(snapshot(CONFIG), shape);
    fabric.send("web", &syn(WEB, API, 8080));
    counted(fabric, DropReason::PortDown)
}

fn a_frame_above_the_mtu() -> u64 {
    let shape = |_: &Workload, port: MemoryPort| Some(port.with_max_frame(1514));
    let mut fabric = Fabric::with_ports(snapshot(CONFIG), shape);
    fabric.send("web", &build::udp(ends(WEB, API), 1, 53, &[0; 1600]));
    counted(fabric, DropReason::TooBig)
}

fn a_port_without_a_workload() -> u64 {
    let mut fabric = switch(CONFIG);
    let mut without = snapshot(CONFIG);
    without.epoch += 1;
    without.workloads.retain(|workload| workload.name != "web");
    fabric.install(without);
    fabric.send("web", &syn(WEB, API, 8080));
    counted(fabric, DropReason::NoPolicy)
}

/// Established connections are not evicted for new ones.
fn more_connections_than_fit() -> u64 {
    let mut small = snapshot(CONFIG);
    small.settings.max_connections = 4;
    let mut fabric = Fabric::of(small);
    (50_000..50_005).for_each(|port| handshake_from(&mut fabric, port, true));
    counted(fabric, DropReason::ConnectionsFull)
}

/// Address resolution is judged frame by frame, by upcall.
fn more_questions_than_the_port_may_ask() -> u64 {
    let mut strict = snapshot(CONFIG);
    strict.settings.upcalls_per_sec = 1;
    let mut fabric = Fabric::of(strict);
    let (web, api) = (WEB.1.parse().unwrap(), API.1.parse().unwrap());
    for _ in 0..100 {
        fabric.send("web", &build::arp_request(mac(1), web, api));
    }
    counted(fabric, DropReason::UpcallLimit)
}

/// There is room for others.
fn more_connections_than_a_port_may_have() -> u64 {
    let mut small = snapshot(CONFIG);
    small.settings.max_connections_per_port = 4;
    let mut fabric = Fabric::of(small);
    (50_000..50_005).for_each(|port| handshake_from(&mut fabric, port, true));
    counted(fabric, DropReason::PortConnectionsFull)
}

fn a_copy_without_a_free_frame() -> u64 {
    let open = CONFIG.replace("to = { tier = \"api\" }", "to = { any = true }");
    let mut small = snapshot(&open);
    small.settings.frames = 1;
    let mut fabric = Fabric::of(small);
    fabric.send("web", &build::udp(multicast(), 5_000, 53, b"two receivers, one frame"));
    counted(fabric, DropReason::NoFrame)
}

fn a_receiver_that_does_not_take() -> u64 {
    let shape = |_: &Workload, port: MemoryPort| Some(port.with_depth(1));
    let mut fabric = Fabric::with_ports(snapshot(CONFIG), shape);
    for _ in 0..1100 {
        fabric.wire("web").send(build::udp(ends(WEB, API), 1, 53, b""));
    }
    fabric.settle();
    counted(fabric, DropReason::TxFull)
}

/// Two workers, of which only one turns: its neighbour's doorstep fills up.
fn a_worker_that_does_not_take() -> u64 {
    let large = CONFIG.replace("frames = 4096", "frames = 16384");
    let mut fabric = Fabric::with_workers(&large, 2);
    let web = snapshot(CONFIG).workloads[0].port.0 as usize % 2;
    for port in 0..12_000 {
        fabric.wire("web").send(build::udp(ends(WEB, API), port, 53, b""));
        fabric.turn(web);
    }
    counted(fabric, DropReason::HandoffFull)
}

/// The first fragment has passed when the second one begins within it.
fn fragments_that_overlap() -> u64 {
    let mut fabric = switch(CONFIG);
    let whole = build::udp(ends(WEB, API), 1, 53, &[0; 64]);
    assert_eq!(fabric.send("web", &build::fragment(&whole, 1, 0..32)).len(), 1);
    assert_eq!(fabric.send("web", &build::fragment(&whole, 1, 24..72)), []);
    counted(fabric, DropReason::FragmentOverlap)
}

fn a_fragment_whose_first_never_comes() -> u64 {
    let mut fabric = switch(CONFIG);
    let whole = build::udp(ends(WEB, API), 1, 53, &[0; 64]);
    fabric.send("web", &build::fragment(&whole, 1, 32..72));
    assert_eq!(fabric.drops(), [], "it waits");
    fabric.wait(30);
    counted(fabric, DropReason::FragmentExpired)
}

fn more_waiting_fragments_than_may() -> u64 {
    let mut small = snapshot(CONFIG);
    small.settings.max_fragments = 8;
    let mut fabric = Fabric::of(small);
    let whole = build::udp(ends(WEB, API), 1, 53, &[0; 64]);
    for id in 0..3 {
        fabric.send("web", &build::fragment(&whole, id, 32..72));
    }
    counted(fabric, DropReason::FragmentsFull)
}

fn long_fragment(ends: Ends) -> Vec<u8> {
    let mut frame = build::udp(ends, 1, 53, &[0; 64]);
    frame[20..22].copy_from_slice(&[0x1f, 0xff]);
    rechecksum(&mut frame);
    frame
}

fn source_routed(ends: Ends) -> Vec<u8> {
    let plain = build::udp(ends, 1, 53, b"");
    let (ethernet, packet) = plain.split_at(14);
    let options = [131, 7, 4, 10, 0, 0, 9, 0];
    let mut frame = [ethernet, &packet[..20], &options, &packet[20..]].concat();
    frame[14] = 0x47;
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    rechecksum(&mut frame);
    frame
}

/// Writes a right IPv4 header checksum, by the definition of RFC 791.
fn rechecksum(frame: &mut [u8]) {
    let len = usize::from(frame[14] & 0xf) * 4;
    frame[24..26].fill(0);
    let words = frame[14..14 + len].chunks(2);
    let mut sum: u32 = words.map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
