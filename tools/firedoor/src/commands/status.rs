//! `firedoor status`: the switch as a whole.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use firedoor_api::control::{Reply, Request, Status};
use firedoor_api::dataplane::{AwakeStatus, ExpressStatus, Status as DataplaneStatus};
use firedoor_classifier::snapshot::{Settings, Timeouts};
use firedoor_classifier::verdict::DropReason;
use serde::Serialize;

use super::ask::{ask, unexpected};
use super::mode_name;
use super::ports::{self, PortView};
use crate::args::StatusArgs;
use crate::output::{Age, Count, NO, Output, Table, Tone, YES};

pub(crate) fn run(args: &StatusArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let Reply::Status(status) = ask(&args.switch, &Request::Status)? else {
        return Err(unexpected());
    };
    if args.json {
        out.json(&StatusView::of(&status))?;
    } else {
        show(&status, args.all, out)?;
    }
    let is_well = status.dataplane.is_some_and(|dataplane| dataplane.epoch > 0);
    Ok(if is_well { YES } else { NO })
}

/// What `--json` prints.
#[derive(Serialize)]
struct StatusView<'a> {
    switch: &'a str,
    mode: firedoor_classifier::snapshot::Mode,
    epoch: u64,
    roles: Roles<'a>,
    ports: Vec<PortView<'a>>,
    frames: Frames,
    verdicts: Verdicts,
    connections: Connections,
    express: Option<ExpressStatus>,
    awake: Option<&'a AwakeStatus>,
    drops: BTreeMap<&'static str, u64>,
    would_drops: BTreeMap<&'static str, u64>,
    mirror: Mirror<'a>,
    settings: Settings,
}

#[derive(Serialize)]
struct Roles<'a> {
    dataplane: Role<'a>,
    control: Role<'a>,
}

#[derive(Serialize)]
struct Role<'a> {
    alive: bool,
    version: Option<&'a str>,
    pid: Option<u32>,
    uptime_secs: Option<u64>,
}

#[derive(Serialize)]
struct Frames {
    received: u64,
    sent: u64,
    dropped: u64,
    checksums_completed: u64,
    mac_moves: u64,
    umem: u32,
    leaked: u64,
}

#[derive(Serialize)]
struct Verdicts {
    connection: u64,
    cache: u64,
    upcall: u64,
}

#[derive(Serialize)]
struct Connections {
    live: u64,
    max: u64,
}

#[derive(Serialize)]
struct Mirror<'a> {
    capture: &'a str,
    captured: u64,
    capture_lost: u64,
    mirrored: u64,
    mirror_lost: u64,
}

impl<'a> StatusView<'a> {
    fn of(status: &'a Status) -> Self {
        let known = status.dataplane.as_ref();
        let absent = DataplaneStatus::default();
        let dataplane = known.unwrap_or(&absent);
        Self {
            switch: &status.switch,
            mode: status.mode,
            epoch: dataplane.epoch,
            roles: Roles {
                dataplane: Role {
                    alive: known.is_some(),
                    version: known.map(|d| d.version.as_str()),
                    pid: known.map(|d| d.pid),
                    uptime_secs: known.map(|d| d.uptime_secs),
                },
                control: Role {
                    alive: true,
                    version: Some(&status.control_version),
                    pid: Some(status.control_pid),
                    uptime_secs: Some(status.control_uptime_secs),
                },
            },
            ports: status.ports.iter().map(PortView::of).collect(),
            frames: Frames {
                received: dataplane.received,
                sent: dataplane.sent,
                dropped: total(&dataplane.drops),
                checksums_completed: dataplane.checksums_completed,
                mac_moves: dataplane.mac_moves,
                umem: dataplane.frames,
                leaked: dataplane.frames_leaked,
            },
            verdicts: Verdicts {
                connection: dataplane.connection_hits,
                cache: dataplane.cache_hits,
                upcall: dataplane.upcalls,
            },
            connections: Connections {
                live: dataplane.connections,
                max: dataplane.max_connections,
            },
            express: dataplane.express,
            awake: known.and_then(|d| d.awake.as_ref()),
            drops: by_slug(&dataplane.drops),
            would_drops: by_slug(&dataplane.would_drops),
            mirror: Mirror {
                capture: &status.capture,
                captured: status.captured,
                capture_lost: status.capture_lost,
                mirrored: dataplane.mirrored,
                mirror_lost: dataplane.mirror_lost,
            },
            settings: status.settings,
        }
    }
}

/// Every reason, also those with a count of zero: scripts rely on the keys.
fn by_slug(counts: &[(DropReason, u64)]) -> BTreeMap<&'static str, u64> {
    DropReason::ALL.iter().map(|&reason| (reason.slug(), count(counts, reason))).collect()
}

