//! A whole switch in memory: the real path, workers and policy, without a kernel, threads or time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crossbeam::channel::{Sender, unbounded};
use firedoor_classifier::snapshot::{Snapshot, Workload};
use firedoor_classifier::{DropReason, Nanos, Pipeline, Policy};
use firedoor_dataplane::counters::WorkerCounters;
use firedoor_dataplane::fragments::Fragmented;
use firedoor_dataplane::handoff::{Doorstep, Peers};
use firedoor_dataplane::mirror::{Mirror, MirrorSender, Record};
use firedoor_dataplane::outbox::Outbox;
use firedoor_dataplane::path::{Burst, Path};
use firedoor_dataplane::policy::PolicyCell;
use firedoor_dataplane::pool::{FramePool, FrameStore};
use firedoor_dataplane::port::Port;
use firedoor_dataplane::port::memory::{self, MemoryPort, Wire};
use firedoor_dataplane::sys::umem::Umem;
use firedoor_dataplane::worker::{Clock, Command, Worker};

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

/// A switch: workers, and a memory port for each workload.
pub struct Fabric {
    seats: Vec<Seat>,
    wires: BTreeMap<String, Wire>,
    umem: Arc<Umem>,
    store: Arc<FrameStore>,
    policy: Arc<PolicyCell>,
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
        Self::build(snapshot, 1, |_, port| Some(port))
    }

    /// A switch whose memory ports are made to measure; `None` leaves a workload without a port.
    pub fn with_ports(
        snapshot: Snapshot,
        shape: impl Fn(&Workload, MemoryPort) -> Option<MemoryPort>,
    ) -> Self {
        Self::build(snapshot, 1, shape)
    }

    /// A switch of several workers, among which the ports are dealt out in turn.
    pub fn with_workers(config: &str, workers: u16) -> Self {
        Self::build(snapshot(config), workers, |_, port| Some(port))
    }

    fn build(
        snapshot: Snapshot,
        workers: u16,
        shape: impl Fn(&Workload, MemoryPort) -> Option<MemoryPort>,
    ) -> Self {
        let policy = Arc::new(Policy::build(snapshot).expect("a valid snapshot"));
        let settings = policy.snapshot().settings;
        let (umem, frames) = Umem::new(settings.frames).expect("memory for a umem");
        let cell = Arc::<PolicyCell>::default();
        cell.install(Arc::clone(&policy));
        let doorsteps: Arc<[Arc<Doorstep>]> = (0..workers).map(|_| Arc::default()).collect();
        let mut fabric = Self {
            seats: Vec::new(),
            wires: BTreeMap::new(),
            umem: Arc::new(umem),
            store: FrameStore::new(frames),
            policy: cell,
            now: Nanos::from_secs(1_000),
        };
        for index in 0..workers {
            let seat = fabric.seat(&policy, Peers::new(index, Arc::clone(&doorsteps)));
            fabric.seats.push(seat);
        }
        for workload in &policy.snapshot().workloads {
            let (port, wire) = memory::pair(Arc::clone(&fabric.umem));
            if let Some(port) = shape(workload, port) {
                fabric.plug(workload, port);
                fabric.wires.insert(workload.name.clone(), wire);
            }
        }
        fabric
    }

    fn seat(&self, policy: &Arc<Policy>, peers: Peers) -> Seat {
        let settings = &policy.snapshot().settings;
        let (commands, inbox) = unbounded();
        let counters = Arc::<WorkerCounters>::default();
        let (rate, snaplen) = (settings.mirror_per_sec, settings.mirror_snaplen);
        let mirror = Mirror::new(snaplen);
        let path = Path {
            pipeline: Pipeline::new(Arc::clone(policy)),
            pool: FramePool::new(Arc::clone(&self.umem), Arc::clone(&self.store)),
            outbox: Outbox::default(),
            counters: Arc::clone(&counters),
            mirror: MirrorSender::new(Arc::clone(&mirror), rate, snaplen),
            peers,
            burst: Burst::default(),
            offload: Default::default(),
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
        let (port, wire) = memory::pair(Arc::clone(&self.umem));
        self.plug(workload, port);
        self.wires.insert(workload.name.clone(), wire);
    }

    /// Gives the port to its worker, and tells the others where it is.
    fn plug(&mut self, workload: &Workload, port: MemoryPort) {
        let id = workload.port;
        let home = id.0 as usize % self.seats.len();
        let mut queue: Option<Box<dyn Port>> = Some(Box::new(port));
        for (index, seat) in self.seats.iter_mut().enumerate() {
            let command = match queue.take_if(|_| index == home) {
                Some(queue) => Command::AddQueue { id, queue },
                None => Command::SetHome { id, worker: home as u16 },
            };
            seat.commands.send(command).expect("the worker lives");
            seat.worker.take_commands(None);
        }
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
        for mut seat in self.seats {
            let (reply, ports) = unbounded();
            seat.commands.send(Command::Stop { reply }).expect("the worker lives");
            assert!(!seat.worker.take_commands(None), "the worker ends");
            for port in ports.recv().expect("the worker gives its ports back") {
                port.close(&mut pool);
            }
        }
        pool.flush();
        assert_eq!(self.store.len(), self.umem.frames() as usize, "frames out equal frames in");
    }
}
