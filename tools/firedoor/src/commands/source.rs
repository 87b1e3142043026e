//! Where a command takes its policy from: a config file, or the running switch.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use firedoor_api::control::{Reply, Request};
use firedoor_classifier::{Policy, Snapshot};
use firedoor_control::compile::{Compiled, compile};
use firedoor_control::diagnostic::Diagnostics;
use firedoor_control::intent;
use firedoor_control::rundir::RunDirError;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::ask::{ask, unexpected};
use crate::args::SwitchArgs;
use crate::output::Output;

/// Whether a config's path means standard input.
fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// What a config is called in messages.
pub(crate) fn name(path: &Path) -> String {
    if is_stdin(path) { "<stdin>".to_owned() } else { path.display().to_string() }
}

/// The text of a config; `-` is standard input.
pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    if is_stdin(path) {
        return intent::read(io::stdin()).context("cannot read a config from standard input");
    }
    File::open(path)
        .and_then(intent::read)
        .with_context(|| format!("cannot read {}: give the path of a config file", name(path)))
}

/// Compiles a config as it holds today.
pub(crate) fn compile_text(path: &Path, text: &str) -> Result<Compiled, Diagnostics> {
    compile(&name(path), text, None, today())
}

/// Rules expire in UTC, so that a host's time zone does not change its policy.
pub(crate) fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}

/// The policy of a config or, without one, the policy that a running switch enforces.
pub(crate) fn policy(
    config: Option<&Path>,
    switch: &SwitchArgs,
    out: &mut Output,
) -> anyhow::Result<Policy> {
    let snapshot = match config {
        Some(path) => {
            let Compiled { snapshot, notices, .. } = compile_text(path, &read(path)?)?;
            notices.iter().for_each(|notice| out.note(notice));
            snapshot
        }
        None => running(switch).map_err(|error| match error.downcast_ref() {
            Some(RunDirError::NoneRunning { .. }) => {
                error.context("no policy to look at: name a config file, or start a switch")
            }
            _ => error,
        })?,
    };
    Ok(Policy::build(snapshot)?)
}

fn running(switch: &SwitchArgs) -> anyhow::Result<Snapshot> {
    match ask(switch, &Request::Snapshot)? {
        Reply::Snapshot(Some(snapshot)) => Ok(*snapshot),
        Reply::Snapshot(None) => {
            bail!("the switch enforces no policy yet: `firedoor status` may say why")
        }
        _ => Err(unexpected()),
    }
}
