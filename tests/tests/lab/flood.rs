//! Floods, from several ports at once: each fills its own share of what there is, and others notice nothing.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use firedoor_classifier::MacAddr;
use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::fdb::MAX_PER_PORT;
use firedoor_lab::probe::Responder;
use libtest_mimic::Failed;
use socket2::Socket;

use crate::express::{ECHO, connect};
use crate::fixture::{Fixture, PATIENCE, allow, container, echoes, ensure, v4, v6, wait_for};
use crate::policy::{EXPERIMENT, packet_socket};
use crate::{Shown, Test};

pub(crate) const TESTS: &[Test] = &[
    ("new_connections_succeed_while_several_ports_flood_with_syns", &["ip"], syns),
    ("conversations_go_on_while_others_send_to_groups_and_to_all", &[], storms),
    ("conversations_go_on_while_others_ask_for_addresses", &[], questions),
    ("a_router_that_floods_with_mac_addresses_takes_nobody_elses_place", &[], stations),
];

/// Connections of the switch, and of each of its ports.
const MOST: u64 = 2_048;
const SHARE: u64 = 512;
/// Those who flood, by name and number.
const FLOODERS: [(&str, u16); 3] = [("c", 3), ("d", 4), ("e", 5)];
/// A port at which nobody listens.
const CLOSED: u16 = 9_999;

/// Between bursts of SYNs that nobody answers, which are three times what their senders may have, `a` begins
/// connections, while an earlier one of its goes on.
fn syns() -> Shown {
    const ROUNDS: u16 = 16;
    const BURST: u16 = 100;
    let lab = up()?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let mut earlier = connect(&lab)?;
    let sockets: Vec<_> = FLOODERS
        .iter()
        .map(|(name, _)| packet_socket(&lab.netns(name)?))
        .collect::<Result<_, _>>()?;
    let to = mac(&lab, "b")?;
    let flooders = FLOODERS.iter().zip(&sockets).map(|((name, number), socket)| {
        let ends = Ends { eth_src: mac(&lab, name)?, eth_dst: to, src: v4(*number), dst: v4(2) };
        Ok((ends, socket))
    });
    let flooders: Vec<_> = flooders.collect::<Result<_, Failed>>()?;
    for round in 0..ROUNDS {
        for port in 0..BURST {
            for (ends, socket) in &flooders {
                let from = 10_000 + round * BURST + port;
                socket.send(&build::tcp(*ends, from, CLOSED, TcpFlags::SYN))?;
            }
        }
        ensure!(echoes(&mut connect(&lab)?), "no echo by a new connection in round {round}");
        ensure!(echoes(&mut earlier), "no echo by an earlier connection in round {round}");
    }
    let (mut all, flooded) = (0, SHARE * FLOODERS.len() as u64);
    let are_full = wait_for(|| {
        all = lab.dataplane()?.connections;
        Ok(all >= flooded)
    })?;
    ensure!(are_full && all <= flooded + SHARE, "{all} connections");
    Ok(())
}

/// Rounds of a storm, and frames of each sender in one: more than a port may have on its way to the switch at once,
/// each for four receivers where policy allows it.
const ROUNDS: usize = 8;
const GUST: usize = 1_200;

/// Three send datagrams to a group, to everybody, and to nobody known, over both families.
fn storms() -> Shown {
    const PORT: u16 = 5_353;
    let of_v6 = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
    weather(|mac, source, round| {
        let to_v4 = |eth_dst, dst: [u8; 4]| Ends {
            eth_src: mac,
            eth_dst,
            src: v4(source),
            dst: dst.into(),
        };
        let to_v6 = Ends {
            eth_src: mac,
            eth_dst: build::group_mac(of_v6),
            src: v6(source),
            dst: of_v6.into(),
        };
        let ends = [
            to_v4(MacAddr([0x01, 0, 0x5e, 0, 0, 0xfb]), [224, 0, 0, 251]),
            to_v4(MacAddr::BROADCAST, [10, 40, 255, 255]),
            to_v4(MacAddr::BROADCAST, [255, 255, 255, 255]),
            to_v6,
            to_v4(numbered(round), [10, 40, 200, 200]),
        ];
        ends.map(|ends| build::udp(ends, PORT, PORT, b"is anybody there?")).into()
    })
}

