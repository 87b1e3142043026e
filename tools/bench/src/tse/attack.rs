//! The attacks.
//!
//! The published one (Csikor et al., CoNEXT '19) knows a policy of four rules and sends, for each bit
//! of each field that a rule looks at, a packet that differs from the rule in that bit first: in a
//! cache whose masks are cut to the bits that were consulted, each of these makes a mask of its own.
//! Its second form knows nothing and sends random headers.
//!
//! Ours know Firedoor's source. Its masks are rounded to a few steps, so they aim at what is left:
//!
//! - *every mask*: addresses of both families around the edges of groups, so that all steps of all
//!   fields occur and every subtable is in use; each frame is new, so each wants an upcall and a
//!   place in the cache, half of them in the half that the allowed flows use; sources are forged, so
//!   that no network's share bounds them;
//! - *ranks and evictions*: a few thousand of these flows, again and again, so that all subtables
//!   rank before the victims', and all entries are as much in use as theirs.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use fastrand::Rng;
use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::extract::{Headers, extract};
use firedoor_classifier::key::to_bits;
use firedoor_classifier::snapshot::{Conditions, Service, Services, Snapshot, TagSet};
use firedoor_classifier::wire::protocol::{TCP, UDP};
use ipnet::IpNet;

use super::TseError;
use super::scene::{INNER, SERVER, SERVER_ADDRESS, UPLINK, group, rule, snapshot};
use crate::classify::files::{self, Header};
use crate::scene::mac;

/// A policy, and the frames that are sent against it.
pub struct Attack {
    /// What it is called.
    pub name: String,
    /// The policy.
    pub snapshot: Snapshot,
    next: Box<dyn FnMut() -> Headers>,
}

impl Attack {
    /// The next frame.
    pub fn frame(&mut self) -> Headers {
        (self.next)()
    }
}

/// The attacks that are built in, and these traces.
///
/// # Errors
/// If a trace cannot be read.
pub fn all(traces: &[PathBuf]) -> Result<Vec<Attack>, TseError> {
    let mut attacks = vec![
        of_headers("published, co-located", colocated()),
        of_headers("published, random", random()),
        every_mask(),
        ranks_and_evictions(),
    ];
    for path in traces {
        for file in trace_files(path)? {
            let headers = files::read_trace(&file)?.into_iter().map(|(header, _)| header);
            attacks.push(of_headers(&file.display().to_string(), headers.collect()));
        }
    }
    Ok(attacks)
}

/// The file itself, or the traces in the directory.
fn trace_files(path: &Path) -> Result<Vec<PathBuf>, TseError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |source| TseError::Directory { path: path.to_owned(), source };
    let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let files = entries.map_err(unreadable)?.into_iter().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        files.filter(|file| file.extension().is_some_and(|end| end == "trace")).collect();
    files.sort();
    if files.is_empty() { Err(TseError::NoTrace(path.to_owned())) } else { Ok(files) }
}

/// The source address, source port and destination port that the published policy's rules look at.
const RULE_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const RULE_SRC_PORT: u16 = 12_345;
const RULE_DST_PORT: u16 = 80;

/// The published policy: TCP to one port, from one address, or from one port is allowed (see
/// tests/data/tse).
fn published() -> Snapshot {
    let port = Service::Ports { protocol: TCP, first: RULE_DST_PORT, last: RULE_DST_PORT };
    let any_tcp = || Services::Only(vec![Service::Protocol(TCP)]);
    let to_port = rule(TagSet::Any, Services::Only(vec![port]));
    let from_address = rule(TagSet::Only(vec![group(0)]), any_tcp());
    let mut from_port = rule(TagSet::Any, any_tcp());
    let src_ports = Some((RULE_SRC_PORT, RULE_SRC_PORT));
    from_port.conditions = Conditions { src_ports, ..Conditions::default() };
    snapshot(vec![IpAddr::from(RULE_SOURCE).into()], vec![to_port, from_address, from_port])
}

/// These headers against the published policy, over and over.
fn of_headers(name: &str, headers: Vec<Header>) -> Attack {
    let frames = Frames::new();
    let mut headers = headers.into_iter().cycle();
    let next = move || headers.next().map_or(frames.tcp4, |header| frames.of(&header));
    Attack { name: name.to_owned(), snapshot: published(), next: Box::new(next) }
}

/// For each bit of each field, what agrees with the rule before it and not in it; the rest is random.
fn colocated() -> Vec<Header> {
    let rng = &mut Rng::with_seed(1);
    let mut headers = Vec::new();
    for (src_bit, (src_port_bit, dst_port_bit)) in
        (0..32).flat_map(|a| (0..16).flat_map(move |b| (0..16).map(move |c| (a, (b, c)))))
    {
        let below = |bit: u32| (1u32 << bit) - 1;
        let mut differ = |field: u32, bit: u32| field ^ 1 << bit ^ rng.u32(..) & below(bit);
        headers.push(Header {
            src: differ(RULE_SOURCE.into(), src_bit),
            dst: SERVER_ADDRESS.into(),
            src_port: differ(RULE_SRC_PORT.into(), src_port_bit) as u16,
            dst_port: differ(RULE_DST_PORT.into(), dst_port_bit) as u16,
            protocol: TCP,
        });
    }
    rng.shuffle(&mut headers);
    headers
}

