//! Offloads of an interface, through the older ethtool `ioctl`s.
//!
//! Source: include/uapi/linux/ethtool.h and net/ethtool/ioctl.c (Linux 6.18).

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::ifreq;

const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// `ETHTOOL_STXCSUM`: transmit checksums, and all that needs them.
const SET_TX_CHECKSUM: u32 = 0x17;
/// `ETHTOOL_SGRO`: generic receive offload.
const SET_RECEIVE_OFFLOAD: u32 = 0x2c;
/// `ETHTOOL_GFLAGS` and `ETHTOOL_SFLAGS`: some features, as flags.
const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
/// `ETH_FLAG_TXVLAN`: the device inserts VLAN tags.
const FLAG_TXVLAN: u32 = 1 << 7;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Makes the kernel do for an interface what devices often do themselves: complete checksums, cut
/// into segments, and write VLAN tags into the frame.
///
/// # Errors
/// The kernel's.
pub(crate) fn transmit_offloads_off(ifname: &str) -> io::Result<()> {
    call(ifname, SET_TX_CHECKSUM, 0)?;
    let flags = call(ifname, GET_FLAGS, 0)?;
    call(ifname, SET_FLAGS, flags & !FLAG_TXVLAN).map(drop)
}

/// Turns generic receive offload on. On a veth that makes it poll for frames, so that its other end
/// takes those that are redirected there in XDP.
///
/// # Errors
/// The kernel's.
pub fn receive_offload_on(ifname: &str) -> io::Result<()> {
    call(ifname, SET_RECEIVE_OFFLOAD, 1).map(drop)
}

fn call(ifname: &str, command: u32, data: u32) -> io::Result<u32> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = EthtoolValue { command, data };
    let mut request = ifreq::named(ifname)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL reads one `ifreq` and, for these commands, reads and writes one
    // `ethtool_value` where its pointer says; both live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}
