//! `firedoor trace`: what becomes of one hypothetical frame, step by step, and which rule it is
//! that decides.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use firedoor_classifier::snapshot::{Mode, RuleAction, Service, Services};
use firedoor_control::condition;
use firedoor_control::service::{self, ServiceError};
use firedoor_control::trace::{Beginning, Question, RulePart, Trace, What, trace};

use super::source;
use crate::args::{Family, TraceArgs};
use crate::output::{Cell, NO, Output, Table, Tone, YES};

pub(crate) fn run(args: &TraceArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let policy = Arc::new(source::policy(args.config.as_deref(), &args.switch, out)?);
    let what = what(&args.service)?;
    let common = Beginning::default();
    let question = Question {
        from: &args.from,
        to: &args.to,
        what,
        v4: args.family.map(|family| family == Family::V4),
        begins: Beginning {
            source_port: args.source_port.unwrap_or(common.source_port),
            flags: args.flags.unwrap_or(common.flags),
        },
    };
    let trace = trace(&policy, &question)?;
    if args.json {
        out.json(&trace)?;
    } else {
        show(&trace, out)?;
    }
    if policy.mode() != Mode::Enforce && trace.forwarded && trace.reason.is_some() {
        out.warn("forwarded only because the switch is not in enforce mode");
    }
    Ok(if trace.forwarded { YES } else { NO })
}

/// What a single frame is.
fn what(text: &str) -> anyhow::Result<What> {
    match (text, text.strip_prefix("ethertype/")) {
        ("arp", _) => Ok(What::Arp),
        ("nd", _) => Ok(What::Nd),
        (_, Some(number)) => match condition::ether_type(number) {
            Ok(number) if condition::is_ip(number) => {
                bail!("what a frame of {text} begins is a service: choose one, as tcp/8080")
            }
            Ok(number) => Ok(What::EtherType(number)),
            Err(error) => bail!("{text:?} is not a frame: {error}: {}", error.help()),
        },
        (_, None) => Ok(What::Service(one_service(text)?)),
    }
}

/// The service of a single frame.
fn one_service(text: &str) -> anyhow::Result<Service> {
    let services = service::parse(text)
        .map_err(|error| anyhow!("{text:?} is not a service: {error}: {}", error.help()))?;
    match services {
        Services::Only(services) => match services[..] {
            [Service::Ports { first, last, .. }] if first != last => {
                bail!("{text} is a range of ports, and a frame has one: choose a port of it")
            }
            [service] => Ok(service),
            _ => bail!("{text} is not one service: {}", ServiceError::Protocol.help()),
        },
        Services::Any => bail!("a frame has one service: choose one, as tcp/8080"),
    }
}

fn show(trace: &Trace, out: &mut Output) -> anyhow::Result<()> {
    let Trace { from, to, service, src, dst, .. } = trace;
    let title = out.paint(Tone::Strong, format_args!("{service} from {from} to {to}"));
    match (src, dst) {
        (Some(src), Some(dst)) => writeln!(out, "{title}  {src} to {dst}\n")?,
        _ => writeln!(out, "{title}\n")?,
    }

    let width = trace.steps.iter().map(|step| step.step.len()).max().unwrap_or_default();
    for (number, step) in (1..).zip(&trace.steps) {
        for (i, fact) in step.facts.iter().enumerate() {
            if i == 0 {
                let name = out.paint(Tone::Dim, format_args!("{:width$}", step.step));
                writeln!(out, "{number:>2}  {name}  {fact}")?;
            } else {
                writeln!(out, "    {:width$}  {fact}", "")?;
            }
        }
    }
    if !trace.rules.is_empty() {
        writeln!(out)?;
        out.table(&rules(&trace.rules))?;
    }
    let (tone, word) = match (trace.forwarded, trace.reason) {
        (true, None) => (Tone::Good, "allowed".to_owned()),
        (true, Some(reason)) => (Tone::Warn, format!("allowed, but would be dropped as {reason}")),
        (false, reason) => (Tone::Bad, format!("dropped as {}", reason.unwrap_or("unknown"))),
    };
    let word = out.paint(tone, word);
    let by = match trace.cause.as_str() {
        "default" => ": no rule allows it".to_owned(),
        "switch" => " by the switch".to_owned(),
        rule => format!(" by rule {rule}"),
    };
    writeln!(out, "\n{word}{by}")?;
    Ok(())
}

fn rules(parts: &[RulePart]) -> Table {
    let headings = ["rule", "action", "tier", ">priority", "may send", "may receive", "when"];
    // Few policies ask for more than ends and services.
    let width = headings.len() - usize::from(parts.iter().all(|part| part.when.is_empty()));
    let mut table = Table::with_headings(headings.into_iter().take(width));
    for part in parts {
        let tone = match (part.decides, part.action) {
            (false, _) => Tone::Dim,
            (true, RuleAction::Allow) => Tone::Good,
            (true, _) => Tone::Bad,
        };
        let cells = [
            part.rule.clone(),
            format!("{:?}", part.action).to_lowercase(),
            part.tier.clone(),
            part.priority.to_string(),
            part.send.to_owned(),
            part.receive.to_owned(),
            part.when.clone(),
        ];
        table.row(cells.into_iter().take(width).map(|text| Cell::new(tone, text)));
    }
    table
}
