//! What a frame costs as rules or flows become more.

use serde::Serialize;

use super::metric::Metric;
use super::report::{Cell, Row};
use super::scenario::Traffic;
use super::stats::Summary;

/// What becomes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Rules.
    Rules,
    /// Flows.
    Flows,
}

impl Axis {
    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Flows => "flows",
        }
    }
}

/// Scenarios that differ in one number only.
#[derive(Clone, Debug, Serialize)]
pub struct Sweep {
    /// What it is about, in words.
    pub title: String,
    /// That number.
    pub axis: Axis,
    /// Its values.
    pub at: Vec<usize>,
    /// The scenarios' ids.
    pub rows: Vec<String>,
    /// What the lines show.
    pub metric: Metric,
    /// By system.
    pub lines: Vec<Line>,
}

/// One system in a sweep.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The system.
    pub system: String,
    /// For each value of the axis, if it was measured.
    pub points: Vec<Option<Summary>>,
    /// The largest median over the least. None if fewer than two were measured; without policy, rules
    /// do not make a second.
    pub growth: Option<f64>,
}

/// Every sweep that has at least three scenarios.
pub(super) fn sweeps(rows: &[Row], systems: &[String]) -> Vec<Sweep> {
    let mut families: Vec<&str> = rows.iter().map(|row| row.scenario.family).collect();
    families.dedup();
    let by_rules = families.iter().map(|family| {
        let rows: Vec<&Row> = rows.iter().filter(|r| r.scenario.family == *family).collect();
        let title = rows.first().map_or("", |row| row.scenario.title).to_owned();
        let at = rows.iter().map(|row| row.scenario.rules).collect();
        sweep(title, Axis::Rules, at, &rows, systems)
    });
    let mut rules: Vec<usize> = rows.iter().map(|row| row.scenario.rules).collect();
    rules.sort_unstable();
    rules.dedup();
    let by_flows = rules.iter().map(|&rules| {
        let swept = rows.iter().filter(|row| row.scenario.rules == rules);
        let (at, rows): (Vec<usize>, Vec<&Row>) =
            swept.filter_map(|row| Some((flows(row)?, row))).unzip();
        sweep(format!("64-byte UDP, {rules} rules"), Axis::Flows, at, &rows, systems)
    });
    by_rules.chain(by_flows).filter(|sweep| sweep.rows.len() > 2).collect()
}

/// Families of scenarios that differ in their number of flows only.
const FLOWS: [&str; 3] = ["udp-1", "udp-10k", "udp-1m"];

/// Whether a scenario belongs to the same sweep as another, both by their ids.
pub(super) fn contains(axis: Axis, of: &str, scenario: &str) -> bool {
    let (Some((family, rules)), Some((other, its_rules))) =
        (of.split_once('/'), scenario.split_once('/'))
    else {
        return false;
    };
    match axis {
        Axis::Rules => family == other,
        Axis::Flows => rules == its_rules && FLOWS.contains(&other),
    }
}

/// How many flows a scenario has, if it belongs to a sweep over them.
fn flows(row: &Row) -> Option<usize> {
    match row.scenario.traffic {
        Traffic::Udp(load) if FLOWS.contains(&row.scenario.family) => Some(load.flows as usize),
        _ => None,
    }
}

fn sweep(title: String, axis: Axis, at: Vec<usize>, rows: &[&Row], systems: &[String]) -> Sweep {
    let metric = Metric::CpuNsPerFrame;
    let lines = systems.iter().map(|system| line(system, axis, metric, rows)).collect();
    Sweep { title, axis, at, rows: rows.iter().map(|row| row.id.clone()).collect(), metric, lines }
}

fn line(system: &str, axis: Axis, metric: Metric, rows: &[&Row]) -> Line {
    let cells = || rows.iter().map(|row| row.cells.iter().find(|cell| cell.system == system));
    let own = rows.iter().zip(cells()).filter_map(|(row, cell)| {
        // Without policy, a row's numbers are those of the first row of its family.
        let is_own = |cell: &&Cell| axis == Axis::Flows || cell.rules == row.scenario.rules;
        Some(cell.filter(is_own)?.metrics.get(&metric)?.median)
    });
    let own: Vec<f64> = own.filter(|median| median.is_finite()).collect();
    let (least, most) =
        (own.iter().copied().reduce(f64::min), own.iter().copied().reduce(f64::max));
    let growth = most.zip(least).map(|(most, least)| most / least);
    let points = cells().map(|cell| cell?.metrics.get(&metric).cloned()).collect();
    Line { system: system.to_owned(), points, growth: growth.filter(|_| own.len() > 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::example;

    #[test]
    fn costs_are_swept_over_rules_and_over_flows() {
        let sweeps = example().sweeps;
        let find = |axis, row: &str| {
            let mut found = sweeps.iter();
            found.find(|sweep| sweep.axis == axis && sweep.rows.iter().any(|id| id == row))
        };
        let rules = find(Axis::Rules, "udp-10k/1000").unwrap();
        assert_eq!(rules.at, [0, 1_000, 10_000]);
        let flows = find(Axis::Flows, "udp-10k/1000").unwrap();
        assert_eq!(flows.at, [1, 10_000, 1_000_000]);
        assert_eq!(flows.rows, ["udp-1/1000", "udp-10k/1000", "udp-1m/1000"]);
        assert!(find(Axis::Rules, "latency/0").is_none(), "two points are no sweep");
    }

    #[test]
    fn growth_is_the_largest_over_the_least_of_what_was_measured_with_those_rules() {
        let sweeps = example().sweeps;
        let rules = sweeps.iter().find(|sweep| sweep.axis == Axis::Rules).unwrap();
        let growth =
            |system: &str| rules.lines.iter().find(|line| line.system == system).unwrap().growth;
        assert_eq!(growth("bridge"), None, "it knows no rules");
        assert!(growth("firedoor-switch").unwrap() > 1.0);
        let flows = sweeps.iter().find(|sweep| sweep.axis == Axis::Flows).unwrap();
        assert!(flows.lines.iter().all(|line| line.growth.unwrap() > 1.0), "flows it does know");
    }
}
