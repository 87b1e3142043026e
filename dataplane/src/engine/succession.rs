//! One engine in another's place: what is prepared beside a predecessor, what is taken over from it, and how one
//! makes way for its successor.
//!
//! Nothing is judged from the predecessor's last turn to the successor's first, so all that takes time and
//! touches no port is done before: memory, workers, policy, programs that the kernel has verified, the device
//! pair of the express lane. What is left is to get the ports' queues, and to judge the connections again that
//! the kernel has gone on with.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::unbounded;
use firedoor_classifier::snapshot::Snapshot;

use super::ports::{Lease, MAX_PORTS, fill_share};
use super::{Engine, EngineError, PATIENCE, build};
use crate::express::inherit::Legacy;
use crate::port::Port;
use crate::worker::{Command, Remains};

impl Engine {
    /// Does what can be done for the ports while a predecessor has them.
    pub(super) fn prepare_ports(&mut self, snapshot: &Snapshot) {
        let Some(first) = snapshot.workloads.first() else { return };
        let ports = snapshot.workloads.len();
        self.umem.set_spares(ports + 1);
        let queues = ports as u32 * self.workers.len() as u32;
        let fill = fill_share(self.umem.frames(), self.store.len() as u32, queues);
        let tags = tags_of(snapshot);
        self.members.prepare(&tags, &self.umem, &first.ifname, fill, &mut self.pool);
        self.pool.flush();
    }

    /// Has what the kernel does not forward wait for this engine from now on, as far as it can be received before
    /// the predecessor has given its queues up. That one is to [retire](Self::halt) then.
    pub fn take_misses(&self) {
        if let Some(policy) = self.policy.load() {
            self.members.take_misses(&tags_of(policy.snapshot()));
        }
    }

    /// Between [`prepare`](Self::prepare) and [`begin`](Self::begin): puts a snapshot in force that is
    /// newer than the one it was prepared with, if this is.
    ///
    /// # Errors
    /// See [`EngineError`]; the older one stays in force.
    pub fn renew(&mut self, snapshot: Snapshot) -> Result<(), EngineError> {
        if snapshot.epoch > self.policy.epoch() {
            let policy = build(snapshot)?;
            self.put_in_force(&policy);
            self.enforce(policy.epoch())?;
        }
        Ok(())
    }

    /// The rest of [`start`](Self::start): takes over what a predecessor has left in the kernel, and
    /// attaches the ports, whose queues are free once `await_queues` returns. No frame is judged before the
    /// predecessor's connections were. Returns how many flows there were.
    pub fn begin(&mut self, await_queues: impl FnOnce()) -> usize {
        let Some(policy) = self.policy.load() else { return 0 };
        let mut steps = Steps::begin();
        let lane = self.members.resume(&tags_of(policy.snapshot()), &mut self.pool);
        steps.note("lane");
        let (queues, flows, connections) = std::thread::scope(|scope| {
            let left = scope.spawn(move || {
                let inherited = lane.map_or_else(Vec::new, |lane| lane.inherit());
                (inherited.len(), Legacy::of_flows(inherited))
            });
            await_queues();
            steps.note("queues");
            let queues = self.reconcile_ports(policy.snapshot());
            steps.note("ports");
            let (flows, connections) = left.join().unwrap_or_else(|panic| resume_unwind(panic));
            (queues, flows, connections)
        });
        steps.note("flows");
        if flows > 0 {
            tracing::info!(flows, "judging the kernel's flows again");
            let (reply, done) = unbounded();
            for worker in &self.workers {
                let (connections, reply) = (Arc::clone(&connections), reply.clone());
                worker.tell(Command::Inherit { connections, reply });
            }
            // All of them, because a frame may come in at another worker than the one it belongs to.
            self.workers.iter().for_each(|_| _ = done.recv_timeout(PATIENCE));
        }
        self.members.set_epoch(policy.epoch());
        self.hand_out(queues);
        steps.note("judged");
        steps.tell();
        flows
    }

    /// Instead of [`begin`](Self::begin): gives up what was prepared. The predecessor keeps all that it has, on
    /// interfaces and pinned.
    pub fn give_up(mut self) {
        self.end_workers();
        self.members.discard(&mut self.pool);
    }

    /// After [`begin`](Self::begin), what nobody waits for: takes away what the predecessor has left and what
    /// was prepared for nothing. The kernel may take seconds to remove a device while it makes many others.
    pub fn clear_away(&self) {
        self.umem.set_spares(0);
        self.members.clear_away();
    }

    /// Ends the workers: no frame is judged any more. What the kernel does for the ports goes on.
    pub fn halt(mut self) -> Halted {
        let remains = self.end_workers();
        Halted { remains, engine: self }
    }
}

/// By interface, what an engine that begins with this snapshot has the express lane's programs know its ports by.
fn tags_of(snapshot: &Snapshot) -> HashMap<&str, u16> {
    let tags = (0..MAX_PORTS).map(|slot| Lease::of(slot, 0).tag());
    snapshot.workloads.iter().map(|workload| workload.ifname.as_str()).zip(tags).collect()
}

/// How long the steps of a beginning took, for the log.
struct Steps {
    since: Instant,
    taken: Vec<(&'static str, Duration)>,
}

impl Steps {
    fn begin() -> Self {
        Self { since: Instant::now(), taken: Vec::new() }
    }

    fn note(&mut self, step: &'static str) {
        let now = Instant::now();
        self.taken.push((step, now - self.since));
        self.since = now;
    }

    fn tell(self) {
        tracing::info!(steps = ?self.taken, "frames are judged");
    }
}

/// An engine whose workers have ended for a successor's sake.
pub struct Halted {
    remains: Vec<Remains>,
    engine: Engine,
}

impl Halted {
    /// Closes the ports' sockets, so that the successor gets their queues, and leaves all else to the end of the
    /// process. For each the kernel waits for a grace period, tens of milliseconds: for all of them at once
    /// if each has a thread.
    pub fn let_go(self) {
        let Self { remains, engine } = self;
        let lane = engine.members.loaded();
        std::thread::scope(|scope| {
            for Remains { queues, peers } in remains {
                std::mem::forget(peers);
                for queue in queues {
                    // Without a thread it is abandoned right here, with the closure.
                    let abandon = Abandon(Some(queue));
                    let _ = std::thread::Builder::new().spawn_scoped(scope, move || drop(abandon));
                }
            }
            lane.into_iter().for_each(|lane| lane.abandon());
        });
        std::mem::forget(engine);
    }
}

/// A queue that is abandoned with it.
struct Abandon(Option<Box<dyn Port>>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Port::abandon);
    }
}
