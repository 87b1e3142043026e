//! What happens when parts come, go or die.

use std::fs;
use std::process::Command;
use std::time::Duration;

use firedoor_api::dataplane::PortState;
use firedoor_dataplane::link::{Netlink, VethEnd};
use firedoor_lab::Lab;
use firedoor_lab::netns::Netns;
use firedoor_lab::probe::{Outcome, Service};
use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::{
    ANSWER, Counted, Fixture, Stream, allow, container, ensure, firedoor, pair, printed,
    unique_name, v4, wait_for,
};
use crate::policy::nothing_lost;
use crate::traffic::ping;
use crate::{Shown, Test};

pub(crate) const TESTS: &[Test] = &[
    ("two_labs_with_the_same_addresses_run_side_by_side", &[], two_labs),
    ("a_workload_comes_and_goes_without_loss_to_others", &["ip"], hot_plug),
    ("control_killed_loses_no_frame_and_finds_its_epoch_again", &[], control_killed),
    ("dataplane_killed_comes_back_and_passes_nothing_that_is_denied", &[], dataplane_killed),
    ("an_interface_that_vanishes_is_reported_and_taken_again", &[], interface_returns),
    ("sigterm_leaves_no_program_socket_or_process", &[], sigterm_leaves_nothing),
    ("lab_down_leaves_no_namespace_link_or_file", &[], down_leaves_nothing),
];

/// What has nothing to do with lanes or workers.
pub(crate) const OF_NO_LANE: &[Test] = &[
    ("a_lab_whose_builder_was_killed_is_cleaned_up_by_the_next", &[], killed_builder),
    ("a_namespace_of_someone_else_is_left_alone", &[], foreign_namespace),
];

/// Likewise; there is one demo at a time.
pub(crate) const OF_THE_DEMO: &[Test] = &[
    ("demo_agrees_with_policy_and_leaves_nothing", &[], demo),
    ("demo_interrupted_leaves_nothing", &[], demo_interrupted),
];

fn two_labs() -> Shown {
    let one = Fixture::up(&pair(&allow("a", "b", "any")))?;
    let two = Fixture::up(&pair(&allow("a", "b", "any")))?;
    let three = Fixture::up(&pair(""))?;
    for (lab, expected) in
        [(&one, Outcome::Reachable), (&two, Outcome::Reachable), (&three, Outcome::Silent)]
    {
        let heard = lab.ask("a", v4(2), Service::Ping)?;
        ensure!(heard == expected, "in lab {}, a heard {heard:?}", lab.name());
    }
    one.down()?;
    let heard = two.ask("a", v4(2), Service::Ping)?;
    ensure!(heard == Outcome::Reachable, "after another lab went, a heard {heard:?}");
    Ok(())
}

/// Datagrams from `a` to `b` run while `meanwhile` happens, and a little before and after.
fn while_others_talk(lab: &Fixture, meanwhile: impl FnOnce() -> Shown) -> Result<Counted, Failed> {
    let stream = Stream::start(&lab.netns("a")?, &lab.netns("b")?, v4(2), 9)?;
    std::thread::sleep(Duration::from_millis(200));
    let happened = meanwhile();
    std::thread::sleep(Duration::from_millis(200));
    let counted = stream.end()?;
    happened.map(|()| counted)
}

fn hot_plug() -> Shown {
    let rules = allow("a", "b", "udp/9")
        + "[[rule]]\nname = \"guests\"\nfrom = { guest = \"yes\" }\nto = { name = \"b\" }\n\
           action = \"allow\"\n";
    let lab = Fixture::up(&pair(&rules))?;
    let guest = Guest::make(&lab)?;
    let counted = while_others_talk(&lab, || {
        for _ in 0..3 {
            guest.add(&lab, &["--label", "guest=yes"])?;
            let heard = guest.ping(v4(2))?;
            ensure!(heard == Outcome::Reachable, "the added workload heard {heard:?}");
            printed("firedoor port del", &lab.firedoor(&["port", "del", "c"])?)?;
            let heard = guest.ping(v4(2))?;
            ensure!(heard != Outcome::Reachable, "the workload that was taken out still talks");
        }
        Ok(())
    })?;
    println!("over 3 additions and removals: {counted:?}");
    nothing_lost(counted)
}

