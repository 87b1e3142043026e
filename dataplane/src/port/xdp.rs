//! A port on a kernel interface, through AF_XDP.
//!
//! An interface has one [`XdpPort`] per receive queue, because an AF_XDP socket sees one queue. They
//! share one XDP program, which sends each frame to the socket of its queue and drops it where there
//! is none; the last to close takes the program off.
//!
//! [`open`] goes in this order, so that no frame slips past: silence the host's stack, raise a wall in front of
//! it, bind the sockets, fill them, put them in the program's map, attach the program, set the interface up.
//! Closing goes backwards, and begins with setting a workload's interface down.
//!
//! Frames that a port has taken lie in one of three places: with the kernel for receiving (at most
//! `fill`), with the kernel for sending (at most `tx`), or set aside because the kernel would refuse
//! them. The umem's owner table knows which chunks are with the kernel by way of this socket, so
//! that [`close`](Port::close) finds them all, whatever happened to the interface meanwhile.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::frame::Frame;
use crate::link::{Link, LinkError, Netlink};
use crate::pool::FramePool;
use crate::port::silence::Silence;
use crate::port::{BURST, Port};
use crate::sys::bpf::{Attached, Mode, Redirect, Steering};
use crate::sys::promiscuous::Promiscuous;
use crate::sys::umem::{Loans, MAX_FRAME, Umem};
use crate::sys::wall::{Wall, Walls};
use crate::sys::xsk::{self, Receiver, RingSizes, Socket, SocketError, Step};

pub use crate::sys::xsk::Statistics;

/// Ethernet header and one VLAN tag, in bytes: what a frame has beyond the interface's MTU.
pub const OVERHEAD: usize = 14 + 4;

/// Largest MTU of a port, in bytes: the frame must fit one chunk.
pub const MAX_MTU: u32 = (MAX_FRAME - OVERHEAD) as u32;

/// Largest MTU of a veth's far end under a native XDP program without multi-buffer support, in
/// bytes. (One page, less headroom and the kernel's bookkeeping; veth_xdp_set in
/// drivers/net/veth.c.)
pub const MAX_VETH_PEER_MTU: u32 = 3506;

/// Longest ring, in descriptors.
const LONGEST_RING: u32 = 1 << 15;

/// How long a port that closes waits for the completion of what it sends.
const LAST_FRAMES: Duration = Duration::from_millis(100);

/// How a port is opened.
#[derive(Clone, Debug)]
pub struct XdpOptions {
    /// Frames kept with the kernel for receiving, per queue; 0 to receive nothing. The rings are the
    /// next power of two.
    pub fill: u32,
    /// Frames that may be with the kernel for sending, per queue; rounded up to a power of two.
    pub tx: u32,
    /// Most queues to open. A frame of a queue beyond is dropped.
    pub max_queues: u32,
    /// Copy even if the driver has zero copy.
    pub force_copy: bool,
    /// Generic XDP even if the driver has native. On a veth the workload then keeps TSO, and what
    /// it sends in pieces larger than a chunk is dropped.
    pub force_generic: bool,
    /// What keeps the host's stack out when the process is killed; `None` if nothing is to.
    pub walls: Option<Arc<Walls>>,
    /// Where a process before may have pinned a program that is on the interface still; `None` if it was
    /// nowhere.
    pub pins: Option<PathBuf>,
}

impl Default for XdpOptions {
    fn default() -> Self {
        Self {
            fill: 512,
            tx: 512,
            max_queues: 64,
            force_copy: false,
            force_generic: false,
            walls: None,
            pins: None,
        }
    }
}

/// An opened interface.
pub struct Opened<P = XdpPort> {
    /// One port per receive queue, in the queues' order.
    pub queues: Vec<P>,
    /// How frames travel: `native copy`, `native zero-copy` or `generic copy`.
    pub mode: String,
    /// What an operator should know about it, in sentences.
    pub notices: Vec<String>,
    /// The interface, as it was before it was opened.
    pub link: Link,
}

