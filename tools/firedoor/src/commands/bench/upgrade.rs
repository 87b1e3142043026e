//! `firedoor bench upgrade`: what clients notice while one data plane takes another one's place.

use std::env;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::Context;
use firedoor_bench::upgrade::{self, Change, Options, Report};

use crate::args::BenchUpgradeArgs;
use crate::commands::lab::{interrupted, need_root};
use crate::output::{Cell, Count, NO, Output, Table, YES};

pub(crate) fn run(args: &BenchUpgradeArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    need_root("bench upgrade")?;
    let interrupted = interrupted()?;
    let firedoor = match &args.program {
        Some(program) => program.clone(),
        None => env::current_exe().context("cannot tell which program this is")?,
    };
    let BenchUpgradeArgs { connections, rules, rounds, .. } = *args;
    let options = Options { firedoor, connections, rules, rounds, interrupted: &interrupted };
    let report = upgrade::run(&options)?;
    if args.json {
        out.json(&report)?;
    } else {
        print(&report, out)?;
    }
    Ok(if interrupted.load(Ordering::Relaxed) { NO } else { YES })
}

fn print(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    let Report { connections, rules, changes } = report;
    let live = Count((*connections).into());
    writeln!(out, "{live} live connections, {rules} rules; each client asks every millisecond")?;
    for change in changes {
        writeln!(out)?;
        show(change, out)?;
    }
    Ok(())
}

fn show(change: &Change, out: &mut Output) -> anyhow::Result<()> {
    let Change { how, blackout_ms, steps, noticed } = change;
    match blackout_ms {
        Some(ms) => writeln!(out, "{how}: nothing was judged for {ms:.1} ms, steps {steps}")?,
        None => writeln!(out, "{how}: steps {steps}")?,
    }
    let mut table = Table::new(["client", ">asked", ">lost", ">late", ">longest", ">gap"]);
    for client in noticed {
        let ms = |ms: f64| Cell::from(format!("{ms:.1} ms"));
        let count = |count: usize| Cell::from(count.to_string());
        table.row([
            Cell::from(client.name),
            count(client.asked),
            count(client.lost),
            count(client.late),
            ms(client.longest_ms),
            ms(client.gap_ms),
        ]);
    }
    Ok(out.table(&table)?)
}
