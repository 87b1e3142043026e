//! What the engine says of itself: counters summed over workers, and listings, which workers give page by
//! page between their frames.

use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use firedoor_api::dataplane::{ExpressStatus, PortCounters, PortStatus, Status};
use firedoor_classifier::cache::FlowInfo;
use firedoor_classifier::connections::ConnectionInfo;
use firedoor_classifier::{DropReason, Nanos, Policy, PortId};

use super::{Engine, PATIENCE, PortEntry};
use crate::counters::WorkerCounters;
use crate::express::Kept;
use crate::worker::{Command, Page};

/// Entries a worker lists at once; it forwards in between.
const PAGE: usize = 256;

/// Most entries of one listing.
const MAX_LISTED: usize = 100_000;

impl Engine {
    /// Denied frames that the mirrors did not take, so far.
    pub fn mirror_lost(&self) -> u64 {
        self.workers.iter().map(|worker| worker.counters.mirror_lost.get()).sum()
    }

    /// Every port.
    pub fn ports(&self) -> Vec<PortStatus> {
        self.ports.iter().map(|(&id, entry)| self.port_status(id, entry)).collect()
    }

    pub(super) fn port_status(&self, id: PortId, entry: &PortEntry) -> PortStatus {
        let mut counters = PortCounters::default();
        self.workers.iter().for_each(|worker| worker.counters.sum_port(id, &mut counters));
        PortStatus {
            workload: entry.workload.name.clone(),
            port: id,
            ifname: entry.workload.ifname.clone(),
            state: entry.state.clone(),
            lane: entry.lane,
            mode: entry.mode.clone(),
            workers: entry.workers.clone(),
            notices: entry.notices.clone(),
            counters,
        }
    }

    /// Totals over all workers.
    pub fn status(&self) -> Status {
        let settings = self.policy.load().map(|policy| policy.snapshot().settings);
        let mut status = Status {
            pid: std::process::id(),
            uptime_secs: self.started.elapsed().as_secs(),
            epoch: self.policy.epoch(),
            workers: self.workers.len() as u16,
            max_connections: settings.map_or(0, |settings| settings.max_connections.into()),
            frames: self.umem.frames(),
            frames_leaked: crate::frame::leaked(),
            express: self.express(),
            awake: self.wakefulness.status(),
            ..Status::default()
        };
        for counters in self.workers.iter().map(|worker| &worker.counters) {
            let pipeline = counters.pipeline();
            let connections = counters.connections.get();
            status.connections += connections;
            status.connections_by.push(connections);
            let received = counters.received.get();
            status.received += received + counters.received_by_kernel.get();
            status.received_by.push(received);
            status.sent += counters.sent.get();
            status.connection_hits += pipeline.connection_hits;
            status.cache_hits += pipeline.cache_hits;
            status.upcalls += pipeline.upcalls;
            status.mac_moves += pipeline.mac_moves;
            status.checksums_completed += counters.checksums_completed.get();
            status.mirrored += counters.mirrored.get();
            status.mirror_lost += counters.mirror_lost.get();
        }
        status.drops = self.by_reason(WorkerCounters::drops, |reason| self.members.drops(reason));
        status.would_drops = self.by_reason(WorkerCounters::would_drops, |_| 0);
        status
    }

    fn express(&self) -> Option<ExpressStatus> {
        let lane = self.members.loaded()?;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(ExpressStatus {
            flows: lane.flows().len() as u64,
            max_flows: lane.flows().capacity().into(),
            pinned: lane.is_pinned(),
            heartbeat_ms: millis(lane.heartbeat()),
            open_ms: millis(lane.open_for()),
        })
    }

    fn by_reason(
        &self,
        count: impl Fn(&WorkerCounters, DropReason) -> u64,
        besides: impl Fn(DropReason) -> u64,
    ) -> Vec<(DropReason, u64)> {
        let by_workers = |reason| -> u64 {
            self.workers.iter().map(|worker| count(&worker.counters, reason)).sum()
        };
        let total = |reason| by_workers(reason) + besides(reason);
        DropReason::ALL
            .iter()
            .map(|&reason| (reason, total(reason)))
            .filter(|&(_, count)| count > 0)
            .collect()
    }

    /// Why the switch forwards a connection itself; `None` if the kernel forwards one of its directions.
    pub fn kept(&self, policy: &Policy, info: &ConnectionInfo) -> Option<Kept> {
        Kept::why(policy, &self.members, info)
    }

    /// Live connections, at most 100,000.
    pub fn connections(&self) -> Vec<(ConnectionInfo, Nanos)> {
        self.list(|from, limit, reply| Command::ListConnections { from, limit, reply })
    }

    /// Cached flows, at most 100,000.
    pub fn flows(&self) -> Vec<(FlowInfo, Nanos)> {
        self.list(|from, limit, reply| Command::ListFlows { from, limit, reply })
    }

    fn list<T>(
        &self,
        command: impl Fn(usize, usize, Sender<Page<T>>) -> Command,
    ) -> Vec<(T, Nanos)> {
        let mut all = Vec::new();
        for worker in &self.workers {
            let mut from = Some(0);
            while let Some(position) = from.filter(|_| all.len() < MAX_LISTED) {
                let (reply, page) = bounded(1);
                worker.tell(command(position, PAGE, reply));
                let Ok((entries, next, now)) = page.recv_timeout(PATIENCE) else { break };
                all.extend(entries.into_iter().map(|entry| (entry, now)));
                from = next;
            }
        }
        all
    }
}
