//! The express lane while its data plane is away: what was judged goes on, nothing else passes, and
//! not for ever.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use firedoor_api::control::Status;
use firedoor_api::dataplane::{Flow, PortCounters, PortState};
use firedoor_classifier::DropReason;
use firedoor_classifier::snapshot::Lane;
use firedoor_lab::netns::Netns;
use firedoor_lab::probe::{Outcome, Responder, Service};
use libtest_mimic::Failed;
use nix::sys::signal::Signal;

use crate::express::{ECHO, connect, connections, up};
use crate::failure::{dataplane_pid, kill_hard, send, supervisor_pid};
use crate::fixture::{
    self, Fixture, PATIENCE, Stream, allow, echoes, ensure, is_cut, on_lane, pair, printed, v4,
    wait_for, wait_up_to,
};
use crate::stand_in::Conduct;
use crate::{Shown, Test};

pub(crate) const UDP: u16 = 7;

pub(crate) const TESTS: &[Test] = &[
    ("express_flows_outlive_the_data_plane_and_are_judged_again", &[], outlive),
    ("flows_between_ports_of_the_switch_lane_outlive_the_data_plane", &[], outlive_in_xdp),
    ("express_flows_stop_when_no_data_plane_returns", &[], fail_closed),
    ("an_upgrade_takes_over_without_losing_an_express_frame", &[], upgrade),
    ("connections_that_begin_during_an_upgrade_are_all_answered", &[], new_connections),
    ("two_workers_take_over_each_its_share_of_the_express_flows", &[], by_two),
    ("an_upgrade_to_a_program_that_fails_leaves_the_switch_as_it_was", &[], upgrade_fails),
    ("an_upgrade_that_is_not_answered_leaves_what_outlives_the_data_plane", &[], unanswered),
    ("ports_that_the_kernel_is_to_forward_no_more_are_taken_over_at_once", &[], no_more),
    ("a_switch_that_stops_leaves_nothing_pinned", &[], nothing_pinned),
];

/// For who looks at what is lost, and not at how soon a killed data plane is back on a busy machine.
pub(crate) const LONG_GRACE: &str = "express_grace_secs = 60";

/// What is the same on every lane.
pub(crate) const ON_EACH_LANE: &[Test] =
    &[("after_a_restart_no_frame_is_counted_that_was_before", &[], counted_once)];

/// How another data plane comes in the place of one.
const TAKEOVERS: [fn(&Fixture) -> Shown; 2] = [kill_and_await, |lab| upgrade_once(lab).map(drop)];

/// Numbered datagrams from one workload to the echo at `to`, which sends each back: 1,000 a second or a little less.
/// The kernel forwards them from the first on.
pub(crate) fn dialogue(lab: &Fixture, from: &Netns, to: SocketAddr) -> Result<Stream, Failed> {
    let socket = from.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let settled = wait_for(|| {
        // A flow's first frames still take the long way.
        for _ in 0..20 {
            socket.send(b"first")?;
            socket.recv(&mut [0; 8])?;
        }
        is_express(lab, 17, socket.local_addr()?)
    })?;
    ensure!(settled, "the kernel does not forward the datagrams");
    Stream::over(socket.try_clone()?, socket, 1, Duration::from_millis(1))
}

/// Whether the kernel forwards the live connection of a protocol that was begun from that port.
fn is_express(lab: &Fixture, protocol: u8, from: SocketAddr) -> Result<bool, Failed> {
    let is_it = |flow: &Flow| {
        flow.src_port == Some(from.port())
            && flow.state != "time-wait"
            && flow.lane == Lane::Express
    };
    Ok(connections(lab, protocol)?.iter().any(is_it))
}

/// A connection that the kernel forwards.
pub(crate) fn settled(lab: &Fixture) -> Result<TcpStream, Failed> {
    let mut connection = connect(lab)?;
    let settled = wait_for(|| {
        // As above.
        for _ in 0..20 {
            ensure!(echoes(&mut connection), "no echo");
        }
        is_express(lab, 6, connection.local_addr()?)
    })?;
    ensure!(settled, "the kernel does not forward the connection");
    Ok(connection)
}

