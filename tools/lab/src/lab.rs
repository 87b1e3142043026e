//! A lab: one config, brought to life and taken away again.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use firedoor_api::control::{Reply, Request, Status};
use firedoor_api::dataplane::PortState;
use firedoor_classifier::snapshot::{Kind, Snapshot};
use firedoor_control::client::{ClientError, ControlClient, Role};
use firedoor_control::compile::{Compiled, compile};
use firedoor_control::diagnostic::Diagnostics;
use firedoor_control::rundir::{RunDir, RunDirError};
use firedoor_dataplane::link::{LinkError, Netlink, VethEnd};
use firedoor_dataplane::sys::tap;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::address;
use crate::netns::{Netns, NetnsError};
use crate::plan::{self, CONTAINER_IFNAME, Host};
use crate::state::{Builder, State, TOKEN_VARIABLE};

/// What the switch says, in the run directory.
const LOG: &str = "switch.log";
/// The config of a lab whose name was not that of its config, in the run directory.
const CONFIG: &str = "lab.toml";
/// Names of the workloads for programs inside the lab, in the run directory.
const HOSTS: &str = "hosts";

/// How long the switch may take to start, and how much longer for each port.
const START_PATIENCE: Duration = Duration::from_secs(20);
const PORT_PATIENCE: Duration = Duration::from_millis(200);

