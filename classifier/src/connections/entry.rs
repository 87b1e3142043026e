//! One connection as it lies in memory: three parts, by how often they are touched.
//!
//! A lookup needs [`Identity`] alone, which is one cache line. A frame that passes reads and writes
//! [`Activity`], another one. [`Record`] is for what happens less often than by the frame. So who allowed a connection
//! stands with its counters.

use super::key::{FrameKey, Key, SPARE, TURNED, Upper, has_upper};
use super::tcp::{Segment, Step, Tcp, TcpState, Windows};
use super::timers::{Class, Stamp};
use super::{Commit, ConnectionId, ConnectionInfo, Credit, Hit, Side, Stage};
use crate::extract::Headers;
use crate::key::FlowKey;
use crate::mac::MacAddr;
use crate::snapshot::{PortId, RuleId};
use crate::time::Nanos;
use crate::verdict::{Cause, DropReason};
use crate::wire::ethernet::ether_type;
use crate::wire::protocol;

/// No entry: the end of a list.
pub(super) const NIL: u32 = u32::MAX;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The slot holds no connection.
    Free,
    /// UDP, the original side only.
    UdpSingle,
    /// UDP, both sides.
    UdpBoth,
    /// An ICMP or ICMPv6 query.
    Icmp,
    /// Any other protocol, the original side only.
    OtherSingle,
    /// Any other protocol, both sides.
    OtherBoth,
    /// TCP.
    Tcp(TcpState),
}

impl State {
    /// States that are not TCP's.
    const BEFORE_TCP: u8 = 6;

    /// All, in the order of their codes.
    pub(super) const ALL: [Self; 17] = [
        Self::Free,
        Self::UdpSingle,
        Self::UdpBoth,
        Self::Icmp,
        Self::OtherSingle,
        Self::OtherBoth,
        Self::Tcp(TcpState::SynSent),
        Self::Tcp(TcpState::SynReceived),
        Self::Tcp(TcpState::SynCrossed),
        Self::Tcp(TcpState::SynCrossedOriginal),
        Self::Tcp(TcpState::SynCrossedReply),
        Self::Tcp(TcpState::Established),
        Self::Tcp(TcpState::FinOriginal),
        Self::Tcp(TcpState::FinReply),
        Self::Tcp(TcpState::Closing),
        Self::Tcp(TcpState::TimeWait),
        Self::Tcp(TcpState::Reset),
    ];

    /// Codes are below this power of two.
    pub(super) const CODES: usize = 32;

    /// The bit of a code that says TCP.
    const OF_TCP: u8 = 0x10;

    /// Five bits that stand for it.
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Free => 0,
            Self::UdpSingle => 1,
            Self::UdpBoth => 2,
            Self::Icmp => 3,
            Self::OtherSingle => 4,
            Self::OtherBoth => 5,
            Self::Tcp(state) => Self::OF_TCP | state as u8,
        }
    }

    /// The bits that the key leaves, all but [`TURNED`].
    const fn bits(self) -> u64 {
        let free = if matches!(self, Self::Free) { FREE } else { 0 };
        (self.code() as u64) << SPARE | free
    }

    /// The state of a code, free for what is none.
    pub(super) fn of_code(code: u8) -> Self {
        let gap = if code & Self::OF_TCP == 0 { 0 } else { Self::OF_TCP - Self::BEFORE_TCP };
        Self::ALL.get(usize::from(code - gap)).copied().unwrap_or(Self::Free)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::UdpSingle | Self::OtherSingle => "single",
            Self::UdpBoth | Self::OtherBoth => "both",
            Self::Icmp => "query",
            Self::Tcp(state) => state.name(),
        }
    }

    /// How far it is, if it is known what of it passes: UDP, ICMP queries, and TCP from the SYN on.
    pub(super) const fn stage(self) -> Option<Stage> {
        match self {
            Self::Tcp(TcpState::SynSent) => Some(Stage::Asked),
            Self::Tcp(TcpState::SynReceived) => Some(Stage::Opening),
            Self::UdpSingle
            | Self::UdpBoth
            | Self::Icmp
            | Self::Tcp(TcpState::Established | TcpState::FinOriginal | TcpState::FinReply) => {
                Some(Stage::Open)
            }
            Self::Tcp(TcpState::Closing | TcpState::TimeWait) => Some(Stage::Closing),
            _ => None,
        }
    }

    /// The state once plain frames are all that is to come, of one side or of both.
    pub(super) const fn as_established(self, both: bool) -> Self {
        match self {
            Self::UdpSingle if both => Self::UdpBoth,
            Self::OtherSingle if both => Self::OtherBoth,
            Self::Tcp(_) => Self::Tcp(TcpState::Established),
            _ => self,
        }
    }

    /// The timeout that holds in this state.
    pub(super) const fn class(self) -> Class {
        match self {
            Self::UdpSingle => Class::UdpSingle,
            Self::UdpBoth => Class::UdpBoth,
            Self::Icmp => Class::Icmp,
            Self::OtherSingle => Class::OtherSingle,
            Self::Free | Self::OtherBoth => Class::OtherBoth,
            Self::Tcp(state) => match state {
                TcpState::Established => Class::TcpEstablished,
                TcpState::FinOriginal | TcpState::FinReply | TcpState::Closing => Class::TcpClosing,
                TcpState::TimeWait => Class::TcpTimeWait,
                TcpState::Reset => Class::TcpReset,
                TcpState::SynSent
                | TcpState::SynReceived
                | TcpState::SynCrossed
                | TcpState::SynCrossedOriginal
                | TcpState::SynCrossedReply => Class::TcpHandshake,
            },
        }
    }
}

