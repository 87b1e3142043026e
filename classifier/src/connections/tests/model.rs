//! The table against a list that is searched from end to end, over random operations in time.
//!
//! The list shares nothing with the table but the TCP machine, which has its own table of answers.
//! What the table removes on its own is not predicted, it is held against the rules: only what has
//! timed out may expire, and an evicted connection must be the right class's least recently used.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::connections::tcp::TcpState;
use crate::connections::tcp::{Tcp, Windows};
use crate::connections::timers::{Class, tick};

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
                let (tcp, state) = Tcp::begin(&Segment::of(headers), Windows::Checked);
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

    fn timeout(&self) -> u64 {
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
        u64::from(secs) * 1_000_000_000
    }

    /// Whether its silence, in whole stamps, is longer than its timeout.
    fn has_expired(&self, now: Nanos) -> bool {
        self.silence(now) > self.timeout().div_ceil(STAMP)
    }

    fn silence(&self, now: Nanos) -> u64 {
        now.0 / STAMP - self.last.0 / STAMP
    }

    fn payer(&self) -> PortId {
        self.original.ingress
    }

    /// Who gives way first under pressure. `None`: never, or only if silent.
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
            match self.tcp.judge(state, side, &Segment::of(headers), Windows::Checked) {
                Step::Invalid => return Lookup::Invalid(DropReason::TcpState),
                Step::Outside => return Lookup::Invalid(DropReason::TcpWindow),
                Step::Anew => return Lookup::Miss,
                Step::To(_) | Step::Aside => {}
            }
        }
        let output = match side {
            Side::Original => self.commit.output,
            Side::Reply => self.original.ingress,
        };
        let hit = Hit { id, side, output };
        if self.commit.epoch == epoch { Lookup::Current(hit) } else { Lookup::Stale(hit) }
    }

    fn observe(&mut self, side: Side, headers: &Headers, now: Nanos) {
        self.frames[side as usize] += 1;
        match self.state {
            State::Tcp(state) => {
                let step = self.tcp.observe(state, side, &Segment::of(headers), Windows::Checked);
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

/// Nanoseconds in a unit of the table's time.
const STAMP: u64 = 1 << 24;

/// Nanoseconds within which the table keeps no order.
const TICK: u64 = 1 << 30;

fn bounds(connections: u32, per_port: u32) -> Limits {
    Limits { connections, per_port, timeouts: TIMEOUTS, tcp_window_check: true }
}

/// The table and the list side by side.
struct Twins {
    table: Connections,
    list: Vec<Known>,
    limits: Limits,
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
    /// Other bounds: of the table, and of each port.
    Bound(u32, u32),
    NewEpoch,
}

impl Twins {
    fn run(&mut self, op: &Op) {
        match op {
            Op::Frame(headers, allowed) => self.frame(headers, *allowed),
            Op::Wait(nanos) => self.now = self.now.plus(*nanos),
            Op::Expire(limit) => self.expire(*limit),
            Op::Bound(connections, per_port) => {
                self.limits = bounds(*connections, *per_port);
                self.table.configure(self.limits);
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
        self.table.prepare(std::slice::from_ref(headers), &mut hints, |_| ());
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
        let port = headers.key.ingress;
        let is_same = |known: &Known| known.side(&headers.key).is_some();
        let before = self.list.clone();
        let old = self.list.extract_if(.., |known| is_same(known)).next();
        let evicted = self.table.stats().evicted;
        let result = self.table.commit(headers, commit, 60, self.now);
        let evicted = self.table.stats().evicted - evicted;
        let created = Known::begin(headers, commit, self.now);
        let mut gone = self.take_gone();
        if old.is_some_and(|old| old.payer() == port) {
            assert!(result.is_ok() && gone.is_empty());
        } else {
            let held = before.iter().filter(|known| known.payer() == port).count();
            let Limits { connections, per_port, .. } = self.limits;
            let is_under_pressure =
                held >= per_port as usize || before.len() >= connections as usize;
            assert!(is_under_pressure || gone.is_empty());
            // What is taken over may itself have given way, or timed out.
            let went = |old: &Known| match result {
                Ok(_) => old.has_expired(self.now) || gone.is_empty() && evicted > 0,
                Err(_) => !self.has(old),
            };
            let old_went = old.filter(went);
            gone.extend(old_went);
            // Whether what had timed out was counted when room was made cannot be told.
            if old.is_none_or(|old| !old.has_expired(self.now)) {
                self.judge_room_made(port, &before, &gone, evicted, result.map(drop));
            }
        }
        match result {
            Ok(_) => self.list.push(created),
            Err(_) => self.list.extend(old),
        }
        self.take_gone();
    }

    /// Whether room was made for a port as it should, of the connections that are `gone`.
    fn judge_room_made(
        &self,
        port: PortId,
        before: &[Known],
        gone: &[Known],
        evicted: u64,
        result: Result<(), DropReason>,
    ) {
        let Limits { connections, per_port, .. } = self.limits;
        let (max, per_port) = (connections as usize, per_port as usize);
        let held = |list: &[Known]| list.iter().filter(|known| known.payer() == port).count();
        let left =
            || before.iter().filter(|known| !gone.iter().any(|g| g.original == known.original));
        let left: Vec<Known> = left().copied().collect();
        let victims: Vec<Known> =
            gone.iter().copied().filter(|known| !known.has_expired(self.now)).collect();
        assert!(victims.len() <= evicted as usize && evicted <= 1);
        if victims.len() < evicted as usize {
            // What gave way had timed out a moment ago, and there was no telling it from the rest.
            return assert!(!gone.is_empty());
        }
        match result {
            Ok(()) => assert!(held(&left) < per_port && left.len() < max),
            Err(DropReason::PortConnectionsFull) => assert!(held(&left) >= per_port),
            Err(reason) => assert!(reason == DropReason::ConnectionsFull && left.len() >= max),
        }
        // What was there when the search for a victim began.
        let there: Vec<Known> = [left.as_slice(), victims.as_slice()].concat();
        let share_is_full = held(&there) >= per_port;
        let may_evict = match share_is_full {
            true => held(&there) == per_port && there.len() <= max,
            false => there.len() == max,
        };
        if !may_evict {
            return assert!(victims.is_empty());
        }
        let others = if share_is_full { Vec::new() } else { self.ports_above(port, &there) };
        let payers = if others.is_empty() { vec![port] } else { others };
        match victims.first() {
            Some(victim) => {
                assert!(payers.contains(&victim.payer()), "{victim:?} pays for {port}");
                self.assert_goes_first(victim, &there, payers == [port]);
            }
            None => assert!(!there.iter().any(|known| {
                payers.contains(&known.payer())
                    && (known.eviction_rank().is_some()
                        || payers == [port] && self.is_idle(known, 2 * TICK))
            })),
        }
    }

    /// The ports of highest magnitude that hold more than a fair share and have something to give up,
    /// if this port holds less than that.
    fn ports_above(&self, port: PortId, there: &[Known]) -> Vec<PortId> {
        let held = |port| there.iter().filter(|known| known.payer() == port).count() as u32;
        let mut ports: Vec<PortId> = there.iter().map(Known::payer).collect();
        ports.push(port);
        ports.sort_unstable();
        ports.dedup();
        let fair = self.limits.connections / ports.len() as u32;
        if held(port) >= fair {
            return Vec::new();
        }
        let gives = |&port: &PortId| {
            there.iter().any(|known| known.payer() == port && known.eviction_rank().is_some())
        };
        ports.retain(|port| held(*port) > fair && gives(port));
        let highest = ports.iter().map(|&port| held(port).ilog2()).max();
        ports.retain(|&port| Some(held(port).ilog2()) == highest);
        ports
    }

    /// Whether of its payer's connections this one is the first to give way.
    fn assert_goes_first(&self, victim: &Known, there: &[Known], own: bool) {
        let age = |known: &Known| (known.eviction_rank().unwrap_or(u8::MAX), tick(known.last));
        if victim.eviction_rank().is_none() {
            assert!(own && self.is_idle(victim, 0), "{victim:?}");
        }
        let mut rivals = there.iter().filter(|known| {
            known.payer() == victim.payer()
                && (known.eviction_rank().is_some() || known.state.class() == victim.state.class())
        });
        assert!(rivals.all(|known| age(victim) <= age(known)), "{victim:?}");
    }

    /// Whether it is one of those that give way if silent, and has been for two minutes and more.
    fn is_idle(&self, known: &Known, more: u64) -> bool {
        let least = (120_000_000_000_u64 + more).div_ceil(STAMP);
        Class::EVICTABLE_IF_IDLE.contains(&known.state.class()) && known.silence(self.now) > least
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

    /// What has expired and is still there has done so within two ticks.
    fn assert_all_expired_are_recent(&self) {
        let deadline = |known: &Known| known.last.plus(known.timeout() + 2 * TICK + 2 * STAMP);
        assert!(self.list.iter().all(|known| deadline(known) > self.now));
    }

    /// Takes out of the list what is no longer in the table.
    fn take_gone(&mut self) -> Vec<Known> {
        let entries = self.entries();
        let is_gone =
            |known: &mut Known| !entries.iter().any(|info| info.original == known.original);
        self.list.extract_if(.., is_gone).collect()
    }

    fn has(&self, known: &Known) -> bool {
        self.entries().iter().any(|info| info.original == known.original)
    }

    /// All of the table's entries, expired ones included.
    fn entries(&self) -> Vec<ConnectionInfo> {
        let slots = self.table.table.slots() as u32;
        let entries = (0..slots).filter_map(|id| self.table.table.entry(id));
        entries.map(|entry| entry.info(self.epoch, self.now)).collect()
    }

    fn compare(&self) {
        self.try_hints();
        self.table.table.check(self.now);
        let stats = self.table.stats();
        assert_eq!(stats.created - stats.ended, self.table.len() as u64);
        let entries = self.entries();
        assert_eq!(entries.len(), self.list.len());
        for known in &self.list {
            let is_it = |info: &&ConnectionInfo| info.original == known.original;
            let info = entries.iter().find(is_it).expect("every connection of the list");
            assert_eq!(info.frames, known.frames);
            assert_eq!(info.bytes, known.frames.map(|frames| frames * 60));
            let last = Nanos(known.last.0 / STAMP * STAMP);
            assert_eq!((info.last, info.epoch), (last, known.commit.epoch));
            let Commit { cause, would_drop, .. } = known.commit;
            assert_eq!((info.cause, info.would_drop), (cause, would_drop));
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
    (hosts, ports, flags, protocols, strays, prop_oneof![9 => 0..2_u32, 1 => Just(100_000)])
        .prop_map(|(hosts, ports, flags, protocol, stray, is_late)| {
            let mut headers = match protocol {
                protocol::ICMP => echo(hosts, ports.0, if ports.0 < ports.1 { 8 } else { 0 }),
                protocol::TCP => tcp(hosts, ports, flags, is_late, is_late),
                _ => frame(protocol, hosts, ports.0, ports.1),
            };
            headers.key.ingress = PortId(stray.unwrap_or(headers.key.ingress.0));
            headers
        })
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        40 => (frames(), prop::bool::weighted(0.9))
            .prop_map(|(headers, allowed)| Op::Frame(Box::new(headers), allowed)),
        6 => (0..2_000_000_000_u64).prop_map(Op::Wait),
        2 => (0..150_000_000_000_u64).prop_map(Op::Wait),
        2 => (0..5_usize).prop_map(Op::Expire),
        1 => (1..12_u32, 1..8_u32).prop_map(|(max, per_port)| Op::Bound(max, per_port)),
        1 => Just(Op::NewEpoch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_table_and_a_list_agree_on_everything(
        ops in vec(ops(), 1..200),
        max in 1..12_u32,
        per_port in 1..8_u32,
    ) {
        let limits = bounds(max, per_port);
        let hinted = VecDeque::new();
        let mut twins =
            Twins { table: Connections::with_seed(limits, 1), list: Vec::new(), limits, epoch: 1, now: secs(9), hinted };
        for op in &ops {
            twins.run(op);
        }
    }
}
