//! AF_XDP on one queue of one interface: four rings, and the sockets they belong to.
//!
//! The kernel's order of calls is fixed: create the socket, register the umem, size the rings, map
//! them, bind. Each queue registers the shared area itself (see docs/adr/0002), so it depends on no
//! other.
//!
//! A queue that receives has two sockets, the second bound with `XDP_SHARED_UMEM` to the first's
//! fill and completion ring: one sends, the other receives and is waited on. For each frame that it
//! is done with, the kernel tells those who wait on the socket that sent it that there is room
//! (`sock_wfree`), and an epoll set always waits. Asked by nobody, that took 100 ns a frame.
//!
//! Source: Documentation/networking/af_xdp.rst and net/xdp/xsk.c (Linux 6.18).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mmap::Mapping;
use super::ring::{Consumer, Descriptor, Layout, Producer};
use super::umem::{CHUNK, Umem};

/// How many packets one `sendto` may transmit in copy mode; 32 unless set (linux/if_xdp.h, 6.16).
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// How long to wait for the kernel to let go of a queue whose socket was just closed. It does so in
/// a work queue, usually within milliseconds.
const QUEUE_RELEASE: Duration = Duration::from_secs(2);

/// How often to look.
const QUEUE_POLL: Duration = Duration::from_micros(500);

/// Lengths of the rings, in descriptors; powers of two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingSizes {
    /// Frames to receive into.
    pub(crate) fill: u32,
    /// Received frames; 0 to receive nothing.
    pub(crate) rx: u32,
    /// Frames to send.
    pub(crate) tx: u32,
    /// Sent frames.
    pub(crate) completion: u32,
}

/// What failed while a socket was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `socket(AF_XDP)`.
    Create,
    /// `XDP_UMEM_REG`: the kernel pins the area.
    RegisterUmem,
    /// Sizing and mapping the rings.
    Rings,
    /// `bind` to the queue.
    Bind,
}

/// Why a socket could not be opened.
#[derive(Debug)]
pub(crate) struct SocketError {
    pub(crate) step: Step,
    pub(crate) source: io::Error,
}

impl Step {
    fn failed(self) -> impl FnOnce(io::Error) -> SocketError {
        move |source| SocketError { step: self, source }
    }
}

/// The kernel's counters of one socket, since it was opened (`XDP_STATISTICS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames dropped on receive for other reasons, such as being longer than a chunk.
    pub rx_dropped: u64,
    /// Frames dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Frames dropped because the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Descriptors in the fill ring that the kernel found invalid.
    pub fill_invalid: u64,
    /// Descriptors in the tx ring that the kernel found invalid.
    pub tx_invalid: u64,
}

/// A bound socket that sends, its rings, and the one beside it that receives.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) receiver: Option<Receiver>,
    // The rings come before the descriptor, so that their mappings, which keep the socket alive in
    // the kernel, are gone when it is closed.
    pub(crate) fill: Producer<u64>,
    pub(crate) tx: Producer<libc::xdp_desc>,
    pub(crate) completion: Consumer<u64>,
    fd: OwnedFd,
    zerocopy: bool,
}

/// A bound socket that receives, into the frames of another one's fill ring.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) rx: Consumer<libc::xdp_desc>,
    fd: OwnedFd,
}

impl Socket {
    /// Opens a socket on one queue of an interface, with zero copy if the driver has it and
    /// `force_copy` is not set, and one that receives if the rx ring has a length. Waits up to two
    /// seconds for a queue that was just given up.
    pub(crate) fn open(
        umem: &Umem,
        index: u32,
        queue: u32,
        sizes: RingSizes,
        force_copy: bool,
    ) -> Result<Self, SocketError> {
        let fd = match umem.take_spare() {
            Some(fd) => fd,
            None => registered(umem)?,
        };
        let (fill, tx, completion) = rings(fd.as_fd(), sizes).map_err(Step::Rings.failed())?;
        allow_whole_batches(fd.as_fd(), sizes.tx).map_err(Step::Rings.failed())?;
        bind(fd.as_fd(), own_umem(index, queue, force_copy)).map_err(Step::Bind.failed())?;
        let zerocopy = is_zerocopy(fd.as_fd()).map_err(Step::Bind.failed())?;
        let receiver = match sizes.rx {
            0 => None,
            length => Some(Receiver::open(fd.as_fd(), index, queue, length)?),
        };
        Ok(Self { receiver, fill, tx, completion, fd, zerocopy })
    }

    /// Closes both sockets at once: for each the kernel waits for a grace period, tens of
    /// milliseconds.
    pub(crate) fn close(self) {
        let Self { receiver, fill, tx, completion, fd, .. } = self;
        std::thread::scope(|scope| {
            // Without a thread the receiver is dropped right here, with the closure.
            let _ = std::thread::Builder::new().spawn_scoped(scope, move || drop(receiver));
            drop((fill, tx, completion));
            drop(fd);
        });
    }

