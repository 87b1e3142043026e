//! The scenarios of a comparison, in the order of its tables.

use super::{Attack, Load, Opening, Scenario, Traffic, Transport, Victim, Waiting};
use crate::traffic::{FrameSize, Kind};

/// Numbers of rules, from none to as many as any comparison has.
const RULES: [usize; 3] = [0, 1_000, 10_000];
/// Rules of the policy for attacks.
const ATTACKED: [usize; 1] = [4];
/// Without and with policy.
const SOME: [usize; 2] = [0, 1_000];
/// With policy.
const POLICY: [usize; 1] = [1_000];

/// The rate of a load that every system can carry, in frames per second.
const MODEST: u64 = 200_000;

/// New connections a second that every system can carry.
const NEW_CONNECTIONS: u32 = 400;

/// As many frames as possible.
const fn flood(flows: u32, size: FrameSize) -> Load {
    Load { flows, size, kind: Kind::LiveFrames, rate: None }
}

/// The shortest that there are.
const SMALL: FrameSize = FrameSize::Fixed(64);

/// As many of these as possible, in 10,000 flows.
const MANY: Load = flood(10_000, SMALL);

/// Every scenario, in the order of the tables.
pub fn all() -> Vec<Scenario> {
    [frames(), streams(), conversations(), ports(), attacks(), silence()]
        .iter()
        .flatten()
        .flat_map(Family::scenarios)
        .collect()
}

fn frames() -> Vec<Family> {
    let as_workloads = Load { kind: Kind::Packet, ..MANY };
    let modest = Load { rate: Some(MODEST), ..as_workloads };
    vec![
        Family {
            quick: &[0],
            ..row("udp-1", "64-byte UDP, one flow", Traffic::Udp(flood(1, SMALL)))
        },
        Family {
            quick: &[0, 1_000],
            ..row("udp-10k", "64-byte UDP, 10,000 flows", Traffic::Udp(MANY))
        },
        row("udp-1m", "64-byte UDP, 1,000,000 flows", Traffic::Udp(flood(1_000_000, SMALL))),
        row("imix", "IMIX UDP, 10,000 flows", Traffic::Udp(flood(10_000, FrameSize::Imix))),
        Family {
            rules: &POLICY,
            one_core: true,
            ..row("udp-10k-core1", "64-byte UDP, 10,000 flows, one core", Traffic::Udp(MANY))
        },
        Family {
            rules: &POLICY,
            ..row(
                "skb-10k",
                "64-byte UDP from a packet socket to the stack, 10,000 flows",
                Traffic::Udp(as_workloads),
            )
        },
        Family {
            rules: &SOME,
            quick: &POLICY,
            ..row(
                "modest",
                "64-byte UDP, 10,000 flows, 200,000 frames per second",
                Traffic::Udp(modest),
            )
        },
        Family {
            rules: &POLICY,
            ..row(
                "loss-free",
                "64-byte UDP, 10,000 flows, highest rate without loss",
                Traffic::LossFree(as_workloads),
            )
        },
    ]
}

fn streams() -> Vec<Family> {
    let tcp = |streams| Traffic::Tcp { streams };
    vec![
        Family { rules: &SOME, quick: &POLICY, ..row("tcp-1", "TCP, one stream", tcp(1)) },
        Family {
            rules: &POLICY,
            one_core: true,
            quick: &POLICY,
            ..row("tcp-1-core1", "TCP, one stream, one core", tcp(1))
        },
        Family { rules: &SOME, ..row("tcp-8", "TCP, eight streams", tcp(8)) },
    ]
}

