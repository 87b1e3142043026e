//! `firedoor bench tse`: tuple space explosion.

use std::io::Write;
use std::process::ExitCode;

use firedoor_bench::tse::{self, AttackReport, Options};

use crate::args::BenchTseArgs;
use crate::output::{Bytes, Cell, Count, NO, Output, Table, Tone, YES};

/// Most masks that there may be, whoever sends what.
const MASKS: usize = 64;

pub(crate) fn run(args: &BenchTseArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let report = tse::run(&Options { traces: args.traces.clone() })?;
    if args.json {
        out.json(&report)?;
    } else {
        for attack in &report.attacks {
            show(attack, out)?;
        }
    }
    Ok(if report.holds(MASKS) { YES } else { NO })
}

fn show(attack: &AttackReport, out: &mut Output) -> anyhow::Result<()> {
    let AttackReport { name, rules, frames, masks, entries, bytes, .. } = attack;
    let count = |n: usize| Count(n as u64);
    writeln!(
        out,
        "{}: {} frames against {rules} rules",
        out.paint(Tone::Good, name),
        count(*frames)
    )?;
    writeln!(
        out,
        "  {masks} masks, {} flows in {}; {:.0} ns a frame, {} upcalls/s, {} refused",
        count(*entries),
        Bytes(*bytes as u64),
        attack.frame_ns,
        Count(attack.upcalls_per_sec as u64),
        count(attack.refused),
    )?;
    let mut table = Table::new(["  beside it", ">quiet ns", ">attacked ns", ">ratio", ">lost"]);
    for victim in &attack.victims {
        table.row([
            Cell::from(format!("  {}", victim.name)),
            Cell::from(format!("{:.0}", victim.quiet_ns)),
            Cell::from(format!("{:.0}", victim.attacked_ns)),
            Cell::from(format!("{:.2}", victim.ratio)),
            Cell::new(if victim.lost > 0 { Tone::Bad } else { Tone::Plain }, count(victim.lost)),
        ]);
    }
    out.table(&table)?;
    writeln!(out)?;
    Ok(())
}
