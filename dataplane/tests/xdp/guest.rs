//! Virtual machines on the express lane: a guest that has negotiated offloads hands over segments of
//! 64 KB, and they stay whole. The tests hold the taps as a virtual machine monitor does.

mod kinds;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener};

use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::extract::extract;
use firedoor_classifier::wire::tcp;
use firedoor_classifier::{MacAddr, PortId};
use firedoor_dataplane::express::{FlowId, FlowVerdict, Lane, Slot, egress_of};
use firedoor_dataplane::frame::Frame;
use firedoor_dataplane::link::{Link, Netlink};
use firedoor_dataplane::port::Port;
use firedoor_dataplane::sys::tap;
use libtest_mimic::Failed;

use crate::Test;
use crate::express::{OPEN, open};
use crate::host::{self, Host, Workload};

pub(crate) const TESTS: [(&str, Test); 7] = [
    ("express_large_segments_of_a_guest_reach_another_whole", to_guest),
    ("express_large_segments_of_a_guest_reach_a_containers_tcp", to_container),
    ("express_a_checksum_that_is_asked_for_elsewhere_changes_nothing", misplaced_checksum),
    ("express_a_packet_in_thousands_of_pieces_leaves_room_for_other_ports", pieces),
    ("express_a_packet_in_hundreds_of_pieces_takes_the_long_way_whole", hundreds),
    ("express_packets_of_every_kind_arrive_whole_or_cut", kinds::arrive),
    ("express_what_is_said_of_a_packet_changes_nothing_that_was_judged", kinds::lies),
];

const PORTS: [u16; 2] = [40_000, 7000];
/// Bytes that are sent at once, and in each segment.
const LENGTH: usize = 60_000;
const SEGMENT: u16 = 1448;
/// Bytes of a `struct virtio_net_hdr` (linux/virtio_net.h), and where TCP's header begins behind
/// Ethernet and IPv4.
const HEADER: usize = 10;
const TRANSPORT: u16 = 34;

/// What a guest says of a large TCP segment: checksum to be completed, TSO over IPv4, bytes of headers
/// and of each segment, where the checksum begins and where in that it stands.
fn header() -> [u8; HEADER] {
    header_of([1, 1], [54, SEGMENT, TRANSPORT, 16])
}

/// Of flags and type of segmentation, and of the rest.
fn header_of([flags, segmentation]: [u8; 2], numbers: [u16; 4]) -> [u8; HEADER] {
    let mut header = [flags, segmentation, 0, 0, 0, 0, 0, 0, 0, 0];
    for (place, number) in header[2..].chunks_exact_mut(2).zip(numbers) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
    header
}

fn guest() -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, 1])
}

fn ends(eth_dst: MacAddr) -> Ends {
    let [src, dst] = [[10, 99, 0, 1], [10, 99, 0, 2]].map(IpAddr::from);
    Ends { eth_src: guest(), eth_dst, src, dst }
}

fn segment(
    ends: Ends,
    flags: TcpFlags,
    sequence: u32,
    acknowledgement: u32,
    data: &[u8],
) -> Vec<u8> {
    let [source_port, destination_port] = PORTS;
    let header = tcp::Repr {
        source_port,
        destination_port,
        sequence,
        acknowledgement,
        flags,
        window: 64_240,
    };
    build::tcp_segment(ends, header, data)
}

/// Writes a frame as a guest does.
fn send(guest: &mut File, header: [u8; HEADER], frame: &[u8]) -> Result<(), Failed> {
    let whole = [&header[..], frame].concat();
    assert_eq!(guest.write(&whole)?, whole.len());
    Ok(())
}

/// What a guest says of a frame whose checksum is to be completed: over what begins at `start`, in the two
/// bytes at `offset` from there.
fn asks_for_checksum(start: u16, offset: u16) -> [u8; HEADER] {
    header_of([1, 0], [0, 0, start, offset])
}

/// The next frame that is of TCP over IPv4, and the `header` bytes before it.
fn receive(guest: &mut File, header: usize) -> Result<Vec<u8>, Failed> {
    let mut buffer = vec![0; 1 << 17];
    let mut found = None;
    host::wait_for(|| {
        while found.is_none() {
            match guest.read(&mut buffer) {
                Ok(len) => found = Some(buffer[..len].to_vec()).filter(|it| is_tcp(&it[header..])),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    return false;
                }
            }
        }
        true
    })?;
    Ok(found.ok_or("nothing came")?)
}

fn is_tcp(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&6)
}

fn lane() -> Result<Lane, Failed> {
    let lane = Lane::load(64, None)?;
    lane.set_epoch(1);
    lane.keep_open(OPEN);
    Ok(lane)
}

/// The kernel's verdict of frames with these addresses: to that port.
fn verdict_to(to: &Link, ends: Ends) -> FlowVerdict {
    FlowVerdict {
        eth_dst: ends.eth_dst.0,
        eth_src: ends.eth_src.0,
        egress: egress_of(to),
        max_frame: to.mtu as u16 + 14,
        rule: 0,
        epoch: 1,
        is_reply: false,
        tcp_flags: 2,
    }
}

