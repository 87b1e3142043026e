use std::net::Ipv4Addr;

use super::*;
use crate::build::{self, Ends, TcpFlags};
use crate::extract::NdMessage;
use crate::fixture::{
    API, DB, DHCP, GATEWAY, IN_OFFICE, IN_WORLD, WEB, WORLD, ends, ends6, headers, link_local, mac,
    policy, rule, snapshot, tcp, udp, v4, v6, with_vlans,
};
use crate::mac::MacAddr;
use crate::snapshot::{Direction, RuleAction, RuleId, Services, Snapshot, TagSet, VlanMode};
use crate::wire;

/// A pipeline and its clock.
struct Switch {
    pipeline: Pipeline,
    now: Nanos,
}

impl Switch {
    fn new(snapshot: Snapshot) -> Self {
        Self { pipeline: Pipeline::new(Arc::new(policy(snapshot))), now: Nanos::from_secs(1) }
    }

    /// Puts the snapshot in force after `change`, one epoch later.
    fn change(&mut self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = self.pipeline.policy().snapshot().clone();
        snapshot.epoch += 1;
        change(&mut snapshot);
        self.pipeline.set_policy(Arc::new(policy(snapshot)));
    }

    fn send(&mut self, port: u16, frame: &[u8]) -> Verdict {
        self.now = self.now.plus(1_000);
        self.pipeline.judge(&headers(port, frame), frame.len(), self.now)
    }

    /// The reason that a frame is dropped for.
    fn refused(&mut self, port: u16, frame: &[u8]) -> Option<DropReason> {
        self.send(port, frame).drop_reason()
    }

    /// The ports that a frame reaches.
    fn reached(&mut self, port: u16, frame: &[u8]) -> Vec<u16> {
        let mut ports = match self.send(port, frame).action {
            Action::Forward(port) => vec![port.0],
            Action::Flood => self.pipeline.receivers().iter().map(|port| port.0).collect(),
            Action::Drop(_) => Vec::new(),
        };
        ports.sort_unstable();
        ports
    }
}

fn syn(ends: Ends, port: u16) -> Vec<u8> {
    build::tcp(ends, 40_000, port, TcpFlags::SYN)
}

/// The answer to a [`syn`] that went to `port`; `ends` is the way back.
fn syn_ack(ends: Ends, port: u16) -> Vec<u8> {
    let header = wire::tcp::Repr {
        source_port: port,
        destination_port: 40_000,
        acknowledgement: 1,
        flags: TcpFlags::SYN | TcpFlags::ACK,
        window: 64_240,
        ..Default::default()
    };
    build::tcp_segment(ends, header, &[])
}

/// From a workload to an address behind the gateway.
fn out(from: u16, to: std::net::IpAddr) -> Ends {
    Ends { dst: to, ..ends(from, GATEWAY) }
}

/// From an address behind the gateway to a workload.
fn inward(from: std::net::IpAddr, to: u16) -> Ends {
    Ends { src: from, ..ends(GATEWAY, to) }
}

fn multicast(from: u16) -> Ends {
    Ends { eth_dst: MacAddr::BROADCAST, dst: [255; 4].into(), ..ends(from, 0) }
}

