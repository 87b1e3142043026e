//! Packet sockets that send: many whole frames with one system call, past the queueing discipline.
//!
//! Source: packet(7) and net/packet/af_packet.c (Linux 6.18).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Most frames that one call sends.
pub const MAX_BATCH: usize = 64;

/// A packet socket that sends out of one interface and receives nothing.
#[derive(Debug)]
pub struct PacketSender {
    socket: OwnedFd,
}

impl PacketSender {
    /// Opens a socket on the interface of that index in the calling thread's network namespace.
    /// It may be used from any thread.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`, `ENODEV` without such an interface.
    pub fn open(index: u32) -> io::Result<Self> {
        let socket = socket()?;
        let bypass: libc::c_int = 1;
        // SAFETY: reads one integer, whose size it is given, during the call only.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const bypass).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: index.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: reads `len` bytes of the address during the call only.
        let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { socket }) }
    }

    /// Sends up to [`MAX_BATCH`] of the frames, each from its Ethernet header on, and returns how
    /// many. A frame that the receiver's queue had no room for counts as sent.
    ///
    /// # Errors
    /// The kernel's, if not even the first was sent: `ENETDOWN` if the interface is down, `EMSGSIZE`
    /// if the frame is longer than it takes.
    pub fn send(&self, frames: &[&[u8]]) -> io::Result<usize> {
        let frames = &frames[..frames.len().min(MAX_BATCH)];
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_BATCH];
        // SAFETY: integers and pointers, for all of which zero is a value.
        let mut messages: [libc::mmsghdr; MAX_BATCH] = unsafe { std::mem::zeroed() };
        for ((message, part), frame) in messages.iter_mut().zip(&mut parts).zip(frames) {
            // The kernel only reads what it sends.
            part.iov_base = frame.as_ptr().cast_mut().cast();
            part.iov_len = frame.len();
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        let (fd, count) = (self.socket.as_raw_fd(), frames.len() as libc::c_uint);
        // SAFETY: the first `count` messages each point to one part, and that to a frame; all of
        // them outlive the call, which writes to nothing but the messages.
        let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }
}

/// A packet socket of protocol 0: it receives nothing.
fn socket() -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
