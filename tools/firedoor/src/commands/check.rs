//! `firedoor check`: does this config compile, and what is in it?

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;

use firedoor_classifier::snapshot::{Mode, RuleAction, Snapshot};
use firedoor_control::compile::Compiled;
use firedoor_control::diagnostic::{Diagnostics, Notice};
use serde::Serialize;

use super::source;
use crate::args::CheckArgs;
use crate::output::{NO, Output, Tone, YES};

pub(crate) fn run(args: &CheckArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let text = source::read(&args.config)?;
    match source::compile_text(&args.config, &text) {
        Ok(compiled) => {
            let summary = Summary::of(&compiled);
            if args.json {
                out.json(&Answer { compiles: true, errors: None, summary: Some(&summary) })?;
            } else {
                show(args, &summary, out)?;
            }
            Ok(YES)
        }
        Err(errors) => {
            if args.json {
                out.json(&Answer { compiles: false, errors: Some(&errors), summary: None })?;
            } else {
                write!(out, "{}", errors.render(out.colour()))?;
            }
            Ok(NO)
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    compiles: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<&'a Diagnostics>,
    #[serde(flatten)]
    summary: Option<&'a Summary<'a>>,
}

#[derive(Serialize)]
struct Summary<'a> {
    switch: &'a str,
    mode: Mode,
    workloads: usize,
    segments: usize,
    rules: Rules,
    next_expiry: Option<String>,
    notices: &'a [Notice],
}

#[derive(Default, Serialize)]
struct Rules {
    allow: usize,
    deny: usize,
    reject: usize,
    pass: usize,
    /// Those among the others that are recorded, not enforced.
    audit: usize,
}

impl<'a> Summary<'a> {
    fn of(compiled: &'a Compiled) -> Self {
        let snapshot = &compiled.snapshot;
        let segments: BTreeSet<_> = snapshot.workloads.iter().map(|w| w.tag).collect();
        Self {
            switch: &snapshot.switch,
            mode: snapshot.mode,
            workloads: snapshot.workloads.len(),
            segments: segments.len(),
            rules: Rules::of(snapshot),
            next_expiry: compiled.next_expiry.map(|day| day.to_string()),
            notices: &compiled.notices,
        }
    }
}

impl Rules {
    fn of(snapshot: &Snapshot) -> Self {
        let mut rules = Self::default();
        for rule in &snapshot.rules {
            *match rule.action {
                RuleAction::Allow => &mut rules.allow,
                RuleAction::Deny => &mut rules.deny,
                RuleAction::Reject => &mut rules.reject,
                RuleAction::Pass => &mut rules.pass,
            } += 1;
            rules.audit += usize::from(rule.audit);
        }
        rules
    }

    fn describe(&self) -> String {
        let Self { allow, deny, reject, pass, audit } = *self;
        let kinds = [(allow, "allow"), (deny, "deny"), (reject, "reject"), (pass, "pass")];
        let kinds = kinds.into_iter().filter(|(count, _)| *count > 0);
        let kinds: Vec<_> = kinds.map(|(count, kind)| format!("{count} {kind}")).collect();
        match (kinds.is_empty(), audit) {
            (true, _) => "0, so nothing is allowed".into(),
            (false, 0) => kinds.join(", "),
            (false, audit) => format!("{} ({audit} under audit)", kinds.join(", ")),
        }
    }
}

fn show(args: &CheckArgs, summary: &Summary<'_>, out: &mut Output) -> anyhow::Result<()> {
    let Summary { switch, mode, workloads, segments, rules, next_expiry, notices } = summary;
    let plural = if *segments == 1 { "" } else { "s" };
    let mode = match mode {
        Mode::Learn => "learn: nothing is blocked, conversations are recorded",
        Mode::Audit => "audit: nothing is blocked, what would be denied is recorded",
        Mode::Enforce => "enforce",
    };
    let title = out.paint(Tone::Good, format_args!("{} compiles", source::name(&args.config)));
    writeln!(out, "{title}")?;
    writeln!(out, "  switch     {switch}")?;
    writeln!(out, "  mode       {mode}")?;
    writeln!(out, "  workloads  {workloads} in {segments} segment{plural}")?;
    writeln!(out, "  rules      {}", rules.describe())?;
    if let Some(day) = next_expiry {
        writeln!(out, "  expiry     a rule ends on {day}")?;
    }
    notices.iter().for_each(|notice| out.note(notice));
    Ok(())
}
