//! The kernel's programs decide as the pipeline does, frame by frame.
//!
//! Random policies and random frames, most of them of a few conversations, many of them not as they
//! should be. Each frame goes into a switch without an express lane, which is what is right, and into
//! the program. What the program redirects must be what that switch forwards, to the same port. What
//! it does not redirect goes into a second switch, which writes the program's verdicts, and must fare
//! there as it did in the first.
//!
//! The programs run on their own (`BPF_PROG_RUN`), so nothing but verdicts is tried here; that frames
//! arrive is for the other tests.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::checksum::Sum;
use firedoor_classifier::wire::{icmp, icmpv6, protocol, tcp};
use firedoor_classifier::{MacAddr, Snapshot};
use firedoor_dataplane::express::trial::Outcome;
use firedoor_dataplane::express::{FlowEgress, Hook, Lane, Member, Members};
use firedoor_dataplane::link::{Netlink, VethEnd};
use firedoor_lab::netns::Netns;
use firedoor_tests::fabric::{Fabric, next_snapshot, snapshot};
use libtest_mimic::Failed;

use crate::fixture::ensure;
use crate::{Shown, Test};

pub(crate) const TESTS: &[Test] = &[
    ("the_program_at_tc_decides_as_the_pipeline_does", &[], || agree(Hook::Tcx)),
    ("the_program_in_xdp_decides_as_the_pipeline_does", &[], || agree(Hook::Xdp)),
    ("the_program_at_tc_knows_the_answer_to_a_syn", &[], || answers(Hook::Tcx)),
    ("the_program_in_xdp_knows_the_answer_to_a_syn", &[], || answers(Hook::Xdp)),
    ("a_flood_of_syns_takes_little_of_the_kernels_table", &[], flood),
];

/// Runs, each with its own seed, and frames of each.
const RUNS: u64 = 24;
const FRAMES: u32 = 800;
/// One frame in so many is preceded by a change of policy.
const POLICY_CHANGES: u64 = 200;
/// Conversations of a run.
const CONVERSATIONS: u64 = 6;

/// Workloads: name, last byte of MAC and addresses, and what else the config says of it.
const WORKLOADS: [(&str, u8, &str); 6] = [
    ("a", 1, ""),
    ("b", 2, ""),
    ("c", 3, ""),
    ("d", 4, "vlan = 10"),
    ("e", 5, "vlan = 10"),
    ("f", 6, "trunk = [10]"),
];

fn agree(hook: Hook) -> Shown {
    let place = Place::new("agree", hook)?;
    let runs = || {
        (1..=RUNS).try_fold([0; 3], |before, seed| {
            let more = run(hook, seed)?;
            Ok::<_, Failed>(std::array::from_fn(|at| before[at] + more[at]))
        })
    };
    let [frames, echoes, answers] = place.0.run(runs)??;
    println!("redirected: {frames} frames, {echoes} of them echoes, {answers} SYN-ACKs");
    ensure!(frames > 2_000, "only {frames} frames were redirected, which shows little");
    ensure!(echoes > 500, "only {echoes} of the redirected are echoes, which shows little");
    ensure!(answers > 30, "only {answers} of the redirected are SYN-ACKs, which shows little");
    Ok(())
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
    let mut redirected = [0; 3];
    for number in 0..FRAMES {
        if random.one_in(POLICY_CHANGES) {
            scene.install(&config(&mut random));
        }
        let at = random.below(CONVERSATIONS) as usize;
        if random.one_in(60) {
            conversations[at] = Conversation::new(&mut random);
        }
        let (from, frame) = conversations[at].next_frame(&mut random);
        let (from, frame) = mutated(from, frame, &mut random);
        let is_redirected = scene.judge(from, &frame).map_err(|difference| {
            format!("run {seed}, frame {number} from {}: {difference}: {frame:02x?}", name_of(from))
        })?;
        if is_redirected {
            let Conversation { protocol, frames, .. } = conversations[at];
            redirected[0] += 1;
            redirected[1] += u64::from(matches!(protocol, Protocol::Echo));
            redirected[2] += u64::from(matches!(protocol, Protocol::Tcp) && frames == 2);
        }
    }
    scene.switch.finish();
    scene.reference.finish();
    Ok(redirected)
}

