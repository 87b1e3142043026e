//! Requests and their answers over UDP, one at a time: how long each takes.
//!
//! Both ends wait in the kernel for what comes, as programs do, wherever it puts them or in turns on one processor; or
//! one thread is both, and looks for what comes again and again, so that nobody has to be woken and the rest is the
//! system's own part.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use firedoor_lab::netns::Netns;

use super::steady::Parts;
use super::{Manner, Sample};
use crate::compare::confine::Confined;
use crate::compare::error::{BuildError, building};
use crate::compare::histogram::Histogram;
use crate::compare::metric::Metric;
use crate::compare::scenario::Waiting;
use crate::compare::topology::{Host, Topology};

/// The receiver's port.
const PORT: u16 = 7;
/// Payload of a frame of 64 bytes.
const PAYLOAD: usize = 18;
/// How long either end waits before it looks whether to stop.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);
/// How long a system may take until something gets through and back.
const PRIME_PATIENCE: Duration = Duration::from_secs(5);
/// How long round trips are made before they count.
pub(super) const SETTLE: Duration = Duration::from_millis(200);
/// Round trips between two looks at how fast this processor is.
const BURST: usize = 64;
/// How long round trips are made between two looks at how fast all processors are.
const PART: Duration = Duration::from_millis(50);

/// Makes sure that the system carries traffic both ways, and lets it learn the hosts' addresses.
///
/// # Errors
/// [`BuildError::Silence`] if nothing gets through.
pub(in crate::compare) fn prime(
    topology: &Topology,
    manner: &Manner<'_>,
) -> Result<(), BuildError> {
    let answered = with_echo(topology, |socket| {
        let start = Instant::now();
        while start.elapsed() < PRIME_PATIENCE && !manner.is_interrupted() {
            if round_trip(socket, 0)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    match answered {
        true => Ok(()),
        false if manner.is_interrupted() => Err(BuildError::Interrupted),
        false => Err(BuildError::Silence {
            from: topology.sender().name.clone(),
            to: topology.receiver().name.clone(),
            seconds: PRIME_PATIENCE.as_secs(),
        }),
    }
}

/// Measures round trips.
pub(super) fn measure(
    waiting: Waiting,
    topology: &Topology,
    manner: &Manner<'_>,
) -> Result<Sample, BuildError> {
    let sleeping = || {
        with_echo(topology, |client| round_trips(manner, |sequence| round_trip(client, sequence)))
    };
    let parts = match waiting {
        Waiting::Sleeping => sleeping(),
        Waiting::TakingTurns => {
            let _confined = building("stay on one processor", Confined::to_one_core())?;
            sleeping()
        }
        Waiting::Polling => with_both(topology, |client, echo| {
            round_trips(manner, |sequence| polled_round_trip(client, echo, sequence))
        }),
    }?;
    if manner.is_interrupted() {
        return Err(BuildError::Interrupted);
    }
    let (steady, share) = parts.steady();
    let mut trips = Histogram::default();
    steady.flatten().for_each(|&trip| trips.record_time(trip));
    let quantile = |share| trips.quantile(share) as f64;
    let sample = Sample::of([
        (Metric::P50, quantile(0.5)),
        (Metric::P90, quantile(0.9)),
        (Metric::P99, quantile(0.99)),
        (Metric::P999, quantile(0.999)),
        (Metric::Undisturbed, share),
    ]);
    Ok(Sample { round_trips: trips, ..sample })
}

/// Makes round trips until as much as `manner` says was seen with the processor at full speed.
fn round_trips<'a>(
    manner: &Manner<'a>,
    round_trip: impl Fn(u64) -> io::Result<Option<Duration>>,
) -> io::Result<Parts<'a, Vec<Duration>>> {
    let start = Instant::now();
    let mut sequence = 0;
    let mut next = || {
        sequence += 1;
        round_trip(sequence)
    };
    while start.elapsed() < SETTLE.max(manner.settle) && !manner.is_interrupted() {
        next()?;
    }
    // This processor is looked at often, and the others, which the system may use, as seldom as they have to be woken for it.
    let mut parts = Parts::begin(manner.pace, manner.pace.probe_all()?);
    while parts.want_more(manner.time) && !manner.is_interrupted() {
        let (begun, mut bursts) = (Instant::now(), Parts::begin(manner.pace, manner.pace.probe()));
        while begun.elapsed() < PART {
            let (begun, mut trips) = (Instant::now(), Vec::with_capacity(BURST));
            while trips.len() < BURST && begun.elapsed() < PATIENCE {
                trips.extend(next()?);
            }
            bursts.end(trips, begun.elapsed(), manner.pace.probe());
        }
        let trips = bursts.steady().0.flatten().copied().collect();
        parts.end(trips, begun.elapsed(), manner.pace.probe_all()?);
    }
    Ok(parts)
}

/// Does `work` at the sender, with a socket connected to an echo at the receiver.
fn with_echo<T: Send>(
    topology: &Topology,
    work: impl FnOnce(&UdpSocket) -> io::Result<T> + Send,
) -> Result<T, BuildError> {
    let (client, echo) = open_both(topology)?;
    let done = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        scope.spawn(|| answer(&echo, &done));
        let result = work(&client);
        done.store(true, Ordering::Relaxed);
        result
    });
    building("send and receive UDP", result)
}

