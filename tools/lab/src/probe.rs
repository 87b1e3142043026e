//! Questions that real traffic answers: can this end reach that one, and what does it hear back?
//!
//! A probe runs on a thread inside the sender's namespace and sends what any program there would:
//! a TCP handshake and a line to be echoed, a UDP datagram to be echoed, or an ICMP echo request.
//! The other end runs [`Responder`]s. Nothing here knows of the switch between the two, so its
//! answers can be held against what policy promises.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::{Netns, NetnsError};

/// What is sent, and expected back.
pub(crate) const GREETING: &[u8] = b"firedoor";

/// How often a responder looks whether it should end.
const STOP_INTERVAL: Duration = Duration::from_millis(100);

/// What a probe tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// ICMP echo, or ICMPv6 echo if the address is IPv6.
    Ping,
    /// A TCP connection to this port, and an echo over it.
    Tcp(u16),
    /// A UDP datagram to this port, and its echo.
    Udp(u16),
}

impl Service {
    /// As rules write it: `tcp/8080`, `icmp/echo`, `icmp6/echo`.
    pub fn name(self, to: IpAddr) -> String {
        match (self, to) {
            (Self::Ping, IpAddr::V4(_)) => "icmp/echo".to_owned(),
            (Self::Ping, IpAddr::V6(_)) => "icmp6/echo".to_owned(),
            (Self::Tcp(port), _) => format!("tcp/{port}"),
            (Self::Udp(port), _) => format!("udp/{port}"),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ping => f.pad("ping"),
            Self::Tcp(port) => f.pad(&format!("tcp/{port}")),
            Self::Udp(port) => f.pad(&format!("udp/{port}")),
        }
    }
}

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a string is not a [`Service`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a service that can be probed: write ping, tcp/PORT or udp/PORT")]
pub struct ParseServiceError;

impl FromStr for Service {
    type Err = ParseServiceError;

    fn from_str(text: &str) -> Result<Self, ParseServiceError> {
        let port = |port: &str| port.parse().map_err(|_| ParseServiceError);
        match text.split_once('/') {
            None if text == "ping" => Ok(Self::Ping),
            Some(("tcp", p)) => Ok(Self::Tcp(port(p)?)),
            Some(("udp", p)) => Ok(Self::Udp(port(p)?)),
            _ => Err(ParseServiceError),
        }
    }
}

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The answer came.
    Reachable,
    /// Someone said no: TCP RST, ICMP unreachable.
    Refused,
    /// Nothing came.
    Silent,
}

/// What came of a probe, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What came.
    pub outcome: Outcome,
    /// Time until it came, or until it was no longer waited for.
    pub after: Duration,
}

/// Tries `service` at `to` from the calling thread's namespace, waiting at most `timeout`.
///
/// # Errors
/// If the question could not be asked: no route, no socket.
pub fn probe(to: IpAddr, service: Service, timeout: Duration) -> io::Result<Answer> {
    let start = Instant::now();
    let result = match service {
        Service::Ping => ping(to, timeout),
        Service::Tcp(port) => echo_tcp(SocketAddr::new(to, port), timeout),
        Service::Udp(port) => echo_udp(SocketAddr::new(to, port), timeout),
    };
    let outcome = match result {
        Ok(()) => Outcome::Reachable,
        Err(error) => outcome_of(&error).ok_or(error)?,
    };
    Ok(Answer { outcome, after: start.elapsed() })
}

/// What an error says about the other end, unless it says something about this one.
fn outcome_of(error: &io::Error) -> Option<Outcome> {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, TimedOut,
        UnexpectedEof, WouldBlock,
    };
    match error.kind() {
        ConnectionRefused | ConnectionReset | ConnectionAborted | HostUnreachable => {
            Some(Outcome::Refused)
        }
        TimedOut | WouldBlock | UnexpectedEof => Some(Outcome::Silent),
        // EACCES is how ICMPv6 "administratively prohibited" arrives (RFC 4443 §3.1 code 1).
        io::ErrorKind::PermissionDenied => Some(Outcome::Refused),
        _ => None,
    }
}

fn echo_tcp(to: SocketAddr, timeout: Duration) -> io::Result<()> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, timeout)?;
    stream.set_read_timeout(Some(remaining(start, timeout)))?;
    stream.write_all(GREETING)?;
    let mut answer = [0; GREETING.len()];
    stream.read_exact(&mut answer)?;
    expect_greeting(&answer)
}

fn echo_udp(to: SocketAddr, timeout: Duration) -> io::Result<()> {
    let socket = UdpSocket::bind(match to {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
    })?;
    socket.connect(to)?;
    let ask = || socket.send(GREETING).map(drop);
    ask_until_answered(timeout, ask, |wait| {
        socket.set_read_timeout(Some(wait))?;
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer)?;
        expect_greeting(answer.get(..length).unwrap_or_default())
    })
}

/// Over a ping socket (`ping_group_range`, set by the lab): the kernel fills in identifier and
/// checksum and hands over matching replies alone.
fn ping(to: IpAddr, timeout: Duration) -> io::Result<()> {
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    let mut message = vec![request, 0, 0, 0, 0, 0, 0, 1];
    message.extend_from_slice(GREETING);
    let sender = socket.try_clone()?;
    ask_until_answered(
        timeout,
        || sender.send(&message).map(drop),
        |wait| {
            socket.set_read_timeout(Some(wait))?;
            let mut answer = [0; 64];
            let length = socket.read(&mut answer)?;
            match answer.get(..length) {
                Some([kind, 0, _, _, _, _, _, _, data @ ..]) if *kind == reply => {
                    expect_greeting(data)
                }
                _ => Err(io::ErrorKind::WouldBlock.into()),
            }
        },
    )
}

