//! Network namespaces with a name, as `ip netns` knows them: each is a file in `/run/netns` that
//! the namespace is bind-mounted on, so it lives on without a process in it.
//!
//! A namespace is a property of a thread, so work inside one is done on a thread of its own
//! ([`Netns::run`], [`Netns::spawn`]) that ends with the work; the caller's thread never moves.
//! Processes started from such a thread inherit the namespace.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where named namespaces live (iproute2's `NETNS_RUN_DIR`).
const DIRECTORY: &str = "/run/netns";

/// Why a namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} the network namespace {name}: {source}{}", hint(.source))]
pub struct NetnsError {
    /// What was tried.
    doing: &'static str,
    /// The namespace's name.
    name: String,
    /// What the kernel said.
    source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => " (this needs root: use sudo)",
        io::ErrorKind::AlreadyExists => " (someone else's? `ip netns del` removes it)",
        _ => "",
    }
}

/// A named network namespace. Dropping the handle does not remove it; [`Netns::delete`] does.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes an empty namespace of this name.
    ///
    /// # Errors
    /// If there is one already, or without root.
    pub fn create(name: &str) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError { doing: "make", name: name.to_owned(), source };
        fs::create_dir_all(DIRECTORY).map_err(failed)?;
        let path = path(name);
        OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
        let made = {
            let path = path.clone();
            on_thread(move || {
                unshare(CloneFlags::CLONE_NEWNET)?;
                mount(
                    Some("/proc/thread-self/ns/net"),
                    &path,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )
            })
        };
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(failed(error.into()));
        }
        Self::open(name)
    }

    /// The namespace of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(name: &str) -> Result<Self, NetnsError> {
        match File::open(path(name)) {
            Ok(file) => Ok(Self { name: name.to_owned(), file }),
            Err(source) => Err(NetnsError { doing: "open", name: name.to_owned(), source }),
        }
    }

    /// Removes the name, and with it the namespace and its interfaces once no process and no open
    /// file holds it any more. True if there was one.
    ///
    /// # Errors
    /// Without root.
    pub fn delete(name: &str) -> Result<bool, NetnsError> {
        let failed = |source| NetnsError { doing: "remove", name: name.to_owned(), source };
        let path = path(name);
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: a file that nothing is mounted on, of a creation cut short.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(failed(error.into())),
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The open namespace file, for netlink's `IFLA_NET_NS_FD`.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// Without root.
    pub fn enter(&self) -> Result<(), NetnsError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError {
            doing: "enter",
            name: self.name.clone(),
            source: errno.into(),
        })
    }

    /// Does `work` inside the namespace and waits for it.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_thread(|| self.enter().map(|()| work()))
    }

    /// Does `work` inside the namespace on a thread of its own, called `name`.
    ///
    /// # Errors
    /// If the thread cannot be started. What the thread returns is an error if it could not enter.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T, NetnsError>>, NetnsError> {
        let failed = |source| NetnsError { doing: "enter", name: self.name.clone(), source };
        let inside = Self { name: self.name.clone(), file: self.file.try_clone().map_err(failed)? };
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || inside.enter().map(|()| work()))
            .map_err(failed)
    }

    /// Sets a parameter below `/proc/sys/net` of this namespace, such as
    /// `ipv6/conf/default/accept_ra`.
    ///
    /// # Errors
    /// If there is no such parameter here.
    pub fn set(&self, parameter: &str, value: &str) -> Result<(), NetnsError> {
        let path = Path::new("/proc/sys/net").join(parameter);
        self.run(|| fs::write(path, value))?.map_err(|source| NetnsError {
            doing: "set a parameter of",
            name: format!("{} ({parameter})", self.name),
            source,
        })
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
