//! What a guest may say of how its packet is to be cut, in the header before it (`struct virtio_net_hdr`): every
//! kind that a tap takes arrives, whole or cut, by either way; and whatever is said, what arrives is what was judged.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;

use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::extract::extract;
use firedoor_classifier::wire::tcp;
use firedoor_classifier::{MacAddr, PortId};
use firedoor_dataplane::express::punt::ExpressPort;
use firedoor_dataplane::express::{FlowId, Lane};
use firedoor_dataplane::link::Link;
use firedoor_dataplane::port::Port;
use firedoor_dataplane::sys::tap;
use libtest_mimic::Failed;

use super::{HEADER, LENGTH, data, guest, header_of, lane, verdict_to};
use crate::express::open;
use crate::host::{self, Host};

/// `flags` and `gso_type` (linux/virtio_net.h). The kind that cuts UDP into IP fragments is of old guests.
const NEEDS_CSUM: u8 = 1;
const TCP_V4: u8 = 1;
const UDP_FRAGMENTS: u8 = 3;
const TCP_V6: u8 = 4;
const UDP: u8 = 5;
const ECN: u8 = 0x80;

/// Bytes of each piece: a multiple of 8, as fragments need.
const PIECE: u16 = 1400;
/// At whom everything is aimed.
const SERVER: u16 = 7000;
/// Source ports: what decides where a packet goes.
const TO_OFFLOADING: u16 = 40_000;
const TO_PLAIN: u16 = 40_001;
const TO_SWITCH: u16 = 40_002;

/// A conversation that a guest begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Talk {
    is_udp: bool,
    is_v6: bool,
    from: u16,
}

impl Talk {
    fn all(from: u16) -> [Self; 4] {
        [(false, false), (false, true), (true, false), (true, true)].map(|(is_udp, is_v6)| Self {
            is_udp,
            is_v6,
            from,
        })
    }

    fn protocol(self) -> u8 {
        if self.is_udp { 17 } else { 6 }
    }

    fn ends(self) -> Ends {
        let [src, dst]: [IpAddr; 2] = if self.is_v6 {
            [1, 2].map(|host| IpAddr::from([0xfd99, 0, 0, 0, 0, 0, 0, host]))
        } else {
            [[10, 99, 0, 1], [10, 99, 0, 2]].map(IpAddr::from)
        };
        Ends { eth_src: guest(), eth_dst: MacAddr([2, 0, 0, 0, 0, 2]), src, dst }
    }

    fn frame(self, data: &[u8]) -> Vec<u8> {
        if self.is_udp {
            return build::udp(self.ends(), self.from, SERVER, data);
        }
        let header = tcp::Repr {
            source_port: self.from,
            destination_port: SERVER,
            sequence: 1,
            acknowledgement: 1,
            flags: TcpFlags::ACK,
            window: 64_240,
        };
        build::tcp_segment(self.ends(), header, data)
    }

    /// Where its transport header begins, where its data do, and where in the former its checksum is.
    fn places(self) -> [u16; 3] {
        let transport = if self.is_v6 { 54 } else { 34 };
        let [len, checksum] = if self.is_udp { [8, 6] } else { [20, 16] };
        [transport, transport + len, checksum]
    }

    /// The kernel's verdict: to that port.
    fn judge(self, lane: &Lane, from: &Link, to: &Link) -> Result<(), Failed> {
        let ends = self.ends();
        let id =
            FlowId::new(from.index, self.protocol(), (ends.src, self.from), (ends.dst, SERVER));
        lane.flows().install(&id, &verdict_to(to, ends))?;
        Ok(())
    }

