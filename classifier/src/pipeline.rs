//! One worker's deciding half: connections, flow cache, MAC table and policy in a straight line.

use std::sync::Arc;

use crate::cache::FlowInfo;
use crate::connections::ConnectionInfo;
use crate::extract::Headers;
use crate::policy::Policy;
use crate::snapshot::PortId;
use crate::time::Nanos;
use crate::verdict::Verdict;

/// Judges frames, one after the other, for one worker.
pub struct Pipeline {
    policy: Arc<Policy>,
}

/// Running totals of a pipeline, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipelineStats {
    /// Verdicts by connections.
    pub connection_hits: u64,
    /// Verdicts by the flow cache.
    pub cache_hits: u64,
    /// Verdicts by upcall.
    pub upcalls: u64,
    /// Connections begun.
    pub connections_created: u64,
    /// Connections that ended or timed out.
    pub connections_ended: u64,
    /// Learned MAC addresses that moved to another port.
    pub mac_moves: u64,
}

impl Pipeline {
    /// A pipeline with empty tables.
    pub fn new(policy: Arc<Policy>) -> Self {
        Self { policy }
    }

    /// Puts another policy in force. Every cached verdict is stale from here on.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
        self.policy = policy;
    }

    /// The policy in force.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Judges one frame of `bytes` bytes and, if it is forwarded, commits its connection.
    ///
    /// This is steps 3 to 5 of the path of a frame, and the state half of step 6.
    pub fn judge(&mut self, headers: &Headers, bytes: usize, now: Nanos) -> Verdict {
        let _ = (headers, bytes, now);
        todo!()
    }

    /// The ports that the last [`Action::Flood`](crate::verdict::Action::Flood) verdict reaches.
    pub fn receivers(&self) -> &[PortId] {
        todo!()
    }

    /// Work that is due by time alone: expiry and ageing, a bounded amount per call.
    pub fn tick(&mut self, now: Nanos) {
        let _ = now;
        todo!()
    }

    /// Running totals.
    pub fn stats(&self) -> PipelineStats {
        todo!()
    }

    /// Live connections.
    pub fn connections(&self) -> usize {
        todo!()
    }

    /// A page of live connections; see [`Connections::list`](crate::connections::Connections::list).
    pub fn list_connections(
        &self,
        from: usize,
        limit: usize,
        now: Nanos,
    ) -> (Vec<ConnectionInfo>, Option<usize>) {
        let _ = (from, limit, now);
        todo!()
    }

    /// A page of cached flows of the current epoch.
    pub fn list_flows(&self, from: usize, limit: usize) -> (Vec<FlowInfo>, Option<usize>) {
        let _ = (from, limit);
        todo!()
    }
}
