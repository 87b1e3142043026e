//! Generators and sinks on real interfaces: two namespaces with a veth between them.
//!
//! Each test makes its own namespaces and removes them, however it ends. Without root every test is
//! reported as ignored, with the reason.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io::Read;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use firedoor_bench::traffic::wire::{RECEIVER, SENDER, Wire};
use firedoor_bench::traffic::{End, FrameSize, Generator, Kind, Load, Place, Received, Sink};
use firedoor_classifier::MacAddr;
use firedoor_dataplane::link::Netlink;
use firedoor_dataplane::sys::packet::PacketSender;
use libtest_mimic::{Arguments, Failed, Trial};
use socket2::{Domain, Protocol, Socket, Type};

/// All protocols, for packet sockets (`ETH_P_ALL` in linux/if_ether.h).
const ALL: u16 = 0x0003;

/// Frames sent before the sink is waited for: fewer than any queue on the way holds, so that none is
/// lost on a machine however busy.
const WINDOW: u64 = 32;

type Test = fn(&Wire) -> anyhow::Result<()>;

const TESTS: [(&str, Test); 9] = [
    ("live frames arrive in XDP", |wire| every_frame_arrives(wire, Kind::LiveFrames, Place::Xdp)),
    ("live frames arrive in the stack", |wire| {
        poll_receiver(wire)?;
        every_frame_arrives(wire, Kind::LiveFrames, Place::Stack)
    }),
    ("packets arrive in XDP", |wire| every_frame_arrives(wire, Kind::Packet, Place::Xdp)),
    ("packets arrive in the stack", |wire| every_frame_arrives(wire, Kind::Packet, Place::Stack)),
    ("live frames are of so many flows", |wire| {
        poll_receiver(wire)?;
        flows_are_distinct(wire, Kind::LiveFrames)
    }),
    ("packets are of so many flows", |wire| flows_are_distinct(wire, Kind::Packet)),
    ("live frames keep a rate", |wire| a_rate_is_kept(wire, Kind::LiveFrames)),
    ("packets keep a rate", |wire| a_rate_is_kept(wire, Kind::Packet)),
    ("strangers are not counted", strangers_are_not_counted),
];

