//! Fragments: the parts of a packet go where the one that can be judged went.
//!
//! Only the first fragment of a packet has a transport header. [`extract`](crate::extract) sees to it
//! that it has all of it, so it is judged as a whole packet would be: by connections, cache and policy.
//! The others have nothing to be judged by. They pass when, and only when, their first one has passed
//! before them, by the same ports; they are dropped for its reason if it was dropped.
//!
//! # Two halves
//!
//! A connection belongs to the worker that a hash with ports names, and only first fragments have ports.
//! So there are two tables, at two workers, which are one and the same if there is but one:
//!
//! - [`Fragments`], at the worker that a hash of addresses and identification names, sees all fragments
//!   of a packet. It lets the first one through and, behind it, the others, to the worker that owns the
//!   connection. What comes before its first waits here.
//! - [`Verdicts`], at the owner, remembers what became of the first, and under which policy.
//!
//! Frames keep their order on the way from one to the other, so the verdict is there when the second
//! fragment comes.
//!
//! # Invariants
//!
//! - **No fragment passes unjudged.** Only [`Fragments`] hands later fragments on, and only of a packet
//!   whose first it has handed on; [`Verdicts`] gives them its verdict, or drops them.
//! - **No byte of a packet passes twice.** Receivers differ in which of two overlapping fragments they
//!   believe, so what was judged could become something else (RFC 1858 §4, RFC 5722). A fragment that
//!   overlaps one before it, reaches behind the last one or contradicts the last one's place condemns
//!   its packet: from there on all of it is dropped, as RFC 8200 §4.5 wants it. One whose bytes have all
//!   been seen is dropped alone. Networks do repeat fragments, and without keeping their bytes a
//!   repetition cannot be told from a forgery (Linux does the same: inet_frag_queue_insert).
//! - **No verdict outlives its policy.** A packet whose first was judged under another epoch is dropped
//!   from there on (`fragment-expired`). Its sender will send it again.
//! - **Everything is bounded, and each port has a bound of its own.** A port has at most [`DATAGRAMS`]
//!   packets followed; a further one takes the place of its oldest, whose later fragments then have no
//!   first to follow. The fragments that wait are at most as many as the settings say, a quarter of them
//!   from any one port; others are dropped (`fragments-full`). Those that come in order never wait, so a
//!   flood that fills the store does not touch them.
//! - **Nothing waits longer than the timeout**, counted from a packet's earliest fragment (RFC 8200
//!   §4.5: 60 s; RFC 791 §3.2: 15 s at least). The default is Linux's 30 s.
//!
//! A packet is known by its ingress port, VLAN, addresses, identification and, for IPv4, protocol (RFC
//! 791 §3.2). IPv6 takes the protocol from the first fragment alone (RFC 8200 §4.5), so what the others
//! claim must not tell packets apart. MAC addresses are not part of it either, or two halves could go to
//! one receiver by two of them; a fragment that names others than the first that came is refused.
//!
//! What is left: a sender that floods its own port can make the switch forget, and then send two first
//! fragments for one packet. Both are judged, and no later fragment may stand where a transport header
//! is (`fragment-tiny`), so what its receiver can make of them is one of two packets that policy allows.
//!
//! # Cost
//!
//! Packets under way from one port are a short list, searched from end to end: one that is complete is
//! removed, so it holds what is under way and what has lost a fragment.

mod by_port;
mod ranges;
mod verdicts;

use std::collections::VecDeque;

use crate::extract::{Fragment, Headers};
use crate::mac::MacAddr;
use crate::snapshot::{PortId, Settings};
use crate::time::Nanos;
use crate::verdict::DropReason;
use crate::wire::ethernet::ether_type;

use by_port::{ByPort, Entry};
use ranges::{Inserted, Ranges};
pub use verdicts::Verdicts;

/// Most fragmented packets of one port that are followed at once.
pub const DATAGRAMS: usize = 128;

/// A port's share of the fragments that may wait.
const PORT_SHARE: usize = 4;

/// Nanoseconds between two searches for what has waited too long.
const SWEEP: u64 = 1_000_000_000;

/// Which packet a fragment is of, apart from its ingress port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    src: u128,
    dst: u128,
    id: u32,
    vlan: u16,
    vlan_tags: u8,
    /// 0 for IPv6.
    protocol: u8,
}

impl Identity {
    fn of(headers: &Headers, fragment: &Fragment) -> Self {
        let key = &headers.key;
        Self {
            src: key.src,
            dst: key.dst,
            id: fragment.id,
            vlan: key.vlan,
            vlan_tags: headers.vlan_tags,
            protocol: if key.ether_type == ether_type::IPV4 { key.protocol } else { 0 },
        }
    }
}