#[test]
fn every_reason_policy_can_give_is_given() {
    use DropReason as R;
    let spoofed_mac = Ends { eth_src: mac(DB), ..ends(WEB, API) };
    let spoofed_ip = Ends { src: v4(DB), ..ends(WEB, API) };
    let unknown = Ends { eth_dst: mac(99), ..ends(WEB, API) };
    let mismatch = Ends { dst: v4(DB), ..ends(WEB, API) };
    let advertisement = build::router_advertisement(mac(WEB), link_local(WEB));
    let fake_answer = build::neighbor_advertisement(
        Ends { src: link_local(WEB).into(), ..ends6(WEB, API) },
        "fd00::3".parse().expect("a literal address"),
    );
    let (web_ip, api_ip) = ([10, 10, 0, 1].into(), [10, 10, 0, 2].into());
    let fake_arp = build::arp_request(mac(WEB), [10, 10, 0, 3].into(), api_ip);
    let offer = build::dhcp_offer(ends(WEB, API), mac(API));
    let ack = build::tcp(ends(WEB, API), 40_000, 8080, TcpFlags::ACK);
    let unrelated = build::icmp_error(ends(API, WEB), 3, 1, &syn(ends(WEB, API), 8080)[14..]);
    let tagged = build::tagged(syn(ends(WEB, API), 8080), &[10]);
    let cases = [
        (99, syn(ends(WEB, API), 8080), R::NoPolicy),
        (WEB, tagged, R::VlanNotAllowed),
        (WEB, syn(spoofed_mac, 8080), R::SpoofedMac),
        (WEB, syn(spoofed_ip, 8080), R::SpoofedIp),
        (WEB, fake_arp, R::SpoofedArp),
        (WEB, fake_answer, R::SpoofedNd),
        (WEB, advertisement, R::RogueRouter),
        (WEB, offer, R::RogueDhcp),
        (API, syn(ends(API, WEB), 22), R::Denied),
        (API, syn(ends(API, WEB), 23), R::Rejected),
        (WEB, syn(ends(WEB, DB), 8080), R::DefaultDeny),
        (WEB, ack, R::TcpNotSyn),
        (API, unrelated, R::IcmpUnrelated),
        (DHCP, syn(unknown_from(DHCP), 80), R::UnknownDestination),
        (WEB, syn(mismatch, 8080), R::AddressMismatch),
    ];
    let mut switch = Switch::new(without_gateway());
    for (port, frame, reason) in &cases {
        assert_eq!(switch.refused(*port, frame), Some(*reason));
    }
    assert_eq!(switch.pipeline.connections(), 0, "refused frames leave no connection");

    let mut switch = Switch::new(snapshot());
    assert_eq!(switch.refused(WEB, &syn(unknown, 8080)), None, "a router may know it");
    switch.change(|s| s.rules.push(rule("self", RuleAction::Allow, 1, 1, tcp(80))));
    assert_eq!(switch.refused(WEB, &syn(ends(WEB, WEB), 80)), Some(R::Hairpin));
    let own = build::arp_request(mac(WEB), web_ip, web_ip);
    assert_eq!(
        switch.refused(
            DB,
            &build::arp_request(mac(DB), [10, 10, 0, 3].into(), [10, 10, 0, 3].into())
        ),
        Some(R::NoReceiver)
    );
    assert_eq!(switch.refused(WEB, &own), None);
}

fn unknown_from(from: u16) -> Ends {
    Ends { eth_dst: mac(99), ..ends(from, API) }
}

/// The fixture without any router.
fn without_gateway() -> Snapshot {
    let mut snapshot = snapshot();
    snapshot.workloads.retain(|workload| !workload.router);
    snapshot
}

#[test]
fn bridge_reserved_frames_stay() {
    // `extract` names them too; a worker that is given such headers must not forward them either.
    let mut switch = Switch::new(snapshot());
    let mut headers = headers(WEB, &syn(ends(WEB, API), 8080));
    headers.key.eth_dst = "01:80:c2:00:00:00".parse().expect("a literal MAC address");
    let verdict = switch.pipeline.judge(&headers, 64, switch.now);
    assert_eq!(verdict.drop_reason(), Some(DropReason::BridgeReserved));
}

#[test]
fn a_reply_needs_no_rule_and_the_table_answers_for_it() {
    for both in [ends(WEB, API), ends6(WEB, API)] {
        let mut switch = Switch::new(snapshot());
        let opening = switch.send(WEB, &syn(both, 8080));
        assert_eq!(opening.action, Action::Forward(PortId(API)));
        assert_eq!(opening.cause, Cause::Rule(RuleId(0)));
        let answer = syn_ack(both.reversed(), 8080);
        assert_eq!(switch.reached(API, &answer), [WEB]);
        assert_eq!(switch.pipeline.stats().connection_hits, 1);
        assert_eq!(switch.refused(API, &syn(both.reversed(), 8080)), Some(DropReason::DefaultDeny));
    }
}

#[test]
fn a_removed_rule_cuts_a_live_connection_and_another_lives_on() {
    let mut switch = Switch::new(snapshot());
    let dns = |n| build::udp(ends(WEB, API), n, 53, b"?");
    switch.send(WEB, &syn(ends(WEB, API), 8080));
    switch.send(WEB, &dns(5_000));
    switch.change(|snapshot| {
        snapshot.rules.remove(0);
    });
    let answer = syn_ack(ends(API, WEB), 8080);
    assert_eq!(switch.refused(API, &answer), Some(DropReason::DefaultDeny));
    assert_eq!(switch.reached(API, &build::udp(ends(API, WEB), 53, 5_000, b"!")), [WEB]);
    assert_eq!(switch.pipeline.connections(), 1);
    switch.change(|s| s.rules.push(rule("again", RuleAction::Allow, 1, 2, tcp(8080))));
    assert_eq!(switch.reached(WEB, &syn(ends(WEB, API), 8080)), [API]);
}

