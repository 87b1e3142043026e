//! A victim, and beside it an attack on the switch from another port.
//!
//! The victim sends at a modest rate, first alone, then while the attacker sends, too. What it
//! keeps is the rate that arrives during the attack over the rate that arrived before.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use firedoor_dataplane::link::Netlink;
use firedoor_dataplane::sys::packet::{MAX_BATCH, PacketSender};
use firedoor_lab::netns::Netns;

use super::udp::{SEED, Sinks, generator, settle, start};
use super::window::{Count, Window, watch};
use super::{Manner, Sample, stream};
use crate::compare::error::{BuildError, building};
use crate::compare::metric::Metric;
use crate::compare::policy::{OPEN_PORT, TRUSTED_SOURCE, TRUSTED_SOURCE_PORT};
use crate::compare::scenario::{Attack, Load, Victim};
use crate::compare::topology::{ATTACKER, Host, Topology};
use crate::traffic::pacer::Pacer;

/// Packets per second of each attack, the same for all systems. The flood is as strong as leaves a
/// processor to the victim where the switch itself takes none: each SYN costs its sender 1 to 4 µs.
const TUPLE_SPACE_RATE: u64 = 20_000;
const SYN_RATE: u64 = 200_000;
/// How many connections the flood begins before it repeats itself, which is not while it is watched.
const SYN_CONNECTIONS: usize = 1 << 20;
/// How long an attack goes on before the victim is watched: each packet of one was there, and the other has filled a
/// table of as many connections as there is room for.
const ATTACK_SETTLE: Duration = Duration::from_secs(2);
/// How long connections are made before they are watched.
const CLIENTS_SETTLE: Duration = Duration::from_millis(500);
/// Length of a TCP packet's frame without data: Ethernet, IPv4 and TCP headers, and padding.
const FRAME: usize = 60;

/// Measures what a victim keeps of its rate.
pub(super) fn measure(
    victim: Victim,
    attack: Attack,
    topology: &Topology,
    manner: &Manner<'_>,
) -> Result<Sample, BuildError> {
    let attacker = Attacker::of(attack, topology)?;
    let (seen, metric) = match victim {
        Victim::Udp(load) => {
            (beside_udp(load, &attacker, topology, manner)?, Metric::FramesPerSecond)
        }
        Victim::Connections(rate) => {
            let seen = stream::with_clients(topology, OPEN_PORT, Some(rate), |count| {
                manner.wait(CLIENTS_SETTLE)?;
                attacker.beside(manner, count)
            })?;
            (seen, Metric::ConnectionsPerSecond)
        }
    };
    Ok(Sample::of([
        (Metric::Kept, seen.attacked.rate() / seen.alone.rate().max(1.0)),
        (metric, seen.attacked.rate()),
        (Metric::Offered, seen.offered),
    ]))
}

fn beside_udp(
    load: Load,
    attacker: &Attacker,
    topology: &Topology,
    manner: &Manner<'_>,
) -> Result<Seen, BuildError> {
    let sinks = Sinks::attach(load.kind, topology)?;
    let generator = start(generator(load, topology)?)?;
    let seen = settle(load, &sinks, manner)
        .and_then(|()| attacker.beside(manner, || Ok(Count::arrived(sinks.read()?.frames))));
    generator.stop()?;
    seen
}

/// What arrived of the victim's.
struct Seen {
    alone: Window,
    attacked: Window,
    /// What the attacker really sent, per second.
    offered: f64,
}

/// Who attacks, with all that it sends.
struct Attacker {
    sender: PacketSender,
    frames: Vec<[u8; FRAME]>,
    rate: u64,
}

impl Attacker {
    fn of(attack: Attack, topology: &Topology) -> Result<Self, BuildError> {
        let Some((attacker, netns)) = topology.attacker().zip(topology.inside(ATTACKER)) else {
            return building("attack", Err(io::ErrorKind::NotFound.into()));
        };
        let (frames, rate) = match attack {
            Attack::TupleSpace => (tuple_space(attacker, topology.receiver()), TUPLE_SPACE_RATE),
            Attack::SynFlood => (syn_flood(attacker, topology.receiver()), SYN_RATE),
        };
        Ok(Self { sender: open(netns, attacker)?, frames, rate })
    }

    /// Watches a victim alone, and then beside the attack.
    fn beside(
        &self,
        manner: &Manner<'_>,
        count: impl Fn() -> Result<Count, BuildError>,
    ) -> Result<Seen, BuildError> {
        let alone = watch(manner, &count)?;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let attacking = scope.spawn(|| self.send(&done));
            let attacked = manner.wait(ATTACK_SETTLE).and_then(|()| watch(manner, &count));
            done.store(true, Ordering::Relaxed);
            let sent = attacking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let offered = building("attack", sent)?;
            Ok(Seen { alone, attacked: attacked?, offered })
        })
    }

    /// Sends the frames again and again until told to stop. Returns how many it really sent, per second.
    fn send(&self, done: &AtomicBool) -> io::Result<f64> {
        let mut pacer = Pacer::new(self.rate);
        let mut frames = self.frames.iter().cycle();
        let (start, mut sent) = (Instant::now(), 0);
        while !done.load(Ordering::Relaxed) {
            thread::sleep(pacer.due().saturating_sub(start.elapsed()));
            let count = pacer.take(start.elapsed()) as usize;
            let burst: Vec<&[u8]> =
                frames.by_ref().take(count.min(MAX_BATCH)).map(<[u8; FRAME]>::as_slice).collect();
            if !burst.is_empty() {
                sent += self.sender.send(&burst)?;
            }
        }
        Ok(sent as f64 / start.elapsed().as_secs_f64())
    }
}

