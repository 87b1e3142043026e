//! Frames on the long way whose passing is counted, at either lane's ports: a frame with a mark is
//! found to be of its flow when it arrives, and has left when the port is asked for the next ones.

use super::Kernel;
use super::punt::flow_of;
use super::table::{COUNTED, Counted, FlowTable};

impl Kernel {
    /// The flow of a frame that the program has handed over under `mark`, if its way is being counted.
    /// `ifindex` is the interface that it came in by.
    pub(super) fn counted(&self, frame: &[u8], ifindex: u32, mark: u16) -> Option<Counted> {
        if mark & COUNTED == 0 {
            return None;
        }
        self.flows.counted(&flow_of(frame, ifindex)?, mark)
    }
}

/// Counted frames that a port has received last: once the next are asked for, these have left.
#[derive(Default)]
pub(super) struct Leaving(Vec<Counted>);

impl Leaving {
    /// They have left.
    pub(super) fn pass(&mut self, flows: &FlowTable) {
        self.0.drain(..).for_each(|counted| flows.pass(counted));
    }

    /// One was received, if it is counted.
    pub(super) fn add(&mut self, frame: Option<Counted>) {
        self.0.extend(frame);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
