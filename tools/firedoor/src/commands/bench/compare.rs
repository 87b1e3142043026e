//! `firedoor bench compare`: switches side by side.

use std::collections::BTreeSet;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use firedoor_bench::compare::against::{Accord, Agreement, Earlier, Seen};
use firedoor_bench::compare::metric::Metric;
use firedoor_bench::compare::report::{COMPARED, Cell as Measured, Row, lanes};
use firedoor_bench::compare::scenario::{self, Scenario};
use firedoor_bench::compare::system::{self, System};
use firedoor_bench::compare::{Options, Progress, Report, Summary, compare, html, markdown};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::BenchCompareArgs;
use crate::commands::lab::{interrupted, need_root};
use crate::output::{Cell, NO, Output, Table, Tone, YES};

/// Rounds, and length of each measurement.
const ROUNDS: u16 = 4;
const WINDOW: f64 = 0.4;

pub(crate) fn run(args: &BenchCompareArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let (scenarios, systems) = (scenarios(args)?, systems(args)?);
    if args.list {
        list(&scenarios, &systems, out)?;
        return Ok(YES);
    }
    need_root("bench compare")?;
    let earlier = args.against.as_deref().map(Earlier::read).transpose()?;
    let directory = args.out.clone().unwrap_or_else(default_directory);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let interrupted = interrupted()?;
    let options = Options {
        scenarios,
        systems,
        rounds: args.rounds.unwrap_or(ROUNDS).into(),
        sparing: !args.quick && args.only.is_empty() && args.rounds.is_none(),
        window: Duration::from_secs_f64(args.seconds.unwrap_or(WINDOW)),
        firedoor: std::env::current_exe().context("cannot find the firedoor executable")?,
        command: command_line(),
        interrupted: &interrupted,
    };
    let bar = bar();
    let log = Log { begun: Instant::now(), shown: !std::io::stderr().is_terminal() };
    let report = compare(&options, &|progress| {
        advance(&bar, progress);
        log.tell(&bar, progress);
    });
    bar.finish_and_clear();
    let report = report?;
    let agreement = earlier.as_ref().map(|earlier| Agreement::between(&report, earlier));
    let written = write(&report, agreement.as_ref(), &directory)?;
    show(&report, out)?;
    if let Some(agreement) = &agreement {
        show_agreement(agreement, out)?;
    }
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
    let wanted = |system: &&dyn System| match names.is_empty() {
        true => system.is_usual(),
        false => names.contains(&system.name()),
    };
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

/// Moves the bar.
fn advance(bar: &ProgressBar, progress: Progress<'_>) {
    match progress {
        Progress::Begun { measurements, estimate } => {
            bar.set_length(measurements as u64);
            bar.println(begun(measurements, estimate));
        }
        Progress::Visit { done, system, .. } => {
            bar.set_position(done as u64);
            bar.set_message(format!("{system} starts"));
        }
        Progress::Measurement { system, scenario } => {
            bar.set_message(format!("{system}: {scenario}"));
            bar.inc(1);
        }
    }
}

fn begun(measurements: usize, estimate: Duration) -> String {
    format!("{measurements} measurements, about {}", minutes(estimate))
}

fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..100 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

/// Lines on standard error where no bar can be seen.
struct Log {
    begun: Instant,
    shown: bool,
}

impl Log {
    fn tell(&self, bar: &ProgressBar, progress: Progress<'_>) {
        if !self.shown {
            return;
        }
        match progress {
            Progress::Begun { measurements, estimate } => {
                eprintln!("{}", begun(measurements, estimate));
            }
            Progress::Visit { rounds, done, system, scenarios } => {
                let total = bar.length().unwrap_or_default();
                let (round, scenarios) = (rounds + 1, scenarios.join(", "));
                eprintln!(
                    "{done}/{total} round {round}: {system}: {scenarios}{}",
                    self.left(done, total)
                );
            }
            Progress::Measurement { .. } => {}
        }
    }

    /// How long the rest will take if it goes on like this; nothing as long as that says little.
    fn left(&self, done: usize, total: u64) -> String {
        let share = done as f64 / total.max(1) as f64;
        if share < 0.05 {
            return String::new();
        }
        let left = self.begun.elapsed().mul_f64((1.0 - share) / share);
        format!(" ({} left)", minutes(left))
    }
}

/// Writes what a report is kept as.
fn write(
    report: &Report,
    agreement: Option<&Agreement>,
    directory: &Path,
) -> anyhow::Result<Vec<PathBuf>> {
    let files = [
        ("report.json", serde_json::to_string_pretty(report)?),
        ("report.html", html::page(report)),
        ("report.md", markdown::page(report, agreement)),
    ];
    let write = |(name, text): &(&str, String)| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    files.iter().map(write).collect()
}

fn show(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    let lanes: Vec<&str> = lanes(&report.systems).collect();
    let short = |lane: &&str| format!(">{} ×", lane.strip_prefix("firedoor-").unwrap_or(lane));
    let ratios: Vec<String> = lanes.iter().map(short).collect();
    let mut headings: Vec<&str> = vec!["", ">median", ">least", ">most"];
    headings.extend(ratios.iter().map(String::as_str));
    headings.push(">median");
    headings.extend(ratios.iter().map(String::as_str));
    headings.push("");
    let mut table = Table::with_headings(headings);
    for row in &report.rows {
        table.row(head(row, lanes.len()));
        for cell in &row.cells {
            table.row(line(row, cell, &lanes));
        }
    }
    out.table(&table)?;
    writeln!(out)?;
    writeln!(
        out,
        "×: what Firedoor's lane has over this system in the same round. Medians of {} rounds{}.",
        report.rounds,
        if report.sparing { ", but for what no goal rests on, of one" } else { "" },
    )?;
    show_growth(report, out)?;
    show_goals(report, out)?;
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

/// How far each system's cost grows.
fn show_growth(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    let grown = report.sweeps.iter().flat_map(|sweep| {
        sweep.lines.iter().filter_map(move |line| Some((sweep, line, line.growth?)))
    });
    let mut table = Table::new(["CPU per frame, largest over least", "against", "system", ">"]);
    for (sweep, line, growth) in grown {
        let growth = format!("{growth:.2} ×");
        let title = sweep.title.as_str();
        table.row([
            title.into(),
            sweep.axis.name().into(),
            line.system.as_str().into(),
            Cell::from(growth),
        ]);
    }
    if !table.is_empty() {
        writeln!(out)?;
        out.table(&table)?;
    }
    Ok(())
}

/// What Firedoor is meant to reach, as far as it was measured.
fn show_goals(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    let columns = ["goal", ">wanted", ">seen", ">least", ">most", ">kernel's own", "met"];
    let mut table = Table::new(columns);
    for goal in &report.goals {
        let Some(seen) = &goal.seen else { continue };
        let tone = if goal.met == Some(true) { Tone::Good } else { Tone::Warn };
        table.row([
            goal.what.into(),
            goal.wanted().into(),
            Cell::new(Tone::Strong, goal.show(seen.median)),
            Cell::new(Tone::Dim, goal.show(seen.min)),
            Cell::new(Tone::Dim, goal.show(seen.max)),
            Cell::new(Tone::Dim, goal.kernels_own().unwrap_or_default()),
            Cell::new(tone, goal.verdict()),
        ]);
    }
    if !table.is_empty() {
        writeln!(out)?;
        out.table(&table)?;
        let missing = report.goals.iter().filter(|goal| goal.seen.is_none()).count();
        if missing > 0 {
            writeln!(out, "{missing} more goals were not measured.")?;
        }
    }
    Ok(())
}

/// How an earlier comparison's ratios stand to these.
fn show_agreement(agreement: &Agreement, out: &mut Output) -> anyhow::Result<()> {
    let verdict = |accord: Accord| {
        let tone = if accord == Accord::Agree { Tone::Good } else { Tone::Warn };
        Cell::new(tone, accord.name())
    };
    writeln!(out)?;
    let mut table = Table::new(["goal", ">then", ">now", "agree"]);
    for goal in &agreement.goals {
        let [then, now] = goal.show().map(Cell::from);
        table.row([goal.goal.what.into(), then, now, verdict(goal.seen.accord)]);
    }
    if !table.is_empty() {
        out.table(&table)?;
        writeln!(out)?;
    }
    writeln!(out, "{}", agreement.summary())?;
    let mut table = Table::new([
        "scenario",
        "lane",
        "over",
        "in",
        ">then",
        ">least – most",
        ">now",
        ">least – most",
        "agree",
    ]);
    for ratio in agreement.others() {
        let range = |s: &Summary| Cell::new(Tone::Dim, format!("{:.2} – {:.2}", s.min, s.max));
        let median = |s: &Summary| Cell::from(format!("{:.2}", s.median));
        let Seen { before, now, accord } = &ratio.seen;
        table.row([
            ratio.row.as_str().into(),
            ratio.ours.as_str().into(),
            ratio.theirs.as_str().into(),
            ratio.metric.name().into(),
            median(before),
            range(before),
            median(now),
            range(now),
            verdict(*accord),
        ]);
    }
    if !table.is_empty() {
        out.table(&table)?;
    }
    Ok(())
}

/// A scenario's own heading: what it is, and what its numbers are.
fn head(row: &Row, lanes: usize) -> Vec<Cell> {
    let mut line = vec![Cell::from(""); 6 + COMPARED * lanes];
    line[0] = Cell::new(Tone::Strong, row.scenario.heading());
    for (metric, column) in row.scenario.traffic.metrics().iter().zip([1, 4 + lanes]) {
        line[column] = Cell::new(Tone::Dim, metric.name());
    }
    line
}

/// One system's line in a scenario's part of the table.
fn line(row: &Row, cell: &Measured, lanes: &[&str]) -> Vec<Cell> {
    let bare = if cell.rules < row.scenario.rules { " (no rules)" } else { "" };
    let mut line = vec![Cell::from(format!("  {}{bare}", cell.system))];
    let metrics = row.scenario.traffic.metrics();
    let (compared, rest) = metrics.split_at(COMPARED.min(metrics.len()));
    for position in 0..COMPARED {
        let metric = compared.get(position).copied();
        let summary = metric.and_then(|metric| Some((metric, cell.metrics.get(&metric)?)));
        let show = |tone, of: fn(&Summary) -> f64| {
            summary.map_or(Cell::from(""), |(metric, summary)| {
                Cell::new(tone, metric.show(of(summary)))
            })
        };
        // What it is about with its spread, what it costs without.
        if position == 0 {
            line.push(show(Tone::Strong, |summary| summary.median));
            line.push(show(Tone::Dim, |summary| summary.min));
            line.push(show(Tone::Dim, |summary| summary.max));
        } else {
            line.push(show(Tone::Plain, |summary| summary.median));
        }
        line.extend(lanes.iter().map(|lane| ratio(metric, cell, lane)));
    }
    line.push(remark(cell, rest));
    line
}

/// What is behind a system's numbers: what went wrong, what is to be known, or further metrics.
fn remark(cell: &Measured, rest: &[Metric]) -> Cell {
    if cell.failure.is_some() {
        return Cell::new(Tone::Bad, "failed, see below");
    }
    let rest = rest.iter().filter_map(|metric| {
        let summary = cell.metrics.get(metric)?;
        Some(format!("{} {}", metric.show(summary.median), metric.name()))
    });
    let rest = || rest.collect::<Vec<_>>().join(", ");
    Cell::new(Tone::Dim, cell.note.map_or_else(rest, str::to_owned))
}

fn ratio(metric: Option<Metric>, cell: &Measured, lane: &str) -> Cell {
    let ratio = metric.and_then(|metric| Some((metric, cell.ratios.get(lane)?.get(&metric)?)));
    let Some((metric, ratio)) = ratio else { return "".into() };
    let ratio = ratio.median;
    let better = if metric.more_is_better() { ratio >= 1.0 } else { ratio <= 1.0 };
    Cell::new(if better { Tone::Good } else { Tone::Warn }, format!("{ratio:.2}"))
}
