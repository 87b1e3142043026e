//! The report as one HTML page that needs nothing else: no script, no font, no network.

mod svg;

use std::fmt::Write;

use super::metric::Metric;
use super::report::{COMPARED, Cell, Report, Row, lanes};
use super::sweep::{self, Sweep};
use svg::{Bar, Line, Point};

/// Whose colour is Firedoor's own.
const SWITCH_LANE: &str = "firedoor-switch";
const STYLE: &str = include_str!("style.css");

/// The page.
pub fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Firedoor side by side</title>\n<style>\n{STYLE}</style>\n"
    );
    page += "<main>\n<h1>Firedoor side by side</h1>\n";
    page += &summary(report);
    page += &systems(report);
    page += &goals(report);
    page += &sweeps(report);
    for row in &report.rows {
        page += &section(report, row);
    }
    page += "</main>\n</html>\n";
    page
}

/// When, where and how it was measured.
fn summary(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "<p>Medians of {} rounds of {} s each{}, with the least and the largest. All systems in turn, \
         again and again, on one machine. × is what a lane of Firedoor has over the other in the same round.</p>\n<dl>\n",
        report.rounds,
        report.window_seconds,
        if report.sparing { " (of one round, what no goal rests on)" } else { "" },
    );
    let entries = [
        ("command", format!("<code>{}</code>", escape(&report.command))),
        ("began", format!("{}, took {:.0} s", escape(&report.began), report.seconds)),
        (
            "machine",
            format!(
                "{} × {}, {} MiB, load {:.2} before",
                machine.processors,
                escape(&machine.processor),
                machine.memory_mib,
                machine.load
            ),
        ),
        ("kernel", escape(&machine.kernel)),
        ("seed", format!("{:#x}", report.seed)),
    ];
    for (name, value) in entries {
        let _ = writeln!(text, "<dt>{name}<dd>{value}");
    }
    text += "</dl>\n";
    if report.unoptimised {
        text += "<p class=\"bad\">This build of Firedoor is not optimised: its numbers mean nothing.</p>\n";
    }
    if report.rounds < report.rounds_asked {
        let (made, asked) = (report.rounds, report.rounds_asked);
        let _ = writeln!(
            text,
            "<p class=\"bad\">Stopped early: {made} of {asked} rounds are complete.</p>"
        );
    }
    if !report.left_out.is_empty() {
        let left_out = report.left_out.join(", ");
        let _ = writeln!(text, "<p class=\"aside\">Not measured: {left_out}.</p>");
    }
    text
}

/// Who was compared, which is also the legend of all plots.
fn systems(report: &Report) -> String {
    let mut text = String::from("<table>\n<tr><th>system<th>version<th>what\n");
    for (position, system) in report.systems.iter().enumerate() {
        let note = system.note.as_ref().map(|note| format!("; {}", escape(note)));
        let _ = writeln!(
            text,
            "<tr><td><span class=\"key c{}\"></span>{}<td>{}<td>{}{}",
            colour(report, position),
            escape(&system.name),
            escape(&system.version),
            escape(&system.about),
            note.unwrap_or_default(),
        );
    }
    for missing in &report.missing {
        let _ = writeln!(
            text,
            "<tr class=\"aside\"><td>{}<td>missing<td>needs {} (apt-get install {})",
            escape(&missing.name),
            missing.missing.program,
            missing.missing.package,
        );
    }
    text + "</table>\n"
}

/// Firedoor has the colour of its own, 0; the others count from 1.
fn colour(report: &Report, position: usize) -> usize {
    let others = |at: usize| report.systems[..at].iter().filter(|s| s.name != SWITCH_LANE).count();
    match report.systems.get(position) {
        Some(system) if system.name == SWITCH_LANE => 0,
        Some(_) => others(position) + 1,
        None => 0,
    }
}

fn colour_of(report: &Report, name: &str) -> usize {
    let position = report.systems.iter().position(|system| system.name == name);
    position.map_or(0, |position| colour(report, position))
}

/// What Firedoor is meant to reach, as far as it was measured.
fn goals(report: &Report) -> String {
    let measured = report.goals.iter().filter_map(|goal| Some((goal, goal.seen.as_ref()?)));
    let mut text = String::new();
    for (goal, seen) in measured {
        let _ = writeln!(
            text,
            "<tr><td>{}<td class=\"n\">{}<td class=\"n\"><b>{}</b><td class=\"n aside\">{} – {}<td class=\"n aside\">{}<td class=\"{}\">{}",
            escape(goal.what),
            goal.wanted(),
            goal.show(seen.median),
            goal.show(seen.min),
            goal.show(seen.max),
            goal.kernels_own().unwrap_or_default(),
            if goal.met == Some(false) { "bad" } else { "" },
            goal.verdict(),
        );
    }
    if text.is_empty() {
        return text;
    }
    let mut text = format!(
        "<h2>Goals</h2>\n<table>\n<tr><th>goal<th class=\"n\">wanted<th class=\"n\">seen\
         <th class=\"n\">least – most<th class=\"n\">kernel's own<th>met\n{text}</table>\n"
    );
    let missing = report.goals.iter().filter(|goal| goal.seen.is_none());
    let missing: Vec<String> = missing.map(|goal| escape(goal.what)).collect();
    if !missing.is_empty() {
        let _ = writeln!(text, "<p class=\"aside\">Not measured: {}.</p>", missing.join("; "));
    }
    text
}

/// Cost against the number of rules, and against the number of flows.
fn sweeps(report: &Report) -> String {
    let plots: String = report.sweeps.iter().map(|each| sweep(report, each)).collect();
    match plots.is_empty() {
        true => plots,
        false => format!("<h2>How cost grows</h2>\n<div class=\"plots\">\n{plots}</div>\n"),
    }
}

