//! A flow keeps its order while it changes lanes: datagrams of one flow after the other, as fast as they
//! can be sent, of which the first ones pass the switch and the others the kernel.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use firedoor_lab::netns::Netns;
use libtest_mimic::Failed;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::fixture::{Fixture, allow, ensure, on_lane, pair, v4, wait_for};
use crate::{Shown, Test};

pub(crate) const TESTS: &[Test] = &[
    ("express_flows_keep_their_order_while_they_change_lanes", &[], || keep(1, &[0, 1])),
    ("by_two_workers_express_flows_keep_their_order_while_they_change_lanes", &[], || {
        keep(2, &[0, 1])
    }),
    ("on_switch_lane_flows_keep_their_order_while_they_change_to_xdp", &[], || {
        on_lane("switch", || keep(1, &[0, 1]))
    }),
    // What XDP redirects to a veth is queued there by the processor that redirects it; so with several
    // queues, two processors' frames must not come in by the same one.
    ("by_two_workers_flows_keep_their_order_while_they_change_to_xdp", &[], || {
        on_lane("switch", || keep(2, &[0]))
    }),
];

const PORT: u16 = 5_353;
/// Flows of each sender, and datagrams of each: more than are sent while a full ring is judged by a debug build,
/// or a flow is over before its first datagram's turn comes.
const FLOWS: u32 = 40;
const LENGTH: u32 = 16_000;

/// One of so many may be late. A receiver's kernel that polls takes up to eight packets in a row from their
/// senders before it delivers the first (`ip_list_rcv`); if its processor stands still then, another one delivers
/// what came later. Without counting what is on the long way, one of twenty was late.
const FEW: u64 = 1_000;

/// What came behind a later one of its flow.
#[derive(Debug)]
#[expect(dead_code, reason = "to be shown")]
struct Late {
    flow: u32,
    number: u32,
    due: u32,
}

/// A sender on each of these processors, whose queues keep the order.
fn keep(workers: u16, processors: &[usize]) -> Shown {
    let rules = pair(&allow("a", "b", &format!("udp/{PORT}")));
    let lab = Fixture::up_with(&format!("workers = {workers}"), &rules)?;
    let (from, to) = (&lab.netns("a")?, SocketAddr::new(v4(2), PORT));
    let receiver = lab.netns("b")?.run(|| UdpSocket::bind(to))??;
    receiver.set_read_timeout(Some(Duration::from_secs(10)))?;
    meet(from, &receiver, to)?;
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    let over = AtomicBool::new(false);
    let (came, late) = thread::scope(|scope| {
        let listener = scope.spawn(|| listen(&receiver, &over));
        let senders = processors.iter().map(|&at| scope.spawn(move || send(from, at, to)));
        let sent = senders.collect::<Vec<_>>().into_iter().map(ScopedJoinHandle::join);
        let sent = sent.collect::<Vec<_>>();
        over.store(true, Ordering::Relaxed);
        sent.into_iter().try_for_each(|sent| sent.map_err(|_| "a sender panicked")?)?;
        Ok::<_, Failed>(listener.join().map_err(|_| "the listener panicked")?)
    })?;
    let (mut judged, mut sent) = (0, 0);
    // What the kernel has sent is counted within a second or two.
    let both_ways = wait_for(|| {
        let status = lab.dataplane()?;
        (judged, sent) = (status.received_by.iter().sum(), status.sent);
        Ok(judged >= u64::from(FLOWS) && sent > judged)
    })?;
    println!(
        "{came} came, {} of them late; {sent} were sent on, the switch judged {judged}",
        late.len()
    );
    ensure!(both_ways, "of {sent}, the switch judged {judged}");
    let few = came / FEW;
    ensure!(late.len() as u64 <= few, "{} came late, first of all {:?}", late.len(), late[0]);
    Ok(())
}

/// One datagram. While a neighbour is asked for its address, the sender's own kernel may reorder what
/// waits for it.
fn meet(from: &Netns, receiver: &UdpSocket, to: SocketAddr) -> Shown {
    let socket = from.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    socket.send_to(&[0; 8], to)?;
    receiver.recv(&mut [0; 8])?;
    Ok(())
}

fn send(from: &Netns, processor: usize, to: SocketAddr) -> Shown {
    let mut processors = CpuSet::new();
    processors.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &processors)?;
    for nth in 0..FLOWS {
        // Not by its port, which another one may get after it.
        let flow = processor as u32 * FLOWS + nth;
        let socket = from.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        socket.connect(to)?;
        for number in 0..LENGTH {
            socket.send(&[flow, number].map(u32::to_be_bytes).concat())?;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// How many came, and those that came late. Beyond the socket's buffer, they are lost.
fn listen(socket: &UdpSocket, over: &AtomicBool) -> (u64, Vec<Late>) {
    let (mut came, mut late) = (0, Vec::new());
    let mut next: HashMap<u32, u32> = HashMap::new();
    let mut text = [0; 8];
    loop {
        match socket.recv(&mut text) {
            Ok(_) => {
                came += 1;
                let [flow, number] =
                    [0, 4].map(|at| u32::from_be_bytes(std::array::from_fn(|i| text[at + i])));
                let due = next.entry(flow).or_default();
                if number < *due {
                    late.push(Late { flow, number, due: *due });
                }
                *due = (*due).max(number + 1);
            }
            Err(_) if over.load(Ordering::Relaxed) => return (came, late),
            Err(_) => {}
        }
    }
}
