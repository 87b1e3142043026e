//! Counting what arrives.

use std::thread::sleep;
use std::time::{Duration, Instant};

use firedoor_dataplane::sys::tally::{Arrived, Place, Tally};
use firedoor_lab::netns::Netns;

use super::generator::index;
use super::{Received, TrafficError};

/// How long nothing must have arrived for all to have arrived.
const QUIET: Duration = Duration::from_millis(20);

/// A counting program at one interface. It counts the frames of loads and drops them; others pass.
/// Dropping the sink takes it off.
pub struct Sink {
    tally: Tally,
    ifname: String,
    netns: String,
}

impl Sink {
    /// Starts counting at an interface of a namespace.
    ///
    /// # Errors
    /// If there is no such interface, it has another XDP program, or without root.
    pub fn attach(netns: &Netns, ifname: &str, place: Place) -> Result<Self, TrafficError> {
        let tally = netns.run(|| {
            let index = index(netns, ifname)?;
            Tally::attach(ifname, index, place).map_err(|source| TrafficError::Kernel {
                doing: "count frames at",
                ifname: ifname.to_owned(),
                netns: netns.name().to_owned(),
                source,
            })
        })??;
        Ok(Self { tally, ifname: ifname.to_owned(), netns: netns.name().to_owned() })
    }

    /// What was received since the sink was attached.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn read(&self) -> Result<Received, TrafficError> {
        let Arrived { frames, bytes, highest, reordered } =
            self.tally.read().map_err(|source| TrafficError::Kernel {
                doing: "read the count of",
                ifname: self.ifname.clone(),
                netns: self.netns.clone(),
                source,
            })?;
        Ok(Received { frames, bytes, highest, reordered })
    }

    /// Waits until nothing more arrives, for `patience` at most, and reads.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn settle(&self, patience: Duration) -> Result<Received, TrafficError> {
        let deadline = Instant::now() + patience;
        let mut before = self.read()?;
        loop {
            sleep(QUIET);
            let now = self.read()?;
            if now == before || Instant::now() >= deadline {
                return Ok(now);
            }
            before = now;
        }
    }
}
