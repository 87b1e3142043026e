//! The kernel's half of the express lane, full: what so many connections take, and how fast they come
//! and go.
//!
//! The program is loaded and its maps are the real ones, but no port is: verdicts are written as a
//! worker writes them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use firedoor_dataplane::express::{
    ExpressError, FlowEgress, FlowId, FlowVerdict, InstallError, Lane, Slot,
};
use serde::Serialize;

use crate::Progress;

/// Interfaces that the two sides of every connection are behind. There are none of these numbers.
const SIDES: [u32; 2] = [u32::MAX - 1, u32::MAX];
/// UDP: it is the maps that are measured.
const PROTOCOL: u8 = 17;

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Kernel {
    /// Connections, each with a verdict for both directions.
    pub connections: u32,
    /// Writing one verdict.
    pub install_ns: f64,
    /// Reading what came of one.
    pub progress_ns: f64,
    /// Taking one away.
    pub remove_ns: f64,
    /// Bytes that the maps take, however many verdicts there are.
    pub map_bytes: u64,
}

/// Gives the kernel so many connections, and takes them away again.
///
/// # Errors
/// If the kernel does not take the program, or a verdict.
pub fn kernel(connections: u32) -> Result<Kernel, KernelError> {
    let progress = Progress::new(3);
    let count = connections.saturating_mul(2);
    let lane = Lane::load(count, None)?;
    progress.step("writing verdicts");
    let begun = Instant::now();
    let slots: Vec<Slot> = (0..count)
        .map(|number| lane.flows().install(&flow(number), &verdict(number)))
        .collect::<Result<_, _>>()?;
    let install_ns = each(begun, count);
    progress.step("reading counters");
    let begun = Instant::now();
    let frames: u32 =
        slots.iter().map(|&slot| lane.flows().progress(slot).unwrap_or_default().frames).sum();
    assert_eq!(frames, 0, "no frame came by");
    let progress_ns = each(begun, count);
    progress.step("taking verdicts away");
    let begun = Instant::now();
    (0..count).zip(slots).for_each(|(number, slot)| lane.flows().remove(&flow(number), slot));
    let remove_ns = each(begun, count);
    assert!(lane.flows().is_empty(), "each was there");
    Ok(Kernel { connections, install_ns, progress_ns, remove_ns, map_bytes: map_bytes() })
}

/// Why the kernel's half could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The program is not loaded.
    #[error(transparent)]
    Lane(#[from] ExpressError),
    /// A verdict was not taken.
    #[error(transparent)]
    Install(#[from] InstallError),
}

/// One direction of the connection that a number is half of.
fn flow(number: u32) -> FlowId {
    let [_, a, b, c] = (number / 2).to_be_bytes();
    let ends = [(Ipv4Addr::new(10, a, b, c), 1024), (Ipv4Addr::new(11, 0, 0, 1), 53)];
    let [(asker, port), (asked, service)] = ends.map(|(ip, port)| (IpAddr::V4(ip), port));
    match SIDES {
        [side, _] if number.is_multiple_of(2) => {
            FlowId::new(side, PROTOCOL, (asker, port), (asked, service))
        }
        [_, side] => FlowId::new(side, PROTOCOL, (asked, service), (asker, port)),
    }
}

fn verdict(number: u32) -> FlowVerdict {
    let [asker, asked] = SIDES;
    let egress = if number.is_multiple_of(2) { asked } else { asker };
    FlowVerdict {
        eth_dst: [2, 0, 0, 0, 0, 1],
        eth_src: [2, 0, 0, 0, 0, 2],
        egress: FlowEgress::Transmit(egress),
        max_frame: 1514,
        rule: 0,
        epoch: 1,
        is_reply: !number.is_multiple_of(2),
        tcp_flags: 0,
    }
}

fn each(begun: Instant, count: u32) -> f64 {
    begun.elapsed().as_nanos() as f64 / f64::from(count.max(1))
}

/// Bytes that this process's BPF maps take in the kernel, as it says itself.
fn map_bytes() -> u64 {
    let mut maps = BTreeMap::new();
    for file in fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten() {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        let field = |name| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u64>().ok()
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    maps.values().sum()
}
