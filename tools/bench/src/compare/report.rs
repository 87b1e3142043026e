//! What a comparison found, ready to be shown or written.

use std::collections::BTreeMap;

use serde::Serialize;

use super::goals::{Goal, goals};
use super::histogram::Bar;
use super::machine::Machine;
use super::metric::Metric;
use super::run::{Findings, is_measured, is_too_large};
use super::scenario::Scenario;
use super::stats::Summary;
use super::sweep::{Sweep, sweeps};
use super::system::{Missing, System};

/// A whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The command line.
    pub command: String,
    /// When it began, in UTC, as RFC 3339 has it.
    pub began: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What it was measured on.
    pub machine: Machine,
    /// Rounds that were made.
    pub rounds: usize,
    /// Rounds that were asked for.
    pub rounds_asked: usize,
    /// Whether what no goal rests on was measured in one of the rounds only.
    pub sparing: bool,
    /// How long each measurement watched, in seconds.
    pub window_seconds: f64,
    /// Decides in which order the flows of a load take turns.
    pub seed: u64,
    /// Whether this build of Firedoor is without optimisation, and its numbers without meaning.
    pub unoptimised: bool,
    /// What all was measured, in the order of the tables.
    pub systems: Vec<SystemInfo>,
    /// What was left out for want of a program.
    pub missing: Vec<MissingSystem>,
    /// Scenarios that were not asked for, by id.
    pub left_out: Vec<String>,
    /// The table.
    pub rows: Vec<Row>,
    /// How cost grows with rules and with flows.
    pub sweeps: Vec<Sweep>,
    /// What Firedoor is meant to reach, and what was seen of it.
    pub goals: Vec<Goal>,
}

/// A system that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct SystemInfo {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Its version.
    pub version: String,
    /// How it ran here.
    pub note: Option<String>,
}

/// A system that was not.
#[derive(Clone, Debug, Serialize)]
pub struct MissingSystem {
    /// Its name.
    pub name: String,
    /// Why.
    #[serde(flatten)]
    pub missing: Missing,
}

/// A scenario, and what each system made of it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// The scenario.
    #[serde(flatten)]
    pub scenario: Scenario,
    /// By system, in their order. What it is too large for has no metrics, but a note that says why.
    pub cells: Vec<Cell>,
}

/// One system in one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The system.
    pub system: String,
    /// Rules that it was measured with: for a system without policy always 0.
    pub rules: usize,
    /// A summary for each metric.
    pub metrics: BTreeMap<Metric, Summary>,
    /// What each lane of Firedoor has over this system in the same round: by lane, then for the first
    /// two metrics.
    pub ratios: BTreeMap<String, BTreeMap<Metric, Summary>>,
    /// All round trips, where there were any.
    pub round_trips: Vec<Bar>,
    /// What a reader of the values should know.
    pub note: Option<&'static str>,
    /// Why there is no more.
    pub failure: Option<String>,
}

