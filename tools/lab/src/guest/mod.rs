//! A userspace guest: a whole host on the other end of a tap, with [smoltcp] as its stack.
//!
//! It stands where a virtual machine would: the kernel sees no socket of it, only frames through
//! the tap's file. It answers ping, echoes TCP and UDP, asks others for services ([`Guest::probe`]),
//! and can lend its stack to real programs: [`Forward`]s carry connections made to the guest to a
//! server outside it, [`Guest::proxy`] carries connections of a client outside to whom the guest
//! reaches.
//!
//! One thread per guest turns one event loop: take commands, poll the stack, step the
//! [tasks](task), wait for the tap, the relayed streams or the next timer.

mod tap;
mod task;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use firedoor_classifier::MacAddr;
use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::wire::{EthernetAddress, IpCidr};

use crate::netns::{Netns, NetnsError};
use crate::probe::{Answer, Service, inside};
use tap::Tap;
use task::{Stack, Step, Task};

/// Longest time the event loop waits, whatever happens.
const MAX_WAIT: Duration = Duration::from_millis(250);

/// Listeners of each TCP echo port: so many connections may be open or being opened at once.
const BACKLOG: usize = 8;

/// Who a guest is, and what it serves.
#[derive(Clone, Debug, Default)]
pub struct GuestConfig {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its addresses, at most four, with the networks they are in.
    pub addresses: Vec<IpNet>,
    /// Where it sends what is for other networks.
    pub gateways: Vec<IpAddr>,
    /// What it echoes; [`Service::Ping`] goes without saying.
    pub echo: Vec<Service>,
    /// Ports whose connections it passes on.
    pub forward: Vec<Forward>,
}

/// A port whose connections are passed on to a server outside the guest, which the namespace of the
/// tap can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The guest's TCP port.
    pub port: u16,
    /// The server.
    pub to: SocketAddr,
}

/// A running guest. It ends when dropped.
#[derive(Debug)]
pub struct Guest {
    netns: Netns,
    commands: Option<Sender<Command>>,
    wake: UnixStream,
    thread: Option<JoinHandle<Result<(), NetnsError>>>,
}

enum Command {
    Probe { to: IpAddr, service: Service, timeout: Duration, tell: Sender<io::Result<Answer>> },
    Proxy { listener: TcpListener, to: SocketAddr },
}

impl Guest {
    /// Starts a guest behind the tap `name` in `netns`.
    ///
    /// # Errors
    /// If the tap cannot be attached to: it does not exist, another process has it, no root.
    pub fn start(netns: Netns, name: &str, config: GuestConfig) -> io::Result<Self> {
        let file = inside(&netns, || firedoor_dataplane::sys::tap::open(name))?;
        let (commands, orders) = mpsc::channel();
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let thread = netns
            .spawn(&format!("guest {name}"), move || {
                EventLoop::new(file, &config, orders, woken).run();
            })
            .map_err(io::Error::other)?;
        Ok(Self { netns, commands: Some(commands), wake, thread: Some(thread) })
    }

