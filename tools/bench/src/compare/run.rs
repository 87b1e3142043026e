//! The rounds of a comparison.
//!
//! A round brings up each system in turn, over fresh wires, for each setting (number of rules,
//! number of ports), and measures every scenario of that setting. Rounds repeat, so that whatever
//! changes about the machine meanwhile changes for all. A system that fails leaves the reason in
//! its cells and the others alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::error::{BuildError, building};
use super::histogram::Histogram;
use super::measure::{Manner, Sample, measure, prime};
use super::policy::Policy;
use super::scenario::{Metric, Scenario};
use super::system::{Site, System, Up};
use super::topology::Topology;

/// What all rounds found about one system in one scenario.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    /// The values of each metric, in the rounds' order.
    pub(super) values: BTreeMap<Metric, Vec<f64>>,
    /// All round trips.
    pub(super) round_trips: Histogram,
    /// What a reader of the values should know.
    pub(super) note: Option<&'static str>,
    /// Why there is nothing more, if a round failed.
    pub(super) failure: Option<String>,
}

impl Findings {
    fn add(&mut self, sample: &Sample) {
        for (&metric, &value) in &sample.values {
            self.values.entry(metric).or_default().push(value);
        }
        self.round_trips.merge(&sample.round_trips);
        self.note = sample.note.or(self.note);
    }
}

/// Scenarios of more connections than this are measured over wires of their own.
const MANY_CONNECTIONS: usize = 100_000;

/// Position of a scenario and of a system in the plan's lists.
type At = (usize, usize);

/// What is to be measured, and what was found.
pub(super) struct Plan<'a> {
    pub(super) scenarios: &'a [Scenario],
    pub(super) systems: &'a [&'static dyn System],
    pub(super) firedoor: &'a Path,
    pub(super) manner: Manner<'a>,
    pub(super) progress: &'a dyn Fn(&str),
    pub(super) findings: BTreeMap<At, Findings>,
    /// What systems said about how they run, by position.
    pub(super) notes: BTreeMap<usize, String>,
}

