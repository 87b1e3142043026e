//! The pipeline and the linear oracle agree on every frame, at every step of random policy changes.
//!
//! Snapshots, frames and changes are drawn from a small universe, so that they meet: few ports,
//! addresses, tags and services, and frames that are honest more often than not; and parts of frames, in
//! any order, so that first fragments are missed, overlapped and followed. How they are lived through,
//! with caches and without, is in `tests/fuzz/checks/history.rs`.
//!
//! `PROPTEST_CASES` sets how many histories are tried; with `--nocapture` the test says how many policies,
//! updates and frames that came to.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use firedoor_classifier::acl::Memo;
use firedoor_classifier::classify::{Classified, Context, admit, classify};
use firedoor_classifier::extract::{Embedded, Fragment, Headers, Kind, Nd, NdMessage};
use firedoor_classifier::fdb::Fdb;
use firedoor_classifier::key::to_bits;
use firedoor_classifier::mask::MASKS;
use firedoor_classifier::snapshot::{
    Conditions, Direction, FlagMatch, Kind as WorkloadKind, Lane, Mode, Prefix, Rule, RuleAction,
    Service, Services, Settings, TagInfo, TagSet, VlanMode, Workload,
};
use firedoor_classifier::verdict::DropReason;
use firedoor_classifier::{FlowKey, MacAddr, Nanos, Pipeline, Policy, PortId, Snapshot, Tag};
use proptest::collection::SizeRange;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

#[path = "../../tests/fuzz/checks/history.rs"]
mod history;

use history::{
    ENDLESS, Event, OTHER_ETHER_TYPES, Seen, insert_rule, live_through, mac, own, policy, with_key,
};

const PORTS: u16 = 7;
const TAGS: u32 = 6;
/// Addresses that belong to no workload.
fn outside(is_v6: bool) -> impl Strategy<Value = IpAddr> {
    let v4 = ["192.0.2.1", "192.0.2.129", "10.0.1.1", "8.8.8.8", "0.0.0.0", "255.255.255.255"];
    let v6 = ["2001:db8::1", "2001:db8:1::1", "fe80::1", "ff02::1", "::"];
    let texts = if is_v6 { v6.to_vec() } else { v4.to_vec() };
    select(texts).prop_map(|text| text.parse().expect("a literal address"))
}

fn workload(n: u16) -> impl Strategy<Value = Workload> {
    let vlan = prop_oneof![
        6 => Just(VlanMode::Access(0)),
        3 => Just(VlanMode::Access(10)),
        1 => Just(VlanMode::Trunk(vec![10])),
        2 => Just(VlanMode::Trunk(vec![20, 10])),
    ];
    let flags = (prop::bool::weighted(0.35), prop::bool::weighted(0.5), prop::bool::weighted(0.2));
    (vlan, flags, 0..TAGS).prop_map(move |(vlan, (router, nameless, dhcp_server), tag)| Workload {
        name: format!("w{n}"),
        port: PortId(n),
        tag: Tag(tag),
        kind: WorkloadKind::Container,
        ifname: format!("fd{n}"),
        mac: (!(router && nameless)).then(|| mac(n)),
        addresses: vec![own(n, false), own(n, true)],
        vlan,
        lane: Lane::Auto,
        router,
        dhcp_server,
    })
}

fn workloads() -> BoxedStrategy<Vec<Workload>> {
    let all = (workload(1), workload(2), workload(3), workload(4), workload(5), workload(6));
    let all = all.prop_map(|(a, b, c, d, e, f)| vec![a, b, c, d, e, f]);
    let some = all.prop_flat_map(|all| subsequence(all, 3..=6));
    // Sometimes two workloads change places: same names and addresses, each at the other's port.
    (some, prop::bool::weighted(0.15))
        .prop_map(|(mut workloads, swap)| {
            if let ([first, second, ..], true) = (workloads.as_mut_slice(), swap) {
                std::mem::swap(&mut first.port, &mut second.port);
            }
            workloads
        })
        .boxed()
}

