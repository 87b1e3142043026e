//! However several workers take turns, each frame meets the fate that one worker would have given it, and
//! none overtakes another one of its flow.

use std::collections::BTreeMap;

use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::extract::{Kind, extract};
use firedoor_classifier::{DropReason, PortId, Snapshot};
use firedoor_dataplane::port::memory::Choose;
use firedoor_tests::fabric::{Fabric, aligned, scattered, snapshot};
use proptest::prelude::*;

use crate::common::{API, CONFIG, DB, WEB, ends, segment};

/// Few connections, so that the directory has few buckets and flows share them.
fn policy() -> Snapshot {
    let both_ways = "\n[[rule]]\nname = \"dns-back\"\nfrom = { tier = \"api\" }\n\
                     to = { tier = \"web\" }\nservice = [\"udp/53\"]\naction = \"allow\"\n";
    let mut snapshot = snapshot(&format!("{CONFIG}{both_ways}"));
    snapshot.settings.max_connections = 48;
    snapshot.settings.max_connections_per_port = 48;
    snapshot
}

/// What a flow does.
#[derive(Clone, Copy, Debug)]
enum Script {
    /// Questions, then answers, then both at once.
    Udp,
    /// Answers before any question, and then questions.
    Backwards,
    /// Both sides begin at once; both may.
    Crossing,
    /// TCP that opens, is reset, and opens again.
    Tcp,
    /// What policy refuses.
    Denied,
    /// Questions and an error about them.
    Error,
}

/// A frame, and who sends it.
type Sent = (&'static str, Vec<u8>);

impl Script {
    /// The frames of a flow of that number. Those of one round are on their way together.
    fn rounds(self, flow: u16) -> Vec<Vec<Sent>> {
        let (there, back) = (ends(WEB, API), ends(API, WEB));
        let port = 5_000 + flow;
        let numbered = |from, ends: Ends, ports: (u16, u16), numbers: [u8; 3]| {
            numbers.map(|n| (from, build::udp(ends, ports.0, ports.1, &[n]))).to_vec()
        };
        let ask = |numbers| numbered("web", there, (port, 53), numbers);
        let answer = |numbers| numbered("api", back, (53, port), numbers);
        let tcp = |from, ends, flags, numbers: (u32, u32)| {
            let ports = if from == "web" { (port, 8080) } else { (8080, port) };
            vec![(from, segment(ends, ports, flags, numbers.0, numbers.1))]
        };
        match self {
            Self::Udp => vec![
                ask([1, 2, 3]),
                answer([4, 5, 6]),
                [ask([7, 8, 9]), answer([10, 11, 12])].concat(),
            ],
            Self::Backwards => vec![answer([1, 2, 3]), ask([4, 5, 6]), answer([7, 8, 9])],
            Self::Crossing => {
                let (out, home) = ((53, 53), (53, 53));
                // One flow of each test has these ports; more are the same flow, which is as well.
                let ask = numbered("web", there, out, [1, 2, 3]);
                let cross = numbered("api", back, home, [4, 5, 6]);
                vec![[ask.clone(), cross.clone()].concat(), [cross, ask].concat()]
            }
            Self::Tcp => {
                let open = [
                    tcp("web", there, TcpFlags::SYN, (100, 0)),
                    tcp("api", back, TcpFlags::SYN | TcpFlags::ACK, (500, 101)),
                    tcp("web", there, TcpFlags::ACK, (101, 501)),
                    tcp("api", back, TcpFlags::RST | TcpFlags::ACK, (501, 101)),
                    tcp("web", there, TcpFlags::ACK, (101, 501)),
                ];
                [open.clone(), open].concat()
            }
            Self::Denied => vec![numbered("web", ends(WEB, DB), (port, 22), [1, 2, 3])],
            Self::Error => {
                let question = build::udp(there, port, 53, &[1]);
                let error = build::icmp_error(back, 3, 3, &question[14..]);
                vec![vec![("web", question)], vec![("api", error)], ask([2, 3, 4])]
            }
        }
    }
}

fn script() -> impl Strategy<Value = Script> {
    use Script::{Backwards, Crossing, Denied, Error, Tcp, Udp};
    prop::sample::select(vec![Udp, Backwards, Crossing, Tcp, Denied, Error])
}

/// What each receiver got of each flow, in order, and what was dropped why.
type Fates = (BTreeMap<(String, [u16; 2]), Vec<Vec<u8>>>, Vec<(DropReason, u64)>);

/// Sends the flows' rounds, and lets workers turn as `turns` says in between.
fn play(mut fabric: Fabric, scripts: &[Script], turns: &[prop::sample::Index]) -> Fates {
    let flows: Vec<Vec<Vec<Sent>>> =
        scripts.iter().zip(0..).map(|(script, flow)| script.rounds(flow)).collect();
    let longest = flows.iter().map(Vec::len).max().unwrap_or(0);
    let mut turns = turns.iter().cycle();
    let mut received: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for round in 0..longest {
        for (from, frame) in flows.iter().filter_map(|flow| flow.get(round)).flatten() {
            fabric.wire(from).send(frame.clone());
            if let Some(turn) = turns.next() {
                // As often as not, nobody turns.
                let worker = turn.index(2 * fabric.workers());
                if worker < fabric.workers() {
                    fabric.turn(worker);
                }
            }
        }
        fabric.settle();
        for (to, frame) in fabric.received() {
            let flow = flow_of(&frame);
            received.entry((to, flow)).or_default().push(frame);
        }
    }
    let drops = fabric.drops();
    fabric.finish();
    (received, drops)
}

/// The ports of a frame, or of the one that it is an error about.
fn flow_of(frame: &[u8]) -> [u16; 2] {
    let headers = extract(frame, PortId(0)).expect("what the switch sent");
    match headers.kind {
        Kind::IcmpError(about) => [about.src_port, about.dst_port],
        _ => [headers.key.src_port, headers.key.dst_port],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn several_workers_judge_as_one(
        scripts in prop::collection::vec(script(), 1..8),
        workers in 2..4_u16,
        is_aligned in any::<bool>(),
        turns in prop::collection::vec(any::<prop::sample::Index>(), 1..64),
    ) {
        let choose: Choose = if is_aligned { aligned } else { scattered };
        let expected = play(Fabric::of(policy()), &scripts, &turns);
        let several = play(Fabric::with_queues(policy(), workers, choose), &scripts, &turns);
        prop_assert_eq!(several, expected);
    }
}