/// The rows of a comparison, from its findings by position of scenario and system.
pub(super) fn rows(
    scenarios: &[Scenario],
    systems: &[&'static dyn System],
    findings: &BTreeMap<(usize, usize), Findings>,
) -> Vec<Row> {
    let source = |scenario: usize, system: usize| {
        if is_measured(scenarios, &scenarios[scenario], systems[system]) {
            return Some(scenario);
        }
        // Without policy there is nothing that rules could change.
        let bare = |other: &Scenario| {
            other.family == scenarios[scenario].family
                && is_measured(scenarios, other, systems[system])
        };
        scenarios.iter().position(bare)
    };
    let row = |at: usize| {
        let cells = (0..systems.len()).filter_map(|system| {
            if is_too_large(&scenarios[at], systems[system]) {
                let note = systems[system].port_limit().map(|(_, why)| why);
                let nothing = Findings { note, ..Findings::default() };
                return Some(cell(systems[system].name(), scenarios[at].rules, &nothing));
            }
            let source = source(at, system)?;
            let found = findings.get(&(source, system))?;
            let rules = if systems[system].takes_policy() { scenarios[source].rules } else { 0 };
            Some(cell(systems[system].name(), rules, found))
        });
        let mut cells: Vec<Cell> = cells.collect();
        compare(&mut cells, scenarios[at].traffic.metrics());
        Row { id: scenarios[at].id(), scenario: scenarios[at].clone(), cells }
    };
    (0..scenarios.len()).map(row).collect()
}

fn cell(system: &str, rules: usize, findings: &Findings) -> Cell {
    let summaries = findings.values.iter();
    Cell {
        system: system.to_owned(),
        rules,
        metrics: summaries.filter_map(|(&m, values)| Some((m, Summary::of(values)?))).collect(),
        ratios: BTreeMap::new(),
        round_trips: findings.round_trips.bars(),
        note: findings.note,
        failure: findings.failure.clone(),
    }
}

/// What the names of Firedoor's lanes begin with.
const OURS: &str = "firedoor-";
/// Metrics that systems are compared by: what a scenario is about, and what it costs.
pub const COMPARED: usize = 2;

/// Firedoor's lanes among the systems of a comparison, in their order.
pub fn lanes(systems: &[SystemInfo]) -> impl Iterator<Item = &str> {
    systems.iter().map(|system| system.name.as_str()).filter(|name| is_lane(name))
}

/// Whether a system is a lane of Firedoor, as its users get it unless they ask for more.
fn is_lane(name: &str) -> bool {
    name.starts_with(OURS) && !name.contains('+')
}

/// Adds to every cell how Firedoor's compare.
fn compare(cells: &mut [Cell], metrics: &[Metric]) {
    let ours = cells.iter().filter(|cell| is_lane(&cell.system));
    let ours: Vec<_> = ours.map(|cell| (cell.system.clone(), cell.metrics.clone())).collect();
    for cell in cells {
        let others = ours.iter().filter(|(lane, _)| *lane != cell.system);
        let ratios = others.map(|(lane, ours)| {
            let ratio =
                |&metric| Some((metric, ours.get(&metric)?.over(cell.metrics.get(&metric)?)?));
            (lane.clone(), metrics.iter().take(COMPARED).filter_map(ratio).collect())
        });
        cell.ratios = ratios.collect();
    }
}

/// What is computed from rows.
pub(super) fn conclusions(rows: &[Row], systems: &[SystemInfo]) -> (Vec<Sweep>, Vec<Goal>) {
    let names: Vec<String> = systems.iter().map(|system| system.name.clone()).collect();
    let sweeps = sweeps(rows, &names);
    let goals = goals(rows, &sweeps);
    (sweeps, goals)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report of five systems in every scenario, one of which fails.
    pub(in crate::compare) fn example() -> Report {
        let scenarios = crate::compare::scenario::all();
        let systems: Vec<&'static dyn System> =
            ["bridge", "ovs-afxdp+ct", "tcx", "firedoor-switch", "firedoor-express"]
                .iter()
                .filter_map(|n| crate::compare::system::named(n).into_iter().next())
                .collect();
        let mut findings = BTreeMap::new();
        for (at, scenario) in scenarios.iter().enumerate() {
            for system in 0..systems.len() {
                let value = |metric: &Metric| {
                    let base = 1e3 * (1 + at + system) as f64;
                    let more = 1.1 + 0.1 * system as f64;
                    (*metric, [(0, base), (1, base * more), (2, base * 0.9)].into())
                };
                let values = scenario.traffic.metrics().iter().map(value).collect();
                let mut found = Findings { values, ..Findings::default() };
                for ns in [9_000, 10_000, 11_000, 500_000] {
                    found.round_trips.record(ns * (1 + system as u64));
                }
                found.failure = (system == 1 && at % 5 == 1).then(|| "it broke".to_owned());
                findings.insert((at, system), found);
            }
        }
        let info = |system: &&dyn System| SystemInfo {
            name: system.name().to_owned(),
            about: system.about().to_owned(),
            version: "1.0".to_owned(),
            note: None,
        };
        let infos: Vec<SystemInfo> = systems.iter().map(info).collect();
        let rows = rows(&scenarios, &systems, &findings);
        let (sweeps, goals) = conclusions(&rows, &infos);
        Report {
            command: "firedoor bench compare".to_owned(),
            began: "2026-01-01T00:00:00Z".to_owned(),
            seconds: 60.0,
            machine: Machine::this(),
            rounds: 3,
            rounds_asked: 3,
            sparing: true,
            window_seconds: 1.0,
            seed: 1,
            unoptimised: false,
            systems: infos,
            missing: vec![MissingSystem {
                name: "ovs-afxdp".to_owned(),
                missing: Missing { program: "ovs-vswitchd", package: "openvswitch-switch" },
            }],
            left_out: Vec::new(),
            rows,
            sweeps,
            goals,
        }
    }

    #[test]
    fn a_report_has_stable_names_in_json() {
        let json = serde_json::to_value(example()).unwrap();
        let row = &json["rows"][0];
        assert_eq!(row["id"], "udp-1/0");
        assert_eq!(row["cells"][0]["system"], "bridge");
        assert!(row["cells"][0]["metrics"]["frames_per_second"]["median"].is_f64());
        for lane in ["firedoor-switch", "firedoor-express"] {
            assert!(row["cells"][0]["ratios"][lane]["cpu_ns_per_frame"]["median"].is_f64());
        }
    }

    fn cell_of(system: &str, rate: f64) -> Cell {
        let values = BTreeMap::from([(Metric::FramesPerSecond, [(0, rate)].into())]);
        cell(system, 0, &Findings { values, ..Findings::default() })
    }

    #[test]
    fn ratios_are_each_lanes_over_the_others() {
        let systems = [("bridge", 4.0), ("firedoor-switch", 3.0), ("firedoor-express", 6.0)];
        let mut cells = systems.map(|(system, rate)| cell_of(system, rate));
        compare(&mut cells, &[Metric::FramesPerSecond]);
        let ratio = |at: usize, lane: &str| {
            let ratios: &Cell = &cells[at];
            ratios.ratios.get(lane).map(|ratios| ratios[&Metric::FramesPerSecond].median)
        };
        assert_eq!(
            [ratio(0, "firedoor-switch"), ratio(0, "firedoor-express")],
            [Some(0.75), Some(1.5)]
        );
        assert_eq!([ratio(1, "firedoor-switch"), ratio(1, "firedoor-express")], [None, Some(2.0)]);
    }

    #[test]
    fn systems_without_policy_are_shown_as_they_are_without_rules() {
        let all = crate::compare::scenario::all();
        let scenarios: Vec<Scenario> = all.into_iter().filter(|s| s.family == "udp-1").collect();
        let systems = crate::compare::system::named("bridge");
        let found = Findings {
            values: BTreeMap::from([(Metric::FramesPerSecond, [(0, 1.0)].into())]),
            ..Findings::default()
        };
        let findings = BTreeMap::from([((0, 0), found)]);
        let rows = rows(&scenarios, &systems, &findings);
        assert_eq!(rows.len(), 3);
        assert!(rows.iter().all(|row| row.cells.len() == 1 && row.cells[0].rules == 0));
    }
}