fn prefixes() -> impl Strategy<Value = Vec<Prefix>> {
    let nets = [
        "192.0.2.0/24",
        "192.0.2.128/25",
        "10.0.0.0/8",
        "0.0.0.0/0",
        "::/0",
        "2001:db8::/32",
        "2001:db8:1::/48",
        "10.0.0.2/32",
    ];
    let nets = subsequence(nets.to_vec(), 0..=nets.len());
    (nets, prop::collection::vec(0..TAGS, 8)).prop_map(|(nets, tags)| {
        let prefix = |(net, tag): (&str, u32)| Prefix {
            net: net.parse().expect("a literal prefix"),
            tag: Tag(tag),
        };
        nets.into_iter().zip(tags).map(prefix).collect()
    })
}

fn tag_set() -> impl Strategy<Value = TagSet> {
    let only = subsequence((0..TAGS).map(Tag).collect::<Vec<_>>(), 1..=3);
    prop_oneof![1 => Just(TagSet::Any), 3 => only.prop_map(TagSet::Only)]
}

fn services() -> impl Strategy<Value = Services> {
    let any = select(vec![
        Service::Ports { protocol: 6, first: 80, last: 80 },
        Service::Ports { protocol: 6, first: 22, last: 443 },
        Service::Ports { protocol: 17, first: 53, last: 53 },
        Service::Ports { protocol: 17, first: 0, last: 5_000 },
        Service::Ports { protocol: 17, first: 67, last: 68 },
        Service::Protocol(6),
        Service::Protocol(47),
        Service::Icmp { protocol: 1, kind: 8, code: None },
        Service::Icmp { protocol: 1, kind: 0, code: Some(0) },
        Service::Icmp { protocol: 58, kind: 128, code: Some(0) },
    ]);
    let only = prop::collection::vec(any, 1..3).prop_map(Services::Only);
    prop_oneof![1 => Just(Services::Any), 2 => only]
}

/// Most rules have none.
fn conditions() -> BoxedStrategy<Conditions> {
    let ether_types = vec![Some(0x0800), Some(0x86dd), Some(OTHER_ETHER_TYPES[0])];
    let ether_type = prop_oneof![4 => Just(None), 3 => select(ether_types)];
    let vlan = prop_oneof![4 => Just(None), 2 => select(vec![Some(10), Some(20)])];
    let ranges = vec![(0, 1_023), (53, 53), (1_024, u16::MAX), (5_000, 40_000)];
    let src_ports = prop_oneof![2 => Just(None), 1 => select(ranges).prop_map(Some)];
    let flags = vec![(0x02, 0x02), (0x12, 0x02), (0x10, 0x10), (0x10, 0), (0x42, 0x42), (0x08, 0)];
    let flags = select(flags).prop_map(|(mask, value)| Some(FlagMatch { mask, value }));
    let tcp_flags = prop_oneof![2 => Just(None), 1 => flags];
    let some = (ether_type, vlan, src_ports, tcp_flags).prop_map(
        |(ether_type, vlan, src_ports, tcp_flags)| Conditions {
            ether_type,
            vlan,
            src_ports,
            tcp_flags,
        },
    );
    prop_oneof![3 => Just(Conditions::default()), 2 => some].boxed()
}

fn rule() -> BoxedStrategy<Rule> {
    let action = select(vec![
        RuleAction::Allow,
        RuleAction::Allow,
        RuleAction::Allow,
        RuleAction::Deny,
        RuleAction::Reject,
        RuleAction::Pass,
    ]);
    let direction =
        select(vec![Direction::Both, Direction::Both, Direction::Ingress, Direction::Egress]);
    let audit = prop::bool::weighted(0.15);
    let match_ = (services(), conditions()).prop_map(|(services, conditions)| {
        // What is not IP has no services.
        let is_ip = conditions.ether_type.is_none_or(|named| named != OTHER_ETHER_TYPES[0]);
        (if is_ip { services } else { Services::Any }, conditions)
    });
    (0u8..4, action, tag_set(), tag_set(), match_, direction, audit)
        .prop_map(|(tier, action, from, to, (services, conditions), direction, audit)| Rule {
            name: String::new(),
            tier,
            priority: 100,
            action,
            from,
            to,
            services,
            direction,
            conditions,
            audit,
        })
        .boxed()
}

