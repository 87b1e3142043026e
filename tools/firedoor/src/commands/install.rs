//! `firedoor completions` and `firedoor man`: what an installation has beside the executable, made from the
//! command tree, so that it never lags behind.

use std::fs;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::output::{Output, YES};

/// The executable's name.
const NAME: &str = "firedoor";

pub(crate) fn completions(args: &CompletionsArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    // It panics if it cannot write, as into a pipe that nobody reads any more.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    out.write_all(&script)?;
    Ok(YES)
}

pub(crate) fn man(args: &ManArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let directory = args.directory.display();
    let cannot = || format!("cannot write manual pages to {directory}: name another directory");
    fs::create_dir_all(&args.directory).with_context(cannot)?;
    clap_mangen::generate_to(Cli::command(), &args.directory).with_context(cannot)?;
    writeln!(out, "manual pages are in {directory}: `man {directory}/{NAME}.1` shows the first")?;
    Ok(YES)
}
