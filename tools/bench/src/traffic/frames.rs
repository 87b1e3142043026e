//! The frames of a load, one after the other: the same for both kinds of generators.
//!
//! A frame is Ethernet, IPv4 without options, UDP without checksum, and a payload that begins with
//! the mark (`struct mark` in dataplane/bpf/load.h): four bytes of magic and the sequence number.

use firedoor_classifier::wire::protocol;
use firedoor_dataplane::sys::live_frames::{LENGTHS, Recipe, SOURCE_PORTS};

use super::{CHECK_SEQUENCE, FrameSize, Load, TrafficError};

/// What the payload begins with (`MAGIC` in load.h).
const MAGIC: [u8; 4] = *b"FDLD";

/// Where fields are, in bytes from the frame's start.
mod field {
    use std::ops::Range;

    pub(super) const IP: Range<usize> = 14..34;
    pub(super) const IP_LENGTH: Range<usize> = 16..18;
    pub(super) const IP_CHECKSUM: Range<usize> = 24..26;
    pub(super) const SOURCE_PORT: Range<usize> = 34..36;
    pub(super) const DESTINATION_PORT: Range<usize> = 36..38;
    pub(super) const UDP_LENGTH: Range<usize> = 38..40;
    pub(super) const MAGIC: Range<usize> = 42..46;
    pub(super) const SEQUENCE: Range<usize> = 46..54;
}

/// IMIX: 64, 570 and 1518 bytes as 7 : 4 : 1, spread out.
const IMIX: [u16; LENGTHS] = [64, 570, 64, 570, 64, 64, 1518, 64, 570, 64, 570, 64];

/// Shortest and longest frame on the wire.
const WIRE: std::ops::RangeInclusive<u16> = 64..=1518;

/// Checks a load, and says how its frames are made. `sequence` is the first frame's number.
pub(super) fn recipe(load: &Load, sequence: u64) -> Result<Recipe, TrafficError> {
    let wire = match load.frame {
        FrameSize::Fixed(length) => [length; LENGTHS],
        FrameSize::Imix => IMIX,
    };
    if !wire.iter().all(|length| WIRE.contains(length)) {
        return Err(TrafficError::Load("frames are of 64 to 1518 bytes"));
    }
    let (Some(last_flow), false) = (load.flows.checked_sub(1), load.rate == Some(0)) else {
        return Err(TrafficError::Load("it has at least one flow and one frame per second"));
    };
    let last_source = u32::from(load.from.port) + last_flow.min(SOURCE_PORTS - 1);
    let last_destination = u32::from(load.to.port) + last_flow / SOURCE_PORTS;
    if last_source.max(last_destination) > u32::from(u16::MAX) {
        return Err(TrafficError::Load("its flows need more ports than there are above the first"));
    }
    let lengths = wire.map(|length| length - CHECK_SEQUENCE);
    let longest = lengths.iter().copied().max().unwrap_or_default();
    let mut template = template(load, longest);
    let checksums = lengths.map(|length| {
        set_lengths(&mut template, length);
        ipv4_checksum(&template)
    });
    Ok(Recipe {
        template,
        lengths,
        checksums,
        flows: load.flows,
        stride: stride(load.flows),
        source_port: load.from.port,
        destination_port: load.to.port,
        sequence,
        flow: (load.seed % u64::from(load.flows)) as u32,
    })
}

/// A frame of `length` bytes with every field that all frames have in common.
fn template(load: &Load, length: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(length.into());
    frame.extend(load.to.mac.0);
    frame.extend(load.from.mac.0);
    frame.extend([0x08, 0x00]);
    // Version and header length, DSCP, total length, identification, don't fragment, time to live.
    frame.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol::UDP, 0, 0]);
    frame.extend(load.from.ip.octets());
    frame.extend(load.to.ip.octets());
    frame.resize(field::MAGIC.start, 0);
    frame.extend(MAGIC);
    frame.resize(length.into(), 0);
    frame
}

fn set_lengths(frame: &mut [u8], length: u16) {
    let (ip, udp) = (length - field::IP.start as u16, length - field::IP.end as u16);
    frame[field::IP_LENGTH].copy_from_slice(&ip.to_be_bytes());
    frame[field::UDP_LENGTH].copy_from_slice(&udp.to_be_bytes());
}