/// Why an interface could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// It cannot be looked up or set up; perhaps it does not exist.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The kernel's routing socket does not work.
    #[error("cannot look up {ifname}: no routing socket")]
    Netlink {
        /// The interface.
        ifname: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The process may not.
    #[error("no permission to {action} {ifname}: {capability} is needed; run as root")]
    NotPermitted {
        /// The interface.
        ifname: String,
        /// What was tried.
        action: &'static str,
        /// The missing capability.
        capability: &'static str,
    },
    /// Its frames do not fit a chunk.
    #[error(
        "the MTU of {ifname} is {mtu} bytes, a port takes at most {limit}; \
         `ip link set {ifname} mtu {limit}`"
    )]
    MtuTooLarge {
        /// The interface.
        ifname: String,
        /// Its MTU, in bytes.
        mtu: u32,
        /// The largest possible, in bytes.
        limit: u32,
    },
    /// The driver finds the MTU too large for XDP.
    #[error(
        "the MTU of {ifname} or of its peer is too large for native XDP; \
         set it to at most {limit} bytes at both ends"
    )]
    MtuTooLargeForDriver {
        /// The interface.
        ifname: String,
        /// The largest that veth takes, in bytes.
        limit: u32,
    },
    /// Another AF_XDP socket has the queue.
    #[error(
        "queue {queue} of {ifname} belongs to another AF_XDP socket; another switch, or another \
         program that uses AF_XDP, runs on this interface: stop it first"
    )]
    QueueBusy {
        /// The interface.
        ifname: String,
        /// The queue.
        queue: u32,
    },
    /// Another XDP program is attached.
    #[error(
        "another XDP program is attached to {ifname}{}; stop what attached it, or detach it with \
         `ip link set {ifname} xdp off`", .program.map(|id| format!(" (id {id})")).unwrap_or_default()
    )]
    ProgramAttached {
        /// The interface.
        ifname: String,
        /// The program's id.
        program: Option<u32>,
    },
    /// The kernel has no AF_XDP.
    #[error("this kernel has no AF_XDP sockets; it needs CONFIG_XDP_SOCKETS=y and Linux 5.9")]
    NoAfXdp,
    /// The pool has too few free frames to receive into.
    #[error(
        "{ifname} needs {wanted} free frames to receive into and only {available} are left: raise \
         `frames` in [switch] and start the switch again"
    )]
    OutOfFrames {
        /// The interface.
        ifname: String,
        /// How many it needs.
        wanted: u32,
        /// How many there were.
        available: u32,
    },
    /// The kernel refused something else.
    #[error("the kernel refused to {action} {ifname}")]
    Kernel {
        /// The interface.
        ifname: String,
        /// What was tried.
        action: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

/// What belongs to the interface rather than to a queue, and ends with the last port on it.
struct Attachment {
    silence: Silence,
    _promiscuous: Option<Promiscuous>,
    attached: Option<Attached>,
    /// Keeps the map of sockets.
    _steering: Box<dyn Steering>,
    _wall: Option<Wall>,
}

impl Attachment {
    /// Leaves the interface as it is, but for a program that does not outlive the process: the wall stands behind.
    fn abandon(mut self) {
        self.attached.take().into_iter().for_each(Attached::abandon);
        std::mem::forget(self);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.silence.shut();
    }
}

/// One receive queue of an interface, and a way to send. Aligned, because another worker may have the
/// next one.
#[repr(align(128))]
pub struct XdpPort {
    umem: Arc<Umem>,
    /// The chunks that are with the kernel.
    loans: Loans,
    index: u32,
    queue: u32,
    socket: Socket,
    attachment: Option<Arc<Attachment>>,
    /// Frames to keep with the kernel for receiving, and how many there are.
    fill: u32,
    filled: u32,
    /// Most frames with the kernel for sending, and how many there are.
    tx: u32,
    sending: u32,
    /// The interface is down or gone, so that kicking is of no use before something changes.
    stalled: bool,
    /// Frames that the kernel would refuse without giving them back.
    unsendable: Vec<Frame>,
    max_frame: usize,
}

/// Opens every queue of the interface `ifname`, of the calling thread's network namespace, as a
/// port. The umem knows them as owners `owner_base`, `owner_base + 1`, …; these must not be in use,
/// nor be 0. On failure everything is as it was, and every frame is back in the pool.
///
/// # Errors
/// See [`OpenError`].
pub fn open(
    umem: &Arc<Umem>,
    owner_base: u16,
    ifname: &str,
    options: &XdpOptions,
    pool: &mut FramePool,
) -> Result<Opened, OpenError> {
    open_steered(umem, owner_base, ifname, options, pool, |queues| {
        Ok(Box::new(Redirect::load(queues, options.pins.as_deref())?))
    })
}

/// As [`open`], under the program that `steering` gives for so many queues.
pub(crate) fn open_steered(
    umem: &Arc<Umem>,
    owner_base: u16,
    ifname: &str,
    options: &XdpOptions,
    pool: &mut FramePool,
    steering: impl FnOnce(u32) -> io::Result<Box<dyn Steering>>,
) -> Result<Opened, OpenError> {
    let mut netlink = Netlink::open()
        .map_err(|source| OpenError::Netlink { ifname: ifname.to_owned(), source })?;
    let link = netlink.link(ifname)?;
    if link.mtu > MAX_MTU {
        return Err(OpenError::MtuTooLarge { ifname: link.name, mtu: link.mtu, limit: MAX_MTU });
    }
    let silence = Silence::of(&link);
    let wall = options.walls.as_ref().and_then(|walls| walls.raise_or_say_so(&link));
    let mut steering = steering(queue_count(&link, owner_base, options))
        .map_err(|source| refused(&link, "load the XDP program for", source))?;
    let mut queues = Vec::new();
    let attached = bind_queues(umem, owner_base, &link, options, &mut *steering, pool, &mut queues)
        .and_then(|()| attach(&mut netlink, &link, options, (silence, wall), steering));
    let (attachment, mode, notices) = match attached {
        Ok(attached) => attached,
        Err(error) => {
            queues.into_iter().for_each(|port| Box::new(port).close(pool));
            return Err(error);
        }
    };
    let attachment = Arc::new(attachment);
    for port in &mut queues {
        port.attachment = Some(Arc::clone(&attachment));
    }
    let mode = describe(mode, queues.iter().all(|port| port.socket.is_zerocopy()));
    Ok(Opened { queues, mode, notices, link })
}

/// A port that only sends, through the first queue of the interface: no program is attached and nothing
/// is received, so the interface keeps all its offloads. The umem knows it as `owner`.
///
/// # Errors
/// See [`OpenError`].
pub(crate) fn open_sender(
    umem: &Arc<Umem>,
    owner: u16,
    link: &Link,
    tx: u32,
) -> Result<XdpPort, OpenError> {
    let options = XdpOptions { fill: 0, tx, force_copy: true, ..XdpOptions::default() };
    XdpPort::bind(umem, owner, link, 0, &options).map_err(|error| socket_refused(link, 0, error))
}

/// How many queues to try: those the interface has room for, as far as allowed and as owner numbers
/// reach.
fn queue_count(link: &Link, owner_base: u16, options: &XdpOptions) -> u32 {
    let owners = u32::from(u16::MAX - owner_base) + 1;
    link.rx_queues.min(options.max_queues).min(owners).max(1)
}

/// Binds and fills a socket per queue, puts each in the map, and appends its port to `ports`.
fn bind_queues(
    umem: &Arc<Umem>,
    owner_base: u16,
    link: &Link,
    options: &XdpOptions,
    steering: &mut dyn Steering,
    pool: &mut FramePool,
    ports: &mut Vec<XdpPort>,
) -> Result<(), OpenError> {
    for queue in 0..queue_count(link, owner_base, options) {
        let mut port = match XdpPort::bind(umem, owner_base + queue as u16, link, queue, options) {
            Ok(port) => port,
            // The interface has room for this queue but does not use it.
            Err(SocketError { step: Step::Bind, source })
                if queue > 0 && source.raw_os_error() == Some(libc::EINVAL) =>
            {
                break;
            }
            Err(error) => return Err(socket_refused(link, queue, error)),
        };
        port.refill(pool);
        let (available, wanted) = (port.filled, port.fill);
        let in_map = port.fd().map_or(Ok(()), |fd| steering.set(queue, fd));
        ports.push(port);
        in_map.map_err(|source| refused(link, "add a socket to the map of", source))?;
        if available < wanted {
            return Err(OpenError::OutOfFrames { ifname: link.name.clone(), wanted, available });
        }
    }
    Ok(())
}

/// Attaches the program, makes a physical device promiscuous, and sets the interface up.
fn attach(
    netlink: &mut Netlink,
    link: &Link,
    options: &XdpOptions,
    (silence, wall): (Silence, Option<Wall>),
    mut steering: Box<dyn Steering>,
) -> Result<(Attachment, Mode, Vec<String>), OpenError> {
    let (attached, mode, notices) = attach_program(link, options, &mut *steering)?;
    let promiscuous = link
        .physical
        .then(|| Promiscuous::new(link.index))
        .transpose()
        .map_err(|source| refused(link, "set promiscuous mode on", source))?;
    netlink.set_up(&link.name, true)?;
    let attachment = Attachment {
        silence,
        _promiscuous: promiscuous,
        attached: Some(attached),
        _steering: steering,
        _wall: wall,
    };
    Ok((attachment, mode, notices))
}

/// Attaches the program in native mode if the driver can, else in generic mode with a notice.
fn attach_program(
    link: &Link,
    options: &XdpOptions,
    steering: &mut dyn Steering,
) -> Result<(Attached, Mode, Vec<String>), OpenError> {
    let mut notices = Vec::new();
    if !options.force_generic {
        match steering.attach(link.index, Mode::Native) {
            Ok(attached) => return Ok((attached, Mode::Native, notices)),
            Err(source) => notices.push(format!(
                "{}: {}, so XDP runs in generic mode, which is slower.",
                link.name,
                native_refusal(link, source)?
            )),
        }
    }
    if link.kind.as_deref() == Some("veth") {
        notices.push(format!(
            "{}: generic mode drops what the workload sends in pieces larger than {MAX_FRAME} \
             bytes; turn off TSO in the workload (`ethtool -K IF tso off`).",
            link.name
        ));
    }
    let attached = steering
        .attach(link.index, Mode::Generic)
        .map_err(|source| refused(link, "attach the XDP program to", source))?;
    Ok((attached, Mode::Generic, notices))
}

/// Why the driver has no native mode for us, if generic mode is an answer to that.
fn native_refusal(link: &Link, source: io::Error) -> Result<&'static str, OpenError> {
    match source.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Ok("its driver has no native XDP"),
        Some(libc::ENOSPC) => Ok("it has fewer receive queues than its peer has transmit queues"),
        Some(libc::ENOTCONN) => Ok("it has no peer"),
        Some(libc::ERANGE) => Err(OpenError::MtuTooLargeForDriver {
            ifname: link.name.clone(),
            limit: MAX_VETH_PEER_MTU,
        }),
        Some(libc::EBUSY | libc::EEXIST) => {
            Err(OpenError::ProgramAttached { ifname: link.name.clone(), program: link.xdp_program })
        }
        _ => Err(refused(link, "attach the XDP program to", source)),
    }
}

