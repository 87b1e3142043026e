//! The express lane: what the switch has judged, the kernel forwards.
//!
//! A port of this lane has no XDP program, so its workload keeps segmentation and checksum offload.
//! A tcx program at the port's ingress looks every frame up by its exact flow: ingress interface,
//! addresses, ports and MAC addresses. What it finds is a verdict that the switch lane has reached
//! before, and the frame is redirected whole to where that says. What it does not find, or does not
//! understand, or moves a connection's state, it *punts* to the switch lane with the name of its port
//! ([`punt`]). So every verdict is the switch's; the kernel has a cache of them.
//!
//! Invariants:
//! - A verdict is used only for the very flow it was reached for: the entry names it in full.
//! - A verdict of another epoch than the one in force is no verdict. Raising the epoch is one store
//!   to memory that the program reads ([`Lane::set_epoch`]).
//! - A frame does not overtake an earlier one of its flow: a flow is held on the long way until all
//!   of it that was punted has left the switch.
//! - The door is open only while the switch says so ([`Lane::keep_open`]): a program that outlives it
//!   drops everything.
//!
//! [`Members`] says which ports there are, [`offload`] which connections a worker gives to the kernel.
//! [`FlowTable`] is what the kernel knows; docs/adr/0004 says why misses travel as they do.

mod members;
pub mod offload;
pub mod punt;
pub mod table;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use thiserror::Error;

use self::punt::{ExpressPort, MAX_MTU, Punt};
use self::table::FlowTable;
use crate::link::{Link, LinkError, Netlink};
use crate::pool::FramePool;
use crate::port::xdp::OpenError;
use crate::sys::express::{Egress, Program};
use crate::sys::umem::Umem;

pub use self::members::{Member, Members};
pub use self::table::{InstallError, Slot};
pub use crate::sys::express::{Egress as FlowEgress, FlowId, FlowVerdict, Progress};

/// How long the door stays open after the switch was last heard.
pub const OPEN_FOR: Duration = Duration::from_secs(30);

/// The express lane of one switch.
pub struct Lane {
    kernel: Arc<Kernel>,
}

/// What the program, its maps and the device pair are to the ports that use them.
pub(crate) struct Kernel {
    program: Arc<Program>,
    flows: FlowTable,
    punt: Mutex<Option<Punt>>,
}

/// Why the express lane, or a port of it, cannot be had.
#[derive(Debug, Error)]
pub enum ExpressError {
    /// The kernel does not take the program.
    #[error(
        "the kernel does not take the express lane's program; it needs Linux 5.11 with BPF, and \
         CAP_BPF with CAP_NET_ADMIN"
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
        "the MTU of {ifname} is {mtu} bytes, the express lane takes at most {MAX_MTU}; \
         `ip link set {ifname} mtu {MAX_MTU}` at both ends"
    )]
    MtuTooLarge {
        /// The interface.
        ifname: String,
        /// Its MTU, in bytes.
        mtu: u32,
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
    ///
    /// # Errors
    /// [`ExpressError::Load`].
    pub fn load(flows: u32) -> Result<Self, ExpressError> {
        let program = Arc::new(Program::load(flows.max(1)).map_err(ExpressError::Load)?);
        let flows = FlowTable::new(Arc::clone(&program));
        Ok(Self { kernel: Arc::new(Kernel { program, flows, punt: Mutex::new(None) }) })
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
            return Err(ExpressError::MtuTooLarge { ifname: link.name, mtu: link.mtu });
        }
        let port = ExpressPort::open(&self.kernel, umem, owner, tag, link.clone(), fill, pool)?;
        Ok(Opened { port, link })
    }

    /// The verdicts that the kernel has.
    pub fn flows(&self) -> &FlowTable {
        &self.kernel.flows
    }

    /// Puts an epoch in force: verdicts of another are not used from now on.
    pub fn set_epoch(&self, epoch: u64) {
        self.kernel.program.set_epoch(epoch);
    }

    /// Keeps the door open for [`OPEN_FOR`] from now.
    pub fn keep_open(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.kernel.program.keep_open(u64::try_from((now + OPEN_FOR).as_nanos()).unwrap_or(0));
    }

    /// Shuts the door: everything is dropped.
    pub fn shut(&self) {
        self.kernel.program.keep_open(0);
    }
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