fn rules() -> BoxedStrategy<Vec<Rule>> {
    // Few, or so many that pairs have several blocks of them.
    prop_oneof![7 => prop::collection::vec(rule(), 0..10), 1 => prop::collection::vec(rule(), 20..80)]
        .prop_map(|mut rules| {
            rules.sort_by_key(|rule| rule.tier);
            rules
        })
        .boxed()
}

fn snapshot() -> BoxedStrategy<Snapshot> {
    let mode = select(vec![Mode::Enforce, Mode::Enforce, Mode::Enforce, Mode::Audit, Mode::Learn]);
    (workloads(), prefixes(), rules(), mode, any::<bool>())
        .prop_map(|(workloads, prefixes, rules, mode, midstream)| Snapshot {
            epoch: 0,
            switch: "test".to_owned(),
            mode,
            settings: Settings {
                max_connections: 4_096,
                max_flows: 256,
                midstream,
                mac_ageing_secs: 5,
                timeouts: ENDLESS,
                fragment_timeout_secs: 2,
                ..Settings::default()
            },
            workloads,
            tags: (0..TAGS).map(|_| TagInfo { name: String::new() }).collect(),
            prefixes,
            world: Tag(0),
            rules,
        })
        .boxed()
}

/// Protocol, TCP flags, source and destination port of a frame that is not special.
fn transport(is_v6: bool) -> impl Strategy<Value = (u8, u8, u16, u16)> {
    let icmp = if is_v6 { 58 } else { 1 };
    let (request, reply) = if is_v6 { (128 << 8, 129 << 8) } else { (8 << 8, 0) };
    let server = || select(vec![22, 80, 443]);
    prop_oneof![
        // Handshakes and what cannot begin one never share ports: the oracle knows no TCP states.
        3 => (select(vec![0x02, 0x42]), select(vec![1_000, 40_000]), server())
            .prop_map(|(flags, from, to)| (6, flags, from, to)),
        1 => (select(vec![0x10, 0x18]), select(vec![1_001, 40_001]), server())
            .prop_map(|(flags, from, to)| (6, flags, from, to)),
        3 => (select(vec![53, 5_000]), select(vec![53, 5_000])).prop_map(|(a, b)| (17, 0, a, b)),
        2 => select(vec![request, reply]).prop_map(move |kind| (icmp, 0, 7, kind)),
        1 => Just((icmp, 0, 0, if is_v6 { 131 << 8 } else { 9 << 8 })),
        1 => Just((47, 0, 0, 0)),
        1 => Just((2, 0, 0, 0)),
    ]
}

fn station() -> impl Strategy<Value = MacAddr> {
    prop_oneof![
        12 => (1..PORTS).prop_map(mac),
        3 => (0x77u16..0x79).prop_map(mac),
    ]
}

fn target_mac() -> impl Strategy<Value = MacAddr> {
    prop_oneof![
        8 => station(),
        1 => Just(MacAddr::BROADCAST),
        1 => Just(MacAddr([0x33, 0x33, 0, 0, 0, 1])),
        1 => Just(MacAddr([1, 0x80, 0xc2, 0, 0, 3])),
    ]
}

fn address(is_v6: bool) -> impl Strategy<Value = IpAddr> {
    prop_oneof![3 => (1..PORTS).prop_map(move |n| own(n, is_v6)), 2 => outside(is_v6)]
}

/// Who sends: usually as it is entitled to.
fn sender(is_v6: bool) -> impl Strategy<Value = (u16, MacAddr, IpAddr)> {
    prop_oneof![
        6 => (1..PORTS).prop_map(move |n| (n, mac(n), own(n, is_v6))),
        3 => (1..PORTS, station(), address(is_v6)),
        2 => (1..PORTS, 0x77u16..0x79, address(is_v6)).prop_map(|(n, m, addr)| (n, mac(m), addr)),
    ]
}

