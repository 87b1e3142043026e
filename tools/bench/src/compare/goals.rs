//! What Firedoor is meant to reach, and what a comparison saw of it.
//!
//! A goal is about medians: a value, what one system has over another in the same round, or how far a
//! cost grows along a [sweep]. What a comparison did not measure is not met and not missed.
//!
//! Some goals may be more than the kernel can do. So beside what a lane shows stands what the bare kernel
//! does in the same rounds: the best of the floors that move packets by the same means and look nothing up.

use std::cmp::Ordering;

use serde::Serialize;

use super::metric::Metric;
use super::report::Row;
use super::stats::Summary;
use super::sweep::{self, Axis, Sweep};

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
    /// What the kernel itself shows in our place, where a floor was measured.
    pub ceiling: Option<Ceiling>,
}

/// A floor in the place of one of our lanes.
#[derive(Clone, Debug, Serialize)]
pub struct Ceiling {
    /// The floor: of several, the one that is best at it.
    pub system: &'static str,
    /// What was seen of it.
    pub seen: Summary,
    /// Whether its median is within the bound.
    pub met: bool,
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

impl Bound {
    fn is_met_by(self, seen: &Summary) -> bool {
        match self {
            Self::AtLeast(value) => seen.median >= value,
            Self::AtMost(value) => seen.median <= value,
        }
    }

    /// Which of two is nearer to it, or further within it.
    fn order(self, one: &Summary, other: &Summary) -> Ordering {
        let order = one.median.total_cmp(&other.median);
        if matches!(self, Self::AtLeast(_)) { order } else { order.reverse() }
    }
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

    /// What the kernel itself shows, if that was measured.
    pub fn kernels_own(&self) -> Option<String> {
        let Ceiling { system, seen, .. } = self.ceiling.as_ref()?;
        Some(format!("{}, {system}", self.show_range(seen)))
    }

    /// A median with the least and the largest value.
    pub fn show_range(&self, seen: &Summary) -> String {
        let [median, min, max] = [seen.median, seen.min, seen.max].map(|value| self.show(value));
        format!("{median} ({min} to {max})")
    }

