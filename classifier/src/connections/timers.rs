//! Which connection times out next: one list per timeout, least recently used first.
//!
//! All connections of a [`Class`] share one timeout, so the order in which they were last used is
//! the order in which they end, and expiry looks at list heads only. The lists run through the
//! entries themselves.
//!
//! Moving an entry to its list's end touches three entries. Frames are many and timeouts are
//! seconds, so order is kept by whole [ticks](tick) only: a second frame within a tick moves
//! nothing. Within a tick a list is unordered, and an expired entry may wait that long behind
//! others; lookups do not find it meanwhile.

use super::entry::NIL;
use super::table::Slab;
use crate::snapshot::Timeouts;
use crate::time::Nanos;

/// Connections that share a timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    TcpHandshake,
    TcpEstablished,
    TcpClosing,
    TcpTimeWait,
    TcpReset,
    UdpSingle,
    UdpBoth,
    Icmp,
    OtherSingle,
    OtherBoth,
}

impl Class {
    /// All, in the order of their numeric values.
    pub(super) const ALL: [Self; 10] = [
        Self::TcpHandshake,
        Self::TcpEstablished,
        Self::TcpClosing,
        Self::TcpTimeWait,
        Self::TcpReset,
        Self::UdpSingle,
        Self::UdpBoth,
        Self::Icmp,
        Self::OtherSingle,
        Self::OtherBoth,
    ];

    /// Those that give way to a new connection when the table is full, first to last. What both
    /// sides have spoken in and nobody has closed never does.
    pub(super) const EVICTABLE: [Self; 7] = [
        Self::TcpHandshake,
        Self::UdpSingle,
        Self::OtherSingle,
        Self::Icmp,
        Self::TcpReset,
        Self::TcpTimeWait,
        Self::TcpClosing,
    ];

    /// How long a connection of this class may stay silent, in nanoseconds.
    pub(super) const fn timeout(self, timeouts: &Timeouts) -> u64 {
        let secs = match self {
            Self::TcpHandshake => timeouts.tcp_handshake,
            Self::TcpEstablished => timeouts.tcp_established,
            Self::TcpClosing => timeouts.tcp_closing,
            Self::TcpTimeWait => timeouts.tcp_time_wait,
            Self::TcpReset => timeouts.tcp_reset,
            Self::UdpSingle => timeouts.udp_single,
            Self::UdpBoth => timeouts.udp_both,
            Self::Icmp => timeouts.icmp,
            Self::OtherSingle | Self::OtherBoth => timeouts.other,
        };
        Nanos::from_secs(secs as u64).0
    }
}

/// The tick that a time lies in: 2³⁰ ns, about a second.
pub(super) const fn tick(time: Nanos) -> u64 {
    time.0 >> 30
}

#[derive(Clone, Copy)]
struct Ends {
    oldest: u32,
    newest: u32,
}

/// The lists' ends, one pair per class.
pub(super) struct Queues {
    ends: [Ends; Class::ALL.len()],
}

impl Queues {
    pub(super) const fn new() -> Self {
        Self { ends: [Ends { oldest: NIL, newest: NIL }; Class::ALL.len()] }
    }

    /// The least recently used connection of a class.
    pub(super) fn oldest(&self, class: Class) -> Option<u32> {
        let ends = self.ends.get(class as usize)?;
        (ends.oldest != NIL).then_some(ends.oldest)
    }

    /// The most recently used connection of a class.
    #[cfg(test)]
    pub(super) fn newest(&self, class: Class) -> Option<u32> {
        let ends = self.ends.get(class as usize)?;
        (ends.newest != NIL).then_some(ends.newest)
    }

    /// Appends an entry that is in no list.
    pub(super) fn push(&mut self, slab: &mut Slab, class: Class, id: u32) {
        let Some(ends) = self.ends.get_mut(class as usize) else { return };
        let previous = ends.newest;
        ends.newest = id;
        match slab.get_mut(previous) {
            Some(entry) => entry.next = id,
            None => ends.oldest = id,
        }
        if let Some(entry) = slab.get_mut(id) {
            entry.previous = previous;
            entry.next = NIL;
        }
    }

    /// Takes an entry out of the list of its class.
    pub(super) fn unlink(&mut self, slab: &mut Slab, class: Class, id: u32) {
        let Some(ends) = self.ends.get_mut(class as usize) else { return };
        let Some(entry) = slab.get(id) else { return };
        let (previous, next) = (entry.previous, entry.next);
        match slab.get_mut(previous) {
            Some(entry) => entry.next = next,
            None => ends.oldest = next,
        }
        match slab.get_mut(next) {
            Some(entry) => entry.previous = previous,
            None => ends.newest = previous,
        }
    }
}
