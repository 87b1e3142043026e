//! What is the express lane's own: the kernel forwards, the switch stays in charge. That everything
//! else is as on the switch lane, the other modules' tests show, which run on both.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use firedoor_api::control::{Reply, Request};
use firedoor_api::dataplane::Flow;
use firedoor_classifier::DropReason;
use firedoor_classifier::snapshot::Lane;
use firedoor_lab::probe::{Outcome, Responder, Service};
use libtest_mimic::Failed;
use socket2::{Domain, Socket, Type};

use crate::failure::Guest;
use crate::fixture::{
    Fixture, PATIENCE, WebServer, allow, checksum_of, container, curl, curl_with, echoes, ensure,
    is_cut, pair, printed, v4, v6, wait_for,
};
use crate::storm::lost_pings;
use crate::{Shown, Test, fixture};

pub(crate) const ECHO: Service = Service::Tcp(7);
const PORT: u16 = 7;
const WEB: u16 = 8080;
const LENGTH: u64 = 20_000_000;
/// Why a segment is dropped that is not of its connection.
const OF_TCP: [DropReason; 2] = [DropReason::TcpState, DropReason::TcpNotSyn];

pub(crate) const TESTS: &[Test] = &[
    ("an_express_connection_is_forwarded_by_the_kernel_and_counted_by_the_switch", &[], counted),
    ("an_express_connection_lives_by_frames_that_the_switch_never_saw", &[], kept_alive),
    ("an_express_connection_ends_with_its_rule", &[], cut),
    (
        "an_express_connection_goes_on_while_other_ports_come_and_go",
        &["ip", "ethtool"],
        undisturbed,
    ),
    ("a_connection_leaves_xdp_when_its_egress_takes_no_more_frames", &["ethtool"], untaken),
    ("a_short_express_connection_takes_the_long_way_to_begin_alone", &[], short_lived),
    ("datagrams_that_nobody_answers_are_forwarded_by_the_kernel", &[], one_way),
    ("pings_are_forwarded_by_the_kernel", &["ping"], pings),
    ("why_the_switch_forwards_a_connection_itself_is_shown", &[], kept),
    ("an_express_transfer_ends_by_fin_and_leaves_the_offloads_on", &["curl", "ethtool"], transfer),
    ("data_in_a_syn_passes_as_policy_says", &["curl"], fast_open),
    ("ports_of_both_lanes_work_in_one_switch", &["curl"], mixed),
];

/// Two containers on the express lane, where `a` may ask `b`.
pub(crate) fn up(switch: &str) -> Result<Fixture, Failed> {
    Fixture::up_with(switch, &pair(&allow("a", "b", "any")))
}

pub(crate) fn connect(lab: &Fixture) -> Result<TcpStream, Failed> {
    fixture::connect(&lab.netns("a")?, SocketAddr::new(v4(2), PORT))
}

/// The connections of a lab that are of a protocol.
pub(crate) fn connections(lab: &Fixture, protocol: u8) -> Result<Vec<Flow>, Failed> {
    let Reply::Flows(flows) = lab.request(&Request::Flows)? else {
        return Err("flows were asked for, and something else answered".into());
    };
    let is_wanted = |flow: &Flow| flow.kind == "connection" && flow.protocol == protocol;
    Ok(flows.into_iter().filter(is_wanted).collect())
}

/// Frames that the switch has judged.
fn judged(lab: &Fixture) -> Result<u64, Failed> {
    let status = lab.dataplane()?;
    Ok(status.connection_hits + status.cache_hits + status.upcalls)
}

