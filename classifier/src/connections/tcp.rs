//! TCP as seen from the middle: which segments a connection's state permits, and where they move it.
//!
//! The machine is RFC 9293 §3.3.2 seen by a third party, with the duties that RFC 5382 lays on it:
//! simultaneous open (REQ-2), half-close, and timeouts by state (REQ-5). It follows both sides'
//! sequence numbers, to tell a real RST or FIN from a guessed one, and, with [`Windows::Checked`], to
//! refuse what lies outside the windows.
//!
//! Each segment is answered by a [`Step`]:
//!
//! | state | segment | step |
//! |---|---|---|
//! | handshake | SYN again | stays |
//! | handshake | another SYN of the original side | anew |
//! | SYN-SENT | SYN-ACK that acknowledges the SYN, from the reply side | SYN-RECEIVED |
//! | SYN-SENT | SYN of the reply side | SYN-CROSSED (simultaneous open) |
//! | SYN-RECEIVED | ACK or FIN that acknowledges the SYN-ACK | ESTABLISHED or FIN-… |
//! | handshake | ACK without data that completes nothing | aside (RFC 5961 challenge) |
//! | handshake | anything else, data above all | invalid |
//! | ESTABLISHED, FIN-… | ACK, data | stays |
//! | ESTABLISHED | FIN in the window | FIN-…, then CLOSING, then TIME-WAIT |
//! | ESTABLISHED, FIN-… | SYN | aside: the receiver challenges it (RFC 5961 §4) |
//! | ESTABLISHED, FIN-… | SYN-ACK to such a SYN | SYN-RECEIVED: both sides had forgotten |
//! | CLOSING, TIME-WAIT | SYN beyond all that its side has sent | anew: the ports are used again |
//! | CLOSING, TIME-WAIT | another SYN | aside: its receiver knows (RFC 6191 §2) |
//! | CLOSING, TIME-WAIT | SYN-ACK to such a SYN of the original side | SYN-RECEIVED: it was accepted |
//! | RESET | SYN | anew: nobody remembers anything |
//! | all | RST with exactly the next sequence number | RESET |
//! | all | RST elsewhere in the window | aside: the receiver challenges it (RFC 5961 §3) |
//! | all | RST outside the window | invalid |
//! | RESET | ACK, FIN, data | aside: it crossed the RST, or will draw another one |
//!
//! **The window check** is the one that Linux's connection tracking makes. An ACK, FIN or data segment
//! from *S* to *R* that ends before *e* must have (numbers as in RFC 9293 §3.4, modulo 2³²)
//!
//! 1. a sequence number not beyond what *R* ever granted: the highest of its acknowledgements plus the
//!    window that came with it;
//! 2. an end not further back from what *S* has sent than the largest window that *R* ever had, and
//!    the byte by which keep-alives and probes lie behind (RFC 9293 §3.8.4);
//! 3. an acknowledgement not beyond what *R* has sent;
//! 4. an acknowledgement not further back from that than the largest window that *S* ever had, or
//!    66,000 bytes if that is more.
//!
//! Each bound takes the most that a side may know. So retransmissions, probes of a closed window,
//! keep-alives, and data sent before a window shrank pass; largest windows are rounded up to powers
//! of two, and a bound whose numbers are not known (mid-stream) holds nothing up. Windows are scaled
//! by both SYNs' options (RFC 7323 §2.2), or by 14 where the SYNs were not seen.
//! Source: van Rooij, *Real Stateful TCP Packet Filtering in IP Filter*, 2001, §4; Linux,
//! `tcp_in_window` in net/netfilter/nf_conntrack_proto_tcp.c.
//!
//! **A SYN in TIME-WAIT** begins anew if its sequence number is beyond all that its side has sent
//! (RFC 1122 §4.2.2.13). RFC 6191 §2 also accepts one with a later timestamp. Timestamps are not
//! followed here, so any other SYN is forwarded without effect, and the host in TIME-WAIT decides: it
//! answers with a SYN-ACK, which opens the connection again, or with a challenge, after which the
//! asker resets what is left and sends its SYN again. Either way the ports can be used. In CLOSING it
//! is the same, since the last ACK may have been lost behind the switch.
//!
//! **Of a segment in fragments** only the first is seen here, so where it ends is not known: from then
//! on its side may have sent up to 65,535 bytes more than was seen.
//!
//! A SYN over a live connection is never judged anew, because whoever can send through the same
//! router could end connections by it. Without the window check a window is taken as if scaled by 14,
//! the most that RFC 7323 §2.3 permits: too wide a window only forwards what the receiver refuses by
//! itself. Data in a SYN (RFC 7413) passes; a server's data that overtakes the client's ACK does not
//! where windows are checked, and is sent again. Else data, ACKs and FINs pass from the SYN-ACK on,
//! whatever they acknowledge: both hosts have agreed to the connection, and the kernel, which then forwards them
//! by itself, knows no states.