    /// Whether the device reads and writes the umem itself, so that the kernel copies nothing.
    pub(crate) fn is_zerocopy(&self) -> bool {
        self.zerocopy
    }

    /// Makes the kernel send what is in the tx ring. In copy mode it does that during this call.
    ///
    /// # Errors
    /// `EAGAIN`, `EBUSY`, `ENOBUFS`: not everything was sent, or (`ENOBUFS`) the device dropped it.
    /// `ENETDOWN`, `ENXIO`: the interface is down or gone.
    pub(crate) fn kick(&self) -> io::Result<()> {
        // SAFETY: no buffer and no address are passed, so the call reads no memory of ours.
        let sent = unsafe {
            let flags = libc::MSG_DONTWAIT;
            libc::sendto(self.fd.as_raw_fd(), std::ptr::null(), 0, flags, std::ptr::null(), 0)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The kernel's counters.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn statistics(&self) -> io::Result<Statistics> {
        let sent = counters(self.fd.as_fd())?;
        let received = match &self.receiver {
            Some(receiver) => counters(receiver.fd.as_fd())?,
            None => sent,
        };
        Ok(Statistics {
            rx_dropped: received.rx_dropped,
            rx_ring_full: received.rx_ring_full,
            fill_ring_empty: received.rx_fill_ring_empty_descs,
            fill_invalid: received.rx_invalid_descs,
            tx_invalid: sent.tx_invalid_descs,
        })
    }
}

impl Receiver {
    /// Opens a socket that receives on the queue that `sender` is bound to.
    fn open(
        sender: BorrowedFd<'_>,
        index: u32,
        queue: u32,
        length: u32,
    ) -> Result<Self, SocketError> {
        let fd = create().map_err(Step::Create.failed())?;
        let rx = rx_ring(fd.as_fd(), length).map_err(Step::Rings.failed())?;
        bind(fd.as_fd(), umem_of(sender, index, queue)).map_err(Step::Bind.failed())?;
        Ok(Self { rx, fd })
    }

    /// Another descriptor of the socket.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Makes the driver look at the fill ring again (zero copy only).
    pub(crate) fn wake(&self) {
        // SAFETY: no buffer and no address are passed, so the call writes no memory of ours. Its
        // result says nothing that the rings do not.
        unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
    }
}

impl AsRawFd for Receiver {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Waits until the kernel has let go of a queue whose zero-copy socket was closed, and with it of
/// the umem: until then the device may still write to it. A second socket on the queue tells.
pub(crate) fn wait_until_released(index: u32, queue: u32) {
    let Ok((umem, frames)) = Umem::new(2) else { return };
    let sizes = RingSizes { fill: 2, rx: 0, tx: 2, completion: 2 };
    // Bound or refused, the queue is free now or the interface is gone.
    drop(Socket::open(&umem, index, queue, sizes, true));
    frames.into_iter().for_each(|frame| {
        frame.release();
    });
}

/// A socket with the umem registered, which is what takes longest of [`Socket::open`].
pub(crate) fn registered(umem: &Umem) -> Result<OwnedFd, SocketError> {
    let fd = create().map_err(Step::Create.failed())?;
    register(fd.as_fd(), umem).map_err(Step::RegisterUmem.failed())?;
    Ok(fd)
}

fn create() -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Registers the umem. Without CAP_IPC_LOCK the pages count against RLIMIT_MEMLOCK (`ENOBUFS`);
/// then the limit is raised as far as the process may, and the registration tried once more.
fn register(fd: BorrowedFd<'_>, umem: &Umem) -> io::Result<()> {
    let (addr, len) = umem.area();
    // SAFETY: a struct of integers, for which zero is a value.
    let mut area: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
    area.addr = addr;
    area.len = len;
    area.chunk_size = CHUNK as u32;
    match set_option(fd, libc::XDP_UMEM_REG, &area) {
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
            raise_memlock();
            set_option(fd, libc::XDP_UMEM_REG, &area)
        }
        result => result,
    }
}

/// Raises RLIMIT_MEMLOCK as far as this process may.
fn raise_memlock() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: reads the struct during the call only.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) } == 0 {
        return;
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the struct during the call only.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: reads the struct during the call only. If it fails, the registration fails again
        // and says so.
        unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    }
}

type Rings = (Producer<u64>, Producer<libc::xdp_desc>, Consumer<u64>);

