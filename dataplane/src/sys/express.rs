//! The express lane's two programs and their maps: load, attach, and the memory shared with them.
//!
//! The programs find verdicts by one array and read them, and write what came of them, in two others. All
//! are mapped: the switch gives and takes verdicts, reads a flow's counters and writes a policy's epoch
//! with plain loads and stores. Only ports that come and go cost a system call.
//!
//! Every value of the mapped arrays is an atomic, because the programs run at any time. Layouts are
//! those of dataplane/bpf/express.h.
//!
//! With [`Pins`], maps and links outlive the process: whoever loads the programs next has the same
//! maps, and puts its own program at tc in the place of the old one in one step.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use aya::maps::{DevMapHash, HashMap, Map, MapData, XskMap};
use aya::programs::links::{FdLink, Link as _, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifier, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{LinkOrder, TcAttachType, TestRun, TestRunOptions, Xdp};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use firedoor_classifier::connections::ports_of_answer;
use parking_lot::Mutex;

use super::bpf::{self, LOADER, Mode, Steering, kernel_error};
use super::mmap::Mapping;
use super::pins::Pins;
use crate::express::resizing::Regions;
use crate::link::Netlink;

/// dataplane/bpf/express.bpf.c, compiled by `cargo xtask bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/express.bpf.o");

/// Version of the layouts of [`MAPS`]: what another version has pinned is of no use.
pub(crate) const LAYOUT: u32 = 5;

/// The maps that outlive the process, if they can be pinned.
pub(crate) const MAPS: [&str; 5] =
    ["express_control", "express_ports", "express_index", "express_flows", "express_details"];

/// The loader of programs whose maps are pinned: it keeps their paths.
static PINNED: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| Mutex::new(bpf::loader()));

/// Does now what takes time of [`Program::load`] with pins, but does not touch them.
pub(crate) fn prepare() {
    bpf::prepare();
    LazyLock::force(&PINNED);
}

/// Where the clsact queueing discipline has the program: so that it can be replaced.
const CLSACT: NlOptions = NlOptions { priority: 1, handle: TcHandle::new(0, 1), classid: None };

/// First kernel with tcx.
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);

/// What holds the program for tc at a device's ingress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcHook {
    /// A BPF link, which ends with the process unless it is pinned.
    Tcx,
    /// A filter of the clsact queueing discipline, for kernels without tcx. It stays when the process is
    /// killed; the next one replaces it.
    Clsact,
}

impl TcHook {
    /// What the running kernel has. Where the environment has `FIREDOOR_NO_TCX`, tcx is not used.
    pub fn of_kernel() -> Self {
        let has_tcx = KernelVersion::current().is_ok_and(|version| version >= TCX);
        let is_wanted = std::env::var_os("FIREDOOR_NO_TCX").is_none();
        if has_tcx && is_wanted { Self::Tcx } else { Self::Clsact }
    }
}

/// What is the same in every frame of one direction of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// Index of the ingress interface.
    pub ingress: u32,
    /// Source address; IPv4 as `::ffff:a.b.c.d`.
    pub src: [u8; 16],
    /// Destination address, likewise.
    pub dst: [u8; 16],
    /// Source port, in network byte order; an echo's identifier.
    pub src_port: [u8; 2],
    /// Destination port, likewise; an echo's type and code.
    pub dst_port: [u8; 2],
    /// IP protocol: TCP, UDP, ICMP or ICMPv6.
    pub protocol: u32,
}

impl FlowId {
    /// The flow of these addresses and ports from that interface.
    pub fn new(
        ingress: u32,
        protocol: u8,
        (src, src_port): (IpAddr, u16),
        (dst, dst_port): (IpAddr, u16),
    ) -> Self {
        let bytes = |addr| firedoor_classifier::key::to_bits(addr).to_be_bytes();
        Self {
            ingress,
            src: bytes(src),
            dst: bytes(dst),
            src_port: src_port.to_be_bytes(),
            dst_port: dst_port.to_be_bytes(),
            protocol: protocol.into(),
        }
    }

    /// The flow whose answers these are: it comes in at `ingress`.
    pub fn turned(&self, ingress: u32) -> Self {
        let ports = [self.src_port, self.dst_port].map(u16::from_be_bytes);
        let protocol = u8::try_from(self.protocol).unwrap_or_default();
        let [src_port, dst_port] = ports_of_answer(protocol, ports).map(u16::to_be_bytes);
        let (src, dst) = (self.dst, self.src);
        Self { ingress, src, dst, src_port, dst_port, protocol: self.protocol }
    }

    /// Of its words, as [`words`](Self::words) has them.
    pub(crate) fn of_words(near: [u32; NEAR], far: [u32; FAR], protocol: u32) -> Self {
        let [src, dst, ports, ingress] = near;
        let (src_far, dst_far) = far.split_at(FAR / 2);
        let address = |far: &[u32], last: u32| {
            let mut bytes = [0; 16];
            for (four, word) in bytes.chunks_exact_mut(4).zip(far.iter().chain([&last])) {
                four.copy_from_slice(&word.to_ne_bytes());
            }
            bytes
        };
        let [a, b, c, d] = ports.to_ne_bytes();
        Self {
            ingress,
            src: address(src_far, src),
            dst: address(dst_far, dst),
            src_port: [a, b],
            dst_port: [c, d],
            protocol,
        }
    }

