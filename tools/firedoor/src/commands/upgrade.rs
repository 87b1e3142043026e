//! `firedoor upgrade`: another version takes over while frames move.
//!
//! The supervisor stays, since the roles are its children. It is told by a file that names the program
//! and by SIGUSR1; it starts the new data plane, which asks the old one to retire, and then control.
//! When it is done it removes the file, or writes into it why it could not.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use firedoor_api::control::{Reply, Request, Status};
use firedoor_api::dataplane::Takeover;
use firedoor_control::client::ControlClient;
use firedoor_control::rundir::RunDir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use super::ask::unexpected;
use crate::args::UpgradeArgs;
use crate::output::{Count, Output, YES};
use crate::supervisor::FAILED;

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often to look.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) fn run(args: &UpgradeArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let run_dir = RunDir::select(args.switch.switch.as_deref())?;
    // First, since whoever may not ask sees no supervisor either.
    let before = dataplane_of(&run_dir)?.context(
        "no data plane with a policy in force is there to be replaced: `firedoor status` says more",
    )?;
    let supervisor = run_dir.supervisor().context(
        "nobody supervises this switch: only what `firedoor run` or `lab up` started can be upgraded",
    )?;
    let program = env::current_exe().context("cannot tell which program this is")?;
    ask(&run_dir.upgrade(), &program, supervisor)?;
    let deadline = Instant::now() + PATIENCE;
    let (pid, takeover) = loop {
        refused(&run_dir.upgrade())?;
        // While the roles change, control may be away.
        match dataplane_of(&run_dir).ok().flatten() {
            Some((pid, Some(takeover))) if pid != before.0 && !run_dir.upgrade().exists() => {
                break (pid, takeover);
            }
            _ if Instant::now() > deadline => {
                bail!(
                    "the switch was not upgraded within {} s: its log says why",
                    PATIENCE.as_secs()
                )
            }
            _ => thread::sleep(LOOK),
        }
    };
    let upgrade = Upgrade { switch: run_dir.switch(), version: crate::VERSION, pid, takeover };
    if args.json {
        out.json(&upgrade)?;
    } else {
        show(&upgrade, out)?;
    }
    Ok(YES)
}

/// What was done, as `--json` prints it.
#[derive(Serialize)]
struct Upgrade {
    switch: String,
    version: &'static str,
    pid: u32,
    #[serde(flatten)]
    takeover: Takeover,
}

fn show(upgrade: &Upgrade, out: &mut Output) -> anyhow::Result<()> {
    let Upgrade { switch, version, pid, takeover } = upgrade;
    let Takeover { predecessor, flows, blackout_us } = takeover;
    writeln!(out, "switch {switch} runs version {version}: process {pid} for {predecessor}")?;
    writeln!(out, "express      {} flows went on in the kernel", Count(*flows))?;
    let blackout = *blackout_us as f64 / 1_000.0;
    writeln!(out, "blackout     {blackout:.1} ms for new connections and the switch lane")?;
    Ok(())
}

/// Tells the supervisor which program to start.
fn ask(file: &Path, program: &Path, supervisor: u32) -> anyhow::Result<()> {
    fs::write(file, program.as_os_str().as_encoded_bytes())
        .with_context(|| format!("cannot write {}", file.display()))?;
    kill(Pid::from_raw(i32::try_from(supervisor)?), Signal::SIGUSR1)
        .context("cannot tell the supervisor: run this as its user")
}

/// Fails if the supervisor has written down that it could not.
fn refused(file: &Path) -> anyhow::Result<()> {
    match fs::read_to_string(file) {
        Ok(text) => match text.strip_prefix(FAILED) {
            Some(why) => {
                let _ = fs::remove_file(file);
                bail!("the switch goes on as it was: {why}")
            }
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// The data plane's process, and how it took over, if it is there.
fn dataplane_of(run_dir: &RunDir) -> anyhow::Result<Option<(u32, Option<Takeover>)>> {
    let reply = ControlClient::to_control(run_dir)?.ask(&Request::Status)?;
    let Reply::Status(status) = reply else { return Err(unexpected()) };
    let Status { dataplane, .. } = *status;
    Ok(dataplane.filter(|it| it.epoch > 0).map(|it| (it.pid, it.takeover)))
}
