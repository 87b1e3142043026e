//! A plain wire: two namespaces with a veth between them, and no system.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use firedoor_dataplane::link::{LinkError, Netlink, VethEnd};
use firedoor_lab::netns::Netns;

use super::TrafficError;

/// The sender's interface.
pub const SENDER: &str = "fdtx";
/// The receiver's interface.
pub const RECEIVER: &str = "fdrx";

/// Wires that this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// The namespaces and the veth, removed when dropped.
#[derive(Debug)]
pub struct Wire {
    /// Where [`SENDER`] is.
    pub sender: Netns,
    /// Where [`RECEIVER`] is.
    pub receiver: Netns,
}

impl Wire {
    /// Makes a wire, up at both ends. What a killed process leaves behind, the next
    /// [comparison](crate::compare) removes.
    ///
    /// # Errors
    /// Without root; then nothing is left.
    pub fn new() -> Result<Self, TrafficError> {
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let name = |end| format!("fd-bench-{process}-wire{number}-{end}");
        let sender = Netns::create(&name("tx"))?;
        let receiver = Netns::create(&name("rx"));
        let receiver = receiver.inspect_err(|_| remove(&sender))?;
        let wire = Self { sender, receiver };
        for netns in [&wire.sender, &wire.receiver] {
            // Nobody speaks unless asked to.
            netns.set("ipv6/conf/default/disable_ipv6", "1")?;
        }
        let far = VethEnd { netns: Some(wire.receiver.file().as_fd()), ..VethEnd::new(RECEIVER) };
        inside(&wire.sender, SENDER, |netlink| {
            netlink.create_veth(VethEnd::new(SENDER), far, 1)?;
            netlink.set_up(SENDER, true)
        })?;
        inside(&wire.receiver, RECEIVER, |netlink| netlink.set_up(RECEIVER, true))?;
        Ok(wire)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        remove(&self.sender);
        remove(&self.receiver);
    }
}

fn remove(netns: &Netns) {
    if let Err(error) = Netns::delete(netns.name()) {
        tracing::warn!("{error}");
    }
}

fn inside(
    netns: &Netns,
    ifname: &str,
    work: impl FnOnce(&mut Netlink) -> Result<(), LinkError> + Send,
) -> Result<(), TrafficError> {
    let result =
        netns.run(|| -> io::Result<Result<(), LinkError>> { Ok(work(&mut Netlink::open()?)) })?;
    let (ifname, netns) = (ifname.to_owned(), netns.name().to_owned());
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(TrafficError::Interface { ifname, netns, source }),
        Err(source) => Err(TrafficError::Kernel { doing: "set up", ifname, netns, source }),
    }
}
