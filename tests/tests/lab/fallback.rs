//! A switch that the host or the kernel does not give all it would like to have: it carries on with
//! what there is, or says what is missing, where people look.

use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::Duration;

use firedoor_api::dataplane::PortState;
use firedoor_classifier::snapshot::Lane;
use firedoor_lab::probe::{Outcome, Responder, Service};
use libtest_mimic::Failed;
use nix::sys::signal::Signal;

use crate::express::ECHO;
use crate::failure::{send, state, wire};
use crate::fixture::{
    Fixture, NO_TCX, Stream, allow, echoes, ensure, firedoor, is_cut, pair, printed, start_in, v4,
    wait_for,
};
use crate::policy::nothing_lost;
use crate::restart::{LONG_GRACE, UDP, dialogue, kill_and_await, settled, upgrade_once};
use crate::{Shown, Test};

const MOUNTING: &[&str] = &["unshare", "mount", "umount"];

pub(crate) const TESTS: &[Test] = &[
    ("without_a_bpf_file_system_the_switch_pins_in_one_of_its_own", MOUNTING, own_file_system),
    ("flows_that_cannot_be_pinned_are_forwarded_and_told_of", MOUNTING, read_only),
    (
        "without_the_right_to_mount_express_flows_end_with_the_data_plane",
        &["unshare", "umount", "setpriv"],
        no_mount,
    ),
    (
        "without_tcx_a_killed_switch_fails_closed_and_the_next_takes_its_filters_place",
        &["tc"],
        killed_without_tcx,
    ),
    ("without_cap_perfmon_the_switch_lane_carries_ports_and_says_why", &["setpriv"], no_perfmon),
    ("without_cap_bpf_ports_say_what_is_missing", &["setpriv"], no_bpf),
];

/// A pair whose `a` may ask `b`, of a switch that is started by that command.
fn up_by(command: &str) -> Result<Fixture, Failed> {
    Fixture::up_by(command, LONG_GRACE, &pair(&allow("a", "b", "any")))
}

/// The command that runs others once that was done to a private copy of the mounts.
fn with_mounts(changes: &str) -> String {
    format!("unshare --mount sh -ec '{changes}; exec \"$@\"' sh")
}

fn own_file_system() -> Shown {
    let lab = up_by(&with_mounts("umount /sys/fs/bpf || true"))?;
    let log = lab.log();
    ensure!(log.contains("no BPF file system is mounted: made one"), "{log}");
    ensure!(is_pinned(&lab)?, "nothing is pinned");
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO, Service::Udp(UDP)])?;
    let mut connection = settled(&lab)?;
    let dialogue = dialogue(&lab, &lab.netns("a")?, SocketAddr::new(v4(2), UDP))?;
    kill_and_await(&lab)?;
    upgrade_once(&lab)?;
    nothing_lost(dialogue.end()?)?;
    ensure!(echoes(&mut connection), "the connection is gone");
    let run_dir = lab.run_dir().path().to_owned();
    lab.down()?;
    ensure!(!run_dir.exists(), "{} is left", run_dir.display());
    Ok(())
}

fn read_only() -> Shown {
    let changes = "mount -t bpf bpf /sys/fs/bpf; mount -o remount,bind,ro /sys/fs/bpf";
    let lab = up_by(&with_mounts(changes))?;
    each_port_says(&lab, Lane::Express, "because they cannot be pinned: Read-only file system")?;
    flows_end_with_the_data_plane(&lab)
}

fn no_mount() -> Shown {
    let weaker = "setpriv --bounding-set=-sys_admin";
    let lab = up_by(&format!("{} {weaker}", with_mounts("umount /sys/fs/bpf || true")))?;
    let log = lab.log();
    ensure!(log.contains("no BPF file system can be mounted, which takes CAP_SYS_ADMIN"), "{log}");
    flows_end_with_the_data_plane(&lab)
}

/// The kernel forwards, and forwards again for the next data plane.
fn flows_end_with_the_data_plane(lab: &Fixture) -> Shown {
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    for _ in 0..2 {
        ensure!(!is_pinned(lab)?, "it is said to be pinned");
        settled(lab)?;
        kill_and_await(lab)?;
    }
    settled(lab).map(drop)
}

