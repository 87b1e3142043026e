//! A whole switch in memory: the real path, workers and policy, without a kernel, threads or time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crossbeam::channel::{Sender, unbounded};
use firedoor_classifier::connections::{Claims, Directory};
use firedoor_classifier::extract::extract;
use firedoor_classifier::snapshot::{Snapshot, Workload};
use firedoor_classifier::{DropReason, FlowKey, Nanos, Pipeline, Policy, PortId};
use firedoor_dataplane::counters::WorkerCounters;
use firedoor_dataplane::express::Members;
use firedoor_dataplane::express::offload::Offload;
use firedoor_dataplane::fragments::Fragmented;
use firedoor_dataplane::handoff::Peers;
use firedoor_dataplane::mirror::{Mirror, MirrorSender, Record};
use firedoor_dataplane::outbox::Outbox;
use firedoor_dataplane::path::{Burst, Path};
use firedoor_dataplane::policy::PolicyCell;
use firedoor_dataplane::pool::{FramePool, FrameStore};
use firedoor_dataplane::port::Port;
use firedoor_dataplane::port::memory::{self, Choose, MemoryPort, Wire};
use firedoor_dataplane::sys::umem::Umem;
use firedoor_dataplane::worker::{Clock, Command, Remains, Worker};

/// Compiles a config for a test.
///
/// # Panics
/// If it does not compile.
pub fn snapshot(config: &str) -> Snapshot {
    firedoor_control::compile::compile("test.toml", config, None, today())
        .unwrap_or_else(|errors| panic!("the test's config: {errors}"))
        .snapshot
}

/// Like [`snapshot`], continuing from an earlier one: same ports, next epoch.
///
/// # Panics
/// If it does not compile.
pub fn next_snapshot(config: &str, previous: &Snapshot) -> Snapshot {
    firedoor_control::compile::compile("test.toml", config, Some(previous), today())
        .unwrap_or_else(|errors| panic!("the test's config: {errors}"))
        .snapshot
}

fn today() -> jiff::civil::Date {
    jiff::civil::date(2026, 1, 1)
}

/// A queue for each frame as a device chooses whose hash tells directions apart: frames of a flow arrive at
/// one queue, those of the other direction perhaps at another one.
pub fn scattered(frame: &[u8]) -> usize {
    folded(frame, |key| key.src.wrapping_mul(3) ^ key.dst ^ (u128::from(key.src_port) * 5))
}

/// A queue for each frame as a device chooses whose hash is symmetric: both directions of a flow arrive at
/// queues of one number.
pub fn aligned(frame: &[u8]) -> usize {
    folded(frame, |key| key.src ^ key.dst ^ u128::from(key.src_port))
}

fn folded(frame: &[u8], of: impl Fn(&FlowKey) -> u128) -> usize {
    let headers = extract(frame, PortId(0)).ok();
    // Fragments have no ports that a device would look at.
    let headers = headers.filter(|headers| headers.fragment.is_none());
    let number = headers.map_or(0, |headers| {
        of(&headers.key) ^ u128::from(headers.key.dst_port) ^ u128::from(headers.key.protocol)
    });
    number.count_ones() as usize
}

/// A switch: workers, and a memory port for each workload.
pub struct Fabric {
    seats: Vec<Seat>,
    wires: BTreeMap<String, Wire>,
    umem: Arc<Umem>,
    store: Arc<FrameStore>,
    policy: Arc<PolicyCell>,
    members: Arc<Members>,
    /// If each worker has a queue of each port: at which one a frame arrives.
    choose: Option<Choose>,
    now: Nanos,
}

/// One worker and what it is reached by.
struct Seat {
    worker: Worker,
    commands: Sender<Command>,
    counters: Arc<WorkerCounters>,
    mirror: Arc<Mirror>,
}

impl Fabric {
    /// A switch of one worker that enforces `config`.
    pub fn new(config: &str) -> Self {
        Self::of(snapshot(config))
    }

    /// A switch of one worker that enforces `snapshot`.
    pub fn of(snapshot: Snapshot) -> Self {
        Self::with_members(snapshot, Arc::default())
    }

    /// A switch of one worker that enforces `snapshot`, and writes verdicts for the kernel to forward
    /// between `members` by.
    pub fn with_members(snapshot: Snapshot, members: Arc<Members>) -> Self {
        Self::build(snapshot, 1, members, None, |_, port| Some(port))
    }

    /// A switch whose memory ports are made to measure; `None` leaves a workload without a port.
    pub fn with_ports(
        snapshot: Snapshot,
        shape: impl Fn(&Workload, MemoryPort) -> Option<MemoryPort>,
    ) -> Self {
        Self::build(snapshot, 1, Arc::default(), None, shape)
    }

