//! The interfaces that the express lane may receive from and send to, as workers and opener share
//! them.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use firedoor_classifier::{DropReason, FlowKey, PortId};
use parking_lot::Mutex;

use super::offload::flow_id;
use super::{Egress, ExpressError, Lane, Prepared};
use crate::pool::FramePool;
use crate::redirect_targets::RedirectTargets;
use crate::sys::pins::Pins;
use crate::sys::umem::Umem;
use crate::sys::wall::Walls;

/// How long the door of a lane that was just loaded is open, until a worker looks after it.
const FIRST: Duration = Duration::from_secs(5);

/// What the express lane knows of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Index of its interface.
    pub ifindex: u32,
    /// How frames leave by it.
    pub egress: Egress,
    /// Longest frame it takes, in bytes with the Ethernet header.
    pub max_frame: u16,
    /// Which program looks up what it receives, if one does.
    pub hook: Option<Hook>,
    /// Whether it takes packets that are redirected at tc.
    pub takes_packets: bool,
    /// Whether it takes frames that are redirected in XDP.
    pub takes_frames: bool,
}

/// Where a port's frames are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// At tc ingress: the express lane.
    Tcx,
    /// In XDP, before the AF_XDP sockets of the switch lane.
    Xdp,
}

impl Member {
    /// Whether the kernel can forward by itself what this port receives and the other one is to send.
    pub fn reaches(&self, other: &Self) -> bool {
        match self.hook {
            None => false,
            Some(Hook::Tcx) => other.takes_packets,
            Some(Hook::Xdp) => other.takes_frames,
        }
    }

    /// Whether a port of before is this one still, whatever can be redirected to it by now.
    pub(super) fn is_still(&self, before: &Self) -> bool {
        Self { takes_frames: self.takes_frames, ..*before } == *self
    }
}

/// The port of that number.
pub(super) fn member_at(ports: &[Option<Member>], port: PortId) -> Option<&Member> {
    ports.get(usize::from(port.0))?.as_ref()
}

/// How the frames of a flow go that the kernel has a verdict for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By the verdict.
    Short,
    /// Through the switch still, because others before them do.
    Long,
}

/// The ports of one switch, and its lane once a port needs it.
#[derive(Default)]
pub struct Members {
    version: AtomicU64,
    epoch: AtomicU64,
    /// Where the lane outlives the process, if it is to.
    pins: Option<PathBuf>,
    walls: Arc<Walls>,
    /// Most flows that the kernel forwards. If it is none, there is no lane.
    capacity: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ports: Vec<Option<Member>>,
    lane: Option<Arc<Lane>>,
    /// What a predecessor has pinned, under programs of our own that are on no interface yet.
    prepared: Option<Prepared>,
    /// Interfaces that the program in XDP is told to redirect to.
    devices: BTreeSet<u32>,
}

impl Members {
    /// No ports yet; their lane outlives the process in that directory of a BPF file system.
    pub fn pinned(pins: PathBuf) -> Self {
        let walls = Arc::new(Walls::new(Some(&pins)));
        Self { pins: Some(pins), walls, ..Self::default() }
    }

    /// Does now what takes time of [`resume`](Self::resume), while a predecessor is at work, whom it leaves in
    /// peace: what [`Prepared::load`] does, with these arguments. And tells the program in XDP which of the interfaces
    /// that are to be ports, by their `tags`, take frames: until it knows, what it could forward takes the long way.
    pub fn prepare(
        &self,
        tags: &HashMap<&str, u16>,
        umem: &Arc<Umem>,
        seed: &str,
        fill: u32,
        pool: &mut FramePool,
    ) {
        let Some(pins) = &self.pins else { return };
        if self.is_wanted() {
            let mut state = self.state.lock();
            state.prepared = Prepared::load(pins, umem, seed, fill, pool);
            let devices =
                state.prepared.as_ref().map(|prepared| prepared.foresee(tags, &targets()));
            state.devices = devices.unwrap_or_default();
        }
    }

    fn is_wanted(&self) -> bool {
        self.capacity.load(Ordering::Relaxed) > 0
    }

    /// Takes over the lane of a process that has ended without closing it, under the epoch that this has
    /// put in force. Its [flows](Lane::inherit) are to be judged again, each, and removed or kept; then
    /// [`set_epoch`](Self::set_epoch) is to be called. The door stays open as long as that process has
    /// left it.
    ///
    /// Its misses that [wait](Self::take_misses) are kept, if they are named by the `tags` that the ports, by
    /// interface, are to have now.
    pub fn resume(&self, tags: &HashMap<&str, u16>, pool: &mut FramePool) -> Option<Arc<Lane>> {
        let pins = self.pins.as_ref()?;
        let mut state = self.state.lock();
        if let Some(prepared) = &mut state.prepared {
            prepared.keep_misses(tags, pool);
        }
        let resumed = self.is_wanted().then(|| Lane::resume(pins, &mut state.prepared));
        state.discard(pool);
        state.lane = resumed.flatten().map(Arc::new);
        if state.lane.is_none() {
            state.devices.clear();
        }
        state.lane.clone()
    }