/// Two switches under one policy, and the programs that the second writes verdicts for.
struct Scene {
    hook: Hook,
    lane: Arc<Lane>,
    members: Arc<Members>,
    ifindexes: BTreeMap<&'static str, u32>,
    reference: Fabric,
    switch: Fabric,
    snapshot: Snapshot,
}

impl Scene {
    fn new(hook: Hook, flows: u32, snapshot: Snapshot) -> Result<Self, Failed> {
        let members = Arc::<Members>::default();
        members.set_capacity(flows);
        let lane = members.lane()?;
        members.set_epoch(snapshot.epoch);
        let mut netlink = Netlink::open()?;
        let mut ifindexes = BTreeMap::new();
        for (name, ..) in WORKLOADS {
            let (near, far) = (format!("fd{name}"), format!("fd{name}far"));
            if netlink.link(&near).is_err() {
                netlink.create_veth(VethEnd::new(&near), VethEnd::new(&far), 1)?;
            }
            let ifindex = netlink.link(&near)?.index;
            ifindexes.insert(name, ifindex);
            lane.set_device(ifindex, true)?;
            let workload = snapshot.workloads.iter().find(|workload| workload.name == name);
            let member = Member {
                ifindex,
                egress: FlowEgress::Transmit(ifindex),
                max_frame: 1514,
                hook: Some(hook),
                takes_packets: true,
                takes_frames: true,
            };
            members.join(workload.ok_or("a workload has a port")?.port, member);
        }
        let reference = Fabric::of(snapshot.clone());
        let switch = Fabric::with_members(snapshot.clone(), Arc::clone(&members));
        Ok(Self { hook, lane, members, ifindexes, reference, switch, snapshot })
    }

    /// As the engine does it: the kernel's verdicts end before the workers take the new policy.
    fn install(&mut self, config: &str) {
        self.snapshot = next_snapshot(config, &self.snapshot);
        self.members.set_epoch(self.snapshot.epoch);
        self.switch.install(self.snapshot.clone());
        self.reference.install(self.snapshot.clone());
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
        let outcome = match self.lane.try_frame(self.hook, self.ifindexes[name], frame) {
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
            return if came == right {
                Ok(false)
            } else {
                Err(format!("kept, and became {came:02x?}, not {right:02x?}"))
            };
        };
        match &right[..] {
            [(receiver, _)] if self.ifindexes[receiver.as_str()] == egress => Ok(true),
            _ => Err(format!("redirected to {egress} by {flow:?}, not {right:02x?}")),
        }
    }
}

/// A random policy for the same workloads.
fn config(random: &mut Random) -> String {
    const SERVICES: [&str; 8] =
        ["tcp/80", "tcp/400-500", "udp/53", "udp", "tcp", "any", "icmp/echo", "icmp6"];
    const ACTIONS: [&str; 5] = ["allow", "allow", "allow", "deny", "reject"];
    const TIERS: [&str; 3] = ["emergency", "application", "baseline"];
    let mode = if random.one_in(6) { "audit" } else { "enforce" };
    let mut text = String::new();
    for number in 0..random.below(12) {
        let mut someone = || match random.below(4) {
            0 => "any = true".to_owned(),
            _ => format!("workload = \"{}\"", random.of(&WORKLOADS).0),
        };
        let (from, to) = (someone(), someone());
        let (service, action) = (random.of(&SERVICES), random.of(&ACTIONS));
        text += &format!(
            "[[rule]]\nname = \"r{number}\"\nfrom = {{ {from} }}\nto = {{ {to} }}\n\
             service = \"{service}\"\naction = \"{action}\"\ntier = \"{}\"\n",
            random.of(&TIERS)
        );
        if random.one_in(8) {
            text += "mode = \"audit\"\n";
        }
    }
    // Most conversations are to be allowed, or there would be little to redirect.
    if !random.one_in(4) {
        text += "[[rule]]\nname = \"rest\"\nfrom = { any = true }\nto = { any = true }\n\
                 action = \"allow\"\ntier = \"baseline\"\npriority = 200\n";
    }
    config_with(mode, &text)
}

