//! XDP frames made in the kernel and sent out of an interface, by running a program over and over.
//!
//! `BPF_PROG_RUN` with `BPF_F_TEST_XDP_LIVE_FRAMES` gives a program page after page with a frame in
//! it, and does what it answers: here always `XDP_TX`, which for live frames means a redirect out
//! of the interface that the run is for. No skb is ever made, so one processor sends many times
//! what any socket could. A call costs some milliseconds before the first run, so it is many runs,
//! and the program itself keeps the rate and the end. The driver must take redirected frames
//! (`ndo_xdp_xmit`); a veth does while its peer polls (an XDP program there, or GRO), else it drops
//! every one.
//!
//! Source: Documentation/bpf/bpf_prog_run.rst and net/bpf/test_run.c (Linux 6.18).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::maps::{Array, MapData};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;

use super::bpf::kernel_error;

/// dataplane/bpf/generate.bpf.c, compiled by `cargo xtask bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/generate.bpf.o");

/// Frames follow each other in a circle of this many lengths.
pub const LENGTHS: usize = 12;

/// Most source ports that flows have; beyond that they differ in their destination ports as well.
/// (`SOURCE_BITS` in generate.bpf.c.)
pub const SOURCE_PORTS: u32 = 1 << 15;

/// Frames that the kernel makes before it sends them: as many as a veth's receiver polls at once.
const BATCH: u32 = 64;

/// What every frame begins with is written anew into each: so much of the template, up to the
/// sequence number at least. (`PATTERN` in generate.bpf.c, in words of eight bytes.)
const PATTERN: usize = 48;

/// Most runs of one call: a fraction of a second, after which whoever wants to end is heard.
const MOST_RUNS: u64 = 1 << 21;

/// A second in the program's measure of time, 1/1024 ns.
const TICKS_PER_SECOND: u64 = 1_000_000_000 << 10;

/// What the frames are.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// A frame of the greatest length in `lengths`: Ethernet, IPv4 without options, UDP without
    /// checksum, and the mark. The ports, the lengths, the IPv4 checksum and the sequence number
    /// are filled in per frame.
    pub template: Vec<u8>,
    /// The lengths of whole frames, in bytes, as they follow each other.
    pub lengths: [u16; LENGTHS],
    /// The IPv4 header's checksum for each.
    pub checksums: [u16; LENGTHS],
    /// How many flows there are.
    pub flows: u32,
    /// How many flows to go on from one frame to the next: less than `flows`.
    pub stride: u32,
    /// The first source port: flow n comes from port `source_port + n % SOURCE_PORTS`.
    pub source_port: u16,
    /// The first destination port: flow n goes to port `destination_port + n / SOURCE_PORTS`.
    pub destination_port: u16,
    /// The first frame's sequence number.
    pub sequence: u64,
    /// The first frame's flow.
    pub flow: u32,
}

/// When to send.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    /// Frames per second, evenly; as many as possible if `None`.
    pub rate: Option<u64>,
    /// Most frames to send.
    pub frames: u64,
    /// How long to send at most.
    pub duration: Duration,
}

/// The program, loaded for one recipe and one interface.
pub struct LiveFrames {
    program: Ebpf,
    maps: Arc<Maps>,
    frame: Vec<u8>,
    context: [u8; 24],
}

/// What the program and we tell each other, also while it runs.
pub struct Maps {
    next: Mutex<Array<MapData, Next>>,
    orders: Mutex<Array<MapData, [u64; 5]>>,
}

/// `struct next`: the sequence number, when it is due, and the flow and the place in the circle of
/// lengths as the halves of the third.
type Next = [u64; 3];

impl LiveFrames {
    /// Loads the program. `index` is that of an interface in the network namespace of whichever
    /// thread will [`send`](Self::send).
    ///
    /// # Errors
    /// `InvalidInput` if the stride is not less than the number of flows, or the template has no
    /// mark; the kernel's, above all `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`.
    pub fn load(index: u32, recipe: &Recipe) -> io::Result<Self> {
        let pattern = recipe.template.first_chunk::<PATTERN>();
        let Some(pattern) = pattern.filter(|_| recipe.stride < recipe.flows) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let longest = recipe.template.len() as u16;
        let checksums = recipe.checksums.map(u16::to_be);
        let mut program = EbpfLoader::new()
            .btf(None)
            .override_global("lengths", &recipe.lengths, true)
            .override_global("checksums", &checksums, true)
            .override_global("longest", &longest, true)
            .override_global("pattern", pattern, true)
            .override_global("flows", &recipe.flows, true)
            .override_global("stride", &recipe.stride, true)
            .override_global("source_port", &recipe.source_port, true)
            .override_global("destination_port", &recipe.destination_port, true)
            .load(OBJECT)
            .map_err(kernel_error)?;
        let mut next: Array<_, Next> = taken(&mut program, "next_frame")?;
        let flow = halves(recipe.flow, 0);
        next.set(0, [recipe.sequence, 0, flow], 0).map_err(kernel_error)?;
        let orders = taken(&mut program, "standing_orders")?;
        let maps = Arc::new(Maps { next: Mutex::new(next), orders: Mutex::new(orders) });
        generate(&mut program)?.load().map_err(kernel_error)?;
        let context = context(u32::from(longest), index);
        Ok(Self { program, maps, frame: recipe.template.clone(), context })
    }