    /// Whether it was met, in words: if neither we nor the bare kernel did, that too.
    pub fn verdict(&self) -> String {
        match (self.met, &self.ceiling) {
            (Some(true), _) => "yes".to_owned(),
            (Some(false), Some(ceiling)) if !ceiling.met => {
                format!("no (the kernel's own: {})", self.show(ceiling.seen.median))
            }
            (Some(false), _) => "no".to_owned(),
            (None, _) => "not measured".to_owned(),
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

const SWITCH: &str = "firedoor-switch";
const EXPRESS: &str = "firedoor-express";
const SWITCH_AWAKE: &str = "firedoor-switch+awake";
const EXPRESS_AWAKE: &str = "firedoor-express+awake";

/// One goal, before anything is seen of it.
struct Aim {
    what: &'static str,
    bound: Bound,
    quantity: Quantity,
    /// The floors that could stand in our lane's place.
    floors: &'static [&'static str],
}

const fn aim(what: &'static str, bound: Bound, quantity: Quantity) -> Aim {
    Aim { what, bound, quantity, floors: &[] }
}

/// Likewise, of what the kernel may not be able to do.
const fn beside(
    floors: &'static [&'static str],
    what: &'static str,
    bound: Bound,
    quantity: Quantity,
) -> Aim {
    Aim { what, bound, quantity, floors }
}

/// What could stand in the express lane's place, and in the switch lane's.
const TCX: &[&str] = &["tcx", "tcx-egress"];
const XDP: &[&str] = &["xdp"];
const AF_XDP: &[&str] = &["af_xdp", "xdp"];
/// What all gain where processors are kept awake, whoever does that.
const BRIDGE_AWAKE: &[&str] = &["bridge+awake"];

/// All goals: what the switch lane is to reach, and what the express lane.
const GOALS: &[Aim] = {
    use Bound::{AtLeast, AtMost};
    use Metric::{
        BitsPerSecond, ConnectionsPerSecond, CpuNsPerFrame, FramesPerSecond, Kept, OwnNsPerFrame,
        OwnProcessors, P50, P99,
    };
    use Quantity::{Growth, Ratio, Value};
    &[
        aim(
            "switch lane, CPU per frame over a bare AF_XDP forwarder's (10,000 flows, 1,000 rules)",
            AtMost(1.15),
            ratio(SWITCH, "af_xdp", "udp-10k/1000", CpuNsPerFrame),
        ),
        aim(
            "switch lane, CPU per frame over Open vSwitch's with the same policy",
            AtMost(0.8),
            ratio(SWITCH, "ovs-afxdp+ct", "udp-10k/1000", CpuNsPerFrame),
        ),
        aim(
            "switch lane, cost from no rules to 10,000",
            AtMost(2.0),
            Growth(SWITCH, Axis::Rules, "udp-10k/1000"),
        ),
        beside(
            XDP,
            "switch lane, cost from one flow to 1,000,000 (1,000 rules)",
            AtMost(2.0),
            Growth(SWITCH, Axis::Flows, "udp-10k/1000"),
        ),
        aim(
            "switch lane, processor time of its own threads per frame (10,000 flows, 1,000 rules)",
            AtMost(150.0),
            Value((SWITCH, "udp-10k/1000", OwnNsPerFrame)),
        ),
        beside(
            AF_XDP,
            "switch lane, median latency over Open vSwitch's, ends that poll",
            AtMost(0.75),
            ratio(SWITCH, "ovs-afxdp", "latency/1000", P50),
        ),
        beside(
            AF_XDP,
            "switch lane, 99th percentile of latency over Open vSwitch's, ends that poll",
            AtMost(0.75),
            ratio(SWITCH, "ovs-afxdp", "latency/1000", P99),
        ),
        beside(
            AF_XDP,
            "switch lane, median latency over Open vSwitch's, ends that take turns on one processor",
            AtMost(0.75),
            ratio(SWITCH, "ovs-afxdp", "latency-turns/1000", P50),
        ),
        beside(
            AF_XDP,
            "switch lane, 99th percentile of latency over Open vSwitch's, ends that take turns",
            AtMost(0.75),
            ratio(SWITCH, "ovs-afxdp", "latency-turns/1000", P99),
        ),
        beside(
            AF_XDP,
            "switch lane, median latency over Open vSwitch's, ends that sleep anywhere",
            AtMost(0.75),
            ratio(SWITCH, "ovs-afxdp", "latency-sleep/1000", P50),
        ),
        beside(
            AF_XDP,
            "switch lane, 99th percentile of latency over Open vSwitch's, ends that sleep anywhere",
            AtMost(0.75),
            ratio(SWITCH, "ovs-afxdp", "latency-sleep/1000", P99),
        ),
        beside(
            BRIDGE_AWAKE,
            "switch lane with `wake_within_us = 0`, median latency over Open vSwitch's, ends that sleep",
            AtMost(0.75),
            ratio(SWITCH_AWAKE, "ovs-afxdp", "latency-sleep/1000", P50),
        ),
        beside(
            BRIDGE_AWAKE,
            "switch lane with `wake_within_us = 0`, 99th percentile over Open vSwitch's, ends that sleep",
            AtMost(0.75),
            ratio(SWITCH_AWAKE, "ovs-afxdp", "latency-sleep/1000", P99),
        ),
        aim(
            "switch lane, processor time of its own with 20 idle ports",
            AtMost(0.01),
            Value((SWITCH, "idle-20/0", OwnProcessors)),
        ),
        aim(
            "switch lane, what a victim keeps under tuple space explosion",
            AtLeast(0.9),
            Value((SWITCH, "tuple-space/4", Kept)),
        ),
        aim(
            "the same attack makes Open vSwitch's victim fall",
            AtMost(0.9),
            Value(("ovs-afxdp+ct", "tuple-space/4", Kept)),
        ),
        aim(
            "switch lane, what a victim keeps under a SYN flood",
            AtLeast(0.9),
            Value((SWITCH, "syn-flood/4", Kept)),
        ),
        aim(
            "switch lane, new connections that a victim still opens under a SYN flood",
            AtLeast(0.9),
            Value((SWITCH, "syn-flood-connect/4", Kept)),
        ),
        aim(
            "the same flood makes Open vSwitch's victim fall",
            AtMost(0.9),
            Value(("ovs-afxdp+ct", "syn-flood-connect/4", Kept)),
        ),
        beside(
            TCX,
            "express lane, TCP on one core over the bridge's without policy",
            AtLeast(1.2),
            ratio(EXPRESS, "bridge", "tcp-1-core1/1000", BitsPerSecond),
        ),
        beside(
            TCX,
            "express lane, TCP over the bridge's without policy",
            AtLeast(1.0),
            ratio(EXPRESS, "bridge", "tcp-1/1000", BitsPerSecond),
        ),
        beside(
            TCX,
            "express lane, eight streams of TCP over the bridge's without policy",
            AtLeast(1.0),
            ratio(EXPRESS, "bridge", "tcp-8/1000", BitsPerSecond),
        ),
        beside(
            TCX,
            "express lane, TCP over the bridge's with nftables and the same rules",
            AtLeast(1.5),
            ratio(EXPRESS, "bridge+nft", "tcp-1/1000", BitsPerSecond),
        ),
        beside(
            TCX,
            "express lane, TCP over Open vSwitch's",
            AtLeast(9.0),
            ratio(EXPRESS, "ovs-afxdp", "tcp-1/1000", BitsPerSecond),
        ),
        beside(
            TCX,
            "express lane, frames over the bridge's without policy (10,000 flows, 1,000 rules)",
            AtLeast(1.5),
            ratio(EXPRESS, "bridge", "udp-10k/1000", FramesPerSecond),
        ),
        beside(
            XDP,
            "frames on one core, in XDP, over Open vSwitch's on two",
            AtLeast(5.0),
            Ratio(
                (SWITCH, "udp-10k-core1/1000", FramesPerSecond),
                ("ovs-afxdp", "udp-10k/1000", FramesPerSecond),
            ),
        ),
        beside(
            XDP,
            "frames on one core, in XDP, over Open vSwitch's on the same one",
            AtLeast(5.0),
            ratio(SWITCH, "ovs-afxdp", "udp-10k-core1/1000", FramesPerSecond),
        ),
        beside(
            TCX,
            "express lane, median latency over the bridge's, ends that poll",
            AtMost(0.9),
            ratio(EXPRESS, "bridge", "latency/1000", P50),
        ),
        beside(
            TCX,
            "express lane, 99th percentile of latency over the bridge's, ends that poll",
            AtMost(0.9),
            ratio(EXPRESS, "bridge", "latency/1000", P99),
        ),
        beside(
            TCX,
            "express lane, median latency over the bridge's, ends that take turns on one processor",
            AtMost(0.9),
            ratio(EXPRESS, "bridge", "latency-turns/1000", P50),
        ),
        beside(
            TCX,
            "express lane, 99th percentile of latency over the bridge's, ends that take turns",
            AtMost(0.9),
            ratio(EXPRESS, "bridge", "latency-turns/1000", P99),
        ),
        beside(
            TCX,
            "express lane, median latency over the bridge's, ends that sleep anywhere",
            AtMost(0.9),
            ratio(EXPRESS, "bridge", "latency-sleep/1000", P50),
        ),
        beside(
            TCX,
            "express lane, 99th percentile of latency over the bridge's, ends that sleep anywhere",
            AtMost(0.9),
            ratio(EXPRESS, "bridge", "latency-sleep/1000", P99),
        ),
        beside(
            BRIDGE_AWAKE,
            "express lane with `wake_within_us = 0`, median latency over the bridge's, ends that sleep",
            AtMost(0.9),
            ratio(EXPRESS_AWAKE, "bridge", "latency-sleep/1000", P50),
        ),
        aim(
            "the same over the bridge's while processors are kept awake for it, too",
            AtMost(0.9),
            ratio(EXPRESS_AWAKE, "bridge+awake", "latency-sleep/1000", P50),
        ),
        beside(
            TCX,
            "express lane, connections over the bridge's with nftables and the same rules",
            AtLeast(1.0),
            ratio(EXPRESS, "bridge+nft", "connect/1000", ConnectionsPerSecond),
        ),
    ]
};

/// Whether a goal needs what a system shows in the scenario of this id.
pub(super) fn rest_on(system: &str, scenario: &str) -> bool {
    GOALS.iter().any(|aim| {
        let is_in_place_of = |ours: &str| ours == system || aim.floors.contains(&system);
        match aim.quantity {
            Quantity::Value((ours, id, _)) => id == scenario && is_in_place_of(ours),
            Quantity::Ratio((ours, id, _), (theirs, other, _)) => {
                (id == scenario && is_in_place_of(ours)) || (theirs, other) == (system, scenario)
            }
            Quantity::Growth(ours, axis, row) => {
                is_in_place_of(ours) && sweep::contains(axis, row, scenario)
            }
        }
    })
}

/// Every goal, with what these rows show of it.
pub(super) fn goals(rows: &[Row], sweeps: &[Sweep]) -> Vec<Goal> {
    let goal = |aim: &Aim| {
        let Aim { what, bound, quantity, .. } = aim;
        let seen = quantity.seen(rows, sweeps);
        let met = seen.as_ref().map(|seen| bound.is_met_by(seen));
        let metric = quantity.metric();
        Goal { what, bound: *bound, metric, seen, met, ceiling: aim.ceiling(rows, sweeps) }
    };
    GOALS.iter().map(goal).collect()
}

impl Aim {
    fn ceiling(&self, rows: &[Row], sweeps: &[Sweep]) -> Option<Ceiling> {
        let seen = self.floors.iter().filter_map(|&system| {
            let seen = self.quantity.of(system).seen(rows, sweeps)?;
            Some(Ceiling { system, met: self.bound.is_met_by(&seen), seen })
        });
        seen.max_by(|one, other| self.bound.order(&one.seen, &other.seen))
    }
}

impl Quantity {
    /// The same of another system in our place.
    fn of(&self, system: &'static str) -> Self {
        match *self {
            Self::Value((_, scenario, metric)) => Self::Value((system, scenario, metric)),
            Self::Ratio((_, scenario, metric), theirs) => {
                Self::Ratio((system, scenario, metric), theirs)
            }
            Self::Growth(_, axis, row) => Self::Growth(system, axis, row),
        }
    }

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
                let points: Option<Vec<&Summary>> =
                    line.points.iter().map(Option::as_ref).collect();
                growth_by_round(&points?)
            }
        }
    }
}