/// A container that the config does not know, wired to the lab's switch.
pub(crate) struct Guest {
    netns: Netns,
}

impl Guest {
    const IFNAME: &str = "fdguest";
    const MAC: &str = "02:00:00:00:40:03";

    pub(crate) fn make(lab: &Fixture) -> Result<Self, Failed> {
        let guest = Self { netns: Netns::create(&format!("fd-{}-guest", lab.name()))? };
        guest.netns.set("ipv4/ping_group_range", "0 2147483647")?;
        wire(lab, Self::IFNAME, &guest.netns, [2, 0, 0, 0, 0x40, 3])?;
        guest.netns.run(|| {
            Command::new("ip").args(["addr", "add", "10.40.0.3/16", "dev", "eth0"]).status()
        })??;
        Ok(guest)
    }

    /// Adds it as the workload `c`, with more of what `port add` may be told, and waits for its port.
    pub(crate) fn add(&self, lab: &Fixture, more: &[&str]) -> Shown {
        let known = ["port", "add", "c", "--kind", "external", "--ip", "10.40.0.3/16"];
        let place = ["--ifname", Self::IFNAME, "--mac", Self::MAC];
        printed("firedoor port add", &lab.firedoor(&[&known[..], &place[..], more].concat())?)?;
        let up = wait_for(|| Ok(state(lab, "c")? == Some(PortState::Up)))?;
        ensure!(up, "the added port is {:?}", state(lab, "c")?);
        Ok(())
    }

    fn ping(&self, to: std::net::IpAddr) -> Result<Outcome, Failed> {
        let ask = || firedoor_lab::probe::probe(to, Service::Ping, ANSWER);
        Ok(self.netns.run(ask)??.outcome)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = Netns::delete(self.netns.name());
    }
}

/// A wire from `ifname` in the switch's namespace to `eth0` in another, both ends up.
pub(crate) fn wire(lab: &Fixture, ifname: &str, to: &Netns, mac: [u8; 6]) -> Shown {
    use std::os::fd::AsFd;
    lab.switch_netns()?.run(|| -> Shown {
        let far =
            VethEnd { mac: Some(mac), netns: Some(to.file().as_fd()), ..VethEnd::new("eth0") };
        let mut netlink = Netlink::open()?;
        netlink.create_veth(VethEnd::new(ifname), far, 1)?;
        Ok(netlink.set_up(ifname, true)?)
    })??;
    Ok(to.run(|| Netlink::open().map(|mut netlink| netlink.set_up("eth0", true)))???)
}

pub(crate) fn state(lab: &Fixture, workload: &str) -> Result<Option<PortState>, Failed> {
    let ports = lab.status()?.ports;
    Ok(ports.into_iter().find(|port| port.workload == workload).map(|port| port.state))
}

pub(crate) fn kill_hard(pid: u32) -> Shown {
    send(pid, Signal::SIGKILL)
}

pub(crate) fn send(pid: u32, signal: Signal) -> Shown {
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
}

fn control_killed() -> Shown {
    let lab = Fixture::up(&pair(&allow("a", "b", "udp/9")))?;
    lab.apply(&pair(&allow("a", "b", "udp/9")))?;
    let (epoch, killed) = (lab.epoch()?, lab.status()?.control_pid);
    let counted = while_others_talk(&lab, || {
        kill_hard(killed)?;
        let back = wait_for(|| {
            Ok(lab.status().is_ok_and(|s| s.control_pid != killed && s.dataplane.is_some()))
        })?;
        ensure!(back, "control did not come back:\n{}", lab.log_tail());
        std::thread::sleep(Duration::from_millis(500));
        Ok(())
    })?;
    ensure!(lab.epoch()? == epoch, "the epoch was {epoch} and is {}", lab.epoch()?);
    println!("while control was killed and came back: {counted:?}");
    nothing_lost(counted)
}

