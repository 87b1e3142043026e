//! Counting the frames of a load where they arrive, in the kernel, and dropping them there.
//!
//! The same count is kept at one of two places: by an XDP program, before the kernel makes an skb,
//! or by a tcx program, where the stack takes the skb over. Both are attached by a BPF link, so they
//! come off with their [`Tally`], however the process ends.

use std::io;
use std::ops::AddAssign;

use aya::maps::{MapData, PerCpuArray};
use aya::programs::links::Link;
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp};
use aya::{Ebpf, EbpfLoader};

use super::bpf::kernel_error;

/// dataplane/bpf/count.bpf.c, compiled by `cargo xtask bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/count.bpf.o");

/// Where frames are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// By XDP in the driver, or in generic mode where the driver has none.
    Xdp,
    /// At the stack's door: tcx ingress.
    Stack,
}

/// What arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Frames of a load.
    pub frames: u64,
    /// Their bytes, from the Ethernet header on.
    pub bytes: u64,
    /// The highest sequence number.
    pub highest: u64,
    /// Frames whose sequence number was not above all earlier ones' on the same processor.
    pub reordered: u64,
}

impl AddAssign for Arrived {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.highest = self.highest.max(other.highest);
        self.reordered += other.reordered;
    }
}

/// A counting program on an interface; dropping this takes it off.
pub struct Tally {
    tallies: PerCpuArray<MapData, [u64; 4]>,
    attached: Option<Attached>,
    _program: Ebpf,
}

enum Attached {
    Xdp(XdpLink),
    Stack(SchedClassifierLink),
}

impl Tally {
    /// Attaches a counting program to an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's, above all `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`, and `EBUSY` if the
    /// interface has another XDP program.
    pub fn attach(ifname: &str, index: u32, place: Place) -> io::Result<Self> {
        let mut program = EbpfLoader::new().btf(None).load(OBJECT).map_err(kernel_error)?;
        let tallies = program.take_map("tallies").ok_or(io::ErrorKind::InvalidData)?;
        let tallies = PerCpuArray::try_from(tallies).map_err(kernel_error)?;
        let attached = match place {
            Place::Xdp => Attached::Xdp(attach_xdp(&mut program, index)?),
            Place::Stack => Attached::Stack(attach_stack(&mut program, ifname)?),
        };
        Ok(Self { tallies, attached: Some(attached), _program: program })
    }

    /// What arrived since it was attached, over all processors.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self) -> io::Result<Arrived> {
        let mut total = Arrived::default();
        let values = self.tallies.get(&0, 0).map_err(kernel_error)?;
        for &[frames, bytes, highest, reordered] in values.iter() {
            total += Arrived { frames, bytes, highest, reordered };
        }
        Ok(total)
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        // If the interface is gone, the kernel has detached the program itself.
        let _ = match self.attached.take() {
            Some(Attached::Xdp(link)) => link.detach(),
            Some(Attached::Stack(link)) => link.detach(),
            None => Ok(()),
        };
    }
}

fn attach_xdp(program: &mut Ebpf, index: u32) -> io::Result<XdpLink> {
    let program: &mut Xdp = program
        .program_mut("count_frames")
        .ok_or(io::ErrorKind::InvalidData)?
        .try_into()
        .map_err(kernel_error)?;
    program.load().map_err(kernel_error)?;
    let native = program.attach_to_if_index(index, XdpMode::Driver).map_err(kernel_error);
    let id = match native {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            program.attach_to_if_index(index, XdpMode::Skb).map_err(kernel_error)?
        }
        native => native?,
    };
    program.take_link(id).map_err(kernel_error)
}

fn attach_stack(program: &mut Ebpf, ifname: &str) -> io::Result<SchedClassifierLink> {
    let program: &mut SchedClassifier = program
        .program_mut("count_packets")
        .ok_or(io::ErrorKind::InvalidData)?
        .try_into()
        .map_err(kernel_error)?;
    program.load().map_err(kernel_error)?;
    // A link, not a filter of the older kind, which would stay when the process ends.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id =
        program.attach_with_options(ifname, TcAttachType::Ingress, order).map_err(kernel_error)?;
    program.take_link(id).map_err(kernel_error)
}
