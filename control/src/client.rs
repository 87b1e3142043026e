//! A blocking connection to a role's socket: one request, one reply, or a stream of messages.
//!
//! Every wait is bounded, so a role that hangs cannot hang who asks it. Errors say which role was
//! asked, and what to do.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use firedoor_api::codec::MAX_BODY;
use firedoor_api::{ProtocolError, control, dataplane};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::channel::{Channel, ChannelError, HangUp};
use crate::rundir::RunDir;

pub use crate::rundir::Role;

/// How long a reply may take. Attaching hundreds of ports is what takes the longest.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one may take that changes nothing, so that a role that hangs is soon known.
const QUESTION_PATIENCE: Duration = Duration::from_secs(20);

/// Why a role gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "{role} of switch {switch:?} is not running: `firedoor run CONFIG` starts it, and restarts \
         it when it fails"
    )]
    NotRunning {
        /// Who.
        role: Role,
        /// Of which switch.
        switch: String,
    },
    /// The socket's permissions forbid it.
    #[error("not permitted to use {}: run this as root, or as a member of its group", path.display())]
    NotPermitted {
        /// The socket.
        path: PathBuf,
    },
    /// It hung up.
    #[error(
        "{role} closed the connection before it answered: if it has ended, `firedoor run` says why and \
         starts it again; ask once more"
    )]
    Closed {
        /// Who.
        role: Role,
    },
    /// It was silent for too long.
    #[error("{role} did not answer within {} s; its log may say why", waited.as_secs())]
    TimedOut {
        /// Who.
        role: Role,
        /// How long.
        waited: Duration,
    },
    /// It could not, or would not.
    #[error("{message}")]
    Refused {
        /// What, where and what to do.
        message: String,
    },
    /// It answered something else.
    #[error("{role} gave an answer that does not fit the question; are both of one version?")]
    Unexpected {
        /// Who.
        role: Role,
    },
    /// What it said is not the protocol.
    #[error("{role} sent {source}")]
    Protocol {
        /// Who.
        role: Role,
        /// What is wrong with it.
        source: ProtocolError,
    },
    /// The socket failed.
    #[error("the connection to {role} failed: {source}")]
    Io {
        /// Who.
        role: Role,
        /// How.
        source: io::Error,
    },
}

/// A connection on which `Q` is sent and `A` comes back.
#[derive(Debug)]
pub struct Client<Q, A> {
    role: Role,
    channel: Channel<Q, A>,
}

/// Asks control.
pub type ControlClient = Client<control::Request, control::Reply>;
/// Asks the data plane.
pub type DataplaneClient = Client<dataplane::Request, dataplane::Reply>;
/// Hears the data plane's events.
pub type EventClient = Client<dataplane::Request, dataplane::Event>;

impl ControlClient {
    /// Connects to control.
    ///
    /// # Errors
    /// If nobody listens, or they may not be asked.
    pub fn to_control(run_dir: &RunDir) -> Result<Self, ClientError> {
        Self::connect(Role::Control, &run_dir.control_socket(), run_dir)
    }

    /// Asks, and returns the answer. [`control::Reply::Refused`] is returned as an error.
    ///
    /// # Errors
    /// If there is no answer, or it is a refusal.
    pub fn ask(&mut self, request: &control::Request) -> Result<control::Reply, ClientError> {
        use control::Request::{Apply, PortAdd, PortDel};
        self.send(request)?;
        self.answer(Some(match request {
            Apply { .. } | PortAdd { .. } | PortDel { .. } => PATIENCE,
            _ => QUESTION_PATIENCE,
        }))
    }

    /// Waits for the next answer to a [`control::Request::FollowDenies`] that was sent, however
    /// long it takes.
    ///
    /// # Errors
    /// If control hangs up, or refuses.
    pub fn news(&mut self) -> Result<control::Reply, ClientError> {
        self.answer(None)
    }

    fn answer(&mut self, patience: Option<Duration>) -> Result<control::Reply, ClientError> {
        match self.receive(patience)? {
            control::Reply::Refused { message } => Err(ClientError::Refused { message }),
            reply => Ok(reply),
        }
    }
}

impl DataplaneClient {
    /// Connects to the data plane.
    ///
    /// # Errors
    /// If nobody listens, or they may not be asked.
    pub fn to_dataplane(run_dir: &RunDir) -> Result<Self, ClientError> {
        Self::connect(Role::Dataplane, &run_dir.dataplane_socket(), run_dir)
    }

    /// Asks, and returns the answer. [`dataplane::Reply::Refused`] is returned as an error.
    ///
    /// # Errors
    /// If there is no answer, or it is a refusal.
    pub fn ask(&mut self, request: &dataplane::Request) -> Result<dataplane::Reply, ClientError> {
        self.ask_within(PATIENCE, request)
    }

    /// Likewise, but the answer may take at most `patience`.
    ///
    /// # Errors
    /// If there is no answer, or it is a refusal.
    pub fn ask_within(
        &mut self,
        patience: Duration,
        request: &dataplane::Request,
    ) -> Result<dataplane::Reply, ClientError> {
        self.send(request)?;
        match self.receive(Some(patience))? {
            dataplane::Reply::Refused { message } => Err(ClientError::Refused { message }),
            reply => Ok(reply),
        }
    }
}

impl EventClient {
    /// Connects to the data plane and subscribes to its events.
    ///
    /// # Errors
    /// If nobody listens, or they may not be asked.
    pub fn subscribe(run_dir: &RunDir) -> Result<Self, ClientError> {
        let mut client = Self::connect(Role::Dataplane, &run_dir.dataplane_socket(), run_dir)?;
        client.send(&dataplane::Request::Subscribe)?;
        Ok(client)
    }
}

impl<Q: Serialize, A: DeserializeOwned> Client<Q, A> {
    fn connect(role: Role, path: &Path, run_dir: &RunDir) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { role, switch: run_dir.switch() }
            }
            io::ErrorKind::PermissionDenied => ClientError::NotPermitted { path: path.to_owned() },
            _ => ClientError::Io { role, source },
        })?;
        Ok(Self { role, channel: Channel::new(stream, MAX_BODY) })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn send(&mut self, request: &Q) -> Result<(), ClientError> {
        match self.channel.send(request, PATIENCE) {
            // A peer that refuses hangs up at once; what it said is still there to be read.
            Err(ChannelError::Closed) => Ok(()),
            result => result.map_err(|e| self.error(e)),
        }
    }

    /// Waits for a message: at most `patience`, or without it for ever.
    ///
    /// # Errors
    /// If none comes.
    pub fn receive(&mut self, patience: Option<Duration>) -> Result<A, ClientError> {
        self.channel.receive(patience).map_err(|e| self.error(e))
    }

    pub(crate) fn hang_up_handle(&self) -> Result<HangUp, ClientError> {
        let role = self.role;
        self.channel.hang_up_handle().map_err(|source| ClientError::Io { role, source })
    }

    fn error(&self, error: ChannelError) -> ClientError {
        let role = self.role;
        match error {
            ChannelError::Closed => ClientError::Closed { role },
            ChannelError::TimedOut(waited) => ClientError::TimedOut { role, waited },
            ChannelError::Protocol(source) => ClientError::Protocol { role, source },
            ChannelError::Io(source) => ClientError::Io { role, source },
        }
    }
}