/// All three processes are killed at once; no pin holds the program, and it goes on all the same.
fn killed_without_tcx() -> Shown {
    const GRACE: u64 = 6;
    let rules = pair(&allow("a", "b", "any"));
    let lab = Fixture::up_by(NO_TCX, &format!("express_grace_secs = {GRACE}"), &rules)?;
    each_port_says(&lab, Lane::Express, "a filter of clsact looks its frames up")?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO, Service::Udp(UDP)])?;
    let mut connection = settled(&lab)?;
    let denied = Stream::start(&lab.netns("b")?, &lab.netns("a")?, v4(1), 9)?;
    kill_all(&lab)?;
    let left = filters(&lab)?;
    ensure!(left.len() == 2, "{left:?}");
    ensure!(echoes(&mut connection), "it did not outlive the switch");
    let heard = lab.ask("a", v4(2), Service::Udp(UDP))?;
    ensure!(heard == Outcome::Silent, "with nobody to judge it, a conversation heard {heard:?}");
    thread::sleep(Duration::from_secs(GRACE + 1));
    ensure!(is_cut(&mut connection), "the kernel goes on without the switch");
    let denied = denied.end()?;
    ensure!(denied.sent > 1_000 && denied.came == 0, "denied datagrams passed: {denied:?}");

    let command: Vec<&str> = NO_TCX.split(' ').collect();
    let (config, firedoor) = (lab.config(), firedoor());
    let run = [firedoor.to_string_lossy(), "run".into(), config.to_string_lossy()];
    let arguments: Vec<&str> =
        command[1..].iter().copied().chain(run.iter().map(|a| &**a)).collect();
    let next = start_in(&lab.switch_netns()?, command[0], &arguments)?;
    let judges = || Ok(lab.ask("a", v4(2), Service::Udp(UDP))? == Outcome::Reachable);
    ensure!(wait_for(judges)?, "the next switch judges nothing");
    settled(&lab)?;
    let replaced = filters(&lab)?;
    let is_new = |filter: &String| !left.contains(filter);
    ensure!(replaced.len() == 2 && replaced.iter().all(is_new), "{left:?} {replaced:?}");
    send(next.0.id(), Signal::SIGTERM)?;
    let gone = wait_for(|| Ok(filters(&lab)?.is_empty()))?;
    ensure!(gone, "{:?}", filters(&lab)?);
    Ok(())
}

/// Kills supervisor, data plane and control, of which none can start another again.
pub(crate) fn kill_all(lab: &Fixture) -> Shown {
    let all = lab.state().processes();
    ensure!(all.len() == 3, "processes {all:?}");
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        all.iter().try_for_each(|&pid| send(pid, signal))?;
    }
    let dead = wait_for(|| Ok(lab.state().processes().is_empty()))?;
    ensure!(dead, "processes {:?} live on", lab.state().processes());
    Ok(())
}

/// The filters at the ports' ingress, each in a line that names its program.
fn filters(lab: &Fixture) -> Result<Vec<String>, Failed> {
    let mut found = Vec::new();
    for host in lab.hosts() {
        let mut tc = Command::new("tc");
        tc.args(["filter", "show", "dev", &host.ifname, "ingress"]);
        let shown = printed("tc", &lab.switch_netns()?.run(|| tc.output())??)?;
        found.extend(shown.lines().filter(|line| line.contains(" handle ")).map(str::to_owned));
    }
    Ok(found)
}

fn no_perfmon() -> Shown {
    // CAP_SYS_ADMIN stands for it, too.
    let lab = up_by("setpriv --bounding-set=-sys_admin,-perfmon")?;
    each_port_says(&lab, Lane::Switch, "CAP_BPF with CAP_PERFMON and CAP_NET_ADMIN")?;
    let stream = Stream::start(&lab.netns("a")?, &lab.netns("b")?, v4(2), 9)?;
    thread::sleep(Duration::from_millis(500));
    nothing_lost(stream.end()?)
}

/// Nothing can be received without a program, on either lane.
fn no_bpf() -> Shown {
    let (ifname, mac) = ("fdwire", [2, 0, 0, 0, 0x40, 1]);
    let external = "[[workload]]\nname = \"a\"\nkind = \"external\"\nifname = \"fdwire\"\n\
                    mac = \"02:00:00:00:40:01\"\nip = [\"10.40.0.1/16\"]\n";
    let lab = Fixture::up_by("setpriv --bounding-set=-sys_admin,-perfmon,-bpf", "", external)?;
    wire(&lab, ifname, &lab.switch_netns()?, mac)?;
    let missing =
        format!("load the XDP program for {ifname}: CAP_BPF with CAP_NET_ADMIN is needed");
    let says = |port: &PortState| matches!(port, PortState::Failed(why) if why.contains(&missing));
    let said = wait_for(|| Ok(state(&lab, "a")?.is_some_and(|s| says(&s))))?;
    ensure!(said, "the port is {:?}", state(&lab, "a")?);
    Ok(())
}

fn is_pinned(lab: &Fixture) -> Result<bool, Failed> {
    let express = lab.status()?.dataplane.and_then(|dataplane| dataplane.express);
    Ok(express.ok_or("there is no express lane")?.pinned)
}

/// Every port is on that lane, and one of its notices says so.
fn each_port_says(lab: &Fixture, lane: Lane, notice: &str) -> Shown {
    for port in lab.status()?.ports {
        let says = port.notices.iter().any(|said| said.contains(notice));
        ensure!(says && port.lane == lane && port.state == PortState::Up, "{port:#?}");
    }
    Ok(())
}