use bitflags::bitflags;

use super::{Sent, Side};
use crate::extract::Headers;
use crate::wire::tcp::TcpFlags;

/// Most bytes of data taken to be in a SYN when only its acknowledgement tells.
const MAX_SYN_DATA: u32 = 0xffff;

/// The scale of a window whose scale is not known (RFC 7323 §2.3).
const WINDOW_SCALE: u8 = 14;

/// Least distance by which an acknowledgement may lag behind what was sent: the largest unscaled
/// window, and some (as Linux has it).
const LEAST_ACK_WINDOW: u32 = 66_000;

/// Most bytes of a segment that stand in fragments not seen here: a packet has no more.
const MAX_UNSEEN: u32 = 0xffff;

/// Whether segments outside the windows are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    Checked,
    Ignored,
}

/// Where a connection stands. The names of RFC 9293 where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TcpState {
    /// The original side's SYN was seen.
    SynSent,
    /// And the reply side's SYN-ACK.
    SynReceived,
    /// Both sides' SYNs were seen, neither acknowledged.
    SynCrossed,
    /// Both SYNs, and the original side's SYN-ACK.
    SynCrossedOriginal,
    /// Both SYNs, and the reply side's SYN-ACK.
    SynCrossedReply,
    /// The handshake is complete.
    Established,
    /// The original side has sent FIN.
    FinOriginal,
    /// The reply side has sent FIN.
    FinReply,
    /// Both have, and one is not acknowledged yet.
    Closing,
    /// Both FINs were acknowledged.
    TimeWait,
    /// A side has sent RST.
    Reset,
}

use TcpState::{
    Closing, Established, FinOriginal, FinReply, Reset, SynCrossed, SynCrossedOriginal,
    SynCrossedReply, SynReceived, SynSent, TimeWait,
};

impl TcpState {
    pub(super) const fn name(self) -> &'static str {
        match self {
            SynSent => "syn-sent",
            SynReceived => "syn-received",
            SynCrossed | SynCrossedOriginal | SynCrossedReply => "syn-crossed",
            Established => "established",
            FinOriginal | FinReply => "half-closed",
            Closing => "closing",
            TimeWait => "time-wait",
            Reset => "reset",
        }
    }

    /// Whether the handshake is not complete yet.
    pub(super) const fn is_half_open(self) -> bool {
        matches!(self, SynSent | SynReceived | SynCrossed | SynCrossedOriginal | SynCrossedReply)
    }

    const fn has_fin(self, side: Side) -> bool {
        match self {
            Closing | TimeWait => true,
            FinOriginal => matches!(side, Side::Original),
            FinReply => matches!(side, Side::Reply),
            _ => false,
        }
    }

    const fn fin(side: Side) -> Self {
        match side {
            Side::Original => FinOriginal,
            Side::Reply => FinReply,
        }
    }
}

/// What a segment does to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is forwarded, keeps the connection alive, and leaves it in this state.
    To(TcpState),
    /// It is forwarded, for its receiver to answer, and changes neither state nor timer.
    Aside,
    /// It begins another connection with the same addresses and ports.
    Anew,
    /// The state does not permit it.
    Invalid,
    /// It lies outside the windows.
    Outside,
}

/// What a segment is, by its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Syn,
    SynAck,
    Ack,
    Fin,
    Rst,
    /// Flags that no sender sets together ([`TcpFlags::is_possible`]).
    Bogus,
}

/// The part of a TCP header that the machine looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) control: Control,
    pub(super) has_ack: bool,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) window: u16,
    pub(super) payload: u16,
    /// Whether more of its payload follows in other fragments.
    pub(super) is_cut: bool,
    /// The window scale option of a SYN.
    pub(super) scale: Option<u8>,
}

