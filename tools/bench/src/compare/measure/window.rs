//! The time in which traffic is watched.

use std::time::Instant;

use super::Manner;
use crate::compare::cpu::Busy;
use crate::compare::error::{BuildError, building};

/// What happened in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// By how much the count grew.
    pub(super) count: u64,
    /// How long it was, in seconds.
    pub(super) seconds: f64,
    /// Processor seconds that the whole machine worked.
    pub(super) busy: f64,
    /// Processors that were busy, on average.
    pub(super) processors: f64,
}

impl Window {
    /// The count, per second.
    pub(super) fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.count as f64 / self.seconds } else { 0.0 }
    }

    /// Nanoseconds of processor time for each of the count; infinite if there was none.
    pub(super) fn ns_each(&self) -> f64 {
        self.busy * 1e9 / self.count as f64
    }
}

/// Watches a count for as long as `manner` says.
pub(super) fn watch(
    manner: &Manner<'_>,
    count: impl Fn() -> Result<u64, BuildError>,
) -> Result<Window, BuildError> {
    let busy = || building("read the processors' time", Busy::now());
    let (before, busy_before, start) = (count()?, busy()?, Instant::now());
    manner.wait(manner.time)?;
    let (after, busy_after, seconds) = (count()?, busy()?, start.elapsed().as_secs_f64());
    Ok(Window {
        count: after.saturating_sub(before),
        seconds,
        busy: busy_before.seconds_until(&busy_after),
        processors: busy_before.processors_until(&busy_after),
    })
}
