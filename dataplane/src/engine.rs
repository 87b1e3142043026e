//! The engine: umem, workers and ports as one thing that a snapshot is installed into.
//!
//! Installing a snapshot is: detach the ports that are gone, swap the policy in one step, wait until
//! every worker judges by it and has judged by it what the kernel forwards, make all other verdicts of
//! the kernel stale, attach the ports that are new. Whatever fails before the swap leaves the old policy
//! in force; a port that cannot be attached is reported and the others go on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded, unbounded};
use firedoor_api::dataplane::{ExpressStatus, PortCounters, PortState, PortStatus, Status};
use firedoor_classifier::cache::FlowInfo;
use firedoor_classifier::connections::{Claims, ConnectionInfo, Directory};
use firedoor_classifier::policy::PolicyError;
use firedoor_classifier::snapshot::{Lane, Snapshot, Workload};
use firedoor_classifier::{DropReason, Pipeline, Policy, PortId};

use crate::counters::WorkerCounters;
use crate::express::inherit::Legacy;
use crate::express::offload::Offload;
use crate::express::{Kept, Members};
use crate::fragments::Fragmented;
use crate::handoff::{Doorstep, Peers};
use crate::mirror::{Mirror, MirrorSender};
use crate::outbox::Outbox;
use crate::path::{Burst, Path};
use crate::policy::PolicyCell;
use crate::pool::{FramePool, FrameStore};
use crate::port::Port;
use crate::sys::affinity;
use crate::sys::umem::Umem;
use crate::worker::{Clock, Command, Page, Remains, Worker};

/// Longest wait for a worker to obey or to take a policy.
const PATIENCE: Duration = Duration::from_secs(5);
/// Entries a worker lists at once; it forwards in between.
const PAGE: usize = 256;
/// Most entries of one listing.
const MAX_LISTED: usize = 100_000;
/// Policies kept for the names of their rules.
const RECENT: usize = 8;
/// Most queues of a port, and so the umem owner numbers set aside for each.
pub const MAX_QUEUES: u16 = 64;
/// Most ports of a switch.
pub const MAX_PORTS: u16 = u16::MAX / MAX_QUEUES;
/// A port's share of the umem for receiving, between these.
const FILL: std::ops::RangeInclusive<u32> = 32..=1024;

/// Opens the port of a workload: a kernel interface, or a stand-in in tests.
pub trait Opener: Send {
    /// Opens the port. Its queues lend frames to the kernel as the lease says.
    ///
    /// # Errors
    /// Why it cannot be attached now.
    fn open(
        &mut self,
        umem: &Arc<Umem>,
        lease: Lease,
        workload: &Workload,
        pool: &mut FramePool,
    ) -> Result<Opened, OpenFailure>;

    /// The ports that the express lane reaches. The opener tells of those it opened, the engine of
    /// those that were closed.
    fn members(&self) -> Arc<Members> {
        Arc::default()
    }
}

/// What of the umem a port may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// First of the [`MAX_QUEUES`] owner numbers that its queues go by.
    pub owner_base: u16,
    /// Frames that each of its queues may keep with the kernel for receiving.
    pub fill: u32,
}

/// An open port.
pub struct Opened {
    /// Its queues.
    pub queues: Vec<Box<dyn Port>>,
    /// How it is attached, for people.
    pub mode: String,
    /// Notices, for people.
    pub notices: Vec<String>,
    /// The lane that carries it.
    pub lane: Lane,
    /// The interface's index, which tells a re-made interface from the old one.
    pub ifindex: u32,
}

/// Why a port is not open.
#[derive(Debug)]
pub enum OpenFailure {
    /// The interface does not exist; the port is opened when it appears.
    Missing,
    /// It cannot be opened: what, and what to do.
    Failed(String),
}

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
    clock: Clock,
    started: Instant,
}

struct WorkerHandle {
    commands: Sender<Command>,
    doorstep: Arc<Doorstep>,
    counters: Arc<WorkerCounters>,
    epoch: Arc<AtomicU64>,
    mirror: Arc<Mirror>,
    thread: JoinHandle<()>,
}

/// What a worker is to hear of a port that was opened.
struct Share {
    worker: usize,
    command: Command,
}

struct PortEntry {
    workload: Workload,
    state: PortState,
    lane: Lane,
    mode: String,
    /// Who has each of its queues.
    workers: Vec<u16>,
    notices: Vec<String>,
    ifindex: u32,
    /// Its place among the umem's owners.
    slot: u16,
}

