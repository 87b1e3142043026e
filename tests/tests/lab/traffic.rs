//! Traffic that policy allows works as on any network.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread;

use firedoor_lab::guest::{Forward, Guest, GuestConfig};
use firedoor_lab::netns::Netns;

use crate::fixture::{
    Fixture, PATIENCE, WebServer, allow, checksum_of, container, curl, ensure, firedoor, on_lane,
    pair, printed, start_in, v4, v6, wait_for_listener,
};
use crate::{Shown, Test};

const PORT: u16 = 8080;
/// Where iperf3 listens: a server for each family, since one serves one client at a time.
const IPERF: [u16; 2] = [5201, 5202];
const LENGTH: u64 = 100_000_000;

pub(crate) const TESTS: &[Test] = &[
    ("containers_ping_each_other_over_both_families", &["ping"], ping_between_containers),
    ("containers_fetch_100_MB_intact_over_both_families", &["curl"], curl_between_containers),
    ("containers_run_iperf3_for_10_s_over_both_families", &["iperf3"], iperf3_between_containers),
    ("container_and_guest_behind_a_tap_ping_each_other", &["ping"], ping_to_guest),
    ("container_and_guest_behind_a_tap_fetch_100_MB_intact", &["curl"], curl_with_guest),
    ("container_and_guest_behind_a_tap_run_iperf3_for_10_s", &["iperf3"], iperf3_with_guest),
    ("lab_exec_runs_where_the_workload_is", &["sh", "cat"], exec),
    ("tcp_works_with_offloads_on_and_leaves_them_so", &["ethtool", "curl"], offloads_stay),
];

fn ping_between_containers() -> Shown {
    let lab = Fixture::up(&pair(&allow("a", "b", "any")))?;
    for to in [v4(2), v6(2)] {
        ping(&lab, "a", &to.to_string(), &[])?;
    }
    Ok(())
}

/// Pings with more of ping's options, and returns what it said. All must be answered, the last within the interval.
pub(crate) fn ping(
    lab: &Fixture,
    from: &str,
    to: &str,
    options: &[&str],
) -> Result<String, libtest_mimic::Failed> {
    let all = ["-n", "-c", "5", "-i", "0.3", "-W", "5", to];
    let said = lab.run(from, "ping", &[&all, options].concat())?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    Ok(said)
}

fn curl_between_containers() -> Shown {
    let lab = Fixture::up(&pair(&allow("a", "b", &format!("tcp/{PORT}"))))?;
    let _server = WebServer::start(&lab.netns("b")?, PORT, LENGTH)?;
    let client = lab.netns("a")?;
    fetch(&client, SocketAddr::new(v4(2), PORT))?;
    fetch(&client, SocketAddr::new(v6(2), PORT))
}

fn fetch(client: &Netns, server: SocketAddr) -> Shown {
    let came = curl(client, &format!("http://{server}/"))?;
    ensure!(came == checksum_of(LENGTH), "from {server} came {came:x?}");
    Ok(())
}

fn iperf3_between_containers() -> Shown {
    let lab = Fixture::up(&pair(&allow("a", "b", "tcp/5201-5202")))?;
    iperf3_over_both(&lab, &lab.netns("b")?)
}

/// Both families at once, from `a` to where the servers are reached as `b`.
fn iperf3_over_both(lab: &Fixture, servers: &Netns) -> Shown {
    let mut running = Vec::new();
    for port in IPERF {
        running.push(start_in(servers, "iperf3", &["-s", "-p", &port.to_string()])?);
        wait_for_listener(servers, port)?;
    }
    thread::scope(|scope| {
        let clients: Vec<_> = [v4(2), v6(2)]
            .into_iter()
            .zip(IPERF)
            .map(|(to, port)| scope.spawn(move || iperf3(lab, &to.to_string(), port)))
            .collect();
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| "iperf3 panicked")?)
    })
}

fn iperf3(lab: &Fixture, to: &str, port: u16) -> Shown {
    let port = port.to_string();
    let said = lab.run("a", "iperf3", &["-c", to, "-p", &port, "-t", "10", "-J"])?;
    let report: serde_json::Value = serde_json::from_str(&said)?;
    ensure!(report.get("error").is_none(), "iperf3 to {to}: {}", report["error"]);
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_default();
    ensure!(rate > 0.0, "iperf3 to {to} received nothing");
    println!("iperf3 to {to}: {:.2} Gbit/s", rate / 1e9);
    Ok(())
}

