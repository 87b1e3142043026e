//! What of a port's frames on the long way has arrived, so that the programs know what is still there.
//!
//! A port may have only so much between the program and its worker: what comes beyond is dropped by
//! the program. In the device pair that leaves room for other ports. In XDP it is what the socket's
//! ring holds, which would drop it too, but later: once it is counted as its flow's, and then the
//! flow would wait for it. So what is too much is dropped before.

use std::time::{Duration, Instant};

use crate::sys::express::Intake;

/// How long a frame is on its way to the switch at most, if nothing else is left there.
const ON_THE_WAY: Duration = Duration::from_millis(5);

/// What was looked for.
pub(super) struct Arrivals {
    /// How many had been punted when it was last looked for lost ones, and when that was.
    looked: (u64, Instant),
}

impl Arrivals {
    /// Begins, with nothing on the way.
    pub(super) fn new() -> Self {
        Self { looked: (0, Instant::now()) }
    }

    /// So many frames have arrived, and if it is none, nothing else is there.
    pub(super) fn note(&mut self, intake: &Intake, count: usize) {
        let (punted, since) = self.looked;
        if count > 0 {
            intake.take(count as u64);
        } else if intake.is_on_the_way() && since.elapsed() > ON_THE_WAY {
            // What was punted before the last look and did not arrive was lost.
            intake.take_all_until(punted);
            self.looked = (intake.punted(), Instant::now());
        }
    }
}
