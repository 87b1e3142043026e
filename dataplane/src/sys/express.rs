//! The express lane's program and its maps: load, attach, and the memory shared with it.
//!
//! The program reads verdicts and writes what came of them in one array, which is mapped: the switch
//! reads a flow's counters and writes a policy's epoch with plain loads and stores. Only flows that
//! come and go, and ports, cost a system call.
//!
//! Every value of the mapped arrays is an atomic, because the program runs at any time. Layouts are
//! those of dataplane/bpf/express.bpf.c.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::links::Link;
use aya::programs::tc::{
    NlOptions, SchedClassifier, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact,
};
use aya::programs::{LinkOrder, TcAttachType};
use aya::util::KernelVersion;
use parking_lot::Mutex;

use super::bpf::{LOADER, kernel_error};
use super::mmap::Mapping;

/// dataplane/bpf/express.bpf.c, compiled by `cargo xtask bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/express.bpf.o");

/// First kernel with tcx, programs at a device's ingress that are attached by a BPF link.
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);

/// What is the same in every frame of one direction of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowId {
    /// Index of the ingress interface.
    pub ingress: u32,
    /// Source address; IPv4 as `::ffff:a.b.c.d`.
    pub src: [u8; 16],
    /// Destination address, likewise.
    pub dst: [u8; 16],
    /// Source port, in network byte order.
    pub src_port: [u8; 2],
    /// Destination port, likewise.
    pub dst_port: [u8; 2],
    /// IP protocol: TCP or UDP.
    pub protocol: u32,
}

// SAFETY: `repr(C)`, integers and byte arrays only, no padding: 4 + 16 + 16 + 2 + 2 + 4 bytes.
unsafe impl aya::Pod for FlowId {}

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

    fn words(&self) -> [u32; 11] {
        let word = |bytes: &[u8; 16], at: usize| {
            bytes.get(at..at + 4).and_then(|four| four.first_chunk().copied())
        };
        let mut words = [0; 11];
        words[0] = self.ingress;
        for i in 0..4 {
            words[1 + i] = word(&self.src, 4 * i).map_or(0, u32::from_ne_bytes);
            words[5 + i] = word(&self.dst, 4 * i).map_or(0, u32::from_ne_bytes);
        }
        let ([a, b], [c, d]) = (self.src_port, self.dst_port);
        words[9] = u32::from_ne_bytes([a, b, c, d]);
        words[10] = self.protocol;
        words
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
}

/// What came of a flow since its verdict was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Frames redirected, as they count on a wire.
    pub frames: u64,
    /// Their bytes, likewise.
    pub bytes: u64,
    /// TCP: after the last byte sent.
    pub seq: u32,
    /// TCP: after the last byte acknowledged.
    pub ack: u32,
    /// TCP: the window as in the header, unscaled.
    pub window: u16,
    /// Frames dropped so that others before them could leave the long way.
    pub drained: u64,
}

/// One value of the array of flows.
#[repr(C)]
pub(crate) struct Slot {
    id: [AtomicU32; 11],
    macs: [AtomicU16; 6],
    epoch: AtomicU64,
    egress: AtomicU32,
    kind: AtomicU16,
    max_frame: AtomicU16,
    rule: AtomicU32,
    mark: AtomicU16,
    _reserved: AtomicU16,
    passed: AtomicU32,
    punted: AtomicU32,
    seq: AtomicU32,
    ack: AtomicU32,
    window: AtomicU32,
    draining: AtomicU32,
    packets: AtomicU64,
    bytes: AtomicU64,
    drained: AtomicU64,
}

const _: () = assert!(size_of::<Slot>() == 128 && size_of::<FlowId>() == 44);

