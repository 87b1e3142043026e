//! TCP over sockets: how much goes through connections, and how many connections a second.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::window::{Count, watch};
use super::{Manner, Sample};
use crate::compare::error::{BuildError, building};
use crate::compare::metric::Metric;
use crate::compare::topology::Topology;

/// The receiver's port.
const PORT: u16 = 5_001;
/// Bytes of one write, and of one read.
const CHUNK: usize = 128 << 10;
/// How long a blocked end waits before it looks whether to stop.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long a connection may take to open.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// How long streams run before they are watched: slow start is over.
const SETTLE: Duration = Duration::from_millis(500);
/// Clients that open and close connections at once.
const CLIENTS: u64 = 4;

/// Measures the throughput of `streams` connections.
pub(super) fn measure(
    streams: u32,
    topology: &Topology,
    manner: &Manner<'_>,
) -> Result<Sample, BuildError> {
    let (received, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let listener = listen(topology, PORT)?;
    let window = thread::scope(|scope| {
        let stop = Stop(&done);
        // All before any is filled, whose frames would crowd out the others' handshakes.
        let pairs = (0..streams).map(|_| open(&listener, topology));
        for (from, to) in pairs.collect::<Result<Vec<_>, _>>()? {
            scope.spawn(|| fill(from, &done));
            scope.spawn(|| drain(to, &received, &done));
        }
        manner.wait(SETTLE)?;
        let window = watch(manner, || Ok(Count::arrived(received.load(Ordering::Relaxed))));
        drop(stop);
        window
    })?;
    Ok(Sample::of([
        (Metric::BitsPerSecond, 8.0 * window.rate()),
        (Metric::CpuNsPerKilobyte, 1e3 * window.ns_each()),
        (Metric::Undisturbed, window.undisturbed),
    ]))
}

/// Measures how many connections are opened and closed.
pub(super) fn measure_connections(
    topology: &Topology,
    manner: &Manner<'_>,
) -> Result<Sample, BuildError> {
    let window = with_clients(topology, PORT, None, |count| {
        manner.wait(SETTLE)?;
        watch(manner, count)
    })?;
    Ok(Sample::of([
        (Metric::ConnectionsPerSecond, window.rate()),
        (Metric::CpuNsPerConnection, window.ns_each()),
        (Metric::Undisturbed, window.undisturbed),
    ]))
}

/// Does `work` while clients open and close connections to a port of the receiver: as many as they can, or so many
/// a second together. `work` may count those that were closed so far.
pub(super) fn with_clients<T>(
    topology: &Topology,
    port: u16,
    rate: Option<u32>,
    work: impl FnOnce(&dyn Fn() -> Result<Count, BuildError>) -> Result<T, BuildError>,
) -> Result<T, BuildError> {
    let (closed, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let listener = listen(topology, port)?;
    let to = SocketAddr::from((topology.receiver().ip, port));
    let pause = rate.map_or(Duration::ZERO, |rate| Duration::from_secs(CLIENTS) / rate.max(1));
    thread::scope(|scope| {
        let _stop = Stop(&done);
        scope.spawn(|| close_what_comes(&listener, &done));
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                topology.sender_netns().run(|| {
                    while !done.load(Ordering::Relaxed) {
                        let start = Instant::now();
                        // One that failed does not count, and may have failed for want of a port.
                        if open_and_close(to).is_ok() {
                            closed.fetch_add(1, Ordering::Relaxed);
                        }
                        if let Some(rest) = pause.checked_sub(start.elapsed()) {
                            thread::sleep(rest);
                        }
                    }
                })
            });
        }
        work(&|| Ok(Count::arrived(closed.load(Ordering::Relaxed))))
    })
}

/// Ends the threads of a scope on every way out of it.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A socket of the receiver that takes connections.
pub(super) fn listen(topology: &Topology, port: u16) -> Result<TcpListener, BuildError> {
    let listener = topology.receiver_netns().run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // `accept` gives up as reads do.
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        socket.listen(1_024)?;
        Ok(TcpListener::from(socket))
    })?;
    building("listen for TCP", listener)
}

fn connect(topology: &Topology) -> Result<TcpStream, BuildError> {
    let to = SocketAddr::from((topology.receiver().ip, PORT));
    let stream =
        topology.sender_netns().run(|| TcpStream::connect_timeout(&to, CONNECT_PATIENCE))?;
    building("open a TCP connection", stream)
}

/// Both ends of a new connection.
fn open(listener: &TcpListener, topology: &Topology) -> Result<(TcpStream, TcpStream), BuildError> {
    let from = connect(topology)?;
    Ok((from, building("accept a connection", accept(listener))?))
}

/// The connection that was just opened.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Writes until told to stop.
fn fill(mut stream: TcpStream, done: &AtomicBool) {
    let bytes = vec![0x66; CHUNK];
    let _ = stream.set_write_timeout(Some(PATIENCE));
    while !done.load(Ordering::Relaxed) {
        // A full window is waited for again; a broken connection shows in what arrives.
        if stream.write(&bytes).is_err_and(|error| !is_timeout(&error)) {
            return;
        }
    }
}

/// Counts what arrives until told to stop.
fn drain(mut stream: TcpStream, received: &AtomicU64, done: &AtomicBool) {
    let mut bytes = vec![0; CHUNK];
    while !done.load(Ordering::Relaxed) {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(length) => received.fetch_add(length as u64, Ordering::Relaxed),
            Err(error) if is_timeout(&error) => continue,
            Err(_) => return,
        };
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

fn close_what_comes(listener: &TcpListener, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        if let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let _ = stream.read(&mut [0; 1]);
        }
    }
}

/// A whole life of a connection: both ends have said that they have nothing more to say.
fn open_and_close(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.shutdown(Shutdown::Write)?;
    stream.read(&mut [0; 1]).map(drop)
}
