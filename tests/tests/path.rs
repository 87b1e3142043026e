//! The path of a frame over memory ports: what comes out where, and why not.

mod common;

use common::*;
use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::extract::NdMessage;
use firedoor_classifier::snapshot::Mode;
use firedoor_classifier::{DropReason, MacAddr, PortId};
use firedoor_tests::fabric::{Fabric, next_snapshot, snapshot};
use firedoor_tests::storm;

#[test]
fn an_allowed_connection_passes_both_ways_unchanged() {
    let mut fabric = switch(CONFIG);
    handshake(&mut fabric);
    let there = data();
    assert_eq!(fabric.send("web", &there), [("api".into(), there.clone())]);
    assert!(fabric.drops().is_empty());
    fabric.finish();
}

#[test]
fn replies_pass_with_only_the_forward_rule_and_nothing_else_does() {
    let mut fabric = switch(CONFIG);
    handshake(&mut fabric);
    assert_eq!(fabric.send("api", &syn(API, WEB, 8080)), [], "the way back has no rule");
    assert_eq!(fabric.drops(), [(DropReason::DefaultDeny, 1)]);

    let query = build::udp(ends(WEB, API), 5_000, 53, b"?");
    let answer = build::udp(ends(API, WEB), 53, 5_000, b"!");
    assert_eq!(fabric.send("api", &answer), [], "an answer before its question");
    assert_eq!(fabric.send("web", &query).len(), 1);
    assert_eq!(fabric.send("api", &answer), [("web".into(), answer.clone())]);
    fabric.finish();
}

#[test]
fn ping_and_its_errors_follow_their_connection_in_both_families() {
    for there in [ends(WEB, API), ends(WEB_SIX, API_SIX)] {
        let back = there.reversed();
        let mut fabric = switch(CONFIG);
        let request = build::echo_request(there, 7, 1);
        let reply = build::echo_reply(back, 7, 1);
        assert_eq!(fabric.send("api", &reply), [], "a reply to nothing");
        assert_eq!(fabric.send("web", &request), [("api".into(), request.clone())]);
        assert_eq!(fabric.send("api", &reply), [("web".into(), reply.clone())]);

        let (kind, code) = if there.src.is_ipv4() { (3, 1) } else { (1, 0) };
        let error = build::icmp_error(back, kind, code, &request[14..]);
        assert_eq!(fabric.send("api", &error), [("web".into(), error.clone())]);
        let other = build::echo_request(there, 8, 1);
        assert_eq!(fabric.send("api", &build::icmp_error(back, kind, code, &other[14..])), []);
        fabric.finish();
    }
}

#[test]
fn a_partial_checksum_leaves_complete() {
    let mut fabric = switch(CONFIG);
    let whole = syn(WEB, API, 8080);
    let partial = build::partial(whole.clone());
    assert_ne!(partial, whole);
    assert_eq!(fabric.send("web", &partial), [("api".into(), whole)]);
    assert_eq!(fabric.count(|counters| counters.checksums_completed.get()), 1);
    fabric.finish();
}

#[test]
fn reject_tells_the_sender() {
    let mut fabric = switch(CONFIG);
    let answers = fabric.send("web", &syn(WEB, DB, 5432));
    let [(to, rst)] = &answers[..] else { panic!("one answer, not {answers:?}") };
    let headers = firedoor_classifier::extract::extract(rst, PortId(0)).unwrap();
    assert_eq!(to, "web");
    assert_ne!(headers.key.tcp_flags & TcpFlags::RST.bits(), 0);

    let answers = fabric.send("web", &build::udp(ends(WEB, DB), 5_000, 5432, b"?"));
    let [(to, error)] = &answers[..] else { panic!("one answer, not {answers:?}") };
    assert_eq!((to.as_str(), error[34], error[35]), ("web", 3, 13), "administratively prohibited");
    assert_eq!(fabric.drops(), [(DropReason::Rejected, 2)]);
    fabric.finish();
}

