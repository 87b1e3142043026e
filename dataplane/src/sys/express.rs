//! The express lane's two programs and their maps: load, attach, and the memory shared with them.
//!
//! The programs find verdicts by one array and read them, and write what came of them, in two others. All
//! are mapped: the switch gives and takes verdicts, reads a flow's counters and writes a policy's epoch
//! with plain loads and stores. Only ports that come and go cost a system call.
//!
//! Every value of the [mapped arrays](memory) is an atomic, because the programs run at any time. Layouts
//! are those of dataplane/bpf/express.h.
//!
//! With [`Pins`], maps and links outlive the process: whoever loads the programs next has the same
//! maps, and puts its own program at tc in the place of the old one in one step.

mod flow;
mod hook;
mod memory;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::{self, ScopedJoinHandle};

use aya::maps::{DevMapHash, HashMap, MapData, XskMap};
use aya::programs::tc::SchedClassifier;
use aya::programs::{Program as AnyProgram, TestRun, TestRunOptions, Xdp};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use parking_lot::Mutex;

pub(crate) use self::flow::{Begin, Details, Flow, Slot, Slots};
pub use self::flow::{Egress, FlowId, FlowVerdict, Progress};
#[cfg(test)]
pub(crate) use self::flow::{FAR, NEAR};
pub(crate) use self::hook::Attached;
pub use self::hook::TcHook;
pub(in crate::sys) use self::hook::attach;
pub(crate) use self::memory::{Bucket, CELLS, Hashing, Intake};
use self::memory::{Control, Shared};
use super::bpf::{self, LOADER, Mode, Steering, kernel_error};
use super::pins::{Pins, Place};
use crate::express::resizing::Regions;

/// dataplane/bpf/express.bpf.c, compiled by `cargo xtask bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/express.bpf.o");

/// Version of the layouts of [`MAPS`]: what another version has pinned is of no use.
pub(crate) const LAYOUT: u32 = 5;

/// The maps that outlive the process, if they can be pinned.
pub(crate) const MAPS: [&str; 5] =
    ["express_control", "express_ports", "express_index", "express_flows", "express_details"];

/// The loader of programs whose maps are not pinned: the other one keeps paths.
static UNPINNED: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| Mutex::new(bpf::loader()));

/// Receive queues of a port of the switch lane, as a power of two (`QUEUE_BITS`).
const QUEUE_BITS: u32 = 6;

/// A tag that no port has: what is punted has its own places there.
const NO_PORT: u16 = 0;

/// Where the socket is among those of the switch lane that receives what is punted.
const RECEIVER: u32 = (NO_PORT as u32) << QUEUE_BITS;

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
    /// [`keep_open`](Self::keep_open). `hook` is where that for tc is to be. With `pins`, their
    /// maps are pinned there; if they are there already, the programs take them as they are, as
    /// large as they are.
    pub(crate) fn load(hook: TcHook, flows: u32, pins: Option<Pins>) -> io::Result<Self> {
        let program = Self::open(hook, flows, pins)?;
        program.verify()?;
        Ok(program)
    }

    /// Likewise, but for the programs themselves: the kernel is to [verify](Self::verify) them.
    pub(crate) fn open(hook: TcHook, flows: u32, pins: Option<Pins>) -> io::Result<Self> {
        let mut program = match &pins {
            Some(pins) => {
                let mut loader = LOADER.lock();
                for name in MAPS {
                    loader.map_pin_path(name, pins.map(name));
                }
                load_maps(&mut loader, hook, flows)?
            }
            None => load_maps(&mut UNPINNED.lock(), hook, flows)?,
        };
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

    /// Has the kernel verify the programs, each on a processor of its own: some tenths of a second.
    pub(crate) fn verify(&self) -> io::Result<()> {
        let mut programs = self.program.lock();
        thread::scope(|scope| {
            let verify = |program| scope.spawn(move || verify(program));
            let verifying: Vec<_> =
                programs.programs_mut().map(|(_, program)| verify(program)).collect();
            let mut verified = verifying.into_iter().map(ScopedJoinHandle::join);
            verified.try_for_each(|it| it.unwrap_or_else(|panic| resume_unwind(panic)))
        })
    }

    /// Puts the program for tc on the ingress of an interface of the calling thread's namespace, before any
    /// other. If there is one already that outlived its process, it is replaced in one step. It stays
    /// until the result is dropped, and if it is pinned, until its pin is removed too.
    pub(crate) fn attach(&self, ifname: &str, ifindex: u32) -> io::Result<Attached> {
        let pin = self.pins.as_ref().map(|pins| pins.link(Place::Tc, ifindex));
        let mut program = self.program.lock();
        hook::attach(classifier(&mut program)?, self.hook, pin, ifname, ifindex)
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

    /// The interfaces that have a tag, and which.
    pub(crate) fn known_ports(&self) -> io::Result<Vec<(u32, u32)>> {
        self.ports.lock().iter().collect::<Result<_, _>>().map_err(kernel_error)
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
    pub(crate) fn keep_links(&self, place: Place, ifindexes: &[u32]) -> io::Result<()> {
        let Some(pins) = &self.pins else { return Ok(()) };
        pins.keep_links(place, ifindexes)
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

    /// The interface that misses at tc leave through, or 0.
    pub(crate) fn punt(&self) -> u32 {
        self.control().punt.load(Ordering::Acquire)
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

    /// What all ports together have on the way to the socket that receives what is punted.
    pub(crate) fn intake_of_all(&self) -> Option<&Intake> {
        self.intake(NO_PORT)
    }

    /// Frames that were dropped because their ports had too many on the long way.
    pub(crate) fn refused(&self) -> u64 {
        self.intakes.values().iter().map(Intake::refused).sum()
    }

    fn control(&self) -> &Control {
        self.control.values().first().expect("the array has one value")
    }
}

/// Makes the maps, with room for `flows` flows, or opens those that are pinned.
fn load_maps(loader: &mut EbpfLoader<'_>, hook: TcHook, flows: u32) -> io::Result<Ebpf> {
    let loader = loader
        .map_max_entries("express_index", 2 * buckets_for(flows))
        .map_max_entries("express_flows", flows)
        .map_max_entries("express_details", flows)
        .override_global("peer_is_told", peer_is_told(hook), false);
    loader.load(OBJECT).map_err(kernel_error)
}

fn verify(program: &mut AnyProgram) -> io::Result<()> {
    let verified = match program {
        AnyProgram::SchedClassifier(program) => program.load(),
        AnyProgram::Xdp(program) => program.load(),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    verified.map_err(kernel_error)
}

/// First kernel that tells a packet that is handed to a device's peer that it is for this host
/// (`skb_scrub_packet` in `skb_do_redirect`, net/core/filter.c).
const SCRUBBED: KernelVersion = KernelVersion::new(6, 16, 0);

/// Whether the running kernel does. One without tcx is older; where it is only left alone, as tests do, the program
/// works as there.
fn peer_is_told(hook: TcHook) -> &'static u8 {
    let is_told = KernelVersion::current().is_ok_and(|version| version >= SCRUBBED);
    if is_told && hook == TcHook::Tcx { &1 } else { &0 }
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
        let pin = self.program.pins.as_ref().map(|pins| pins.link(Place::Xdp, index));
        bpf::attach(xdp(&mut self.program.program.lock())?, index, mode, pin)
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
