//! The time in which traffic is watched.

use std::time::{Duration, Instant};

use super::Manner;
use super::steady::Parts;
use crate::compare::cpu::Busy;
use crate::compare::error::{BuildError, building};

/// What was counted up to some moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    /// What arrived.
    pub(super) arrived: u64,
    /// What was sent, where that is of interest.
    pub(super) offered: u64,
}

impl Count {
    /// Of what arrives only.
    pub(super) fn arrived(arrived: u64) -> Self {
        Self { arrived, ..Self::default() }
    }
}

/// What happened in the parts of it that count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    /// By how much the count grew.
    pub(super) count: Count,
    /// How long it was, in seconds.
    pub(super) seconds: f64,
    /// Processor seconds that the whole machine worked.
    pub(super) busy: f64,
    /// Share of it that the processors ran at their full speed in.
    pub(super) undisturbed: f64,
}

impl Window {
    /// What arrived, per second.
    pub(super) fn rate(&self) -> f64 {
        self.per_second(self.count.arrived)
    }

    /// What was sent, per second.
    pub(super) fn offered(&self) -> f64 {
        self.per_second(self.count.offered)
    }

    fn per_second(&self, count: u64) -> f64 {
        if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 }
    }

    /// Nanoseconds of processor time for each that arrived; infinite if none did.
    pub(super) fn ns_each(&self) -> f64 {
        self.busy * 1e9 / self.count.arrived as f64
    }
}

/// Length of a part of a window.
const PART: Duration = Duration::from_millis(100);

/// What all came to up to some moment.
struct Look {
    count: Count,
    busy: Busy,
    at: Instant,
}

/// Watches a count until as much as `manner` says was seen with all processors at full speed.
pub(super) fn watch(
    manner: &Manner<'_>,
    count: impl Fn() -> Result<Count, BuildError>,
) -> Result<Window, BuildError> {
    let look = || -> Result<Look, BuildError> {
        let busy = building("read the processors' time", Busy::now())?;
        Ok(Look { count: count()?, busy, at: Instant::now() })
    };
    let probe = || building("run on each processor", manner.pace.probe_all());
    let mut parts = Parts::begin(manner.pace, probe()?);
    while parts.want_more(manner.time) {
        let before = look()?;
        manner.wait(PART.min(manner.time))?;
        let after = look()?;
        parts.end(Window::between(&before, &after), after.at - before.at, probe()?);
    }
    let (steady, share) = parts.steady();
    let sum = steady.fold(Window::default(), Window::with);
    Ok(Window { undisturbed: share, ..sum })
}

/// Processors that are busy, on average. The whole time counts, since looking more often would wake them.
pub(super) fn busy_processors(manner: &Manner<'_>) -> Result<f64, BuildError> {
    let busy = || building("read the processors' time", Busy::now());
    let before = busy()?;
    manner.wait(manner.time)?;
    Ok(before.processors_until(&busy()?))
}

impl Window {
    fn between(before: &Look, after: &Look) -> Self {
        Self {
            count: Count {
                arrived: after.count.arrived.saturating_sub(before.count.arrived),
                offered: after.count.offered.saturating_sub(before.count.offered),
            },
            seconds: (after.at - before.at).as_secs_f64(),
            busy: before.busy.seconds_until(&after.busy),
            undisturbed: 1.0,
        }
    }

    fn with(self, other: &Self) -> Self {
        Self {
            count: Count {
                arrived: self.count.arrived + other.count.arrived,
                offered: self.count.offered + other.count.offered,
            },
            seconds: self.seconds + other.seconds,
            busy: self.busy + other.busy,
            ..self
        }
    }
}