impl Slot {
    /// Writes a verdict to a slot that the program does not use. `mark` is added to the tags of the
    /// flow's punted frames.
    pub(crate) fn write(&self, id: &FlowId, verdict: &FlowVerdict, mark: u16) {
        self.epoch.store(0, Ordering::SeqCst);
        for (cell, word) in self.id.iter().zip(id.words()) {
            cell.store(word, Ordering::Relaxed);
        }
        let macs = verdict.eth_dst.chunks_exact(2).chain(verdict.eth_src.chunks_exact(2));
        for (cell, pair) in self.macs.iter().zip(macs) {
            cell.store(
                pair.first_chunk().map_or(0, |two| u16::from_ne_bytes(*two)),
                Ordering::Relaxed,
            );
        }
        let (egress, kind) = match verdict.egress {
            Egress::Transmit(index) => (index, 0),
            Egress::Peer(index) => (index, 1),
        };
        self.egress.store(egress, Ordering::Relaxed);
        self.kind.store(kind, Ordering::Relaxed);
        self.max_frame.store(verdict.max_frame, Ordering::Relaxed);
        self.rule.store(verdict.rule, Ordering::Relaxed);
        for cell in [&self.seq, &self.ack, &self.window] {
            cell.store(0, Ordering::Relaxed);
        }
        for cell in [&self.packets, &self.bytes, &self.drained] {
            cell.store(0, Ordering::Relaxed);
        }
        self.open(verdict.epoch, mark);
    }

    /// Lets the flow begin the long way again: its frames are counted anew, under another mark.
    pub(crate) fn restart(&self, mark: u16) {
        let epoch = self.epoch.swap(0, Ordering::SeqCst);
        self.open(epoch, mark);
    }

    fn open(&self, epoch: u64, mark: u16) {
        self.mark.store(mark, Ordering::Relaxed);
        for cell in [&self.punted, &self.passed, &self.draining] {
            cell.store(0, Ordering::Relaxed);
        }
        self.epoch.store(epoch, Ordering::SeqCst);
    }

    /// The verdict holds no longer: the flow's next frame is a miss.
    pub(crate) fn close(&self) {
        self.epoch.store(0, Ordering::SeqCst);
    }

    /// One more of the punted frames has left the switch.
    pub(crate) fn pass(&self) {
        self.passed.fetch_add(1, Ordering::Release);
    }

    /// Whether frames that were punted have not left the switch, or none was punted yet.
    pub(crate) fn is_held(&self) -> bool {
        let punted = self.punted.load(Ordering::Relaxed);
        punted == 0 || punted != self.passed.load(Ordering::Relaxed)
    }

    /// What is added to the tags of its punted frames.
    pub(crate) fn mark(&self) -> u16 {
        self.mark.load(Ordering::Relaxed)
    }

    /// What came of it so far.
    pub(crate) fn progress(&self) -> Progress {
        Progress {
            frames: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            seq: self.seq.load(Ordering::Relaxed),
            ack: self.ack.load(Ordering::Relaxed),
            window: self.window.load(Ordering::Relaxed) as u16,
            drained: self.drained.load(Ordering::Relaxed),
        }
    }
}

/// The value of the array of one.
#[repr(C)]
struct Control {
    epoch: AtomicU64,
    open_until: AtomicU64,
    punt: AtomicU32,
    _reserved: AtomicU32,
}

/// The program, loaded, with its maps.
pub(crate) struct Program {
    program: Mutex<Ebpf>,
    ports: Mutex<HashMap<MapData, u32, u32>>,
    index: Mutex<HashMap<MapData, FlowId, u32>>,
    control: Shared<Control>,
    flows: Shared<Slot>,
}

impl Program {
    /// Loads the program with room for `flows` flows. Its door is shut until
    /// [`keep_open`](Self::keep_open).
    pub(crate) fn load(flows: u32) -> io::Result<Self> {
        let mut program = LOADER
            .lock()
            .map_max_entries("express_index", flows)
            .map_max_entries("express_flows", flows)
            .load(OBJECT)
            .map_err(kernel_error)?;
        let mut take = |name| program.take_map(name).ok_or(io::ErrorKind::InvalidData);
        let ports = HashMap::try_from(take("express_ports")?).map_err(kernel_error)?;
        let index = HashMap::try_from(take("express_index")?).map_err(kernel_error)?;
        let control = Shared::map(take("express_control")?, 1)?;
        let flows = Shared::map(take("express_flows")?, flows as usize)?;
        classifier(&mut program)?.load().map_err(kernel_error)?;
        let (ports, index) = (Mutex::new(ports), Mutex::new(index));
        Ok(Self { program: Mutex::new(program), ports, index, control, flows })
    }

