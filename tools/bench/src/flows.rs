//! `firedoor bench flows`.
