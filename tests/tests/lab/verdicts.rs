//! The kernel's programs decide as the pipeline does, frame by frame.
//!
//! Random policies and random frames, most of them of a few conversations, many of them not as they
//! should be. Each frame goes into a switch without an express lane, which is what is right, and into
//! the program. What the program redirects must be what that switch forwards, to the same port. What
//! it does not redirect goes into a second switch, which writes the program's verdicts, and must fare
//! there as it did in the first. Between frames, policy changes, and with it who workloads are; ports go and
//! come back; and time passes. What is captured must be the same, frame by frame, and in the end what is counted.
//!
//! TCP's numbers are such as hosts use, in whatever order: the program takes them unchecked, so that after made-up
//! ones a RST may be judged otherwise. docs/adr/0005 says why that is nobody's gain.
//!
//! `VERDICT_RUNS=1000` in the environment asks for as many.
//!
//! The programs run on their own (`BPF_PROG_RUN`), so nothing but verdicts is tried here; that frames
//! arrive is for the other tests.

mod chance;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use firedoor_api::dataplane::PortCounters;
use firedoor_classifier::build::{self, TcpFlags};
use firedoor_classifier::wire::tcp;
use firedoor_classifier::{DropReason, PortId, Snapshot};
use firedoor_dataplane::express::trial::Outcome;
use firedoor_dataplane::express::{FlowEgress, Hook, Lane, Member, Members};
use firedoor_dataplane::link::{Netlink, VethEnd};
use firedoor_lab::netns::Netns;
use firedoor_tests::fabric::{Fabric, next_snapshot, snapshot};
use libtest_mimic::Failed;

use self::chance::{
    Conversation, Protocol, Random, WORKLOADS, config, config_with, ends, mutated, name_of,
};
use crate::fixture::ensure;
use crate::{Shown, Test};

pub(crate) const TESTS: &[Test] = &[
    ("the_program_at_tc_decides_as_the_pipeline_does", &[], || agree(Hook::Tcx)),
    ("the_program_in_xdp_decides_as_the_pipeline_does", &[], || agree(Hook::Xdp)),
    ("the_program_at_tc_knows_the_answer_to_a_syn", &[], || answers(Hook::Tcx)),
    ("the_program_in_xdp_knows_the_answer_to_a_syn", &[], || answers(Hook::Xdp)),
    ("a_silent_connection_leaves_the_kernel_two_seconds_after_its_timeout", &[], silent),
    ("a_flood_of_syns_takes_little_of_the_kernels_table", &[], flood),
];

/// Runs, each with its own seed, unless the environment asks for more; and frames of each.
const RUNS: u64 = 24;
const MORE_RUNS: &str = "VERDICT_RUNS";
const FRAMES: u32 = 800;
/// One frame in so many is preceded by a change of policy.
const POLICY_CHANGES: u64 = 200;
/// One in so many by a port that goes or comes back, one by a second in which nothing is sent, and one is a frame
/// that was sent before.
const PORT_CHANGES: u64 = 150;
const SECONDS: u64 = 60;
const REPETITIONS: u64 = 25;
/// Conversations of a run.
const CONVERSATIONS: u64 = 6;

/// A second until the switch has heard of the last frame, and one until it looks whether the time is over.
fn silent() -> Shown {
    const TIMEOUT: u64 = 3;
    let timeout = format!("frames = 256\ntimeouts = {{ udp_both = {TIMEOUT} }}");
    let config = any_to_any().replace("frames = 256", &timeout);
    Place::new("silent", Hook::Tcx)?.0.run(|| -> Shown {
        let mut scene = Scene::new(Hook::Tcx, 1024, snapshot(&config))?;
        let ask = build::udp(ends([0, 1], false), 1_000, 53, b"who is it?");
        let answer = build::udp(ends([1, 0], false), 53, 1_000, b"me");
        for _ in 0..2 {
            scene.judge(0, &ask)?;
            scene.judge(1, &answer)?;
        }
        for _ in 0..3 * TIMEOUT {
            scene.wait();
            ensure!(scene.judge(0, &ask)?, "the kernel does not forward what is alive");
        }
        let lives = |scene: &Scene| !scene.lane.flows().is_empty();
        for second in 1..=TIMEOUT {
            scene.wait();
            ensure!(lives(&scene), "it was forgotten after {second} s");
        }
        scene.wait();
        scene.wait();
        ensure!(!lives(&scene), "the kernel forwards it still");
        Ok(())
    })?
}