/// Who allowed a connection, in four bytes. Rules are fewer than 2³¹ − 2.
#[derive(Clone, Copy)]
struct Grant(u32);

impl Grant {
    /// It lives only because of learn or audit mode: its [`Record`] knows what it would have been dropped for.
    const ON_TRIAL: u32 = 1 << 31;
    const DEFAULT: u32 = Self::ON_TRIAL - 1;
    const SWITCH: u32 = Self::ON_TRIAL - 2;

    const fn of(commit: &Commit) -> Self {
        let cause = match commit.cause {
            Cause::Rule(RuleId(id)) => id,
            Cause::Default => Self::DEFAULT,
            Cause::Switch => Self::SWITCH,
        };
        Self(if commit.would_drop.is_some() { cause | Self::ON_TRIAL } else { cause })
    }

    const fn cause(self) -> Cause {
        match self.0 & !Self::ON_TRIAL {
            Self::DEFAULT => Cause::Default,
            Self::SWITCH => Cause::Switch,
            id => Cause::Rule(RuleId(id)),
        }
    }

    const fn is_on_trial(self) -> bool {
        self.0 & Self::ON_TRIAL != 0
    }
}

/// Frames of the original and of the reply side: 48 bits each, which ten million a second fill in 325 days.
#[derive(Clone, Copy)]
struct Frames {
    low: [u32; 2],
    high: [u16; 2],
}

impl Frames {
    const MOST: u64 = (1 << 48) - 1;

    fn new(frames: [u64; 2]) -> Self {
        let frames = frames.map(|count| count.min(Self::MOST));
        Self {
            low: frames.map(|count| count as u32),
            high: frames.map(|count| (count >> 32) as u16),
        }
    }

    const fn of(self, side: Side) -> u64 {
        (self.high[side as usize] as u64) << 32 | self.low[side as usize] as u64
    }

    const fn both(self) -> [u64; 2] {
        [self.of(Side::Original), self.of(Side::Reply)]
    }

    #[inline]
    fn add(&mut self, side: Side, frames: u64) {
        let low = &mut self.low[side as usize];
        let sum = u64::from(*low).saturating_add(frames);
        *low = sum as u32;
        if sum > u32::MAX.into() {
            self.carry(side, sum >> 32);
        }
    }

    #[cold]
    fn carry(&mut self, side: Side, carried: u64) {
        let high = &mut self.high[side as usize];
        match u16::try_from(u64::from(*high) + carried) {
            Ok(sum) => *high = sum,
            Err(_) => (*high, self.low[side as usize]) = (u16::MAX, u32::MAX),
        }
    }
}

/// A MAC address and the port it is behind, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Station(u64);

impl Station {
    #[inline]
    const fn new(mac: MacAddr, port: PortId) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        let [g, h] = port.0.to_le_bytes();
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    const fn mac(self) -> MacAddr {
        let [a, b, c, d, e, f, ..] = self.0.to_le_bytes();
        MacAddr([a, b, c, d, e, f])
    }

    const fn port(self) -> PortId {
        PortId((self.0 >> 48) as u16)
    }

    /// Whether both have one address, behind whatever ports.
    #[inline]
    const fn has_mac_of(self, other: Self) -> bool {
        (self.0 ^ other.0) << 16 == 0
    }
}

/// What a frame is compared with: one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Identity {
    /// The first frame's [`FrameKey::endpoints`], and in bits that these leave: [`CODE`], [`FREE`].
    endpoints: [u64; 2],
    /// [`Key::upper`], if the endpoints say that there is one.
    upper: Upper,
    /// The original and the reply side.
    stations: [Station; 2],
    /// The lower half of the verdict's epoch. No connection sleeps through 2³² policies.
    epoch: u32,
    /// When a frame last kept it alive.
    last: Stamp,
}

