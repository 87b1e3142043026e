//! Room for new connections, and what gives way to them.
//!
//! At most [`Limits::connections`], and of those that one port's frames began at most
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

use super::entry::Identity;
use super::timers::{Class, IDLE, Stamp};
use super::{Connections, Limits};
use crate::snapshot::PortId;
use crate::time::Nanos;
use crate::verdict::DropReason;

/// Most expired connections that one commit into a full table removes: a bound on its time.
const EXPIRED_PER_COMMIT: u32 = 64;

impl Connections {
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

    /// Makes sure that one more of a port's fits. If a bound was lowered below what lives, nothing is
    /// evicted for it.
    pub(super) fn make_room(&mut self, port: PortId, now: Nanos) -> Result<(), DropReason> {
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
}
