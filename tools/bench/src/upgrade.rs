//! `firedoor bench upgrade`: what clients notice while one data plane takes another one's place.
//!
//! A lab of two pairs of containers, one on the express lane and one on the switch lane, under rules of which
//! all but the last match nobody. Connections are begun on the express lane and stay. Then [clients](client) ask
//! every millisecond, each in its own way, while the switch is upgraded to its own program, and while its
//! data plane is killed. What never comes back within [`PATIENCE`](client::PATIENCE) is lost.

mod client;
mod echo;

use std::fmt::Write;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use firedoor_lab::{Lab, LabError, Options as LabOptions, Temporary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use self::client::{Ask, Client};
use self::echo::{Echo, PORTS};
use crate::Progress;

pub use self::client::Noticed;

/// How long the clients ask before and after.
const AROUND: Duration = Duration::from_millis(500);
/// How long a data plane may take to come back.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that are begun before their answers are waited for: no more than a port may have on the long way.
const AT_ONCE: usize = 64;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// The `firedoor` executable.
    pub firedoor: PathBuf,
    /// Live connections on the express lane.
    pub connections: u32,
    /// Rules that match nobody.
    pub rules: u16,
    /// How often to upgrade, and to kill.
    pub rounds: u32,
    /// Becomes true when it should stop.
    pub interrupted: &'a AtomicBool,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Live connections on the express lane.
    pub connections: u32,
    /// Rules that match nobody.
    pub rules: u16,
    /// Each change of the data plane, in order.
    pub changes: Vec<Change>,
}

