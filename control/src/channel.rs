//! Messages over a Unix socket, every wait bounded: what client and server have in common.
//!
//! A deadline is for a whole message. A peer that sends or takes one byte at a time, always just
//! before a timeout of a single call, runs out of time all the same.

use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use firedoor_api::{Decoder, ProtocolError, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A stream on which messages `O` go out and messages `I` come in.
#[derive(Debug)]
pub(crate) struct Channel<O, I> {
    stream: UnixStream,
    decoder: Decoder<I>,
    out: PhantomData<O>,
}

/// Why no message came or went.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    /// The peer hung up.
    #[error("the peer hung up")]
    Closed,
    /// The peer was too slow.
    #[error("the peer took longer than {} s", .0.as_secs())]
    TimedOut(Duration),
    /// What came is not the protocol.
    #[error("the peer sent {0}")]
    Protocol(#[from] ProtocolError),
    /// The socket failed.
    #[error(transparent)]
    Io(io::Error),
}

impl<O: Serialize, I: DeserializeOwned> Channel<O, I> {
    /// Takes messages with bodies of at most `max_body` bytes.
    pub(crate) fn new(stream: UnixStream, max_body: usize) -> Self {
        Self { stream, decoder: Decoder::with_limit(max_body), out: PhantomData }
    }

    /// Sends a message, within `patience`.
    pub(crate) fn send(&mut self, message: &O, patience: Duration) -> Result<(), ChannelError> {
        let bytes = encode(message)?;
        let deadline = Deadline::new(patience);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            self.stream.set_write_timeout(Some(deadline.left()?)).map_err(ChannelError::Io)?;
            match self.stream.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(e) => tolerate(e)?,
            }
        }
        Ok(())
    }

    /// Waits for a message: at most `patience`, or without it for ever.
    pub(crate) fn receive(&mut self, patience: Option<Duration>) -> Result<I, ChannelError> {
        let deadline = patience.map(Deadline::new);
        let mut chunk = [0; 16 << 10];
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(message);
            }
            let left = deadline.as_ref().map(Deadline::left).transpose()?;
            self.stream.set_read_timeout(left).map_err(ChannelError::Io)?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(read) => self.decoder.push(&chunk[..read]),
                Err(e) => tolerate(e)?,
            }
        }
    }

    /// Whether the peer has hung up, or said something while it should only listen. Does not wait.
    pub(crate) fn is_over(&mut self) -> bool {
        let mut byte = [0];
        let peeked = self.stream.set_nonblocking(true).and_then(|()| self.stream.read(&mut byte));
        let blocking = self.stream.set_nonblocking(false);
        let silent = matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        !silent || blocking.is_err()
    }

    /// A handle with which another thread can end a [`receive`](Self::receive) that waits.
    pub(crate) fn hang_up_handle(&self) -> io::Result<HangUp> {
        self.stream.try_clone().map(HangUp)
    }
}

/// Ends a channel from another thread.
#[derive(Debug)]
pub(crate) struct HangUp(UnixStream);

impl HangUp {
    /// Ends it. Whoever waits on it is told that the peer hung up.
    pub(crate) fn hang_up(&self) {
        // It fails only if the peer was faster.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

struct Deadline {
    end: Instant,
    patience: Duration,
}

impl Deadline {
    fn new(patience: Duration) -> Self {
        Self { end: Instant::now() + patience, patience }
    }

    /// What is left of it, never zero.
    fn left(&self) -> Result<Duration, ChannelError> {
        match self.end.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(ChannelError::TimedOut(self.patience)),
        }
    }
}

/// Passes over what the deadline or the next call will judge.
fn tolerate(error: io::Error) -> Result<(), ChannelError> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, Interrupted, TimedOut, WouldBlock};
    match error.kind() {
        Interrupted | WouldBlock | TimedOut => Ok(()),
        BrokenPipe | ConnectionReset => Err(ChannelError::Closed),
        _ => Err(ChannelError::Io(error)),
    }
}

#[cfg(test)]
mod tests {
    use firedoor_api::control::{Reply, Request};

    use super::*;

    fn pair() -> (Channel<Request, Reply>, Channel<Reply, Request>) {
        let (a, b) = UnixStream::pair().unwrap();
        (Channel::new(a, 1_000), Channel::new(b, 1_000))
    }

    #[test]
    fn messages_arrive_in_order_and_a_hang_up_is_told() {
        let (mut near, mut far) = pair();
        let second = Request::PortDel { name: "web".into() };
        near.send(&Request::Status, Duration::from_secs(5)).unwrap();
        near.send(&second, Duration::from_secs(5)).unwrap();
        assert_eq!(far.receive(None).unwrap(), Request::Status);
        assert!(!near.is_over());
        assert_eq!(far.receive(None).unwrap(), second);
        drop(far);
        assert!(near.is_over());
        assert!(matches!(near.receive(None), Err(ChannelError::Closed)));
        assert!(matches!(
            near.send(&Request::Status, Duration::from_secs(5)),
            Err(ChannelError::Closed)
        ));
    }

    #[test]
    fn silence_and_stuffed_sockets_time_out() {
        let (mut near, _far) = pair();
        let patience = Duration::from_millis(20);
        assert!(matches!(near.receive(Some(patience)), Err(ChannelError::TimedOut(_))));
        let large = Request::PortAdd { workload: "x".repeat(8 << 20) };
        assert!(matches!(near.send(&large, patience), Err(ChannelError::TimedOut(_))));
    }

    #[test]
    fn a_waiting_receiver_can_be_told_to_stop() {
        let (mut near, _far) = pair();
        let handle = near.hang_up_handle().unwrap();
        let waiting = std::thread::spawn(move || near.receive(None));
        handle.hang_up();
        assert!(matches!(waiting.join().unwrap(), Err(ChannelError::Closed)));
    }
}
