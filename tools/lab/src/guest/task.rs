//! What a guest does at its sockets: each task is a small state machine that the event loop steps
//! whenever something may have changed, and that never waits.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, Ipv6Address};

use crate::probe::{Answer, GREETING, Outcome, Service};

/// Bytes of each TCP buffer, each way.
const TCP_BUFFER: usize = 256 << 10;

/// Datagrams of each UDP buffer, each way.
const DATAGRAMS: usize = 64;

/// The stack, as a task sees it.
pub(super) struct Stack<'a> {
    pub(super) interface: &'a mut Interface,
    pub(super) sockets: &'a mut SocketSet<'static>,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Something moved: the stack should be polled before waiting.
    Moved,
    /// Nothing to do until something happens.
    Waiting,
    /// Finished; its socket is closed.
    Done,
}

impl Step {
    fn moved(moved: bool) -> Self {
        if moved { Self::Moved } else { Self::Waiting }
    }
}

/// One thing a guest is doing.
pub(super) enum Task {
    EchoTcp(EchoTcp),
    EchoUdp(SocketHandle),
    Forward(Forward),
    Proxy(Proxy),
    Relay(Relay),
    Probe(Probe),
    /// A socket that is done, after one more poll to send what is still due.
    Remove(SocketHandle),
}

impl Task {
    pub(super) fn step(&mut self, stack: &mut Stack<'_>, spawned: &mut Vec<Self>) -> Step {
        match self {
            Self::EchoTcp(echo) => echo.step(stack),
            Self::EchoUdp(socket) => echo_udp(stack.sockets.get_mut(*socket)),
            Self::Forward(forward) => forward.step(stack, spawned),
            Self::Proxy(proxy) => proxy.step(stack, spawned),
            Self::Relay(relay) => relay.step(stack, spawned),
            Self::Probe(probe) => probe.step(stack, spawned),
            Self::Remove(socket) => {
                stack.sockets.remove(*socket);
                Step::Done
            }
        }
    }

    /// What outside the guest may wake it.
    pub(super) fn outside(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Proxy(proxy) => Some(proxy.listener.as_fd()),
            Self::Relay(relay) if relay.wants_outside => Some(relay.outside.as_fd()),
            _ => None,
        }
    }

    /// When it wants to be stepped even if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Probe(probe) => Some(probe.next_try.min(probe.deadline)),
            _ => None,
        }
    }
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket
}

fn udp_socket() -> udp::Socket<'static> {
    let buffer = || {
        udp::PacketBuffer::new(
            vec![udp::PacketMetadata::EMPTY; DATAGRAMS],
            vec![0; DATAGRAMS << 11],
        )
    };
    udp::Socket::new(buffer(), buffer())
}

/// Accepts connections at a port one after the other, and sends back what they send.
pub(super) struct EchoTcp {
    port: u16,
    socket: SocketHandle,
}

impl EchoTcp {
    pub(super) fn new(sockets: &mut SocketSet<'static>, port: u16) -> Self {
        Self { port, socket: sockets.add(tcp_socket()) }
    }

    fn step(&mut self, stack: &mut Stack<'_>) -> Step {
        let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        if let tcp::State::Closed | tcp::State::TimeWait = socket.state() {
            socket.abort();
            return Step::moved(socket.listen(self.port).is_ok());
        }
        let room = socket.send_capacity() - socket.send_queue();
        let heard = if room > 0 && socket.can_recv() && socket.may_send() {
            socket.recv(|bytes| {
                let length = bytes.len().min(room);
                (length, bytes[..length].to_vec())
            })
        } else {
            Ok(Vec::new())
        };
        let heard = heard.unwrap_or_default();
        if !heard.is_empty() {
            return Step::moved(socket.send_slice(&heard).is_ok());
        }
        if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
            socket.close();
            return Step::Moved;
        }
        Step::Waiting
    }
}

pub(super) fn bind_echo_udp(sockets: &mut SocketSet<'static>, port: u16) -> Option<Task> {
    let mut socket = udp_socket();
    socket.bind(port).ok()?;
    Some(Task::EchoUdp(sockets.add(socket)))
}

fn echo_udp(socket: &mut udp::Socket<'_>) -> Step {
    let mut moved = false;
    while socket.can_send() {
        let Ok((bytes, from)) = socket.recv() else { break };
        let bytes = bytes.to_vec();
        moved |= socket.send_slice(&bytes, from).is_ok();
    }
    Step::moved(moved)
}

/// Accepts connections at a port of the guest, each to be relayed to a server outside it.
pub(super) struct Forward {
    port: u16,
    to: SocketAddr,
    listening: SocketHandle,
}

impl Forward {
    pub(super) fn new(sockets: &mut SocketSet<'static>, port: u16, to: SocketAddr) -> Self {
        Self { port, to, listening: sockets.add(tcp_socket()) }
    }

