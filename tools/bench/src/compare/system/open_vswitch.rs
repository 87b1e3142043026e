//! Open vSwitch with AF_XDP ports: its userspace datapath, its daemons run from a private directory.
//!
//! One PMD thread on the last processor polls all ports, as one worker of Firedoor's does; all else
//! is as Debian's package has it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use firedoor_dataplane::sys::affinity;

use super::{Missing, Site, System, Up, need};
use crate::compare::error::{BuildError, building};
use crate::compare::tool::{Daemon, command, tool, tool_with_input};
use crate::compare::topology::Topology;

/// The bridge's name, and that of its own tap.
const BRIDGE: &str = "fdbr0";
/// Where Debian's package has the schema of the database.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// How long a daemon may take to listen.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to load flows, in seconds, and how much longer for each port: adding one
/// takes about 0.3 s.
const CONFIGURE_SECONDS: usize = 60;
const PORT_SECONDS: usize = 2;
/// Each port takes 75 MB, and longer than the one before: 20 are up after 6 s, 100 after 39 s, 189 after
/// 165 s with 14 GB.
const PORT_LIMIT: (usize, &str) =
    (64, "left out: 200 AF_XDP ports take it 15 GB and three minutes to add");
/// Programs, and the packages that bring them.
const PROGRAMS: [(&str, &str); 7] = [
    ("ovs-vswitchd", "openvswitch-switch"),
    ("ovsdb-server", "openvswitch-switch"),
    ("ovsdb-tool", "openvswitch-common"),
    ("ovs-vsctl", "openvswitch-switch"),
    ("ovs-ofctl", "openvswitch-common"),
    ("ovs-appctl", "openvswitch-common"),
    ("ethtool", "ethtool"),
];

/// Open vSwitch.
pub(super) struct OpenVswitch {
    name: &'static str,
    about: &'static str,
    /// Whether it tracks connections and has the rules; else it is a learning switch.
    judges: bool,
}

pub(super) static OPEN_VSWITCH: OpenVswitch = OpenVswitch {
    name: "ovs-afxdp",
    about: "Open vSwitch, AF_XDP ports, one PMD thread, no policy",
    judges: false,
};

pub(super) static OPEN_VSWITCH_CT: OpenVswitch = OpenVswitch {
    name: "ovs-afxdp+ct",
    about: "Open vSwitch, AF_XDP ports, one PMD thread, a stateful policy",
    judges: true,
};

impl System for OpenVswitch {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn version(&self) -> Result<String, Missing> {
        need(&PROGRAMS)?;
        let said = tool(None, "ovs-vswitchd", ["--version"]).unwrap_or_default();
        let version = said.lines().next().and_then(|line| line.split_whitespace().last());
        Ok(version.unwrap_or("of unknown version").to_owned())
    }

    fn takes_policy(&self) -> bool {
        self.judges
    }

    fn port_limit(&self) -> Option<(usize, &'static str)> {
        Some(PORT_LIMIT)
    }

    fn start_time(&self, ports: usize) -> Duration {
        Duration::from_millis(1_500 + 250 * ports as u64)
    }

    /// Starts both daemons, adds every port, and loads the flows.
    fn up(&self, site: &Site<'_>) -> Result<Up, BuildError> {
        // Open vSwitch forwards partial checksums as they are.
        site.topology.complete_checksums()?;
        let daemons = Daemons { directory: site.directory, topology: site.topology };
        let database = daemons.start_database()?;
        let switch = daemons.start_switch()?;
        daemons.add_ports()?;
        if let Some(room) = site.room {
            daemons.bound_connections(room)?;
        }
        match self.judges {
            true => daemons.load(&site.policy.open_vswitch(site.topology))?,
            false => daemons.load("actions=NORMAL\n")?,
        }
        // The switch ends before its database.
        let mut up = Up::new(switch);
        up.keep(database);
        Ok(up)
    }
}

/// Its daemons, in a directory and a namespace of their own.
struct Daemons<'a> {
    directory: &'a Path,
    topology: &'a Topology,
}

