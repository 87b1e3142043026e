//! `firedoor connectivity`: who may reach whom on what, by policy.

use std::io::Write;
use std::process::ExitCode;

use firedoor_classifier::Policy;
use firedoor_classifier::snapshot::Mode;
use firedoor_control::connectivity::{Allowed, Pair, connectivity, ends};

use super::source;
use crate::args::ConnectivityArgs;
use crate::output::{Cell, Output, Table, Tone, YES};

/// Widest matrix that is still read as one where there is no terminal to say how wide it may be.
const MATRIX_WIDTH: usize = 110;

pub(crate) fn run(args: &ConnectivityArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let policy = source::policy(args.config.as_deref(), &args.switch, out)?;
    let pairs = connectivity(&policy);
    if args.json {
        out.json(&pairs)?;
        return Ok(YES);
    }
    if args.dot {
        write!(out, "{}", dot(&policy, &pairs))?;
        return Ok(YES);
    }
    let matrix = matrix(&policy, &pairs);
    let fits = match out.columns() {
        Some(columns) => matrix.least_width() <= columns,
        None => matrix.width() <= MATRIX_WIDTH,
    };
    // A wider one is listed pair by pair.
    if fits {
        out.table(&matrix)?;
    } else {
        out.table(&list(&pairs))?;
        out.note("what is not listed is denied");
    }
    if pairs.iter().flat_map(|pair| &pair.allowed).any(|allowed| allowed.audit.is_some()) {
        out.note("*: a rule under audit would refuse it");
    }
    if policy.mode() != Mode::Enforce {
        out.warn("the switch is not in enforce mode: nothing is blocked, whatever this says");
    }
    Ok(YES)
}

/// A row for each end that sends, a column for each that is reached.
fn matrix(policy: &Policy, pairs: &[Pair]) -> Table {
    let names: Vec<_> = ends(policy).iter().map(|end| end.name().to_owned()).collect();
    let headings = std::iter::once("from \\ to").chain(names.iter().map(String::as_str));
    let mut table = Table::with_headings(headings);
    for from in &names {
        let cells = names.iter().map(|to| {
            match pairs.iter().find(|pair| pair.from == *from && pair.to == *to) {
                None => Cell::from(""),
                Some(pair) if pair.allowed.is_empty() => Cell::new(Tone::Dim, "–"),
                Some(pair) => Cell::new(tone(&pair.allowed), services(&pair.allowed)),
            }
        });
        table.row(std::iter::once(Cell::new(Tone::Strong, from)).chain(cells));
    }
    table
}

/// A row for each pair that may talk.
fn list(pairs: &[Pair]) -> Table {
    let mut table = Table::new(["from", "to", "services", "rules"]);
    for pair in pairs.iter().filter(|pair| !pair.allowed.is_empty()) {
        let mut rules: Vec<_> = pair.allowed.iter().map(|allowed| allowed.rule.as_str()).collect();
        rules.dedup();
        table.row([
            Cell::new(Tone::Strong, &pair.from),
            Cell::new(Tone::Strong, &pair.to),
            Cell::new(tone(&pair.allowed), services(&pair.allowed)),
            Cell::new(Tone::Dim, rules.join(", ")),
        ]);
    }
    table
}

/// A graph for Graphviz. Names are quoted, so no name can end its string.
fn dot(policy: &Policy, pairs: &[Pair]) -> String {
    let mut text = format!(
        "digraph {:?} {{\n  rankdir = LR;\n  node [shape = box];\n",
        policy.snapshot().switch
    );
    for end in ends(policy) {
        text += &format!("  {:?};\n", end.name());
    }
    for pair in pairs.iter().filter(|pair| !pair.allowed.is_empty()) {
        let label = services(&pair.allowed);
        text += &format!("  {:?} -> {:?} [label = {label:?}];\n", pair.from, pair.to);
    }
    text + "}\n"
}

fn services(allowed: &[Allowed]) -> String {
    let text = |allowed: &Allowed| {
        let mark = if allowed.audit.is_some() { "*" } else { "" };
        let when = allowed.when.as_ref().map(|when| format!(" (when {when})"));
        format!("{}{mark}{}", allowed.service, when.unwrap_or_default())
    };
    allowed.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// Services that only audit keeps alive are marked with a star.
fn tone(allowed: &[Allowed]) -> Tone {
    if allowed.iter().any(|allowed| allowed.audit.is_some()) { Tone::Warn } else { Tone::Good }
}