fn receiver(is_v6: bool) -> impl Strategy<Value = (MacAddr, IpAddr)> {
    prop_oneof![
        6 => (1..PORTS).prop_map(move |n| (mac(n), own(n, is_v6))),
        3 => (target_mac(), address(is_v6)),
    ]
}

fn tags() -> impl Strategy<Value = (u8, u16)> {
    prop_oneof![
        8 => Just((0, 0)),
        3 => Just((1, 10)),
        1 => Just((1, 0)),
        1 => Just((1, 20)),
        1 => Just((2, 10)),
    ]
}

fn plain(is_v6: bool) -> BoxedStrategy<Headers> {
    (sender(is_v6), receiver(is_v6), tags(), transport(is_v6))
        .prop_map(|(from, to, tags, transport)| history::plain(from, to, tags, transport))
        .boxed()
}

fn arp() -> impl Strategy<Value = Headers> {
    (plain(false), 1u8..=2, any::<bool>(), station(), prop::bool::weighted(0.2)).prop_map(
        |(mut headers, operation, is_honest, other, is_gratuitous)| {
            let key = &mut headers.key;
            let sender = if is_honest { key.eth_src } else { other };
            if is_gratuitous {
                key.dst = key.src;
            }
            (key.ether_type, key.protocol) = (0x0806, operation);
            (key.tcp_flags, key.src_port, key.dst_port) = (0, 0, 0);
            headers.kind = Kind::Arp { sender, target: MacAddr::ZERO };
            headers
        },
    )
}

fn neighbour() -> impl Strategy<Value = Headers> {
    use NdMessage::{
        NeighborAdvertisement, NeighborSolicitation, Redirect, RouterAdvertisement,
        RouterSolicitation,
    };
    let message = select(vec![
        RouterSolicitation,
        RouterAdvertisement,
        NeighborSolicitation,
        NeighborAdvertisement,
        Redirect,
    ]);
    let link_addr = prop_oneof![2 => Just(None), 2 => Just(Some(true)), 1 => Just(Some(false))];
    let unspecified = prop::bool::weighted(0.25);
    (plain(true), message, address(true), link_addr, station(), unspecified, any::<bool>())
        .prop_map(|(mut headers, message, target, link_addr, other, unspecified, own_target)| {
            let key = &mut headers.key;
            let target = if own_target { key.src } else { to_bits(target) };
            if unspecified {
                key.src = 0;
            }
            (key.protocol, key.tcp_flags, key.src_port, key.dst_port) = (58, 0, 0, 135 << 8);
            let link_addr = link_addr.map(|honest| if honest { key.eth_src } else { other });
            headers.kind = Kind::Nd(Nd { message, target, link_addr });
            headers
        })
}

fn dhcp(is_v6: bool) -> impl Strategy<Value = Headers> {
    (plain(is_v6), any::<bool>(), any::<bool>()).prop_map(
        move |(mut headers, asks, is_client_new)| {
            let key = &mut headers.key;
            let (client, server) = if is_v6 { (546, 547) } else { (68, 67) };
            (key.protocol, key.tcp_flags) = (17, 0);
            if asks {
                (key.src_port, key.dst_port) = (client, server);
                headers.kind = Kind::DhcpClient;
                if is_client_new {
                    key.src = to_bits(IpAddr::from([0, 0, 0, 0]));
                }
            } else {
                (key.src_port, key.dst_port) = (server, client);
                headers.kind = Kind::DhcpServer;
                if is_client_new && !is_v6 {
                    key.dst = to_bits(IpAddr::from([255; 4]));
                }
            }
            headers
        },
    )
}

/// An error about a packet that, usually, its receiver may have sent to its sender.
fn icmp_error(is_v6: bool) -> impl Strategy<Value = Headers> {
    let quoted = (transport(is_v6), address(is_v6), prop::bool::weighted(0.7));
    (plain(is_v6), quoted).prop_map(
        move |(mut headers, ((protocol, _, src_port, dst_port), other, is_about_sender))| {
            let key = &mut headers.key;
            let dst = if is_about_sender { key.src } else { to_bits(other) };
            let embedded = Embedded { protocol, src: key.dst, dst, src_port, dst_port, seq: None };
            (key.protocol, key.tcp_flags, key.src_port) = (if is_v6 { 58 } else { 1 }, 0, 0);
            // Unreachable; for IPv4 sometimes redirect.
            key.dst_port = match is_v6 {
                true => 1 << 8,
                false if src_port % 4 == 1 => 5 << 8,
                false => 3 << 8,
            };
            headers.kind = Kind::IcmpError(embedded);
            headers
        },
    )
}