/// A policy for the workloads.
fn config_with(mode: &str, rules: &str) -> String {
    let mut text = format!("[switch]\nname = \"verdicts\"\nmode = \"{mode}\"\nframes = 256\n");
    for (name, number, more) in WORKLOADS {
        text += &format!(
            "[[workload]]\nname = \"{name}\"\nkind = \"container\"\nmac = \"{}\"\n\
             ip = [\"10.0.0.{number}/24\", \"fd00::{number}/64\"]\n{more}\n",
            mac(number)
        );
    }
    text + rules
}

#[derive(Clone, Copy)]
enum Protocol {
    Tcp,
    Udp,
    Echo,
}

/// What two workloads say to each other.
struct Conversation {
    sides: [usize; 2],
    ports: [u16; 2],
    v6: bool,
    protocol: Protocol,
    /// Next sequence number of each side.
    next: [u32; 2],
    frames: u32,
}

impl Conversation {
    fn new(random: &mut Random) -> Self {
        // Mostly within a VLAN.
        let sides = match random.below(4) {
            0 => [random.below(6) as usize, random.below(6) as usize],
            1 => [3, 4],
            _ => [random.below(3) as usize, random.below(3) as usize],
        };
        Self {
            sides,
            ports: [random.of(&[1000, 1001]), random.of(&[80, 443, 53])],
            v6: random.one_in(2),
            protocol: random.of(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Echo]),
            next: [random.next() as u32, random.next() as u32],
            frames: 0,
        }
    }

    fn ends(&self, from: usize) -> Ends {
        ends([self.sides[from], self.sides[1 - from]], self.v6)
    }

    /// The next frame, and which workload sends it.
    fn next_frame(&mut self, random: &mut Random) -> (usize, Vec<u8>) {
        let number = self.frames;
        self.frames += 1;
        let from = match number {
            0 | 2 => 0,
            1 => 1,
            _ => random.below(2) as usize,
        };
        let (ends, source, target) = (self.ends(from), self.ports[from], self.ports[1 - from]);
        let payload = vec![0x5a; random.below(90) as usize];
        match self.protocol {
            Protocol::Tcp => {}
            Protocol::Udp => {
                return (self.sides[from], build::udp(ends, source, target, &payload));
            }
            Protocol::Echo => return (self.sides[from], self.echo(from, &payload, random)),
        }
        let flags = match number {
            0 => TcpFlags::SYN,
            1 => TcpFlags::SYN | TcpFlags::ACK,
            _ if random.one_in(40) => TcpFlags::FIN | TcpFlags::ACK,
            _ if random.one_in(60) => TcpFlags::RST | TcpFlags::ACK,
            _ => TcpFlags::ACK,
        };
        let payload = if number < 3 { &[][..] } else { &payload };
        let header = tcp::Repr {
            source_port: source,
            destination_port: target,
            sequence: self.next[from],
            acknowledgement: if number == 0 { 0 } else { self.next[1 - from] },
            flags,
            window: 60_000,
        };
        let counted = flags.intersects(TcpFlags::SYN | TcpFlags::FIN);
        self.next[from] = self.next[from].wrapping_add(payload.len() as u32 + u32::from(counted));
        (self.sides[from], build::tcp_segment(ends, header, payload))
    }
}

impl Conversation {
    /// Mostly the one side asks and the other answers. All have one of two identifiers.
    fn echo(&self, from: usize, payload: &[u8], random: &mut Random) -> Vec<u8> {
        let asks = (from == 0) != random.one_in(12);
        let (request, reply) = match self.v6 {
            true => (icmpv6::kind::ECHO_REQUEST, icmpv6::kind::ECHO_REPLY),
            false => (icmp::kind::ECHO_REQUEST, icmp::kind::ECHO_REPLY),
        };
        let kind = match random.below(20) {
            // Of the other family, the query that is none of these, errors.
            0 => random.of(&[0, 3, 8, 13, 14, 128, 129, 135]),
            _ if asks => request,
            _ => reply,
        };
        let header = icmp::Repr::query(kind, self.ports[0], self.frames as u16);
        build::icmp_message(self.ends(from), header, payload)
    }
}

