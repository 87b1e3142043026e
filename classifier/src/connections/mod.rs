//! Connections: exact entries, both directions found by one lookup.
//!
//! A connection is why a reply needs no rule. It is made by [`commit`](Connections::commit) for the
//! first frame of a conversation that policy allows, and remembers that verdict, the flow key it was
//! reached for, and the epoch it is good for. A denied frame has no call here, so it makes nothing.
//!
//! **What finds it.** VLAN, protocol, addresses and ports, in an order that both directions share
//! ([`key`]). ICMP queries are found by addresses and identifier, in the asker's order: a request of
//! the side that was asked is no part of the conversation, whatever identifier it has. ARP,
//! neighbour discovery, ICMP errors and ICMP messages that neither ask nor answer are not tracked.
//!
//! **Whose it is.** An entry binds each side's port and MAC address. A frame with the right key by
//! another port, or from or to another MAC, is a [`Lookup::Miss`] and judged by itself, so nobody
//! can borrow a connection. If policy allows it, its connection takes the old one's place.
//!
//! **When it is live.** TCP segments move a state machine ([`tcp`]) and may be refused by it. Every
//! state has its timeout ([`timers`]); an entry that has timed out is not found, even before it is
//! removed. A new timeout holds for all entries at once.
//!
//! **Which table.** Several workers have a table each; a [`Directory`] says which one has a connection.
//!
//! **How many.** At most [`Limits::connections`], and of those that one port's frames began at most
//! [`Limits::per_port`]. Nobody can make the switch forget what two sides have agreed on, and nobody
//! pays for another's flood: [`room`] says what gives way to what.
//!
//! **What passes elsewhere.** Some of a connection's frames may be forwarded on its verdict without
//! coming by here, and it catches up with them: [`elsewhere`].
//!
//! **What it costs.** A lookup touches two cache lines: one bucket of the [`index`], and the part of
//! the [`entry`] that frames are compared with; letting the frame pass touches a third. Batches
//! overlap these waits: see [`Hints`]. What is compared stands in whole words, and nothing is branched
//! on that changes from frame to frame, so a hit of a batch takes some 130 instructions. An entry takes
//! 144 bytes and nine in the index: less than 160 in all when full. Lookups allocate nothing and change
//! nothing; frames change one entry, and its neighbours by age once a second. Nothing pauses for growth,
//! for the index is laid out when the bound is set and entries never move, or for expiry, which looks at
//! what has timed out ([`timers`]).
//!
//! Invariants: an entry is found by its key's one hash and stands in one list exactly once;
//! `created - ended` is the number of live entries.

mod directory;
mod elsewhere;
mod entry;
mod hints;
mod index;
mod key;
mod room;
mod shares;
mod slab;
mod table;
mod tcp;
#[cfg(test)]
mod tests;
mod timers;

use std::hash::{BuildHasher, RandomState};

pub use self::directory::{Bucket, Claims, Directory};
pub use self::elsewhere::{Credit, Established, Sent, Stage};
use self::entry::{Entry, Identity, State};
pub use self::hints::{BATCH, Hint, Hints};
use self::key::FrameKey;
pub use self::key::ports_of_answer;
use self::table::Table;
use self::tcp::{Control, Segment, Step, Windows};
use crate::extract::{Embedded, Headers};
use crate::key::FlowKey;
use crate::mac::MacAddr;
use crate::snapshot::{PortId, Timeouts};
use crate::time::Nanos;
use crate::verdict::{Cause, DropReason};
use crate::wire::protocol;

/// All live connections of one worker. Bounded.
pub struct Connections {
    table: Table,
    limits: Limits,
    stats: ConnectionStats,
    /// The highest epoch of a commit.
    epoch: u64,
    /// What says which of several workers has a connection.
    claims: Option<Claims>,
}

/// What bounds a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most live connections.
    pub connections: u32,
    /// Most of them that were begun by frames of one port.
    pub per_port: u32,
    /// Timeouts by state.
    pub timeouts: Timeouts,
    /// Whether TCP segments outside their windows are refused.
    pub tcp_window_check: bool,
}

impl Limits {
    const fn windows(&self) -> Windows {
        if self.tcp_window_check { Windows::Checked } else { Windows::Ignored }
    }
}

/// Running totals of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Connections begun.
    pub created: u64,
    /// Connections removed, for whatever reason.
    pub ended: u64,
    /// Those of `ended` that had to give way to others because the table or a share was full.
    pub evicted: u64,
    /// Connections refused because the table or a share was full.
    pub refused: u64,
}