fn non_ip() -> impl Strategy<Value = Headers> {
    let ether_type = prop_oneof![4 => Just(OTHER_ETHER_TYPES[0]), 1 => Just(OTHER_ETHER_TYPES[1])];
    (plain(false), ether_type).prop_map(|(headers, ether_type)| {
        let FlowKey { ingress, vlan, eth_dst, eth_src, .. } = headers.key;
        let key = FlowKey { ingress, vlan, ether_type, eth_dst, eth_src, ..FlowKey::default() };
        Headers { key, l4: headers.end, kind: Kind::NonIp, ..headers }
    })
}

fn headers() -> BoxedStrategy<Headers> {
    prop_oneof![
        8 => plain(false),
        4 => plain(true),
        1 => arp(),
        1 => neighbour(),
        1 => dhcp(false),
        1 => dhcp(true),
        2 => icmp_error(false),
        1 => icmp_error(true),
        2 => non_ip(),
    ]
    .boxed()
}

/// Where packets are cut, so few places that parts meet: at 16 and 32 of 48 bytes, or elsewhere.
fn fragment() -> impl Strategy<Value = Fragment> {
    let place = prop_oneof![
        6 => select(vec![(0, 16, true), (16, 16, true), (32, 16, false)]),
        1 => select(vec![(0, 24, true), (8, 16, true), (16, 16, false), (32, 24, false)]),
    ];
    (0u32..2, place).prop_map(|(id, (offset, len, more))| Fragment { id, offset, len, more })
}

/// What a history is made of.
#[derive(Clone, Debug)]
enum Step {
    Event(Event),
    /// A rule more, before or behind the others of its tier.
    Insert(Box<Rule>, bool),
    /// The nth rule less, if there is one.
    Remove(usize),
}

/// A history: a policy, and what happens from there on.
#[derive(Clone, Debug)]
struct History {
    first: Snapshot,
    steps: Vec<Step>,
}

impl History {
    fn live_through(self, seen: &mut Seen) {
        let mut snapshot = self.first.clone();
        let event = |step| {
            match step {
                Step::Event(Event::Change(next)) => snapshot = *next,
                Step::Event(event) => return Some(event),
                Step::Insert(rule, before) => insert_rule(&mut snapshot.rules, *rule, before),
                Step::Remove(n) if n < snapshot.rules.len() => _ = snapshot.rules.remove(n),
                Step::Remove(_) => return None,
            }
            Some(Event::Change(Box::new(snapshot.clone())))
        };
        live_through(self.first, self.steps.into_iter().filter_map(event), seen);
    }
}

fn history(steps: impl Into<SizeRange>) -> impl Strategy<Value = History> {
    let step = prop_oneof![
        50 => event().prop_map(Step::Event),
        4 => (rule(), any::<bool>()).prop_map(|(rule, before)| Step::Insert(Box::new(rule), before)),
        4 => (0usize..8).prop_map(Step::Remove),
    ];
    (snapshot(), prop::collection::vec(step, steps))
        .prop_map(|(first, steps)| History { first, steps })
}

fn event() -> BoxedStrategy<Event> {
    prop_oneof![
        24 => headers().prop_map(|headers| Event::Frame(Box::new(headers))),
        10 => (0usize..4, fragment()).prop_map(|(nth, part)| Event::Part(nth, part)),
        2 => (0usize..6).prop_map(Event::Repeat),
        6 => (0usize..6).prop_map(Event::Reply),
        4 => (0usize..6, prop::bool::weighted(0.8)).prop_map(|(nth, right)| Event::Error(nth, right)),
        2 => (1u64..2_000).prop_map(Event::Wait),
        1 => snapshot().prop_map(|snapshot| Event::Change(Box::new(snapshot))),
    ]
    .boxed()
}

