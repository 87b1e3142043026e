//! What policy says is what happens, from the moment on that it says so.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use firedoor_classifier::build::{self, Ends};
use firedoor_classifier::wire::ethernet;
use firedoor_classifier::{DropReason, MacAddr};
use firedoor_lab::netns::Netns;
use firedoor_lab::probe::{Outcome, Responder, Service};
use firedoor_lab::reach::{self, Crew, Question};
use libtest_mimic::Failed;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::bind;
use socket2::{Domain, Protocol, Socket, Type};

use crate::fixture::{
    ANSWER, Counted, Fixture, PATIENCE, Stream, allow, connect, container, echoes, ensure, is_cut,
    pair, printed, received, v4, v6, wait_for,
};
use crate::{Shown, Test};

const ECHO: Service = Service::Tcp(7);
const PORT: u16 = 7;

pub(crate) const TESTS: &[Test] = &[
    ("replies_pass_with_only_the_forward_rule", &[], replies_pass),
    ("a_removed_rule_cuts_the_live_connection_and_an_added_one_opens_it", &[], rules_cut_and_open),
    ("an_apply_loses_no_frame_of_untouched_connections", &[], apply_loses_nothing),
    ("a_config_that_does_not_compile_changes_nothing", &[], broken_config),
    ("three_tier_trace_and_connectivity_agree_with_real_traffic", &[], || agree("three-tier.toml")),
    ("two_vms_trace_and_connectivity_agree_with_real_traffic", &[], || agree("two-vms.toml")),
    ("dual_stack_trace_and_connectivity_agree_with_real_traffic", &[], || agree("dual-stack.toml")),
    ("audit_mode_records_what_it_would_deny_and_blocks_nothing", &[], audit_mode),
    ("learn_mode_records_no_denial_and_blocks_nothing", &[], learn_mode),
    ("a_router_carries_what_policy_allows_to_the_outside", &["ip"], router),
    ("spoofed_frames_are_dropped_and_counted", &[], spoofing),
    ("a_rule_for_source_ports_lets_real_sockets_at_these_ports_alone_pass", &[], source_ports),
    ("a_frame_that_is_not_ip_passes_where_a_rule_names_its_ethertype", &[], not_ip),
    ("tshark_opens_the_capture_and_shows_who_why_and_which_rule", &["tshark"], capture_comments),
];

fn replies_pass() -> Shown {
    let lab = Fixture::up(&pair(&allow("a", "b", "tcp/7")))?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    let _responders = (Responder::start(&a, &[ECHO])?, Responder::start(&b, &[ECHO])?);
    for (at_a, at_b) in [(v4(1), v4(2)), (v6(1), v6(2))] {
        let (forward, back) = (lab.ask("a", at_b, ECHO)?, lab.ask("b", at_a, ECHO)?);
        ensure!(forward == Outcome::Reachable, "a heard {forward:?} from {at_b}");
        ensure!(back == Outcome::Silent, "b heard {back:?} from {at_a}, which no rule allows");
    }
    Ok(())
}

fn rules_cut_and_open() -> Shown {
    let (shut, open) = (pair(""), pair(&allow("a", "b", "tcp/7")));
    let lab = Fixture::up(&open)?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    let _responder = Responder::start(&b, &[ECHO])?;

    let mut connection = connect(&a, SocketAddr::new(v4(2), PORT))?;
    ensure!(echoes(&mut connection), "the connection does not work to begin with");
    lab.apply(&shut)?;
    ensure!(is_cut(&mut connection), "the live connection goes on without its rule");
    let after = lab.ask("a", v4(2), ECHO)?;
    ensure!(after == Outcome::Silent, "a new connection without a rule heard {after:?}");
    lab.apply(&open)?;
    let after = lab.ask("a", v4(2), ECHO)?;
    ensure!(after == Outcome::Reachable, "with the rule back, a heard {after:?}");
    Ok(())
}

fn apply_loses_nothing() -> Shown {
    let four = ["a", "b", "c", "d"].iter().zip(1..).map(|(name, host)| container(name, host));
    let base = four.collect::<String>() + &allow("c", "d", "udp/9");
    let changed = base.clone() + &allow("a", "b", "tcp/7");
    let lab = Fixture::up(&base)?;
    let stream = Stream::start(&lab.netns("c")?, &lab.netns("d")?, v4(4), 9)?;
    for _ in 0..10 {
        lab.apply(&changed)?;
        lab.apply(&base)?;
    }
    let counted = stream.end()?;
    println!("over 20 applies: {counted:?}");
    nothing_lost(counted)
}

