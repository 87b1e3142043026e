//! Trials: one frame through one of the programs, without an interface that carries it. For tests that
//! compare what the programs decide with what the pipeline does.

use std::io;

use super::{FlowId, Hook, Lane};

/// What a program made of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Redirected by a verdict.
    Redirected {
        /// The flow that it is of.
        flow: FlowId,
        /// Index of the interface that it leaves by.
        egress: u32,
    },
    /// Handed to the switch, or dropped because that has too much of its flow already.
    Kept,
}

impl Lane {
    /// Runs a program on a frame that came in at the interface of index `ifindex`, of the calling
    /// thread's network namespace. Nothing is sent; the flow's counters change as if it were.
    ///
    /// # Errors
    /// The kernel's: above all `EINVAL` for a frame without an Ethernet header.
    pub fn try_frame(&self, hook: Hook, ifindex: u32, frame: &[u8]) -> io::Result<Outcome> {
        let flows = self.flows();
        let before = flows.redirected();
        let program = &self.kernel.program;
        match hook {
            Hook::Tcx => program.run_tcx(ifindex, frame)?,
            Hook::Xdp => program.run_xdp(ifindex, frame)?,
        }
        let after = flows.redirected();
        let moved = after.into_iter().find(|(flow, counted)| before.get(flow) != Some(counted));
        Ok(moved.map_or(Outcome::Kept, |(flow, (_, egress))| Outcome::Redirected { flow, egress }))
    }

    /// Pretends that all that was ever handed over has left the switch, so that no flow is held.
    pub fn let_go(&self) {
        self.flows().let_go();
    }
}