fn sweep(report: &Report, sweep: &Sweep) -> String {
    let line = |line: &sweep::Line| Line {
        colour: colour_of(report, &line.system),
        points: line.points.iter().map(|point| point.as_ref().map(Point::of)).collect(),
    };
    let lines: Vec<Line> = sweep.lines.iter().map(line).collect();
    let at: Vec<String> = sweep.at.iter().map(usize::to_string).collect();
    let plot = svg::lines(&lines, &at, sweep.axis.name(), &|value| sweep.metric.show(value));
    let title = format!("{}: {} against {}", sweep.title, sweep.metric.name(), sweep.axis.name());
    let growth = sweep
        .lines
        .iter()
        .filter_map(|line| Some(format!("{} {:.2}", escape(&line.system), line.growth?)));
    let growth: Vec<String> = growth.collect();
    format!(
        "<figure><figcaption>{}</figcaption>\n{plot}<figcaption>largest over least: {}</figcaption></figure>\n",
        escape(&title),
        growth.join(", "),
    )
}

/// One scenario: its plots and its numbers.
fn section(report: &Report, row: &Row) -> String {
    let scenario = &row.scenario;
    let mut text = format!(
        "<section id=\"{0}\">\n<h2>{1} <code>{0}</code></h2>\n<div class=\"plots\">\n",
        escape(&row.id),
        escape(&scenario.heading()),
    );
    for &metric in scenario.traffic.metrics().iter().take(COMPARED) {
        text += &bars(report, row, metric);
    }
    text += &round_trips(report, row);
    text += "</div>\n";
    text += &numbers(report, row);
    text += "</section>\n";
    text
}

fn bars(report: &Report, row: &Row, metric: Metric) -> String {
    let bar = |cell: &Cell| {
        let summary = cell.metrics.get(&metric)?;
        Some(Bar {
            label: label(row, cell),
            colour: colour_of(report, &cell.system),
            value: Point::of(summary),
            text: metric.show(summary.median),
        })
    };
    let bars: Vec<Bar> = row.cells.iter().filter_map(bar).collect();
    if bars.is_empty() {
        return String::new();
    }
    let better = if metric.more_is_better() { "more" } else { "less" };
    let title = format!("{} ({better} is better)", metric.name());
    format!("<figure><figcaption>{title}</figcaption>\n{}</figure>\n", svg::bars(&bars))
}

fn label(row: &Row, cell: &Cell) -> String {
    let bare = if cell.rules < row.scenario.rules { " (no rules)" } else { "" };
    format!("{}{bare}", cell.system)
}

/// The histogram of all round trips.
fn round_trips(report: &Report, row: &Row) -> String {
    let curves: Vec<(usize, &[super::Bar])> = row
        .cells
        .iter()
        .filter(|cell| !cell.round_trips.is_empty())
        .map(|cell| (colour_of(report, &cell.system), cell.round_trips.as_slice()))
        .collect();
    if curves.is_empty() {
        return String::new();
    }
    let plot = svg::histograms(&curves, &|ns| Metric::P50.show(ns));
    format!(
        "<figure><figcaption>how often each round trip was seen</figcaption>\n{plot}</figure>\n"
    )
}

fn numbers(report: &Report, row: &Row) -> String {
    let metrics = row.scenario.traffic.metrics();
    let mut text = String::from("<table>\n<tr><th>system");
    for (position, metric) in metrics.iter().enumerate() {
        let _ = write!(text, "<th class=\"n\">{}<th class=\"n\">least – most", metric.name());
        for lane in lanes(&report.systems).filter(|_| position < COMPARED) {
            let _ = write!(text, "<th class=\"n\">{lane} ×");
        }
    }
    text.push('\n');
    for cell in &row.cells {
        let _ = write!(text, "<tr><td>{}", escape(&label(row, cell)));
        for (position, metric) in metrics.iter().enumerate() {
            text += &values(cell, *metric);
            for lane in lanes(&report.systems).filter(|_| position < COMPARED) {
                let ratio = cell.ratios.get(lane).and_then(|ratios| ratios.get(metric));
                let ratio = ratio.map(|ratio| format!("{:.2}", ratio.median)).unwrap_or_default();
                let _ = write!(text, "<td class=\"n\">{ratio}");
            }
        }
        if let Some(note) = cell.note {
            let _ = write!(text, "<td class=\"aside\">{}", escape(note));
        }
        if let Some(why) = &cell.failure {
            let _ = write!(text, "<td class=\"bad\">failed: {}", escape(why));
        }
        text.push('\n');
    }
    text + "</table>\n"
}

/// A median, and how far the values spread.
fn values(cell: &Cell, metric: Metric) -> String {
    let Some(summary) = cell.metrics.get(&metric) else { return "<td><td>".to_owned() };
    format!(
        "<td class=\"n\"><b>{}</b><td class=\"n aside\">{} – {}",
        metric.show(summary.median),
        metric.show(summary.min),
        metric.show(summary.max),
    )
}

/// Text as HTML and SVG show it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::example;

    #[test]
    fn a_page_holds_every_scenario_and_system_and_needs_nothing_else() {
        let report = example();
        let page = page(&report);
        for row in &report.rows {
            assert!(page.contains(&format!("id=\"{}\"", row.id)), "{}", row.id);
        }
        for system in &report.systems {
            assert!(page.contains(&escape(&system.about)), "{}", system.name);
        }
        for outside in ["<script", "http:", "https:", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"), "every number is a number");
    }

    #[test]
    fn what_others_said_stays_text() {
        let mut report = example();
        report.command = "firedoor --out \"<b>&".to_owned();
        assert!(page(&report).contains("firedoor --out &quot;&lt;b&gt;&amp;"));
    }
}
