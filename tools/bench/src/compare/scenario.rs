//! What is measured: each scenario is some traffic, under a number of rules, over a number of ports.

mod list;

use std::time::Duration;

use serde::Serialize;

pub use self::list::all;

use super::metric::Metric;
use crate::traffic::{FrameSize, Kind};

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
    /// Conversations of a few round trips each, of which the first matters.
    Firsts(Opening),
    /// TCP connections, opened and closed.
    Connections,
    /// A victim that sends at a modest rate, and from another port an attack.
    Attack {
        /// What the victim sends.
        victim: Victim,
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
    /// They sleep in the kernel, both on the first processor, where one goes on when the other waits: nobody has to
    /// wake a processor.
    TakingTurns,
    /// They sleep in the kernel, wherever it puts them, as programs do.
    Sleeping,
}

/// How conversations begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Opening {
    /// By what.
    pub transport: Transport,
    /// Whether nothing is sent for a while before each, so that a system that waits for frames sleeps.
    pub rested: bool,
}

/// What a conversation is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// The first frame is a datagram, and its answer another.
    Udp,
    /// SYN and SYN-ACK.
    Tcp,
}

/// What the victim of an attack sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Victim {
    /// UDP in flows that were there before the attack.
    Udp(Load),
    /// New TCP connections, so many a second.
    Connections(u32),
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
        use Metric::{
            AddedProcessors, BareProcessors, BitsPerSecond, ConnectionsPerSecond,
            CpuNsPerConnection, CpuNsPerFrame, CpuNsPerKilobyte, FramesPerSecond, IdleProcessors,
            Kept, Later, LossFree, Lost, More, Offered, OwnNsPerFrame, OwnProcessors, P50, P90,
            P99, P999, Undisturbed,
        };
        match self {
            Self::Udp(Load { rate: None, .. }) => {
                &[FramesPerSecond, CpuNsPerFrame, Offered, OwnNsPerFrame, Undisturbed]
            }
            Self::Udp(Load { rate: Some(_), .. }) => {
                &[CpuNsPerFrame, Lost, OwnNsPerFrame, Undisturbed]
            }
            Self::LossFree(_) => &[LossFree],
            Self::Tcp { .. } => &[BitsPerSecond, CpuNsPerKilobyte, Undisturbed],
            Self::Attack { victim: Victim::Udp(_), .. } => &[Kept, FramesPerSecond, Offered],
            Self::Attack { victim: Victim::Connections(_), .. } => {
                &[Kept, ConnectionsPerSecond, Offered]
            }
            Self::RoundTrips(_) => &[P50, P99, P90, P999, Undisturbed],
            Self::Firsts(_) => &[P50, P99, P90, Later, More, Lost, Undisturbed],
            Self::Connections => &[ConnectionsPerSecond, CpuNsPerConnection, Undisturbed],
            Self::Silence => &[IdleProcessors, OwnProcessors, AddedProcessors, BareProcessors],
        }
    }
}

impl Traffic {
    /// How long a measurement of `window` takes with all that belongs to it, about.
    pub(super) fn duration(self, window: Duration) -> Duration {
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let more = match self {
            // Each flow has to be there some times, in ten seconds at most.
            Self::Udp(load) => 1_200 + (u64::from(load.flows) / 100).min(9_000),
            Self::LossFree(_) => 6_000,
            Self::Tcp { .. } | Self::Connections => 600,
            Self::RoundTrips(_) => 250,
            Self::Firsts(Opening { rested, .. }) => 250 + 500 * u64::from(rested),
            // The victim is watched twice.
            Self::Attack { .. } => 4_000 + window_ms,
            Self::Silence => 3_500,
        };
        window + Duration::from_millis(more)
    }

    /// How much it leaves behind that what is measured after it on the same wires could feel:
    /// connections above all, and offloads that a sink's XDP program turned off.
    pub(super) fn trail(self) -> u32 {
        match self {
            Self::Silence => 0,
            Self::RoundTrips(_) => 1,
            Self::Firsts(_) => 2,
            Self::Tcp { .. } => 3,
            Self::Connections => 4,
            Self::Udp(load) | Self::LossFree(load) => 5 + load.flows,
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

    /// The most connections that each system may remember meanwhile, if that is to be the same for all: who is
    /// attacked fills any table.
    pub fn room(&self) -> Option<usize> {
        self.is_attacked().then_some(ROOM)
    }

    /// Connections that it makes, about.
    pub fn connections(&self) -> usize {
        match self.traffic {
            Traffic::Udp(load) | Traffic::LossFree(load) => load.flows as usize,
            _ => 1,
        }
    }
}

/// The most connections that each system may remember while it is attacked: what Firedoor and, with some gigabytes of
/// memory, Linux have by default.
const ROOM: usize = 1 << 18;

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
    fn a_scenario_is_called_by_its_family_or_its_id() {
        let all = all();
        let called = |name: &str| all.iter().filter(|s| s.is_called(name)).count();
        assert_eq!((called("udp-10k"), called("udp-10k/1000"), called("udp")), (3, 1, 0));
    }
}