/// Why a lab could not be built, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The config cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The config.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The config does not compile.
    #[error(transparent)]
    Config(#[from] Box<Diagnostics>),
    /// A lab of this name is up.
    #[error("lab {name} is up already: `firedoor lab down --switch {name}` removes it")]
    Up {
        /// Its name.
        name: String,
    },
    /// There is no lab of this name.
    #[error("there is no lab {name}: `firedoor lab list` shows those there are")]
    NotUp {
        /// The name.
        name: String,
    },
    /// A workload that has no namespace to run something in.
    #[error("{workload} is not a workload of lab {lab}; it has {}", there_are.join(", "))]
    NoWorkload {
        /// The lab.
        lab: String,
        /// The name.
        workload: String,
        /// Those there are.
        there_are: Vec<String>,
    },
    /// A step of building failed.
    #[error("cannot {what}: {source}")]
    Build {
        /// The step.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The switch ended while the lab waited for it.
    #[error("the switch ended ({status}) before it was ready; its last words:\n{log}")]
    Ended {
        /// How.
        status: std::process::ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// The switch took too long.
    #[error("the switch was not ready after {} s: {waiting_for}", patience.as_secs())]
    NotReady {
        /// How long it had.
        patience: Duration,
        /// What was missing.
        waiting_for: String,
    },
    /// Someone asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// An interface.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// A question to the switch.
    #[error(transparent)]
    Client(#[from] ClientError),
}

pub(crate) fn building<T>(what: impl fmt::Display, result: io::Result<T>) -> Result<T, LabError> {
    result.map_err(|source| LabError::Build { what: what.to_string(), source })
}

/// How a lab is built.
pub struct Options<'a> {
    /// The `firedoor` executable.
    pub firedoor: PathBuf,
    /// The lab's name, if it is not to be the config's switch name.
    pub name: Option<String>,
    /// Becomes true when building should stop.
    pub interrupted: &'a AtomicBool,
    /// Hears of each step as it begins.
    pub progress: &'a dyn Fn(&str),
}

/// A lab that is up. Dropping the handle leaves it up; see [`Lab::down`] and [`Temporary`].
#[derive(Clone, Debug)]
pub struct Lab {
    state: State,
    run_dir: RunDir,
    /// What it was built from; empty for a lab that someone else built.
    hosts: Vec<Host>,
}

impl Lab {
    /// Builds the lab of the config at `path`, and returns once every port is up and the policy in
    /// force. If that fails, nothing is left.
    ///
    /// # Errors
    /// If the config is wrong, the lab is up already, or a step fails.
    pub fn up(path: &Path, options: &Options<'_>) -> Result<Self, LabError> {
        let read = |source| LabError::Read { path: path.to_owned(), source };
        let path = fs::canonicalize(path).map_err(read)?;
        let text = fs::read_to_string(&path).map_err(read)?;
        Temporary::up(&path, &text, options)?.keep()
    }

    /// The lab of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(name: &str) -> Result<Self, LabError> {
        let run_dir = RunDir::of(name);
        match building("read what is known of the lab", State::load(run_dir.path()))? {
            Some(state) => Ok(Self { state, run_dir, hosts: Vec::new() }),
            None => Err(LabError::NotUp { name: name.to_owned() }),
        }
    }

    /// Every lab of this host, by name, whether its switch still runs or not.
    ///
    /// # Errors
    /// If the directory of run directories cannot be read.
    pub fn list() -> Result<Vec<Self>, LabError> {
        let base = RunDir::of("").path().to_owned();
        let entries = match fs::read_dir(&base) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => building(format!("list {}", base.display()), entries)?,
        };
        let mut names: Vec<String> =
            entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        let labs = names.iter().map(|name| Self::open(name));
        labs.filter(|lab| !matches!(lab, Err(LabError::NotUp { .. }))).collect()
    }

    /// Removes the lab: ends its processes, deletes its namespaces and with them its interfaces,
    /// and its run directory.
    ///
    /// # Errors
    /// If something cannot be removed. What can be, is.
    pub fn down(self) -> Result<(), LabError> {
        self.remove()
    }

    fn remove(&self) -> Result<(), LabError> {
        self.state.stop_processes();
        let names = self.state.namespaces.values().chain([&self.state.switch_netns]);
        let deleted: Vec<_> = names.map(|name| Netns::delete(name)).collect();
        for result in deleted {
            result?;
        }
        let path = self.run_dir.path();
        for file in [LOG, CONFIG, HOSTS] {
            building(format!("remove {file}"), remove_file(&path.join(file)))?;
        }
        building("forget the lab", State::forget(path))?;
        Ok(self.run_dir.remove()?)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// What is written down about it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The switch's run directory.
    pub fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// Its workloads as they were built; empty for a lab that another process built.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of a workload.
    ///
    /// # Errors
    /// If the lab has no such workload, or another process built it.
    pub fn host(&self, workload: &str) -> Result<&Host, LabError> {
        let there_are = || self.hosts.iter().map(|host| host.workload.clone()).collect();
        self.hosts.iter().find(|host| host.workload == workload).ok_or_else(|| {
            LabError::NoWorkload {
                lab: self.state.name.clone(),
                workload: workload.to_owned(),
                there_are: there_are(),
            }
        })
    }

    /// The namespace that the switch runs in.
    ///
    /// # Errors
    /// If it is gone.
    pub fn switch_netns(&self) -> Result<Netns, LabError> {
        Ok(Netns::open(&self.state.switch_netns)?)
    }

    /// The namespace of a container workload; of a vm workload, the switch's, where its tap is.
    ///
    /// # Errors
    /// If there is no such workload.
    pub fn netns(&self, workload: &str) -> Result<Netns, LabError> {
        let State { namespaces, taps, switch_netns, name, .. } = &self.state;
        let netns = namespaces.get(workload).or(taps.get(workload).map(|_| switch_netns));
        match netns {
            Some(netns) => Ok(Netns::open(netns)?),
            None => Err(LabError::NoWorkload {
                lab: name.clone(),
                workload: workload.to_owned(),
                there_are: namespaces.keys().chain(taps.keys()).cloned().collect(),
            }),
        }
    }

    /// A command to be run where the workload is: in its namespace, with the workloads' names in
    /// `/etc/hosts`; for a vm, in the switch's namespace with the tap's name in `FIREDOOR_TAP`.
    /// Replaces the calling process, whose only thread must be the caller.
    ///
    /// # Errors
    /// If there is no such workload or no such program. Does not return otherwise.
    pub fn exec(&self, workload: &str, program: &str, arguments: &[String]) -> LabError {
        let attempt = || -> Result<io::Error, LabError> {
            self.netns(workload)?.enter()?;
            building("show the workloads' names", self.mount_hosts())?;
            let mut command = Command::new(program);
            command.args(arguments);
            if let Some(tap) = self.state.taps.get(workload) {
                command.env("FIREDOOR_TAP", tap);
            }
            Ok(command.exec())
        };
        match attempt() {
            Ok(source) => LabError::Build { what: format!("run {program}"), source },
            Err(error) => error,
        }
    }

    /// Puts the lab's names over `/etc/hosts`, for this process and its children alone.
    fn mount_hosts(&self) -> io::Result<()> {
        let hosts = self.run_dir.path().join(HOSTS);
        if !hosts.exists() || !Path::new("/etc/hosts").exists() {
            return Ok(());
        }
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        mount(Some(&hosts), "/etc/hosts", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    }

    /// The status of its switch.
    ///
    /// # Errors
    /// If control does not answer.
    pub fn status(&self) -> Result<Status, LabError> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(ClientError::Unexpected { role: Role::Control }.into()),
        }
    }

    /// The snapshot in force.
    ///
    /// # Errors
    /// If control does not answer, or there is none.
    pub fn snapshot(&self) -> Result<Snapshot, LabError> {
        match self.ask(&Request::Snapshot)? {
            Reply::Snapshot(Some(snapshot)) => Ok(*snapshot),
            _ => Err(ClientError::Unexpected { role: Role::Control }.into()),
        }
    }

    /// Asks its switch's control.
    ///
    /// # Errors
    /// If control does not answer, or refuses.
    pub fn ask(&self, request: &Request) -> Result<Reply, LabError> {
        Ok(ControlClient::to_control(&self.run_dir)?.ask(request)?)
    }

    /// Writes the lab down before anything is made, after removing what a dead one left.
    fn claim(path: &Path, compiled: &Compiled) -> Result<Self, LabError> {
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
        run_dir.create()?;
        match state.claim(run_dir.path()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(LabError::Up { name })
            }
            result => building("write the lab down", result),
        }?;
        Ok(Self { state, run_dir, hosts })
    }

    fn build(
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
                Kind::Container => self.build_container(&switch, host)?,
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

    fn build_container(&self, switch: &Netns, host: &Host) -> Result<(), LabError> {
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
            netlink.create_veth(near, far, 1)?;
            Ok(netlink.set_up(&host.ifname, true)?)
        })??;
        inside.run(|| set_up_container(host))?
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
            let Some(waiting_for) = waiting_for else { return Ok(()) };
            if options.interrupted.load(Ordering::Relaxed) {
                return Err(LabError::Interrupted);
            }
            if let Some(status) = building("watch the switch", child.try_wait())? {
                return Err(LabError::Ended { status, log: self.log_tail() });
            }
            if start.elapsed() > patience {
                return Err(LabError::NotReady { patience, waiting_for });
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// The end of what the switch said.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.run_dir.path().join(LOG)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
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
        building(format!("make the tap {}", host.ifname), made)?;
        let mut netlink = building("open a netlink socket", Netlink::open())?;
        Ok(netlink.set_up(&host.ifname, true)?)
    })?
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