/// Kills the data plane, and returns when there is another one that judges by the same policy.
pub(crate) fn kill_and_await(lab: &Fixture) -> Shown {
    let (epoch, killed) = (lab.epoch()?, dataplane_pid(lab)?);
    kill_hard(killed)?;
    let back =
        wait_for(
            || Ok(dataplane_pid(lab).is_ok_and(|pid| pid != killed) && lab.epoch()? == epoch),
        )?;
    ensure!(back, "the data plane did not come back:\n{}", lab.log_tail());
    Ok(())
}

fn outlive() -> Shown {
    let lab = up(LONG_GRACE)?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO, Service::Udp(UDP)])?;
    let mut connection = settled(&lab)?;
    let dialogue = dialogue(&lab, &lab.netns("a")?, SocketAddr::new(v4(2), UDP))?;
    for _ in 0..2 {
        // Until it is well, so that its end is watched for.
        thread::sleep(Duration::from_millis(1_500));
        kill_and_await(&lab)?;
        thread::sleep(Duration::from_millis(200));
    }
    let log = lab.log();
    ensure!(log.contains("is ending; another one gets ready"), "it was not seen to end:\n{log}");
    ensure!(log.contains("; another one goes on"), "its heir has not taken over:\n{log}");
    let counted = dialogue.end()?;
    println!("over two restarts: {counted:?}");
    ensure!(counted.sent > 500, "too few to tell: {counted:?}");
    let drops = lab.status()?.dataplane.map(|dataplane| dataplane.drops);
    ensure!(counted.came == counted.sent, "some were lost: {counted:?}, dropped: {drops:?}");

    ensure!(echoes(&mut connection), "the connection is gone");
    let from = connection.local_addr()?;
    ensure!(is_express(&lab, 6, from)?, "{:#?}", connections(&lab, 6)?);
    drop(connection);
    let ended =
        wait_for(|| Ok(connections(&lab, 6)?.iter().all(|flow| flow.state == "time-wait")))?;
    ensure!(ended, "its end was not understood: {:#?}", connections(&lab, 6)?);

    // What policy no longer allows goes, whoever began it.
    let mut connection = settled(&lab)?;
    kill_and_await(&lab)?;
    lab.apply(&pair(""))?;
    ensure!(is_cut(&mut connection), "it goes on without its rule");
    Ok(())
}

/// The program in XDP outlives the data plane as the one at tc does.
fn outlive_in_xdp() -> Shown {
    let lab = on_lane("switch", || up(LONG_GRACE))?;
    let _responder = Responder::start(&lab.netns("b")?, &[Service::Udp(UDP)])?;
    let dialogue = dialogue(&lab, &lab.netns("a")?, SocketAddr::new(v4(2), UDP))?;
    for take_over in TAKEOVERS {
        take_over(&lab)?;
        thread::sleep(Duration::from_millis(200));
    }
    let counted = dialogue.end()?;
    println!("over a kill and an upgrade: {counted:?}");
    ensure!(counted.sent > 500, "too few to tell: {counted:?}");
    ensure!(counted.came == counted.sent, "some were lost: {counted:?}");
    Ok(())
}

/// Upgrades a lab's switch to the same version.
pub(crate) fn upgrade_once(lab: &Fixture) -> Result<serde_json::Value, Failed> {
    let before = dataplane_pid(lab)?;
    let said = printed("firedoor upgrade", &lab.firedoor(&["upgrade", "--json"])?)?;
    let report: serde_json::Value = serde_json::from_str(&said)?;
    ensure!(report["predecessor"] == before && report["pid"] == dataplane_pid(lab)?, "{said}");
    Ok(report)
}