/// What becomes of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release<T> {
    /// It is the first of its packet, to be judged by `owner`; or a later one, to follow it there.
    Pass {
        /// The fragment.
        item: T,
        /// What [`Fragments::arrive`] was told with the first one.
        owner: u16,
    },
    /// It is dropped.
    Drop {
        /// The fragment.
        item: T,
        /// Why.
        reason: DropReason,
    },
}

/// Puts the fragments of each packet in order, the first one first, and holds back what may not pass.
/// `T` is a fragment as the caller has it.
#[derive(Debug)]
pub struct Fragments<T> {
    datagrams: ByPort<Datagram<T>>,
    /// Fragments that wait, of all ports.
    waiting: usize,
    max_waiting: usize,
    timeout: u64,
    swept: Nanos,
    released: VecDeque<Release<T>>,
}

/// A packet of which not all fragments have come.
#[derive(Debug)]
struct Datagram<T> {
    identity: Identity,
    /// Source and destination MAC address.
    link: (MacAddr, MacAddr),
    /// When its earliest fragment came.
    since: Nanos,
    state: State,
    /// What has come of it and was not dropped.
    seen: Ranges,
    /// Bytes of the whole, known from the last fragment on.
    total: Option<u32>,
    /// Fragments that came before the first, in the order in which they came.
    waiting: Vec<T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first has not come.
    Headless,
    /// The first went to this owner.
    Open(u16),
    /// Nothing of it passes any more, for this reason.
    Condemned(DropReason),
}

/// Why a fragment is not taken.
enum Refusal {
    /// It is dropped, and its packet is as before.
    Alone(DropReason),
    /// Its packet is condemned.
    All(DropReason),
}

impl<T> Entry for Datagram<T> {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn since(&self) -> Nanos {
        self.since
    }
}

impl<T> Datagram<T> {
    fn new(headers: &Headers, identity: Identity, now: Nanos) -> Self {
        Self {
            identity,
            link: (headers.key.eth_src, headers.key.eth_dst),
            since: now,
            state: State::Headless,
            seen: Ranges::default(),
            total: None,
            waiting: Vec::new(),
        }
    }

    /// Notes that this fragment has come, unless it must not pass.
    fn take(&mut self, headers: &Headers, fragment: &Fragment) -> Result<(), Refusal> {
        const OVERLAP: DropReason = DropReason::FragmentOverlap;
        if let State::Condemned(reason) = self.state {
            return Err(Refusal::Alone(reason));
        }
        if self.link != (headers.key.eth_src, headers.key.eth_dst) {
            return Err(Refusal::Alone(OVERLAP));
        }
        let end = fragment.end();
        let is_last = !fragment.more;
        let contradicts_last =
            self.total.is_some_and(|total| end > total || (is_last && end != total));
        if contradicts_last || (is_last && self.seen.end() > end) {
            return Err(Refusal::All(OVERLAP));
        }
        match self.seen.insert(fragment.offset.into(), end) {
            Inserted::New => {}
            Inserted::Repeated => return Err(Refusal::Alone(OVERLAP)),
            Inserted::Overlapping => return Err(Refusal::All(OVERLAP)),
            Inserted::NoRoom => return Err(Refusal::Alone(DropReason::FragmentsFull)),
        }
        if is_last {
            self.total = Some(end);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.total.is_some_and(|total| self.seen.is_all_of(total))
    }

    /// Whether there is anything to remember. Nothing is if its only fragment was refused.
    fn is_blank(&self) -> bool {
        self.seen.end() == 0 && !matches!(self.state, State::Condemned(_))
    }
}

impl<T> Fragments<T> {
    /// No packets yet. At most `max_waiting` fragments wait, whatever the settings allow.
    pub fn new(settings: &Settings, max_waiting: usize) -> Self {
        let mut fragments = Self {
            datagrams: ByPort::default(),
            waiting: 0,
            max_waiting: 0,
            timeout: 0,
            swept: Nanos::default(),
            released: VecDeque::new(),
        };
        fragments.configure(settings, max_waiting);
        fragments
    }

    /// Applies other limits. If more wait than may, they stay, and no further one may.
    pub fn configure(&mut self, settings: &Settings, max_waiting: usize) {
        self.max_waiting = max_waiting.min(settings.max_fragments as usize);
        self.timeout = Nanos::from_secs(settings.fragment_timeout_secs.into()).0;
    }

