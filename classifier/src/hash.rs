//! Keyed hashes of fixed-size keys, for tables whose keys strangers choose.
//!
//! Both are universal: two different inputs collide with a probability that depends on the secret
//! keys alone. Whoever does not know them can not aim frames at one bucket.
//!
//! For one word, multiply-shift (Dietzfelbinger, STACS '96): the upper half of `a × x + b` modulo
//! 2^128.
//!
//! For a masked flow key, NH: the inner hash of UMAC (Black et al., CRYPTO '99; RFC 4418 §5.2), on
//! 64-bit words: the sum of `(a + k0) × (b + k1)` over pairs of words, modulo 2^128, and of a secret
//! number of the mask. Two different inputs collide with probability at most 2^-64. Words are paired
//! so that the masks of one family share most products: the pair of the source address has as many
//! values as there are prefix lengths, and so has the destination's. [`TupleSums`] has them all, and
//! then a hash under one more mask is three additions.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::key::KEY_WORDS;
use crate::mask::{MASKS, Mask, STEPS, prefix};

/// The secret keys of a table whose keys are one word each.
#[derive(Clone, Debug)]
pub(crate) struct KeyedHash {
    a: u128,
    b: u128,
}

impl KeyedHash {
    /// Keys drawn from the standard library's per-process randomness.
    pub(crate) fn random() -> Self {
        let mut draw = draw();
        Self { a: draw(), b: draw() }
    }

    /// Hashes one word.
    pub(crate) fn hash_word(&self, word: u64) -> u64 {
        (self.a.wrapping_mul(word.into()).wrapping_add(self.b) >> 64) as u64
    }
}

/// The secret keys of a table of masked flow keys.
#[derive(Clone, Debug)]
pub(crate) struct TupleHash {
    keys: [u64; KEY_WORDS + 1],
    salts: [u128; MASKS],
}

impl TupleHash {
    /// Keys drawn from the standard library's per-process randomness.
    pub(crate) fn random() -> Self {
        let mut draw = draw();
        let keys = std::array::from_fn(|_| draw() as u64);
        Self { keys, salts: std::array::from_fn(|_| draw()) }
    }

    /// The hash of a key's words under one mask.
    pub(crate) fn of(&self, mask: Mask, words: &[u64; KEY_WORDS]) -> u64 {
        let [w0, w1, w2, w3, w4, w5, w6] = mask.apply(words);
        let sum = self.salts[mask.index()]
            .wrapping_add(self.fixed([w0, w2]))
            .wrapping_add(self.port(w1))
            .wrapping_add(self.src([w3, w4]))
            .wrapping_add(self.dst([w5, w6]));
        fold(sum)
    }

    /// What it takes to hash a key's words under all masks.
    pub(crate) fn sums(&self, words: &[u64; KEY_WORDS]) -> TupleSums {
        let [w0, w1, w2, ..] = Mask::WIDEST.apply(words);
        let [.., w3, w4, w5, w6] = *words;
        let (src, dst) = (join([w3, w4]), join([w5, w6]));
        let fixed = self.fixed([w0, w2]);
        let without_port = Mask::covering(128, 128, false).apply(words)[1];
        TupleSums {
            ports: [without_port, w1].map(|word| fixed.wrapping_add(self.port(word))),
            src: STEPS.map(|bits| self.src(split(src & prefix(bits)))),
            dst: STEPS.map(|bits| self.dst(split(dst & prefix(bits)))),
        }
    }

    /// [`TupleHash::of`] the words that these are the sums of.
    pub(crate) fn of_sums(&self, mask: Mask, sums: &TupleSums) -> u64 {
        let (src, dst) = mask.steps();
        let sum = self.salts[mask.index()]
            .wrapping_add(sums.ports[usize::from(mask.has_port())])
            .wrapping_add(sums.src[src])
            .wrapping_add(sums.dst[dst]);
        fold(sum)
    }

    /// The words that all masks cover alike.
    fn fixed(&self, [a, b]: [u64; 2]) -> u128 {
        product(a.wrapping_add(self.keys[0]), b.wrapping_add(self.keys[2]))
    }

    /// The word with the destination port in it.
    fn port(&self, word: u64) -> u128 {
        product(word.wrapping_add(self.keys[1]), self.keys[7])
    }

    fn src(&self, [high, low]: [u64; 2]) -> u128 {
        product(high.wrapping_add(self.keys[3]), low.wrapping_add(self.keys[4]))
    }

    fn dst(&self, [high, low]: [u64; 2]) -> u128 {
        product(high.wrapping_add(self.keys[5]), low.wrapping_add(self.keys[6]))
    }
}

/// One key, hashed as far as masks differ.
pub(crate) struct TupleSums {
    /// Without and with the destination port.
    ports: [u128; 2],
    /// By prefix length.
    src: [u128; STEPS.len()],
    dst: [u128; STEPS.len()],
}

/// Random numbers, from the standard library's per-process randomness.
fn draw() -> impl FnMut() -> u128 {
    let source = RandomState::new();
    let mut count = 0;
    move || {
        let mut half = || {
            count += 1;
            let mut hasher = source.build_hasher();
            hasher.write_u64(count);
            hasher.finish()
        };
        join([half(), half()])
    }
}

fn join([high, low]: [u64; 2]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

fn split(bits: u128) -> [u64; 2] {
    [(bits >> 64) as u64, bits as u64]
}

fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

/// 128 bits to 64, every input bit reaching the low ones that index tables.
fn fold(sum: u128) -> u64 {
    let mixed = product((sum >> 64) as u64 ^ sum as u64, 0x9e37_79b9_7f4a_7c15);
    (mixed >> 64) as u64 ^ mixed as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_covered_bit_and_the_mask_take_part() {
        let hash = TupleHash::random();
        for mask in Mask::family() {
            let base = hash.of(mask, &[0; KEY_WORDS]);
            assert!(Mask::family().all(|m| m == mask || hash.of(m, &[0; KEY_WORDS]) != base));
            for word in 0..KEY_WORDS {
                for bit in 0..64 {
                    let mut words = [0; KEY_WORDS];
                    words[word] = 1 << bit;
                    let is_covered = mask.words()[word] & words[word] != 0;
                    assert_eq!(hash.of(mask, &words) != base, is_covered, "{word} {bit}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn hashing_under_all_masks_and_under_one_agree(words: [u64; KEY_WORDS]) {
            let hash = TupleHash::random();
            let sums = hash.sums(&words);
            for mask in Mask::family() {
                prop_assert_eq!(hash.of_sums(mask, &sums), hash.of(mask, &words));
            }
        }
    }

    #[test]
    fn keys_differ_between_tables() {
        let words = [7; KEY_WORDS];
        let of = |hash: TupleHash| hash.of(Mask::WIDEST, &words);
        assert_ne!(of(TupleHash::random()), of(TupleHash::random()));
        assert_ne!(KeyedHash::random().hash_word(7), KeyedHash::random().hash_word(7));
    }
}