    /// What the programs compare, but for the protocol: the addresses' last words, the ports and the interface,
    /// and what precedes the addresses' last words.
    pub(crate) fn words(&self) -> ([u32; NEAR], [u32; FAR]) {
        let word = |bytes: &[u8; 16], at: usize| {
            let four = bytes.get(4 * at..4 * at + 4).and_then(|four| four.first_chunk().copied());
            four.map_or(0, u32::from_ne_bytes)
        };
        let ([a, b], [c, d]) = (self.src_port, self.dst_port);
        let ports = u32::from_ne_bytes([a, b, c, d]);
        let far =
            |at| if at < FAR / 2 { word(&self.src, at) } else { word(&self.dst, at - FAR / 2) };
        ([word(&self.src, 3), word(&self.dst, 3), ports, self.ingress], std::array::from_fn(far))
    }

    /// Whether the programs find it in frames of IPv6.
    pub(crate) fn is_ipv6(&self) -> bool {
        let is_ipv4 = |address: [u8; 16]| Ipv6Addr::from(address).to_ipv4_mapped().is_some();
        ![self.src, self.dst].into_iter().all(is_ipv4)
    }
}

/// How a frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Through the interface of this index.
    Transmit(u32),
    /// At the peer, in another network namespace, of the veth of this index.
    Peer(u32),
}

impl Egress {
    /// The interface of this switch that it leaves by.
    pub const fn ifindex(self) -> u32 {
        match self {
            Self::Transmit(index) | Self::Peer(index) => index,
        }
    }
}

/// A verdict that the program may apply by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowVerdict {
    /// Destination MAC address.
    pub eth_dst: [u8; 6],
    /// Source MAC address.
    pub eth_src: [u8; 6],
    /// Where it goes.
    pub egress: Egress,
    /// Longest frame that the egress takes, in bytes with the Ethernet header. Larger ones are cut
    /// by no one, so they go the long way.
    pub max_frame: u16,
    /// The rule that allowed it, for who looks into the map; `u32::MAX` for none.
    pub rule: u32,
    /// Epoch of the verdict.
    pub epoch: u64,
    /// Whether the connection was begun by the other side. With `tcp_flags`, for who takes the
    /// connection over.
    pub is_reply: bool,
    /// TCP flags of the connection's first frame.
    pub tcp_flags: u8,
}

impl FlowVerdict {
    /// Whether the program does the same with a flow by either, once both are in force.
    pub(crate) fn does_as(&self, other: &Self) -> bool {
        *self == Self { rule: self.rule, epoch: self.epoch, ..*other }
    }
}

/// What came of a flow since its verdict was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Frames redirected, as they count on a wire, modulo 2^32.
    pub frames: u32,
    /// Their bytes, likewise.
    pub bytes: u64,
    /// TCP: after the last byte sent, and its FIN.
    pub seq: u32,
    /// TCP: after the last byte acknowledged.
    pub ack: u32,
    /// TCP: the window as in the header, unscaled.
    pub window: u16,
    /// TCP: whether a FIN was sent.
    pub has_ended: bool,
    /// Frames dropped so that others before them could leave the long way, modulo 2^32.
    pub drained: u32,
    /// TCP: after the SYN of the SYN-ACK, if that was redirected.
    pub begun: u32,
}

/// Of a flow's words, those that are looked at in every frame of it, and those that are in IPv6's only.
pub(crate) const NEAR: usize = 4;
pub(crate) const FAR: usize = 6;

/// What each frame of a flow needs of its slot, a cache line: one value of the array of flows (`struct flow`).
#[derive(Default)]
#[repr(C)]
pub(crate) struct Flow {
    near: [AtomicU32; NEAR],
    macs: [AtomicU16; 6],
    protocol: AtomicU32,
    epoch: AtomicU32,
    egress: AtomicU32,
    max_frame: AtomicU16,
    mark: AtomicU16,
    long_way: AtomicU32,
    facts: AtomicU32,
    frames: AtomicU32,
    bytes: AtomicU64,
}

/// What only some frames need of it, another one: one value of the array of details (`struct details`).
#[derive(Default)]
#[repr(C)]
pub(crate) struct Details {
    far: [AtomicU32; FAR],
    rule: AtomicU32,
    seq: AtomicU32,
    ack: AtomicU32,
    window: AtomicU16,
    draining: AtomicU16,
    drained: AtomicU32,
    frames_elsewhere: AtomicU32,
    bytes_elsewhere: AtomicU64,
    begun: AtomicU32,
    other: AtomicU32,
}

const _: () = assert!(size_of::<Flow>() == 64 && size_of::<Details>() == 64);

/// The place of one flow in both arrays.
#[derive(Clone, Copy)]
pub(crate) struct Slot<'a> {
    flow: &'a Flow,
    details: &'a Details,
}

/// All of them.
#[derive(Clone, Copy)]
pub(crate) struct Slots<'a> {
    flows: &'a [Flow],
    details: &'a [Details],
}

impl<'a> Slots<'a> {
    pub(crate) const fn new(flows: &'a [Flow], details: &'a [Details]) -> Self {
        Self { flows, details }
    }