#[test]
fn a_second_flow_of_a_pair_is_answered_by_the_cache() {
    let mut switch = Switch::new(snapshot());
    for source_port in 1_000..1_010 {
        switch.send(WEB, &build::udp(ends(WEB, API), source_port, 53, b"?"));
        switch.refused(WEB, &build::udp(ends(WEB, DB), source_port, 53, b"?"));
    }
    let stats = switch.pipeline.stats();
    assert_eq!((stats.upcalls, stats.cache_hits), (2, 18));
}

/// A switch whose ports get one upcall a second, and a rule that makes each conversation need one.
fn strict() -> Switch {
    let mut snapshot = snapshot();
    snapshot.settings.upcalls_per_sec = 1;
    snapshot.rules[1].conditions.src_ports = Some((1_024, 65_535));
    Switch::new(snapshot)
}

#[test]
fn a_port_that_begins_too_much_is_refused_by_name_and_keeps_what_it_began() {
    let mut switch = strict();
    let dns = |port| build::udp(ends(WEB, API), port, 53, b"?");
    let began = (2_000..3_000).filter(|&port| switch.refused(WEB, &dns(port)).is_none()).count();
    assert!((64..70).contains(&began), "{began}");
    assert_eq!(switch.refused(WEB, &dns(3_000)), Some(DropReason::UpcallLimit));
    assert_eq!(switch.reached(WEB, &dns(2_000)), [API]);
    assert_eq!(switch.reached(API, &build::udp(ends(API, WEB), 53, 2_000, b"!")), [WEB]);
    let (api, web) = ([10, 10, 0, 2].into(), [10, 10, 0, 1].into());
    assert_eq!(switch.reached(API, &build::arp_request(mac(API), api, web)), [WEB]);
    let question = build::arp_request(mac(WEB), web, api);
    assert_eq!(switch.refused(WEB, &question), Some(DropReason::UpcallLimit));
}

#[test]
fn a_policy_change_costs_live_connections_no_frame_however_many_upcalls_it_takes() {
    let mut switch = strict();
    let dns = |port| build::udp(ends(WEB, API), port, 53, b"?");
    let ports: Vec<u16> =
        (2_000..3_000).filter(|&port| switch.refused(WEB, &dns(port)).is_none()).collect();
    for _ in 0..3 {
        switch.change(|_| {});
        let before = switch.pipeline.stats().upcalls;
        assert_eq!(switch.refused(WEB, &dns(9_999)), Some(DropReason::UpcallLimit));
        for &port in &ports {
            assert_eq!(switch.reached(WEB, &dns(port)), [API]);
            assert_eq!(switch.reached(API, &build::udp(ends(API, WEB), 53, port, b"!")), [WEB]);
        }
        let upcalls = switch.pipeline.stats().upcalls - before;
        assert_eq!(upcalls, ports.len() as u64, "each connection is judged again, once");
    }
}

/// Frames of one burst see what those before them changed.
#[test]
fn a_burst_is_judged_in_its_order() {
    let mut switch = Switch::new(snapshot());
    let syn = headers(WEB, &syn(ends(WEB, API), 8080));
    let answer = headers(API, &syn_ack(ends(API, WEB), 8080));
    let tagged = headers(WEB, &build::tagged(build::udp(ends(WEB, API), 1, 53, b""), &[5]));
    let mut burst = [answer, syn, answer, tagged];
    switch.pipeline.prepare(&mut burst, |_| ());
    let reasons: Vec<_> = (0..burst.len())
        .map(|at| switch.pipeline.judge_next(&burst[at], at, 64, switch.now).drop_reason())
        .collect();
    let (early, tag) = (DropReason::DefaultDeny, DropReason::VlanNotAllowed);
    assert_eq!(reasons, [Some(early), None, None, Some(tag)]);
}

#[test]
fn learn_and_audit_block_nothing_and_say_what_they_would() {
    for mode in [Mode::Learn, Mode::Audit] {
        let mut switch = Switch::new(Snapshot { mode, ..snapshot() });
        let verdict = switch.send(WEB, &syn(ends(WEB, DB), 5432));
        assert_eq!(verdict.action, Action::Forward(PortId(DB)));
        assert_eq!(verdict.would_drop, Some(DropReason::DefaultDeny));
        let answer = syn_ack(ends(DB, WEB), 5432);
        assert_eq!(switch.send(DB, &answer).would_drop, Some(DropReason::DefaultDeny));
        let spoofed = Ends { src: v4(API), ..ends(WEB, DB) };
        let verdict = switch.send(WEB, &syn(spoofed, 1));
        assert_eq!(verdict.would_drop, Some(DropReason::SpoofedIp));
        let midstream = build::tcp(ends(WEB, API), 1, 8080, TcpFlags::ACK);
        assert_eq!(switch.send(WEB, &midstream).denied(), None);
        switch.change(|snapshot| snapshot.mode = Mode::Enforce);
        assert_eq!(switch.refused(DB, &answer), Some(DropReason::DefaultDeny));
    }
}

