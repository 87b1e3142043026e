//! Intent to snapshot: pure and deterministic.
//!
//! The same text, previous snapshot and day give the same snapshot, byte for byte. What is derived
//! ([`identity`]) depends on names alone, so it survives reordering the file; what must stay across
//! changes of the config (port numbers) is taken from the previous snapshot. Labels and ranges
//! become integers in [`tags`].
//!
//! A config that has a [`Problem`] gives no snapshot at all.

mod identity;
mod tags;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;

use firedoor_classifier::MacAddr;
use firedoor_classifier::snapshot::{
    Conditions, Kind, Mode, PortId, Rule, RuleAction, Service, Services, Snapshot, TagSet,
    VlanMode, Workload,
};
use firedoor_classifier::wire::ethernet::ether_type;
use firedoor_classifier::wire::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};
use ipnet::IpNet;
use jiff::civil::Date;

use self::tags::Tags;
use crate::diagnostic::{Diagnostics, Notice, Problem, Remark, Source, Span, Spanned, nearest};
use crate::intent::{self, Intent, NamedService, Selector, ServiceRef};
use crate::{condition, service};

/// Most workloads of one switch: port numbers are 16 bits, and 0 is none.
pub const MAX_WORKLOADS: usize = u16::MAX as usize;

/// A config, compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// What the data plane is to enforce.
    pub snapshot: Snapshot,
    /// What deserves a look, in the order of the file.
    pub notices: Vec<Notice>,
    /// The next day (UTC) on which a rule expires: compile again when it begins.
    pub next_expiry: Option<Date>,
    /// The workloads in the order of the file, with what it takes to build them.
    pub plan: Vec<Planned>,
}

/// What it takes to build one workload and its port.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its port.
    pub port: PortId,
    /// The switch-side interface.
    pub ifname: String,
    /// The workload's own Ethernet address; `None` only for an external router.
    pub mac: Option<MacAddr>,
    /// Its addresses, each with the prefix length of its subnet. IPv6 link-local is not among them.
    pub nets: Vec<IpNet>,
    /// VLAN membership of its port.
    pub vlan: VlanMode,
    /// Whether it forwards for others.
    pub router: bool,
    /// Whether it may answer DHCP.
    pub dhcp_server: bool,
}

/// Compiles the config `text`, which was read from `path`, for the day `today` (UTC).
///
/// Workloads of `previous` keep their port numbers, and the epoch is the one after its epoch.
///
/// # Errors
/// Everything that is wrong with the config, but a text that is not TOML is wrong in that alone.
pub fn compile(
    path: &str,
    text: &str,
    previous: Option<&Snapshot>,
    today: Date,
) -> Result<Compiled, Diagnostics> {
    compile_source(Source::new(path, text), previous, today)
}

/// As [`compile`], of a text that may have been changed by hand.
///
/// # Errors
/// As for it.
pub(crate) fn compile_source(
    source: Source,
    previous: Option<&Snapshot>,
    today: Date,
) -> Result<Compiled, Diagnostics> {
    let (intent, problems) = intent::parse(source.text());
    let known = Known::of(&intent);
    let mut compiler = Compiler { intent: &intent, known, problems, remarks: Vec::new() };
    let compiled = compiler.compile(previous, today);
    let Compiler { problems, mut remarks, .. } = compiler;
    if !problems.is_empty() {
        return Err(Diagnostics::new(source, problems));
    }
    remarks.sort_by_key(|remark| remark.span.start);
    let notices = remarks.iter().map(|remark| source.notice(remark)).collect();
    Ok(Compiled { notices, ..compiled })
}

struct Compiler<'a> {
    intent: &'a Intent,
    known: Known<'a>,
    problems: Vec<Spanned<Problem>>,
    remarks: Vec<Spanned<Remark>>,
}

/// What rules refer to, so that a rule costs what it refers to and not what there is.
struct Known<'a> {
    workloads: BTreeSet<&'a str>,
    groups: BTreeSet<&'a str>,
    services: BTreeMap<&'a str, &'a NamedService>,
    /// Those that some port carries.
    vlans: BTreeSet<u16>,
}

impl<'a> Known<'a> {
    fn of(intent: &'a Intent) -> Self {
        let vlans = intent.workloads.iter().flat_map(|workload| match &workload.vlan {
            VlanMode::Access(vlan) => std::slice::from_ref(vlan),
            VlanMode::Trunk(vlans) => vlans,
        });
        let services = intent.services.iter();
        Self {
            workloads: intent.workloads.iter().map(|item| item.name.value.as_str()).collect(),
            groups: intent.groups.iter().map(|item| item.name.value.as_str()).collect(),
            services: services.map(|item| (item.name.value.as_str(), item)).collect(),
            vlans: vlans.copied().collect(),
        }
    }
}