pub(crate) fn nothing_lost(counted: Counted) -> Shown {
    ensure!(counted.sent > 100, "too few datagrams to tell: {counted:?}");
    ensure!(counted.sent == counted.came, "datagrams were lost: {counted:?}");
    Ok(())
}

fn broken_config() -> Shown {
    let good = pair(&allow("a", "b", "tcp/7"));
    let lab = Fixture::up(&good)?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let (epoch, snapshot) = (lab.epoch()?, lab.snapshot()?);
    for broken in
        [good.replace("action", "acton"), good.replace("\"b\" }", "\"nobody\" }"), "[".into()]
    {
        ensure!(lab.apply(&broken).is_err(), "a broken config was applied:\n{broken}");
    }
    ensure!(lab.epoch()? == epoch, "the epoch changed");
    ensure!(lab.snapshot()? == snapshot, "the snapshot changed");
    let heard = lab.ask("a", v4(2), ECHO)?;
    ensure!(heard == Outcome::Reachable, "a heard {heard:?}");
    Ok(())
}

/// Asks every service of every pair in three ways: of traffic, of `trace` and of `connectivity`.
fn agree(config: &str) -> Shown {
    let lab = Fixture::of_config(config)?;
    let services = reach::services(&lab.snapshot()?);
    let questions = reach::questions(lab.hosts(), &services);
    let crew = Crew::start(&lab, &services)?;
    let answers = crew.ask(&questions, ANSWER, &|| {})?;
    let connectivity = lab.firedoor(&["connectivity", "--json"])?;
    let connectivity = serde_json::from_str(&printed("firedoor connectivity", &connectivity)?)?;

    let mut differing = Vec::new();
    for (question, answer) in questions.iter().zip(&answers) {
        let real = answer.outcome == Outcome::Reachable;
        let traced = trace(&lab, question)?;
        let listed = is_listed(&connectivity, question);
        if traced != real || listed != real {
            differing.push(format!(
                "{question:?}: real {answer:?}, trace {traced}, connectivity {listed}"
            ));
        }
    }
    let reached = answers.iter().filter(|answer| answer.outcome == Outcome::Reachable).count();
    println!("{config}: {} questions, {reached} reached", questions.len());
    ensure!(differing.is_empty(), "{}", differing.join("\n"));
    ensure!(
        reached > 0 && reached < questions.len(),
        "a policy that allows all or nothing shows nothing"
    );
    Ok(())
}

/// Whether `firedoor trace` lets it pass.
fn trace(lab: &Fixture, question: &Question) -> Result<bool, Failed> {
    let Question { from, to, address, service } = question;
    let family = if address.is_ipv6() { "v6" } else { "v4" };
    let service = service.name(*address);
    let arguments = ["trace", "--from", from, "--to", to, &service, "--family", family];
    let output = lab.firedoor(&arguments)?;
    match output.status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(printed("firedoor trace", &output).err().unwrap_or_else(Failed::without_message)),
    }
}

/// Whether `firedoor connectivity --json` lists the service for the pair.
fn is_listed(connectivity: &serde_json::Value, question: &Question) -> bool {
    let pairs = connectivity.as_array().into_iter().flatten();
    let pair = pairs.filter(|p| p["from"] == question.from && p["to"] == question.to);
    let mut allowed = pair.flat_map(|p| p["allowed"].as_array().into_iter().flatten());
    let wanted = question.service.name(question.address);
    allowed.any(|entry| entry["service"].as_str().is_some_and(|listed| covers(listed, &wanted)))
}

/// Whether a listed service, perhaps a range or a whole protocol, holds the wanted one.
fn covers(listed: &str, wanted: &str) -> bool {
    let (Some((protocol, port)), false) = (wanted.split_once('/'), listed == "any") else {
        return listed == "any";
    };
    match listed.split_once('/') {
        None => listed == protocol,
        Some((listed, _)) if listed != protocol => false,
        Some((_, ports)) => match (ports.split_once('-'), port.parse::<u16>()) {
            (Some((first, last)), Ok(port)) => {
                first.parse().is_ok_and(|first: u16| first <= port)
                    && last.parse().is_ok_and(|last: u16| port <= last)
            }
            _ => ports == port,
        },
    }
}

fn audit_mode() -> Shown {
    let lab = Fixture::up_with("mode = \"audit\"", &pair(""))?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let heard = lab.ask("a", v4(2), ECHO)?;
    ensure!(heard == Outcome::Reachable, "audit mode blocked: a heard {heard:?}");
    let denies = lab.denies(|deny| deny.from == "a" && deny.service == "tcp/7")?;
    ensure!(denies.iter().all(|deny| !deny.dropped), "on record as dropped: {denies:?}");
    Ok(())
}