    /// Has the misses of a predecessor wait in the device pair that is [prepared](Self::prepare), if its ports
    /// have the same `tags`, by interface. That one gets no more of them.
    pub fn take_misses(&self, tags: &HashMap<&str, u16>) {
        if let Some(prepared) = &self.state.lock().prepared {
            prepared.take_misses(tags);
        }
    }

    /// Gives up what was [prepared](Self::prepare), if it was not used.
    pub fn discard(&self, pool: &mut FramePool) {
        let mut state = self.state.lock();
        state.discard(pool);
        state.lane.iter().for_each(|lane| lane.discard(pool));
    }

    /// Takes a predecessor's programs off all interfaces but those of the ports, now that these have what keeps
    /// them, and removes its device pair.
    ///
    /// The kernel may take its time, and workers ask for the ports meanwhile.
    pub fn clear_away(&self) {
        let (_, ports, lane) = self.whole();
        match (&lane, &self.pins) {
            (Some(lane), _) => clear_away(lane, &ports),
            (None, Some(pins)) => remove(pins),
            (None, None) => {}
        }
        self.walls.keep(&lane.map(|lane| lane.walled()).unwrap_or_default());
    }

    /// Where the lane outlives the process, if it is to.
    pub(crate) fn pins(&self) -> Option<PathBuf> {
        self.pins.clone()
    }

    /// What keeps the host's stack out when the process is killed.
    pub(crate) fn walls(&self) -> Arc<Walls> {
        Arc::clone(&self.walls)
    }

    /// Nothing outlives the process from now on.
    pub fn unpin(&self) {
        match (&self.state.lock().lane, &self.pins) {
            (Some(lane), _) => lane.unpin(),
            (None, Some(pins)) => remove_all(pins),
            (None, None) => {}
        }
    }

    /// Bounds the flows of a lane that is not loaded yet.
    pub fn set_capacity(&self, flows: u32) {
        self.capacity.store(flows, Ordering::Relaxed);
    }

    /// The lane, which is loaded if this is the first time.
    ///
    /// # Errors
    /// [`ExpressError::Off`], [`ExpressError::Load`].
    pub fn lane(&self) -> Result<Arc<Lane>, ExpressError> {
        let mut state = self.state.lock();
        if let Some(lane) = &state.lane {
            return Ok(Arc::clone(lane));
        }
        let capacity = self.capacity.load(Ordering::Relaxed);
        if capacity == 0 {
            return Err(ExpressError::Off);
        }
        let lane = Arc::new(Lane::load(capacity, self.pins.as_deref())?);
        lane.set_epoch(self.epoch.load(Ordering::SeqCst));
        lane.keep_open(FIRST);
        state.lane = Some(Arc::clone(&lane));
        Ok(lane)
    }

    /// The lane, if it was loaded.
    pub fn loaded(&self) -> Option<Arc<Lane>> {
        self.state.lock().lane.clone()
    }

    /// Frames that the program has dropped for this reason without the workers' knowledge.
    pub fn drops(&self, reason: DropReason) -> u64 {
        let count: fn(&Lane) -> u64 = match reason {
            DropReason::LaneFull => Lane::refused,
            DropReason::LaneShut => Lane::shut_drops,
            _ => return 0,
        };
        self.loaded().map_or(0, |lane| count(&lane))
    }

    /// Puts an epoch in force: verdicts of earlier ones are not used from now on.
    pub fn set_epoch(&self, epoch: u64) {
        let state = self.state.lock();
        self.epoch.store(epoch, Ordering::SeqCst);
        if let Some(lane) = &state.lane {
            lane.set_epoch(epoch);
        }
    }

    /// A port was opened.
    pub fn join(&self, port: PortId, member: Member) {
        self.set(port, Some(member));
    }

    /// A port was closed.
    pub fn leave(&self, port: PortId) {
        self.set(port, None);
    }