fn agree(hook: Hook) -> Shown {
    let place = Place::new("agree", hook)?;
    let all = || {
        (1..=runs()).try_fold([0; 3], |before, seed| {
            let more = run(hook, seed)?;
            Ok::<_, Failed>(std::array::from_fn(|at| before[at] + more[at]))
        })
    };
    let [frames, echoes, answers] = place.0.run(all)??;
    println!("redirected: {frames} frames, {echoes} of them echoes, {answers} SYN-ACKs");
    ensure!(frames > 2_000, "only {frames} frames were redirected, which shows little");
    ensure!(echoes > 500, "only {echoes} of the redirected are echoes, which shows little");
    ensure!(answers > 20, "only {answers} of the redirected are SYN-ACKs, which shows little");
    Ok(())
}

fn runs() -> u64 {
    let more = std::env::var(MORE_RUNS).ok().and_then(|runs| runs.parse().ok());
    more.unwrap_or(RUNS)
}

/// Of all that may come after a SYN, the program lets pass by itself what answers it, and what follows.
fn answers(hook: Hook) -> Shown {
    Place::new("answers", hook)?.0.run(|| -> Shown {
        let mut scene = Scene::new(hook, 1024, snapshot(&any_to_any()))?;
        let mut port = 1_000;
        // Plays frames that follow a SYN with so many bytes, each with whether it is redirected.
        let mut play = |bytes: usize, frames: &[(bool, Segment)]| -> Shown {
            port += 1;
            let syn = (false, asks(TcpFlags::SYN, 10, 0, bytes));
            for (at, (is_redirected, segment)) in [&[syn], frames].concat().into_iter().enumerate()
            {
                let came = scene.compare(segment.sent, &segment.frame(port))?;
                ensure!(came == is_redirected, "port {port}, frame {at}: redirected: {came}");
            }
            Ok(())
        };
        let (syn_ack, ack) = (TcpFlags::SYN | TcpFlags::ACK, TcpFlags::ACK);
        let answer = |ack| replies(syn_ack, 90, ack, 0);
        let rest = [(true, asks(ack, 11, 91, 0)), (true, replies(ack, 91, 11, 40))];
        let answered = [&[(true, answer(11))], &rest[..]].concat();
        play(0, &answered)?;
        // What is not the answer changes nothing.
        let others = [
            asks(ack, 11, 91, 0),
            asks(ack, 11, 91, 30),
            asks(syn_ack, 90, 11, 0),
            asks(TcpFlags::SYN, 10, 0, 0),
            answer(10),
            answer(12 + (1 << 16)),
            Segment { sent: 2, ..answer(11) },
            replies(ack, 90, 11, 0),
            replies(ack, 90, 11, 30),
            replies(syn_ack | TcpFlags::FIN, 90, 11, 0),
            replies(TcpFlags::RST | ack, 90, 9, 0),
        ];
        let others = others.map(|other| (false, other));
        play(0, &[&others[..], &answered].concat())?;
        // Sent again, it is the switch's to judge.
        play(0, &[(true, answer(11)), (false, answer(11)), rest[0]])?;
        // Another SYN: what answers the first is no answer any more.
        let anew = asks(TcpFlags::SYN, 50, 0, 0);
        play(0, &[(false, anew), (false, answer(11)), (true, answer(51))])?;
        // Refused, and asked by both.
        for other in [replies(TcpFlags::RST | ack, 0, 11, 0), replies(TcpFlags::SYN, 90, 0, 0)] {
            play(0, &[(false, other), (false, answer(11))])?;
        }
        // Who takes data of the SYN may go on at once, but not past its answer. At tc nothing is held for
        // a switch that does not receive.
        let early = replies(ack, 91, 15, 40);
        let early = [(false, answer(15)), (hook == Hook::Tcx, early)];
        play(4, &[&early[..], &[(true, asks(ack, 15, 91, 0))]].concat())?;
        play(4, &answered)?;
        // With data, and to nothing.
        play(0, &[(false, replies(syn_ack, 90, 11, 3)), rest[0]])?;
        let came = scene.compare(1, &answer(11).frame(5))?;
        ensure!(!came, "an answer to nothing is redirected");
        Ok(())
    })?
}