impl Daemons<'_> {
    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// A command that knows none but its private directory.
    fn daemon(&self, program: &str) -> Command {
        let mut command = command(Some(&self.topology.switch), program);
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, self.directory);
        }
        command
    }

    fn start_database(&self) -> Result<Daemon, BuildError> {
        let (database, socket) = (self.path("conf.db"), self.directory.join("db.sock"));
        tool(None, "ovsdb-tool", ["create", &database, SCHEMA])?;
        let mut server = self.daemon("ovsdb-server");
        server.arg(&database).arg(format!("--remote=punix:{}", socket.display()));
        server.arg(format!("--unixctl={}", self.path("ovsdb.ctl")));
        let log = self.directory.join("ovsdb-server.log");
        let mut server = Daemon::start("ovsdb-server", server, log)?;
        server.wait_until(START_PATIENCE, || socket.exists())?;
        self.vsctl(["--no-wait", "init"])?;
        // A mask of processors, in hexadecimal.
        let mask = 1_u128 << last_processor().min(127);
        let mask = format!("other_config:pmd-cpu-mask=0x{mask:x}");
        self.vsctl(["--no-wait", "set", "Open_vSwitch", ".", &mask])?;
        Ok(server)
    }

    fn start_switch(&self) -> Result<Daemon, BuildError> {
        let control = self.directory.join("vswitchd.ctl");
        let mut switch = self.daemon("ovs-vswitchd");
        switch.arg(format!("unix:{}", self.path("db.sock")));
        switch.arg(format!("--unixctl={}", control.display()));
        let log = self.directory.join("ovs-vswitchd.log");
        let mut switch = Daemon::start("ovs-vswitchd", switch, log)?;
        switch.wait_until(START_PATIENCE, || control.exists())?;
        Ok(switch)
    }

    fn add_ports(&self) -> Result<(), BuildError> {
        let seconds = CONFIGURE_SECONDS + PORT_SECONDS * self.topology.hosts.len();
        let timeout = format!("--timeout={seconds}");
        let mut words = vec![&timeout, "add-br", BRIDGE, "--", "set", "bridge", BRIDGE];
        words.extend(["datapath_type=netdev", "fail-mode=secure"]);
        for host in &self.topology.hosts {
            words.extend(["--", "add-port", BRIDGE, &host.port, "--", "set", "interface"]);
            words.extend([&host.port, "type=afxdp"]);
        }
        self.vsctl(words)?;
        // A port that cannot be opened is no error of `ovs-vsctl`.
        let errors = self.vsctl(["--bare", "--columns=name,error", "list", "interface"])?;
        match errors.lines().find(|line| line.contains("could not") || line.contains("error")) {
            None => Ok(()),
            Some(line) => building("add ports to Open vSwitch", Err(std::io::Error::other(line))),
        }
    }

    /// Lets the connection tracker remember at most so many; by default three million.
    fn bound_connections(&self, room: usize) -> Result<(), BuildError> {
        let control = format!("--target={}", self.path("vswitchd.ctl"));
        tool(None, "ovs-appctl", [&control, "dpctl/ct-set-maxconns", &room.to_string()])?;
        Ok(())
    }

    /// Loads flows in OpenFlow's words.
    fn load(&self, flows: &str) -> Result<(), BuildError> {
        let bridge = format!("unix:{}", self.path(&format!("{BRIDGE}.mgmt")));
        let timeout = format!("--timeout={CONFIGURE_SECONDS}");
        let words = [&timeout, "--bundle", "add-flows", &bridge, "-"];
        tool_with_input(None, "ovs-ofctl", words, flows)?;
        Ok(())
    }

    fn vsctl<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<String, BuildError> {
        let database = format!("--db=unix:{}", self.path("db.sock"));
        let words = words.into_iter().map(str::to_owned);
        Ok(tool(None, "ovs-vsctl", std::iter::once(database).chain(words))?)
    }
}

/// The processor that the PMD thread runs on: where there are several, not the one that a lone generator
/// takes.
fn last_processor() -> usize {
    affinity::available().unwrap_or_default().last().copied().unwrap_or(0)
}
