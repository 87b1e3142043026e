//! The data plane's socket: requests and subscriptions.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use firedoor_api::dataplane::{Reply, Request};
use firedoor_api::{Decoder, encode};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::{DaemonError, Shared};
use crate::engine::Halted;

/// Connections served at once.
const MAX_CONNECTIONS: usize = 32;
/// Longest wait for a peer to take what it asked for.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn path_of(run_dir: &Path) -> PathBuf {
    run_dir.join("dataplane.sock")
}

/// Listens on the run directory's socket, mode 0660. A socket that a dead data plane left behind is
/// replaced.
pub(super) fn listen(run_dir: &Path) -> Result<UnixListener, DaemonError> {
    let path = path_of(run_dir);
    let listen = || {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o660))?;
        Ok(listener)
    };
    listen().map_err(|source| DaemonError::Listen { path: path.clone(), source })
}

/// Removes the socket.
pub(super) fn unlisten(run_dir: &Path) {
    if let Err(error) = fs::remove_file(path_of(run_dir)) {
        tracing::warn!(%error, "the socket is not removed");
    }
}

/// Serves connections, a thread each, for the life of the process.
pub(super) fn run(listener: &UnixListener, shared: &Arc<Shared>) {
    let active = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let place = Place::take(&active);
        if active.load(Ordering::Relaxed) > MAX_CONNECTIONS || !is_trusted(&stream) {
            continue;
        }
        let shared = Arc::clone(shared);
        let served = std::thread::Builder::new().name("connection".into()).spawn(move || {
            if let Err(error) = serve(stream, &shared) {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
        if let Err(error) = served {
            tracing::error!(%error, "a connection could not be served");
        }
    }
}

/// A connection's place among those served at once, given back however it ends.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(active: &Arc<AtomicUsize>) -> Self {
        active.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(active))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Only root and the data plane's own user may tell it what to enforce, whatever the socket's mode.
fn is_trusted(stream: &UnixStream) -> bool {
    match getsockopt(stream, PeerCredentials) {
        Ok(peer) if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), pid = peer.pid(), "a peer without permission refused");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "a peer without credentials refused");
            false
        }
    }
}

/// Answers requests in order until the peer hangs up or subscribes.
fn serve(mut stream: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_PATIENCE))?;
    let mut decoder = Decoder::<Request>::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        decoder.push(&buffer[..count]);
        loop {
            match decoder.next_message() {
                Ok(Some(Request::Subscribe)) => return publish(stream, shared),
                Ok(Some(Request::Retire)) => {
                    let (retired, halted) = shared.retire();
                    let told = send(&mut stream, &retired);
                    halted.into_iter().for_each(Halted::let_go);
                    // Also if the successor is gone: somebody has to judge, and the supervisor sees to that.
                    return shared.end().and(told);
                }
                Ok(Some(request)) => send(&mut stream, &shared.answer(request))?,
                Ok(None) => break,
                Err(error) => {
                    return send(&mut stream, &Reply::Refused { message: error.to_string() });
                }
            }
        }
    }
}

/// Writes events until the peer hangs up or does not take them.
fn publish(mut stream: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    for event in shared.subscribers().subscribe() {
        send(&mut stream, &event)?;
    }
    Ok(())
}

fn send<T: serde::Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    stream.write_all(&encode(message).map_err(io::Error::other)?)
}