/// From which workload to which.
fn ends(sides: [usize; 2], v6: bool) -> Ends {
    let [source, target] = sides.map(|at| WORKLOADS[at].1);
    let address = |number: u8| match v6 {
        true => format!("fd00::{number}").parse().expect("an address"),
        false => format!("10.0.0.{number}").parse().expect("an address"),
    };
    Ends { eth_src: mac(source), eth_dst: mac(target), src: address(source), dst: address(target) }
}

/// IPv4's packet as one of IPv6 with the same addresses, which no host sends.
fn mapped(frame: &[u8]) -> Vec<u8> {
    let (ethernet, packet) = frame.split_at(14);
    let len = packet.len() as u16 - 20;
    let mut bytes = ethernet[..12].to_vec();
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    bytes.extend(len.to_be_bytes());
    bytes.extend([packet[9], 64]);
    for address in [&packet[12..16], &packet[16..20]] {
        bytes.extend([[0; 10].as_slice(), &[0xff; 2], address].concat());
    }
    bytes.extend(&packet[20..]);
    bytes
}

/// Most frames are as they were. Others are not quite right, or from elsewhere.
fn mutated(from: usize, mut frame: Vec<u8>, random: &mut Random) -> (usize, Vec<u8>) {
    const IP: usize = 14;
    let v4 = frame[12..14] == [8, 0];
    let transport = if v4 { IP + 20 } else { IP + 40 };
    let is_tcp = frame[if v4 { IP + 9 } else { IP + 6 }] == protocol::TCP;
    let byte = random.next() as u8;
    match random.below(60) {
        0 => return (random.below(6) as usize, frame),
        1 => frame[11] = random.below(7) as u8,
        2 => frame[5] = random.below(7) as u8,
        3 if v4 => frame[IP + 15] = random.below(7) as u8,
        4 if v4 => frame[IP + 19] = random.below(7) as u8,
        5 if v4 => {
            // An option: four bytes that do nothing.
            frame.splice(IP + 20..IP + 20, [1; 4]);
            frame[IP] = 0x46;
            frame[IP + 3] += 4;
        }
        6 if v4 => frame[IP + 6] = byte & 0xe0,
        7 if v4 => frame[IP + 7] = byte & 3,
        8 if v4 => frame[IP + 8] = 0,
        9 => frame = build::tagged(frame, &[random.of(&[0, 10, 20])]),
        10 => frame = build::tagged(frame, &[10, 10]),
        11 => frame.extend([byte; 20]),
        12 => frame.truncate(IP + random.below(60) as usize),
        13 if is_tcp => frame[transport + 13] = byte,
        14 if is_tcp => frame[transport + 12] = byte,
        15 => frame[transport + 4] = byte,
        16 | 17 => frame = build::partial(frame),
        18 => frame[transport + 1] = byte,
        25..30 if is_tcp && frame[transport + 13] & 2 != 0 => frame[transport + 11] = byte,
        19 => frame[if v4 { IP + 9 } else { IP + 6 }] = random.of(&[1, 6, 17, 44, 58, 132]),
        20 => {
            let at = random.below(frame.len() as u64) as usize;
            frame[at] = byte;
            return (from, frame);
        }
        21 if v4 => {
            frame[IP + 10] ^= byte;
            return (from, frame);
        }
        22 | 23 if v4 => return (from, mapped(&frame)),
        24 if v4 => frame[IP + 3] = 20 + random.below(12) as u8,
        24 => frame[IP + 5] = random.below(12) as u8,
        _ => {}
    }
    if frame.len() >= IP + 20 && frame[12..14] == [8, 0] {
        frame[IP + 10..IP + 12].fill(0);
        let sum = Sum::default().bytes(&frame[IP..IP + 20]).checksum();
        frame[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
    }
    (from, frame)
}

fn mac(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, number])
}

fn name_of(workload: usize) -> &'static str {
    WORKLOADS[workload].0
}

/// Numbers that a seed decides (SplitMix64, Steele et al., OOPSLA '14).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}