fn conversations() -> Vec<Family> {
    let round_trips = Traffic::RoundTrips;
    let first = |transport, rested| Traffic::Firsts(Opening { transport, rested });
    vec![
        Family {
            rules: &SOME,
            quick: &POLICY,
            ..row(
                "latency",
                "UDP request and response, ends that poll",
                round_trips(Waiting::Polling),
            )
        },
        Family {
            rules: &POLICY,
            ..row(
                "latency-turns",
                "UDP request and response, ends that take turns on one processor",
                round_trips(Waiting::TakingTurns),
            )
        },
        Family {
            rules: &POLICY,
            ..row(
                "latency-sleep",
                "UDP request and response, ends that sleep",
                round_trips(Waiting::Sleeping),
            )
        },
        Family {
            rules: &POLICY,
            ..row(
                "first-udp",
                "a flow's first datagram and its answer",
                first(Transport::Udp, false),
            )
        },
        Family {
            rules: &POLICY,
            ..row(
                "first-udp-rested",
                "a flow's first datagram and its answer, after a rest",
                first(Transport::Udp, true),
            )
        },
        Family {
            rules: &POLICY,
            ..row("first-tcp", "SYN and SYN-ACK", first(Transport::Tcp, false))
        },
        Family {
            rules: &POLICY,
            ..row("first-tcp-rested", "SYN and SYN-ACK, after a rest", first(Transport::Tcp, true))
        },
        Family {
            rules: &SOME,
            quick: &POLICY,
            ..row("connect", "TCP connections opened and closed", Traffic::Connections)
        },
    ]
}

fn ports() -> Vec<Family> {
    vec![
        Family {
            rules: &POLICY,
            ports: 20,
            ..row("ports-20", "64-byte UDP, 10,000 flows, 20 ports", Traffic::Udp(MANY))
        },
        Family {
            rules: &POLICY,
            ports: 200,
            ..row("ports-200", "64-byte UDP, 10,000 flows, 200 ports", Traffic::Udp(MANY))
        },
    ]
}

fn attacks() -> Vec<Family> {
    let victim =
        Victim::Udp(Load { flows: 1_000, size: SMALL, kind: Kind::Packet, rate: Some(MODEST) });
    let attacked = |victim, attack| Traffic::Attack { victim, attack };
    let tuple_space = attacked(victim, Attack::TupleSpace);
    let syn_flood = attacked(victim, Attack::SynFlood);
    let syn_flood_connect = attacked(Victim::Connections(NEW_CONNECTIONS), Attack::SynFlood);
    vec![
        Family {
            rules: &ATTACKED,
            ports: 3,
            quick: &ATTACKED,
            ..row("tuple-space", "a victim's UDP beside a tuple space attack", tuple_space)
        },
        Family {
            rules: &ATTACKED,
            ports: 3,
            ..row("syn-flood", "a victim's UDP beside a SYN flood", syn_flood)
        },
        Family {
            rules: &ATTACKED,
            ports: 3,
            ..row(
                "syn-flood-connect",
                "a victim's new TCP connections beside a SYN flood",
                syn_flood_connect,
            )
        },
    ]
}

fn silence() -> Vec<Family> {
    vec![Family {
        rules: &SOME[..1],
        ports: 20,
        quick: &SOME[..1],
        ..row("idle-20", "nothing sent, 20 ports", Traffic::Silence)
    }]
}

/// A family between two ports, under every number of rules.
fn row(family: &'static str, title: &'static str, traffic: Traffic) -> Family {
    Family { family, title, traffic, ..Family::default() }
}

/// Scenarios that differ in their number of rules only.
struct Family {
    family: &'static str,
    title: &'static str,
    traffic: Traffic,
    ports: usize,
    one_core: bool,
    rules: &'static [usize],
    /// Those numbers of rules that `--quick` measures.
    quick: &'static [usize],
}

impl Default for Family {
    fn default() -> Self {
        Self {
            family: "",
            title: "",
            traffic: Traffic::Silence,
            ports: 2,
            one_core: false,
            rules: &RULES,
            quick: &[],
        }
    }
}

impl Family {
    fn scenarios(&self) -> impl Iterator<Item = Scenario> {
        self.rules.iter().map(|&rules| Scenario {
            family: self.family,
            title: self.title,
            traffic: self.traffic,
            rules,
            ports: self.ports,
            one_core: self.one_core,
            quick: self.quick.contains(&rules),
        })
    }
}
