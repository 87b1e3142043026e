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
//! pays for another's flood:
//!
//! - A connection is charged to the port that its first frame came in by. Nothing else is a port's to
//!   choose: addresses and ports of frames are.
//! - What has timed out goes before anything else.
//! - A port that has used up its share makes room by itself: its own half-open TCP gives way first,
//!   then UDP and other protocols of one direction, ICMP queries, then TCP that was reset or closed,
//!   and last UDP and other protocols of both directions that have been silent for two minutes; of
//!   each, the least recently used. If it has none of these, its newcomer is refused with
//!   [`DropReason::PortConnectionsFull`].
//! - When the table is full, a *fair share* is the bound by the number of ports that have connections.
//!   A port above it makes room by itself. One below it takes what gives way first (silent ones
//!   excepted) from a port above it, and only if there is none, from itself. Since a full table's mean
//!   is the fair share, either some port is above it or all are at it. So a flood eats its own
//!   connections as soon as it has its fair share; a port that holds less loses nothing to it, not
//!   even half-open handshakes; and a newcomer finds room as long as somebody holds too much. If
//!   nothing gives way, it is refused with [`DropReason::ConnectionsFull`].
//! - Established TCP never gives way (RFC 5382 REQ-5), nor does anything of another port that two
//!   sides have spoken in.
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
mod entry;
mod index;
mod key;
mod shares;
mod slab;
mod table;
mod tcp;
#[cfg(test)]
mod tests;
mod timers;

use std::hash::{BuildHasher, RandomState};

pub use self::directory::{Bucket, Claims, Directory};
use self::entry::{Entry, Identity, State};
pub use self::key::ports_of_answer;
use self::key::{FrameKey, Upper};
use self::table::Table;
use self::tcp::{Control, Segment, Step, Windows};
use self::timers::{Class, IDLE, Stamp};
use crate::extract::{Embedded, Headers};
use crate::key::FlowKey;
use crate::mac::MacAddr;
use crate::snapshot::{PortId, Timeouts};
use crate::time::Nanos;
use crate::verdict::{Cause, DropReason};
use crate::wire::protocol;

/// Most expired connections that one commit into a full table removes: a bound on its time.
const EXPIRED_PER_COMMIT: u32 = 64;

/// Most frames that [`Connections::prepare`] looks ahead.
pub const BATCH: usize = 64;

/// How many frames ahead of the step that reads its bucket a frame's bucket is asked for.
const BUCKETS_AHEAD: usize = 8;

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

/// A connection whose plain frames need no more judging under the policy in force: TCP from the SYN-ACK
/// on, and of what is [asked](Stage::Asked) that one; UDP from its first frame on; and nothing about it is
/// recorded frame by frame. Not where TCP's windows are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Established {
    /// Handle of the entry.
    pub id: ConnectionId,
    /// Key of the first frame.
    pub original: FlowKey,
    /// Output port of the first frame, where replies come from.
    pub output: PortId,
    /// Who allowed it.
    pub cause: Cause,
    /// Frames so far, of the original and of the reply side.
    pub frames: [u64; 2],
    /// How far it is.
    pub stage: Stage,
    /// TCP: what a SYN-ACK acknowledges, of the SYN alone.
    pub answer: u32,
    /// TCP: the SYN's data was taken, so who answered may send its own before the handshake is complete
    /// (RFC 7413).
    pub is_early: bool,
}

/// How far a connection is of which it is known what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// TCP: one side has sent a SYN. Nothing else passes before the other has sent a SYN-ACK with
    /// [what acknowledges it](Established::answer), and that does.
    Asked,
    /// TCP: both sides have sent a SYN, and the handshake's last ACK is to come.
    Opening,
    /// It may last.
    Open,
    /// TCP: both sides have ended it, and a last ACK may be to come.
    Closing,
}

/// What was forwarded of one side of a connection without passing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Frames.
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
    /// Of TCP: the side's sequence numbers after it all.
    pub tcp: Option<Sent>,
}

/// Where a side of a TCP connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// After the last byte it sent, and its FIN.
    pub next: u32,
    /// After the last byte it acknowledged.
    pub ack: u32,
    /// The window it granted, as in the header.
    pub window: u16,
    /// Whether it has sent a FIN.
    pub has_ended: bool,
}

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