/// The [state's code](State::code).
const CODE: u64 = 0x1f << SPARE;

/// The slot holds no connection, and so it has no frame's key.
const FREE: u64 = 0x40 << SPARE;

/// Endpoints that no connection has.
pub(super) const NOBODYS: [u64; 2] = [0, FREE];

/// What every frame that passes changes, and what is said of it: one cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Activity {
    bytes: [u64; 2],
    frames: Frames,
    grant: Grant,
    tcp: Tcp,
}

/// What else is known.
#[derive(Clone, Copy)]
pub(super) struct Record {
    /// Neighbours in its list, or the next free slot.
    pub(super) previous: u32,
    pub(super) next: u32,
    /// When it began, in seconds.
    since: u32,
    /// Set if the [`Grant`] is on trial.
    would_drop: Option<DropReason>,
    /// The first frame's TCP flags: rules may have asked for them.
    tcp_flags: u8,
}

/// One connection: 64, 64 and 16 bytes.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) identity: Identity,
    pub(super) activity: Activity,
    pub(super) record: Record,
}

impl Entry {
    /// What lies in a slot that was never in use.
    pub(super) fn free() -> Self {
        let identity = Identity {
            endpoints: NOBODYS,
            upper: [0; 3],
            stations: [Station::new(MacAddr::ZERO, PortId(0)); 2],
            epoch: 0,
            last: Stamp::of(Nanos(0)),
        };
        let record = Record { previous: NIL, next: NIL, since: 0, would_drop: None, tcp_flags: 0 };
        let (frames, grant) = (Frames::new([0; 2]), Grant(Grant::DEFAULT));
        let activity = Activity { bytes: [0; 2], frames, grant, tcp: Tcp::default() };
        Self { identity, activity, record }
    }

    /// A connection begun by a frame of `bytes` bytes.
    pub(super) fn begin(
        frame: FrameKey,
        headers: &Headers,
        commit: &Commit,
        bytes: usize,
        now: Nanos,
        windows: Windows,
    ) -> Self {
        let (tcp, state) = match frame.key.protocol() {
            protocol::TCP => {
                let (tcp, state) = Tcp::begin(&Segment::of(headers), windows);
                (tcp, State::Tcp(state))
            }
            protocol::UDP => (Tcp::default(), State::UdpSingle),
            protocol::ICMP | protocol::ICMPV6 => (Tcp::default(), State::Icmp),
            _ => (Tcp::default(), State::OtherSingle),
        };
        let [first, second] = frame.endpoints();
        let identity = Identity {
            endpoints: [first, second | state.bits()],
            upper: frame.key.upper.unwrap_or_default(),
            stations: [
                Station::new(headers.key.eth_src, headers.key.ingress),
                Station::new(commit.reply_mac, commit.output),
            ],
            epoch: commit.epoch as u32,
            last: Stamp::of(now),
        };
        let record = Record {
            previous: NIL,
            next: NIL,
            since: (now.0 / Nanos::from_secs(1).0).try_into().unwrap_or(u32::MAX),
            would_drop: commit.would_drop,
            tcp_flags: headers.key.tcp_flags,
        };
        let (frames, grant) = (Frames::new([1, 0]), Grant::of(commit));
        let activity = Activity { bytes: [bytes as u64, 0], frames, grant, tcp };
        Self { identity, activity, record }
    }

    /// The flow key of its first frame.
    pub(super) fn original(&self) -> FlowKey {
        let identity = &self.identity;
        let key = identity.key();
        let direction = key.direction(identity.turned());
        let [from, to] = identity.stations;
        FlowKey {
            ingress: from.port(),
            vlan: key.vlan(),
            ether_type: if key.upper.is_some() { ether_type::IPV6 } else { ether_type::IPV4 },
            protocol: key.protocol(),
            tcp_flags: self.record.tcp_flags,
            eth_dst: to.mac(),
            eth_src: from.mac(),
            src: direction.src,
            dst: direction.dst,
            src_port: direction.src_port,
            dst_port: direction.dst_port,
        }
    }

