//! The systems that are compared, behind one trait.

mod bridge;
mod firedoor;
mod forwarder;
mod in_kernel;
mod open_vswitch;

use std::any::Any;
use std::path::Path;
use std::time::Duration;

use super::error::BuildError;
use super::policy::Policy;
use super::scenario::{Traffic, Waiting};
use super::tool::find;
use super::topology::Topology;

/// A system under test.
pub trait System: Sync {
    /// What it is called, on the command line and in tables.
    fn name(&self) -> &'static str;

    /// What it is, in one line.
    fn about(&self) -> &'static str;

    /// Its version.
    ///
    /// # Errors
    /// What is missing, if it cannot run here.
    fn version(&self) -> Result<String, Missing>;

    /// Whether it is measured unless others are asked for by name.
    fn is_usual(&self) -> bool {
        true
    }

    /// Whether it judges by rules. One that does not is measured without.
    fn takes_policy(&self) -> bool {
        false
    }

    /// Whether it is measured with this traffic.
    fn is_for(&self, _traffic: Traffic) -> bool {
        true
    }

    /// Most ports that it is measured with, and what more would mean, if there is a limit.
    fn port_limit(&self) -> Option<(usize, &'static str)> {
        None
    }

    /// How long it takes to bring it up with so many ports, and down again, about, with the wires.
    fn start_time(&self, ports: usize) -> Duration {
        Duration::from_millis(500 + 20 * ports as u64)
    }

    /// Connects all ports of the topology.
    ///
    /// # Errors
    /// If something fails; then nothing of it is left running.
    fn up(&self, site: &Site<'_>) -> Result<Up, BuildError>;
}

/// Where a system is brought up, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The wires.
    pub topology: &'a Topology,
    /// The rules.
    pub policy: &'a Policy,
    /// Connections that it will see at once, about.
    pub connections: usize,
    /// The most connections that it may remember, where that is to be the same for all.
    pub room: Option<usize>,
    /// An empty directory of its own.
    pub directory: &'a Path,
    /// The `firedoor` executable.
    pub firedoor: &'a Path,
}

/// The limit of the floors.
const TWO_PORTS: (usize, &str) = (2, "left out: it connects two ports");

/// A system that is up. It ends when dropped.
pub struct Up {
    /// In the order they are to end.
    running: Vec<Box<dyn Any>>,
    /// What a reader of its numbers should know about how it runs here.
    pub note: Option<String>,
    /// How long round trips are made at least until it does as it does from then on.
    pub(super) settle: Duration,
}

impl Up {
    fn new(running: impl Any) -> Self {
        Self { running: vec![Box::new(running)], note: None, settle: Duration::ZERO }
    }

    /// Keeps something for as long as the system is up, and drops it after.
    pub(super) fn keep(&mut self, thing: impl Any) {
        self.running.push(Box::new(thing));
    }

    fn with_note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    fn settling(self, settle: Duration) -> Self {
        Self { settle, ..self }
    }
}

/// What a system needs and this machine does not have.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Missing {
    /// The program.
    pub program: &'static str,
    /// The Debian package that brings it.
    pub package: &'static str,
}

/// Where it matters that processors are kept awake: of systems that do so, only this is measured.
fn wakes_processors(traffic: Traffic) -> bool {
    traffic == Traffic::RoundTrips(Waiting::Sleeping)
}

/// Programs that a system needs, each with its package.
fn need(programs: &[(&'static str, &'static str)]) -> Result<(), Missing> {
    match programs.iter().find(|(program, _)| find(program).is_none()) {
        Some(&(program, package)) => Err(Missing { program, package }),
        None => Ok(()),
    }
}

/// Every system, in the order of the tables: what people use today, the floors, and Firedoor; then those that differ
/// only in that processors are kept awake.
pub static ALL: [&dyn System; 14] = [
    &bridge::BRIDGE,
    &bridge::BRIDGE_NFT,
    &open_vswitch::OPEN_VSWITCH,
    &open_vswitch::OPEN_VSWITCH_CT,
    &forwarder::Forwarder,
    &in_kernel::XDP,
    &in_kernel::TCX,
    &in_kernel::TCX_EGRESS,
    &firedoor::SWITCH_LANE,
    &firedoor::SOCKETS,
    &firedoor::EXPRESS_LANE,
    &bridge::BRIDGE_AWAKE,
    &firedoor::SWITCH_LANE_AWAKE,
    &firedoor::EXPRESS_LANE_AWAKE,
];

/// The systems that a name on the command line stands for.
pub fn named(name: &str) -> Vec<&'static dyn System> {
    let group: &[&str] = match name {
        "ovs-afxdp" => &["ovs-afxdp", "ovs-afxdp+ct"],
        "redirect" => &["af_xdp", "xdp", "tcx"],
        "firedoor" => &["firedoor-switch", "firedoor-express"],
        "awake" => &["bridge+awake", "firedoor-switch+awake", "firedoor-express+awake"],
        name => &[name],
    };
    ALL.into_iter().filter(|system| group.contains(&system.name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_system_has_its_name() {
        for system in ALL {
            assert!(named(system.name()).iter().any(|found| found.name() == system.name()));
        }
        assert!(named("carrier-pigeon").is_empty());
    }

    #[test]
    fn a_name_may_stand_for_all_of_a_kind() {
        for (name, count) in
            [("ovs-afxdp", 2), ("redirect", 3), ("firedoor", 2), ("awake", 3), ("bridge", 1)]
        {
            assert_eq!(named(name).len(), count, "{name}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        assert_eq!(need(&[("sh", "dash")]), Ok(()));
        let missing = Missing { program: "fd-none", package: "fd-package" };
        assert_eq!(need(&[("sh", "dash"), ("fd-none", "fd-package")]), Err(missing));
    }
}