fn refused(link: &Link, action: &'static str, source: io::Error) -> OpenError {
    let ifname = link.name.clone();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            OpenError::NotPermitted { ifname, action, capability: "CAP_BPF with CAP_NET_ADMIN" }
        }
        Some(libc::EBUSY | libc::EEXIST) => {
            OpenError::ProgramAttached { ifname, program: link.xdp_program }
        }
        Some(libc::ENODEV) => OpenError::Link(LinkError::NotFound { name: ifname }),
        _ => OpenError::Kernel { ifname, action, source },
    }
}

fn socket_refused(link: &Link, queue: u32, error: SocketError) -> OpenError {
    let ifname = link.name.clone();
    let SocketError { step, source } = error;
    match (step, source.raw_os_error()) {
        (Step::Create, Some(libc::EAFNOSUPPORT)) => OpenError::NoAfXdp,
        (Step::Create, Some(libc::EPERM | libc::EACCES)) => OpenError::NotPermitted {
            ifname,
            action: "open an AF_XDP socket on",
            capability: "CAP_NET_RAW",
        },
        (Step::RegisterUmem, Some(libc::ENOBUFS | libc::EPERM)) => OpenError::NotPermitted {
            ifname,
            action: "lock the umem's memory for",
            capability: "CAP_IPC_LOCK (or a higher RLIMIT_MEMLOCK)",
        },
        (Step::Bind, Some(libc::EBUSY)) => OpenError::QueueBusy { ifname, queue },
        (Step::Bind, Some(libc::ENODEV)) => OpenError::Link(LinkError::NotFound { name: ifname }),
        _ => {
            let action = match step {
                Step::Create => "open an AF_XDP socket on",
                Step::RegisterUmem => "register the umem for",
                Step::Rings => "make the rings of",
                Step::Bind => "bind an AF_XDP socket to",
            };
            OpenError::Kernel { ifname, action, source }
        }
    }
}