fn counted() -> Shown {
    let lab = up("")?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let mut connection = connect(&lab)?;
    for _ in 0..1_000 {
        ensure!(echoes(&mut connection), "no echo");
    }
    let all_counted = wait_for(|| {
        let [flow] = &connections(&lab, 6)?[..] else { return Ok(false) };
        Ok(flow.lane == Lane::Express && flow.frames >= 2_000 && flow.bytes >= 2_000 * 71)
    })?;
    ensure!(all_counted, "{:#?}", connections(&lab, 6)?);
    let judged = judged(&lab)?;
    ensure!(judged < 200, "the switch judged {judged} frames of 2,000");
    let ports = lab.status()?.ports;
    for port in &ports {
        ensure!(port.lane == Lane::Express, "{port:#?}");
        ensure!(port.counters.rx_frames >= 1_000 && port.counters.tx_frames >= 1_000, "{port:#?}");
    }
    Ok(())
}

/// Of TCP the switch sees the SYN: all that follows takes the short way, and what it did is known soon
/// after.
fn short_lived() -> Shown {
    const COUNT: usize = 50;
    let lab = up("")?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    for _ in 0..COUNT {
        drop(connect(&lab)?);
    }
    let ended = wait_for(|| {
        let connections = connections(&lab, 6)?;
        // A FIN that is sent again on a busy machine is answered twice, and the second answer by a reset.
        let is_over = |flow: &Flow| matches!(flow.state.as_str(), "time-wait" | "reset");
        Ok(connections.len() == COUNT && connections.iter().all(is_over))
    })?;
    let seen = lab.dataplane()?;
    ensure!(ended, "{:#?}, {:?}", connections(&lab, 6)?, seen.drops);
    let judged = seen.connection_hits + seen.cache_hits + seen.upcalls;
    // One of each. Some looked for their neighbours; SYN-ACKs would make it 100 at least.
    ensure!(judged < 100, "the switch judged {judged} frames of {COUNT} connections");
    let are_gone = || Ok(lab.dataplane()?.express.is_some_and(|express| express.flows == 0));
    ensure!(wait_for(are_gone)?, "{:#?}", lab.dataplane()?.express);
    Ok(())
}

/// All that were sent arrive in their order, most of them by way of the kernel.
fn one_way() -> Shown {
    const COUNT: u32 = 2_000;
    let lab = up("")?;
    for (from, to) in [(v4(1), v4(2)), (v6(1), v6(2))] {
        let receiver = lab.netns("b")?.run(|| UdpSocket::bind((to, PORT)))??;
        receiver.set_read_timeout(Some(PATIENCE))?;
        let sender = lab.netns("a")?.run(|| UdpSocket::bind((from, 0)))??;
        sender.connect((to, PORT))?;
        for number in 0..COUNT {
            sender.send(&number.to_be_bytes())?;
            let mut came = [0; 4];
            ensure!(receiver.recv(&mut came)? == 4, "a datagram of another length");
            let came = u32::from_be_bytes(came);
            ensure!(came == number, "{came} came where {number} was due");
        }
    }
    let all_counted = wait_for(|| {
        let flows = connections(&lab, 17)?;
        let is_counted = |flow: &Flow| {
            flow.lane == Lane::Express && flow.state == "single" && flow.frames == u64::from(COUNT)
        };
        Ok(flows.len() == 2 && flows.iter().all(is_counted))
    })?;
    ensure!(all_counted, "{:#?}", connections(&lab, 17)?);
    let status = lab.dataplane()?;
    let express = status.express.ok_or("there is no express lane")?;
    ensure!(express.flows == 2, "one way takes one flow each: {express:#?}");
    let judged = status.connection_hits + status.cache_hits + status.upcalls;
    // Each datagram is sent when the one before has come. Where both ends and the switch share a processor,
    // that is always a moment before the switch says that it has left, until the scheduler parts them.
    ensure!(judged < u64::from(COUNT), "the switch judged {judged} frames of {}", 2 * COUNT);
    Ok(())
}