impl Segment {
    pub(super) fn of(headers: &Headers) -> Self {
        let flags = TcpFlags::from_bits_retain(headers.key.tcp_flags);
        let has_ack = flags.contains(TcpFlags::ACK);
        let control = if !flags.is_possible() {
            Control::Bogus
        } else if flags.contains(TcpFlags::RST) {
            Control::Rst
        } else if flags.contains(TcpFlags::FIN) {
            Control::Fin
        } else {
            match (flags.contains(TcpFlags::SYN), has_ack) {
                (true, false) => Control::Syn,
                (true, true) => Control::SynAck,
                (false, _) => Control::Ack,
            }
        };
        let tcp = &headers.tcp;
        Self {
            control,
            has_ack,
            seq: tcp.seq,
            ack: tcp.ack,
            window: tcp.window,
            payload: tcp.payload,
            is_cut: headers.fragment.is_some_and(|fragment| fragment.more),
            scale: tcp.window_scale,
        }
    }

    /// The sequence number after it, as far as it is seen. A SYN's data is not counted: it may be
    /// refused and sent again.
    const fn next(&self) -> u32 {
        match self.control {
            Control::Syn | Control::SynAck => self.seq.wrapping_add(1),
            Control::Fin => self.seq.wrapping_add(self.payload as u32).wrapping_add(1),
            _ => self.seq.wrapping_add(self.payload as u32),
        }
    }

    /// The most that [`next`](Self::next) may be once all of it is there.
    const fn next_at_most(&self) -> u32 {
        if self.is_cut { self.next().wrapping_add(MAX_UNSEEN) } else { self.next() }
    }
}

bitflags! {
    /// What is known of one end.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Known: u8 {
        /// `next` means something.
        const NEXT = 1;
        /// `ack`, `edge` and `largest` mean something.
        const ACK = 2;
        /// Of the original side: [`Tcp::syn`] is that of a SYN over the live connection.
        const REOPENS = 4;
        /// Its SYN offered to scale windows, or may have.
        const SCALES = 8;
        /// It has sent a segment in fragments: `next` may be up to [`MAX_UNSEEN`] short of the truth.
        const CUT = 16;
    }
}

/// One side's place in sequence space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// After the last byte it sent.
    next: u32,
    /// After the last byte it acknowledged.
    ack: u32,
    /// After the last byte that it ever allowed.
    edge: u32,
    /// Binary logarithm of its largest window, rounded up.
    largest: u8,
    /// The shift of its windows, if both sides scale.
    scale: u8,
    known: Known,
}

impl End {
    /// An end of which nothing was seen.
    const UNSEEN: Self =
        Self { next: 0, ack: 0, edge: 0, largest: 0, scale: WINDOW_SCALE, known: Known::SCALES };

    fn begun_by(segment: &Segment, windows: Windows) -> Self {
        let is_syn = matches!(segment.control, Control::Syn | Control::SynAck);
        let (scale, scales) = match segment.scale {
            Some(scale) => (scale, Known::SCALES),
            None if is_syn => (0, Known::empty()),
            None => (WINDOW_SCALE, Known::SCALES),
        };
        let mut known = Known::NEXT | scales;
        known.set(Known::CUT, segment.is_cut);
        let mut end = Self { next: segment.next(), scale, known, ..Self::UNSEEN };
        if segment.has_ack {
            // A SYN's own window is never scaled (RFC 7323 §2.2).
            let shift = if is_syn && windows == Windows::Checked { 0 } else { WINDOW_SCALE };
            end.grant(segment.ack, u32::from(segment.window) << shift);
        }
        end
    }

    const fn knows(&self, what: Known) -> bool {
        self.known.contains(what)
    }

    /// Notes that this end has sent everything before `next`.
    fn reach(&mut self, next: u32) {
        if !self.knows(Known::NEXT) || is_after(next, self.next) {
            self.next = next;
            self.known.insert(Known::NEXT);
        }
    }

    /// Notes that this end acknowledges everything before `ack` and allows `window` bytes more. Of a
    /// closed window, the one byte that probes it.
    fn grant(&mut self, ack: u32, window: u32) {
        let window = window.max(1);
        let edge = ack.wrapping_add(window);
        let is_first = !self.knows(Known::ACK);
        if is_first || is_after(edge, self.edge) {
            self.edge = edge;
        }
        if is_first || is_after(ack, self.ack) {
            self.ack = ack;
        }
        self.largest = self.largest.max(window.next_power_of_two().ilog2() as u8);
        self.known.insert(Known::ACK);
    }