    /// What there is to tell of it. `epoch` is any that is not before its own.
    pub(super) fn info(&self, epoch: u64, now: Nanos) -> ConnectionInfo {
        let [_, replier] = self.identity.stations;
        ConnectionInfo {
            original: self.original(),
            output: replier.port(),
            state: self.identity.state().name(),
            stage: self.identity.state().stage(),
            cause: self.activity.cause(),
            would_drop: self.record.would_drop,
            epoch: epoch.saturating_sub((epoch as u32).wrapping_sub(self.identity.epoch).into()),
            frames: self.activity.frames(),
            bytes: self.activity.bytes,
            since: Nanos::from_secs(self.record.since.into()),
            last: self.identity.last.before(now),
        }
    }
}

impl Identity {
    pub(super) const fn is_free(&self) -> bool {
        self.code() == State::Free.code()
    }

    /// Whether this is the entry of a key, or of a frame's. `upper` counts only if the endpoints say that
    /// there is one. A free slot has no key.
    #[inline]
    pub(super) fn has_key(&self, [first, second]: [u64; 2], upper: &Upper) -> bool {
        let [own_first, own_second] = self.endpoints;
        own_first == first
            && (own_second ^ second) & !(CODE | TURNED) == 0
            && (!has_upper(self.endpoints) || self.upper == *upper)
    }

    pub(super) fn key(&self) -> Key {
        let [first, second] = self.endpoints;
        let upper = has_upper(self.endpoints).then_some(self.upper);
        Key { endpoints: [first, second & !(CODE | FREE | TURNED)], upper }
    }

    #[inline]
    pub(super) const fn is_tcp(&self) -> bool {
        self.code() & State::OF_TCP != 0
    }

    pub(super) fn state(&self) -> State {
        State::of_code(self.code())
    }

    pub(super) const fn set_state(&mut self, state: State) {
        let [_, second] = &mut self.endpoints;
        *second = *second & !(CODE | FREE) | state.bits();
    }

    /// The state's code: five bits.
    #[inline]
    pub(super) const fn code(&self) -> u8 {
        let [_, second] = self.endpoints;
        ((second & CODE) >> SPARE) as u8
    }

    #[inline]
    const fn turned(&self) -> bool {
        let [_, second] = self.endpoints;
        second & TURNED != 0
    }

    pub(super) const fn last(&self) -> Stamp {
        self.last
    }

    pub(super) const fn set_last(&mut self, last: Stamp) {
        self.last = last;
    }

    /// The port of the original side, which the connection is charged to.
    pub(super) const fn payer(&self) -> PortId {
        let [original, _] = self.stations;
        original.port()
    }

    /// The side that a frame with these [endpoints](FrameKey::endpoints) is from.
    #[inline]
    pub(super) const fn side(&self, [_, second]: [u64; 2]) -> Side {
        let [_, own_second] = self.endpoints;
        if (own_second ^ second) & TURNED == 0 { Side::Original } else { Side::Reply }
    }

    /// Whether a frame of `side` comes by that side's port and between the two MAC addresses.
    #[inline]
    pub(super) fn binds(&self, side: Side, key: &FlowKey) -> bool {
        let from = Station::new(key.eth_src, key.ingress);
        // What stands behind the address in memory, so that one load gets both.
        let to = Station::new(key.eth_dst, PortId(key.vlan));
        self.station(side) == from && self.station(side.other()).has_mac_of(to)
    }

    /// Puts it under another verdict.
    pub(super) const fn renew(&mut self, commit: &Commit) {
        let [_, replier] = &mut self.stations;
        *replier = Station::new(commit.reply_mac, commit.output);
        self.epoch = commit.epoch as u32;
    }

    pub(super) const fn is_of_epoch(&self, epoch: u64) -> bool {
        self.epoch == epoch as u32
    }

    #[inline]
    pub(super) const fn hit(&self, id: u32, side: Side) -> Hit {
        Hit { id: ConnectionId(id), side, output: self.station(side.other()).port() }
    }

    #[inline]
    const fn station(&self, side: Side) -> Station {
        self.stations[side as usize]
    }
}

impl Activity {
    /// Makes it that of a connection that was followed elsewhere until now, of which so many frames are
    /// known.
    pub(super) fn set_unseen(&mut self, frames: [u64; 2]) {
        *self = Self {
            frames: Frames::new(frames),
            bytes: [0; 2],
            tcp: Tcp::unseen(),
            grant: self.grant,
        };
    }

    /// Frames of the original and of the reply side.
    pub(super) const fn frames(&self) -> [u64; 2] {
        self.frames.both()
    }

    /// Who allowed it.
    #[inline]
    pub(super) const fn cause(&self) -> Cause {
        self.grant.cause()
    }

    /// Whether it lives only because of learn or audit mode.
    #[inline]
    pub(super) const fn is_on_trial(&self) -> bool {
        self.grant.is_on_trial()
    }

