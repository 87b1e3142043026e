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
//! | CLOSING, TIME-WAIT, RESET | SYN | anew: the ports are used again (RFC 6191) |
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
//! A SYN over a live connection is never judged anew, because whoever can send through the same
//! router could end connections by it. Without the window check a window is taken as if scaled by 14,
//! the most that RFC 7323 §2.3 permits: too wide a window only forwards what the receiver refuses by
//! itself. Data in a SYN (RFC 7413) passes; a server's data that overtakes the client's ACK does not,
//! and is sent again.

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
            scale: tcp.window_scale,
        }
    }

    /// The sequence number after it. A SYN's data is not counted: it may be refused and sent again.
    const fn next(&self) -> u32 {
        match self.control {
            Control::Syn | Control::SynAck => self.seq.wrapping_add(1),
            Control::Fin => self.seq.wrapping_add(self.payload as u32).wrapping_add(1),
            _ => self.seq.wrapping_add(self.payload as u32),
        }
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
        let known = Known::NEXT | scales;
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
        if !self.knows(Known::ACK) || is_after(edge, self.edge) {
            self.edge = edge;
        }
        self.ack = ack;
        self.largest = self.largest.max(window.next_power_of_two().ilog2() as u8);
        self.known.insert(Known::ACK);
    }

    /// Whether this end would take a segment that starts at `seq`, as far as is known.
    const fn accepts(&self, seq: u32) -> bool {
        let granted = self.edge.wrapping_sub(self.ack);
        !self.knows(Known::ACK) || seq.wrapping_sub(self.ack) <= granted
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
    largest: [u8; 2],
    /// [`Known`], and the scale in the upper half.
    marks: [u8; 2],
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
                self.judge_handshake_end(state, side, segment)
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

    /// Takes a side's numbers from who has forwarded its segments instead: they are the truth, however
    /// far they have moved. Its windows are taken as those of [`Windows::Ignored`].
    pub(super) fn catch_up(&mut self, side: Side, sent: &Sent) {
        let (mut own, mut other) = (self.end(side), self.end(side.other()));
        own.next = sent.next;
        own.known.insert(Known::NEXT);
        own.known.remove(Known::ACK);
        own.grant(sent.ack, u32::from(sent.window) << WINDOW_SCALE);
        other.reach(sent.ack);
        self.put(side, own);
        self.put(side.other(), other);
    }

    fn judge_syn(&self, state: TcpState, side: Side, segment: &Segment) -> Step {
        let again = self.repeats_syn(side, segment);
        match (state, side) {
            (Closing | TimeWait | Reset, _) => Step::Anew,
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
            (Established | FinOriginal | FinReply, Side::Reply) => {
                if self.reopens(side, segment) {
                    Step::To(SynReceived)
                } else {
                    Step::Aside
                }
            }
            _ => Step::Invalid,
        }
    }

    /// An ACK or FIN while the handshake is not complete.
    fn judge_handshake_end(&self, state: TcpState, side: Side, segment: &Segment) -> Step {
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
        if completes_nothing && !is_fin && segment.payload == 0 {
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
            is_in &= !is_after(oldest, segment.next());
        }
        if other.knows(Known::NEXT) {
            let lag = own.largest_window().max(LEAST_ACK_WINDOW);
            is_in &= !is_after(ack, other.next);
            is_in &= !is_after(other.next.wrapping_sub(lag), ack);
        }
        is_in
    }

    /// Whether a SYN is the one that its side has sent before.
    fn repeats_syn(&self, side: Side, segment: &Segment) -> bool {
        let own = self.end(side);
        own.knows(Known::NEXT) && segment.next() == own.next
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
        let may_ack = match windows {
            Windows::Checked => !own.knows(Known::ACK) || !is_after(own.ack, segment.ack),
            Windows::Ignored => own.accepts(segment.ack),
        };
        if may_send && !state.has_fin(side) {
            own.reach(segment.next());
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
        let marks = side.of(&self.marks);
        End {
            next: *side.of(&self.next),
            ack: *side.of(&self.ack),
            edge: *side.of(&self.edge),
            largest: *side.of(&self.largest),
            scale: marks >> 4,
            known: Known::from_bits_truncate(marks & 0xf),
        }
    }

    fn put(&mut self, side: Side, end: End) {
        *side.of_mut(&mut self.next) = end.next;
        *side.of_mut(&mut self.ack) = end.ack;
        *side.of_mut(&mut self.edge) = end.edge;
        *side.of_mut(&mut self.largest) = end.largest;
        *side.of_mut(&mut self.marks) = end.scale << 4 | end.known.bits();
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
mod tests {
    use super::*;

    const ISS: [u32; 2] = [1_000, 5_000];
    const FAR: u32 = 0x7000_0000;
    const STATES: [TcpState; 11] = [
        SynSent,
        SynReceived,
        SynCrossed,
        SynCrossedOriginal,
        SynCrossedReply,
        Established,
        FinOriginal,
        FinReply,
        Closing,
        TimeWait,
        Reset,
    ];

    /// What each state answers to each segment, written from RFC 9293 §3.5 to §3.10, RFC 5961 §3
    /// and §4, and RFC 5382 REQ-2. `=` stays, `.` aside, `+` anew, `-` invalid, else the next state.
    ///
    /// `syn'` has another sequence number, `syn-ack'` acknowledges something else; `rst~` is in the
    /// window but not next, `rst!` outside; `refusal` is the RST that a closed port sends.
    const TABLE: &str = "
                      SS SR SX SO SY ES FO FR CL TW RS
        O syn         =  =  =  =  =  .  .  .  +  +  +
        O syn'        +  +  +  +  +  .  .  .  +  +  +
        O syn-ack     -  -  SO =  ES -  -  -  -  -  -
        O syn-ack'    -  -  -  -  -  -  -  -  -  -  -
        O ack         -  ES -  .  ES =  =  =  TW =  .
        O data        -  ES -  -  ES =  =  =  TW =  .
        O fin         -  FO -  -  FO FO =  CL .  .  .
        O rst         RS RS RS RS RS RS RS RS RS RS =
        O rst~        -  .  -  -  .  .  .  .  .  .  .
        O rst!        -  -  -  -  -  -  -  -  -  -  -
        O refusal     -  -  RS -  -  -  -  -  -  -  -
        O bogus       -  -  -  -  -  -  -  -  -  -  -
        R syn         SX -  =  =  =  .  .  .  +  +  +
        R syn'        SX -  -  -  -  .  .  .  +  +  +
        R syn-ack     SR =  SY ES =  .  .  .  -  -  -
        R syn-ack'    -  -  -  -  -  .  .  .  -  -  -
        R ack         .  .  -  ES .  =  =  =  =  =  .
        R data        -  -  -  ES -  =  =  =  =  =  .
        R fin         -  -  -  FR -  FR CL =  =  .  .
        R rst         -  RS RS RS RS RS RS RS RS RS =
        R rst~        -  -  -  .  -  .  .  .  .  .  .
        R rst!        -  -  -  -  -  -  -  -  -  -  -
        R refusal     RS -  RS -  -  -  -  -  -  -  -
        R bogus       -  -  -  -  -  -  -  -  -  -  -
    ";

    /// Two hosts that number their segments as they should, and the machine between them.
    #[derive(Clone, Copy)]
    struct Wire {
        windows: Windows,
        tcp: Tcp,
        state: TcpState,
        next: [u32; 2],
    }

    impl Wire {
        fn begin(event: &str) -> Self {
            Self::begin_with(event, Windows::Checked)
        }

        fn begin_with(event: &str, windows: Windows) -> Self {
            let next = ISS.map(|iss| iss + 1);
            let wire = Self { windows, tcp: Tcp::default(), state: SynSent, next };
            let (tcp, state) = Tcp::begin(&wire.segment(Side::Original, event), windows);
            Self { windows, tcp, state, next }
        }

        /// A connection in `state`, got there by the shortest way.
        fn reach(state: TcpState) -> Self {
            Self::reach_with(state, Windows::Checked)
        }

        fn reach_with(state: TcpState, windows: Windows) -> Self {
            let way = match state {
                SynSent => "",
                SynReceived => "R syn-ack",
                SynCrossed => "R syn",
                SynCrossedOriginal => "R syn, O syn-ack",
                SynCrossedReply => "R syn, R syn-ack",
                Established => "R syn-ack, O ack",
                FinOriginal => "R syn-ack, O ack, O fin",
                FinReply => "R syn-ack, O ack, R fin",
                Closing => "R syn-ack, O ack, O fin, R fin",
                TimeWait => "R syn-ack, O ack, O fin, R fin, O ack",
                Reset => "R syn-ack, O ack, O rst",
            };
            let mut wire = Self::begin_with("syn", windows);
            wire.run(way);
            assert_eq!(wire.state, state);
            wire
        }

        /// Sends events, as `O syn, R syn-ack`.
        fn run(&mut self, events: &str) {
            for event in events.split(", ").filter(|event| !event.is_empty()) {
                let (side, event) = side_and_event(event);
                self.send(side, self.segment(side, event));
            }
        }

        fn send(&mut self, side: Side, segment: Segment) -> Step {
            let judged = self.tcp.judge(self.state, side, &segment, self.windows);
            let step = self.tcp.observe(self.state, side, &segment, self.windows);
            if let Step::To(state) = step {
                assert!(judged == step || judged == Step::To(Closing) && state == TimeWait);
                self.state = state;
                let next = &mut self.next[side as usize];
                *next = (*next).max(segment.next());
            } else {
                assert_eq!(judged, step);
            }
            step
        }

        fn segment(&self, side: Side, event: &str) -> Segment {
            let (iss, peer_iss) = (ISS[side as usize], ISS[side.other() as usize]);
            let (next, peer_next) = (self.next[side as usize], self.next[side.other() as usize]);
            let plain = Segment {
                control: Control::Ack,
                has_ack: true,
                seq: next,
                ack: peer_next,
                window: 100,
                payload: 0,
                scale: None,
            };
            let syn = Segment { control: Control::Syn, has_ack: false, seq: iss, ack: 0, ..plain };
            let syn_ack =
                Segment { control: Control::SynAck, seq: iss, ack: peer_iss + 1, ..plain };
            let rst = Segment { control: Control::Rst, has_ack: false, ack: 0, ..plain };
            match event {
                "syn" => syn,
                "syn'" => Segment { seq: iss + 77_777, ..syn },
                "syn-ack" => syn_ack,
                "syn-ack'" => Segment { ack: peer_iss + 77_777, ..syn_ack },
                "ack" => plain,
                "data" => Segment { payload: 10, ..plain },
                "fin" => {
                    let seq = if self.state.has_fin(side) { next - 1 } else { next };
                    Segment { control: Control::Fin, seq, ..plain }
                }
                "rst" => rst,
                "rst~" => Segment { seq: next + 5, ..rst },
                "rst!" => Segment { seq: next.wrapping_add(FAR), ..rst },
                "refusal" => Segment { has_ack: true, seq: 0, ack: peer_iss + 1, ..rst },
                "bogus" => Segment { control: Control::Bogus, has_ack: false, ..plain },
                other => panic!("no such event: {other}"),
            }
        }
    }

    fn side_and_event(text: &str) -> (Side, &str) {
        match text.split_once(' ') {
            Some(("O", event)) => (Side::Original, event),
            Some(("R", event)) => (Side::Reply, event),
            _ => panic!("no such event: {text}"),
        }
    }

    fn state_named(name: &str) -> TcpState {
        let names = ["SS", "SR", "SX", "SO", "SY", "ES", "FO", "FR", "CL", "TW", "RS"];
        STATES[names.iter().position(|&n| n == name).unwrap()]
    }

    #[test]
    fn every_state_answers_every_segment_as_the_table_says() {
        let mut checked = 0;
        let mut lines = TABLE.trim().lines();
        let columns: Vec<_> = lines.next().unwrap().split_whitespace().map(state_named).collect();
        for line in lines {
            let (event, cells) = line.trim().split_at(14);
            let (side, event) = side_and_event(event.trim());
            for (&state, cell) in columns.iter().zip(cells.split_whitespace()) {
                let expected = match cell {
                    "=" => Step::To(state),
                    "." => Step::Aside,
                    "+" => Step::Anew,
                    "-" => Step::Invalid,
                    name => Step::To(state_named(name)),
                };
                for windows in [Windows::Checked, Windows::Ignored] {
                    let mut wire = Wire::reach_with(state, windows);
                    let step = wire.send(side, wire.segment(side, event));
                    assert_eq!(step, expected, "{side:?} {event} in {state:?}, {windows:?}");
                    checked += 1;
                }
            }
        }
        assert_eq!(checked, 2 * 2 * 12 * STATES.len());
    }

    #[test]
    fn a_conversation_ends_in_time_wait_whoever_closes_first() {
        for closing in ["O fin, R ack, R fin, O ack", "R fin, O ack, O fin, R ack"] {
            let mut wire = Wire::reach(Established);
            wire.run("O data, R data, R data, O ack");
            wire.run(closing);
            assert_eq!(wire.state, TimeWait, "{closing}");
        }
    }

    #[test]
    fn both_may_close_at_once() {
        let mut wire = Wire::reach(Established);
        let fins = [Side::Original, Side::Reply].map(|side| (side, wire.segment(side, "fin")));
        for (side, fin) in fins {
            wire.send(side, fin);
        }
        assert_eq!(wire.state, Closing);
        wire.run("O ack, R ack");
        assert_eq!(wire.state, TimeWait);
    }

    #[test]
    fn a_half_closed_connection_carries_data_the_other_way() {
        let mut wire = Wire::reach(FinOriginal);
        wire.run("R ack, R data, O ack, R data, O ack");
        assert_eq!(wire.state, FinOriginal);
        wire.run("R fin, O ack");
        assert_eq!(wire.state, TimeWait);
    }

    #[test]
    fn sequence_numbers_may_wrap() {
        let wire = Wire::begin("syn");
        let near_end = u32::MAX - 3;
        let syn = Segment { seq: near_end, ..wire.segment(Side::Original, "syn") };
        let windows = Windows::Checked;
        let (tcp, state) = Tcp::begin(&syn, windows);
        let mut wire = Wire { windows, tcp, state, next: [near_end + 1, near_end + 1] };
        let ack = near_end + 1;
        wire.send(
            Side::Reply,
            Segment { seq: near_end, ack, ..wire.segment(Side::Reply, "syn-ack") },
        );
        wire.run("O ack");
        assert_eq!(wire.state, Established);
        let long = Segment { payload: 100, ..wire.segment(Side::Original, "data") };
        assert_eq!(wire.send(Side::Original, long), Step::To(Established));
        wire.next[0] = long.next();
        let step = wire.send(Side::Original, wire.segment(Side::Original, "rst"));
        assert_eq!(step, Step::To(Reset));
    }

    #[test]
    fn a_refused_syn_ends_the_attempt() {
        let mut wire = Wire::reach(SynSent);
        wire.run("R refusal");
        assert_eq!(wire.state, Reset);
    }

    /// RFC 9293 §3.5.1, figure 10: the server still has the connection that the client has lost and
    /// the switch has forgotten.
    #[test]
    fn a_half_open_connection_is_discovered() {
        let mut wire = Wire::reach(SynSent);
        let challenge = Segment { seq: 300, ack: 100, ..wire.segment(Side::Reply, "ack") };
        assert_eq!(wire.send(Side::Reply, challenge), Step::Aside);
        let guess = Segment { seq: 101, ..wire.segment(Side::Original, "rst") };
        assert_eq!(wire.send(Side::Original, guess), Step::Aside);
        let rst = Segment { seq: 100, ..guess };
        assert_eq!(wire.send(Side::Original, rst), Step::To(Reset));
        let syn = wire.segment(Side::Original, "syn");
        assert_eq!(wire.send(Side::Original, syn), Step::Anew);
    }

    /// Both hosts have restarted and use the same ports again; the switch has not noticed.
    #[test]
    fn a_connection_that_both_sides_forgot_opens_again() {
        for before in [Established, FinOriginal, FinReply] {
            let mut wire = Wire::reach(before);
            wire.run("O syn'");
            let syn = wire.segment(Side::Original, "syn'");
            let answer = wire.segment(Side::Reply, "syn-ack");
            let unasked = Segment { ack: syn.next() + 1, ..answer };
            assert_eq!(wire.send(Side::Reply, unasked), Step::Aside);
            let asked = Segment { seq: 90_000, ack: syn.next(), ..answer };
            assert_eq!(wire.send(Side::Reply, asked), Step::To(SynReceived));
            wire.next = [syn.next(), asked.next()];
            wire.run("O ack, O data, R data");
            assert_eq!(wire.state, Established);
            wire.run("R rst");
            assert_eq!(wire.state, Reset);
        }
    }

    #[test]
    fn a_refusal_of_a_syn_over_a_connection_ends_it() {
        let mut wire = Wire::reach(Established);
        let syn = wire.segment(Side::Original, "syn'");
        wire.send(Side::Original, syn);
        let refusal = Segment { ack: syn.next(), ..wire.segment(Side::Reply, "refusal") };
        assert_eq!(wire.send(Side::Reply, refusal), Step::To(Reset));
    }

    #[test]
    fn a_stray_syn_leaves_a_connection_as_it_was() {
        let mut wire = Wire::reach(Established);
        wire.run("O syn', R ack, O data, R data, O fin, R fin, O ack");
        assert_eq!(wire.state, TimeWait);
    }

    #[test]
    fn a_late_copy_of_the_handshake_opens_nothing_again() {
        let mut wire = Wire::reach(Established);
        wire.run("O data, R data, O syn");
        let answer = wire.segment(Side::Reply, "syn-ack");
        assert_eq!(wire.send(Side::Reply, answer), Step::Aside);
        wire.run("O data, O rst");
        assert_eq!(wire.state, Reset);
    }

    #[test]
    fn data_in_a_syn_may_be_acknowledged_or_not() {
        for accepted in [0, 1_200] {
            let mut wire = Wire::begin("syn");
            let answer = wire.segment(Side::Reply, "syn-ack");
            let ack = answer.ack + accepted;
            assert_eq!(wire.send(Side::Reply, Segment { ack, ..answer }), Step::To(SynReceived));
            wire.next[0] = ack;
            wire.run("O ack, O data, R ack, O rst");
            assert_eq!(wire.state, Reset);
        }
    }

    #[test]
    fn guessed_resets_and_fins_change_nothing() {
        let mut wire = Wire::reach_with(Established, Windows::Ignored);
        wire.run("O data, R ack, R data, O ack");
        let before = (wire.tcp, wire.state);
        for side in [Side::Original, Side::Reply] {
            let next = wire.next[side as usize];
            for seq in [next.wrapping_sub(1), next + 1, next + 1_000_000, next.wrapping_add(FAR)] {
                for event in ["rst", "fin"] {
                    let segment = Segment { seq, ..wire.segment(side, event) };
                    let is_in_window = seq.wrapping_sub(next) <= 100 << WINDOW_SCALE;
                    if event == "fin" && is_in_window {
                        continue;
                    }
                    let step = wire.send(side, segment);
                    assert_ne!(step, Step::To(Reset));
                    assert_eq!((wire.tcp, wire.state), before, "{event} at {seq}");
                }
            }
        }
    }

    #[test]
    fn a_reset_may_pass_data_that_is_still_on_its_way() {
        let mut wire = Wire::reach(Established);
        wire.run("O data, O data, O rst");
        assert_eq!(wire.state, Reset);
    }

    #[test]
    fn a_connection_picked_up_midstream_can_be_closed_and_reset() {
        for first in ["ack", "data"] {
            for ending in ["R data, O fin, R fin, O ack", "O rst", "R rst", "R data, O ack, R rst"]
            {
                let mut wire = Wire::begin(first);
                assert_eq!(wire.state, Established);
                wire.next[0] = wire.segment(Side::Original, first).next();
                wire.run(ending);
                assert!(matches!(wire.state, TimeWait | Reset), "{first}, {ending}");
            }
        }
    }

    #[test]
    fn flags_tell_what_a_segment_is() {
        use crate::extract::{Kind, TcpFields};
        let control = |flags: TcpFlags| {
            let key = crate::FlowKey { tcp_flags: flags.bits(), ..Default::default() };
            let (tcp, kind) = (TcpFields::default(), Kind::Plain);
            Segment::of(&Headers {
                key,
                vlan_tags: 0,
                l3: 14,
                l4: 34,
                end: 54,
                tcp,
                kind,
                fragment: None,
            })
            .control
        };
        let (fin, syn, rst, ack) = (TcpFlags::FIN, TcpFlags::SYN, TcpFlags::RST, TcpFlags::ACK);
        for others in [TcpFlags::empty(), TcpFlags::PSH, TcpFlags::URG | TcpFlags::CWR] {
            assert_eq!(control(syn | others), Control::Syn);
            assert_eq!(control(syn | ack | others), Control::SynAck);
            assert_eq!(control(ack | others), Control::Ack);
            assert_eq!(control(fin | ack | others), Control::Fin);
            assert_eq!(control(rst | others), Control::Rst);
            assert_eq!(control(rst | ack | others), Control::Rst);
            for bogus in [others, fin, syn | fin, syn | rst, fin | rst, syn | fin | ack] {
                assert_eq!(control(bogus | others), Control::Bogus, "{bogus:?}");
            }
        }
    }

    /// What the window check says of segments of an established connection, by the sections that make
    /// a host send or refuse them. Both sides have sent a hundred bytes that were acknowledged, and
    /// grant each other 1,000 bytes. `seq` and `ack` are relative to what a side would send next.
    const WINDOWS: &[(&str, i64, u16, i64, bool)] = &[
        // What, seq, payload, ack, passes.
        ("RFC 9293 §3.10.7.4: data at the left edge", 0, 500, 0, true),
        ("RFC 9293 §3.10.7.4: data at the right edge", 999, 1, 0, true),
        ("RFC 9293 §3.8.6.1: a byte that probes a closed window", 1_000, 1, 0, true),
        ("RFC 9293 §3.10.7.4: data behind the right edge", 1_001, 1, 0, false),
        ("RFC 9293 §3.10.7.4: data far behind it", 1_000_000, 1, 0, false),
        ("RFC 9293 §3.8.4: a keep-alive without data", -1, 0, 0, true),
        ("RFC 9293 §3.8.4: a keep-alive of one byte", -1, 1, 0, true),
        ("RFC 9293 §3.8.1: a retransmission", -100, 100, 0, true),
        ("RFC 5961 §5.1: data older than any window", -10_000, 10, 0, false),
        ("RFC 9293 §3.10.7.4: an acknowledgement that was sent before", 0, 0, -100, true),
        ("RFC 5961 §5.2: an acknowledgement of what was not sent", 0, 0, 1, false),
        ("RFC 5961 §5.2: an acknowledgement older than any window", 0, 0, -100_000, false),
        ("RFC 7323 §5.2: one that reordering made old", 0, 0, -60_000, true),
    ];

    #[test]
    fn the_window_check_takes_what_a_host_may_send_and_nothing_else() {
        for &(what, seq, payload, ack, passes) in WINDOWS {
            for side in [Side::Original, Side::Reply] {
                let mut wire = wide_awake();
                let plain = wire.segment(side, "ack");
                let moved = |number: u32, by: i64| (i64::from(number) + by) as u32;
                let segment = Segment {
                    seq: moved(plain.seq, seq),
                    ack: moved(plain.ack, ack),
                    payload,
                    ..plain
                };
                let expected = if passes { Step::To(Established) } else { Step::Outside };
                assert_eq!(wire.send(side, segment), expected, "{what}, {side:?}");
            }
        }
    }

    /// An established connection with 100 bytes each way, and windows of 1,000.
    fn wide_awake() -> Wire {
        let mut wire = Wire::reach(Established);
        for side in [Side::Original, Side::Reply] {
            let data = Segment { payload: 100, window: 1_000, ..wire.segment(side, "data") };
            wire.send(side, data);
            let other = side.other();
            let ack = Segment { window: 1_000, ..wire.segment(other, "ack") };
            wire.send(other, ack);
        }
        wire
    }

    /// RFC 7323 §2.2: windows are scaled if both SYNs say so, and those of the SYNs never are.
    #[test]
    fn windows_are_scaled_by_both_sides_options() {
        for (scales, granted) in [([Some(7), Some(3)], 100 << 3), ([Some(7), None], 100)] {
            let [original, reply] = scales;
            let mut wire = Wire::begin("syn");
            let syn = Segment { scale: original, ..wire.segment(Side::Original, "syn") };
            let (tcp, state) = Tcp::begin(&syn, Windows::Checked);
            (wire.tcp, wire.state) = (tcp, state);
            let answer = Segment { scale: reply, ..wire.segment(Side::Reply, "syn-ack") };
            assert_eq!(wire.send(Side::Reply, answer), Step::To(SynReceived));
            wire.run("O ack, R ack");
            let first = wire.segment(Side::Original, "ack");
            let at = |seq| Segment { seq, payload: 1, ..first };
            let mut copy = wire;
            let beyond = at(first.seq + granted + 1);
            assert_eq!(copy.send(Side::Original, beyond), Step::Outside);
            let edge = at(first.seq + granted);
            assert_eq!(wire.send(Side::Original, edge), Step::To(Established));
        }
    }

    #[test]
    fn midstream_holds_nothing_up_that_it_cannot_know() {
        let mut wire = Wire::begin("data");
        let far = Segment { seq: 1_000_000, ..wire.segment(Side::Reply, "data") };
        assert_eq!(wire.send(Side::Reply, far), Step::To(Established));
        wire.run("R data, O ack, R fin");
        assert_eq!(wire.state, FinReply);
    }

    /// A host that keeps to RFC 9293: it sends within the window that it was granted last, sends
    /// again what was not acknowledged, and may take back what it granted.
    #[derive(Clone, Copy, Debug)]
    struct Host {
        /// What it has sent, what of that was acknowledged, and how far it may send.
        next: u32,
        unacked: u32,
        edge: u32,
        /// What it has received in order, and what it has room for.
        received: u32,
        room: u16,
    }

    impl Host {
        fn hear(&mut self, segment: &Segment, scale: u8) {
            let shift = if segment.control == Control::Ack { scale } else { 0 };
            if !is_after(self.unacked, segment.ack) && !is_after(segment.ack, self.next) {
                self.unacked = segment.ack;
                self.edge = segment.ack.wrapping_add(u32::from(segment.window) << shift);
            }
            let end = segment.next();
            if !is_after(segment.seq, self.received) && is_after(end, self.received) {
                self.received = end;
            }
        }

        fn say(&mut self, act: &Act) -> Segment {
            let left = self.edge.wrapping_sub(self.next);
            let left = if is_after(self.next, self.edge) { 0 } else { left };
            let (seq, payload) = match *act {
                Act::Data(len) => (self.next, u32::from(len).min(left)),
                Act::Again => (self.unacked, self.next.wrapping_sub(self.unacked).min(1_460)),
                Act::KeepAlive => (self.unacked.wrapping_sub(1), 0),
                Act::Probe => (self.unacked, u32::from(self.next == self.unacked)),
                Act::Room(room) => {
                    self.room = room;
                    (self.next, 0)
                }
            };
            let end = seq.wrapping_add(payload);
            if is_after(end, self.next) {
                self.next = end;
            }
            Segment {
                control: Control::Ack,
                has_ack: true,
                seq,
                ack: self.received,
                window: self.room,
                payload: payload as u16,
                scale: None,
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Act {
        Data(u16),
        Again,
        KeepAlive,
        Probe,
        Room(u16),
    }

    use proptest::prelude::*;

    fn acts() -> impl Strategy<Value = Act> {
        prop_oneof![
            6 => (1..60_000_u16).prop_map(Act::Data),
            2 => Just(Act::Again),
            1 => Just(Act::KeepAlive),
            1 => Just(Act::Probe),
            3 => prop_oneof![Just(0), 0..200_u16, any::<u16>()].prop_map(Act::Room),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever is lost behind the switch or overtaken on the way to it. What was overtaken by a
        /// whole window may be refused: to its receiver it says nothing any more.
        #[test]
        fn nothing_that_hosts_send_is_outside_the_windows(
            iss in any::<[u32; 2]>(),
            scales in [0..15_u8, 0..15_u8],
            reorders in any::<bool>(),
            acts in prop::collection::vec((any::<bool>(), acts(), 0..4_usize, prop::bool::weighted(0.1)), 1..200),
        ) {
            let host = |own: usize| Host {
                next: iss[own].wrapping_add(1),
                unacked: iss[own].wrapping_add(1),
                edge: iss[own].wrapping_add(1).wrapping_add(1_000),
                received: iss[1 - own].wrapping_add(1),
                room: 1_000,
            };
            let mut hosts = [host(0), host(1)];
            let syn = Segment {
                control: Control::Syn, has_ack: false, seq: iss[0], ack: 0, window: 1_000,
                payload: 0, scale: Some(scales[0]),
            };
            let (mut tcp, mut state) = Tcp::begin(&syn, Windows::Checked);
            let answer = Segment {
                control: Control::SynAck, has_ack: true, seq: iss[1], ack: hosts[0].next,
                scale: Some(scales[1]), ..syn
            };
            let ack = Segment {
                control: Control::Ack, has_ack: true, seq: hosts[0].next, ack: hosts[1].next,
                window: 1_000, payload: 0, scale: None,
            };
            for (side, segment) in [(Side::Reply, answer), (Side::Original, ack)] {
                let step = tcp.observe(state, side, &segment, Windows::Checked);
                let Step::To(next) = step else { panic!("{step:?}") };
                state = next;
            }
            // Segments on their way to the switch: by side, those that were sent first in front.
            let mut ways: [Vec<Segment>; 2] = [Vec::new(), Vec::new()];
            for (is_reply, act, overtakes, is_lost) in acts {
                let (at, side) = if is_reply { (1, Side::Reply) } else { (0, Side::Original) };
                let overtakes = if reorders { overtakes } else { 0 };
                let segment = hosts[at].say(&act);
                ways[at].push(segment);
                if ways[at].len() <= overtakes {
                    continue;
                }
                let segment = ways[at].remove(overtakes.min(ways[at].len() - 1));
                let step = tcp.observe(state, side, &segment, Windows::Checked);
                let receiver = &hosts[1 - at];
                let says_nothing = !is_after(segment.next(), receiver.received)
                    && !is_after(segment.ack, receiver.unacked);
                // RFC 5961 §5.2: such an acknowledgement makes the receiver itself refuse it.
                let is_ancient = receiver.next.wrapping_sub(segment.ack) > LEAST_ACK_WINDOW;
                if step != Step::To(Established) {
                    prop_assert!(reorders && (says_nothing || is_ancient), "{step:?} {segment:?} {side:?}");
                } else if !is_lost {
                    hosts[1 - at].hear(&segment, scales[at]);
                }
            }
        }
    }
}