/// Who is pinged may ping under the same identifier, but by a verdict of its own.
fn pings() -> Shown {
    const COUNT: u64 = 300;
    const IDENTIFIER: &str = "77";
    let lab = up("")?;
    let count = COUNT.to_string();
    let ping = |from, to: IpAddr, count: &str| {
        let to = to.to_string();
        lab.run(from, "ping", &["-q", "-e", IDENTIFIER, "-i", "0.005", "-W", "1", "-c", count, &to])
    };
    for (protocol, back, to) in [(1, v4(1), v4(2)), (58, v6(1), v6(2))] {
        let before = judged(&lab)?;
        let said = ping("a", to, &count)?;
        // For the last answer, ping waits no longer than twice the longest time that another one took.
        ensure!(lost_pings(&said) <= Some(1), "{said}");
        let judged = judged(&lab)? - before;
        ensure!(judged < COUNT, "the switch judged {judged} frames of {}", 2 * COUNT);
        let all_counted = wait_for(|| {
            let flows = connections(&lab, protocol)?;
            let is_ping = |flow: &&Flow| flow.state == "query" && flow.lane == Lane::Express;
            Ok(flows.iter().find(is_ping).is_some_and(|flow| flow.frames == 2 * COUNT))
        })?;
        ensure!(all_counted, "{:#?}", connections(&lab, protocol)?);
        ensure!(ping("b", back, "3").is_err(), "nobody allowed it");
    }
    Ok(())
}

fn kept() -> Shown {
    let lab = up("")?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let mut connection = connect(&lab)?;
    let asker = lab.netns("a")?.run(|| UdpSocket::bind((v4(1), 0)))??;
    let _silent = lab.netns("b")?.run(|| UdpSocket::bind((v4(2), PORT)))??;
    asker.send_to(b"who is it?", (v4(2), PORT))?;
    let kept = |protocol| -> Result<Vec<String>, Failed> {
        Ok(connections(&lab, protocol)?.into_iter().map(|flow| flow.kept).collect())
    };
    let is_short = wait_for(|| Ok(kept(17)? == ["short"]))?;
    ensure!(is_short, "{:#?}", connections(&lab, 17)?);
    ensure!(lab.ask("a", v4(2), Service::Ping)? == Outcome::Reachable, "no answer to a ping");
    // It would be forwarded by the kernel if another frame came.
    let is_held = wait_for(|| Ok(kept(1)? == ["held"]))?;
    ensure!(is_held, "{:#?}", connections(&lab, 1)?);
    let unknown = 253; // for experiments (RFC 3692)
    let open = || Socket::new(Domain::IPV4, Type::RAW, Some(i32::from(unknown).into()));
    let (socket, to) = (lab.netns("a")?.run(open)??, SocketAddr::new(v4(2), 0).into());
    for _ in 0..20 {
        socket.send_to(b"which the programs do not know", &to)?;
    }
    let is_kept = wait_for(|| Ok(kept(unknown)? == ["protocol"]))?;
    ensure!(is_kept, "{:#?}", connections(&lab, unknown)?);
    for _ in 0..10 {
        ensure!(echoes(&mut connection), "no echo");
    }
    let is_forwarded = wait_for(|| Ok(kept(6)? == [""]))?;
    ensure!(is_forwarded, "{:#?}", connections(&lab, 6)?);
    Ok(())
}

fn kept_alive() -> Shown {
    let lab = up("timeouts = { tcp_established = 5 }")?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let mut connection = connect(&lab)?;
    for _ in 0..20 {
        ensure!(echoes(&mut connection), "no echo from a connection that is in use");
        thread::sleep(Duration::from_millis(500));
    }
    let start = Instant::now();
    let is_over = wait_for(|| Ok(connections(&lab, 6)?.is_empty()))?;
    ensure!(is_over, "it outlives its timeout: {:#?}", connections(&lab, 6)?);
    println!("it was forgotten after {:?}", start.elapsed());
    // Looked for every second, whatever wakes the worker meanwhile.
    let is_taken =
        || Ok(lab.status()?.dataplane.and_then(|it| it.express).map(|it| it.flows) == Some(0));
    ensure!(wait_for(is_taken)?, "the kernel keeps its verdicts");
    println!("it left the kernel after {:?}", start.elapsed());
    ensure!(is_cut(&mut connection), "the kernel forwards what the switch has forgotten");
    Ok(())
}