    pub(crate) fn get(self, number: u32) -> Option<Slot<'a>> {
        let at = number as usize;
        Some(Slot { flow: self.flows.get(at)?, details: self.details.get(at)? })
    }

    pub(crate) fn iter(self) -> impl DoubleEndedIterator<Item = Slot<'a>> + ExactSizeIterator {
        self.flows.iter().zip(self.details).map(|(flow, details)| Slot { flow, details })
    }

    pub(crate) fn count(self) -> u32 {
        self.flows.len().min(self.details.len()) as u32
    }
}

/// Set in a slot's protocol if its frames are of IPv6 (`KEY_IPV6`).
const KEY_IPV6: u32 = 0x100;

/// One frame that took the long way, in the half of the word that counts these, and in the one that counts
/// those that have left the switch.
const PUNTED: u32 = 1 << 16;
const PASSED: u32 = 1;

/// What is noted of a flow in one word (`FACT_*`).
const PEER: u32 = 1;
const REPLY: u32 = 2;
const ENDED: u32 = 4;
const ASKED: u32 = 8;
const TCP_FLAGS: u32 = 8;

/// What becomes of the first frames of a flow that gets a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// They go the long way, because others before them may be there.
    Held,
    /// There are none: they go by the verdict. It is as if one had been punted, and had left.
    AtOnce,
    /// TCP whose SYN has passed: none goes by the verdict before the SYN-ACK has.
    Asked,
    /// And the other direction: of the frames it is the SYN-ACK that does, if it acknowledges this number. Then
    /// both directions begin.
    Answer {
        /// What it acknowledges.
        ack: u32,
        /// Slot of the direction that has asked.
        other: u32,
    },
}

impl Begin {
    /// Whether a SYN-ACK is waited for.
    pub(crate) const fn is_asked(self) -> bool {
        matches!(self, Self::Asked | Self::Answer { .. })
    }
}

/// One value of the index (`struct bucket`), a cache line: see [`index`](crate::express::index).
#[derive(Default)]
#[repr(C, align(64))]
pub(crate) struct Bucket {
    /// 0, or one more than a slot, with bits of its flow's hash above.
    pub(crate) cells: [AtomicU32; CELLS],
}

/// Cells of a bucket.
pub(crate) const CELLS: usize = 16;

