//! Two workers, two queues: frames come in at both, and nobody at the far ends can tell.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use firedoor_api::control::{Reply, Request};
use libtest_mimic::Failed;

use crate::fixture::{Fixture, PATIENCE, allow, ensure, pair, v4};
use crate::{Shown, Test};

const OPEN: u16 = 5_353;
const SHUT: u16 = 5_354;
/// Flows, enough that one queue does not get them all.
const FLOWS: usize = 32;
/// Datagrams of each flow on their way at once, and how often.
const BURST: u32 = 4;
const ROUNDS: u32 = 100;

pub(crate) const TESTS: &[Test] =
    &[("flows_use_both_workers_and_keep_their_order", &[], flows_keep_their_order)];

/// Each flow's datagrams carry its number and theirs; b sends each one back.
fn flows_keep_their_order() -> Shown {
    let lab = Fixture::up(&pair(&allow("a", "b", &format!("udp/{OPEN}"))))?;
    let bind = |workload: &str, at: SocketAddr| -> Result<UdpSocket, Failed> {
        let socket = lab.netns(workload)?.run(|| UdpSocket::bind(at))??;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    let server = bind("b", SocketAddr::new(v4(2), OPEN))?;
    let clients: Vec<UdpSocket> =
        (0..FLOWS).map(|_| bind("a", SocketAddr::new(v4(1), 0))).collect::<Result<_, _>>()?;
    meet(&server, &clients[0])?;
    let mut expected = [0; FLOWS];
    for round in 0..ROUNDS {
        for (flow, client) in clients.iter().enumerate() {
            for number in round * BURST..(round + 1) * BURST {
                let text = [flow as u32, number].map(u32::to_be_bytes).concat();
                client.send_to(&text, SocketAddr::new(v4(2), OPEN))?;
            }
        }
        for _ in 0..FLOWS * BURST as usize {
            let Some((flow, number, from)) = hear(&server)? else {
                return Err(format!("round {round}: a datagram was lost").into());
            };
            let next = expected.get_mut(flow).ok_or("a flow that nobody sent")?;
            ensure!(number == *next, "flow {flow}: {number} came when {next} was due");
            *next += 1;
            let text = [flow as u32, number].map(u32::to_be_bytes).concat();
            server.send_to(&text, from)?;
        }
        for (flow, client) in clients.iter().enumerate() {
            for number in round * BURST..(round + 1) * BURST {
                let came = hear(client)?.map(|(flow, number, _)| (flow, number));
                ensure!(came == Some((flow, number)), "answers to {flow}: {came:?}, not {number}");
            }
        }
    }
    shut_stays_shut(&lab, &clients)?;
    both_worked(&lab)?;
    lab.down()
}

/// One datagram and its answer. While a neighbour is asked for its address, the sender's own kernel may
/// reorder what waits for it.
fn meet(server: &UdpSocket, client: &UdpSocket) -> Shown {
    client.send_to(&[0; 8], SocketAddr::new(v4(2), OPEN))?;
    let (.., from) = hear(server)?.ok_or("the first datagram was lost")?;
    server.send_to(&[0; 8], from)?;
    hear(client)?.ok_or("the first answer was lost")?;
    Ok(())
}

/// Whatever worker a frame comes to.
fn shut_stays_shut(lab: &Fixture, clients: &[UdpSocket]) -> Shown {
    let shut = lab.netns("b")?.run(|| UdpSocket::bind(SocketAddr::new(v4(2), SHUT)))??;
    shut.set_read_timeout(Some(Duration::from_secs(1)))?;
    for client in clients {
        client.send_to(&[0; 8], SocketAddr::new(v4(2), SHUT))?;
    }
    let came = hear(&shut)?;
    ensure!(came.is_none(), "{came:?} came through a shut door");
    Ok(())
}

fn both_worked(lab: &Fixture) -> Shown {
    let Reply::Status(status) = lab.request(&Request::Status)? else {
        return Err("no status".into());
    };
    let dataplane = status.dataplane.ok_or("no data plane")?;
    let received = dataplane.received_by;
    // Only the first frames of a flow: the kernel forwards the others, whichever worker it is of.
    let all = 2 * u64::from(ROUNDS * BURST) * FLOWS as u64;
    let worked = |&frames: &u64| frames > FLOWS as u64 && frames < all / 4;
    ensure!(received.len() == 2 && received.iter().all(worked), "of {all}: {received:?}");
    for port in &status.ports {
        ensure!(port.workers == [0, 1], "{}: queues at {:?}", port.workload, port.workers);
    }
    Ok(())
}

/// A datagram's flow, its number, and who sent it; `None` if none comes while the socket waits.
fn hear(socket: &UdpSocket) -> Result<Option<(usize, u32, SocketAddr)>, Failed> {
    let mut text = [0; 8];
    match socket.recv_from(&mut text) {
        Ok((_, from)) => {
            let [flow, number] =
                [0, 4].map(|at| u32::from_be_bytes(std::array::from_fn(|i| text[at + i])));
            Ok(Some((flow as usize, number, from)))
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