    fn set(&self, port: PortId, member: Option<Member>) {
        let mut state = self.state.lock();
        let at = usize::from(port.0);
        if state.ports.len() <= at {
            state.ports.resize(at + 1, None);
        }
        if let Some(gone) = std::mem::replace(&mut state.ports[at], member) {
            state.devices.remove(&gone.ifindex);
            state.set_device(gone.ifindex, false);
        }
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Asks the kernel which ports take frames that are redirected in XDP, in the calling thread's
    /// network namespace. If it does not say, none does. Cost: a dump of all interfaces, so it is done
    /// once for all ports that were opened together.
    pub fn look_for_targets(&self) {
        if self.state.lock().ports.iter().all(Option::is_none) {
            return;
        }
        let targets = targets();
        if self.state.lock().take_targets(&targets) {
            self.version.fetch_add(1, Ordering::Release);
        }
    }

    /// Changes whenever a port joins or leaves.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The version, the ports by number, and the lane, if one of them is on it.
    pub(super) fn view(&self) -> (u64, Vec<Option<Member>>, Option<Arc<Lane>>) {
        let (version, ports, lane) = self.whole();
        // Also where nothing can be redirected: the programs ask it whether their door is open.
        let is_used = ports.iter().flatten().any(|member| member.hook.is_some());
        (version, ports, lane.filter(|_| is_used))
    }

    /// The version, the ports by number, and the lane if there is one.
    fn whole(&self) -> (u64, Vec<Option<Member>>, Option<Arc<Lane>>) {
        let state = self.state.lock();
        (self.version(), state.ports.clone(), state.lane.clone())
    }

    /// Whether the program looks up what comes in by that port.
    pub(super) fn receives(&self, port: PortId) -> bool {
        self.state.lock().member(port).is_some_and(|member| member.hook.is_some())
    }

    /// The way of the flow of that key, if the kernel has a verdict for it.
    pub(super) fn way_of(&self, key: &FlowKey) -> Option<Way> {
        let state = self.state.lock();
        let flows = state.lane.as_ref()?.flows();
        let slot = flows.find(&flow_id(key, state.member(key.ingress)?))?;
        Some(if flows.is_held(slot) { Way::Long } else { Way::Short })
    }
}

/// Interfaces that take frames which are redirected in XDP, as far as the kernel says.
fn targets() -> BTreeSet<u32> {
    RedirectTargets::open().and_then(|targets| targets.list()).unwrap_or_else(|error| {
        tracing::debug!(%error, "the kernel does not say where XDP can redirect frames to");
        BTreeSet::new()
    })
}

/// Removes pins that are of no use. Their programs go with them.
fn remove(pins: &Path) {
    if let Err(error) = Pins::remove_from(pins) {
        tracing::warn!(%error, pins = %pins.display(), "old pins are not removed");
    }
}

/// Likewise, and the directory.
fn remove_all(pins: &Path) {
    if let Err(error) = Pins::of_walls(pins).and_then(|pins| pins.remove()) {
        tracing::warn!(%error, pins = %pins.display(), "old pins are not removed");
    }
}

/// Takes a predecessor's programs off all interfaces but those of the ports, and removes its device pair.
fn clear_away(lane: &Lane, ports: &[Option<Member>]) {
    for hook in [Hook::Tcx, Hook::Xdp] {
        let members = ports.iter().flatten().filter(|member| member.hook == Some(hook));
        let indexes: Vec<u32> = members.map(|member| member.ifindex).collect();
        lane.keep_links(hook, &indexes);
    }
    lane.remove_other_pair();
}

impl State {
    fn discard(&mut self, pool: &mut FramePool) {
        self.prepared.take().into_iter().for_each(|prepared| prepared.close(pool));
    }

    fn member(&self, port: PortId) -> Option<&Member> {
        member_at(&self.ports, port)
    }

    /// Takes note of the interfaces that take frames. Returns whether that changed for any port.
    fn take_targets(&mut self, targets: &BTreeSet<u32>) -> bool {
        let is_new =
            |member: &&mut Member| targets.contains(&member.ifindex) != member.takes_frames;
        let mut has_changed = false;
        for member in self.ports.iter_mut().flatten().filter(is_new) {
            member.takes_frames = !member.takes_frames;
            has_changed = true;
        }
        let takers = self.ports.iter().flatten().filter(|member| member.takes_frames);
        let devices: BTreeSet<u32> = takers.map(|member| member.ifindex).collect();
        let before = std::mem::replace(&mut self.devices, devices);
        before.difference(&self.devices).for_each(|&ifindex| self.set_device(ifindex, false));
        self.devices.difference(&before).for_each(|&ifindex| self.set_device(ifindex, true));
        has_changed
    }

    fn set_device(&self, ifindex: u32, takes: bool) {
        let Some(lane) = &self.lane else { return };
        if let Err(error) = lane.set_device(ifindex, takes) {
            tracing::warn!(%error, ifindex, "frames are not redirected to an interface");
        }
    }
}