#[test]
fn what_claims_anothers_identity_passes_where_nothing_is_blocked_but_takes_nothing_over() {
    for mode in [Mode::Learn, Mode::Audit] {
        let mut switch = Switch::new(Snapshot { mode, ..snapshot() });
        let (there, back) = (
            build::udp(ends(WEB, API), 2_000, 53, b"?"),
            build::udp(ends(API, WEB), 53, 2_000, b"!"),
        );
        assert_eq!(switch.reached(WEB, &there), [API]);
        let claim = switch.send(DB, &there);
        assert_eq!(
            (claim.action, claim.denied()),
            (Action::Forward(PortId(API)), Some(DropReason::SpoofedMac))
        );
        assert_eq!(switch.reached(API, &back), [WEB]);
        assert_eq!(switch.send(API, &back).denied(), None, "the connection is as it was");
    }
}

#[test]
fn a_rule_under_audit_records_and_does_not_drop() {
    let mut audited = rule("soon", RuleAction::Deny, 1, 2, tcp(8080));
    (audited.audit, audited.tier) = (true, 0);
    let mut switch = Switch::new(snapshot());
    switch.change(|snapshot| snapshot.rules.insert(0, audited));
    let verdict = switch.send(WEB, &syn(ends(WEB, API), 8080));
    assert_eq!(verdict.action, Action::Forward(PortId(API)));
    assert_eq!(verdict.would_drop, Some(DropReason::Denied));
    assert_eq!(verdict.cause, Cause::Rule(RuleId(0)));
    assert_eq!(switch.send(WEB, &build::udp(ends(WEB, API), 1, 53, b"")).would_drop, None);
}

#[test]
fn both_permissions_are_needed_and_pass_leaves_its_tier() {
    let mut switch = Switch::new(snapshot());
    let only = |direction| {
        let mut rule = rule("one way", RuleAction::Allow, 1, 3, tcp(5432));
        rule.direction = direction;
        rule
    };
    let frame = syn(ends(WEB, DB), 5432);
    switch.change(|s| s.rules.push(only(Direction::Egress)));
    assert_eq!(switch.refused(WEB, &frame), Some(DropReason::DefaultDeny));
    switch.change(|s| s.rules.push(only(Direction::Ingress)));
    assert_eq!(switch.reached(WEB, &frame), [DB]);
    switch.change(|s| {
        let mut deny = rule("shut", RuleAction::Deny, 1, 3, tcp(5432));
        deny.tier = 2;
        let pass = crate::snapshot::Rule { action: RuleAction::Pass, ..deny.clone() };
        s.rules.splice(0..0, [pass, deny]);
    });
    assert_eq!(switch.reached(WEB, &frame), [DB], "pass skips the deny of its tier");
    switch.change(|s| {
        s.rules.remove(0);
    });
    assert_eq!(switch.refused(WEB, &frame), Some(DropReason::Denied));
}

#[test]
fn address_resolution_reaches_the_owner_alone() {
    let mut switch = Switch::new(snapshot());
    let (web, db) = ([10, 10, 0, 1].into(), [10, 10, 0, 3].into());
    assert_eq!(switch.reached(WEB, &build::arp_request(mac(WEB), web, db)), [DB]);
    assert_eq!(switch.reached(DB, &build::arp_reply(mac(DB), db, mac(WEB), web)), [WEB]);
    let outside = [10, 10, 0, 77].into();
    assert_eq!(switch.reached(WEB, &build::arp_request(mac(WEB), web, outside)), [GATEWAY]);
    let target = "fd00::3".parse().expect("a literal address");
    let question = build::neighbor_solicitation(mac(WEB), link_local(WEB), target);
    assert_eq!(switch.reached(WEB, &question), [DB]);
    let answer = build::neighbor_advertisement(ends6(DB, WEB), target);
    assert_eq!(switch.reached(DB, &answer), [WEB]);
    assert_eq!(switch.pipeline.connections(), 0);
}

