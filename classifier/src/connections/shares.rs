//! What each port has in the table: its connections by class, least recently used first.
//!
//! A connection is charged to the port that its first frame came in by. The lists serve expiry, which
//! looks at their heads when the [`Wheel`] says so, and eviction, which takes from a port what gives
//! way first. They run through the entries themselves; a port's own record is made when it begins
//! its first connection.
//!
//! Ports that have anything evictable also stand in lists by the magnitude of what they hold, so that
//! the one who holds too much is found without asking all.
//!
//! Invariant: every live entry is in the list of its payer and class, once; every list that is not
//! empty is in the wheel, once, under a tick that is not after the one in which its head times out.

use super::entry::NIL;
use super::slab::Slab;
use super::timers::{Class, Wheel};
use crate::snapshot::PortId;

/// Number of classes.
const CLASSES: usize = Class::ALL.len();

/// Magnitudes: the binary logarithms of counts.
const MAGNITUDES: usize = 32;

/// Most ports of one magnitude that are asked whether they hold too much.
const ASKED: usize = 16;

/// All ports' connections.
pub(super) struct Shares {
    /// By port number.
    shares: Vec<Option<Box<Share>>>,
    /// Ports with connections.
    active: u32,
    wheel: Wheel,
    /// The first port of each magnitude.
    magnitudes: [Option<PortId>; MAGNITUDES],
}

/// One port's connections.
struct Share {
    lists: [List; CLASSES],
    connections: u32,
    /// Those in classes that are evictable.
    evictable: u32,
    /// Where it stands among the ports with anything evictable.
    magnitude: Option<usize>,
    previous: Option<PortId>,
    next: Option<PortId>,
}

#[derive(Clone, Copy)]
struct List {
    oldest: u32,
    newest: u32,
    is_in_wheel: bool,
}

impl List {
    const EMPTY: Self = Self { oldest: NIL, newest: NIL, is_in_wheel: false };
}

impl Share {
    const fn new() -> Self {
        Self {
            lists: [List::EMPTY; CLASSES],
            connections: 0,
            evictable: 0,
            magnitude: None,
            previous: None,
            next: None,
        }
    }
}

impl Shares {
    pub(super) fn new() -> Self {
        Self { shares: Vec::new(), active: 0, wheel: Wheel::new(), magnitudes: [None; MAGNITUDES] }
    }

    /// Connections charged to a port.
    pub(super) fn connections(&self, port: PortId) -> u32 {
        self.share(port).map_or(0, |share| share.connections)
    }

    /// Ports that have connections, and this one.
    pub(super) fn active_with(&self, port: PortId) -> u32 {
        self.active + u32::from(self.connections(port) == 0)
    }

    /// A port's least recently used connection of a class.
    pub(super) fn oldest(&self, port: PortId, class: Class) -> Option<u32> {
        let list = self.share(port)?.lists.get(class as usize)?;
        (list.oldest != NIL).then_some(list.oldest)
    }

    /// A port that has something evictable and holds more than `fair`. Among the ports of the highest
    /// magnitude with such a one it may be any. One that holds twice as much is always found.
    pub(super) fn port_above(&self, fair: u32) -> Option<PortId> {
        let least = magnitude(fair.max(1));
        self.magnitudes.iter().skip(least).rev().find_map(|&first| {
            let ports = std::iter::successors(first, |&port| self.share(port)?.next);
            ports.take(ASKED).find(|&port| self.connections(port) > fair)
        })
    }

    /// Appends an entry that is in no list. `due` is the tick in which it times out.
    pub(super) fn push(&mut self, slab: &mut Slab, port: PortId, class: Class, id: u32, due: u64) {
        let share = self.make_share(port);
        share.connections += 1;
        share.evictable += u32::from(class.is_evictable());
        let is_first = share.connections == 1;
        let Some(list) = share.lists.get_mut(class as usize) else { return };
        let previous = std::mem::replace(&mut list.newest, id);
        if previous == NIL {
            list.oldest = id;
        }
        let must_wait = !std::mem::replace(&mut list.is_in_wheel, true);
        if let Some(record) = slab.record_mut(previous) {
            record.next = id;
        }
        if let Some(record) = slab.record_mut(id) {
            record.previous = previous;
            record.next = NIL;
        }
        self.active += u32::from(is_first);
        if must_wait {
            self.wheel.insert(number(port, class), due);
        }
        self.weigh(port);
    }

    /// Takes an entry out of its list.
    pub(super) fn unlink(&mut self, slab: &mut Slab, port: PortId, class: Class, id: u32) {
        let Some(record) = slab.record(id) else { return };
        let (previous, next) = (record.previous, record.next);
        let Some(share) = self.share_mut(port) else { return };
        share.connections -= 1;
        share.evictable -= u32::from(class.is_evictable());
        let is_last = share.connections == 0;
        let Some(list) = share.lists.get_mut(class as usize) else { return };
        match slab.record_mut(previous) {
            Some(record) => record.next = next,
            None => list.oldest = next,
        }
        match slab.record_mut(next) {
            Some(record) => record.previous = previous,
            None => list.newest = previous,
        }
        self.active -= u32::from(is_last);
        self.weigh(port);
    }