#[test]
fn arp_and_neighbour_solicitations_reach_their_target_alone() {
    let mut fabric = switch(CONFIG);
    let (web, db) = ("10.0.0.1".parse().unwrap(), "10.0.0.3".parse().unwrap());
    let request = build::arp_request(mac(1), web, db);
    assert_eq!(fabric.send("web", &request), [("db".into(), request.clone())]);
    let reply = build::arp_reply(mac(3), db, mac(1), web);
    assert_eq!(fabric.send("db", &reply), [("web".into(), reply.clone())]);
    let solicitation = solicit("fd00::1", "fd00::3");
    assert_eq!(fabric.send("web", &solicitation), [("db".into(), solicitation.clone())]);
    fabric.finish();
}

/// Address resolution crosses every door, so it must not carry anything else through.
#[test]
fn nothing_travels_behind_a_packet_or_in_an_option_of_neighbour_discovery() {
    let mut fabric = switch(CONFIG);
    let (web, db) = ("10.0.0.1".parse().unwrap(), "10.0.0.3".parse().unwrap());
    let request = build::arp_request(mac(1), web, db);
    let stuffed = [&request[..], b"a message for the database"].concat();
    assert_eq!(fabric.send("web", &stuffed), [("db".into(), request)]);

    let ends = Ends { dst: "fd00::3".parse().unwrap(), ..ends(WEB_SIX, API_SIX) };
    let target = "fd00::3".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let option = |kind: u8, units: u8| {
        let mut option = vec![0; usize::from(units) * 8];
        (option[0], option[1]) = (kind, units);
        let body = [&target[..], &option].concat();
        build::neighbor_discovery(ends, NdMessage::NeighborSolicitation, [0; 4], &body)
    };
    assert_eq!(fabric.send("web", &option(14, 1)).len(), 1, "a nonce (RFC 3971)");
    assert_eq!(fabric.send("web", &option(14, 100)), []);
    assert_eq!(fabric.send("web", &option(200, 150)), []);
    assert_eq!(fabric.drops(), [(DropReason::NdMalformed, 2)]);
    fabric.finish();
}

#[test]
fn multicast_reaches_only_those_that_policy_lets_the_sender_reach() {
    let mut fabric = switch(CONFIG);
    let frame = build::udp(multicast(), 5_000, 53, b"who is there?");
    assert_eq!(fabric.send("web", &frame), [("api".into(), frame.clone())]);
    fabric.finish();
}

#[test]
fn vlans_keep_workloads_apart_and_leave_as_each_port_wants_them() {
    let mut fabric = switch(VLANS);
    let plain = syn(WEB, API, 80);
    let tagged = build::tagged(plain.clone(), &[10]);
    assert_eq!(fabric.send("a", &plain), [("b".into(), tagged)], "pushed");
    let syn_ack = TcpFlags::SYN | TcpFlags::ACK;
    let back = segment(ends(API, WEB), (80, 40_000), syn_ack, 500, 1);
    let sent = build::tagged(back.clone(), &[10]);
    assert_eq!(fabric.send("b", &sent), [("a".into(), back)], "popped");

    assert_eq!(fabric.send("a", &syn(WEB, DB, 80)), [], "another VLAN");
    assert_eq!(fabric.send("a", &build::tagged(plain, &[10])), [], "a tag on an access port");
    assert_eq!(fabric.send("b", &syn(API, WEB, 80)), [], "none on a trunk");
    assert_eq!(fabric.send("b", &build::tagged(syn(API, WEB, 80), &[30])), [], "not its VLAN");
    assert_eq!(fabric.count(|counters| counters.drops(DropReason::VlanNotAllowed)), 3);
    fabric.finish();
}

#[test]
fn a_tag_that_names_no_vlan_or_is_a_service_tag_leaves_as_the_trunks_own() {
    let mut fabric = switch(VLANS);
    let plain = syn(WEB, API, 80);
    let mut urgent = build::tagged(plain.clone(), &[0]);
    urgent[14] |= 0xe0;
    let mut expected = build::tagged(plain, &[10]);
    expected[14] |= 0xe0;
    assert_eq!(fabric.send("a", &urgent), [("b".into(), expected.clone())], "priority is kept");
    urgent[12..14].copy_from_slice(&[0x88, 0xa8]);
    assert_eq!(fabric.send("a", &urgent), [("b".into(), expected)]);
    fabric.finish();
}

