//! Building a lab: from a compiled config to a switch that is ready.
//!
//! The order is what makes a killed builder harmless: first everything is written down by name,
//! then namespaces, wires and taps are made, last the switch is started.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use firedoor_api::control::Status;
use firedoor_api::dataplane::PortState;
use firedoor_classifier::snapshot::{Kind, Lane};
use firedoor_control::compile::{Compiled, compile};
use firedoor_control::rundir::RunDir;
use firedoor_dataplane::link::{Netlink, VethEnd};
use firedoor_dataplane::sys::{ethtool, tap};

use crate::address;
use crate::error::{LabError, building};
use crate::lab::{CONFIG, HOSTS, LOG, Lab, Options};
use crate::netns::Netns;
use crate::plan::{self, CONTAINER_IFNAME, Host};
use crate::state::{Builder, State, TOKEN_VARIABLE};

/// How long the switch may take to start, and how much longer for each port.
const START_PATIENCE: Duration = Duration::from_secs(20);
const PORT_PATIENCE: Duration = Duration::from_millis(200);

impl Lab {
    /// Writes the lab down before anything is made, after removing what a dead one left.
    pub(crate) fn claim(path: &Path, compiled: &Compiled) -> Result<Self, LabError> {
        let name = compiled.snapshot.switch.clone();
        let run_dir = RunDir::of(&name);
        if let Some(state) = building("read what is known of the lab", State::load(run_dir.path()))?
        {
            if !state.is_abandoned() {
                return Err(LabError::Up { name });
            }
            Self { state, run_dir: run_dir.clone(), hosts: Vec::new() }.remove()?;
        }
        let hosts = plan::hosts(&compiled.plan);
        let of_kind = |kind| hosts.iter().filter(move |host| host.kind == kind);
        let netns = |host: &Host| plan::workload_netns(&name, &host.workload);
        let state = State {
            name: name.clone(),
            config: path.to_owned(),
            token: token(&name),
            builder: Some(Builder::this()),
            switch_netns: plan::switch_netns(&name),
            namespaces: of_kind(Kind::Container).map(|h| (h.workload.clone(), netns(h))).collect(),
            taps: of_kind(Kind::Vm).map(|h| (h.workload.clone(), h.ifname.clone())).collect(),
        };
        // What is not there before is the lab's own, and may be deleted with it.
        if let Some(netns) = state.all_netns().find(|name| Netns::open(name).is_ok()) {
            return Err(LabError::Taken { netns: netns.clone() });
        }
        run_dir.create()?;
        match state.claim(run_dir.path()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(LabError::Up { name })
            }
            result => building("write the lab down", result),
        }?;
        Ok(Self { state, run_dir, hosts })
    }

    /// Makes what was written down, and waits for the switch.
    pub(crate) fn build(
        &self,
        compiled: &Compiled,
        config: Option<&str>,
        options: &Options<'_>,
    ) -> Result<(), LabError> {
        (options.progress)("namespaces and interfaces");
        let switch = Netns::create(&self.state.switch_netns)?;
        // The switch's own ends of the wires say nothing of themselves.
        switch.set("ipv6/conf/default/disable_ipv6", "1")?;
        switch.run(|| -> Result<(), LabError> {
            let mut netlink = building("open a netlink socket", Netlink::open())?;
            Ok(netlink.set_up("lo", true)?)
        })??;
        for host in &self.hosts {
            if options.interrupted.load(Ordering::Relaxed) {
                return Err(LabError::Interrupted);
            }
            match host.kind {
                Kind::Container => self.build_container(&switch, host, compiled)?,
                Kind::Vm => build_tap(&switch, host)?,
                Kind::External => {}
            }
        }
        let path = self.run_dir.path();
        building("write the hosts file", fs::write(path.join(HOSTS), self.hosts_file()))?;
        let config = match config {
            Some(text) => {
                let path = path.join(CONFIG);
                building("write the config", fs::write(&path, text))?;
                path
            }
            None => self.state.config.clone(),
        };
        (options.progress)("switch");
        let child = self.start_switch(&switch, &config, options)?;
        self.wait_until_ready(child, compiled, options)
    }

    /// A veth has as many queues as the switch has workers, so that each can have one. Its near end stays down
    /// until the switch has it: no frame is for its host.
    fn build_container(
        &self,
        switch: &Netns,
        host: &Host,
        compiled: &Compiled,
    ) -> Result<(), LabError> {
        let queues = compiled.snapshot.settings.workers.into();
        let inside = Netns::create(&self.state.namespaces[&host.workload])?;
        // Addresses work at once, and come from the config alone.
        for conf in ["all", "default"] {
            inside.set(&format!("ipv6/conf/{conf}/accept_dad"), "0")?;
            inside.set(&format!("ipv6/conf/{conf}/accept_ra"), "0")?;
            if host.router {
                inside.set(&format!("ipv4/conf/{conf}/forwarding"), "1")?;
                inside.set(&format!("ipv6/conf/{conf}/forwarding"), "1")?;
            }
        }
        inside.set("ipv4/ping_group_range", "0 2147483647")?;
        switch.run(|| -> Result<(), LabError> {
            let mut netlink = building("open a netlink socket", Netlink::open())?;
            let near = VethEnd::new(&host.ifname);
            let far = VethEnd {
                mac: host.mac.map(|mac| mac.0),
                netns: Some(inside.file().as_fd()),
                ..VethEnd::new(CONTAINER_IFNAME)
            };
            Ok(netlink.create_veth(near, far, queues)?)
        })??;
        inside.run(|| -> Result<(), LabError> {
            set_up_container(host)?;
            match takes_frames(compiled, host) {
                true => building("turn GRO on", ethtool::receive_offload_on(CONTAINER_IFNAME)),
                false => Ok(()),
            }
        })?
    }

    /// As `/etc/hosts` has it.
    fn hosts_file(&self) -> String {
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for host in &self.hosts {
            for net in &host.addresses {
                text += &format!("{} {}\n", net.addr(), host.workload);
            }
        }
        text
    }

    fn start_switch(
        &self,
        switch: &Netns,
        config: &Path,
        options: &Options<'_>,
    ) -> Result<Child, LabError> {
        let path = self.run_dir.path().join(LOG);
        let log = building("open the switch's log", File::create(path))?;
        let log_too = building("open the switch's log", log.try_clone())?;
        let mut command = Command::new(&options.firedoor);
        command
            .arg("run")
            .arg(config)
            .env(TOKEN_VARIABLE, &self.state.token)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            // Not ended by the Ctrl-C that ends who built it.
            .process_group(0);
        let child = switch.run(|| command.spawn())?;
        building(format!("start {}", options.firedoor.display()), child)
    }

    /// Waits until the policy is in force and every port up whose interface the lab made.
    fn wait_until_ready(
        &self,
        mut child: Child,
        compiled: &Compiled,
        options: &Options<'_>,
    ) -> Result<(), LabError> {
        let made = |name: &str| {
            self.state.namespaces.contains_key(name) || self.state.taps.contains_key(name)
        };
        let ports = compiled.plan.iter().filter(|planned| made(&planned.name)).count();
        let patience = START_PATIENCE + PORT_PATIENCE * u32::try_from(ports).unwrap_or(u32::MAX);
        let start = Instant::now();
        loop {
            let waiting_for = match self.status().map(|status| missing(&status, &made)) {
                // Control learns last that its policy is in force.
                Ok(None) => self.snapshot().err().map(|error| error.to_string()),
                Ok(missing) => missing,
                Err(error) => Some(error.to_string()),
            };
            // The question may have taken as long as the switch took to be ready.
            if options.interrupted.load(Ordering::Relaxed) {
                return Err(LabError::Interrupted);
            }
            let Some(waiting_for) = waiting_for else { return Ok(()) };
            if let Some(status) = building("watch the switch", child.try_wait())? {
                return Err(LabError::Ended { status, log: self.log_tail() });
            }
            if start.elapsed() > patience {
                return Err(LabError::NotReady { patience, waiting_for });
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }
}

/// What a switch still lacks of being ready, in words.
fn missing(status: &Status, made: &dyn Fn(&str) -> bool) -> Option<String> {
    let Some(dataplane) = &status.dataplane else {
        return Some("the data plane does not answer".to_owned());
    };
    if dataplane.epoch == 0 {
        return Some("no policy is in force".to_owned());
    }
    let down = status.ports.iter().find(|p| made(&p.workload) && p.state != PortState::Up)?;
    let state = match &down.state {
        PortState::Failed(why) => why.clone(),
        PortState::Missing => "its interface is missing".to_owned(),
        PortState::Up => "up".to_owned(),
    };
    Some(format!("port {} ({}): {state}", down.workload, down.ifname))
}

fn build_tap(switch: &Netns, host: &Host) -> Result<(), LabError> {
    switch.run(|| -> Result<(), LabError> {
        let made = tap::open(&host.ifname).and_then(|tap| tap::persist(&tap));
        building(format!("make the tap {}", host.ifname), made)
    })?
}

/// Whether a container is to take frames that are redirected in XDP, which those of the switch lane are.
fn takes_frames(compiled: &Compiled, host: &Host) -> bool {
    let workloads = &compiled.snapshot.workloads;
    workloads.iter().any(|workload| workload.name == host.workload && workload.lane == Lane::Switch)
}

/// Inside a container: interfaces up, addresses, default routes.
fn set_up_container(host: &Host) -> Result<(), LabError> {
    let mut netlink = building("open a netlink socket", Netlink::open())?;
    netlink.set_up("lo", true)?;
    netlink.set_up(CONTAINER_IFNAME, true)?;
    let index = netlink.link(CONTAINER_IFNAME)?.index;
    for &net in &host.addresses {
        let added = address::add(&mut netlink, index, net);
        building(format!("give {} the address {net}", host.workload), added)?;
    }
    for &gateway in &host.gateways {
        let routed = address::set_default_route(&mut netlink, gateway);
        building(format!("route {} by way of {gateway}", host.workload), routed)?;
    }
    Ok(())
}

/// Compiles a config as it holds today (UTC, as rules expire).
pub(crate) fn compile_today(path: &Path, text: &str) -> Result<Compiled, LabError> {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    compile(&path.to_string_lossy(), text, None, today)
        .map_err(|diagnostics| LabError::Config(Box::new(diagnostics)))
}

/// The config with another switch name, all else as it was.
pub(crate) fn with_switch_name(text: &str, name: &str) -> String {
    let Ok(mut config) = text.parse::<toml_edit::DocumentMut>() else { return text.to_owned() };
    if let Some(switch) = config.get_mut("switch").and_then(toml_edit::Item::as_table_like_mut) {
        switch.insert("name", toml_edit::value(name));
    }
    config.to_string()
}

/// Something that no other lab, before or after, carries.
fn token(name: &str) -> String {
    let now = jiff::Timestamp::now().as_nanosecond();
    format!("{name}.{}.{now}", std::process::id())
}