fn describe(mode: Mode, zerocopy: bool) -> String {
    let program = match mode {
        Mode::Native => "native",
        Mode::Generic => "generic",
    };
    let transfer = if zerocopy { "zero-copy" } else { "copy" };
    format!("{program} {transfer}")
}

impl XdpPort {
    fn bind(
        umem: &Arc<Umem>,
        owner: u16,
        link: &Link,
        queue: u32,
        options: &XdpOptions,
    ) -> Result<Self, SocketError> {
        // The rx ring is as long as the fill ring, and the completion ring as the tx ring, so that
        // neither can overflow.
        let fill = options.fill.min(LONGEST_RING);
        let tx = options.tx.clamp(1, LONGEST_RING).next_power_of_two();
        let sizes = RingSizes {
            fill: fill.max(1).next_power_of_two(),
            rx: if fill == 0 { 0 } else { fill.next_power_of_two() },
            tx,
            completion: tx,
        };
        Ok(Self {
            umem: Arc::clone(umem),
            loans: umem.loans(owner),
            index: link.index,
            queue,
            socket: Socket::open(umem, link.index, queue, sizes, options.force_copy)?,
            attachment: None,
            fill,
            filled: 0,
            tx,
            sending: 0,
            stalled: false,
            unsendable: Vec::new(),
            max_frame: link.mtu as usize + OVERHEAD,
        })
    }

