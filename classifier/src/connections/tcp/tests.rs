mod windows;

use super::*;
use crate::extract::{Fragment, Kind, TcpFields};

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

/// What each state answers to each segment, and what says so: sections of RFC 9293 where no other RFC
/// is named. `=` stays, `.` aside, `+` anew, `-` invalid, `~` aside unless windows are checked, else the
/// next state. Invalid is what no host sends in that state, or what its receiver discards or answers with
/// an RST (§3.5.2).
///
/// `syn'` has a number beyond all that its side has sent, `syn^` one before; `syn-ack'` acknowledges
/// something else; `rst~` is in the window but not next, `rst!` outside; `refusal` is the RST that a
/// closed port sends. A FIN is the one that its side has sent, if it has.
const TABLE: &str = "
                  SS SR SX SO SY ES FO FR CL TW RS
    O syn         =  =  =  =  =  .  .  .  .  .  +  §3.8.1 again; 5961 §4.2; 6191 §2; §3.10.7.1
    O syn'        +  +  +  +  +  .  .  .  +  +  +  §3.10.1; 5961 §4.2; 1122 §4.2.2.13
    O syn^        +  +  +  +  +  .  .  .  .  .  +  §3.10.1; 5961 §4.2; 6191 §2
    O syn-ack     -  -  SO =  ES -  -  -  -  -  -  §3.5 figure 7; 5382 REQ-2
    O syn-ack'    -  -  -  -  -  -  -  -  -  -  -  §3.10.7.3 first, unacceptable ACK
    O ack         -  ES -  .  ES =  =  =  TW =  .  §3.5 figure 6; §3.10.7.4 fifth; §3.6
    O data        -  ES -  -  ES =  =  =  TW =  .  §3.10.7.4 seventh
    O fin         -  FO -  -  FO FO =  CL .  .  .  §3.6 case 1; §3.10.7.4 eighth; §3.8.1 again
    O rst         RS RS RS RS RS RS RS RS RS RS =  5961 §3.2 exact; §3.5.3
    O rst~        -  .  -  -  .  .  .  .  .  .  .  5961 §3.2 in the window: challenged
    O rst!        -  -  -  -  -  -  -  -  -  -  -  5961 §3.2 outside: discarded
    O refusal     -  -  RS -  -  -  -  -  -  -  -  §3.5.2 group 1; §3.10.7.3 second
    O bogus       -  -  -  -  -  -  -  -  -  -  -  §3.10.7: neither SYN, RST nor ACK
    R syn         SX -  =  =  =  .  .  .  .  .  +  §3.5 figure 7; 5382 REQ-2; 5961 §4.2; 6191 §2
    R syn'        SX -  -  -  -  .  .  .  +  +  +  §3.5 figure 7; 5961 §4.2; 1122 §4.2.2.13
    R syn^        SX -  -  -  -  .  .  .  .  .  +  §3.5 figure 7; 5961 §4.2; 6191 §2
    R syn-ack     SR =  SY ES =  .  .  .  -  -  -  §3.5 figures 6, 7; §3.8.1 again
    R syn-ack'    -  -  -  -  -  .  .  .  -  -  -  §3.10.7.3 first; 5961 §4.2
    R ack         .  .  -  ES .  =  =  =  =  =  .  §3.5.1 figure 9; §3.10.7.4 fifth
    R data        -  ~  -  ES -  =  =  =  =  =  .  §3.10.7.4 seventh
    R fin         -  ~  -  FR -  FR CL =  =  .  .  §3.6 cases 2, 3; §3.10.7.4 eighth; §3.8.1 again
    R rst         -  RS RS RS RS RS RS RS RS RS =  5961 §3.2 exact; §3.10.7.3 second: no ACK
    R rst~        -  -  -  .  -  .  .  .  .  .  .  5961 §3.2 in the window: challenged
    R rst!        -  -  -  -  -  -  -  -  -  -  -  5961 §3.2 outside: discarded
    R refusal     RS -  RS -  -  -  -  -  -  -  -  §3.5.2 group 1; §3.10.7.3 second
    R bogus       -  -  -  -  -  -  -  -  -  -  -  §3.10.7: neither SYN, RST nor ACK
";