impl Slot<'_> {
    /// Writes a verdict to a slot that the program does not use. `mark` is added to the tags of the
    /// flow's punted frames; `begin` says what becomes of the first.
    pub(crate) fn write(&self, id: &FlowId, verdict: &FlowVerdict, mark: u16, begin: Begin) {
        let Self { flow, details } = self;
        flow.epoch.store(0, Ordering::SeqCst);
        let (near, far) = id.words();
        for (cell, word) in flow.near.iter().zip(near).chain(details.far.iter().zip(far)) {
            cell.store(word, Ordering::Relaxed);
        }
        let family = if id.is_ipv6() { KEY_IPV6 } else { 0 };
        flow.protocol.store(id.protocol | family, Ordering::Relaxed);
        let macs = verdict.eth_dst.chunks_exact(2).chain(verdict.eth_src.chunks_exact(2));
        for (cell, pair) in flow.macs.iter().zip(macs) {
            cell.store(
                pair.first_chunk().map_or(0, |two| u16::from_ne_bytes(*two)),
                Ordering::Relaxed,
            );
        }
        let (egress, peer) = match verdict.egress {
            Egress::Transmit(index) => (index, 0),
            Egress::Peer(index) => (index, PEER),
        };
        let reply = if verdict.is_reply { REPLY } else { 0 };
        let asked = if begin.is_asked() { ASKED } else { 0 };
        let facts = peer | reply | asked | u32::from(verdict.tcp_flags) << TCP_FLAGS;
        flow.egress.store(egress, Ordering::Relaxed);
        flow.max_frame.store(verdict.max_frame, Ordering::Relaxed);
        flow.facts.store(facts, Ordering::Relaxed);
        details.rule.store(verdict.rule, Ordering::Relaxed);
        details.window.store(0, Ordering::Relaxed);
        let (ack, other) = match begin {
            Begin::Answer { ack, other } => (ack, other),
            _ => (0, 0),
        };
        details.ack.store(ack, Ordering::Relaxed);
        details.other.store(other, Ordering::Relaxed);
        let Details { seq, begun, drained, frames_elsewhere, bytes_elsewhere, .. } = details;
        for cell in [seq, begun, drained, &flow.frames, frames_elsewhere] {
            cell.store(0, Ordering::Relaxed);
        }
        for cell in [&flow.bytes, bytes_elsewhere] {
            cell.store(0, Ordering::Relaxed);
        }
        self.open(verdict.epoch as u32, mark, begin);
    }

    /// The verdict that was written here, and its flow, if it was not closed.
    pub(crate) fn read(&self) -> Option<(FlowId, FlowVerdict)> {
        let Self { flow, details } = self;
        let epoch = flow.epoch.load(Ordering::SeqCst);
        let mut macs = [0; 12];
        for (pair, cell) in macs.chunks_exact_mut(2).zip(&flow.macs) {
            pair.copy_from_slice(&cell.load(Ordering::Relaxed).to_ne_bytes());
        }
        let [a, b, c, d, e, f, g, h, i, j, k, l] = macs;
        let index = flow.egress.load(Ordering::Relaxed);
        let facts = flow.facts.load(Ordering::Relaxed);
        let egress = match facts & PEER {
            0 => Egress::Transmit(index),
            _ => Egress::Peer(index),
        };
        let verdict = FlowVerdict {
            eth_dst: [a, b, c, d, e, f],
            eth_src: [g, h, i, j, k, l],
            egress,
            max_frame: flow.max_frame.load(Ordering::Relaxed),
            rule: details.rule.load(Ordering::Relaxed),
            epoch: epoch.into(),
            is_reply: facts & REPLY != 0,
            tcp_flags: (facts >> TCP_FLAGS) as u8,
        };
        (epoch != 0).then(|| (self.id(), verdict))
    }

    /// Whether it has a verdict.
    pub(crate) fn is_open(&self) -> bool {
        self.flow.epoch.load(Ordering::Acquire) != 0
    }

    /// Whose it is, or was.
    pub(crate) fn id(&self) -> FlowId {
        let near = self.flow.near.each_ref().map(|cell| cell.load(Ordering::Relaxed));
        let far = self.details.far.each_ref().map(|cell| cell.load(Ordering::Relaxed));
        FlowId::of_words(near, far, self.flow.protocol.load(Ordering::Relaxed) & !KEY_IPV6)
    }

    /// Lets the flow begin the long way again: its frames are counted anew, under another mark.
    pub(crate) fn restart(&self, mark: u16) {
        let epoch = self.flow.epoch.swap(0, Ordering::SeqCst);
        self.open(epoch, mark, Begin::Held);
    }

    fn open(&self, epoch: u32, mark: u16, begin: Begin) {
        // A program that has found the flow reads the mark before it counts its frame: without one, or
        // with the old one, the frame holds the flow, and does not let it go too early.
        self.flow.mark.store(0, Ordering::SeqCst);
        self.details.draining.store(0, Ordering::Relaxed);
        let frames = if begin == Begin::AtOnce { PUNTED | PASSED } else { 0 };
        self.flow.long_way.store(frames, Ordering::SeqCst);
        self.flow.mark.store(mark, Ordering::Release);
        self.flow.epoch.store(epoch, Ordering::SeqCst);
    }

    /// The verdict is that rule's of that epoch from now on, and else the same. It was not closed.
    pub(crate) fn renew(&self, rule: u32, epoch: u64) {
        self.details.rule.store(rule, Ordering::Relaxed);
        self.flow.epoch.store(epoch as u32, Ordering::SeqCst);
    }

    /// The verdict holds no longer: the flow's next frame is a miss.
    pub(crate) fn close(&self) {
        self.flow.epoch.store(0, Ordering::SeqCst);
    }

    /// One more of the punted frames has left the switch.
    pub(crate) fn pass(&self) {
        let next = |both: u32| {
            let passed = (both as u16).wrapping_add(PASSED as u16);
            Some(both & !u32::from(u16::MAX) | u32::from(passed))
        };
        // It never fails: there always is a next one.
        let _ = self.flow.long_way.fetch_update(Ordering::Release, Ordering::Relaxed, next);
    }

    /// Index of the interface that it leaves by.
    pub(crate) fn egress(&self) -> u32 {
        self.flow.egress.load(Ordering::Relaxed)
    }

    /// Pretends that one frame was punted, and has left the switch, unless it is the SYN-ACK that is waited for.
    pub(crate) fn let_go(&self) {
        if !self.is_asked() {
            self.flow.long_way.store(PUNTED | PASSED, Ordering::Release);
        }
    }

    /// Whether frames that were punted have not left the switch, or none was punted yet.
    pub(crate) fn is_held(&self) -> bool {
        let both = self.flow.long_way.load(Ordering::Relaxed);
        !self.is_asked() && (both < PUNTED || both / PUNTED != both % PUNTED)
    }

    /// Whether the connection's SYN-ACK is waited for.
    pub(crate) fn is_asked(&self) -> bool {
        self.flow.facts.load(Ordering::Acquire) & ASKED != 0
    }

    /// The SYN-ACK has passed the switch. `begin` says what becomes of the frames from now on, if the program
    /// has not let another one pass meanwhile.
    pub(crate) fn answered(&self, begin: Begin) {
        let was_asked = self.flow.facts.fetch_and(!ASKED, Ordering::AcqRel) & ASKED != 0;
        if was_asked && begin == Begin::AtOnce {
            self.flow.long_way.fetch_add(PUNTED | PASSED, Ordering::Release);
        }
    }

    /// What is added to the tags of its punted frames.
    pub(crate) fn mark(&self) -> u16 {
        self.flow.mark.load(Ordering::Relaxed)
    }

    /// What came of it so far.
    pub(crate) fn progress(&self) -> Progress {
        let Self { flow, details } = self;
        let load = |cell: &AtomicU32| cell.load(Ordering::Relaxed);
        let bytes = [&flow.bytes, &details.bytes_elsewhere];
        let bytes = bytes.map(|cell| cell.load(Ordering::Relaxed));
        Progress {
            frames: load(&flow.frames).wrapping_add(load(&details.frames_elsewhere)),
            bytes: bytes[0].wrapping_add(bytes[1]),
            seq: load(&details.seq),
            ack: load(&details.ack),
            window: details.window.load(Ordering::Relaxed),
            has_ended: load(&flow.facts) & ENDED != 0,
            drained: load(&details.drained),
            begun: load(&details.begun),
        }
    }
}