fn main() {
    let obstacle = Wire::new().err().map(|error| error.to_string());
    if let Some(reason) = &obstacle {
        eprintln!("ignored, because {reason}");
    }
    let trials = TESTS.iter().map(|&(title, test)| {
        let run = move || {
            let tried = Wire::new().map_err(Into::into).and_then(|wire| test(&wire));
            tried.map_err(|error| Failed::from(format!("{error:#}")))
        };
        Trial::test(title, run).with_ignored_flag(obstacle.is_some())
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Frames of either length, in either kind, arrive whole, in order, and each once.
fn every_frame_arrives(wire: &Wire, kind: Kind, place: Place) -> anyhow::Result<()> {
    let sink = sink(wire, place)?;
    let mut before = Received::default();
    for frame in [FrameSize::Fixed(64), FrameSize::Fixed(1518), FrameSize::Imix] {
        let mut generator = generator(wire, kind, &load(frame, 100))?;
        let (mut frames, mut bytes) = (0, 0);
        for _ in 0..12 {
            let sent = generator.send(WINDOW)?;
            (frames, bytes) = (frames + sent.frames, bytes + sent.bytes);
            wait_for(&sink, before.frames + frames)?;
        }
        let after = sink.read()?;
        let received = after - before;
        assert_eq!((received.frames, received.bytes), (frames, bytes), "{kind:?}, {frame:?}");
        assert_eq!(frames, 12 * WINDOW, "{kind:?}, {frame:?}");
        assert!(received.highest > before.highest, "a later generator counts on");
        before = after;
    }
    Ok(())
}

/// The frames of n flows have n pairs of ports, and a second round the same.
fn flows_are_distinct(wire: &Wire, kind: Kind) -> anyhow::Result<()> {
    // The sink drops the frames behind the capture, so that nothing answers them.
    let sink = sink(wire, Place::Stack)?;
    let mut capture = capture(wire)?;
    let mut generator = generator(wire, kind, &load(FrameSize::Fixed(64), 100))?;
    let (mut flows, mut sent) = (HashSet::new(), 0);
    for _ in 0..10 {
        sent += generator.send(20)?.frames;
        wait_for(&sink, sent)?;
        for _ in 0..20 {
            flows.insert(ports_of_next(&mut capture)?);
        }
        assert!(flows.len() == sent.min(100) as usize, "{} of {sent}", flows.len());
    }
    Ok(())
}

/// What a rate and a duration plan is what is sent, no more; and it can be stopped.
fn a_rate_is_kept(wire: &Wire, kind: Kind) -> anyhow::Result<()> {
    let sink = sink(wire, Place::Xdp)?;
    let load = Load { rate: Some(2_000), ..load(FrameSize::Fixed(64), 1) };
    let mut generator = generator(wire, kind, &load)?;
    let sent = generator.run(Duration::from_millis(100))?;
    assert!((1..=200).contains(&sent.frames), "{sent:?}");
    wait_for(&sink, sent.frames)?;

    let running = generator.start()?;
    wait_for(&sink, sent.frames + 10)?;
    let so_far = running.frames();
    let (_, more) = running.stop()?;
    assert!((1..=more.frames).contains(&so_far), "{so_far} of {more:?}");
    wait_for(&sink, sent.frames + more.frames)?;
    let most = (more.elapsed.as_secs_f64() * 2_000.0) as u64 + 1;
    assert!((10..=most).contains(&more.frames), "{more:?}");
    Ok(())
}

/// Frames that are not a load's pass the sink, uncounted.
fn strangers_are_not_counted(wire: &Wire) -> anyhow::Result<()> {
    for place in [Place::Xdp, Place::Stack] {
        let sink = sink(wire, place)?;
        let mut capture = capture(wire)?;
        let stranger = [0x02; 60];
        wire.sender.run(|| {
            let index = Netlink::open()?.link(SENDER)?.index;
            let socket = PacketSender::open(index)?;
            socket.send(&[&stranger])?;
            anyhow::Ok(())
        })??;
        while next_frame(&mut capture)? != stranger {}
        assert_eq!(sink.read()?, Received::default(), "{place:?}");
    }
    Ok(())
}

/// Turns GRO on at the receiver, so that it polls and takes XDP frames without a program.
fn poll_receiver(wire: &Wire) -> anyhow::Result<()> {
    let status = wire.receiver.run(|| {
        std::process::Command::new("ethtool").args(["-K", RECEIVER, "gro", "on"]).status()
    })??;
    ensure!(status.success(), "ethtool failed");
    Ok(())
}

fn generator(wire: &Wire, kind: Kind, load: &Load) -> anyhow::Result<Generator> {
    Ok(Generator::new(kind, &wire.sender, SENDER, load)?)
}

fn sink(wire: &Wire, place: Place) -> anyhow::Result<Sink> {
    Ok(Sink::attach(&wire.receiver, RECEIVER, place)?)
}

/// A packet socket that receives everything of the receiver's namespace.
fn capture(wire: &Wire) -> anyhow::Result<Socket> {
    let protocol = Protocol::from(i32::from(ALL.to_be()));
    let socket = wire.receiver.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))??;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(socket)
}

fn load(frame: FrameSize, flows: u32) -> Load {
    let end =
        |n, port| End { mac: MacAddr([2, 0, 0, 0, 0, n]), ip: Ipv4Addr::new(10, 0, 0, n), port };
    Load { frame, flows, rate: None, from: end(1, 1_024), to: end(2, 9), seed: 1 }
}

/// Waits until the sink has that many frames, for ten seconds at most.
fn wait_for(sink: &Sink, frames: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while sink.read()?.frames < frames {
        ensure!(Instant::now() < deadline, "{:?} instead of {frames} frames", sink.read()?);
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// The source and destination port of the next frame of a load.
fn ports_of_next(capture: &mut Socket) -> anyhow::Result<[u8; 4]> {
    loop {
        let frame = next_frame(capture)?;
        if frame.get(42..46) == Some(b"FDLD") {
            return Ok([frame[34], frame[35], frame[36], frame[37]]);
        }
    }
}

fn next_frame(capture: &mut Socket) -> anyhow::Result<Vec<u8>> {
    let mut frame = vec![0; 2048];
    let length = capture.read(&mut frame)?;
    frame.truncate(length);
    Ok(frame)
}