fn count(counts: &[(DropReason, u64)], reason: DropReason) -> u64 {
    counts.iter().filter(|(r, _)| *r == reason).map(|(_, n)| n).sum()
}

fn total(counts: &[(DropReason, u64)]) -> u64 {
    counts.iter().map(|(_, n)| n).sum()
}

fn show(status: &Status, all: bool, out: &mut Output) -> anyhow::Result<()> {
    let mode = mode_name(status.mode);
    let epoch = match status.dataplane.as_ref().map(|dataplane| dataplane.epoch) {
        Some(0) => out.paint(Tone::Bad, "no policy in force"),
        Some(epoch) => format!("epoch {epoch}"),
        None => out.paint(Tone::Bad, "epoch unknown"),
    };
    let switch = out.paint(Tone::Strong, &status.switch);
    writeln!(out, "switch {switch}: mode {mode}, {epoch}")?;
    writeln!(out)?;
    let up = Age { ms: status.control_uptime_secs * 1_000 };
    let alive = out.paint(Tone::Good, "alive");
    match &status.dataplane {
        Some(dataplane) => show_dataplane(dataplane, out)?,
        None => {
            let dead = out.paint(Tone::Bad, "no answer");
            writeln!(
                out,
                "data plane   {dead}: if it has ended, `firedoor run` says why and restarts it"
            )?;
        }
    }
    writeln!(out, "control      {alive}, process {}, up {up}", status.control_pid)?;
    show_version(status, out)?;
    show_mirror(status, out)?;
    show_settings(&status.settings, out)?;

    writeln!(out)?;
    out.table(&ports::states(&status.ports))?;
    if let Some(dataplane) = &status.dataplane {
        let enforced = drops(&dataplane.drops, "dropped", all);
        let recorded = drops(&dataplane.would_drops, "would be dropped", false);
        for table in [enforced, recorded].into_iter().filter(|table| !table.is_empty()) {
            writeln!(out)?;
            out.table(&table)?;
        }
    }
    Ok(())
}

/// The version that runs; both, if control and data plane are not of the same.
fn show_version(status: &Status, out: &mut Output) -> anyhow::Result<()> {
    let control = &status.control_version;
    match status.dataplane.as_ref().map(|dataplane| &dataplane.version) {
        Some(dataplane) if dataplane != control => {
            let both = format!("data plane {dataplane}, control {control}");
            writeln!(out, "version      {}", out.paint(Tone::Warn, both))?;
        }
        _ => writeln!(out, "version      {control}")?,
    }
    Ok(())
}

fn show_dataplane(dataplane: &DataplaneStatus, out: &mut Output) -> anyhow::Result<()> {
    let DataplaneStatus { pid, workers, .. } = dataplane;
    let up = Age { ms: dataplane.uptime_secs * 1_000 };
    let alive = out.paint(Tone::Good, "alive");
    let s = if *workers == 1 { "" } else { "s" };
    writeln!(out, "data plane   {alive}, process {pid}, up {up}, {workers} worker{s}")?;
    writeln!(
        out,
        "frames       {} received, {} sent, {} dropped",
        Count(dataplane.received),
        Count(dataplane.sent),
        Count(total(&dataplane.drops))
    )?;
    if *workers > 1 {
        let [received, connections] = [&dataplane.received_by, &dataplane.connections_by]
            .map(|by| by.iter().map(|&n| Count(n).to_string()).collect::<Vec<_>>().join(", "));
        writeln!(out, "by worker    {received} received, {connections} connections")?;
    }
    writeln!(
        out,
        "verdicts     {} by connection, {} by flow cache, {} by upcall",
        Count(dataplane.connection_hits),
        Count(dataplane.cache_hits),
        Count(dataplane.upcalls)
    )?;
    writeln!(
        out,
        "connections  {} of {}",
        Count(dataplane.connections),
        Count(dataplane.max_connections)
    )?;
    if let Some(express) = &dataplane.express {
        show_express(express, out)?;
    }
    if let Some(awake) = &dataplane.awake {
        writeln!(out, "processors   {}", processors(awake, out))?;
    }
    let leaked = match dataplane.frames_leaked {
        0 => "none leaked".to_owned(),
        leaked => out.paint(Tone::Bad, format!("{} leaked: please report it", Count(leaked))),
    };
    writeln!(out, "umem         {} frames, {leaked}", Count(dataplane.frames.into()))?;
    writeln!(
        out,
        "besides      {} checksums completed, {} MAC addresses moved",
        Count(dataplane.checksums_completed),
        Count(dataplane.mac_moves)
    )?;
    Ok(())
}