#[test]
fn a_removed_rule_cuts_the_live_connection_and_an_added_one_opens_it() {
    let mut fabric = switch(CONFIG);
    handshake(&mut fabric);
    let denying = CONFIG.replacen("action = \"allow\"", "action = \"deny\"", 1);
    let shut = next_snapshot(&denying, &snapshot(CONFIG));
    fabric.install(shut.clone());
    assert_eq!(fabric.send("web", &data()), [], "the next frame");
    assert_eq!(fabric.drops(), [(DropReason::Denied, 1)]);

    fabric.install(next_snapshot(CONFIG, &shut));
    handshake(&mut fabric);
    fabric.finish();
}

#[test]
fn an_apply_leaves_untouched_connections_alone() {
    let mut fabric = switch(CONFIG);
    handshake(&mut fabric);
    let mut current = snapshot(CONFIG);
    for round in 0..10 {
        let config = CONFIG.replace("tcp/22", &format!("tcp/{}", 30 + round));
        current = next_snapshot(&config, &current);
        fabric.install(current.clone());
        assert_eq!(fabric.send("web", &data()).len(), 1);
    }
    fabric.finish();
}

#[test]
fn learn_and_audit_block_nothing_that_policy_would() {
    for (mode, mirrored) in [(Mode::Learn, false), (Mode::Audit, true)] {
        let mut policy = snapshot(CONFIG);
        policy.mode = mode;
        let mut fabric = switch_of(policy);
        let frame = syn(WEB, DB, 22);
        assert_eq!(fabric.send("web", &frame), [("db".into(), frame.clone())], "{mode:?}");
        assert_eq!(fabric.count(|counters| counters.would_drops(DropReason::Denied)), 1);
        assert!(fabric.drops().is_empty());
        assert_eq!(fabric.mirrored().is_some(), mirrored, "{mode:?}");
        fabric.finish();
    }
}

#[test]
fn denied_frames_are_mirrored_with_their_cause() {
    let mut fabric = switch(CONFIG);
    let frame = syn(WEB, DB, 22);
    fabric.send("web", &frame);
    let record = fabric.mirrored().expect("a record");
    assert_eq!((record.reason, record.dropped), (DropReason::Denied, true));
    assert_eq!(record.bytes, frame);
    assert!(fabric.mirrored().is_none());
    fabric.finish();
}

#[test]
fn link_local_sources_belong_to_their_mac() {
    let mut fabric = switch(CONFIG);
    let own = solicit(&link_local(1).to_string(), &link_local(2).to_string());
    assert_eq!(fabric.send("web", &own), [("api".into(), own.clone())]);
    let other = solicit(&link_local(3).to_string(), &link_local(2).to_string());
    assert_eq!(fabric.send("web", &other), []);
    fabric.finish();
}

#[test]
fn redirects_are_for_routers() {
    let mut fabric = switch(CONFIG);
    let ends = Ends { src: link_local(1).into(), ..ends(WEB_SIX, API_SIX) };
    let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let body = [octets("fe80::9"), octets("fd00::8")].concat();
    let redirect = build::neighbor_discovery(ends, NdMessage::Redirect, [0; 4], &body);
    assert_eq!(fabric.send("web", &redirect), []);
    assert_eq!(fabric.drops(), [(DropReason::RogueRouter, 1)]);
    fabric.finish();
}

#[test]
fn connections_time_out() {
    let mut fabric = switch(CONFIG);
    let query = build::udp(ends(WEB, API), 5_000, 53, b"?");
    let answer = build::udp(ends(API, WEB), 53, 5_000, b"!");
    fabric.send("web", &query);
    fabric.wait(29);
    assert_eq!(fabric.send("api", &answer).len(), 1, "within the timeout");
    fabric.wait(181);
    assert_eq!(fabric.send("api", &answer), [], "after it");
    fabric.finish();
}

#[test]
fn a_flood_makes_a_copy_for_each_receiver() {
    let open = CONFIG.replace("to = { tier = \"api\" }", "to = { any = true }");
    let mut fabric = switch(&open);
    let frame = build::udp(multicast(), 5_000, 53, b"hello all");
    let expected = [("api".into(), frame.clone()), ("db".into(), frame.clone())];
    assert_eq!(fabric.send("web", &frame), expected);
    fabric.finish();
}

