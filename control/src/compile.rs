//! Intent to snapshot: pure and deterministic.
