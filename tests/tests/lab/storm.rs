//! A storm: the switch is killed, upgraded and told other policies again and again, while a neighbour
//! floods what it may not send. What is allowed must not notice: the same traffic is measured without
//! the storm and in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use firedoor_api::dataplane::Flow;
use firedoor_classifier::snapshot::Lane;
use firedoor_lab::netns::Netns;
use firedoor_lab::probe::{Responder, Service};
use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::express::{ECHO, connections};
use crate::fixture::{
    Counted, Fixture, Stream, allow, container, echoes, ensure, is_cut, pair, start_in, v4,
    wait_for, wait_for_listener,
};
use crate::restart::{LONG_GRACE, UDP, dialogue, kill_and_await, upgrade_once};
use crate::{Shown, Test, fixture};

const NEEDS: &[&str] = &["iperf3", "ethtool", "ping", "ss"];

pub(crate) const TESTS: &[Test] = &[
    ("allowed_traffic_loses_nothing_in_a_storm_and_denied_never_arrives", NEEDS, || storm(&[])),
    ("streams_of_small_windows_lose_nothing_in_a_storm", NEEDS, || storm(&["-w", "64K"])),
];

/// How long the traffic goes on each time, in seconds, or longer on a busy machine. `FIREDOOR_STORM_SECS`
/// asks for another time.
const SECS: u32 = 9;

/// So many pings take that long.
const PINGS_PER_SEC: u32 = 50;

/// Where iperf3 listens.
const IPERF: u16 = 5201;

/// What of the allowed traffic was lost, and how TCP fared.
#[derive(Debug)]
struct Losses {
    datagrams: u64,
    pings: u64,
    /// TCP segments that one end has sent and the other never got.
    segments: i64,
    /// Those that were sent again. They need not be lost: what comes late is sent again too, or what
    /// another one overtakes.
    #[expect(dead_code, reason = "it is printed, for who looks for a cause")]
    sent_again: u64,
    /// How long a stream moved nothing, at most.
    #[expect(dead_code, reason = "likewise")]
    standstill: Duration,
}

/// Eight TCP streams, a conversation in datagrams, and pings.
struct Traffic {
    streams: Child,
    dialogue: Stream,
    pings: Child,
}

impl Traffic {
    /// Parts of a second in which iperf3 says what moved.
    const INTERVAL: f64 = 0.1;

    /// Longer than any storm, in seconds.
    const EVER: &str = "600";

    /// Starts it all, the streams with these options of iperf3, and returns once the kernel forwards it.
    fn start(lab: &Fixture, options: &[&str]) -> Result<Self, Failed> {
        let secs = std::env::var("FIREDOOR_STORM_SECS").ok().and_then(|secs| secs.parse().ok());
        let count = (secs.unwrap_or(SECS) * PINGS_PER_SEC).to_string();
        let pause = (1.0 / f64::from(PINGS_PER_SEC)).to_string();
        let (to, interval) = (v4(2).to_string(), Self::INTERVAL.to_string());
        // So paced, they leave the processors time for the rest.
        let rate = std::env::var("FIREDOOR_STORM_RATE").unwrap_or_else(|_| "10M".into());
        let streams = [
            "-c",
            &to,
            "-P",
            "8",
            "-b",
            &rate,
            "-l",
            "4K",
            "-t",
            Self::EVER,
            "-i",
            &interval,
            "-J",
        ];
        let earlier = [express(lab, 6)?, express(lab, 1)?];
        let streams = spawn(&lab.netns("a")?, "iperf3", &[&streams, options].concat())?;
        let pings = spawn(&lab.netns("a")?, "ping", &["-q", "-i", &pause, "-c", &count, &to])?;
        let moving = wait_for(|| {
            let [streams, pings] = [express(lab, 6)?, express(lab, 1)?];
            let are_new = streams.difference(&earlier[0]).count() > 8;
            Ok(are_new && pings.difference(&earlier[1]).count() > 0)
        })?;
        ensure!(moving, "the traffic does not begin: {:#?}", connections(lab, 6)?);
        let dialogue = dialogue(lab, &lab.netns("a")?, SocketAddr::new(v4(2), UDP))?;
        Ok(Self { streams, dialogue, pings })
    }

