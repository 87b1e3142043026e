//! Floods, from several ports at once: each fills its own share of what there is, and others notice nothing.

use std::io::Read;
use std::net::IpAddr;
use std::time::Duration;

use firedoor_classifier::MacAddr;
use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::fdb::MAX_PER_PORT;
use firedoor_lab::probe::Responder;
use libtest_mimic::Failed;
use socket2::Socket;

use crate::express::{ECHO, connect};
use crate::fixture::{Fixture, PATIENCE, allow, container, echoes, ensure, v4, wait_for};
use crate::policy::{EXPERIMENT, packet_socket};
use crate::{Shown, Test};

pub(crate) const TESTS: &[Test] = &[
    ("new_connections_succeed_while_several_ports_flood_with_syns", &["ip"], syns),
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