/// Conversations from the first SYN on, with what becomes of each segment, as in [`TABLE`].
const CONVERSATIONS: &[(&str, &str)] = &[
    ("§3.5 figure 6: the handshake", "R syn-ack SR, O ack ES, O data =, R ack ="),
    ("§3.8.1: a SYN again, a SYN-ACK again, the last ACK again", "
        O syn =, O syn =, R syn-ack SR, O syn =, R syn-ack =, O ack ES, R syn-ack ., O ack ="),
    ("§3.5 figure 7: a simultaneous open, by SYN-ACKs", "
        R syn SX, O syn-ack SO, R syn-ack ES, O ack =, R data =, O data ="),
    ("5382 REQ-2: a simultaneous open, the other way round, with SYNs again", "
        R syn SX, R syn =, O syn =, R syn-ack SY, R syn-ack =, O syn-ack ES, R ack =, R data ="),
    ("§3.10.7.4 fifth: a simultaneous open, by an ACK", "R syn SX, O syn-ack SO, R ack ES, R data ="),
    ("§3.6 figure 12: closed by the one, then by the other", "
        R syn-ack SR, O ack ES, O fin FO, R ack =, R fin CL, O ack TW"),
    ("§3.6 figure 12: closed by the other, then by the one", "
        R syn-ack SR, O ack ES, R fin FR, O ack =, O fin CL, R ack TW"),
    ("§3.6.1: half-closed, with data the other way", "
        R syn-ack SR, O ack ES, O data =, O fin FO, R ack =, R data =, O ack =, R data =, R data =,
        O ack =, R fin CL, O ack TW"),
    ("§3.6.1: half-closed by the other, with data", "
        R syn-ack SR, O ack ES, R fin FR, O ack =, O data =, R ack =, O data =, O fin CL, R ack TW"),
    ("§3.8.1: FINs again", "
        R syn-ack SR, O ack ES, O fin FO, O fin =, R ack =, R fin CL, R fin =, O ack TW, R fin .,
        O ack ="),
    ("§3.10.7.4 fifth: a FIN with the handshake's last ACK", "R syn-ack SR, O fin FO, R fin CL, O ack TW"),
    ("§3.5.2 group 1: refused, and asked again", "R refusal RS, O syn +"),
    ("5961 §3.2: a guessed RST, and the real one", "
        R syn-ack SR, O ack ES, R rst! -, R rst~ ., O ack =, R data =, R rst RS, O data ., O syn +"),
    ("5961 §4.2: a guessed SYN, and its challenge, which its sender has no use for", "
        R syn-ack SR, O ack ES, O syn' ., R ack =, O data =, R data =, O fin FO, R fin CL, O ack TW"),
    ("5961 §4.2: the one has restarted, the other challenges it and is told", "
        R syn-ack SR, O ack ES, O syn' ., R ack =, O rst RS, O syn' +"),
    ("1122 §4.2.2.13: the ports again, by a greater number", "
        R syn-ack SR, O ack ES, O fin FO, R fin CL, O ack TW, O syn' +, R syn' +"),
    ("6191 §2: the ports again, by a smaller number: challenged, reset, sent again", "
        R syn-ack SR, O ack ES, O fin FO, R fin CL, O ack TW, O syn^ ., R ack =, O rst RS, O syn^ +"),
];

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
            is_cut: false,
            scale: None,
        };
        let syn = Segment { control: Control::Syn, has_ack: false, seq: iss, ack: 0, ..plain };
        let syn_ack = Segment { control: Control::SynAck, seq: iss, ack: peer_iss + 1, ..plain };
        let rst = Segment { control: Control::Rst, has_ack: false, ack: 0, ..plain };
        match event {
            "syn" => syn,
            "syn'" => Segment { seq: iss + 77_777, ..syn },
            "syn^" => Segment { seq: iss.wrapping_sub(77_777), ..syn },
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

/// The step that a cell of the table says a connection in `state` takes.
fn step_named(cell: &str, state: TcpState, windows: Windows) -> Step {
    match cell {
        "~" if windows == Windows::Checked => Step::Invalid,
        "~" => Step::Aside,
        "=" => Step::To(state),
        "." => Step::Aside,
        "+" => Step::Anew,
        "-" => Step::Invalid,
        name => Step::To(state_named(name)),
    }
}

#[test]
fn every_state_answers_every_segment_as_the_table_says() {
    let mut checked = 0;
    let mut lines = TABLE.trim().lines();
    let columns: Vec<_> = lines.next().unwrap().split_whitespace().map(state_named).collect();
    for line in lines {
        let (event, cells) = line.trim().split_at(14);
        let (side, event) = side_and_event(event.trim());
        let (cells, source) = cells.split_at(3 * columns.len());
        assert!(source.contains('§'), "{line}");
        for (&state, cell) in columns.iter().zip(cells.split_whitespace()) {
            for windows in [Windows::Checked, Windows::Ignored] {
                let mut wire = Wire::reach_with(state, windows);
                let step = wire.send(side, wire.segment(side, event));
                let expected = step_named(cell, state, windows);
                assert_eq!(step, expected, "{side:?} {event} in {state:?}, {windows:?}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 2 * 2 * 13 * STATES.len());
}

#[test]
fn conversations_go_as_the_standards_say() {
    for (what, conversation) in CONVERSATIONS {
        for windows in [Windows::Checked, Windows::Ignored] {
            let mut wire = Wire::begin_with("syn", windows);
            for part in conversation.split(',').map(str::trim) {
                let (event, cell) = part.rsplit_once(' ').unwrap();
                let (side, event) = side_and_event(event);
                let expected = step_named(cell, wire.state, windows);
                let step = wire.send(side, wire.segment(side, event));
                assert_eq!(step, expected, "{what}: {part}, {windows:?}");
            }
        }
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
fn sequence_numbers_may_wrap() {
    let wire = Wire::begin("syn");
    let near_end = u32::MAX - 3;
    let syn = Segment { seq: near_end, ..wire.segment(Side::Original, "syn") };
    let windows = Windows::Checked;
    let (tcp, state) = Tcp::begin(&syn, windows);
    let mut wire = Wire { windows, tcp, state, next: [near_end + 1, near_end + 1] };
    let ack = near_end + 1;
    wire.send(Side::Reply, Segment { seq: near_end, ack, ..wire.segment(Side::Reply, "syn-ack") });
    wire.run("O ack");
    assert_eq!(wire.state, Established);
    let long = Segment { payload: 100, ..wire.segment(Side::Original, "data") };
    assert_eq!(wire.send(Side::Original, long), Step::To(Established));
    wire.next[0] = long.next();
    let step = wire.send(Side::Original, wire.segment(Side::Original, "rst"));
    assert_eq!(step, Step::To(Reset));
}

/// RFC 9293 §3.5.1, figure 9: the server still has the connection that the client has lost and
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

/// Both hosts have restarted and use the same ports again, and the switch has not noticed; or the
/// host in TIME-WAIT has taken a smaller number for its later timestamp (RFC 6191 §2).
#[test]
fn a_connection_that_the_hosts_have_done_with_opens_again() {
    for before in [Established, FinOriginal, FinReply, Closing, TimeWait] {
        let mut wire = Wire::reach(before);
        let syn = wire.segment(Side::Original, "syn^");
        assert_eq!(wire.send(Side::Original, syn), Step::Aside);
        let answer = wire.segment(Side::Reply, "syn-ack");
        let unasked = Segment { ack: syn.next() + 1, ..answer };
        let is_over = matches!(before, Closing | TimeWait);
        let expected = if is_over { Step::Invalid } else { Step::Aside };
        assert_eq!(wire.send(Side::Reply, unasked), expected);
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
        for ending in ["R data, O fin, R fin, O ack", "O rst", "R rst", "R data, O ack, R rst"] {
            let mut wire = Wire::begin(first);
            assert_eq!(wire.state, Established);
            wire.next[0] = wire.segment(Side::Original, first).next();
            wire.run(ending);
            assert!(matches!(wire.state, TimeWait | Reset), "{first}, {ending}");
        }
    }
}

fn headers(flags: TcpFlags, fragment: Option<Fragment>) -> Headers {
    let key = crate::FlowKey { tcp_flags: flags.bits(), ..Default::default() };
    let (tcp, kind) = (TcpFields::default(), Kind::Plain);
    Headers { key, vlan_tags: 0, l3: 14, l4: 34, end: 54, tcp, kind, fragment }
}

#[test]
fn a_first_fragment_is_a_cut_segment() {
    let fragment = |more| Some(Fragment { id: 1, offset: 0, len: 24, more });
    for (fragment, is_cut) in [(None, false), (fragment(false), false), (fragment(true), true)] {
        assert_eq!(Segment::of(&headers(TcpFlags::ACK, fragment)).is_cut, is_cut);
    }
}

#[test]
fn flags_tell_what_a_segment_is() {
    let control = |flags: TcpFlags| Segment::of(&headers(flags, None)).control;
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
