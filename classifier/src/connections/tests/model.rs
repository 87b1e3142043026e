//! The table against a list that is searched from end to end, over random operations in time.
//!
//! The list shares nothing with the table but the TCP machine, which has its own table of answers.
//! What the table removes on its own is not predicted, it is held against the rules: only what has
//! timed out may expire, and an evicted connection must be the right class's least recently used.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::connections::tcp::Tcp;
use crate::connections::timers::tick;
use crate::connections::{entry::State, tcp::TcpState};

/// A connection as the list has it.
#[derive(Clone, Copy, Debug)]
struct Known {
    original: FlowKey,
    commit: Commit,
    tcp: Tcp,
    state: State,
    frames: [u64; 2],
    last: Nanos,
}

impl Known {
    fn begin(headers: &Headers, commit: Commit, now: Nanos) -> Self {
        let mut original = headers.key;
        let (tcp, state) = match original.protocol {
            protocol::TCP => {
                let (tcp, state) = Tcp::begin(&Segment::of(headers));
                (tcp, State::Tcp(state))
            }
            protocol::UDP => (Tcp::default(), State::UdpSingle),
            protocol::ICMP => (Tcp::default(), State::Icmp),
            _ => {
                (original.src_port, original.dst_port) = (0, 0);
                (Tcp::default(), State::OtherSingle)
            }
        };
        Self { original, commit, tcp, state, frames: [1, 0], last: now }
    }

    /// The side a frame is from, by addresses and ports alone.
    fn side(&self, key: &FlowKey) -> Option<Side> {
        let own = &self.original;
        if (own.vlan, own.protocol) != (key.vlan, key.protocol) {
            return None;
        }
        let same = (own.src, own.dst) == (key.src, key.dst);
        let reversed = (own.src, own.dst) == (key.dst, key.src);
        let (same_ports, reversed_ports) = match key.protocol {
            protocol::TCP | protocol::UDP => (
                (own.src_port, own.dst_port) == (key.src_port, key.dst_port),
                (own.src_port, own.dst_port) == (key.dst_port, key.src_port),
            ),
            protocol::ICMP => {
                let same_id = own.src_port == key.src_port;
                (same_id && key.dst_port == 8 << 8, same_id && key.dst_port == 0)
            }
            _ => (true, true),
        };
        match () {
            () if same && same_ports => Some(Side::Original),
            () if reversed && reversed_ports => Some(Side::Reply),
            () => None,
        }
    }

    fn binds(&self, side: Side, key: &FlowKey) -> bool {
        let (own, commit) = (&self.original, &self.commit);
        let ends = [(own.ingress, own.eth_src), (commit.output, commit.reply_mac)];
        let (from, to) = (ends[side as usize], ends[side.other() as usize]);
        (key.ingress, key.eth_src) == from && key.eth_dst == to.1
    }

    fn timeout(&self) -> Nanos {
        let secs = match self.state {
            State::Free => unreachable!(),
            State::UdpSingle => TIMEOUTS.udp_single,
            State::UdpBoth => TIMEOUTS.udp_both,
            State::Icmp => TIMEOUTS.icmp,
            State::OtherSingle | State::OtherBoth => TIMEOUTS.other,
            State::Tcp(TcpState::Established) => TIMEOUTS.tcp_established,
            State::Tcp(TcpState::TimeWait) => TIMEOUTS.tcp_time_wait,
            State::Tcp(TcpState::Reset) => TIMEOUTS.tcp_reset,
            State::Tcp(state) if state.is_half_open() => TIMEOUTS.tcp_handshake,
            State::Tcp(_) => TIMEOUTS.tcp_closing,
        };
        secs_of(secs)
    }

    fn has_expired(&self, now: Nanos) -> bool {
        self.last.plus(self.timeout().0) <= now
    }

    /// Who gives way first when the table is full. `None`: never.
    fn eviction_rank(&self) -> Option<u8> {
        match self.state {
            State::Tcp(state) if state.is_half_open() => Some(0),
            State::UdpSingle => Some(1),
            State::OtherSingle => Some(2),
            State::Icmp => Some(3),
            State::Tcp(TcpState::Reset) => Some(4),
            State::Tcp(TcpState::TimeWait) => Some(5),
            State::Tcp(TcpState::Established) => None,
            State::Tcp(_) => Some(6),
            State::Free | State::UdpBoth | State::OtherBoth => None,
        }
    }

    fn lookup(&self, headers: &Headers, epoch: u64, id: ConnectionId) -> Lookup {
        let Some(side) = self.side(&headers.key) else { return Lookup::Miss };
        if !self.binds(side, &headers.key) {
            return Lookup::Miss;
        }
        if let State::Tcp(state) = self.state {
            match self.tcp.judge(state, side, &Segment::of(headers)) {
                Step::Invalid => return Lookup::Invalid(DropReason::TcpState),
                Step::Anew => return Lookup::Miss,
                Step::To(_) | Step::Aside => {}
            }
        }
        let output = match side {
            Side::Original => self.commit.output,
            Side::Reply => self.original.ingress,
        };
        let Commit { cause, would_drop, .. } = self.commit;
        let hit = Hit { id, side, output, cause, would_drop };
        if self.commit.epoch == epoch { Lookup::Current(hit) } else { Lookup::Stale(hit) }
    }