/// Gives the kernel the verdict on what the guest sends.
fn install(lane: &Lane, ends: Ends, from: &Link, to: &Link) -> Result<Slot, Failed> {
    let [src_port, dst_port] = PORTS;
    let id = FlowId::new(from.index, 6, (ends.src, src_port), (ends.dst, dst_port));
    let slot = lane.flows().install(&id, &verdict_to(to, ends))?;
    lane.let_go();
    Ok(slot)
}

fn data() -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 251) as u8).collect()
}

fn assert_counted(lane: &Lane, slot: Slot) {
    let frames = LENGTH.div_ceil(SEGMENT.into()) as u64;
    assert_eq!(u64::from(lane.flows().progress(slot).unwrap_or_default().frames), frames);
}

fn to_guest(host: &mut Host) -> Result<(), Failed> {
    let lane = lane()?;
    let mut guests = [tap::open_offloading("fd1")?, tap::open_offloading("fd2")?];
    let (one, from) = open(host, &lane, 1, "fd1")?;
    let (two, to) = open(host, &lane, 2, "fd2")?;
    let ends = ends(MacAddr([2, 0, 0, 0, 0, 2]));
    let slot = install(&lane, ends, &from, &to)?;
    let frame = build::partial(segment(ends, TcpFlags::ACK, 1, 1, &data()));
    send(&mut guests[0], header(), &frame)?;
    let came = receive(&mut guests[1], HEADER)?;
    assert_eq!(came[HEADER..], frame[..], "whole, its checksum still to be completed");
    assert_eq!(came[..2], [1, 1], "and with what segments it");
    assert_eq!(came[4..6], SEGMENT.to_ne_bytes());
    assert_counted(&lane, slot);
    [one, two].into_iter().for_each(|port| Box::new(port).close(&mut host.pool));
    host.assert_conserved();
    Ok(())
}

/// The handshake takes the long way, as it does in a switch.
fn to_container(host: &mut Host) -> Result<(), Failed> {
    let workload = Workload::new("10.99.0.2", "fd2", 1)?;
    let lane = lane()?;
    let mut guest_tap = tap::open_offloading("fd1")?;
    let (mut one, from) = open(host, &lane, 1, "fd1")?;
    let (mut two, to) = open(host, &lane, 2, "fd2")?;
    let mac = workload.inside(|| Ok(MacAddr(Netlink::open()?.link("fd0")?.mac)))?;
    let listener = workload.inside(|| Ok(TcpListener::bind((workload.address, PORTS[1]))?))?;
    let ends = ends(mac);
    let (IpAddr::V4(sender), IpAddr::V4(target)) = (ends.src, ends.dst) else {
        return Err("the addresses are of IPv4".into());
    };
    // So the container knows whom it answers.
    let question = build::arp_request(guest(), sender, target);
    for frame in [question, segment(ends, TcpFlags::SYN, 1, 0, b"")] {
        send(&mut guest_tap, [0; HEADER], &frame)?;
        cross(host, &mut one, &mut two)?;
    }
    let answer = loop {
        cross(host, &mut two, &mut one)?;
        let came = receive(&mut guest_tap, HEADER)?;
        if came.get(HEADER + 47) == Some(&(TcpFlags::SYN | TcpFlags::ACK).bits()) {
            break came;
        }
    };
    let theirs = u32::from_be_bytes(*answer[HEADER + 38..].first_chunk().ok_or("too short")?);
    let slot = install(&lane, ends, &from, &to)?;
    let frame = build::partial(segment(ends, TcpFlags::ACK, 2, theirs.wrapping_add(1), &data()));
    send(&mut guest_tap, header(), &frame)?;
    let (mut connection, _) = listener.accept()?;
    let mut came = vec![0; LENGTH];
    connection.read_exact(&mut came)?;
    assert!(came == data(), "what came is not what was sent");
    assert_counted(&lane, slot);
    [one, two].into_iter().for_each(|port| Box::new(port).close(&mut host.pool));
    host.assert_conserved();
    Ok(())
}

