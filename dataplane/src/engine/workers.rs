//! The engine's workers: the threads, what the engine shares with each of them, and how it speaks to them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use crossbeam::channel::{Sender, bounded, unbounded};
use firedoor_classifier::connections::{Claims, Directory};
use firedoor_classifier::{Pipeline, Policy};

use super::{Engine, EngineError, PATIENCE};
use crate::counters::WorkerCounters;
use crate::express::offload::Offload;
use crate::fragments::Fragmented;
use crate::handoff::{Doorstep, Peers};
use crate::mirror::{Mirror, MirrorSender};
use crate::outbox::Outbox;
use crate::path::{Burst, Path};
use crate::pool::FramePool;
use crate::sys::affinity;
use crate::worker::{Command, Remains, Worker};

/// A worker, as the engine knows it.
pub(super) struct WorkerHandle {
    commands: Sender<Command>,
    pub(super) doorstep: Arc<Doorstep>,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) epoch: Arc<AtomicU64>,
    pub(super) mirror: Arc<Mirror>,
    thread: JoinHandle<()>,
}

impl Engine {
    pub(super) fn start_workers(
        &mut self,
        count: u16,
        policy: &Arc<Policy>,
    ) -> Result<(), EngineError> {
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

    pub(super) fn end_workers(&mut self) -> Vec<Remains> {
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
}

impl WorkerHandle {
    pub(super) fn tell(&self, command: Command) {
        // A worker that ended has closed its end; its absence shows as a timeout where it matters.
        let _ = self.commands.send(command);
        self.doorstep.wake();
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