    fn step(&mut self, stack: &mut Stack<'_>, spawned: &mut Vec<Task>) -> Step {
        let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(self.listening);
        if !socket.is_open() {
            return Step::moved(socket.listen(self.port).is_ok());
        }
        if !socket.may_send() && !socket.can_recv() {
            return Step::Waiting;
        }
        let accepted = std::mem::replace(&mut self.listening, stack.sockets.add(tcp_socket()));
        match TcpStream::connect(self.to).and_then(|outside| Relay::new(accepted, outside)) {
            Ok(relay) => spawned.push(Task::Relay(relay)),
            Err(_) => stack.sockets.get_mut::<tcp::Socket<'_>>(accepted).abort(),
        }
        Step::Moved
    }
}

/// Accepts connections outside the guest, each to be relayed to a server that the guest connects
/// to.
pub(super) struct Proxy {
    listener: TcpListener,
    to: SocketAddr,
}

impl Proxy {
    /// `listener` must not block.
    pub(super) fn new(listener: TcpListener, to: SocketAddr) -> Self {
        Self { listener, to }
    }

    fn step(&mut self, stack: &mut Stack<'_>, spawned: &mut Vec<Task>) -> Step {
        let Ok((outside, _)) = self.listener.accept() else { return Step::Waiting };
        if let Ok(socket) = connect(stack, self.to, ephemeral_port()) {
            spawned.extend(Relay::new(socket, outside).map(Task::Relay));
        }
        Step::Moved
    }
}

fn connect(stack: &mut Stack<'_>, to: SocketAddr, local: u16) -> io::Result<SocketHandle> {
    let mut socket = tcp_socket();
    socket
        .connect(stack.interface.context(), to, local)
        .map_err(|error| io::Error::new(io::ErrorKind::NetworkUnreachable, error.to_string()))?;
    Ok(stack.sockets.add(socket))
}

/// The next of the ports that RFC 6335 §6 sets aside.
fn ephemeral_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    49_152 | (NEXT.fetch_add(1, Ordering::Relaxed) & 0x3fff)
}

/// Carries one connection's bytes between the guest's socket and a stream outside.
pub(super) struct Relay {
    socket: SocketHandle,
    outside: TcpStream,
    /// The outside has said all it will.
    outside_ended: bool,
    /// The outside knows that the guest's peer has said all it will.
    told_outside: bool,
    /// There is room for what the outside says.
    wants_outside: bool,
}

impl Relay {
    fn new(socket: SocketHandle, outside: TcpStream) -> io::Result<Self> {
        outside.set_nonblocking(true)?;
        outside.set_nodelay(true)?;
        Ok(Self {
            socket,
            outside,
            outside_ended: false,
            told_outside: false,
            wants_outside: false,
        })
    }

    fn step(&mut self, stack: &mut Stack<'_>, spawned: &mut Vec<Task>) -> Step {
        let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        match (self.inward(socket), self.outward(socket)) {
            (Ok(inward), Ok(outward)) if inward || outward => Step::Moved,
            (Ok(_), Ok(_)) if socket.is_open() && socket.state() != tcp::State::TimeWait => {
                Step::Waiting
            }
            _ => {
                socket.abort();
                spawned.push(Task::Remove(self.socket));
                Step::Done
            }
        }
    }