fn open(netns: &Netns, attacker: &Host) -> Result<PacketSender, BuildError> {
    let opened = netns.run(|| {
        let link = Netlink::open()?.link(&attacker.ifname).map_err(io::Error::other)?;
        PacketSender::open(link.index)
    })?;
    building("open a packet socket", opened)
}

/// One packet for each bit of the trusted address, of the trusted source port and of the open port
/// that it differs in: 32 × 16 × 16 of them.
fn tuple_space(attacker: &Host, target: &Host) -> Vec<[u8; FRAME]> {
    let mut frames = Vec::with_capacity(32 * 16 * 16);
    for address_bit in 0..32 {
        for source_bit in 0..16 {
            for port_bit in 0..16 {
                let address = TRUSTED_SOURCE.to_bits() ^ (1 << address_bit);
                let source = TRUSTED_SOURCE_PORT ^ (1 << source_bit);
                let port = OPEN_PORT ^ (1 << port_bit);
                frames.push(syn(attacker, target, address.into(), (source, port)));
            }
        }
    }
    Rng::with_seed(SEED).shuffle(&mut frames);
    frames
}

/// Beginnings of connections from many sources, each with another address or port, to ports at which nobody listens:
/// it is the switch that is attacked.
fn syn_flood(attacker: &Host, target: &Host) -> Vec<[u8; FRAME]> {
    let mut rng = Rng::with_seed(SEED);
    let syn = |_| {
        // Addresses of 198.18.0.0/15, to which nobody knows a way back.
        let address = Ipv4Addr::from_bits(0xc612_0000 | rng.u32(..1 << 17));
        syn(attacker, target, address, (TRUSTED_SOURCE_PORT, rng.u16(1_024..)))
    };
    (0..SYN_CONNECTIONS).map(syn).collect()
}

/// A TCP SYN without options, from the attacker's MAC address.
fn syn(attacker: &Host, target: &Host, from: Ipv4Addr, ports: (u16, u16)) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&target.mac.0);
    frame[6..12].copy_from_slice(&attacker.mac.0);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    // Version and header length, DSCP, total length, identification, don't fragment, time to live.
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
    frame[26..30].copy_from_slice(&from.octets());
    frame[30..34].copy_from_slice(&target.ip.octets());
    let header = checksum(&frame[14..34], 0);
    frame[24..26].copy_from_slice(&header.to_be_bytes());
    frame[34..36].copy_from_slice(&ports.0.to_be_bytes());
    frame[36..38].copy_from_slice(&ports.1.to_be_bytes());
    // Length of the header in words, SYN, window.
    frame[46..50].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
    // The pseudo header: addresses, protocol, length.
    let pseudo = sum(&frame[26..34]) + 6 + 20;
    let segment = checksum(&frame[34..54], pseudo);
    frame[50..52].copy_from_slice(&segment.to_be_bytes());
    frame
}

/// The sum of 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

fn checksum(bytes: &[u8], more: u32) -> u16 {
    let sum = sum(bytes) + more;
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use firedoor_classifier::PortId;
    use firedoor_classifier::extract::extract;

    use super::*;

    #[test]
    fn attacks_are_valid_frames_and_all_different() {
        let (attacker, target) = (Host::at(ATTACKER), Host::at(1));
        let attacks = [tuple_space(&attacker, &target), syn_flood(&attacker, &target)];
        for (frames, least) in attacks.into_iter().zip([8_000, 1_000_000]) {
            for frame in frames.iter().step_by(97) {
                let headers = extract(frame, PortId(0));
                assert!(headers.is_ok(), "{headers:?}");
                assert_eq!(checksum(&frame[34..54], sum(&frame[26..34]) + 26), 0);
            }
            assert!(frames.iter().collect::<BTreeSet<_>>().len() > least);
        }
    }

    #[test]
    fn no_packet_of_the_tuple_space_attack_matches_a_rule() {
        for frame in tuple_space(&Host::at(ATTACKER), &Host::at(1)) {
            assert_ne!(frame[26..30], TRUSTED_SOURCE.octets());
            assert_ne!(frame[34..36], TRUSTED_SOURCE_PORT.to_be_bytes());
            assert_ne!(frame[36..38], OPEN_PORT.to_be_bytes());
        }
    }
}