impl Engine {
    /// Starts workers, puts the first snapshot in force and attaches its ports. The numbers of
    /// workers and frames stay as this snapshot says.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing is left running.
    pub fn start(snapshot: Snapshot, opener: Box<dyn Opener>) -> Result<Self, EngineError> {
        let mut engine = Self::prepare(snapshot, opener)?;
        engine.begin();
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
            opener,
            clock: Clock::default(),
            started: Instant::now(),
        };
        engine.members.set_capacity(settings.express_flows);
        engine.put_in_force(&policy);
        engine.members.set_epoch(policy.epoch());
        engine.start_workers(settings.workers.max(1), &policy)?;
        engine.members.prepare();
        Ok(engine)
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
    /// attaches the ports. No frame is judged before the predecessor's connections were. Returns how
    /// many flows there were.
    pub fn begin(&mut self) -> usize {
        let Some(policy) = self.policy.load() else { return 0 };
        let inherited = self.members.resume();
        let flows = inherited.len();
        let queues = self.reconcile_ports(policy.snapshot());
        if !inherited.is_empty() {
            tracing::info!(flows = inherited.len(), "judging the kernel's flows again");
            let connections = Legacy::of_flows(inherited);
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
        self.members.keep_links();
        flows
    }

    fn start_workers(&mut self, count: u16, policy: &Arc<Policy>) -> Result<(), EngineError> {
        let shared =
            (count > 1).then(|| Directory::new(policy.snapshot().settings.max_connections));
        for peers in Peers::of(count) {
            let claims = shared.as_ref().map(|all| Claims::new(Arc::clone(all), peers.me()));
            let handle = self.start_worker(peers, claims, policy)?;
            self.workers.push(handle);
        }
        Ok(())
    }

    fn start_worker(
        &self,
        peers: Peers,
        claims: Option<Claims>,
        policy: &Arc<Policy>,
    ) -> Result<WorkerHandle, EngineError> {
        let (index, doorstep) = (peers.me(), Arc::clone(peers.doorstep()));
        let settings = &policy.snapshot().settings;
        let (commands, inbox) = unbounded();
        let counters = Arc::<WorkerCounters>::default();
        let epoch = Arc::<AtomicU64>::default();
        let mirror = Mirror::new(settings.mirror_snaplen);
        let mut pipeline = Pipeline::new(Arc::clone(policy));
        pipeline.set_aside();
        let is_alone = claims.is_none();
        claims.into_iter().for_each(|claims| pipeline.share(claims));
        let path = Path {
            pipeline,
            pool: FramePool::new(Arc::clone(&self.umem), Arc::clone(&self.store)),
            outbox: Outbox::default(),
            counters: Arc::clone(&counters),
            mirror: MirrorSender::new(
                Arc::clone(&mirror),
                settings.mirror_per_sec,
                settings.mirror_snaplen,
            ),
            peers,
            offload: Offload::new(Arc::clone(&self.members)),
            burst: Burst::default(),
            parcels: Vec::new(),
            fragments: Fragmented::new(settings, self.umem.frames()),
        };
        let cell = Arc::clone(&self.policy);
        let worker = Worker::new(path, cell, Arc::clone(&epoch), inbox, self.clock);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                if !is_alone {
                    pin(index);
                }
                if let Err(error) = worker.run() {
                    tracing::error!(%error, worker = index, "a worker ended");
                }
            })
            .map_err(EngineError::Thread)?;
        Ok(WorkerHandle { commands, doorstep, counters, epoch, mirror, thread })
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