    fn inward(&mut self, socket: &mut tcp::Socket<'_>) -> io::Result<bool> {
        self.wants_outside = !self.outside_ended && socket.can_send();
        if !self.wants_outside {
            return Ok(false);
        }
        let outside = &mut self.outside;
        let read = socket.send(|room| match outside.read(room) {
            Ok(length) => (length, Ok(length)),
            Err(error) => (0, Err(error)),
        });
        match read.map_err(|_| io::ErrorKind::BrokenPipe)? {
            Ok(0) => {
                self.outside_ended = true;
                socket.close();
                Ok(true)
            }
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn outward(&mut self, socket: &mut tcp::Socket<'_>) -> io::Result<bool> {
        if socket.can_recv() {
            let outside = &mut self.outside;
            let written = socket.recv(|bytes| match outside.write(bytes) {
                Ok(length) => (length, Ok(true)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (0, Ok(false)),
                Err(error) => (0, Err(error)),
            });
            return written.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        use tcp::State::{CloseWait, Closing, LastAck};
        if !self.told_outside && matches!(socket.state(), CloseWait | Closing | LastAck) {
            self.told_outside = true;
            self.outside.shutdown(Shutdown::Write)?;
            return Ok(true);
        }
        Ok(false)
    }
}

/// Asks another host for one service, and tells what came of it.
pub(super) struct Probe {
    to: IpAddr,
    service: Service,
    socket: SocketHandle,
    /// Its port, or echo identifier.
    local: u16,
    sequence: u16,
    asked_tcp: bool,
    start: Instant,
    next_try: Instant,
    deadline: Instant,
    tell: Sender<io::Result<Answer>>,
}

impl Probe {
    /// Opens the socket. `None` if it cannot be; `tell` has heard why.
    pub(super) fn start(
        stack: &mut Stack<'_>,
        (to, service): (IpAddr, Service),
        timeout: Duration,
        tell: Sender<io::Result<Answer>>,
    ) -> Option<Self> {
        let local = ephemeral_port();
        match open(stack, to, service, local) {
            Ok(socket) => {
                let start = Instant::now();
                Some(Self {
                    to,
                    service,
                    socket,
                    local,
                    sequence: 0,
                    asked_tcp: false,
                    start,
                    next_try: start,
                    deadline: start + timeout,
                    tell,
                })
            }
            Err(error) => {
                let _ = tell.send(Err(error));
                None
            }
        }
    }

    fn step(&mut self, stack: &mut Stack<'_>, spawned: &mut Vec<Task>) -> Step {
        let now = Instant::now();
        let asks = now >= self.next_try;
        if asks {
            self.next_try = now + (self.deadline - self.start) / 3;
        }
        let outcome = match self.service {
            Service::Tcp(_) => self.step_tcp(stack.sockets.get_mut(self.socket)),
            Service::Udp(port) => self.step_udp(stack.sockets.get_mut(self.socket), port, asks),
            Service::Ping => self.step_ping(stack, asks),
        };
        match outcome.or((now >= self.deadline).then_some(Outcome::Silent)) {
            Some(outcome) => {
                let _ = self.tell.send(Ok(Answer { outcome, after: self.start.elapsed() }));
                if let Service::Tcp(_) = self.service {
                    stack.sockets.get_mut::<tcp::Socket<'_>>(self.socket).abort();
                }
                spawned.push(Task::Remove(self.socket));
                Step::Done
            }
            None => Step::moved(asks),
        }
    }

    fn step_tcp(&mut self, socket: &mut tcp::Socket<'_>) -> Option<Outcome> {
        if !socket.is_open() {
            return Some(Outcome::Refused);
        }
        if socket.may_send() && !self.asked_tcp {
            self.asked_tcp = socket.send_slice(GREETING).is_ok();
        }
        (socket.recv_queue() >= GREETING.len()).then_some(Outcome::Reachable)
    }

    fn step_udp(&self, socket: &mut udp::Socket<'_>, port: u16, asks: bool) -> Option<Outcome> {
        if asks {
            let _ = socket.send_slice(GREETING, (IpAddress::from(self.to), port));
        }
        matches!(socket.recv(), Ok((GREETING, _))).then_some(Outcome::Reachable)
    }

    fn step_ping(&mut self, stack: &mut Stack<'_>, asks: bool) -> Option<Outcome> {
        let source = match self.to {
            IpAddr::V4(_) => Ipv6Address::UNSPECIFIED,
            IpAddr::V6(to) => stack.interface.get_source_address_ipv6(&to),
        };
        let socket = stack.sockets.get_mut::<icmp::Socket<'_>>(self.socket);
        if asks {
            self.sequence += 1;
            self.send_echo(socket, source);
        }
        let Ok((bytes, _)) = socket.recv() else { return None };
        let kind = match self.to {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => 129,
        };
        (bytes.first() == Some(&kind)).then_some(Outcome::Reachable)
    }

    fn send_echo(&self, socket: &mut icmp::Socket<'_>, source: Ipv6Address) {
        let checksums = ChecksumCapabilities::default();
        let (ident, seq_no, data) = (self.local, self.sequence, GREETING);
        match self.to {
            IpAddr::V4(to) => {
                let echo = Icmpv4Repr::EchoRequest { ident, seq_no, data };
                if let Ok(bytes) = socket.send(echo.buffer_len(), to.into()) {
                    echo.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checksums);
                }
            }
            IpAddr::V6(to) => {
                let echo = Icmpv6Repr::EchoRequest { ident, seq_no, data };
                if let Ok(bytes) = socket.send(echo.buffer_len(), to.into()) {
                    let mut packet = Icmpv6Packet::new_unchecked(bytes);
                    echo.emit(&source, &to, &mut packet, &checksums);
                }
            }
        }
    }
}

fn open(
    stack: &mut Stack<'_>,
    to: IpAddr,
    service: Service,
    local: u16,
) -> io::Result<SocketHandle> {
    let refused = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
    match service {
        Service::Tcp(port) => connect(stack, SocketAddr::new(to, port), local),
        Service::Udp(_) => {
            let mut socket = udp_socket();
            socket.bind(local).map_err(|error| refused(&error))?;
            Ok(stack.sockets.add(socket))
        }
        Service::Ping => {
            let buffer =
                || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 1024]);
            let mut socket = icmp::Socket::new(buffer(), buffer());
            socket.bind(icmp::Endpoint::Ident(local)).map_err(|error| refused(&error))?;
            Ok(stack.sockets.add(socket))
        }
    }
}