    /// Tries `service` at `to`, waiting at most `timeout`.
    ///
    /// # Errors
    /// If the guest has no route there or has ended.
    pub fn probe(&self, to: IpAddr, service: Service, timeout: Duration) -> io::Result<Answer> {
        let (tell, answer) = mpsc::channel();
        self.order(Command::Probe { to, service, timeout, tell })?;
        answer.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// From now on, connections to the returned address, inside the tap's namespace, are carried by
    /// the guest to `to`.
    ///
    /// # Errors
    /// If there is no port left or the guest has ended.
    pub fn proxy(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        let listener = inside(&self.netns, || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        self.order(Command::Proxy { listener, to })?;
        Ok(address)
    }

    fn order(&self, command: Command) -> io::Result<()> {
        let commands = self.commands.as_ref().ok_or_else(gone)?;
        commands.send(command).map_err(|_| gone())?;
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        // Full means that it is about to wake anyway.
        let _ = (&self.wake).write(&[0]);
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the guest has ended")
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.commands = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct EventLoop {
    tap: Tap,
    interface: Interface,
    sockets: SocketSet<'static>,
    tasks: Vec<Task>,
    orders: Receiver<Command>,
    woken: UnixStream,
    start: Instant,
}

impl EventLoop {
    fn new(file: File, config: &GuestConfig, orders: Receiver<Command>, woken: UnixStream) -> Self {
        let mut tap = Tap::new(file);
        let start = Instant::now();
        let mut sockets = SocketSet::new(Vec::new());
        let tasks = services(config, &mut sockets);
        let interface = interface(config, &mut tap);
        Self { tap, interface, sockets, tasks, orders, woken, start }
    }

    /// Turns until the [`Guest`] is dropped.
    fn run(mut self) {
        // Before the first look at the tap, where frames may wait by now: else who listens nowhere yet refuses them.
        let mut moved = self.step_tasks();
        while self.take_orders() {
            let now = self.now();
            let polled = self.interface.poll(now, &mut self.tap, &mut self.sockets);
            let more = self.tap.begin_turn();
            if moved || more || polled == PollResult::SocketStateChanged {
                moved = self.step_tasks();
            }
            if !moved && !more {
                moved = self.wait();
            }
        }
    }

    fn now(&self) -> smoltcp::time::Instant {
        let micros = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        smoltcp::time::Instant::from_micros(micros)
    }

    /// False once nobody can give orders any more.
    fn take_orders(&mut self) -> bool {
        loop {
            let mut stack = Stack { interface: &mut self.interface, sockets: &mut self.sockets };
            match self.orders.try_recv() {
                Ok(Command::Probe { to, service, timeout, tell }) => {
                    let probe = task::Probe::start(&mut stack, (to, service), timeout, tell);
                    self.tasks.extend(probe.map(Task::Probe));
                }
                Ok(Command::Proxy { listener, to }) => {
                    self.tasks.push(Task::Proxy(task::Proxy::new(listener, to)));
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// True if the stack has something to do because of it.
    fn step_tasks(&mut self) -> bool {
        let mut moved = false;
        let mut spawned = Vec::new();
        let mut stack = Stack { interface: &mut self.interface, sockets: &mut self.sockets };
        self.tasks.retain_mut(|task| {
            let step = task.step(&mut stack, &mut spawned);
            moved |= step != Step::Waiting;
            step != Step::Done
        });
        moved |= !spawned.is_empty();
        self.tasks.append(&mut spawned);
        moved
    }

    /// Waits for a frame, a relayed byte, an order or a timer. True if tasks should be stepped.
    fn wait(&mut self) -> bool {
        let now = self.now();
        let stack = self.interface.poll_delay(now, &self.sockets).map(Duration::from);
        let task = self.tasks.iter().filter_map(Task::deadline).min();
        let task = task.map(|at| at.saturating_duration_since(Instant::now()));
        let wait = [stack, task].into_iter().flatten().fold(MAX_WAIT, Duration::min);
        let timeout = PollTimeout::try_from(wait.as_millis() + u128::from(!wait.is_zero()))
            .unwrap_or(PollTimeout::ZERO);

        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(self.tap.as_fd()), readable(self.woken.as_fd())];
        fds.extend(self.tasks.iter().filter_map(Task::outside).map(readable));
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, timeout);
        let outside = fds.iter().skip(1).any(|fd| fd.any().unwrap_or(false));
        let due = self.tasks.iter().filter_map(Task::deadline).any(|at| at <= Instant::now());
        let _ = self.woken.read(&mut [0; 64]);
        outside || due
    }
}

fn interface(config: &GuestConfig, tap: &mut Tap) -> Interface {
    let mut stack = Config::new(EthernetAddress(config.mac.0).into());
    stack.random_seed = std::process::id().into();
    let mut interface = Interface::new(stack, tap, smoltcp::time::Instant::ZERO);
    interface.update_ip_addrs(|addresses| {
        for net in &config.addresses {
            // More than fit are left out; see `GuestConfig::addresses`.
            let _ = addresses.push(IpCidr::new(net.addr().into(), net.prefix_len()));
        }
    });
    for gateway in &config.gateways {
        let routes = interface.routes_mut();
        let _ = match gateway {
            IpAddr::V4(gateway) => routes.add_default_ipv4_route(*gateway),
            IpAddr::V6(gateway) => routes.add_default_ipv6_route(*gateway),
        };
    }
    interface
}

fn services(config: &GuestConfig, sockets: &mut SocketSet<'static>) -> Vec<Task> {
    let mut tasks = Vec::new();
    for service in &config.echo {
        match *service {
            Service::Ping => {}
            Service::Tcp(port) => {
                tasks
                    .extend((0..BACKLOG).map(|_| Task::EchoTcp(task::EchoTcp::new(sockets, port))));
            }
            Service::Udp(port) => tasks.extend(task::bind_echo_udp(sockets, port)),
        }
    }
    for forward in &config.forward {
        let accepting = task::Forward::new(sockets, forward.port, forward.to);
        tasks.push(Task::Forward(accepting));
    }
    tasks
}
