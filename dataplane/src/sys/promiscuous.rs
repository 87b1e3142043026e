//! Promiscuous mode that ends with the process.
//!
//! A membership of a packet socket, not the interface's flag: the kernel counts memberships and ends
//! them with their socket, so a killed process leaves nothing behind.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Keeps an interface promiscuous while it lives.
#[derive(Debug)]
pub(crate) struct Promiscuous {
    _socket: OwnedFd,
}

impl Promiscuous {
    /// Makes the interface with that index promiscuous.
    pub(crate) fn new(index: u32) -> io::Result<Self> {
        // Protocol 0: the socket itself receives nothing.
        // SAFETY: takes integers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let membership = libc::packet_mreq {
            mr_ifindex: index.cast_signed(),
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        // SAFETY: reads the struct, whose size it is given, during the call only.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const membership).cast(),
                size_of::<libc::packet_mreq>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(Self { _socket: socket }) } else { Err(io::Error::last_os_error()) }
    }
}
