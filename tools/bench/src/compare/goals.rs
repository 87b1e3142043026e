//! What Firedoor is meant to reach, and what a comparison saw of it.
//!
//! A goal is about medians: a value, what one system has over another in the same round, or how far a
//! cost grows along a [sweep](super::sweep). What a comparison did not measure is not met and not missed.

use serde::Serialize;

use super::report::Row;
use super::scenario::Metric;
use super::stats::Summary;
use super::sweep::{Axis, Sweep};

/// One goal, and what was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// What is to be reached.
    pub what: &'static str,
    /// How much of it.
    pub bound: Bound,
    /// What the values are, unless they are ratios.
    pub metric: Option<Metric>,
    /// What was seen; none if it was not measured.
    pub seen: Option<Summary>,
    /// Whether the median is within the bound.
    pub met: Option<bool>,
}

/// A bound on a median.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Not less.
    AtLeast(f64),
    /// Not more.
    AtMost(f64),
}

impl Goal {
    /// A value of it, with its unit.
    pub fn show(&self, value: f64) -> String {
        self.metric.map_or_else(|| format!("{value:.2} ×"), |metric| metric.show(value))
    }

    /// The bound in words.
    pub fn wanted(&self) -> String {
        match self.bound {
            Bound::AtLeast(value) => format!("≥ {}", self.show(value)),
            Bound::AtMost(value) => format!("≤ {}", self.show(value)),
        }
    }
}

/// One system's metric in one scenario.
type Of = (&'static str, &'static str, Metric);

/// What a goal is about.
enum Quantity {
    /// A value.
    Value(Of),
    /// The first over the second.
    Ratio(Of, Of),
    /// How far a system's cost grows along the sweep that a scenario belongs to.
    Growth(&'static str, Axis, &'static str),
}

/// Ours and theirs in the same scenario.
const fn ratio(
    ours: &'static str,
    theirs: &'static str,
    scenario: &'static str,
    metric: Metric,
) -> Quantity {
    Quantity::Ratio((ours, scenario, metric), (theirs, scenario, metric))
}

const SWITCH: &str = "firedoor";
const EXPRESS: &str = "firedoor-express";

/// All goals: what the switch lane is to reach, and what the express lane.
const GOALS: &[(&str, Bound, Quantity)] = {
    use Bound::{AtLeast, AtMost};
    use Metric::{
        BitsPerSecond, ConnectionsPerSecond, CpuNsPerFrame, FramesPerSecond, IdleProcessors, Kept,
        P50, P99,
    };
    use Quantity::{Growth, Ratio, Value};
    &[
        (
            "switch lane, CPU per frame over a bare AF_XDP forwarder's (10,000 flows, 1,000 rules)",
            AtMost(1.15),
            ratio(SWITCH, "af_xdp", "udp-10k/1000", CpuNsPerFrame),
        ),
        (
            "switch lane, CPU per frame over Open vSwitch's with the same policy",
            AtMost(0.8),
            ratio(SWITCH, "ovs-afxdp+ct", "udp-10k/1000", CpuNsPerFrame),
        ),
        (
            "switch lane, cost from no rules to 10,000",
            AtMost(2.0),
            Growth(SWITCH, Axis::Rules, "udp-10k/1000"),
        ),
        (
            "switch lane, cost from one flow to 1,000,000 (1,000 rules)",
            AtMost(2.0),
            Growth(SWITCH, Axis::Flows, "udp-10k/1000"),
        ),
        (
            "switch lane, median latency over Open vSwitch's",
            AtMost(0.75),
            ratio(SWITCH, "ovs-afxdp", "latency/1000", P50),
        ),
        (
            "switch lane, 99th percentile of latency over Open vSwitch's",
            AtMost(0.75),
            ratio(SWITCH, "ovs-afxdp", "latency/1000", P99),
        ),
        (
            "switch lane, processor time of 20 idle ports",
            AtMost(0.01),
            Value((SWITCH, "idle-20/0", IdleProcessors)),
        ),
        (
            "switch lane, what a victim keeps under tuple space explosion",
            AtLeast(0.9),
            Value((SWITCH, "tuple-space/4", Kept)),
        ),
        (
            "the same attack makes Open vSwitch's victim fall",
            AtMost(0.9),
            Value(("ovs-afxdp+ct", "tuple-space/4", Kept)),
        ),
        (
            "switch lane, what a victim keeps under a SYN flood",
            AtLeast(0.9),
            Value((SWITCH, "syn-flood/4", Kept)),
        ),
        (
            "express lane, TCP on one core over the bridge's without policy",
            AtLeast(1.2),
            ratio(EXPRESS, "bridge", "tcp-1-core1/1000", BitsPerSecond),
        ),
        (
            "express lane, TCP over the bridge's without policy",
            AtLeast(1.0),
            ratio(EXPRESS, "bridge", "tcp-1/1000", BitsPerSecond),
        ),
        (
            "express lane, eight streams of TCP over the bridge's without policy",
            AtLeast(1.0),
            ratio(EXPRESS, "bridge", "tcp-8/1000", BitsPerSecond),
        ),
        (
            "express lane, TCP over the bridge's with nftables and the same rules",
            AtLeast(1.5),
            ratio(EXPRESS, "bridge+nft", "tcp-1/1000", BitsPerSecond),
        ),
        (
            "express lane, TCP over Open vSwitch's",
            AtLeast(9.0),
            ratio(EXPRESS, "ovs-afxdp", "tcp-1/1000", BitsPerSecond),
        ),
        (
            "express lane, frames over the bridge's without policy (10,000 flows, 1,000 rules)",
            AtLeast(1.5),
            ratio(EXPRESS, "bridge", "udp-10k/1000", FramesPerSecond),
        ),
        (
            "frames on one core, in XDP, over Open vSwitch's on two",
            AtLeast(5.0),
            Ratio(
                (SWITCH, "udp-10k-core1/1000", FramesPerSecond),
                ("ovs-afxdp", "udp-10k/1000", FramesPerSecond),
            ),
        ),
        (
            "express lane, median latency over the bridge's",
            AtMost(0.9),
            ratio(EXPRESS, "bridge", "latency/1000", P50),
        ),
        (
            "express lane, 99th percentile of latency over the bridge's",
            AtMost(0.9),
            ratio(EXPRESS, "bridge", "latency/1000", P99),
        ),
        (
            "express lane, connections over the bridge's with nftables and the same rules",
            AtLeast(1.0),
            ratio(EXPRESS, "bridge+nft", "connect/1000", ConnectionsPerSecond),
        ),
    ]
};

