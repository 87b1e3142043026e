//! What kernels cut into fragments arrives whole, or not at all.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use libtest_mimic::Failed;

use crate::fixture::{Fixture, PATIENCE, allow, ensure, pair, v4, v6};
use crate::traffic::ping;
use crate::{Shown, Test};

/// What policy allows, and what it does not.
const OPEN: u16 = 5_353;
const SHUT: u16 = 5_354;

pub(crate) const TESTS: &[Test] = &[
    ("pings_larger_than_the_mtu_are_answered_over_both_families", &["ping"], large_pings),
    ("datagrams_of_8_KB_arrive_whole_where_policy_allows_them", &[], large_datagrams),
];

fn large_pings() -> Shown {
    let rules =
        allow("a", "b", "icmp/echo") + &allow("a", "b", "icmp6/echo").replace("a-to", "a6-to");
    let lab = Fixture::up(&pair(&rules))?;
    for to in [v4(2), v6(2)] {
        let said = ping(&lab, "a", &to.to_string(), &["-s", "4000"])?;
        ensure!(said.contains("4008 bytes from"), "{said}");
    }
    lab.down()
}

fn large_datagrams() -> Shown {
    let lab = Fixture::up(&pair(&allow("a", "b", &format!("udp/{OPEN}"))))?;
    let datagram: Vec<u8> = (0..8_192_u32).map(|n| (n / 3) as u8).collect();
    for (from, to) in [(v4(1), v4(2)), (v6(1), v6(2))] {
        let came = exchange(&lab, (from, to), OPEN, PATIENCE, &datagram)?;
        ensure!(
            came.as_deref() == Some(&datagram),
            "to {to} came {:?} bytes",
            came.map(|b| b.len())
        );
        let came = exchange(&lab, (from, to), SHUT, Duration::from_secs(1), &datagram)?;
        ensure!(came.is_none(), "{} bytes came through a shut door", came.map_or(0, |b| b.len()));
    }
    let service = format!("udp/{SHUT}");
    let denies = lab.denies(|deny| deny.from == "a")?;
    ensure!(denies.iter().all(|deny| deny.service == service), "{denies:?}");
    lab.down()
}

/// Sends a datagram from a to b, which sends it back; what a hears, if anything.
fn exchange(
    lab: &Fixture,
    (from, to): (IpAddr, IpAddr),
    port: u16,
    patience: Duration,
    datagram: &[u8],
) -> Result<Option<Vec<u8>>, Failed> {
    let bind = |workload: &str, at: SocketAddr| -> Result<UdpSocket, Failed> {
        let socket = lab.netns(workload)?.run(|| UdpSocket::bind(at))??;
        socket.set_read_timeout(Some(patience))?;
        Ok(socket)
    };
    let server = bind("b", SocketAddr::new(to, port))?;
    let client = bind("a", SocketAddr::new(from, 0))?;
    client.send_to(datagram, SocketAddr::new(to, port))?;
    let Some((asked, client_address)) = hear(&server)? else { return Ok(None) };
    server.send_to(&asked, client_address)?;
    Ok(hear(&client)?.map(|(answer, _)| answer))
}

fn hear(socket: &UdpSocket) -> Result<Option<(Vec<u8>, SocketAddr)>, Failed> {
    let mut buffer = vec![0; 1 << 16];
    match socket.recv_from(&mut buffer) {
        Ok((len, from)) => Ok(Some((buffer[..len].to_vec(), from))),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
