//! Any bytes as a small policy, changes to it, and frames: a [history](super::history).
//!
//! Every byte is one choice among a few, so that few bytes say much and most mutations mean something.
//! After the last byte every choice is the first, and the history ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use firedoor_classifier::extract::{Embedded, Fragment, Headers, Kind, Nd, NdMessage};
use firedoor_classifier::key::to_bits;
use firedoor_classifier::snapshot::{
    Conditions, Direction, FlagMatch, Kind as WorkloadKind, Lane, Mode, Prefix, Rule, RuleAction,
    Service, Services, Settings, TagInfo, TagSet, VlanMode, Workload,
};
use firedoor_classifier::{FlowKey, MacAddr, PortId, Snapshot, Tag};

use crate::history::{
    self, ENDLESS, Event, OTHER_ETHER_TYPES, Seen, insert_rule, live_through, mac, own,
};

/// Ports are 1 to 6; a frame may come by 7, which no policy knows.
const PORTS: u16 = 6;
const TAGS: u8 = 4;
/// Longest history.
const MAX_EVENTS: usize = 64;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// Panics if, at some step, the pipeline with caches, without them, and the linear oracle disagree.
pub(crate) fn check(bytes: &[u8], seen: &mut Seen) {
    let mut choices = Choices { bytes };
    let first = choices.snapshot();
    let events = Events { choices, snapshot: first.clone(), left: MAX_EVENTS };
    live_through(first, events, seen);
}

/// Bytes to be read as choices.
struct Choices<'a> {
    bytes: &'a [u8],
}

/// Bytes to be read as events, and the policy that is in force by then.
struct Events<'a> {
    choices: Choices<'a>,
    snapshot: Snapshot,
    left: usize,
}

