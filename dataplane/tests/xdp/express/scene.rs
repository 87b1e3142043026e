//! What the tests of the express lane play on: two workloads, and the switch between them, which the test is.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use firedoor_classifier::PortId;
use firedoor_classifier::checksum::complete_partial;
use firedoor_classifier::extract::extract;
use firedoor_dataplane::express::punt::ExpressPort;
use firedoor_dataplane::express::{FlowId, FlowVerdict, Hook, InstallError, Lane, Slot, egress_of};
use firedoor_dataplane::frame::Frame;
use firedoor_dataplane::link::{Link, Netlink};
use firedoor_dataplane::port::Port;
use firedoor_dataplane::port::xdp::XdpOptions;
use firedoor_dataplane::redirect_targets::RedirectTargets;
use libtest_mimic::Failed;

use super::{CLIENT, OPEN, SERVER};
use crate::host::{self, Host, Workload};

/// Two workloads behind veths, both ports looked up by one program, epoch 1 in force, the door open.
pub(super) struct Scene {
    pub(super) lane: Lane,
    pub(super) workloads: [Workload; 2],
    pub(super) ports: Vec<Box<dyn Port>>,
    pub(super) links: [Link; 2],
    pub(super) macs: [[u8; 6]; 2],
}

impl Scene {
    pub(super) fn new(host: &mut Host, hook: Hook) -> Result<Self, Failed> {
        Self::of(host, Lane::load(64, None)?, hook)
    }

    pub(super) fn of(host: &mut Host, lane: Lane, hook: Hook) -> Result<Self, Failed> {
        let workloads =
            [Workload::new("10.99.0.1", "fd1", 1)?, Workload::new("10.99.0.2", "fd2", 1)?];
        for workload in &workloads {
            // What they would say by themselves is not asked for.
            let quiet = || Ok(std::fs::write("/proc/sys/net/ipv6/conf/fd0/disable_ipv6", "1")?);
            workload.inside(quiet)?;
        }
        lane.set_epoch(1);
        lane.keep_open(OPEN);
        let mut ports: Vec<Box<dyn Port>> = Vec::new();
        for (tag, ifname) in [(1, "fd1"), (2, "fd2")] {
            ports.push(match hook {
                Hook::Tcx => Box::new(open(host, &lane, tag, ifname)?.0),
                Hook::Xdp => open_frames(host, &lane, tag, ifname)?,
            });
        }
        let links = [host.link("fd1")?, host.link("fd2")?];
        if hook == Hook::Xdp {
            take_frames(&lane, &workloads, &links)?;
        }
        let mac = |workload: &Workload| workload.inside(|| Ok(Netlink::open()?.link("fd0")?.mac));
        let macs = [mac(&workloads[0])?, mac(&workloads[1])?];
        Ok(Self { lane, workloads, ports, links, macs })
    }

    pub(super) fn address(&self, workload: usize, port: u16) -> SocketAddr {
        (self.workloads[workload].address, port).into()
    }

    /// The flow from that workload to the other one.
    pub(super) fn flow(&self, from: usize, protocol: u8, src_port: u16, dst_port: u16) -> FlowId {
        let [src, dst] = [from, 1 - from].map(|at| IpAddr::V4(self.workloads[at].address));
        FlowId::new(self.links[from].index, protocol, (src, src_port), (dst, dst_port))
    }

    pub(super) fn verdict(&self, from: usize) -> FlowVerdict {
        let to = 1 - from;
        FlowVerdict {
            eth_dst: self.macs[to],
            eth_src: self.macs[from],
            egress: egress_of(&self.links[to]),
            max_frame: self.links[to].mtu as u16 + 14,
            rule: 0,
            epoch: 1,
            is_reply: from == 1,
            tcp_flags: 2,
        }
    }

    pub(super) fn install(&self, from: usize, id: &FlowId) -> Result<Slot, InstallError> {
        self.lane.flows().install(id, &self.verdict(from))
    }