/// Where a frame stands to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the one that began the connection.
    Original,
    /// From the other one.
    Reply,
}

impl Side {
    /// The side that the frame goes to.
    pub const fn other(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// What the table knows of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// A live entry whose verdict is of the asked epoch, and whose ports and MACs the frame has.
    Current(Hit),
    /// A live entry, but judged under another epoch: judge [`Connections::original`] again, then
    /// call [`Connections::refresh`] or [`Connections::remove`].
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
}

/// Handle of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId(pub u32);

/// What a new connection is recorded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The port its first frame leaves by. Replies come in here, and leave by the key's ingress.
    pub output: PortId,
    /// MAC address of the replying side as the first frame named it: its destination.
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
    /// That of an [`Established`] one, if it is one by its state.
    pub stage: Option<Stage>,
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
    /// When it began, in whole seconds.
    pub since: Nanos,
    /// When a frame last kept it alive.
    pub last: Nanos,
}

impl ConnectionId {
    /// What [`Connections::commit`] returns for frames that are not tracked.
    pub const NONE: Self = Self(entry::NIL);
}

impl Connections {
    /// An empty table. Its hash is seeded by the operating system's randomness, as the standard
    /// library's maps are.
    pub fn new(limits: Limits) -> Self {
        Self::with_seed(limits, RandomState::new().hash_one(limits.connections))
    }

    /// Like [`Connections::new`], with a seed of the caller's. Whoever knows the seed can slow the
    /// table down.
    pub fn with_seed(limits: Limits, seed: u64) -> Self {
        let table = Table::new(limits.connections, &limits.timeouts, seed);
        Self { table, limits, stats: ConnectionStats::default(), epoch: 0, claims: None }
    }

    /// Shares the connections with other tables: this one has those of which the claims say so. It must
    /// be empty.
    pub fn share(&mut self, claims: Claims) {
        debug_assert_eq!(self.len(), 0, "no connection was begun without a claim");
        self.claims = Some(claims);
    }

    /// The bucket of the frame that stood at this place of the batch, if another table may have its
    /// connection; see [`Claims::bucket_of`]. A connection that is in this one is nobody else's, so only for
    /// other frames the directory is asked.
    #[inline]
    pub fn bucket_of(
        &self,
        headers: &Headers,
        hints: &Hints,
        at: usize,
        fetch: impl Fn(*const ()),
    ) -> Option<Bucket> {
        let claims = self.claims.as_ref()?;
        if self.has(hints, at) { None } else { claims.bucket_of(headers, fetch) }
    }

    /// Who judges which frame; `None` if this is the only table.
    pub const fn claims(&mut self) -> Option<&mut Claims> {
        self.claims.as_mut()
    }

    /// Takes the memory that all connections the limits permit will need, so that a flood changes
    /// nothing about it, and no frame waits for the operating system. Cost: a page fault each 4 KiB,
    /// or 2 MiB where the system has huge pages.
    pub fn set_aside(&mut self) {
        self.table.set_aside(self.limits.connections);
    }

    /// Applies other limits. Timeouts hold at once, for live connections too. If more than a bound
    /// permits are live they stay, and new ones are refused until enough have ended.
    pub fn configure(&mut self, limits: Limits) {
        if limits.timeouts != self.limits.timeouts {
            self.table.set_timeouts(&limits.timeouts);
        }
        self.table.extend(limits.connections);
        self.limits = limits;
    }

    /// Finds the connection of a frame. Reads only: state moves in [`Connections::observe`], so a
    /// frame that is then dropped leaves no trace.
    ///
    /// `headers.key.vlan` is the VLAN domain. Cost: one hash, one probe, one entry; no allocation.
    pub fn lookup(&self, headers: &Headers, epoch: u64, now: Nanos) -> Lookup {
        match FrameKey::of_plain_frame(headers) {
            Some(frame) => self.lookup_key(headers, &frame, epoch, now),
            None => self.lookup_other(headers, epoch, now),
        }
    }

    fn lookup_other(&self, headers: &Headers, epoch: u64, now: Nanos) -> Lookup {
        let Some(frame) = FrameKey::of_frame(headers) else { return Lookup::Miss };
        self.lookup_key(headers, &frame, epoch, now)
    }

    #[inline(always)]
    fn lookup_key(&self, headers: &Headers, frame: &FrameKey, epoch: u64, now: Nanos) -> Lookup {
        match self.table.find_key(&frame.key, self.table.hash(&frame.key)) {
            Some(found) => self.judge(headers, frame.endpoints(), found, epoch, now),
            None => Lookup::Miss,
        }
    }