    /// Takes a fragment that came in. What it causes is in [`Fragments::release`]: nothing, if it
    /// waits. `owner` is who judges it if it is a first one, and is not looked at otherwise.
    ///
    /// A packet that is whole is released as it is.
    pub fn arrive(&mut self, headers: &Headers, owner: u16, item: T, now: Nanos) {
        let Some(fragment) = headers.fragment else {
            return self.released.push_back(Release::Pass { item, owner });
        };
        let port = headers.key.ingress;
        let identity = Identity::of(headers, &fragment);
        let mut datagram = match self.datagrams.take(port, &identity) {
            Some(datagram) if now.since(datagram.since) < self.timeout => datagram,
            expired => {
                expired.into_iter().for_each(|old| self.drop_waiting(old, EXPIRED));
                Datagram::new(headers, identity, now)
            }
        };
        if datagram.state == State::Headless
            && !fragment.is_first()
            && !self.may_wait(&datagram, port)
        {
            self.released.push_back(Release::Drop { item, reason: DropReason::FragmentsFull });
        } else {
            self.sort_in(&mut datagram, headers, &fragment, owner, item);
        }
        if !datagram.is_complete() && !datagram.is_blank() {
            let evicted = self.datagrams.put(port, datagram);
            evicted.into_iter().for_each(|old| self.drop_waiting(old, DropReason::FragmentsFull));
        }
    }

    /// The next fragment whose fate is known, in the order in which they are to go on.
    pub fn release(&mut self) -> Option<Release<T>> {
        self.released.pop_front()
    }

    /// Drops what has waited too long. Searches once a second at most.
    pub fn expire(&mut self, now: Nanos) {
        if now.since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        let timeout = self.timeout;
        let expired = self.datagrams.take_all(|old| now.since(old.since) >= timeout);
        expired.into_iter().for_each(|old| self.drop_waiting(old, EXPIRED));
    }

    /// Drops everything that waits, and condemns its packets: under another policy a port's number
    /// may be another workload's.
    pub fn forget_waiting(&mut self) {
        let Self { datagrams, released, waiting, .. } = self;
        for datagram in datagrams.iter_mut().filter(|datagram| !datagram.waiting.is_empty()) {
            datagram.state = State::Condemned(EXPIRED);
            *waiting -= datagram.waiting.len();
            released.extend(
                datagram.waiting.drain(..).map(|item| Release::Drop { item, reason: EXPIRED }),
            );
        }
    }

    /// Forgets a port that is gone; drops what waits of it.
    pub fn forget_port(&mut self, port: PortId) {
        self.datagrams.remove(port).into_iter().for_each(|old| self.drop_waiting(old, EXPIRED));
    }

    /// Fragments that wait.
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    fn sort_in(
        &mut self,
        datagram: &mut Datagram<T>,
        headers: &Headers,
        fragment: &Fragment,
        owner: u16,
        item: T,
    ) {
        match datagram.take(headers, fragment) {
            Err(Refusal::Alone(reason)) => {
                self.released.push_back(Release::Drop { item, reason });
            }
            Err(Refusal::All(reason)) => {
                datagram.state = State::Condemned(reason);
                self.waiting -= datagram.waiting.len();
                let all = datagram.waiting.drain(..).chain([item]);
                self.released.extend(all.map(|item| Release::Drop { item, reason }));
            }
            Ok(()) => self.pass_or_hold(datagram, fragment, owner, item),
        }
    }

    fn pass_or_hold(
        &mut self,
        datagram: &mut Datagram<T>,
        fragment: &Fragment,
        owner: u16,
        item: T,
    ) {
        match datagram.state {
            State::Open(owner) => self.released.push_back(Release::Pass { item, owner }),
            _ if fragment.is_first() => {
                datagram.state = State::Open(owner);
                self.waiting -= datagram.waiting.len();
                let all = std::iter::once(item).chain(datagram.waiting.drain(..));
                self.released.extend(all.map(|item| Release::Pass { item, owner }));
            }
            _ => {
                datagram.waiting.push(item);
                self.waiting += 1;
            }
        }
    }

    /// Whether one more fragment of this packet, which is taken out of the list, may wait.
    fn may_wait(&self, datagram: &Datagram<T>, port: PortId) -> bool {
        let of_port = self.datagrams.of(port).map(|other| other.waiting.len()).sum::<usize>();
        self.waiting < self.max_waiting
            && of_port + datagram.waiting.len() < self.max_waiting.div_ceil(PORT_SHARE)
    }

    fn drop_waiting(&mut self, datagram: Datagram<T>, reason: DropReason) {
        self.waiting -= datagram.waiting.len();
        let all = datagram.waiting.into_iter();
        self.released.extend(all.map(|item| Release::Drop { item, reason }));
    }
}

/// Why fragments without a first are dropped in the end.
const EXPIRED: DropReason = DropReason::FragmentExpired;

#[cfg(test)]
mod tests;