    /// Both directions of the conversation between the client's and the server's port.
    pub(super) fn install_both(&self, protocol: u8) -> Result<[Slot; 2], InstallError> {
        Ok([
            self.install(0, &self.flow(0, protocol, CLIENT, SERVER))?,
            self.install(1, &self.flow(1, protocol, SERVER, CLIENT))?,
        ])
    }

    /// Sends what comes in at one port out of the other, until `done`. Returns how many frames came
    /// from each.
    pub(super) fn hub(&mut self, host: &mut Host, done: impl Fn() -> bool) -> [usize; 2] {
        let mut counts = [0; 2];
        let mut batch: Vec<Frame> = Vec::new();
        while !done() {
            for (from, count) in counts.iter_mut().enumerate() {
                *count += self.ports[from].receive(&mut host.pool, &mut batch);
                complete_checksums(host, &mut batch);
                self.ports[1 - from].transmit(&mut batch);
                self.ports[1 - from].reclaim(&mut host.pool);
                batch.drain(..).for_each(|frame| host.pool.give(frame));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        counts
    }

    /// Frames that port receives next, until `count` came or nothing more does. They pass for sent.
    pub(super) fn received(&mut self, host: &mut Host, port: usize, count: usize) -> Vec<Vec<u8>> {
        let mut batch = Vec::new();
        let _ = host::wait_for(|| {
            self.ports[port].receive(&mut host.pool, &mut batch);
            batch.len() >= count
        });
        let bytes = batch.iter().map(|frame| host.umem.bytes(frame).to_vec()).collect();
        batch.into_iter().for_each(|frame| host.pool.give_sent(frame));
        bytes
    }

    pub(super) fn close(self, host: &mut Host) {
        for port in self.ports {
            port.close(&mut host.pool);
        }
        host.assert_conserved();
    }
}

pub(crate) fn open(
    host: &mut Host,
    lane: &Lane,
    tag: u16,
    ifname: &str,
) -> Result<(ExpressPort, Link), Failed> {
    let umem = Arc::clone(&host.umem);
    let opened = lane.open(&umem, tag, tag, ifname, 256, &mut host.pool)?;
    Ok((opened.port, opened.link))
}

/// What the switch does with frames of workloads that leave checksums to their devices.
pub(super) fn complete_checksums(host: &Host, frames: &mut [Frame]) {
    for frame in frames {
        if let Ok(headers) = extract(host.umem.bytes(frame), PortId(1)) {
            complete_partial(host.umem.bytes_mut(frame), &headers);
        }
    }
}

fn open_frames(
    host: &mut Host,
    lane: &Lane,
    tag: u16,
    ifname: &str,
) -> Result<Box<dyn Port>, Failed> {
    let umem = Arc::clone(&host.umem);
    let options = XdpOptions { fill: 256, ..XdpOptions::default() };
    let opened = lane.open_frames(&umem, tag, tag, ifname, &options, &mut host.pool)?;
    assert_eq!(opened.mode, "native copy, lookup");
    let queue = opened.queues.into_iter().next().ok_or("it has a queue")?;
    Ok(Box::new(queue))
}

/// Lets the workloads take frames that are redirected in XDP, and tells the lane once the kernel says
/// that they do.
fn take_frames(lane: &Lane, workloads: &[Workload; 2], links: &[Link; 2]) -> Result<(), Failed> {
    let targets = RedirectTargets::open()?;
    let watch = targets.watch()?;
    for (workload, link) in workloads.iter().zip(links) {
        assert!(!targets.list()?.contains(&link.index), "nobody polls at its far end");
        workload.inside(|| {
            let done = Command::new("ethtool").args(["-K", "fd0", "gro", "on"]).status()?;
            assert!(done.success());
            Ok(())
        })?;
        assert!(watch.drain(), "the kernel tells of it");
        assert!(targets.list()?.contains(&link.index));
        lane.set_device(link.index, true)?;
    }
    Ok(())
}