    /// What another thread may watch and end [`send`](Self::send) by.
    pub fn maps(&self) -> Arc<Maps> {
        Arc::clone(&self.maps)
    }

    /// Sends frames as ordered, or until told to `stop`, and returns how many. The calling thread
    /// must be in the interface's network namespace. A call takes some milliseconds more than
    /// sending does, and up to some hundred until it sees `stop`, unless [`Maps::stop`] is called.
    ///
    /// Whether a frame was taken is not known: what does not fit the receiver's ring is dropped.
    ///
    /// # Errors
    /// The kernel's: `ENODEV` if the interface is not there, `EINTR` if a signal came.
    pub fn send(&mut self, orders: &Orders, stop: &AtomicBool) -> io::Result<u64> {
        let first = self.maps.begin(orders)?;
        loop {
            let sent = self.maps.sequence()? - first;
            let left = orders.frames.saturating_sub(sent);
            if left == 0 || self.maps.is_over()? || stop.load(Ordering::Relaxed) {
                return Ok(sent);
            }
            // A run may find that the next frame is not due yet, so with a rate there are more.
            let runs = if orders.rate.is_some() { MOST_RUNS } else { left.min(MOST_RUNS) };
            self.run(runs as u32)?;
        }
    }

    fn run(&mut self, count: u32) -> io::Result<()> {
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(&self.context),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        generate(&mut self.program)?.test_run(options).map(drop).map_err(kernel_error)
    }
}

impl Maps {
    /// The sequence number of the frame that comes next.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sequence(&self) -> io::Result<u64> {
        Ok(self.next()?[0])
    }

    /// Ends what is being sent: the rest of a call's runs sends nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stop(&self) -> io::Result<()> {
        let mut map = self.orders.lock();
        let mut orders = map.get(&0, 0).map_err(kernel_error)?;
        orders[4] = 1;
        map.set(0, orders, 0).map_err(kernel_error)
    }

    fn next(&self) -> io::Result<Next> {
        self.next.lock().get(&0, 0).map_err(kernel_error)
    }

    /// Gives orders from now on, and returns the next sequence number.
    fn begin(&self, orders: &Orders) -> io::Result<u64> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let now = Duration::from(now).as_nanos() as u64;
        let [sequence, _, flow] = self.next()?;
        self.next.lock().set(0, [sequence, 0, flow], 0).map_err(kernel_error)?;
        let duration = u64::try_from(orders.duration.as_nanos()).unwrap_or(u64::MAX);
        let interval = orders.rate.map_or(0, |rate| TICKS_PER_SECOND / rate.max(1));
        let standing = [
            now,
            now.saturating_add(duration),
            interval,
            sequence.saturating_add(orders.frames),
            0,
        ];
        self.orders.lock().set(0, standing, 0).map_err(kernel_error)?;
        Ok(sequence)
    }

    fn is_over(&self) -> io::Result<bool> {
        Ok(self.orders.lock().get(&0, 0).map_err(kernel_error)?[4] != 0)
    }
}

fn generate(program: &mut Ebpf) -> io::Result<&mut Xdp> {
    let program = program.program_mut("generate").ok_or(io::ErrorKind::InvalidData)?;
    program.try_into().map_err(kernel_error)
}

fn taken<V: aya::Pod>(program: &mut Ebpf, name: &str) -> io::Result<Array<MapData, V>> {
    let map = program.take_map(name).ok_or(io::ErrorKind::InvalidData)?;
    Array::try_from(map).map_err(kernel_error)
}

/// Two `u32`s that lie side by side, as one `u64`.
fn halves(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// A `struct xdp_md` for a frame of `len` bytes that came in at the interface of that index:
/// data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn context(len: u32, index: u32) -> [u8; 24] {
    let mut bytes = [0; 24];
    for (to, field) in bytes.chunks_exact_mut(4).zip([0, len, 0, index, 0, 0]) {
        to.copy_from_slice(&field.to_ne_bytes());
    }
    bytes
}