fn dataplane_killed() -> Shown {
    let lab = Fixture::up(&pair(&allow("a", "b", "icmp/echo")))?;
    let (epoch, killed) = (lab.epoch()?, dataplane_pid(&lab)?);
    // No rule allows the datagrams: not one may come, least of all while there is no policy yet.
    let denied = while_others_talk(&lab, || {
        kill_hard(killed)?;
        let back = wait_for(|| {
            Ok(dataplane_pid(&lab).is_ok_and(|pid| pid != killed)
                && state(&lab, "a")? == Some(PortState::Up)
                && state(&lab, "b")? == Some(PortState::Up))
        })?;
        ensure!(back, "the data plane did not come back:\n{}", lab.log_tail());
        let heard = lab.ask("a", v4(2), Service::Ping)?;
        ensure!(heard == Outcome::Reachable, "after the restart, a heard {heard:?}");
        Ok(())
    })?;
    println!("denied datagrams around the restart: {denied:?}");
    ensure!(denied.sent > 100, "too few datagrams to tell: {denied:?}");
    ensure!(denied.came == 0, "datagrams passed that policy denies: {denied:?}");
    ensure!(lab.epoch()? == epoch, "the epoch was {epoch} and is {}", lab.epoch()?);
    Ok(())
}

pub(crate) fn dataplane_pid(lab: &Fixture) -> Result<u32, Failed> {
    Ok(lab.dataplane()?.pid)
}