/// One data plane in another one's place.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// `upgrade` or `kill`.
    pub how: &'static str,
    /// How long nothing was judged, by the switch's own account, if it has one.
    pub blackout_ms: Option<f64>,
    /// How long each step of the new data plane's beginning took, as its log says.
    pub steps: String,
    /// What each client noticed.
    pub noticed: Vec<Noticed>,
}

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeBenchError {
    /// The lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A client or its other end.
    #[error("cannot ask across the switch: {0}")]
    Io(#[from] io::Error),
    /// A signal.
    #[error("cannot kill the data plane: {0}")]
    Kill(#[from] nix::Error),
    /// The command.
    #[error("`firedoor upgrade` failed: {0}")]
    Upgrade(String),
    /// Nothing took its place.
    #[error("no data plane came back within {} s:\n{log}", PATIENCE.as_secs())]
    Gone {
        /// The end of the switch's log.
        log: String,
    },
    /// A connection is not live.
    #[error("connection {number} of {connections} gets no answer: the switch's bounds are too low")]
    NoAnswer {
        /// Which.
        number: usize,
        /// Of how many.
        connections: u32,
    },
}

/// Measures, until interrupted.
///
/// # Errors
/// If the lab cannot be built, or the switch does not come back.
pub fn run(options: &Options<'_>) -> Result<Report, UpgradeBenchError> {
    let Options { connections, rules, rounds, interrupted, .. } = *options;
    let goes_on = || !interrupted.load(Ordering::Relaxed);
    let progress = Progress::new(2 + 2 * u64::from(rounds));
    progress.step("building a lab");
    let lab = build(options)?;
    let far = [Echo::start(&lab.netns("b")?)?, Echo::start(&lab.netns("d")?)?];
    progress.step("beginning connections");
    let live = begin(&lab, connections, &goes_on)?;
    let mut changes = Vec::new();
    for _ in (0..rounds).take_while(|_| goes_on()) {
        progress.step("upgrading");
        changes.push(change(&lab, "upgrade", || upgrade(&lab, options))?);
        progress.step("killing");
        changes.push(change(&lab, "kill", || kill_and_await(&lab).map(|()| None))?);
    }
    drop((live, far));
    lab.down()?;
    Ok(Report { connections, rules, changes })
}

fn build(options: &Options<'_>) -> Result<Temporary, LabError> {
    let name = Some(format!("bench-upgrade-{}", std::process::id()));
    let options_of_lab = LabOptions {
        firedoor: options.firedoor.clone(),
        name,
        interrupted: options.interrupted,
        progress: &|_| {},
    };
    Temporary::up(&PathBuf::from("upgrade.toml"), &config(options), &options_of_lab)
}

/// `a` may reach `b` and `c` may reach `d`, by the last of the rules.
fn config(options: &Options<'_>) -> String {
    // Twice as many as there are: what the clients begin needs room, too.
    let room = 2 * options.connections + 65_536;
    let mut text = format!("[switch]\nname = \"upgrade\"\nmax_connections = {room}\n");
    for (host, (name, lane)) in
        [("a", "auto"), ("b", "auto"), ("c", "switch"), ("d", "switch")].into_iter().enumerate()
    {
        let _ = write!(
            text,
            "\n[[workload]]\nname = \"{name}\"\nkind = \"container\"\nlane = \"{lane}\"\n\
             labels = {{ name = \"{name}\" }}\nip = [\"{}/24\"]\n",
            address(host as u8)
        );
    }
    for rule in 0..options.rules {
        let _ = write!(
            text,
            "\n[[rule]]\nname = \"r{rule}\"\nfrom = {{ name = \"a\" }}\nto = {{ name = \"d\" }}\n\
             service = \"tcp/{}\"\naction = \"allow\"\n",
            20_000 + rule
        );
    }
    for (from, to) in [("a", "b"), ("c", "d")] {
        let _ = write!(
            text,
            "\n[[rule]]\nname = \"{from}-to-{to}\"\nfrom = {{ name = \"{from}\" }}\n\
             to = {{ name = \"{to}\" }}\nservice = \"any\"\naction = \"allow\"\n"
        );
    }
    text
}

/// Address of the nth container.
fn address(nth: u8) -> IpAddr {
    IpAddr::from([10, 40, 0, 1 + nth])
}

/// Begins so many connections from `a` to `b`, each of which is answered. They live as long as the sockets.
fn begin(
    lab: &Lab,
    connections: u32,
    goes_on: &dyn Fn() -> bool,
) -> Result<Vec<UdpSocket>, UpgradeBenchError> {
    let netns = lab.netns("a")?;
    let mut live = Vec::new();
    let mut begun = 0;
    while begun < connections as usize && goes_on() {
        let socket = netns.run(|| UdpSocket::bind(("0.0.0.0", 0))).map_err(io::Error::other)??;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let ports: Vec<u16> = PORTS.take(connections as usize - begun).collect();
        for ports in ports.chunks(AT_ONCE) {
            if !(0..5).any(|_| all_answer(&socket, ports).unwrap_or(false)) {
                return Err(UpgradeBenchError::NoAnswer { number: begun, connections });
            }
            begun += ports.len();
        }
        live.push(socket);
    }
    Ok(live)
}

/// Whether each of these ports of `b` answers.
fn all_answer(socket: &UdpSocket, ports: &[u16]) -> io::Result<bool> {
    for &port in ports {
        socket.send_to(&[0; 8], SocketAddr::new(address(1), port))?;
    }
    let mut waiting: Vec<u16> = ports.to_vec();
    while !waiting.is_empty() {
        let (_, from) = socket.recv_from(&mut [0; 8])?;
        waiting.retain(|&port| port != from.port());
    }
    Ok(true)
}

/// What the clients notice of `takes_place`, which returns how long nothing was judged, if it knows.
fn change(
    lab: &Lab,
    how: &'static str,
    takes_place: impl FnOnce() -> Result<Option<f64>, UpgradeBenchError>,
) -> Result<Change, UpgradeBenchError> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for (name, from, to, ask) in [
        ("new TCP connections, express lane", "a", 1, Ask::NewTcp),
        ("new UDP flows, express lane", "a", 1, Ask::NewUdp),
        ("a live flow, express lane", "a", 1, Ask::LiveUdp),
        ("new TCP connections, switch lane", "c", 3, Ask::NewTcp),
        ("a live flow, switch lane", "c", 3, Ask::LiveUdp),
    ] {
        let client = Client { name, to: address(to), ask, stop: Arc::clone(&stop) };
        let thread = lab.netns(from)?.spawn("client", move || client.run());
        clients.push(thread.map_err(io::Error::other)?);
    }
    thread::sleep(AROUND);
    let changed = takes_place();
    thread::sleep(AROUND);
    stop.store(true, Ordering::Relaxed);
    let mut noticed = Vec::new();
    for client in clients {
        let ended = client.join().map_err(|_| io::Error::other("a client panicked"))?;
        noticed.push(ended.map_err(io::Error::other)??);
    }
    Ok(Change { how, blackout_ms: changed?, steps: last_steps(lab), noticed })
}

/// Upgrades the switch to its own program.
fn upgrade(lab: &Lab, options: &Options<'_>) -> Result<Option<f64>, UpgradeBenchError> {
    let mut command = Command::new(&options.firedoor);
    // Ctrl-C is for us alone: an upgrade is waited for.
    command.args(["upgrade", "--json", "--switch", lab.name()]).process_group(0);
    let output = command.output()?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| UpgradeBenchError::Upgrade(said(&output.stderr)))?;
    Ok(report["blackout_us"].as_f64().map(|us| us / 1e3))
}

/// Kills the data plane, and waits until another one has the policy in force.
fn kill_and_await(lab: &Lab) -> Result<(), UpgradeBenchError> {
    let gone = || UpgradeBenchError::Gone { log: lab.log_tail() };
    let status = || lab.status().ok().and_then(|status| status.dataplane);
    let before = status().ok_or_else(gone)?;
    kill(Pid::from_raw(before.pid.cast_signed()), Signal::SIGKILL)?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
        if status().is_some_and(|now| now.pid != before.pid && now.epoch == before.epoch) {
            return Ok(());
        }
    }
    Err(gone())
}

/// What the log says of the last beginning.
fn last_steps(lab: &Lab) -> String {
    let log = lab.log();
    let steps = log.lines().rev().find_map(|line| line.split_once("steps=").map(|(_, it)| it));
    steps.unwrap_or_default().to_owned()
}