/// The checksum of the IPv4 header, whatever its checksum field holds (RFC 1071).
fn ipv4_checksum(frame: &[u8]) -> u16 {
    let words = field::IP.step_by(2).filter(|&at| at != field::IP_CHECKSUM.start);
    let sum: u32 = words.map(|at| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// How far to go from one flow to the next: near the golden section of `flows`, so that flows that
/// follow each other are far apart, and with no divisor in common, so that all are visited.
fn stride(flows: u32) -> u32 {
    let ideal = (f64::from(flows) * 0.618_034) as u32;
    (ideal..flows).find(|&stride| gcd(stride, flows) == 1).unwrap_or_default()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The frames of a load, made in buffers of our own.
#[derive(Debug)]
pub(super) struct Frames {
    recipe: Recipe,
    buffers: Vec<Vec<u8>>,
    length: usize,
}

impl Frames {
    /// Room for `batch` frames.
    pub(super) fn new(recipe: Recipe, batch: usize) -> Self {
        let buffers = vec![recipe.template.clone(); batch];
        Self { recipe, buffers, length: 0 }
    }

    /// The next frames, at most as many as there is room for.
    pub(super) fn next(&mut self, count: usize) -> Vec<&[u8]> {
        let count = count.min(self.buffers.len());
        let mut lengths = Vec::with_capacity(count);
        for slot in 0..count {
            lengths.push(self.write(slot));
        }
        self.buffers.iter().zip(lengths).map(|(buffer, length)| &buffer[..length]).collect()
    }

    /// Makes the next frame in a buffer and returns its length.
    fn write(&mut self, slot: usize) -> usize {
        let recipe = &mut self.recipe;
        let frame = &mut self.buffers[slot];
        let (source, destination) = (recipe.flow % SOURCE_PORTS, recipe.flow / SOURCE_PORTS);
        let source = recipe.source_port + source as u16;
        let destination = recipe.destination_port + destination as u16;
        let length = recipe.lengths[self.length];
        set_lengths(frame, length);
        frame[field::IP_CHECKSUM].copy_from_slice(&recipe.checksums[self.length].to_be_bytes());
        frame[field::SOURCE_PORT].copy_from_slice(&source.to_be_bytes());
        frame[field::DESTINATION_PORT].copy_from_slice(&destination.to_be_bytes());
        frame[field::SEQUENCE].copy_from_slice(&recipe.sequence.to_be_bytes());
        recipe.sequence += 1;
        // Less than 2^32: there are at most 2^31 pairs of ports.
        recipe.flow = (recipe.flow + recipe.stride) % recipe.flows;
        self.length = (self.length + 1) % LENGTHS;
        length.into()
    }
}

/// The bytes of `count` frames from the `first` (counted from 0) of a load on.
pub(super) fn bytes(lengths: &[u16; LENGTHS], first: u64, count: u64) -> u64 {
    let circle: u64 = lengths.iter().copied().map(u64::from).sum();
    let until = |end: u64| {
        let rest = lengths.iter().take((end % LENGTHS as u64) as usize).copied().map(u64::from);
        end / LENGTHS as u64 * circle + rest.sum::<u64>()
    };
    until(first + count) - until(first)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    use firedoor_classifier::extract::extract;
    use firedoor_classifier::{MacAddr, PortId};

    use super::super::End;
    use super::*;

    fn load(frame: FrameSize, flows: u32) -> Load {
        let end = |n: u8, port| End {
            mac: MacAddr([2, 0, 0, 0, 0, n]),
            ip: Ipv4Addr::new(10, 0, 0, n),
            port,
        };
        Load { frame, flows, rate: None, from: end(1, 1024), to: end(2, 9), seed: 7 }
    }

    fn all(load: &Load, count: usize) -> Vec<Vec<u8>> {
        let mut frames = Frames::new(recipe(load, 1).unwrap(), 64);
        let mut made = Vec::new();
        while made.len() < count {
            made.extend(frames.next(count - made.len()).into_iter().map(<[u8]>::to_vec));
        }
        made
    }

    #[test]
    fn frames_are_valid_and_numbered() {
        for (n, frame) in all(&load(FrameSize::Imix, 100), 24).into_iter().enumerate() {
            let key = extract(&frame, PortId(0));
            assert!(key.is_ok(), "frame {n}: {key:?}");
            assert_eq!(&frame[field::MAGIC], b"FDLD");
            assert_eq!(frame[field::SEQUENCE], (1 + n as u64).to_be_bytes());
            let sum = ipv4_checksum(&frame).to_be_bytes();
            assert_eq!(&frame[field::IP_CHECKSUM], sum);
        }
    }

    #[test]
    fn every_flow_comes_once_before_any_comes_twice() {
        for flows in [1, 2, 3, 12, 1_000, 32_768, 100_000] {
            let ports: HashSet<_> = all(&load(FrameSize::Fixed(64), flows), flows as usize)
                .into_iter()
                .map(|frame| frame[field::SOURCE_PORT.start..field::DESTINATION_PORT.end].to_vec())
                .collect();
            assert_eq!(ports.len(), flows as usize);
        }
    }

    #[test]
    fn imix_is_seven_four_and_one() {
        let frames = all(&load(FrameSize::Imix, 1), 120);
        for (length, count) in [(60, 70), (566, 40), (1514, 10)] {
            assert_eq!(frames.iter().filter(|frame| frame.len() == length).count(), count);
        }
    }

    #[test]
    fn bytes_are_what_the_frames_have() {
        let load = load(FrameSize::Imix, 5);
        let frames = all(&load, 40);
        let lengths = recipe(&load, 1).unwrap().lengths;
        for (first, count) in [(0, 0), (0, 12), (3, 30), (11, 2)] {
            let slow: usize = frames[first..first + count].iter().map(Vec::len).sum();
            assert_eq!(bytes(&lengths, first as u64, count as u64), slow as u64);
        }
    }

    #[test]
    fn impossible_loads_are_refused() {
        let possible = load(FrameSize::Fixed(64), 1_000_000);
        assert!(recipe(&possible, 1).is_ok());
        let mut loads = vec![load(FrameSize::Fixed(63), 1), load(FrameSize::Fixed(1519), 1)];
        loads.push(load(FrameSize::Fixed(64), 0));
        loads.push(Load { rate: Some(0), ..possible.clone() });
        loads.push(Load { flows: u32::MAX, ..possible.clone() });
        loads.push(Load { from: End { port: 40_000, ..possible.from }, ..possible });
        for load in loads {
            assert!(recipe(&load, 1).is_err(), "{load:?}");
        }
    }
}