/// Connections have one owner; frames that arrive at another worker find their way, whichever
/// worker has the port that they leave by.
#[test]
fn with_several_workers_both_directions_meet() {
    let mut fabric = Fabric::with_workers(CONFIG, 3);
    for port in 40_000..40_064 {
        handshake_from(&mut fabric, port, false);
    }
    for there in [ends(WEB, API), ends(WEB_SIX, API_SIX)] {
        let request = build::echo_request(there, 7, 1);
        let reply = build::echo_reply(there.reversed(), 7, 1);
        let error = build::icmp_error(there.reversed(), 3, 1, &request[14..]);
        assert_eq!(fabric.send("web", &request).len(), 1);
        assert_eq!(fabric.send("api", &reply).len(), 1);
        if there.src.is_ipv4() {
            assert_eq!(fabric.send("api", &error).len(), 1);
        }
    }
    assert_eq!(fabric.drops(), []);
    fabric.finish();
}

/// [`CONFIG`] with a rule of these lines in front of its own.
fn with_rule(lines: &str) -> String {
    format!("{CONFIG}\n[[rule]]\nname = \"extra\"\npriority = 1\n{lines}\n")
}

#[test]
fn a_rule_that_asks_for_a_source_port_is_about_that_port_alone() {
    let mut fabric = switch(&with_rule(
        "from = { tier = \"web\" }\nto = { tier = \"db\" }\nservice = \"udp/123\"\n\
         source_port = \"123-200\"\naction = \"allow\"",
    ));
    for (port, passes) in [(122, false), (123, true), (200, true), (201, false)] {
        let question = build::udp(ends(WEB, DB), port, 123, b"?");
        for _ in 0..2 {
            let received = fabric.send("web", &question);
            assert_eq!(received.len(), usize::from(passes), "from port {port}");
        }
        let answer = build::udp(ends(DB, WEB), 123, port, b"!");
        assert_eq!(fabric.send("db", &answer).len(), usize::from(passes), "to port {port}");
    }
    fabric.finish();
}

#[test]
fn a_rule_that_asks_for_flags_is_about_the_first_segment() {
    let mut fabric = switch(&with_rule(
        "from = { any = true }\nto = { any = true }\ntcp_flags = \"syn,ece\"\naction = \"deny\"",
    ));
    let with_ecn = TcpFlags::SYN | TcpFlags::ECE | TcpFlags::CWR;
    assert_eq!(fabric.send("web", &build::tcp(ends(WEB, API), 40_001, 8080, with_ecn)), []);
    handshake(&mut fabric);
    let data = build::tcp(ends(WEB, API), 40_000, 8080, TcpFlags::ACK | TcpFlags::ECE);
    assert_eq!(fabric.drops(), [(DropReason::Denied, 1)]);
    fabric.send("web", &data);
    assert_eq!(fabric.drops()[0], (DropReason::Denied, 1), "later segments follow the first");
    fabric.finish();
}

#[test]
fn a_rule_that_asks_for_a_vlan_is_about_that_vlan_alone() {
    let mut fabric = switch(&VLANS.replace("action = \"allow\"", "action = \"allow\"\nvlan = 10"));
    let [a, b, c] = [(1, "10.0.0.1"), (2, "10.0.0.2"), (3, "10.0.0.3")];
    assert_eq!(fabric.send("a", &build::udp(ends(a, b), 1, 53, b"10")).len(), 1);
    assert_eq!(fabric.send("c", &build::udp(ends(c, b), 1, 53, b"20")), []);
    let from_trunk = |to, vlan| build::tagged(build::udp(ends(b, to), 2, 53, b"?"), &[vlan]);
    assert_eq!(fabric.send("b", &from_trunk(a, 10)).len(), 1);
    assert_eq!(fabric.send("b", &from_trunk(c, 20)), []);
    assert_eq!(fabric.drops(), [(DropReason::DefaultDeny, 2)]);
    fabric.finish();
}

