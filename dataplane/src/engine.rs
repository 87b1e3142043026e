//! The engine: umem, workers and ports as one thing that a snapshot is installed into.
//!
//! Installing a snapshot is: detach the ports that are gone, swap the policy in one step, wait until
//! every worker judges by it and has judged by it what the kernel forwards, make all other verdicts of
//! the kernel stale, attach the ports that are new. Whatever fails before the swap leaves the old policy
//! in force; a port that cannot be attached is reported and the others go on.
//!
//! [`ports`] has how these are attached, [`workers`] the threads, [`succession`] how one engine takes another's
//! place, [`report`] what it says of itself.

mod ports;
mod report;
mod succession;
mod workers;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use firedoor_classifier::policy::PolicyError;
use firedoor_classifier::snapshot::Snapshot;
use firedoor_classifier::{Nanos, Policy, PortId};

use self::ports::PortEntry;
pub use self::ports::{Lease, MAX_PORTS, MAX_QUEUES, OpenFailure, Opened, Opener};
pub use self::succession::Halted;
use self::workers::WorkerHandle;
use crate::express::Members;
use crate::mirror::Mirror;
use crate::policy::PolicyCell;
use crate::pool::{FramePool, FrameStore};
use crate::sys::umem::Umem;
use crate::wakefulness::Wakefulness;
use crate::worker::{Clock, Remains};

/// Longest wait for a worker to obey or to take a policy.
const PATIENCE: Duration = Duration::from_secs(5);
/// Policies kept for the names of their rules.
const RECENT: usize = 8;

/// Why a snapshot was not installed, or an engine not started. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The snapshot breaks its own invariants.
    #[error("the snapshot cannot be enforced: {0}")]
    Policy(#[from] PolicyError),
    /// Epochs only grow.
    #[error("the snapshot has epoch {offered}, but epoch {current} is in force: send a higher one")]
    Epoch {
        /// The snapshot's.
        offered: u64,
        /// The one in force.
        current: u64,
    },
    /// More workloads than ports.
    #[error("the snapshot has {workloads} workloads; a switch has at most {MAX_PORTS} ports")]
    TooManyPorts {
        /// How many.
        workloads: usize,
    },
    /// No memory for the umem.
    #[error(
        "no memory for a umem of {frames} frames of 4 KiB: lower `frames` in [switch]: {source}"
    )]
    Umem {
        /// Frames asked for.
        frames: u32,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a worker thread: {0}")]
    Thread(std::io::Error),
    /// A worker does not answer.
    #[error("worker {worker} did not take epoch {epoch} within {} s", PATIENCE.as_secs())]
    Stuck {
        /// Which.
        worker: usize,
        /// The epoch.
        epoch: u64,
    },
}

/// Umem, workers and ports of one switch.
pub struct Engine {
    umem: Arc<Umem>,
    store: Arc<FrameStore>,
    pool: FramePool,
    policy: Arc<PolicyCell>,
    /// The last policies, newest first: verdicts name rules by the numbers of their epoch.
    recent: VecDeque<Arc<Policy>>,
    workers: Vec<WorkerHandle>,
    ports: BTreeMap<PortId, PortEntry>,
    opener: Box<dyn Opener>,
    members: Arc<Members>,
    wakefulness: Wakefulness,
    clock: Clock,
    started: Instant,
}

impl Engine {
    /// Starts workers, puts the first snapshot in force and attaches its ports. The numbers of
    /// workers and frames stay as this snapshot says.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing is left running.
    pub fn start(snapshot: Snapshot, opener: Box<dyn Opener>) -> Result<Self, EngineError> {
        let mut engine = Self::prepare(snapshot, opener)?;
        engine.begin(|| {});
        engine.clear_away();
        Ok(engine)
    }

    /// All of [`start`](Self::start) that touches no interface, and takes time.
    ///
    /// # Errors
    /// As for it.
    pub fn prepare(snapshot: Snapshot, opener: Box<dyn Opener>) -> Result<Self, EngineError> {
        let settings = snapshot.settings;
        let frames = settings.frames.max(64);
        let policy = build(snapshot)?;
        let (umem, handles) =
            Umem::new(frames).map_err(|source| EngineError::Umem { frames, source })?;
        let umem = Arc::new(umem);
        let store = FrameStore::new(handles);
        let mut engine = Self {
            pool: FramePool::new(Arc::clone(&umem), Arc::clone(&store)),
            umem,
            store,
            policy: Arc::default(),
            recent: VecDeque::new(),
            workers: Vec::new(),
            ports: BTreeMap::new(),
            members: opener.members(),
            wakefulness: opener.wakefulness(),
            opener,
            clock: Clock::default(),
            started: Instant::now(),
        };
        engine.members.set_capacity(settings.express_flows);
        engine.put_in_force(&policy);
        engine.members.set_epoch(policy.epoch());
        if let Err(error) = engine.start_workers(settings.workers.max(1), &policy) {
            engine.give_up();
            return Err(error);
        }
        engine.prepare_ports(policy.snapshot());
        Ok(engine)
    }