pub(crate) fn supervisor_pid(lab: &Fixture) -> Result<u32, Failed> {
    let text = fs::read_to_string(lab.run_dir().path().join("run.pid"))?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

fn interface_returns() -> Shown {
    let rules = allow("a", "b", "udp/9") + &allow("c", "b", "any");
    let lab = Fixture::up(&(container("c", 3) + &pair(&rules)))?;
    let host = lab.host("c")?.clone();
    let counted = while_others_talk(&lab, || {
        lab.switch_netns()?.run(|| Netlink::open().map(|mut n| n.delete(&host.ifname)))???;
        let gone = wait_for(|| Ok(state(&lab, "c")? == Some(PortState::Missing)))?;
        ensure!(gone, "the port without its interface is {:?}", state(&lab, "c")?);
        wire(&lab, &host.ifname, &lab.netns("c")?, host.mac.unwrap_or_default().0)?;
        let back = wait_for(|| Ok(state(&lab, "c")? == Some(PortState::Up)))?;
        ensure!(back, "the port whose interface came back is {:?}", state(&lab, "c")?);
        Ok(())
    })?;
    // The new interface has no address but the one that IPv6 derives from its MAC address.
    let address = link_local(&lab, "b")?;
    ping(&lab, "c", &format!("{address}%eth0"), &[])?;
    nothing_lost(counted)
}

fn link_local(lab: &Fixture, workload: &str) -> Result<String, Failed> {
    let snapshot = lab.snapshot()?;
    let addresses = snapshot.workloads.iter().find(|w| w.name == workload).map(|w| &w.addresses);
    let is_link_local =
        |a: &&std::net::IpAddr| matches!(a, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
    let address = addresses.and_then(|addresses| addresses.iter().find(is_link_local));
    Ok(address.ok_or("no link-local address")?.to_string())
}

fn sigterm_leaves_nothing() -> Shown {
    let lab = Fixture::up(&pair(&allow("a", "b", "any")))?;
    let heard = lab.ask("a", v4(2), Service::Ping)?;
    ensure!(heard == Outcome::Reachable, "a heard {heard:?}");
    kill(Pid::from_raw(i32::try_from(supervisor_pid(&lab)?)?), Signal::SIGTERM)?;
    let ended = wait_for(|| Ok(lab.state().processes().is_empty()))?;
    ensure!(ended, "processes {:?} live on", lab.state().processes());

    let links = lab.switch_netns()?.run(|| Netlink::open().and_then(|mut n| n.links()))??;
    let attached: Vec<_> = links.iter().filter(|link| link.xdp_program.is_some()).collect();
    ensure!(attached.is_empty(), "programs are still attached: {attached:?}");
    let left: Vec<_> = fs::read_dir(lab.run_dir().path())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !["lab.json", "hosts", "switch.log"].contains(&name.as_str()))
        .collect();
    ensure!(left.is_empty(), "files are left: {left:?}");
    Ok(())
}

fn down_leaves_nothing() -> Shown {
    let lab = Fixture::up(&pair(&allow("a", "b", "any")))?;
    let (state, run_dir) = (lab.state().clone(), lab.run_dir().path().to_owned());
    lab.down()?;
    nothing_left(&state, &run_dir)
}

fn nothing_left(state: &firedoor_lab::state::State, run_dir: &std::path::Path) -> Shown {
    ensure!(state.processes().is_empty(), "processes {:?} live on", state.processes());
    for name in state.all_netns() {
        ensure!(Netns::open(name).is_err(), "the namespace {name} is left");
    }
    ensure!(!run_dir.exists(), "{} is left", run_dir.display());
    Ok(())
}

/// Builders of one lab are killed after longer and longer, the last perhaps when it is done.
fn killed_builder() -> Shown {
    let name = unique_name();
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("lab.toml");
    fs::write(&path, format!("[switch]\nname = \"{name}\"\n{}", pair("")))?;
    let up = || Command::new(firedoor()).arg("lab").arg("up").arg(&path).output();
    for milliseconds in (0..400).step_by(40) {
        let mut builder = Command::new(firedoor());
        builder.arg("lab").arg("up").arg(&path).stdout(std::process::Stdio::null());
        let mut builder = builder.spawn()?;
        std::thread::sleep(Duration::from_millis(milliseconds));
        kill_hard(builder.id())?;
        builder.wait()?;
        let is_built = Lab::open(&name).is_ok_and(|lab| lab.state().builder.is_none());
        if !is_built {
            printed("firedoor lab up", &up()?)?;
        }
        let lab = Lab::open(&name)?;
        let (state, run_dir) = (lab.state().clone(), lab.run_dir().path().to_owned());
        lab.down()?;
        nothing_left(&state, &run_dir)?;
    }
    Ok(())
}

fn foreign_namespace() -> Shown {
    let name = unique_name();
    let foreign = Netns::create(&format!("fd-{name}-b"))?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("lab.toml");
    fs::write(&path, format!("[switch]\nname = \"{name}\"\n{}", pair("")))?;
    let up = Command::new(firedoor()).arg("lab").arg("up").arg(&path).output()?;
    let is_left = Netns::open(foreign.name()).is_ok();
    Netns::delete(foreign.name())?;
    let said = String::from_utf8_lossy(&up.stderr);
    ensure!(up.status.code() == Some(2) && said.contains(foreign.name()), "it said: {said}");
    ensure!(is_left, "the namespace of someone else was removed");
    ensure!(Lab::open(&name).is_err(), "a lab is left that was not built");
    Ok(())
}

fn demo() -> Shown {
    let directory = tempfile::tempdir()?;
    let mut demo = Command::new(firedoor());
    demo.args(["demo", "--seconds", "1", "--json"]).current_dir(directory.path());
    let said = printed("firedoor demo", &demo.output()?)?;
    let report: serde_json::Value = serde_json::from_str(&said)?;
    ensure!(report["agrees"] == true, "{said}");
    ensure!(report["throughput"][0]["bits_per_second"].as_f64() > Some(0.0), "{said}");
    let capture = report["capture"].as_str().ok_or("the capture has no path")?;
    ensure!(fs::metadata(capture)?.len() > 0, "the capture is empty");
    no_demo_left()
}

fn demo_interrupted() -> Shown {
    let directory = tempfile::tempdir()?;
    for milliseconds in [0, 500, 1_100] {
        let mut demo = Command::new(firedoor());
        demo.arg("demo").current_dir(directory.path());
        demo.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut demo = demo.spawn()?;
        let minds = wait_for(|| minds_signals(demo.id()))?;
        ensure!(minds, "the demo does not mind signals");
        std::thread::sleep(Duration::from_millis(milliseconds));
        kill(Pid::from_raw(i32::try_from(demo.id())?), Signal::SIGINT)?;
        let status = demo.wait()?;
        ensure!(status.code() == Some(2), "after {milliseconds} ms the demo ended with {status}");
        no_demo_left()?;
    }
    Ok(())
}

/// Whether a process handles the last of the signals that firedoor asks for (`proc_pid_status(5)`, `SigCgt`): one
/// that comes earlier ends it at once.
fn minds_signals(pid: u32) -> Result<bool, Failed> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.ok_or("no such line")?.trim(), 16)?;
    Ok(caught & (1 << (Signal::SIGHUP as u32 - 1)) != 0)
}

fn no_demo_left() -> Shown {
    ensure!(Lab::open("demo").is_err(), "the demo's lab is left");
    ensure!(Netns::open("fd-demo").is_err(), "the demo's namespace is left");
    Ok(())
}