/// The value of the array of one (`struct control`).
#[repr(C)]
struct Control {
    epoch: AtomicU64,
    open_until: AtomicU64,
    tick: AtomicU64,
    punt: AtomicU32,
    devices: AtomicU32,
    buckets: AtomicU32,
    tag: AtomicU32,
    factor: AtomicU64,
    shut: AtomicU64,
    _reserved: AtomicU64,
    secret: [AtomicU32; HASHED],
    _reserved_too: [AtomicU32; 6],
}

const _: () = assert!(size_of::<Control>() == 128);

/// Words of 32 bits that the hash of a flow takes, at most.
pub(crate) const HASHED: usize = NEAR + FAR;

/// How flows are hashed, and what of it stands where in the index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hashing {
    /// Secret.
    pub(crate) secret: [u32; HASHED],
    /// Secret, and odd.
    pub(crate) factor: u64,
    /// Bits of a cell that are of the hash; below them is room for one more than every slot.
    pub(crate) tag: u32,
}

impl Hashing {
    /// Secrets of the standard library's per-process randomness, for an index of so many slots.
    pub(crate) fn random(slots: u32) -> Self {
        let source = RandomState::new();
        let secret = std::array::from_fn(|word| source.hash_one(word) as u32);
        let factor = source.hash_one(HASHED) | 1;
        Self { secret, factor, tag: u32::MAX << (32 - slots.leading_zeros()) }
    }
}

impl Control {
    /// As the programs hash, if they have been told.
    fn hashing(&self) -> Option<Hashing> {
        let factor = self.factor.load(Ordering::Acquire);
        (factor != 0).then(|| Hashing {
            secret: self.secret.each_ref().map(|word| word.load(Ordering::Relaxed)),
            factor,
            tag: self.tag.load(Ordering::Relaxed),
        })
    }

    fn set_hashing(&self, hashing: &Hashing) {
        for (cell, word) in self.secret.iter().zip(hashing.secret) {
            cell.store(word, Ordering::Relaxed);
        }
        self.tag.store(hashing.tag, Ordering::Relaxed);
        self.factor.store(hashing.factor, Ordering::Release);
    }
}

/// What a port has on the long way: one value of the array of intakes (`struct intake`).
#[repr(C)]
pub(crate) struct Intake {
    punted: AtomicU64,
    refused: AtomicU64,
    taken: AtomicU64,
    room: AtomicU64,
}

impl Intake {
    /// Nothing of the port's is on the way, and so many frames may be.
    pub(crate) fn open(&self, room: u64) {
        self.taken.store(self.punted(), Ordering::Release);
        self.room.store(room, Ordering::Release);
    }

    /// Frames that the program has punted so far.
    pub(crate) fn punted(&self) -> u64 {
        self.punted.load(Ordering::Acquire)
    }

    /// Whether some of these have not arrived, nor are known to be lost.
    pub(crate) fn is_on_the_way(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < self.punted()
    }

    /// So many have arrived.
    pub(crate) fn take(&self, frames: u64) {
        self.taken.fetch_add(frames, Ordering::Release);
        // More than there were, if they were given up too early.
        self.taken.fetch_min(self.punted(), Ordering::Release);
    }

    /// As many as that were punted have arrived, or are lost.
    pub(crate) fn take_all_until(&self, punted: u64) {
        self.taken.fetch_max(punted, Ordering::Release);
    }