/// What nobody answers leaves the kernel's table to others, and goes when its connection does.
fn flood() -> Shown {
    const SYNS: u16 = 3_000;
    /// Two for each of 1,024.
    const MOST: usize = 2_048;
    Place::new("flood", Hook::Tcx)?.0.run(|| -> Shown {
        let mut scene = Scene::new(Hook::Tcx, 8 * MOST as u32, snapshot(&any_to_any()))?;
        let syn = asks(TcpFlags::SYN, 10, 0, 0);
        for port in 0..SYNS {
            let came = scene.switch.send("a", &syn.frame(port));
            ensure!(
                came == scene.reference.send("a", &syn.frame(port)) && came.len() == 1,
                "{came:?}"
            );
        }
        let flows = scene.lane.flows().len();
        ensure!(flows == MOST, "{flows} flows");
        let answer = replies(TcpFlags::SYN | TcpFlags::ACK, 90, 11, 0);
        ensure!(scene.compare(1, &answer.frame(0))?, "the first is not waited for");
        ensure!(!scene.compare(1, &answer.frame(SYNS - 1))?, "the last is waited for");
        let ack = asks(TcpFlags::ACK, 11, 91, 0);
        ensure!(scene.compare(0, &ack.frame(SYNS - 1))?, "what was answered is not redirected");
        // Another port may ask.
        ensure!(!scene.compare(2, &Segment { from: 2, ..syn }.frame(0))?, "a SYN is redirected");
        ensure!(scene.compare(1, &Segment { to: 2, ..answer }.frame(0))?, "it is not waited for");
        for _ in 0..60 {
            scene.switch.wait(1);
        }
        let flows = scene.lane.flows().len();
        ensure!(flows == 2, "{flows} flows, of one connection that is complete");
        Ok(())
    })?
}

/// A policy that refuses nothing.
fn any_to_any() -> String {
    config_with(
        "enforce",
        "[[rule]]\nname = \"all\"\nfrom = { any = true }\nto = { any = true }\naction = \"allow\"\n",
    )
}

/// A segment between a client and port 80 of workload 1.
#[derive(Clone, Copy)]
struct Segment {
    /// By which workload, whoever it claims to be from.
    sent: usize,
    from: usize,
    to: usize,
    flags: TcpFlags,
    seq: u32,
    ack: u32,
    bytes: usize,
}

/// From workload 0 to workload 1.
fn asks(flags: TcpFlags, seq: u32, ack: u32, bytes: usize) -> Segment {
    Segment { sent: 0, from: 0, to: 1, flags, seq, ack, bytes }
}

/// From workload 1 to workload 0.
fn replies(flags: TcpFlags, seq: u32, ack: u32, bytes: usize) -> Segment {
    Segment { sent: 1, from: 1, to: 0, flags, seq, ack, bytes }
}

impl Segment {
    /// Its frame, if the client's port is 1,000 and that.
    fn frame(&self, port: u16) -> Vec<u8> {
        let [source_port, destination_port] =
            [self.from, self.to].map(|end| if end == 1 { 80 } else { 1_000 + port });
        let header = tcp::Repr {
            source_port,
            destination_port,
            sequence: self.seq,
            acknowledgement: self.ack,
            flags: self.flags,
            window: 60_000,
        };
        build::tcp_segment(ends([self.from, self.to], false), header, &vec![0x5a; self.bytes])
    }
}

/// A network namespace for as long as a test runs.
struct Place(Netns);

impl Place {
    fn new(test: &str, hook: Hook) -> Result<Self, Failed> {
        let name = format!("fd-verdicts-{}-{test}-{hook:?}", std::process::id());
        Ok(Self(Netns::create(&name)?))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Netns::delete(self.0.name());
    }
}

