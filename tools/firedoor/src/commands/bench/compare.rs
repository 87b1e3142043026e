//! `firedoor bench compare`: switches side by side.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use firedoor_bench::compare::report::{Cell as Measured, Row};
use firedoor_bench::compare::scenario::{self, Metric, Scenario};
use firedoor_bench::compare::system::{self, System};
use firedoor_bench::compare::{Options, Report, compare, html};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::BenchCompareArgs;
use crate::commands::lab::{interrupted, need_root};
use crate::output::{Cell, NO, Output, Table, Tone, YES};

/// Rounds, and length of each measurement, of a whole comparison and of a quick one.
const WHOLE: (usize, Duration) = (5, Duration::from_secs(2));
const QUICK: (usize, Duration) = (3, Duration::from_secs(1));

pub(crate) fn run(args: &BenchCompareArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let (rounds, window) = if args.quick { QUICK } else { WHOLE };
    let (scenarios, systems) = (scenarios(args)?, systems(args)?);
    if args.list {
        list(&scenarios, &systems, out)?;
        return Ok(YES);
    }
    need_root("bench compare")?;
    let directory = args.out.clone().unwrap_or_else(default_directory);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let interrupted = interrupted()?;
    let options = Options {
        scenarios,
        systems,
        rounds: args.rounds.map_or(rounds, usize::from),
        window: args.seconds.map_or(window, Duration::from_secs_f64),
        firedoor: std::env::current_exe().context("cannot find the firedoor executable")?,
        command: command_line(),
        interrupted: &interrupted,
    };
    let bar = bar();
    let report = compare(&options, &|steps, what| {
        bar.set_length(steps as u64);
        bar.set_message(what.to_owned());
        bar.inc(1);
    });
    bar.finish_and_clear();
    let report = report?;
    let written = write(&report, &directory)?;
    show(&report, out)?;
    for path in written {
        writeln!(out, "written: {}", path.display())?;
    }
    let complete = report.rounds == report.rounds_asked
        && report.rows.iter().flat_map(|row| &row.cells).all(|cell| cell.failure.is_none());
    Ok(if complete { YES } else { NO })
}

/// The scenarios that were asked for, in the order of the tables.
fn scenarios(args: &BenchCompareArgs) -> anyhow::Result<Vec<Scenario>> {
    let all = scenario::all();
    if let Some(unknown) = args.only.iter().find(|name| !all.iter().any(|s| s.is_called(name))) {
        let mut families: Vec<&str> = all.iter().map(|scenario| scenario.family).collect();
        families.dedup();
        bail!("no scenario is called {unknown:?}; there are {}", families.join(", "));
    }
    let wanted = |scenario: &Scenario| match args.only.is_empty() {
        true => !args.quick || scenario.quick,
        false => args.only.iter().any(|name| scenario.is_called(name)),
    };
    Ok(all.into_iter().filter(wanted).collect())
}

/// The systems that were asked for, in the order of the tables.
fn systems(args: &BenchCompareArgs) -> anyhow::Result<Vec<&'static dyn System>> {
    let mut names = Vec::new();
    for peer in &args.peers {
        let systems = system::named(peer);
        if systems.is_empty() {
            let all: Vec<&str> = system::ALL.iter().map(|system| system.name()).collect();
            bail!("no system is called {peer:?}; there are {}", all.join(", "));
        }
        names.extend(systems.iter().map(|system| system.name()));
    }
    let wanted = |system: &&dyn System| names.is_empty() || names.contains(&system.name());
    Ok(system::ALL.into_iter().filter(wanted).collect())
}

