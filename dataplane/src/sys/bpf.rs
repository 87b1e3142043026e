//! The XDP program that steers a port's frames into its sockets: load, and attach by a BPF link.
//! What is common to [such programs](Steering) is here, too.
//!
//! A BPF link lives as long as its file descriptor, so the program comes off the interface when the
//! process ends, however it ends, unless it is [pinned](super::pins). See docs/adr/0001.

use std::error::Error;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aya::maps::{MapData, XskMap};
use aya::programs::Xdp;
use aya::programs::links::Link;
use aya::programs::xdp::{XdpLink, XdpLinkId, XdpMode};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use parking_lot::Mutex;

use super::express::LAYOUT;
use super::pins::{self, Pins, Place};

/// dataplane/bpf/redirect.bpf.c, compiled by `cargo xtask bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/redirect.bpf.o");

/// Made once, because making it takes time. It keeps the paths that maps were pinned at.
pub(super) static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> =
    LazyLock::new(|| Mutex::new(loader()));

/// A loader. It has read and parsed the kernel's own type information (5 MB), which these programs do
/// not need.
pub(super) fn loader() -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader
}

/// Does now what the first program to be loaded would wait for, or waits until another thread has.
pub(crate) fn prepare() {
    aya::features();
    LazyLock::force(&LOADER);
}

/// How an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// In the driver, before the kernel makes an skb.
    Native,
    /// In the network stack, on skbs, for drivers without native mode.
    Generic,
}

/// An XDP program that steers the frames of one interface into its sockets.
pub(crate) trait Steering: Send + Sync {
    /// Sends the frames of that queue to that socket. The kernel takes the socket out of the map
    /// when it is closed.
    fn set(&mut self, queue: u32, socket: RawFd) -> io::Result<()>;

    /// Attaches the program to an interface. It stays until the result is dropped.
    fn attach(&mut self, index: u32, mode: Mode) -> io::Result<Attached>;
}

/// The program, loaded for one interface, with a map of its sockets.
pub(crate) struct Redirect {
    program: Ebpf,
    sockets: XskMap<MapData>,
    /// Where a process before may have pinned what looked frames up there.
    pins: Option<Pins>,
}

impl Redirect {
    /// Loads the program with room for `queues` sockets. It takes the place of one that a process before has
    /// pinned in `pins`, if that is given.
    pub(crate) fn load(queues: u32, pins: Option<&Path>) -> io::Result<Self> {
        // Links for XDP programs came with 5.9; aya would attach without one, and such a program
        // survives the process.
        if KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(5, 9, 0)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "needs Linux 5.9 or later"));
        }
        let mut program =
            LOADER.lock().map_max_entries("xsks", queues).load(OBJECT).map_err(kernel_error)?;
        let map = program.take_map("xsks").ok_or(io::ErrorKind::InvalidData)?;
        let sockets = XskMap::try_from(map).map_err(kernel_error)?;
        let pins = pins.and_then(|base| Pins::at(base, LAYOUT).ok());
        let mut redirect = Self { program, sockets, pins };
        redirect.xdp()?.load().map_err(kernel_error)?;
        Ok(redirect)
    }

    fn xdp(&mut self) -> io::Result<&mut Xdp> {
        let program = self.program.program_mut("redirect").ok_or(io::ErrorKind::InvalidData)?;
        program.try_into().map_err(kernel_error)
    }
}

impl Steering for Redirect {
    fn set(&mut self, queue: u32, socket: RawFd) -> io::Result<()> {
        self.sockets.set(queue, socket, 0).map_err(kernel_error)
    }

    fn attach(&mut self, index: u32, mode: Mode) -> io::Result<Attached> {
        let pin = self.pins.as_ref().map(|pins| pins.link(Place::Xdp, index));
        let program = self.xdp()?;
        match pin.filter(|pin| mode == Mode::Native && pin.exists()) {
            Some(pin) => attach(program, index, mode, Some(pin)).map(Attached::unpinned),
            None => attach(program, index, mode, None),
        }
    }
}

/// Attaches a program to an interface. It stays until the result is dropped. With `pin`, a path, it outlives the
/// process, and takes the place of the one whose link is pinned there in one step.
pub(super) fn attach(
    program: &mut Xdp,
    index: u32,
    mode: Mode,
    pin: Option<PathBuf>,
) -> io::Result<Attached> {
    let replace = |link: XdpLink| {
        let id = program.attach_to_link(link).map_err(kernel_error)?;
        program.take_link(id).map_err(kernel_error)
    };
    if let Some(link) = pin.as_ref().and_then(|pin| pins::take_over(pin, replace)) {
        return Ok(Attached { link: Some(link), pin });
    }
    let mode = match mode {
        Mode::Native => XdpMode::Driver,
        Mode::Generic => XdpMode::Skb,
    };
    let id: XdpLinkId = program.attach_to_if_index(index, mode).map_err(kernel_error)?;
    let link = program.take_link(id).map_err(kernel_error)?;
    let link = match &pin {
        Some(pin) => pins::pin(link, pin)?,
        None => link,
    };
    Ok(Attached { link: Some(link), pin })
}

/// The program on its interface; dropping this takes it off.
#[derive(Debug)]
pub(crate) struct Attached {
    link: Option<XdpLink>,
    pin: Option<PathBuf>,
}

impl Attached {
    /// From now on it ends with the process.
    fn unpinned(mut self) -> Self {
        self.pin.take().iter().for_each(|pin| pins::unpin(pin));
        self
    }

    /// Leaves the program there if that outlives the process, and takes it off if it does not.
    pub(crate) fn abandon(self) {
        if self.pin.is_some() {
            std::mem::forget(self);
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(pin) = &self.pin {
            pins::unpin(pin);
        }
        // If the interface is gone, the kernel has detached the program itself.
        if let Some(link) = self.link.take() {
            let _ = link.detach();
        }
    }
}

/// The `errno` behind an error of aya's, or the error itself if there is none.
pub(super) fn kernel_error(error: impl Error + Send + Sync + 'static) -> io::Error {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        let errno = current.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if let Some(errno) = errno {
            return io::Error::from_raw_os_error(errno);
        }
        cause = current.source();
    }
    io::Error::other(error)
}