    /// Attaches the program to the ingress of an interface of the calling thread's namespace, before
    /// any other. It stays until the result is dropped.
    pub(crate) fn attach(&self, ifname: &str) -> io::Result<Attached> {
        let has_tcx = KernelVersion::current().is_ok_and(|version| version >= TCX);
        self.attach_by(ifname, has_tcx)
    }

    /// As [`attach`](Self::attach), by tcx or by the clsact queueing discipline of older kernels,
    /// which leaves the program where it is if the process is killed.
    fn attach_by(&self, ifname: &str, tcx: bool) -> io::Result<Attached> {
        let options = if tcx {
            TcAttachOptions::TcxOrder(LinkOrder::first())
        } else {
            match qdisc_add_clsact(ifname).map_err(kernel_error) {
                Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
                _ => TcAttachOptions::Netlink(NlOptions { priority: 1, ..NlOptions::default() }),
            }
        };
        let mut program = self.program.lock();
        let program = classifier(&mut program)?;
        let id = program
            .attach_with_options(ifname, TcAttachType::Ingress, options)
            .map_err(kernel_error)?;
        Ok(Attached { link: Some(program.take_link(id).map_err(kernel_error)?) })
    }

    /// Frames of that interface are punted under this tag (a VLAN identifier).
    pub(crate) fn set_port(&self, ifindex: u32, tag: u16) -> io::Result<()> {
        self.ports.lock().insert(ifindex, u32::from(tag), 0).map_err(kernel_error)
    }

    /// Frames of that interface are dropped.
    pub(crate) fn remove_port(&self, ifindex: u32) {
        // If it was not there, that is what was wanted.
        let _ = self.ports.lock().remove(&ifindex);
    }

    /// Misses leave through that interface.
    pub(crate) fn set_punt(&self, ifindex: u32) {
        self.control().punt.store(ifindex, Ordering::Release);
    }

    /// Epoch of the policy in force: verdicts of another are stale from now on.
    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.control().epoch.store(epoch, Ordering::SeqCst);
    }

    /// Until this time of CLOCK_MONOTONIC, in nanoseconds, frames pass; later everything is dropped.
    pub(crate) fn keep_open(&self, until: u64) {
        self.control().open_until.store(until, Ordering::Release);
    }

    /// The flow is in that slot.
    pub(crate) fn insert(&self, id: &FlowId, slot: u32) -> io::Result<()> {
        self.index.lock().insert(id, slot, 0).map_err(kernel_error)
    }

    /// The flow is in none.
    pub(crate) fn remove(&self, id: &FlowId) {
        // If it was not there, that is what was wanted.
        let _ = self.index.lock().remove(id);
    }

    /// A slot of the array of flows.
    pub(crate) fn slot(&self, slot: u32) -> Option<&Slot> {
        self.flows.get(slot as usize)
    }

    /// How many slots there are.
    pub(crate) fn slots(&self) -> u32 {
        self.flows.count as u32
    }

    fn control(&self) -> &Control {
        self.control.get(0).expect("the array has one value")
    }
}

fn classifier(program: &mut Ebpf) -> io::Result<&mut SchedClassifier> {
    let program = program.program_mut("express").ok_or(io::ErrorKind::InvalidData)?;
    program.try_into().map_err(kernel_error)
}

/// The program on its interface; dropping this takes it off.
#[derive(Debug)]
pub(crate) struct Attached {
    link: Option<SchedClassifierLink>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        // If the interface is gone, the kernel has detached the program itself.
        if let Some(link) = self.link.take() {
            let _ = link.detach();
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

// SAFETY: access goes through `&T`, and `T` (Slot and Control) is made of atomics only.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn map(map: Map, count: usize) -> io::Result<Self> {
        let Map::Array(map) = map else { return Err(io::ErrorKind::InvalidData.into()) };
        let len = count.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = Mapping::of_map(map.fd().as_fd(), len)?;
        let values = memory.at(0, count).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { _map: map, _memory: memory, values, count })
    }

    fn get(&self, at: usize) -> Option<&T> {
        if at >= self.count {
            return None;
        }
        // SAFETY: `at < count`, and `count` values lie in the mapping, as `map` checked.
        let value = unsafe { self.values.add(at) };
        // SAFETY: the mapping lives as long as `self`, is aligned for `T`, and `T` is made of atomics,
        // for which every bit pattern is a value and which the program may change at any time.
        Some(unsafe { value.as_ref() })
    }
}
