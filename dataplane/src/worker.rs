//! A worker: one thread that owns its ports' queues, its pipeline and its counters.
//!
//! A worker lives in turns. One turn reclaims, receives, forwards and transmits once for each port
//! (of quiet ones, for one in [`QUIET_SHARE`]); between turns it takes commands and the newest policy.
//! When a turn finds nothing to do it looks again for a while that depends on the traffic
//! ([`Pacing`]), then sleeps in the kernel until a socket, another worker or a command wakes it: an
//! idle switch uses no CPU but one look at the timers a second.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};
use firedoor_classifier::cache::FlowInfo;
use firedoor_classifier::connections::ConnectionInfo;
use firedoor_classifier::{Nanos, PortId};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::sys::prctl::set_timerslack;

use crate::counters::PortCells;
use crate::express::inherit::Legacy;
use crate::frame::Frame;
use crate::handoff::Peers;
use crate::pacing::{Pacing, Signs, Wait};
use crate::path::{PARCELS, Path};
use crate::policy::PolicyCell;
use crate::port::{BURST, Port};

/// Longest sleep: expiry and ageing are due.
const TICK: Duration = Duration::from_secs(1);
/// Time between two looks at the timers under load.
const TICK_UNDER_LOAD: u64 = 1_000_000;
/// Longest sleep while frames are still being sent.
const BUSY_TICK: Duration = Duration::from_millis(1);

/// Turns without a frame after which a queue is quiet.
const QUIET_AFTER: u32 = 64;
/// One in so many quiet queues is looked at in a turn that finds frames elsewhere.
const QUIET_SHARE: u32 = 8;

/// Token of the waker; ports have their number in the worker's list.
const WAKER: Token = Token(usize::MAX);

/// What the engine tells a worker.
pub enum Command {
    /// Here is a queue of a port: receive from it, and send what is for the port.
    AddQueue {
        /// The port.
        id: PortId,
        /// The queue.
        queue: Box<dyn Port>,
        /// Every worker has a queue of the port.
        everywhere: bool,
    },
    /// Frames for this port go to that worker.
    SetHome {
        /// The port.
        id: PortId,
        /// The worker that sends its frames.
        worker: u16,
    },
    /// Forget the port, and send its queues back for closing.
    RemovePort {
        /// The port.
        id: PortId,
        /// Where the queues go.
        reply: Sender<Vec<Box<dyn Port>>>,
    },
    /// Take over those of these connections that are yours to judge.
    Inherit {
        /// All there are.
        connections: Arc<[Legacy]>,
        /// Hears when it is done.
        reply: Sender<()>,
    },
    /// A page of connections.
    ListConnections {
        /// Position of the page.
        from: usize,
        /// Most entries.
        limit: usize,
        /// Where the page goes.
        reply: Sender<Page<ConnectionInfo>>,
    },
    /// A page of cached flows.
    ListFlows {
        /// Position of the page.
        from: usize,
        /// Most entries.
        limit: usize,
        /// Where the page goes.
        reply: Sender<Page<FlowInfo>>,
    },
    /// Give everything back and end.
    Stop {
        /// Where what it leaves goes.
        reply: Sender<Remains>,
    },
}

/// What a worker leaves at its end.
#[derive(Default)]
pub struct Remains {
    /// Its queues, to be closed.
    pub queues: Vec<Box<dyn Port>>,
    /// Its ways to the others, where something may be left as long as one of them lives.
    pub peers: Peers,
}

/// Part of a listing: entries, where the next page begins, and the worker's time.
pub type Page<T> = (Vec<T>, Option<usize>, Nanos);

/// One worker. Aligned, so that two never write to one cache line.
#[repr(align(128))]
pub struct Worker {
    path: Path,
    queues: Vec<Queue>,
    /// Position of the queue that sends a port's frames, by port number.
    senders: Vec<Option<usize>>,
    batch: Vec<Frame>,
    policy: Arc<PolicyCell>,
    /// Epoch by which this worker judges, and has judged all connections that the kernel forwards: for the
    /// installer to wait on.
    epoch: Arc<AtomicU64>,
    commands: Receiver<Command>,
    clock: Clock,
    turns: u32,
    /// When it last looked at the timers.
    ticked: Nanos,
    /// Position of the queue that frames came from last.
    source: usize,
    /// Whether that has changed since the worker last asked how to wait.
    answers: bool,
    /// The last look at the timers has left some for the next.
    hurries: bool,
}