fn show_express(express: &ExpressStatus, out: &mut Output) -> anyhow::Result<()> {
    let fate = if express.pinned {
        "pinned: they outlive the data plane".to_owned()
    } else {
        out.paint(Tone::Warn, "not pinned: they end with the data plane")
    };
    writeln!(
        out,
        "express      {} of {} flows in the kernel, heartbeat {} ms ago;\n             {fate}",
        Count(express.flows),
        Count(express.max_flows),
        Count(express.heartbeat_ms),
    )?;
    Ok(())
}

/// Whether processors are kept awake, and why not.
fn processors(awake: &AwakeStatus, out: &Output) -> String {
    match awake {
        AwakeStatus { problem: Some(problem), .. } => {
            out.paint(Tone::Warn, format!("sleep as they like: {problem}"))
        }
        AwakeStatus { held: true, within_us, .. } => {
            format!("kept awake: frames come often, and each wakes within {within_us} µs")
        }
        _ => "sleep as they like: few frames come".to_owned(),
    }
}

fn show_mirror(status: &Status, out: &mut Output) -> anyhow::Result<()> {
    let mirror_lost = status.dataplane.as_ref().map_or(status.mirror_lost, |d| d.mirror_lost);
    let lost = match (mirror_lost, status.capture_lost) {
        (0, 0) => "none lost".to_owned(),
        (mirror, capture) => {
            let lost = format!(
                "{} lost to rate limit or full queue, {} that could not be written",
                Count(mirror),
                Count(capture)
            );
            out.paint(Tone::Warn, lost)
        }
    };
    let s = if status.captured == 1 { "" } else { "s" };
    writeln!(out, "mirror       {} frame{s} captured, {lost}", Count(status.captured))?;
    writeln!(out, "capture      {}", status.capture)?;
    Ok(())
}

fn show_settings(settings: &Settings, out: &mut Output) -> anyhow::Result<()> {
    let Timeouts {
        tcp_handshake,
        tcp_established,
        tcp_closing,
        tcp_time_wait,
        tcp_reset,
        udp_single,
        udp_both,
        icmp,
        other,
    } = settings.timeouts;
    writeln!(
        out,
        "limits       {} connections and {} upcalls/s a port;\n             \
         {} flows cached and {} fragments waiting a worker;\n             \
         {} frames/s mirrored a worker, {} bytes of each",
        Count(settings.max_connections_per_port.into()),
        Count(settings.upcalls_per_sec.into()),
        Count(settings.max_flows.into()),
        Count(settings.max_fragments.into()),
        Count(settings.mirror_per_sec.into()),
        settings.mirror_snaplen
    )?;
    writeln!(
        out,
        "timeouts     tcp {tcp_handshake} s handshake, {tcp_established} s established, \
         {tcp_closing} s closing,\n             {tcp_time_wait} s time-wait, {tcp_reset} s reset; \
         udp {udp_single} s one way, {udp_both} s both ways;\n             icmp {icmp} s; \
         other {other} s; MAC address {} s; fragments {} s;\n             express lane {} s without a \
         data plane",
        settings.mac_ageing_secs, settings.fragment_timeout_secs, settings.express_grace_secs
    )?;
    Ok(())
}

/// The reasons that frames were dropped for, or all reasons, the most frequent first.
fn drops(counts: &[(DropReason, u64)], heading: &str, all: bool) -> Table {
    let mut table = Table::with_headings([heading, ">frames", "because"]);
    let reasons = DropReason::ALL.iter().map(|&reason| (reason, count(counts, reason)));
    let mut reasons: Vec<_> = reasons.filter(|&(_, n)| all || n > 0).collect();
    reasons.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
    for (reason, n) in reasons {
        table.row([reason.slug().to_owned(), Count(n).to_string(), reason.explain().to_owned()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTS: &[(DropReason, u64)] =
        &[(DropReason::DefaultDeny, 3), (DropReason::SpoofedArp, 1_234)];

    #[test]
    fn every_reason_has_a_key_and_with_all_a_line() {
        let slugs = by_slug(COUNTS);
        assert_eq!(slugs.len(), DropReason::COUNT);
        assert_eq!((slugs["default-deny"], slugs["spoofed-arp"], slugs["denied"]), (3, 1_234, 0));

        let text = drops(COUNTS, "dropped", true).render(false);
        assert_eq!(text.lines().count(), 1 + DropReason::COUNT);
        let text = drops(COUNTS, "dropped", false).render(false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("spoofed-arp ") && lines[1].contains(" 1,234 "), "{text}");
        assert!(lines[2].starts_with("default-deny ") && lines[2].contains(" 3 "), "{text}");
    }
}