    /// Whether this end would take a segment that starts at `seq`, as far as is known.
    const fn accepts(&self, seq: u32) -> bool {
        let granted = self.edge.wrapping_sub(self.ack);
        !self.knows(Known::ACK) || seq.wrapping_sub(self.ack) <= granted
    }

    /// The most that it may have sent.
    const fn next_at_most(&self) -> u32 {
        if self.knows(Known::CUT) { self.next.wrapping_add(MAX_UNSEEN) } else { self.next }
    }

    /// The largest window it ever had.
    const fn largest_window(&self) -> u32 {
        1 << self.largest
    }
}

/// Both sides' sequence numbers: [`End`]s, packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tcp {
    next: [u32; 2],
    ack: [u32; 2],
    edge: [u32; 2],
    /// Sequence number of the original side's last SYN.
    syn: u32,
    /// From the lowest bit on: five bits of [`Known`], four of `scale`, five of `largest`.
    marks: [u16; 2],
}

impl Tcp {
    /// A connection whose first segment is this one, of the original side.
    pub(super) fn begin(segment: &Segment, windows: Windows) -> (Self, TcpState) {
        let mut tcp = Self { syn: segment.seq, ..Self::default() };
        let mut reply = End::UNSEEN;
        if segment.has_ack {
            reply.reach(segment.ack);
        }
        tcp.put(Side::Original, End::begun_by(segment, windows));
        tcp.put(Side::Reply, reply);
        let state = match segment.control {
            Control::Syn => SynSent,
            Control::SynAck => SynCrossedOriginal,
            Control::Fin => FinOriginal,
            Control::Rst => Reset,
            Control::Ack | Control::Bogus => Established,
        };
        (tcp, state)
    }

    /// A connection of which no segment was seen.
    pub(super) fn unseen() -> Self {
        let mut tcp = Self::default();
        tcp.put(Side::Original, End::UNSEEN);
        tcp.put(Side::Reply, End::UNSEEN);
        tcp
    }

    /// What a segment from `side` would do. Changes nothing.
    pub(super) fn judge(
        &self,
        state: TcpState,
        side: Side,
        segment: &Segment,
        windows: Windows,
    ) -> Step {
        match segment.control {
            Control::Syn => self.judge_syn(state, side, segment),
            Control::SynAck => self.judge_syn_ack(state, side, segment),
            Control::Rst => self.judge_rst(state, side, segment),
            Control::Ack | Control::Fin if state.is_half_open() => {
                self.judge_handshake_end(state, side, segment, windows)
            }
            Control::Ack | Control::Fin if state == Reset => Step::Aside,
            Control::Ack | Control::Fin
                if windows == Windows::Checked && !self.is_in_window(side, segment) =>
            {
                Step::Outside
            }
            Control::Ack => Step::To(state),
            Control::Fin => self.judge_fin(state, side, segment),
            Control::Bogus => Step::Invalid,
        }
    }

    /// Lets a segment from `side` do what [`judge`](Self::judge) says, and returns that.
    pub(super) fn observe(
        &mut self,
        state: TcpState,
        side: Side,
        segment: &Segment,
        windows: Windows,
    ) -> Step {
        let step = self.judge(state, side, segment, windows);
        match step {
            Step::To(_) => self.record(state, side, segment, windows),
            Step::Aside => self.record_aside(state, side, segment),
            Step::Anew | Step::Invalid | Step::Outside => {}
        }
        if step == Step::To(Closing) && self.both_fins_are_acknowledged() {
            return Step::To(TimeWait);
        }
        step
    }

