//! The report as one HTML page that needs nothing else: no script, no font, no network.

mod svg;

use std::fmt::Write;

use super::report::{Cell, Report, Row};
use super::scenario::{Metric, Traffic};
use svg::{Bar, Line, Point};

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
        "<p>Medians of {} rounds of {} s each, with the least and the largest. All systems in turn, \
         again and again, on one machine. Ratios are Firedoor's median over the other's.</p>\n<dl>\n",
        report.rounds, report.window_seconds
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
    let others = |at: usize| report.systems[..at].iter().filter(|s| s.name != "firedoor").count();
    match report.systems.get(position) {
        Some(system) if system.name == "firedoor" => 0,
        Some(_) => others(position) + 1,
        None => 0,
    }
}

fn colour_of(report: &Report, name: &str) -> usize {
    let position = report.systems.iter().position(|system| system.name == name);
    position.map_or(0, |position| colour(report, position))
}

/// Cost against the number of rules, and against the number of flows.
fn sweeps(report: &Report) -> String {
    let cost = Metric::CpuNsPerFrame;
    let mut text = String::new();
    let mut families: Vec<&str> = report.rows.iter().map(|row| row.scenario.family).collect();
    families.dedup();
    for family in families {
        let rows: Vec<&Row> = report.rows.iter().filter(|r| r.scenario.family == family).collect();
        let labels: Vec<String> = rows.iter().map(|row| row.scenario.rules.to_string()).collect();
        if rows.len() > 2 {
            let title = format!("{}: CPU per frame against rules", rows[0].scenario.title);
            text += &sweep(report, &title, "rules", cost, &labels, &rows);
        }
    }
    let flows = |row: &Row| match row.scenario.traffic {
        Traffic::Udp(load) if row.scenario.family.starts_with("udp-") => Some(load.flows),
        _ => None,
    };
    let mut rules: Vec<usize> = report.rows.iter().map(|row| row.scenario.rules).collect();
    rules.sort_unstable();
    rules.dedup();
    for rules in rules {
        let rows = report.rows.iter().filter(|row| row.scenario.rules == rules);
        let rows: Vec<&Row> = rows.filter(|row| flows(row).is_some()).collect();
        let labels: Vec<String> =
            rows.iter().filter_map(|row| flows(row)).map(|n| n.to_string()).collect();
        if rows.len() > 2 {
            let title = format!("64-byte UDP, {rules} rules: CPU per frame against flows");
            text += &sweep(report, &title, "flows", cost, &labels, &rows);
        }
    }
    match text.is_empty() {
        true => text,
        false => format!("<h2>How cost grows</h2>\n<div class=\"plots\">\n{text}</div>\n"),
    }
}

fn sweep(
    report: &Report,
    title: &str,
    axis: &str,
    metric: Metric,
    labels: &[String],
    rows: &[&Row],
) -> String {
    let line = |name: &String| {
        let points = rows.iter().map(|row| {
            let cell = row.cells.iter().find(|cell| cell.system == *name)?;
            let summary = cell.metrics.get(&metric)?;
            let (median, least, most) = (summary.median, summary.min, summary.max);
            Some(Point { median, least, most })
        });
        Line { colour: colour_of(report, name), points: points.collect() }
    };
    let lines: Vec<Line> = report.systems.iter().map(|system| line(&system.name)).collect();
    let plot = svg::lines(&lines, labels, axis, &|value| metric.show(value));
    format!("<figure><figcaption>{}</figcaption>\n{plot}</figure>\n", escape(title))
}

/// One scenario: its plots and its numbers.
fn section(report: &Report, row: &Row) -> String {
    let scenario = &row.scenario;
    let rules = match scenario.rules {
        0 => "no rules".to_owned(),
        rules => format!("{rules} rules"),
    };
    let mut text = format!(
        "<section id=\"{0}\">\n<h2>{1}, {rules} <code>{0}</code></h2>\n<div class=\"plots\">\n",
        escape(&row.id),
        escape(scenario.title),
    );
    for &metric in scenario.traffic.metrics().iter().take(2) {
        text += &bars(report, row, metric);
    }
    text += &round_trips(report, row);
    text += "</div>\n";
    text += &numbers(row);
    text += "</section>\n";
    text
}

fn bars(report: &Report, row: &Row, metric: Metric) -> String {
    let bar = |cell: &Cell| {
        let summary = cell.metrics.get(&metric)?;
        let (median, least, most) = (summary.median, summary.min, summary.max);
        Some(Bar {
            label: label(row, cell),
            colour: colour_of(report, &cell.system),
            value: Point { median, least, most },
            text: metric.show(median),
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

fn numbers(row: &Row) -> String {
    let metrics = row.scenario.traffic.metrics();
    let mut text = String::from("<table>\n<tr><th>system");
    for metric in metrics {
        let _ = write!(
            text,
            "<th class=\"n\">{}<th class=\"n\">least – most<th class=\"n\">×",
            metric.name()
        );
    }
    text.push('\n');
    for cell in &row.cells {
        let _ = write!(text, "<tr><td>{}", escape(&label(row, cell)));
        for metric in metrics {
            let Some(summary) = cell.metrics.get(metric) else {
                text += "<td><td><td>";
                continue;
            };
            let ratio = cell.firedoor_ratio.get(metric).map(|ratio| format!("{ratio:.2}"));
            let _ = write!(
                text,
                "<td class=\"n\"><b>{}</b><td class=\"n aside\">{} – {}<td class=\"n\">{}",
                metric.show(summary.median),
                metric.show(summary.min),
                metric.show(summary.max),
                ratio.unwrap_or_default(),
            );
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
