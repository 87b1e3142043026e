//! The express lane on real interfaces: its programs, with verdicts written by hand, and the long way
//! of what has none.

mod clsact;
mod scene;
mod succession;

use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::process::Command;
use std::slice::from_ref;
use std::time::Duration;

use firedoor_classifier::MacAddr;
use firedoor_classifier::build::{self, Ends};
use firedoor_classifier::wire::tcp;
use firedoor_dataplane::express::trial::Outcome;
use firedoor_dataplane::express::{
    FlowEgress, FlowId, FlowVerdict, Hook, InstallError, Lane, Progress, Slot,
};
use firedoor_dataplane::frame::Frame;
use firedoor_dataplane::handoff::Peers;
use firedoor_dataplane::link::Netlink;
use firedoor_dataplane::port::Port;
use firedoor_dataplane::sys::packet::PacketSender;
use firedoor_dataplane::sys::tap;
use libtest_mimic::Failed;
use mio::{Events, Poll, Token, Waker};
use socket2::{Domain, Socket, Type};

pub(crate) use self::clsact::hold_clsact;
pub(crate) use self::scene::open;
use self::scene::{Scene, complete_checksums};
use crate::Test;
use crate::host::{self, Host, Workload};

pub(crate) const TESTS: [(&str, Test); 27] = [
    ("express_tcp_takes_the_short_way_and_keeps_its_offloads", tcp_express),
    ("express_tcp_without_verdicts_takes_the_long_way", |host| tcp_punted(host, Hook::Tcx)),
    ("express_datagrams_are_counted_and_keep_their_order", |host| order(host, Hook::Tcx)),
    ("express_flows_are_held_for_frames_with_another_worker", |host| held(host, Hook::Tcx)),
    ("express_verdicts_are_nobody_elses", |host| borrowed(host, Hook::Tcx)),
    ("express_doubtful_frames_take_the_long_way", |host| doubtful(host, Hook::Tcx)),
    ("express_misses_name_their_port_whatever_tags_they_bear", |host| tags(host, Hook::Tcx)),
    ("express_a_flood_of_misses_leaves_room_for_other_ports", flood),
    ("express_who_finds_another_ports_frames_wakes_its_worker", wakes_worker),
    ("express_a_shut_door_drops_everything", |host| shut(host, Hook::Tcx)),
    ("express_a_full_table_refuses_and_has_room_again", full),
    ("express_flows_are_found_in_a_table_that_fills_and_empties", |host| found(host, Hook::Tcx)),
    ("express_ports_come_and_go_without_losing_a_frame", come_and_go),
    ("express_misses_wait_for_who_takes_over", succession::misses_wait),
    ("clsact_tcp_takes_the_short_way_and_keeps_its_offloads", clsact::short_way),
    ("clsact_filters_of_others_stay", clsact::shared),
    ("clsact_filters_of_a_killed_process_are_replaced", clsact::killed),
    ("xdp_tcp_takes_the_short_way_with_its_checksums_completed", tcp_in_xdp),
    ("xdp_tcp_without_verdicts_takes_the_long_way", |host| tcp_punted(host, Hook::Xdp)),
    ("xdp_datagrams_are_counted_and_keep_their_order", |host| order(host, Hook::Xdp)),
    ("xdp_flows_are_held_for_frames_with_another_worker", |host| held(host, Hook::Xdp)),
    ("xdp_verdicts_are_nobody_elses", |host| borrowed(host, Hook::Xdp)),
    ("xdp_doubtful_frames_take_the_long_way", |host| doubtful(host, Hook::Xdp)),
    ("xdp_misses_name_their_port_whatever_tags_they_bear", |host| tags(host, Hook::Xdp)),
    ("xdp_flows_are_found_in_a_table_that_fills_and_empties", |host| found(host, Hook::Xdp)),
    ("xdp_what_finds_no_room_is_not_waited_for", overflow),
    ("xdp_a_shut_door_drops_everything", |host| shut(host, Hook::Xdp)),
];

