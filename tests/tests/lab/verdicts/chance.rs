//! Policies and frames that a seed decides: what six workloads say to each other, mostly as hosts would, and
//! sometimes as nobody should.

use firedoor_classifier::MacAddr;
use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::checksum::Sum;
use firedoor_classifier::wire::{icmp, icmpv6, protocol, tcp};

/// Workloads: name, last byte of MAC and addresses, and what else the config says of it.
pub(super) const WORKLOADS: [(&str, u8, &str); 6] = [
    ("a", 1, ""),
    ("b", 2, ""),
    ("c", 3, ""),
    ("d", 4, "vlan = 10"),
    ("e", 5, "vlan = 10"),
    ("f", 6, "trunk = [10]"),
];

/// Who a workload is, under one policy: last bytes of its MAC address and of its addresses, and what else the
/// config says of it.
#[derive(Clone, Copy)]
struct Person {
    mac: u8,
    address: u8,
    more: &'static str,
}

/// A random policy for the same workloads, some of which may be somebody else under it.
pub(super) fn config(random: &mut Random) -> String {
    const MODES: [&str; 8] =
        ["enforce", "enforce", "enforce", "enforce", "enforce", "enforce", "audit", "learn"];
    let mut people =
        WORKLOADS.map(|(_, number, more)| Person { mac: number, address: number, more });
    if random.one_in(3) {
        change(&mut people, random);
    }
    let mut text = rules(random);
    // Nothing to or from one workload, whatever else allows it.
    if random.one_in(4) {
        let suspect = format!("workload = \"{}\"", random.of(&WORKLOADS).0);
        for (name, ends) in [("out", [suspect.as_str(), ANYBODY]), ("in", [ANYBODY, &suspect])] {
            text += &rule(name, ends, "any", "deny", "emergency");
        }
    }
    config_of(random.of(&MODES), &people, &text)
}

const ANYBODY: &str = "any = true";

/// Makes somebody somebody else: of another VLAN, with another's MAC address, addresses or both, or a router.
fn change(people: &mut [Person; WORKLOADS.len()], random: &mut Random) {
    let [one, other] = [(); 2].map(|()| random.below(WORKLOADS.len() as u64) as usize);
    match random.below(6) {
        0 | 1 => people[one].more = random.of(&["", "vlan = 10", "vlan = 20", "trunk = [10, 20]"]),
        2 => people[one].more = "router = true",
        3 => {
            (people[one].mac, people[other].mac) = (people[other].mac, people[one].mac);
        }
        4 => {
            (people[one].address, people[other].address) =
                (people[other].address, people[one].address);
        }
        _ => people.swap(one, other),
    }
}

fn rules(random: &mut Random) -> String {
    const SERVICES: [&str; 8] =
        ["tcp/80", "tcp/400-500", "udp/53", "udp", "tcp", "any", "icmp/echo", "icmp6"];
    const ACTIONS: [&str; 5] = ["allow", "allow", "allow", "deny", "reject"];
    const TIERS: [&str; 3] = ["emergency", "application", "baseline"];
    let mut text = String::new();
    for number in 0..random.below(12) {
        let mut someone = || match random.below(4) {
            0 => ANYBODY.to_owned(),
            _ => format!("workload = \"{}\"", random.of(&WORKLOADS).0),
        };
        let ends = [someone(), someone()];
        let (service, action) = (random.of(&SERVICES), random.of(&ACTIONS));
        let ends = ends.each_ref().map(String::as_str);
        text += &rule(&format!("r{number}"), ends, service, action, random.of(&TIERS));
        if random.one_in(8) {
            text += "mode = \"audit\"\n";
        }
    }
    // Most conversations are to be allowed, or there would be little to redirect.
    if !random.one_in(4) {
        text += &rule("rest", [ANYBODY; 2], "any", "allow", "baseline");
        text += "priority = 200\n";
    }
    text
}

fn rule(name: &str, [from, to]: [&str; 2], service: &str, action: &str, tier: &str) -> String {
    format!(
        "[[rule]]\nname = \"{name}\"\nfrom = {{ {from} }}\nto = {{ {to} }}\n\
         service = \"{service}\"\naction = \"{action}\"\ntier = \"{tier}\"\n"
    )
}

/// A policy for the workloads.
pub(super) fn config_with(mode: &str, rules: &str) -> String {
    let people = WORKLOADS.map(|(_, number, more)| Person { mac: number, address: number, more });
    config_of(mode, &people, rules)
}

fn config_of(mode: &str, people: &[Person; WORKLOADS.len()], rules: &str) -> String {
    let mut text = format!("[switch]\nname = \"verdicts\"\nmode = \"{mode}\"\nframes = 256\n");
    for ((name, ..), Person { mac: number, address, more }) in WORKLOADS.iter().zip(people) {
        text += &format!(
            "[[workload]]\nname = \"{name}\"\nkind = \"container\"\nmac = \"{}\"\n\
             ip = [\"10.0.0.{address}/24\", \"fd00::{address}/64\"]\n{more}\n",
            mac(*number)
        );
    }
    text + rules
}

#[derive(Clone, Copy)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Echo,
}

