//! How much gets through, measured where it arrives.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::netns::Netns;
use crate::probe::{bind_udp, inside, listen_tcp};

/// Bytes of UDP payload that make a frame of 64 bytes: 14 Ethernet, 20 IPv4, 8 UDP, 18 payload, and
/// 4 of frame check sequence that no virtual wire carries.
const SMALL_PAYLOAD: usize = 18;

/// Bytes or datagrams that arrived, and over what time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Payload bytes that arrived.
    pub bytes: u64,
    /// Datagrams that arrived; 0 for TCP.
    pub datagrams: u64,
    /// Datagrams that were sent; 0 for TCP.
    pub sent: u64,
    /// From the first to the last arrival.
    pub over: Duration,
}

impl Rate {
    /// Payload bits that arrived each second.
    pub fn bits_per_second(&self) -> f64 {
        per_second(self.bytes * 8, self.over)
    }

    /// Datagrams that arrived each second.
    pub fn datagrams_per_second(&self) -> f64 {
        per_second(self.datagrams, self.over)
    }
}

fn per_second(count: u64, over: Duration) -> f64 {
    if over.is_zero() { 0.0 } else { count as f64 / over.as_secs_f64() }
}

/// Sends one TCP connection as full as it goes from `from` to `address` at `port`, which is in
/// `to`, for `time`. `progress` hears of the share done, 0 to 1.
///
/// # Errors
/// If the connection fails, or policy does not allow it.
pub fn tcp_bulk(
    from: &Netns,
    to: &Netns,
    address: IpAddr,
    port: u16,
    time: Duration,
    progress: &(dyn Fn(f64) + Sync),
) -> io::Result<Rate> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = inside(to, || listen_tcp(any))?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive_stream(&listener, time));
        inside(from, || send_stream(SocketAddr::new(address, port), time, progress))?;
        join(receiver)
    })
}

/// Sends 64-byte frames of UDP as fast as one thread can, likewise.
///
/// # Errors
/// If sockets fail.
pub fn udp_small(
    from: &Netns,
    to: &Netns,
    address: IpAddr,
    port: u16,
    time: Duration,
    progress: &(dyn Fn(f64) + Sync),
) -> io::Result<Rate> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let socket = inside(to, || bind_udp(any))?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive_datagrams(&socket, time));
        let to = SocketAddr::new(address, port);
        let sent = inside(from, || send_datagrams(to, time, progress))?;
        join(receiver).map(|rate| Rate { sent, ..rate })
    })
}

fn join(receiver: std::thread::ScopedJoinHandle<'_, io::Result<Rate>>) -> io::Result<Rate> {
    receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn receive_stream(listener: &TcpListener, time: Duration) -> io::Result<Rate> {
    let mut stream = accept_within(listener, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(time + Duration::from_secs(5)))?;
    let mut bytes = vec![0; 256 << 10];
    let start = Instant::now();
    let mut rate = Rate { bytes: 0, datagrams: 0, sent: 0, over: Duration::ZERO };
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(rate),
            length => rate.bytes += length as u64,
        }
        rate.over = start.elapsed();
    }
}

fn accept_within(listener: &TcpListener, patience: Duration) -> io::Result<TcpStream> {
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if start.elapsed() >= patience => return Err(error),
            Err(_) => {}
        }
    }
}

fn send_stream(to: SocketAddr, time: Duration, progress: &dyn Fn(f64)) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let bytes = vec![0x66; 128 << 10];
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&bytes)?;
        progress(share(start, time));
    }
    Ok(())
}

fn receive_datagrams(socket: &UdpSocket, time: Duration) -> io::Result<Rate> {
    let mut bytes = [0; 2048];
    let mut first = None;
    let mut rate = Rate { bytes: 0, datagrams: 0, sent: 0, over: Duration::ZERO };
    let patience = Instant::now() + time + Duration::from_millis(300);
    while Instant::now() < patience {
        let Ok(length) = socket.recv(&mut bytes) else { continue };
        let first = *first.get_or_insert_with(Instant::now);
        rate.bytes += length as u64;
        rate.datagrams += 1;
        rate.over = first.elapsed();
    }
    Ok(rate)
}

fn send_datagrams(to: SocketAddr, time: Duration, progress: &dyn Fn(f64)) -> io::Result<u64> {
    let socket = UdpSocket::bind(match to {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
    })?;
    socket.connect(to)?;
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        for _ in 0..64 {
            // A full queue here is part of what is measured: what counts is what arrives.
            sent += u64::from(socket.send(&[0x66; SMALL_PAYLOAD]).is_ok());
        }
        progress(share(start, time));
    }
    Ok(sent)
}

fn share(start: Instant, time: Duration) -> f64 {
    (start.elapsed().as_secs_f64() / time.as_secs_f64()).min(1.0)
}