    /// Puts it under another verdict.
    pub(super) const fn renew(&mut self, commit: &Commit) {
        self.grant = Grant::of(commit);
    }

    /// Of half-open TCP: what acknowledges the original side's SYN, and no data of it.
    pub(super) const fn answer(&self) -> u32 {
        self.tcp.answer()
    }

    /// Of half-open TCP: whether the SYN's data was taken.
    pub(super) const fn has_taken_syn_data(&self) -> bool {
        self.tcp.has_taken_syn_data()
    }

    /// Counts what one side sent past this table, and follows its numbers. Returns the state that this
    /// keeps alive, or `None` if it keeps nothing alive.
    pub(super) fn credit(&mut self, state: State, side: Side, credit: &Credit) -> Option<State> {
        self.frames.add(side, credit.frames);
        let bytes = &mut self.bytes[side as usize];
        *bytes = bytes.saturating_add(credit.bytes);
        match (state, &credit.tcp) {
            (State::Tcp(state), Some(sent)) => {
                self.tcp.catch_up(state, side, sent, credit.bytes).map(State::Tcp)
            }
            _ => Some(state),
        }
    }

    /// What a TCP segment of `side` would do in this state.
    pub(super) fn judge(
        &self,
        state: TcpState,
        side: Side,
        headers: &Headers,
        windows: Windows,
    ) -> Step {
        self.tcp.judge(state, side, &Segment::of(headers), windows)
    }

    /// Whether a TCP segment of `side` that begins at `seq` may be on its way.
    pub(super) fn may_be_under_way(&self, state: TcpState, side: Side, seq: u32) -> bool {
        self.tcp.may_be_under_way(state, side, seq)
    }

    /// Counts a frame and follows what it says. Returns the state that the frame keeps alive, or
    /// `None` if it keeps nothing alive.
    pub(super) fn observe(
        &mut self,
        state: State,
        side: Side,
        headers: &Headers,
        bytes: usize,
        windows: Windows,
    ) -> Option<State> {
        self.frames.add(side, 1);
        let total = &mut self.bytes[side as usize];
        *total = total.saturating_add(bytes as u64);
        match state {
            State::Tcp(state) => {
                match self.tcp.observe(state, side, &Segment::of(headers), windows) {
                    Step::To(state) => Some(State::Tcp(state)),
                    _ => None,
                }
            }
            State::UdpSingle if side == Side::Reply => Some(State::UdpBoth),
            State::OtherSingle if side == Side::Reply => Some(State::OtherBoth),
            state => Some(state),
        }
    }
}

impl Record {
    /// Puts it under another verdict.
    pub(super) const fn renew(&mut self, commit: &Commit) {
        self.would_drop = commit.would_drop;
    }

    /// What it would have been dropped for, if it [is on trial](Activity::is_on_trial).
    pub(super) const fn would_drop(&self) -> Option<DropReason> {
        self.would_drop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_to_their_sizes() {
        assert_eq!(
            (size_of::<Identity>(), size_of::<Activity>(), size_of::<Record>()),
            (64, 64, 16)
        );
    }

    #[test]
    fn frames_are_counted_by_side_and_no_further_than_there_is_room() {
        let mut frames = Frames::new([u64::from(u32::MAX), 0]);
        frames.add(Side::Original, 1);
        frames.add(Side::Reply, 2);
        assert_eq!(frames.both(), [1 << 32, 2]);
        frames.add(Side::Reply, u64::MAX);
        assert_eq!(frames.both(), [1 << 32, Frames::MOST]);
    }

    #[test]
    fn a_grant_says_who_allowed_it_and_whether_it_is_on_trial() {
        for cause in [Cause::Default, Cause::Switch, Cause::Rule(RuleId(0)), Cause::Rule(RuleId(7))]
        {
            for would_drop in [None, Some(DropReason::Denied)] {
                let (output, reply_mac) = (PortId(1), MacAddr::ZERO);
                let commit = Commit { output, reply_mac, cause, would_drop, epoch: 1 };
                let grant = Grant::of(&commit);
                assert_eq!((grant.cause(), grant.is_on_trial()), (cause, would_drop.is_some()));
            }
        }
    }

    #[test]
    fn codes_number_the_states() {
        for (code, state) in State::ALL.into_iter().enumerate() {
            let is_tcp = matches!(state, State::Tcp(_));
            assert_eq!(code >= usize::from(State::BEFORE_TCP), is_tcp);
            assert_eq!(state.code() & State::OF_TCP != 0, is_tcp);
            assert_eq!(State::of_code(state.code()), state);
            assert!(usize::from(state.code()) < State::CODES);
        }
    }
}
