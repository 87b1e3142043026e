//! Kernel interfaces through rtnetlink: look up, make, change, remove, and watch them.
//!
//! [`Netlink`] is one routing socket in the network namespace of the thread that opened it, and
//! stays there when the thread moves on. It asks one question at a time and waits for the kernel's
//! answer, which comes at once: setup and teardown only, never on a frame's path. [`LinkWatch`] is
//! a second, nonblocking socket that hears what changes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use thiserror::Error;

/// Multicast group of link messages, as a bit mask (`RTNLGRP_LINK` in linux/rtnetlink.h).
const LINK_GROUP: u32 = 1 << 0;

/// Bytes of a netlink message's header; shorter ones are malformed (`NLMSG_HDRLEN`).
const HEADER_LEN: usize = 16;

/// Longest interface name in bytes (`IFNAMSIZ`, less the terminator).
pub const MAX_NAME: usize = 15;

/// An interface as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Name, unique in its namespace at any one time.
    pub name: String,
    /// Index, unique in its namespace and not used again soon.
    pub index: u32,
    /// Longest network-layer packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Link-layer address.
    pub mac: [u8; 6],
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// What made it: `veth`, `tun` (tap too), `bridge`, …; `None` for a hardware driver.
    pub kind: Option<String>,
    /// Whether a device stands behind it (PCI, virtio, USB, …).
    pub physical: bool,
    /// Receive queues that the interface has room for. No more than these are in use.
    pub rx_queues: u32,
    /// Index of the other end (of a veth), perhaps in another namespace.
    pub peer: Option<u32>,
    /// Whether the other end is in another network namespace.
    pub peer_elsewhere: bool,
    /// Id of the XDP program attached to it, whoever attached it.
    pub xdp_program: Option<u32>,
}

/// One end of a veth pair to create.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Name, up to [`MAX_NAME`] bytes.
    pub name: &'a str,
    /// Link-layer address; random if `None`.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes; 1500 if `None`.
    pub mtu: Option<u32>,
    /// Network namespace to make it in; that of the [`Netlink`] if `None`.
    pub netns: Option<BorrowedFd<'a>>,
}

impl<'a> VethEnd<'a> {
    /// An end with the kernel's defaults.
    pub const fn new(name: &'a str) -> Self {
        Self { name, mac: None, mtu: None, netns: None }
    }
}

/// Why a link operation failed.
#[derive(Debug, Error)]
pub enum LinkError {
    /// There is no such interface in this namespace.
    #[error("no interface is named {name} in this network namespace; `ip link` lists them")]
    NotFound {
        /// The name looked for.
        name: String,
    },
    /// The name is taken.
    #[error("an interface named {name} exists already; remove it or choose another name")]
    Exists {
        /// The name asked for.
        name: String,
    },
    /// The process may not.
    #[error("no permission to {action} {name}: CAP_NET_ADMIN is needed; run as root")]
    NotPermitted {
        /// What was asked.
        action: &'static str,
        /// Of which interface.
        name: String,
    },
    /// The kernel refused for another reason.
    #[error("the kernel refused to {action} {name}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// Of which interface.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl LinkError {
    fn of(action: &'static str, name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::ENODEV) => Self::NotFound { name },
            Some(libc::EEXIST) => Self::Exists { name },
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { action, name },
            _ => Self::Refused { action, name, source },
        }
    }
}

