//! Which interfaces take frames that are redirected to them in XDP.
//!
//! The kernel drops a redirected frame without a word if the driver cannot send it. A veth can only
//! while its far end polls for frames (NAPI), which it does under an XDP program or with generic
//! receive offload, and that end is in another network namespace as a rule. But the kernel keeps count:
//! `NETDEV_XDP_ACT_NDO_XMIT` in the near end's `xdp-features` says whether the far end polls, and a
//! multicast group tells of changes (Linux 6.3). Before that nobody says, so nothing is redirected.
//!
//! Source: Documentation/netlink/specs/netdev.yaml, and `veth_set_xdp_features` in drivers/net/veth.c
//! (Linux 6.18).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

/// Message types and flags (linux/netlink.h).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// The part of an attribute's type that is not flags.
const TYPE: u16 = 0x3fff;
/// Bytes of a message's header, and of generic netlink's behind it.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// The family that knows all families (linux/genetlink.h), and what it is asked.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;

/// The family of devices (linux/netdev.h), and what it is asked.
const GET_DEVICE: u8 = 1;
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// The device sends what is redirected to it.
const NDO_XMIT: u64 = 1 << 2;

/// A generic netlink socket in the network namespace of the thread that opened it.
pub struct RedirectTargets {
    socket: Socket,
    family: u16,
    group: Option<u32>,
}

impl RedirectTargets {
    /// Opens the socket.
    ///
    /// # Errors
    /// `ENOENT` if the kernel is older than 6.3.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let name = attribute(FAMILY_NAME, b"netdev\0");
        let (mut family, mut group) = (0, None);
        ask(&socket, CONTROL, GET_FAMILY, 0, &name, |payload| {
            for (kind, value) in attributes(payload) {
                match kind {
                    FAMILY_ID => family = number(value) as u16,
                    GROUPS => group = management(value),
                    _ => {}
                }
            }
        })?;
        Ok(Self { socket, family, group })
    }

    /// The indices of all that do.
    ///
    /// # Errors
    /// The kernel's.
    pub fn list(&self) -> io::Result<BTreeSet<u32>> {
        let mut targets = BTreeSet::new();
        ask(&self.socket, self.family, GET_DEVICE, NLM_F_DUMP, &[], |payload| {
            let value = |wanted| {
                attributes(payload).find(|(kind, _)| *kind == wanted).map_or(0, |(_, v)| number(v))
            };
            if value(XDP_FEATURES) & NDO_XMIT != 0 {
                targets.insert(value(IFINDEX) as u32);
            }
        })?;
        Ok(targets)
    }

    /// Begins to listen for changes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn watch(&self) -> io::Result<TargetWatch> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.add_membership(self.group.ok_or(io::ErrorKind::NotFound)?)?;
        socket.set_non_blocking(true)?;
        Ok(TargetWatch { socket })
    }
}

/// Hears of interfaces that begin or cease to be targets.
pub struct TargetWatch {
    socket: Socket,
}

impl TargetWatch {
    /// What becomes readable when there is something to [`drain`](Self::drain).
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether anything has changed since the last call. Does not wait.
    pub fn drain(&self) -> bool {
        let mut heard = false;
        loop {
            match self.socket.recv_from_full() {
                Ok(_) => heard = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return heard,
            }
        }
    }
}

/// Sends one request and hands each answer's attributes to `each`.
fn ask(
    socket: &Socket,
    family: u16,
    command: u8,
    flags: u16,
    attributes: &[u8],
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let len = (HEADER + GENERIC + attributes.len()) as u32;
    let mut request = len.to_ne_bytes().to_vec();
    request.extend(family.to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend(attributes);
    socket.send(&request, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, payload) in messages(&datagram) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let errno = payload.first_chunk().map_or(0, |it| i32::from_ne_bytes(*it));
                    return Err(io::Error::from_raw_os_error(-errno));
                }
                _ => each(payload.get(GENERIC..).unwrap_or_default()),
            }
        }
        if flags & NLM_F_DUMP == 0 {
            return Ok(());
        }
    }
}

/// The number of the group `mgmt`, in a list of groups.
fn management(groups: &[u8]) -> Option<u32> {
    attributes(groups).find_map(|(_, group)| {
        let value = |wanted| attributes(group).find(|(kind, _)| *kind == wanted).map(|(_, v)| v);
        (value(GROUP_NAME)? == b"mgmt\0").then_some(number(value(GROUP_ID)?) as u32)
    })
}

/// One attribute as it stands in a message.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A number of two, four or eight bytes.
fn number(value: &[u8]) -> u64 {
    match *value {
        [a, b] => u16::from_ne_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]).into(),
        _ => value.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)),
    }
}

/// The messages of a datagram: type and what follows the header. Ends at the first malformed one.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    pieces(datagram, HEADER, |header| {
        let len = u32::from_ne_bytes(*header.first_chunk()?) as usize;
        Some((len, u16::from_ne_bytes(*header.get(4..)?.first_chunk()?)))
    })
}

/// The attributes of a message: type and value. Ends at the first malformed one.
fn attributes(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    pieces(payload, 4, |header| {
        let len = u16::from_ne_bytes(*header.first_chunk()?).into();
        Some((len, u16::from_ne_bytes(*header.get(2..)?.first_chunk()?) & TYPE))
    })
}

/// Pieces that each begin with a header, of which `read` tells length and type; a piece's length
/// includes its header, and is padded to four bytes.
fn pieces(
    mut bytes: &[u8],
    header: usize,
    read: impl Fn(&[u8]) -> Option<(usize, u16)>,
) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, kind) = read(bytes)?;
        let content = bytes.get(header..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}
