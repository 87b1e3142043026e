//! A switch of workers and ports without a kernel below or threads around it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crossbeam::channel::{Sender, unbounded};
use firedoor_classifier::connections::{Claims, Directory};
use firedoor_classifier::snapshot::Snapshot;
use firedoor_classifier::{Nanos, Pipeline, Policy, PortId};
use firedoor_dataplane::counters::WorkerCounters;
use firedoor_dataplane::fragments::Fragmented;
use firedoor_dataplane::handoff::Peers;
use firedoor_dataplane::mirror::{Mirror, MirrorSender};
use firedoor_dataplane::outbox::Outbox;
use firedoor_dataplane::path::{Burst, Path};
use firedoor_dataplane::policy::PolicyCell;
use firedoor_dataplane::pool::{FramePool, FrameStore};
use firedoor_dataplane::port::Port;
use firedoor_dataplane::sys::umem::Umem;
use firedoor_dataplane::worker::{Clock, Command, Worker};

use crate::traffic::TrafficPort;

/// The time, which stands still: nothing expires.
pub const NOW: Nanos = Nanos::from_secs(1_000);

/// Workers, and the ports that were plugged into them.
pub struct Switch {
    /// The memory that ports made for this switch copy frames into.
    pub umem: Arc<Umem>,
    seats: Vec<Seat>,
}

struct Seat {
    worker: Worker,
    commands: Sender<Command>,
    counters: Arc<WorkerCounters>,
}

impl Seat {
    fn obey(&mut self, command: Command) {
        self.commands.send(command).expect("the worker lives");
        self.worker.take_commands(None);
    }
}

impl Switch {
    /// A switch that enforces `snapshot` by `workers` workers.
    ///
    /// # Panics
    /// If the snapshot is not valid, or there is no memory.
    pub fn new(snapshot: Snapshot, workers: u16) -> Self {
        let policy = Arc::new(Policy::build(snapshot).expect("a valid snapshot"));
        let (umem, frames) = Umem::new(policy.settings().frames).expect("memory for a umem");
        let (umem, store) = (Arc::new(umem), FrameStore::new(frames));
        let cell = Arc::<PolicyCell>::default();
        cell.install(Arc::clone(&policy));
        let directory = Directory::new(policy.settings().max_connections);
        let seat = |peers: Peers| {
            let (commands, inbox) = unbounded();
            let counters = Arc::<WorkerCounters>::default();
            let mut pipeline = Pipeline::new(Arc::clone(&policy));
            if workers > 1 {
                pipeline.share(Claims::new(Arc::clone(&directory), peers.me()));
            }
            let path = Path {
                pipeline,
                pool: FramePool::new(Arc::clone(&umem), Arc::clone(&store)),
                outbox: Outbox::default(),
                counters: Arc::clone(&counters),
                mirror: MirrorSender::new(Mirror::new(0), 0, 0),
                peers,
                burst: Burst::default(),
                parcels: Vec::new(),
                offload: Default::default(),
                fragments: Fragmented::new(policy.settings(), umem.frames()),
            };
            let epoch = Arc::<AtomicU64>::default();
            let worker = Worker::new(path, Arc::clone(&cell), epoch, inbox, Clock::default());
            Seat { worker, commands, counters }
        };
        Self { seats: Peers::of(workers).into_iter().map(seat).collect(), umem }
    }

    /// Gives a port of one queue to worker `home`, and tells the others where it is.
    ///
    /// # Panics
    /// If there is no such worker.
    pub fn plug(&mut self, id: PortId, home: u16, port: impl Port + 'static) {
        for (index, seat) in self.seats.iter_mut().enumerate() {
            if index != usize::from(home) {
                seat.obey(Command::SetHome { id, worker: home });
            }
        }
        self.seats[usize::from(home)].obey(Command::AddQueue {
            id,
            queue: Box::new(port),
            everywhere: false,
        });
    }

    /// Gives each worker a queue of a port.
    ///
    /// # Panics
    /// If there are more queues than workers.
    pub fn plug_spread(&mut self, id: PortId, queues: impl Iterator<Item = TrafficPort>) {
        for (index, queue) in queues.enumerate() {
            self.seats[index].obey(Command::AddQueue {
                id,
                queue: Box::new(queue),
                everywhere: true,
            });
        }
    }

    /// Lets the first worker turn once. Returns how many frames it moved.
    pub fn turn(&mut self) -> usize {
        self.seats[0].worker.turn(NOW)
    }

    /// The workers, each to be moved to a thread.
    pub fn workers(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.seats.iter_mut().map(|seat| &mut seat.worker)
    }

    /// Frames sent so far.
    pub fn sent(&self) -> u64 {
        self.seats.iter().map(|seat| seat.counters.sent.get()).sum()
    }
}
