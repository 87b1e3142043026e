//! The host's own stack is no part of the network: it hears nothing of what workloads send, and they nothing of
//! it, whatever happens to the switch meanwhile.
//!
//! The ears are packet sockets of one protocol each. They stand where the stack's own handlers stand, behind the
//! programs at XDP and tc; a socket for every protocol would stand before those at tc.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use firedoor_classifier::MacAddr;
use firedoor_classifier::build::{self, Ends};
use firedoor_classifier::wire::ethernet::ether_type;
use firedoor_dataplane::link::Netlink;
use firedoor_lab::netns::Netns;
use firedoor_lab::probe::{Outcome, Service};
use libtest_mimic::Failed;
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};

use crate::failure::send;
use crate::fallback::kill_all;
use crate::fixture::{
    Fixture, Running, allow, container, ensure, pair, start_in, v4, v6, wait_for,
};
use crate::policy::{EXPERIMENT, packet_socket};
use crate::restart::{kill_and_await, upgrade_once};
use crate::{Shown, Test};

pub(crate) const TESTS: &[Test] = &[
    ("the_hosts_stack_hears_nothing_while_the_switch_comes_and_goes", &["ip"], comes_and_goes),
    ("the_hosts_stack_hears_nothing_when_a_switch_was_killed", &["ip"], killed),
];

/// The host's address in the workloads' network, and number of that.
const HOST: u16 = 254;

/// What listens in a namespace as its stack does.
struct Ears {
    sockets: Vec<Socket>,
    /// Whose frames count.
    from: Vec<MacAddr>,
}

impl Ears {
    fn open(netns: &Netns, from: Vec<MacAddr>) -> Result<Self, Failed> {
        let protocols = [ether_type::IPV4, ether_type::IPV6, ether_type::ARP, EXPERIMENT];
        let open = |protocol: u16| -> Result<Socket, Failed> {
            let protocol = Protocol::from(i32::from(protocol.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let open_all = || protocols.into_iter().map(open).collect::<Result<_, _>>();
        Ok(Self { sockets: netns.run(open_all)??, from })
    }

    /// Frames that were heard since the last time: how many of each kind.
    fn heard(&self) -> BTreeMap<String, u64> {
        let mut heard = BTreeMap::new();
        let mut bytes = [0; 64];
        for socket in &self.sockets {
            let mut socket: &Socket = socket;
            while let Ok(length) = socket.read(&mut bytes) {
                let Some(header) = bytes[..length].first_chunk::<14>() else { continue };
                let sender = MacAddr(*header[6..].first_chunk().expect("six bytes of fourteen"));
                if self.from.contains(&sender) {
                    let kind = format!("{:02x}{:02x} from {sender}", header[12], header[13]);
                    *heard.entry(kind).or_default() += 1;
                }
            }
        }
        heard
    }
}

/// A workload that looks for the host all the time, in every way.
struct Caller {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Caller {
    fn start(from: &Netns, mac: MacAddr, host: u16, to: MacAddr) -> Result<Self, Failed> {
        let socket = packet_socket(from)?;
        let frames = calls(mac, host, to);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                // It fails while the other end is down.
                sent += frames.iter().filter(|frame| socket.send(frame).is_ok()).count() as u64;
                thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        Ok(Self { stop, thread })
    }

    fn end(self) -> Result<u64, Failed> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "the caller panicked")?)
    }
}

/// What workload `number` sends to reach the host, whose port has the MAC address `to`.
fn calls(mac: MacAddr, number: u16, to: MacAddr) -> Vec<Vec<u8>> {
    let (std::net::IpAddr::V4(me), std::net::IpAddr::V4(host)) = (v4(number), v4(HOST)) else {
        unreachable!("both are of IPv4")
    };
    let (std::net::IpAddr::V6(me_too), std::net::IpAddr::V6(host_too)) = (v6(number), v6(HOST))
    else {
        unreachable!("both are of IPv6")
    };
    let ends = |eth_dst| Ends { eth_src: mac, eth_dst, src: me.into(), dst: host.into() };
    let ends_v6 = |eth_dst| Ends { src: me_too.into(), dst: host_too.into(), ..ends(eth_dst) };
    vec![
        build::arp_request(mac, me, host),
        build::neighbor_solicitation(mac, me_too, host_too),
        build::router_solicitation(mac, me_too),
        build::dhcp_discover(mac),
        build::echo_request(ends(to), 1, 1),
        build::echo_request(ends(MacAddr::BROADCAST), 1, 1),
        build::udp(ends(to), 53, 53, b"is anybody there?"),
        build::udp(ends_v6(to), 53, 53, b"is anybody there?"),
        build::ethernet(mac, to, EXPERIMENT, b"is anybody there?"),
        build::ethernet(mac, MacAddr::BROADCAST, EXPERIMENT, b"is anybody there?"),
    ]
}

/// A lab whose workloads call the host, and who listens.
struct Scene {
    lab: Fixture,
    callers: Vec<Caller>,
    at_host: Ears,
    at_workloads: Vec<Ears>,
}

impl Scene {
    fn up() -> Result<Self, Failed> {
        let lab = Fixture::up(&config())?;
        let switch = lab.switch_netns()?;
        for address in [v4(HOST), v6(HOST)] {
            let mut ip = std::process::Command::new("ip");
            ip.args(["addr", "add", &address.to_string(), "dev", "lo"]);
            ensure!(switch.run(|| ip.status())??.success(), "the host has no address");
        }
        let (mut callers, mut macs, mut hosts) = (Vec::new(), Vec::new(), Vec::new());
        for (name, number) in [("a", 1), ("b", 2)] {
            let host = lab.host(name)?;
            let mac = host.mac.ok_or("a container has a MAC address")?;
            let near = switch.run(|| Netlink::open().map(|mut n| n.link(&host.ifname)))???;
            callers.push(Caller::start(&lab.netns(name)?, mac, number, MacAddr(near.mac))?);
            macs.push(mac);
            hosts.push(MacAddr(near.mac));
        }
        let at_host = Ears::open(&switch, macs)?;
        let at_workloads = ["a", "b"].map(|name| Ears::open(&lab.netns(name)?, hosts.clone()));
        let at_workloads = at_workloads.into_iter().collect::<Result<_, _>>()?;
        Ok(Self { lab, callers, at_host, at_workloads })
    }

