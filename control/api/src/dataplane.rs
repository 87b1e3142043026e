//! What control and the data plane say to each other.
//!
//! Control connects to the data plane's socket. One connection carries requests, each answered in
//! order by one [`Reply`]; a second one starts with [`Request::Subscribe`] and carries [`Event`]s
//! from then on.

use std::net::IpAddr;

use firedoor_classifier::snapshot::{Lane, PortId, Snapshot};
use firedoor_classifier::verdict::DropReason;
use serde::{Deserialize, Serialize};

/// What control may ask of the data plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Put this snapshot in force, whole. Answered by [`Reply::Installed`] once every worker judges
    /// by it.
    Install(Box<Snapshot>),
    /// Answered by [`Reply::Snapshot`].
    Snapshot,
    /// Answered by [`Reply::Status`].
    Status,
    /// Answered by [`Reply::Ports`].
    Ports,
    /// Answered by [`Reply::Flows`].
    Flows,
    /// From now on, send events. Not answered.
    Subscribe,
    /// Of a successor: stop, leave what the kernel forwards by as it is, and end. Answered by
    /// [`Reply::Retired`] once no worker forwards any more.
    Retire,
}

/// What the data plane answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The snapshot of this epoch is in force.
    Installed {
        /// Its epoch.
        epoch: u64,
        /// The ports as they are now.
        ports: Vec<PortStatus>,
    },
    /// The snapshot in force, if there is one.
    Snapshot(Option<Box<Snapshot>>),
    /// Totals.
    Status(Box<Status>),
    /// Every port.
    Ports(Vec<PortStatus>),
    /// Live connections and cached flows.
    Flows(Vec<Flow>),
    /// The request could not be done; nothing changed.
    Refused {
        /// What, where and what to do.
        message: String,
    },
    /// It is the successor's turn.
    Retired {
        /// The process that ends now.
        pid: u32,
        /// When the workers stopped, in nanoseconds of CLOCK_MONOTONIC.
        stopped: u64,
    },
}

/// The data plane's totals.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its version, and the commit that it was built from where that is known.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_secs: u64,
    /// Epoch in force, 0 if none.
    pub epoch: u64,
    /// Workers.
    pub workers: u16,
    /// Of the frames received, those that each worker did; the rest the kernel forwarded.
    pub received_by: Vec<u64>,
    /// Live connections.
    pub connections: u64,
    /// Of these, those that each worker has.
    pub connections_by: Vec<u64>,
    /// Bound on them.
    pub max_connections: u64,
    /// Frames received and forwarded since the start.
    pub received: u64,
    /// Frames sent.
    pub sent: u64,
    /// Verdicts reached by connections, flow cache and upcall.
    pub connection_hits: u64,
    /// Likewise.
    pub cache_hits: u64,
    /// Likewise.
    pub upcalls: u64,
    /// Learned MAC addresses that moved to another port.
    pub mac_moves: u64,
    /// Partial checksums completed.
    pub checksums_completed: u64,
    /// Drops since the start, reasons with a count of zero left out.
    pub drops: Vec<(DropReason, u64)>,
    /// Frames that would have been dropped, in learn and audit mode or by rules under audit.
    pub would_drops: Vec<(DropReason, u64)>,
    /// Denied frames that were mirrored.
    pub mirrored: u64,
    /// Denied frames that were not mirrored: rate limit or full queue.
    pub mirror_lost: u64,
    /// Frames in the umem.
    pub frames: u32,
    /// Frames neither free nor with the kernel nor in a worker's hands. Anything but 0 is a bug.
    pub frames_leaked: u64,
    /// The express lane, once a port needs it.
    pub express: Option<ExpressStatus>,
    /// Whether processors are kept awake, if the config asks for it.
    pub awake: Option<AwakeStatus>,
    /// What it took over when it started, if it was started to replace another data plane.
    pub takeover: Option<Takeover>,
}

/// How one data plane took another's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    /// The process that was replaced.
    pub predecessor: u32,
    /// Flows that the kernel forwarded then, and that were judged again.
    pub flows: u64,
    /// How long no worker forwarded, in microseconds: new connections waited, and all of the switch
    /// lane.
    pub blackout_us: u64,
}

/// Whether processors are kept awake while frames come often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwakeStatus {
    /// Most microseconds that one may take to wake meanwhile.
    pub within_us: u32,
    /// Whether they are kept to it now.
    pub held: bool,
    /// Why they cannot be.
    pub problem: Option<String>,
}

