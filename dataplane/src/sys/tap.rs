//! Taps: interfaces whose other end is a file.
//!
//! Reference: Documentation/networking/tuntap.rst of Linux 6.18.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::ifreq;

/// Offloads that a guest negotiates: checksums, TCP segmentation over both families, UDP segmentation
/// likewise (`TUN_F_*` in linux/if_tun.h; UDP's since Linux 6.2).
const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04 | 0x20 | 0x40;

/// Attaches to the tap `name` of the calling thread's network namespace, after creating it if there
/// is none. Each read and write of the file is one Ethernet frame without any header before it, and
/// neither waits. The tap vanishes with the file unless it is [persistent](persist).
///
/// # Errors
/// `InvalidInput` if the name does not fit an interface; the kernel's, above all `EPERM` without `CAP_NET_ADMIN`,
/// `EBUSY` if another process is attached and `EINVAL` if the interface is not such a tap.
pub fn open(name: &str) -> io::Result<File> {
    attach(name, libc::IFF_TAP | libc::IFF_NO_PI)
}

/// As [`open`], the way a virtual machine does whose guest has negotiated all offloads: before each frame
/// stands a `struct virtio_net_hdr` of ten bytes, in the machine's byte order, which says how large frames
/// are to be segmented and which checksums are missing.
///
/// # Errors
/// As for it.
pub fn open_offloading(name: &str) -> io::Result<File> {
    let file = attach(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, OFFLOADS) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

fn attach(name: &str, flags: libc::c_int) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = ifreq::named(name)?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, exclusively borrowed here.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

/// Makes the tap of an [opened](open) file outlive it, until the interface or its network namespace
/// is deleted.
///
/// # Errors
/// The kernel's.
pub fn persist(tap: &File) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST, 1) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_fit() {
        for bad in ["", "sixteen-bytes-ab", "fd\0tap"] {
            // Without root the file cannot be opened, which comes first.
            if let Err(error) = open(bad) {
                let expected = [io::ErrorKind::InvalidInput, io::ErrorKind::PermissionDenied];
                assert!(expected.contains(&error.kind()), "{bad:?}: {error}");
            } else {
                panic!("{bad:?} was taken for a name");
            }
        }
    }
}
