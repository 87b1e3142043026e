//! `firedoor policy`: another policy in one atomic step, and what to mend before.

use std::io::Write;
use std::process::ExitCode;

use firedoor_api::control::Request;
use firedoor_control::lint;

use super::ask::change;
use super::source;
use crate::args::{PolicyApplyArgs, PolicyLintArgs};
use crate::output::{NO, Output, Tone, YES};

pub(crate) fn apply(args: &PolicyApplyArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let text = source::read(&args.config)?;
    let request = Request::Apply { path: source::name(&args.config), text };
    let (epoch, ports) = change(&args.switch, &request, out)?;
    let plural = if ports.len() == 1 { "" } else { "s" };
    writeln!(out, "epoch {epoch} is in force on {} port{plural}", ports.len())?;
    Ok(YES)
}

pub(crate) fn lint(args: &PolicyLintArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let (path, text) = (source::name(&args.config), source::read(&args.config)?);
    let findings = lint::lint(&path, &text, source::today())?;
    if args.json {
        out.json(&findings)?;
    } else if findings.is_empty() {
        writeln!(out, "{}", out.paint(Tone::Good, format_args!("nothing to mend in {path}")))?;
    } else {
        findings.iter().try_for_each(|finding| writeln!(out, "{finding}"))?;
    }
    Ok(if findings.is_empty() { YES } else { NO })
}
