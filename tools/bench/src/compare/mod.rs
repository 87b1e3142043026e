//! `firedoor bench compare`: switches side by side, on one machine, in one run.
//!
//! A [scenario] is traffic from a sender to a receiver; a [system] is what stands between
//! them. For every round, system and setting fresh [wires](topology) are made, the system is brought
//! up on them with the same [policy] as the others, the scenarios are [measured](measure), and all
//! is removed. The [report] holds medians with least and largest values, the ratios of
//! Firedoor's lanes to each other system, how cost grows ([sweep]), and what that means for our [goals].
//! [against] compares it with an earlier one.
//!
//! docs/benchmarks.md says what each number means.

pub mod against;
mod confine;
mod cpu;
mod error;
pub mod goals;
mod histogram;
pub mod html;
mod machine;
pub mod markdown;
mod measure;
pub mod metric;
mod policy;
pub mod report;
mod run;
pub mod scenario;
mod stats;
pub mod sweep;
pub mod system;
mod tool;
mod topology;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

pub use error::BuildError;
pub use histogram::Bar;
pub use machine::Machine;
pub use report::Report;
pub use stats::Summary;

use measure::{Manner, Pace};
use report::{MissingSystem, SystemInfo};
use run::Plan;
use scenario::Scenario;
use system::System;

/// What is to be compared, and how.
pub struct Options<'a> {
    /// The scenarios.
    pub scenarios: Vec<Scenario>,
    /// The systems.
    pub systems: Vec<&'static dyn System>,
    /// How often each is measured.
    pub rounds: usize,
    /// Whether what no [goal](goals) rests on is measured in one of the rounds only.
    pub sparing: bool,
    /// How long each measurement watches.
    pub window: Duration,
    /// The `firedoor` executable.
    pub firedoor: PathBuf,
    /// The command line, for the report.
    pub command: String,
    /// Becomes true when it should stop. What was measured until then is reported.
    pub interrupted: &'a AtomicBool,
}

/// How far a comparison is.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// It begins.
    Begun {
        /// Measurements there will be.
        measurements: usize,
        /// How long all will take, about.
        estimate: Duration,
    },
    /// A system is brought up on wires of its own.
    Visit {
        /// Rounds complete.
        rounds: usize,
        /// Measurements made, or given up.
        done: usize,
        /// The system.
        system: &'a str,
        /// What it will be measured in.
        scenarios: &'a [String],
    },
    /// It is measured.
    Measurement {
        /// The system.
        system: &'a str,
        /// The scenario.
        scenario: &'a str,
    },
}

/// Compares, and tells `progress` how far it is.
///
/// # Errors
/// If what a dead comparison left cannot be removed. Whatever else fails is told in the report.
pub fn compare(
    options: &Options<'_>,
    progress: &dyn Fn(Progress<'_>),
) -> Result<Report, BuildError> {
    topology::sweep()?;
    let (machine, began, start) = (Machine::this(), jiff::Timestamp::now(), Instant::now());
    let mut systems = Vec::new();
    let (mut infos, mut missing) = (Vec::new(), Vec::new());
    for &system in &options.systems {
        match system.version() {
            Ok(version) => {
                systems.push(system);
                infos.push(SystemInfo {
                    name: system.name().to_owned(),
                    about: system.about().to_owned(),
                    version,
                    note: None,
                });
            }
            Err(lack) => {
                missing.push(MissingSystem { name: system.name().to_owned(), missing: lack });
            }
        }
    }
    let pace = Pace::unknown();
    let manner = Manner {
        time: options.window,
        settle: Duration::ZERO,
        pace: &pace,
        interrupted: options.interrupted,
    };
    let mut plan = Plan {
        scenarios: &options.scenarios,
        systems: &systems,
        asked: options.rounds,
        sparing: options.sparing,
        firedoor: &options.firedoor,
        manner,
        progress,
        rounds: 0,
        done: 0,
        findings: BTreeMap::new(),
        notes: BTreeMap::new(),
    };
    progress(Progress::Begun { measurements: plan.len(), estimate: plan.estimate() });
    let rounds = (0..options.rounds).take_while(|_| plan.round().is_ok()).count();
    for (position, note) in plan.notes {
        infos[position].note = Some(note);
    }
    let asked = |scenario: &Scenario| options.scenarios.iter().any(|s| s.id() == scenario.id());
    let rows = report::rows(&options.scenarios, &systems, &plan.findings);
    let (sweeps, goals) = report::conclusions(&rows, &infos);
    Ok(Report {
        command: options.command.clone(),
        began: began.to_string(),
        seconds: start.elapsed().as_secs_f64(),
        machine,
        rounds,
        rounds_asked: options.rounds,
        sparing: options.sparing,
        window_seconds: options.window.as_secs_f64(),
        seed: measure::SEED,
        unoptimised: cfg!(debug_assertions),
        systems: infos,
        missing,
        left_out: scenario::all().iter().filter(|s| !asked(s)).map(Scenario::id).collect(),
        rows,
        sweeps,
        goals,
    })
}