    /// Does something, and waits a little. Fails if the host has heard of a workload since the last time, or
    /// a workload of the host.
    fn while_silent(&self, what: &str, happens: impl FnOnce(&Fixture) -> Shown) -> Shown {
        happens(&self.lab)?;
        thread::sleep(Duration::from_millis(300));
        self.is_silent(what)
    }

    fn is_silent(&self, what: &str) -> Shown {
        let heard = self.at_host.heard();
        ensure!(heard.is_empty(), "{what}: the host's stack heard {heard:?}");
        for ears in &self.at_workloads {
            let heard = ears.heard();
            ensure!(heard.is_empty(), "{what}: a workload heard of the host {heard:?}");
        }
        Ok(())
    }

    /// Removes the lab while its workloads still call, to the last.
    fn down(self) -> Shown {
        let Self { lab, callers, at_host, .. } = self;
        lab.down()?;
        let heard = at_host.heard();
        ensure!(heard.is_empty(), "while the lab came down, the host's stack heard {heard:?}");
        for caller in callers {
            let sent = caller.end()?;
            ensure!(sent > 1_000, "{sent} calls are too few to tell");
        }
        Ok(())
    }
}

fn config() -> String {
    pair(&allow("a", "b", "any"))
}

fn comes_and_goes() -> Shown {
    let scene = Scene::up()?;
    scene.while_silent("beside a switch that runs", |_| Ok(()))?;
    scene.while_silent("while the data plane was killed", kill_and_await)?;
    scene.while_silent("during an upgrade", |lab| upgrade_once(lab).map(drop))?;
    scene
        .while_silent("while a port was removed", |lab| lab.apply(&container("a", 1)).map(drop))?;
    scene.while_silent("while it came back", |lab| {
        lab.apply(&config())?;
        let heard = wait_for(|| Ok(lab.ask("a", v4(2), Service::Ping)? == Outcome::Reachable))?;
        ensure!(heard, "the port that came back is not reached");
        Ok(())
    })?;
    scene.down()
}

/// Without its supervisor, nobody starts the data plane again, until somebody starts another switch.
fn killed() -> Shown {
    let scene = Scene::up()?;
    scene.while_silent("after all of a switch was killed", kill_all)?;
    let mut next = start(&scene.lab)?;
    scene.while_silent("while the next one started", |_| Ok(()))?;
    send(next.0.id(), Signal::SIGTERM)?;
    next.0.wait()?;
    scene.while_silent("after it has ended in order", |_| Ok(()))?;
    let _next = start(&scene.lab)?;
    scene.while_silent("while another one started", |_| Ok(()))?;
    scene.down()
}

/// Starts another switch in the place of a lab's own, and returns once it judges.
fn start(lab: &Fixture) -> Result<Running, Failed> {
    let (program, config) = (lab.program(), lab.config());
    let arguments = ["run", &config.to_string_lossy()];
    let next = start_in(&lab.switch_netns()?, &program.to_string_lossy(), &arguments)?;
    // Nothing can be sent at all before the interfaces are up.
    let heard = || lab.ask("a", v4(2), Service::Ping);
    let judges = || Ok(heard().is_ok_and(|heard| heard == Outcome::Reachable));
    ensure!(wait_for(judges)?, "the next switch judges nothing");
    Ok(next)
}