    /// Takes a list out of the wheel that was to be looked at before this tick.
    pub(super) fn take_due(&mut self, tick: u64) -> Option<(PortId, Class)> {
        let (port, class) = split(self.wheel.take(tick)?)?;
        if let Some(list) = self.list_mut(port, class) {
            list.is_in_wheel = false;
        }
        Some((port, class))
    }

    /// Puts a list back.
    pub(super) fn wait(&mut self, port: PortId, class: Class, due: u64) {
        if let Some(list) = self.list_mut(port, class) {
            list.is_in_wheel = true;
            self.wheel.insert(number(port, class), due);
        }
    }

    /// Has every list looked at again: its head may time out sooner now.
    pub(super) fn hurry(&mut self) {
        for list in self.wheel.take_all() {
            self.wheel.insert(list, 0);
        }
    }

    /// Bytes held.
    pub(super) fn memory(&self) -> usize {
        self.shares.capacity() * size_of::<Option<Box<Share>>>()
            + self.shares.iter().flatten().count() * size_of::<Share>()
            + self.wheel.memory()
    }

    fn share(&self, port: PortId) -> Option<&Share> {
        self.shares.get(usize::from(port.0))?.as_deref()
    }

    fn share_mut(&mut self, port: PortId) -> Option<&mut Share> {
        self.shares.get_mut(usize::from(port.0))?.as_deref_mut()
    }

    fn make_share(&mut self, port: PortId) -> &mut Share {
        let at = usize::from(port.0);
        if self.shares.len() <= at {
            self.shares.resize_with(at + 1, || None);
        }
        self.shares[at].get_or_insert_with(|| Box::new(Share::new()))
    }

    fn list_mut(&mut self, port: PortId, class: Class) -> Option<&mut List> {
        self.share_mut(port)?.lists.get_mut(class as usize)
    }

    /// Lets a port stand where its counts say.
    fn weigh(&mut self, port: PortId) {
        let Some(share) = self.share_mut(port) else { return };
        let now = (share.evictable > 0).then(|| magnitude(share.connections));
        let before = share.magnitude;
        if now == before {
            return;
        }
        share.magnitude = now;
        let (previous, next) = (share.previous.take(), share.next.take());
        if let Some(before) = before {
            match previous.and_then(|port| self.share_mut(port)) {
                Some(share) => share.next = next,
                None => self.magnitudes[before] = next,
            }
            if let Some(share) = next.and_then(|port| self.share_mut(port)) {
                share.previous = previous;
            }
        }
        if let Some(now) = now {
            let next = self.magnitudes[now].replace(port);
            if let Some(share) = next.and_then(|port| self.share_mut(port)) {
                share.previous = Some(port);
            }
            if let Some(share) = self.share_mut(port) {
                share.next = next;
            }
        }
    }
}

/// The magnitude of a count that is not 0.
const fn magnitude(count: u32) -> usize {
    count.ilog2() as usize
}

/// A list's number in the wheel.
fn number(port: PortId, class: Class) -> u32 {
    u32::from(port.0) * CLASSES as u32 + class as u32
}

fn split(number: u32) -> Option<(PortId, Class)> {
    let class = Class::ALL.get(number as usize % CLASSES)?;
    Some((PortId(u16::try_from(number as usize / CLASSES).ok()?), *class))
}

#[cfg(test)]
impl Shares {
    /// Numbers of a list's entries, oldest first.
    pub(super) fn list(&self, slab: &Slab, port: PortId, class: Class) -> Vec<u32> {
        let next = |&id: &u32| slab.record(id).map(|record| record.next).filter(|&id| id != NIL);
        let ids: Vec<u32> = std::iter::successors(self.oldest(port, class), next).collect();
        let list = self.share(port).map_or(List::EMPTY, |share| share.lists[class as usize]);
        assert_eq!(list.newest, ids.last().copied().unwrap_or(NIL));
        assert!(ids.is_empty() || list.is_in_wheel);
        ids
    }

    /// Checks counts and magnitudes, and returns the ports.
    pub(super) fn check(&self, slab: &Slab) -> Vec<PortId> {
        let ports: Vec<PortId> = (0..=u16::MAX)
            .map(PortId)
            .take(self.shares.len())
            .filter(|&port| self.share(port).is_some())
            .collect();
        for &port in &ports {
            let share = self.share(port).unwrap();
            let count = |class| self.list(slab, port, class).len() as u32;
            assert_eq!(share.connections, Class::ALL.into_iter().map(count).sum());
            assert_eq!(share.evictable, Class::EVICTABLE.into_iter().map(count).sum());
            let expected = (share.evictable > 0).then(|| magnitude(share.connections));
            assert_eq!(share.magnitude, expected);
            let standing = self.magnitudes.iter().enumerate().flat_map(|(at, &first)| {
                std::iter::successors(first, |&port| self.share(port).unwrap().next)
                    .map(move |port| (at, port))
            });
            let found: Vec<usize> =
                standing.filter(|&(_, p)| p == port).map(|(at, _)| at).collect();
            assert_eq!(found, Vec::from_iter(expected));
        }
        let active = ports.iter().filter(|&&port| self.connections(port) > 0).count();
        assert_eq!(self.active as usize, active);
        ports
    }
}