    /// Whether all pings were sent, and answered or given up.
    fn is_over(&mut self) -> Result<bool, Failed> {
        Ok(self.pings.try_wait()?.is_some())
    }

    fn end(self, lab: &Fixture) -> Result<Losses, Failed> {
        let Self { streams, dialogue, pings } = self;
        let pings = told(pings, &[])?;
        let Counted { sent, came } = dialogue.end()?;
        // Stopped, so that nothing is under way when both ends are asked.
        signal(&streams, Signal::SIGSTOP)?;
        let segments = lost_segments(lab)?;
        let report = told(streams, &[Signal::SIGINT, Signal::SIGCONT])?;
        let report: serde_json::Value = serde_json::from_str(&report)?;
        let sent_again = &report["end"]["sum_sent"]["retransmits"];
        Ok(Losses {
            datagrams: sent - came,
            pings: lost_pings(&pings).ok_or_else(|| format!("ping said: {pings}"))?,
            segments,
            sent_again: sent_again.as_u64().ok_or_else(|| format!("iperf3 said: {report}"))?,
            standstill: standstill(&report)?,
        })
    }
}

/// Connections that the kernel has forwarded for a while, by the client's port or a ping's identifier: what the
/// switch still forwards ends with it.
fn express(lab: &Fixture, protocol: u8) -> Result<BTreeSet<Option<u16>>, Failed> {
    let flows = connections(lab, protocol)?;
    let is_it = |flow: &&Flow| flow.lane == Lane::Express && flow.frames > 10;
    Ok(flows.iter().filter(is_it).map(|flow| flow.src_port).collect())
}

fn spawn(netns: &Netns, program: &str, arguments: &[&str]) -> Result<Child, Failed> {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::piped());
    Ok(netns.run(|| command.spawn())??)
}

fn signal(child: &Child, signal: Signal) -> Shown {
    Ok(kill(Pid::from_raw(child.id().cast_signed()), signal)?)
}

/// What a program says that is ended by signals.
fn told(child: Child, signals: &[Signal]) -> Result<String, Failed> {
    signals.iter().try_for_each(|&each| signal(&child, each))?;
    Ok(String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned())
}

/// Of `ping -q`: "600 packets transmitted, 598 received, …".
pub(crate) fn lost_pings(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    numbers.next()?.checked_sub(numbers.next()?)
}

/// What one end of a TCP connection has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segments {
    sent: i64,
    came: i64,
}

/// Segments that one end of a stream has sent and the other has not got, of all streams, as soon as nothing is
/// under way any more.
fn lost_segments(lab: &Fixture) -> Result<i64, Failed> {
    let mut before = None;
    let mut lost = 0;
    let settled = wait_for(|| {
        let ends = [segments_at(lab, "a")?, segments_at(lab, "b")?];
        let [Some(a), Some(b)] = &ends else { return Ok(false) };
        ensure!(a.len() > 8 && a.keys().eq(b.keys()), "not the same streams: {a:?}, {b:?}");
        // The server's socket is made after it has sent its SYN-ACK.
        let of_one = |(a, b): (&Segments, &Segments)| a.sent - b.came + b.sent + 1 - a.came;
        lost = a.values().zip(b.values()).map(of_one).sum();
        let settled = before.as_ref() == Some(&ends);
        before = Some(ends);
        Ok(settled)
    })?;
    ensure!(settled, "TCP does not come to rest: {before:?}");
    Ok(lost)
}

/// What a workload's ends of the streams have counted, by the client's port. `None` while something is not
/// acknowledged.
fn segments_at(lab: &Fixture, workload: &str) -> Result<Option<BTreeMap<u16, Segments>>, Failed> {
    let filter =
        ["-tinHO", "state", "established", &format!("( sport = :{IPERF} or dport = :{IPERF} )")];
    let said = lab.run(workload, "ss", &filter)?;
    if said.contains(" unacked:") || said.contains(" notsent:") {
        return Ok(None);
    }
    let of_line = |line: &str| {
        let words = || line.split_whitespace();
        let ports = words().filter_map(|word| word.parse::<SocketAddr>().ok());
        let client = ports.map(|end| end.port()).find(|&port| port != IPERF)?;
        let count = |name| words().find_map(|word| word.strip_prefix(name)?.parse().ok());
        Some((client, Segments { sent: count("segs_out:")?, came: count("segs_in:")? }))
    };
    let all: Option<_> = said.lines().map(of_line).collect();
    Ok(Some(all.ok_or_else(|| format!("ss said: {said}"))?))
}

