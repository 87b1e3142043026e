//! What the window check passes and what it refuses.

use proptest::prelude::*;

use super::super::*;
use super::Wire;

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

/// RFC 5927 §4.1: an error counts if what it quotes is sent and not acknowledged yet.
#[test]
fn only_what_is_neither_acknowledged_nor_unsent_may_be_under_way() {
    for side in [Side::Original, Side::Reply] {
        let mut wire = wide_awake();
        let first = wire.segment(side, "data");
        wire.send(side, Segment { payload: 500, ..first });
        for (by, expected) in [(-2, false), (-1, true), (0, true), (500, true), (501, false)] {
            let seq = first.seq.wrapping_add_signed(by);
            assert_eq!(wire.tcp.may_be_under_way(Established, side, seq), expected, "{by}");
        }
        wire.send(side, Segment { is_cut: true, ..wire.segment(side, "data") });
        assert!(wire.tcp.may_be_under_way(Established, side, first.seq + 501), "a fragment's rest");
    }
}

/// A SYN is under way until its connection is open; what went before a mid-stream pick-up, for as long as
/// nobody acknowledges it.
#[test]
fn a_syn_may_be_under_way_and_so_may_what_nobody_saw() {
    for (state, side) in [(SynSent, Side::Original), (SynReceived, Side::Reply)] {
        let Wire { tcp, next, .. } = Wire::reach(state);
        let syn = next[side as usize] - 1;
        assert!(tcp.may_be_under_way(state, side, syn));
        assert!(!tcp.may_be_under_way(state, side, syn - 1));
        assert!(!tcp.may_be_under_way(state, side, syn + 2));
    }
    let Wire { tcp, next: [next, _], .. } = Wire::begin("data");
    let long_ago = next.wrapping_sub(100_000);
    assert!(tcp.may_be_under_way(Established, Side::Original, long_ago));
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

/// RFC 791 §3.2: of a segment in fragments the first one's bytes are seen, and more are sent.
#[test]
fn what_a_segment_in_fragments_carries_may_be_acknowledged() {
    for side in [Side::Original, Side::Reply] {
        let mut wire = wide_awake();
        let (first, answer) = (wire.segment(side, "data"), wire.segment(side.other(), "ack"));
        let whole = 900;
        let beyond = Segment { ack: first.seq + whole, ..answer };
        assert_eq!(wire.send(side.other(), beyond), Step::Outside);
        let cut = Segment { payload: 400, is_cut: true, ..first };
        assert_eq!(wire.send(side, cut), Step::To(Established));
        assert_eq!(wire.send(side.other(), beyond), Step::To(Established));
        let more = Segment { ack: first.seq + 400 + MAX_UNSEEN + 1_000, ..answer };
        assert_eq!(wire.send(side.other(), more), Step::Outside);
        let next = Segment { seq: first.seq + whole, payload: 1, ..first };
        assert_eq!(wire.send(side, next), Step::To(Established));
    }
}

/// What was lost of a large segment comes again in smaller ones (RFC 1191 §6.4).
#[test]
fn a_segment_in_fragments_may_be_sent_again_in_smaller_ones() {
    let mut wire = wide_awake();
    let first = wire.segment(Side::Original, "data");
    let cut = Segment { payload: 400, is_cut: true, ..first };
    wire.send(Side::Original, cut);
    wire.send(Side::Original, Segment { payload: 500, ..first });
    let ack = wire.segment(Side::Reply, "ack");
    let of_all = Segment { ack: first.seq + 900, ..ack };
    assert_eq!(wire.send(Side::Reply, of_all), Step::To(Established));
}

/// The kernel's first frame of a connection may be one that the switch has forwarded before.
#[test]
fn what_was_sent_again_elsewhere_takes_nothing_back() {
    let mut wire = wide_awake();
    let (data, ack) = (wire.segment(Side::Original, "data"), wire.segment(Side::Reply, "ack"));
    let again = Sent { next: data.seq - 50, ack: data.ack, window: 1_000, has_ended: false };
    wire.tcp.catch_up(wire.state, Side::Original, &again, 50);
    assert_eq!(wire.send(Side::Reply, ack), Step::To(Established));
    let onward = Sent { next: data.seq.wrapping_add(3_000_000_000), ..again };
    wire.tcp.catch_up(wire.state, Side::Original, &onward, 3_000_000_000);
    let ack = Segment { ack: onward.next, ..ack };
    assert_eq!(wire.send(Side::Reply, ack), Step::To(Established));
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
            is_cut: false,
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
            payload: 0, is_cut: false, scale: Some(scales[0]),
        };
        let (mut tcp, mut state) = Tcp::begin(&syn, Windows::Checked);
        let answer = Segment {
            control: Control::SynAck, has_ack: true, seq: iss[1], ack: hosts[0].next,
            scale: Some(scales[1]), ..syn
        };
        let ack = Segment {
            control: Control::Ack, has_ack: true, seq: hosts[0].next, ack: hosts[1].next,
            window: 1_000, payload: 0, is_cut: false, scale: None,
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
