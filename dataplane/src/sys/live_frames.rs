//! XDP frames made in the kernel and sent out of an interface, by running a program over and over.
//!
//! `BPF_PROG_RUN` with `BPF_F_TEST_XDP_LIVE_FRAMES` gives a program page after page with a frame in
//! it, and does what it answers: here always `XDP_TX`, which for live frames means a redirect out
//! of the interface that the run is for. No skb is ever made, so one processor sends many times what
//! any socket could. The driver must take redirected frames (`ndo_xdp_xmit`); a veth does while its
//! peer polls (an XDP program there, or GRO), else it drops every one.
//!
//! Source: Documentation/bpf/bpf_prog_run.rst and net/bpf/test_run.c (Linux 6.18).

use std::io;

use aya::maps::{Array, MapData};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};

use super::bpf::kernel_error;

/// dataplane/bpf/generate.bpf.c, compiled by `cargo xtask bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/generate.bpf.o");

/// Frames follow each other in a circle of this many lengths.
pub const LENGTHS: usize = 12;

/// Most frames that the kernel makes before it sends them.
pub const MAX_BATCH: u32 = 256;

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
    /// How many source ports there are. Flow n comes from port `source_port + n % source_ports`
    /// and goes to port `destination_port + n / source_ports`.
    pub source_ports: u32,
    /// The first source port.
    pub source_port: u16,
    /// The first destination port.
    pub destination_port: u16,
    /// The first frame's sequence number.
    pub sequence: u64,
    /// The first frame's flow.
    pub flow: u32,
}

/// The program, loaded for one recipe and one interface.
pub struct LiveFrames {
    program: Ebpf,
    next: Array<MapData, [u64; 2]>,
    frame: Vec<u8>,
    context: [u8; 24],
}

impl LiveFrames {
    /// Loads the program. `index` is that of an interface in the network namespace of whichever
    /// thread will [`send`](Self::send).
    ///
    /// # Errors
    /// `InvalidInput` if the recipe names no flow or no source port; the kernel's, above all `EPERM`
    /// without `CAP_BPF` and `CAP_NET_ADMIN`.
    pub fn load(index: u32, recipe: &Recipe) -> io::Result<Self> {
        if recipe.stride >= recipe.flows || recipe.source_ports == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let longest = recipe.template.len() as u16;
        let checksums = recipe.checksums.map(u16::to_be);
        let mut program = EbpfLoader::new()
            .btf(None)
            .override_global("lengths", &recipe.lengths, true)
            .override_global("checksums", &checksums, true)
            .override_global("longest", &longest, true)
            .override_global("flows", &recipe.flows, true)
            .override_global("stride", &recipe.stride, true)
            .override_global("source_ports", &recipe.source_ports, true)
            .override_global("source_port", &recipe.source_port, true)
            .override_global("destination_port", &recipe.destination_port, true)
            .load(OBJECT)
            .map_err(kernel_error)?;
        let next = program.take_map("next_frame").ok_or(io::ErrorKind::InvalidData)?;
        let mut next: Array<_, [u64; 2]> = Array::try_from(next).map_err(kernel_error)?;
        next.set(0, [recipe.sequence, flow_and_length(recipe.flow, 0)], 0).map_err(kernel_error)?;
        let xdp: &mut Xdp = program
            .program_mut("generate")
            .ok_or(io::ErrorKind::InvalidData)?
            .try_into()
            .map_err(kernel_error)?;
        xdp.load().map_err(kernel_error)?;
        let context = context(u32::from(longest), index);
        Ok(Self { program, next, frame: recipe.template.clone(), context })
    }

    /// Sends the next `count` frames, in batches of `batch` (at most [`MAX_BATCH`]). The calling
    /// thread must be in the interface's network namespace. Setting a run up costs about as much
    /// as a few hundred frames.
    ///
    /// Whether a frame was taken is not known: what does not fit the receiver's ring is dropped.
    ///
    /// # Errors
    /// The kernel's: `ENODEV` if the interface is not there, `EINTR` if a signal came.
    pub fn send(&mut self, count: u32, batch: u32) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let xdp: &mut Xdp = self
            .program
            .program_mut("generate")
            .ok_or(io::ErrorKind::InvalidData)?
            .try_into()
            .map_err(kernel_error)?;
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(&self.context),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(batch.clamp(1, MAX_BATCH)),
            ..TestRunOptions::default()
        };
        xdp.test_run(options).map(drop).map_err(kernel_error)
    }

    /// The sequence number of the frame that comes next.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sequence(&self) -> io::Result<u64> {
        Ok(self.next.get(&0, 0).map_err(kernel_error)?[0])
    }
}

/// The second half of `struct next`.
fn flow_and_length(flow: u32, length: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&flow.to_ne_bytes());
    bytes[4..].copy_from_slice(&length.to_ne_bytes());
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
