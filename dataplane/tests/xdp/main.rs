//! Ports on real interfaces of this kernel: veth pairs and taps, in namespaces of their own.
//!
//! Each test runs in a fresh, unnamed network namespace, which plays the host, and makes more for
//! the workloads. They vanish with the test, however it ends. Without the right to make namespaces
//! every test is reported as ignored, with the reason.
#![forbid(unsafe_code)]

mod express;
mod guest;
mod host;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use firedoor_dataplane::frame::{Frame, leaked};
use firedoor_dataplane::link::{LinkEvent, LinkWatch, Netlink, VethEnd};
use firedoor_dataplane::port::Port;
use firedoor_dataplane::port::xdp::{OpenError, XdpOptions, XdpPort};
use firedoor_dataplane::sys::tap;
use host::{Host, Workload};
use libtest_mimic::{Arguments, Failed, Trial};

/// The test binary started again with this argument opens the interface named by the next one, and
/// waits to be killed.
const HOLD: &str = "--hold-interface";
/// Likewise, on the express lane of a kernel without tcx.
const HOLD_CLSACT: &str = "--hold-interface-at-clsact";

fn main() {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some(HOLD), Some(ifname)) => return hold(&ifname),
        (Some(HOLD_CLSACT), Some(ifname)) => return hold_clsact(&ifname),
        _ => {}
    }
    let obstacle = host::obstacle();
    if let Some(reason) = &obstacle {
        eprintln!("ignored, because {reason}");
    }
    let trials = TESTS
        .iter()
        .chain(&express::TESTS)
        .chain(&guest::TESTS)
        .map(|(name, test)| {
            Trial::test(*name, move || host::run(test)).with_ignored_flag(obstacle.is_some())
        })
        .collect();
    let mut arguments = Arguments::from_args();
    // One at a time: a process that a test starts shares, until its exec, the descriptors of all
    // others, and what they close would not be closed.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

type Test = fn(&mut Host) -> Result<(), Failed>;

const TESTS: [(&str, Test); 18] = [
    ("frames_cross_in_native_mode", |host| frames_cross(host, 1, false)),
    ("frames_cross_in_generic_mode", |host| frames_cross(host, 1, true)),
    ("frames_cross_between_interfaces_of_two_queues", |host| frames_cross(host, 2, false)),
    ("frames_cross_between_a_tap_and_its_holder", tap),
    ("a_flood_loses_frames_but_no_chunk", flood),
    ("a_driver_without_native_mode_runs_in_generic_mode_and_says_so", no_native_mode),
    ("a_closed_interface_opens_again_at_once", closed_interface_opens_again),
    ("a_killed_process_leaves_nothing_attached", killed_process_leaves_nothing),
    ("an_interface_deleted_while_open_loses_no_frame", deleted_while_open),
    ("an_interface_that_is_down_takes_frames_and_gives_them_back", down_while_sending),
    ("more_frames_than_the_ring_holds_are_left_to_the_caller", overfull_ring),
    ("a_port_that_ran_dry_receives_again", ran_dry),
    ("the_host_is_silent_while_the_port_is_open", host_is_silent),
    ("an_interface_that_does_not_exist", no_such_interface),
    ("an_mtu_that_is_too_large", mtu_too_large),
    ("an_interface_that_another_port_has", interface_is_taken),
    ("too_few_frames_to_receive_into", too_few_frames),
    ("interfaces_that_come_and_go_are_heard", link_watch),
];

fn frames_cross(host: &mut Host, queues: u32, force_generic: bool) -> Result<(), Failed> {
    let one = Workload::new("10.99.0.1", "fd1", queues)?;
    let two = Workload::new("10.99.0.2", "fd2", queues)?;
    let options = XdpOptions { force_generic, ..XdpOptions::default() };
    let mut ports = Vec::new();
    for ifname in ["fd1", "fd2"] {
        let opened = host.open(ifname, &options)?;
        let expected = if force_generic { "generic copy" } else { "native copy" };
        assert_eq!(opened.mode, expected);
        assert_eq!(opened.notices.is_empty(), !force_generic, "{:?}", opened.notices);
        assert_eq!(opened.queues.len(), queues as usize);
        ports.push(opened.queues);
    }
    let sizes = [0, 18, 100, 1000, 1472];
    let answers = std::thread::scope(|scope| {
        let pings = scope.spawn(|| one.ping(two.address, &sizes));
        host.hub(&mut ports, || pings.is_finished());
        pings.join()
    });
    assert_eq!(answers.map_err(|_| "the pings panicked")??, sizes.len());
    for port in ports.iter().flatten() {
        let statistics = port.statistics();
        assert_eq!(
            (statistics.rx_ring_full, statistics.tx_invalid, statistics.fill_invalid),
            (0, 0, 0)
        );
    }
    host.close(ports.into_iter().flatten());
    host.assert_conserved();
    Ok(())
}