#[test]
fn a_frame_that_is_not_ip_passes_where_a_rule_names_its_ethertype() {
    const EXPERIMENT: u16 = 0x88b5;
    let frame = |from: u8, to, ether_type| build::ethernet(mac(from), to, ether_type, &[7; 50]);
    let mut fabric = switch(CONFIG);
    assert_eq!(fabric.send("web", &frame(1, mac(2), EXPERIMENT)), []);
    assert_eq!(fabric.drops(), [(DropReason::UnknownEtherType, 1)], "no rule speaks of it");
    fabric.finish();

    let mut fabric = switch(&with_rule(
        "from = { tier = \"web\" }\nto = { tier = \"api\" }\nethertype = \"0x88b5\"\n\
         action = \"allow\"\n[[rule]]\nname = \"no\"\nfrom = { tier = \"db\" }\n\
         to = { any = true }\nethertype = \"0x88b5\"\naction = \"reject\"",
    ));
    let there = frame(1, mac(2), EXPERIMENT);
    for _ in 0..3 {
        assert_eq!(fabric.send("web", &there), [("api".into(), there.clone())], "whole");
    }
    let to_all = frame(1, MacAddr::BROADCAST, EXPERIMENT);
    assert_eq!(fabric.send("web", &to_all), [("api".into(), to_all.clone())]);
    assert_eq!(fabric.drops(), []);

    let mut drops = std::collections::BTreeMap::new();
    for (sender, refused, reason) in [
        ("web", frame(1, mac(3), EXPERIMENT), DropReason::DefaultDeny),
        ("api", frame(2, mac(1), EXPERIMENT), DropReason::DefaultDeny), // no connection
        ("db", frame(3, mac(1), EXPERIMENT), DropReason::Rejected),     // no answer either
        ("web", frame(1, mac(2), 0x88b6), DropReason::UnknownEtherType),
        ("web", frame(3, mac(2), EXPERIMENT), DropReason::SpoofedMac),
        ("web", frame(1, mac(9), EXPERIMENT), DropReason::UnknownDestination),
        ("web", build::tagged(there.clone(), &[5]), DropReason::VlanNotAllowed),
    ] {
        assert_eq!(fabric.send(sender, &refused), [], "{}", reason.slug());
        *drops.entry(reason).or_insert(0) += 1;
        assert_eq!(fabric.drops(), Vec::from_iter(drops.clone()));
    }
    let denied = fabric.mirrored().expect("a denied frame is mirrored");
    assert_eq!(denied.key.ether_type, EXPERIMENT);
    fabric.finish();
}

/// What is on its way between workers when a port goes must not reach the next workload that gets
/// the port's number.
#[test]
fn no_frame_for_a_workload_that_is_gone_reaches_its_successor() {
    let mut fabric = Fabric::with_workers(CONFIG, 2);
    let old = snapshot(CONFIG);
    let number = |snapshot: &firedoor_classifier::Snapshot, name: &str| {
        snapshot.workloads.iter().find(|w| w.name == name).unwrap().port
    };
    let sender = usize::from(number(&old, "web").0) % 2;
    for port in 10_000..10_600 {
        fabric.wire("web").send(build::udp(ends(WEB, API), port, 53, b"secret"));
    }
    while fabric.turn(sender) > 0 {}

    let heir = CONFIG.replace("\"api\"\nkind", "\"heir\"\nkind").replace(":02\"", ":09\"");
    let new = next_snapshot(&heir.replace("10.0.0.2/", "10.0.0.9/").replace("::2/", "::9/"), &old);
    assert_eq!(number(&new, "heir"), number(&old, "api"), "the number is given again");
    fabric.unplug("api");
    fabric.install(new);
    (0..2).for_each(|worker| _ = fabric.turn(worker)); // Both are under the new policy now.
    fabric.plug_in("heir");
    fabric.settle();
    assert_eq!(fabric.received(), []);
    fabric.finish();
}

#[test]
fn a_storm_of_random_frames_loses_none() {
    use proptest::prelude::*;
    let config = ProptestConfig { cases: 128, ..ProptestConfig::default() };
    let bytes = proptest::collection::vec(any::<u8>(), 0..4096);
    proptest!(config, |(bytes in bytes)| storm::run(&bytes));
}

/// Every corpus file of the fuzz target `path`, findings of the past among them.
#[test]
fn the_storm_corpus_loses_no_frame() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/path");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        storm::run(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0, "the corpus in {folder} is empty");
}