    /// Takes a side's numbers from who has forwarded `bytes` of it instead: they are the truth, however
    /// far they have moved. If they lie behind, all of it was sent again. Its windows are taken as
    /// those of [`Windows::Ignored`]. Returns the state that this keeps alive: the SYN-ACK, the last ACK of the
    /// handshake, a FIN, and the last ACK of all may be among it. `None` if it is [aside](Step::Aside), as
    /// what else passes before the handshake is complete, or after an RST.
    pub(super) fn catch_up(
        &mut self,
        state: TcpState,
        side: Side,
        sent: &Sent,
        bytes: u64,
    ) -> Option<TcpState> {
        let (mut own, mut other) = (self.end(side), self.end(side.other()));
        let acknowledges_syn = other.knows(Known::NEXT) && !is_after(other.next, sent.ack);
        let answers = state == SynSent && side == Side::Reply && sent.ack == self.answer();
        let completes = state == SynReceived && side == Side::Original && acknowledges_syn;
        if matches!(state, SynSent | SynReceived | Reset) && !answers && !completes {
            return None;
        }
        if state.has_fin(side) {
            // Nothing follows a FIN, whatever its side goes on to send.
        } else if bytes < 1 << 31 {
            own.reach(sent.next);
        } else {
            own.next = sent.next;
            own.known.insert(Known::NEXT);
        }
        own.known.remove(Known::ACK);
        own.grant(sent.ack, u32::from(sent.window) << WINDOW_SCALE);
        other.reach(sent.ack);
        self.put(side, own);
        self.put(side.other(), other);
        let state = match state {
            _ if answers => SynReceived,
            _ if completes => Established,
            _ => state,
        };
        let state = match state {
            Established if sent.has_ended => TcpState::fin(side),
            FinOriginal | FinReply if sent.has_ended && !state.has_fin(side) => Closing,
            _ => state,
        };
        let is_over = state == Closing && self.both_fins_are_acknowledged();
        Some(if is_over { TimeWait } else { state })
    }

    /// What acknowledges the original side's last SYN, and no data of it.
    pub(super) const fn answer(&self) -> u32 {
        self.syn.wrapping_add(1)
    }

    /// Of a half-open connection: whether what the SYN-ACK acknowledges is more than the SYN.
    pub(super) const fn has_taken_syn_data(&self) -> bool {
        let [next, _] = self.next;
        next != self.answer()
    }

    fn judge_syn(&self, state: TcpState, side: Side, segment: &Segment) -> Step {
        let again = self.repeats_syn(side, segment);
        match (state, side) {
            (Reset, _) => Step::Anew,
            (Closing | TimeWait, _) if self.is_beyond_all(side, segment) => Step::Anew,
            (Closing | TimeWait, _) => Step::Aside,
            (Established | FinOriginal | FinReply, _) => Step::Aside,
            (_, Side::Original) if again => Step::To(state),
            (_, Side::Original) => Step::Anew,
            (SynSent, Side::Reply) => Step::To(SynCrossed),
            (SynCrossed | SynCrossedOriginal | SynCrossedReply, Side::Reply) if again => {
                Step::To(state)
            }
            (_, Side::Reply) => Step::Invalid,
        }
    }

    fn judge_syn_ack(&self, state: TcpState, side: Side, segment: &Segment) -> Step {
        let completes = self.acknowledges_syn(side, segment);
        match (state, side) {
            (SynSent | SynReceived, Side::Reply) if completes => Step::To(SynReceived),
            (SynCrossed | SynCrossedOriginal, Side::Original) if completes => {
                Step::To(SynCrossedOriginal)
            }
            (SynCrossed | SynCrossedReply, Side::Reply) if completes => Step::To(SynCrossedReply),
            (SynCrossedOriginal, Side::Reply) | (SynCrossedReply, Side::Original) if completes => {
                Step::To(Established)
            }
            (Established | FinOriginal | FinReply | Closing | TimeWait, Side::Reply)
                if self.reopens(side, segment) =>
            {
                Step::To(SynReceived)
            }
            (Established | FinOriginal | FinReply, Side::Reply) => Step::Aside,
            _ => Step::Invalid,
        }
    }

    /// An ACK or FIN while the handshake is not complete.
    fn judge_handshake_end(
        &self,
        state: TcpState,
        side: Side,
        segment: &Segment,
        windows: Windows,
    ) -> Step {
        let is_fin = segment.control == Control::Fin;
        let awaited = match state {
            SynReceived | SynCrossedReply => Some(Side::Original),
            SynCrossedOriginal => Some(Side::Reply),
            _ => None,
        };
        if awaited == Some(side) && self.acknowledges_syn(side, segment) {
            return Step::To(if is_fin { TcpState::fin(side) } else { Established });
        }
        let completes_nothing = match state {
            SynSent => side == Side::Reply,
            _ => awaited == Some(side.other()),
        };
        let is_agreed = state == SynReceived && windows == Windows::Ignored;
        if is_agreed || !is_fin && completes_nothing && segment.payload == 0 {
            Step::Aside
        } else {
            Step::Invalid
        }
    }

