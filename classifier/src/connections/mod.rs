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
//! **How many.** At most `max`. When full, what has timed out goes first, then the least recently
//! used half-open TCP, then UDP and other protocols of one direction, ICMP queries, and TCP that was
//! reset or closed. Established TCP, and UDP and other protocols of both directions, stay, and the
//! newcomer is refused with [`DropReason::ConnectionsFull`].
//!
//! **What it costs.** 152 bytes an entry and five to eleven for the index: at most 160 in all when
//! full ([`table`]). Lookups allocate nothing and change nothing; frames change one entry, and its
//! neighbours by age once a second. Nothing pauses for growth or expiry.
//!
//! Invariants: an entry is found by its key's one hash and stands in its timeout's list exactly
//! once; `created - ended` is the number of live entries.

mod entry;
mod key;
mod table;
mod tcp;
#[cfg(test)]
mod tests;
mod timers;

use std::hash::{BuildHasher, RandomState};

use self::entry::Entry;
use self::key::FrameKey;
use self::table::Table;
use self::tcp::{Control, Segment, Step};
use self::timers::Class;
use crate::extract::{Embedded, Headers};
use crate::key::FlowKey;
use crate::mac::MacAddr;
use crate::snapshot::{PortId, Timeouts};
use crate::time::Nanos;
use crate::verdict::{Cause, DropReason};
use crate::wire::protocol;

/// Most expired connections that one commit into a full table removes: a bound on its time.
const EXPIRED_PER_COMMIT: usize = 64;

/// Most frames that [`Connections::prepare`] looks ahead.
pub const BATCH: usize = 64;

/// All live connections of one worker. Bounded.
pub struct Connections {
    table: Table,
    max: u32,
    timeouts: Timeouts,
    stats: ConnectionStats,
    /// The class that the next [`Connections::expire`] begins with.
    turn: usize,
}

/// Running totals of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Connections begun.
    pub created: u64,
    /// Connections removed, for whatever reason.
    pub ended: u64,
    /// Those of `ended` that had to give way to others because the table was full.
    pub evicted: u64,
    /// Connections refused because the table was full.
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
    /// Who allowed it.
    pub cause: Cause,
    /// Set if it lives only because of learn or audit mode.
    pub would_drop: Option<DropReason>,
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

/// Frames of one batch, looked up ahead of their turn.
///
/// A table of a million connections does not fit into any cache, so a lookup waits for memory two or
/// three times. [`Connections::prepare`] takes these steps for all frames of a batch at once, so that
/// the waits overlap; [`Connections::lookup_hinted`] then finds everything at hand.
///
/// A hint stays right whatever happens to the table in between: it saves time or nothing.
pub struct Hints {
    hints: [Hint; BATCH],
    len: usize,
}

/// What [`Connections::prepare`] found out about one frame.
#[derive(Clone, Copy, Debug)]
pub struct Hint {
    /// `None` for frames that are not tracked.
    frame: Option<FrameKey>,
    hash: u64,
    /// The entry that had the frame's key then.
    id: u32,
}

impl Hint {
    /// Whether the frame's connection was in the table then.
    pub const fn is_found(&self) -> bool {
        self.id != entry::NIL
    }
}

impl Hints {
    /// No hints.
    pub const fn new() -> Self {
        Self { hints: [Hint { frame: None, hash: 0, id: entry::NIL }; BATCH], len: 0 }
    }

