//! `firedoor bench classify`: the ACL on ClassBench rules.

use std::io::Write;
use std::process::ExitCode;

use firedoor_bench::classify::{self, Options, Report};

use crate::args::BenchClassifyArgs;
use crate::output::{NO, Output, YES};

pub(crate) fn run(args: &BenchClassifyArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let report = classify::run(&Options {
        rules: args.rules.clone(),
        trace: args.trace.clone(),
        headers: args.headers as usize,
        batch: args.batch as usize,
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
    let Report { rules, headers, build_ms, ns_batch1, wrong, .. } = report;
    writeln!(out, "{rules} rules, compiled in {build_ms:.1} ms")?;
    writeln!(out, "{headers} headers, {ns_batch1:.1} ns each, one at a time")?;
    writeln!(out, "{wrong} wrong")?;
    Ok(())
}
