//! `firedoor bench upgrade`: what clients notice while one data plane takes another one's place.

use std::env;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use firedoor_bench::upgrade::{self, Change, Options};

use crate::args::BenchUpgradeArgs;
use crate::output::{Cell, Count, Output, Table, YES};

pub(crate) fn run(args: &BenchUpgradeArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let firedoor = match &args.program {
        Some(program) => program.clone(),
        None => env::current_exe().context("cannot tell which program this is")?,
    };
    let BenchUpgradeArgs { connections, rules, rounds, .. } = *args;
    let report = upgrade::run(&Options { firedoor, connections, rules, rounds })?;
    if args.json {
        out.json(&report)?;
        return Ok(YES);
    }
    let live = Count(connections.into());
    writeln!(out, "{live} live connections, {rules} rules; each client asks every millisecond")?;
    for change in &report.changes {
        writeln!(out)?;
        show(change, out)?;
    }
    Ok(YES)
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