/// One run. Returns how many frames the program redirected, and how many of these were echoes and
/// SYN-ACKs.
fn run(hook: Hook, seed: u64) -> Result<[u64; 3], Failed> {
    let mut random = Random(seed);
    let mut scene = Scene::new(hook, 1024, snapshot(&config(&mut random)))?;
    let mut conversations: Vec<Conversation> =
        (0..CONVERSATIONS).map(|_| Conversation::new(&mut random)).collect();
    let mut sent: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut redirected = [0; 3];
    for number in 0..FRAMES {
        scene.pass_time(&mut random)?;
        let at = random.below(CONVERSATIONS) as usize;
        if random.one_in(60) {
            conversations[at] = Conversation::new(&mut random);
        }
        let (from, frame) = if !sent.is_empty() && random.one_in(REPETITIONS) {
            sent[random.below(sent.len() as u64) as usize].clone()
        } else {
            let (from, frame) = conversations[at].next_frame(&mut random);
            mutated(from, frame, &mut random)
        };
        let is_redirected = scene.judge(from, &frame).map_err(|difference| {
            format!("run {seed}, frame {number} from {}: {difference}: {frame:02x?}", name_of(from))
        })?;
        if is_redirected {
            let Conversation { protocol, frames, .. } = conversations[at];
            redirected[0] += 1;
            redirected[1] += u64::from(matches!(protocol, Protocol::Echo));
            redirected[2] += u64::from(matches!(protocol, Protocol::Tcp) && frames == 2);
        }
        sent.push((from, frame));
    }
    scene.finish().map_err(|difference| format!("run {seed}: {difference}"))?;
    Ok(redirected)
}

/// Two switches under one policy, and the programs that the second writes verdicts for.
struct Scene {
    hook: Hook,
    lane: Arc<Lane>,
    members: Arc<Members>,
    ports: BTreeMap<&'static str, Member>,
    reference: Fabric,
    switch: Fabric,
    snapshot: Snapshot,
    /// The port that is not there, if one is not.
    missing: Option<&'static str>,
}

impl Scene {
    fn new(hook: Hook, flows: u32, snapshot: Snapshot) -> Result<Self, Failed> {
        let members = Arc::<Members>::default();
        members.set_capacity(flows);
        let lane = members.lane()?;
        members.set_epoch(snapshot.epoch);
        let mut netlink = Netlink::open()?;
        let mut ports = BTreeMap::new();
        for (name, ..) in WORKLOADS {
            let (near, far) = (format!("fd{name}"), format!("fd{name}far"));
            if netlink.link(&near).is_err() {
                netlink.create_veth(VethEnd::new(&near), VethEnd::new(&far), 1)?;
            }
            let ifindex = netlink.link(&near)?.index;
            let member = Member {
                ifindex,
                egress: FlowEgress::Transmit(ifindex),
                max_frame: 1514,
                hook: Some(hook),
                takes_packets: true,
                takes_frames: true,
            };
            ports.insert(name, member);
        }
        let reference = Fabric::of(snapshot.clone());
        let switch = Fabric::with_members(snapshot.clone(), Arc::clone(&members));
        let missing = None;
        let scene = Self { hook, lane, members, ports, reference, switch, snapshot, missing };
        WORKLOADS.into_iter().try_for_each(|(name, ..)| scene.join(name))?;
        Ok(scene)
    }

    /// A port is there, with its program.
    fn join(&self, name: &str) -> Result<(), Failed> {
        let member = self.ports[name];
        self.members.join(self.port(name), member);
        Ok(self.lane.set_device(member.ifindex, true)?)
    }

    fn port(&self, name: &str) -> PortId {
        let mut workloads = self.snapshot.workloads.iter();
        workloads.find(|workload| workload.name == name).expect("a workload has a port").port
    }

    /// What happens between two frames: mostly nothing.
    fn pass_time(&mut self, random: &mut Random) -> Shown {
        if random.one_in(POLICY_CHANGES) {
            self.install(&config(random));
        }
        if random.one_in(PORT_CHANGES) {
            self.change_port(random)?;
        }
        if random.one_in(SECONDS) {
            self.wait();
        }
        Ok(())
    }

    /// As the engine does it: once the worker has judged again what the kernel forwards, and not before, all
    /// other verdicts end.
    fn install(&mut self, config: &str) {
        self.snapshot = next_snapshot(config, &self.snapshot);
        self.switch.install(self.snapshot.clone());
        self.switch.settle();
        self.members.set_epoch(self.snapshot.epoch);
        self.reference.install(self.snapshot.clone());
        self.reference.settle();
    }

