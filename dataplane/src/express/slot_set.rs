//! A set of slots that tells its lowest one at once, and the next one from any on.
//!
//! There is a bit for each slot, in words of 64. A level above has a bit for each of these words that has any,
//! and so on up to a level of one word. Cost: to add, to remove and to search touch two words of each level
//! at most, of which there are four for up to 2^24 slots; an eighth of a byte for each slot.

/// Bits of a word.
const BITS: usize = u64::BITS as usize;

/// Some of the slots below a number.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SlotSet {
    /// The one with a bit for each slot first.
    levels: Vec<Vec<u64>>,
    len: u32,
}

impl SlotSet {
    /// None yet, of the slots below `end`.
    pub(super) fn below(end: u32) -> Self {
        let mut words = end as usize;
        let mut levels = Vec::new();
        while words > 1 || levels.is_empty() {
            words = words.div_ceil(BITS);
            levels.push(vec![0; words]);
        }
        Self { levels, len: 0 }
    }

    /// All slots below `end`. Cost: a word at a time.
    pub(super) fn all_below(end: u32) -> Self {
        let mut set = Self { len: end, ..Self::below(end) };
        let mut bits = end as usize;
        for level in &mut set.levels {
            let (full, rest) = level.split_at_mut(bits / BITS);
            full.fill(u64::MAX);
            if let Some(last) = rest.first_mut() {
                *last = !(u64::MAX << (bits % BITS));
            }
            bits = bits.div_ceil(BITS);
        }
        set
    }

    /// How many there are.
    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// Adds a slot below the end, unless it is there.
    pub(super) fn insert(&mut self, slot: u32) {
        if self.has(slot) != Some(false) {
            return;
        }
        self.len += 1;
        let mut at = slot as usize;
        for level in &mut self.levels {
            if let Some(word) = level.get_mut(at / BITS) {
                *word |= 1 << (at % BITS);
            }
            at /= BITS;
        }
    }

    /// Removes a slot, if it is there.
    pub(super) fn remove(&mut self, slot: u32) {
        if self.has(slot) != Some(true) {
            return;
        }
        self.len -= 1;
        let mut at = slot as usize;
        for level in &mut self.levels {
            let Some(word) = level.get_mut(at / BITS) else { return };
            *word &= !(1 << (at % BITS));
            if *word != 0 {
                return;
            }
            at /= BITS;
        }
    }

    /// Whether a slot is there; `None` if it can not be.
    fn has(&self, slot: u32) -> Option<bool> {
        let at = slot as usize;
        let word = self.levels.first()?.get(at / BITS)?;
        Some(word >> (at % BITS) & 1 != 0)
    }

    /// The lowest one that is not below `from`.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
        let mut at = from as usize;
        for (height, level) in self.levels.iter().enumerate() {
            let from_here = level.get(at / BITS)? & u64::MAX << (at % BITS);
            if from_here != 0 {
                let found = at / BITS * BITS + from_here.trailing_zeros() as usize;
                return self.lowest_under(height, found);
            }
            at = at / BITS + 1;
        }
        None
    }

    /// The lowest slot of those that the bit `at` of a level stands for, which is set.
    fn lowest_under(&self, height: usize, mut at: usize) -> Option<u32> {
        for level in self.levels.get(..height)?.iter().rev() {
            at = at * BITS + level.get(at)?.trailing_zeros() as usize;
        }
        u32::try_from(at).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn slots(set: &SlotSet) -> Vec<u32> {
        let next = |from: u32| set.next(from);
        std::iter::successors(next(0), |&last| next(last + 1)).collect()
    }

    #[test]
    fn every_slot_can_be_there_and_none_beyond() {
        for end in [0, 1, 63, 64, 65, 4095, 4096, 4097, 300_000] {
            let mut set = SlotSet::below(end);
            assert_eq!((set.len(), set.next(0)), (0, None));
            (0..end).for_each(|slot| set.insert(slot));
            assert_eq!(set, SlotSet::all_below(end));
            assert_eq!((set.len(), set.next(0)), (end, (end > 0).then_some(0)));
            set.remove(end);
            assert_eq!(slots(&set), (0..end).collect::<Vec<_>>());
            (0..end).for_each(|slot| set.remove(slot));
            assert_eq!((set.len(), set.next(0)), (0, None));
        }
    }

    proptest! {
        #[test]
        fn it_is_a_set(
            steps in vec((any::<bool>(), prop_oneof![0u32..200, 0u32..20_000]), 1..400),
            end in 1u32..20_000,
        ) {
            let mut set = SlotSet::below(end);
            let mut oracle = BTreeSet::new();
            for (adds, slot) in steps {
                let slot = slot % end;
                if adds {
                    set.insert(slot);
                    oracle.insert(slot);
                } else {
                    set.remove(slot);
                    oracle.remove(&slot);
                }
                prop_assert_eq!(set.len() as usize, oracle.len());
                for from in [0, slot, slot + 1, end / 2] {
                    prop_assert_eq!(set.next(from), oracle.range(from..).next().copied());
                }
            }
            prop_assert_eq!(slots(&set), oracle.into_iter().collect::<Vec<_>>());
        }
    }
}