fn tap(host: &mut Host) -> Result<(), Failed> {
    let mut holder = tap::open("fd1")?;
    let opened = host.open("fd1", &XdpOptions::default())?;
    assert_eq!((opened.mode.as_str(), opened.notices.len()), ("native copy", 0));
    let mut port = only(opened.queues)?;

    let sent: Vec<Vec<u8>> =
        (0..10).map(|number| vec![number; 60 + 150 * number as usize]).collect();
    for bytes in &sent {
        holder.write_all(bytes)?;
    }
    let mut batch = Vec::new();
    host::wait_for(|| {
        port.receive(&mut host.pool, &mut batch);
        batch.len() == sent.len()
    })?;
    let received: Vec<_> = batch.iter().map(|frame| host.umem.bytes(frame).to_vec()).collect();
    assert_eq!(received, sent);

    port.transmit(&mut batch);
    assert!(batch.is_empty());
    let mut buffer = [0; 2048];
    for bytes in &sent {
        let len = holder.read(&mut buffer)?;
        assert_eq!(buffer.get(..len), Some(bytes.as_slice()));
    }

    // The machine is switched off: its tap vanishes.
    drop(holder);
    send(host, &mut port, 10);
    assert!(host.link("fd1").is_err());
    host.close([port]);
    host.assert_conserved();
    Ok(())
}

/// One tap is flooded, the holder of the other never reads, and every ring is short.
fn flood(host: &mut Host) -> Result<(), Failed> {
    let (mut source, mut sink) = (tap::open("fd1")?, tap::open("fd2")?);
    let options = XdpOptions { fill: 32, tx: 32, ..XdpOptions::default() };
    let mut ports = Vec::new();
    for ifname in ["fd1", "fd2"] {
        ports.push(host.open(ifname, &options)?.queues);
    }
    let written = std::thread::scope(|scope| {
        let flood = scope.spawn(move || {
            // A full queue refuses a frame, which is as good as losing it.
            (0..20_000)
                .filter(|number| source.write(&vec![0xff; 60 + number % 1400]).is_ok())
                .count()
        });
        host.hub(&mut ports, || flood.is_finished());
        flood.join()
    });
    assert!(written.is_ok_and(|frames| frames > 0));
    assert!(sink.read(&mut [0; 2048])? >= 60, "some came through");
    host.close(ports.into_iter().flatten());
    host.assert_conserved();
    Ok(())
}

fn no_native_mode(host: &mut Host) -> Result<(), Failed> {
    // Every namespace has a loopback interface, and its driver has no XDP.
    Netlink::open()?.set_mtu("lo", 1500)?;
    let opened = host.open("lo", &XdpOptions::default())?;
    assert_eq!(opened.mode, "generic copy");
    assert_eq!(
        opened.notices,
        ["lo: its driver has no native XDP, so XDP runs in generic mode, which is slower."]
    );
    host.close(opened.queues);
    host.assert_conserved();
    Ok(())
}

fn closed_interface_opens_again(host: &mut Host) -> Result<(), Failed> {
    let _workload = Workload::new("10.99.0.1", "fd1", 1)?;
    for _ in 0..5 {
        let opened = host.open("fd1", &XdpOptions::default())?;
        assert!(host.link("fd1")?.xdp_program.is_some());
        assert!(host.link("fd1")?.up);
        host.close(opened.queues);
        assert!(host.link("fd1")?.xdp_program.is_none());
        host.assert_conserved();
    }
    Ok(())
}

fn killed_process_leaves_nothing(host: &mut Host) -> Result<(), Failed> {
    let _workload = Workload::new("10.99.0.1", "fd1", 1)?;
    let line = hold_and_kill(HOLD, "fd1", || {
        assert!(host.link("fd1")?.xdp_program.is_some(), "the child attached the program");
        Ok(())
    })?;
    assert_eq!(line, "native copy\n");
    assert_eq!(host.link("fd1")?.xdp_program, None, "nothing stays attached");
    let opened = host.open("fd1", &XdpOptions::default())?;
    host.close(opened.queues);
    host.assert_conserved();
    Ok(())
}

