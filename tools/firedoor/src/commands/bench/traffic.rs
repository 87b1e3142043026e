//! `firedoor bench traffic`: what the generators and sinks reach by themselves.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use firedoor_bench::traffic::reach::{self, Options, Pair, Report};
use firedoor_bench::traffic::search::{self, Throughput};

use crate::args::BenchTrafficArgs;
use crate::commands::lab::{interrupted, need_root};
use crate::output::{Cell, NO, Output, Table, Tone, YES};

pub(crate) fn run(args: &BenchTrafficArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    need_root("bench traffic")?;
    let interrupted = interrupted()?;
    let options = Options {
        frame: args.frame,
        flows: args.flows,
        rate: args.rate,
        duration: Duration::from_secs_f64(args.seconds),
        search: args.search.then(search::Options::default),
        seed: args.seed,
    };
    let report = reach::run(&options, &interrupted)?;
    if args.json {
        out.json(&report)?;
    } else {
        print(&report, out)?;
    }
    let complete = !interrupted.load(std::sync::atomic::Ordering::Relaxed);
    Ok(if complete { YES } else { NO })
}

fn print(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    let mut table =
        Table::new(["sent as", "counted in", ">sent/s", ">received/s", ">lost", ">without loss/s"]);
    for pair in &report.pairs {
        table.row(line(pair));
    }
    out.table(&table)?;
    if report.pairs.iter().any(|pair| pair.search.as_ref().is_some_and(|s| s.limited_by_generator))
    {
        writeln!(out, "\n≥: the generator offered no more.")?;
    }
    Ok(())
}

fn line(pair: &Pair) -> [Cell; 6] {
    let Pair { generator, sink, sent, received, search } = pair;
    let seconds = sent.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
    let lost = 100.0 * (1.0 - received.frames as f64 / sent.frames.max(1) as f64);
    [
        Cell::new(Tone::Strong, generator),
        (*sink).into(),
        million(sent.rate()).into(),
        Cell::new(Tone::Strong, million(received.frames as f64 / seconds)),
        format!("{lost:.2} %").into(),
        search.as_ref().map_or_else(String::new, without_loss).into(),
    ]
}

fn without_loss(search: &Throughput) -> String {
    match search.rate {
        None => "none".to_owned(),
        Some(rate) if search.limited_by_generator => format!("≥ {}", million(rate as f64)),
        Some(rate) => million(rate as f64),
    }
}

fn million(rate: f64) -> String {
    format!("{:.3} M", rate / 1e6)
}