    /// Puts a snapshot in force. When this returns, no worker judges by an older one.
    ///
    /// # Errors
    /// See [`EngineError`]; the old policy stays in force, unless a worker is stuck.
    pub fn install(&mut self, snapshot: Snapshot) -> Result<(), EngineError> {
        let current = self.policy.epoch();
        if snapshot.epoch <= current {
            return Err(EngineError::Epoch { offered: snapshot.epoch, current });
        }
        let policy = build(snapshot)?;
        self.detach_gone(policy.snapshot());
        self.put_in_force(&policy);
        self.enforce(policy.epoch())?;
        let queues = self.reconcile_ports(policy.snapshot());
        self.hand_out(queues);
        Ok(())
    }

    fn put_in_force(&mut self, policy: &Arc<Policy>) {
        self.recent.truncate(RECENT - 1);
        self.recent.push_front(Arc::clone(policy));
        self.wakefulness.configure(policy.snapshot().settings.wake_within_us);
        self.policy.install(Arc::clone(policy));
    }

    /// Waits for the workers, and then has the kernel forward by verdicts of this epoch alone. What they
    /// have judged again goes on all the while.
    fn enforce(&self, epoch: u64) -> Result<(), EngineError> {
        let taken = self.await_epoch(epoch);
        // Whatever a stuck worker has left as it was is stale.
        self.members.set_epoch(epoch);
        taken
    }

    fn await_epoch(&self, epoch: u64) -> Result<(), EngineError> {
        self.workers.iter().for_each(|worker| worker.doorstep.wake());
        let deadline = Instant::now() + PATIENCE;
        for (index, worker) in self.workers.iter().enumerate() {
            while worker.epoch.load(Ordering::Acquire) < epoch {
                if Instant::now() > deadline {
                    return Err(EngineError::Stuck { worker: index, epoch });
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(())
    }

    /// Ends the workers, closes the ports, and returns how many of the umem's frames came back.
    pub fn stop(mut self) -> usize {
        for Remains { queues, mut peers } in self.end_workers() {
            queues.into_iter().for_each(|queue| queue.close(&mut self.pool));
            // What a worker left with one that had ended already.
            peers.drain().into_iter().for_each(|frame| self.pool.give(frame));
        }
        self.members.discard(&mut self.pool);
        self.members.unpin();
        self.pool.flush();
        self.store.len()
    }

    /// The policy in force.
    pub fn policy(&self) -> Option<Arc<Policy>> {
        self.policy.load()
    }

    /// The policy of an epoch, if it is one of the last few.
    pub fn policy_at(&self, epoch: u64) -> Option<&Policy> {
        self.recent.iter().find(|policy| policy.snapshot().epoch == epoch).map(|policy| &**policy)
    }

    /// Each worker's mirror.
    pub fn mirrors(&self) -> Vec<Arc<Mirror>> {
        self.workers.iter().map(|worker| Arc::clone(&worker.mirror)).collect()
    }

    /// Looks whether frames come often enough to keep processors awake: to be called once a
    /// [window](crate::wakefulness::WINDOW).
    pub fn watch_load(&mut self, now: Nanos) {
        let counters = self.workers.iter().map(|worker| &worker.counters);
        let frames = counters.map(|of| of.received.get() + of.received_by_kernel.get()).sum();
        self.wakefulness.look(frames, now);
    }

    /// The clock that frames are timed by.
    pub fn clock(&self) -> Clock {
        self.clock
    }
}

fn build(snapshot: Snapshot) -> Result<Arc<Policy>, EngineError> {
    let workloads = snapshot.workloads.len();
    if workloads > MAX_PORTS.into() {
        return Err(EngineError::TooManyPorts { workloads });
    }
    Ok(Arc::new(Policy::build(snapshot)?))
}
