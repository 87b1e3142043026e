//! One measurement: a scenario's traffic through a system that is up.
//!
//! Traffic starts, settles, and is then watched for a while: what arrived, and how long the
//! machine's processors were busy meanwhile. Both ends of the window are read together, so nothing
//! before or after it counts.

mod attack;
mod echo;
mod stream;
mod udp;
mod window;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::BuildError;
use super::histogram::Histogram;
use super::scenario::{Metric, Traffic};
use super::topology::Topology;

pub(super) use echo::prime;
pub(super) use udp::SEED;

/// How a measurement is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner<'a> {
    /// How long traffic is watched.
    pub time: Duration,
    /// Becomes true when it should stop.
    pub interrupted: &'a AtomicBool,
}

impl Manner<'_> {
    /// Waits, unless someone asks to stop.
    fn wait(&self, time: Duration) -> Result<(), BuildError> {
        const STEP: Duration = Duration::from_millis(50);
        let mut left = time;
        while !left.is_zero() {
            if self.interrupted.load(Ordering::Relaxed) {
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
        Traffic::RoundTrips(waiting) => echo::measure(waiting, topology, manner),
        Traffic::Silence => silence(manner),
    }
}

/// How long after the last traffic the machine is left to come to rest.
const REST: Duration = Duration::from_millis(500);

fn silence(manner: &Manner<'_>) -> Result<Sample, BuildError> {
    manner.wait(REST)?;
    // Processor time is counted in ticks of 10 ms: a short look would see none.
    let patient = Manner { time: manner.time.max(Duration::from_secs(3)), ..*manner };
    let window = window::watch(&patient, || Ok(0))?;
    Ok(Sample::of([(Metric::IdleProcessors, window.processors)]))
}
