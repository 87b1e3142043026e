//! Traffic of our own: a [load](Load) that a [`Generator`] sends into one end of what is measured,
//! and a [`Sink`] that counts what comes out at the other.
//!
//! Every frame of a load carries a mark and a sequence number, so a sink counts nothing else, and
//! loss is what was sent less what was received. There are two [kinds](Kind) of generators, for two
//! questions: live frames ask what a system forwards at most, since no other source on the same
//! machine offers as much; packet sockets send skbs, as workloads do. And a sink counts at two
//! [places](Place): in XDP, where receiving costs next to nothing, or at the stack's door, where the
//! kernel has done for a frame what it does before any socket can have it.
//!
//! With a `rate` a [pacer] spaces the frames evenly, and [`search`](search::search) finds
//! the highest rate at which none is lost.
//!
//! A generator offers frames; it does not know whether they were taken. A veth drops frames that do
//! not fit the 256 places of its receiver's ring, silently as far as the sender is concerned, and
//! that loss belongs to the system under test, whose receiver was too slow.

mod error;
mod frames;
mod generator;
pub mod pacer;
pub mod reach;
pub mod search;
mod sink;
pub mod wire;

use std::fmt::{self, Display};
use std::net::Ipv4Addr;
use std::ops::{AddAssign, Sub};
use std::time::Duration;

use firedoor_classifier::MacAddr;
pub use firedoor_dataplane::sys::live_frames::SOURCE_PORTS;
pub use firedoor_dataplane::sys::tally::Place;
use serde::Serialize;

pub use error::TrafficError;
pub use generator::{Generator, Running};
pub use sink::Sink;

/// The frame check sequence, which every length on the wire includes and no buffer holds, in bytes.
const CHECK_SEQUENCE: u16 = 4;

/// What is sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// How long the frames are.
    pub frame: FrameSize,
    /// How many flows they belong to, at least 1. Flow n goes from `from.port + n % 32768` to
    /// `to.port + n / 32768`, and the flows take turns in a scattered order, which visits each once
    /// before any a second time.
    pub flows: u32,
    /// Frames per second to offer; as many as possible if there is none.
    pub rate: Option<u64>,
    /// Where they come from; the port is that of the first flow.
    pub from: End,
    /// Where they go; likewise.
    pub to: End,
    /// Decides the order of the flows.
    pub seed: u64,
}

/// One end of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its UDP port in the first flow.
    pub port: u16,
}

/// How long frames are, on the wire: Ethernet header and frame check sequence included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FrameSize {
    /// All alike, of 64 to 1518 bytes.
    Fixed(u16),
    /// Of every 12 frames 7 are of 64 bytes, 4 of 570 and 1 of 1518: 353.8 bytes on average.
    Imix,
}

/// How frames are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// In the kernel, as XDP frames that never were an skb.
    LiveFrames,
    /// By a packet socket, as skbs.
    Packet,
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LiveFrames => "live frames",
            Self::Packet => "packets",
        })
    }
}

/// What a generator sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Frames.
    pub frames: u64,
    /// Their bytes, from the Ethernet header on, without frame check sequences.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Sent {
    /// Frames per second.
    pub fn rate(&self) -> f64 {
        self.frames as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl AddAssign for Sent {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.elapsed += other.elapsed;
    }
}

/// What a sink received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Received {
    /// Frames of a load.
    pub frames: u64,
    /// Their bytes, from the Ethernet header on, without frame check sequences.
    pub bytes: u64,
    /// The highest sequence number so far, 0 before the first. Generators number their frames from
    /// the time they were made on, in nanoseconds, so a later one's are higher.
    pub highest: u64,
    /// Frames whose number was not above every earlier one's on the same processor.
    pub reordered: u64,
}

impl Sub for Received {
    type Output = Self;

    /// What was received since `earlier`, of the same sink.
    fn sub(self, earlier: Self) -> Self {
        Self {
            frames: self.frames - earlier.frames,
            bytes: self.bytes - earlier.bytes,
            highest: self.highest,
            reordered: self.reordered - earlier.reordered,
        }
    }
}
