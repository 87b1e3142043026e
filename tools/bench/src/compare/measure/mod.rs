//! One measurement: a scenario's traffic through a system that is up.
//!
//! Traffic starts, settles, and is then watched for a while: what arrived, and how long the
//! machine's processors were busy meanwhile. Both ends of the window are read together, so nothing
//! before or after it counts.

mod attack;
mod echo;
mod first;
mod steady;
mod stream;
mod udp;
mod window;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::error::BuildError;
use super::histogram::Histogram;
use super::metric::Metric;
use super::scenario::Traffic;
use super::topology::Topology;

pub(super) use echo::prime;
pub(super) use steady::Pace;
pub(super) use udp::SEED;

/// How a measurement is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner<'a> {
    /// How long traffic is watched.
    pub time: Duration,
    /// How long round trips are made before they count, if that is more than usual.
    pub settle: Duration,
    /// How fast the processors are.
    pub pace: &'a Pace,
    /// Becomes true when it should stop.
    pub interrupted: &'a AtomicBool,
}

impl Manner<'_> {
    /// Whether someone asks to stop.
    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Waits, unless someone asks to stop.
    fn wait(&self, time: Duration) -> Result<(), BuildError> {
        const STEP: Duration = Duration::from_millis(50);
        let mut left = time;
        while !left.is_zero() {
            if self.is_interrupted() {
                return Err(BuildError::Interrupted);
            }
            let step = left.min(STEP);
            std::thread::sleep(step);
            left -= step;
        }
        Ok(())
    }
}

/// What one measurement found.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// A value for each metric of the traffic.
    pub values: BTreeMap<Metric, f64>,
    /// Every round trip, where there were any.
    pub round_trips: Histogram,
    /// What a reader of the values should know.
    pub note: Option<&'static str>,
}

impl Sample {
    /// Takes into account how many processors were busy before the system was there.
    pub(super) fn beside(mut self, bare: f64) -> Self {
        if let Some(busy) = self.values.get(&Metric::IdleProcessors) {
            let added = busy - bare;
            self.values.extend([(Metric::BareProcessors, bare), (Metric::AddedProcessors, added)]);
        }
        self
    }
}

impl Sample {
    fn of<const N: usize>(values: [(Metric, f64); N]) -> Self {
        Self { values: values.into(), ..Self::default() }
    }
}

/// Measures.
///
/// # Errors
/// If a socket or a generator fails, nothing arrives, or someone asks to stop.
pub(super) fn measure(
    traffic: Traffic,
    topology: &Topology,
    manner: &Manner<'_>,
) -> Result<Sample, BuildError> {
    match traffic {
        Traffic::Udp(load) => udp::measure(load, topology, manner),
        Traffic::LossFree(load) => udp::measure_loss_free(load, topology, manner),
        Traffic::Attack { victim, attack } => attack::measure(victim, attack, topology, manner),
        Traffic::Tcp { streams } => stream::measure(streams, topology, manner),
        Traffic::Connections => stream::measure_connections(topology, manner),
        Traffic::Firsts(opening) => first::measure(opening, topology, manner),
        Traffic::RoundTrips(waiting) => echo::measure(waiting, topology, manner),
        Traffic::Silence => silence(topology, manner),
    }
}

/// Processors that are busy while nothing is sent, on average.
///
/// # Errors
/// If the kernel does not say, or someone asks to stop.
pub(super) fn busy_processors(manner: &Manner<'_>) -> Result<f64, BuildError> {
    manner.wait(REST)?;
    // A longer look averages out what else the machine does from time to time.
    let patient = Manner { time: manner.time.max(Duration::from_millis(1_500)), ..*manner };
    window::busy_processors(&patient)
}

/// How long after the last traffic the machine is left to come to rest.
const REST: Duration = Duration::from_millis(500);

fn silence(topology: &Topology, manner: &Manner<'_>) -> Result<Sample, BuildError> {
    let (before, start) = (topology.ran_in_switch(), Instant::now());
    let busy = busy_processors(manner)?;
    let ran = topology.ran_in_switch().saturating_sub(before);
    let own = ran.as_secs_f64() / start.elapsed().as_secs_f64();
    Ok(Sample::of([(Metric::IdleProcessors, busy), (Metric::OwnProcessors, own)]))
}
