//! The first frames of conversations, beside later ones.
//!
//! Whoever remembers what it judged has more to do for the first frame of a flow than for those after it, and
//! may have to wake somebody for that. One thread is both ends and polls, as in [`echo`](super::echo).

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::echo::{self, PATIENCE, SETTLE};
use super::steady::Parts;
use super::{Manner, Sample, stream};
use crate::compare::confine::Confined;
use crate::compare::error::{BuildError, building};
use crate::compare::histogram::Histogram;
use crate::compare::metric::Metric;
use crate::compare::scenario::{Opening, Transport};
use crate::compare::topology::Topology;

/// The receiver's ports: conversations that follow each other at once, and after a rest.
const AT_ONCE_PORT: u16 = 8;
const RESTED_PORT: u16 = 9;
/// The sender's port differs in each conversation, so that none was there before.
const SENDER_PORTS: RangeInclusive<u16> = 1_024..=u16::MAX;
/// Round trips of a conversation after its first: the last of them is the later one.
const LATER: u64 = 15;
/// Nobody who waits for more looks for it that long.
const REST: Duration = Duration::from_millis(1);
/// With rests there are fewer conversations, so they are watched for longer.
const RESTED_TIME: Duration = Duration::from_millis(1_500);

/// How long a conversation's first round trip took, and a later one.
#[derive(Clone, Copy, Debug)]
struct Conversation {
    first: Duration,
    later: Duration,
}

/// Measures conversations.
pub(super) fn measure(
    opening: Opening,
    topology: &Topology,
    manner: &Manner<'_>,
) -> Result<Sample, BuildError> {
    let port = if opening.rested { RESTED_PORT } else { AT_ONCE_PORT };
    let to = SocketAddr::from((topology.receiver().ip, port));
    let result = match opening.transport {
        Transport::Udp => {
            let echo = echo::open(topology.receiver_netns(), topology.receiver(), port)?;
            building("poll a UDP socket", echo.set_nonblocking(true))?;
            converse(opening, topology, manner, |from| over_udp(&echo, from, to))?
        }
        Transport::Tcp => {
            let listener = stream::listen(topology, port)?;
            building("poll a TCP socket", listener.set_nonblocking(true))?;
            converse(opening, topology, manner, |from| over_tcp(&listener, from, to))?
        }
    };
    let (conversations, lost) = building("make conversations", result)?;
    if manner.is_interrupted() {
        return Err(BuildError::Interrupted);
    }
    if conversations.len() == 0 {
        return Err(BuildError::Silence {
            from: topology.sender().name.clone(),
            to: topology.receiver().name.clone(),
            seconds: manner.time.as_secs(),
        });
    }
    Ok(summary(&conversations, lost))
}

fn summary(conversations: &Parts<'_, Conversation>, lost: u64) -> Sample {
    let (mut first, mut later) = (Histogram::default(), Histogram::default());
    let (steady, share) = conversations.steady();
    for conversation in steady {
        first.record_time(conversation.first);
        later.record_time(conversation.later);
    }
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| first.quantile(share) as f64);
    let usual = later.quantile(0.5) as f64;
    let all = conversations.len() as u64 + lost;
    Sample {
        round_trips: first,
        ..Sample::of([
            (Metric::P50, p50),
            (Metric::P90, p90),
            (Metric::P99, p99),
            (Metric::Later, usual),
            (Metric::More, p50 - usual),
            (Metric::Lost, lost as f64 / all.max(1) as f64),
            (Metric::Undisturbed, share),
        ])
    }
}

/// Makes conversations from the sender's namespace on the first processor, each from another port. Returns those
/// that had an answer to their first frame, and how many had none.
fn converse<'a>(
    opening: Opening,
    topology: &Topology,
    manner: &Manner<'a>,
    mut converse: impl FnMut(SocketAddr) -> io::Result<Option<Conversation>> + Send,
) -> Result<io::Result<(Parts<'a, Conversation>, u64)>, BuildError> {
    let time = if opening.rested { manner.time.max(RESTED_TIME) } else { manner.time };
    let work = || {
        let _confined = Confined::to_one_core()?;
        let mut ports = SENDER_PORTS.map(|port| SocketAddr::from((topology.sender().ip, port)));
        let start = Instant::now();
        for from in ports.by_ref() {
            converse(from)?;
            if start.elapsed() > SETTLE {
                break;
            }
        }
        let (mut lost, mut conversations) = (0, Parts::begin(manner.pace, manner.pace.probe()));
        for from in ports {
            if manner.is_interrupted() || !conversations.want_more(time) {
                break;
            }
            let begun = Instant::now();
            if opening.rested {
                rest();
            }
            match converse(from)? {
                Some(found) => conversations.end(found, begun.elapsed(), manner.pace.probe()),
                None => lost += 1,
            }
        }
        Ok((conversations, lost))
    };
    Ok(topology.sender_netns().run(work)?)
}