/// The other guest takes no partial checksums, so its kernel writes them where the sender's note says: that may
/// be into a port, an address or the flags, after the verdict was found by what stood there.
fn misplaced_checksum(host: &mut Host) -> Result<(), Failed> {
    /// Where TCP's checksum is in its header, and its destination port and flags in the frame.
    const CHECKSUM: u16 = 16;
    const PORT: u16 = TRANSPORT + 2;
    const FLAGS: u16 = TRANSPORT + 12;
    let lane = lane()?;
    let (mut one_guest, mut other_guest) = (tap::open_offloading("fd1")?, tap::open("fd2")?);
    let (mut one, from) = open(host, &lane, 1, "fd1")?;
    let (two, to) = open(host, &lane, 2, "fd2")?;
    let ends = ends(MacAddr([2, 0, 0, 0, 0, 2]));
    install(&lane, ends, &from, &to)?;
    let whole = segment(ends, TcpFlags::ACK, 1, 1, b"judge me by my port");
    let partial = build::partial(whole.clone());
    for (place, frame) in [(PORT, &partial), (FLAGS, &whole)] {
        send(&mut one_guest, asks_for_checksum(20, place - 20), frame)?;
    }
    send(&mut one_guest, asks_for_checksum(TRANSPORT, CHECKSUM), &partial)?;
    send(&mut one_guest, [0; HEADER], &whole)?;
    for _ in 0..2 {
        let came = receive(&mut other_guest, 0)?;
        assert_eq!(came, whole);
    }
    let mut batch = Vec::new();
    host::wait_for(|| {
        one.receive(&mut host.pool, &mut batch);
        batch.len() == 2
    })?;
    let is_cut = |frame: &Frame| extract(host.umem.bytes(frame), PortId(1)).is_err();
    assert!(batch.iter().all(is_cut), "what it would have become is not to be told any more");
    batch.into_iter().for_each(|frame| host.pool.give(frame));
    [one, two].into_iter().for_each(|port| Box::new(port).close(&mut host.pool));
    host.assert_conserved();
    Ok(())
}

/// A packet counts as what it becomes, whether its headers are understood or not.
fn pieces(host: &mut Host) -> Result<(), Failed> {
    const PIECE: u16 = 8;
    let lane = lane()?;
    let mut guests = [tap::open_offloading("fd1")?, tap::open_offloading("fd2")?];
    let (mut one, _) = open(host, &lane, 1, "fd1")?;
    let (mut two, _) = open(host, &lane, 2, "fd2")?;
    let ends = ends(MacAddr([2, 0, 0, 0, 0, 2]));
    let whole = build::partial(segment(ends, TcpFlags::ACK, 1, 1, &data()));
    let tagged = build::tagged(whole.clone(), &[10]);
    for (frame, tags) in [(whole, 0), (tagged, 4)] {
        let numbers = [54 + tags, PIECE, TRANSPORT + tags, 16];
        let before = lane.refused();
        send(&mut guests[0], header_of([1, 1], numbers), &frame)?;
        host::wait_for(|| lane.refused() > before)?;
        let refused = lane.refused() - before;
        assert!(refused >= (LENGTH / usize::from(PIECE)) as u64, "{refused} pieces");
    }
    let mut batch = Vec::new();
    send(&mut guests[1], [0; HEADER], &segment(ends, TcpFlags::SYN, 1, 0, b""))?;
    host::wait_for(|| two.receive(&mut host.pool, &mut batch) > 0)?;
    assert_eq!(one.receive(&mut host.pool, &mut batch), 0);
    batch.into_iter().for_each(|frame| host.pool.give(frame));
    [one, two].into_iter().for_each(|port| Box::new(port).close(&mut host.pool));
    host.assert_conserved();
    Ok(())
}

/// A segment of 60,000 bytes of a sender whose pieces are small: more than the device pair's ring holds. Since
/// Linux 6.18 what does not fit waits; before, it has to fit.
fn hundreds(host: &mut Host) -> Result<(), Failed> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    let waits = (numbers.next(), numbers.next()) >= (Some(6), Some(18));
    let piece: u16 = if waits { 88 } else { 400 };
    let lane = lane()?;
    let mut guest_tap = tap::open_offloading("fd1")?;
    let (mut port, _) = open(host, &lane, 1, "fd1")?;
    let frame =
        build::partial(segment(ends(MacAddr([2, 0, 0, 0, 0, 2])), TcpFlags::ACK, 1, 1, &data()));
    for _ in 0..3 {
        send(&mut guest_tap, header_of([1, 1], [54, piece, TRANSPORT, 16]), &frame)?;
        let (mut batch, mut came) = (Vec::new(), Vec::<u8>::new());
        host::wait_for(|| {
            port.receive(&mut host.pool, &mut batch);
            for frame in batch.drain(..) {
                let bytes = host.umem.bytes(&frame);
                came.extend(bytes.get(54..).filter(|_| is_tcp(bytes)).into_iter().flatten());
                host.pool.give(frame);
            }
            came.len() >= LENGTH
        })?;
        assert!(came == data(), "what came is not what was sent");
    }
    assert_eq!(lane.refused(), 0);
    Box::new(port).close(&mut host.pool);
    host.assert_conserved();
    Ok(())
}

/// Sends what comes in at one port next out of the other.
fn cross(host: &mut Host, from: &mut impl Port, to: &mut impl Port) -> Result<(), Failed> {
    let mut batch = Vec::new();
    host::wait_for(|| from.receive(&mut host.pool, &mut batch) > 0)?;
    to.transmit(&mut batch);
    to.reclaim(&mut host.pool);
    batch.into_iter().for_each(|frame| host.pool.give(frame));
    Ok(())
}