/// Three ask for addresses that somebody has, for such as nobody has and for their own, over both families, and
/// tell what nobody has asked.
fn questions() -> Shown {
    weather(|mac, source, round| {
        let (IpAddr::V4(own_v4), IpAddr::V6(own_v6)) = (v4(source), v6(source)) else {
            unreachable!("one of each family")
        };
        let (IpAddr::V4(known_v4), IpAddr::V6(known_v6)) = (v4(2), v6(2)) else {
            unreachable!("one of each family")
        };
        let unknown_v4 = Ipv4Addr::from_bits(own_v4.to_bits() & 0xffff_0000 | 0xf000 | round);
        let unknown_v6 =
            Ipv6Addr::from_bits(own_v6.to_bits() & !0xffff | 0xf000 | u128::from(round));
        let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let unasked = Ends {
            eth_src: mac,
            eth_dst: build::group_mac(all),
            src: own_v6.into(),
            dst: all.into(),
        };
        vec![
            build::arp_request(mac, own_v4, known_v4),
            build::arp_request(mac, own_v4, unknown_v4),
            build::arp_request(mac, own_v4, own_v4),
            build::neighbor_solicitation(mac, own_v6, known_v6),
            build::neighbor_solicitation(mac, own_v6, unknown_v6),
            build::neighbor_solicitation(mac, Ipv6Addr::UNSPECIFIED, own_v6),
            build::neighbor_advertisement(unasked, own_v6),
        ]
    })
}

/// Between gusts of frames, made of a sender's MAC address and number and the round's, `a` talks with `b`, in a
/// conversation of before and in new ones. Who may not be reached hears nothing, and no frame is lost sight of.
fn weather(frames: impl Fn(MacAddr, u16, u32) -> Vec<Vec<u8>>) -> Shown {
    let mut config = container("a", 1) + &container("b", 2) + &container("deaf", 9);
    config += &allow("a", "b", "any");
    for (name, number) in FLOODERS {
        config += &container(name, number);
        for to in ["a", "b", "c", "d", "e"].into_iter().filter(|to| *to != name) {
            config += &allow(name, to, "any");
        }
    }
    let lab = Fixture::up(&config)?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let mut earlier = connect(&lab)?;
    let before = told(&lab, "deaf")?;
    let mut senders = Vec::new();
    for (name, number) in FLOODERS {
        senders.push((packet_socket(&lab.netns(name)?)?, mac(&lab, name)?, number));
    }
    for round in 0..ROUNDS {
        let gusts = senders.iter().map(|(socket, mac, number)| {
            (socket, frames(*mac, *number, u32::try_from(round).unwrap_or_default()))
        });
        let gusts: Vec<_> = gusts.collect();
        for at in 0..GUST {
            for (socket, frames) in &gusts {
                socket.send(&frames[at % frames.len()])?;
            }
        }
        ensure!(echoes(&mut connect(&lab)?), "no echo by a new connection in round {round}");
        ensure!(echoes(&mut earlier), "no echo by an earlier connection in round {round}");
    }
    let (after, status) = (told(&lab, "deaf")?, lab.dataplane()?);
    ensure!(before == after, "{} frames came to who may not be reached", after - before);
    ensure!(status.frames_leaked == 0, "{} frames leaked", status.frames_leaked);
    Ok(())
}

/// Frames that a port was sent.
fn told(lab: &Fixture, workload: &str) -> Result<u64, Failed> {
    let ports = lab.status()?.ports;
    let port = ports.iter().find(|port| port.workload == workload).ok_or("a port of the lab")?;
    Ok(port.counters.tx_frames)
}

