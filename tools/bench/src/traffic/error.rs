//! What keeps traffic from being made or counted.

use std::io;

use firedoor_dataplane::link::LinkError;
use firedoor_lab::netns::NetnsError;
use nix::errno::Errno;

/// Why traffic cannot be made or counted.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// The load does not exist.
    #[error("no such load: {0}")]
    Load(&'static str),
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The interface cannot be looked up.
    #[error("no interface {ifname} in {netns}")]
    Interface {
        /// Its name.
        ifname: String,
        /// Where it was looked for.
        netns: String,
        /// What the kernel said.
        #[source]
        source: LinkError,
    },
    /// The kernel refused.
    #[error("cannot {doing} {ifname} in {netns}{}", hint(.source))]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// The interface.
        ifname: String,
        /// Its namespace.
        netns: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => " (this needs root: use sudo)",
        Some(Errno::EBUSY | Errno::EEXIST) => " (it has another XDP program: detach that first)",
        Some(Errno::ENETDOWN) => " (it is down: `ip link set IFNAME up`)",
        _ => "",
    }
}