/// How long the door stays open: longer than any test.
pub(crate) const OPEN: Duration = Duration::from_secs(600);

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
/// Type and code.
const ECHO_REQUEST: u16 = 0x0800;
const SERVER: u16 = 7000;
const CLIENT: u16 = 40_000;

/// Sends `len` bytes over TCP from the first workload to the second, while the test plays the switch.
/// Returns how many frames took the long way, from each.
fn transfer(scene: &mut Scene, host: &mut Host, len: usize) -> Result<[usize; 2], Failed> {
    let sent: Vec<u8> = (0..len).map(|at| ((at * 31) >> 7) as u8).collect();
    let (from, to) = (scene.address(0, CLIENT), scene.address(1, SERVER));
    let listener = scene.workloads[1].inside(|| Ok(TcpListener::bind(to)?))?;
    let stream = scene.workloads[0].inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&from.into())?;
        Ok(socket)
    })?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| -> std::io::Result<()> {
            stream.set_write_timeout(Some(Duration::from_secs(20)))?;
            stream.connect_timeout(&to.into(), Duration::from_secs(5))?;
            let (first, rest) = sent.split_at(len / 16);
            (&stream).write_all(first)?;
            // What is on the long way arrives meanwhile; a stream without a pause may stay behind it.
            std::thread::sleep(Duration::from_millis(100));
            (&stream).write_all(rest)?;
            stream.shutdown(std::net::Shutdown::Write)
        });
        let receiver = scope.spawn(|| -> std::io::Result<Vec<u8>> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut received = Vec::new();
            stream.read_to_end(&mut received)?;
            Ok(received)
        });
        let counts = scene.hub(host, || sender.is_finished() && receiver.is_finished());
        sender.join().map_err(|_| "the sender panicked")??;
        let received = receiver.join().map_err(|_| "the receiver panicked")??;
        assert!(received == sent, "{} of {len} bytes came as they were sent", received.len());
        Ok(counts)
    })
}

fn tcp_express(host: &mut Host) -> Result<(), Failed> {
    let mut scene = Scene::new(host, Hook::Tcx)?;
    tcp_short_way(&mut scene, host, 64 << 20)?;
    let features = scene.workloads[0].inside(|| {
        Ok(String::from_utf8(Command::new("ethtool").args(["-k", "fd0"]).output()?.stdout)?)
    })?;
    for feature in ["tcp-segmentation-offload: on", "tx-checksumming: on"] {
        assert!(features.contains(feature), "{features}");
    }
    scene.close(host);
    Ok(())
}

