//! `firedoor flows`: live connections and cached flows.

use std::net::IpAddr;
use std::process::ExitCode;

use firedoor_api::control::{Reply, Request};
use firedoor_api::dataplane::Flow;
use firedoor_classifier::snapshot::Service;
use firedoor_control::service;
use serde::Serialize;

use super::ask::{ask, unexpected};
use super::ports::lane_name;
use crate::args::FlowsArgs;
use crate::output::{Age, Bytes, Cell, Count, Output, Table, Tone, YES};

pub(crate) fn run(args: &FlowsArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let Reply::Flows(mut flows) = ask(&args.switch, &Request::Flows)? else {
        return Err(unexpected());
    };
    if let Some(workload) = &args.workload {
        flows.retain(|flow| flow.from == *workload || flow.to == *workload);
    }
    if args.json {
        out.json(&flows.iter().map(FlowView::of).collect::<Vec<_>>())?;
    } else if flows.is_empty() {
        out.note(match &args.workload {
            Some(workload) => {
                format!("no flow from or to {workload:?}: `firedoor ports` lists workloads")
            }
            None => "no flow: nothing was sent that policy could judge".to_owned(),
        });
    } else {
        out.table(&table(&flows))?;
    }
    Ok(YES)
}

/// What `--json` prints of each flow.
#[derive(Serialize)]
struct FlowView<'a> {
    service: String,
    #[serde(flatten)]
    flow: &'a Flow,
}

impl<'a> FlowView<'a> {
    fn of(flow: &'a Flow) -> Self {
        Self { service: service_of(flow), flow }
    }
}

fn table(flows: &[Flow]) -> Table {
    let mut table = Table::new([
        "kind", "from", "to", "service", "verdict", "rule", "state", "lane", ">frames", ">bytes",
        ">age", ">idle",
    ]);
    for flow in flows {
        // A cached flow knows when it was last used, and counts frames alone.
        let of_connection = |text: String| if flow.kind == "cached" { "-".into() } else { text };
        table.row([
            Cell::new(Tone::Dim, &flow.kind),
            Cell::from(end(&flow.from, flow.src, flow.src_port.filter(|_| has_ports(flow)))),
            Cell::from(end(&flow.to, flow.dst, None)),
            Cell::from(service_of(flow)),
            verdict(flow),
            Cell::from(&flow.rule),
            Cell::from(of_connection(flow.state.clone())),
            Cell::from(lane(flow)),
            Cell::from(Count(flow.frames)),
            Cell::from(of_connection(Bytes(flow.bytes).to_string())),
            Cell::from(of_connection(Age { ms: flow.age_ms }.to_string())),
            Cell::from(Age { ms: flow.idle_ms }),
        ]);
    }
    table
}

/// In the words of `trace` and `denies`.
fn verdict(flow: &Flow) -> Cell {
    match (flow.verdict.as_str(), flow.dropped) {
        ("allow", _) => Cell::new(Tone::Good, "allowed"),
        (reason, true) => Cell::new(Tone::Bad, format!("dropped: {reason}")),
        (reason, false) => Cell::new(Tone::Warn, format!("allowed, would be {reason}")),
    }
}

/// The lane, and why it is not the express lane where a port of it is on that.
fn lane(flow: &Flow) -> String {
    match (lane_name(flow.lane), flow.kept.as_str()) {
        (lane, "" | "switch-port") => lane.to_owned(),
        (lane, kept) => format!("{lane}: {kept}"),
    }
}

fn has_ports(flow: &Flow) -> bool {
    matches!(flow.protocol, 6 | 17 | 132)
}

/// One end: its name, and where it is known its address and port. Of an end that policy does not
/// know any more, the address is the name.
fn end(name: &str, address: Option<IpAddr>, port: Option<u16>) -> String {
    match (address, port) {
        (None, _) => name.to_owned(),
        (Some(address), None) if name == address.to_string() => name.to_owned(),
        (Some(address), None) => format!("{name} {address}"),
        (Some(IpAddr::V6(address)), Some(port)) => format!("{name} [{address}]:{port}"),
        (Some(address), Some(port)) => format!("{name} {address}:{port}"),
    }
}

/// The service, as the config writes it.
fn service_of(flow: &Flow) -> String {
    match flow.dst_port {
        Some(port) => service::conversation_text(flow.protocol, port),
        None if flow.protocol == 0 => "any".to_owned(),
        None => service::text(&Service::Protocol(flow.protocol)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::documented::assert_documented;
    use super::*;

    fn flow(verdict: &str, dropped: bool) -> Flow {
        Flow {
            kind: "connection".into(),
            from: "web".into(),
            to: "db".into(),
            protocol: 6,
            src: Some([10, 10, 0, 10].into()),
            dst: Some([10, 10, 0, 30].into()),
            src_port: Some(49_152),
            dst_port: Some(5_432),
            verdict: verdict.into(),
            dropped,
            rule: "default".into(),
            state: "established".into(),
            lane: firedoor_classifier::snapshot::Lane::Express,
            kept: String::new(),
            frames: 10,
            bytes: 9_000,
            age_ms: 1_500,
            idle_ms: 3,
        }
    }

    #[test]
    fn what_passes_is_never_called_dropped() {
        let flows = [("allow", false), ("default-deny", false), ("default-deny", true)];
        let text = table(&flows.map(|(verdict, dropped)| flow(verdict, dropped))).render(false);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].contains(" allowed "), "{text}");
        assert!(lines[2].contains(" allowed, would be default-deny "), "{text}");
        assert!(lines[3].contains(" dropped: default-deny "), "{text}");
    }

    #[test]
    fn json_has_the_documented_keys() {
        let json = serde_json::to_value(FlowView::of(&flow("allow", false))).unwrap();
        assert_documented("flows", &json);
    }
}
