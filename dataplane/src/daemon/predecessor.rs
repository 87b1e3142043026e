//! Taking another data plane's place: it is asked to retire when everything else is ready.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use firedoor_api::dataplane::{Reply, Request};
use firedoor_api::{Decoder, encode};

use super::server::path_of;

/// How long it may take to stop, and then to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A data plane that forwards no more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Predecessor {
    /// Its process.
    pub(super) pid: u32,
    /// When its workers stopped, in nanoseconds of CLOCK_MONOTONIC.
    pub(super) stopped: u64,
}

/// Has the data plane of this run directory retire, and waits until it has let go of its sockets.
/// `None` if there is none.
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
        Reply::Retired { pid, stopped } => {
            // Its end closes the connection, whatever it says until then.
            while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
            Ok(Some(Predecessor { pid, stopped }))
        }
        Reply::Refused { message } => Err(io::Error::other(message)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