#[test]
fn announcements_reach_those_that_the_sender_may_talk_to() {
    let mut switch = Switch::new(snapshot());
    let own = "fd00::1".parse().expect("a literal address");
    let probe = build::neighbor_solicitation(mac(WEB), std::net::Ipv6Addr::UNSPECIFIED, own);
    let arp = build::arp_request(mac(WEB), [10, 10, 0, 1].into(), [10, 10, 0, 1].into());
    for announcement in [probe, arp] {
        assert_eq!(switch.reached(WEB, &announcement), [API]);
    }
    let other = "fd00::3".parse().expect("a literal address");
    let theft = build::neighbor_solicitation(mac(WEB), std::net::Ipv6Addr::UNSPECIFIED, other);
    assert_eq!(switch.refused(WEB, &theft), Some(DropReason::SpoofedNd));
}

#[test]
fn router_messages_go_between_hosts_and_routers() {
    let mut switch = Switch::new(snapshot());
    let question = build::router_solicitation(mac(WEB), link_local(WEB));
    assert_eq!(switch.reached(WEB, &question), [GATEWAY]);
    let answer = build::router_advertisement(mac(GATEWAY), link_local(GATEWAY));
    assert_eq!(switch.reached(GATEWAY, &answer), [WEB, API, DB, DHCP]);
    let group = Ends {
        eth_dst: build::group_mac("ff02::1".parse().expect("a literal address")),
        src: link_local(WEB).into(),
        dst: "ff02::1".parse().expect("a literal address"),
        ..ends(WEB, 0)
    };
    let redirect = build::neighbor_discovery(group, NdMessage::Redirect, [0; 4], &[0; 32]);
    if let Ok(headers) = crate::extract::extract(&redirect, PortId(WEB)) {
        let verdict = switch.pipeline.judge(&headers, redirect.len(), switch.now);
        assert_eq!(verdict.drop_reason(), Some(DropReason::RogueRouter));
    }
}

/// A redirect names its target's MAC, and hosts believe it: a router must not say that a workload
/// is where the router is.
#[test]
fn a_redirect_cannot_give_a_workload_another_mac() {
    let mut switch = Switch::new(snapshot());
    let ends = Ends { src: link_local(GATEWAY).into(), ..ends6(GATEWAY, WEB) };
    let redirect = |target: std::net::Ipv6Addr, mac: MacAddr| {
        let outside: std::net::Ipv6Addr = "2001:db8::7".parse().expect("a literal address");
        let link = wire::nd::link_addr_option(wire::nd::option::TARGET_LINK_ADDR, mac);
        let body = [&target.octets()[..], &outside.octets(), &link].concat();
        build::neighbor_discovery(ends, NdMessage::Redirect, [0; 4], &body)
    };
    let theft = redirect(link_local(API), mac(GATEWAY));
    assert_eq!(switch.refused(GATEWAY, &theft), Some(DropReason::SpoofedNd));
    assert_eq!(switch.reached(GATEWAY, &redirect(link_local(API), mac(API))), [WEB]);
    let other_router = "fe80::99".parse().expect("a literal address");
    assert_eq!(switch.reached(GATEWAY, &redirect(other_router, mac(99))), [WEB]);
}

/// ICMP's redirect (RFC 792, type 5) is a router's message as much as ICMPv6's.
#[test]
fn a_workload_cannot_redirect_its_peers() {
    let mut switch = Switch::new(snapshot());
    let frame = syn(ends(WEB, API), 8080);
    assert_eq!(switch.reached(WEB, &frame), [API]);
    let redirect = |from: u16| {
        let ends = Ends { eth_src: mac(from), src: v4(from), ..ends(API, WEB) };
        build::icmp_error(ends, 5, 1, &frame[14..])
    };
    assert_eq!(switch.refused(API, &redirect(API)), Some(DropReason::RogueRouter));
    assert_eq!(switch.reached(GATEWAY, &redirect(GATEWAY)), [WEB]);
}

#[test]
fn dhcp_reaches_its_server_and_comes_from_it_alone() {
    let mut switch = Switch::new(snapshot());
    assert_eq!(switch.reached(WEB, &build::dhcp_discover(mac(WEB))), [DHCP]);
    assert_eq!(switch.reached(DHCP, &build::dhcp_offer(ends(DHCP, WEB), mac(WEB))), [WEB]);
    switch.change(|s| s.rules.push(rule("relay", RuleAction::Allow, 1, 4, udp(67))));
    assert_eq!(switch.reached(WEB, &build::dhcp_discover(mac(WEB))), [GATEWAY, DHCP]);
}

