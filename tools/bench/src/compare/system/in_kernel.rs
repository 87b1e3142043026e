//! Redirection inside the kernel, without any lookup: the floors of whatever forwards there.

use std::any::Any;
use std::error::Error;
use std::io;

use aya::maps::HashMap;
use aya::maps::xdp::DevMapHash;
use aya::programs::tc::TcAttachOptions;
use aya::programs::xdp::XdpMode;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp};
use aya::{Ebpf, EbpfLoader};
use firedoor_dataplane::link::Netlink;

use super::{Missing, Site, System, TWO_PORTS, Up, need};
use crate::compare::error::{BuildError, building};
use crate::compare::machine;
use crate::compare::topology::Topology;

/// dataplane/bpf/floors.bpf.c, compiled by `cargo xtask bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../../dataplane/bpf/floors.bpf.o");

/// A program at both ports that redirects whatever comes.
pub(super) struct Redirect {
    name: &'static str,
    about: &'static str,
    hook: Hook,
    is_usual: bool,
}

/// Where the program sees what comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hook {
    /// Before the kernel makes an skb.
    Xdp,
    /// As an skb. One of two programs hands it to the other host, one sends it by the other port.
    Tcx(&'static str),
}

pub(super) static XDP: Redirect = Redirect {
    name: "xdp",
    about: "floor: an XDP program that redirects every frame to the other port",
    hook: Hook::Xdp,
    is_usual: true,
};

pub(super) static TCX: Redirect = Redirect {
    name: "tcx",
    about: "floor: a tcx program that hands every packet to the other host (bpf_redirect_peer)",
    hook: Hook::Tcx("floor_tcx"),
    is_usual: true,
};

/// Slower than [`TCX`] in everything, which is what it is there to show.
pub(super) static TCX_EGRESS: Redirect = Redirect {
    name: "tcx-egress",
    about: "floor: a tcx program that sends every packet by the other port (bpf_redirect)",
    hook: Hook::Tcx("floor_tcx_egress"),
    is_usual: false,
};

impl System for Redirect {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn version(&self) -> Result<String, Missing> {
        need(&[("ethtool", "ethtool")])?;
        Ok(format!("Linux {}", machine::kernel()))
    }

    fn is_usual(&self) -> bool {
        self.is_usual
    }

    fn port_limit(&self) -> Option<(usize, &'static str)> {
        Some(TWO_PORTS)
    }

    fn up(&self, site: &Site<'_>) -> Result<Up, BuildError> {
        if self.hook == Hook::Xdp {
            site.topology.complete_checksums()?;
            site.topology.receive_redirected()?;
        }
        let attached = site.topology.switch.run(|| match self.hook {
            Hook::Xdp => attach_xdp(site.topology),
            Hook::Tcx(program) => attach_tcx(program, site.topology),
        });
        Ok(Up::new(building("attach the program", attached?)?))
    }
}

/// The two ports' interface indices, in the calling thread's namespace.
fn indices(topology: &Topology) -> io::Result<[u32; 2]> {
    let mut netlink = Netlink::open()?;
    let mut index = |position: usize| {
        let port = &topology.hosts[position].port;
        netlink.link(port).map(|link| link.index).map_err(io::Error::other)
    };
    Ok([index(0)?, index(1)?])
}

fn load() -> io::Result<Ebpf> {
    // The kernel's own type information is large, and nothing here needs it.
    EbpfLoader::new().btf(None).load(OBJECT).map_err(told)
}

fn attach_xdp(topology: &Topology) -> io::Result<Box<dyn Any + Send>> {
    let [one, other] = indices(topology)?;
    let mut object = load()?;
    let map = object.take_map("devices").ok_or(io::ErrorKind::InvalidData)?;
    let mut devices = DevMapHash::try_from(map).map_err(told)?;
    devices.insert(one, other, None, 0).map_err(told)?;
    devices.insert(other, one, None, 0).map_err(told)?;
    let program = object.program_mut("floor_xdp").ok_or(io::ErrorKind::InvalidData)?;
    let program: &mut Xdp = program.try_into().map_err(told)?;
    program.load().map_err(told)?;
    for index in [one, other] {
        program.attach_to_if_index(index, XdpMode::Driver).map_err(told)?;
    }
    Ok(Box::new((object, devices)))
}

fn attach_tcx(name: &str, topology: &Topology) -> io::Result<Box<dyn Any + Send>> {
    let [one, other] = indices(topology)?;
    let mut object = load()?;
    let map = object.take_map("peers").ok_or(io::ErrorKind::InvalidData)?;
    let mut peers = HashMap::<_, u32, u32>::try_from(map).map_err(told)?;
    peers.insert(one, other, 0).map_err(told)?;
    peers.insert(other, one, 0).map_err(told)?;
    let program = object.program_mut(name).ok_or(io::ErrorKind::InvalidData)?;
    let program: &mut SchedClassifier = program.try_into().map_err(told)?;
    program.load().map_err(told)?;
    for host in &topology.hosts {
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        program.attach_with_options(&host.port, TcAttachType::Ingress, first).map_err(told)?;
    }
    Ok(Box::new((object, peers)))
}

/// An error of aya's with its innermost cause, which is the kernel's answer.
fn told(error: impl Error + Send + Sync + 'static) -> io::Error {
    let mut innermost: &dyn Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    io::Error::other(format!("{error}: {innermost}"))
}