/// Frames of one batch, looked up ahead of their turn.
///
/// A table of a million connections does not fit into any cache, so a lookup waits for memory two or
/// three times. [`Connections::prepare`] takes these steps for several frames of a batch at once, so that
/// the waits overlap; [`Connections::lookup_hinted`] then finds everything at hand.
///
/// A hint stays right whatever happens to the table in between: it saves time or nothing.
pub struct Hints {
    hints: [Hint; BATCH],
    len: usize,
}

/// What [`Connections::prepare`] found out about one frame.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Hint {
    /// [`FrameKey::endpoints`].
    endpoints: [u64; 2],
    /// Its [`key::Key::upper`], if it has any.
    upper: Upper,
    hash: u32,
    /// The entry that had the frame's key then.
    id: u32,
}

impl Hint {
    const NONE: Self = Self { endpoints: entry::NOBODYS, upper: [0; 3], hash: 0, id: entry::NIL };

    /// Whether the table seemed to have the frame's connection then: hashes were compared, not keys.
    pub const fn is_found(&self) -> bool {
        self.id != entry::NIL
    }
}

impl Hints {
    /// No hints.
    pub const fn new() -> Self {
        Self { hints: [Hint::NONE; BATCH], len: 0 }
    }

    /// The hint for the frame that stood at this place of the batch.
    #[inline(always)]
    pub fn get(&self, at: usize) -> Option<&Hint> {
        self.hints.get(at).filter(|_| at < self.len)
    }

    /// Frames that there are hints for.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Default for Hints {
    fn default() -> Self {
        Self::new()
    }
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

    /// Looks up to [`BATCH`] frames ahead, for [`Connections::lookup_hinted`]; further ones get no
    /// hint. Reads only.
    ///
    /// Every step is taken for some frames before the next one, which then finds at hand what `fetch` has
    /// asked for: it has the processor get the cache line of a pointer, and waits for nothing.
    pub fn prepare(&self, frames: &[Headers], hints: &mut Hints, fetch: impl Fn(*const ())) {
        hints.len = frames.len().min(BATCH);
        if self.table.is_large() {
            let hints = hints.hints.get_mut(..hints.len).unwrap_or_default();
            self.prepare_far(frames, hints, fetch);
        } else {
            self.prepare_near(frames, &mut hints.hints);
        }
    }

    /// [`Connections::prepare`], where nothing waits for memory.
    fn prepare_near(&self, frames: &[Headers], hints: &mut [Hint]) {
        for (headers, hint) in frames.iter().zip(hints) {
            let hash = self.describe(hint, headers);
            hint.id = self.table.candidate(hash);
        }
    }

    /// [`Connections::prepare`], where everything does. The two steps follow each other through the batch,
    /// so that memory has as much to do in the first half of it as in the second.
    fn prepare_far(&self, frames: &[Headers], hints: &mut [Hint], fetch: impl Fn(*const ())) {
        for at in 0..hints.len() + BUCKETS_AHEAD {
            if let (Some(headers), Some(hint)) = (frames.get(at), hints.get_mut(at)) {
                let hash = self.describe(hint, headers);
                fetch(self.table.place_of_bucket(hash));
            }
            if let Some(hint) = at.checked_sub(BUCKETS_AHEAD).and_then(|at| hints.get_mut(at)) {
                let fetch = |id| fetch(self.table.place_of_identity(id));
                hint.id = self.table.candidates(hint.hash, fetch);
                fetch(hint.id);
            }
        }
    }

    /// Notes what a frame is looked for by. Returns the hash.
    #[inline(always)]
    fn describe(&self, hint: &mut Hint, headers: &Headers) -> u32 {
        let Some(frame) = FrameKey::of_plain_frame(headers) else {
            return self.describe_other(hint, headers);
        };
        hint.endpoints = frame.endpoints();
        hint.hash = self.table.hash(&frame.key);
        hint.hash
    }

    /// Likewise, of a frame that is not as most are.
    fn describe_other(&self, hint: &mut Hint, headers: &Headers) -> u32 {
        *hint = FrameKey::of_frame(headers).map_or(Hint::NONE, |frame| Hint {
            endpoints: frame.endpoints(),
            upper: frame.key.upper.unwrap_or_default(),
            hash: self.table.hash(&frame.key),
            id: entry::NIL,
        });
        hint.hash
    }