    /// The hint for the frame that stood at this place of the batch.
    pub fn get(&self, at: usize) -> Option<&Hint> {
        self.hints.get(..self.len)?.get(at)
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
    /// An empty table of at most `max` connections. Its hash is seeded by the operating system's
    /// randomness, as the standard library's maps are.
    pub fn new(max: u32, timeouts: Timeouts) -> Self {
        Self::with_seed(max, timeouts, RandomState::new().hash_one(max))
    }

    /// Like [`Connections::new`], with a seed of the caller's. Whoever knows the seed can slow the
    /// table down.
    pub fn with_seed(max: u32, timeouts: Timeouts, seed: u64) -> Self {
        let table = Table::new(max, seed);
        Self { table, max, timeouts, stats: ConnectionStats::default(), turn: 0 }
    }

    /// Applies other limits. Timeouts hold at once, for live connections too. If more than `max`
    /// are live they stay, and new ones are refused until enough have ended.
    pub fn configure(&mut self, max: u32, timeouts: Timeouts) {
        self.max = max;
        self.timeouts = timeouts;
    }

    /// Finds the connection of a frame. Reads only: state moves in [`Connections::observe`], so a
    /// frame that is then dropped leaves no trace.
    ///
    /// `headers.key.vlan` is the VLAN domain. Cost: one hash, one probe, one entry; no allocation.
    pub fn lookup(&self, headers: &Headers, epoch: u64, now: Nanos) -> Lookup {
        let Some(frame) = FrameKey::of_frame(headers) else { return Lookup::Miss };
        self.judge(headers, self.find_live(&frame, now), &frame, epoch)
    }

    /// Looks up to [`BATCH`] frames ahead, for [`Connections::lookup_hinted`]; further ones get no
    /// hint. Reads only.
    pub fn prepare<'a>(&self, frames: impl IntoIterator<Item = &'a Headers>, hints: &mut Hints) {
        hints.len = 0;
        for (hint, headers) in hints.hints.iter_mut().zip(frames) {
            let frame = FrameKey::of_frame(headers);
            let hash = frame.map_or(0, |frame| self.table.hash(&frame.key));
            *hint = Hint { frame, hash, id: entry::NIL };
            hints.len += 1;
        }
        for hint in hints.hints.iter_mut().take(hints.len) {
            if let Some(frame) = &hint.frame
                && let Some((id, _)) = self.table.find_hashed(&frame.key, hint.hash)
            {
                hint.id = id;
            }
        }
    }

    /// [`Connections::lookup`] of a frame that [`Connections::prepare`] was shown: the same answer,
    /// whatever was committed, observed, removed or expired since.
    ///
    /// `hint` must be this frame's, and of this table.
    pub fn lookup_hinted(&self, headers: &Headers, hint: &Hint, epoch: u64, now: Nanos) -> Lookup {
        let Some(frame) = &hint.frame else { return Lookup::Miss };
        debug_assert_eq!(hint.frame, FrameKey::of_frame(headers));
        let hinted = self.table.get(hint.id).filter(|entry| entry.key == frame.key);
        let found = match hinted {
            Some(entry) => Some((hint.id, entry)),
            None => self.table.find_hashed(&frame.key, hint.hash),
        };
        let live = found.filter(|(_, entry)| !self.has_expired(entry, now));
        self.judge(headers, live, frame, epoch)
    }

    fn judge(
        &self,
        headers: &Headers,
        found: Option<(u32, &Entry)>,
        frame: &FrameKey,
        epoch: u64,
    ) -> Lookup {
        let Some((id, entry)) = found else { return Lookup::Miss };
        let side = entry.side(frame.turned);
        if !entry.binds(side, &headers.key) {
            return Lookup::Miss;
        }
        match entry.judge(side, headers) {
            Some(Step::Invalid) => Lookup::Invalid(DropReason::TcpState),
            Some(Step::Anew) => Lookup::Miss,
            Some(Step::To(_) | Step::Aside) | None => hit(entry, id, side, epoch),
        }
    }

    /// Finds the connection that an ICMP error's embedded packet belongs to. The error must go to
    /// the packet's sender: `Hit::side` is the side the *error* comes from, `Hit::output` the port
    /// of the embedded packet's sender. Whether the error may come by its own port is the caller's
    /// to decide: routers on the way send them too.
    pub fn lookup_embedded(
        &self,
        embedded: &Embedded,
        vlan: u16,
        epoch: u64,
        now: Nanos,
    ) -> Lookup {
        let Some(frame) = FrameKey::of_embedded(embedded, vlan) else { return Lookup::Miss };
        let Some((id, entry)) = self.find_live(&frame, now) else { return Lookup::Miss };
        hit(entry, id, entry.side(frame.turned).other(), epoch)
    }

    /// The flow key of the frame that began a connection, its TCP flags included. `None` if it has
    /// ended.
    pub fn original(&self, id: ConnectionId) -> Option<FlowKey> {
        self.table.get(id.0).map(Entry::original)
    }