/// A container `a` and a guest `b` who may do anything with each other. Connections to the guest's
/// web and iperf3 ports are answered by programs in the switch's namespace, by way of its stack.
fn with_guest() -> Result<(Fixture, Guest), libtest_mimic::Failed> {
    let guest = container("b", 2).replace("\"container\"", "\"vm\"");
    let rules = allow("a", "b", "any") + &allow("b", "a", "any");
    let lab = Fixture::up(&format!("{}{guest}{rules}", container("a", 1)))?;
    let host = lab.host("b")?;
    let config = GuestConfig {
        mac: host.mac.ok_or("a vm has a MAC address")?,
        addresses: host.addresses.clone(),
        forward: [PORT, IPERF[0], IPERF[1]]
            .map(|port| Forward { port, to: SocketAddr::from(([127, 0, 0, 1], port)) })
            .to_vec(),
        ..GuestConfig::default()
    };
    let guest = Guest::start(lab.switch_netns()?, &host.ifname, config)?;
    Ok((lab, guest))
}

fn ping_to_guest() -> Shown {
    use firedoor_lab::probe::{Outcome, Service};
    let (lab, guest) = with_guest()?;
    for (container, at_guest) in [(v4(1), v4(2)), (v6(1), v6(2))] {
        ping(&lab, "a", &at_guest.to_string(), &[])?;
        let answer = guest.probe(container, Service::Ping, PATIENCE)?;
        ensure!(answer.outcome == Outcome::Reachable, "the guest heard {answer:?}");
    }
    Ok(())
}

fn curl_with_guest() -> Shown {
    let (lab, guest) = with_guest()?;
    let (container, switch) = (lab.netns("a")?, lab.switch_netns()?);
    let _at_guest = WebServer::start(&switch, PORT, LENGTH)?;
    let _at_container = WebServer::start(&container, PORT, LENGTH)?;
    for (at_container, at_guest) in [(v4(1), v4(2)), (v6(1), v6(2))] {
        fetch(&container, SocketAddr::new(at_guest, PORT))?;
        fetch(&switch, guest.proxy(SocketAddr::new(at_container, PORT))?)?;
    }
    Ok(())
}

fn iperf3_with_guest() -> Shown {
    let (lab, _guest) = with_guest()?;
    iperf3_over_both(&lab, &lab.switch_netns()?)
}

fn exec() -> Shown {
    let lab = Fixture::of_config("two-vms.toml")?;
    let say = |workload: &str, script: &str| {
        let mut exec = Command::new(firedoor());
        exec.args(["lab", "exec", "--switch", lab.name(), workload, "--", "sh", "-c", script]);
        printed("firedoor lab exec", &exec.output()?)
    };
    let hosts = say("client", "cat /etc/hosts")?;
    ensure!(hosts.contains("10.20.0.11 vm1"), "the container does not know vm1:\n{hosts}");
    let interfaces = say("client", "cat /proc/net/dev")?;
    ensure!(interfaces.contains("eth0"), "not in the container's namespace:\n{interfaces}");
    let tap = say("vm2", "echo $FIREDOOR_TAP; cat /proc/net/dev")?;
    ensure!(tap.starts_with("fdtap2\n") && tap.contains("fdtap2:"), "not where the tap is:\n{tap}");
    what_it_started_ends_with_the_lab(lab)
}

fn what_it_started_ends_with_the_lab(lab: Fixture) -> Shown {
    let mut exec = Command::new(firedoor());
    exec.args(["lab", "exec", "--switch", lab.name(), "client", "--"]);
    // The pipe stays open as long as the shell or what it started lives.
    let mut shell = exec.args(["sh", "-c", "echo up; sleep 600"]).stdout(Stdio::piped()).spawn()?;
    let mut out = BufReader::new(shell.stdout.take().ok_or("the shell has no standard output")?);
    out.read_line(&mut String::new())?;
    let down = lab.down();
    let ended = shell.try_wait()?.is_some();
    if !ended {
        shell.kill()?;
    }
    shell.wait()?;
    down?;
    ensure!(ended, "the shell outlived its lab");
    let mut rest = String::new();
    out.read_to_string(&mut rest)?;
    ensure!(rest.is_empty(), "the shell went on to say {rest:?}");
    Ok(())
}

/// On the switch lane, which completes checksums itself.
fn offloads_stay() -> Shown {
    let rule = allow("a", "b", &format!("tcp/{PORT}"));
    let lab = on_lane("switch", || Fixture::up(&pair(&rule)))?;
    let offloads = || lab.run("a", "ethtool", &["-k", "eth0"]);
    let before = offloads()?;
    ensure!(before.contains("tx-checksumming: on"), "checksum offload is off:\n{before}");
    let _server = WebServer::start(&lab.netns("b")?, PORT, 1_000_000)?;
    let came = curl(&lab.netns("a")?, &format!("http://{}/", SocketAddr::new(v4(2), PORT)))?;
    ensure!(came == checksum_of(1_000_000), "came {came:x?}");
    ensure!(before == offloads()?, "offloads have changed");
    let completed = lab.status()?.dataplane.map_or(0, |dataplane| dataplane.checksums_completed);
    ensure!(completed > 0, "no partial checksum was completed, so none can have come");
    Ok(())
}
