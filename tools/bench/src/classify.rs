//! `firedoor bench classify`.