/// How far a cost grows in each round, as the largest over the least.
fn growth_by_round(points: &[&Summary]) -> Option<Summary> {
    let growth = |&round: &usize| {
        let values: Option<Vec<f64>> = points.iter().map(|point| point.at(round)).collect();
        let values = || values.iter().flatten().copied();
        let (least, most) = (values().reduce(f64::min)?, values().reduce(f64::max)?);
        Some((round, most / least)).filter(|(_, growth)| growth.is_finite())
    };
    Summary::of(&points.first()?.rounds.iter().filter_map(growth).collect())
}

fn find<'a>(rows: &'a [Row], (system, scenario, metric): &Of) -> Option<&'a Summary> {
    let row = rows.iter().find(|row| row.id == *scenario)?;
    row.cells.iter().find(|cell| cell.system == *system)?.metrics.get(metric)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{report::tests::example, scenario, stats::tests::summary, system};

    #[test]
    fn goals_name_scenarios_and_systems_that_exist() {
        let of = |(system, scenario, metric): &Of| {
            assert!(system::ALL.iter().any(|s| s.name() == *system), "{system}");
            let scenarios = scenario::all();
            let found = scenarios.iter().find(|s| s.id() == *scenario).unwrap();
            assert!(found.traffic.metrics().contains(metric), "{metric:?} in {scenario}");
        };
        for aim in GOALS {
            for floor in aim.floors {
                assert!(system::ALL.iter().any(|s| s.name() == *floor), "{floor}");
            }
            match &aim.quantity {
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
        let unmeasured = report.goals.iter().find(|goal| goal.what.contains("forwarder")).unwrap();
        assert!(unmeasured.met.is_none(), "the example has no af_xdp");
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

    #[test]
    fn a_goal_that_the_kernel_misses_too_says_what_the_kernel_does() {
        let report = example();
        let goal = |what: &str| report.goals.iter().find(|goal| goal.what == what).unwrap();
        // In the example each system has more of everything than the one before it.
        let goal = Goal {
            met: Some(false),
            ..goal("express lane, TCP over the bridge's without policy").clone()
        };
        let ceiling = goal.ceiling.clone().unwrap();
        assert_eq!(ceiling.system, "tcx");
        let verdict = |met| {
            let ceiling = Some(Ceiling { met, ..ceiling.clone() });
            Goal { ceiling, ..goal.clone() }.verdict()
        };
        assert_eq!(verdict(true), "no");
        assert_eq!(verdict(false), format!("no (the kernel's own: {:.2} ×)", ceiling.seen.median));
        assert_eq!(Goal { met: Some(true), ..goal.clone() }.verdict(), "yes");
    }

    #[test]
    fn growth_is_that_of_each_round() {
        let [few, many] = [[10.0, 20.0], [30.0, 10.0]].map(|values| summary(&values));
        assert_eq!(growth_by_round(&[&few, &many]).unwrap().values, [3.0, 2.0]);
        assert_eq!(growth_by_round(&[]), None);
    }

    #[test]
    fn the_best_floor_is_the_nearest_to_the_goal() {
        let [less, more] = [1.0, 2.0].map(|value| summary(&[value]));
        assert_eq!(Bound::AtLeast(9.0).order(&less, &more), Ordering::Less);
        assert_eq!(Bound::AtMost(0.1).order(&less, &more), Ordering::Greater);
    }
}
