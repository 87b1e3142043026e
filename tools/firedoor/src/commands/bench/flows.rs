//! `firedoor bench flows`: the connection table.

use std::io::Write;
use std::process::ExitCode;

use firedoor_bench::flows::{self, Flood, Options, Report};

use crate::args::BenchFlowsArgs;
use crate::output::{Bytes, Count, NO, Output, YES};

pub(crate) fn run(args: &BenchFlowsArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    if let Some(syns) = args.flood {
        return flood(args, syns, out);
    }
    if args.kernel {
        return kernel(args, out);
    }
    let options = Options { connections: args.connections, batch: args.batch.into() };
    let report = flows::measure(options);
    if args.json {
        out.json(&report)?;
    } else {
        print(&report, out)?;
    }
    Ok(YES)
}

fn print(report: &Report, out: &mut Output) -> anyhow::Result<()> {
    let batch = format!("{} at a time", report.batch);
    writeln!(out, "{} live connections", Count(report.connections.into()))?;
    for (what, batch, ns) in [
        ("hit", "one at a time", report.hit_ns_batch1),
        ("hit", batch.as_str(), report.hit_ns_batch),
        ("hit and observe", batch.as_str(), report.observe_ns_batch),
        ("miss", "one at a time", report.miss_ns_batch1),
        ("miss", batch.as_str(), report.miss_ns_batch),
        ("insert", "", report.insert_ns),
        ("expire", "", report.expire_ns),
    ] {
        writeln!(out, "{what:<16} {ns:>8.1} ns  {batch}")?;
    }
    writeln!(out, "{:<16} {:>8.1} us", "longest insert", report.insert_longest_us)?;
    writeln!(out, "{:<16} {:>8.1} bytes", "each takes", report.bytes_per_connection)?;
    let (cached, uncached) = (report.setups_per_sec / 1e6, report.setups_per_sec_uncached / 1e6);
    writeln!(out, "{:<16} {cached:>8.2} million/s under 1,000 rules", "set up")?;
    writeln!(out, "{:<16} {uncached:>8.2} million/s, asking the ACL for each", "set up")?;
    Ok(())
}

fn kernel(args: &BenchFlowsArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let report = flows::kernel(args.connections)?;
    if args.json {
        out.json(&report)?;
        return Ok(YES);
    }
    writeln!(out, "{} connections, each with two verdicts", Count(report.connections.into()))?;
    for (what, ns) in [
        ("install", report.install_ns),
        ("read counters", report.progress_ns),
        ("remove", report.remove_ns),
    ] {
        writeln!(out, "{what:<16} {ns:>8.1} ns a verdict")?;
    }
    let each = report.map_bytes as f64 / f64::from(report.connections.max(1));
    writeln!(out, "{:<16} {}", "in the kernel", Bytes(report.map_bytes))?;
    writeln!(out, "{:<16} {each:>8.1} bytes", "a connection")?;
    Ok(YES)
}

fn flood(args: &BenchFlowsArgs, syns: u64, out: &mut Output) -> anyhow::Result<ExitCode> {
    let report = flows::flood(args.connections, syns);
    if args.json {
        out.json(&report)?;
    } else {
        let &Flood { established, lost, handshakes, handshakes_lost, refused, syn_ns, .. } =
            &report;
        writeln!(out, "{} different SYNs from one port, {syn_ns:.0} ns each", Count(syns))?;
        writeln!(out, "{} of them refused", Count(refused))?;
        writeln!(out, "{} of {} established connections lost", Count(lost), Count(established))?;
        writeln!(out, "{} of {} new handshakes lost", Count(handshakes_lost), Count(handshakes))?;
    }
    Ok(if report.was_harmless() { YES } else { NO })
}
