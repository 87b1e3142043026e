//! Opens workloads' interfaces, each on its lane.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use firedoor_classifier::snapshot::{Lane, Workload};

use crate::engine::{Lease, MAX_QUEUES, OpenFailure, Opened, Opener};
use crate::express::frames::LookupPort;
use crate::express::{ExpressError, Hook, Member, Members, TcHook, egress_of, is_carried};
use crate::link::{Link, LinkError};
use crate::pool::FramePool;
use crate::port::Port;
use crate::port::xdp::{self, OpenError, XdpOptions};
use crate::sys::umem::Umem;

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

/// The opener of the real data plane.
#[derive(Default)]
pub struct Interfaces {
    members: Arc<Members>,
}

impl Interfaces {
    /// An opener whose express lane outlives the process in that directory, if it is given and of a
    /// BPF file system.
    pub fn new(pins: Option<PathBuf>) -> Self {
        Self { members: Arc::new(pins.map_or_else(Members::default, Members::pinned)) }
    }
}

impl Opener for Interfaces {
    fn open(
        &mut self,
        umem: &Arc<Umem>,
        lease: Lease,
        workload: &Workload,
        pool: &mut FramePool,
    ) -> Result<Opened, OpenFailure> {
        let mut notices = Vec::new();
        if workload.lane != Lane::Switch {
            match self.open_express(umem, lease, workload, pool) {
                Ok(opened) => return Ok(opened),
                Err(error) if is_missing(&error) => return Err(OpenFailure::Missing),
                // Nobody asked for what the express lane does not carry, or for the lane at all.
                Err(ExpressError::WrongKind { .. } | ExpressError::Off)
                    if workload.lane == Lane::Auto => {}
                Err(error) => notices
                    .push(format!("the switch lane carries it, because {}", with_sources(&error))),
            }
        }
        let mut opened = self.open_switch(umem, lease, workload, pool)?;
        notices.append(&mut opened.notices);
        Ok(Opened { notices, ..opened })
    }

    fn members(&self) -> Arc<Members> {
        Arc::clone(&self.members)
    }
}

impl Interfaces {
    /// On the express lane: a program at its ingress, and a socket to send.
    fn open_express(
        &self,
        umem: &Arc<Umem>,
        lease: Lease,
        workload: &Workload,
        pool: &mut FramePool,
    ) -> Result<Opened, ExpressError> {
        let lane = self.members.lane()?;
        let tag = lease.tag();
        let opened = lane.open(umem, lease.owner_base, tag, &workload.ifname, lease.fill, pool)?;
        self.join(workload, &opened.link, Some(Hook::Tcx));
        let unpinned = lane.why_unpinned().map(|why| {
            format!("the kernel's verdicts end with the data plane, because they cannot be pinned: {why}")
        });
        let (mode, older) = match lane.hook() {
            TcHook::Tcx => ("tcx", None),
            TcHook::Clsact => ("clsact", Some(no_tcx(&workload.ifname))),
        };
        Ok(Opened {
            queues: vec![Box::new(opened.port)],
            mode: mode.into(),
            notices: older.into_iter().chain(unpinned).collect(),
            lane: Lane::Express,
            ifindex: opened.link.index,
        })
    }

    /// On the switch lane: an XDP program, and a socket per queue. The program looks frames up, too,
    /// if that is possible.
    fn open_switch(
        &self,
        umem: &Arc<Umem>,
        lease: Lease,
        workload: &Workload,
        pool: &mut FramePool,
    ) -> Result<Opened, OpenFailure> {
        let options = XdpOptions {
            fill: lease.fill,
            tx: lease.fill,
            max_queues: MAX_QUEUES.into(),
            walls: Some(self.members.walls()),
            pins: self.members.pins(),
            ..XdpOptions::default()
        };
        match self.open_frames(umem, lease, workload, &options, pool) {
            Ok(opened) => {
                self.join(workload, &opened.link, Some(Hook::Xdp));
                Ok(opened.into())
            }
            Err(error) => {
                tracing::debug!(%error, workload.ifname, "frames are not looked up in XDP");
                let opened = open_plain(umem, lease, workload, &options, pool)?;
                self.join(workload, &opened.link, None);
                Ok(opened.into())
            }
        }
    }

    fn open_frames(
        &self,
        umem: &Arc<Umem>,
        lease: Lease,
        workload: &Workload,
        options: &XdpOptions,
        pool: &mut FramePool,
    ) -> Result<xdp::Opened<LookupPort>, ExpressError> {
        let lane = self.members.lane()?;
        let (owner, ifname) = (lease.owner_base, &workload.ifname);
        lane.open_frames(umem, owner, lease.tag(), ifname, options, pool)
    }

    fn join(&self, workload: &Workload, link: &Link, hook: Option<Hook>) {
        let member = Member {
            ifindex: link.index,
            egress: egress_of(link),
            max_frame: u16::try_from(link.mtu + ETHERNET).unwrap_or(u16::MAX),
            hook,
            takes_packets: is_carried(link),
            takes_frames: false,
        };
        self.members.join(workload.port, member);
    }
}

/// On the switch lane of kernels and drivers that cannot do more: every frame reaches a socket.
fn open_plain(
    umem: &Arc<Umem>,
    lease: Lease,
    workload: &Workload,
    options: &XdpOptions,
    pool: &mut FramePool,
) -> Result<xdp::Opened, OpenFailure> {
    let opened = xdp::open(umem, lease.owner_base, &workload.ifname, options, pool);
    opened.map_err(|error| match error {
        OpenError::Link(LinkError::NotFound { .. }) => OpenFailure::Missing,
        error => OpenFailure::Failed(with_sources(&error)),
    })
}

/// A port of the switch lane, with or without the lookup.
impl<P: Port + 'static> From<xdp::Opened<P>> for Opened {
    fn from(opened: xdp::Opened<P>) -> Self {
        let xdp::Opened { queues, mode, notices, link } = opened;
        let queues = queues.into_iter().map(|queue| Box::new(queue) as Box<dyn Port>).collect();
        Self { queues, mode, notices, lane: Lane::Switch, ifindex: link.index }
    }
}

/// What a port's notice says on older kernels.
fn no_tcx(ifname: &str) -> String {
    format!(
        "a filter of clsact looks its frames up, because the kernel has no tcx (Linux 6.6) or \
         FIREDOOR_NO_TCX is set: if the switch is killed and not started again, it drops every \
         frame until `tc qdisc del dev {ifname} clsact`"
    )
}

fn is_missing(error: &ExpressError) -> bool {
    matches!(
        error,
        ExpressError::Link(LinkError::NotFound { .. })
            | ExpressError::Open(OpenError::Link(LinkError::NotFound { .. }))
    )
}

/// An error and what it came from, in one line.
fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
