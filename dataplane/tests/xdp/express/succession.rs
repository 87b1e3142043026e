//! One data plane after another: what waits for the second one, and what that takes over of the first.

use std::collections::HashMap;
use std::process::Command;

use firedoor_dataplane::express::Members;
use firedoor_dataplane::frame::Frame;
use firedoor_dataplane::link::Netlink;
use firedoor_dataplane::port::Port;
use firedoor_dataplane::sys::packet::PacketSender;
use libtest_mimic::Failed;
use tempfile::TempDir;

use super::OPEN;
use super::scene::open;
use crate::host::{self, Host, Workload};

/// A BPF file system of a test's own.
struct BpfFs(TempDir);

impl BpfFs {
    fn mount() -> Result<Self, Failed> {
        let directory = tempfile::tempdir()?;
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "bpf", "bpf"]).arg(directory.path()).status()?;
        assert!(mounted.success(), "no BPF file system");
        Ok(Self(directory))
    }

    /// The ports of a data plane that pins there.
    fn members(&self) -> Members {
        let members = Members::pinned(self.0.path().join("switch"));
        members.set_capacity(64);
        members
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// A frame that comes while one data plane makes way for another waits for that one. A successor that gives up gives the
/// misses back.
pub(super) fn misses_wait(host: &mut Host) -> Result<(), Failed> {
    let workload = Workload::new("10.99.0.1", "fd1", 1)?;
    let file_system = BpfFs::mount()?;
    let tags = HashMap::from([("fd1", 1)]);
    let [first, hopeless, second] = [(); 3].map(|()| file_system.members());
    let lane = first.lane()?;
    lane.keep_open(OPEN);
    let (mut port, _) = open(host, &lane, 1, "fd1")?;

    let mut next = Host::new();
    hopeless.prepare(&tags, &next.umem, "fd1", 256, &mut next.pool);
    hopeless.take_misses(&tags);
    hopeless.discard(&mut next.pool);
    next.assert_conserved();
    send(&workload, 1)?;
    await_frame(&mut port, host, 1)?;

    second.prepare(&tags, &next.umem, "fd1", 256, &mut next.pool);
    second.take_misses(&tags);
    send(&workload, 2)?;
    Box::new(port).abandon();
    lane.abandon();
    let lane = second.resume(&tags, &mut next.pool).ok_or("there is nothing to take over")?;
    assert!(lane.inherit().is_empty());
    let (mut port, _) = open(&mut next, &lane, 1, "fd1")?;
    await_frame(&mut port, &mut next, 2)?;
    lane.remove_other_pair();
    Box::new(port).close(&mut next.pool);
    second.unpin();
    next.assert_conserved();
    assert!(!file_system.0.path().join("switch").exists());
    Ok(())
}

/// Sends a frame of these bytes.
fn send(from: &Workload, byte: u8) -> Result<(), Failed> {
    from.inside(|| {
        let sender = PacketSender::open(Netlink::open()?.link("fd0")?.index)?;
        assert_eq!(sender.send(&[&[byte; 60]])?, 1);
        Ok(())
    })
}

/// Waits for a frame of these bytes among what a port receives.
fn await_frame(port: &mut dyn Port, host: &mut Host, byte: u8) -> Result<(), Failed> {
    let mut batch: Vec<Frame> = Vec::new();
    let came = host::wait_for(|| {
        port.receive(&mut host.pool, &mut batch);
        batch.iter().any(|frame| host.umem.bytes(frame) == [byte; 60])
    });
    batch.into_iter().for_each(|frame| host.pool.give(frame));
    came
}
