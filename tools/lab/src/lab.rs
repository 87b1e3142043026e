//! A lab: one config, brought to life and taken away again.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use firedoor_api::control::{Reply, Request, Status};
use firedoor_classifier::snapshot::Snapshot;
use firedoor_control::client::{ClientError, ControlClient, Role};
use firedoor_control::intent;
use firedoor_control::rundir::RunDir;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::build::{compile_today, with_switch_name};
use crate::error::{LabError, building};
use crate::netns::Netns;
use crate::plan::Host;
use crate::state::{GUEST_VARIABLE, State};

/// What the switch says, in the run directory.
pub(crate) const LOG: &str = "switch.log";
/// The config of a lab whose name was not that of its config, in the run directory.
pub(crate) const CONFIG: &str = "lab.toml";
/// Names of the workloads for programs inside the lab, in the run directory.
pub(crate) const HOSTS: &str = "hosts";

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
    pub(crate) state: State,
    pub(crate) run_dir: RunDir,
    /// What it was built from; empty for a lab that someone else built.
    pub(crate) hosts: Vec<Host>,
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
        let text = File::open(&path).and_then(intent::read).map_err(read)?;
        Temporary::up(&path, &text, options)?.keep()
    }

    /// The lab of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(name: &str) -> Result<Self, LabError> {
        let run_dir = RunDir::of(name);
        let state = match State::load(run_dir.path()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(LabError::NotPermitted { path: run_dir.path().to_owned() });
            }
            state => building("read what is known of the lab", state)?,
        };
        match state {
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

    pub(crate) fn remove(&self) -> Result<(), LabError> {
        self.state.stop_processes();
        let deleted: Vec<_> = self.state.all_netns().map(|name| Netns::delete(name)).collect();
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
    /// Replaces the calling process, whose only thread must be the caller. What it starts is ended
    /// with the lab.
    ///
    /// # Errors
    /// If there is no such workload or no such program. Does not return otherwise.
    pub fn exec(&self, workload: &str, program: &str, arguments: &[String]) -> LabError {
        let attempt = || -> Result<io::Error, LabError> {
            self.netns(workload)?.enter()?;
            building("show the workloads' names", self.mount_hosts())?;
            let mut command = Command::new(program);
            command.args(arguments).env(GUEST_VARIABLE, &self.state.token);
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

    /// What the switch said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.run_dir.path().join(LOG)).unwrap_or_default()
    }

    /// The end of it.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
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
