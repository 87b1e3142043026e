//! A client that asks every millisecond, and notes when each answer comes.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::{TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Token};
use serde::Serialize;

use super::echo::{PORTS, TCP};

/// The time between two questions.
const PACE: Duration = Duration::from_millis(1);
/// How long an answer is waited for: TCP has sent its SYN again by then, twice.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);
/// An answer that takes longer is late.
const LATE: Duration = Duration::from_millis(10);

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// By a datagram of a flow that never was before, sent once.
    NewUdp,
    /// By a datagram of one and the same flow, sent once.
    LiveUdp,
    /// By a connection.
    NewTcp,
}

/// One that asks until it is stopped.
pub(super) struct Client {
    pub(super) name: &'static str,
    pub(super) to: IpAddr,
    pub(super) ask: Ask,
    pub(super) stop: Arc<AtomicBool>,
}

/// What a client noticed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Noticed {
    /// How it asked.
    pub name: &'static str,
    /// Questions.
    pub asked: usize,
    /// Those that were never answered.
    pub lost: usize,
    /// Those whose answer took more than 10 ms.
    pub late: usize,
    /// The longest that an answer took.
    pub longest_ms: f64,
    /// The longest time without any answer.
    pub gap_ms: f64,
}

impl Client {
    /// Asks, and returns what it noticed once the last answer has come or is not waited for any longer.
    pub(super) fn run(self) -> io::Result<Noticed> {
        let mut asking = Asking::new(&self)?;
        let start = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let due = start + PACE * asking.asked.len() as u32;
            asking.listen_until(due)?;
            asking.ask()?;
        }
        let deadline = Instant::now() + PATIENCE;
        while asking.is_waiting() && Instant::now() < deadline {
            asking.listen_until(Instant::now() + 10 * PACE)?;
        }
        Ok(asking.noticed(self.name))
    }
}

/// What is under way.
struct Asking {
    to: IpAddr,
    ask: Ask,
    poll: Poll,
    events: Events,
    sockets: Vec<UdpSocket>,
    streams: HashMap<usize, TcpStream>,
    asked: Vec<Instant>,
    answered: Vec<Option<Instant>>,
}

impl Asking {
    fn new(client: &Client) -> io::Result<Self> {
        let mut asking = Self {
            to: client.to,
            ask: client.ask,
            poll: Poll::new()?,
            events: Events::with_capacity(256),
            sockets: Vec::new(),
            streams: HashMap::new(),
            asked: Vec::new(),
            answered: Vec::new(),
        };
        if asking.ask == Ask::LiveUdp {
            // It is live when its first frames were answered.
            for _ in 0..20 {
                asking.ask()?;
                asking.listen_until(Instant::now() + 5 * PACE)?;
            }
            (asking.asked, asking.answered) = Default::default();
        }
        Ok(asking)
    }

    fn ask(&mut self) -> io::Result<()> {
        let number = self.asked.len();
        self.asked.push(Instant::now());
        self.answered.push(None);
        match self.ask {
            Ask::NewTcp => {
                let mut stream = TcpStream::connect(SocketAddr::new(self.to, TCP))?;
                self.poll.registry().register(&mut stream, Token(number), Interest::WRITABLE)?;
                self.streams.insert(number, stream);
            }
            Ask::NewUdp => self.send(number / PORTS.len(), number % PORTS.len(), number)?,
            Ask::LiveUdp => self.send(0, 0, number)?,
        }
        Ok(())
    }

    /// Sends a number from one of the sockets, which is opened if it is the next, to one of the ports.
    fn send(&mut self, socket: usize, port: usize, number: usize) -> io::Result<()> {
        if socket == self.sockets.len() {
            let mut opened = UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
            self.poll.registry().register(&mut opened, Token(socket), Interest::READABLE)?;
            self.sockets.push(opened);
        }
        let to = SocketAddr::new(self.to, PORTS.start + port as u16);
        self.sockets[socket].send_to(&(number as u64).to_be_bytes(), to).map(drop)
    }

    /// Notes answers until then.
    fn listen_until(&mut self, due: Instant) -> io::Result<()> {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.poll.poll(&mut self.events, Some(left))?;
            for event in &self.events {
                let Token(number) = event.token();
                if self.ask == Ask::NewTcp {
                    // An RST is no answer: nobody here refuses.
                    let stream = self.streams.remove(&number);
                    if stream.is_some_and(|stream| stream.peer_addr().is_ok()) {
                        note(&mut self.answered, number);
                    }
                } else if let Some(socket) = self.sockets.get(number) {
                    let mut bytes = [0; 8];
                    while socket.recv(&mut bytes).is_ok() {
                        note(&mut self.answered, u64::from_be_bytes(bytes) as usize);
                    }
                }
            }
        }
    }

    fn is_waiting(&self) -> bool {
        self.answered.iter().any(Option::is_none)
    }

    fn noticed(self, name: &'static str) -> Noticed {
        let waits = || {
            let both = self.asked.iter().zip(&self.answered);
            both.filter_map(|(asked, answered)| Some((*answered)?.duration_since(*asked)))
        };
        let mut answers: Vec<Instant> = self.answered.iter().copied().flatten().collect();
        answers.sort_unstable();
        let gaps = answers.windows(2).map(|pair| pair[1] - pair[0]);
        let ms = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64() * 1e3;
        Noticed {
            name,
            asked: self.asked.len(),
            lost: self.asked.len() - answers.len(),
            late: waits().filter(|&wait| wait > LATE).count(),
            longest_ms: ms(waits().max()),
            gap_ms: ms(gaps.max()),
        }
    }
}

/// The first answer to a question counts.
fn note(answered: &mut [Option<Instant>], number: usize) {
    if let Some(answer) = answered.get_mut(number) {
        answer.get_or_insert_with(Instant::now);
    }
}
