//! The mirror: copies of denied frames on their way to control.
//!
//! It may lose frames, and counts what it loses; it never waits. A worker takes an empty record
//! from a fixed stock, fills it and queues it. With the rate limit used up or no record free, the
//! frame is not mirrored. So no flood of denied frames costs the worker more than a look at its
//! token bucket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Thread;

use crossbeam::queue::ArrayQueue;
use firedoor_classifier::verdict::Cause;
use firedoor_classifier::{DropReason, FlowKey, Nanos};
use parking_lot::RwLock;

/// Records per worker.
const STOCK: usize = 1024;

/// Most bytes of a frame that a record holds.
pub const MAX_SNAPLEN: usize = 2048;

/// One denied frame.
#[derive(Debug)]
pub struct Record {
    /// When.
    pub now: Nanos,
    /// Epoch it was judged under.
    pub epoch: u64,
    /// Its flow key. Only ingress is set if it could not be extracted.
    pub key: FlowKey,
    /// Who decided.
    pub cause: Cause,
    /// Why.
    pub reason: DropReason,
    /// Whether it was dropped.
    pub dropped: bool,
    /// Its length, in bytes.
    pub length: usize,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

/// The queue between one worker and the reader.
#[derive(Debug)]
pub struct Mirror {
    full: ArrayQueue<Box<Record>>,
    empty: ArrayQueue<Box<Record>>,
    /// Bytes that an empty record has room for.
    snaplen: AtomicUsize,
    reader: RwLock<Option<Thread>>,
}

impl Mirror {
    /// A queue with its stock of records, each with room for `snaplen` bytes of a frame.
    pub fn new(snaplen: u16) -> Arc<Self> {
        let mirror = Self {
            full: ArrayQueue::new(STOCK),
            empty: ArrayQueue::new(STOCK),
            snaplen: AtomicUsize::new(cut(snaplen)),
            reader: RwLock::default(),
        };
        for _ in 0..STOCK {
            mirror.recycle(Box::new(Record {
                now: Nanos(0),
                epoch: 0,
                key: FlowKey::default(),
                cause: Cause::Switch,
                reason: DropReason::NoPolicy,
                dropped: false,
                length: 0,
                bytes: Vec::new(),
            }));
        }
        Arc::new(mirror)
    }

    /// The next denied frame. Give the record back with [`Mirror::recycle`].
    pub fn next(&self) -> Option<Box<Record>> {
        self.full.pop()
    }

    /// Gives a record back to the stock. Here, and not at the worker, its memory grows.
    pub fn recycle(&self, mut record: Box<Record>) {
        record.bytes.clear();
        record.bytes.reserve_exact(self.snaplen.load(Ordering::Relaxed));
        // The stock is as large as the number of records.
        let _ = self.empty.push(record);
    }

    /// Names the thread to wake when there is something to read.
    pub fn set_reader(&self, reader: Thread) {
        *self.reader.write() = Some(reader);
    }

    fn wake_reader(&self) {
        if let Some(reader) = &*self.reader.read() {
            reader.unpark();
        }
    }
}

/// A worker's end of the mirror.
#[derive(Debug)]
pub struct MirrorSender {
    mirror: Arc<Mirror>,
    bucket: TokenBucket,
    snaplen: usize,
    news: bool,
}

impl MirrorSender {
    /// An end that queues up to `per_sec` frames a second, `snaplen` bytes of each.
    pub fn new(mirror: Arc<Mirror>, per_sec: u32, snaplen: u16) -> Self {
        let bucket = TokenBucket::new(per_sec);
        Self { mirror, bucket, snaplen: cut(snaplen), news: false }
    }

    /// Changes the limits. A larger `snaplen` holds for each record once it has been recycled.
    pub fn configure(&mut self, per_sec: u32, snaplen: u16) {
        self.bucket.rate = u64::from(per_sec);
        self.snaplen = cut(snaplen);
        self.mirror.snaplen.store(self.snaplen, Ordering::Relaxed);
    }

    /// Queues a copy of a denied frame; `describe` fills in all but length and bytes. Returns false
    /// if the frame is not mirrored.
    pub fn offer(&mut self, now: Nanos, frame: &[u8], describe: impl FnOnce(&mut Record)) -> bool {
        if !self.bucket.take(now) {
            return false;
        }
        let Some(mut record) = self.mirror.empty.pop() else { return false };
        describe(&mut record);
        record.now = now;
        record.length = frame.len();
        let kept = frame.len().min(self.snaplen).min(record.bytes.capacity());
        record.bytes.extend_from_slice(&frame[..kept]);
        self.news = true;
        self.mirror.full.push(record).is_ok()
    }

    /// Wakes the reader if anything was queued since the last call. Once a turn, not per frame.
    pub fn notify(&mut self) {
        if std::mem::take(&mut self.news) {
            self.mirror.wake_reader();
        }
    }
}

fn cut(snaplen: u16) -> usize {
    MAX_SNAPLEN.min(snaplen.into())
}

/// Allows `rate` events a second, and a second's worth at once.
#[derive(Debug)]
struct TokenBucket {
    rate: u64,
    tokens: u64,
    last: Nanos,
}

impl TokenBucket {
    fn new(rate: u32) -> Self {
        Self { rate: rate.into(), tokens: rate.into(), last: Nanos(0) }
    }

    fn take(&mut self, now: Nanos) -> bool {
        if self.tokens == 0 && !self.refill(now) {
            return false;
        }
        self.tokens = self.tokens.saturating_sub(1);
        true
    }

    /// Adds what has accrued; the remainder of a token stays in `last`.
    fn refill(&mut self, now: Nanos) -> bool {
        const SECOND: u128 = 1_000_000_000;
        if self.rate == 0 {
            return false;
        }
        let accrued = u128::from(now.since(self.last)) * u128::from(self.rate) / SECOND;
        if accrued >= u128::from(self.rate) {
            self.last = now;
            self.tokens = self.rate;
        } else {
            self.last = self.last.plus((accrued * SECOND / u128::from(self.rate)) as u64);
            self.tokens = accrued as u64;
        }
        self.tokens > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_the_rate_and_to_the_stock() {
        let mirror = Mirror::new(64);
        let mut sender = MirrorSender::new(Arc::clone(&mirror), 100, 64);
        let frame = [7; 100];
        let taken = |sender: &mut MirrorSender, ms| {
            (0..500).filter(|_| sender.offer(Nanos::from_millis(ms), &frame, |_| ())).count()
        };
        assert_eq!(taken(&mut sender, 5_000), 200, "a full bucket, and one second's refill");
        assert_eq!(taken(&mut sender, 5_500), 50, "half a second's worth");
        let record = mirror.next().unwrap();
        assert_eq!((record.bytes.len(), record.length), (64, 100));
        mirror.recycle(record);

        sender.configure(1_000_000, 64);
        assert_eq!(taken(&mut sender, 60_000), 500);
        assert_eq!(taken(&mut sender, 70_000), STOCK - 749, "no record is free any more");
    }
}
