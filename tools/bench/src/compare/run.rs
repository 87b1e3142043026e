//! The rounds of a comparison.
//!
//! A round brings up each system in turn, over fresh wires, for each setting (number of rules,
//! number of ports), and measures every scenario of that setting. Rounds repeat, every other one with the systems
//! in reverse, so that whatever changes about the machine meanwhile changes for all. A system that fails leaves
//! the reason in its cells and the others alone.
//!
//! Where time is spared, a round first measures what goals rest on, the same in each and close together in time,
//! and then its share of all else, which is measured once. So the rounds of a goal are spread over the whole
//! comparison, and nothing is left on the wires in one round that is not there in another.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Progress;
use super::confine::Confined;
use super::error::{BuildError, building};
use super::goals;
use super::histogram::Histogram;
use super::measure::{Manner, Sample, busy_processors, measure, prime};
use super::metric::Metric;
use super::policy::Policy;
use super::scenario::{Scenario, Traffic};
use super::system::{Site, System, Up};
use super::topology::Topology;

/// What all rounds found about one system in one scenario.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    /// The values of each metric, by round.
    pub(super) values: BTreeMap<Metric, BTreeMap<usize, f64>>,
    /// All round trips.
    pub(super) round_trips: Histogram,
    /// What a reader of the values should know.
    pub(super) note: Option<&'static str>,
    /// Why there is nothing more, if a round failed.
    pub(super) failure: Option<String>,
}

impl Findings {
    fn add(&mut self, round: usize, sample: &Sample) {
        for (&metric, &value) in &sample.values {
            self.values.entry(metric).or_default().insert(round, value);
        }
        self.round_trips.merge(&sample.round_trips);
        self.note = sample.note.or(self.note);
    }
}

/// Scenarios of more connections than this are measured over wires of their own.
const MANY_CONNECTIONS: usize = 100_000;

/// Rules of the scenarios beside which systems without policy are measured: those that most goals compare them with.
const BESIDE: usize = 1_000;

/// A system that is up, and what is dropped after it.
struct Visit {
    up: Up,
    topology: Topology,
    /// Processors that were busy before it was there, if that is of interest.
    bare: Option<f64>,
    /// Where all that runs meanwhile has to stay.
    confined: Option<Confined>,
}

/// Position of a scenario and of a system in the plan's lists.
type At = (usize, usize);

/// What is to be measured, and what was found.
pub(super) struct Plan<'a> {
    pub(super) scenarios: &'a [Scenario],
    pub(super) systems: &'a [&'static dyn System],
    /// How many rounds there will be.
    pub(super) asked: usize,
    /// Whether what no goal rests on is measured in one of the rounds only.
    pub(super) sparing: bool,
    pub(super) firedoor: &'a Path,
    pub(super) manner: Manner<'a>,
    pub(super) progress: &'a dyn Fn(Progress<'_>),
    /// Rounds complete.
    pub(super) rounds: usize,
    /// Measurements made, or given up.
    pub(super) done: usize,
    pub(super) findings: BTreeMap<At, Findings>,
    /// What systems said about how they run, by position.
    pub(super) notes: BTreeMap<usize, String>,
}