    /// Asks for what [`Connections::observe`] will change, and what a TCP lookup and
    /// [`Connections::verdict`] read, of the frame that stood at this place of the batch; see
    /// [`Connections::prepare`]. Worth its while a few frames ahead, if most have connections.
    #[inline]
    pub fn prepare_to_observe(&self, hints: &Hints, at: usize, fetch: impl Fn(*const ())) {
        if let Some(hint) = hints.get(at) {
            fetch(self.table.place_of_activity(hint.id));
        }
    }

    /// Whether a connection with the key of the frame that stood at this place of the batch is in this
    /// table, live or not. It is certain to be if so; if not, it may be.
    #[inline]
    fn has(&self, hints: &Hints, at: usize) -> bool {
        let Some(hint) = hints.get(at) else { return false };
        self.table.with_key(hint.id, hint.endpoints, &hint.upper).is_some()
    }

    /// [`Connections::lookup`] of a frame that [`Connections::prepare`] was shown: the same answer,
    /// whatever was committed, observed, removed or expired since.
    ///
    /// `hint` must be this frame's, and of this table.
    #[inline]
    pub fn lookup_hinted(&self, headers: &Headers, hint: &Hint, epoch: u64, now: Nanos) -> Lookup {
        match self.table.with_key(hint.id, hint.endpoints, &hint.upper) {
            Some(identity) => self.judge(headers, hint.endpoints, (hint.id, identity), epoch, now),
            None => self.lookup_again(headers, hint, epoch, now),
        }
    }