impl Plan<'_> {
    /// Measurements of one round.
    pub(super) fn len(&self) -> usize {
        let measured = |scenario| {
            let measured = |system: &&&dyn System| is_measured(self.scenarios, scenario, **system);
            self.systems.iter().filter(measured).count()
        };
        self.scenarios.iter().map(measured).sum()
    }

    /// One round.
    ///
    /// # Errors
    /// Only if someone asks to stop; other failures stay in the findings.
    pub(super) fn round(&mut self) -> Result<(), BuildError> {
        for setting in settings(self.scenarios) {
            for system in 0..self.systems.len() {
                let measured = |&scenario: &usize| {
                    is_measured(self.scenarios, &self.scenarios[scenario], self.systems[system])
                        && !self.has_failed((scenario, system))
                };
                let mut scenarios: Vec<usize> = setting.iter().copied().filter(measured).collect();
                scenarios.sort_by_key(|&scenario| self.scenarios[scenario].traffic.trail());
                if !scenarios.is_empty() {
                    self.visit(system, &scenarios)?;
                }
            }
        }
        Ok(())
    }

    fn has_failed(&self, at: At) -> bool {
        self.findings.get(&at).is_some_and(|findings| findings.failure.is_some())
    }

    /// Brings up a system and measures scenarios of one setting.
    fn visit(&mut self, system: usize, scenarios: &[usize]) -> Result<(), BuildError> {
        let (topology, up) = match self.bring_up(system, scenarios) {
            Ok(up) => up,
            Err(error) if self.is_interrupted(&error) => return Err(BuildError::Interrupted),
            Err(error) => {
                for &scenario in scenarios {
                    self.fail((scenario, system), &error);
                }
                return Ok(());
            }
        };
        if let Some(note) = &up.note {
            self.notes.insert(system, note.clone());
        }
        for &scenario in scenarios {
            let Scenario { traffic, .. } = self.scenarios[scenario];
            let what =
                format!("{}: {}", self.systems[system].name(), self.scenarios[scenario].id());
            (self.progress)(&what);
            match measure(traffic, &topology, &self.manner) {
                Ok(sample) => {
                    self.findings.entry((scenario, system)).or_default().add(&sample);
                }
                Err(error) if self.is_interrupted(&error) => return Err(BuildError::Interrupted),
                Err(error) => self.fail((scenario, system), &error),
            }
        }
        drop(up);
        Ok(())
    }

    /// The system, up and carrying traffic, and its wires, which are to be dropped later.
    fn bring_up(&self, system: usize, scenarios: &[usize]) -> Result<(Topology, Up), BuildError> {
        let scenarios = || scenarios.iter().map(|&scenario| &self.scenarios[scenario]);
        let rules = scenarios().map(|s| s.rules).max().unwrap_or(0);
        let ports = scenarios().map(|s| s.ports).max().unwrap_or(2);
        let connections = scenarios().map(Scenario::connections).max().unwrap_or(1);
        let directory = building("make a directory", tempfile::tempdir())?;
        let topology = Topology::build(ports)?;
        let policy = match scenarios().any(Scenario::is_attacked) {
            true => Policy::for_attacks(),
            false => Policy::new(rules),
        };
        let site = Site {
            topology: &topology,
            policy: &policy,
            connections,
            directory: directory.path(),
            firedoor: self.firedoor,
        };
        let mut up = self.systems[system].up(&site)?;
        prime(&topology, &self.manner)?;
        up.keep(directory);
        Ok((topology, up))
    }

    /// Whether an error comes of Ctrl-C, which reaches tools that run just then, too.
    fn is_interrupted(&self, error: &BuildError) -> bool {
        matches!(error, BuildError::Interrupted) || self.manner.interrupted.load(Ordering::Relaxed)
    }

    fn fail(&mut self, at: At, error: &BuildError) {
        self.findings.entry(at).or_default().failure = Some(error.to_string());
    }
}

/// Whether a system is measured in a scenario. One without policy is measured once for all numbers
/// of rules, without any if that is among the scenarios, and not where policy is what matters.
pub(super) fn is_measured(all: &[Scenario], scenario: &Scenario, system: &dyn System) -> bool {
    let without_rules = |s: &Scenario| s.family == scenario.family && s.rules < scenario.rules;
    scenario.ports <= system.max_ports()
        && (system.takes_policy() || !(scenario.is_attacked() || all.iter().any(without_rules)))
}

/// Scenarios that share wires: the same rules, ports and room for connections, by position, in their order.
fn settings(scenarios: &[Scenario]) -> Vec<Vec<usize>> {
    let mut settings: Vec<(_, Vec<usize>)> = Vec::new();
    for (position, scenario) in scenarios.iter().enumerate() {
        let many = scenario.connections() > MANY_CONNECTIONS;
        // What an attack leaves behind is nobody else's burden.
        let alone = scenario.is_attacked().then_some(position);
        let key = (scenario.rules, scenario.ports, many, alone);
        match settings.iter_mut().find(|(known, _)| *known == key) {
            Some((_, members)) => members.push(position),
            None => settings.push((key, vec![position])),
        }
    }
    settings.into_iter().map(|(_, members)| members).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::scenario::all;

    #[test]
    fn settings_hold_every_scenario_once() {
        let scenarios = all();
        let settings = settings(&scenarios);
        let mut positions: Vec<usize> = settings.iter().flatten().copied().collect();
        positions.sort_unstable();
        assert_eq!(positions, (0..scenarios.len()).collect::<Vec<_>>());
        for setting in settings {
            let first = &scenarios[setting[0]];
            let same = |&at: &usize| {
                (scenarios[at].rules, scenarios[at].ports) == (first.rules, first.ports)
            };
            assert!(setting.iter().all(same));
        }
    }
}
