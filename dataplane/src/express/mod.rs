//! The express lane: what the switch has judged, the kernel forwards.
//!
//! A port of this lane has no XDP program, so its workload keeps segmentation and checksum offload.
//! A tcx program at the port's ingress looks every frame up by its exact flow: ingress interface,
//! addresses, ports and MAC addresses. What it finds is a verdict that the switch lane has reached
//! before, and the frame is redirected whole to where that says. What it does not find, or does not
//! understand, or moves a connection's state, it *punts* to the switch lane with the name of its port
//! ([`punt`]). So every verdict is the switch's; the kernel has a cache of them.
//!
//! Ports of the switch lane ask the same cache, by a program in XDP ([`frames`]).
//!
//! Invariants:
//! - A verdict is used only for the very flow it was reached for: the entry names it in full.
//! - A verdict of an earlier epoch than the one in force is no verdict. Raising the epoch is one store
//!   to memory that the program reads ([`Lane::set_epoch`]). Verdicts of the next one hold already:
//!   while it is put in force, each worker judges again what the kernel forwards for it.
//! - A frame does not overtake an earlier one of its flow: a flow is held on the long way until all
//!   of it that was punted has left the switch.
//! - The door is open only while the switch says so ([`Lane::keep_open`]): a program that outlives it
//!   drops everything then.
//!
//! - What outlives the process is its successor's to [judge again](inherit): nothing but the verdicts
//!   that were in force then passes meanwhile, and for [a limited time](Lane::keep_open).
//!
//! [`Members`] says which ports there are, [`offload`] which connections a worker gives to the kernel.
//! [`FlowTable`] is what the kernel knows; docs/adr/0004 says why misses travel as they do.

mod arrivals;
pub mod frames;
pub(crate) mod index;
pub mod inherit;
mod kept;
pub(crate) mod leaving;
mod members;
pub mod offload;
pub mod punt;
pub(crate) mod resizing;
mod slot_set;
pub mod table;
pub mod trial;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use thiserror::Error;

use self::frames::LookupPort;
use self::punt::{ExpressPort, MAX_MTU, Punt};
use self::table::FlowTable;
use crate::link::{Link, LinkError, Netlink};
use crate::pool::FramePool;
use crate::port::xdp::{self, OpenError, XdpOptions};
use crate::sys::express::{Egress, LAYOUT, MAPS, Program};
use crate::sys::pins::{Pins, Place};
use crate::sys::umem::Umem;
use crate::sys::wall::Walls;

pub use self::kept::Kept;
pub use self::members::{Hook, Member, Members};
pub use self::table::{Inherited, InstallError, Slot};
pub use crate::sys::express::{Egress as FlowEgress, FlowId, FlowVerdict, Progress, TcHook};

/// The express lane of one switch.
pub struct Lane {
    kernel: Arc<Kernel>,
    /// When its door was last kept open, in nanoseconds of [`now`].
    kept_open: AtomicU64,
}

/// What the program, its maps and the device pair are to the ports that use them.
pub(crate) struct Kernel {
    program: Arc<Program>,
    flows: Arc<FlowTable>,
    punt: Mutex<Option<Punt>>,
    walls: Arc<Walls>,
    /// The interface that names device pairs, once there was a port.
    seed: OnceLock<String>,
    /// Index of the near end of a predecessor's device pair, or 0.
    other_pair: u32,
    /// Why nothing outlives the process, though it was to.
    unpinned: Option<String>,
}

