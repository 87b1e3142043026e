//! `firedoor ports`: every port, whether it is attached, and what passed it.

use std::process::ExitCode;

use firedoor_api::control::{Reply, Request};
use firedoor_api::dataplane::{PortState, PortStatus};
use firedoor_classifier::snapshot::Lane;
use serde::Serialize;

use super::ask::{ask, unexpected};
use crate::args::PortsArgs;
use crate::output::{Bytes, Cell, Count, Output, Table, Tone, YES};

pub(crate) fn run(args: &PortsArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let Reply::Ports(ports) = ask(&args.switch, &Request::Ports)? else {
        return Err(unexpected());
    };
    if args.json {
        out.json(&ports.iter().map(PortView::of).collect::<Vec<_>>())?;
        return Ok(YES);
    }
    out.table(&table(&ports))?;
    for port in &ports {
        port.notices.iter().for_each(|notice| out.note(format!("{}: {notice}", port.workload)));
    }
    Ok(YES)
}

/// What `--json` prints of each port.
#[derive(Serialize)]
pub(crate) struct PortView<'a> {
    workload: &'a str,
    port: u16,
    ifname: &'a str,
    state: &'static str,
    error: Option<&'a str>,
    lane: Lane,
    mode: &'a str,
    workers: &'a [u16],
    notices: &'a [String],
    rx_frames: u64,
    rx_bytes: u64,
    tx_frames: u64,
    tx_bytes: u64,
    drops: u64,
}

impl<'a> PortView<'a> {
    pub(crate) fn of(port: &'a PortStatus) -> Self {
        let counters = port.counters;
        Self {
            workload: &port.workload,
            port: port.port.0,
            ifname: &port.ifname,
            state: state_name(&port.state),
            error: match &port.state {
                PortState::Failed(why) => Some(why),
                _ => None,
            },
            lane: port.lane,
            mode: &port.mode,
            workers: &port.workers,
            notices: &port.notices,
            rx_frames: counters.rx_frames,
            rx_bytes: counters.rx_bytes,
            tx_frames: counters.tx_frames,
            tx_bytes: counters.tx_bytes,
            drops: counters.drops,
        }
    }
}

/// Ports and whether they are attached.
pub(crate) fn states(ports: &[PortStatus]) -> Table {
    let mut table = Table::new(["port", "interface", "state", "lane", "mode"]);
    for port in ports {
        table.row(identity(port));
    }
    table
}

/// Ports with their counters.
fn table(ports: &[PortStatus]) -> Table {
    let mut table = Table::new([
        "port",
        "interface",
        "state",
        "lane",
        "mode",
        ">rx frames",
        ">rx",
        ">tx frames",
        ">tx",
        ">drops",
    ]);
    for port in ports {
        let counters = port.counters;
        let counts = [
            Count(counters.rx_frames).to_string(),
            Bytes(counters.rx_bytes).to_string(),
            Count(counters.tx_frames).to_string(),
            Bytes(counters.tx_bytes).to_string(),
            Count(counters.drops).to_string(),
        ];
        table.row(identity(port).into_iter().chain(counts.map(Cell::from)));
    }
    table
}

fn identity(port: &PortStatus) -> [Cell; 5] {
    let state = match &port.state {
        PortState::Up => Cell::new(Tone::Good, "up"),
        PortState::Missing => Cell::new(Tone::Warn, "missing"),
        PortState::Failed(why) => Cell::new(Tone::Bad, format!("failed: {why}")),
    };
    let mode = match (port.mode.as_str(), port.workers.len()) {
        ("", _) => "-".to_owned(),
        (mode, 0 | 1) => mode.to_owned(),
        (mode, queues) => format!("{mode}, {queues} queues"),
    };
    [
        Cell::new(Tone::Strong, &port.workload),
        Cell::from(&port.ifname),
        state,
        // Which lane it gets is known when it is attached.
        Cell::from(if port.state == PortState::Up { lane_name(port.lane) } else { "-" }),
        Cell::from(mode),
    ]
}

fn state_name(state: &PortState) -> &'static str {
    match state {
        PortState::Up => "up",
        PortState::Missing => "missing",
        PortState::Failed(_) => "failed",
    }
}

/// A lane's name, as the config writes it.
pub(crate) fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Auto => "auto",
        Lane::Switch => "switch",
        Lane::Express => "express",
    }
}