fn learn_mode() -> Shown {
    let lab = Fixture::up_with("mode = \"learn\"", &pair(""))?;
    let _responder = Responder::start(&lab.netns("b")?, &[ECHO])?;
    let heard = lab.ask("a", v4(2), ECHO)?;
    ensure!(heard == Outcome::Reachable, "learn mode blocked: a heard {heard:?}");
    let flows = printed("firedoor flows", &lab.firedoor(&["flows", "--json"])?)?;
    ensure!(flows.contains("10.40.0.2"), "the conversation is not among the flows:\n{flows}");
    Ok(())
}

/// An address outside the switch, on the far side of the gateway.
fn router() -> Shown {
    let lab = Fixture::of_config("dual-stack.toml")?;
    let services = [Service::Tcp(443), Service::Tcp(22)];
    let _responder = Responder::start(&lab.netns("gateway")?, &services)?;
    for (outside, family) in [("203.0.113.9/32", "-4"), ("2001:db8:9::9/128", "-6")] {
        lab.run("gateway", "ip", &[family, "addr", "add", outside, "dev", "lo"])?;
        let outside = outside.split('/').next().unwrap_or_default().parse()?;
        // The kernel sets an IPv6 address up after it has said that it did.
        let is_there = wait_for(|| {
            let heard = lab.ask("gateway", outside, services[0]);
            Ok(heard.is_ok_and(|heard| heard == Outcome::Reachable))
        })?;
        ensure!(is_there, "the gateway does not reach {outside}, which is its own");
        let [allowed, denied] = services.map(|service| lab.ask("app1", outside, service));
        let (allowed, denied) = (allowed?, denied?);
        ensure!(allowed == Outcome::Reachable, "app1 heard {allowed:?} from {outside} at tcp/443");
        ensure!(denied == Outcome::Silent, "app1 heard {denied:?} from {outside} at tcp/22");
        let denied = lab.ask("dns", outside, Service::Tcp(443))?;
        ensure!(denied == Outcome::Silent, "dns heard {denied:?} from {outside} at tcp/443");
    }
    Ok(())
}

fn spoofing() -> Shown {
    let lab = Fixture::up(&pair(&allow("a", "b", "any")))?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    let heard = lab.ask("a", v4(2), Service::Ping)?;
    ensure!(heard == Outcome::Reachable, "without spoofing, a heard {heard:?}");

    let receiver = b.run(|| std::net::UdpSocket::bind("0.0.0.0:9"))??;
    for source in [v4(1), v4(3)] {
        send_from(&a, source, v4(2), 9)?;
    }
    let sources: Vec<_> = received(&receiver, 1)?.iter().map(|(_, from)| from.ip()).collect();
    ensure!(sources == [v4(1)], "datagrams came from {sources:?}");
    let is_counted = wait_for(|| {
        let dataplane = lab.dataplane()?;
        Ok(dataplane
            .drops
            .iter()
            .any(|(reason, count)| reason.slug().contains("spoof") && *count > 0))
    })?;
    ensure!(is_counted, "no spoofed frame is counted");
    lab.denies(|deny| deny.reason.contains("spoof"))?;
    Ok(())
}

/// Sends a datagram by a raw socket, its IP header and source made up.
fn send_from(netns: &Netns, src: IpAddr, dst: IpAddr, port: u16) -> Shown {
    let mac = firedoor_classifier::MacAddr::ZERO;
    let frame =
        build::udp(Ends { eth_src: mac, eth_dst: mac, src, dst }, 4_000, port, b"from whom?");
    let packet = frame.get(ethernet::HEADER_LEN..).ok_or("a frame has a header")?;
    netns.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        socket.set_header_included_v4(true)?;
        socket.send_to(packet, &SocketAddr::new(dst, 0).into())
    })??;
    Ok(())
}

fn source_ports() -> Shown {
    let rules = allow("a", "b", "udp/9") + "source_port = \"4000-4100\"\n";
    let lab = Fixture::up(&pair(&rules))?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    let receiver = b.run(|| UdpSocket::bind("0.0.0.0:9"))??;
    for port in [3_999, 4_000, 4_100, 4_101] {
        let sender = a.run(|| UdpSocket::bind(("0.0.0.0", port)))??;
        sender.send_to(b"from which port?", (v4(2), 9))?;
    }
    let came: Vec<_> = received(&receiver, 2)?.iter().map(|(_, from)| from.port()).collect();
    ensure!(came == [4_000, 4_100], "datagrams came from ports {came:?}");
    lab.denies(|deny| deny.from == "a" && deny.service == "udp/9" && deny.count == 2)?;
    Ok(())
}