    /// Frames that the program dropped because the port had too many on the way.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Receive queues of a port of the switch lane, as a power of two (`QUEUE_BITS`).
const QUEUE_BITS: u32 = 6;

/// Where the socket is among those of the switch lane that receives what is punted.
const RECEIVER: u32 = 0;

/// The programs, loaded, with their maps.
pub(crate) struct Program {
    program: Mutex<Ebpf>,
    ports: Mutex<HashMap<MapData, u32, u32>>,
    port_count: AtomicU32,
    devices: Mutex<DevMapHash<MapData>>,
    sockets: Mutex<XskMap<MapData>>,
    control: Shared<Control>,
    intakes: Shared<Intake>,
    index: Shared<Bucket>,
    flows: Shared<Flow>,
    details: Shared<Details>,
    hashing: Hashing,
    hook: TcHook,
    pins: Option<Pins>,
}

impl Program {
    /// Loads the programs with room for `flows` flows. Their door is shut until
    /// [`keep_open`](Self::keep_open). `hook` is where that for tc is to be. With `pins`, their maps are pinned there; if they are there
    /// already, the programs take them as they are, as large as they are.
    pub(crate) fn load(hook: TcHook, flows: u32, pins: Option<Pins>) -> io::Result<Self> {
        let mut loader = if pins.is_some() { &PINNED } else { &LOADER }.lock();
        if let Some(pins) = &pins {
            for name in MAPS {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let mut program = loader
            .map_max_entries("express_index", 2 * buckets_for(flows))
            .map_max_entries("express_flows", flows)
            .map_max_entries("express_details", flows)
            .load(OBJECT)
            .map_err(kernel_error)?;
        let mut take = |name| program.take_map(name).ok_or(io::ErrorKind::InvalidData);
        let ports = HashMap::try_from(take("express_ports")?).map_err(kernel_error)?;
        let devices = DevMapHash::try_from(take("express_devices")?).map_err(kernel_error)?;
        let sockets = XskMap::try_from(take("express_sockets")?).map_err(kernel_error)?;
        let control: Shared<Control> = Shared::map(take("express_control")?)?;
        let intakes = Shared::map(take("express_intakes")?)?;
        let index: Shared<Bucket> = Shared::map(take("express_index")?)?;
        let flows: Shared<Flow> = Shared::map(take("express_flows")?)?;
        let details = Shared::map(take("express_details")?)?;
        let [cell] = control.values() else { return Err(io::ErrorKind::InvalidData.into()) };
        let hashing = cell.hashing().unwrap_or_else(|| {
            let hashing = Hashing::random(flows.count as u32);
            cell.buckets.store(least_of(index.count), Ordering::Relaxed);
            cell.set_hashing(&hashing);
            hashing
        });
        classifier(&mut program)?.load().map_err(kernel_error)?;
        xdp(&mut program)?.load().map_err(kernel_error)?;
        Ok(Self {
            program: Mutex::new(program),
            ports: Mutex::new(ports),
            port_count: AtomicU32::new(0),
            devices: Mutex::new(devices),
            sockets: Mutex::new(sockets),
            control,
            intakes,
            index,
            flows,
            details,
            hashing,
            hook,
            pins,
        })
    }

    /// Puts the program for tc on the ingress of an interface of the calling thread's namespace, before any
    /// other. If there is one already that outlived its process, it is replaced in one step. It stays
    /// until the result is dropped, and if it is pinned, until its pin is removed too.
    pub(crate) fn attach(&self, ifname: &str, ifindex: u32) -> io::Result<Attached> {
        let mut program = self.program.lock();
        let program = classifier(&mut program)?;
        if self.hook == TcHook::Clsact {
            let link = attach_to_clsact(program, ifname)?;
            return Ok(Attached { link: Some(link), pin: None, clsact: Some(ifindex) });
        }
        let pin = self.pins.as_ref().map(|pins| pins.link(ifindex));
        let old = pin.as_ref().and_then(|pin| replace(program, pin));
        let link = match old {
            Some(link) => link,
            None => {
                let first = TcAttachOptions::TcxOrder(LinkOrder::first());
                let id = program
                    .attach_with_options(ifname, TcAttachType::Ingress, first)
                    .map_err(kernel_error)?;
                let link = program.take_link(id).map_err(kernel_error)?;
                match &pin {
                    Some(pin) => pin_link(link, pin)?,
                    None => link,
                }
            }
        };
        Ok(Attached { link: Some(link), pin, clsact: None })
    }

    /// Misses of that interface go to the switch under this tag (a VLAN identifier).
    pub(crate) fn set_port(&self, ifindex: u32, tag: u16) -> io::Result<()> {
        let mut ports = self.ports.lock();
        ports.insert(ifindex, u32::from(tag), 0).map_err(kernel_error)?;
        self.count_ports(&ports);
        Ok(())
    }

    /// Frames of that interface are dropped.
    pub(crate) fn remove_port(&self, ifindex: u32) {
        let mut ports = self.ports.lock();
        // If it was not there, that is what was wanted.
        let _ = ports.remove(&ifindex);
        self.count_ports(&ports);
    }

    fn count_ports(&self, ports: &HashMap<MapData, u32, u32>) {
        let count = ports.keys().filter(Result::is_ok).count();
        self.port_count.store(count as u32, Ordering::Relaxed);
    }

    /// How many interfaces have a tag.
    pub(crate) fn ports(&self) -> u32 {
        self.port_count.load(Ordering::Relaxed)
    }

    /// Frames of no interface are punted any more, nor to anywhere: those that a predecessor's program
    /// lets in are dropped, unless their flow has a verdict.
    pub(crate) fn forget_ports(&self) -> io::Result<()> {
        self.set_punt(0);
        let mut ports = self.ports.lock();
        let known: Vec<u32> = ports.keys().collect::<Result<_, _>>().map_err(kernel_error)?;
        known.iter().try_for_each(|ifindex| ports.remove(ifindex)).map_err(kernel_error)
    }

    /// Takes a predecessor's program off every interface but these.
    pub(crate) fn keep_links(&self, ifindexes: &[u32]) -> io::Result<()> {
        let Some(pins) = &self.pins else { return Ok(()) };
        let strangers = pins.links()?.into_iter().filter(|index| !ifindexes.contains(index));
        strangers.into_iter().try_for_each(|index| std::fs::remove_file(pins.link(index)))
    }

    /// What holds the program for tc.
    pub(crate) const fn hook(&self) -> TcHook {
        self.hook
    }

    /// Whether maps and links outlive the process.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// Removes every pin, so that nothing outlives the process.
    pub(crate) fn unpin(&self) -> io::Result<()> {
        self.pins.as_ref().map_or(Ok(()), Pins::remove)
    }

    /// Whether that interface takes frames which are redirected in XDP.
    pub(crate) fn set_device(&self, ifindex: u32, takes: bool) -> io::Result<()> {
        let mut devices = self.devices.lock();
        if takes {
            devices.insert(ifindex, ifindex, None, 0).map_err(kernel_error)?;
        } else {
            // If it was not there, or left with the interface, that is what was wanted.
            let _ = devices.remove(ifindex);
        }
        let count = devices.keys().filter(Result::is_ok).count();
        self.control().devices.store(count as u32, Ordering::Release);
        Ok(())
    }

    /// Misses at tc leave through that interface.
    pub(crate) fn set_punt(&self, ifindex: u32) {
        self.control().punt.store(ifindex, Ordering::Release);
    }

    /// What is punted is received by that AF_XDP socket, as long as it is open.
    pub(crate) fn set_receiver(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.sockets.lock().set(RECEIVER, socket.as_raw_fd(), 0).map_err(kernel_error)
    }

    /// Nobody receives what is punted: no flow is held for it from now on.
    pub(crate) fn remove_receiver(&self) {
        // If there was none, that is what was wanted.
        let _ = self.sockets.lock().unset(RECEIVER);
    }

    /// Epoch of the policy in force: verdicts of earlier ones are stale from now on.
    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.control().epoch.store(epoch, Ordering::SeqCst);
    }

    /// Until this time of CLOCK_MONOTONIC, in nanoseconds, frames pass; later everything is dropped.
    pub(crate) fn keep_open(&self, until: u64) {
        self.control().open_until.store(until, Ordering::SeqCst);
        // So that they look now, and not with the next tick, if it is to be shut.
        self.control().tick.store(0, Ordering::SeqCst);
    }

    /// Until when the door is open, as in [`keep_open`](Self::keep_open).
    pub(crate) fn open_until(&self) -> u64 {
        self.control().open_until.load(Ordering::Acquire)
    }

    /// Frames dropped because the door was shut.
    pub(crate) fn shut_drops(&self) -> u64 {
        self.control().shut.load(Ordering::Relaxed)
    }

    /// Runs the program for tc once on a frame that came in at that interface. Nothing is sent.
    pub(crate) fn run_tcx(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let context = words(&sk_buff_of(ifindex));
        run(classifier(&mut self.program.lock())?, frame, &context)
    }

    /// Runs the program for XDP once on a frame that came in at that interface. Nothing is sent.
    pub(crate) fn run_xdp(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let context = words(&[0, frame.len() as u32, 0, ifindex, 0, 0]);
        run(xdp(&mut self.program.lock())?, frame, &context)
    }

    /// The index of flows.
    pub(crate) fn index(&self) -> Regions<'_> {
        let (buckets, in_use) = (self.index.values(), &self.control().buckets);
        let least = least_of(buckets.len());
        Regions { buckets, in_use, least, slots: self.slots(), hashing: &self.hashing }
    }