/// A routing socket.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a routing socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's, if it has no routing sockets or the process no file descriptors left.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and gathers the answer: empty for a change, one message for a lookup, any
    /// number with `NLM_F_DUMP`. `flags` are added to `NLM_F_REQUEST | NLM_F_ACK`.
    ///
    /// # Errors
    /// The kernel's answer as an `errno`; `InvalidData` if it cannot be decoded.
    pub fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        self.answer()
    }

    /// The answer to the request just sent. Answers to earlier requests, which were given up after
    /// an error, are skipped by their sequence number.
    fn answer(&self) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                let (header, payload) = message?.into_parts();
                if header.sequence_number != self.sequence {
                    continue;
                }
                match payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }

    /// The interface of that name.
    ///
    /// # Errors
    /// [`LinkError::NotFound`] above all.
    pub fn link(&mut self, name: &str) -> Result<Link, LinkError> {
        let request = RouteNetlinkMessage::GetLink(named(name));
        let answers =
            self.request(request, 0).map_err(|error| LinkError::of("look up", name, error))?;
        answers
            .iter()
            .find_map(described)
            .ok_or_else(|| LinkError::NotFound { name: name.to_owned() })
    }

    /// Every interface of the namespace, by index.
    ///
    /// # Errors
    /// The kernel's.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        Ok(self.request(request, NLM_F_DUMP)?.iter().filter_map(described).collect())
    }

    /// Sets the interface administratively up or down.
    ///
    /// # Errors
    /// As named there.
    pub fn set_up(&mut self, name: &str, up: bool) -> Result<(), LinkError> {
        let mut message = named(name);
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        let action = if up { "set up" } else { "set down" };
        self.change(RouteNetlinkMessage::SetLink(message), 0, action, name)
    }

    /// Sets the MTU, in bytes.
    ///
    /// # Errors
    /// [`LinkError::Refused`] if the driver cannot.
    pub fn set_mtu(&mut self, name: &str, mtu: u32) -> Result<(), LinkError> {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(RouteNetlinkMessage::SetLink(message), 0, "set the MTU of", name)
    }

    /// Removes the interface; of a veth, both ends.
    ///
    /// # Errors
    /// [`LinkError::NotFound`], or [`LinkError::Refused`] for a device that cannot be removed.
    pub fn delete(&mut self, name: &str) -> Result<(), LinkError> {
        self.change(RouteNetlinkMessage::DelLink(named(name)), 0, "remove", name)
    }

    /// Removes the clsact queueing discipline of the interface of that index, unless a filter of
    /// anybody's is left in it.
    ///
    /// # Errors
    /// The kernel's, `ENOENT` or `EINVAL` if there is none.
    pub(crate) fn remove_empty_clsact(&mut self, index: u32) -> io::Result<()> {
        // TC_H_CLSACT, and its two lists of filters (linux/pkt_sched.h).
        const MAJOR: u16 = 0xffff;
        const CLSACT: u16 = 0xfff1;
        const INGRESS: u16 = 0xfff2;
        const EGRESS: u16 = 0xfff3;
        let about = |minor| {
            let mut message = TcMessage::default();
            message.header.index = index.cast_signed();
            message.header.parent = TcHandle { major: MAJOR, minor };
            message
        };
        for list in [INGRESS, EGRESS] {
            let request = RouteNetlinkMessage::GetTrafficFilter(about(list));
            if !self.request(request, NLM_F_DUMP)?.is_empty() {
                return Ok(());
            }
        }
        let mut clsact = about(CLSACT);
        clsact.header.handle = TcHandle { major: MAJOR, minor: 0 };
        self.request(RouteNetlinkMessage::DelQueueDiscipline(clsact), 0).map(drop)
    }

    /// Gives an interface without a queue the kernel's usual one, which sends in three bands by priority
    /// and holds as many packets in each as `txqueuelen` says.
    ///
    /// # Errors
    /// [`LinkError::Exists`] if it has one.
    pub(crate) fn add_queue(&mut self, link: &Link) -> Result<(), LinkError> {
        let mut message = TcMessage::default();
        message.header.index = link.index.cast_signed();
        // TC_H_ROOT (linux/pkt_sched.h).
        message.header.parent = TcHandle { major: 0xffff, minor: 0xffff };
        message.attributes.push(TcAttribute::Kind("pfifo_fast".into()));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.change(request, flags, "give a queue to", &link.name)
    }

    /// Creates a veth pair with `queues` queues at each end, both ends down.
    ///
    /// # Errors
    /// [`LinkError::Exists`] if either name is taken.
    pub fn create_veth(
        &mut self,
        near: VethEnd<'_>,
        far: VethEnd<'_>,
        queues: u32,
    ) -> Result<(), LinkError> {
        let mut message = veth_end(near, queues);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(veth_end(far, queues)))),
        ]));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.change(RouteNetlinkMessage::NewLink(message), flags, "create", near.name)
    }

    fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: &'static str,
        name: &str,
    ) -> Result<(), LinkError> {
        self.request(message, flags).map(drop).map_err(|error| LinkError::of(action, name, error))
    }
}

