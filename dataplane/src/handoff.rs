//! Frames that change worker: because another one owns their connection, or has the queue they leave by.
//!
//! A connection's two directions may arrive at different workers; the [directory] says which one judges
//! them (docs/adr/0009). Frames travel by bounded rings, one for each ordered pair of workers, so that
//! each has one writer and one reader. What a worker hands over in a turn goes as one batch at the turn's
//! end, with one wake-up if the other one sleeps. A parcel is a frame and its errand, 16 bytes: the
//! receiver reads the headers again, which is cheaper than to move them between processors. A full ring
//! drops the frame under its own reason.
//!
//! The order of a flow holds, because rings keep order, and because a worker knows when everything that it
//! handed to another one has been sent ([`Peers::is_clear`]): then, and not before, it may judge such
//! frames itself.
//!
//! Later fragments have no ports. All fragments of a packet go by way of the worker that a hash of
//! their addresses and identification names, which has seen where the first went
//! ([`fragments`](firedoor_classifier::fragments)).
//!
//! [directory]: firedoor_classifier::connections::Directory

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam::utils::CachePadded;
use firedoor_classifier::PortId;
use firedoor_classifier::extract::Headers;
use mio::Waker;
use parking_lot::RwLock;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::frame::Frame;

/// Frames on their way to a worker from all others together.
const DEPTH: usize = 4096;

/// Frames on their way from one worker to another, at least.
const LEAST_DEPTH: usize = 64;

/// A frame on its way to another worker.
#[derive(Debug)]
pub struct Parcel {
    /// The frame.
    pub frame: Frame,
    /// The port it is to leave by if it is to be sent, and otherwise the port it came in by.
    pub port: PortId,
    /// What is to be done with it.
    pub errand: Errand,
}

/// What is to be done with a frame that was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// A fragment, to be put in order.
    Order,
    /// To be judged.
    Judge,
    /// A fragment in order, to be judged as it comes, behind the first of its packet.
    JudgeInOrder,
    /// Judged; to be sent.
    Transmit,
}

/// How a worker is woken.
#[derive(Debug, Default)]
pub struct Doorstep {
    asleep: CachePadded<AtomicBool>,
    waker: RwLock<Option<Waker>>,
}

impl Doorstep {
    /// Sets how the worker is woken.
    pub fn set_waker(&self, waker: Waker) {
        *self.waker.write() = Some(waker);
    }

    /// Says that the worker is awake.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the worker if it sleeps. One system call when it does, none when not.
    pub fn wake_if_asleep(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    /// Wakes the worker whether it sleeps or not.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.read() {
            // An eventfd write fails only if the counter is full: then it is awake already.
            let _ = waker.wake();
        }
    }
}

/// The other workers, as one of them sees them.
#[derive(Debug)]
pub struct Peers {
    me: u16,
    own: Arc<Doorstep>,
    /// By the worker's number; `None` for this one.
    outgoing: Vec<Option<Outgoing>>,
    incoming: Vec<Incoming>,
    /// The ring that is read first next time.
    next: usize,
}

/// The way to another worker.
#[derive(Debug)]
struct Outgoing {
    ring: Producer<Parcel>,
    /// What goes there at the end of the turn. The ring has room for it.
    batch: Vec<Parcel>,
    sent: u64,
    /// Of these, how many that worker is done with.
    done: Arc<CachePadded<AtomicU64>>,
    doorstep: Arc<Doorstep>,
}

/// The way from another worker.
#[derive(Debug)]
struct Incoming {
    ring: Consumer<Parcel>,
    taken: u64,
    done: Arc<CachePadded<AtomicU64>>,
}

impl Default for Peers {
    /// None.
    fn default() -> Self {
        let (own, outgoing, incoming) = (Arc::default(), vec![None], Vec::new());
        Self { me: 0, own, outgoing, incoming, next: 0 }
    }
}

impl Peers {
    /// What each of `workers` workers sees of the others.
    pub fn of(workers: u16) -> Vec<Self> {
        let depth = (DEPTH / usize::from(workers.max(2) - 1)).max(LEAST_DEPTH);
        let empty = |me| Self { me, outgoing: Vec::new(), ..Self::default() };
        let mut all: Vec<Self> = (0..workers).map(empty).collect();
        for from in 0..all.len() {
            for to in 0..all.len() {
                let way = (from != to).then(|| {
                    let (producer, consumer) = RingBuffer::new(depth);
                    let done = Arc::<CachePadded<AtomicU64>>::default();
                    let (told, doorstep) = (Arc::clone(&done), Arc::clone(&all[to].own));
                    all[to].incoming.push(Incoming { ring: consumer, taken: 0, done: told });
                    Outgoing { ring: producer, batch: Vec::new(), sent: 0, done, doorstep }
                });
                all[from].outgoing.push(way);
            }
        }
        all
    }

    /// This worker's own doorstep.
    pub fn doorstep(&self) -> &Arc<Doorstep> {
        &self.own
    }

    /// This worker's number.
    pub const fn me(&self) -> u16 {
        self.me
    }

    /// A worker that `number` names: always the same one.
    pub fn any_of(&self, number: u32) -> u16 {
        (number as usize % self.outgoing.len().max(1)) as u16
    }

    /// The worker that puts the fragments of this one's packet in order, if it is another one.
    pub fn order_of(&self, headers: &Headers) -> Option<u16> {
        if self.incoming.is_empty() {
            return None;
        }
        let worker = self.any_of(packet_hash(headers)?);
        (worker != self.me).then_some(worker)
    }

