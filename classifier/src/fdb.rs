//! The MAC table: at which port a learned address was last seen.
//!
//! Only routers' ports learn, and never an address that the snapshot gives to a workload: those are
//! fixed and cannot be moved by any frame. A learned address that is seen at another router's port
//! moves there, and the move is counted.
//!
//! Each port has a share of [`MAX_PER_PORT`] addresses. When it is used up, further addresses are not
//! learned: frames to them go to all router ports of their VLAN, as before they were seen, and the
//! addresses that are known stay known. Time is an argument; [`Fdb::expire`] forgets a bounded
//! number per call, and [`Fdb::port`] ignores what has aged whether or not it was forgotten yet.

use hashbrown::HashTable;

use crate::hash::KeyedHash;
use crate::mac::MacAddr;
use crate::snapshot::PortId;
use crate::time::Nanos;

/// Most addresses that one port may have learned.
pub const MAX_PER_PORT: u32 = 4_096;

/// Learned addresses of one worker.
pub struct Fdb {
    ageing_ns: u64,
    hash: KeyedHash,
    /// Positions in `entries`, by VLAN and address.
    index: HashTable<u32>,
    entries: Vec<Learned>,
    /// Number of entries by port.
    shares: Vec<u32>,
    /// Where the next [`Fdb::expire`] begins.
    hand: usize,
    moves: u64,
}

#[derive(Clone, Copy)]
struct Learned {
    station: u64,
    port: PortId,
    last: Nanos,
}

impl Fdb {
    /// An empty table whose entries live `ageing_secs` without being seen.
    pub fn new(ageing_secs: u32) -> Self {
        Self {
            ageing_ns: Nanos::from_secs(ageing_secs.into()).0,
            hash: KeyedHash::random(),
            index: HashTable::new(),
            entries: Vec::new(),
            shares: Vec::new(),
            hand: 0,
            moves: 0,
        }
    }

    /// Changes how long entries live.
    pub fn set_ageing(&mut self, ageing_secs: u32) {
        self.ageing_ns = Nanos::from_secs(ageing_secs.into()).0;
    }

    /// The port that `mac` was last seen at in `vlan`, if that is not too long ago.
    pub fn port(&self, vlan: u16, mac: MacAddr, now: Nanos) -> Option<PortId> {
        let learned = &self.entries[self.find(station(vlan, mac))?];
        self.is_live(learned, now).then_some(learned.port)
    }

    /// Notes that `mac` sent from `port` in `vlan`.
    pub fn learn(&mut self, vlan: u16, mac: MacAddr, port: PortId, now: Nanos) {
        let station = station(vlan, mac);
        match self.find(station) {
            Some(at) if self.entries[at].port == port => self.entries[at].last = now,
            Some(at) => self.change_port(at, port, now),
            None => self.insert(Learned { station, port, last: now }),
        }
    }

    /// Forgets every address for which `keep` says no. Cost: a walk over all of them.
    pub fn retain(&mut self, keep: impl Fn(u16, MacAddr, PortId) -> bool) {
        for at in (0..self.entries.len()).rev() {
            let Learned { station, port, .. } = self.entries[at];
            let (vlan, mac) = parts(station);
            if !keep(vlan, mac, port) {
                self.remove(at);
            }
        }
    }

    /// Looks at up to `limit` entries and forgets those that have aged.
    pub fn expire(&mut self, now: Nanos, limit: usize) {
        for _ in 0..limit.min(self.entries.len()) {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            match self.entries.get(self.hand) {
                Some(learned) if !self.is_live(learned, now) => self.remove(self.hand),
                _ => self.hand += 1,
            }
        }
    }