/// What makes a datagram an answer is its port, so a server's mark must not open others' doors.
#[test]
fn a_dhcp_server_answers_workloads_of_its_vlan_and_nobody_else() {
    let mut switch = Switch::new(snapshot());
    let answer = |to: Ends| build::dhcp_offer(to, mac(WEB));
    let to_all = Ends { dst: Ipv4Addr::BROADCAST.into(), ..ends(DHCP, WEB) };
    assert_eq!(switch.reached(DHCP, &answer(to_all)), [WEB]);
    assert_eq!(switch.reached(DHCP, &answer(ends(DHCP, GATEWAY))), [GATEWAY]);

    let smuggled = answer(out(DHCP, IN_WORLD));
    assert_eq!(switch.refused(DHCP, &smuggled), Some(DropReason::DefaultDeny));
    let of_another = Ends { dst: v4(API), ..ends(DHCP, WEB) };
    assert_eq!(switch.refused(DHCP, &answer(of_another)), Some(DropReason::AddressMismatch));
    switch.change(|s| {
        s.rules.push(rule("relay", RuleAction::Allow, u32::from(DHCP), WORLD, udp(68)));
    });
    assert_eq!(switch.reached(DHCP, &smuggled), [GATEWAY]);
}

/// A server that also routes is asked for leases without a rule, but not for the way out.
#[test]
fn a_dhcp_server_is_reached_without_a_rule_at_its_own_address_alone() {
    let mut switch = Switch::new(snapshot());
    switch.change(|s| s.workloads[3].dhcp_server = true);
    let renewal = |to: Ends| build::udp(to, 68, 67, b"renew");
    assert_eq!(switch.reached(WEB, &renewal(ends(WEB, GATEWAY))), [GATEWAY]);
    let smuggled = renewal(out(WEB, IN_WORLD));
    assert_eq!(switch.refused(WEB, &smuggled), Some(DropReason::DefaultDeny));
}

#[test]
fn a_group_frame_reaches_those_that_policy_allows() {
    let mut switch = Switch::new(snapshot());
    let hello = build::udp(multicast(WEB), 9, 53, b"hello");
    assert_eq!(switch.reached(WEB, &hello), [API]);
    assert_eq!(switch.pipeline.connections(), 0);
    assert_eq!(
        switch.refused(DB, &build::udp(multicast(DB), 9, 53, b"")),
        Some(DropReason::DefaultDeny)
    );
    switch.change(|s| {
        let mut all = rule("all", RuleAction::Allow, 1, 1, udp(53));
        all.to = TagSet::Any;
        s.rules.push(all);
    });
    assert_eq!(switch.reached(WEB, &hello), [API, DB, GATEWAY, DHCP]);
    switch.change(|s| s.workloads.truncate(1));
    assert_eq!(switch.refused(WEB, &hello), Some(DropReason::NoReceiver));
}

#[test]
fn addresses_outside_are_judged_by_group_and_must_use_a_router() {
    let mut switch = Switch::new(snapshot());
    assert_eq!(switch.reached(WEB, &syn(out(WEB, IN_OFFICE), 443)), [GATEWAY]);
    assert_eq!(switch.refused(WEB, &syn(out(WEB, IN_WORLD), 443)), Some(DropReason::DefaultDeny));
    let wrong_door = Ends { dst: IN_OFFICE, ..ends(WEB, API) };
    assert_eq!(switch.refused(WEB, &syn(wrong_door, 443)), Some(DropReason::AddressMismatch));
    assert_eq!(switch.reached(GATEWAY, &syn(inward(IN_OFFICE, API), 8080)), [API]);
    assert_eq!(
        switch.refused(GATEWAY, &syn(inward(IN_WORLD, API), 8080)),
        Some(DropReason::DefaultDeny)
    );
    assert_eq!(
        switch.refused(GATEWAY, &syn(inward(v4(WEB), API), 8080)),
        Some(DropReason::SpoofedIp)
    );
}

#[test]
fn an_icmp_error_passes_for_a_live_connection_only() {
    let mut switch = Switch::new(snapshot());
    let question = build::udp(ends(WEB, API), 5_000, 53, b"?");
    let error = |from: Ends| build::icmp_error(from, 3, 3, &question[14..]);
    assert_eq!(switch.refused(API, &error(ends(API, WEB))), Some(DropReason::IcmpUnrelated));
    switch.send(WEB, &question);
    assert_eq!(switch.reached(API, &error(ends(API, WEB))), [WEB]);
    let by_stranger = error(ends(DB, WEB));
    assert_eq!(switch.refused(DB, &by_stranger), Some(DropReason::IcmpUnrelated));
    let by_router = error(inward(IN_WORLD, WEB));
    assert_eq!(switch.reached(GATEWAY, &by_router), [WEB]);
    let to_another = error(ends(API, DB));
    assert_eq!(switch.refused(API, &to_another), Some(DropReason::IcmpUnrelated));
    switch.change(|s| {
        s.rules.remove(1);
    });
    assert_eq!(switch.refused(API, &error(ends(API, WEB))), Some(DropReason::IcmpUnrelated));
}

