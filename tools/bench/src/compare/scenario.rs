//! What is measured: each scenario is some traffic, under a number of rules, over a number of ports.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::traffic::{FrameSize, Kind};

/// What a run measures, and in which unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Frames that arrived, per second.
    FramesPerSecond,
    /// Payload bits that arrived, per second.
    BitsPerSecond,
    /// TCP connections opened and closed, per second.
    ConnectionsPerSecond,
    /// Time that all processors together were busy, in nanoseconds per frame that arrived.
    CpuNsPerFrame,
    /// Likewise, per 1,000 bytes of payload.
    CpuNsPerKilobyte,
    /// Likewise, per connection.
    CpuNsPerConnection,
    /// Frames that the generator offered, or an attacker, per second.
    Offered,
    /// Share of the offered frames that did not arrive, 0 to 1.
    Lost,
    /// Highest rate at which all frames arrived, per second.
    LossFree,
    /// Round trip that half of all did not exceed, in nanoseconds.
    P50,
    /// Likewise, 90 %.
    P90,
    /// Likewise, 99 %.
    P99,
    /// Likewise, 99.9 %.
    P999,
    /// Processors busy while nothing is sent, 0.01 for 1 % of one.
    IdleProcessors,
    /// Of those, what the system added: less those that were busy on the same wires before it was there.
    AddedProcessors,
    /// Those that were busy before.
    BareProcessors,
    /// What the system's own processes ran, to the nanosecond.
    OwnProcessors,
    /// Share of its own rate that the victim keeps while an attack goes on.
    Kept,
}

impl Metric {
    /// What it is called where there is little room.
    pub fn name(self) -> &'static str {
        match self {
            Self::FramesPerSecond | Self::BitsPerSecond | Self::ConnectionsPerSecond => "rate",
            Self::Offered => "offered",
            Self::LossFree => "without loss",
            Self::CpuNsPerFrame => "CPU per frame",
            Self::CpuNsPerKilobyte => "CPU per kB",
            Self::CpuNsPerConnection => "CPU per connection",
            Self::Lost => "lost",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::IdleProcessors => "busy processors",
            Self::AddedProcessors => "added",
            Self::BareProcessors => "without it",
            Self::OwnProcessors => "its own",
            Self::Kept => "kept",
        }
    }

    /// A value of it with its unit, to three significant digits.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::FramesPerSecond | Self::Offered | Self::LossFree => scaled(value, "pps"),
            Self::BitsPerSecond => scaled(value, "bit/s"),
            Self::ConnectionsPerSecond => scaled(value, "conn/s"),
            Self::CpuNsPerFrame | Self::CpuNsPerKilobyte | Self::CpuNsPerConnection => time(value),
            Self::P50 | Self::P90 | Self::P99 | Self::P999 => time(value),
            Self::Lost | Self::Kept => share(value),
            Self::IdleProcessors | Self::AddedProcessors => share(value),
            Self::BareProcessors | Self::OwnProcessors => share(value),
        }
    }

    /// Whether more of it is better.
    pub fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::FramesPerSecond
                | Self::BitsPerSecond
                | Self::ConnectionsPerSecond
                | Self::LossFree
                | Self::Kept
        )
    }
}

/// A share of one, in percent.
fn share(value: f64) -> String {
    format!("{} %", digits(value * 100.0))
}

/// A value with the largest prefix that keeps it above one.
fn scaled(value: f64, unit: &str) -> String {
    const PREFIXES: [&str; 4] = ["", "k", "M", "G"];
    let mut value = value;
    let mut prefix = 0;
    // What would round to four digits goes to the next prefix.
    while value >= 999.5 && prefix + 1 < PREFIXES.len() {
        value /= 1e3;
        prefix += 1;
    }
    format!("{} {}{unit}", digits(value), PREFIXES[prefix])
}

/// A time given in nanoseconds.
fn time(ns: f64) -> String {
    match ns {
        _ if !ns.is_finite() => "∞".to_owned(),
        _ if ns < 999.5 => format!("{} ns", digits(ns)),
        _ if ns < 999.5e3 => format!("{} µs", digits(ns / 1e3)),
        _ => format!("{} ms", digits(ns / 1e6)),
    }
}

/// Three significant digits, and no more than two behind the point.
fn digits(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".to_owned(),
        99.95.. => format!("{value:.0}"),
        9.995.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A load of UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Flows, which take turns.
    pub flows: u32,
    /// How long frames are.
    pub size: FrameSize,
    /// How frames are made.
    pub kind: Kind,
    /// Frames per second to offer; as many as possible if there is none.
    pub rate: Option<u64>,
}