    /// A switch of several workers, among which the ports are dealt out in turn.
    pub fn with_workers(config: &str, workers: u16) -> Self {
        Self::build(snapshot(config), workers, Arc::default(), None, |_, port| Some(port))
    }

    /// A switch of several workers, each of which has a queue of every port. Frames arrive at the queue
    /// that `choose` names.
    pub fn with_queues(snapshot: Snapshot, workers: u16, choose: Choose) -> Self {
        Self::build(snapshot, workers, Arc::default(), Some(choose), |_, port| Some(port))
    }

    fn build(
        snapshot: Snapshot,
        workers: u16,
        members: Arc<Members>,
        choose: Option<Choose>,
        shape: impl Fn(&Workload, MemoryPort) -> Option<MemoryPort>,
    ) -> Self {
        let policy = Arc::new(Policy::build(snapshot).expect("a valid snapshot"));
        let settings = policy.snapshot().settings;
        let (umem, frames) = Umem::new(settings.frames).expect("memory for a umem");
        let cell = Arc::<PolicyCell>::default();
        cell.install(Arc::clone(&policy));
        let mut fabric = Self {
            seats: Vec::new(),
            wires: BTreeMap::new(),
            umem: Arc::new(umem),
            store: FrameStore::new(frames),
            policy: cell,
            members,
            choose,
            now: Nanos::from_secs(1_000),
        };
        let directory = (workers > 1).then(|| Directory::new(settings.max_connections));
        for peers in Peers::of(workers) {
            let claims = directory.as_ref().map(|all| Claims::new(Arc::clone(all), peers.me()));
            let seat = fabric.seat(&policy, peers, claims);
            fabric.seats.push(seat);
        }
        for workload in &policy.snapshot().workloads {
            fabric.attach(workload, |port| shape(workload, port));
        }
        fabric
    }

    fn seat(&self, policy: &Arc<Policy>, peers: Peers, claims: Option<Claims>) -> Seat {
        let settings = &policy.snapshot().settings;
        let (commands, inbox) = unbounded();
        let counters = Arc::<WorkerCounters>::default();
        let (rate, snaplen) = (settings.mirror_per_sec, settings.mirror_snaplen);
        let mirror = Mirror::new(snaplen);
        let mut pipeline = Pipeline::new(Arc::clone(policy));
        claims.into_iter().for_each(|claims| pipeline.share(claims));
        let path = Path {
            pipeline,
            pool: FramePool::new(Arc::clone(&self.umem), Arc::clone(&self.store)),
            outbox: Outbox::default(),
            counters: Arc::clone(&counters),
            mirror: MirrorSender::new(Arc::clone(&mirror), rate, snaplen),
            peers,
            burst: Burst::default(),
            parcels: Vec::new(),
            offload: Offload::new(Arc::clone(&self.members)),
            fragments: Fragmented::new(settings, self.umem.frames()),
        };
        let (cell, epoch) = (Arc::clone(&self.policy), Arc::<AtomicU64>::default());
        let worker = Worker::new(path, cell, epoch, inbox, Clock::default());
        Seat { worker, commands, counters, mirror }
    }

    /// Takes the workload's port from every worker, as the engine does before it puts a snapshot
    /// without the workload in force.
    ///
    /// # Panics
    /// If there is no such workload.
    pub fn unplug(&mut self, workload: &str) {
        let policy = self.policy.load().expect("a policy is in force");
        let mut workloads = policy.snapshot().workloads.iter();
        let id = workloads.find(|w| w.name == workload).expect("the workload").port;
        self.wires.remove(workload);
        let mut pool = FramePool::new(Arc::clone(&self.umem), Arc::clone(&self.store));
        for seat in &mut self.seats {
            let (reply, ports) = unbounded();
            seat.commands.send(Command::RemovePort { id, reply }).expect("the worker lives");
            seat.worker.take_commands(None);
            for port in ports.recv().expect("the worker gives the port up") {
                port.close(&mut pool);
            }
        }
    }

    /// Gives a workload of the snapshot in force a port.
    ///
    /// # Panics
    /// If there is no such workload.
    pub fn plug_in(&mut self, workload: &str) {
        let policy = self.policy.load().expect("a policy is in force");
        let mut workloads = policy.snapshot().workloads.iter();
        let workload = workloads.find(|w| w.name == workload).expect("the workload");
        self.attach(workload, Some);
    }