    /// Detaches every port that the snapshot does not have, or has on another interface.
    fn detach_gone(&mut self, snapshot: &Snapshot) {
        let stays = |id: PortId, entry: &PortEntry| {
            snapshot.workloads.iter().any(|w| {
                w.port == id && w.name == entry.workload.name && w.ifname == entry.workload.ifname
            })
        };
        let gone: Vec<PortId> = self
            .ports
            .iter()
            .filter(|(id, entry)| !stays(**id, entry))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.detach(id);
            self.ports.remove(&id);
            self.workers.iter().for_each(|worker| worker.counters.reset_port(id));
        }
    }

    /// Attaches every port of the snapshot that is not attached. Returns what is to be
    /// [handed out](Self::hand_out).
    fn reconcile_ports(&mut self, snapshot: &Snapshot) -> Vec<Share> {
        let mut added = Vec::new();
        for workload in &snapshot.workloads {
            match self.ports.get_mut(&workload.port) {
                Some(entry) => entry.workload = workload.clone(),
                None => {
                    let entry = PortEntry {
                        workload: workload.clone(),
                        state: PortState::Missing,
                        lane: Lane::Switch,
                        mode: String::new(),
                        workers: Vec::new(),
                        notices: Vec::new(),
                        ifindex: 0,
                        slot: self.free_slot(),
                    };
                    self.ports.insert(workload.port, entry);
                    added.push(workload.port);
                }
            }
        }
        // Once all are known: a port's share of the umem depends on how many there are.
        self.attach_all(&added)
    }

    fn hand_out(&self, shares: Vec<Share>) {
        for Share { worker, command } in shares {
            self.workers[worker].tell(command);
        }
    }

    /// An interface appeared, changed or vanished. `ifindex` is its index now, `None` if it is gone.
    /// Returns the port's new status if its state changed.
    pub fn link_changed(&mut self, ifname: &str, ifindex: Option<u32>) -> Option<PortStatus> {
        let (&id, entry) = self.ports.iter().find(|(_, entry)| entry.workload.ifname == ifname)?;
        let before = entry.state.clone();
        let up = before == PortState::Up;
        if up && ifindex != Some(entry.ifindex) {
            self.detach(id);
        }
        if ifindex.is_some() && self.ports.get(&id)?.state == PortState::Missing {
            let queues = self.attach_all(&[id]);
            self.hand_out(queues);
        }
        let entry = self.ports.get(&id)?;
        (entry.state != before).then(|| self.port_status(id, entry))
    }

    /// Tries every port again that could not be attached. Returns the status of those that changed.
    /// Not driven by interface events, because a failing attempt makes some itself.
    pub fn retry_ports(&mut self) -> Vec<PortStatus> {
        let is_failed = |entry: &PortEntry| matches!(entry.state, PortState::Failed(_));
        let failed: Vec<PortId> =
            self.ports.iter().filter(|(_, e)| is_failed(e)).map(|(&id, _)| id).collect();
        let queues = self.attach_all(&failed);
        self.hand_out(queues);
        failed
            .iter()
            .filter_map(|id| Some((id, self.ports.get(id)?)))
            .filter(|(_, entry)| !is_failed(entry))
            .map(|(&id, entry)| self.port_status(id, entry))
            .collect()
    }

    /// Interfaces have begun or ceased to take frames that are redirected in XDP.
    pub fn targets_changed(&self) {
        self.members.look_for_targets();
    }

    /// Every port's interface.
    pub fn interfaces(&self) -> Vec<String> {
        self.ports.values().map(|entry| entry.workload.ifname.clone()).collect()
    }

    /// Opens ports. Returns what is to be [handed out](Self::hand_out).
    fn attach_all(&mut self, ports: &[PortId]) -> Vec<Share> {
        let shares = ports.iter().flat_map(|&id| self.attach(id)).collect();
        if !ports.is_empty() {
            self.members.look_for_targets();
        }
        shares
    }

    /// Opens the port. Its queues are for the workers: if each can have one, then queues of the same number
    /// of all ports are for the same worker, so that a flow whose directions arrive at queues of one
    /// number never changes worker. Otherwise they are spread from the port's home worker on.
    fn attach(&mut self, id: PortId) -> Vec<Share> {
        let queues = self.ports.len() as u32 * self.workers.len() as u32;
        let fill = fill_share(self.umem.frames(), self.store.len() as u32, queues);
        let Some(entry) = self.ports.get_mut(&id) else { return Vec::new() };
        let lease = Lease { owner_base: 1 + entry.slot * MAX_QUEUES, fill };
        let opened = self.opener.open(&self.umem, lease, &entry.workload, &mut self.pool);
        self.pool.flush();
        let opened = match opened {
            Ok(opened) => opened,
            Err(failure) => {
                entry.state = match failure {
                    OpenFailure::Missing => PortState::Missing,
                    OpenFailure::Failed(why) => PortState::Failed(why),
                };
                return Vec::new();
            }
        };
        entry.state = PortState::Up;
        entry.lane = opened.lane;
        entry.mode = opened.mode;
        entry.notices = opened.notices;
        entry.ifindex = opened.ifindex;
        let count = self.workers.len();
        let everywhere = opened.queues.len() >= count;
        let home = if everywhere { 0 } else { usize::from(id.0) % count };
        let others = (opened.queues.len()..count).map(|nth| (home + nth) % count);
        let homes = others.map(|worker| {
            let command = Command::SetHome { id, worker: home as u16 };
            Share { worker, command }
        });
        entry.workers = (0..opened.queues.len()).map(|nth| ((home + nth) % count) as u16).collect();
        let queues = opened.queues.into_iter().zip(&entry.workers).map(|(queue, &worker)| {
            let command = Command::AddQueue { id, queue, everywhere };
            Share { worker: worker.into(), command }
        });
        homes.chain(queues).collect()
    }

    /// The lowest slot that no port has. 1,023 are enough for the owner numbers of a u16; a snapshot
    /// with more workloads is refused before.
    fn free_slot(&self) -> u16 {
        let taken = |slot: &u16| self.ports.values().any(|entry| entry.slot == *slot);
        (0..MAX_PORTS).find(|slot| !taken(slot)).unwrap_or(MAX_PORTS - 1)
    }

    /// Takes the port's queues from the workers and closes them.
    fn detach(&mut self, id: PortId) {
        self.members.leave(id);
        for worker in &self.workers {
            let (reply, queues) = bounded(1);
            worker.tell(Command::RemovePort { id, reply });
            match queues.recv_timeout(PATIENCE) {
                Ok(queues) => queues.into_iter().for_each(|queue| queue.close(&mut self.pool)),
                Err(_) => tracing::error!(port = id.0, "a worker does not give a port up"),
            }
        }
        self.pool.flush();
        if let Some(entry) = self.ports.get_mut(&id) {
            entry.state = PortState::Missing;
            entry.mode.clear();
            entry.workers.clear();
            entry.notices.clear();
        }
    }

    /// Ends the workers, and leaves the ports to the end of the process: what the kernel does for them
    /// goes on until then, and what is pinned beyond.
    pub fn halt(mut self) {
        let remains = self.end_workers();
        if let Some(lane) = self.members.loaded() {
            lane.abandon();
        }
        std::mem::forget((remains, self));
    }

    /// Ends the workers, closes the ports, and returns how many of the umem's frames came back.
    pub fn stop(mut self) -> usize {
        for Remains { queues, mut peers } in self.end_workers() {
            queues.into_iter().for_each(|queue| queue.close(&mut self.pool));
            // What a worker left with one that had ended already.
            peers.drain().into_iter().for_each(|frame| self.pool.give(frame));
        }
        self.members.unpin();
        self.pool.flush();
        self.store.len()
    }

    fn end_workers(&mut self) -> Vec<Remains> {
        let mut all = Vec::new();
        for worker in std::mem::take(&mut self.workers) {
            let (reply, remains) = bounded(1);
            worker.tell(Command::Stop { reply });
            all.push(remains.recv_timeout(PATIENCE).unwrap_or_default());
            if worker.thread.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
        all
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

    /// Denied frames that the mirrors did not take, so far.
    pub fn mirror_lost(&self) -> u64 {
        self.workers.iter().map(|worker| worker.counters.mirror_lost.get()).sum()
    }

    /// The clock that frames are timed by.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Every port.
    pub fn ports(&self) -> Vec<PortStatus> {
        self.ports.iter().map(|(&id, entry)| self.port_status(id, entry)).collect()
    }

    fn port_status(&self, id: PortId, entry: &PortEntry) -> PortStatus {
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
    pub fn connections(&self) -> Vec<(ConnectionInfo, firedoor_classifier::Nanos)> {
        self.list(|from, limit, reply| Command::ListConnections { from, limit, reply })
    }

    /// Cached flows, at most 100,000.
    pub fn flows(&self) -> Vec<(FlowInfo, firedoor_classifier::Nanos)> {
        self.list(|from, limit, reply| Command::ListFlows { from, limit, reply })
    }

    fn list<T>(
        &self,
        command: impl Fn(usize, usize, Sender<Page<T>>) -> Command,
    ) -> Vec<(T, firedoor_classifier::Nanos)> {
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

/// Gives a worker a processor of its own, as far as there are enough.
fn pin(worker: u16) {
    let pinned = affinity::available().and_then(|cpus| {
        let cpu = cpus.get(usize::from(worker) % cpus.len().max(1));
        cpu.map_or(Ok(()), |&cpu| affinity::pin_current_thread(cpu))
    });
    if let Err(error) = pinned {
        tracing::warn!(%error, worker, "a worker is not pinned to a processor");
    }
}

/// Frames for a queue of a new port to receive into, of `queues` if each worker has one of each port: an
/// even share of half the umem, the other half being for frames on their way; but no more than a
/// sixteenth of what is free, so that ports plugged in later find some too.
fn fill_share(frames: u32, free: u32, queues: u32) -> u32 {
    let even = frames / 2 / queues.max(8);
    even.min(free / 16).clamp(*FILL.start(), *FILL.end())
}

fn build(snapshot: Snapshot) -> Result<Arc<Policy>, EngineError> {
    let workloads = snapshot.workloads.len();
    if workloads > MAX_PORTS.into() {
        return Err(EngineError::TooManyPorts { workloads });
    }
    Ok(Arc::new(Policy::build(snapshot)?))
}

impl WorkerHandle {
    fn tell(&self, command: Command) {
        // A worker that ended has closed its end; its absence shows as a timeout where it matters.
        let _ = self.commands.send(command);
        self.doorstep.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attaches `ports` ports, all at once or one by one; returns the frames left for traffic.
    fn left_after(ports: u32, at_once: bool) -> u32 {
        let frames = 16_384;
        (1..=ports).fold(frames, |free, nth| {
            free.saturating_sub(fill_share(frames, free, if at_once { ports } else { nth }))
        })
    }

    #[test]
    fn the_default_umem_serves_many_ports() {
        assert!(left_after(4, true) > 12_000);
        assert!(left_after(200, true) > 8_000);
        assert!(left_after(48, false) > 512, "plugged in one by one");
    }
}
