//! `firedoor bench compare`, in miniature: that it measures, and leaves nothing behind. What it
//! measures on a machine that runs tests means nothing.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::fixture::{ensure, firedoor, printed};
use crate::{Shown, Test};

pub(crate) const TESTS: &[Test] = &[
    ("a_comparison_measures_every_system_and_writes_a_report", &["ip", "ethtool"], measures),
    ("a_comparison_that_is_interrupted_reports_and_cleans_up", &["ip", "ethtool"], interrupted),
    ("the_next_comparison_removes_what_a_killed_one_left", &["ip", "ethtool"], killed),
];

/// A comparison of the bridge and Firedoor in few scenarios.
fn comparison(only: &str, rounds: usize, directory: &Path) -> Command {
    let mut command = Command::new(firedoor());
    command.args(["bench", "compare", "--peers", "bridge,firedoor", "--only", only]);
    command.args(["--seconds", "0.5", "--rounds", &rounds.to_string(), "--out"]).arg(directory);
    command
}

fn measures() -> Shown {
    let directory = tempfile::tempdir()?;
    let only = "udp-1/0,latency/0,tcp-1/0,connect/0,latency-turns,first-udp,first-tcp";
    let output = comparison(only, 1, directory.path()).output()?;
    let said = printed("firedoor bench compare", &output)?;
    ensure!(said.contains("64-byte UDP, one flow"), "{said}");
    check_report(directory.path(), 7, 1)?;
    let page = fs::read_to_string(directory.path().join("report.html"))?;
    ensure!(page.contains("<svg") && page.contains("id=\"latency/0\""), "the page has no plots");
    Ok(())
}

/// A report has so many scenarios, each measured in so many rounds of all three systems.
fn check_report(directory: &Path, scenarios: usize, rounds: usize) -> Shown {
    let report: Value = serde_json::from_slice(&fs::read(directory.join("report.json"))?)?;
    ensure!(report["rounds"] == rounds, "{} rounds", report["rounds"]);
    let rows = report["rows"].as_array().ok_or("no rows")?;
    ensure!(rows.len() == scenarios, "{} rows", rows.len());
    for row in rows {
        let cells = row["cells"].as_array().ok_or("no cells")?;
        ensure!(cells.len() == 3, "{} has {} cells", row["id"], cells.len());
        cells.iter().try_for_each(|cell| check(&row["id"], cell, rounds))?;
    }
    Ok(())
}

/// What may be zero, or less: on a machine that runs tests, a later round trip may take longer than a first one.
const MAY_BE_ZERO: [&str; 4] = ["lost", "own_ns_per_frame", "undisturbed", "more"];

/// Every value of a cell was measured in every round and is above zero, but for what may be zero.
fn check(id: &Value, cell: &Value, rounds: usize) -> Result<(), Failed> {
    let system = &cell["system"];
    ensure!(cell["failure"].is_null(), "{system} in {id}: {}", cell["failure"]);
    let metrics = cell["metrics"].as_object().ok_or("no metrics")?;
    ensure!(!metrics.is_empty(), "{system} in {id} measured nothing");
    for (name, summary) in metrics {
        let values = summary["values"].as_array().map_or(0, Vec::len);
        ensure!(values == rounds, "{system} in {id}: {values} values of {name}");
        let median = summary["median"].as_f64().unwrap_or(0.0);
        let is_some = median > 0.0 || MAY_BE_ZERO.contains(&name.as_str());
        ensure!(is_some, "{system} in {id}: {name} is {median}");
    }
    Ok(())
}

fn interrupted() -> Shown {
    let directory = tempfile::tempdir()?;
    let mut running = start("udp-1/0,udp-10k/0", directory.path())?;
    kill(pid(&running)?, Signal::SIGINT)?;
    let status = running.wait()?;
    ensure!(status.code() == Some(1), "it ended with {status}");
    ensure!(left_by(&running).is_empty(), "it left {:?}", left_by(&running));
    let written = fs::read_to_string(directory.path().join("report.json"))?;
    let report: Value = serde_json::from_str(&written)?;
    ensure!(report["rounds"] == 0, "{} rounds were complete", report["rounds"]);
    Ok(())
}

fn killed() -> Shown {
    let directory = tempfile::tempdir()?;
    let mut running = start("udp-1/0", directory.path())?;
    running.kill()?;
    running.wait()?;
    ensure!(!left_by(&running).is_empty(), "killed, it could clean up");
    let output = comparison("latency/0", 2, directory.path()).output()?;
    ensure!(left_by(&running).is_empty(), "the next one left {:?}", left_by(&running));
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    check_report(directory.path(), 1, 2)
}

/// Starts a comparison, and waits until it has made something.
fn start(only: &str, directory: &Path) -> Result<Child, Failed> {
    let mut command = comparison(only, 2, directory);
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let start = Instant::now();
    while left_by(&running).len() < 3 {
        ensure!(running.try_wait()?.is_none(), "it ended at once");
        ensure!(start.elapsed() < Duration::from_secs(30), "it makes nothing");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(running)
}

fn pid(process: &Child) -> Result<Pid, Failed> {
    Ok(Pid::from_raw(i32::try_from(process.id())?))
}

/// The namespaces that a process has made.
fn left_by(process: &Child) -> Vec<String> {
    let prefix = format!("fd-bench-{}-", process.id());
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&prefix)).collect()
}