/// Every goal, with what these rows show of it.
pub(super) fn goals(rows: &[Row], sweeps: &[Sweep]) -> Vec<Goal> {
    let goal = |(what, bound, quantity): &(&'static str, Bound, Quantity)| {
        let seen = quantity.seen(rows, sweeps);
        let met = seen.as_ref().map(|seen| match *bound {
            Bound::AtLeast(value) => seen.median >= value,
            Bound::AtMost(value) => seen.median <= value,
        });
        Goal { what, bound: *bound, metric: quantity.metric(), seen, met }
    };
    GOALS.iter().map(goal).collect()
}

impl Quantity {
    fn metric(&self) -> Option<Metric> {
        match self {
            Self::Value((_, _, metric)) => Some(*metric),
            Self::Ratio(..) | Self::Growth(..) => None,
        }
    }

    fn seen(&self, rows: &[Row], sweeps: &[Sweep]) -> Option<Summary> {
        match self {
            Self::Value(of) => find(rows, of).cloned(),
            Self::Ratio(ours, theirs) => find(rows, ours)?.over(find(rows, theirs)?),
            Self::Growth(system, axis, row) => {
                let mut sweeps = sweeps.iter().filter(|sweep| sweep.axis == *axis);
                let sweep = sweeps.find(|sweep| sweep.rows.iter().any(|id| id == row))?;
                let line = sweep.lines.iter().find(|line| line.system == *system)?;
                // Complete, or a part of the way would pass for the whole.
                let complete = line.points.iter().all(Option::is_some);
                Summary::of(&[line.growth.filter(|_| complete)?])
            }
        }
    }
}

fn find<'a>(rows: &'a [Row], (system, scenario, metric): &Of) -> Option<&'a Summary> {
    let row = rows.iter().find(|row| row.id == *scenario)?;
    row.cells.iter().find(|cell| cell.system == *system)?.metrics.get(metric)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{report::tests::example, scenario, system};

    #[test]
    fn goals_name_scenarios_and_systems_that_exist() {
        let of = |(system, scenario, metric): &Of| {
            assert!(system::ALL.iter().any(|s| s.name() == *system), "{system}");
            let scenarios = scenario::all();
            let found = scenarios.iter().find(|s| s.id() == *scenario).unwrap();
            assert!(found.traffic.metrics().contains(metric), "{metric:?} in {scenario}");
        };
        for (_, _, quantity) in GOALS {
            match quantity {
                Quantity::Value(value) => of(value),
                Quantity::Ratio(ours, theirs) => [ours, theirs].into_iter().for_each(of),
                Quantity::Growth(system, _, row) => of(&(system, row, Metric::CpuNsPerFrame)),
            }
        }
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        assert!(goals(&[], &[]).iter().all(|goal| goal.seen.is_none() && goal.met.is_none()));
    }

    #[test]
    fn a_goal_is_judged_by_its_bound() {
        let report = example();
        let growth = report.goals.iter().find(|goal| goal.what.contains("10,000")).unwrap();
        assert!(growth.met.is_none(), "the example has no af_xdp");
        let met = |goal: &&Goal| goal.met == Some(true);
        let missed = |goal: &&Goal| goal.met == Some(false);
        assert!(report.goals.iter().any(|goal| met(&goal)));
        assert!(report.goals.iter().any(|goal| missed(&goal)));
        for goal in report.goals.iter().filter(met) {
            let seen = goal.seen.as_ref().unwrap().median;
            let within = match goal.bound {
                Bound::AtLeast(value) => seen >= value,
                Bound::AtMost(value) => seen <= value,
            };
            assert!(within, "{}", goal.what);
        }
    }
}