impl Plan<'_> {
    /// Measurements of all rounds.
    pub(super) fn len(&self) -> usize {
        let visits = (0..self.asked).flat_map(|round| self.visits(round));
        visits.map(|(_, scenarios)| scenarios.len()).sum()
    }

    /// How long all rounds take, about.
    pub(super) fn estimate(&self) -> Duration {
        let visit = |(system, scenarios): &(usize, Vec<usize>)| {
            let ports = scenarios.iter().map(|&s| self.scenarios[s].ports).max().unwrap_or(2);
            let traffic = scenarios.iter().map(|&s| self.scenarios[s].traffic);
            let measured: Duration = traffic.map(|t| t.duration(self.manner.time)).sum();
            self.systems[*system].start_time(ports) + measured
        };
        (0..self.asked).flat_map(|round| self.visits(round)).map(|it| visit(&it)).sum()
    }

    /// One round.
    ///
    /// # Errors
    /// Only if someone asks to stop; other failures stay in the findings.
    pub(super) fn round(&mut self) -> Result<(), BuildError> {
        for (system, mut scenarios) in self.visits(self.rounds) {
            let planned = scenarios.len();
            scenarios.retain(|&scenario| !self.has_failed((scenario, system)));
            if !scenarios.is_empty() {
                self.visit(system, &scenarios)?;
            }
            self.done += planned;
        }
        self.rounds += 1;
        Ok(())
    }

    /// Which system is measured in which scenarios over the same wires in a round, in order.
    fn visits(&self, round: usize) -> Vec<(usize, Vec<usize>)> {
        let settings = settings(self.scenarios);
        let everywhere =
            |at: usize, system: &dyn System| !self.sparing || self.is_judged(at, system);
        let mut visits = Vec::new();
        for setting in &settings {
            visits.extend(self.visits_of(setting, round, everywhere));
        }
        let share = settings.iter().enumerate().filter(|(at, _)| at % self.asked == round);
        for (_, setting) in share {
            visits.extend(self.visits_of(setting, round, |at, system| !everywhere(at, system)));
        }
        visits
    }

    /// Visits of a setting, for the scenarios and systems that are `due`: where policy does not matter, beside
    /// those of [`BESIDE`] rules.
    fn visits_of(
        &self,
        setting: &[usize],
        round: usize,
        due: impl Fn(usize, &dyn System) -> bool,
    ) -> Vec<(usize, Vec<usize>)> {
        let mut numbers: Vec<usize> = setting.iter().map(|&at| self.scenarios[at].rules).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let beside = if numbers.contains(&BESIDE) { BESIDE } else { numbers[0] };
        let mut order: Vec<usize> = (0..self.systems.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        let mut visits = Vec::new();
        for rules in numbers {
            for &position in &order {
                let system = self.systems[position];
                let is_here = |&at: &usize| {
                    let has_rules = match system.takes_policy() {
                        true => self.scenarios[at].rules == rules,
                        false => rules == beside,
                    };
                    has_rules
                        && is_measured(self.scenarios, &self.scenarios[at], system)
                        && due(at, system)
                };
                let mut scenarios: Vec<usize> = setting.iter().copied().filter(is_here).collect();
                scenarios.sort_by_key(|&scenario| self.scenarios[scenario].traffic.trail());
                if !scenarios.is_empty() {
                    visits.push((position, scenarios));
                }
            }
        }
        visits
    }

    /// Whether a goal rests on what a system shows in a scenario.
    fn is_judged(&self, at: usize, system: &dyn System) -> bool {
        let scenario = &self.scenarios[at];
        // What a system without policy shows without rules stands for all its family.
        self.scenarios.iter().any(|other| {
            goals::rest_on(system.name(), &other.id())
                && match system.takes_policy() {
                    true => other.id() == scenario.id(),
                    false => other.family == scenario.family,
                }
        })
    }

    fn has_failed(&self, at: At) -> bool {
        self.findings.get(&at).is_some_and(|findings| findings.failure.is_some())
    }

    /// Brings up a system and measures scenarios of one setting.
    fn visit(&mut self, system: usize, scenarios: &[usize]) -> Result<(), BuildError> {
        let ids: Vec<String> = scenarios.iter().map(|&at| self.scenarios[at].id()).collect();
        let name = self.systems[system].name();
        let (rounds, done) = (self.rounds, self.done);
        (self.progress)(Progress::Visit { rounds, done, system: name, scenarios: &ids });
        let Visit { topology, up, bare, confined: _confined } =
            match self.bring_up(system, scenarios) {
                Ok(visit) => visit,
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
        let manner = Manner { settle: up.settle, ..self.manner };
        for (&scenario, id) in scenarios.iter().zip(&ids) {
            let Scenario { traffic, .. } = self.scenarios[scenario];
            (self.progress)(Progress::Measurement { system: name, scenario: id });
            match measure(traffic, &topology, &manner) {
                Ok(sample) => {
                    let sample = match bare {
                        Some(bare) => sample.beside(bare),
                        None => sample,
                    };
                    self.findings.entry((scenario, system)).or_default().add(rounds, &sample);
                }
                Err(error) if self.is_interrupted(&error) => return Err(BuildError::Interrupted),
                Err(error) => self.fail((scenario, system), &error),
            }
        }
        drop(up);
        Ok(())
    }

    /// Brings a system up and lets it carry traffic.
    fn bring_up(&self, system: usize, scenarios: &[usize]) -> Result<Visit, BuildError> {
        let scenarios = || scenarios.iter().map(|&scenario| &self.scenarios[scenario]);
        let one_core = scenarios().any(|scenario| scenario.one_core);
        let confined = one_core.then(Confined::to_one_core).transpose();
        let confined = building("stay on one processor", confined)?;
        let rules = scenarios().map(|s| s.rules).max().unwrap_or(0);
        let ports = scenarios().map(|s| s.ports).max().unwrap_or(2);
        let connections = scenarios().map(Scenario::connections).max().unwrap_or(1);
        let directory = building("make a directory", tempfile::tempdir())?;
        let topology = Topology::build(ports)?;
        let silent = scenarios().any(|scenario| scenario.traffic == Traffic::Silence);
        let bare = silent.then(|| busy_processors(&self.manner)).transpose()?;
        let policy = match scenarios().any(Scenario::is_attacked) {
            true => Policy::for_attacks(),
            false => Policy::new(rules),
        };
        let site = Site {
            topology: &topology,
            policy: &policy,
            connections,
            room: scenarios().find_map(Scenario::room),
            directory: directory.path(),
            firedoor: self.firedoor,
        };
        let mut up = self.systems[system].up(&site)?;
        prime(&topology, &self.manner)?;
        up.keep(directory);
        Ok(Visit { topology, up, bare, confined })
    }

    /// Whether an error comes of Ctrl-C, which reaches tools that run just then, too.
    fn is_interrupted(&self, error: &BuildError) -> bool {
        matches!(error, BuildError::Interrupted) || self.manner.interrupted.load(Ordering::Relaxed)
    }

    fn fail(&mut self, at: At, error: &BuildError) {
        self.findings.entry(at).or_default().failure = Some(error.to_string());
    }
}

/// Whether a scenario has more ports than a system is measured with.
pub(super) fn is_too_large(scenario: &Scenario, system: &dyn System) -> bool {
    system.port_limit().is_some_and(|(limit, _)| scenario.ports > limit)
}

/// Whether a system is measured in a scenario. One without policy is measured once for all numbers
/// of rules, without any if that is among the scenarios, and not where policy is what matters.
pub(super) fn is_measured(all: &[Scenario], scenario: &Scenario, system: &dyn System) -> bool {
    let without_rules = |s: &Scenario| s.family == scenario.family && s.rules < scenario.rules;
    !is_too_large(scenario, system)
        && system.is_for(scenario.traffic)
        && (system.takes_policy() || !(scenario.is_attacked() || all.iter().any(without_rules)))
}

/// Scenarios that share wires where they have the same rules: as many ports, processors and room for connections.
/// By position, in their order.
fn settings(scenarios: &[Scenario]) -> Vec<Vec<usize>> {
    let mut settings: Vec<(_, Vec<usize>)> = Vec::new();
    for (position, scenario) in scenarios.iter().enumerate() {
        let many = scenario.connections() > MANY_CONNECTIONS;
        // What an attack leaves behind is nobody else's burden, nor are thousands of connections that are over.
        let alone = scenario.is_attacked().then_some(position);
        let short = matches!(scenario.traffic, Traffic::Firsts(_) | Traffic::Connections);
        let key = (scenario.ports, scenario.one_core, many, short, alone);
        match settings.iter_mut().find(|(known, _)| *known == key) {
            Some((_, members)) => members.push(position),
            None => settings.push((key, vec![position])),
        }
    }
    settings.into_iter().map(|(_, members)| members).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::compare::measure::Pace;
    use crate::compare::scenario::all;
    use crate::compare::system;

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
                let Scenario { ports, one_core, .. } = scenarios[at];
                (ports, one_core) == (first.ports, first.one_core)
            };
            assert!(setting.iter().all(same));
        }
    }

    #[test]
    fn goals_are_measured_in_every_round_and_all_else_in_one() {
        let scenarios = all();
        let systems: Vec<_> = system::ALL.into_iter().filter(|system| system.is_usual()).collect();
        let (pace, interrupted) = (Pace::unknown(), AtomicBool::new(false));
        let manner = Manner {
            time: Duration::from_secs(1),
            settle: Duration::ZERO,
            pace: &pace,
            interrupted: &interrupted,
        };
        let plan = |sparing| Plan {
            scenarios: &scenarios,
            systems: &systems,
            asked: ROUNDS,
            sparing,
            firedoor: Path::new("firedoor"),
            manner,
            progress: &|_| (),
            rounds: 0,
            done: 0,
            findings: BTreeMap::new(),
            notes: BTreeMap::new(),
        };
        for sparing in [true, false] {
            let plan = plan(sparing);
            let mut seen: BTreeMap<At, Vec<usize>> = BTreeMap::new();
            for round in 0..ROUNDS {
                for (system, scenarios) in plan.visits(round) {
                    for scenario in scenarios {
                        seen.entry((scenario, system)).or_default().push(round);
                    }
                }
            }
            for (at, scenario) in scenarios.iter().enumerate() {
                for (position, &system) in systems.iter().enumerate() {
                    let rounds = seen.get(&(at, position)).map_or(0, Vec::len);
                    let wanted = match is_measured(&scenarios, scenario, system) {
                        false => 0,
                        true if sparing && !plan.is_judged(at, system) => 1,
                        true => ROUNDS,
                    };
                    assert_eq!(rounds, wanted, "{} in {}", system.name(), scenario.id());
                }
            }
        }
    }

    /// An even number and an odd one of systems' orders.
    const ROUNDS: usize = 5;
}