/// The traffic of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Traffic {
    /// UDP one way.
    Udp(Load),
    /// UDP one way, at the highest rate without loss. The load's own rate is of no account.
    LossFree(Load),
    /// TCP one way, as fast as it goes.
    Tcp {
        /// Connections at once.
        streams: u32,
    },
    /// One request, its answer, the next request.
    RoundTrips(Waiting),
    /// TCP connections, opened and closed.
    Connections,
    /// UDP at a modest rate, and from another port an attack.
    Attack {
        /// The victim's load.
        victim: Load,
        /// What the attacker sends.
        attack: Attack,
    },
    /// None.
    Silence,
}

/// How both ends of a conversation wait for what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// One thread is both and asks again and again, so that nobody has to be woken and the rest is the
    /// system's own part.
    Polling,
    /// They sleep in the kernel, wherever it puts them, as programs do.
    Sleeping,
}

/// What an attacker sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Attack {
    /// Packets, all refused, each of which differs from a rule in another bit of each field, so
    /// that a cache which remembers just those bits has to keep a mask for each.
    TupleSpace,
    /// Connections that are begun and go no further, all allowed.
    SynFlood,
}

impl Traffic {
    /// What it measures: first what it is about, then what it costs, then the rest.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Udp(Load { rate: None, .. }) => {
                &[Metric::FramesPerSecond, Metric::CpuNsPerFrame, Metric::Offered]
            }
            Self::Udp(Load { rate: Some(_), .. }) => &[Metric::CpuNsPerFrame, Metric::Lost],
            Self::LossFree(_) => &[Metric::LossFree],
            Self::Tcp { .. } => &[Metric::BitsPerSecond, Metric::CpuNsPerKilobyte],
            Self::Attack { .. } => &[Metric::Kept, Metric::FramesPerSecond, Metric::Offered],
            Self::RoundTrips(_) => &[Metric::P50, Metric::P99, Metric::P90, Metric::P999],
            Self::Connections => &[Metric::ConnectionsPerSecond, Metric::CpuNsPerConnection],
            Self::Silence => &[
                Metric::IdleProcessors,
                Metric::OwnProcessors,
                Metric::AddedProcessors,
                Metric::BareProcessors,
            ],
        }
    }
}

impl Traffic {
    /// How long a measurement of `window` takes with all that belongs to it, about.
    pub(super) fn duration(self, window: Duration) -> Duration {
        let more = match self {
            // Each flow has to be there some times, in ten seconds at most.
            Self::Udp(load) => 1_200 + (u64::from(load.flows) / 100).min(9_000),
            Self::LossFree(_) => 12_000,
            Self::Tcp { .. } | Self::Connections => 600,
            Self::RoundTrips(_) => 250,
            Self::Attack { .. } => 3_000,
            Self::Silence => 6_500,
        };
        window + Duration::from_millis(more)
    }

    /// How much it leaves behind that what is measured after it on the same wires could feel:
    /// connections above all, and offloads that a sink's XDP program turned off.
    pub(super) fn trail(self) -> u32 {
        match self {
            Self::Silence => 0,
            Self::RoundTrips(_) => 1,
            Self::Tcp { .. } => 2,
            Self::Connections => 3,
            Self::Udp(load) | Self::LossFree(load) => 4 + load.flows,
            Self::Attack { .. } => u32::MAX,
        }
    }
}

/// One scenario.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Scenario {
    /// What it is called on the command line, with those of other rules: `udp-10k`.
    pub family: &'static str,
    /// What it is about, in words.
    pub title: &'static str,
    /// Its traffic.
    pub traffic: Traffic,
    /// Rules before the one that lets the traffic through.
    pub rules: usize,
    /// Ports of the switch.
    pub ports: usize,
    /// Whether all that belongs to it runs on one processor: sender, system and receiver.
    pub one_core: bool,
    /// Whether `--quick` measures it.
    pub quick: bool,
}

impl Scenario {
    /// Whether someone attacks.
    pub fn is_attacked(&self) -> bool {
        matches!(self.traffic, Traffic::Attack { .. })
    }

    /// What it is called on the command line, alone: `udp-10k/1000`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.family, self.rules)
    }

    /// What it is about, with its rules.
    pub fn heading(&self) -> String {
        match self.rules {
            0 => format!("{}, no rules", self.title),
            rules => format!("{}, {rules} rules", self.title),
        }
    }

    /// Whether `name` means it, or it among others.
    pub fn is_called(&self, name: &str) -> bool {
        self.family == name || self.id() == name
    }

    /// Connections that it makes, about.
    pub fn connections(&self) -> usize {
        match self.traffic {
            Traffic::Udp(load) | Traffic::LossFree(load) => load.flows as usize,
            _ => 1,
        }
    }
}

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