    #[inline]
    fn judge(
        &self,
        headers: &Headers,
        endpoints: [u64; 2],
        (id, identity): (u32, &Identity),
        epoch: u64,
        now: Nanos,
    ) -> Lookup {
        let side = identity.side(endpoints);
        if self.table.has_expired(identity, now) || !identity.binds(side, &headers.key) {
            return Lookup::Miss;
        }
        if identity.is_tcp()
            && let Some(refusal) = self.judge_segment(id, identity, side, headers)
        {
            return refusal;
        }
        hit(identity, id, side, epoch)
    }

    /// What a TCP connection's state has against a frame.
    fn judge_segment(
        &self,
        id: u32,
        identity: &Identity,
        side: Side,
        headers: &Headers,
    ) -> Option<Lookup> {
        let State::Tcp(state) = identity.state() else { return None };
        match self.table.activity(id)?.judge(state, side, headers, self.limits.windows()) {
            Step::Invalid => Some(Lookup::Invalid(DropReason::TcpState)),
            Step::Outside => Some(Lookup::Invalid(DropReason::TcpWindow)),
            Step::Anew => Some(Lookup::Miss),
            Step::To(_) | Step::Aside => None,
        }
    }

    /// Finds the connection that an ICMP error's embedded packet belongs to. The error must go to
    /// the packet's sender: `Hit::side` is the side the *error* comes from, `Hit::output` the port
    /// of the embedded packet's sender. Whether the error may come by its own port is the caller's
    /// to decide: routers on the way send them too.
    ///
    /// With the window check, a TCP segment that can no longer be on its way, or was never sent, is
    /// no packet of the connection (RFC 5927 §4.1).
    pub fn lookup_embedded(
        &self,
        embedded: &Embedded,
        vlan: u16,
        epoch: u64,
        now: Nanos,
    ) -> Lookup {
        let Some(frame) = FrameKey::of_embedded(embedded, vlan) else { return Lookup::Miss };
        match self.table.find_key(&frame.key, self.table.hash(&frame.key)) {
            Some((id, identity)) if !self.table.has_expired(identity, now) => {
                let sender = identity.side(frame.endpoints());
                if self.may_be_under_way(id, identity, sender, embedded) {
                    hit(identity, id, sender.other(), epoch)
                } else {
                    Lookup::Miss
                }
            }
            _ => Lookup::Miss,
        }
    }

    fn may_be_under_way(
        &self,
        id: u32,
        identity: &Identity,
        sender: Side,
        embedded: &Embedded,
    ) -> bool {
        let (State::Tcp(state), Some(seq)) = (identity.state(), embedded.seq) else { return true };
        let activity =
            self.table.activity(id).filter(|_| self.limits.windows() == Windows::Checked);
        activity.is_none_or(|activity| activity.may_be_under_way(state, sender, seq))
    }

    /// The flow key of the frame that began a connection, its TCP flags included. `None` if it has
    /// ended.
    pub fn original(&self, id: ConnectionId) -> Option<FlowKey> {
        self.table.entry(id.0).map(|entry| entry.original())
    }

    /// Who allowed a connection, and what it would have been dropped for if it lives only because of
    /// learn or audit mode. Good as long as the handle is.
    pub fn verdict(&self, id: ConnectionId) -> (Cause, Option<DropReason>) {
        let Some(activity) = self.table.activity(id.0) else { return (Cause::Switch, None) };
        let would_drop = match activity.is_on_trial() {
            false => None,
            true => self.table.record(id.0).and_then(entry::Record::would_drop),
        };
        (activity.cause(), would_drop)
    }

    /// Whether this frame may begin a connection: any UDP, ICMP request or unknown protocol; a TCP
    /// SYN without ACK, or any non-RST TCP if `midstream`. An ICMP reply may not, or the requests it
    /// seems to answer would pass unjudged; it and what is not tracked at all have only their own
    /// verdict.
    pub fn may_begin(headers: &Headers, midstream: bool) -> bool {
        let Some(frame) = FrameKey::of_frame(headers) else { return false };
        match frame.key.protocol() {
            protocol::TCP => match Segment::of(headers).control {
                Control::Syn => true,
                Control::Rst | Control::Bogus => false,
                Control::SynAck | Control::Ack | Control::Fin => midstream,
            },
            protocol::ICMP | protocol::ICMPV6 => !frame.turned,
            _ => true,
        }
    }