    /// The data in a frame of this conversation, or in a fragment of one; `None` if it is of another.
    fn data_of(self, frame: &[u8]) -> Option<&[u8]> {
        let headers = extract(frame, PortId(1)).ok()?;
        let key = headers.key;
        let Ends { eth_src, eth_dst, src, dst } = self.ends();
        let bits = |address| match address {
            IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let names = (key.eth_src, key.eth_dst, key.src, key.dst, key.protocol);
        let is_first = headers.fragment.is_none_or(|fragment| fragment.is_first());
        let is_ours = names == (eth_src, eth_dst, bits(src), bits(dst), self.protocol())
            && (!is_first || (key.src_port, key.dst_port) == (self.from, SERVER));
        let [transport, data, _] = self.places();
        let of_first = usize::from(data - transport);
        let from = usize::from(headers.l4) + if is_first { of_first } else { 0 };
        is_ours.then(|| &frame[from..usize::from(headers.end)])
    }
}

/// A guest that sends, one that takes whole packets, one that takes none, and the kernel between them.
struct Scene {
    lane: Lane,
    guests: [File; 3],
    ports: Vec<ExpressPort>,
}

impl Scene {
    fn new(host: &mut Host) -> Result<Self, Failed> {
        let lane = lane()?;
        let guests =
            [tap::open_offloading("fd1")?, tap::open_offloading("fd2")?, tap::open("fd3")?];
        let (mut ports, mut links) = (Vec::new(), Vec::new());
        for (tag, ifname) in [(1, "fd1"), (2, "fd2"), (3, "fd3")] {
            let (port, link) = open(host, &lane, tag, ifname)?;
            ports.push(port);
            links.push(link);
        }
        for (to, from) in [(1, TO_OFFLOADING), (2, TO_PLAIN)] {
            for talk in Talk::all(from) {
                talk.judge(&lane, &links[0], &links[to])?;
            }
        }
        lane.let_go();
        Ok(Self { lane, guests, ports })
    }

    /// Sends as a guest does. False if its kernel refuses to take it.
    fn send(&mut self, header: [u8; HEADER], frame: &[u8]) -> bool {
        self.guests[0].write(&[&header[..], frame].concat()).is_ok()
    }

    /// Frames that come to whom conversations from that port lead, until `done` with them.
    fn receive(
        &mut self,
        host: &mut Host,
        from: u16,
        done: impl Fn(&[Vec<u8>]) -> bool,
    ) -> Result<Vec<Vec<u8>>, Failed> {
        let mut came = Vec::new();
        host::wait_for(|| {
            match from {
                TO_OFFLOADING => came.extend(read(&mut self.guests[1], HEADER)),
                TO_PLAIN => came.extend(read(&mut self.guests[2], 0)),
                _ => came.extend(self.take_misses(host)),
            }
            done(&came)
        })?;
        Ok(came)
    }

    /// What the switch has of the sender.
    fn take_misses(&mut self, host: &mut Host) -> Vec<Vec<u8>> {
        let mut batch = Vec::new();
        self.ports[0].receive(&mut host.pool, &mut batch);
        let came = batch.iter().map(|frame| host.umem.bytes(frame).to_vec()).collect();
        batch.into_iter().for_each(|frame| host.pool.give(frame));
        came
    }

