//! The world of a test: a host with a umem, and workloads behind veths.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use firedoor_dataplane::frame::{Frame, leaked};
use firedoor_dataplane::link::{Link, LinkError, Netlink, VethEnd};
use firedoor_dataplane::pool::{FramePool, FrameStore};
use firedoor_dataplane::port::Port;
use firedoor_dataplane::port::xdp::{OpenError, Opened, XdpOptions, XdpPort, open};
use firedoor_dataplane::sys::umem::Umem;
use libtest_mimic::Failed;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, Socket, Type};

/// Chunks of the host's umem.
pub(crate) const FRAMES: u32 = 4096;

/// Why the tests cannot run here, if they cannot.
pub(crate) fn obstacle() -> Option<String> {
    let probe = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join();
    match probe {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            Some(format!("network namespaces cannot be made here ({error}); run as root"))
        }
        Err(panic) => resume_unwind(panic),
    }
}

/// Runs a test in a thread that has a network namespace of its own.
pub(crate) fn run(test: &fn(&mut Host) -> Result<(), Failed>) -> Result<(), Failed> {
    let test = *test;
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        test(&mut Host::new())
    });
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// The switch's side: a umem, its frames, and the next free owner number.
pub(crate) struct Host {
    pub(crate) pool: FramePool,
    pub(crate) umem: Arc<Umem>,
    store: Arc<FrameStore>,
    next_owner: u16,
}

impl Host {
    pub(crate) fn new() -> Self {
        let (umem, frames) = Umem::new(FRAMES).expect("memory for the umem");
        let (umem, store) = (Arc::new(umem), FrameStore::new(frames));
        let pool = FramePool::new(Arc::clone(&umem), Arc::clone(&store));
        Self { pool, umem, store, next_owner: 1 }
    }

    /// As another worker has one.
    pub(crate) fn another_pool(&self) -> FramePool {
        FramePool::new(Arc::clone(&self.umem), Arc::clone(&self.store))
    }

    pub(crate) fn open(&mut self, ifname: &str, options: &XdpOptions) -> Result<Opened, OpenError> {
        let opened = open(&self.umem, self.next_owner, ifname, options, &mut self.pool);
        self.next_owner += 10;
        opened
    }

    pub(crate) fn close(&mut self, ports: impl IntoIterator<Item = XdpPort>) {
        ports.into_iter().for_each(|port| Box::new(port).close(&mut self.pool));
    }

    pub(crate) fn link(&self, ifname: &str) -> Result<Link, LinkError> {
        Netlink::open().expect("a routing socket").link(ifname)
    }

    /// Forwards every frame that comes in at one interface out of the other, until `done`.
    pub(crate) fn hub(&mut self, interfaces: &mut [Vec<XdpPort>], done: impl Fn() -> bool) {
        let mut batch: Vec<Frame> = Vec::new();
        while !done() {
            for from in 0..interfaces.len() {
                for queue in 0..interfaces[from].len() {
                    interfaces[from][queue].receive(&mut self.pool, &mut batch);
                    let to = &mut interfaces[1 - from][queue];
                    to.transmit(&mut batch);
                    to.reclaim(&mut self.pool);
                    batch.drain(..).for_each(|frame| self.pool.give(frame));
                }
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Every chunk of the umem is in the pool.
    pub(crate) fn assert_conserved(&mut self) {
        self.pool.flush();
        assert_eq!((self.store.len(), leaked()), (FRAMES as usize, 0), "frames are lost");
    }
}

/// A namespace behind a veth, with an IPv4 address in a /24.
pub(crate) struct Workload {
    netns: OwnedFd,
    pub(crate) address: Ipv4Addr,
}

impl Workload {
    /// Makes the veth `ifname`, down, in the calling thread's namespace, and a namespace at its
    /// other end, which is up.
    pub(crate) fn new(address: &str, ifname: &str, queues: u32) -> Result<Self, Failed> {
        let address: Ipv4Addr = address.parse()?;
        let netns = new_netns()?;
        let far = VethEnd { netns: Some(netns.as_fd()), ..VethEnd::new("fd0") };
        Netlink::open()?.create_veth(VethEnd::new(ifname), far, queues)?;
        let workload = Self { netns, address };
        workload.inside(|| {
            let mut netlink = Netlink::open()?;
            netlink.set_up("fd0", true)?;
            let index = netlink.link("fd0")?.index;
            let mut message = AddressMessage::default();
            message.header.family = AddressFamily::Inet;
            message.header.prefix_len = 24;
            message.header.index = index;
            message.attributes = vec![
                AddressAttribute::Local(IpAddr::V4(address)),
                AddressAttribute::Address(IpAddr::V4(address)),
            ];
            netlink.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)?;
            Ok(())
        })?;
        Ok(workload)
    }

    pub(crate) fn set_mtu(&self, mtu: u32) -> Result<(), Failed> {
        self.inside(|| Ok(Netlink::open()?.set_mtu("fd0", mtu)?))
    }

    /// Sends an echo request of each payload size and waits for the answer. Returns how many came
    /// back byte for byte.
    pub(crate) fn ping(&self, to: Ipv4Addr, sizes: &[usize]) -> Result<usize, Failed> {
        self.inside(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut answers = 0;
            for (sequence, size) in sizes.iter().enumerate() {
                let request = echo(8, sequence as u16, *size);
                socket.send_to(&request, &SocketAddr::from((to, 0)).into())?;
                answers += usize::from(receive(&socket)? == echo(0, sequence as u16, *size));
            }
            Ok(answers)
        })
    }

    /// Runs `work` in the workload's namespace.
    pub(crate) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Failed> + Send,
    ) -> Result<T, Failed> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
                work()
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

/// Waits until `done`, for ten seconds at most.
pub(crate) fn wait_for(mut done: impl FnMut() -> bool) -> Result<(), Failed> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        if Instant::now() > deadline {
            return Err("nothing happened for ten seconds".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A new network namespace, which lives as long as the result.
fn new_netns() -> io::Result<OwnedFd> {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        std::fs::File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
    });
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// An ICMP echo message with a payload of that size.
fn echo(kind: u8, sequence: u16, size: usize) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0xfd, 0xfd];
    message.extend(sequence.to_be_bytes());
    message.extend((0..size).map(|at| at as u8));
    let words = message.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    message
}

/// The next echo reply, without its IP header.
fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    let mut packet = [0; 2048];
    loop {
        let len = io::Read::read(&mut &*socket, &mut packet)?;
        if packet[20] == 0 {
            return Ok(packet[20..len].to_vec());
        }
    }
}