    /// A FIN after the handshake.
    fn judge_fin(&self, state: TcpState, side: Side, segment: &Segment) -> Step {
        if !self.end(side.other()).accepts(segment.seq) {
            return Step::Aside;
        }
        match state {
            Established => Step::To(TcpState::fin(side)),
            FinOriginal | FinReply if !state.has_fin(side) => Step::To(Closing),
            _ => Step::To(state),
        }
    }

    fn judge_rst(&self, state: TcpState, side: Side, segment: &Segment) -> Step {
        let (own, other) = (self.end(side), self.end(side.other()));
        let refuses_syn = match state {
            SynSent => side == Side::Reply && self.acknowledges_syn(side, segment),
            SynCrossed => self.acknowledges_syn(side, segment),
            _ => self.reopens(side, segment),
        };
        let is_next = own.knows(Known::NEXT) && segment.seq == own.next
            || other.knows(Known::ACK) && segment.seq == other.ack;
        if refuses_syn || is_next {
            Step::To(Reset)
        } else if other.knows(Known::ACK) && other.accepts(segment.seq) {
            Step::Aside
        } else {
            Step::Invalid
        }
    }

    /// The window check: whether a segment of the synchronised states lies within its four bounds,
    /// as far as they are known.
    fn is_in_window(&self, side: Side, segment: &Segment) -> bool {
        let (own, other) = (self.end(side), self.end(side.other()));
        let Segment { seq, ack, .. } = *segment;
        let mut is_in = true;
        if other.knows(Known::ACK) {
            is_in &= !is_after(seq, other.edge);
        }
        if other.knows(Known::ACK) && own.knows(Known::NEXT) {
            let oldest = own.next.wrapping_sub(other.largest_window()).wrapping_sub(1);
            is_in &= !is_after(oldest, segment.next_at_most());
        }
        if other.knows(Known::NEXT) {
            let lag = own.largest_window().max(LEAST_ACK_WINDOW);
            is_in &= !is_after(ack, other.next_at_most());
            is_in &= !is_after(other.next.wrapping_sub(lag), ack);
        }
        is_in
    }

    /// Whether a segment of this side that begins at `seq` may be on its way, as far as is known: its
    /// end is neither acknowledged nor beyond what the side has sent (RFC 5927 §4.1). Bare
    /// acknowledgements begin at the end of that, and keep-alives a byte before its beginning.
    pub(super) fn may_be_under_way(&self, state: TcpState, side: Side, seq: u32) -> bool {
        let (own, other) = (self.end(side), self.end(side.other()));
        // What answers a SYN may be from another life, so the SYN is known by its own number.
        let acknowledged = if state.is_half_open() {
            own.knows(Known::NEXT).then_some(own.next)
        } else {
            other.knows(Known::ACK).then_some(other.ack)
        };
        acknowledged.is_none_or(|ack| !is_after(ack.wrapping_sub(1), seq))
            && (!own.knows(Known::NEXT) || !is_after(seq, own.next_at_most()))
    }

    /// Whether a SYN is the one that its side has sent before.
    fn repeats_syn(&self, side: Side, segment: &Segment) -> bool {
        let own = self.end(side);
        own.knows(Known::NEXT) && segment.next() == own.next
    }

    /// Whether a SYN's number is beyond all that its side has sent, as far as is known.
    fn is_beyond_all(&self, side: Side, segment: &Segment) -> bool {
        let own = self.end(side);
        !own.knows(Known::NEXT) || !is_after(own.next, segment.seq)
    }

    /// Whether a segment acknowledges the other side's SYN, and no more than data sent with it.
    fn acknowledges_syn(&self, side: Side, segment: &Segment) -> bool {
        let other = self.end(side.other());
        segment.has_ack
            && other.knows(Known::NEXT)
            && segment.ack.wrapping_sub(other.next) <= MAX_SYN_DATA
    }

    /// Whether a segment of the reply side answers a SYN sent over the live connection.
    fn reopens(&self, side: Side, segment: &Segment) -> bool {
        side == Side::Reply
            && self.end(Side::Original).knows(Known::REOPENS)
            && segment.has_ack
            && segment.ack == self.syn.wrapping_add(1)
    }

