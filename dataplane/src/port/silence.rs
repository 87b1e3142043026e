//! Keeps the host's own network stack off an interface that is a port of the switch.
//!
//! While the XDP program is attached no frame reaches the stack, but the stack would still speak:
//! neighbour discovery, MLD, router solicitations. And should the process be killed, a program that is not
//! pinned goes with it while the interface stays up: a [wall](crate::sys::wall) keeps frames from the stack
//! then, and where there can be none, that must not answer or route what the workload sends to
//! it. So IPv6 is disabled on the interface, and IPv4 is told not to answer ARP
//! there, not to forward from there, and to drop sources that are not reached through there. What
//! was set before is restored when the port is closed.
//!
//! A workload's interface that was a port is [left down](Silence::shut): who behind it sends is nobody's any more,
//! and not the host's. Whoever made it may set it up again.
//!
//! Source: Documentation/networking/ip-sysctl.rst (Linux 6.18).

use std::fs;
use std::path::PathBuf;

use crate::link::{Link, Netlink};

/// Settings of an interface under /proc/sys/net, and their value while the port is open.
const SETTINGS: [(&str, &str, &str); 4] = [
    ("ipv6", "disable_ipv6", "1"),
    ("ipv4", "forwarding", "0"),
    ("ipv4", "rp_filter", "1"),
    ("ipv4", "arp_ignore", "8"),
];

/// The host's stack is off the interface while this lives.
#[derive(Debug)]
pub(crate) struct Silence {
    ifname: String,
    index: u32,
    is_left_up: bool,
    before: Vec<(PathBuf, String)>,
    /// What workloads are behind, and no other network.
    is_virtual: bool,
}

impl Silence {
    /// Silences the stack on `link`. A setting that does not exist, because the kernel has no IPv6
    /// for instance, needs no silencing.
    pub(crate) fn of(link: &Link) -> Self {
        let before = SETTINGS
            .into_iter()
            .filter_map(|(family, setting, value)| {
                let path = PathBuf::from("/proc/sys/net")
                    .join(family)
                    .join("conf")
                    .join(&link.name)
                    .join(setting);
                let before = fs::read_to_string(&path).ok()?.trim().to_owned();
                (before != value && fs::write(&path, value).is_ok()).then_some((path, before))
            })
            .collect();
        let (ifname, is_left_up, is_virtual) = (link.name.clone(), link.up, !link.physical);
        Self { ifname, index: link.index, is_left_up, before, is_virtual }
    }

    /// The port that was here ends: what is behind it is to be cut off before the program is.
    pub(crate) fn shut(&mut self) {
        if self.is_virtual {
            self.is_left_up = false;
            self.set_down();
        }
    }

    fn set_down(&self) {
        let Some(mut netlink) = self.netlink() else { return };
        if let Err(error) = netlink.set_up(&self.ifname, false) {
            tracing::warn!(interface = self.ifname, %error, "cannot set it down");
        }
    }

    /// A socket to change the interface by, if it is still the same one.
    fn netlink(&self) -> Option<Netlink> {
        let mut netlink = Netlink::open().ok()?;
        netlink.link(&self.ifname).is_ok_and(|link| link.index == self.index).then_some(netlink)
    }
}

impl Drop for Silence {
    /// Leaves the interface as it was found, or down, if it is still the same one: down first, so that
    /// nothing passes while the settings change back.
    fn drop(&mut self) {
        if self.netlink().is_none() {
            return;
        }
        if !self.is_left_up {
            self.set_down();
        }
        for (path, value) in &self.before {
            if let Err(error) = fs::write(path, value) {
                tracing::warn!(path = %path.display(), %error, "cannot restore");
            }
        }
    }
}