/// Asks, listens, and asks again a few times: a datagram may be lost without anyone meaning it.
fn ask_until_answered(
    timeout: Duration,
    ask: impl Fn() -> io::Result<()>,
    mut listen: impl FnMut(Duration) -> io::Result<()>,
) -> io::Result<()> {
    const TRIES: u32 = 3;
    let start = Instant::now();
    for attempt in 1..=TRIES {
        ask()?;
        match listen(remaining(start, timeout * attempt / TRIES)) {
            Err(error) if outcome_of(&error) == Some(Outcome::Silent) => {}
            other => return other,
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn remaining(start: Instant, timeout: Duration) -> Duration {
    // A timeout of zero would mean to wait forever.
    timeout.saturating_sub(start.elapsed()).max(Duration::from_millis(1))
}

fn expect_greeting(answer: &[u8]) -> io::Result<()> {
    if answer == GREETING {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the echo is not what was sent"))
    }
}

/// Echo servers for TCP and UDP in one namespace, each on its port of both address families, until
/// dropped. ICMP needs none, kernels answer it.
#[derive(Debug)]
pub struct Responder {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<(), NetnsError>>>,
}

impl Responder {
    /// Starts to answer `services` in `netns`.
    ///
    /// # Errors
    /// If a port is taken or the namespace cannot be entered.
    pub fn start(netns: &Netns, services: &[Service]) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut responder = Self { stop: Arc::clone(&stop), threads: Vec::new() };
        for &service in services {
            let stop = Arc::clone(&stop);
            let name = format!("echo {service}");
            let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            let thread = match service {
                Service::Ping => continue,
                Service::Tcp(port) => {
                    let listener = inside(netns, || listen_tcp(any(port)))?;
                    netns.spawn(&name, move || serve_tcp(&listener, &stop))
                }
                Service::Udp(port) => {
                    let socket = inside(netns, || bind_udp(any(port)))?;
                    netns.spawn(&name, move || serve_udp(&socket, &stop))
                }
            };
            responder.threads.push(thread.map_err(io::Error::other)?);
        }
        Ok(responder)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Does `work` in `netns`, one error type for both.
pub(crate) fn inside<T: Send>(
    netns: &Netns,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    netns.run(work).map_err(io::Error::other)?
}

/// A listener on both families whose `accept` gives up regularly.
pub(crate) fn listen_tcp(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_read_timeout(Some(STOP_INTERVAL))?;
    socket.bind(&at.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

/// A socket on both families whose `recv` gives up regularly.
pub(crate) fn bind_udp(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.set_read_timeout(Some(STOP_INTERVAL))?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}

fn serve_tcp(listener: &TcpListener, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else { continue };
        let stop = Arc::clone(stop);
        // A peer whose thread cannot be started hears an RST, which is the truth.
        let _ = thread::Builder::new().spawn(move || echo_stream(stream, &stop));
    }
}

/// Sends back what comes until the peer has enough. Errors end it: it is the peer who reports.
fn echo_stream(mut stream: TcpStream, stop: &AtomicBool) {
    let mut bytes = vec![0; 64 << 10];
    if stream.set_read_timeout(Some(STOP_INTERVAL)).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(length) if stream.write_all(&bytes[..length]).is_ok() => {}
            Err(error) if outcome_of(&error) == Some(Outcome::Silent) => {}
            _ => return,
        }
    }
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let mut bytes = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..length], from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_parse_as_they_print() {
        for service in [Service::Ping, Service::Tcp(8080), Service::Udp(53)] {
            assert_eq!(service.to_string().parse(), Ok(service));
        }
        for bad in ["", "tcp", "tcp/", "tcp/70000", "sctp/1", "ping/1"] {
            assert_eq!(bad.parse::<Service>(), Err(ParseServiceError), "{bad}");
        }
    }

    #[test]
    fn an_error_of_this_end_is_not_an_answer_of_the_other() {
        assert_eq!(outcome_of(&io::ErrorKind::NetworkUnreachable.into()), None);
        assert_eq!(outcome_of(&io::ErrorKind::ConnectionRefused.into()), Some(Outcome::Refused));
        assert_eq!(outcome_of(&io::ErrorKind::TimedOut.into()), Some(Outcome::Silent));
    }

    #[test]
    fn loopback_echoes_and_refuses() -> io::Result<()> {
        let listener = listen_tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))?;
        let port = listener.local_addr()?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let server = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || serve_tcp(&listener, &stop))
        };
        let localhost = IpAddr::from([127, 0, 0, 1]);
        let ask = |port| probe(localhost, Service::Tcp(port), Duration::from_secs(5));
        assert_eq!(ask(port)?.outcome, Outcome::Reachable);
        stop.store(true, Ordering::Relaxed);
        assert!(server.join().is_ok());
        assert_eq!(ask(port)?.outcome, Outcome::Refused);
        Ok(())
    }
}