    /// Which receive queue of the interface it is.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// Another descriptor of the socket that receives, to wait on. The chunks that the port has are
    /// its own until this one is closed too.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        match &self.socket.receiver {
            Some(receiver) => receiver.duplicate(),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The kernel's counters of this queue's socket; zero if the kernel does not say.
    pub fn statistics(&self) -> Statistics {
        self.socket.statistics().unwrap_or_default()
    }

    /// Lends the kernel frames to receive into, up to `fill`, as far as the pool has them.
    fn refill(&mut self, pool: &mut FramePool) {
        let missing = self.fill - self.filled;
        if missing == 0 {
            return;
        }
        let room = self.socket.fill.free(missing).min(missing);
        for frame in std::iter::from_fn(|| pool.take()).take(room as usize) {
            let pushed = self.socket.fill.push(self.loans.lend(frame));
            debug_assert!(pushed, "there is room");
            self.filled += 1;
        }
        self.socket.fill.publish();
        if self.socket.fill.needs_wakeup()
            && let Some(receiver) = &self.socket.receiver
        {
            receiver.wake();
        }
    }

    /// Whether it should receive, and the kernel has nothing to receive into.
    fn is_deaf(&self) -> bool {
        self.filled == 0 && self.fill > 0
    }

    /// Makes the kernel send what is in the tx ring. Ends when all is sent or a call sends nothing;
    /// then [`reclaim`](Port::reclaim) tries again.
    fn kick(&mut self) {
        let mut pending = self.socket.tx.pending();
        while pending > 0 && self.socket.tx.needs_wakeup() {
            let result = self.socket.kick();
            self.stalled = result.as_ref().is_err_and(is_standstill);
            let left = self.socket.tx.pending();
            if left >= pending {
                return;
            }
            pending = left;
        }
    }
}

/// Whether kicking again is of no use before the interface changes. Other errors (`EAGAIN`, `EBUSY`,
/// `ENOBUFS`) pass by themselves.
fn is_standstill(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV | libc::EBADF))
}