    /// Whether this frame may begin a connection: any UDP, ICMP request or unknown protocol; a TCP
    /// SYN without ACK, or any non-RST TCP if `midstream`. An ICMP reply may not, or the requests it
    /// seems to answer would pass unjudged; it and what is not tracked at all have only their own
    /// verdict.
    pub fn may_begin(headers: &Headers, midstream: bool) -> bool {
        let Some(frame) = FrameKey::of_frame(headers) else { return false };
        match frame.key.protocol {
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
    /// [`DropReason::ConnectionsFull`] when the bound is reached and nothing may be evicted.
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
        if let Some((old, _)) = self.table.find(&frame.key) {
            self.end(old);
        } else if !self.make_room(now) {
            self.stats.refused += 1;
            return Err(DropReason::ConnectionsFull);
        }
        self.stats.created += 1;
        Ok(ConnectionId(self.table.insert(Entry::begin(frame, headers, &commit, bytes, now))))
    }

    /// Lets a forwarded frame of `bytes` bytes move its connection's state and counters.
    pub fn observe(&mut self, hit: &Hit, headers: &Headers, bytes: usize, now: Nanos) {
        let ConnectionId(id) = hit.id;
        let Some(entry) = self.table.get_mut(id) else { return };
        if let Some(state) = entry.observe(hit.side, headers, bytes) {
            self.table.touch(id, state, now);
        }
    }

    /// Renews a stale entry under a new verdict.
    pub fn refresh(&mut self, id: ConnectionId, commit: Commit) {
        if let Some(entry) = self.table.get_mut(id.0) {
            entry.renew(&commit);
        }
    }

    /// Forgets a connection.
    pub fn remove(&mut self, id: ConnectionId) {
        self.end(id.0);
    }

    /// Forgets what has timed out, at most `limit` of them. Returns how many. Cost: one step per
    /// connection forgotten, and one per timeout.
    pub fn expire(&mut self, now: Nanos, limit: usize) -> usize {
        let mut forgotten = 0;
        self.turn = (self.turn + 1) % Class::ALL.len();
        for class in Class::ALL.into_iter().cycle().skip(self.turn).take(Class::ALL.len()) {
            while forgotten < limit
                && let Some(id) = self.oldest_if_expired(class, now)
            {
                self.end(id);
                forgotten += 1;
            }
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
        let slots = self.table.slab().slots();
        let last = from.saturating_add(limit.max(1).saturating_mul(16)).min(slots);
        let mut page = Vec::new();
        let mut at = from;
        while at < last && page.len() < limit.max(1) {
            let entry = u32::try_from(at).ok().and_then(|id| self.table.get(id));
            page.extend(entry.filter(|entry| !self.has_expired(entry, now)).map(Entry::info));
            at += 1;
        }
        (page, (at < slots).then_some(at))
    }

    /// The entry of a key, unless it has timed out.
    fn find_live(&self, frame: &FrameKey, now: Nanos) -> Option<(u32, &Entry)> {
        self.table.find(&frame.key).filter(|(_, entry)| !self.has_expired(entry, now))
    }

    fn has_expired(&self, entry: &Entry, now: Nanos) -> bool {
        now.since(entry.last) >= entry.state.class().timeout(&self.timeouts)
    }

    fn oldest_if_expired(&self, class: Class, now: Nanos) -> Option<u32> {
        let (id, entry) = self.table.oldest(class)?;
        self.has_expired(entry, now).then_some(id)
    }

    /// Makes sure that one more fits. What has timed out goes first, then what may be evicted; if
    /// the bound was lowered below what lives, nothing is evicted.
    fn make_room(&mut self, now: Nanos) -> bool {
        let max = self.max as usize;
        if self.len() < max {
            return true;
        }
        self.expire(now, (self.len() - max + 1).min(EXPIRED_PER_COMMIT));
        if self.len() != max {
            return self.len() < max;
        }
        let oldest = |class| self.table.oldest(class).map(|(id, _)| id);
        let victim = Class::EVICTABLE.into_iter().find_map(oldest);
        if let Some(id) = victim {
            self.end(id);
            self.stats.evicted += 1;
        }
        victim.is_some()
    }

    fn end(&mut self, id: u32) {
        if self.table.remove(id) {
            self.stats.ended += 1;
        }
    }
}

fn hit(entry: &Entry, id: u32, side: Side, epoch: u64) -> Lookup {
    let hit = entry.hit(id, side);
    if entry.is_of_epoch(epoch) { Lookup::Current(hit) } else { Lookup::Stale(hit) }
}
