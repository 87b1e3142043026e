//! `firedoor bench classify`: the ACL on ClassBench rules.

use std::process::ExitCode;

use firedoor_bench::classify::{self, Options, Report};

use crate::args::BenchClassifyArgs;
use crate::output::{Cell, NO, Output, Table, YES};

pub(crate) fn run(args: &BenchClassifyArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let report = classify::run(&Options {
        rules: args.rules.clone(),
        trace: args.trace.clone(),
        headers: args.headers as usize,
        batch: args.batch as usize,
        updates: args.updates as usize,
        conditions: args.conditions,
        write_trace: args.write_trace.clone(),
    })?;
    if args.json {
        out.json(&report)?;
    } else {
        print(&report, out)?;
    }
    Ok(if report.wrong == 0 { YES } else { NO })
}

fn print(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    let mut table = Table::new(["measured", ">value"]);
    let mut row = |what: String, how_much: String| table.row([Cell::from(what), how_much.into()]);
    let ns = |ns: f64| format!("{ns:.1} ns");
    row("rules".to_owned(), report.rules.to_string());
    row("compiled in".to_owned(), format!("{:.1} ms", report.build_ms));
    row("memory".to_owned(), kib(report.bytes));
    row("headers".to_owned(), report.headers.to_string());
    row("a lookup, one at a time".to_owned(), ns(report.ns_batch1));
    row(format!("a lookup, {} at a time", report.batch), ns(report.ns_batch));
    row("a lookup, memo empty".to_owned(), ns(report.ns_cold));
    row("pairs in the memo".to_owned(), format!("{} in {}", report.pairs, kib(report.memo_bytes)));
    row("an update of one rule".to_owned(), ns(report.update_ns));
    row("wrong".to_owned(), report.wrong.to_string());
    out.table(&table)?;
    Ok(())
}

fn kib(bytes: usize) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}
