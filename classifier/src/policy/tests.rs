use super::*;
use crate::fixture::{API, GATEWAY, IN_OFFICE, IN_WORLD, WEB, mac, rule, snapshot, tcp, v4};
use crate::snapshot::{Prefix, RuleAction, TagSet};

fn refused(change: impl FnOnce(&mut Snapshot)) -> PolicyError {
    let mut snapshot = snapshot();
    change(&mut snapshot);
    Policy::build(snapshot).expect_err("the snapshot is broken")
}

#[test]
fn each_broken_invariant_has_its_error() {
    let duplicate = |what, change: fn(&mut Snapshot)| {
        let error = refused(change);
        let shared = match &error {
            PolicyError::Duplicate { what, .. } => *what,
            other => panic!("{other}"),
        };
        assert_eq!(shared, what);
    };
    duplicate("name", |s| s.workloads[1].name = "web".to_owned());
    duplicate("port", |s| s.workloads[1].port = PortId(WEB));
    duplicate("MAC address", |s| s.workloads[1].mac = Some(mac(WEB)));
    duplicate("address", |s| s.workloads[1].addresses.push(v4(WEB)));

    type Broken = (fn(&mut Snapshot), &'static str);
    let broken: [Broken; 9] = [
        (
            |s| s.workloads[0].tag = Tag(10),
            "workload \"web\" has tag 10, but there are only 10 tags",
        ),
        (|s| s.world = Tag(10), "the world has tag 10, but there are only 10 tags"),
        (
            |s| s.rules[5].tier = 0,
            "rule \"office-to-api\" stands after one that must be judged later",
        ),
        (
            |s| s.rules[0].to = TagSet::Only(vec![Tag(3), Tag(2)]),
            "the tags of rule \"web-to-api\" are not in ascending order",
        ),
        (
            |s| s.workloads[0].mac = None,
            "workload \"web\" has no MAC address; only a router can do without",
        ),
        (
            |s| s.workloads[0].mac = Some(MacAddr::BROADCAST),
            "workload \"web\" has ff:ff:ff:ff:ff:ff, which is no station's address",
        ),
        (
            |s| s.workloads[0].vlan = VlanMode::Trunk(vec![10, 10]),
            "workload \"web\" carries VLAN 10; a trunk takes 1 to 4094, each once, an access port 0 to \
             4094",
        ),
        (
            |s| s.workloads[0].addresses.push("::ffff:10.0.0.1".parse().expect("an address")),
            "::ffff:10.0.0.1 is an IPv4-mapped IPv6 address; write it as IPv4",
        ),
        (
            |s| s.prefixes.push(Prefix { tag: Tag(1), ..s.prefixes[0] }),
            "the prefix 192.0.2.0/24 has two tags",
        ),
    ];
    for (change, message) in broken {
        assert_eq!(refused(change).to_string(), message);
    }
}

#[test]
fn names_are_for_people() {
    let policy = Policy::build(snapshot()).expect("the fixture is valid");
    let key = |port, src, dst| FlowKey {
        ingress: PortId(port),
        eth_dst: mac(API),
        src: to_bits(src),
        dst: to_bits(dst),
        ..FlowKey::default()
    };
    let names = |key: &FlowKey| (policy.source_name(key), policy.destination_name(key));
    let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    assert_eq!(names(&key(WEB, v4(WEB), v4(API))), pair("web", "api"));
    assert_eq!(names(&key(WEB, v4(API), IN_WORLD)), pair("web", "198.51.100.7"));
    assert_eq!(names(&key(GATEWAY, IN_OFFICE, v4(API))), pair("tag 8", "api"));
    assert_eq!(names(&key(GATEWAY, v4(GATEWAY), IN_OFFICE)), pair("gateway", "tag 8"));
    assert_eq!(policy.destination_name(&FlowKey { dst: 0, ..key(WEB, v4(WEB), v4(API)) }), "api");
    assert_eq!(policy.rule_name(Cause::Rule(RuleId(0))), "web-to-api");
    assert_eq!(
        (policy.rule_name(Cause::Default), policy.rule_name(Cause::Switch)),
        ("default", "switch")
    );
}

#[test]
fn ipv6_groups_do_not_own_ipv4_addresses() {
    let mut snapshot = snapshot();
    snapshot.prefixes.push(Prefix { net: "::/0".parse().expect("a prefix"), tag: Tag(7) });
    snapshot.rules.push(rule("six", RuleAction::Allow, 7, 1, tcp(1)));
    let policy = Policy::build(snapshot).expect("the fixture is valid");
    assert_eq!(policy.owner(to_bits(IN_WORLD)).0, Owner::Outside(Tag(9)));
    assert_eq!(policy.owner(1).0, Owner::Outside(Tag(7)));
    assert_eq!(policy.owner(0).0, Owner::Unspecified);
}