    fn observe(&mut self, side: Side, headers: &Headers, now: Nanos) {
        self.frames[side as usize] += 1;
        match self.state {
            State::Tcp(state) => {
                let step = self.tcp.observe(state, side, &Segment::of(headers));
                let Step::To(state) = step else { return };
                self.state = State::Tcp(state);
            }
            State::UdpSingle if side == Side::Reply => self.state = State::UdpBoth,
            State::OtherSingle if side == Side::Reply => self.state = State::OtherBoth,
            _ => {}
        }
        self.last = now;
    }
}

fn secs_of(secs: u32) -> Nanos {
    Nanos::from_secs(u64::from(secs))
}

/// The table and the list side by side.
struct Twins {
    table: Connections,
    list: Vec<Known>,
    max: u32,
    epoch: u64,
    now: Nanos,
    /// The last few frames, with the hints of the time when they came.
    hinted: VecDeque<(Headers, Hint)>,
}

#[derive(Clone, Debug)]
enum Op {
    /// A frame comes by; if it is stale, it is allowed again or not.
    Frame(Box<Headers>, bool),
    Wait(u64),
    Expire(usize),
    Bound(u32),
    NewEpoch,
}

impl Twins {
    fn run(&mut self, op: &Op) {
        match op {
            Op::Frame(headers, allowed) => self.frame(headers, *allowed),
            Op::Wait(nanos) => self.now = self.now.plus(*nanos),
            Op::Expire(limit) => self.expire(*limit),
            Op::Bound(max) => {
                self.max = *max;
                self.table.configure(*max, TIMEOUTS);
            }
            Op::NewEpoch => self.epoch += 1,
        }
        self.compare();
    }

    fn frame(&mut self, headers: &Headers, allowed: bool) {
        let (epoch, now) = (self.epoch, self.now);
        self.take_hint(headers);
        let found = self.table.lookup(headers, epoch, now);
        let id = match found {
            Lookup::Current(hit) | Lookup::Stale(hit) => hit.id,
            _ => ConnectionId::NONE,
        };
        let live =
            |known: &&mut Known| known.side(&headers.key).is_some() && !known.has_expired(now);
        let known = self.list.iter_mut().find(live);
        let expected = known.as_ref().map_or(Lookup::Miss, |k| k.lookup(headers, epoch, id));
        assert_eq!(found, expected, "{headers:?}");
        match (found, known) {
            (Lookup::Current(hit), Some(known)) => {
                self.table.observe(&hit, headers, 60, now);
                known.observe(hit.side, headers, now);
            }
            (Lookup::Stale(hit), Some(known)) if allowed => {
                let commit = Commit { epoch, ..known.commit };
                self.table.refresh(hit.id, commit);
                known.commit = commit;
                self.table.observe(&hit, headers, 60, now);
                known.observe(hit.side, headers, now);
            }
            (Lookup::Stale(hit), Some(_)) => {
                let original = self.table.original(hit.id);
                self.table.remove(hit.id);
                self.list.retain(|known| Some(known.original) != original);
            }
            (Lookup::Miss, _) if allowed && Connections::may_begin(headers, false) => {
                self.commit(headers);
            }
            _ => {}
        }
    }

    fn take_hint(&mut self, headers: &Headers) {
        let mut hints = Hints::new();
        self.table.prepare([headers], &mut hints);
        self.hinted.push_front((*headers, *hints.get(0).unwrap()));
        self.hinted.truncate(8);
    }

    /// Old hints change nothing.
    fn try_hints(&self) {
        for (headers, hint) in &self.hinted {
            let hinted = self.table.lookup_hinted(headers, hint, self.epoch, self.now);
            assert_eq!(hinted, self.table.lookup(headers, self.epoch, self.now));
        }
    }

    fn commit(&mut self, headers: &Headers) {
        let output = (headers.key.dst - (A - 1)) as u16;
        let commit = commit_of(headers, output, self.epoch);
        let replaces = self.list.iter().any(|known| known.side(&headers.key).is_some());
        let evicted = self.table.stats().evicted;
        let result = self.table.commit(headers, commit, 60, self.now);
        if replaces {
            assert!(result.is_ok());
            self.list.retain(|known| known.side(&headers.key).is_none());
        } else {
            let gone = self.take_gone();
            let evicted = self.table.stats().evicted - evicted;
            self.judge_room_made(&gone, evicted, result.is_ok());
        }
        if result.is_ok() {
            self.list.push(Known::begin(headers, commit, self.now));
        }
    }