/// TCP's numbers begin below this: those of several lives of a connection lie within one window, scaled.
const NUMBERS: u64 = 1 << 28;

/// What two workloads say to each other.
pub(super) struct Conversation {
    sides: [usize; 2],
    ports: [u16; 2],
    v6: bool,
    pub(super) protocol: Protocol,
    /// Next sequence number of each side.
    next: [u32; 2],
    pub(super) frames: u32,
}

impl Conversation {
    pub(super) fn new(random: &mut Random) -> Self {
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
            next: [(); 2].map(|()| random.below(NUMBERS) as u32),
            frames: 0,
        }
    }

    fn ends(&self, from: usize) -> Ends {
        ends([self.sides[from], self.sides[1 - from]], self.v6)
    }

    /// The next frame, and which workload sends it.
    pub(super) fn next_frame(&mut self, random: &mut Random) -> (usize, Vec<u8>) {
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
pub(super) fn ends(sides: [usize; 2], v6: bool) -> Ends {
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

/// Flags that few segments have, or none should.
const ODD_FLAGS: [u8; 12] =
    [0x00, 0x01, 0x02, 0x03, 0x04, 0x12, 0x14, 0x18, 0x19, 0x29, 0x30, 0xd0];

/// IPv6's packet with an extension header before what it carries.
fn extended(mut frame: Vec<u8>, random: &mut Random) -> Vec<u8> {
    const FRAGMENT: u8 = 44;
    let (kind, next) = (random.of(&[0, 60, FRAGMENT, FRAGMENT, 43]), frame[20]);
    let header = match kind {
        // The first, the last, one between, or the whole.
        FRAGMENT => [next, 0, 0, random.of(&[0, 1, 8, 9]), 0, 0, 0, random.below(3) as u8],
        // Padding (RFC 8200, section 4.2).
        _ => [next, 0, 1, 4, 0, 0, 0, 0],
    };
    frame.splice(54..54, header);
    frame[20] = kind;
    frame[19] += header.len() as u8;
    frame
}

/// What a frame's receiver, or somebody else, says about it.
fn complaint(frame: &[u8], random: &mut Random) -> (usize, Vec<u8>) {
    let [target, source] = [frame[5], frame[11]];
    let numbers = [target, source].map(|number| usize::from(number.clamp(1, 6)) - 1);
    let v6 = frame[12..14] != [8, 0];
    let kind = if v6 { random.of(&[1, 2, 3]) } else { random.of(&[3, 5, 11]) };
    let error = build::icmp_error(ends(numbers, v6), kind, random.below(4) as u8, &frame[14..]);
    let from = if random.one_in(6) { random.below(6) as usize } else { numbers[0] };
    (from, error)
}

/// Most frames are as they were. Others are not quite right, or from elsewhere.
pub(super) fn mutated(from: usize, mut frame: Vec<u8>, random: &mut Random) -> (usize, Vec<u8>) {
    const IP: usize = 14;
    let v4 = frame[12..14] == [8, 0];
    let transport = if v4 { IP + 20 } else { IP + 40 };
    let is_tcp = frame[if v4 { IP + 9 } else { IP + 6 }] == protocol::TCP;
    // Of TCP: where sequence and acknowledgement number are.
    let numbers = transport + 4..transport + 12;
    let byte = random.next() as u8;
    match random.below(100) {
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
        15 if !is_tcp => frame[transport + 4] = byte,
        16 | 17 => frame = build::partial(frame),
        18 => frame[transport + 1] = byte,
        25..30 if is_tcp && frame[transport + 13] & 2 != 0 => frame[transport + 11] = byte,
        19 => frame[if v4 { IP + 9 } else { IP + 6 }] = random.of(&[1, 6, 17, 44, 58, 132]),
        20 => {
            let at = random.below(frame.len() as u64) as usize;
            if !is_tcp || !numbers.contains(&at) {
                frame[at] = byte;
            }
            return (from, frame);
        }
        21 if v4 => {
            frame[IP + 10] ^= byte;
            return (from, frame);
        }
        22 | 23 if v4 => return (from, mapped(&frame)),
        24 if v4 => frame[IP + 3] = 20 + random.below(12) as u8,
        24 => frame[IP + 5] = random.below(12) as u8,
        30..33 if is_tcp => frame[transport + 13] = random.of(&ODD_FLAGS),
        33 if !v4 => frame[IP + 23] = random.below(7) as u8,
        34 if !v4 => frame[IP + 39] = random.below(7) as u8,
        35 if !v4 => frame[IP + 7] = 0,
        36 | 37 if !v4 => frame = extended(frame, random),
        38 => return complaint(&frame, random),
        39 => frame[6] |= 1,
        40 => frame[..6].fill(0xff),
        41 => {
            frame[12..14].copy_from_slice(&random.of(&[
                [8, 6],
                [8, 0],
                [0x86, 0xdd],
                [0x88, 0xb5],
            ]));
        }
        42 => frame[IP] = byte,
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

pub(super) fn name_of(workload: usize) -> &'static str {
    WORKLOADS[workload].0
}

/// Numbers that a seed decides (SplitMix64, Steele et al., OOPSLA '14).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    pub(super) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}
