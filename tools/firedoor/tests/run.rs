//! `firedoor run` and the commands that talk to it, as processes. The interfaces do not exist, so
//! no frame moves and no root is needed: this is about roles, policy and what is left behind.
#![allow(clippy::unwrap_used, reason = "what a test cannot go on without fails it")]

mod documented;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use documented::assert_documented;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const CONFIG: &str = r#"
[switch]
name = "sw"

[[workload]]
name = "web"
kind = "external"
ifname = "fdnone0"
mac = "02:00:00:00:00:10"
labels = { tier = "web" }
ip = ["10.10.0.10/24"]

[[workload]]
name = "db"
kind = "external"
ifname = "fdnone1"
mac = "02:00:00:00:00:30"
labels = { tier = "db" }
ip = ["10.10.0.30/24"]

[[rule]]
name = "web-to-db"
from = { tier = "web" }
to = { tier = "db" }
service = "tcp/5432"
action = "allow"
"#;

/// A running switch; killed, with its roles, if a test fails.
struct Switch {
    supervisor: Child,
    base: tempfile::TempDir,
}

impl Switch {
    fn start() -> Self {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("sw.toml"), CONFIG).unwrap();
        let supervisor = Self::spawn(base.path());
        let switch = Self { supervisor, base };
        switch.await_epoch(1);
        switch
    }

    fn spawn(base: &Path) -> Child {
        let mut command = firedoor(base, &["run", "sw.toml"]);
        let log = fs::File::create(base.join("log")).unwrap();
        command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    fn run_dir(&self) -> PathBuf {
        self.base.path().join("run/sw")
    }

    fn config(&self, text: &str) {
        fs::write(self.base.path().join("sw.toml"), text).unwrap();
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        firedoor(self.base.path(), arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.ask(arguments).stdout).unwrap_or_default()
    }

    fn await_epoch(&self, epoch: u64) {
        self.wait_until(|| self.json(&["status", "--json"])["epoch"] == epoch);
    }

    /// Waits for what must come; the limit only turns a hang into a failure.
    fn wait_until(&self, mut is_so: impl FnMut() -> bool) {
        let limit = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            let log = fs::read_to_string(self.base.path().join("log")).unwrap();
            assert!(Instant::now() < limit, "in vain; the log:\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn role(&self, role: &str) -> Option<i32> {
        let pid = self.json(&["status", "--json"])["roles"][role]["pid"].as_i64()?;
        i32::try_from(pid).ok()
    }

    fn signal(&self, signal: Signal) {
        send(i32::try_from(self.supervisor.id()).unwrap(), signal);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // The roles follow: the kernel tells them.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

fn firedoor(base: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firedoor"));
    command.args(arguments).current_dir(base).env("FIREDOOR_RUN_DIR", base.join("run"));
    command
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn it_stops_cleanly_and_leaves_nothing() {
    let mut switch = Switch::start();
    let ports = switch.json(&["ports", "--json"]);
    assert_eq!((&ports[0]["workload"], &ports[0]["state"]), (&"web".into(), &"missing".into()));
    assert_documented("ports", &ports);
    let status = switch.json(&["status", "--json"]);
    assert_documented("status", &status);
    let version = String::from_utf8(switch.ask(&["--version"]).stdout).unwrap();
    let version = version.trim().strip_prefix("firedoor ").unwrap();
    assert_eq!(status["roles"]["control"]["version"], version);
    assert_eq!(status["roles"]["dataplane"]["version"], version);
    let again = switch.ask(&["run", "sw.toml"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("already running"), "{}", stderr(&again));

    switch.signal(Signal::SIGTERM);
    assert_eq!(switch.supervisor.wait().unwrap().code(), Some(0));
    assert!(!switch.run_dir().exists());
    let none = switch.ask(&["status"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(stderr(&none).contains("firedoor run CONFIG"), "{}", stderr(&none));
}

/// The device pairs of express lanes in the host's own network namespace.
fn device_pairs() -> BTreeSet<OsString> {
    let links = fs::read_dir("/sys/class/net").unwrap().map(|link| link.unwrap().file_name());
    links.filter(|name| name.to_string_lossy().starts_with("fdp")).collect()
}

#[test]
fn roles_that_are_killed_come_back_to_the_same_epoch() {
    let before = device_pairs();
    let switch = Switch::start();
    for role in ["control", "dataplane"] {
        let killed = switch.role(role).unwrap();
        send(killed, Signal::SIGKILL);
        switch.wait_until(|| switch.role(role).is_some_and(|pid| pid != killed));
        switch.await_epoch(1);
    }
    // What was made and is no port's goes.
    switch.wait_until(|| device_pairs().is_subset(&before));
}

#[test]
fn policy_changes_by_signal_and_by_command() {
    let switch = Switch::start();
    switch.config(&CONFIG.replace("5432", "5433"));
    switch.signal(Signal::SIGHUP);
    switch.await_epoch(2);

    switch.config(&CONFIG.replace("action = \"allow\"", "action = \"alow\""));
    let refused = switch.ask(&["policy", "apply", "sw.toml"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("sw.toml:26:10"), "{}", stderr(&refused));
    assert_eq!(switch.json(&["status", "--json"])["epoch"], 2);

    let label = switch.ask(&["port", "add", "cache", "--ifname", "fdnone2", "--label", "tier"]);
    assert_eq!(label.status.code(), Some(2));
    let add = [
        "port",
        "add",
        "cache",
        "--ifname",
        "fdnone2",
        "--mac",
        "02:00:00:00:00:70",
        "--ip",
        "10.10.0.70/24",
        "--label",
        "tier=cache",
    ];
    let added = switch.ask(&add);
    assert_eq!(added.status.code(), Some(0), "{}", stderr(&added));
    assert_eq!(switch.json(&["ports", "--json"])[2]["workload"], "cache");
    assert_eq!(switch.ask(&["port", "del", "cache"]).status.code(), Some(0));
    assert_eq!(switch.json(&["ports", "--json"]).as_array().map(Vec::len), Some(2));
    assert_eq!(switch.json(&["denies", "--json"]), Value::Array(Vec::new()));
    assert_eq!(switch.json(&["flows", "--json"]), Value::Array(Vec::new()));
}

#[test]
fn roles_end_with_a_killed_supervisor_and_another_takes_its_place() {
    let mut switch = Switch::start();
    let roles = ["control", "dataplane"].map(|role| switch.role(role).unwrap());
    switch.signal(Signal::SIGKILL);
    switch.supervisor.wait().unwrap();
    // It waits for the roles to end, and begins with the config, not with what was left.
    switch.config(&CONFIG.replace("5432", "5433"));
    switch.supervisor = Switch::spawn(switch.base.path());
    switch.await_epoch(1);
    let successors = ["control", "dataplane"].map(|role| switch.role(role).unwrap());
    assert!(successors.iter().all(|pid| !roles.contains(pid)));
}