/// Waits without sleeping: only the system under test is to come to rest.
fn rest() {
    let start = Instant::now();
    while start.elapsed() < REST {
        std::hint::spin_loop();
    }
}

/// A datagram and its answer.
fn over_udp(
    echo: &UdpSocket,
    from: SocketAddr,
    to: SocketAddr,
) -> io::Result<Option<Conversation>> {
    let client = UdpSocket::bind(from)?;
    client.connect(to)?;
    client.set_nonblocking(true)?;
    let trip = |sequence| echo::polled_round_trip(&client, echo, sequence);
    // Numbers differ between conversations, or an answer that is late would pass for one of the next.
    let first_number = u64::from(from.port()) << 32;
    let Some(first) = trip(first_number)? else { return Ok(None) };
    let mut later = None;
    for number in 1..=LATER {
        later = trip(first_number + number)?;
    }
    Ok(later.map(|later| Conversation { first, later }))
}

/// SYN and SYN-ACK; later, a byte and a byte back.
fn over_tcp(
    listener: &TcpListener,
    from: SocketAddr,
    to: SocketAddr,
) -> io::Result<Option<Conversation>> {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // The port may have talked to another one before.
    client.set_reuse_address(true)?;
    client.bind(&from.into())?;
    client.set_nonblocking(true)?;
    client.set_tcp_nodelay(true)?;
    let start = Instant::now();
    // Asked again, a socket says whether it is connected by now.
    if polled(start, || client.connect(&to.into()))?.is_none() {
        return Ok(None);
    }
    let first = start.elapsed();
    let Some((server, _)) = polled(start, || listener.accept())? else { return Ok(None) };
    let server = Socket::from(server);
    server.set_nonblocking(true)?;
    server.set_tcp_nodelay(true)?;
    let mut later = None;
    for _ in 0..LATER {
        let start = Instant::now();
        let carried = carry(&client, &server, start)? && carry(&server, &client, start)?;
        later = carried.then(|| start.elapsed());
    }
    Ok(later.map(|later| Conversation { first, later }))
}

/// Sends a byte from one end to the other; false if it did not come in time.
fn carry(from: &Socket, to: &Socket, since: Instant) -> io::Result<bool> {
    from.send(&[0])?;
    let mut byte = [std::mem::MaybeUninit::uninit()];
    Ok(polled(since, || to.recv(&mut byte))?.is_some())
}

/// Does `work` until it no longer would have to wait; `None` if that takes too long.
fn polled<T>(since: Instant, mut work: impl FnMut() -> io::Result<T>) -> io::Result<Option<T>> {
    while since.elapsed() < PATIENCE {
        match work() {
            Ok(done) => return Ok(Some(done)),
            Err(error) if would_wait(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn would_wait(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAGAIN | Errno::EINPROGRESS | Errno::EALREADY | Errno::EINTR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::measure::Pace;

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn conversations_over_loopback_have_a_first_and_a_later_round_trip() {
        let echo = UdpSocket::bind(any()).unwrap();
        echo.set_nonblocking(true).unwrap();
        let udp = over_udp(&echo, any(), echo.local_addr().unwrap()).unwrap().unwrap();
        let listener = TcpListener::bind(any()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let tcp = over_tcp(&listener, any(), listener.local_addr().unwrap()).unwrap().unwrap();
        for Conversation { first, later } in [udp, tcp] {
            assert!(!first.is_zero() && !later.is_zero());
        }
    }

    #[test]
    fn what_is_more_is_the_difference_of_medians() {
        let pace = Pace::unknown();
        let mut conversations = Parts::begin(&pace, pace.probe());
        for first in [30, 20, 10] {
            let [first, later] = [first, 5].map(Duration::from_nanos);
            conversations.end(Conversation { first, later }, first, Duration::ZERO);
        }
        let sample = summary(&conversations, 1);
        assert_eq!(sample.values[&Metric::Later], 5.0);
        assert_eq!(sample.values[&Metric::Lost], 0.25);
        let more = sample.values[&Metric::P50] - 5.0;
        assert_eq!(sample.values[&Metric::More], more);
    }
}
