//! `firedoor bench replay`: what a switch makes of a capture.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use firedoor_bench::replay::{self, LeftOut, Options, Report, Time};

use crate::args::BenchReplayArgs;
use crate::commands::source;
use crate::output::{Bytes, Cell, Count, Output, Table, Tone, YES};

pub(crate) fn run(args: &BenchReplayArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let policy = source::policy(args.config.as_deref(), &args.switch, out)?;
    let options = Options {
        capture: args.capture.clone(),
        port: args.port.clone(),
        passes: args.repeat as usize,
    };
    let report = replay::run(&options, &policy)?;
    if args.json {
        out.json(&report)?;
    } else {
        print(&report, out)?;
    }
    say_left_out(&report.left_out, out);
    Ok(YES)
}

fn print(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    let Report { frames, bytes, sent, drops, would_drop, .. } = report;
    let dropped: u64 = drops.values().sum();
    writeln!(
        out,
        "{} frames ({}) into {}: {} sent on, {} dropped\n",
        Count(*frames),
        Bytes(*bytes),
        report.switch,
        Count(*sent),
        Count(dropped)
    )?;
    print_rules(report, out)?;
    print_reasons("dropped because", drops, out)?;
    print_reasons("would be dropped because", would_drop, out)?;
    print_times(report, out)
}

fn print_rules(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    let mut table = Table::new(["decided by", ">forwarded", ">dropped"]);
    for decided in &report.rules {
        let name = Cell::new(Tone::Strong, &decided.rule);
        table.row([name, count(decided.forwarded), count(decided.dropped)]);
    }
    Ok(out.table(&table)?)
}

fn print_reasons(
    heading: &str,
    counts: &BTreeMap<&'static str, u64>,
    out: &mut Output,
) -> anyhow::Result<()> {
    if counts.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = Table::new([heading, ">frames"]);
    for (reason, &frames) in counts {
        table.row([Cell::new(Tone::Strong, reason), count(frames)]);
    }
    Ok(out.table(&table)?)
}

fn print_times(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    writeln!(out)?;
    let mut table = Table::new(["ns per frame", ">first", ">then"]);
    let times = &report.ns_per_frame;
    let steps =
        [("extract", times.extract), ("judge", times.judge), ("the whole path", times.path)];
    for (step, Time { first, median }) in steps {
        let name = Cell::new(Tone::Strong, step);
        table.row([name, format!("{first:.1}").into(), format!("{median:.1}").into()]);
    }
    out.table(&table)?;
    writeln!(
        out,
        "\nfirst: with empty tables. then: the median of {} more, as the first left them.",
        report.passes
    )?;
    Ok(())
}

fn count(frames: u64) -> Cell {
    Count(frames).to_string().into()
}

/// Says what of the file is not in the numbers.
fn say_left_out(left_out: &LeftOut, out: &mut Output) {
    let LeftOut { unplayable, strangers, stranger_macs, damage } = left_out;
    if *strangers > 0 {
        let macs: Vec<String> =
            stranger_macs.iter().map(|(mac, count)| format!("{mac} ({count})")).collect();
        out.warn(format!(
            "{strangers} frames were left out, because no workload has the address they come from: \
             {}; --port names one",
            macs.join(", ")
        ));
    }
    if *unplayable > 0 {
        out.warn(format!(
            "{unplayable} frames were left out: cut when they were captured, too long, or not \
             Ethernet"
        ));
    }
    if let Some(damage) = damage {
        out.warn(format!("the capture is damaged, its rest was left out: {damage}"));
    }
}