/// The longest time in which one of iperf3's eight streams moved nothing.
fn standstill(report: &serde_json::Value) -> Result<Duration, Failed> {
    let intervals = report["intervals"].as_array().ok_or("iperf3 counted nothing")?;
    let mut longest = 0;
    for stream in 0..8 {
        let mut still = 0;
        for interval in intervals {
            let bytes = interval["streams"][stream]["bytes"].as_u64().ok_or("not eight streams")?;
            still = if bytes == 0 { still + 1 } else { 0 };
            longest = longest.max(still);
        }
    }
    Ok(Duration::from_secs_f64(Traffic::INTERVAL) * longest)
}

fn storm(options: &[&str]) -> Shown {
    let workloads = container("c", 3) + &container("d", 4) + &pair(&allow("a", "b", "any"));
    let fourth = allow("d", "b", "tcp/7");
    let lab = Fixture::up_with(LONG_GRACE, &format!("{workloads}{fourth}"))?;
    let offloads = |workload| lab.run(workload, "ethtool", &["-k", "eth0"]);
    let before = offloads("a")? + &offloads("b")?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO, Service::Udp(UDP)])?;
    let _server = start_in(&lab.netns("b")?, "iperf3", &["-s"])?;
    wait_for_listener(&lab.netns("b")?, IPERF)?;

    let calm = Traffic::start(&lab, options)?.end(&lab)?;
    println!("without: {calm:?}");

    let mut cut = fixture::connect(&lab.netns("d")?, SocketAddr::new(v4(2), 7))?;
    // Enough for the kernel to have it.
    ensure!((0..20).all(|_| echoes(&mut cut)), "no echo for the fourth flow");
    let floods: Vec<Stream> = (9..12)
        .map(|port| Stream::start(&lab.netns("c")?, &lab.netns("b")?, v4(2), port))
        .collect::<Result<_, _>>()?;
    let mut traffic = Traffic::start(&lab, options)?;
    let other = allow("c", "d", "tcp/81");
    let kinds = std::env::var("FIREDOOR_STORM_KINDS").unwrap_or_else(|_| "kpup".into());
    while !traffic.is_over()? {
        for kind in kinds.chars() {
            match kind {
                'k' => kill_and_await(&lab)?,
                'u' => drop(upgrade_once(&lab)?),
                'p' => {
                    lab.apply_with(LONG_GRACE, &format!("{workloads}{fourth}{other}"))?;
                    lab.apply_with(LONG_GRACE, &format!("{workloads}{fourth}"))?;
                }
                _ => {}
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
    ensure!(echoes(&mut cut), "the fourth flow has ended before its time");
    lab.apply_with(LONG_GRACE, &workloads)?;
    ensure!(is_cut(&mut cut), "the fourth flow goes on without its rule");
    kill_and_await(&lab)?;
    ensure!(is_cut(&mut cut), "the fourth flow comes back");
    let storm = traffic.end(&lab)?;
    println!("in the storm: {storm:?}");
    ensure!(storm.datagrams <= calm.datagrams, "datagrams were lost");
    ensure!(storm.pings <= calm.pings, "pings were lost");
    ensure!(storm.segments <= calm.segments, "TCP segments were lost");
    for flood in floods {
        let counted = flood.end()?;
        ensure!(counted.sent > 1_000 && counted.came == 0, "denied datagrams passed: {counted:?}");
    }
    let after = offloads("a")? + &offloads("b")?;
    ensure!(before == after, "offloads have changed:\n{after}");
    for feature in ["tcp-segmentation-offload: on", "tx-checksumming: on"] {
        ensure!(after.matches(feature).count() == 2, "{after}");
    }
    Ok(())
}
