//! Which of several workers has a connection, without a lock.
//!
//! Both directions of a connection must be judged by one table: its owner's. Connections are dealt into
//! *buckets* by a keyed hash that both directions share, and a bucket has one owner at a time, who has
//! all connections of it. So the owner of a frame's bucket judges the frame, wherever it arrived.
//!
//! Any worker may claim a bucket that nobody holds; it should be the one where the connection's frames
//! arrive. A bucket is held while a connection of it lives, and while a frame that claimed it is being
//! judged. Then it is free, and remembers its last owner: a frame that was handed to that one may not be
//! overtaken, so another worker claims the bucket only once it knows that none is on its way.
//!
//! Two connections in one bucket have one owner, wherever they arrive. There are [`PER_CONNECTION`]
//! buckets for each possible connection, so that this is rare; it costs a change of worker and nothing
//! else.
//!
//! Invariants:
//! - Only a claim writes to a free bucket, by one compare-and-swap: of two claims one wins, and the
//!   other one learns who has it.
//! - Only the owner writes to a bucket that is held. So counting is a load and a store.
//! - A worker has connections in no bucket but those it holds.

use std::hash::{BuildHasher, RandomState};
use std::ptr::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::key::{FrameKey, Hasher, Key};
use crate::extract::{Headers, Kind};

/// Buckets for each connection that the tables may have.
const PER_CONNECTION: u32 = 4;

/// Most buckets: 64 MiB of them.
const MOST: u32 = 1 << 24;

/// What is counted in a bucket, in its lower bits; above is the last owner's number, plus one.
const COUNT_BITS: u32 = 23;

/// A count that is no longer kept. Such a bucket stays with its owner.
const MANY: u32 = (1 << COUNT_BITS) - 1;

/// Who has which bucket. Shared by all workers of a switch.
pub struct Directory {
    buckets: Box<[AtomicU32]>,
    hasher: Hasher,
}

/// Connections that have one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket(u32);

/// What a bucket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State(u32);

impl State {
    const fn of(owner: u16, count: u32) -> Self {
        Self((owner as u32 + 1) << COUNT_BITS | count)
    }

    const fn count(self) -> u32 {
        self.0 & MANY
    }

    /// Who has it, or had it last.
    const fn owner(self) -> Option<u16> {
        match self.0 >> COUNT_BITS {
            0 => None,
            number => Some((number - 1) as u16),
        }
    }
}

impl Directory {
    /// Nobody has anything yet. There will be at most so many connections.
    pub fn new(connections: u32) -> Arc<Self> {
        let buckets = connections.saturating_mul(PER_CONNECTION).clamp(1, MOST);
        let buckets = (0..buckets.next_power_of_two()).map(|_| AtomicU32::new(0)).collect();
        let hasher = Hasher::new(RandomState::new().hash_one(connections));
        Arc::new(Self { buckets, hasher })
    }

    fn bucket_of(&self, headers: &Headers) -> Option<Bucket> {
        let frame = match headers.kind {
            Kind::Plain if headers.key.eth_dst.is_multicast() => None,
            Kind::Plain => FrameKey::of_frame(headers),
            Kind::IcmpError(embedded) => FrameKey::of_embedded(&embedded, 0),
            _ => None,
        };
        frame.map(|frame| self.bucket_of_key(&frame.key))
    }

    /// The VLAN is left out, because a frame may name it in several ways.
    fn bucket_of_key(&self, key: &Key) -> Bucket {
        Bucket(self.hasher.hash(&key.without_vlan()) & (self.buckets.len() as u32 - 1))
    }

    fn cell(&self, Bucket(bucket): Bucket) -> &AtomicU32 {
        &self.buckets[bucket as usize & (self.buckets.len() - 1)]
    }
}

/// One worker's hand in the [`Directory`].
pub struct Claims {
    directory: Arc<Directory>,
    me: u16,
    /// Buckets that are held once less as soon as everything judged so far has been sent.
    departing: Vec<Bucket>,
}

impl Claims {
    /// That of the worker of this number.
    pub fn new(directory: Arc<Directory>, me: u16) -> Self {
        Self { directory, me, departing: Vec::new() }
    }

    /// This worker's number.
    pub const fn me(&self) -> u16 {
        self.me
    }

    /// The bucket of a frame; `None` if it can neither begin nor belong to a connection, nor be about one.
    /// Then this worker judges it. `fetch` is asked for what [`Claims::owner_of`] reads.
    #[inline]
    pub fn bucket_of(&self, headers: &Headers, fetch: impl Fn(*const ())) -> Option<Bucket> {
        let bucket = self.directory.bucket_of(headers)?;
        fetch(from_ref(self.directory.cell(bucket)).cast());
        Some(bucket)
    }