    /// Where flows are.
    pub(crate) fn slots(&self) -> Slots<'_> {
        Slots::new(self.flows.values(), self.details.values())
    }

    /// What the port of that tag has on the long way.
    pub(crate) fn intake(&self, tag: u16) -> Option<&Intake> {
        self.intakes.values().get(usize::from(tag))
    }

    /// Frames that were dropped because their ports had too many on the long way.
    pub(crate) fn refused(&self) -> u64 {
        self.intakes.values().iter().map(Intake::refused).sum()
    }

    fn control(&self) -> &Control {
        self.control.values().first().expect("the array has one value")
    }
}

/// Buckets of an index that is new, where there are so many for all its sizes.
fn least_of(buckets: usize) -> u32 {
    (buckets as u32 / 2).min(64)
}

/// Buckets for so many flows: cells for twice as many, at least.
fn buckets_for(flows: u32) -> u32 {
    (flows.div_ceil(CELLS as u32 / 2)).next_power_of_two()
}

/// The program for XDP on the interface whose tag this is. It sets each frame's mark in front of it:
/// the four bytes that [`MARK`] counts.
pub(crate) struct Lookup {
    program: Arc<Program>,
    tag: u16,
    /// The interface, once the program was attached.
    ifindex: Option<u32>,
}

impl Lookup {
    pub(crate) fn new(program: Arc<Program>, tag: u16) -> Self {
        Self { program, tag, ifindex: None }
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if let Some(ifindex) = self.ifindex {
            self.program.remove_port(ifindex);
        }
    }
}

/// Bytes in front of a frame that the program for XDP has handed over: a `u32`, in the machine's byte
/// order.
pub(crate) const MARK: usize = 4;

impl Steering for Lookup {
    fn set(&mut self, queue: u32, socket: RawFd) -> io::Result<()> {
        if queue >= 1 << QUEUE_BITS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let slot = u32::from(self.tag) << QUEUE_BITS | queue;
        self.program.sockets.lock().set(slot, socket, 0).map_err(kernel_error)
    }