fn random() -> Vec<Header> {
    let rng = &mut Rng::with_seed(2);
    let mut header = || Header {
        src: rng.u32(..),
        dst: SERVER_ADDRESS.into(),
        src_port: rng.u16(1..),
        dst_port: rng.u16(1..),
        protocol: TCP,
    };
    (0..50_000).map(|_| header()).collect()
}

/// Addresses that are groups by themselves, one of each family: what is near them is consulted to
/// the last bits.
const EDGES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6)),
];

/// All UDP is allowed, and TCP to low ports: so half of what is random is allowed, and ports are
/// consulted for TCP and not for UDP.
fn edgy() -> Snapshot {
    let udp = Services::Only(vec![Service::Protocol(UDP)]);
    let low = Services::Only(vec![Service::Ports { protocol: TCP, first: 1, last: 0x7fff }]);
    let nets: Vec<IpNet> = EDGES.map(IpNet::from).to_vec();
    snapshot(nets, [udp, low].map(|services| rule(TagSet::Any, services)).into())
}

fn every_mask() -> Attack {
    let (frames, mut rng) = (Frames::new(), Rng::with_seed(3));
    let next = move || frames.around_the_edges(&mut rng);
    Attack { name: "every mask".to_owned(), snapshot: edgy(), next: Box::new(next) }
}

fn ranks_and_evictions() -> Attack {
    let (frames, mut rng) = (Frames::new(), Rng::with_seed(4));
    let kept: Vec<Headers> = (0..4_096).map(|_| frames.around_the_edges(&mut rng)).collect();
    let next = move || match rng.u8(..8) {
        0 => frames.around_the_edges(&mut rng),
        _ => kept[rng.usize(..kept.len())],
    };
    Attack { name: "ranks and evictions".to_owned(), snapshot: edgy(), next: Box::new(next) }
}

/// One frame of each kind, whose key is then changed at will.
#[derive(Clone, Copy)]
struct Frames {
    tcp4: Headers,
    udp4: Headers,
    tcp6: Headers,
    udp6: Headers,
}

impl Frames {
    fn new() -> Self {
        let ends = |addr: IpAddr| {
            let (eth_src, eth_dst) = (mac(UPLINK), mac(INNER));
            Ends { eth_src, eth_dst, src: addr, dst: addr }
        };
        let headers = |frame: Vec<u8>| extract(&frame, UPLINK).expect("a well-formed frame");
        let tcp = |addr| headers(build::tcp(ends(addr), 1, 1, TcpFlags::SYN));
        let udp = |addr| headers(build::udp(ends(addr), 1, 1, b""));
        let [v4, v6] = EDGES;
        Self { tcp4: tcp(v4), udp4: udp(v4), tcp6: tcp(v6), udp6: udp(v6) }
    }

    /// A frame with this header, to the server or to somewhere beyond.
    fn of(&self, header: &Header) -> Headers {
        let mut frame = if header.protocol == UDP { self.udp4 } else { self.tcp4 };
        let is_server = header.dst == u32::from(SERVER_ADDRESS);
        frame.key.eth_dst = mac(if is_server { SERVER } else { INNER });
        frame.key.src = to_bits(Ipv4Addr::from(header.src).into());
        frame.key.dst = to_bits(Ipv4Addr::from(header.dst).into());
        (frame.key.src_port, frame.key.dst_port) = (header.src_port.max(1), header.dst_port.max(1));
        frame
    }

    /// A frame whose addresses agree with an edge up to some step, and are random from there.
    fn around_the_edges(&self, rng: &mut Rng) -> Headers {
        let is_v6 = rng.u8(..4) > 0;
        let mut frame = match (is_v6, rng.bool()) {
            (true, true) => self.tcp6,
            (true, false) => self.udp6,
            (false, true) => self.tcp4,
            (false, false) => self.udp4,
        };
        let edge = to_bits(EDGES[usize::from(is_v6)]);
        frame.key.src = near(edge, is_v6, rng);
        frame.key.dst = near(edge, is_v6, rng);
        match rng.u8(..32) {
            0 => frame.key.eth_dst = mac(UPLINK),
            1 => frame.key.eth_src = mac(SERVER),
            2 => frame.key.src = to_bits(SERVER_ADDRESS.into()),
            _ => {}
        }
        (frame.key.src_port, frame.key.dst_port) = (rng.u16(1..), rng.u16(1..));
        frame
    }
}

/// An address that shares a number of whole steps with the edge.
fn near(edge: u128, is_v6: bool, rng: &mut Rng) -> u128 {
    let shared = if is_v6 { [8, 64, 112, 120] } else { [96, 104, 112, 120] };
    let shared = shared[rng.usize(..4)];
    let random = rng.u128(..) >> shared | 1 << (127 - shared);
    edge ^ random
}