/// The workloads leave checksums to their devices, and the receiver's stack looks at them.
fn tcp_in_xdp(host: &mut Host) -> Result<(), Failed> {
    let mut scene = Scene::new(host, Hook::Xdp)?;
    tcp_short_way(&mut scene, host, 16 << 20)?;
    let netstat =
        scene.workloads[1].inside(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let mut lines = netstat.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = lines.next().zip(lines.next()).ok_or("TCP has counters")?;
    let at = names.split(' ').position(|name| name == "InCsumErrors").ok_or("and this one")?;
    assert_eq!(values.split(' ').nth(at), Some("0"), "{netstat}");
    scene.close(host);
    Ok(())
}

/// Sends `len` bytes with verdicts for both directions.
fn tcp_short_way(scene: &mut Scene, host: &mut Host, len: usize) -> Result<(), Failed> {
    let [forward, back] = scene.install_both(TCP)?;
    let long_way = transfer(scene, host, len)?;
    let [there, home] =
        [forward, back].map(|slot| scene.lane.flows().progress(slot).unwrap_or_default());
    assert!(there.bytes as usize > len / 2, "{there:?}, and the long way {long_way:?}");
    assert!(home.frames > 0, "{home:?}");
    assert!(long_way[0] >= 1, "the SYN is for the switch to see");
    assert!(there.has_ended && home.has_ended, "{there:?} {home:?}");
    assert!(long_way[0] + (there.frames as usize) > len / 1460, "counted as on the wire");
    let apart = home.ack.wrapping_sub(there.seq).cast_signed().unsigned_abs();
    assert!(apart < 1 << 20, "but for what went with the FIN: {there:?} {home:?}");
    Ok(())
}

fn tcp_punted(host: &mut Host, hook: Hook) -> Result<(), Failed> {
    let mut scene = Scene::new(host, hook)?;
    let len = 2 << 20;
    let [there, _] = transfer(&mut scene, host, len)?;
    assert!(there > len / 1460, "segments of the MTU's size");
    scene.close(host);
    Ok(())
}

/// Numbered datagrams in one stream while its way changes: the switch dawdles, so that some are on
/// the long way when the verdict is there.
fn order(host: &mut Host, hook: Hook) -> Result<(), Failed> {
    let mut scene = Scene::new(host, hook)?;
    resolve(&mut scene, host)?;
    let (from, to) = (scene.address(0, CLIENT), scene.address(1, SERVER));
    let receiver = scene.workloads[1].inside(|| Ok(UdpSocket::bind(to)?))?;
    receiver.set_nonblocking(true)?;
    let sender = scene.workloads[0].inside(|| Ok(UdpSocket::bind(from)?))?;
    sender.connect(to)?;
    let mut slot = None;
    let mut waiting: Vec<Frame> = Vec::new();
    let mut came = Vec::new();
    for number in 0_u32..2_000 {
        sender.send(&number.to_be_bytes())?;
        if number == 20 {
            slot = Some(scene.install(0, &scene.flow(0, UDP, CLIENT, SERVER))?);
        }
        // Asks for frames now and then, so that datagrams of before and after are on the way.
        let turns = if number < 1_000 { usize::from(number % 16 == 0) } else { 2 };
        for _ in 0..turns {
            complete_checksums(host, &mut waiting);
            scene.ports[1].transmit(&mut waiting);
            scene.ports[0].receive(&mut host.pool, &mut waiting);
        }
        let mut bytes = [0; 4];
        while receiver.recv(&mut bytes).is_ok() {
            came.push(u32::from_be_bytes(bytes));
        }
        scene.ports[1].reclaim(&mut host.pool);
    }
    waiting.into_iter().for_each(|frame| host.pool.give(frame));
    let progress =
        scene.lane.flows().progress(slot.ok_or("the verdict was installed")?).unwrap_or_default();
    assert!(progress.frames > 0, "some took the short way");
    assert!(came.is_sorted(), "{came:?}");
    assert!(came.len() > 1_900 && came.last() == Some(&1_999), "{} came", came.len());
    scene.close(host);
    Ok(())
}

/// What a ring has no room for is lost before it counts as its flow's, which would wait for it.
fn overflow(host: &mut Host) -> Result<(), Failed> {
    let mut scene = Scene::new(host, Hook::Xdp)?;
    let slot = scene.install(0, &scene.flow(0, UDP, CLIENT, SERVER))?;
    let (others, own) = (packet(&scene, ICMP, &[3; 20]), packet(&scene, UDP, &udp(&[7; 20])));
    for _ in 0..8 {
        inject(&scene, &vec![others.clone(); 64])?;
    }
    inject(&scene, std::slice::from_ref(&own))?;
    let refused = scene.lane.refused();
    let on_the_way = 8 * 64 + 1 - refused as usize;
    assert!(refused > 0 && on_the_way > 64, "{refused} were refused");
    let came = scene.received(host, 0, on_the_way);
    assert!(came.len() == on_the_way && came.iter().all(|bytes| *bytes == others));
    inject(&scene, std::slice::from_ref(&own))?;
    assert_eq!(scene.received(host, 0, 1), std::slice::from_ref(&own), "there is room again");
    assert!(!scene.lane.flows().is_held(slot), "what was lost is not waited for");
    inject(&scene, &[own])?;
    assert_eq!(scene.lane.flows().progress(slot).unwrap_or_default().frames, 1);
    scene.close(host);
    Ok(())
}

/// A frame that one worker has received, and another one is to send, holds its flow until it is sent,
/// however often its port is asked for more meanwhile. One that is dropped does not let it go.
fn held(host: &mut Host, hook: Hook) -> Result<(), Failed> {
    let mut scene = Scene::new(host, hook)?;
    let slot = scene.install(0, &scene.flow(0, UDP, CLIENT, SERVER))?;
    let frame = packet(&scene, UDP, &udp(&[1; 20]));
    let mut other = host.another_pool();
    let (mut handed, mut none) = (Vec::new(), Vec::new());
    inject(&scene, from_ref(&frame))?;
    host::wait_for(|| scene.ports[0].receive(&mut host.pool, &mut handed) > 0)?;
    handed.drain(..).for_each(|frame| other.give(frame));
    assert!(scene.lane.flows().is_held(slot), "a dropped frame says nothing of others");
    scene.lane.flows().restart(slot);
    inject(&scene, from_ref(&frame))?;
    host::wait_for(|| scene.ports[0].receive(&mut host.pool, &mut handed) > 0)?;
    for _ in 0..3 {
        assert_eq!(scene.ports[0].receive(&mut host.pool, &mut none), 0);
        assert!(scene.lane.flows().is_held(slot), "its frame is with another worker");
    }
    scene.ports[1].transmit(&mut handed);
    assert!(scene.lane.flows().is_held(slot), "nobody knows whether it was sent");
    host::wait_for(|| {
        scene.ports[1].reclaim(&mut other);
        !scene.lane.flows().is_held(slot)
    })?;
    inject(&scene, &[frame])?;
    assert_eq!(
        scene.lane.flows().progress(slot).unwrap_or_default().frames,
        1,
        "the next one takes the short way"
    );
    drop(other);
    scene.close(host);
    Ok(())
}

fn borrowed(host: &mut Host, hook: Hook) -> Result<(), Failed> {
    let mut scene = Scene::new(host, hook)?;
    resolve(&mut scene, host)?;
    let id = scene.flow(0, UDP, CLIENT, SERVER);
    // Of another port, another MAC address.
    scene.install(0, &FlowId { ingress: scene.links[1].index, ..id })?;
    datagrams_are_punted(&mut scene, host, "the port's")?;
    let verdict = scene.verdict(0);
    for (verdict, whose) in [
        (FlowVerdict { eth_src: [2, 0, 0, 0, 0, 9], ..verdict }, "the sender's"),
        (FlowVerdict { eth_dst: [2, 0, 0, 0, 0, 9], ..verdict }, "the receiver's"),
        (FlowVerdict { max_frame: 40, ..verdict }, "the egress's"),
    ] {
        scene.lane.flows().install(&id, &verdict)?;
        datagrams_are_punted(&mut scene, host, whose)?;
    }
    let slot = scene.lane.flows().install(&id, &verdict)?;
    let sender = scene.workloads[0].inside(|| Ok(UdpSocket::bind(("0.0.0.0", CLIENT))?))?;
    let to = scene.address(1, SERVER);
    sender.send_to(b"the first takes the long way", to)?;
    assert_eq!(scene.received(host, 0, 1).len(), 1);
    sender.send_to(b"the next does not", to)?;
    assert_eq!(scene.lane.flows().progress(slot).unwrap_or_default().frames, 1);
    // One store ends every verdict.
    scene.lane.set_epoch(2);
    sender.send_to(b"judged again", to)?;
    assert_eq!(scene.received(host, 0, 1).len(), 1);
    scene.lane.flows().remove(&id, slot);
    assert!(scene.lane.flows().len() == 1, "the other port's");
    scene.close(host);
    Ok(())
}

fn datagrams_are_punted(scene: &mut Scene, host: &mut Host, whose: &str) -> Result<(), Failed> {
    let sender = scene.workloads[0].inside(|| Ok(UdpSocket::bind(("0.0.0.0", CLIENT))?))?;
    for _ in 0..3 {
        sender.send_to(b"judge me", scene.address(1, SERVER))?;
        assert_eq!(scene.received(host, 0, 1).len(), 1, "a verdict is only {whose}");
    }
    Ok(())
}

/// Lets the workloads find each other's MAC addresses.
fn resolve(scene: &mut Scene, host: &mut Host) -> Result<(), Failed> {
    let address = scene.workloads[1].address;
    let [one, _] = &scene.workloads;
    let mut ports = std::mem::take(&mut scene.ports);
    let answers = std::thread::scope(|scope| {
        let pings = scope.spawn(|| one.ping(address, &[8]));
        let mut batch = Vec::new();
        while !pings.is_finished() {
            for from in 0..2 {
                ports[from].receive(&mut host.pool, &mut batch);
                ports[1 - from].transmit(&mut batch);
                ports[1 - from].reclaim(&mut host.pool);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        pings.join()
    });
    assert_eq!(answers.map_err(|_| "the ping panicked")??, 1);
    scene.ports = ports;
    Ok(())
}

/// An Ethernet frame with an IPv4 packet of the client's flow.
fn packet(scene: &Scene, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let [eth_src, eth_dst] = scene.macs;
    let mut bytes: Vec<u8> = eth_dst.into_iter().chain(eth_src).chain([8, 0]).collect();
    let len = 20 + transport.len() as u16;
    let mut header = vec![0x45, 0];
    header.extend(len.to_be_bytes());
    header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    header.extend(scene.workloads[0].address.octets());
    header.extend(scene.workloads[1].address.octets());
    bytes.extend(header);
    bytes.extend(transport);
    checksum(&mut bytes);
    bytes
}

fn checksum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum: u32 =
        frame[14..34].chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut bytes = CLIENT.to_be_bytes().to_vec();
    bytes.extend(SERVER.to_be_bytes());
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// An echo message, or another query, whose checksum nobody verifies.
fn echo(kind: u16, identifier: u16) -> Vec<u8> {
    let mut bytes = kind.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(identifier.to_be_bytes());
    bytes.extend([0, 1, 7, 7, 7, 7]);
    bytes
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut bytes = CLIENT.to_be_bytes().to_vec();
    bytes.extend(SERVER.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    bytes
}

/// Sends frames as the first workload, byte for byte.
fn inject(scene: &Scene, frames: &[Vec<u8>]) -> Result<(), Failed> {
    inject_from(0, scene, frames)
}

fn inject_from(workload: usize, scene: &Scene, frames: &[Vec<u8>]) -> Result<(), Failed> {
    scene.workloads[workload].inside(|| {
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let sender = PacketSender::open(Netlink::open()?.link("fd0")?.index)?;
        assert_eq!(sender.send(&frames)?, frames.len());
        Ok(())
    })
}

/// Every frame that is not plain goes the long way though there is a verdict for its flow, and
/// arrives there as it was; a plain one does not.
fn doubtful(host: &mut Host, hook: Hook) -> Result<(), Failed> {
    let mut scene = Scene::new(host, hook)?;
    let slots = [(TCP, SERVER), (UDP, SERVER), (ICMP, ECHO_REQUEST)]
        .map(|(protocol, to)| scene.install(0, &scene.flow(0, protocol, CLIENT, to)));
    let plain = [
        packet(&scene, TCP, &tcp(0x10)),
        packet(&scene, UDP, &udp(&[7; 20])),
        packet(&scene, ICMP, &echo(ECHO_REQUEST, CLIENT)),
    ];
    inject(&scene, &plain)?;
    assert_eq!(scene.received(host, 0, 3), plain, "the first of each takes the long way");

    let altered = |at: usize, to: u8| {
        let mut bytes = plain[1].clone();
        bytes[at] = to;
        checksum(&mut bytes);
        bytes
    };
    let mut doubtful: Vec<Vec<u8>> = [0x02, 0x12, 0x11, 0x14, 0x00, 0x30, 0x29]
        .into_iter()
        .map(|flags| packet(&scene, TCP, &tcp(flags)))
        .collect();
    doubtful.push(altered(14, 0x46)); // an option
    doubtful.push(altered(14, 0x65)); // another version
    doubtful.push(altered(17, 47)); // shorter than UDP says
    doubtful.push(altered(17, 200)); // longer than the frame
    doubtful.push(altered(20, 0x20)); // more fragments
    doubtful.push(altered(21, 0x01)); // not the first fragment
    doubtful.push(altered(20, 0x80)); // the reserved bit
    doubtful.push(altered(22, 0)); // lived too long
    doubtful.push(altered(23, 132)); // another protocol
    doubtful.push(altered(38, 1)); // longer than the packet
    for kind in [0x0000, 0x0801, 0x0d00, 0x0300, 0x8000] {
        doubtful.push(packet(&scene, ICMP, &echo(kind, CLIENT)));
    }
    doubtful.push(packet(&scene, ICMP, &echo(ECHO_REQUEST, CLIENT + 1)));
    doubtful.push(packet(&scene, ICMP, &echo(ECHO_REQUEST, CLIENT)[..7]));
    let mut wrong = plain[1].clone();
    wrong[25] ^= 1; // the header's checksum
    doubtful.push(wrong);
    let mut cut = plain[0].clone();
    cut[46] = 0xf0; // TCP options that are not there
    doubtful.push(cut);
    doubtful.push(plain[0][..14].to_vec());
    inject(&scene, &doubtful)?;
    let came = scene.received(host, 0, doubtful.len());
    assert_eq!(came.len(), doubtful.len());
    assert_eq!(came, doubtful);

    let mut padded = plain[1].clone();
    padded.extend([0xee; 30]);
    let [tcp, udp, echo] = plain;
    inject(&scene, &[tcp, udp, padded, echo])?;
    let frames = slots
        .map(|slot| slot.map(|slot| scene.lane.flows().progress(slot).unwrap_or_default().frames));
    assert!(matches!(frames, [Ok(1), Ok(2), Ok(1)]), "{frames:?}");
    scene.close(host);
    Ok(())
}

/// The first port's worker sleeps, and the second's empties the socket that both have before the kernel
/// could wake it.
fn wakes_worker(host: &mut Host) -> Result<(), Failed> {
    let mut scene = Scene::new(host, Hook::Tcx)?;
    let [sleeper, _] = &Peers::of(2)[..] else { return Err("two workers".into()) };
    let mut poll = Poll::new()?;
    sleeper.doorstep().set_waker(Waker::new(poll.registry(), Token(0))?);
    scene.ports[0].set_doorstep(sleeper.doorstep());
    assert!(sleeper.may_sleep());
    let frames = [packet(&scene, UDP, &udp(&[7; 20]))];
    inject(&scene, &frames)?;
    let (mut events, mut batch) = (Events::with_capacity(1), Vec::new());
    host::wait_for(|| {
        scene.ports[1].receive(&mut host.pool, &mut batch);
        poll.poll(&mut events, Some(Duration::ZERO)).is_ok() && !events.is_empty()
    })?;
    assert!(batch.is_empty(), "they are not the second port's");
    assert_eq!(scene.received(host, 0, 1), frames);
    scene.close(host);
    Ok(())
}

fn tags(host: &mut Host, hook: Hook) -> Result<(), Failed> {
    let mut scene = Scene::new(host, hook)?;
    let plain = packet(&scene, UDP, &udp(&[7; 20]));
    let tagged = |tags: &[[u8; 4]]| {
        let mut bytes = plain[..12].to_vec();
        bytes.extend(tags.concat());
        bytes.extend(&plain[12..]);
        bytes
    };
    let frames = vec![
        plain.clone(),
        // The other port's tag, once and twice, and with the bit that says counted.
        tagged(&[[0x81, 0, 0, 2]]),
        tagged(&[[0x81, 0, 0, 2], [0x81, 0, 0, 2]]),
        tagged(&[[0x88, 0xa8, 0, 2], [0x81, 0, 0, 2]]),
        tagged(&[[0x81, 0, 0xf0, 2]]),
    ];
    inject(&scene, &frames)?;
    assert_eq!(scene.received(host, 0, frames.len()), frames);
    let mut batch = Vec::new();
    assert_eq!(scene.ports[1].receive(&mut host.pool, &mut batch), 0);
    scene.close(host);
    Ok(())
}

fn flood(host: &mut Host) -> Result<(), Failed> {
    const FLOOD: usize = 40 * 64;
    let mut scene = Scene::new(host, Hook::Tcx)?;
    let frame = packet(&scene, UDP, &udp(&[7; 20]));
    for _ in 0..FLOOD / 64 {
        inject(&scene, &vec![frame.clone(); 64])?;
    }
    let other = vec![[0xff; 60].to_vec()];
    inject_from(1, &scene, &other)?;
    assert_eq!(scene.received(host, 1, 1), other);
    let refused = scene.lane.refused();
    let on_the_way = FLOOD - refused as usize;
    assert!(refused > 0 && on_the_way > 64, "{refused} of {FLOOD} were refused");
    let came = scene.received(host, 0, on_the_way);
    assert!(came.len() == on_the_way && came.iter().all(|bytes| *bytes == frame), "all came whole");
    inject(&scene, std::slice::from_ref(&frame))?;
    assert_eq!(scene.received(host, 0, 1), [frame], "there is room again");
    assert_eq!(scene.lane.refused(), refused);
    scene.close(host);
    Ok(())
}

fn shut(host: &mut Host, hook: Hook) -> Result<(), Failed> {
    let mut scene = Scene::new(host, hook)?;
    let frame = packet(&scene, UDP, &udp(&[7; 20]));
    scene.lane.shut();
    inject(&scene, &vec![frame.clone(); 5])?;
    scene.lane.keep_open(OPEN);
    inject(&scene, std::slice::from_ref(&frame))?;
    assert_eq!(scene.received(host, 0, 1), [frame], "the five before it are gone");
    assert_eq!(scene.lane.shut_drops(), 5);
    scene.close(host);
    Ok(())
}

fn full(host: &mut Host) -> Result<(), Failed> {
    let scene = Scene::new(host, Hook::Tcx)?;
    let flows = scene.lane.flows();
    // What the other port answers with counts for the one that has asked.
    let [mine, answers, others] = [(0, false), (1, true), (1, false)]
        .map(|(from, is_reply)| move |port| (from, is_reply, port));
    let install = |(from, is_reply, port)| {
        let verdict = FlowVerdict { is_reply, ..scene.verdict(from) };
        flows.install(&scene.flow(from, UDP, port, SERVER), &verdict)
    };
    let slots: Vec<Slot> = (0..28).map(|port| install(mine(port))).collect::<Result<_, _>>()?;
    (100..128).try_for_each(|port| install(answers(port)).map(drop))?;
    assert_eq!(install(mine(56)), Err(InstallError::Share(64)), "the last are for the other port");
    (0..8).try_for_each(|port| install(others(port)).map(drop))?;
    assert_eq!(install(others(8)), Err(InstallError::Full(64)));
    let remove = |number: u16| {
        flows.remove(&scene.flow(0, UDP, number, SERVER), slots[usize::from(number)]);
    };
    (0..9).for_each(remove);
    assert_eq!(flows.len(), 55);
    assert_eq!(install(mine(56)), Err(InstallError::Full(64)), "their slots rest");
    host::wait_for(|| install(mine(56)).is_ok())?;
    remove(3);
    assert_eq!(flows.len(), 56, "a handle of before ends nothing");
    scene.close(host);
    Ok(())
}

/// A table that fills with random flows and empties again, so that its index grows and shrinks: all the while the
/// program finds each where the switch has put it, and counts it for no other.
fn found(host: &mut Host, hook: Hook) -> Result<(), Failed> {
    const FLOWS: u32 = 4096;
    /// Every so many flows come or go, one is looked at.
    const OFTEN: usize = 61;
    let scene = Scene::new(host, hook)?;
    let lane = Lane::load(FLOWS, None)?;
    lane.set_epoch(1);
    lane.keep_open(OPEN);
    let [from, to] = [scene.links[0].index, scene.links[1].index];
    lane.set_device(to, true)?;
    let [eth_src, eth_dst] = scene.macs.map(MacAddr);
    let verdict = FlowVerdict { egress: FlowEgress::Transmit(to), ..scene.verdict(0) };
    let source = RandomState::new();
    let flows = (0..FLOWS).map(|number| {
        let random = |what: u32| source.hash_one((number, what));
        let address = |what| -> IpAddr {
            let bits = u128::from(random(what)) << 64 | u128::from(random(what + 1));
            match number % 2 {
                0 => Ipv4Addr::from_bits(bits as u32).into(),
                _ => Ipv6Addr::from_bits(bits).into(),
            }
        };
        let (src, dst, ports) = (address(0), address(2), random(4));
        let [source, target] = [ports as u16, (ports >> 16) as u16];
        let ends = Ends { eth_src, eth_dst, src, dst };
        let (protocol, frame) = match number % 4 {
            0 | 1 => (UDP, build::udp(ends, source, target, b"found")),
            _ => {
                let header = tcp::Repr {
                    source_port: source,
                    destination_port: target,
                    sequence: 1,
                    acknowledgement: 1,
                    flags: build::TcpFlags::ACK,
                    window: 1000,
                };
                (TCP, build::tcp_segment(ends, header, b"found"))
            }
        };
        (FlowId::new(from, protocol, (src, source), (dst, target)), frame)
    });
    let flows: Vec<(FlowId, Vec<u8>)> = flows.collect();
    let is_found = |at: usize, slot: Slot| -> Result<(), Failed> {
        lane.let_go();
        let (flow, frame) = &flows[at];
        let before = lane.flows().progress(slot).unwrap_or_default();
        let outcome = lane.try_frame(hook, from, frame)?;
        assert_eq!(outcome, Outcome::Redirected { flow: *flow, egress: to });
        let Progress { frames, bytes, .. } = lane.flows().progress(slot).unwrap_or_default();
        assert_eq!((frames, bytes), (before.frames + 1, before.bytes + frame.len() as u64));
        Ok(())
    };
    let mut slots: Vec<Slot> = Vec::new();
    for (at, (id, _)) in flows.iter().enumerate() {
        slots.push(lane.flows().install(id, &verdict)?);
        if at % OFTEN == 0 {
            is_found(at / 2, slots[at / 2])?;
        }
    }
    // They go from both ends, so that those that stay do so to the last.
    for at in 0..flows.len() / 2 {
        for gone in [at, flows.len() - 1 - at] {
            lane.flows().remove(&flows[gone].0, slots[gone]);
        }
        if at % OFTEN == 0 {
            let stays = flows.len() / 2 - at % 2;
            if at + 1 < flows.len() / 2 {
                is_found(stays, slots[stays])?;
            }
            assert_eq!(lane.try_frame(hook, from, &flows[at].1)?, Outcome::Kept, "it is gone");
        }
    }
    scene.close(host);
    Ok(())
}

fn come_and_go(host: &mut Host) -> Result<(), Failed> {
    let _workload = Workload::new("10.99.0.1", "fd1", 1)?;
    let lane = Lane::load(64, None)?;
    for _ in 0..3 {
        let (port, link) = open(host, &lane, 1, "fd1")?;
        let mut holder = tap::open("fd3")?;
        let (mut second, _) = open(host, &lane, 2, "fd3")?;
        assert!(host.link("fd1")?.up && !link.up);
        lane.keep_open(OPEN);
        holder.write_all(&[0xff; 60])?;
        let mut batch = Vec::new();
        host::wait_for(|| second.receive(&mut host.pool, &mut batch) == 1)?;
        second.transmit(&mut batch);
        assert!(holder.read(&mut [0; 100])? == 60);
        Box::new(port).close(&mut host.pool);
        assert!(!host.link("fd1")?.up, "down, as it was found");
        holder.write_all(&[0xff; 60])?;
        host::wait_for(|| second.receive(&mut host.pool, &mut batch) == 1)?;
        batch.into_iter().for_each(|frame| host.pool.give(frame));
        drop(holder);
        Box::new(second).close(&mut host.pool);
        host.assert_conserved();
        let names: Vec<String> =
            Netlink::open()?.links()?.into_iter().map(|link| link.name).collect();
        assert!(!names.iter().any(|name| name.starts_with("fdp")), "{names:?}");
    }
    Ok(())
}
