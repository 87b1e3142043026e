//! Requests and their answers over UDP, one at a time: how long each takes.
//!
//! Both ends wait in the kernel for what comes, as programs do.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use firedoor_lab::netns::Netns;

use super::{Manner, Sample};
use crate::compare::error::{BuildError, building};
use crate::compare::histogram::Histogram;
use crate::compare::scenario::Metric;
use crate::compare::topology::{Host, Topology};

/// The receiver's port.
const PORT: u16 = 7;
/// Payload of a frame of 64 bytes.
const PAYLOAD: usize = 18;
/// How long either end waits before it looks whether to stop.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a system may take until something gets through and back.
const PRIME_PATIENCE: Duration = Duration::from_secs(5);
/// How long round trips are made before they count.
const SETTLE: Duration = Duration::from_millis(200);

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
        while start.elapsed() < PRIME_PATIENCE && !manner.interrupted.load(Ordering::Relaxed) {
            if round_trip(socket, 0)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    match answered {
        true => Ok(()),
        false if manner.interrupted.load(Ordering::Relaxed) => Err(BuildError::Interrupted),
        false => Err(BuildError::Silence {
            from: topology.sender().name.clone(),
            to: topology.receiver().name.clone(),
            seconds: PRIME_PATIENCE.as_secs(),
        }),
    }
}

/// Measures round trips.
pub(super) fn measure(topology: &Topology, manner: &Manner<'_>) -> Result<Sample, BuildError> {
    let trips = with_echo(topology, |socket| {
        let mut trips = Histogram::default();
        let start = Instant::now();
        let mut sequence = 0;
        while start.elapsed() < SETTLE + manner.time && !manner.interrupted.load(Ordering::Relaxed)
        {
            let trip = round_trip(socket, sequence)?;
            sequence = sequence.wrapping_add(1);
            if let Some(trip) = trip
                && start.elapsed() > SETTLE
            {
                trips.record(u64::try_from(trip.as_nanos()).unwrap_or(u64::MAX));
            }
        }
        Ok(trips)
    })?;
    if manner.interrupted.load(Ordering::Relaxed) {
        return Err(BuildError::Interrupted);
    }
    let quantile = |share| trips.quantile(share) as f64;
    let mut sample = Sample::of([
        (Metric::P50, quantile(0.5)),
        (Metric::P90, quantile(0.9)),
        (Metric::P99, quantile(0.99)),
        (Metric::P999, quantile(0.999)),
    ]);
    sample.round_trips = trips;
    Ok(sample)
}

/// Does `work` at the sender, with a socket connected to an echo at the receiver.
fn with_echo<T: Send>(
    topology: &Topology,
    work: impl FnOnce(&UdpSocket) -> io::Result<T> + Send,
) -> Result<T, BuildError> {
    let echo = open(topology.receiver_netns(), topology.receiver(), PORT)?;
    let client = open(topology.sender_netns(), topology.sender(), 0)?;
    let to = SocketAddrV4::new(topology.receiver().ip, PORT);
    building("connect a UDP socket", client.connect(to))?;
    let done = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        scope.spawn(|| answer(&echo, &done));
        let result = work(&client);
        done.store(true, Ordering::Relaxed);
        result
    });
    building("send and receive UDP", result)
}

/// A UDP socket of a host. Sockets stay in the namespace they were made in.
fn open(netns: &Netns, host: &Host, port: u16) -> Result<UdpSocket, BuildError> {
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
    let mut request = [0; PAYLOAD];
    request[..8].copy_from_slice(&sequence.to_be_bytes());
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
            Err(error) => return lost(error),
        }
    }
}

/// Errors that mean that the answer did not come.
fn lost(error: io::Error) -> io::Result<Option<Duration>> {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut, WouldBlock,
    };
    match error.kind() {
        WouldBlock | TimedOut | Interrupted | ConnectionRefused | HostUnreachable
        | NetworkUnreachable => Ok(None),
        _ => Err(error),
    }
}