fn upgrade() -> Shown {
    let lab = up(LONG_GRACE)?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO, Service::Udp(UDP)])?;
    let mut connection = settled(&lab)?;
    let dialogue = dialogue(&lab, &lab.netns("a")?, SocketAddr::new(v4(2), UDP))?;
    let epoch = lab.epoch()?;
    for _ in 0..2 {
        let report = upgrade_once(&lab)?;
        println!("{report}");
        ensure!(report["flows"].as_u64() >= Some(4), "{report}");
        ensure!(echoes(&mut connection), "the connection is gone");
    }
    let counted = dialogue.end()?;
    println!("over two upgrades: {counted:?}");
    ensure!(counted.came == counted.sent, "some were lost: {counted:?}");
    ensure!(lab.epoch()? == epoch, "the epoch was {epoch} and is {}", lab.epoch()?);
    let heard = lab.ask("a", v4(2), Service::Udp(UDP))?;
    ensure!(heard == Outcome::Reachable, "afterwards, a new conversation heard {heard:?}");
    // The supervisor starts it again from the new program.
    kill_and_await(&lab)
}

/// Datagrams and TCP of both workers, over a kill and an upgrade.
fn by_two() -> Shown {
    let lab = up(&format!("workers = 2\n{LONG_GRACE}"))?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO, Service::Udp(UDP)])?;
    let dialogues = dialogues_of_both(&lab)?;
    let mut tcp = (0..8).map(|_| settled(&lab)).collect::<Result<Vec<_>, _>>()?;
    let all = dialogues.len() + tcp.len();
    for take_over in TAKEOVERS {
        take_over(&lab)?;
        let mut by = Vec::new();
        let share = wait_for(|| {
            by = owned(&lab)?;
            Ok(are_both(&by) && by.iter().sum::<u64>() == all as u64)
        })?;
        println!("each worker has {by:?} of {all} connections");
        ensure!(share, "{by:?} of {all} connections");
        ensure!(tcp.iter_mut().all(echoes), "a connection is gone");
    }
    for (nth, dialogue) in dialogues.into_iter().enumerate() {
        let counted = dialogue.end()?;
        println!("conversation {nth}: {counted:?}");
        ensure!(counted.sent > 500, "too few to tell: {counted:?}");
        ensure!(counted.came == counted.sent, "some were lost: {counted:?}");
    }
    drop(tcp);
    let ended =
        wait_for(|| Ok(connections(&lab, 6)?.iter().all(|flow| flow.state == "time-wait")))?;
    ensure!(ended, "an end was not understood: {:#?}", connections(&lab, 6)?);
    Ok(())
}

/// Conversations, of which each worker has one at least. Chance says whose a connection is.
fn dialogues_of_both(lab: &Fixture) -> Result<Vec<Stream>, Failed> {
    let mut dialogues = Vec::new();
    while dialogues.len() < 4 || !both_have(lab)? {
        ensure!(dialogues.len() < 16, "one worker has all: {:?}", owned(lab)?);
        dialogues.push(dialogue(lab, &lab.netns("a")?, SocketAddr::new(v4(2), UDP))?);
    }
    Ok(dialogues)
}

/// Whether each worker has a connection. They say so once a second.
fn both_have(lab: &Fixture) -> Result<bool, Failed> {
    wait_up_to(Duration::from_secs(3), || Ok(are_both(&owned(lab)?)))
}

fn are_both(owned: &[u64]) -> bool {
    owned.len() == 2 && owned.iter().all(|&count| count > 0)
}

/// Connections of each worker.
fn owned(lab: &Fixture) -> Result<Vec<u64>, Failed> {
    Ok(lab.dataplane()?.connections_by)
}

