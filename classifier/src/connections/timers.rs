//! When connections time out: classes, coarse time, and a wheel.
//!
//! All connections of a [`Class`] share one timeout, so in a list of them, least recently used first,
//! only the head needs to be looked at. Every port has such [lists](super::shares), and the [`Wheel`]
//! says which of them to look at when: a list stands in it under the time at which its head, as it
//! was when the list was last looked at, times out. So expiry costs a step per connection that has
//! timed out and one now and then per list, however many connections and ports there are.
//!
//! Entries keep time in [`Stamp`]s of 2²⁴ ns. A connection lives at least its timeout, and at most two
//! stamps (34 ms) longer. Lists keep their order by ticks of 2³⁰ ns only: moving an entry to its
//! list's end touches three, and within a tick it would gain nothing. So within a tick a list is
//! unordered, and what has timed out may wait a tick or two behind others until it is forgotten;
//! lookups do not find it meanwhile.

use super::entry::State;
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

    /// Those that give way under pressure, first to last: what one side alone can make, then what is
    /// over.
    pub(super) const EVICTABLE: [Self; 7] = [
        Self::TcpHandshake,
        Self::UdpSingle,
        Self::OtherSingle,
        Self::Icmp,
        Self::TcpReset,
        Self::TcpTimeWait,
        Self::TcpClosing,
    ];

    /// Those that give way to their own port's newcomers, last of all, when they have been silent for
    /// [`IDLE`].
    pub(super) const EVICTABLE_IF_IDLE: [Self; 2] = [Self::UdpBoth, Self::OtherBoth];

    pub(super) fn is_evictable(self) -> bool {
        Self::EVICTABLE.contains(&self)
    }

    /// How long a connection of this class may stay silent, in seconds.
    const fn timeout(self, timeouts: &Timeouts) -> u32 {
        match self {
            Self::TcpHandshake => timeouts.tcp_handshake,
            Self::TcpEstablished => timeouts.tcp_established,
            Self::TcpClosing => timeouts.tcp_closing,
            Self::TcpTimeWait => timeouts.tcp_time_wait,
            Self::TcpReset => timeouts.tcp_reset,
            Self::UdpSingle => timeouts.udp_single,
            Self::UdpBoth => timeouts.udp_both,
            Self::Icmp => timeouts.icmp,
            Self::OtherSingle | Self::OtherBoth => timeouts.other,
        }
    }
}

/// After this long a silence UDP may be forgotten under pressure (RFC 4787 REQ-5: not sooner).
pub(super) const IDLE: u32 = stamps(120);

/// A point in time, in units of 2²⁴ ns (17 ms). Wraps after two years, so it means something only
/// beside another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(u32);

impl Stamp {
    pub(super) const fn of(now: Nanos) -> Self {
        Self((now.0 >> 24) as u32)
    }

    /// Units since `earlier`; none if that is later.
    pub(super) const fn since(self, earlier: Self) -> u32 {
        let units = self.0.wrapping_sub(earlier.0);
        if units.cast_signed() < 0 { 0 } else { units }
    }

    /// Whether both lie in one tick.
    pub(super) const fn is_in_tick_of(self, other: Self) -> bool {
        self.0 >> 6 == other.0 >> 6
    }

    /// When that was, as seen from a time that is not much earlier.
    pub(super) const fn before(self, now: Nanos) -> Nanos {
        let units = Self::of(now).since(self) as u64;
        Nanos((now.0 >> 24).saturating_sub(units) << 24)
    }
}

/// Seconds in units of [`Stamp`], rounded up. At most half a year, or differences would wrap.
const fn stamps(secs: u32) -> u32 {
    let units = Nanos::from_secs(secs as u64).0.div_ceil(1 << 24);
    if units < 1 << 30 { units as u32 } else { 1 << 30 }
}

/// The tick that a time lies in: 2³⁰ ns, about a second.
pub(super) const fn tick(time: Nanos) -> u64 {
    time.0 >> 30
}

/// How long a connection may stay silent, by its state's code.
pub(super) struct Patience([u32; State::CODES]);

impl Patience {
    pub(super) fn new(timeouts: &Timeouts) -> Self {
        let mut patience = [0; State::CODES];
        for (code, units) in (0..).zip(&mut patience) {
            *units = stamps(State::of_code(code).class().timeout(timeouts));
        }
        Self(patience)
    }

    /// Whether a connection in this state, last used then, has timed out.
    pub(super) fn is_over(&self, code: u8, last: Stamp, now: Stamp) -> bool {
        now.0.wrapping_sub(last.0).cast_signed() > self.of(code).cast_signed()
    }

    /// The tick in which it will have.
    pub(super) fn due(&self, code: u8, last: Stamp, now: Nanos) -> u64 {
        let units = (last.before(now).0 >> 24) + u64::from(self.of(code)) + 1;
        units >> 6
    }

    fn of(&self, code: u8) -> u32 {
        let Self(units) = self;
        units[usize::from(code) % State::CODES]
    }
}

/// Number of slots of the wheel. What is due later is looked at sooner, and put back.
const SLOTS: u64 = 256;

/// Lists by the tick in which to look at them.
///
/// Invariant: what is in slot *n* is due in a tick from `at` to `at + SLOTS - 1` that is *n* modulo
/// [`SLOTS`].
pub(super) struct Wheel {
    slots: Vec<Vec<u32>>,
    /// The first tick that is not over with.
    at: u64,
    len: usize,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), at: 0, len: 0 }
    }

    /// Puts a list that is not in the wheel under a tick.
    pub(super) fn insert(&mut self, list: u32, tick: u64) {
        let tick = tick.clamp(self.at, self.at + SLOTS - 1);
        if let Some(slot) = self.slots.get_mut((tick % SLOTS) as usize) {
            slot.push(list);
            self.len += 1;
        }
    }

    /// Takes out a list that is due in a tick before this one.
    pub(super) fn take(&mut self, before: u64) -> Option<u32> {
        // Slots of more than one revolution ago are those of the last one.
        self.at = self.at.max(before.saturating_sub(SLOTS));
        while self.at < before && self.len > 0 {
            if let Some(list) = self.slots.get_mut((self.at % SLOTS) as usize).and_then(Vec::pop) {
                self.len -= 1;
                return Some(list);
            }
            self.at += 1;
        }
        self.at = self.at.max(if self.len == 0 { before } else { 0 });
        None
    }

    /// Bytes held.
    pub(super) fn memory(&self) -> usize {
        let slots: usize = self.slots.iter().map(Vec::capacity).sum();
        slots * size_of::<u32>() + self.slots.capacity() * size_of::<Vec<u32>>()
    }

    /// Takes out all. What is put back at once under an early tick is due in this one.
    pub(super) fn take_all(&mut self) -> Vec<u32> {
        self.len = 0;
        self.at = self.at.saturating_sub(1);
        self.slots.iter_mut().flat_map(std::mem::take).collect()
    }
}
