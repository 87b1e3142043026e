//! One connection as it lies in memory.

use super::key::{FrameKey, Key};
use super::tcp::{Segment, Step, Tcp, TcpState};
use super::timers::Class;
use super::{Commit, ConnectionId, ConnectionInfo, Hit, Side};
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
    const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::UdpSingle | Self::OtherSingle => "single",
            Self::UdpBoth | Self::OtherBoth => "both",
            Self::Icmp => "query",
            Self::Tcp(state) => state.name(),
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

/// A [`Cause`] in four bytes. Rules are fewer than 2³² − 2.
#[derive(Clone, Copy)]
struct PackedCause(u32);

impl PackedCause {
    const DEFAULT: u32 = u32::MAX;
    const SWITCH: u32 = u32::MAX - 1;

    const fn pack(cause: Cause) -> Self {
        match cause {
            Cause::Rule(RuleId(id)) => Self(id),
            Cause::Default => Self(Self::DEFAULT),
            Cause::Switch => Self(Self::SWITCH),
        }
    }

    const fn unpack(self) -> Cause {
        match self.0 {
            Self::DEFAULT => Cause::Default,
            Self::SWITCH => Cause::Switch,
            id => Cause::Rule(RuleId(id)),
        }
    }
}

/// One connection, or a free slot. 152 bytes; `since` is in whole seconds and the ethertype follows
/// from the addresses, to keep it there.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) key: Key,
    epoch: u64,
    /// When a frame last kept it alive.
    pub(super) last: Nanos,
    frames: [u64; 2],
    bytes: [u64; 2],
    tcp: Tcp,
    since_secs: u32,
    /// Neighbours in its timeout class, or the next free slot.
    pub(super) previous: u32,
    pub(super) next: u32,
    cause: PackedCause,
    /// The ports of the original and of the reply side.
    ports: [PortId; 2],
    /// Their MAC addresses.
    macs: [MacAddr; 2],
    pub(super) state: State,
    would_drop: Option<DropReason>,
    /// The first frame's [`FrameKey::turned`].
    turned: bool,
    /// The first frame's TCP flags: rules may have asked for them.
    tcp_flags: u8,
}

impl Entry {
    /// A connection begun by a frame of `bytes` bytes.
    pub(super) fn begin(
        frame: FrameKey,
        headers: &Headers,
        commit: &Commit,
        bytes: usize,
        now: Nanos,
    ) -> Self {
        let (tcp, state) = match frame.key.protocol {
            protocol::TCP => {
                let (tcp, state) = Tcp::begin(&Segment::of(headers));
                (tcp, State::Tcp(state))
            }
            protocol::UDP => (Tcp::default(), State::UdpSingle),
            protocol::ICMP | protocol::ICMPV6 => (Tcp::default(), State::Icmp),
            _ => (Tcp::default(), State::OtherSingle),
        };
        Self {
            key: frame.key,
            epoch: commit.epoch,
            last: now,
            frames: [1, 0],
            bytes: [bytes as u64, 0],
            tcp,
            since_secs: (now.0 / Nanos::from_secs(1).0).try_into().unwrap_or(u32::MAX),
            previous: NIL,
            next: NIL,
            cause: PackedCause::pack(commit.cause),
            ports: [headers.key.ingress, commit.output],
            macs: [headers.key.eth_src, commit.reply_mac],
            state,
            would_drop: commit.would_drop,
            turned: frame.turned,
            tcp_flags: headers.key.tcp_flags,
        }
    }

    pub(super) const fn is_free(&self) -> bool {
        matches!(self.state, State::Free)
    }

    /// The side that a frame turned like this is from.
    pub(super) const fn side(&self, turned: bool) -> Side {
        if turned == self.turned { Side::Original } else { Side::Reply }
    }

    /// Whether a frame of `side` comes by that side's port and between the two MAC addresses.
    pub(super) fn binds(&self, side: Side, key: &FlowKey) -> bool {
        let [original, reply] = self.macs;
        let (src, dst) = match side {
            Side::Original => (original, reply),
            Side::Reply => (reply, original),
        };
        key.ingress == self.port(side) && key.eth_src == src && key.eth_dst == dst
    }

    /// What a TCP segment of `side` would do; `None` for other protocols.
    pub(super) fn judge(&self, side: Side, headers: &Headers) -> Option<Step> {
        match self.state {
            State::Tcp(state) => Some(self.tcp.judge(state, side, &Segment::of(headers))),
            _ => None,
        }
    }

    /// Counts a frame and follows what it says. Returns the state that the frame keeps alive, or
    /// `None` if it keeps nothing alive.
    pub(super) fn observe(&mut self, side: Side, headers: &Headers, bytes: usize) -> Option<State> {
        let [original_frames, reply_frames] = &mut self.frames;
        let [original_bytes, reply_bytes] = &mut self.bytes;
        let (frames, total) = match side {
            Side::Original => (original_frames, original_bytes),
            Side::Reply => (reply_frames, reply_bytes),
        };
        *frames = frames.saturating_add(1);
        *total = total.saturating_add(bytes as u64);
        match self.state {
            State::Tcp(state) => match self.tcp.observe(state, side, &Segment::of(headers)) {
                Step::To(state) => Some(State::Tcp(state)),
                _ => None,
            },
            State::UdpSingle if side == Side::Reply => Some(State::UdpBoth),
            State::OtherSingle if side == Side::Reply => Some(State::OtherBoth),
            state => Some(state),
        }
    }

    /// Puts it under another verdict.
    pub(super) fn renew(&mut self, commit: &Commit) {
        let [_, reply_port] = &mut self.ports;
        *reply_port = commit.output;
        let [_, reply_mac] = &mut self.macs;
        *reply_mac = commit.reply_mac;
        self.cause = PackedCause::pack(commit.cause);
        self.would_drop = commit.would_drop;
        self.epoch = commit.epoch;
    }

    pub(super) const fn is_of_epoch(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }

    pub(super) fn hit(&self, id: u32, side: Side) -> Hit {
        Hit {
            id: ConnectionId(id),
            side,
            output: self.port(side.other()),
            cause: self.cause.unpack(),
            would_drop: self.would_drop,
        }
    }

    pub(super) fn info(&self) -> ConnectionInfo {
        let [_, output] = self.ports;
        ConnectionInfo {
            original: self.original(),
            output,
            state: self.state.name(),
            cause: self.cause.unpack(),
            would_drop: self.would_drop,
            epoch: self.epoch,
            frames: self.frames,
            bytes: self.bytes,
            since: Nanos::from_secs(u64::from(self.since_secs)),
            last: self.last,
        }
    }

    const fn port(&self, side: Side) -> PortId {
        let [original, reply] = self.ports;
        match side {
            Side::Original => original,
            Side::Reply => reply,
        }
    }

    /// The flow key of its first frame. Extraction refuses IPv4-mapped addresses
    /// in IPv6 headers, so an address tells its ethertype.
    pub(super) fn original(&self) -> FlowKey {
        let direction = self.key.direction(self.turned);
        let is_ipv4 = direction.src >> 32 == 0xffff;
        let ([ingress, _], [eth_src, eth_dst]) = (self.ports, self.macs);
        FlowKey {
            ingress,
            vlan: self.key.vlan(),
            ether_type: if is_ipv4 { ether_type::IPV4 } else { ether_type::IPV6 },
            protocol: self.key.protocol,
            tcp_flags: self.tcp_flags,
            eth_dst,
            eth_src,
            src: direction.src,
            dst: direction.dst,
            src_port: direction.src_port,
            dst_port: direction.dst_port,
        }
    }
}