/// The property below would hold for histories in which nothing happens. These do not.
#[test]
fn histories_meet_every_reason_and_every_table() {
    use DropReason as R;
    let mut runner = TestRunner::deterministic();
    let histories = history(60);
    let mut seen = Seen::default();
    for _ in 0..150 {
        histories.new_tree(&mut runner).expect("a history").current().live_through(&mut seen);
    }
    let wanted = [
        R::SourceInvalid,
        R::NoPolicy,
        R::VlanNotAllowed,
        R::UnknownEtherType,
        R::BridgeReserved,
        R::SpoofedMac,
        R::SpoofedIp,
        R::SpoofedArp,
        R::SpoofedNd,
        R::RogueRouter,
        R::RogueDhcp,
        R::Denied,
        R::Rejected,
        R::DefaultDeny,
        R::TcpNotSyn,
        R::IcmpUnrelated,
        R::UnknownDestination,
        R::Hairpin,
        R::AddressMismatch,
        R::NoReceiver,
        R::FragmentOverlap,
        R::FragmentExpired,
    ];
    assert_eq!(seen.reasons, BTreeSet::from(wanted));
    let counts = [
        seen.would_drop,
        seen.floods,
        seen.connection_hits,
        seen.cache_hits,
        seen.mac_moves,
        seen.related_errors,
        seen.non_ip_forwarded,
        seen.later_fragments,
    ];

    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
}

/// Says at the end how much was compared.
#[test]
fn pipeline_and_oracle_agree_at_every_step() {
    let seen = RefCell::<Seen>::default();
    let lived = TestRunner::new(config()).run(&history(1..60), |history| {
        history.live_through(&mut seen.borrow_mut());
        Ok(())
    });
    println!("{}", seen.borrow());
    lived.unwrap_or_else(|error| panic!("{error}"));
}

fn config() -> Config {
    Config { failure_persistence: None, ..Config::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_bit_outside_the_mask_changes_no_verdict(
        snapshot in snapshot(),
        headers in prop_oneof![2 => plain(false), 2 => plain(true), 1 => non_ip()],
        noise: [u64; 7],
    ) {
        let policy = Policy::build(snapshot).expect("the generator keeps the invariants");
        let Ok(headers) = admit(&policy, &headers) else { return Ok(()) };
        let Classified { verdict, mask: Some(mask), .. } = classify_alone(&policy, &headers) else {
            return Ok(());
        };
        let mut words = headers.key.words();
        for ((word, mask), noise) in words.iter_mut().zip(mask.words()).zip(noise) {
            *word ^= noise & !mask;
        }
        let flipped = Headers { key: FlowKey::from_words(&words), ..headers };
        prop_assert_eq!(classify_alone(&policy, &flipped).verdict, verdict, "under {:?}", mask);
    }

    #[test]
    fn random_keys_cannot_make_more_masks(
        snapshot in snapshot(),
        keys in prop::collection::vec((any::<[u64; 7]>(), 1..PORTS), 1..200),
    ) {
        let mut pipeline = Pipeline::new(policy(&Snapshot { epoch: 1, ..snapshot }));
        for (words, n) in keys {
            let random = FlowKey::from_words(&words);
            // Addresses near a workload's make the longest prefixes.
            let dst = to_bits(own(n, false)) ^ (random.dst >> (random.dst_port % 128));
            let key = FlowKey {
                ingress: PortId(n), vlan: 0, eth_src: mac(n), eth_dst: mac(1 + n % 6), dst, ..random
            };
            pipeline.judge(&with_key(key, 0), 64, Nanos::from_secs(1));
            prop_assert!(pipeline.masks() <= MASKS);
        }
    }
}

fn classify_alone(policy: &Policy, headers: &Headers) -> Classified {
    let context = Context {
        policy,
        fdb: &Fdb::new(300),
        memo: &mut Memo::default(),
        receivers: &mut Vec::new(),
        related: None,
        now: Nanos(0),
    };
    classify(context, headers)
}
