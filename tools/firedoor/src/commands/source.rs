//! Where a command takes its policy from: a config file, or the running switch.

use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use firedoor_control::compile::{Compiled, compile};
use firedoor_control::diagnostic::Diagnostics;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// The text of a config; `-` is standard input.
pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .context("cannot read a config from standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}: give the path of a config file", path.display()))
}

/// Compiles a config as it holds today.
pub(crate) fn compile_text(path: &Path, text: &str) -> Result<Compiled, Diagnostics> {
    compile(&path.display().to_string(), text, None, today())
}

/// Rules expire in UTC, so that a host's time zone does not change its policy.
fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}