#[test]
fn vlans_are_apart_and_trunks_carry_what_they_list() {
    let mut switch = Switch::new(with_vlans());
    let out = Ends { eth_dst: mac(77), dst: IN_OFFICE, ..ends(7, 0) };
    assert_eq!(switch.reached(7, &syn(out, 443)), [6, 8], "no router was heard of yet");
    let inward = Ends { eth_src: mac(77), src: IN_OFFICE, ..ends(0, 7) };
    let frame = syn(inward, 80);
    assert_eq!(switch.refused(6, &frame), Some(DropReason::VlanNotAllowed));
    assert_eq!(
        switch.refused(6, &build::tagged(frame.clone(), &[30])),
        Some(DropReason::VlanNotAllowed)
    );
    let twice = build::tagged(frame.clone(), &[10, 20]);
    assert_eq!(switch.refused(6, &twice), Some(DropReason::VlanNotAllowed));
    assert_eq!(
        switch.refused(6, &build::tagged(frame.clone(), &[20])),
        Some(DropReason::UnknownDestination)
    );
    assert_eq!(switch.reached(6, &build::tagged(frame.clone(), &[10])), [7]);
    assert_eq!(switch.reached(7, &syn(out, 443)), [6], "learned");
    assert_eq!(switch.reached(7, &build::tagged(syn(out, 443), &[0])), [6], "priority-tagged");
}

#[test]
fn a_moved_router_takes_its_connections_along() {
    let mut switch = Switch::new(with_vlans());
    let hello = |n| {
        build::tagged(
            build::udp(Ends { eth_src: mac(77), src: IN_OFFICE, ..ends(0, 7) }, n, 80, b""),
            &[10],
        )
    };
    let out = Ends { eth_dst: mac(77), dst: IN_OFFICE, ..ends(7, 0) };
    switch.send(6, &hello(1));
    assert_eq!(switch.reached(7, &syn(out, 443)), [6]);
    switch.send(8, &hello(2));
    assert_eq!(switch.pipeline.stats().mac_moves, 1);
    let quoted = build::tcp(out.reversed(), 443, 40_000, TcpFlags::ACK);
    let error = build::icmp_error(out, 3, 1, &quoted[14..]);
    assert_eq!(switch.reached(7, &error), [8]);
    assert_eq!(switch.reached(7, &build::tcp(out, 40_000, 443, TcpFlags::SYN)), [8]);
    let answer = syn_ack(out.reversed(), 443);
    assert_eq!(switch.reached(8, &build::tagged(answer.clone(), &[10])), [7]);
}

#[test]
fn a_port_number_that_another_workload_took_over_inherits_nothing() {
    let mut switch = Switch::new(snapshot());
    switch.send(WEB, &build::udp(ends(WEB, API), 5_000, 53, b"?"));
    // Another workload takes port 2 over, and api with its addresses moves to port 6.
    switch.change(|snapshot| {
        let mut other = crate::fixture::workload(12, "other");
        other.port = PortId(API);
        snapshot.workloads[1].port = PortId(6);
        snapshot.workloads.push(other);
        snapshot.tags.resize(16, snapshot.tags[0].clone());
    });
    let answer = build::udp(ends(API, WEB), 53, 5_000, b"!");
    assert_eq!(switch.refused(API, &answer), Some(DropReason::SpoofedMac));
    assert_eq!(switch.reached(6, &answer), [WEB], "api itself goes on");
}

#[test]
fn full_tables_refuse_by_name() {
    let mut small = snapshot();
    small.settings.max_connections = 4;
    small.rules[1].services = Services::Any;
    small.workloads[4].vlan = VlanMode::Access(0);
    let mut switch = Switch::new(small);
    let other = |ends: Ends, n: u8| build::ip(ends, 100 + n, b"payload");
    for n in 0..4 {
        assert_eq!(switch.reached(WEB, &other(ends(WEB, API), n)), [API]);
        assert_eq!(switch.reached(API, &other(ends(API, WEB), n)), [WEB]);
    }
    let fifth = other(ends(WEB, API), 4);
    assert_eq!(switch.refused(WEB, &fifth), Some(DropReason::ConnectionsFull));
    let v6_flow = build::ip(ends6(WEB, API), 100, b"payload");
    assert_eq!(v6(WEB), ends6(WEB, API).src);
    assert_eq!(switch.refused(WEB, &v6_flow), Some(DropReason::ConnectionsFull));
}