    /// Only in the driver: an skb whose checksum the program completes would be completed once more
    /// by the device it leaves by.
    fn attach(&mut self, index: u32, mode: Mode) -> io::Result<bpf::Attached> {
        if mode != Mode::Native {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        self.program.set_port(index, self.tag)?;
        self.ifindex = Some(index);
        bpf::attach(xdp(&mut self.program.program.lock())?, index, mode)
    }
}

/// A `struct __sk_buff` that came in at that interface. The kernel takes no other field but a few from us.
fn sk_buff_of(ifindex: u32) -> [u32; 48] {
    const IFINDEX: usize = 10;
    let mut words = [0; 48];
    words[IFINDEX] = ifindex;
    words
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Runs a program once (`BPF_PROG_RUN`).
fn run<P>(program: &mut P, frame: &[u8], context: &[u8]) -> io::Result<()>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>>,
{
    let options =
        TestRunOptions { data_in: Some(frame), ctx_in: Some(context), ..TestRunOptions::default() };
    program.test_run(options).map(drop).map_err(kernel_error)
}

fn xdp(program: &mut Ebpf) -> io::Result<&mut Xdp> {
    let program = program.program_mut("express_xdp").ok_or(io::ErrorKind::InvalidData)?;
    program.try_into().map_err(kernel_error)
}

fn classifier(program: &mut Ebpf) -> io::Result<&mut SchedClassifier> {
    let program = program.program_mut("express").ok_or(io::ErrorKind::InvalidData)?;
    program.try_into().map_err(kernel_error)
}

/// Puts the program in the place of a pinned link's. `None` if there is none, or its interface is
/// gone.
fn replace(program: &mut SchedClassifier, pin: &Path) -> Option<SchedClassifierLink> {
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
    let replaced = SchedClassifierLink::try_from(link)
        .map_err(kernel_error)
        .and_then(|link| program.attach_to_link(link).map_err(kernel_error))
        .and_then(|id| program.take_link(id).map_err(kernel_error));
    match replaced {
        Ok(link) => Some(link),
        Err(error) => {
            tracing::debug!(%error, pin = %pin.display(), "a pinned link is of no use");
            // If it stays, the next attempt to pin says so.
            let _ = std::fs::remove_file(pin);
            None
        }
    }
}

fn pin_link(link: SchedClassifierLink, pin: &Path) -> io::Result<SchedClassifierLink> {
    let link: FdLink = link.try_into().map_err(kernel_error)?;
    let pinned = link.pin(pin).map_err(kernel_error)?;
    SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(kernel_error)
}

/// As [`Program::attach`], for kernels without tcx: a filter stays where it is when the process is
/// killed, so it is replaced if it is there.
fn attach_to_clsact(
    program: &mut SchedClassifier,
    ifname: &str,
) -> io::Result<SchedClassifierLink> {
    match qdisc_add_clsact(ifname).map_err(kernel_error) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        _ => {}
    }
    let ingress = TcAttachType::Ingress;
    let NlOptions { priority, handle, classid } = CLSACT;
    let old = SchedClassifierLink::attached(ifname, ingress, priority, handle, classid)?;
    let id = match program.attach_to_link(old) {
        Ok(id) => id,
        Err(_) => program
            .attach_with_options(ifname, ingress, TcAttachOptions::Netlink(CLSACT))
            .map_err(kernel_error)?,
    };
    program.take_link(id).map_err(kernel_error)
}

/// The program on its interface; dropping this takes it off.
#[derive(Debug)]
pub(crate) struct Attached {
    link: Option<SchedClassifierLink>,
    pin: Option<PathBuf>,
    /// The interface whose clsact holds it, if one does.
    clsact: Option<u32>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(pin) = &self.pin
            && let Err(error) = std::fs::remove_file(pin)
        {
            tracing::warn!(%error, pin = %pin.display(), "a pin is not removed");
        }
        // If the interface is gone, the kernel has detached the program itself.
        if let Some(link) = self.link.take() {
            let _ = link.detach();
        }
        if let Some(ifindex) = self.clsact {
            // Likewise.
            let _ = Netlink::open().and_then(|mut netlink| netlink.remove_empty_clsact(ifindex));
        }
    }
}

/// The values of a mapped BPF array: `T` has its layout, and only atomics.
struct Shared<T> {
    _map: MapData,
    _memory: Mapping,
    values: NonNull<T>,
    count: usize,
}

// SAFETY: access goes through `&T`, and `T` (Flow, Details, Bucket, Intake and Control) is made of atomics only.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Maps all of a map, which may be smaller or larger than its program's object says.
    fn map(map: Map) -> io::Result<Self> {
        let Map::Array(map) = map else { return Err(io::ErrorKind::InvalidData.into()) };
        let count = map.info().map_err(kernel_error)?.max_entries() as usize;
        let len = count.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = Mapping::of_map(map.fd().as_fd(), len)?;
        let values = memory.at(0, count).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { _map: map, _memory: memory, values, count })
    }

    fn values(&self) -> &[T] {
        // SAFETY: `count` values lie in the mapping, as `map` checked, which is aligned for `T` and lives
        // as long as `self`; `T` is made of atomics, for which every bit pattern is a value and which
        // the program may change at any time.
        unsafe { std::slice::from_raw_parts(self.values.as_ptr(), self.count) }
    }
}
