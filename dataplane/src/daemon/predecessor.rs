//! Taking another data plane's place: it is asked to retire, or its end is awaited, when everything else is ready.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use firedoor_api::dataplane::{Reply, Request};
use firedoor_api::{Decoder, encode};

use super::server::path_of;

/// How long it may take to stop, and then to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A data plane that judges no more.
#[derive(Debug)]
pub(super) struct Predecessor {
    /// Its process.
    pub(super) pid: u32,
    /// When its workers stopped, in nanoseconds of CLOCK_MONOTONIC.
    pub(super) stopped: u64,
    stream: UnixStream,
}

impl Predecessor {
    /// Waits until it has let go of its ports' queues.
    pub(super) fn await_queues(&mut self) {
        // It closes the connection then, whatever it says before.
        while self.stream.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
    }
}

/// Waits until one that was killed is gone, with all that the kernel took apart for it.
pub(super) fn await_end() {
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}

/// Has the data plane of this run directory retire. `None` if there is none.
///
/// # Errors
/// If it does not answer, or refuses.
pub(super) fn retire(run_dir: &Path) -> io::Result<Option<Predecessor>> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let mut stream = match UnixStream::connect(path_of(run_dir)) {
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => return Ok(None),
        stream => stream?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&encode(&Request::Retire).map_err(io::Error::other)?)?;
    let mut decoder = Decoder::<Reply>::default();
    let mut buffer = [0; 4096];
    let reply = loop {
        if let Some(reply) = decoder.next_message().map_err(io::Error::other)? {
            break reply;
        }
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => decoder.push(&buffer[..count]),
        }
    };
    match reply {
        Reply::Retired { pid, stopped } => Ok(Some(Predecessor { pid, stopped, stream })),
        Reply::Refused { message } => Err(io::Error::other(message)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn one_that_speaks_another_version_is_refused_by_a_message_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(retire(dir.path()).unwrap().is_none(), "nobody is there");
        let listener = UnixListener::bind(path_of(dir.path())).unwrap();
        let other = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let asked = stream.read(&mut [0; 64]).unwrap();
            // Of three bytes: version 4, and what it says.
            stream.write_all(&[0, 0, 0, 3, 0, 4, 0]).unwrap();
            asked
        });
        let error = retire(dir.path()).unwrap_err().to_string();
        assert!(error.contains("a message of protocol version 4, and this firedoor"), "{error}");
        assert!(other.join().unwrap() > 0);
    }
}
