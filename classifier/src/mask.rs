//! Masks: which bits of a flow key a verdict consulted.

use crate::key::KEY_WORDS;

/// One bit set for each bit of a flow key that a verdict depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mask(pub [u64; KEY_WORDS]);
