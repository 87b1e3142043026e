//! What the switch costs, where that is promised.

use std::fs::File;
use std::io::{self, Read};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use firedoor_dataplane::wakefulness;
use firedoor_lab::probe::{Outcome, Service};
use firedoor_lab::state::ran_for;
use libtest_mimic::Failed;

use crate::fixture::{Fixture, allow, container, ensure, pair, v4, v6, wait_for};
use crate::{Shown, Test};

/// Where datagrams are sent that nobody reads.
const PORT: u16 = 9;

pub(crate) const TESTS: &[Test] = &[
    ("two_hundred_ports_in_one_switch_carry_traffic", &[], two_hundred_ports),
    ("twenty_idle_ports_cost_under_1_percent_of_a_core", &[], idle),
    ("processors_are_kept_awake_while_frames_come_often", &[], awake),
];

fn two_hundred_ports() -> Shown {
    const PORTS: u16 = 200;
    let name = |host| format!("w{host}");
    let workloads: String = (1..=PORTS).map(|host| container(&name(host), host)).collect();
    let start = Instant::now();
    let pairs = [(1, PORTS), (PORTS, 1), (2, 77), (100, 101), (199, 3)];
    let rules: String = pairs.iter().map(|&(a, b)| allow(&name(a), &name(b), "any")).collect();
    let lab = Fixture::up(&(workloads + &rules))?;
    println!("{PORTS} ports were up after {:.1} s", start.elapsed().as_secs_f64());
    for (a, b) in pairs {
        for address in [v4(b), v6(b)] {
            let heard = lab.ask(&name(a), address, Service::Ping)?;
            ensure!(heard == Outcome::Reachable, "{} heard {heard:?} from {address}", name(a));
        }
    }
    let heard = lab.ask(&name(77), v4(2), Service::Ping)?;
    ensure!(heard == Outcome::Silent, "without a rule, {} heard {heard:?}", name(77));
    lab.down()
}

fn idle() -> Shown {
    const SPAN: Duration = Duration::from_secs(10);
    let workloads: String = (1..=20).map(|host| container(&format!("w{host}"), host)).collect();
    let lab = Fixture::up(&workloads)?;
    // The containers' own first words (MLD, router solicitations) are over by then.
    std::thread::sleep(Duration::from_secs(5));
    let processes = lab.state().processes().len();
    ensure!(processes == 3, "supervisor, data plane and control are {processes} processes");
    let before = ran(&lab)?;
    std::thread::sleep(SPAN);
    let used = ran(&lab)?.saturating_sub(before);
    let share = used.as_secs_f64() / SPAN.as_secs_f64() * 100.0;
    println!("20 idle ports for {} s: {share:.2} % of a core", SPAN.as_secs());
    ensure!(share < 1.0, "20 idle ports used {share:.2} % of a core");
    Ok(())
}

fn awake() -> Shown {
    let config = pair(&allow("a", "b", "any"));
    let lab = Fixture::up_with("wake_within_us = 0", &config)?;
    let awake = || lab.dataplane()?.awake.ok_or_else(|| Failed::from("the config is not heeded"));
    if let Some(problem) = awake()?.problem {
        println!("not shown here: {problem}");
        let shown = lab.firedoor(&["status"])?.stdout;
        ensure!(String::from_utf8(shown)?.contains(&problem), "`status` does not say {problem}");
        return lab.down();
    }
    ensure!(!awake()?.held, "held while nothing is sent");

    let receiver = lab.netns("b")?.run(|| UdpSocket::bind((v4(2), PORT)))??;
    let sender = lab.netns("a")?.run(|| UdpSocket::bind((v4(1), 0)))??;
    sender.connect(receiver.local_addr()?)?;
    let held = wait_for(|| {
        for _ in 0..10_000 {
            sender.send(b"one more")?;
        }
        Ok(awake()?.held)
    })?;
    ensure!(held, "not held under load: {:?}", lab.dataplane()?);
    // Who reads it is told the least of what all ask for.
    let mut asked = [0; 4];
    File::open(wakefulness::DEVICE)?.read_exact(&mut asked)?;
    ensure!(asked == [0; 4], "the kernel was asked for {} µs", i32::from_ne_bytes(asked));
    let let_go = wait_for(|| Ok(!awake()?.held))?;
    ensure!(let_go, "still held when nothing is sent any more");

    lab.apply(&config)?;
    ensure!(lab.dataplane()?.awake.is_none(), "held though the config does not ask for it");
    lab.down()
}

/// What the switch's processes have run so far.
fn ran(lab: &Fixture) -> io::Result<Duration> {
    lab.state().processes().into_iter().map(ran_for).sum()
}