fn list(
    scenarios: &[Scenario],
    systems: &[&'static dyn System],
    out: &mut Output,
) -> anyhow::Result<()> {
    let mut table = Table::new(["scenario", ">rules", "what"]);
    for scenario in scenarios {
        let id = Cell::new(Tone::Strong, scenario.id());
        table.row([id, scenario.rules.into(), scenario.title.into()]);
    }
    out.table(&table)?;
    writeln!(out)?;
    let mut table = Table::new(["system", "version", "what"]);
    for system in systems {
        let version = match system.version() {
            Ok(version) => version.into(),
            Err(missing) => {
                Cell::new(Tone::Warn, format!("missing: apt-get install {}", missing.package))
            }
        };
        table.row([Cell::new(Tone::Strong, system.name()), version, system.about().into()]);
    }
    Ok(out.table(&table)?)
}

fn default_directory() -> PathBuf {
    let now = jiff::Zoned::now();
    format!("firedoor-bench-{}", now.strftime("%Y-%m-%d-%H%M%S")).into()
}

fn command_line() -> String {
    std::env::args().collect::<Vec<_>>().join(" ")
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::no_length();
    let template = "{bar:30} {pos}/{len} {msg} (ready in {eta})";
    bar.set_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar
}

/// Writes what a report is kept as.
fn write(report: &Report, directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let files = [
        ("report.json", serde_json::to_string_pretty(report)?),
        ("report.html", html::page(report)),
    ];
    let write = |(name, text): &(&str, String)| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    files.iter().map(write).collect()
}

fn show(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    let mut table = Table::new(["", ">median", ">least", ">most", ">×", ">median", ">×", ""]);
    for row in &report.rows {
        table.row(head(row));
        for cell in &row.cells {
            table.row(line(row, cell));
        }
    }
    out.table(&table)?;
    writeln!(out)?;
    writeln!(out, "×: Firedoor's median over this system's. Medians of {} rounds.", report.rounds)?;
    for (system, why) in failures(report) {
        out.warn(format!("{system} failed: {why}"));
    }
    remarks(report, out);
    Ok(())
}

/// Why systems failed, each reason once.
fn failures(report: &Report) -> BTreeSet<(&str, &str)> {
    let cells = report.rows.iter().flat_map(|row| &row.cells);
    cells.filter_map(|cell| Some((cell.system.as_str(), cell.failure.as_deref()?))).collect()
}

/// What a reader of the table should know.
fn remarks(report: &Report, out: &mut Output) {
    if report.unoptimised {
        out.warn("this build of Firedoor is not optimised: use `cargo run --release`");
    }
    if report.rounds < report.rounds_asked {
        out.warn(format!(
            "stopped early: {} of {} rounds are complete",
            report.rounds, report.rounds_asked
        ));
    }
    for missing in &report.missing {
        let (name, package) = (&missing.name, missing.missing.package);
        let program = missing.missing.program;
        out.warn(format!(
            "{name} was left out: there is no {program}; `apt-get install {package}` brings it"
        ));
    }
    for system in &report.systems {
        if let Some(note) = &system.note {
            out.note(format!("{}: {note}", system.name));
        }
    }
    if !report.left_out.is_empty() {
        out.note(format!("not measured: {}", report.left_out.join(", ")));
    }
}

/// A scenario's own heading: what it is, and what its numbers are.
fn head(row: &Row) -> [Cell; 8] {
    let mut line = std::array::from_fn(|_| Cell::from(""));
    line[0] = Cell::new(Tone::Strong, heading(row));
    for (metric, column) in row.scenario.traffic.metrics().iter().zip([1, 5]) {
        line[column] = Cell::new(Tone::Dim, metric.name());
    }
    line
}

fn heading(row: &Row) -> String {
    let title = row.scenario.title;
    match row.scenario.rules {
        0 => format!("{title}, no rules"),
        rules => format!("{title}, {rules} rules"),
    }
}

/// One system's line in a scenario's part of the table.
fn line(row: &Row, cell: &Measured) -> [Cell; 8] {
    let bare = if cell.rules < row.scenario.rules { " (no rules)" } else { "" };
    let name = Cell::from(format!("  {}{bare}", cell.system));
    let mut line = std::array::from_fn(|_| Cell::from(""));
    line[0] = name;
    let metrics = row.scenario.traffic.metrics();
    if cell.failure.is_some() {
        line[7] = Cell::new(Tone::Bad, "failed, see below");
    }
    if let Some(note) = cell.note {
        line[7] = Cell::new(Tone::Dim, note);
    }
    let Some((&first, rest)) = metrics.split_first() else { return line };
    if let Some(summary) = cell.metrics.get(&first) {
        line[1] = Cell::new(Tone::Strong, first.show(summary.median));
        line[2] = Cell::new(Tone::Dim, first.show(summary.min));
        line[3] = Cell::new(Tone::Dim, first.show(summary.max));
        line[4] = ratio(first, cell);
    }
    if let Some((&second, rest)) = rest.split_first() {
        if let Some(summary) = cell.metrics.get(&second) {
            line[5] = second.show(summary.median).into();
            line[6] = ratio(second, cell);
        }
        let rest = rest.iter().filter_map(|metric| {
            let summary = cell.metrics.get(metric)?;
            Some(format!("{} {}", metric.show(summary.median), metric.name()))
        });
        if cell.failure.is_none() && cell.note.is_none() {
            line[7] = Cell::new(Tone::Dim, rest.collect::<Vec<_>>().join(", "));
        }
    }
    line
}

fn ratio(metric: Metric, cell: &Measured) -> Cell {
    let Some(&ratio) = cell.firedoor_ratio.get(&metric) else { return "".into() };
    let better = if metric.more_is_better() { ratio >= 1.0 } else { ratio <= 1.0 };
    Cell::new(if better { Tone::Good } else { Tone::Warn }, format!("{ratio:.2}"))
}