impl Compiler<'_> {
    /// A snapshot that holds if no problem was found.
    fn compile(&mut self, previous: Option<&Snapshot>, today: Date) -> Compiled {
        let intent = self.intent;
        let plan = identity::plan(intent, previous);
        self.check_names();
        self.check_identities(&plan);
        self.look_at_addresses();
        self.look_at_groups();

        let tags = Tags::of(intent);
        let mut rules = Vec::new();
        for rule in &intent.rules {
            let resolved = self.rule(rule, &tags);
            match &rule.expires {
                Some(day) if day.value <= today => {
                    let remark = Remark::Expired { rule: rule.name.value.clone(), day: day.value };
                    self.remark(&day.span, remark);
                }
                _ => rules.push(resolved),
            }
        }
        // Stable, so that ties stay in the order of the file.
        rules.sort_by_key(|rule| (rule.tier, rule.priority));

        let expiries = intent.rules.iter().filter_map(|rule| Some(rule.expires.as_ref()?.value));
        Compiled {
            snapshot: Snapshot {
                epoch: previous.map_or(1, |snapshot| snapshot.epoch.saturating_add(1)),
                switch: intent.switch.name.clone(),
                mode: intent.switch.mode,
                settings: intent.switch.settings,
                workloads: workloads(intent, &plan, &tags),
                tags: tags.infos,
                prefixes: tags.prefixes,
                world: tags.world,
                rules,
            },
            notices: Vec::new(),
            next_expiry: expiries.filter(|day| *day > today).min(),
            plan,
        }
    }

    fn problem(&mut self, span: &Span, value: Problem) {
        self.problems.push(Spanned { span: span.clone(), value });
    }

    fn remark(&mut self, span: &Span, value: Remark) {
        self.remarks.push(Spanned { span: span.clone(), value });
    }

    /// Reports every value that an earlier item has too.
    fn unique<T: Ord + Display>(
        &mut self,
        what: &'static str,
        items: impl Iterator<Item = (T, Span)>,
    ) {
        let mut first = BTreeMap::new();
        for (value, span) in items {
            if let Some(first) = first.get(&value).cloned() {
                self.problem(&span, Problem::Duplicate { what, value: value.to_string(), first });
            } else {
                first.insert(value, span);
            }
        }
    }

    fn check_names(&mut self) {
        let Intent { workloads, services, groups, rules, .. } = self.intent;
        let name = |name: &Spanned<String>| (name.value.clone(), name.span.clone());
        self.unique("workload", workloads.iter().map(|item| name(&item.name)));
        self.unique("service", services.iter().map(|item| name(&item.name)));
        self.unique("group", groups.iter().map(|item| name(&item.name)));
        let named = rules.iter().filter(|item| !item.name.value.is_empty());
        self.unique("rule", named.map(|item| name(&item.name)));
    }

    fn check_identities(&mut self, plan: &[Planned]) {
        let count = plan.len();
        if let Some(workload) = self.intent.workloads.get(MAX_WORKLOADS) {
            let problem = Problem::TooManyWorkloads { count, limit: MAX_WORKLOADS };
            self.problem(&workload.name.span, problem);
        }
        // What is derived from one name twice is the same twice: the name is the problem.
        let mut names = BTreeSet::new();
        let items: Vec<_> = std::iter::zip(&self.intent.workloads, plan)
            .filter(|(workload, _)| names.insert(&workload.name.value))
            .collect();

        self.unique(
            "interface",
            items.iter().map(|(workload, planned)| {
                let span = workload.ifname.as_ref().map_or(&workload.name.span, |name| &name.span);
                (planned.ifname.clone(), span.clone())
            }),
        );
        self.unique(
            "MAC address",
            items.iter().filter_map(|(workload, planned)| {
                let span = workload.mac.as_ref().map_or(&workload.name.span, |mac| &mac.span);
                Some((planned.mac?, span.clone()))
            }),
        );
        // Twins of a MAC address are reported as such, not as twins of the address made of it too.
        let mut macs = BTreeSet::new();
        self.unique(
            "address",
            items.iter().flat_map(|(workload, planned)| {
                let own = workload.addresses.iter();
                let own = own.map(|net| (net.value.addr(), net.span.clone()));
                let mac = planned.mac.filter(|&mac| macs.insert(mac));
                let link_local = mac.map(identity::link_local);
                let is_given = |addr: &IpAddr| planned.nets.iter().any(|net| net.addr() == *addr);
                let derived = link_local.filter(|addr| !is_given(addr));
                own.chain(derived.map(|addr| (addr, workload.name.span.clone())))
            }),
        );
    }

    /// Remarks on workloads without an address, and on neighbours that disagree on their subnet.
    fn look_at_addresses(&mut self) {
        let mut subnets = Vec::new();
        for workload in &self.intent.workloads {
            let name = &workload.name;
            if workload.addresses.is_empty() && !workload.router {
                self.remark(&name.span, Remark::NoAddress { workload: name.value.clone() });
            }
            let VlanMode::Access(vlan) = workload.vlan else { continue };
            for net in &workload.addresses {
                // A lone address has no neighbours to disagree with.
                if net.value.prefix_len() < net.value.max_prefix_len() {
                    subnets.push((vlan, net.value.trunc(), net, name));
                }
            }
        }
        // A subnet sorts after those that contain it.
        subnets.sort_by_key(|&(vlan, subnet, ..)| (vlan, subnet));
        let mut outer: Option<(u16, IpNet, &Spanned<IpNet>, &Spanned<String>)> = None;
        for (vlan, subnet, net, name) in subnets {
            match outer {
                Some((outer_vlan, outer_subnet, outer_net, outer_name))
                    if outer_vlan == vlan && outer_subnet.contains(&subnet) =>
                {
                    if outer_subnet != subnet {
                        let remark = Remark::SubnetsDiffer {
                            one: net.value.to_string(),
                            workload: outer_name.value.clone(),
                            other: outer_net.value.to_string(),
                        };
                        self.remark(&net.span, remark);
                    }
                }
                _ => outer = Some((vlan, subnet, net, name)),
            }
        }
    }

    /// Remarks on groups that are not what they seem.
    fn look_at_groups(&mut self) {
        let workloads = self.intent.workloads.iter().enumerate();
        let mut addresses: Vec<_> = workloads
            .flat_map(|(at, workload)| {
                workload.addresses.iter().map(move |net| (net.value.addr(), at))
            })
            .collect();
        addresses.sort_unstable();
        for group in &self.intent.groups {
            let within = |ranges: &[Spanned<IpNet>], net: IpNet| {
                ranges.iter().any(|range| range.value.contains(&net))
            };
            for except in &group.except {
                let touches = group.cidr.iter().any(|range| {
                    range.value.contains(&except.value) || except.value.contains(&range.value)
                });
                if !touches {
                    let range = except.value.to_string();
                    let remark = Remark::ExceptOutside { group: group.name.value.clone(), range };
                    self.remark(&except.span, remark);
                }
            }
            // Nobody takes 0.0.0.0/0 for a way to select workloads.
            let narrow = group.cidr.iter().filter(|range| range.value.prefix_len() > 0);
            let inside = narrow.flat_map(|range| within_range(&addresses, range.value));
            let inside = inside.filter(|(addr, _)| !within(&group.except, IpNet::from(*addr)));
            let covered = inside.map(|&(_, at)| at).min();
            if let Some(workload) = covered.and_then(|at| self.intent.workloads.get(at)) {
                let remark = Remark::GroupCovers {
                    group: group.name.value.clone(),
                    workload: workload.name.value.clone(),
                };
                self.remark(&group.name.span, remark);
            }
        }
    }

    fn rule(&mut self, rule: &intent::Rule, tags: &Tags) -> Rule {
        let services = self.services(&rule.services);
        Rule {
            name: rule.name.value.clone(),
            tier: rule.tier,
            priority: rule.priority,
            action: rule.action,
            from: self.side(rule, "from", &rule.from, tags),
            to: self.side(rule, "to", &rule.to, tags),
            direction: rule.direction,
            conditions: self.conditions(rule, &services),
            services,
            audit: rule.audit,
        }
    }

    fn conditions(&mut self, rule: &intent::Rule, services: &Services) -> Conditions {
        let intent::Conditions { source_port, tcp_flags, ether_type, vlan } = &rule.conditions;
        self.check_exclusions(&rule.conditions, services);
        let switch = &self.intent.switch;
        if let Some(vlan) = vlan
            && !self.known.vlans.contains(&vlan.value)
        {
            let rule = rule.name.value.clone();
            self.remark(&vlan.span, Remark::NoSuchVlan { rule, vlan: vlan.value });
        }
        let must_begin = switch.mode == Mode::Enforce && !switch.settings.midstream;
        if let Some(asked) = tcp_flags
            && must_begin
            && rule.action == RuleAction::Allow
            && !condition::may_begin(asked.value)
        {
            let (rule, flags) = (rule.name.value.clone(), condition::flags_text(asked.value));
            self.remark(&asked.span, Remark::NeverBegins { rule, flags });
        }
        Conditions {
            ether_type: ether_type.as_ref().map(|named| named.value),
            vlan: vlan.as_ref().map(|vlan| vlan.value),
            src_ports: source_port.as_ref().map(|ports| ports.value),
            tcp_flags: tcp_flags.as_ref().map(|asked| asked.value),
        }
    }

    /// Reports conditions that one of the services can never meet: it would silently never match.
    fn check_exclusions(&mut self, conditions: &intent::Conditions, services: &Services) {
        let Services::Only(services) = services else { return };
        let protocol = |service: &&Service| match **service {
            Service::Ports { protocol, .. }
            | Service::Icmp { protocol, .. }
            | Service::Protocol(protocol) => protocol,
        };
        let mut exclude = |key, span: &Span, why, meets: &dyn Fn(u8) -> bool| {
            if let Some(service) = services.iter().find(|service| !meets(protocol(service))) {
                let service = service::text(service);
                self.problem(span, Problem::Excluded { key, service, why });
            }
        };
        if let Some(ports) = &conditions.source_port {
            let why = "only TCP, UDP and SCTP have ports";
            exclude("source_port", &ports.span, why, &|protocol| {
                matches!(protocol, TCP | UDP | SCTP)
            });
        }
        if let Some(flags) = &conditions.tcp_flags {
            let why = "only TCP has its flags";
            exclude("tcp_flags", &flags.span, why, &|protocol| protocol == TCP);
        }
        if let Some(ether_type) = &conditions.ether_type {
            let (other, why) = match ether_type.value {
                ether_type::IPV4 => (ICMPV6, "ICMPv6 is of IPv6"),
                _ => (ICMP, "ICMP is of IPv4"),
            };
            exclude("ethertype", &ether_type.span, why, &|protocol| protocol != other);
        }
    }

    fn side(
        &mut self,
        rule: &intent::Rule,
        side: &'static str,
        selectors: &Spanned<Vec<Selector>>,
        tags: &Tags,
    ) -> TagSet {
        for selector in &selectors.value {
            match selector {
                Selector::Workloads(names) => {
                    check_known("workload", names, &self.known.workloads, &mut self.problems);
                }
                Selector::Groups(names) => {
                    check_known("group", names, &self.known.groups, &mut self.problems);
                }
                Selector::Any | Selector::Labels(_) => {}
            }
        }
        let selected = tags.select(&selectors.value);
        if selected == TagSet::Only(Vec::new()) {
            let rule = rule.name.value.clone();
            self.remark(&selectors.span, Remark::SelectsNothing { rule, side });
        }
        selected
    }

    fn services(&mut self, services: &[ServiceRef]) -> Services {
        let mut found = Vec::new();
        for service in services {
            match service {
                ServiceRef::Any | ServiceRef::One(_) => found.push(service),
                ServiceRef::Named(name) => match self.known.services.get(name.value.as_str()) {
                    Some(service) => found.extend(&service.matches),
                    None => {
                        let known = self.known.services.keys().copied().collect();
                        let name = std::slice::from_ref(name);
                        check_known("service", name, &known, &mut self.problems);
                    }
                },
            }
        }
        let mut only = Vec::new();
        for service in found {
            match service {
                ServiceRef::One(service) if !only.contains(service) => only.push(*service),
                ServiceRef::One(_) => {}
                // A named service holds texts alone, so this is "any".
                ServiceRef::Any | ServiceRef::Named(_) => return Services::Any,
            }
        }
        Services::Only(only)
    }
}

