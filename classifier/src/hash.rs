//! Keyed hashes of fixed-size keys, for tables whose keys strangers choose.
//!
//! Both are universal: two different inputs collide with a probability that depends on the secret
//! keys alone. Whoever does not know them can not aim frames at one bucket.
//!
//! For a flow key, NH: the inner hash of UMAC (Black et al., CRYPTO '99; RFC 4418 §5.2), on 64-bit words:
//! the sum of `(a + k0) × (b + k1)` over pairs of words, modulo 2^128. Two different inputs collide
//! with probability at most 2^-64. For one word, multiply-shift (Dietzfelbinger, STACS '96): the upper
//! half of `a × x + b` modulo 2^128.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::key::KEY_WORDS;

/// Words that are hashed at once: the key's and one for the caller, which makes them even.
const WORDS: usize = KEY_WORDS + 1;

/// The secret keys of one table.
#[derive(Clone, Debug)]
pub(crate) struct KeyedHash {
    keys: [u64; WORDS],
}

impl KeyedHash {
    /// Keys drawn from the standard library's per-process randomness.
    pub(crate) fn random() -> Self {
        let source = RandomState::new();
        let keys = std::array::from_fn(|i| {
            let mut hasher = source.build_hasher();
            hasher.write_usize(i);
            hasher.finish()
        });
        Self { keys }
    }

    /// Hashes `words` and `salt`.
    pub(crate) fn hash(&self, words: &[u64; KEY_WORDS], salt: u64) -> u64 {
        let [a, b, c, d, e, f, g] = *words;
        let [k0, k1, k2, k3, k4, k5, k6, k7] = self.keys;
        let sum = product(a.wrapping_add(k0), b.wrapping_add(k1))
            .wrapping_add(product(c.wrapping_add(k2), d.wrapping_add(k3)))
            .wrapping_add(product(e.wrapping_add(k4), f.wrapping_add(k5)))
            .wrapping_add(product(g.wrapping_add(k6), salt.wrapping_add(k7)));
        fold(sum)
    }

    /// Hashes one word.
    pub(crate) fn hash_word(&self, word: u64) -> u64 {
        let [a_high, a_low, b_high, b_low, ..] = self.keys;
        let a = u128::from(a_high) << 64 | u128::from(a_low);
        let b = u128::from(b_high) << 64 | u128::from(b_low);
        (a.wrapping_mul(word.into()).wrapping_add(b) >> 64) as u64
    }
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
    use super::*;

    #[test]
    fn every_word_and_the_salt_take_part() {
        let hash = KeyedHash::random();
        let base = hash.hash(&[0; KEY_WORDS], 0);
        assert_ne!(hash.hash(&[0; KEY_WORDS], 1), base);
        for word in 0..KEY_WORDS {
            for bit in 0..64 {
                let mut words = [0; KEY_WORDS];
                words[word] = 1 << bit;
                assert_ne!(hash.hash(&words, 0), base, "word {word} bit {bit}");
            }
        }
    }

    #[test]
    fn keys_differ_between_tables() {
        let words = [7; KEY_WORDS];
        assert_ne!(KeyedHash::random().hash(&words, 0), KeyedHash::random().hash(&words, 0));
    }
}