/// Does `work` with the sockets of both ends, on the first processor, without ever sleeping.
fn with_both<T: Send>(
    topology: &Topology,
    work: impl FnOnce(&UdpSocket, &UdpSocket) -> io::Result<T> + Send,
) -> Result<T, BuildError> {
    let (client, echo) = open_both(topology)?;
    let result = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let _confined = Confined::to_one_core()?;
            client.set_nonblocking(true)?;
            echo.set_nonblocking(true)?;
            work(&client, &echo)
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    building("send and receive UDP", result)
}

/// The sender's socket, connected, and the receiver's.
fn open_both(topology: &Topology) -> Result<(UdpSocket, UdpSocket), BuildError> {
    let echo = open(topology.receiver_netns(), topology.receiver(), PORT)?;
    let client = open(topology.sender_netns(), topology.sender(), 0)?;
    let to = SocketAddrV4::new(topology.receiver().ip, PORT);
    building("connect a UDP socket", client.connect(to))?;
    Ok((client, echo))
}

/// A UDP socket of a host. Sockets stay in the namespace they were made in.
pub(super) fn open(netns: &Netns, host: &Host, port: u16) -> Result<UdpSocket, BuildError> {
    let made = netns.run(|| {
        let any = if port == 0 { host.ip } else { Ipv4Addr::UNSPECIFIED };
        let socket = UdpSocket::bind((any, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    })?;
    building("open a UDP socket", made)
}

fn answer(socket: &UdpSocket, done: &AtomicBool) {
    let mut bytes = [0; 2 * PAYLOAD];
    while !done.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut bytes) {
            // What is lost is asked for again.
            let _ = socket.send_to(&bytes[..length], from);
        }
    }
}

/// Asks once; `None` if no answer came in time.
fn round_trip(socket: &UdpSocket, sequence: u64) -> io::Result<Option<Duration>> {
    let request = request(sequence);
    let start = Instant::now();
    // Nobody listens there yet, or no neighbour answered: as good as lost.
    if socket.send(&request).is_err() {
        thread::sleep(Duration::from_millis(1));
        return Ok(None);
    }
    let mut answer = [0; PAYLOAD];
    loop {
        match socket.recv(&mut answer) {
            Ok(_) if answer == request => return Ok(Some(start.elapsed())),
            // A late answer to an earlier request.
            Ok(_) if start.elapsed() < PATIENCE => {}
            Ok(_) => return Ok(None),
            Err(error) => return lost(error).map(|()| None),
        }
    }
}

/// Likewise, as both ends.
pub(super) fn polled_round_trip(
    client: &UdpSocket,
    echo: &UdpSocket,
    sequence: u64,
) -> io::Result<Option<Duration>> {
    let request = request(sequence);
    let start = Instant::now();
    if client.send(&request).is_err() {
        thread::sleep(Duration::from_millis(1));
        return Ok(None);
    }
    let Some(from) = poll(echo, &request, start)? else { return Ok(None) };
    if echo.send_to(&request, from).is_err() {
        return Ok(None);
    }
    Ok(poll(client, &request, start)?.map(|_| start.elapsed()))
}

/// Looks for a request, or its answer, until it is there, and says whom it is from; `None` if it did not
/// come in time. What belongs to earlier ones is ignored.
fn poll(
    socket: &UdpSocket,
    wanted: &[u8; PAYLOAD],
    since: Instant,
) -> io::Result<Option<SocketAddr>> {
    let mut bytes = [0; PAYLOAD];
    while since.elapsed() < PATIENCE {
        match socket.recv_from(&mut bytes) {
            Ok((_, from)) if bytes == *wanted => return Ok(Some(from)),
            Ok(_) => {}
            Err(error) => lost(error)?,
        }
    }
    Ok(None)
}

fn request(sequence: u64) -> [u8; PAYLOAD] {
    let mut request = [0; PAYLOAD];
    request[..8].copy_from_slice(&sequence.to_be_bytes());
    request
}

/// Errors that mean that the answer did not come.
fn lost(error: io::Error) -> io::Result<()> {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut, WouldBlock,
    };
    match error.kind() {
        WouldBlock | TimedOut | Interrupted | ConnectionRefused | HostUnreachable
        | NetworkUnreachable => Ok(()),
        _ => Err(error),
    }
}