impl Port for XdpPort {
    fn receive(&mut self, pool: &mut FramePool, batch: &mut Vec<Frame>) -> usize {
        let Some(Receiver { rx, .. }) = &mut self.socket.receiver else { return 0 };
        let before = batch.len();
        let ready = rx.ready(BURST as u32);
        self.socket.fill.prefetch(ready);
        for descriptor in std::iter::from_fn(|| rx.pop()).take(ready as usize) {
            let frame = self.loans.take_back(descriptor.addr, descriptor.len);
            let Some(frame) = frame else { continue };
            self.umem.prefetch(&frame);
            batch.push(frame);
        }
        if ready > 0 {
            rx.release();
            self.filled = self.filled.saturating_sub(ready);
        }
        self.refill(pool);
        batch.len() - before
    }

    fn transmit(&mut self, frames: &mut Vec<Frame>) -> usize {
        let room = self.socket.tx.free(frames.len() as u32).min(self.tx - self.sending);
        let count = frames.len().min(room as usize);
        for frame in frames.drain(..count) {
            // The kernel skips an empty frame without completing it.
            if frame.is_empty() {
                self.unsendable.push(frame);
                continue;
            }
            let len = frame.len() as u32;
            let addr = self.loans.lend(frame);
            let pushed = self.socket.tx.push(libc::xdp_desc { addr, len, options: 0 });
            debug_assert!(pushed, "there is room");
            self.sending += 1;
        }
        self.socket.tx.publish();
        self.kick();
        count
    }

    fn reclaim(&mut self, pool: &mut FramePool) {
        self.unsendable.drain(..).for_each(|frame| pool.give(frame));
        if self.is_deaf() {
            self.refill(pool);
        }
        if self.sending == 0 {
            return;
        }
        while let Some(address) = self.socket.completion.pop() {
            self.sending = self.sending.saturating_sub(1);
            if let Some(frame) = self.loans.take_back(address, 0) {
                pool.give_sent(frame);
            }
        }
        self.socket.completion.release();
        if self.sending > 0 {
            self.kick();
        }
    }

    fn fd(&self) -> Option<RawFd> {
        self.socket.receiver.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn max_frame(&self) -> usize {
        self.max_frame
    }

    /// Also while the kernel has nothing to receive into, because then the descriptor does not
    /// become readable: the next reclaim tries the pool again.
    fn is_busy(&self) -> bool {
        (self.sending > 0 && !self.stalled) || !self.unsendable.is_empty() || self.is_deaf()
    }

    /// Takes the program off if this is the interface's last port, closes the socket, and takes back
    /// every frame it had.
    ///
    /// When the socket's descriptor and mappings are gone (all are close-on-exec, so no other process
    /// has them), the kernel has left its chunks alone.
    /// In copy mode `xsk_release` (net/xdp/xsk.c) unbinds the socket and waits for a grace period,
    /// after which no receive path writes to the umem. What is sent on a veth or tap was copied into
    /// an skb that refers to no chunk. A driver that sends from the umem's pages
    /// (`IFF_TX_SKB_NO_LINEAR`, virtio_net for one) gets a moment to complete what it was given.
    /// With zero copy the device may use the umem until the pool is torn down in a work queue, so
    /// that is waited for.
    fn close(mut self: Box<Self>, pool: &mut FramePool) {
        let deadline = Instant::now() + LAST_FRAMES;
        while self.sending > 0 && !self.stalled && Instant::now() < deadline {
            self.reclaim(pool);
        }
        let Self { mut loans, index, queue, socket, attachment, unsendable, .. } = *self;
        drop(attachment);
        let zerocopy = socket.is_zerocopy();
        socket.close();
        if zerocopy {
            xsk::wait_until_released(index, queue);
        }
        unsendable.into_iter().chain(loans.take_all_back()).for_each(|frame| pool.give(frame));
    }

    fn abandon(self: Box<Self>) {
        let Self { socket, attachment, unsendable, .. } = *self;
        std::mem::forget(unsendable);
        attachment.and_then(Arc::into_inner).into_iter().for_each(Attachment::abandon);
        socket.close();
    }
}