/// The program that is to take over ends at once, speaks another protocol, or hangs when it has taken the misses.
/// The last takes as long as the supervisor waits for a successor.
fn upgrade_fails() -> Shown {
    let lab = up(LONG_GRACE)?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO, Service::Udp(UDP)])?;
    let mut connection = settled(&lab)?;
    let dialogue = dialogue(&lab, &lab.netns("a")?, SocketAddr::new(v4(2), UDP))?;
    let before = (dataplane_pid(&lab)?, lab.epoch()?);
    let directory = tempfile::tempdir()?;
    let (stand_in, run_dir) = (std::env::current_exe()?, lab.run_dir().path());
    refused(&lab, Path::new("/bin/false"))?;
    refused(&lab, &directory.path().join("missing"))?;
    Conduct::SpeaksAnother.ask(run_dir)?;
    refused(&lab, &stand_in)?;
    let heard = Conduct::heard(run_dir)?;
    ensure!(heard.contains("a message of protocol version 4, and this firedoor"), "{heard}");
    Conduct::Hangs.ask(run_dir)?;
    ask_to_upgrade(&lab, &stand_in)?;
    let hangs = wait_for(|| Ok(Conduct::hangs(run_dir)))?;
    ensure!(hangs, "the stand-in has not got as far:\n{}", lab.log_tail());
    let taken_back = || Ok(lab.log().contains("its misses are judged here again"));
    ensure!(wait_for(taken_back)?, "{}", lab.log());
    let heard = lab.ask("a", v4(2), Service::Udp(UDP))?;
    ensure!(heard == Outcome::Reachable, "beside one that hangs, a conversation heard {heard:?}");
    let told = refusal(&lab)?;
    ensure!(told.contains("has not taken over"), "{told}");
    Conduct::forget(run_dir)?;
    ensure!(echoes(&mut connection), "the connection is gone");
    ensure!(before == (dataplane_pid(&lab)?, lab.epoch()?), "another data plane runs");
    let counted = dialogue.end()?;
    ensure!(counted.came == counted.sent, "some were lost: {counted:?}");
    let heard = lab.ask("a", v4(2), Service::Udp(UDP))?;
    ensure!(heard == Outcome::Reachable, "afterwards, a new conversation heard {heard:?}");
    upgrade_once(&lab).map(drop)
}

/// A data plane that is stopped says nothing to who would take its place. What it has left in the kernel is needed still
/// when it goes on, and does as it was asked.
fn unanswered() -> Shown {
    let lab = up(LONG_GRACE)?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let mut connection = settled(&lab)?;
    let (stopped, epoch) = (dataplane_pid(&lab)?, lab.epoch()?);
    send(stopped, Signal::SIGSTOP)?;
    let told = refused(&lab, &lab.program());
    send(stopped, Signal::SIGCONT)?;
    told?;
    let relieved = wait_for(|| {
        Ok(dataplane_pid(&lab).is_ok_and(|pid| pid != stopped) && lab.epoch()? == epoch)
    })?;
    ensure!(relieved, "the data plane that was asked to retire did not:\n{}", lab.log_tail());
    // The workloads have lost sight of each other meanwhile.
    ensure!(echoes(&mut connection), "the connection is gone");
    Ok(())
}

/// What looks no frame up in XDP takes the place of what did.
fn no_more() -> Shown {
    for take_over in TAKEOVERS {
        let lab = on_lane("switch", || up(""))?;
        let config = pair(&allow("a", "b", "any"));
        on_lane("switch", || lab.apply_with("express_flows = 0", &config))?;
        take_over(&lab)?;
        for port in lab.status()?.ports {
            let is_taken = port.state == PortState::Up && port.mode == "native copy";
            ensure!(is_taken, "{port:#?}");
        }
    }
    Ok(())
}

