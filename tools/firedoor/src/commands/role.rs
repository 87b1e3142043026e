//! The roles, as `firedoor run` starts them.

use std::process::ExitCode;

use anyhow::{Context, bail};
use firedoor_control::lifeline::Lifeline;
use firedoor_control::rundir::{Role, RunDir};
use firedoor_dataplane::daemon::Succession;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use crate::args::{ControlArgs, DataplaneArgs};
use crate::output::YES;

/// `firedoor dataplane`.
pub(crate) fn dataplane(args: &DataplaneArgs) -> anyhow::Result<ExitCode> {
    end_with(args.supervisor)?;
    let run_dir = RunDir::at(&args.run_dir);
    run_dir.enter(Role::Dataplane)?;
    let lifeline = Lifeline::hold(&run_dir);
    if let Err(error) = &lifeline {
        tracing::warn!(%error, "if it is killed, this data plane is replaced later than it could be");
    }
    let options = firedoor_dataplane::daemon::Options {
        run_dir: args.run_dir.clone(),
        pins: args.pins.clone(),
        succession: match (args.succeed, args.inherit) {
            (false, false) => Succession::None,
            (true, _) => Succession::OfLiving,
            (false, true) => Succession::OfDying,
        },
        version: crate::VERSION,
    };
    let ended = firedoor_dataplane::daemon::run(&options);
    run_dir.leave(Role::Dataplane);
    ended?;
    Ok(YES)
}

/// `firedoor control`.
pub(crate) fn control(args: &ControlArgs) -> anyhow::Result<ExitCode> {
    end_with(args.supervisor)?;
    firedoor_control::daemon::run(firedoor_control::daemon::Options {
        run_dir: args.run_dir.clone(),
        config: args.config.clone(),
        capture_dir: args.capture.clone(),
        version: crate::VERSION,
    })?;
    Ok(YES)
}

/// Makes this process end, cleanly, when its supervisor does: even if that is killed, no role is
/// left behind.
fn end_with(supervisor: Option<i32>) -> anyhow::Result<()> {
    let Some(supervisor) = supervisor else { return Ok(()) };
    set_pdeathsig(Signal::SIGTERM).context("cannot follow the supervisor")?;
    // It may have ended before the kernel was asked to watch it.
    if getppid().as_raw() != supervisor {
        bail!("the supervisor, process {supervisor}, is gone");
    }
    Ok(())
}