    /// Records a new connection and its first frame of `bytes` bytes. It takes the place of one
    /// with the same key. Of frames that [may not begin](Connections::may_begin) one whatever the
    /// settings, nothing is recorded, and the handle is [`ConnectionId::NONE`].
    ///
    /// # Errors
    /// [`DropReason::ConnectionsFull`] or [`DropReason::PortConnectionsFull`] when a bound is reached
    /// and nothing may be evicted.
    pub fn commit(
        &mut self,
        headers: &Headers,
        commit: Commit,
        bytes: usize,
        now: Nanos,
    ) -> Result<ConnectionId, DropReason> {
        let Some(frame) = FrameKey::of_frame(headers) else { return Ok(ConnectionId::NONE) };
        if !Self::may_begin(headers, true) {
            return Ok(ConnectionId::NONE);
        }
        let hash = self.table.hash(&frame.key);
        let port = headers.key.ingress;
        let old = self.table.find_key(&frame.key, hash).map(|(id, old)| (id, old.payer()));
        if old.is_none_or(|(_, payer)| payer != port)
            && let Err(reason) = self.make_room(port, now)
        {
            self.stats.refused += 1;
            return Err(reason);
        }
        if let Some((old, _)) = old {
            self.end(old);
        }
        self.stats.created += 1;
        self.epoch = self.epoch.max(commit.epoch);
        let entry = Entry::begin(frame, headers, &commit, bytes, now, self.limits.windows());
        if let Some(claims) = &self.claims {
            claims.begun(&frame.key);
        }
        Ok(ConnectionId(self.table.insert(entry, hash, now)))
    }

    /// Lets a forwarded frame of `bytes` bytes move its connection's state and counters.
    pub fn observe(&mut self, hit: &Hit, headers: &Headers, bytes: usize, now: Nanos) {
        let ConnectionId(id) = hit.id;
        let Some(state) = self.table.identity(id).map(Identity::state) else { return };
        let windows = self.limits.windows();
        let Some(activity) = self.table.activity_mut(id) else { return };
        if let Some(state) = activity.observe(state, hit.side, headers, bytes, windows) {
            self.table.refresh(id, state, now);
        }
    }

    /// Renews a stale entry under a new verdict.
    pub fn refresh(&mut self, id: ConnectionId, commit: Commit) {
        self.epoch = self.epoch.max(commit.epoch);
        if let Some(identity) = self.table.identity_mut(id.0) {
            identity.renew(&commit);
            if let Some(activity) = self.table.activity_mut(id.0) {
                activity.renew(&commit);
            }
            if let Some(record) = self.table.record_mut(id.0) {
                record.renew(&commit);
            }
        }
    }

    /// Forgets a connection.
    pub fn remove(&mut self, id: ConnectionId) {
        self.end(id.0);
    }

    /// Live connections, and those that have timed out and are not removed yet.
    pub const fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the table holds, spare ones included.
    pub fn memory(&self) -> usize {
        self.table.memory()
    }

    /// Running totals.
    pub const fn stats(&self) -> ConnectionStats {
        self.stats
    }

    /// Up to `limit` live connections from position `from`, for listings that must not hold the
    /// worker up. Returns them and the position to go on from, `None` at the end.
    ///
    /// A page looks at sixteen positions for each connection asked for, so it may be short or even
    /// empty before the end. Connections that live through the whole listing are in it once.
    pub fn list(
        &self,
        from: usize,
        limit: usize,
        now: Nanos,
    ) -> (Vec<ConnectionInfo>, Option<usize>) {
        let slots = self.table.slots();
        let last = from.saturating_add(limit.max(1).saturating_mul(16)).min(slots);
        let mut page = Vec::new();
        let mut at = from;
        while at < last && page.len() < limit.max(1) {
            let entry = u32::try_from(at).ok().and_then(|id| self.table.entry(id));
            let live = entry.filter(|entry| !self.table.has_expired(&entry.identity, now));
            page.extend(live.map(|entry| entry.info(self.epoch, now)));
            at += 1;
        }
        (page, (at < slots).then_some(at))
    }

    fn end(&mut self, id: u32) {
        let Some(identity) = self.table.identity(id) else { return };
        if let Some(claims) = &mut self.claims {
            claims.ended(&identity.key());
        }
        self.table.remove(id);
        self.stats.ended += 1;
    }
}

fn hit(identity: &Identity, id: u32, side: Side, epoch: u64) -> Lookup {
    let hit = identity.hit(id, side);
    if identity.is_of_epoch(epoch) { Lookup::Current(hit) } else { Lookup::Stale(hit) }
}