/// Ports and drops count what passed since the process took over, and a connection what the kernel has
/// forwarded of it before, too, if it goes on with it.
fn counted_once() -> Shown {
    let lab = up("")?;
    let _responder = Responder::start(&lab.netns("b")?, &[Service::Udp(UDP)])?;
    let bind = || UdpSocket::bind(("0.0.0.0", 0));
    let asker = lab.netns("a")?.run(bind)??;
    asker.connect((v4(2), UDP))?;
    asker.set_read_timeout(Some(PATIENCE))?;
    // No rule allows what b begins.
    let denied = lab.netns("b")?.run(bind)??;
    denied.connect((v4(1), 9))?;
    let takeovers: [fn(&Fixture) -> Shown; 3] =
        [|_| Ok(()), kill_and_await, |lab| upgrade_once(lab).map(drop)];
    let mut earlier = 0;
    for take_over in takeovers {
        let goes_on = is_express(&lab, 17, asker.local_addr()?)?;
        take_over(&lab)?;
        let heard = lab.ask("a", v4(2), Service::Udp(UDP))?;
        ensure!(heard == Outcome::Reachable, "afterwards, a new conversation heard {heard:?}");
        for _ in 0..ASKED {
            asker.send(&[0; 8])?;
            asker.recv(&mut [0; 8])?;
        }
        for _ in 0..DENIED {
            denied.send(&[0; 8])?;
        }
        // What the kernel forwards is counted every second, and what is counted twice is so by then.
        thread::sleep(Duration::from_millis(2_500));
        // Nobody remembers what took the long way for a predecessor, but it was less than all.
        let since = 2 * ASKED;
        let least = since + if goes_on { 3 } else { 0 };
        let all = least..=since + earlier;
        let from = Some(asker.local_addr()?.port());
        let mut shown = Ok(());
        wait_for(|| {
            let flows = connections(&lab, 17)?;
            let flow = flows.iter().find(|flow| flow.src_port == from).ok_or("it is gone")?;
            let frames = flow.frames;
            earlier = frames;
            shown = ports_have_counted(&lab.status()?).and_then(|()| {
                ensure!(all.contains(&frames), "{all:?}: {flow:#?}");
                Ok(())
            });
            Ok(shown.is_ok())
        })?;
        shown?;
        println!("{earlier} frames; it went on: {goes_on}");
    }
    Ok(())
}

/// Datagrams in [`counted_once`] after each start that are answered, and that are dropped.
const ASKED: u64 = 600;
const DENIED: u64 = 50;

/// Whether the ports, and the drops, are those of one start.
fn ports_have_counted(status: &Status) -> Shown {
    /// Neighbours that are looked for, and what else nobody asked for.
    const NOISE: u64 = 40;
    for port in &status.ports {
        let [received, sent] = [port.counters.rx_frames, port.counters.tx_frames];
        let refused = if port.workload == "b" { DENIED } else { 0 };
        ensure!((ASKED + refused..ASKED + refused + NOISE).contains(&received), "{port:#?}");
        ensure!((ASKED..ASKED + NOISE).contains(&sent), "{port:#?}");
    }
    let dataplane = status.dataplane.as_ref().ok_or("the data plane does not answer")?;
    // Of what the kernel forwards the totals know as the ports do.
    let sum = |of: fn(&PortCounters) -> u64| -> u64 {
        status.ports.iter().map(|port| of(&port.counters)).sum()
    };
    let [received, sent] = [sum(|port| port.rx_frames), sum(|port| port.tx_frames)];
    let is_near = |total: u64, ports: u64| total.abs_diff(ports) < NOISE;
    let are_near = is_near(dataplane.received, received) && is_near(dataplane.sent, sent);
    ensure!(are_near, "the ports have {received} and {sent} frames: {dataplane:#?}");
    let drops = &dataplane.drops;
    let is_it = |(reason, _): &&_| *reason == DropReason::DefaultDeny;
    let dropped = drops.iter().find(is_it).map_or(0, |&(_, frames)| frames);
    ensure!((DENIED..DENIED + NOISE).contains(&dropped), "{drops:?}");
    Ok(())
}

/// What the supervisor says of an upgrade to a program that cannot take over. It is asked as
/// `firedoor upgrade` asks it.
fn refused(lab: &Fixture, program: &Path) -> Result<String, Failed> {
    ask_to_upgrade(lab, program)?;
    refusal(lab)
}

fn ask_to_upgrade(lab: &Fixture, program: &Path) -> Shown {
    std::fs::write(lab.run_dir().upgrade(), program.as_os_str().as_encoded_bytes())?;
    send(supervisor_pid(lab)?, Signal::SIGUSR1)
}

