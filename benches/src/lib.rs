//! What the benchmarks have in common: one policy, its traffic, and a switch without a kernel.
//!
//! Everything is made from fixed seeds, so two runs do the same work. Times are per frame unless a
//! benchmark's name says otherwise; docs/performance.md says how to read them.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod scene;
pub mod switch;
pub mod traffic;

/// How long each benchmark runs: all of them together take about two minutes.
#[macro_export]
macro_rules! settings {
    () => {
        criterion::Criterion::default()
            .warm_up_time(std::time::Duration::from_millis(500))
            .measurement_time(std::time::Duration::from_secs(2))
            .sample_size(30)
    };
}
