//! `firedoor run`: the switch in the foreground, both its roles supervised.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use anyhow::{Context, bail};
use firedoor_api::control::Status;
use firedoor_control::rundir::RunDir;
use nix::sched::{CloneFlags, setns};
use nix::unistd::Uid;

use super::{mode_name, ports, source};
use crate::args::RunArgs;
use crate::output::{Output, Tone, YES, failed};
use crate::supervisor::Supervisor;

pub(crate) fn run(args: &RunArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    // Before any thread exists: a namespace is entered by a thread, and inherited by its children.
    if let Some(name) = &args.netns {
        enter(name)?;
    }
    let text = source::read(&args.config)?;
    let switch = match source::compile_text(&args.config, &text) {
        Ok(compiled) => compiled.snapshot.switch,
        Err(errors) => {
            eprint!("{}", errors.render(out.stderr_colour()));
            return Ok(failed());
        }
    };
    if !Uid::effective().is_root() {
        out.warn("not root: attaching ports takes CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_IPC_LOCK, and the \
             express lane CAP_PERFMON");
    }
    let config = fs::canonicalize(&args.config).with_context(|| {
        format!(
            "cannot find {}: SIGHUP reads it again, so give the path of a file",
            args.config.display()
        )
    })?;
    let capture = args.capture.as_deref().map(capture_directory).transpose()?;

    let run_dir = RunDir::of(&switch);
    run_dir.claim()?;
    let ended = Supervisor::start(run_dir.clone(), config, capture)
        .and_then(|supervisor| supervisor.run(|status| announce(args, &run_dir, status, out)));
    run_dir.remove()?;
    ended?;
    Ok(YES)
}

/// Enters a network namespace by the name that `ip netns` gave it.
fn enter(name: &str) -> anyhow::Result<()> {
    if name.contains('/') {
        bail!("{name:?} is no name of a network namespace: `ip netns list` names them");
    }
    let path = Path::new("/run/netns").join(name);
    let namespace = File::open(&path).with_context(|| {
        format!("cannot open network namespace {name:?}: `ip netns list` names those there are")
    })?;
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter network namespace {name:?}: run this as root"))
}

/// Makes the directory, and says where it is from the root on: roles get no working directory.
fn capture_directory(path: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(path)
        .and_then(|()| fs::canonicalize(path))
        .with_context(|| format!("cannot make the capture directory {}", path.display()))
}

/// Says that the switch is up, and where things are.
fn announce(
    args: &RunArgs,
    run_dir: &RunDir,
    status: &Status,
    out: &mut Output,
) -> anyhow::Result<()> {
    let epoch = status.dataplane.as_ref().map_or(0, |d| d.epoch);
    let switch = out.paint(Tone::Strong, &status.switch);
    writeln!(out, "switch {switch} is up: mode {}, epoch {epoch}", mode_name(status.mode))?;
    writeln!(out)?;
    out.table(&ports::states(&status.ports))?;
    writeln!(out)?;
    let fate = if args.capture.is_none() {
        " (removed when the switch stops; --capture DIR keeps it)"
    } else {
        ""
    };
    writeln!(out, "captures  {}{fate}", status.capture)?;
    writeln!(out, "sockets   {}", run_dir.path().display())?;
    writeln!(out, "re-apply  kill -HUP {}", process::id())?;
    writeln!(out, "stop      Ctrl-C, or kill {}", process::id())?;
    Ok(out.flush()?)
}