/// One rx/tx queue of a port.
struct Queue {
    id: PortId,
    cells: Arc<PortCells>,
    port: Box<dyn Port>,
    /// Turns since it last had a frame, either way.
    quiet: u32,
}

impl Queue {
    /// Whether the queue at `position` is looked at in a turn as early as possible. A quiet one may
    /// wait for its turn: asking hundreds of empty rings would cost more than moving the frames.
    fn is_due(&self, position: usize, turn: u32) -> bool {
        self.quiet < QUIET_AFTER || (position as u32 ^ turn).is_multiple_of(QUIET_SHARE)
    }
}

/// Time since the data plane began.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock {
    /// Now.
    pub fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Worker {
    /// A worker without ports. `epoch` is where it tells which epoch it judges by.
    pub fn new(
        path: Path,
        policy: Arc<PolicyCell>,
        epoch: Arc<AtomicU64>,
        commands: Receiver<Command>,
        clock: Clock,
    ) -> Self {
        let batch = Vec::with_capacity(BURST);
        epoch.store(path.pipeline.policy().epoch(), Ordering::Release);
        let (queues, senders) = (Vec::new(), Vec::new());
        Self {
            path,
            queues,
            senders,
            batch,
            policy,
            epoch,
            commands,
            clock,
            turns: 0,
            ticked: Nanos(0),
            source: 0,
            answers: false,
            hurries: false,
        }
    }

    /// Works until told to stop.
    ///
    /// # Errors
    /// If the kernel refuses the means to sleep.
    pub fn run(mut self) -> std::io::Result<()> {
        let mut poll = Poll::new()?;
        self.path.peers.doorstep().set_waker(Waker::new(poll.registry(), WAKER)?);
        let mut events = Events::with_capacity(64);
        let mut pacing = Pacing::default();
        // Pauses end when they should. Not granted, they end 50 us later.
        let _ = set_timerslack(1);
        loop {
            if !self.take_commands(Some(&poll)) {
                return Ok(());
            }
            let now = self.clock.now();
            let moved = self.turn(now);
            match pacing.after(moved, self.take_signs(), now) {
                Wait::No => {}
                Wait::Yield => std::thread::yield_now(),
                Wait::Pause(time) => std::thread::sleep(time),
                Wait::Sleep => self.sleep(&mut poll, &mut events)?,
            }
        }
    }

    /// What the frames since the last time tell of the traffic.
    fn take_signs(&mut self) -> Signs {
        let answers = std::mem::take(&mut self.answers);
        Signs { answers, openings: self.path.offload.take_has_asked() }
    }

    /// One turn: every port once, but that quiet ones wait while others have frames. Returns how
    /// many frames it moved: 0 only if every port was asked and none had one, and nothing else is to be
    /// done at once.
    pub fn turn(&mut self, now: Nanos) -> usize {
        self.take_policy(now);
        let mut moved = self.receive(now, Queue::is_due);
        if moved == 0 {
            moved = self.receive(now, |queue, position, turn| !queue.is_due(position, turn));
        }
        moved += self.path.take_parcels(now);
        self.deliver();
        moved += self.renew(now);
        self.path.mirror.notify();
        self.turns = self.turns.wrapping_add(1);
        if now.0 >= self.ticked.0 + TICK_UNDER_LOAD {
            self.tick(now);
        }
        moved
    }

    /// Step 8, and then steps 1 to 6, for the queues that `which` picks by themselves, their position
    /// and the turn.
    fn receive(&mut self, now: Nanos, which: impl Fn(&Queue, usize, u32) -> bool) -> usize {
        let mut moved = 0;
        for (position, queue) in self.queues.iter_mut().enumerate() {
            if !which(queue, position, self.turns) {
                continue;
            }
            queue.port.reclaim(&mut self.path.pool);
            let received = queue.port.receive(&mut self.path.pool, &mut self.batch);
            queue.quiet = queue.quiet.saturating_add(1);
            if received > 0 {
                queue.quiet = 0;
                self.answers |= self.source != position;
                self.source = position;
                self.path.forward(queue.id, &queue.cells, &mut self.batch, now);
            }
            moved += received;
        }
        moved
    }

    /// Sends on what was judged: to other workers, who can go on with it at once, and by the ports.
    fn deliver(&mut self) {
        self.path.peers.flush();
        self.transmit();
        self.path.settle();
    }

    /// Step 7 for every port with frames queued.
    fn transmit(&mut self) {
        let Self { queues, senders, path, .. } = self;
        let sent = path.outbox.flush(|id, frames| {
            let position = senders.get(id.0 as usize).copied().flatten();
            let Some(queue) = position.and_then(|at| queues.get_mut(at)) else { return 0 };
            queue.quiet = 0;
            queue.port.transmit(frames)
        });
        self.path.counters.sent.add(sent);
    }

    /// Timers, and totals for readers.
    fn tick(&mut self, now: Nanos) {
        self.ticked = now;
        // First, because what the kernel forwarded keeps connections alive.
        self.hurries = self.path.tick_offload(now);
        self.path.pipeline.tick(now);
        self.path.expire_fragments(now);
        let pipeline = &self.path.pipeline;
        self.path.counters.publish(pipeline.stats(), pipeline.connections());
    }

    /// Takes the newest policy, if it changed.
    ///
    /// What other workers left until then goes first. It may be for a port that was removed since,
    /// and once this worker has said that it judges by the new policy, the port's number can be
    /// another workload's.
    fn take_policy(&mut self, now: Nanos) {
        if self.policy.epoch() == self.path.pipeline.policy().epoch() {
            return;
        }
        let Some(policy) = self.policy.load() else { return };
        for _ in 0..self.path.peers.waiting().div_ceil(PARCELS) {
            self.path.take_parcels(now);
            self.deliver();
        }
        let snapshot = policy.snapshot();
        let settings = &snapshot.settings;
        self.path.mirror.configure(settings.mirror_per_sec, settings.mirror_snaplen);
        self.path.renew_fragments(settings);
        self.path.pipeline.set_policy(policy);
        self.path.begin_renewal(now);
    }

    /// Judges some of the connections again that the kernel forwards, and says when all were. Returns
    /// whether there was anything to do.
    fn renew(&mut self, now: Nanos) -> usize {
        let epoch = self.path.pipeline.policy().epoch();
        if self.epoch.load(Ordering::Relaxed) == epoch {
            return 0;
        }
        if !self.path.renew_offload(now) {
            self.epoch.store(epoch, Ordering::Release);
        }
        1
    }

    /// Sleeps until there is something to do.
    fn sleep(&mut self, poll: &mut Poll, events: &mut Events) -> std::io::Result<()> {
        let now = self.clock.now();
        self.tick(now);
        self.deliver();
        if !self.path.peers.may_sleep() {
            return Ok(());
        }
        let busy = self.hurries
            || self.path.outbox.is_waiting()
            || self.queues.iter().any(|q| q.port.is_busy());
        // Awake in between, it would look after the kernel's flows a second later still.
        let rest = TICK.min(Duration::from_nanos(self.path.offload.until_round(now)));
        let slept = if !self.commands.is_empty() {
            Ok(())
        } else {
            poll.poll(events, Some(if busy { BUSY_TICK } else { rest }))
        };
        self.path.peers.doorstep().awake();
        match slept {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Obeys every waiting command. Returns false if this was the end.
    pub fn take_commands(&mut self, poll: Option<&Poll>) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::AddQueue { id, queue, everywhere } => {
                    self.add_queue(id, queue, everywhere, poll);
                }
                Command::SetHome { id, worker } => {
                    let cells = self.path.counters.port(id);
                    self.path.outbox.add_remote(id, worker, cells);
                }
                Command::RemovePort { id, reply } => {
                    let queues = self.remove_port(id, poll);
                    // The engine waits for the reply; if it gave up, closing is all that is left.
                    if let Err(unsent) = reply.send(queues) {
                        unsent.0.into_iter().for_each(|queue| queue.close(&mut self.path.pool));
                    }
                }
                Command::Inherit { connections, reply } => {
                    self.path.inherit(&connections, self.clock.now());
                    let _ = reply.send(());
                }
                Command::ListConnections { from, limit, reply } => {
                    let now = self.clock.now();
                    let (page, next) = self.path.pipeline.list_connections(from, limit, now);
                    let _ = reply.send((page, next, now));
                }
                Command::ListFlows { from, limit, reply } => {
                    let (page, next) = self.path.pipeline.list_flows(from, limit);
                    let _ = reply.send((page, next, self.clock.now()));
                }
                Command::Stop { reply } => {
                    let _ = reply.send(self.finish());
                    return false;
                }
            }
        }
        true
    }

    fn add_queue(
        &mut self,
        id: PortId,
        mut port: Box<dyn Port>,
        everywhere: bool,
        poll: Option<&Poll>,
    ) {
        let cells = self.path.counters.port(id);
        if let (Some(poll), Some(fd)) = (poll, port.fd()) {
            register(poll, fd, self.queues.len());
        }
        port.set_doorstep(self.path.peers.doorstep());
        self.path.outbox.add_local(id, port.max_frame(), everywhere, Arc::clone(&cells));
        self.queues.push(Queue { id, cells, port, quiet: 0 });
        self.find_senders();
    }

    /// A port's first queue sends.
    fn find_senders(&mut self) {
        self.senders.clear();
        for (position, queue) in self.queues.iter().enumerate().rev() {
            let index = queue.id.0 as usize;
            if self.senders.len() <= index {
                self.senders.resize(index + 1, None);
            }
            self.senders[index] = Some(position);
        }
    }

    /// The kernel forwards nothing more for the port once this returns, and what it did is counted.
    fn remove_port(&mut self, id: PortId, poll: Option<&Poll>) -> Vec<Box<dyn Port>> {
        self.path.refresh_offload(self.ticked);
        self.path.forget_fragments(id);
        for frame in self.path.outbox.remove(id) {
            self.path.pool.give(frame);
        }
        let (removed, kept) =
            std::mem::take(&mut self.queues).into_iter().partition(|q| q.id == id);
        self.queues = kept;
        self.find_senders();
        let removed: Vec<Queue> = removed;
        for fd in removed.iter().filter_map(|queue| queue.port.fd()) {
            if let Some(poll) = poll {
                // The socket is closed next, which deregisters it in any case.
                let _ = poll.registry().deregister(&mut SourceFd(&fd));
            }
        }
        removed.into_iter().map(|queue| queue.port).collect()
    }

    /// Gives every frame back to the store but those that are with the ports, and the ports up.
    fn finish(&mut self) -> Remains {
        let mut peers = std::mem::take(&mut self.path.peers);
        peers.drain().into_iter().for_each(|frame| self.path.pool.give(frame));
        self.path.outbox.clear(&mut self.path.pool);
        self.path.fragments.clear(&mut self.path.pool);
        self.tick(self.clock.now());
        self.path.pool.flush();
        let queues = std::mem::take(&mut self.queues).into_iter().map(|queue| queue.port).collect();
        Remains { queues, peers }
    }
}

/// Edge-triggered is enough: a worker sleeps only after a turn that found every ring empty.
fn register(poll: &Poll, fd: RawFd, index: usize) {
    if let Err(error) =
        poll.registry().register(&mut SourceFd(&fd), Token(index), Interest::READABLE)
    {
        tracing::error!(%error, "a port's socket cannot be waited on; it is polled once a second");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memory;
    use crate::sys::umem::Umem;

    #[test]
    fn a_quiet_queue_is_due_once_in_its_share_of_turns_and_a_lively_one_in_each() {
        let (umem, frames) = Umem::new(1).unwrap();
        for frame in frames {
            frame.release();
        }
        let (port, _wire) = memory::pair(Arc::new(umem));
        let port = Box::new(port);
        let mut queue = Queue { id: PortId(1), cells: Arc::default(), port, quiet: u32::MAX };
        let due =
            |queue: &Queue, at| (0..QUIET_SHARE).filter(|&turn| queue.is_due(at, turn)).count();
        assert!((0..20).all(|at| due(&queue, at) == 1));
        queue.quiet = 0;
        assert!((0..20).all(|at| due(&queue, at) == QUIET_SHARE as usize));
    }
}
