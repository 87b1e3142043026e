//! The other end: UDP ports that send back what comes, and a TCP port that takes every connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use firedoor_lab::netns::{Netns, NetnsError};
use mio::net::{TcpListener, UdpSocket};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

/// UDP ports.
pub(super) const PORTS: Range<u16> = 10_000..10_256;
/// TCP port.
pub(super) const TCP: u16 = 9_999;

/// How often it looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);

/// Echoes in a namespace until dropped.
pub(super) struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), NetnsError>>>,
}

impl Echo {
    pub(super) fn start(netns: &Netns) -> io::Result<Self> {
        let (listener, sockets) = netns.run(open).map_err(io::Error::other)??;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serve = move || {
            if let Err(error) = serve(listener, sockets, &stopped) {
                tracing::error!(%error, "an echo ended");
            }
        };
        let thread = netns.spawn("echo", serve).map_err(io::Error::other)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn open() -> io::Result<(TcpListener, Vec<UdpSocket>)> {
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_nonblocking(true)?;
    listener.bind(&any(TCP).into())?;
    listener.listen(4096)?;
    let sockets = PORTS.map(|port| UdpSocket::bind(any(port))).collect::<io::Result<_>>()?;
    Ok((TcpListener::from_std(listener.into()), sockets))
}

fn serve(
    mut listener: TcpListener,
    mut sockets: Vec<UdpSocket>,
    stop: &AtomicBool,
) -> io::Result<()> {
    const LISTENER: Token = Token(usize::MAX);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    for (number, socket) in sockets.iter_mut().enumerate() {
        poll.registry().register(socket, Token(number), Interest::READABLE)?;
    }
    let mut events = Events::with_capacity(256);
    let mut bytes = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        poll.poll(&mut events, Some(LOOK))?;
        for event in &events {
            if event.token() == LISTENER {
                while listener.accept().is_ok() {}
            } else if let Some(socket) = sockets.get(event.token().0) {
                while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                    // If nobody is there any more, nobody misses it.
                    let _ = socket.send_to(&bytes[..length], from);
                }
            }
        }
    }
    Ok(())
}
