//! The engine's ports: attached as a snapshot has them, detached as it has not, and tried again when their
//! interfaces come back.
//!
//! A port's place among the umem's owners, its queues' workers and its share of the umem are settled here,
//! and nowhere else; a worker hears of a queue only when it is open.

use std::sync::Arc;

use crossbeam::channel::bounded;
use firedoor_api::dataplane::{PortState, PortStatus};
use firedoor_classifier::PortId;
use firedoor_classifier::snapshot::{Lane, Snapshot, Workload};

use super::{Engine, PATIENCE};
use crate::express::Members;
use crate::pool::FramePool;
use crate::port::Port;
use crate::sys::umem::Umem;
use crate::wakefulness::Wakefulness;
use crate::worker::Command;

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

    /// What keeps the processors awake that frames wait for.
    fn wakefulness(&self) -> Wakefulness {
        Wakefulness::default()
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

impl Lease {
    /// That of the port in a slot.
    pub(super) const fn of(slot: u16, fill: u32) -> Self {
        Self { owner_base: 1 + slot * MAX_QUEUES, fill }
    }

    /// What the express lane's programs know the port by: its place among all, from 1 on.
    pub const fn tag(self) -> u16 {
        self.owner_base / MAX_QUEUES + 1
    }
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

/// What a worker is to hear of a port that was opened.
pub(super) struct Share {
    worker: usize,
    command: Command,
}

/// A port of the snapshot, attached or not.
pub(super) struct PortEntry {
    pub(super) workload: Workload,
    pub(super) state: PortState,
    pub(super) lane: Lane,
    pub(super) mode: String,
    /// Who has each of its queues.
    pub(super) workers: Vec<u16>,
    pub(super) notices: Vec<String>,
    ifindex: u32,
    /// Its place among the umem's owners.
    slot: u16,
}

impl Engine {
    /// Detaches every port that the snapshot does not have, or has on another interface.
    pub(super) fn detach_gone(&mut self, snapshot: &Snapshot) {
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
    pub(super) fn reconcile_ports(&mut self, snapshot: &Snapshot) -> Vec<Share> {
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

    pub(super) fn hand_out(&self, shares: Vec<Share>) {
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
        let lease = Lease::of(entry.slot, fill);
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
}

/// Frames for a queue of a new port to receive into, of `queues` if each worker has one of each port: an
/// even share of half the umem, the other half being for frames on their way; but no more than a
/// sixteenth of what is free, so that ports plugged in later find some too.
pub(super) fn fill_share(frames: u32, free: u32, queues: u32) -> u32 {
    let even = frames / 2 / queues.max(8);
    even.min(free / 16).clamp(*FILL.start(), *FILL.end())
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