/// The part of sorted `addresses` that lies in a range.
fn within_range(addresses: &[(IpAddr, usize)], range: IpNet) -> &[(IpAddr, usize)] {
    let first = addresses.partition_point(|(addr, _)| *addr < range.network());
    let end = addresses.partition_point(|(addr, _)| *addr <= range.broadcast());
    &addresses[first..end]
}

/// Reports names that nothing has.
fn check_known(
    what: &'static str,
    names: &[Spanned<String>],
    known: &BTreeSet<&str>,
    problems: &mut Vec<Spanned<Problem>>,
) {
    for name in names.iter().filter(|name| !known.contains(name.value.as_str())) {
        let nearest = nearest(&name.value, known.iter().copied()).map(str::to_owned);
        let value = Problem::UnknownName { what, value: name.value.clone(), nearest };
        problems.push(Spanned { span: name.span.clone(), value });
    }
}

fn workloads(intent: &Intent, plan: &[Planned], tags: &Tags) -> Vec<Workload> {
    let workload = |((workload, planned), &tag): ((&intent::Workload, &Planned), _)| {
        let mut addresses: Vec<IpAddr> = planned.nets.iter().map(IpNet::addr).collect();
        let link_local = planned.mac.map(identity::link_local);
        addresses.extend(link_local.filter(|addr| !addresses.contains(addr)));
        Workload {
            name: planned.name.clone(),
            port: planned.port,
            tag,
            kind: planned.kind,
            ifname: planned.ifname.clone(),
            mac: planned.mac,
            addresses,
            vlan: planned.vlan.clone(),
            lane: workload.lane,
            router: planned.router,
            dhcp_server: planned.dhcp_server,
        }
    };
    let planned = intent.workloads.iter().zip(plan);
    planned.zip(&tags.of_workloads).map(workload).collect()
}

#[cfg(test)]
mod tests;
