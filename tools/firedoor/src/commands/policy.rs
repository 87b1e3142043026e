//! `firedoor policy apply`: another policy in one atomic step.

use std::io::Write;
use std::process::ExitCode;

use firedoor_api::control::Request;

use super::ask::change;
use super::source;
use crate::args::PolicyApplyArgs;
use crate::output::{Output, YES};

pub(crate) fn apply(args: &PolicyApplyArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let text = source::read(&args.config)?;
    let request = Request::Apply { path: args.config.display().to_string(), text };
    let (epoch, ports) = change(&args.switch, &request, out)?;
    let plural = if ports.len() == 1 { "" } else { "s" };
    writeln!(out, "epoch {epoch} is in force on {} port{plural}", ports.len())?;
    Ok(YES)
}