/// Sizes and maps the rings of a socket that sends: fill, tx and completion.
fn rings(fd: BorrowedFd<'_>, sizes: RingSizes) -> io::Result<Rings> {
    set_option(fd, libc::XDP_UMEM_FILL_RING, &sizes.fill)?;
    set_option(fd, libc::XDP_UMEM_COMPLETION_RING, &sizes.completion)?;
    set_option(fd, libc::XDP_TX_RING, &sizes.tx)?;
    let offsets = offsets(fd)?;
    let (fill, fill_at) =
        map::<u64>(fd, offsets.fr, sizes.fill, libc::XDP_UMEM_PGOFF_FILL_RING as i64)?;
    let (tx, tx_at) = map::<libc::xdp_desc>(fd, offsets.tx, sizes.tx, libc::XDP_PGOFF_TX_RING)?;
    let (completion, completion_at) =
        map::<u64>(fd, offsets.cr, sizes.completion, libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64)?;
    let rings = || {
        Some((
            Producer::new(fill, fill_at, sizes.fill)?,
            Producer::new(tx, tx_at, sizes.tx)?,
            Consumer::new(completion, completion_at, sizes.completion)?,
        ))
    };
    rings().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Sizes and maps the rx ring of a socket.
fn rx_ring(fd: BorrowedFd<'_>, length: u32) -> io::Result<Consumer<libc::xdp_desc>> {
    set_option(fd, libc::XDP_RX_RING, &length)?;
    let (rx, at) = map::<libc::xdp_desc>(fd, offsets(fd)?.rx, length, libc::XDP_PGOFF_RX_RING)?;
    Consumer::new(rx, at, length).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Where the parts of a socket's rings lie in their mappings.
fn offsets(fd: BorrowedFd<'_>) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: a struct of integers, for which zero is a value.
    let empty: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    get_option(fd, libc::XDP_MMAP_OFFSETS, empty)
}

fn counters(fd: BorrowedFd<'_>) -> io::Result<libc::xdp_statistics> {
    // SAFETY: a struct of integers, for which zero is a value.
    let empty: libc::xdp_statistics = unsafe { std::mem::zeroed() };
    get_option(fd, libc::XDP_STATISTICS, empty)
}

/// Maps one ring: from the mapping's start to the end of its last descriptor.
fn map<D: Descriptor>(
    fd: BorrowedFd<'_>,
    offsets: libc::xdp_ring_offset,
    size: u32,
    page_offset: i64,
) -> io::Result<(Arc<Mapping>, Layout)> {
    let len = offsets.desc as usize + size as usize * size_of::<D>();
    let memory = Mapping::of_socket(fd, len, page_offset)?;
    Ok((Arc::new(memory), offsets.into()))
}

/// Lets one `sendto` transmit the whole tx ring. Kernels before 6.16 do not know the option, and
/// send 32 frames at a time.
fn allow_whole_batches(fd: BorrowedFd<'_>, tx: u32) -> io::Result<()> {
    match set_option(fd, XDP_MAX_TX_SKB_BUDGET, &tx) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EACCES)) => {
            Ok(())
        }
        result => result,
    }
}

/// The address of a queue, for a socket with a umem of its own.
fn own_umem(index: u32, queue: u32, force_copy: bool) -> libc::sockaddr_xdp {
    // Without a mode flag the kernel takes zero copy if the driver has it, else copy.
    let mode = if force_copy { libc::XDP_COPY } else { 0 };
    libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_USE_NEED_WAKEUP | mode,
        sxdp_ifindex: index,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    }
}

/// The address of a queue, for a socket that uses the umem and the fill and completion ring of one
/// that is bound there; it works as that one does.
fn umem_of(other: BorrowedFd<'_>, index: u32, queue: u32) -> libc::sockaddr_xdp {
    libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_SHARED_UMEM,
        sxdp_ifindex: index,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: other.as_raw_fd() as u32,
    }
}

fn bind(fd: BorrowedFd<'_>, address: libc::sockaddr_xdp) -> io::Result<()> {
    let deadline = Instant::now() + QUEUE_RELEASE;
    loop {
        let len = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
        // SAFETY: reads `len` bytes of the address during the call only.
        let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= deadline {
            return Err(error);
        }
        std::thread::sleep(QUEUE_POLL);
    }
}

fn is_zerocopy(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let options = get_option(fd, libc::XDP_OPTIONS, libc::xdp_options { flags: 0 })?;
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

fn set_option<T>(fd: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: reads `len` bytes of the value during the call only. (XDP_UMEM_REG makes the kernel
    // keep the area it names: that is the Umem's, whose pages the kernel pins itself.)
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, value, len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an option whose value is a struct of integers.
fn get_option<T: Copy>(fd: BorrowedFd<'_>, option: libc::c_int, mut value: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    let at = (&raw mut value).cast();
    // SAFETY: writes at most `len` bytes to the value, whose fields are integers, during the call.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, at, &raw mut len) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
