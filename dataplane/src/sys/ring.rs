//! One ring shared with the kernel: a single-producer, single-consumer queue of descriptors.
//!
//! Fill and tx rings are written by us ([`Producer`]) and read by the kernel; rx and completion
//! rings the other way round ([`Consumer`]). Each side owns one cursor, a count of descriptors that
//! never stops growing (and wraps at 2³²); the descriptor's slot is the cursor modulo the ring's
//! size, a power of two. The producer writes descriptors, then stores its cursor with *release*; the
//! consumer loads that cursor with *acquire*, reads, then stores its own with *release*, which frees
//! the slots. So a slot belongs to one side at any time.
//!
//! Both sides remember the last seen value of the other's cursor, because reading it moves a cache
//! line between processors: it is read again only when the remembered one is not enough.
//!
//! What the other side writes is not believed: a cursor out of range counts as a full ring, never as
//! more, and an index always lies in the ring. What a descriptor says is for the umem to check.
//!
//! Layout: `struct xdp_ring` in net/xdp/xsk_queue.h, where the offsets from `XDP_MMAP_OFFSETS`
//! point (Linux 6.18).

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::mmap::Mapping;
use super::prefetch::prefetch_to_write;

/// What a ring holds.
///
/// # Safety
/// Any bytes are a valid value, because the other side of the ring writes them.
pub(crate) unsafe trait Descriptor: Copy {}

// SAFETY: a u64 is valid whatever its bytes.
unsafe impl Descriptor for u64 {}
// SAFETY: three integers without padding.
unsafe impl Descriptor for libc::xdp_desc {}

/// Where a ring's parts lie in its mapping, in bytes (`struct xdp_ring_offset`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The producer's cursor.
    pub(crate) producer: u64,
    /// The consumer's cursor.
    pub(crate) consumer: u64,
    /// The flags word.
    pub(crate) flags: u64,
    /// The first descriptor.
    pub(crate) descriptors: u64,
}

impl From<libc::xdp_ring_offset> for Layout {
    fn from(offset: libc::xdp_ring_offset) -> Self {
        Self {
            producer: offset.producer,
            consumer: offset.consumer,
            flags: offset.flags,
            descriptors: offset.desc,
        }
    }
}

/// The memory of a ring, as both sides see it.
#[derive(Debug)]
struct Ring<D> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    descriptors: NonNull<D>,
    size: u32,
    /// Keeps the pointers valid.
    _memory: Arc<Mapping>,
}

