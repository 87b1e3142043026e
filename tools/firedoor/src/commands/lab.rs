//! `firedoor lab`: whole networks from one config.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail};
use firedoor_control::rundir::RunDir;
use firedoor_lab::state::State;
use firedoor_lab::{Lab, LabError, Options};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::args::{LabCommand, LabDownArgs, LabExecArgs, LabListArgs, LabUpArgs, SwitchArgs};
use crate::output::{Cell, Output, Table, Tone, YES};

pub(crate) fn run(command: &LabCommand, out: &mut Output) -> anyhow::Result<ExitCode> {
    match command {
        LabCommand::Up(args) => up(args, out),
        LabCommand::Exec(args) => exec(args),
        LabCommand::Down(args) => down(args, out),
        LabCommand::List(args) => list(args, out),
    }
}

fn up(args: &LabUpArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    need_root("lab up")?;
    let spinner = spinner();
    let interrupted = interrupted()?;
    let options = Options {
        firedoor: std::env::current_exe().context("cannot find the firedoor executable")?,
        name: None,
        interrupted: &interrupted,
        progress: &|step| spinner.set_message(format!("building: {step}")),
    };
    let lab = Lab::up(&args.config, &options);
    spinner.finish_and_clear();
    let lab = shown(lab)?;

    let name = out.paint(Tone::Strong, lab.name());
    let epoch = lab.status()?.dataplane.map_or(0, |dataplane| dataplane.epoch);
    writeln!(out, "lab {name} is up, its policy in force (epoch {epoch})\n")?;
    let mut table = Table::new(["workload", "addresses"]);
    for host in lab.hosts() {
        let addresses: Vec<_> = host.addresses.iter().map(ToString::to_string).collect();
        table.row([Cell::new(Tone::Strong, &host.workload), addresses.join(" ").into()]);
    }
    out.table(&table)?;
    if let Some(host) = lab.hosts().first() {
        let (lab, workload) = (lab.name(), &host.workload);
        writeln!(out, "\nGet in, and remove it again, with")?;
        writeln!(out, "  firedoor lab exec --switch {lab} {workload} -- sh")?;
        writeln!(out, "  firedoor lab down --switch {lab}")?;
    }
    Ok(YES)
}

fn exec(args: &LabExecArgs) -> anyhow::Result<ExitCode> {
    need_root("lab exec")?;
    let lab = select(&args.switch)?;
    let (program, arguments) = args.command.split_first().context("give a command to run")?;
    // Does not return unless it failed.
    Err(lab.exec(&args.workload, program, arguments).into())
}

fn down(args: &LabDownArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    need_root("lab down")?;
    let labs = if args.all { Lab::list()? } else { vec![select(&args.switch)?] };
    for lab in labs {
        let name = lab.name().to_owned();
        lab.down()?;
        writeln!(out, "lab {} is removed", out.paint(Tone::Strong, name))?;
    }
    Ok(YES)
}

/// A lab as `--json` lists it.
#[derive(Serialize)]
struct Listed<'a> {
    running: bool,
    #[serde(flatten)]
    state: &'a State,
}

fn list(args: &LabListArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let labs = Lab::list()?;
    let listed: Vec<Listed<'_>> = labs
        .iter()
        .map(|lab| Listed { running: RunDir::of(lab.name()).is_running(), state: lab.state() })
        .collect();
    if args.json {
        out.json(&listed)?;
        return Ok(YES);
    }
    if listed.is_empty() {
        out.note("there is no lab; `firedoor lab up CONFIG` builds one");
        return Ok(YES);
    }
    let mut table = Table::new(["lab", "switch", ">containers", ">vms", "config"]);
    for Listed { running, state } in &listed {
        let switch = match running {
            true => Cell::new(Tone::Good, "running"),
            false => Cell::new(Tone::Bad, "stopped"),
        };
        table.row([
            Cell::new(Tone::Strong, &state.name),
            switch,
            state.namespaces.len().into(),
            state.taps.len().into(),
            state.config.display().into(),
        ]);
    }
    out.table(&table)?;
    Ok(YES)
}

/// The lab that is meant: the named one, or the only one.
fn select(args: &SwitchArgs) -> anyhow::Result<Lab> {
    if let Some(name) = &args.switch {
        return Ok(Lab::open(name)?);
    }
    let mut labs = Lab::list()?;
    if labs.len() > 1 {
        let names: Vec<_> = labs.iter().map(Lab::name).collect();
        bail!("several labs are up: choose one with --switch ({})", names.join(", "));
    }
    labs.pop().context("there is no lab: `firedoor lab up CONFIG` builds one")
}

/// Says early, and in one sentence, what would fail late and obscurely.
pub(crate) fn need_root(what: &str) -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "`firedoor {what}` works on network namespaces and XDP programs, which needs root: use sudo"
    );
}

/// Becomes true at the first Ctrl-C (or SIGTERM, SIGHUP), so that what was built is removed. The
/// second ends the process at once.
pub(crate) fn interrupted() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the second signal finds the flag set by the first.
        signal_hook::flag::register_conditional_shutdown(signal, 2, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// Something that moves on a terminal's standard error while there is nothing else to see.
pub(crate) fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        spinner.set_style(style);
    }
    if std::io::stderr().is_terminal() {
        spinner.enable_steady_tick(Duration::from_millis(100));
    }
    spinner
}

/// A config's errors are shown with the places they are at; others as any error.
pub(crate) fn shown<T>(result: Result<T, LabError>) -> anyhow::Result<T> {
    result.map_err(|error| match error {
        LabError::Config(diagnostics) => (*diagnostics).into(),
        error => error.into(),
    })
}