    /// A port goes, or the one that has gone comes back. The worker hears of it at once, as it is asked for its
    /// queues.
    fn change_port(&mut self, random: &mut Random) -> Shown {
        match self.missing.take() {
            Some(name) => {
                self.join(name)?;
                self.switch.plug_in(name);
                self.reference.plug_in(name);
            }
            None => {
                let (name, ..) = random.of(&WORKLOADS);
                self.members.leave(self.port(name));
                self.switch.unplug(name);
                self.reference.unplug(name);
                self.missing = Some(name);
            }
        }
        self.wait();
        Ok(())
    }

    fn wait(&mut self) {
        self.switch.wait(1);
        self.reference.wait(1);
    }

    /// Lets all three judge a frame, which comes after all others have left. Returns whether the program
    /// redirected it, or how they differ.
    fn judge(&mut self, from: usize, frame: &[u8]) -> Result<bool, String> {
        self.lane.let_go();
        self.compare(from, frame)
    }

    /// Likewise, while those that were handed over are on their way still.
    fn compare(&mut self, from: usize, frame: &[u8]) -> Result<bool, String> {
        self.lane.keep_open(Duration::from_secs(30));
        let name = name_of(from);
        if self.missing == Some(name) {
            return Ok(false);
        }
        let outcome = match self.lane.try_frame(self.hook, self.ports[name].ifindex, frame) {
            Ok(outcome) => outcome,
            // It makes no skb of half a header.
            Err(error) if error.kind() == ErrorKind::InvalidInput && frame.len() < 54 => {
                Outcome::Kept
            }
            Err(error) => return Err(format!("the kernel does not run the program: {error}")),
        };
        let right = self.reference.send(name, frame);
        let Outcome::Redirected { flow, egress } = outcome else {
            let came = self.switch.send(name, frame);
            if came != right {
                return Err(format!("kept, and became {came:02x?}, not {right:02x?}"));
            }
            self.compare_captures()?;
            return Ok(false);
        };
        self.compare_captures()?;
        match &right[..] {
            [(receiver, _)] if self.ports[receiver.as_str()].ifindex == egress => Ok(true),
            _ => Err(format!("redirected to {egress} by {flow:?}, not {right:02x?}")),
        }
    }

    /// Whether both switches have captured the same since the last time.
    fn compare_captures(&self) -> Result<(), String> {
        loop {
            let [right, came] = [&self.reference, &self.switch].map(|switch| {
                let record = switch.mirrored()?;
                Some((
                    record.epoch,
                    record.key,
                    record.cause,
                    record.reason,
                    record.dropped,
                    record.bytes,
                ))
            });
            if right != came {
                return Err(format!("captured was {came:02x?}, not {right:02x?}"));
            }
            if right.is_none() {
                return Ok(());
            }
        }
    }

    /// Ends both switches. Whether they have counted the same.
    fn finish(mut self) -> Result<(), String> {
        // What the kernel has forwarded is counted once a second.
        (0..3).for_each(|_| self.wait());
        for (name, ..) in WORKLOADS {
            let id = self.port(name);
            let [right, came] = [&self.reference, &self.switch].map(|switch| {
                let count = |of: fn(&PortCounters) -> u64| {
                    switch.count(|counters| {
                        let mut total = PortCounters::default();
                        counters.sum_port(id, &mut total);
                        of(&total)
                    })
                };
                [
                    count(|port| port.rx_frames),
                    count(|port| port.tx_frames),
                    count(|port| port.drops),
                ]
            });
            if right != came {
                return Err(format!("{name} received, sent and dropped {came:?}, not {right:?}"));
            }
        }
        let [right, came] = [&self.reference, &self.switch].map(|switch| {
            let would_drop =
                |&reason: &DropReason| switch.count(|counters| counters.would_drops(reason));
            (switch.drops(), DropReason::ALL.iter().map(would_drop).collect::<Vec<_>>())
        });
        if right != came {
            return Err(format!("dropped was {came:?}, not {right:?}"));
        }
        self.switch.finish();
        self.reference.finish();
        Ok(())
    }
}