    /// The worker that judges the frames of this bucket. If it is this one, the bucket is held until the
    /// next [`Claims::settle`].
    ///
    /// A frame whose bucket is free goes to the worker that `wish` names, knowing a number that is the same
    /// for all of the bucket; unless its last owner may still have frames on their way from here, as
    /// `is_clear` says.
    #[inline]
    pub fn owner_of(
        &mut self,
        bucket: Bucket,
        wish: impl Fn(u32) -> u16,
        is_clear: impl Fn(u16) -> bool,
    ) -> u16 {
        let cell = self.directory.cell(bucket);
        let mut state = State(cell.load(Ordering::Acquire));
        loop {
            if let Some(owner) = state.owner().filter(|_| state.count() > 0) {
                return owner;
            }
            let Bucket(number) = bucket;
            let wished = wish(number);
            let chosen = match state.owner() {
                Some(last) if last == self.me || !(last == wished || is_clear(last)) => last,
                _ => wished,
            };
            if chosen != self.me {
                return chosen;
            }
            let State(free) = state;
            let State(mine) = State::of(self.me, 1);
            match cell.compare_exchange(free, mine, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.departing.push(bucket);
                    return self.me;
                }
                Err(changed) => state = State(changed),
            }
        }
    }

    /// A connection begins here. Its bucket is held already.
    pub(super) fn begun(&self, key: &Key) {
        let cell = self.directory.cell(self.directory.bucket_of_key(key));
        self.count(cell, |count| count + 1);
    }

    /// A connection ends here.
    pub(super) fn ended(&mut self, key: &Key) {
        self.departing.push(self.directory.bucket_of_key(key));
    }

    /// Everything that was judged so far has been sent: lets go of what is over.
    pub fn settle(&mut self) {
        let mut departing = std::mem::take(&mut self.departing);
        for bucket in departing.drain(..) {
            self.count(self.directory.cell(bucket), |count| count - 1);
        }
        self.departing = departing;
    }

    fn count(&self, cell: &AtomicU32, change: impl Fn(u32) -> u32) {
        let state = State(cell.load(Ordering::Relaxed));
        let is_held = state.owner() == Some(self.me) && state.count() > 0;
        debug_assert!(is_held, "only the owner counts");
        if is_held && state.count() < MANY {
            // Release, so that who claims it sees what was done while it was held.
            cell.store(State::of(self.me, change(state.count())).0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::build::{self, Ends};
    use crate::extract::extract;
    use crate::{MacAddr, PortId};

    fn ends() -> Ends {
        Ends {
            eth_src: MacAddr([2, 0, 0, 0, 0, 1]),
            eth_dst: MacAddr([2, 0, 0, 0, 0, 2]),
            src: [10, 0, 0, 1].into(),
            dst: [10, 0, 0, 2].into(),
        }
    }

    fn frame(ends: Ends, src_port: u16, dst_port: u16) -> Headers {
        extract(&build::udp(ends, src_port, dst_port, b""), PortId(0)).unwrap()
    }

    fn key(headers: &Headers) -> Key {
        FrameKey::of_frame(headers).unwrap().key
    }

    /// Two workers' hands in one directory.
    fn two() -> [Claims; 2] {
        let directory = Directory::new(64);
        [0, 1].map(|me| Claims::new(Arc::clone(&directory), me))
    }

    /// Who judges the frame, asked by a worker that wants it itself.
    fn asked(claims: &mut Claims, headers: &Headers) -> u16 {
        let me = claims.me;
        let bucket = claims.bucket_of(headers, |_| ());
        bucket.map_or(me, |bucket| claims.owner_of(bucket, |_| me, |_| true))
    }

    #[test]
    fn the_first_to_ask_has_both_directions_and_errors_about_them() {
        let [mut first, mut second] = two();
        let (there, back) = (frame(ends(), 1, 53), frame(ends().reversed(), 53, 1));
        assert_eq!(asked(&mut first, &there), 0);
        first.begun(&key(&there));
        first.settle();
        assert_eq!(asked(&mut second, &back), 0);
        let quoted = build::udp(ends(), 1, 53, b"");
        let error = build::icmp_error(ends().reversed(), 3, 1, &quoted[14..]);
        assert_eq!(asked(&mut second, &extract(&error, PortId(1)).unwrap()), 0);

        first.ended(&key(&there));
        assert_eq!(asked(&mut second, &back), 0, "what was judged before it ended is not sent yet");
        first.settle();
        assert_eq!(asked(&mut second, &back), 1);
    }

    #[test]
    fn a_frame_that_begins_nothing_leaves_its_bucket_free() {
        let [mut first, mut second] = two();
        let denied = frame(ends(), 1, 53);
        assert_eq!(asked(&mut first, &denied), 0);
        assert_eq!(asked(&mut second, &denied), 0);
        first.settle();
        assert_eq!(asked(&mut second, &denied), 1);
    }

    #[test]
    fn what_may_be_on_its_way_to_the_last_owner_is_not_overtaken() {
        let [mut first, mut second] = two();
        let frame = frame(ends(), 1, 53);
        asked(&mut first, &frame);
        first.settle();
        let bucket = second.bucket_of(&frame, |_| ()).unwrap();
        assert_eq!(second.owner_of(bucket, |_| 1, |_| false), 0);
        assert_eq!(second.owner_of(bucket, |_| 1, |_| true), 1);
    }

    #[test]
    fn frames_without_a_connection_stay_where_they_arrive() {
        let [mut first, mut second] = two();
        let to_all = Ends { eth_dst: MacAddr([0xff; 6]), ..ends() };
        let broadcast = frame(to_all, 1, 53);
        assert_eq!(asked(&mut first, &broadcast), 0);
        assert_eq!(asked(&mut second, &broadcast), 1);
    }

    #[test]
    fn of_two_that_claim_at_once_one_wins() {
        let frames: Vec<Headers> = (1..2_000).map(|port| frame(ends(), port, 53)).collect();
        let directory = Directory::new(4_096);
        let claim = |me: u16| {
            let mut claims = Claims::new(Arc::clone(&directory), me);
            let owners: Vec<u16> = frames.iter().map(|frame| asked(&mut claims, frame)).collect();
            owners
        };
        let (one, other) = std::thread::scope(|scope| {
            let other = scope.spawn(|| claim(1));
            (claim(0), other.join().unwrap())
        });
        assert_eq!(one, other);
    }

    #[derive(Clone, Copy, Debug)]
    enum Operation {
        /// A frame of that flow arrives at that worker, and begins a connection if it may.
        Arrive {
            worker: usize,
            flow: u16,
            begins: bool,
        },
        /// A connection of that worker ends.
        End {
            worker: usize,
            nth: prop::sample::Index,
        },
        Settle(usize),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let worker = 0..3_usize;
        prop_oneof![
            (worker.clone(), 0..24_u16, any::<bool>())
                .prop_map(|(worker, flow, begins)| Operation::Arrive { worker, flow, begins }),
            (worker.clone(), any::<prop::sample::Index>())
                .prop_map(|(worker, nth)| Operation::End { worker, nth }),
            worker.prop_map(Operation::Settle),
        ]
    }

    proptest! {
        /// However three workers take turns, no flow has connections at two of them, and at the end
        /// everything is free.
        #[test]
        fn a_connection_has_one_owner(operations in prop::collection::vec(operation(), 0..200)) {
            // Few buckets, so that flows share them.
            let directory = Directory::new(4);
            let mut claims: Vec<Claims> =
                (0..3).map(|me| Claims::new(Arc::clone(&directory), me)).collect();
            let mut live: [Vec<u16>; 3] = Default::default();
            let headers = |flow| frame(ends(), 1_000 + flow, 53);
            for operation in operations {
                match operation {
                    Operation::Arrive { worker, flow, begins } => {
                        let owner = asked(&mut claims[worker], &headers(flow));
                        let others = (0..3).filter(|&other| other != usize::from(owner));
                        for other in others {
                            prop_assert!(!live[other].contains(&flow), "{other} has it, not {owner}");
                        }
                        // A frame that was handed over is looked up again where it comes.
                        if usize::from(owner) == worker && begins && !live[worker].contains(&flow) {
                            claims[worker].begun(&key(&headers(flow)));
                            live[worker].push(flow);
                        }
                    }
                    Operation::End { worker, nth } if !live[worker].is_empty() => {
                        let nth = nth.index(live[worker].len());
                        let flow = live[worker].swap_remove(nth);
                        claims[worker].ended(&key(&headers(flow)));
                    }
                    Operation::End { .. } => {}
                    Operation::Settle(worker) => claims[worker].settle(),
                }
            }
            for (claims, live) in claims.iter_mut().zip(&live) {
                live.iter().for_each(|&flow| claims.ended(&key(&headers(flow))));
                claims.settle();
            }
            let is_free = |cell: &AtomicU32| State(cell.load(Ordering::Relaxed)).count() == 0;
            prop_assert!(directory.buckets.iter().all(is_free));
        }
    }
}
