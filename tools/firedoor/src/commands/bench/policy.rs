//! `firedoor bench policy`: a large policy on its way into force.

use std::process::ExitCode;

use firedoor_bench::policy::{self, Report};

use crate::args::BenchPolicyArgs;
use crate::output::{Bytes, Cell, Output, Table, YES};

pub(crate) fn run(args: &BenchPolicyArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let report = policy::run(args.rules as usize)?;
    if args.json {
        out.json(&report)?;
    } else {
        print(&report, out)?;
    }
    Ok(YES)
}

fn print(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    let mut table = Table::new(["measured", ">value"]);
    let mut row = |what: &str, how_much: String| table.row([Cell::from(what), how_much.into()]);
    let ms = |ms: f64| format!("{ms:.0} ms");
    let bytes = |bytes: usize| Bytes(bytes as u64).to_string();
    row("rules", report.rules.to_string());
    row("the config", bytes(report.text_bytes));
    row("the snapshot", bytes(report.snapshot_bytes));
    row("the compiled rules", bytes(report.acl_bytes));
    row("from text to snapshot", ms(report.compile_ms));
    row("saving what is applied", ms(report.save_ms));
    row("snapshot to message", ms(report.encode_ms));
    row("message to snapshot", ms(report.decode_ms));
    row("compiling it for judging", ms(report.build_ms));
    row("all", ms(report.total_ms));
    out.table(&table)?;
    Ok(())
}