/// What comes of it.
fn refusal(lab: &Fixture) -> Result<String, Failed> {
    let asked = lab.run_dir().upgrade();
    let mut told = String::new();
    wait_up_to(2 * PATIENCE, || {
        told = std::fs::read_to_string(&asked)?;
        Ok(told.starts_with("failed: "))
    })?;
    println!("{told}");
    ensure!(told.starts_with("failed: "), "it was not refused: {told}");
    Ok(told)
}

/// Whoever begins a connection during an upgrade gets an answer, and who may not begin one gets none.
fn new_connections() -> Shown {
    let lab = up("")?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    // No rule allows what b begins.
    let denied = Stream::start(&lab.netns("b")?, &lab.netns("a")?, v4(1), 9)?;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| -> Result<_, Failed> {
            let (netns, stopped) = (lab.netns("a")?, Arc::clone(&stop));
            Ok(thread::spawn(move || begin_until(&netns, &stopped)))
        })
        .collect::<Result<_, _>>()?;
    for _ in 0..2 {
        println!("{}", upgrade_once(&lab)?);
    }
    thread::sleep(Duration::from_millis(200));
    stop.store(true, Ordering::Relaxed);
    let mut begun = 0;
    for client in clients {
        begun += client.join().map_err(|_| "a client panicked")??;
    }
    let denied = denied.end()?;
    println!("{begun} connections over two upgrades; of what is denied {denied:?}");
    ensure!(begun > 50, "{begun} connections are too few to tell");
    ensure!(denied.sent > 1_000 && denied.came == 0, "denied datagrams passed: {denied:?}");
    Ok(())
}

/// Begins one connection after the other, and fails if one gets no echo. Returns how many there were.
fn begin_until(from: &Netns, stop: &AtomicBool) -> Result<u64, Failed> {
    let to = SocketAddr::new(v4(2), 7);
    let mut begun = 0;
    while !stop.load(Ordering::Relaxed) {
        ensure!(echoes(&mut fixture::connect(from, to)?), "connection {begun} has no echo");
        begun += 1;
    }
    Ok(begun)
}

fn fail_closed() -> Shown {
    const GRACE: u64 = 6;
    let lab = up(&format!("express_grace_secs = {GRACE}"))?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO, Service::Udp(UDP)])?;
    let mut connection = settled(&lab)?;
    // No rule allows what b begins.
    let denied = Stream::start(&lab.netns("b")?, &lab.netns("a")?, v4(1), 9)?;
    kill_hard(dataplane_pid(&lab)?)?;
    kill_hard(supervisor_pid(&lab)?)?;
    ensure!(echoes(&mut connection), "it did not outlive the data plane");
    let heard = lab.ask("a", v4(2), Service::Udp(UDP))?;
    ensure!(
        heard == Outcome::Silent,
        "with nobody to judge it, a new conversation heard {heard:?}"
    );
    thread::sleep(Duration::from_secs(GRACE + 1));
    ensure!(is_cut(&mut connection), "the kernel goes on without the switch");
    let denied = denied.end()?;
    ensure!(denied.sent > 1_000 && denied.came == 0, "denied datagrams passed: {denied:?}");
    let pins = pins(&lab);
    ensure!(pins.exists(), "{} is not there", pins.display());
    lab.down()?;
    ensure!(!pins.exists(), "{} is left", pins.display());
    Ok(())
}

fn nothing_pinned() -> Shown {
    let lab = up("")?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let mut connection = settled(&lab)?;
    let pins = pins(&lab);
    ensure!(pins.exists(), "{} is not there", pins.display());
    let status = lab.status()?.dataplane.and_then(|dataplane| dataplane.express);
    ensure!(status.is_some_and(|express| express.pinned && express.flows >= 2), "{status:?}");
    // The data plane ends in order when its supervisor is killed.
    kill_hard(supervisor_pid(&lab)?)?;
    let gone = wait_for(|| Ok(!pins.exists()))?;
    ensure!(gone, "{} is left", pins.display());
    ensure!(is_cut(&mut connection), "the kernel goes on without the switch");
    Ok(())
}

fn pins(lab: &Fixture) -> PathBuf {
    Path::new("/sys/fs/bpf/firedoor").join(lab.name())
}