    /// Makes a port for the workload, unless `shape` has none.
    fn attach(&mut self, workload: &Workload, shape: impl Fn(MemoryPort) -> Option<MemoryPort>) {
        let (queues, wire) = match self.choose {
            Some(choose) => memory::spread(&self.umem, self.seats.len() as u16, choose),
            None => {
                let (port, wire) = memory::pair(Arc::clone(&self.umem));
                (vec![port], wire)
            }
        };
        if let Some(queues) = queues.into_iter().map(shape).collect() {
            self.plug(workload, queues);
            self.wires.insert(workload.name.clone(), wire);
        }
    }

    /// Gives the queues to their workers, and tells the others where the port is, as the engine does.
    fn plug(&mut self, workload: &Workload, queues: Vec<MemoryPort>) {
        let (id, count) = (workload.port, self.seats.len());
        let everywhere = queues.len() >= count;
        let home = if everywhere { 0 } else { usize::from(id.0) % count };
        for nth in queues.len()..count {
            self.command((home + nth) % count, Command::SetHome { id, worker: home as u16 });
        }
        for (nth, queue) in queues.into_iter().enumerate() {
            let queue: Box<dyn Port> = Box::new(queue);
            self.command((home + nth) % count, Command::AddQueue { id, queue, everywhere });
        }
    }

    fn command(&mut self, worker: usize, command: Command) {
        let seat = &mut self.seats[worker];
        seat.commands.send(command).expect("the worker lives");
        seat.worker.take_commands(None);
    }

    /// Puts another snapshot in force.
    ///
    /// # Panics
    /// If it is invalid.
    pub fn install(&mut self, snapshot: Snapshot) {
        let policy = Policy::build(snapshot).expect("a valid snapshot");
        self.policy.install(Arc::new(policy));
    }

    /// The far end of a workload's port.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn wire(&self, workload: &str) -> &Wire {
        self.wires.get(workload).unwrap_or_else(|| panic!("no port for {workload}"))
    }

    /// The number of workers.
    pub fn workers(&self) -> usize {
        self.seats.len()
    }

    /// Lets one worker turn once. Returns how many frames it moved.
    pub fn turn(&mut self, worker: usize) -> usize {
        self.seats[worker].worker.turn(self.now)
    }

    /// Lets `secs` seconds pass, and every timer that is due with them.
    pub fn wait(&mut self, secs: u64) {
        self.now = self.now.plus(secs * 1_000_000_000);
        for _ in 0..1024 {
            self.turn_all();
        }
    }

    /// Turns until nothing moves any more.
    pub fn settle(&mut self) {
        while self.turn_all() > 0 {}
        self.turn_all();
    }

    fn turn_all(&mut self) -> usize {
        (0..self.seats.len()).map(|index| self.turn(index)).sum()
    }

    /// Sends one frame and returns who received what, in the order of names.
    pub fn send(&mut self, from: &str, frame: &[u8]) -> Vec<(String, Vec<u8>)> {
        self.wire(from).send(frame);
        self.settle();
        self.received()
    }

    /// Everything that waits at the far ends.
    pub fn received(&self) -> Vec<(String, Vec<u8>)> {
        let all = self.wires.iter();
        all.flat_map(|(name, wire)| {
            wire.receive_all().into_iter().map(move |frame| (name.clone(), frame))
        })
        .collect()
    }

    /// A total over all workers.
    pub fn count(&self, of: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.seats.iter().map(|seat| of(&seat.counters)).sum()
    }

    /// Frames dropped so far, by reason.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        let count = |&reason: &DropReason| (reason, self.count(|c| c.drops(reason)));
        DropReason::ALL.iter().map(count).filter(|&(_, count)| count > 0).collect()
    }

    /// The next mirrored frame.
    pub fn mirrored(&self) -> Option<Box<Record>> {
        self.seats.iter().find_map(|seat| seat.mirror.next())
    }

    /// Ends the switch and checks that every frame of the umem came back.
    ///
    /// # Panics
    /// If one did not.
    pub fn finish(mut self) {
        self.settle();
        let mut pool = FramePool::new(Arc::clone(&self.umem), Arc::clone(&self.store));
        let stop = |mut seat: Seat| {
            let (reply, remains) = unbounded();
            seat.commands.send(Command::Stop { reply }).expect("the worker lives");
            assert!(!seat.worker.take_commands(None), "the worker ends");
            remains.recv().expect("the worker gives its ports back")
        };
        let all: Vec<Remains> = self.seats.into_iter().map(stop).collect();
        for Remains { queues, mut peers } in all {
            queues.into_iter().for_each(|queue| queue.close(&mut pool));
            peers.drain().into_iter().for_each(|frame| pool.give(frame));
        }
        pool.flush();
        assert_eq!(self.store.len(), self.umem.frames() as usize, "frames out equal frames in");
    }
}