    /// [`Connections::lookup_hinted`], if the hint names another frame's entry, or none.
    fn lookup_again(&self, headers: &Headers, hint: &Hint, epoch: u64, now: Nanos) -> Lookup {
        match self.table.find(hint.endpoints, &hint.upper, hint.hash) {
            Some(found) => self.judge(headers, hint.endpoints, found, epoch, now),
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

    /// Records a connection that was established before this table was there, and had so many `frames`
    /// of each side. `headers` are those of the frame that began it, as far as they are known.
    ///
    /// # Errors
    /// As [`Connections::commit`].
    pub fn adopt(
        &mut self,
        headers: &Headers,
        commit: Commit,
        frames: [u64; 2],
        now: Nanos,
    ) -> Result<ConnectionId, DropReason> {
        let ConnectionId(id) = self.commit(headers, commit, 0, now)?;
        let Some(state) = self.table.identity(id).map(Identity::state) else {
            return Ok(ConnectionId::NONE);
        };
        if let Some(activity) = self.table.activity_mut(id) {
            activity.set_unseen(frames);
        }
        let [_, back] = frames;
        self.table.refresh(id, state.as_established(back > 0), now);
        Ok(ConnectionId(id))
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

    /// The live connection that a frame is of, if it is [`Established`] under a verdict of this epoch.
    pub fn established(&self, headers: &Headers, epoch: u64, now: Nanos) -> Option<Established> {
        let frame = FrameKey::of_frame(headers)?;
        let found = self.table.find_key(&frame.key, self.table.hash(&frame.key))?;
        self.established_of(headers, frame.endpoints(), found, epoch, now)
    }

    /// [`Connections::established`] of a frame that [`Connections::prepare`] was shown.
    ///
    /// `hint` must be this frame's, and of this table.
    pub fn established_hinted(
        &self,
        headers: &Headers,
        hint: &Hint,
        epoch: u64,
        now: Nanos,
    ) -> Option<Established> {
        let found = match self.table.with_key(hint.id, hint.endpoints, &hint.upper) {
            Some(identity) => (hint.id, identity),
            None => self.table.find(hint.endpoints, &hint.upper, hint.hash)?,
        };
        self.established_of(headers, hint.endpoints, found, epoch, now)
    }

    fn established_of(
        &self,
        headers: &Headers,
        endpoints: [u64; 2],
        (id, identity): (u32, &Identity),
        epoch: u64,
        now: Nanos,
    ) -> Option<Established> {
        let holds = identity.binds(identity.side(endpoints), &headers.key)
            && identity.is_of_epoch(epoch)
            && !self.table.has_expired(identity, now);
        if holds { self.as_established(id) } else { None }
    }

    /// A connection that began so, if it lives still, and is established still, under whatever policy.
    pub fn still_established(&self, id: ConnectionId, original: &FlowKey) -> Option<Established> {
        self.as_established(id.0).filter(|established| established.original == *original)
    }

    /// Whether a connection has been silent for its timeout, and only waits to be forgotten.
    pub fn has_timed_out(&self, id: ConnectionId, now: Nanos) -> bool {
        self.table.identity(id.0).is_some_and(|identity| self.table.has_expired(identity, now))
    }

    fn as_established(&self, id: u32) -> Option<Established> {
        let identity = self.table.identity(id)?;
        let stage = identity.state().stage()?;
        let (cause, would_drop) = self.verdict(ConnectionId(id));
        if would_drop.is_some() {
            return None;
        }
        let activity = self.table.activity(id)?;
        Some(Established {
            id: ConnectionId(id),
            original: self.original(ConnectionId(id))?,
            output: identity.hit(id, Side::Original).output,
            cause,
            frames: activity.frames(),
            stage,
            answer: activity.answer(),
            is_early: activity.has_taken_syn_data(),
        })
    }

    /// Counts what was forwarded of a side elsewhere, on this connection's verdict. It has kept the
    /// connection alive, if it would have here, and TCP's numbers catch up; its handshake, or its end, may have been completed so.
    pub fn credit(&mut self, id: ConnectionId, side: Side, credit: &Credit, now: Nanos) {
        let Some(state) = self.table.identity(id.0).map(Identity::state) else { return };
        let Some(activity) = self.table.activity_mut(id.0) else { return };
        if let Some(state) = activity.credit(state, side, credit) {
            self.table.refresh(id.0, state, now);
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

    /// Forgets what has timed out, at most `limit` of them. Returns how many. Cost: one step per
    /// connection forgotten, and a bounded number of looks at lists in which nothing has.
    pub fn expire(&mut self, now: Nanos, limit: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < limit
            && let Some(id) = self.table.next_expired(now)
        {
            self.end(id);
            forgotten += 1;
        }
        forgotten
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

    /// Makes sure that one more of a port's fits. If a bound was lowered below what lives, nothing is
    /// evicted for it.
    fn make_room(&mut self, port: PortId, now: Nanos) -> Result<(), DropReason> {
        let Limits { connections, per_port, .. } = self.limits;
        let max = connections as usize;
        if self.held(port) >= per_port {
            self.expire_of(port, (self.held(port) - per_port + 1).min(EXPIRED_PER_COMMIT), now);
        }
        if self.len() >= max {
            self.expire(now, (self.len() - max + 1).min(EXPIRED_PER_COMMIT as usize));
        }
        if self.len() >= max {
            self.expire_of(port, 1, now);
        }
        let (held, len) = (self.held(port), self.len());
        if held >= per_port {
            let may_evict = held == per_port && len <= max;
            let has_room = may_evict && self.evict_from(port, true, now);
            return if has_room { Ok(()) } else { Err(DropReason::PortConnectionsFull) };
        }
        if len < max || len == max && self.evict_fairly(port, now) {
            Ok(())
        } else {
            Err(DropReason::ConnectionsFull)
        }
    }

    fn held(&self, port: PortId) -> u32 {
        self.table.shares().connections(port)
    }

    /// Makes a full table's room for a port: see the module's text on fair shares.
    fn evict_fairly(&mut self, port: PortId, now: Nanos) -> bool {
        let shares = self.table.shares();
        let fair = self.limits.connections / shares.active_with(port);
        let other = if shares.connections(port) < fair { shares.port_above(fair) } else { None };
        match other {
            Some(other) => self.evict_from(other, false, now),
            None => self.evict_from(port, true, now),
        }
    }

    /// Evicts what gives way first of a port's. `idle`: and what is silent.
    fn evict_from(&mut self, port: PortId, idle: bool, now: Nanos) -> bool {
        let oldest = |class| self.table.shares().oldest(port, class);
        let is_idle = |&id: &u32| {
            let last = self.table.identity(id).map(Identity::last);
            last.is_some_and(|last| Stamp::of(now).since(last) > IDLE)
        };
        let silent = || Class::EVICTABLE_IF_IDLE.into_iter().filter_map(oldest).find(is_idle);
        let victim = Class::EVICTABLE.into_iter().find_map(oldest);
        let victim = victim.or_else(|| if idle { silent() } else { None });
        if let Some(id) = victim {
            self.end(id);
            self.stats.evicted += 1;
        }
        victim.is_some()
    }

    /// Forgets up to `limit` of a port's connections that have timed out.
    fn expire_of(&mut self, port: PortId, limit: u32, now: Nanos) {
        for _ in 0..limit {
            let expired = |class| self.table.expired_of(port, class, now);
            let Some(id) = Class::ALL.into_iter().find_map(expired) else { return };
            self.end(id);
        }
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
