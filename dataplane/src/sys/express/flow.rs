//! One flow in the memory that the programs share: which it is, its verdict, and what came of it.
//!
//! A flow has a [`Slot`]: a value of the array of flows and one of the array of details, so that
//! what every frame needs is in one cache line. A slot without an epoch is not used; whoever writes
//! one takes the epoch away first and puts it there last.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use firedoor_classifier::connections::ports_of_answer;

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

    /// What the programs compare, but for the protocol: the addresses' last words, the ports and
    /// the interface, and what precedes the addresses' last words.
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
    /// The interface of the workload that began the connection: the flow counts for its port. What it is answered
    /// with takes nothing from who answers.
    pub(crate) const fn payer(&self, id: &FlowId) -> u32 {
        if self.is_reply { self.egress.ifindex() } else { id.ingress }
    }

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

/// What each frame of a flow needs of its slot, a cache line: one value of the array of flows
/// (`struct flow`).
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

    pub(crate) fn iter(self) -> impl Iterator<Item = Slot<'a>> {
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
    /// And the other direction: of the frames it is the SYN-ACK that does, if it acknowledges this
    /// number. Then both directions begin.
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

    /// Who [pays](FlowVerdict::payer) for it, or did.
    pub(crate) fn payer(&self) -> u32 {
        let is_reply = self.flow.facts.load(Ordering::Relaxed) & REPLY != 0;
        if is_reply { self.egress() } else { self.id().ingress }
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

    /// The verdict is that rule's of that epoch from now on, and else the same, unless it was closed.
    pub(crate) fn renew(&self, rule: u32, epoch: u64) {
        self.details.rule.store(rule, Ordering::Relaxed);
        let next = |now| (now != 0).then_some(epoch as u32);
        // It fails if there is no verdict to renew.
        let _ = self.flow.epoch.fetch_update(Ordering::SeqCst, Ordering::Relaxed, next);
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

    /// Pretends that one frame was punted, and has left the switch, unless it is the SYN-ACK that
    /// is waited for.
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

    /// The SYN-ACK has passed the switch. `begin` says what becomes of the frames from now on, if
    /// the program has not let another one pass meanwhile.
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