    /// Hands a frame to another worker, by the next [`flush`](Peers::flush).
    ///
    /// # Errors
    /// The parcel, if there is no room.
    pub fn hand(&mut self, worker: u16, parcel: Parcel) -> Result<(), Parcel> {
        let Some(Some(way)) = self.outgoing.get_mut(usize::from(worker)) else {
            return Err(parcel);
        };
        let waiting = way.batch.len();
        if waiting >= way.ring.cached_slots() && waiting >= way.ring.slots() {
            return Err(parcel);
        }
        way.batch.push(parcel);
        Ok(())
    }

    /// Sends what was handed over, one batch to each worker, and wakes those that sleep.
    pub fn flush(&mut self) {
        for way in self.outgoing.iter_mut().flatten().filter(|way| !way.batch.is_empty()) {
            let Ok(room) = way.ring.write_chunk_uninit(way.batch.len()) else { continue };
            way.sent += room.fill_from_iter(way.batch.drain(..)) as u64;
            way.doorstep.wake_if_asleep();
        }
    }

    /// Whether that worker is done with everything that this one ever handed to it.
    pub fn is_clear(&self, worker: u16) -> bool {
        let Some(Some(way)) = self.outgoing.get(usize::from(worker)) else { return true };
        way.batch.is_empty() && way.done.load(Ordering::Acquire) == way.sent
    }

    /// Appends up to `limit` parcels that others left here, and takes turns among them.
    pub fn take(&mut self, limit: usize, parcels: &mut Vec<Parcel>) {
        let count = self.incoming.len();
        for at in (0..count).map(|nth| (self.next + nth) % count) {
            let Incoming { ring, taken, .. } = &mut self.incoming[at];
            let wanted = ring.slots().min(limit.saturating_sub(parcels.len()));
            if let Ok(chunk) = ring.read_chunk(wanted) {
                parcels.extend(chunk);
                *taken += wanted as u64;
            }
        }
        self.next = (self.next + 1).checked_rem(count).unwrap_or(0);
    }

    /// Tells the others that everything taken so far is dealt with: judged, and sent.
    pub fn acknowledge(&self) {
        for way in &self.incoming {
            if way.done.load(Ordering::Relaxed) != way.taken {
                way.done.store(way.taken, Ordering::Release);
            }
        }
    }

    /// Parcels that wait here now.
    pub fn waiting(&self) -> usize {
        self.incoming.iter().map(|way| way.ring.slots()).sum()
    }

    /// Says that the worker is about to sleep. It may only if this returns true: what was left
    /// before is then in no ring any more, and what is left later wakes it.
    pub fn may_sleep(&self) -> bool {
        self.own.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let may = self.waiting() == 0;
        if !may {
            self.own.awake();
        }
        may
    }

    /// Everything that is on its way to this worker, or was to go from it.
    pub fn drain(&mut self) -> Vec<Frame> {
        let mut parcels = Vec::new();
        self.take(usize::MAX, &mut parcels);
        self.outgoing.iter_mut().flatten().for_each(|way| parcels.append(&mut way.batch));
        parcels.into_iter().map(|parcel| parcel.frame).collect()
    }
}

/// A hash that all fragments of a packet share, and none but a fragment has. The protocol is not part
/// of it: IPv6's later fragments may claim any.
fn packet_hash(headers: &Headers) -> Option<u32> {
    let id = u64::from(headers.fragment?.id);
    let addresses = headers.key.src ^ headers.key.dst;
    let folded = (addresses >> 64) as u64 ^ addresses as u64 ^ id << 24;
    Some((folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::umem::Umem;

    fn parcel(frame: Frame) -> Parcel {
        Parcel { frame, port: PortId(1), errand: Errand::Judge }
    }

    #[test]
    fn a_parcel_is_sixteen_bytes() {
        assert_eq!(size_of::<Parcel>(), 16);
    }

    #[test]
    fn parcels_keep_their_order_and_are_done_with_when_the_receiver_says_so() {
        let (_umem, frames) = Umem::new(8).unwrap();
        let chunks: Vec<u32> = frames.iter().map(Frame::chunk).collect();
        let mut all = Peers::of(3);
        for frame in frames {
            all[0].hand(2, parcel(frame)).unwrap();
        }
        assert!(!all[0].is_clear(2) && all[0].is_clear(1));
        assert_eq!(all[2].waiting(), 0, "not before the turn's end");
        all[0].flush();
        let mut taken = Vec::new();
        all[2].take(5, &mut taken);
        all[2].acknowledge();
        assert!(taken.len() == 5 && !all[0].is_clear(2));
        all[2].take(100, &mut taken);
        assert!(!all[0].is_clear(2), "taken, not sent");
        all[2].acknowledge();
        assert!(all[0].is_clear(2));
        let order = taken.into_iter().map(|parcel| parcel.frame.release());
        assert_eq!(order.collect::<Vec<_>>(), chunks);
    }

    #[test]
    fn a_full_ring_gives_the_parcel_back() {
        let (_umem, mut frames) = Umem::new(DEPTH as u32 + 1).unwrap();
        let mut all = Peers::of(2);
        let one_more = frames.pop().unwrap();
        for (at, frame) in frames.into_iter().enumerate() {
            all[0].hand(1, parcel(frame)).unwrap();
            if at % 100 == 0 {
                all[0].flush();
            }
        }
        all[0].hand(1, parcel(one_more)).unwrap_err().frame.release();
        let left = all[0].drain().len();
        assert!(left < 100 && all[1].drain().len() == DEPTH - left);
    }

    #[test]
    fn a_worker_with_something_to_take_does_not_sleep() {
        let (_umem, mut frames) = Umem::new(1).unwrap();
        let mut all = Peers::of(2);
        assert!(all[1].may_sleep());
        all[0].hand(1, parcel(frames.pop().unwrap())).unwrap();
        all[0].flush();
        assert!(!all[1].may_sleep());
        all[1].drain().into_iter().for_each(|frame| _ = frame.release());
    }
}