    /// Whether room was made as it should, of the connections that are `gone`.
    fn judge_room_made(&self, gone: &[Known], evicted: u64, made: bool) {
        let (before, after) = (self.list.len() + gone.len(), self.list.len());
        let max = self.max as usize;
        assert!(before >= max || gone.is_empty());
        assert_eq!(made, after < max);
        let mut victims = gone.iter().filter(|known| !known.has_expired(self.now));
        let Some(victim) = victims.next() else {
            let none_may_go = || self.list.iter().all(|known| known.eviction_rank().is_none());
            assert!(evicted == 0 && (after != max || none_may_go()));
            return;
        };
        assert!(evicted == 1 && victims.next().is_none());
        assert!(after + 1 == max && victim.eviction_rank().is_some());
        let age = |known: &Known| (known.eviction_rank().unwrap_or(u8::MAX), tick(known.last));
        assert!(self.list.iter().all(|known| age(victim) <= age(known)), "{victim:?}");
        self.assert_all_expired_are_recent();
    }

    fn expire(&mut self, limit: usize) {
        let count = self.table.expire(self.now, limit);
        let gone = self.take_gone();
        assert!(gone.len() == count && count <= limit);
        assert!(gone.iter().all(|known| known.has_expired(self.now)));
        if count < limit {
            self.assert_all_expired_are_recent();
        }
    }

    /// What has expired and is still there has done so within a tick.
    fn assert_all_expired_are_recent(&self) {
        let tick = 1 << 30;
        let deadline = |known: &Known| known.last.plus(known.timeout().0 + tick);
        assert!(self.list.iter().all(|known| deadline(known) > self.now));
    }

    /// Takes out of the list what is no longer in the table.
    fn take_gone(&mut self) -> Vec<Known> {
        let kept: Vec<FlowKey> = self.entries().iter().map(|info| info.original).collect();
        let is_gone = |known: &mut Known| !kept.contains(&known.original);
        self.list.extract_if(.., is_gone).collect()
    }

    /// All of the table's entries, expired ones included.
    fn entries(&self) -> Vec<ConnectionInfo> {
        let slots = self.table.table.slab().slots() as u32;
        (0..slots).filter_map(|id| self.table.table.get(id)).map(Entry::info).collect()
    }

    fn compare(&self) {
        self.try_hints();
        self.table.table.check();
        let stats = self.table.stats();
        assert_eq!(stats.created - stats.ended, self.table.len() as u64);
        let entries = self.entries();
        assert_eq!(entries.len(), self.list.len());
        for known in &self.list {
            let is_it = |info: &&ConnectionInfo| info.original == known.original;
            let info = entries.iter().find(is_it).expect("every connection of the list");
            assert_eq!(info.frames, known.frames);
            assert_eq!(info.bytes, known.frames.map(|frames| frames * 60));
            assert_eq!((info.last, info.epoch), (known.last, known.commit.epoch));
        }
        let (page, next) = self.table.list(0, 1_000, self.now);
        let live = self.list.iter().filter(|known| !known.has_expired(self.now)).count();
        assert_eq!((page.len(), next), (live, None));
    }
}

/// Frames among three hosts on few ports, so that they meet each other's connections; some by the
/// wrong port.
fn frames() -> impl Strategy<Value = Headers> {
    let hosts = prop_oneof![Just((1, 2)), Just((2, 1)), Just((1, 3)), Just((3, 1))];
    let ports = prop_oneof![Just((5, 80)), Just((80, 5)), Just((6, 80)), Just((80, 6))];
    let flags = prop_oneof![
        4 => Just(TcpFlags::SYN),
        4 => Just(TcpFlags::SYN | TcpFlags::ACK),
        8 => Just(TcpFlags::ACK),
        4 => Just(TcpFlags::FIN | TcpFlags::ACK),
        1 => Just(TcpFlags::RST),
    ];
    let protocols = prop_oneof![
        6 => Just(protocol::TCP),
        2 => Just(protocol::UDP),
        2 => Just(protocol::ICMP),
        1 => Just(47),
    ];
    let strays = prop_oneof![20 => Just(None), 1 => Just(Some(9))];
    (hosts, ports, flags, protocols, strays, 0..2_u32).prop_map(
        |(hosts, ports, flags, protocol, stray, is_late)| {
            let mut headers = match protocol {
                protocol::ICMP => echo(hosts, ports.0, if ports.0 < ports.1 { 8 } else { 0 }),
                protocol::TCP => tcp(hosts, ports, flags, is_late, is_late),
                _ => frame(protocol, hosts, ports.0, ports.1),
            };
            headers.key.ingress = PortId(stray.unwrap_or(headers.key.ingress.0));
            headers
        },
    )
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        40 => (frames(), prop::bool::weighted(0.9))
            .prop_map(|(headers, allowed)| Op::Frame(Box::new(headers), allowed)),
        6 => (0..2_000_000_000_u64).prop_map(Op::Wait),
        2 => (0..150_000_000_000_u64).prop_map(Op::Wait),
        2 => (0..5_usize).prop_map(Op::Expire),
        1 => (1..12_u32).prop_map(Op::Bound),
        1 => Just(Op::NewEpoch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_table_and_a_list_agree_on_everything(ops in vec(ops(), 1..200), max in 1..12_u32) {
        let hinted = VecDeque::new();
        let mut twins =
            Twins { table: table(max), list: Vec::new(), max, epoch: 1, now: secs(9), hinted };
        for op in &ops {
            twins.run(op);
        }
    }
}
