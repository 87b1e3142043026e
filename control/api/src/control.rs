//! What the command line and control say to each other. Each [`Request`] is answered by one
//! [`Reply`], except [`Request::FollowDenies`], which is answered by a [`Reply::Denies`] each time
//! there is news.

use firedoor_classifier::snapshot::{Mode, Snapshot};
use serde::{Deserialize, Serialize};

use crate::dataplane::{Flow, PortStatus, Status as DataplaneStatus};

/// What the command line may ask of control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Answered by [`Reply::Status`].
    Status,
    /// Answered by [`Reply::Ports`].
    Ports,
    /// Add a workload while the switch runs: the text of one `[[workload]]` table.
    PortAdd {
        /// TOML.
        workload: String,
    },
    /// Take a workload that was added, or one of the config's, out of the switch.
    PortDel {
        /// Its name.
        name: String,
    },
    /// Answered by [`Reply::Flows`].
    Flows,
    /// Answered by [`Reply::Denies`], once.
    Denies,
    /// Answered by [`Reply::Denies`] again and again.
    FollowDenies,
    /// Compile this config and put it in force. Answered by [`Reply::Applied`].
    Apply {
        /// Its path, for errors.
        path: String,
        /// Its text.
        text: String,
    },
    /// The snapshot in force. Answered by [`Reply::Snapshot`].
    Snapshot,
}

/// What control answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Roles, epoch, totals.
    Status(Box<Status>),
    /// Every port.
    Ports(Vec<PortStatus>),
    /// Live connections and cached flows.
    Flows(Vec<Flow>),
    /// Refused conversations.
    Denies(Vec<Deny>),
    /// The policy is in force.
    Applied {
        /// Its epoch.
        epoch: u64,
        /// Warnings, one line each.
        notices: Vec<String>,
        /// The ports as they are now.
        ports: Vec<PortStatus>,
    },
    /// The snapshot in force, if there is one.
    Snapshot(Option<Box<Snapshot>>),
    /// It could not be done; nothing changed.
    Refused {
        /// What, where and what to do.
        message: String,
    },
}

/// The switch as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The switch's name.
    pub switch: String,
    /// Its mode.
    pub mode: Mode,
    /// Control's version, and the commit that it was built from where that is known.
    pub control_version: String,
    /// Control's process id.
    pub control_pid: u32,
    /// Seconds since control started.
    pub control_uptime_secs: u64,
    /// The data plane, if it is reachable.
    pub dataplane: Option<DataplaneStatus>,
    /// Every port, as last known.
    pub ports: Vec<PortStatus>,
    /// Path of the capture of denied frames.
    pub capture: String,
    /// Frames written to the capture since control started.
    pub captured: u64,
    /// Denied frames that reached control but could not be written, such as for a full disk.
    pub capture_lost: u64,
    /// Denied frames that the data plane did not mirror, for rate limit or full queue, since
    /// control started.
    pub mirror_lost: u64,
    /// Limits and timeouts in force.
    pub settings: firedoor_classifier::snapshot::Settings,
}

/// One refused conversation: all denied frames with the same ends, service, rule and reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deny {
    /// Nanoseconds since the Unix epoch of its first frame.
    pub first_unix_ns: u64,
    /// Likewise of its last.
    pub last_unix_ns: u64,
    /// Workload or group it came from.
    pub from: String,
    /// Workload, group or address it was for.
    pub to: String,
    /// Service, as `tcp/8080`, `icmp/echo`, `arp`.
    pub service: String,
    /// Rule that decided; `default` or `switch` where none did.
    pub rule: String,
    /// Slug of the reason.
    pub reason: String,
    /// False if its frames were forwarded all the same (learn, audit).
    pub dropped: bool,
    /// Frames.
    pub count: u64,
    /// File name of the capture that holds its last frame, in the directory of
    /// [`Status::capture`]; empty if that frame was not captured, or is rotated away.
    pub capture: String,
    /// Byte offset in that file of the frame's block.
    pub capture_offset: u64,
}