/// Why the express lane, or a port of it, cannot be had.
#[derive(Debug, Error)]
pub enum ExpressError {
    /// Nobody wants the kernel to forward.
    #[error("`express_flows` is 0")]
    Off,
    /// The kernel does not take the program.
    #[error(
        "the kernel does not take the express lane's program; it needs Linux 5.12 with BPF, and \
         CAP_BPF with CAP_PERFMON and CAP_NET_ADMIN"
    )]
    Load(#[source] io::Error),
    /// The program cannot be attached.
    #[error("the kernel refused to attach the express lane's program to {ifname}")]
    Attach {
        /// The interface.
        ifname: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The kernel's routing socket does not work.
    #[error("no routing socket")]
    Netlink(#[source] io::Error),
    /// An interface cannot be looked up, made or set up.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A socket cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The device pair's offloads cannot be turned off.
    #[error("cannot turn the transmit offloads of {ifname} off")]
    Offloads {
        /// The interface.
        ifname: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The device pair's socket cannot be put where the program looks for it.
    #[error("the express lane's program is not told of its socket")]
    Receiver {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No file descriptor is left.
    #[error("no file descriptor is left for the express lane")]
    Descriptor {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The device pair has no receive queue.
    #[error("the express lane's device pair has no receive queue")]
    NoQueue,
    /// What it is.
    #[error("{ifname} is not a veth or a tap, which is what the express lane carries")]
    WrongKind {
        /// The interface.
        ifname: String,
    },
    /// Its frames do not fit the device pair.
    #[error(
        "the MTU of {ifname} is {mtu} bytes, the express lane takes at most {limit}; \
         `ip link set {ifname} mtu {limit}` at both ends"
    )]
    MtuTooLarge {
        /// The interface.
        ifname: String,
        /// Its MTU, in bytes.
        mtu: u32,
        /// The largest possible, in bytes.
        limit: u32,
    },
}

/// An opened port.
pub struct Opened {
    /// The port.
    pub port: ExpressPort,
    /// The interface.
    pub link: Link,
}

impl Lane {
    /// Loads the program, with room for `flows` flows: two for each connection. Its door is shut.
    /// If `pins`, a directory, is given and can be used, program and verdicts outlive the process
    /// there; what another process has left in it is removed.
    ///
    /// # Errors
    /// [`ExpressError::Load`].
    pub fn load(flows: u32, pins: Option<&Path>) -> Result<Self, ExpressError> {
        Self::load_at(TcHook::of_kernel(), flows, pins)
    }

    /// As [`load`](Self::load), with the program for tc held by that.
    ///
    /// # Errors
    /// As for it.
    pub fn load_at(hook: TcHook, flows: u32, pins: Option<&Path>) -> Result<Self, ExpressError> {
        let load = |pins| Program::load(hook, flows.max(1), pins);
        let pinned = pins.map(|pins| open_empty(pins).and_then(|pins| load(Some(pins))));
        let (program, unpinned) = match pinned {
            Some(Ok(program)) => (program, None),
            other => {
                let why = other.and_then(Result::err).map(|error| error.to_string());
                (load(None).map_err(ExpressError::Load)?, why)
            }
        };
        let program = Arc::new(program);
        let flows = FlowTable::new(Arc::clone(&program));
        Ok(Self::of(program, flows, Pair::none(pins), unpinned))
    }

    /// Takes over what another process has left in `base`: its maps, as large as they are, by what was
    /// [prepared](Prepared) if that was done. Its program goes on with the flows in them alone, and no other
    /// frame goes anywhere, until its port is opened, but those that wait already. Which flows there are,
    /// [`inherit`](Self::inherit) says. `None` if there is nothing, or nothing of use: then what was prepared is left
    /// to the caller.
    pub fn resume(base: &Path, prepared: &mut Option<Prepared>) -> Option<Self> {
        if !base.exists() {
            return None;
        }
        let resumed = Pins::open(base, LAYOUT).and_then(|pins| {
            if !pins.has_maps(&MAPS) {
                return Ok(None);
            }
            if prepared.is_none() {
                *prepared = Some(Prepared::of(pins, base)?);
            }
            prepared.iter().try_for_each(Prepared::forget_others_ports)?;
            Ok(prepared.take().map(|Prepared { program, pair }| {
                let program = Arc::new(program);
                let flows = FlowTable::new(Arc::clone(&program));
                Self::of(program, flows, pair, None)
            }))
        });
        resumed.unwrap_or_else(|error| {
            tracing::warn!(%error, "what the last data plane has pinned cannot be taken over");
            None
        })
    }

    /// The flows of a lane that was [resumed](Self::resume); to be called before any is given. None is held any
    /// more: what was on the long way has ended with the other process.
    pub fn inherit(&self) -> Vec<Inherited> {
        let inherited = self.kernel.flows.resume();
        self.kernel.flows.let_go();
        inherited
    }

    fn of(program: Arc<Program>, flows: FlowTable, pair: Pair, unpinned: Option<String>) -> Self {
        let Pair { punt, other, walls } = pair;
        let (flows, punt, seed) = (Arc::new(flows), Mutex::new(punt), OnceLock::new());
        let kernel = Kernel { program, flows, punt, walls, seed, other_pair: other, unpinned };
        Self { kernel: Arc::new(kernel), kept_open: AtomicU64::new(nanos(now())) }
    }

    /// Opens the interface `ifname`, of the calling thread's network namespace. `tag`, a VLAN
    /// identifier, and `owner`, a number among the umem's owners, are its own; `fill` frames are its
    /// share of the umem for receiving. On failure everything is as it was.
    ///
    /// # Errors
    /// See [`ExpressError`].
    pub fn open(
        &self,
        umem: &Arc<Umem>,
        owner: u16,
        tag: u16,
        ifname: &str,
        fill: u32,
        pool: &mut FramePool,
    ) -> Result<Opened, ExpressError> {
        let link = Netlink::open().map_err(ExpressError::Netlink)?.link(ifname)?;
        if !is_carried(&link) {
            return Err(ExpressError::WrongKind { ifname: link.name });
        }
        if link.mtu > MAX_MTU {
            let (ifname, mtu) = (link.name, link.mtu);
            return Err(ExpressError::MtuTooLarge { ifname, mtu, limit: MAX_MTU });
        }
        let port = ExpressPort::open(&self.kernel, umem, owner, tag, link.clone(), fill, pool)?;
        Ok(Opened { port, link })
    }

    /// Opens the interface `ifname` for the switch lane, as [`port::xdp::open`](crate::port::xdp::open)
    /// does, under the program that looks frames up. `tag` is as for [`open`](Self::open). On failure
    /// everything is as it was.
    ///
    /// # Errors
    /// See [`ExpressError`].
    pub fn open_frames(
        &self,
        umem: &Arc<Umem>,
        owner_base: u16,
        tag: u16,
        ifname: &str,
        options: &XdpOptions,
        pool: &mut FramePool,
    ) -> Result<xdp::Opened<LookupPort>, ExpressError> {
        frames::open(&self.kernel, umem, owner_base, tag, ifname, options, pool)
    }

    /// Whether the interface of that index takes frames that are redirected in XDP.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_device(&self, ifindex: u32, takes: bool) -> io::Result<()> {
        self.kernel.program.set_device(ifindex, takes)
    }

    /// The verdicts that the kernel has.
    pub fn flows(&self) -> &FlowTable {
        &self.kernel.flows
    }

    /// Frames that were dropped because their ports had as much on the way to the switch as they may.
    pub fn refused(&self) -> u64 {
        self.kernel.program.refused()
    }

    /// Puts an epoch in force: verdicts of earlier ones are not used from now on.
    pub fn set_epoch(&self, epoch: u64) {
        self.kernel.program.set_epoch(epoch);
    }

    /// Keeps the door open for that long from now.
    pub fn keep_open(&self, time: Duration) {
        let now = now();
        self.kernel.program.keep_open(nanos(now + time));
        self.kept_open.store(nanos(now), Ordering::Relaxed);
    }

    /// Has misses come here, should they go to a successor that asked for them and has not come up.
    pub(crate) fn take_misses_back(&self) {
        if let Some(punt) = &*self.kernel.punt.lock()
            && self.kernel.program.punt() != punt.ifindex()
        {
            tracing::info!("a successor has not come up yet: its misses are judged here again");
            self.kernel.program.set_punt(punt.ifindex());
        }
    }

    /// How long ago that was done; if never, how long ago the lane was loaded.
    pub fn heartbeat(&self) -> Duration {
        now().saturating_sub(Duration::from_nanos(self.kept_open.load(Ordering::Relaxed)))
    }

    /// How much longer the door is open.
    pub fn open_for(&self) -> Duration {
        Duration::from_nanos(self.kernel.program.open_until()).saturating_sub(now())
    }

    /// Frames that were dropped because the door was shut.
    pub fn shut_drops(&self) -> u64 {
        self.kernel.program.shut_drops()
    }

    /// What holds the program at the ports' ingress.
    pub fn hook(&self) -> TcHook {
        self.kernel.program.hook()
    }

    /// Whether program and verdicts outlive the process.
    pub fn is_pinned(&self) -> bool {
        self.kernel.program.is_pinned()
    }

    /// Why they do not, though they were to.
    pub fn why_unpinned(&self) -> Option<&str> {
        self.kernel.unpinned.as_deref()
    }

    /// Takes what a predecessor has at that hook off every interface but these.
    pub fn keep_links(&self, hook: Hook, ifindexes: &[u32]) {
        let place = match hook {
            Hook::Tcx => Place::Tc,
            Hook::Xdp => Place::Xdp,
        };
        if let Err(error) = self.kernel.program.keep_links(place, ifindexes) {
            tracing::warn!(%error, "a program of the last data plane stays on its interface");
        }
    }

    /// Interfaces that the host's stack is kept from when the process is killed, beside those that the program is
    /// on.
    pub(crate) fn walled(&self) -> BTreeSet<u32> {
        self.kernel.walls.raised()
    }

    /// Removes the device pair that a predecessor's misses took.
    pub fn remove_other_pair(&self) {
        self.kernel.remove_other_pair();
    }

    /// From now on nothing outlives the process.
    pub fn unpin(&self) {
        if let Err(error) = self.kernel.program.unpin() {
            tracing::warn!(%error, "the express lane's pins are not removed");
        }
        self.kernel.remove_pairs();
    }

    /// Removes the device pair that was [prepared](Prepared), if no port has come to use it.
    pub(crate) fn discard(&self, pool: &mut FramePool) {
        self.kernel.close_pair(pool);
    }

    /// Nothing that is punted is received any more: flows that were held for it go on without.
    pub fn abandon(&self) {
        self.kernel.abandon();
    }

    /// Shuts the door: everything is dropped.
    pub fn shut(&self) {
        self.kernel.program.keep_open(0);
    }
}

/// Our own programs over the maps that a process has pinned which still runs, and a device pair for their
/// misses. It goes on as if they were not there, until [`Lane::resume`] puts them in its programs' place.
pub struct Prepared {
    program: Program,
    pair: Pair,
}

/// The device pair of a lane that begins.
struct Pair {
    punt: Option<Punt>,
    /// Index of the near end of a predecessor's, or 0.
    other: u32,
    /// What keeps the host's stack off it.
    walls: Arc<Walls>,
}

impl Pair {
    /// None yet, and nobody else's.
    fn none(pins: Option<&Path>) -> Self {
        Self { punt: None, other: 0, walls: Arc::new(Walls::new(pins)) }
    }
}

impl Prepared {
    /// Has the kernel verify the programs, and makes the pair, in the calling thread's network namespace, if the
    /// other process has one. `seed`, an interface of this switch, names it; `fill` is a port's share of
    /// the umem for receiving. `None` if there is nothing of this layout, or nothing of use.
    pub fn load(
        base: &Path,
        umem: &Arc<Umem>,
        seed: &str,
        fill: u32,
        pool: &mut FramePool,
    ) -> Option<Self> {
        let pins = Pins::at(base, LAYOUT).ok()?;
        if !pins.has_maps(&MAPS) {
            return None;
        }
        let prepared = Self::open(pins, base).and_then(|mut prepared| {
            let Self { program, pair: Pair { punt, other, walls } } = &mut prepared;
            let verified = thread::scope(|scope| {
                let verified = scope.spawn(|| program.verify());
                if *other != 0 {
                    let opened = Punt::open(umem, seed, *other, punt::fill_of(fill), walls, pool);
                    // The first port that is opened tries again, and says why it cannot.
                    *punt = opened.ok();
                }
                verified.join().unwrap_or_else(|panic| resume_unwind(panic))
            });
            if let Err(error) = verified {
                prepared.close(pool);
                return Err(error);
            }
            Ok(prepared)
        });
        let useless = |error: &io::Error| {
            tracing::debug!(%error, "what another data plane has pinned is of no use");
        };
        prepared.inspect_err(useless).ok()
    }

    /// With programs that the kernel has yet to verify, and no pair.
    fn open(pins: Pins, base: &Path) -> io::Result<Self> {
        let program = Program::open(TcHook::of_kernel(), 1, Some(pins))?;
        let pair = Pair { other: program.punt(), ..Pair::none(Some(base)) };
        Ok(Self { program, pair })
    }

    fn of(pins: Pins, base: &Path) -> io::Result<Self> {
        let prepared = Self::open(pins, base)?;
        prepared.program.verify()?;
        Ok(prepared)
    }

    /// Has the program in XDP redirect to those of these interfaces that are among the `targets`. Returns which.
    fn foresee(&self, tags: &HashMap<&str, u16>, targets: &BTreeSet<u32>) -> BTreeSet<u32> {
        let links = Netlink::open().and_then(|mut netlink| netlink.links()).unwrap_or_default();
        let ports = links.iter().filter(|link| tags.contains_key(link.name.as_str()));
        let takers = ports.map(|link| link.index).filter(|index| targets.contains(index));
        takers.filter(|&index| self.program.set_device(index, true).is_ok()).collect()
    }

    /// Has no frame punted from where it is not the pair that takes it.
    fn forget_others_ports(&self) -> io::Result<()> {
        match &self.pair.punt {
            Some(punt) if punt.ifindex() == self.program.punt() => Ok(()),
            _ => self.program.forget_ports(),
        }
    }

    /// Has misses wait in the pair, if they are named by these tags of the interfaces: each is a port's then.
    fn take_misses(&self, tags: &HashMap<&str, u16>) {
        if let Some(punt) = &self.pair.punt
            && self.has(tags)
        {
            self.program.set_punt(punt.ifindex());
        }
    }

    /// Goes on with the misses that wait if they are named by these tags, and removes them and the pair if not.
    fn keep_misses(&mut self, tags: &HashMap<&str, u16>, pool: &mut FramePool) {
        match self.pair.punt.take() {
            Some(punt) if self.has(tags) => {
                // Once more: the predecessor may have taken them back before it retired.
                self.program.set_punt(punt.ifindex());
                self.pair.punt = Some(punt);
            }
            other => {
                self.program.set_punt(0);
                other.into_iter().for_each(|punt| punt.close(pool));
            }
        }
    }

    /// Whether the program knows the interfaces by these tags, and no others.
    fn has(&self, tags: &HashMap<&str, u16>) -> bool {
        let links = Netlink::open().and_then(|mut netlink| netlink.links()).unwrap_or_default();
        let tags: HashMap<u32, u32> = links
            .iter()
            .filter_map(|link| Some((link.index, u32::from(*tags.get(link.name.as_str())?))))
            .collect();
        let known = self.program.known_ports();
        known.is_ok_and(|known| known.iter().all(|(index, tag)| tags.get(index) == Some(tag)))
    }

    /// Gives the misses back and removes the pair. The programs go with the value.
    fn close(self, pool: &mut FramePool) {
        let Self { program, pair: Pair { punt, other, .. } } = self;
        if let Some(punt) = punt {
            if program.punt() == punt.ifindex() {
                program.set_punt(other);
            }
            punt.close(pool);
        }
    }
}

/// Removes the verdicts that are pinned in a directory. The programs that go by them stay until ports are opened,
/// or their door shuts.
pub(crate) fn forget_verdicts(base: &Path) {
    if let Err(error) = open_empty(base) {
        tracing::warn!(%error, "the last switch's verdicts stay pinned");
    }
}

/// The pins in a directory, with no map in it.
fn open_empty(base: &Path) -> io::Result<Pins> {
    let pins = Pins::open(base, LAYOUT)?;
    pins.remove_maps()?;
    Ok(pins)
}

/// The program's clock.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether the express lane carries such an interface.
pub fn is_carried(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("veth" | "tun"))
}

/// How frames leave by an interface: a veth's far end in another namespace is reached directly.
pub fn egress_of(link: &Link) -> Egress {
    if link.kind.as_deref() == Some("veth") && link.peer_elsewhere {
        Egress::Peer(link.index)
    } else {
        Egress::Transmit(link.index)
    }
}
