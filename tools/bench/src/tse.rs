//! `firedoor bench tse`.
