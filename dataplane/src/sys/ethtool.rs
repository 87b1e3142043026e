//! Offloads of an interface: what the kernel leaves for the device to do on transmit.
//!
//! The switch asks no workload to change these. They are for interfaces that Firedoor makes itself,
//! such as a lab's, and for looking.
//!
//! Source: linux/ethtool.h, the requests before netlink.

use std::io;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd;

use super::ifreq;

/// `SIOCETHTOOL` in linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// Something that the kernel leaves undone when it sends, for the device to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Checksums: frames leave with partial ones.
    TxChecksum,
    /// TCP segmentation: frames leave larger than the MTU.
    Tso,
    /// Generic segmentation: as late as possible, but by the kernel.
    Gso,
    /// VLAN tags: they leave beside the frame, where XDP at the other end of a veth cannot see them.
    TxVlan,
}

/// How an offload is read and set: two requests, and which bits of their value.
struct Requests {
    get: u32,
    set: u32,
    bits: u32,
}

/// `ETH_FLAG_TXVLAN`: a bit among others in the value of `ETHTOOL_GFLAGS`.
const TX_VLAN: u32 = 1 << 7;

impl Offload {
    const fn requests(self) -> Requests {
        match self {
            Self::TxChecksum => Requests { get: 0x16, set: 0x17, bits: 1 },
            Self::Tso => Requests { get: 0x1e, set: 0x1f, bits: 1 },
            Self::Gso => Requests { get: 0x23, set: 0x24, bits: 1 },
            Self::TxVlan => Requests { get: 0x25, set: 0x26, bits: TX_VLAN },
        }
    }
}

/// Whether the interface, of the calling thread's network namespace, has that offload on.
///
/// # Errors
/// `ENODEV` if there is no such interface, `EOPNOTSUPP` if its driver does not say.
pub fn is_on(ifname: &str, offload: Offload) -> io::Result<bool> {
    let Requests { get, bits, .. } = offload.requests();
    Ok(exchange(ifname, get, 0)? & bits != 0)
}

/// Switches an offload on or off.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN, `EOPNOTSUPP` or `EINVAL` if the driver cannot or something else
/// (such as an XDP program) keeps it as it is.
pub fn set(ifname: &str, offload: Offload, on: bool) -> io::Result<()> {
    let Requests { get, set, bits } = offload.requests();
    let before = exchange(ifname, get, 0)?;
    exchange(ifname, set, if on { before | bits } else { before & !bits })?;
    Ok(())
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Makes one request with a value, and returns the value of the answer.
fn exchange(ifname: &str, command: u32, data: u32) -> io::Result<u32> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command, data };
    let mut request = ifreq::named(ifname)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL reads `request`, and through it reads and writes one `Value`, which is
    // what these commands take; both live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_says_what_it_does() {
        assert!(is_on("lo", Offload::TxChecksum).unwrap());
    }

    #[test]
    fn an_interface_that_does_not_exist_is_an_error() {
        let error = is_on("fd-no-such", Offload::Tso).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
