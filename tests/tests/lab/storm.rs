//! A storm: the switch is killed, upgraded and told other policies again and again, while a neighbour
//! floods what it may not send. What is allowed must not notice: the same traffic is measured without
//! the storm and in it.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use firedoor_api::dataplane::Flow;
use firedoor_classifier::snapshot::Lane;
use firedoor_lab::netns::Netns;
use firedoor_lab::probe::{Responder, Service};
use libtest_mimic::Failed;

use crate::express::{ECHO, connections};
use crate::fixture::{
    Counted, Fixture, Stream, allow, container, echoes, ensure, pair, start_in, v4, wait_for,
    wait_for_listener,
};
use crate::restart::{Dialogue, UDP, kill_and_await, upgrade_once};
use crate::{Shown, Test, fixture};

pub(crate) const TESTS: &[Test] = &[(
    "allowed_traffic_loses_nothing_in_a_storm_and_denied_never_arrives",
    &["iperf3", "ethtool", "ping"],
    storm,
)];

/// How long the traffic is measured each time, in seconds: at least 10. `FIREDOOR_STORM_SECS` asks for
/// more.
const SECS: u64 = 12;

/// What of the allowed traffic was lost.
#[derive(Debug)]
struct Losses {
    datagrams: u64,
    pings: u64,
    /// TCP segments that were sent again.
    segments: u64,
    /// How long a stream moved nothing, at most.
    standstill: Duration,
}

/// Eight TCP streams, a conversation in datagrams, and pings.
struct Traffic {
    streams: Child,
    dialogue: Dialogue,
    pings: Child,
}

impl Traffic {
    /// Parts of a second in which iperf3 says what moved.
    const INTERVAL: f64 = 0.1;

    fn start(lab: &Fixture, secs: u64) -> Result<Self, Failed> {
        let (to, secs, interval) =
            (v4(2).to_string(), secs.to_string(), Self::INTERVAL.to_string());
        // So paced, they leave the processors time for the rest.
        let rate = std::env::var("FIREDOOR_STORM_RATE").unwrap_or_else(|_| "10M".into());
        let streams =
            ["-c", &to, "-P", "8", "-b", &rate, "-l", "4K", "-t", &secs, "-i", &interval, "-J"];
        let is_express = |flow: &&Flow| flow.lane == Lane::Express;
        let pinged = || Ok::<_, Failed>(connections(lab, 1)?.iter().filter(is_express).count());
        let earlier = pinged()?;
        let streams = spawn(&lab.netns("a")?, "iperf3", &streams)?;
        let pings = spawn(&lab.netns("a")?, "ping", &["-q", "-i", "0.02", "-w", &secs, &to])?;
        let moving = wait_for(Duration::from_secs(5), || {
            // What the kernel does not have yet ends with the switch that judged it.
            let is_stream = |flow: &&Flow| flow.dst_port == Some(5201) && flow.frames > 100;
            let streams = connections(lab, 6)?;
            let streams = streams.iter().filter(is_stream).filter(is_express);
            Ok(streams.count() >= 8 && pinged()? > earlier)
        })?;
        ensure!(moving, "the traffic does not begin: {:#?}", connections(lab, 6)?);
        let dialogue = Dialogue::start(lab, &lab.netns("a")?, SocketAddr::new(v4(2), UDP))?;
        Ok(Self { streams, dialogue, pings })
    }

    fn end(self) -> Result<Losses, Failed> {
        let Counted { sent, came } = self.dialogue.end()?;
        let pings = said(self.pings)?;
        let report: serde_json::Value = serde_json::from_str(&said(self.streams)?)?;
        ensure!(report["error"].is_null(), "{}", report["error"]);
        Ok(Losses {
            datagrams: sent - came,
            pings: lost_pings(&pings).ok_or_else(|| format!("ping said: {pings}"))?,
            segments: report["end"]["sum_sent"]["retransmits"].as_u64().unwrap_or(u64::MAX),
            standstill: standstill(&report)?,
        })
    }
}

fn spawn(netns: &Netns, program: &str, arguments: &[&str]) -> Result<Child, Failed> {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::piped());
    Ok(netns.run(|| command.spawn())??)
}

fn said(child: Child) -> Result<String, Failed> {
    Ok(String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned())
}

/// Of `ping -q`: "600 packets transmitted, 598 received, …".
fn lost_pings(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    numbers.next()?.checked_sub(numbers.next()?)
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

fn storm() -> Shown {
    let secs = std::env::var("FIREDOOR_STORM_SECS").ok().and_then(|secs| secs.parse().ok());
    let secs: u64 = secs.unwrap_or(SECS);
    let workloads = container("c", 3) + &container("d", 4) + &pair(&allow("a", "b", "any"));
    let fourth = allow("d", "b", "tcp/7");
    let lab = Fixture::up(&format!("{workloads}{fourth}"))?;
    let offloads = |workload| lab.run(workload, "ethtool", &["-k", "eth0"]);
    let before = offloads("a")? + &offloads("b")?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO, Service::Udp(UDP)])?;
    let _server = start_in(&lab.netns("b")?, "iperf3", &["-s"])?;
    wait_for_listener(&lab.netns("b")?, 5201)?;

    let traffic = Traffic::start(&lab, secs)?;
    thread::sleep(Duration::from_secs(secs - 3));
    let calm = traffic.end()?;
    println!("without: {calm:?}");

    let mut cut = fixture::connect(&lab.netns("d")?, SocketAddr::new(v4(2), 7))?;
    // Enough for the kernel to have it.
    ensure!((0..20).all(|_| echoes(&mut cut)), "no echo for the fourth flow");
    let floods: Vec<Stream> = (9..12)
        .map(|port| Stream::start(&lab.netns("c")?, &lab.netns("b")?, v4(2), port))
        .collect::<Result<_, _>>()?;
    let start = Instant::now();
    let traffic = Traffic::start(&lab, secs)?;
    let other = allow("c", "d", "tcp/81");
    let kinds = std::env::var("FIREDOOR_STORM_KINDS").unwrap_or_else(|_| "kpup".into());
    while start.elapsed() < Duration::from_secs(secs - 3) {
        for kind in kinds.chars() {
            match kind {
                'k' => kill_and_await(&lab)?,
                'u' => drop(upgrade_once(&lab)?),
                'p' => {
                    lab.apply(&format!("{workloads}{fourth}{other}"))?;
                    lab.apply(&format!("{workloads}{fourth}"))?;
                }
                _ => {}
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
    ensure!(echoes(&mut cut), "the fourth flow has ended before its time");
    lab.apply(&workloads)?;
    ensure!(!echoes(&mut cut), "the fourth flow goes on without its rule");
    kill_and_await(&lab)?;
    ensure!(!echoes(&mut cut), "the fourth flow comes back");
    let storm = traffic.end()?;
    println!("in the storm: {storm:?}");
    ensure!(storm.datagrams <= calm.datagrams, "datagrams were lost");
    let pause = calm.standstill + Duration::from_millis(300);
    ensure!(storm.standstill <= pause, "TCP stood still");
    // A kill takes along what lies in the rings.
    ensure!(storm.segments <= calm.segments + 200, "TCP sent much again");
    // One more may be under way when `ping` ends.
    ensure!(storm.pings <= calm.pings + 1, "pings were lost");
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