impl<D: Descriptor> Ring<D> {
    /// `None` if the size is not a power of two or the parts do not lie in the mapping.
    fn new(memory: Arc<Mapping>, layout: Layout, size: u32) -> Option<Self> {
        if !size.is_power_of_two() {
            return None;
        }
        Some(Self {
            producer: memory.at(layout.producer, 1)?,
            consumer: memory.at(layout.consumer, 1)?,
            flags: memory.at(layout.flags, 1)?,
            descriptors: memory.at(layout.descriptors, size as usize)?,
            size,
            _memory: memory,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: `new` checked that it lies in the mapping and is aligned; `_memory` keeps the
        // mapping; both sides access it as an atomic.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }
    }

    /// Pointer to the slot of the descriptor with that running number.
    fn slot(&self, number: u32) -> *mut D {
        let index = (number & (self.size - 1)) as usize;
        // SAFETY: index < size, and `new` checked that `size` descriptors lie in the mapping.
        unsafe { self.descriptors.as_ptr().add(index) }
    }
}

/// The producing side: of fill and tx rings.
#[derive(Debug)]
pub(crate) struct Producer<D> {
    ring: Ring<D>,
    /// Running number of the next descriptor to write; what we will publish.
    next: u32,
    /// The consumer's cursor when last seen.
    consumed: u32,
}

// SAFETY: the pointers are into `_memory`, which is Send; there is one Producer per ring, and it is
// not Clone, so moving it moves the whole producing side.
unsafe impl<D: Send> Send for Producer<D> {}

impl<D: Descriptor> Producer<D> {
    /// The producing side of the ring at `layout`. `None` if it does not lie in `memory`.
    ///
    /// There must be no other producer of this ring.
    pub(crate) fn new(memory: Arc<Mapping>, layout: Layout, size: u32) -> Option<Self> {
        let ring = Ring::new(memory, layout, size)?;
        let next = ring.producer().load(Ordering::Relaxed);
        let consumed = ring.consumer().load(Ordering::Acquire);
        Some(Self { ring, next, consumed })
    }

    /// Asks for the slots of the next `count` descriptors. Another processor has read what was there;
    /// unasked, each cache line of slots is waited for by itself, since stores take effect one after the
    /// other.
    pub(crate) fn prefetch(&self, count: u32) {
        let per_line = (64 / size_of::<D>()) as u32;
        for ahead in (0..count).step_by(per_line as usize) {
            prefetch_to_write(self.ring.slot(self.next.wrapping_add(ahead)).cast_const().cast());
        }
    }

    /// How many descriptors can be pushed. The consumer's cursor is read again only if it looks like
    /// fewer than `wanted`.
    pub(crate) fn free(&mut self, wanted: u32) -> u32 {
        let free = self.ring.size - self.used();
        if free >= wanted {
            return free;
        }
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.ring.size - self.used()
    }

    /// Writes one descriptor, which the consumer sees after [`publish`](Self::publish). False, and
    /// nothing written, if the ring is full.
    #[must_use]
    pub(crate) fn push(&mut self, descriptor: D) -> bool {
        if self.free(1) == 0 {
            return false;
        }
        let slot = self.ring.slot(self.next);
        // SAFETY: the slot is inside the ring, and ours: it is past what was published, and the
        // consumer has released it, as `free` just checked.
        unsafe { slot.write(descriptor) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Shows what was pushed to the consumer.
    pub(crate) fn publish(&mut self) {
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// Descriptors pushed that the consumer has not released yet.
    pub(crate) fn pending(&mut self) -> u32 {
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.used()
    }

    /// Whether the kernel wants a system call to go on with this ring (`XDP_RING_NEED_WAKEUP`).
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.ring.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn used(&self) -> u32 {
        self.next.wrapping_sub(self.consumed).min(self.ring.size)
    }
}

/// The consuming side: of rx and completion rings.
#[derive(Debug)]
pub(crate) struct Consumer<D> {
    ring: Ring<D>,
    /// Running number of the next descriptor to read; what we will release.
    next: u32,
    /// The producer's cursor when last seen.
    produced: u32,
}

// SAFETY: as for Producer.
unsafe impl<D: Send> Send for Consumer<D> {}

impl<D: Descriptor> Consumer<D> {
    /// The consuming side of the ring at `layout`. `None` if it does not lie in `memory`.
    ///
    /// There must be no other consumer of this ring.
    pub(crate) fn new(memory: Arc<Mapping>, layout: Layout, size: u32) -> Option<Self> {
        let ring = Ring::new(memory, layout, size)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        let produced = ring.producer().load(Ordering::Acquire);
        Some(Self { ring, next, produced })
    }

    /// How many descriptors can be read. The producer's cursor is read again only if it looks like fewer
    /// than `wanted`.
    pub(crate) fn ready(&mut self, wanted: u32) -> u32 {
        if self.unread() < wanted {
            self.produced = self.ring.producer().load(Ordering::Acquire);
        }
        self.unread().min(wanted)
    }

    /// Reads one descriptor. Its slot stays ours until [`release`](Self::release). The producer's
    /// cursor is read only when everything seen so far is read.
    pub(crate) fn pop(&mut self) -> Option<D> {
        if self.unread() == 0 {
            self.produced = self.ring.producer().load(Ordering::Acquire);
            if self.unread() == 0 {
                return None;
            }
        }
        let slot = self.ring.slot(self.next);
        // SAFETY: the slot is inside the ring; the producer published it, as the cursor loaded with
        // acquire says, and will not write it again before we release it. Any bytes are a `D`.
        let descriptor = unsafe { slot.read() };
        self.next = self.next.wrapping_add(1);
        Some(descriptor)
    }

    /// Gives the slots of everything read back to the producer.
    pub(crate) fn release(&mut self) {
        self.ring.consumer().store(self.next, Ordering::Release);
    }

    fn unread(&self) -> u32 {
        self.produced.wrapping_sub(self.next).min(self.ring.size)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const LAYOUT: Layout = Layout { producer: 0, consumer: 64, flags: 128, descriptors: 192 };

    /// Both sides of one ring in plain memory, with both cursors at `start`.
    fn ring(size: u32, start: u32) -> (Producer<u64>, Consumer<u64>) {
        let memory = Arc::new(Mapping::anonymous(192 + 8 * size as usize).unwrap());
        let raw = Ring::<u64>::new(Arc::clone(&memory), LAYOUT, size).unwrap();
        raw.producer().store(start, Ordering::Relaxed);
        raw.consumer().store(start, Ordering::Relaxed);
        let consumer = Consumer::new(Arc::clone(&memory), LAYOUT, size).unwrap();
        (Producer::new(memory, LAYOUT, size).unwrap(), consumer)
    }

    #[derive(Clone, Copy, Debug)]
    enum Operation {
        Push(u64),
        Publish,
        Pending,
        Pop,
        Release,
    }

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let operation = prop_oneof![
            4 => any::<u64>().prop_map(Operation::Push),
            2 => Just(Operation::Publish),
            1 => Just(Operation::Pending),
            4 => Just(Operation::Pop),
            2 => Just(Operation::Release),
        ];
        prop::collection::vec(operation, 0..200)
    }

    /// What a ring is, said slowly: three queues that descriptors pass through in order.
    #[derive(Default)]
    struct Fifo {
        pushed: VecDeque<u64>,
        published: VecDeque<u64>,
        read: usize,
    }

    impl Fifo {
        fn used(&self) -> usize {
            self.pushed.len() + self.published.len() + self.read
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn a_ring_is_a_bounded_fifo(
            exponent in 0u32..5,
            // Cursors that wrap during the test, and such that do not.
            start in prop_oneof![Just(0), Just(u32::MAX - 20), any::<u32>()],
            operations in operations(),
        ) {
            let size = 1 << exponent;
            let (mut producer, mut consumer) = ring(size, start);
            let mut fifo = Fifo::default();
            for operation in operations {
                match operation {
                    Operation::Push(value) => {
                        let fits = fifo.used() < size as usize;
                        prop_assert_eq!(producer.push(value), fits);
                        if fits {
                            fifo.pushed.push_back(value);
                        }
                    }
                    Operation::Publish => {
                        producer.publish();
                        fifo.published.append(&mut fifo.pushed);
                    }
                    Operation::Pending => {
                        prop_assert_eq!(producer.pending() as usize, fifo.used());
                        prop_assert_eq!(producer.free(size) as usize, size as usize - fifo.used());
                    }
                    Operation::Pop => {
                        let expected = fifo.published.pop_front();
                        fifo.read += usize::from(expected.is_some());
                        prop_assert_eq!(consumer.pop(), expected);
                    }
                    Operation::Release => {
                        consumer.release();
                        fifo.read = 0;
                    }
                }
            }
        }

        #[test]
        fn a_cursor_out_of_range_is_a_full_ring(cursor in any::<u32>()) {
            let (mut producer, mut consumer) = ring(8, 0);
            consumer.ring.producer().store(cursor, Ordering::Relaxed);
            let popped = std::iter::from_fn(|| consumer.pop()).take(100).count();
            prop_assert!(popped == 100 || popped as u32 == cursor, "{} popped", popped);
            producer.ring.consumer().store(cursor, Ordering::Relaxed);
            prop_assert!(producer.pending() <= 8);
            prop_assert!(producer.free(8) <= 8);
        }
    }

    #[test]
    fn two_threads_pass_everything_in_order() {
        let (mut producer, mut consumer) = ring(64, u32::MAX - 1000);
        let sender = std::thread::spawn(move || {
            for value in 0..10_000 {
                while !producer.push(value) {
                    producer.publish();
                    std::thread::yield_now();
                }
            }
            producer.publish();
        });
        let mut expected = 0;
        while expected < 10_000 {
            match consumer.pop() {
                Some(value) => {
                    assert_eq!(value, expected);
                    expected += 1;
                }
                None => {
                    consumer.release();
                    std::thread::yield_now();
                }
            }
        }
        sender.join().unwrap();
    }

    #[test]
    fn a_ring_that_does_not_fit_its_memory_is_refused() {
        let memory = Arc::new(Mapping::anonymous(256).unwrap());
        assert!(Producer::<u64>::new(Arc::clone(&memory), LAYOUT, 8).is_some());
        assert!(Producer::<u64>::new(Arc::clone(&memory), LAYOUT, 16).is_none(), "too long");
        assert!(Producer::<u64>::new(Arc::clone(&memory), LAYOUT, 7).is_none(), "no power of two");
        let layout = Layout { descriptors: 193, ..LAYOUT };
        assert!(Consumer::<u64>::new(Arc::clone(&memory), layout, 4).is_none(), "not aligned");
        let layout = Layout { consumer: u64::MAX, ..LAYOUT };
        assert!(Consumer::<u64>::new(memory, layout, 4).is_none(), "outside");
    }
}