/// The express lane as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpressStatus {
    /// Flows whose verdicts the kernel has: two for each connection.
    pub flows: u64,
    /// Bound on them.
    pub max_flows: u64,
    /// Whether they outlive the data plane.
    pub pinned: bool,
    /// How long ago the data plane last looked after it, in milliseconds.
    pub heartbeat_ms: u64,
    /// How much longer the kernel goes on if it does not do so again, in milliseconds.
    pub open_ms: u64,
}

/// One port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortStatus {
    /// The workload's name.
    pub workload: String,
    /// Its number.
    pub port: PortId,
    /// The interface.
    pub ifname: String,
    /// Attached, or why not.
    pub state: PortState,
    /// The lane that carries it.
    pub lane: Lane,
    /// How XDP is attached: `native` or `generic`, then `copy` or `zero-copy`; empty when it is not.
    pub mode: String,
    /// The worker of each of its queues; empty when it is not attached.
    pub workers: Vec<u16>,
    /// Notices for people, such as why a lane is not the wanted one.
    pub notices: Vec<String>,
    /// Frames and bytes.
    pub counters: PortCounters,
}

/// A port's traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortCounters {
    /// Frames from it.
    pub rx_frames: u64,
    /// Bytes from it.
    pub rx_bytes: u64,
    /// Frames to it.
    pub tx_frames: u64,
    /// Bytes to it.
    pub tx_bytes: u64,
    /// Frames from it that were dropped, for whatever reason.
    pub drops: u64,
}

/// Whether a port is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// Frames move.
    Up,
    /// The interface does not exist; it is attached when it appears.
    Missing,
    /// Attaching failed; tried again when the interface changes.
    Failed(String),
}

/// One live connection or cached flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// `connection` or `cached`.
    pub kind: String,
    /// Name of the source's workload or group.
    pub from: String,
    /// Name of the destination's workload or group.
    pub to: String,
    /// IP protocol.
    pub protocol: u8,
    /// Source address; absent where the mask leaves it out.
    pub src: Option<IpAddr>,
    /// Destination address.
    pub dst: Option<IpAddr>,
    /// Source port or ICMP identifier.
    pub src_port: Option<u16>,
    /// Destination port, or ICMP `type << 8 | code`.
    pub dst_port: Option<u16>,
    /// `allow`, or the slug of the reason for which policy does not allow it.
    pub verdict: String,
    /// Whether its frames are dropped: in learn and audit mode they are forwarded all the same.
    pub dropped: bool,
    /// Rule that decided; `default` or `switch` where none did.
    pub rule: String,
    /// State of a connection; empty for a cached flow.
    pub state: String,
    /// The lane that carries it.
    pub lane: Lane,
    /// Why the switch forwards a connection itself: `protocol`, `audit`, `router`, `trunk`,
    /// `window-check`, `state`, `stale`, `short`, `held`, `switch-port` or `table-full`; empty if the kernel
    /// does.
    pub kept: String,
    /// Frames, both directions.
    pub frames: u64,
    /// Bytes, both directions; 0 for a cached flow.
    pub bytes: u64,
    /// Milliseconds since it began (connection) or was last used (cached flow).
    pub age_ms: u64,
    /// Milliseconds since its last frame.
    pub idle_ms: u64,
}

/// What the data plane tells a subscriber.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A frame was denied, or would have been.
    Denied(Box<Denied>),
    /// So many denied frames were not mirrored since the last such event.
    MirrorLost(u64),
    /// A port came or went.
    Port(Box<PortStatus>),
    /// A snapshot came into force.
    Epoch(u64),
}

/// One denied frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Denied {
    /// Nanoseconds since the Unix epoch.
    pub unix_ns: u64,
    /// Epoch it was judged under.
    pub epoch: u64,
    /// Port it came in by.
    pub port: PortId,
    /// Workload or group it came from.
    pub from: String,
    /// Workload or group it was for; an address where neither is known.
    pub to: String,
    /// Rule that decided; `default` or `switch` where none did.
    pub rule: String,
    /// The reason.
    pub reason: DropReason,
    /// False if it was forwarded all the same (learn, audit).
    pub dropped: bool,
    /// IP protocol; 0 if it is not IP.
    pub protocol: u8,
    /// Ethertype.
    pub ether_type: u16,
    /// Source address, if it is IP or ARP.
    pub src: Option<IpAddr>,
    /// Destination address.
    pub dst: Option<IpAddr>,
    /// Source port or ICMP identifier.
    pub src_port: u16,
    /// Destination port, or ICMP `type << 8 | code`.
    pub dst_port: u16,
    /// Length of the frame, in bytes.
    pub length: u32,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}