    fn close(self, host: &mut Host) {
        self.ports.into_iter().for_each(|port| Box::new(port).close(&mut host.pool));
        host.assert_conserved();
    }
}

/// The frames that a guest has, without the header before each.
fn read(guest: &mut File, header: usize) -> Vec<Vec<u8>> {
    let (mut buffer, mut frames) = (vec![0; 1 << 17], Vec::new());
    loop {
        match guest.read(&mut buffer) {
            Ok(len) => frames.push(buffer[header..len].to_vec()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return frames;
            }
        }
    }
}

/// A packet of each kind, by each way.
pub(super) fn arrive(host: &mut Host) -> Result<(), Failed> {
    let mut scene = Scene::new(host)?;
    for talk in [TO_OFFLOADING, TO_PLAIN, TO_SWITCH].into_iter().flat_map(Talk::all) {
        let kinds = match (talk.is_udp, talk.is_v6) {
            (true, _) => [UDP, UDP_FRAGMENTS],
            (false, false) => [TCP_V4, TCP_V4 | ECN],
            (false, true) => [TCP_V6, TCP_V6 | ECN],
        };
        for kind in kinds {
            let [transport, start, checksum] = talk.places();
            let header = header_of([NEEDS_CSUM, kind], [start, PIECE, transport, checksum]);
            assert!(scene.send(header, &build::partial(talk.frame(&data()))), "{talk:?} {kind}");
            let parts = |came: &[Vec<u8>]| -> Vec<Vec<u8>> {
                came.iter().filter_map(|frame| talk.data_of(frame).map(<[u8]>::to_vec)).collect()
            };
            let all = |came: &[Vec<u8>]| parts(came).concat().len() >= LENGTH;
            let parts = parts(&scene.receive(host, talk.from, all)?);
            assert!(parts.concat() == data(), "{talk:?} {kind}: {} parts", parts.len());
            // The other kinds the tap does not offer.
            let is_whole = talk.from == TO_OFFLOADING && [TCP_V4, TCP_V6, UDP].contains(&kind);
            assert_eq!(parts.len() == 1, is_whole, "{talk:?} {kind}: {} parts", parts.len());
        }
    }
    assert_eq!(scene.lane.refused(), 0, "there is room for all");
    scene.close(host);
    Ok(())
}

/// What is said of a packet need not be true. The kernel refuses it, or nothing arrives, or what does is of
/// the conversation that was judged.
pub(super) fn lies(host: &mut Host) -> Result<(), Failed> {
    let mut scene = Scene::new(host)?;
    let mut refused = 0;
    for talk in [TO_OFFLOADING, TO_PLAIN].into_iter().flat_map(Talk::all) {
        let frame = talk.frame(&data()[..3_000]);
        let truth = talk.frame(b"the truth");
        for header in doubtful(talk, frame.len() as u16) {
            for lie in [frame.clone(), build::partial(frame.clone())] {
                refused += usize::from(!scene.send(header, &lie));
                // If that went to the switch, what follows it does not wait.
                scene.lane.let_go();
                assert!(scene.send([0; HEADER], &truth));
                let is_over = |came: &[Vec<u8>]| came.contains(&truth);
                for came in scene.receive(host, talk.from, is_over)? {
                    // The kernel speaks for itself at taps, too.
                    let is_judged =
                        came.get(6..12) != Some(&guest().0) || talk.data_of(&came).is_some();
                    assert!(is_judged, "{talk:?} {header:?}: {came:?}");
                }
                scene.take_misses(host);
            }
        }
    }
    assert_ne!(refused, 0, "the kernel believes everything");
    scene.close(host);
    Ok(())
}

/// Headers for a frame of so many bytes, hardly any of which is true.
fn doubtful(talk: Talk, whole: u16) -> Vec<[u8; HEADER]> {
    let [transport, data, checksum] = talk.places();
    let numbers = [
        // Only the kind is wrong, or pieces are of nothing, of less than a header, of more than there is.
        [data, PIECE, transport, checksum],
        [data, 0, transport, checksum],
        [data, 7, transport, checksum],
        [data, u16::MAX, transport, checksum],
        // Headers of no length, of all there is, of more.
        [0, PIECE, transport, checksum],
        [whole, PIECE, transport, checksum],
        [whole + 1, PIECE, transport, checksum],
        [u16::MAX, PIECE, transport, checksum],
        // A checksum of Ethernet, of IP, in a port, in flags or data, beyond the end.
        [data, PIECE, 0, 0],
        [data, PIECE, 14, 10],
        [data, PIECE, transport, 2],
        [data, PIECE, transport, 12],
        [data, PIECE, data, 0],
        [data, PIECE, whole - 1, 0],
        [data, PIECE, whole, checksum],
        [data, PIECE, transport, u16::MAX],
        [data, PIECE, u16::MAX, u16::MAX],
    ];
    let kinds = [0, TCP_V4, 2, UDP_FRAGMENTS, TCP_V6, UDP, 7, TCP_V4 | ECN, UDP | ECN, ECN];
    let said = kinds.into_iter().flat_map(|kind| [0, NEEDS_CSUM].map(|flags| [flags, kind]));
    said.flat_map(|said| numbers.map(|numbers| header_of(said, numbers))).collect()
}
