//! Where the program for tc is held on an interface, and how it gets there and away.

use std::io;
use std::path::PathBuf;

use aya::programs::links::Link as _;
use aya::programs::tc::{
    NlOptions, SchedClassifier, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{LinkOrder, TcAttachType};
use aya::util::KernelVersion;

use crate::link::Netlink;
use crate::sys::bpf::kernel_error;
use crate::sys::pins;

/// Where the clsact queueing discipline has the program: so that it can be replaced.
const CLSACT: NlOptions = NlOptions { priority: 1, handle: TcHandle::new(0, 1), classid: None };

/// First kernel with tcx.
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);

/// What holds the program for tc at a device's ingress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcHook {
    /// A BPF link, which ends with the process unless it is pinned.
    Tcx,
    /// A filter of the clsact queueing discipline, for kernels without tcx. It stays when the process is
    /// killed; the next one replaces it.
    Clsact,
}

impl TcHook {
    /// What the running kernel has. Where the environment has `FIREDOOR_NO_TCX`, tcx is not used.
    pub fn of_kernel() -> Self {
        let has_tcx = KernelVersion::current().is_ok_and(|version| version >= TCX);
        let is_wanted = std::env::var_os("FIREDOOR_NO_TCX").is_none();
        if has_tcx && is_wanted { Self::Tcx } else { Self::Clsact }
    }
}

/// The program on its interface; dropping this takes it off.
#[derive(Debug)]
pub(crate) struct Attached {
    link: Option<SchedClassifierLink>,
    pin: Option<PathBuf>,
    /// The interface whose clsact holds it, if one does.
    clsact: Option<u32>,
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
        if let Some(ifindex) = self.clsact {
            // Likewise.
            let _ = Netlink::open().and_then(|mut netlink| netlink.remove_empty_clsact(ifindex));
        }
    }
}

/// Puts the program on an interface's ingress, before any other, in the place of the one whose link is
/// pinned there.
pub(in crate::sys) fn attach(
    program: &mut SchedClassifier,
    hook: TcHook,
    pin: Option<PathBuf>,
    ifname: &str,
    ifindex: u32,
) -> io::Result<Attached> {
    if hook == TcHook::Clsact {
        let link = attach_to_clsact(program, ifname)?;
        return Ok(Attached { link: Some(link), pin: None, clsact: Some(ifindex) });
    }
    let replace = |link: SchedClassifierLink| {
        let id = program.attach_to_link(link).map_err(kernel_error)?;
        program.take_link(id).map_err(kernel_error)
    };
    let link = match pin.as_ref().and_then(|pin| pins::take_over(pin, replace)) {
        Some(link) => link,
        None => {
            let first = TcAttachOptions::TcxOrder(LinkOrder::first());
            let id = program
                .attach_with_options(ifname, TcAttachType::Ingress, first)
                .map_err(kernel_error)?;
            let link = program.take_link(id).map_err(kernel_error)?;
            match &pin {
                Some(pin) => pins::pin(link, pin)?,
                None => link,
            }
        }
    };
    Ok(Attached { link: Some(link), pin, clsact: None })
}

/// As [`attach`], for kernels without tcx: a filter stays where it is when the process is
/// killed, so it is replaced if it is there.
fn attach_to_clsact(
    program: &mut SchedClassifier,
    ifname: &str,
) -> io::Result<SchedClassifierLink> {
    match qdisc_add_clsact(ifname).map_err(kernel_error) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        _ => {}
    }
    let ingress = TcAttachType::Ingress;
    let NlOptions { priority, handle, classid } = CLSACT;
    let old = SchedClassifierLink::attached(ifname, ingress, priority, handle, classid)?;
    let id = match program.attach_to_link(old) {
        Ok(id) => id,
        Err(_) => program
            .attach_with_options(ifname, ingress, TcAttachOptions::Netlink(CLSACT))
            .map_err(kernel_error)?,
    };
    program.take_link(id).map_err(kernel_error)
}