/// What happened to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It appeared, or something about it changed: here is how it is now.
    Present(Link),
    /// It was removed, or moved to another namespace.
    Gone {
        /// Its last name.
        name: String,
        /// Its index.
        index: u32,
    },
    /// Events were lost because they came faster than they were read: look at every interface.
    Missed,
}

/// Hears of interfaces that appear, change or vanish in one network namespace.
pub struct LinkWatch {
    socket: Socket,
}

impl LinkWatch {
    /// Begins to listen in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, LINK_GROUP))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// What becomes readable when there is something to [`drain`](Self::drain).
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Everything that happened since the last call, oldest first. Does not wait.
    pub fn drain(&self) -> Vec<LinkEvent> {
        let mut events = Vec::new();
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => events.extend(messages(&datagram).filter_map(event)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    events.push(LinkEvent::Missed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return events,
            }
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The messages of one datagram. Ends at the first malformed header.
fn messages(
    mut datagram: &[u8],
) -> impl Iterator<Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>> {
    std::iter::from_fn(move || {
        let length = datagram.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes) as usize)?;
        if length < HEADER_LEN {
            return None;
        }
        let message = datagram.get(..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(
            NetlinkMessage::deserialize(message)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        )
    })
}

fn event(message: io::Result<NetlinkMessage<RouteNetlinkMessage>>) -> Option<LinkEvent> {
    match message.ok()?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(gone)) => {
            let Link { name, index, .. } = link_of(&gone);
            Some(LinkEvent::Gone { name, index })
        }
        NetlinkPayload::InnerMessage(inner) => described(&inner).map(LinkEvent::Present),
        _ => None,
    }
}

fn described(message: &RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(link_of(link)),
        _ => None,
    }
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        name: String::new(),
        index: message.header.index,
        mtu: 0,
        mac: [0; 6],
        up: message.header.flags.contains(LinkFlags::Up),
        kind: None,
        physical: false,
        rx_queues: 1,
        peer: None,
        peer_elsewhere: false,
        xdp_program: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => {
                link.mac = mac.as_slice().try_into().unwrap_or_default();
            }
            LinkAttribute::NumRxQueues(queues) => link.rx_queues = *queues,
            LinkAttribute::ParentDevName(_) => link.physical = true,
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => link.kind = infos.iter().find_map(kind_of),
            LinkAttribute::Xdp(xdp) => link.xdp_program = xdp.iter().find_map(program_of),
            _ => {}
        }
    }
    link
}

fn kind_of(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

fn program_of(xdp: &LinkXdp) -> Option<u32> {
    match xdp {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    }
}

/// A message about the interface of that name.
fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn veth_end(end: VethEnd<'_>, queues: u32) -> LinkMessage {
    let mut message = named(end.name);
    message
        .attributes
        .extend([LinkAttribute::NumTxQueues(queues), LinkAttribute::NumRxQueues(queues)]);
    message.attributes.extend(end.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    message.attributes.extend(end.mtu.map(LinkAttribute::Mtu));
    message.attributes.extend(end.netns.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found_by_name_and_in_the_list() {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap();
        assert_eq!((lo.name.as_str(), lo.kind.as_deref(), lo.physical), ("lo", None, false));
        assert!(netlink.links().unwrap().iter().any(|link| link.index == lo.index));
    }

    #[test]
    fn an_interface_that_does_not_exist_is_named_in_the_error() {
        let error = Netlink::open().unwrap().link("fd-no-such").unwrap_err();
        assert!(matches!(&error, LinkError::NotFound { name } if name == "fd-no-such"), "{error}");
        // A name too long for the kernel.
        assert!(Netlink::open().unwrap().link("fd-0123456789abcdef").is_err());
    }

    #[test]
    fn malformed_datagrams_end_the_list() {
        assert_eq!(messages(&[]).count(), 0);
        assert_eq!(messages(&[0; 16]).count(), 0, "a length below the header's");
        assert_eq!(messages(&[200, 0, 0, 0, 1]).count(), 0, "a length past the end");
    }

    #[test]
    fn nothing_to_hear_is_no_event() {
        let watch = LinkWatch::open().unwrap();
        assert!(watch.drain().iter().all(|event| !matches!(event, LinkEvent::Missed)));
    }
}