/// What another switch has established is judged as its first frame would be.
#[test]
fn a_connection_is_adopted_only_if_policy_sends_its_first_frame_there() {
    let mut switch = Switch::new(snapshot());
    let key = |port, frame: &[u8]| headers(port, frame).key;
    let good = key(WEB, &syn(ends(WEB, API), 8080));
    let mut adopt = |key: &FlowKey, to| switch.pipeline.adopt(key, PortId(to), [1, 1], switch.now);
    assert_eq!(adopt(&good, DB), None, "policy sends it elsewhere");
    assert_eq!(adopt(&key(WEB, &syn(ends(WEB, DB), 22)), DB), None, "policy refuses it");
    assert_eq!(adopt(&key(API, &syn(ends(WEB, API), 8080)), API), None, "it is another's address");
    let adopted = adopt(&good, API).expect("policy allows it");
    assert_eq!((adopted.original, adopted.output), (good, PortId(API)));
    assert_eq!(switch.pipeline.connections(), 1);
    let data = build::tcp(ends(API, WEB), 8080, 40_000, TcpFlags::ACK);
    assert_eq!(switch.reached(API, &data), [WEB], "its answers need no rule");
    let stranger = build::tcp(ends(WEB, API), 40_001, 8080, TcpFlags::ACK);
    assert_eq!(switch.refused(WEB, &stranger), Some(DropReason::TcpNotSyn));
}

/// A connection whose frames do not pass here is judged under a new policy as its next frame would be.
#[test]
fn a_connection_is_renewed_only_if_policy_still_sends_it_there() {
    let mut switch = Switch::new(snapshot());
    let key = headers(WEB, &syn(ends(WEB, API), 8080)).key;
    let adopted = switch.pipeline.adopt(&key, PortId(API), [1, 1], switch.now).expect("allowed");
    let renew =
        |switch: &mut Switch| switch.pipeline.renew(adopted.id, &adopted.original, switch.now);
    switch.change(|_| {});
    assert_eq!(renew(&mut switch), Some(adopted));
    let data = build::tcp(ends(API, WEB), 8080, 40_000, TcpFlags::ACK);
    let upcalls = switch.pipeline.stats().upcalls;
    assert_eq!(switch.reached(API, &data), [WEB]);
    assert_eq!(switch.pipeline.stats().upcalls, upcalls, "it is current");
    let elsewhere = FlowKey { src_port: 40_001, ..adopted.original };
    assert_eq!(switch.pipeline.renew(adopted.id, &elsewhere, switch.now), None, "another one");

    switch.change(|snapshot| snapshot.mode = Mode::Audit);
    assert!(renew(&mut switch).is_some(), "allowed in any mode");
    switch.change(|snapshot| snapshot.rules.clear());
    assert_eq!(renew(&mut switch), None, "each frame is recorded from now on");
    switch.change(|snapshot| snapshot.mode = Mode::Enforce);
    assert_eq!(renew(&mut switch), None, "refused");
    assert_eq!(switch.refused(API, &data), Some(DropReason::DefaultDeny), "as its next frame is");
}

/// What was forwarded of a connection elsewhere may be told when it has ended and its place is another's.
#[test]
fn what_is_credited_to_a_connection_that_has_ended_is_not_its_successors() {
    let mut switch = Switch::new(snapshot());
    let key = headers(WEB, &syn(ends(WEB, API), 8080)).key;
    let adopt = |switch: &mut Switch, key| {
        switch.pipeline.adopt(key, PortId(API), [1, 1], switch.now).expect("allowed")
    };
    let first = adopt(&mut switch, &key);
    let credit = Credit { frames: 10, bytes: 1_000, tcp: None };
    let told = |switch: &mut Switch| {
        switch.pipeline.credit(first.id, &first.original, Side::Reply, &credit, switch.now);
        let (page, _) = switch.pipeline.list_connections(0, 10, switch.now);
        page.iter().map(|info| info.frames).collect::<Vec<_>>()
    };
    assert_eq!(told(&mut switch), [[1, 11]]);
    switch.pipeline.connections.remove(first.id);
    let other = FlowKey { src_port: 40_001, ..first.original };
    let second = adopt(&mut switch, &other);
    assert_eq!(second.id, first.id, "its place");
    assert_eq!(told(&mut switch), [[1, 1]]);
}
