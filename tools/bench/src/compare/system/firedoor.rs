//! Firedoor itself: the real executable, on each of its lanes.

use std::fs;
use std::time::Duration;

use firedoor_api::control::{Reply, Request};
use firedoor_api::dataplane::PortState;
use firedoor_control::client::ControlClient;
use firedoor_control::rundir::RunDir;

use super::{Missing, Site, System, Up, wakes_processors};
use crate::compare::error::{BuildError, building};
use crate::compare::scenario::Traffic;
use crate::compare::tool::{Daemon, command, tool};

/// The switch's name: that of its run directory, which is below the site's.
const NAME: &str = "bench";
/// How long the switch may take to start, and how much longer for each port.
const START_PATIENCE: Duration = Duration::from_secs(20);
const PORT_PATIENCE: Duration = Duration::from_millis(200);
/// Connections that the default config has room for.
const DEFAULT_CONNECTIONS: usize = 1 << 18;

/// Firedoor with every port on one lane.
pub(super) struct Firedoor {
    name: &'static str,
    about: &'static str,
    is_usual: bool,
    /// Lines of the config's `[switch]` table.
    settings: &'static str,
    /// As the config names it.
    lane: &'static str,
    /// Whether hosts are told to take frames that XDP redirects to them, as `firedoor lab` tells its
    /// containers on the switch lane.
    redirects: bool,
    /// Whether it keeps processors awake, by its settings.
    wakes: bool,
}

pub(super) static SWITCH_LANE: Firedoor = Firedoor {
    name: "firedoor-switch",
    about: "Firedoor's switch lane, one worker",
    is_usual: true,
    settings: "",
    lane: "switch",
    redirects: true,
    wakes: false,
};

/// What it costs to forward a frame that XDP does not redirect.
pub(super) static SOCKETS: Firedoor = Firedoor {
    name: "firedoor-sockets",
    about: "Firedoor's switch lane, one worker; each frame passes its AF_XDP sockets",
    is_usual: false,
    settings: "express_flows = 0\n",
    lane: "switch",
    redirects: false,
    wakes: false,
};

pub(super) static EXPRESS_LANE: Firedoor = Firedoor {
    name: "firedoor-express",
    about: "Firedoor's express lane, one worker",
    is_usual: true,
    settings: "",
    lane: "express",
    redirects: false,
    wakes: false,
};

/// Processors never sleep while frames come often.
const AWAKE: &str = "wake_within_us = 0\n";
/// How long that takes at most: frames are counted once a second, twice as old at worst.
const UNTIL_AWAKE: Duration = Duration::from_secs(3);

pub(super) static SWITCH_LANE_AWAKE: Firedoor = Firedoor {
    name: "firedoor-switch+awake",
    about: "Firedoor's switch lane with `wake_within_us = 0`: no processor halts while frames come often",
    settings: AWAKE,
    wakes: true,
    ..SWITCH_LANE
};

pub(super) static EXPRESS_LANE_AWAKE: Firedoor = Firedoor {
    name: "firedoor-express+awake",
    about: "Firedoor's express lane with `wake_within_us = 0`",
    settings: AWAKE,
    wakes: true,
    ..EXPRESS_LANE
};

impl System for Firedoor {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn version(&self) -> Result<String, Missing> {
        // The commit is the executable's to tell.
        let said = tool(None, "/proc/self/exe", ["--version"]).unwrap_or_default();
        let version = said.trim().strip_prefix("firedoor ");
        Ok(version.unwrap_or(env!("CARGO_PKG_VERSION")).to_owned())
    }

    fn is_usual(&self) -> bool {
        self.is_usual
    }

    fn takes_policy(&self) -> bool {
        true
    }

    fn is_for(&self, traffic: Traffic) -> bool {
        !self.wakes || wakes_processors(traffic)
    }

    fn start_time(&self, ports: usize) -> Duration {
        let settle = if self.wakes { UNTIL_AWAKE } else { Duration::ZERO };
        Duration::from_millis(1_000 + 50 * ports as u64) + settle
    }

    fn up(&self, site: &Site<'_>) -> Result<Up, BuildError> {
        let connections = match site.room {
            Some(room) => room,
            None if site.connections > DEFAULT_CONNECTIONS / 2 => {
                (2 * site.connections).next_power_of_two()
            }
            None => DEFAULT_CONNECTIONS,
        };
        let settings = format!("max_connections = {connections}\n{}", self.settings);
        if self.redirects {
            site.topology.receive_redirected()?;
        }
        let config = site.directory.join("firedoor.toml");
        let text = site.policy.firedoor(NAME, &settings, self.lane, site.topology);
        building("write the config", fs::write(&config, text))?;

        let mut firedoor = command(Some(&site.topology.switch), &site.firedoor.to_string_lossy());
        firedoor.arg("run").arg(&config).env("FIREDOOR_RUN_DIR", site.directory);
        let mut daemon = Daemon::start("firedoor", firedoor, site.directory.join("firedoor.log"))?;
        let run_dir = RunDir::at(site.directory.join(NAME));
        let ports = site.topology.hosts.len();
        let patience = START_PATIENCE + PORT_PATIENCE * u32::try_from(ports).unwrap_or(u32::MAX);
        daemon.wait_until(patience, || is_ready(&run_dir, ports))?;
        let up = Up::new(daemon);
        Ok(if self.wakes { up.settling(UNTIL_AWAKE) } else { up })
    }
}

/// Whether policy is in force and every port up.
fn is_ready(run_dir: &RunDir, ports: usize) -> bool {
    let status = ControlClient::to_control(run_dir).and_then(|mut c| c.ask(&Request::Status));
    let Ok(Reply::Status(status)) = status else { return false };
    let up = status.ports.iter().filter(|port| port.state == PortState::Up).count();
    up == ports && status.dataplane.is_some_and(|dataplane| dataplane.epoch > 0)
}
