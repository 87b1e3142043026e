//! Control's socket: who may ask, how much, and for how long.
//!
//! The socket is for its owner and group (0660), and each connection's peer credentials are
//! checked again, so a socket that was made reachable by accident still answers no stranger.
//! A thread serves each connection. Their number is bounded, and so are the size of a request and
//! the time it takes to come and its answer to go: a client that stalls holds one thread until its
//! time is up, never anything that others wait for.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use firedoor_api::control::{Deny, Reply, Request};
use nix::sys::socket::{UnixCredentials, getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::channel::{Channel, ChannelError};
use crate::denies::Cursor;
use crate::intent::MAX_TEXT;

/// Most connections at once.
const MAX_CONNECTIONS: usize = 64;
/// Largest request, in bytes: a config of [`MAX_TEXT`] bytes, its path, and no more.
const MAX_REQUEST: usize = MAX_TEXT as usize + (1 << 20);
/// How long a client may take for its next request, and to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a connection that follows is checked for a client that is gone.
const FOLLOW_CHECK: Duration = Duration::from_secs(1);

/// Answers what the server lets through. Called from many threads.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request other than [`Request::FollowDenies`].
    fn answer(&self, request: Request) -> Reply;

    /// Refused conversations that there are now, and where to go on from.
    fn denies(&self) -> (Vec<Deny>, Cursor);

    /// Refused conversations that changed after `cursor`; waits at most `patience` for the first.
    fn denies_since(&self, cursor: Cursor, patience: Duration) -> (Vec<Deny>, Cursor);
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another process serves there.
    #[error("another process already answers on {}: stop it first", .0.display())]
    InUse(PathBuf),
    /// The system said no.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A listening socket and the thread that accepts from it. Dropping it removes the socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `path`, in place of a socket that a killed process left there.
    ///
    /// # Errors
    /// If another process listens there, or the system says no.
    pub fn start(path: &Path, handler: Arc<impl Handler>) -> Result<Self, ServerError> {
        if UnixStream::connect(path).is_ok() {
            return Err(ServerError::InUse(path.to_owned()));
        }
        let (listener, gid) =
            listen(path).map_err(|source| ServerError::Listen { path: path.to_owned(), source })?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let accepting = thread::Builder::new()
            .name("accept".into())
            .spawn(move || accept(&listener, gid, &stop, &handler))
            .map_err(|source| ServerError::Listen { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), stopping, accepting: Some(accepting) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let woken = UnixStream::connect(&self.path).is_ok();
        let _ = fs::remove_file(&self.path);
        if let Some(thread) = self.accepting.take()
            && woken
        {
            let _ = thread.join();
        }
    }
}

/// Binds the socket; returns it and its group.
fn listen(path: &Path) -> io::Result<(UnixListener, u32)> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok((listener, fs::metadata(path)?.gid()))
}

fn accept<H: Handler>(listener: &UnixListener, gid: u32, stop: &AtomicBool, handler: &Arc<H>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!("a connection could not be accepted: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let slot = Slot::take(&open);
        let handler = Arc::clone(handler);
        let serving = thread::Builder::new().name("client".into()).spawn(move || {
            let channel = Channel::new(stream.try_clone()?, MAX_REQUEST);
            match slot.map(|slot| (slot, refusal(&stream, gid))) {
                Some((_slot, None)) => serve(channel, &*handler),
                Some((_slot, Some(message))) => refuse(channel, message),
                None => refuse(channel, "control has too many connections: try again".into()),
            }
            io::Result::Ok(())
        });
        if let Err(error) = serving {
            tracing::warn!("a connection could not be served: {error}");
        }
    }
}

