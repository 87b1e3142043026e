//! The programs' mapped arrays, and what stands in those that are not about one flow.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::{Map, MapData};

use super::flow::{FAR, NEAR};
use crate::sys::bpf::kernel_error;
use crate::sys::mmap::Mapping;

/// The values of a mapped BPF array: `T` has its layout, and only atomics.
pub(super) struct Shared<T> {
    _map: MapData,
    _memory: Mapping,
    values: NonNull<T>,
    pub(super) count: usize,
}

// SAFETY: access goes through `&T`, and `T` (Flow, Details, Bucket, Intake and Control) is made of
// atomics only.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Maps all of a map, which may be smaller or larger than its program's object says.
    pub(super) fn map(map: Map) -> io::Result<Self> {
        let Map::Array(map) = map else { return Err(io::ErrorKind::InvalidData.into()) };
        let count = map.info().map_err(kernel_error)?.max_entries() as usize;
        let len = count.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = Mapping::of_map(map.fd().as_fd(), len)?;
        let values = memory.at(0, count).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { _map: map, _memory: memory, values, count })
    }

    pub(super) fn values(&self) -> &[T] {
        // SAFETY: `count` values lie in the mapping, as `map` checked, which is aligned for `T` and lives
        // as long as `self`; `T` is made of atomics, for which every bit pattern is a value and which
        // the program may change at any time.
        unsafe { std::slice::from_raw_parts(self.values.as_ptr(), self.count) }
    }
}

/// The value of the array of one (`struct control`).
#[repr(C)]
pub(super) struct Control {
    pub(super) epoch: AtomicU64,
    pub(super) open_until: AtomicU64,
    pub(super) tick: AtomicU64,
    pub(super) punt: AtomicU32,
    pub(super) devices: AtomicU32,
    pub(super) buckets: AtomicU32,
    tag: AtomicU32,
    factor: AtomicU64,
    pub(super) shut: AtomicU64,
    _reserved: AtomicU64,
    secret: [AtomicU32; HASHED],
    _reserved_too: [AtomicU32; 6],
}

const _: () = assert!(size_of::<Control>() == 128);

/// Words of 32 bits that the hash of a flow takes, at most.
pub(crate) const HASHED: usize = NEAR + FAR;

/// How flows are hashed, and what of it stands where in the index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hashing {
    /// Secret.
    pub(crate) secret: [u32; HASHED],
    /// Secret, and odd.
    pub(crate) factor: u64,
    /// Bits of a cell that are of the hash; below them is room for one more than every slot.
    pub(crate) tag: u32,
}

impl Hashing {
    /// Secrets of the standard library's per-process randomness, for an index of so many slots.
    pub(crate) fn random(slots: u32) -> Self {
        let source = RandomState::new();
        let secret = std::array::from_fn(|word| source.hash_one(word) as u32);
        let factor = source.hash_one(HASHED) | 1;
        Self { secret, factor, tag: u32::MAX << (32 - slots.leading_zeros()) }
    }
}

impl Control {
    /// As the programs hash, if they have been told.
    pub(super) fn hashing(&self) -> Option<Hashing> {
        let factor = self.factor.load(Ordering::Acquire);
        (factor != 0).then(|| Hashing {
            secret: self.secret.each_ref().map(|word| word.load(Ordering::Relaxed)),
            factor,
            tag: self.tag.load(Ordering::Relaxed),
        })
    }

    pub(super) fn set_hashing(&self, hashing: &Hashing) {
        for (cell, word) in self.secret.iter().zip(hashing.secret) {
            cell.store(word, Ordering::Relaxed);
        }
        self.tag.store(hashing.tag, Ordering::Relaxed);
        self.factor.store(hashing.factor, Ordering::Release);
    }
}

/// What a port has on the long way: one value of the array of intakes (`struct intake`).
#[repr(C)]
pub(crate) struct Intake {
    punted: AtomicU64,
    refused: AtomicU64,
    taken: AtomicU64,
    room: AtomicU64,
}

impl Intake {
    /// Nothing of the port's is on the way, and so many frames may be.
    pub(crate) fn open(&self, room: u64) {
        self.taken.store(self.punted(), Ordering::Release);
        self.room.store(room, Ordering::Release);
    }

    /// Frames that the program has punted so far.
    pub(crate) fn punted(&self) -> u64 {
        self.punted.load(Ordering::Acquire)
    }

    /// Whether some of these have not arrived, nor are known to be lost.
    pub(crate) fn is_on_the_way(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < self.punted()
    }

    /// So many have arrived.
    pub(crate) fn take(&self, frames: u64) {
        self.taken.fetch_add(frames, Ordering::Release);
        // More than there were, if they were given up too early.
        self.taken.fetch_min(self.punted(), Ordering::Release);
    }

    /// As many as that were punted have arrived, or are lost.
    pub(crate) fn take_all_until(&self, punted: u64) {
        self.taken.fetch_max(punted, Ordering::Release);
    }

    /// Frames that the program dropped because the port had too many on the way.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// One value of the index (`struct bucket`), a cache line: see [`index`](crate::express::index).
#[derive(Default)]
#[repr(C, align(64))]
pub(crate) struct Bucket {
    /// 0, or one more than a slot, with bits of its flow's hash above.
    pub(crate) cells: [AtomicU32; CELLS],
}

/// Cells of a bucket.
pub(crate) const CELLS: usize = 16;