/// The first of the ethertypes for experiments (IEEE 802 §9.2.3).
pub(crate) const EXPERIMENT: u16 = 0x88b5;

fn not_ip() -> Shown {
    let rule = "[[rule]]\nname = \"experiment\"\nfrom = { name = \"a\" }\nto = { name = \"b\" }\n\
                ethertype = \"0x88b5\"\naction = \"allow\"\n";
    let lab = Fixture::up(&pair(rule))?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    let mac = |name: &str| -> Result<MacAddr, Failed> {
        let snapshot = lab.snapshot()?;
        let workload = snapshot.workloads.iter().find(|workload| workload.name == name);
        Ok(workload.and_then(|workload| workload.mac).ok_or("a container has a MAC address")?)
    };
    let (mac_a, mac_b) = (mac("a")?, mac("b")?);
    let there =
        build::ethernet(mac_a, mac_b, EXPERIMENT, b"neither IP nor ARP, and allowed to pass whole");
    let back =
        build::ethernet(mac_b, mac_a, EXPERIMENT, b"an answer, which needs a rule of its own here");

    let passes = |from: &Netns, to: &Netns, patience, frame: &[u8]| -> Result<bool, Failed> {
        let receiver = packet_socket(to)?;
        receiver.set_read_timeout(Some(patience))?;
        packet_socket(from)?.send(frame)?;
        let mut bytes = [0; 256];
        Ok((&receiver).read(&mut bytes).is_ok_and(|length| &bytes[..length] == frame))
    };
    let a_while = Duration::from_millis(500);
    ensure!(passes(&a, &b, PATIENCE, &there)?, "b did not receive what the rule allows");
    ensure!(!passes(&b, &a, a_while, &back)?, "a received what no rule allows");
    lab.denies(|deny| deny.from == "b" && deny.to == "a" && deny.service == "ethertype/0x88b5")?;
    lab.apply(&pair(""))?;
    ensure!(!passes(&a, &b, a_while, &there)?, "b received what no rule names any more");
    let is_counted = wait_for(|| {
        let drops = lab.dataplane()?.drops;
        Ok(drops.iter().any(|(why, _)| *why == DropReason::UnknownEtherType))
    })?;
    ensure!(is_counted, "not counted: {:?}", lab.dataplane()?.drops);
    Ok(())
}

/// The kind of an Ethernet interface (linux/if_arp.h).
const ARPHRD_ETHER: u16 = 1;

/// A packet socket for [`EXPERIMENT`], at the namespace's one Ethernet interface, which hears for a while.
pub(crate) fn packet_socket(netns: &Netns) -> Result<Socket, Failed> {
    netns.run(|| -> Result<Socket, Failed> {
        let protocol = Protocol::from(i32::from(EXPERIMENT.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        let addresses = getifaddrs()?.filter_map(|interface| interface.address);
        let mut links = addresses.filter_map(|address| address.as_link_addr().copied());
        let link = links.find(|link| link.hatype() == ARPHRD_ETHER);
        bind(socket.as_raw_fd(), &link.ok_or("no Ethernet interface")?)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket)
    })?
}

fn capture_comments() -> Shown {
    let lab = Fixture::of_config("three-tier.toml")?;
    for (from, to) in [("web", "db"), ("db", "web")] {
        let address =
            lab.host(from)?.address_of(lab.host(to)?, false).ok_or("no shared network")?;
        let heard = lab.ask(from, address.addr(), Service::Tcp(22))?;
        ensure!(heard == Outcome::Silent, "{from} heard {heard:?}");
        lab.denies(|deny| deny.from == from && deny.to == to)?;
    }
    let capture = lab.status()?.capture;
    let fields = ["-r", &capture, "-T", "fields", "-e", "frame.comment", "-e", "tcp.dstport"];
    let output = std::process::Command::new("tshark").args(fields).output()?;
    let said = printed("tshark", &output)?;
    for wanted in [&["web", "db", "default"][..], &["db", "web", "db-starts-nothing"]] {
        let found = said
            .lines()
            .any(|line| line.ends_with("22") && wanted.iter().all(|word| line.contains(word)));
        ensure!(found, "no comment names {wanted:?}:\n{said}");
    }
    Ok(())
}
