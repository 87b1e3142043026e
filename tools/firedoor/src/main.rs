//! The one executable: the roles (`run`, `dataplane`, `control`) and the command line.
//!
//! A command is a function from its [arguments](args) to an exit status that answers on an
//! [`Output`]. What it returns as an error is told here, once, with what to do about it.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod huge_pages;
mod output;
mod supervisor;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::FromArgMatches;
use tracing_subscriber::EnvFilter;

use crate::args::{BenchCommand, Cli, Command, PolicyCommand, PortCommand};
use crate::output::{Output, YES, failed};

/// The version, and the commit that it was built from where that is known.
const VERSION: &str = env!("FIREDOOR_VERSION");

fn main() -> ExitCode {
    let matches = args::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let mut out = Output::new();
    log_to_stderr(&cli.command, &out);
    if measures_in_process(&cli.command) {
        huge_pages::restart_with();
    }
    match dispatch(&cli.command, &mut out).and_then(|code| Ok(out.flush().map(|()| code)?)) {
        Ok(code) => code,
        // The reader, such as `head`, has all it wanted.
        Err(error) if is_broken_pipe(&error) => YES,
        Err(error) => {
            out.error(&error);
            failed()
        }
    }
}

fn dispatch(command: &Command, out: &mut Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(args) => commands::check::run(args, out),
        Command::Trace(args) => commands::trace::run(args, out),
        Command::Connectivity(args) => commands::connectivity::run(args, out),
        Command::Demo(args) => commands::demo::run(args, out),
        Command::Lab(command) => commands::lab::run(command, out),
        Command::Run(args) => commands::run::run(args, out),
        Command::Upgrade(args) => commands::upgrade::run(args, out),
        Command::Status(args) => commands::status::run(args, out),
        Command::Ports(args) => commands::ports::run(args, out),
        Command::Port(PortCommand::Add(args)) => commands::port::add(args, out),
        Command::Port(PortCommand::Del(args)) => commands::port::del(args, out),
        Command::Flows(args) => commands::flows::run(args, out),
        Command::Denies(args) => commands::denies::run(args, out),
        Command::Policy(PolicyCommand::Apply(args)) => commands::policy::apply(args, out),
        Command::Policy(PolicyCommand::Lint(args)) => commands::policy::lint(args, out),
        Command::Bench(BenchCommand::Classify(args)) => commands::bench::classify::run(args, out),
        Command::Bench(BenchCommand::Flows(args)) => commands::bench::flows::run(args, out),
        Command::Bench(BenchCommand::Compare(args)) => commands::bench::compare::run(args, out),
        Command::Bench(BenchCommand::Policy(args)) => commands::bench::policy::run(args, out),
        Command::Bench(BenchCommand::Replay(args)) => commands::bench::replay::run(args, out),
        Command::Bench(BenchCommand::Traffic(args)) => commands::bench::traffic::run(args, out),
        Command::Bench(BenchCommand::Tse(args)) => commands::bench::tse::run(args, out),
        Command::Completions(args) => commands::install::completions(args, out),
        Command::Man(args) => commands::install::man(args, out),
        Command::Bench(BenchCommand::Upgrade(args)) => commands::bench::upgrade::run(args, out),
        Command::Dataplane(args) => commands::role::dataplane(args),
        Command::Control(args) => commands::role::control(args),
    }
}

/// Whether the command measures here what the data plane does there.
fn measures_in_process(command: &Command) -> bool {
    let Command::Bench(command) = command else { return false };
    match command {
        BenchCommand::Classify(_)
        | BenchCommand::Flows(_)
        | BenchCommand::Policy(_)
        | BenchCommand::Replay(_)
        | BenchCommand::Tse(_) => true,
        BenchCommand::Compare(_) | BenchCommand::Traffic(_) | BenchCommand::Upgrade(_) => false,
    }
}

/// Sends log lines to standard error: a role's from level info on, else from warn on, unless
/// `FIREDOOR_LOG` says otherwise.
fn log_to_stderr(command: &Command, out: &Output) {
    let role = matches!(command, Command::Run(_) | Command::Dataplane(_) | Command::Control(_));
    let default = if role { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("FIREDOOR_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .compact()
        .with_ansi(out.stderr_colour())
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}
