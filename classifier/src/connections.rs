//! Connections: exact entries, both directions found by one lookup.

use crate::extract::{Embedded, Headers};
use crate::key::FlowKey;
use crate::mac::MacAddr;
use crate::snapshot::{PortId, Timeouts};
use crate::time::Nanos;
use crate::verdict::{Cause, DropReason};

/// All live connections of one worker. Bounded.
pub struct Connections {
    _private: (),
}

/// Where a frame stands to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the one that began the connection.
    Original,
    /// From the other one.
    Reply,
}

/// What the table knows of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// A live entry whose verdict is of the asked epoch, and whose ports and MACs the frame has.
    Current(Hit),
    /// A live entry, but judged under another epoch: judge `Hit::original` again, then call
    /// [`Connections::refresh`] or [`Connections::remove`].
    Stale(Hit),
    /// The frame contradicts its connection's state.
    Invalid(DropReason),
    /// No entry: or one whose ports or MACs are not the frame's.
    Miss,
}

/// An entry that a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Handle of the entry, good until the next call that takes `&mut self` and may remove.
    pub id: ConnectionId,
    /// Which side the frame is from.
    pub side: Side,
    /// Where the frame goes.
    pub output: PortId,
    /// Who allowed it.
    pub cause: Cause,
    /// Set if it lives only because of learn or audit mode.
    pub would_drop: Option<DropReason>,
    /// The key of the frame that began it (TCP flags zero).
    pub original: FlowKey,
}

/// Handle of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId(pub u32);

/// What a new connection is recorded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The port its first frame leaves by. Replies come in here, and leave by the key's ingress.
    pub output: PortId,
    /// MAC address of the replying side as the first frame named it.
    pub reply_mac: MacAddr,
    /// Who allowed it.
    pub cause: Cause,
    /// Set if it lives only because of learn or audit mode.
    pub would_drop: Option<DropReason>,
    /// Epoch of the verdict.
    pub epoch: u64,
}

/// One connection, for `firedoor flows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Key of the first frame.
    pub original: FlowKey,
    /// Output port of the first frame.
    pub output: PortId,
    /// State, as `established` or `syn-sent`.
    pub state: &'static str,
    /// Who allowed it.
    pub cause: Cause,
    /// Set if it lives only because of learn or audit mode.
    pub would_drop: Option<DropReason>,
    /// Epoch of its verdict.
    pub epoch: u64,
    /// Frames and bytes from the original side, then from the reply side.
    pub frames: [u64; 2],
    /// Bytes, likewise.
    pub bytes: [u64; 2],
    /// When it began.
    pub since: Nanos,
    /// When its last frame passed.
    pub last: Nanos,
}

impl Connections {
    /// An empty table of at most `max` connections.
    pub fn new(max: u32, timeouts: Timeouts) -> Self {
        let _ = (max, timeouts);
        todo!()
    }

    /// Applies new limits to new and refreshed connections.
    pub fn configure(&mut self, max: u32, timeouts: Timeouts) {
        let _ = (max, timeouts);
        todo!()
    }

    /// Finds the connection of a frame. Reads only: state moves in [`Connections::observe`], so a
    /// frame that is then dropped leaves no trace.
    pub fn lookup(&self, headers: &Headers, epoch: u64, now: Nanos) -> Lookup {
        let _ = (headers, epoch, now);
        todo!()
    }

    /// Finds the connection that an ICMP error's embedded packet belongs to. The error must go to
    /// the packet's sender: `Hit::side` is the side the *error* comes from, `Hit::output` the port
    /// of the embedded packet's sender.
    pub fn lookup_embedded(
        &self,
        embedded: &Embedded,
        vlan: u16,
        epoch: u64,
        now: Nanos,
    ) -> Lookup {
        let _ = (embedded, vlan, epoch, now);
        todo!()
    }

    /// Whether this frame may begin a connection: any UDP, ICMP query or unknown protocol; a TCP
    /// SYN without ACK, or any non-RST TCP if `midstream`.
    pub fn may_begin(headers: &Headers, midstream: bool) -> bool {
        let _ = (headers, midstream);
        todo!()
    }

    /// Records a new connection and its first frame of `bytes` bytes.
    ///
    /// # Errors
    /// [`DropReason::ConnectionsFull`] when the bound is reached and nothing may be evicted.
    pub fn commit(
        &mut self,
        headers: &Headers,
        commit: Commit,
        bytes: usize,
        now: Nanos,
    ) -> Result<ConnectionId, DropReason> {
        let _ = (headers, commit, bytes, now);
        todo!()
    }

    /// Lets a forwarded frame of `bytes` bytes move its connection's state and counters.
    pub fn observe(&mut self, hit: &Hit, headers: &Headers, bytes: usize, now: Nanos) {
        let _ = (hit, headers, bytes, now);
        todo!()
    }

    /// Renews a stale entry under a new verdict.
    pub fn refresh(&mut self, id: ConnectionId, commit: Commit) {
        let _ = (id, commit);
        todo!()
    }

    /// Forgets a connection.
    pub fn remove(&mut self, id: ConnectionId) {
        let _ = id;
        todo!()
    }

    /// Forgets what has timed out, at most `limit` of them. Returns how many.
    pub fn expire(&mut self, now: Nanos, limit: usize) -> usize {
        let _ = (now, limit);
        todo!()
    }

    /// Live connections.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Up to `limit` live connections from position `from`, for listings that must not hold the
    /// worker up. Returns them and the position to go on from, `None` at the end.
    pub fn list(
        &self,
        from: usize,
        limit: usize,
        now: Nanos,
    ) -> (Vec<ConnectionInfo>, Option<usize>) {
        let _ = (from, limit, now);
        todo!()
    }
}