    /// How often an address was seen at another port than before.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// Addresses known, aged ones that were not forgotten yet included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn is_live(&self, learned: &Learned, now: Nanos) -> bool {
        now.since(learned.last) < self.ageing_ns
    }

    fn find(&self, station: u64) -> Option<usize> {
        let hash = self.hash.hash_word(station);
        let at = self.index.find(hash, |&at| self.entries[at as usize].station == station)?;
        Some(*at as usize)
    }

    fn change_port(&mut self, at: usize, port: PortId, now: Nanos) {
        let aged = !self.is_live(&self.entries[at], now);
        if *self.share(port) >= MAX_PER_PORT {
            return;
        }
        let from = self.entries[at].port;
        *self.share(from) -= 1;
        *self.share(port) += 1;
        self.entries[at].port = port;
        self.entries[at].last = now;
        self.moves += u64::from(!aged);
    }

    fn insert(&mut self, learned: Learned) {
        let share = self.share(learned.port);
        if *share >= MAX_PER_PORT {
            return;
        }
        *share += 1;
        let at = self.entries.len() as u32;
        self.entries.push(learned);
        let Self { hash, index, entries, .. } = self;
        index.insert_unique(hash.hash_word(learned.station), at, |&at| {
            hash.hash_word(entries[at as usize].station)
        });
    }

    /// Forgets the entry at `at`; the last entry takes its place.
    fn remove(&mut self, at: usize) {
        let gone = self.entries[at];
        *self.share(gone.port) -= 1;
        self.unindex(gone.station, at);
        self.entries.swap_remove(at);
        if let Some(moved) = self.entries.get(at) {
            let (station, old) = (moved.station, self.entries.len());
            let hash = self.hash.hash_word(station);
            if let Some(position) = self.index.find_mut(hash, |&p| p as usize == old) {
                *position = at as u32;
            }
        }
    }

    fn unindex(&mut self, station: u64, at: usize) {
        let hash = self.hash.hash_word(station);
        if let Ok(entry) = self.index.find_entry(hash, |&position| position as usize == at) {
            entry.remove();
        }
    }

    fn share(&mut self, port: PortId) -> &mut u32 {
        let at = usize::from(port.0);
        if at >= self.shares.len() {
            self.shares.resize(at + 1, 0);
        }
        &mut self.shares[at]
    }
}

/// A VLAN and an address in one word.
fn station(vlan: u16, mac: MacAddr) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | u64::from(vlan) << 48
}

/// The inverse of [`station`].
fn parts(station: u64) -> (u16, MacAddr) {
    let [_, _, a, b, c, d, e, f] = station.to_be_bytes();
    ((station >> 48) as u16, MacAddr([a, b, c, d, e, f]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn numbered(n: u32) -> MacAddr {
        let [a, b, c, d] = n.to_be_bytes();
        MacAddr([2, 1, a, b, c, d])
    }

    #[test]
    fn addresses_age_and_are_kept_by_being_seen() {
        let mut fdb = Fdb::new(10);
        fdb.learn(0, MAC, PortId(1), Nanos::from_secs(0));
        assert_eq!(fdb.port(0, MAC, Nanos::from_secs(9)), Some(PortId(1)));
        assert_eq!(fdb.port(7, MAC, Nanos::from_secs(9)), None);
        fdb.learn(0, MAC, PortId(1), Nanos::from_secs(9));
        assert_eq!(fdb.port(0, MAC, Nanos::from_secs(18)), Some(PortId(1)));
        assert_eq!(fdb.port(0, MAC, Nanos::from_secs(19)), None);
        fdb.expire(Nanos::from_secs(19), 10);
        assert!(fdb.is_empty());
    }

    #[test]
    fn a_move_is_followed_and_counted() {
        let mut fdb = Fdb::new(10);
        fdb.learn(0, MAC, PortId(1), Nanos(0));
        fdb.learn(0, MAC, PortId(2), Nanos(1));
        assert_eq!((fdb.port(0, MAC, Nanos(2)), fdb.moves()), (Some(PortId(2)), 1));
        fdb.learn(0, MAC, PortId(1), Nanos::from_secs(20));
        assert_eq!(fdb.moves(), 1, "an aged address is new, not moved");
    }

    #[test]
    fn a_port_cannot_use_more_than_its_share() {
        let mut fdb = Fdb::new(10);
        fdb.learn(0, MAC, PortId(1), Nanos(0));
        for n in 0..3 * MAX_PER_PORT {
            fdb.learn(0, numbered(n), PortId(2), Nanos(0));
        }
        assert_eq!(fdb.len() as u32, MAX_PER_PORT + 1);
        assert_eq!(fdb.port(0, MAC, Nanos(1)), Some(PortId(1)));
        fdb.learn(0, MAC, PortId(2), Nanos(1));
        assert_eq!(fdb.port(0, MAC, Nanos(1)), Some(PortId(1)), "no room to move to");
    }

    #[test]
    fn forgetting_some_keeps_the_others_findable() {
        let mut fdb = Fdb::new(10);
        for n in 0..100 {
            fdb.learn(0, numbered(n), PortId(n as u16 % 3), Nanos(0));
        }
        fdb.retain(|_, _, port| port != PortId(1));
        for n in 0..100 {
            let expected = PortId(n as u16 % 3);
            let found = fdb.port(0, numbered(n), Nanos(0));
            assert_eq!(found, (expected != PortId(1)).then_some(expected));
        }
        fdb.expire(Nanos::from_secs(11), 1_000);
        assert!(fdb.is_empty());
    }
}
