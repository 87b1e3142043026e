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

use crate::fixture::{Fixture, allow, ensure, on_lane, pair, v4};
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
/// Flows of each sender, and datagrams of each.
const FLOWS: u64 = 40;
const LENGTH: u32 = 4_000;

/// What came behind a later one of its flow.
#[derive(Debug)]
#[expect(dead_code, reason = "to be shown")]
struct Late {
    port: u16,
    number: u32,
    due: u32,
}

/// A sender on each of these processors, whose queues keep the order.
fn keep(workers: u16, processors: &[usize]) -> Shown {
    let rules = pair(&allow("a", "b", &format!("udp/{PORT}")));
    let lab = Fixture::up_with(&format!("workers = {workers}"), &rules)?;
    let (from, to) = (&lab.netns("a")?, SocketAddr::new(v4(2), PORT));
    let receiver = lab.netns("b")?.run(|| UdpSocket::bind(to))??;
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    meet(from, &receiver, to)?;
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
    let status = lab.status()?.dataplane.ok_or("the data plane does not answer")?;
    let judged: u64 = status.received_by.iter().sum();
    let flows = FLOWS * processors.len() as u64;
    println!("{came} came of {flows} flows, of which the switch judged {judged}");
    ensure!(judged >= flows && came > judged, "they did not take both ways");
    ensure!(late.is_empty(), "{} came late, first of all {:?}", late.len(), late[0]);
    Ok(())
}

/// One datagram. While a neighbour is asked for its address, the sender's own kernel may reorder what
/// waits for it.
fn meet(from: &Netns, receiver: &UdpSocket, to: SocketAddr) -> Shown {
    let socket = from.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    socket.send_to(&[0; 4], to)?;
    receiver.recv(&mut [0; 4])?;
    Ok(())
}

fn send(from: &Netns, processor: usize, to: SocketAddr) -> Shown {
    let mut processors = CpuSet::new();
    processors.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &processors)?;
    for _ in 0..FLOWS {
        let socket = from.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        socket.connect(to)?;
        for number in 0..LENGTH {
            socket.send(&number.to_be_bytes())?;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// How many came, and those that came late.
fn listen(socket: &UdpSocket, over: &AtomicBool) -> (u64, Vec<Late>) {
    let (mut came, mut late) = (0, Vec::new());
    let mut next: HashMap<u16, u32> = HashMap::new();
    let mut number = [0; 4];
    loop {
        match socket.recv_from(&mut number) {
            Ok((_, from)) => {
                came += 1;
                let (port, number) = (from.port(), u32::from_be_bytes(number));
                let due = next.entry(port).or_default();
                if number < *due {
                    late.push(Late { port, number, due: *due });
                }
                *due = (*due).max(number + 1);
            }
            Err(_) if over.load(Ordering::Relaxed) => return (came, late),
            Err(_) => {}
        }
    }
}
