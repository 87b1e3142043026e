//! Generators and sinks on real interfaces: two namespaces with a veth between them.
//!
//! Each test makes its own namespaces and removes them, however it ends. Without root every test is
//! reported as ignored, with the reason.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::ensure;
use firedoor_bench::traffic::{End, FrameSize, Generator, Kind, Load, Place, Received, Sink};
use firedoor_classifier::MacAddr;
use firedoor_dataplane::link::{Netlink, VethEnd};
use firedoor_lab::netns::Netns;
use libtest_mimic::{Arguments, Failed, Trial};
use socket2::{Domain, Protocol, Socket, Type};

/// All protocols, for packet sockets (`ETH_P_ALL` in linux/if_ether.h).
const ALL: u16 = 0x0003;

/// Frames sent before the sink is waited for: fewer than any queue on the way holds, so that none is
/// lost on a machine however busy.
const WINDOW: u64 = 32;

type Test = fn(&Cable) -> anyhow::Result<()>;

const TESTS: [(&str, Test); 8] = [
    ("live frames arrive in XDP", |cable| every_frame_arrives(cable, Kind::LiveFrames, Place::Xdp)),
    ("live frames arrive in the stack", |cable| {
        cable.poll_receiver()?;
        every_frame_arrives(cable, Kind::LiveFrames, Place::Stack)
    }),
    ("packets arrive in XDP", |cable| every_frame_arrives(cable, Kind::Packet, Place::Xdp)),
    ("packets arrive in the stack", |cable| every_frame_arrives(cable, Kind::Packet, Place::Stack)),
    ("live frames are of so many flows", |cable| {
        cable.poll_receiver()?;
        flows_are_distinct(cable, Kind::LiveFrames)
    }),
    ("packets are of so many flows", |cable| flows_are_distinct(cable, Kind::Packet)),
    ("a rate is kept in the background too", a_rate_is_kept),
    ("strangers are not counted", strangers_are_not_counted),
];

fn main() {
    let obstacle = Netns::create(&name("probe")).err().map(|error| error.to_string());
    let _ = Netns::delete(&name("probe"));
    if let Some(reason) = &obstacle {
        eprintln!("ignored, because {reason}");
    }
    let trials = TESTS.iter().enumerate().map(|(number, &(title, test))| {
        let run = move || {
            let tried = Cable::new(number).and_then(|cable| test(&cable));
            tried.map_err(|error| Failed::from(format!("{error:#}")))
        };
        Trial::test(title, run).with_ignored_flag(obstacle.is_some())
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Frames of either length, in either kind, arrive whole, in order, and each once.
fn every_frame_arrives(cable: &Cable, kind: Kind, place: Place) -> anyhow::Result<()> {
    let sink = Sink::attach(&cable.receiver, "fdrx", place)?;
    let mut before = Received::default();
    for frame in [FrameSize::Fixed(64), FrameSize::Fixed(1518), FrameSize::Imix] {
        let mut generator = cable.generator(kind, &load(frame, 100))?;
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
fn flows_are_distinct(cable: &Cable, kind: Kind) -> anyhow::Result<()> {
    // The sink drops the frames behind the capture, so that nothing answers them.
    let sink = Sink::attach(&cable.receiver, "fdrx", Place::Stack)?;
    let mut capture = cable.capture()?;
    let mut generator = cable.generator(kind, &load(FrameSize::Fixed(64), 100))?;
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
fn a_rate_is_kept(cable: &Cable) -> anyhow::Result<()> {
    let sink = Sink::attach(&cable.receiver, "fdrx", Place::Xdp)?;
    let load = Load { rate: Some(2_000), ..load(FrameSize::Fixed(64), 1) };
    let mut generator = cable.generator(Kind::Packet, &load)?;
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
fn strangers_are_not_counted(cable: &Cable) -> anyhow::Result<()> {
    for place in [Place::Xdp, Place::Stack] {
        let sink = Sink::attach(&cable.receiver, "fdrx", place)?;
        let mut capture = cable.capture()?;
        let stranger = [0x02; 60];
        cable.sender.run(|| {
            let index = Netlink::open()?.link("fdtx")?.index;
            let socket = firedoor_dataplane::sys::packet::PacketSender::open(index)?;
            socket.send(&[&stranger])?;
            anyhow::Ok(())
        })??;
        while next_frame(&mut capture)? != stranger {}
        assert_eq!(sink.read()?, Received::default(), "{place:?}");
    }
    Ok(())
}

/// Two namespaces with a veth between them: `fdtx` and `fdrx`.
struct Cable {
    sender: Netns,
    receiver: Netns,
}

impl Cable {
    fn new(number: usize) -> anyhow::Result<Self> {
        let [sender, receiver] = [name(&format!("tx{number}")), name(&format!("rx{number}"))];
        let sender = Netns::create(&sender)?;
        let cable = match Netns::create(&receiver) {
            Ok(receiver) => Self { sender, receiver },
            Err(error) => {
                let _ = Netns::delete(sender.name());
                return Err(error.into());
            }
        };
        for netns in [&cable.sender, &cable.receiver] {
            netns.set("ipv6/conf/default/disable_ipv6", "1")?;
        }
        let far = VethEnd { netns: Some(cable.receiver.file().as_fd()), ..VethEnd::new("fdrx") };
        cable.sender.run(|| {
            let mut netlink = Netlink::open()?;
            netlink.create_veth(VethEnd::new("fdtx"), far, 1)?;
            netlink.set_up("fdtx", true)?;
            anyhow::Ok(())
        })??;
        cable.receiver.run(|| {
            Netlink::open()?.set_up("fdrx", true)?;
            anyhow::Ok(())
        })??;
        Ok(cable)
    }

    /// Turns GRO on at the receiver, so that it polls and takes XDP frames without a program.
    fn poll_receiver(&self) -> anyhow::Result<()> {
        let status = self.receiver.run(|| {
            std::process::Command::new("ethtool").args(["-K", "fdrx", "gro", "on"]).status()
        })??;
        ensure!(status.success(), "ethtool failed");
        Ok(())
    }

    fn generator(&self, kind: Kind, load: &Load) -> anyhow::Result<Generator> {
        Ok(Generator::new(kind, &self.sender, "fdtx", load)?)
    }

    /// A packet socket that receives everything of the receiver's namespace.
    fn capture(&self) -> anyhow::Result<Socket> {
        let protocol = Protocol::from(i32::from(ALL.to_be()));
        let socket =
            self.receiver.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))??;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(socket)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for netns in [&self.sender, &self.receiver] {
            let _ = Netns::delete(netns.name());
        }
    }
}

fn load(frame: FrameSize, flows: u32) -> Load {
    let end =
        |n, port| End { mac: MacAddr([2, 0, 0, 0, 0, n]), ip: Ipv4Addr::new(10, 0, 0, n), port };
    Load { frame, flows, rate: None, from: end(1, 1_024), to: end(2, 9), seed: 1 }
}

/// A namespace's name, of this process alone.
fn name(what: &str) -> String {
    format!("fd-traffic-{what}-{}", std::process::id())
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