impl Iterator for Events<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.left = self.left.checked_sub(1).filter(|_| !self.choices.bytes.is_empty())?;
        let choices = &mut self.choices;
        Some(match choices.below(16) {
            0..8 => Event::Frame(Box::new(choices.headers())),
            8 => Event::Repeat(choices.below(8).into()),
            9 | 10 => Event::Reply(choices.below(8).into()),
            11 => Event::Error(choices.below(8).into(), choices.is()),
            12 => Event::Wait(u64::from(choices.byte()) * 25),
            13 => Event::Part(choices.below(4).into(), choices.fragment()),
            _ => {
                choices.change(&mut self.snapshot);
                Event::Change(Box::new(self.snapshot.clone()))
            }
        })
    }
}

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        first
    }

    fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    fn is(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn one_of<T: Copy, const N: usize>(&mut self, all: [T; N]) -> T {
        all[usize::from(self.byte()) % N]
    }

    fn snapshot(&mut self) -> Snapshot {
        let workloads = (1..=2 + u16::from(self.below(5))).map(|n| self.workload(n)).collect();
        let settings = Settings {
            max_connections: 1_024,
            max_flows: 64,
            midstream: self.is(),
            mac_ageing_secs: 5,
            timeouts: ENDLESS,
            fragment_timeout_secs: 2,
            ..Settings::default()
        };
        let mut snapshot = Snapshot {
            epoch: 0,
            switch: String::new(),
            mode: self.mode(),
            settings,
            workloads,
            tags: (0..TAGS).map(|_| TagInfo { name: String::new() }).collect(),
            prefixes: self.prefixes(),
            world: Tag(0),
            rules: Vec::new(),
        };
        for _ in 0..self.below(8) {
            self.add_rule(&mut snapshot.rules);
        }
        snapshot
    }

    /// One step: a rule more, a rule less, another rule, or something else than rules.
    fn change(&mut self, snapshot: &mut Snapshot) {
        let rules = &mut snapshot.rules;
        let at = usize::from(self.byte()).checked_rem(rules.len());
        match (self.below(8), at) {
            (0 | 1, Some(at)) => _ = rules.remove(at),
            (2, Some(at)) => {
                rules.remove(at);
                self.add_rule(rules);
            }
            (3, _) => snapshot.mode = self.mode(),
            (4, _) => snapshot.prefixes = self.prefixes(),
            (5, _) => {
                let at = usize::from(self.byte()) % snapshot.workloads.len();
                let port = snapshot.workloads[at].port;
                snapshot.workloads[at] = Workload { port, ..self.workload(at as u16 + 1) };
            }
            (6, _) => {
                // Two workloads change places: same names and addresses, each at the other's port.
                let ports = [0, 1].map(|at| snapshot.workloads[at].port);
                (snapshot.workloads[0].port, snapshot.workloads[1].port) = (ports[1], ports[0]);
            }
            _ => self.add_rule(rules),
        }
    }

    fn mode(&mut self) -> Mode {
        self.one_of([Mode::Enforce, Mode::Enforce, Mode::Enforce, Mode::Audit, Mode::Learn])
    }

    fn tag(&mut self) -> Tag {
        Tag(self.below(TAGS).into())
    }

    fn workload(&mut self, n: u16) -> Workload {
        let bits = self.byte();
        let has = |bit: u8| bits & bit != 0;
        let vlan = match bits >> 6 {
            0 | 1 => VlanMode::Access(0),
            2 => VlanMode::Access(10),
            _ => VlanMode::Trunk(vec![10, 20]),
        };
        Workload {
            name: n.to_string(),
            port: PortId(n),
            tag: self.tag(),
            kind: WorkloadKind::Container,
            ifname: String::new(),
            mac: (!(has(1) && has(2))).then(|| mac(n)),
            addresses: vec![own(n, false), own(n, true)],
            vlan,
            lane: Lane::Auto,
            router: has(1),
            dhcp_server: has(4),
        }
    }

    fn prefixes(&mut self) -> Vec<Prefix> {
        let bits = self.byte();
        let nets = [
            "192.0.2.0/24",
            "192.0.2.128/25",
            "10.0.0.0/8",
            "10.0.0.2/32",
            "0.0.0.0/0",
            "2001:db8::/32",
            "::/0",
        ];
        let chosen = nets.into_iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1);
        let net = |text: &str| text.parse().expect("a literal prefix");
        chosen.map(|(_, text)| Prefix { net: net(text), tag: self.tag() }).collect()
    }

    fn add_rule(&mut self, rules: &mut Vec<Rule>) {
        let (rule, before) = (self.rule(), self.is());
        insert_rule(rules, rule, before);
    }

    fn rule(&mut self) -> Rule {
        use RuleAction::{Allow, Deny, Pass, Reject};
        let bits = self.byte();
        let conditions = if bits & 4 == 0 { Conditions::default() } else { self.conditions() };
        // What is not IP has no services.
        let is_ip = conditions.ether_type.is_none_or(|named| named != OTHER_ETHER_TYPES[0]);
        Rule {
            name: String::new(),
            tier: bits & 3,
            priority: 100,
            action: self.one_of([Allow, Allow, Allow, Deny, Reject, Pass]),
            from: self.tag_set(),
            to: self.tag_set(),
            services: if is_ip { self.services() } else { Services::Any },
            direction: match bits >> 3 & 3 {
                0 | 1 => Direction::Both,
                2 => Direction::Ingress,
                _ => Direction::Egress,
            },
            conditions,
            audit: bits >> 5 == 7,
        }
    }

    fn conditions(&mut self) -> Conditions {
        let flags = [(0x02, 0x02), (0x12, 0x02), (0x10, 0x10), (0x42, 0x42), (0x08, 0)];
        let flags = flags.map(|(mask, value)| Some(FlagMatch { mask, value }));
        let [a, b, c, d, e] = flags;
        let [other, _] = OTHER_ETHER_TYPES;
        Conditions {
            ether_type: self.one_of([None, None, None, Some(IPV4), Some(IPV6), Some(other)]),
            vlan: self.one_of([None, None, Some(10), Some(20)]),
            src_ports: self.one_of([
                None,
                None,
                Some((0, 1_023)),
                Some((53, 53)),
                Some((5_000, 65_535)),
            ]),
            tcp_flags: self.one_of([None, None, None, a, b, c, d, e]),
        }
    }

    fn tag_set(&mut self) -> TagSet {
        let bits = self.below(1 << TAGS);
        let tags: Vec<_> = (0..TAGS).filter(|tag| bits >> tag & 1 == 1).map(u32::from).collect();
        // None is a set as good as any, but says little.
        if tags.is_empty() {
            TagSet::Any
        } else {
            TagSet::Only(tags.into_iter().map(Tag).collect())
        }
    }

    fn services(&mut self) -> Services {
        let all = [
            Service::Ports { protocol: 6, first: 80, last: 80 },
            Service::Ports { protocol: 6, first: 22, last: 443 },
            Service::Ports { protocol: 17, first: 0, last: 5_000 },
            Service::Ports { protocol: 17, first: 67, last: 68 },
            Service::Protocol(6),
            Service::Protocol(47),
            Service::Icmp { protocol: 1, kind: 8, code: None },
            Service::Icmp { protocol: 58, kind: 128, code: Some(0) },
        ];
        match self.below(4) {
            0 => Services::Any,
            1 => Services::Only(vec![self.one_of(all), self.one_of(all)]),
            _ => Services::Only(vec![self.one_of(all)]),
        }
    }

    fn headers(&mut self) -> Headers {
        let bits = self.byte();
        let is_v6 = bits & 1 == 1;
        let mut headers = self.plain(is_v6);
        match bits >> 1 & 15 {
            0 => self.arp(&mut headers),
            1 => self.neighbour(&mut headers),
            2 => self.dhcp(&mut headers),
            3 | 4 => self.icmp_error(&mut headers),
            5 | 6 => self.non_ip(&mut headers),
            _ => {}
        }
        headers
    }

    /// One of few places, so that parts of packets meet.
    fn fragment(&mut self) -> Fragment {
        let (offset, len, more) = self.one_of([
            (0, 16, true),
            (16, 16, true),
            (32, 16, false),
            (0, 24, true),
            (8, 16, true),
            (16, 16, false),
            (32, 24, false),
            (48, 8, true),
        ]);
        Fragment { id: self.below(2).into(), offset, len, more }
    }

    fn mac(&mut self) -> MacAddr {
        match self.below(16) {
            12 => mac(0x77),
            13 => mac(0x78),
            14 => MacAddr([0x33, 0x33, 0, 0, 0, 1]),
            15 => MacAddr::BROADCAST,
            n => mac(1 + u16::from(n) % PORTS),
        }
    }

    fn address(&mut self, is_v6: bool) -> IpAddr {
        let outside: [IpAddr; 5] = if is_v6 {
            [
                [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
                [0x2001, 0xdb9, 0, 0, 0, 0, 0, 1].into(),
                [0xfe80, 0, 0, 0, 0, 0, 0, 1].into(),
                [0xff02, 0, 0, 0, 0, 0, 0, 1].into(),
                Ipv6Addr::UNSPECIFIED.into(),
            ]
        } else {
            [
                [192, 0, 2, 1].into(),
                [192, 0, 2, 129].into(),
                [10, 0, 1, 1].into(),
                Ipv4Addr::BROADCAST.into(),
                Ipv4Addr::UNSPECIFIED.into(),
            ]
        };
        match usize::from(self.below(16)) {
            n @ 11.. => outside[n - 11],
            n => own(1 + n as u16 % PORTS, is_v6),
        }
    }

    /// From whom to whom: as they are entitled to, or anyhow.
    fn plain(&mut self, is_v6: bool) -> Headers {
        let bits = self.byte();
        let (from, to) =
            (1 + u16::from(bits & 7) % (PORTS + 1), 1 + u16::from(bits >> 3 & 7) % PORTS);
        let (mut eth_src, mut src) = (mac(from), own(from, is_v6));
        if bits >> 6 == 3 {
            (eth_src, src) = (self.station(), self.address(is_v6));
        }
        let (mut eth_dst, mut dst) = (mac(to), own(to, is_v6));
        if bits >> 6 & 1 == 1 {
            (eth_dst, dst) = (self.mac(), self.address(is_v6));
        }
        let tags =
            self.one_of([(0, 0), (0, 0), (0, 0), (1, 10), (1, 10), (1, 20), (1, 0), (2, 10)]);
        let transport = self.transport(is_v6);
        history::plain((from, eth_src, src), (eth_dst, dst), tags, transport)
    }

    fn station(&mut self) -> MacAddr {
        self.one_of([mac(1), mac(2), mac(3), mac(4), mac(0x77), mac(0x78)])
    }

    /// Protocol, TCP flags, source and destination port of a frame that is not special.
    fn transport(&mut self, is_v6: bool) -> (u8, u8, u16, u16) {
        let icmp = if is_v6 { 58 } else { 1 };
        let (request, reply) = if is_v6 { (128 << 8, 129 << 8) } else { (8 << 8, 0) };
        match self.below(8) {
            // Handshakes and what cannot begin one never share ports: the oracle knows no TCP states.
            0..2 => (
                6,
                self.one_of([0x02, 0x42]),
                self.one_of([1_000, 40_000]),
                self.one_of([22, 80, 443]),
            ),
            2 => (
                6,
                self.one_of([0x10, 0x18]),
                self.one_of([1_001, 40_001]),
                self.one_of([22, 80, 443]),
            ),
            3 | 4 => (17, 0, self.one_of([53, 5_000]), self.one_of([53, 5_000])),
            5 => (icmp, 0, 7, self.one_of([request, reply])),
            6 => (icmp, 0, 0, if is_v6 { 131 << 8 } else { 9 << 8 }),
            _ => (self.one_of([47, 2]), 0, 0, 0),
        }
    }

    fn arp(&mut self, headers: &mut Headers) {
        let bits = self.byte();
        let sender = if bits & 1 == 0 { headers.key.eth_src } else { self.station() };
        let FlowKey { ingress, vlan, eth_dst, eth_src, .. } = headers.key;
        let (src, dst) = (self.address(false), self.address(false));
        headers.key = FlowKey {
            ingress,
            vlan,
            ether_type: 0x0806,
            protocol: 1 + (bits >> 1 & 1),
            eth_dst,
            eth_src,
            src: to_bits(src),
            dst: to_bits(if bits & 4 == 0 { dst } else { src }),
            ..FlowKey::default()
        };
        headers.kind = Kind::Arp { sender, target: MacAddr::ZERO };
    }

    fn neighbour(&mut self, headers: &mut Headers) {
        use NdMessage::{
            NeighborAdvertisement, NeighborSolicitation, Redirect, RouterAdvertisement,
            RouterSolicitation,
        };
        let bits = self.byte();
        let address = self.address(true);
        let key = &mut headers.key;
        (key.ether_type, key.src, key.dst) = (IPV6, to_bits(address), to_bits(self.address(true)));
        (key.protocol, key.tcp_flags, key.src_port, key.dst_port) = (58, 0, 0, 135 << 8);
        let link_addr = match bits & 3 {
            0 => None,
            1 => Some(self.station()),
            _ => Some(key.eth_src),
        };
        let target = if bits & 4 == 0 { to_bits(self.address(true)) } else { key.src };
        let message = self.one_of([
            RouterSolicitation,
            RouterAdvertisement,
            NeighborSolicitation,
            NeighborAdvertisement,
            Redirect,
        ]);
        headers.kind = Kind::Nd(Nd { message, target, link_addr });
    }

    fn dhcp(&mut self, headers: &mut Headers) {
        let bits = self.byte();
        let key = &mut headers.key;
        let (client, server) = if key.ether_type == IPV6 { (546, 547) } else { (68, 67) };
        (key.protocol, key.tcp_flags) = (17, 0);
        if bits & 1 == 0 {
            (key.src_port, key.dst_port) = (client, server);
            headers.kind = Kind::DhcpClient;
            if bits & 2 == 0 {
                key.src = to_bits(Ipv4Addr::UNSPECIFIED.into());
            }
        } else {
            (key.src_port, key.dst_port) = (server, client);
            headers.kind = Kind::DhcpServer;
        }
    }

    /// An error about a packet that, usually, its receiver may have sent to its sender.
    fn icmp_error(&mut self, headers: &mut Headers) {
        let is_v6 = headers.key.ether_type == IPV6;
        let (protocol, _, src_port, dst_port) = self.transport(is_v6);
        let key = &mut headers.key;
        let dst = if self.is() { to_bits(self.address(is_v6)) } else { key.src };
        let embedded = Embedded { protocol, src: key.dst, dst, src_port, dst_port, seq: None };
        (key.protocol, key.tcp_flags, key.src_port) = (if is_v6 { 58 } else { 1 }, 0, 0);
        // Unreachable; for IPv4 sometimes redirect.
        key.dst_port = if is_v6 { 1 << 8 } else { self.one_of([3 << 8, 3 << 8, 5 << 8]) };
        headers.kind = Kind::IcmpError(embedded);
    }

    fn non_ip(&mut self, headers: &mut Headers) {
        let FlowKey { ingress, vlan, eth_dst, eth_src, .. } = headers.key;
        let [named, unnamed] = OTHER_ETHER_TYPES;
        let ether_type = self.one_of([named, named, named, unnamed]);
        headers.key = FlowKey { ingress, vlan, ether_type, eth_dst, eth_src, ..FlowKey::default() };
        (headers.l4, headers.kind) = (headers.end, Kind::NonIp);
    }
}