/// One of the connections that there may be at once.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        let slot = Self(Arc::clone(open));
        (open.fetch_add(1, Ordering::AcqRel) < MAX_CONNECTIONS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why the peer may not ask, if so.
fn refusal(stream: &UnixStream, gid: u32) -> Option<String> {
    let peer = match getsockopt(stream, PeerCredentials) {
        Ok(peer) => peer,
        Err(error) => return Some(format!("your credentials cannot be read: {error}")),
    };
    let allowed = is_allowed(peer.uid(), &groups(&peer), Uid::effective().as_raw(), gid);
    (!allowed).then(|| {
        tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused a connection");
        format!("user {} may not control this switch: be root, or in group {gid}", peer.uid())
    })
}

/// Whether a peer may control the switch: root, the user that control runs as, and members of the
/// socket's group.
fn is_allowed(uid: u32, groups: &[u32], own_uid: u32, socket_gid: u32) -> bool {
    uid == 0 || uid == own_uid || groups.contains(&socket_gid)
}

/// The peer's group, and those that the group database has its user in: SO_PEERCRED knows the
/// first alone.
fn groups(peer: &UnixCredentials) -> Vec<u32> {
    let user = User::from_uid(Uid::from_raw(peer.uid())).ok().flatten();
    let name = user.and_then(|user| CString::new(user.name).ok());
    let listed = name.and_then(|name| getgrouplist(&name, Gid::from_raw(peer.gid())).ok());
    listed.unwrap_or_default().into_iter().map(Gid::as_raw).chain([peer.gid()]).collect()
}

fn refuse(mut channel: Channel<Reply, Request>, message: String) {
    // Whether the stranger reads it is its own affair.
    let _ = channel.send(&Reply::Refused { message }, PATIENCE);
}

fn serve(mut channel: Channel<Reply, Request>, handler: &impl Handler) {
    let ended = loop {
        let served = match channel.receive(Some(PATIENCE)) {
            Ok(Request::FollowDenies) => follow(&mut channel, handler),
            Ok(request) => channel.send(&handler.answer(request), PATIENCE),
            Err(ChannelError::Protocol(error)) => {
                let message = format!("control cannot read the request: {error}");
                return refuse(channel, message);
            }
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            break error;
        }
    };
    match ended {
        ChannelError::Closed | ChannelError::TimedOut(_) => tracing::debug!("client: {ended}"),
        _ => tracing::warn!("client: {ended}"),
    }
}

fn follow(
    channel: &mut Channel<Reply, Request>,
    handler: &impl Handler,
) -> Result<(), ChannelError> {
    let (mut news, mut cursor) = handler.denies();
    // The first answer comes at once, with what there is.
    loop {
        channel.send(&Reply::Denies(news), PATIENCE)?;
        (news, cursor) = loop {
            let (news, next) = handler.denies_since(cursor, FOLLOW_CHECK);
            if !news.is_empty() {
                break (news, next);
            }
            if channel.is_over() {
                return Err(ChannelError::Closed);
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::client::{ClientError, ControlClient};
    use crate::rundir::RunDir;

    struct Echo;

    impl Handler for Echo {
        fn answer(&self, request: Request) -> Reply {
            Reply::Refused { message: format!("{request:?}") }
        }

        fn denies(&self) -> (Vec<Deny>, Cursor) {
            (Vec::new(), Cursor::default())
        }

        fn denies_since(&self, cursor: Cursor, patience: Duration) -> (Vec<Deny>, Cursor) {
            thread::sleep(patience.min(Duration::from_millis(10)));
            (Vec::new(), cursor)
        }
    }

    fn start() -> (tempfile::TempDir, RunDir, Server) {
        let base = tempfile::tempdir().unwrap();
        let dir = RunDir::at(base.path());
        let server = Server::start(&dir.control_socket(), Arc::new(Echo)).unwrap();
        (base, dir, server)
    }

    fn asked(dir: &RunDir, request: &Request) -> String {
        let error = ControlClient::to_control(dir).unwrap().ask(request).unwrap_err();
        assert!(matches!(error, ClientError::Refused { .. }), "{error}");
        error.to_string()
    }

    #[test]
    fn root_the_own_user_and_the_group_may_ask_and_nobody_else() {
        assert!(is_allowed(0, &[0], 990, 991));
        assert!(is_allowed(990, &[7], 990, 991));
        assert!(is_allowed(1_000, &[1_000, 991], 990, 991));
        assert!(!is_allowed(1_000, &[1_000, 992], 990, 991));
        assert!(!is_allowed(1_000, &[], 0, 0));
    }

    #[test]
    fn the_socket_is_for_owner_and_group_and_goes_with_the_server() {
        let (_base, dir, server) = start();
        let path = dir.control_socket();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(asked(&dir, &Request::Status), "Status");
        assert!(matches!(Server::start(&path, Arc::new(Echo)), Err(ServerError::InUse(_))));
        drop(server);
        assert!(!path.exists());
        let error = ControlClient::to_control(&dir).unwrap_err();
        assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
    }

    #[test]
    fn a_socket_that_a_killed_process_left_is_replaced() {
        let base = tempfile::tempdir().unwrap();
        let dir = RunDir::at(base.path());
        drop(UnixListener::bind(dir.control_socket()).unwrap());
        assert!(dir.control_socket().exists());
        let _server = Server::start(&dir.control_socket(), Arc::new(Echo)).unwrap();
        assert_eq!(asked(&dir, &Request::Ports), "Ports");
    }

    #[test]
    fn oversized_requests_and_junk_are_refused_and_others_are_served() {
        let (_base, dir, _server) = start();
        let huge = Request::PortAdd { workload: "x".repeat(MAX_REQUEST) };
        assert!(asked(&dir, &huge).contains("outside"));

        let mut junk = UnixStream::connect(dir.control_socket()).unwrap();
        junk.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        junk.read_to_end(&mut answer).unwrap();
        assert!(!answer.is_empty());
        assert_eq!(asked(&dir, &Request::Flows), "Flows");
    }

    #[test]
    fn connections_beyond_the_bound_are_refused_until_one_closes() {
        let (_base, dir, _server) = start();
        let mut held: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|_| {
                let mut client = ControlClient::to_control(&dir).unwrap();
                client.ask(&Request::Status).unwrap_err();
                client
            })
            .collect();
        assert!(asked(&dir, &Request::Status).contains("too many"));
        held.pop();
        // The place is free once its thread has seen the end.
        while asked(&dir, &Request::Status).contains("too many") {
            thread::yield_now();
        }
    }
}
