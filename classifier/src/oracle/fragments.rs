//! Fragments as packets put together byte by byte.

use super::{Oracle, Ruling};
use crate::extract::{Headers, Kind};
use crate::mac::MacAddr;
use crate::snapshot::PortId;
use crate::time::Nanos;
use crate::verdict::DropReason;

/// A packet of which not all fragments have come.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    name: Name,
    macs: [MacAddr; 2],
    since: Nanos,
    /// Which of its bytes have come, as far as any has.
    bytes: Vec<bool>,
    /// How many it has, once that is known.
    total: Option<usize>,
    waiting: Vec<usize>,
    /// What became of its first fragment.
    ruling: Option<Ruling>,
    /// Why nothing of it passes any more.
    ruined: Option<DropReason>,
    /// Its first fragment was judged by another policy.
    pub(super) outdated: bool,
}

/// Port, tags, VLAN, source, destination, identification, and for IPv4 the protocol.
type Name = (PortId, u8, u16, u128, u128, u32, Option<u8>);

type Rulings = Vec<(usize, Ruling)>;

const EXPIRED: DropReason = DropReason::FragmentExpired;
const OVERLAP: DropReason = DropReason::FragmentOverlap;

impl Packet {
    /// Whether a fragment's bytes agree with those that have come: all new, none behind the end, and
    /// no second end. If not, whether that is the end of the whole packet.
    fn take(&mut self, headers: &Headers) -> Result<(), bool> {
        let fragment = headers.fragment.ok_or(false)?;
        if self.macs != [headers.key.eth_src, headers.key.eth_dst] {
            return Err(false);
        }
        let (from, to) = (usize::from(fragment.offset), fragment.end() as usize);
        let beyond = |total| to > total || (!fragment.more && to < total);
        if self.total.is_some_and(beyond) || (!fragment.more && self.bytes.len() > to) {
            return Err(true);
        }
        let end = self.bytes.len();
        self.bytes.resize(end.max(to), false);
        let known = self.bytes[from..to].iter().filter(|&&known| known).count();
        if known > 0 {
            self.bytes.truncate(end);
            return Err(known < to - from);
        }
        self.bytes[from..to].fill(true);
        if !fragment.more {
            self.total = Some(to);
        }
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.total.is_some() && self.bytes.iter().all(|&known| known)
    }

    fn drop_waiting(&mut self, reason: DropReason) -> Rulings {
        self.waiting.drain(..).map(|number| (number, Ruling::drop(reason))).collect()
    }
}

impl Oracle {
    /// What becomes of a frame, and of fragments that waited for it. The frame goes by `number`.
    /// Nothing becomes of one that waits, yet.
    pub fn arrive(&mut self, number: usize, headers: &Headers, now: Nanos) -> Rulings {
        let Some(fragment) = headers.fragment else {
            return vec![(number, self.judge(headers, now))];
        };
        let key = &headers.key;
        let protocol = (key.ether_type == 0x0800).then_some(key.protocol);
        let (tags, vlan) = (headers.vlan_tags, key.vlan);
        let name = (key.ingress, tags, vlan, key.src, key.dst, fragment.id, protocol);
        let mut rulings = self.expire_packets(now, |packet| packet.name == name);
        let found = self.packets.iter().position(|packet| packet.name == name);
        let mut packet = match found {
            Some(at) => self.packets.remove(at),
            None => Packet {
                name,
                macs: [key.eth_src, key.eth_dst],
                since: now,
                bytes: Vec::new(),
                total: None,
                waiting: Vec::new(),
                ruling: None,
                ruined: None,
                outdated: false,
            },
        };
        rulings.extend(self.add(&mut packet, number, headers, now));
        if packet.ruined.is_some() || !packet.is_whole() {
            self.packets.push(packet);
        }
        rulings
    }

    fn add(
        &mut self,
        packet: &mut Packet,
        number: usize,
        headers: &Headers,
        now: Nanos,
    ) -> Rulings {
        let alone = |ruling| vec![(number, ruling)];
        if let Some(reason) = packet.ruined {
            return alone(Ruling::drop(reason));
        }
        if let Err(ruins_all) = packet.take(headers) {
            let mut dropped = Vec::new();
            if ruins_all {
                packet.ruined = Some(OVERLAP);
                dropped = packet.drop_waiting(OVERLAP);
            }
            dropped.push((number, Ruling::drop(OVERLAP)));
            return dropped;
        }
        match &packet.ruling {
            _ if headers.kind != Kind::LaterFragment => {
                let ruling = self.judge(headers, now);
                packet.ruling = Some(ruling.clone());
                let waited = packet.waiting.drain(..);
                [number].into_iter().chain(waited).map(|n| (n, ruling.clone())).collect()
            }
            Some(_) if packet.outdated => alone(Ruling::drop(EXPIRED)),
            Some(ruling) => alone(ruling.clone()),
            None => {
                packet.waiting.push(number);
                Vec::new()
            }
        }
    }

    /// Forgets packets whose time has run out.
    pub fn expire_fragments(&mut self, now: Nanos) -> Rulings {
        self.expire_packets(now, |_| true)
    }

    /// Drops what waits, for good, because the policy changes.
    pub fn forget_waiting(&mut self) -> Rulings {
        let waiting = self.packets.iter_mut().filter(|packet| !packet.waiting.is_empty());
        waiting
            .flat_map(|packet| {
                packet.ruined = Some(EXPIRED);
                packet.drop_waiting(EXPIRED)
            })
            .collect()
    }

    fn expire_packets(&mut self, now: Nanos, which: impl Fn(&Packet) -> bool) -> Rulings {
        let timeout = u64::from(self.snapshot.settings.fragment_timeout_secs) * 1_000_000_000;
        let is_over = |packet: &mut Packet| which(packet) && now.since(packet.since) >= timeout;
        let mut over: Vec<_> = self.packets.extract_if(.., is_over).collect();
        over.iter_mut().flat_map(|packet| packet.drop_waiting(EXPIRED)).collect()
    }
}