fn cut() -> Shown {
    let lab = up("")?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let mut connection = connect(&lab)?;
    let forwarded = wait_for(|| {
        ensure!(echoes(&mut connection), "no echo");
        Ok(connections(&lab, 6)?.iter().any(|flow| flow.lane == Lane::Express))
    })?;
    ensure!(forwarded, "the kernel does not forward it");
    lab.apply(&pair(""))?;
    ensure!(is_cut(&mut connection), "it goes on without its rule");
    Ok(())
}

/// Frames of a connection that the kernel forwards which the switch judged all the same, while a port of the
/// switch lane came and went and one of its own ports began to take frames in XDP, which it does not need.
fn undisturbed() -> Shown {
    let lab = up("")?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let mut connection = connect(&lab)?;
    let settled = wait_for(|| {
        let before = lab.dataplane()?.connection_hits;
        ensure!(echoes(&mut connection), "no echo");
        Ok(lab.dataplane()?.connection_hits == before)
    })?;
    ensure!(settled, "the kernel does not forward it");
    let before = lab.dataplane()?.connection_hits;
    lab.run("a", "ethtool", &["-K", "eth0", "gro", "on"])?;
    let guest = Guest::make(&lab)?;
    for _ in 0..3 {
        guest.add(&lab, &["--lane", "switch"])?;
        ensure!(echoes(&mut connection), "no echo beside another port");
        printed("firedoor port del", &lab.firedoor(&["port", "del", "c"])?)?;
        ensure!(echoes(&mut connection), "no echo after another port");
    }
    let judged = lab.dataplane()?.connection_hits - before;
    ensure!(judged == 0, "the switch judged {judged} frames");
    Ok(())
}

/// Of a connection in XDP, one direction's egress takes no more frames, and then does again.
fn untaken() -> Shown {
    fixture::on_lane("switch", || {
        let lab = up("")?;
        let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
        let mut connection = connect(&lab)?;
        let mut is_forwarded = |directions| {
            wait_for(|| {
                ensure!(echoes(&mut connection), "no echo");
                Ok(lab.dataplane()?.express.is_some_and(|express| express.flows == directions))
            })
        };
        ensure!(is_forwarded(2)?, "the kernel does not forward it");
        lab.run("b", "ethtool", &["-K", "eth0", "gro", "off"])?;
        ensure!(is_forwarded(1)?, "the kernel keeps a verdict that it cannot apply");
        lab.run("b", "ethtool", &["-K", "eth0", "gro", "on"])?;
        ensure!(is_forwarded(2)?, "what can be applied again is not given again");
        Ok(())
    })
}

fn transfer() -> Shown {
    let lab = up("")?;
    let offloads = || lab.run("a", "ethtool", &["-k", "eth0"]);
    let before = offloads()?;
    for feature in ["tcp-segmentation-offload: on", "tx-checksumming: on"] {
        ensure!(before.contains(feature), "{before}");
    }
    let _server = WebServer::start(&lab.netns("b")?, WEB, LENGTH)?;
    for address in [v4(2), v6(2)] {
        let came = curl(&lab.netns("a")?, &format!("http://{}/", SocketAddr::new(address, WEB)))?;
        ensure!(came == checksum_of(LENGTH), "from {address} came {came:x?}");
    }
    let ended = wait_for(|| {
        let connections = connections(&lab, 6)?;
        let is_ended = |flow: &Flow| flow.state == "time-wait" && flow.bytes > LENGTH;
        Ok(connections.len() == 2 && connections.iter().all(is_ended))
    })?;
    ensure!(ended, "{:#?}", connections(&lab, 6)?);
    ensure!(before == offloads()?, "offloads have changed");
    let drops = lab.status()?.dataplane.map(|dataplane| dataplane.drops).unwrap_or_default();
    ensure!(!drops.iter().any(|(reason, _)| OF_TCP.contains(reason)), "{drops:?}");
    Ok(())
}