    /// Follows a segment that keeps the connection alive.
    fn record(&mut self, state: TcpState, side: Side, segment: &Segment, windows: Windows) {
        match segment.control {
            Control::Syn => self.put(side, End::begun_by(segment, windows)),
            Control::SynAck => {
                if self.reopens(side, segment) {
                    self.put(Side::Original, End::UNSEEN);
                }
                self.put(side, End::begun_by(segment, windows));
                self.count_syn_data(side, segment);
            }
            Control::Ack | Control::Fin => {
                if state.is_half_open() {
                    self.count_syn_data(side, segment);
                }
                self.advance(state, side, segment, windows);
            }
            Control::Rst | Control::Bogus => {}
        }
    }

    /// Remembers of a segment beside the connection what its answer will be known by.
    fn record_aside(&mut self, state: TcpState, side: Side, segment: &Segment) {
        match (segment.control, side) {
            (Control::Syn, Side::Original) if segment.seq != self.syn => {
                self.syn = segment.seq;
                let mut own = self.end(side);
                own.known.insert(Known::REOPENS);
                self.put(side, own);
            }
            (Control::Ack, Side::Reply) if state == SynSent => {
                // What an answer from another life acknowledges says nothing of this one's windows.
                let mut own = self.end(side);
                own.known.remove(Known::ACK);
                own.grant(segment.ack, 0);
                self.put(side, own);
            }
            _ => {}
        }
    }

    /// What a handshake segment acknowledges, the other side has sent.
    fn count_syn_data(&mut self, side: Side, segment: &Segment) {
        let mut other = self.end(side.other());
        other.next = segment.ack;
        other.known.insert(Known::NEXT);
        self.put(side.other(), other);
    }

    /// Moves a side's numbers forward, never back, and never beyond the windows that were granted.
    /// What a side acknowledges, the other has sent, even if it did not pass here.
    fn advance(&mut self, state: TcpState, side: Side, segment: &Segment, windows: Windows) {
        let (mut own, mut other) = (self.end(side), self.end(side.other()));
        // What was checked begins and acknowledges within the windows. It may end a byte beyond one:
        // that is how a closed window is probed.
        let is_checked = windows == Windows::Checked;
        let may_send = is_checked || other.accepts(segment.next());
        // An acknowledgement that was overtaken still grants what it says: the newer one may be lost.
        let may_ack = is_checked || own.accepts(segment.ack);
        if may_send && !state.has_fin(side) {
            own.reach(segment.next());
            own.known.set(Known::CUT, segment.is_cut || own.knows(Known::CUT));
        }
        if may_ack {
            let both_scale = own.knows(Known::SCALES) && other.knows(Known::SCALES);
            let shift = match windows {
                Windows::Ignored => WINDOW_SCALE,
                Windows::Checked if both_scale => own.scale,
                Windows::Checked => 0,
            };
            own.grant(segment.ack, u32::from(segment.window) << shift);
            other.reach(segment.ack);
        }
        self.put(side, own);
        self.put(side.other(), other);
    }

    fn both_fins_are_acknowledged(&self) -> bool {
        let [original, reply] = [Side::Original, Side::Reply].map(|side| self.end(side));
        let covers =
            |acked: &End, sent: &End| acked.knows(Known::ACK) && !is_after(sent.next, acked.ack);
        covers(&original, &reply) && covers(&reply, &original)
    }

    fn end(&self, side: Side) -> End {
        let marks = *side.of(&self.marks);
        End {
            next: *side.of(&self.next),
            ack: *side.of(&self.ack),
            edge: *side.of(&self.edge),
            largest: (marks >> 9 & 0x1f) as u8,
            scale: (marks >> 5 & 0xf) as u8,
            known: Known::from_bits_truncate((marks & 0x1f) as u8),
        }
    }

    fn put(&mut self, side: Side, end: End) {
        *side.of_mut(&mut self.next) = end.next;
        *side.of_mut(&mut self.ack) = end.ack;
        *side.of_mut(&mut self.edge) = end.edge;
        *side.of_mut(&mut self.marks) =
            u16::from(end.largest) << 9 | u16::from(end.scale) << 5 | u16::from(end.known.bits());
    }
}

impl Side {
    /// This side's of a pair, the original side's first.
    const fn of<T>(self, [original, reply]: &[T; 2]) -> &T {
        match self {
            Self::Original => original,
            Self::Reply => reply,
        }
    }

    const fn of_mut<T>(self, [original, reply]: &mut [T; 2]) -> &mut T {
        match self {
            Self::Original => original,
            Self::Reply => reply,
        }
    }
}

/// Whether `a` follows `b` in sequence space (RFC 9293 §3.4).
const fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

#[cfg(test)]
mod tests;
