//! The report as tables in Markdown, to be pasted into a page.
//!
//! A row is a scenario's metric, a column a system. A median that stands for values further apart than a
//! tenth of it is followed by the least and the largest.

use std::fmt::Write;

use super::against::{Agreement, RatioSeen, Seen};
use super::goals::Goal;
use super::metric::Metric;
use super::report::{COMPARED, Cell, Report, Row};
use super::stats::Summary;

/// The tables, with what `agreement` with an earlier report there is.
pub fn page(report: &Report, agreement: Option<&Agreement>) -> String {
    let mut page = summary(report);
    page += &numbers(report);
    page += &goals(report);
    page += &growth(report);
    page += &agreement.map(agrees).unwrap_or_default();
    page
}

/// How it was measured, and on what.
fn summary(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "```sh\n{}\n```\n\n{}, took {:.0} s; {} × {}, Linux {}, load {:.2} before. Medians of {} rounds of \
         {} s each",
        report.command,
        report.began,
        report.seconds,
        machine.processors,
        machine.processor,
        machine.kernel,
        machine.load,
        report.rounds,
        report.window_seconds,
    );
    text += match report.sparing {
        true => "; of one round, what no goal rests on.\n\n",
        false => ".\n\n",
    };
    for system in &report.systems {
        let note = system.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
        let _ = writeln!(text, "- `{}`: {}{note} ({})", system.name, system.about, system.version);
    }
    for missing in &report.missing {
        let package = missing.missing.package;
        let _ = writeln!(text, "- `{}`: left out, needs the package {package}", missing.name);
    }
    text
}

fn numbers(report: &Report) -> String {
    let names = report.systems.iter().map(|system| system.name.as_str());
    let mut text = head(std::iter::once("").chain(names));
    for row in &report.rows {
        for &metric in row.scenario.traffic.metrics().iter().take(COMPARED) {
            let _ = write!(text, "| {}: {} |", row.scenario.heading(), metric.name());
            for system in &report.systems {
                let cell = row.cells.iter().find(|cell| cell.system == system.name);
                let _ =
                    write!(text, " {} |", cell.map(|c| value(row, c, metric)).unwrap_or_default());
            }
            text.push('\n');
        }
    }
    text
}

/// One system's value; in italics if it was measured without rules where there are some.
fn value(row: &Row, cell: &Cell, metric: Metric) -> String {
    let Some(summary) = cell.metrics.get(&metric) else {
        return if cell.failure.is_some() { "failed" } else { "" }.to_owned();
    };
    let Summary { median, min, max, .. } = *summary;
    let text = match max - min > median.abs() / 10.0 {
        true => format!("{} ({} to {})", metric.show(median), metric.show(min), metric.show(max)),
        false => metric.show(median),
    };
    if cell.rules < row.scenario.rules { format!("*{text}*") } else { text }
}

fn goals(report: &Report) -> String {
    let mut text = head(["goal", "wanted", "seen", "kernel's own", "met"]);
    let measured = |goal: &Goal| {
        let seen = goal.seen.as_ref()?;
        let seen = goal.show_range(seen);
        let kernel = goal.kernels_own().unwrap_or_default();
        Some(format!(
            "| {} | {} | {seen} | {kernel} | {} |\n",
            goal.what,
            goal.wanted(),
            goal.verdict()
        ))
    };
    text.extend(report.goals.iter().filter_map(measured));
    text
}

/// How far cost grows: a row for each sweep, a column for each system.
fn growth(report: &Report) -> String {
    let names = report.systems.iter().map(|system| system.name.as_str());
    let mut text = head(std::iter::once("CPU per frame, largest over least").chain(names));
    for sweep in &report.sweeps {
        let _ = write!(text, "| {}, {} |", sweep.title, sweep.axis.name());
        for line in &sweep.lines {
            let growth = line.growth.map(|growth| format!("{growth:.2} ×")).unwrap_or_default();
            let _ = write!(text, " {growth} |");
        }
        text.push('\n');
    }
    text
}

/// How an earlier comparison's ratios stand to these: each goal's, and all of them.
fn agrees(agreement: &Agreement) -> String {
    let mut text = format!("\n{}\n", agreement.summary());
    text += &head(["goal", "then", "now", "agree"]);
    for goal in &agreement.goals {
        let ([then, now], agree) = (goal.show(), goal.seen.accord.name());
        let _ = writeln!(text, "| {} | {then} | {now} | {agree} |", goal.goal.what);
    }
    text += &head(["scenario", "lane", "over", "in", "then", "now", "agree"]);
    for ratio in &agreement.ratios {
        let RatioSeen { row, ours, theirs, metric, seen: Seen { before, now, accord } } = ratio;
        let ([then, now], metric) = ([before, now].map(range), metric.name());
        let agree = accord.name();
        let _ =
            writeln!(text, "| `{row}` | {ours} | {theirs} | {metric} | {then} | {now} | {agree} |");
    }
    text
}

fn range(summary: &Summary) -> String {
    format!("{:.2} ({:.2} to {:.2})", summary.median, summary.min, summary.max)
}

/// A table's heading, after an empty line.
fn head<'a>(columns: impl IntoIterator<Item = &'a str>) -> String {
    let columns: Vec<&str> = columns.into_iter().collect();
    format!("\n| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::against::tests::earlier_of;
    use crate::compare::report::tests::example;

    #[test]
    fn every_line_of_a_table_has_as_many_columns_as_its_heading() {
        let report = example();
        let earlier = Agreement::between(&report, &earlier_of(&report));
        let page = page(&report, Some(&earlier));
        let tables = page.split("\n\n").filter(|part| part.trim_start().starts_with('|'));
        let mut seen = 0;
        for table in tables {
            let columns = |line: &str| line.matches('|').count();
            let lines: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
            assert!(lines.iter().all(|line| columns(line) == columns(lines[0])), "{table}");
            seen += lines.len();
        }
        assert!(seen > report.rows.len());
        assert!(!page.contains("NaN") && !page.contains("inf"), "every number is a number");
    }

    #[test]
    fn a_spread_is_shown_where_it_matters() {
        let report = example();
        let row = &report.rows[0];
        let shown = value(row, &row.cells[0], Metric::FramesPerSecond);
        assert_eq!(shown, "1.00 kpps (900 pps to 1.10 kpps)");
    }
}