/// Of the stations that one router claims to have in front of it, as many are learned as are its share, and where
/// another's station is stays known. The conversation of others goes on meanwhile.
fn stations() -> Shown {
    const BURST: u32 = 64;
    const OTHERS: MacAddr = MacAddr([2, 0xfd, 0, 0, 0, 1]);
    let router =
        |name, number| container(name, number).trim_end().to_owned() + "\nrouter = true\n\n";
    let every = "[[rule]]\nname = \"experiments\"\nfrom = { any = true }\nto = { any = true }\n\
                 ethertype = \"0x88b5\"\naction = \"allow\"\n\n";
    let config = container("a", 1) + &container("b", 2) + &router("c", 3) + &router("d", 4);
    let lab = Fixture::up_with("workers = 1", &(config + &allow("a", "b", "any") + every))?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let mut conversation = connect(&lab)?;
    let socket = |name| packet_socket(&lab.netns(name)?);
    let (a, c, d) = (socket("a")?, socket("c")?, socket("d")?);
    let mac_of_a = mac(&lab, "a")?;
    let claim = |station| build::ethernet(station, mac_of_a, EXPERIMENT, b"here I am");
    c.send(&claim(OTHERS))?;
    for burst in 0..2 * MAX_PER_PORT / BURST {
        for number in burst * BURST..(burst + 1) * BURST {
            d.send(&claim(numbered(number)))?;
        }
        ensure!(echoes(&mut conversation), "no echo after burst {burst}");
    }
    for (station, expected) in [
        (OTHERS, [true, false]),
        (numbered(0), [false, true]),
        // Not learned: whoever may know it gets it.
        (numbered(2 * MAX_PER_PORT - 1), [true, true]),
    ] {
        a.send(&build::ethernet(mac_of_a, station, EXPERIMENT, &station.0))?;
        let mut came = [false; 2];
        for (at, socket) in [&c, &d].into_iter().enumerate() {
            let patience = if expected[at] { PATIENCE } else { Duration::from_millis(500) };
            came[at] = hears(socket, patience, station)?;
        }
        ensure!(came == expected, "what {station} is sent comes to c and d: {came:?}");
    }
    let moves = lab.dataplane()?.mac_moves;
    ensure!(moves == 0, "{moves} stations moved");
    Ok(())
}

fn numbered(number: u32) -> MacAddr {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddr([2, 0xfe, a, b, c, d])
}

/// Whether a frame for a station comes to a socket, before nothing comes for so long.
fn hears(mut socket: &Socket, patience: Duration, station: MacAddr) -> Result<bool, Failed> {
    socket.set_read_timeout(Some(patience))?;
    let mut frame = [0; 64];
    while socket.read(&mut frame).is_ok() {
        if frame.starts_with(&station.0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A lab where all may ask `b`, which answers those who flood nothing.
fn up() -> Result<Fixture, Failed> {
    let mut config = container("a", 1) + &container("b", 2) + &allow("a", "b", "any");
    for (name, number) in FLOODERS {
        config += &(container(name, number) + &allow(name, "b", "any"));
    }
    let bounds = format!(
        "max_connections = {MOST}\nmax_connections_per_port = {SHARE}\n\
         timeouts = {{ tcp_handshake = 3600 }}"
    );
    let lab = Fixture::up_with(&bounds, &config)?;
    for (_, number) in FLOODERS {
        let IpAddr::V4(address) = v4(number) else { unreachable!("it is of IPv4") };
        lab.run("b", "ip", &["route", "add", "blackhole", &format!("{address}/32")])?;
    }
    Ok(lab)
}

fn mac(lab: &Fixture, name: &str) -> Result<MacAddr, Failed> {
    let mut hosts = lab.hosts().iter();
    let host = hosts.find(|host| host.workload == name).ok_or("a workload of the lab")?;
    Ok(host.mac.ok_or("a container has a MAC address")?)
}