fn compile_today(path: &Path, text: &str) -> Result<Compiled, LabError> {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    compile(&path.to_string_lossy(), text, None, today)
        .map_err(|diagnostics| LabError::Config(Box::new(diagnostics)))
}

/// The config with another switch name, all else as it was.
fn with_switch_name(text: &str, name: &str) -> String {
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

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A lab that is removed when it is dropped, on whatever way out; and, should its process be killed,
/// by the next one of its name.
#[derive(Debug)]
pub struct Temporary {
    lab: Lab,
    kept: bool,
}

impl Temporary {
    /// Builds the lab of the config `text`, which came from `path`, and returns once every port is
    /// up and the policy in force.
    ///
    /// # Errors
    /// If the config is wrong, the lab is up already, or a step fails.
    pub fn up(path: &Path, text: &str, options: &Options<'_>) -> Result<Self, LabError> {
        // Judged as it was written first, for errors that point into the user's own text.
        let compiled = compile_today(path, text)?;
        let (compiled, renamed) = match &options.name {
            Some(name) => {
                let text = with_switch_name(text, name);
                (compile_today(path, &text)?, Some(text))
            }
            None => (compiled, None),
        };
        let lab = Self { lab: Lab::claim(path, &compiled)?, kept: false };
        lab.build(&compiled, renamed.as_deref(), options)?;
        Ok(lab)
    }

    /// Leaves it up, beyond the end of this process.
    ///
    /// # Errors
    /// If that cannot be written down; then it is removed.
    pub fn keep(mut self) -> Result<Lab, LabError> {
        let mut lab = self.lab.clone();
        building("write down that the lab is built", lab.state.finish(lab.run_dir.path()))?;
        self.kept = true;
        Ok(lab)
    }

    /// Removes it now, to hear of errors.
    ///
    /// # Errors
    /// As [`Lab::down`].
    pub fn down(mut self) -> Result<(), LabError> {
        self.kept = true;
        self.lab.remove()
    }
}

impl std::ops::Deref for Temporary {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.lab.remove()
        {
            tracing::error!("the lab could not be removed: {error}");
        }
    }
}