/// Has a child hold an interface, looks, and kills it. Returns the line that it said.
fn hold_and_kill(
    how: &str,
    ifname: &str,
    look: impl FnOnce() -> Result<(), Failed>,
) -> Result<String, Failed> {
    let mut holder = Command::new(std::env::current_exe()?)
        .args([how, ifname])
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = holder.stdout.take().ok_or("the child has an output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let looked = look();
    holder.kill()?;
    holder.wait()?;
    looked.map(|()| line)
}

/// What the child of [`killed_process_leaves_nothing`] does.
fn hold(ifname: &str) {
    let mut host = Host::new();
    let opened = host.open(ifname, &XdpOptions::default()).expect("the interface opens");
    println!("{}", opened.mode);
    wait_to_be_killed();
}

fn hold_clsact(ifname: &str) {
    let mut host = Host::new();
    let _held = express::hold_clsact(ifname, &mut host).expect("the interface opens");
    wait_to_be_killed();
}

fn wait_to_be_killed() {
    std::io::stdout().flush().expect("the parent listens");
    loop {
        std::thread::park();
    }
}

fn deleted_while_open(host: &mut Host) -> Result<(), Failed> {
    let _workload = Workload::new("10.99.0.1", "fd1", 1)?;
    let mut port = only(host.open("fd1", &XdpOptions::default())?.queues)?;
    send(host, &mut port, 10);
    Netlink::open()?.delete("fd1")?;
    for _ in 0..10 {
        send(host, &mut port, 10);
        let mut batch = Vec::new();
        port.receive(&mut host.pool, &mut batch);
        port.reclaim(&mut host.pool);
        batch.into_iter().for_each(|frame| host.pool.give(frame));
    }
    assert!(!port.is_busy(), "there is nothing to wait for");
    host.close([port]);
    host.assert_conserved();
    Ok(())
}

fn down_while_sending(host: &mut Host) -> Result<(), Failed> {
    let _workload = Workload::new("10.99.0.1", "fd1", 1)?;
    let mut port = only(host.open("fd1", &XdpOptions::default())?.queues)?;
    Netlink::open()?.set_up("fd1", false)?;
    send(host, &mut port, 10);
    port.reclaim(&mut host.pool);
    assert!(!port.is_busy(), "a port that cannot send lets its worker sleep");
    Netlink::open()?.set_up("fd1", true)?;
    send(host, &mut port, 1);
    port.reclaim(&mut host.pool);
    assert!(!port.is_busy(), "all eleven are sent");
    host.close([port]);
    host.assert_conserved();
    Ok(())
}

fn overfull_ring(host: &mut Host) -> Result<(), Failed> {
    let _workload = Workload::new("10.99.0.1", "fd1", 1)?;
    let options = XdpOptions { tx: 64, ..XdpOptions::default() };
    let mut port = only(host.open("fd1", &options)?.queues)?;
    let mut frames: Vec<Frame> = (0..100).filter_map(|_| host.pool.copy_of(&[0xff; 60])).collect();
    assert_eq!(port.transmit(&mut frames), 64);
    assert_eq!(frames.len(), 36);
    assert_eq!(port.transmit(&mut frames), 0, "nothing is reclaimed yet");
    port.reclaim(&mut host.pool);
    assert_eq!(port.transmit(&mut frames), 36);
    let mut empty: Vec<Frame> = host.pool.take().into_iter().collect();
    assert_eq!(port.transmit(&mut empty), 1, "an empty frame is taken");
    assert!(port.is_busy(), "and given back by reclaim");
    host.close([port]);
    host.assert_conserved();
    Ok(())
}

fn ran_dry(host: &mut Host) -> Result<(), Failed> {
    let mut holder = tap::open("fd1")?;
    let options = XdpOptions { fill: 8, ..XdpOptions::default() };
    let mut port = only(host.open("fd1", &options)?.queues)?;
    let mut elsewhere: Vec<Frame> = std::iter::from_fn(|| host.pool.take()).collect();
    let mut batch = Vec::new();
    for _ in 0..8 {
        holder.write_all(&[0xff; 60])?;
    }
    host::wait_for(|| {
        port.receive(&mut host.pool, &mut batch);
        batch.len() == 8
    })?;
    assert!(port.is_busy(), "deaf, so it must be visited");
    elsewhere.append(&mut batch);
    elsewhere.drain(..).for_each(|frame| host.pool.give(frame));
    port.reclaim(&mut host.pool);
    assert!(!port.is_busy());
    holder.write_all(&[0xff; 60])?;
    host::wait_for(|| port.receive(&mut host.pool, &mut batch) == 1)?;
    batch.into_iter().for_each(|frame| host.pool.give(frame));
    host.close([port]);
    host.assert_conserved();
    Ok(())
}

fn host_is_silent(host: &mut Host) -> Result<(), Failed> {
    let _workload = Workload::new("10.99.0.1", "fd1", 1)?;
    let read = |setting: &str| std::fs::read_to_string(format!("/proc/sys/net/{setting}"));
    let settings = ["ipv6/conf/fd1/disable_ipv6", "ipv4/conf/fd1/arp_ignore"];
    let before = [read(settings[0])?, read(settings[1])?];
    let opened = host.open("fd1", &XdpOptions::default())?;
    assert_eq!([read(settings[0])?, read(settings[1])?], ["1\n", "8\n"]);
    host.close(opened.queues);
    assert_eq!([read(settings[0])?, read(settings[1])?], before);
    assert!(!host.link("fd1")?.up, "down, as it was found");
    Ok(())
}

fn no_such_interface(host: &mut Host) -> Result<(), Failed> {
    let error = host.open("fd1", &XdpOptions::default()).err().ok_or("it cannot open")?;
    assert!(error.to_string().contains("no interface is named fd1"), "{error}");
    host.assert_conserved();
    Ok(())
}

fn mtu_too_large(host: &mut Host) -> Result<(), Failed> {
    let workload = Workload::new("10.99.0.1", "fd1", 1)?;
    let mut netlink = Netlink::open()?;
    netlink.set_mtu("fd1", 9000)?;
    let error = host.open("fd1", &XdpOptions::default()).err().ok_or("9000 is too large")?;
    assert!(matches!(error, OpenError::MtuTooLarge { mtu: 9000, limit: 3822, .. }), "{error}");
    netlink.set_mtu("fd1", 1500)?;
    workload.set_mtu(3507)?;
    let error = host.open("fd1", &XdpOptions::default()).err().ok_or("3507 is too large")?;
    assert!(matches!(error, OpenError::MtuTooLargeForDriver { limit: 3506, .. }), "{error}");
    assert!(!host.link("fd1")?.up, "left as it was found");
    workload.set_mtu(3506)?;
    let opened = host.open("fd1", &XdpOptions::default())?;
    host.close(opened.queues);
    host.assert_conserved();
    Ok(())
}

fn interface_is_taken(host: &mut Host) -> Result<(), Failed> {
    let _workload = Workload::new("10.99.0.1", "fd1", 1)?;
    let first = host.open("fd1", &XdpOptions::default())?;
    let error = host.open("fd1", &XdpOptions::default()).err().ok_or("it is taken")?;
    assert!(matches!(error, OpenError::QueueBusy { queue: 0, .. }), "{error}");
    assert!(host.link("fd1")?.up, "the first port is not disturbed");
    assert!(host.link("fd1")?.xdp_program.is_some(), "the first port is not disturbed");
    host.close(first.queues);
    host.assert_conserved();
    Ok(())
}

fn too_few_frames(host: &mut Host) -> Result<(), Failed> {
    let _workload = Workload::new("10.99.0.1", "fd1", 1)?;
    let options = XdpOptions { fill: host::FRAMES + 1, ..XdpOptions::default() };
    let error = host.open("fd1", &options).err().ok_or("there are too few")?;
    assert!(matches!(error, OpenError::OutOfFrames { available: host::FRAMES, .. }), "{error}");
    host.assert_conserved();
    Ok(())
}

fn link_watch(_host: &mut Host) -> Result<(), Failed> {
    let watch = LinkWatch::open()?;
    let mut netlink = Netlink::open()?;
    netlink.create_veth(VethEnd::new("fd1"), VethEnd::new("fd2"), 1)?;
    let appeared = watch.drain();
    assert!(
        appeared
            .iter()
            .any(|event| matches!(event, LinkEvent::Present(link) if link.name == "fd1")),
        "{appeared:?}"
    );
    let index = netlink.link("fd1")?.index;
    netlink.delete("fd1")?;
    let gone = watch.drain();
    assert!(gone.contains(&LinkEvent::Gone { name: "fd1".to_owned(), index }), "{gone:?}");
    assert!(watch.drain().is_empty());
    Ok(())
}

/// Sends `count` frames to nobody.
fn send(host: &mut Host, port: &mut XdpPort, count: usize) {
    let mut frames: Vec<Frame> =
        (0..count).filter_map(|_| host.pool.copy_of(&[0xff; 60])).collect();
    port.transmit(&mut frames);
    frames.into_iter().for_each(|frame| host.pool.give(frame));
}

fn only(mut ports: Vec<XdpPort>) -> Result<XdpPort, Failed> {
    assert_eq!(ports.len(), 1);
    assert_eq!(leaked(), 0);
    ports.pop().ok_or_else(|| "a port".into())
}
