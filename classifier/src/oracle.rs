//! The linear oracle: judges by walking the snapshot's lists, with no table, cache or mask. Slow
//! and obvious; every fast path must agree with it.