/// As many frames as possible.
const fn flood(flows: u32, size: FrameSize) -> Load {
    Load { flows, size, kind: Kind::LiveFrames, rate: None }
}

/// Every scenario, in the order of the tables.
pub fn all() -> Vec<Scenario> {
    let small = FrameSize::Fixed(64);
    let many = flood(10_000, small);
    let as_workloads = Load { kind: Kind::Packet, ..many };
    let modest = Load { rate: Some(MODEST), ..as_workloads };
    let tcp = |streams| Traffic::Tcp { streams };
    let victim = Load { flows: 1_000, ..modest };
    let tuple_space = Traffic::Attack { victim, attack: Attack::TupleSpace };
    let syn_flood = Traffic::Attack { victim, attack: Attack::SynFlood };
    let row = |family, title, traffic| Family { family, title, traffic, ..Family::default() };
    let polling = Traffic::RoundTrips(Waiting::Polling);
    let sleeping = Traffic::RoundTrips(Waiting::Sleeping);
    let families = [
        Family {
            quick: &[0],
            ..row("udp-1", "64-byte UDP, one flow", Traffic::Udp(flood(1, small)))
        },
        Family {
            quick: &[0, 1_000],
            ..row("udp-10k", "64-byte UDP, 10,000 flows", Traffic::Udp(many))
        },
        row("udp-1m", "64-byte UDP, 1,000,000 flows", Traffic::Udp(flood(1_000_000, small))),
        row("imix", "IMIX UDP, 10,000 flows", Traffic::Udp(flood(10_000, FrameSize::Imix))),
        Family {
            rules: &POLICY,
            one_core: true,
            ..row("udp-10k-core1", "64-byte UDP, 10,000 flows, one core", Traffic::Udp(many))
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
        Family { rules: &SOME, quick: &POLICY, ..row("tcp-1", "TCP, one stream", tcp(1)) },
        Family {
            rules: &POLICY,
            one_core: true,
            quick: &POLICY,
            ..row("tcp-1-core1", "TCP, one stream, one core", tcp(1))
        },
        Family { rules: &SOME, ..row("tcp-8", "TCP, eight streams", tcp(8)) },
        Family {
            rules: &SOME,
            quick: &POLICY,
            ..row("latency", "UDP request and response, ends that poll", polling)
        },
        Family {
            rules: &POLICY,
            ..row("latency-sleep", "UDP request and response, ends that sleep", sleeping)
        },
        Family {
            rules: &SOME,
            quick: &POLICY,
            ..row("connect", "TCP connections opened and closed", Traffic::Connections)
        },
        Family {
            rules: &POLICY,
            ports: 20,
            ..row("ports-20", "64-byte UDP, 10,000 flows, 20 ports", Traffic::Udp(many))
        },
        Family {
            rules: &POLICY,
            ports: 200,
            ..row("ports-200", "64-byte UDP, 10,000 flows, 200 ports", Traffic::Udp(many))
        },
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
            rules: &SOME[..1],
            ports: 20,
            quick: &SOME[..1],
            ..row("idle-20", "nothing sent, 20 ports", Traffic::Silence)
        },
    ];
    families.iter().flat_map(Family::scenarios).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scenario_has_its_id_and_something_to_measure() {
        let all = all();
        let ids: std::collections::BTreeSet<String> = all.iter().map(Scenario::id).collect();
        assert_eq!(ids.len(), all.len());
        assert!(all.iter().all(|scenario| !scenario.traffic.metrics().is_empty()));
        assert!(all.iter().any(|scenario| scenario.quick));
    }

    #[test]
    fn values_are_shown_with_three_digits() {
        assert_eq!(Metric::FramesPerSecond.show(1_744_321.0), "1.74 Mpps");
        assert_eq!(Metric::FramesPerSecond.show(999_600.0), "1.00 Mpps");
        assert_eq!(Metric::FramesPerSecond.show(0.0), "0.00 pps");
        assert_eq!(Metric::BitsPerSecond.show(32.1e9), "32.1 Gbit/s");
        assert_eq!(Metric::P99.show(44_700.0), "44.7 µs");
        assert_eq!(Metric::P50.show(812.0), "812 ns");
        assert_eq!(Metric::P999.show(2.5e6), "2.50 ms");
        assert_eq!(Metric::CpuNsPerFrame.show(f64::INFINITY), "∞");
        assert_eq!(Metric::Lost.show(0.123), "12.3 %");
        assert_eq!(Metric::Kept.show(1.0), "100 %");
    }

    #[test]
    fn a_scenario_is_called_by_its_family_or_its_id() {
        let all = all();
        let called = |name: &str| all.iter().filter(|s| s.is_called(name)).count();
        assert_eq!((called("udp-10k"), called("udp-10k/1000"), called("udp")), (3, 1, 0));
    }
}