/// TCP Fast Open (RFC 7413): the request comes with the SYN, and the answer right behind the SYN-ACK.
fn fast_open() -> Shown {
    const COUNT: u64 = 10;
    const SHORT: u64 = 4_000;
    // Asked for and granted, and by listeners that do not ask for it, too.
    const EVERYWHERE: &str = "1027";
    let lab = up("")?;
    for workload in ["a", "b"] {
        let allow = || fs::write("/proc/sys/net/ipv4/tcp_fastopen", EVERYWHERE);
        lab.netns(workload)?.run(allow)??;
    }
    let _server = WebServer::start(&lab.netns("b")?, WEB, SHORT)?;
    let fetch = |address| {
        let url = format!("http://{}/", SocketAddr::new(address, WEB));
        curl_with(&lab.netns("a")?, &["--tcp-fastopen"], &url)
    };
    for address in [v4(2), v6(2)] {
        // The first one asks for the cookie.
        fetch(address)?;
        let before = opened_fast(&lab)?;
        for _ in 0..COUNT {
            let came = fetch(address)?;
            ensure!(came == checksum_of(SHORT), "from {address} came {came:x?}");
        }
        let opened = opened_fast(&lab)? - before;
        ensure!(opened == COUNT, "{opened} of {COUNT} requests to {address} came with the SYN");
    }
    let drops = lab.status()?.dataplane.map(|dataplane| dataplane.drops).unwrap_or_default();
    ensure!(!drops.iter().any(|(reason, _)| OF_TCP.contains(reason)), "{drops:?}");
    let (refusing, before) = (pair(&allow("a", "b", "tcp/81")), opened_fast(&lab)?);
    lab.apply(&refusing)?;
    let mut command = Command::new("curl");
    let url = format!("http://{}/", SocketAddr::new(v4(2), WEB));
    command.args(["-sS", "--max-time", "2", "--noproxy", "*", "--tcp-fastopen", &url]);
    let refused = lab.netns("a")?.run(|| command.output())??;
    ensure!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    ensure!(opened_fast(&lab)? == before, "data came with a SYN that policy refuses");
    Ok(())
}

/// How many connections `b` has taken with data in their SYNs.
fn opened_fast(lab: &Fixture) -> Result<u64, Failed> {
    let read = || fs::read_to_string("/proc/thread-self/net/netstat");
    let text = lab.netns("b")?.run(read)??;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut all = names.split_whitespace().zip(values.split_whitespace());
    let found = all.find(|(name, _)| *name == "TCPFastOpenPassive");
    Ok(found.ok_or("the kernel does not count Fast Open")?.1.parse()?)
}

/// The server on the switch lane, and then the client.
fn mixed() -> Shown {
    for express in ["a", "b"] {
        let other = if express == "a" { "b" } else { "a" };
        let name = format!("name = \"{other}\"\nkind");
        let lane = format!("lane = \"switch\"\n{name}");
        let workloads = (container("a", 1) + &container("b", 2)).replace(&name, &lane);
        let lab = Fixture::up(&format!("{workloads}{}", allow("a", "b", "any")))?;
        for port in lab.status()?.ports {
            let expected = if port.workload == express { Lane::Express } else { Lane::Switch };
            ensure!(port.lane == expected, "{port:#?}");
        }
        // Containers behind the switch lane's XDP program have no segmentation offload to offer.
        let _server = WebServer::start(&lab.netns("b")?, WEB, LENGTH)?;
        for address in [v4(2), v6(2)] {
            let came =
                curl(&lab.netns("a")?, &format!("http://{}/", SocketAddr::new(address, WEB)))?;
            ensure!(came == checksum_of(LENGTH), "from {address} came {came:x?}");
        }
    }
    Ok(())
}
