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
        self.unique("rule", rules.iter().map(|item| name(&item.name)));
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
mod tests {
    use firedoor_classifier::snapshot::{FlagMatch, Prefix, Tag};

    use super::*;

    const TODAY: Date = jiff::civil::date(2026, 6, 1);

    const CONFIG: &str = r#"
[switch]
name = "lab0"

[[workload]]
name = "web"
kind = "container"
labels = { tier = "web" }
ip = ["10.0.0.1/24", "fd00::1/64"]

[[workload]]
name = "web2"
kind = "container"
labels = { tier = "web" }
ip = "10.0.0.2/24"

[[workload]]
name = "uplink"
kind = "external"
ifname = "eth1"
router = true

[[service]]
name = "http"
match = ["tcp/80", "tcp/8080"]

[[group]]
name = "office"
cidr = ["192.0.2.0/24"]
except = ["192.0.2.128/25"]

[[rule]]
name = "late"
from = { any = true }
to = { group = "office" }
action = "deny"
tier = "baseline"

[[rule]]
name = "web-to-web"
from = { tier = "web" }
to = [{ tier = "web" }, { group = "office" }]
service = ["http", "tcp/80", "udp/53"]
action = "allow"
"#;

    fn compiled(text: &str) -> Compiled {
        compile("lab.toml", text, None, TODAY).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn refused(text: &str) -> Vec<String> {
        let errors = compile("lab.toml", text, None, TODAY).expect_err("it does not compile");
        errors.to_string().lines().map(str::to_owned).collect()
    }

    fn with(lines: &str) -> String {
        format!("{CONFIG}\n{lines}\n")
    }

    #[test]
    fn labels_groups_and_services_are_resolved() {
        let Compiled { snapshot, notices, plan, .. } = compiled(CONFIG);
        assert_eq!(notices, []);
        let tags: Vec<_> = snapshot.tags.iter().map(|tag| tag.name.as_str()).collect();
        assert_eq!(tags, ["world", "tier=web", "no labels", "group office"]);
        assert_eq!(snapshot.world, Tag(0));
        let of_workloads: Vec<_> = snapshot.workloads.iter().map(|w| w.tag).collect();
        assert_eq!(of_workloads, [Tag(1), Tag(1), Tag(2)]);
        let net = |text: &str| text.parse().expect("a range");
        assert_eq!(
            snapshot.prefixes,
            [
                Prefix { net: net("192.0.2.0/24"), tag: Tag(3) },
                Prefix { net: net("192.0.2.128/25"), tag: Tag(0) }
            ]
        );

        let [web_to_web, late] = &snapshot.rules[..] else { panic!("two rules") };
        assert_eq!((web_to_web.name.as_str(), late.name.as_str()), ("web-to-web", "late"));
        assert_eq!(late.from, TagSet::Any);
        assert_eq!(late.services, Services::Any);
        assert_eq!(late.action, RuleAction::Deny);
        assert_eq!(web_to_web.to, TagSet::Only(vec![Tag(1), Tag(3)]));
        let port = |protocol, port| Service::Ports { protocol, first: port, last: port };
        assert_eq!(
            web_to_web.services,
            Services::Only(vec![port(6, 80), port(6, 8080), port(17, 53)])
        );

        assert_eq!(plan[0].nets, [net("10.0.0.1/24"), net("fd00::1/64")]);
        assert_eq!((plan[2].mac, plan[2].ifname.as_str()), (None, "eth1"));
    }

    #[test]
    fn a_workload_selected_by_name_has_its_own_tag() {
        let text = with(
            "[[rule]]\nname = \"one\"\nfrom = { workload = \"web2\" }\nto = { any = true }\n\
             action = \"deny\"",
        );
        let snapshot = compiled(&text).snapshot;
        assert_ne!(snapshot.workloads[0].tag, snapshot.workloads[1].tag);
        let by_label = snapshot.rules.iter().find(|rule| rule.name == "web-to-web");
        let from = &by_label.expect("the rule is there").from;
        assert!(snapshot.workloads[..2].iter().all(|workload| from.contains(workload.tag)));
    }

    #[test]
    fn addresses_hold_the_link_local_one() {
        let snapshot = compiled(CONFIG).snapshot;
        let web = &snapshot.workloads[0];
        assert_eq!(web.addresses.len(), 3);
        assert_eq!(web.addresses.last().copied(), web.mac.map(identity::link_local));
        assert_eq!(snapshot.workloads[2].addresses, [] as [IpAddr; 0]);
    }

    #[test]
    fn compiling_twice_gives_the_same() {
        assert_eq!(compiled(CONFIG), compiled(CONFIG));
    }

    #[test]
    fn ports_stay_with_their_names() {
        let ports = |compiled: &Compiled| -> BTreeMap<String, u16> {
            let workloads = &compiled.snapshot.workloads;
            workloads.iter().map(|w| (w.name.clone(), w.port.0)).collect()
        };
        let first = compiled(CONFIG);
        assert_eq!(first.snapshot.epoch, 1);
        let web = "[[workload]]\nname = \"web\"\nkind = \"container\"\nlabels = { tier = \"web\" }\n\
                   ip = [\"10.0.0.1/24\", \"fd00::1/64\"]\n";
        assert!(CONFIG.contains(web));
        let new = |name: &str, ip: u8| {
            format!("\n[[workload]]\nname = \"{name}\"\nkind = \"vm\"\nip = \"10.0.0.{ip}/24\"\n")
        };
        let text = CONFIG.replace(web, &(new("new", 7) + &new("newer", 8)));
        let second = compile("lab.toml", &text, Some(&first.snapshot), TODAY)
            .unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(second.snapshot.epoch, 2);
        let expected = [("new", 1), ("newer", 4), ("uplink", 3), ("web2", 2)];
        assert_eq!(ports(&second), expected.map(|(n, p)| (n.to_owned(), p)).into());
    }

    #[test]
    fn rules_expire_when_their_day_begins() {
        let rule = |day: &str| {
            with(&format!(
                "[[rule]]\nname = \"x\"\nfrom = {{ any = true }}\nto = {{ any = true }}\n\
                 action = \"allow\"\nexpires = {day}"
            ))
        };
        let holds = compiled(&rule("\"2026-06-02\""));
        assert_eq!(holds.snapshot.rules.len(), 3);
        assert_eq!(holds.next_expiry, Some(jiff::civil::date(2026, 6, 2)));

        let expired = compiled(&rule("2026-06-01"));
        assert_eq!(expired.snapshot.rules.len(), 2);
        assert_eq!(expired.next_expiry, None);
        assert_eq!(expired.notices[0].message, "rule \"x\" expired on 2026-06-01 and is left out");
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let errors = refused(
            r#"
[switch]
name = "lab/0"
mode = "enforced"
worker = 2

[[workload]]
name = "web"
kind = "container"
lables = { tier = "web" }
ip = ["10.0.0.0/24", "10.0.0.1", "127.0.0.1/8"]
mac = "ff:ff:ff:ff:ff:ff"
ifname = "far-too-long-a-name"
vlan = 4095

[[workload]]
name = "up"
kind = "external"

[[group]]
name = "office"
cidr = "192.0.2.7/24"

[[rule]]
from = { teir = "web", group = "office" }
to = {}
service = ["tcp/http", "icmp/echo"]
action = "permit"
expires = "tomorrow"
"#,
        );
        let expected = [
            "lab.toml:3:8: \"lab/0\" cannot be a name: use letters, digits, '.', '_' and '-', \
             a letter or digit first, at most 63 in all",
            "lab.toml:4:8: unknown mode \"enforced\": did you mean \"enforce\"?",
            "lab.toml:5:1: unknown key \"worker\" in [switch]: did you mean \"workers\"?",
            "lab.toml:10:1: unknown key \"lables\" in [[workload]]: did you mean \"labels\"?",
            "lab.toml:11:7: \"10.0.0.0/24\" cannot be a workload's address: it is the address of \
             the subnet itself: use an address of one host in its subnet",
            "lab.toml:11:22: \"10.0.0.1\" is not an address with a prefix length: write it as \
             \"10.10.0.10/24\" or \"fd00:10::10/64\"",
            "lab.toml:11:34: \"127.0.0.1/8\" cannot be a workload's address: it is a loopback \
             address: use an address of one host in its subnet",
            "lab.toml:12:7: \"ff:ff:ff:ff:ff:ff\" is not the address of one station: use one whose \
             first byte is even, such as \"02:00:00:00:00:10\"",
            "lab.toml:13:10: \"far-too-long-a-name\" cannot be an interface's name: use 1 to 15 \
             bytes without '/', ':' or white space, as the kernel does",
            "lab.toml:14:8: vlan is 4095, outside 1 to 4094: write a number from 1 to 4094",
            "lab.toml:17:8: external workload \"up\" has no ifname: add the interface, as \
             ifname = \"eth1\"",
            "lab.toml:17:8: external workload \"up\" has no mac: add its address, as \
             mac = \"02:00:00:00:00:10\", or router = true",
            "lab.toml:22:8: \"192.0.2.7/24\" has address bits behind its prefix length: write \
             \"192.0.2.0/24\"",
            "lab.toml:24:1: [[rule]] has no name: add name = \"web-to-api\"",
            "lab.toml:25:8: this selector mixes group with labels: write a list of selectors, as \
             [{ tier = \"web\" }, { group = \"office\" }]",
            "lab.toml:26:6: this selector selects nothing: name labels, as { tier = \"web\" }, or \
             write { any = true }",
            "lab.toml:27:12: \"tcp/http\" is not a service: it names no port or range of ports: \
             write a port from 0 to 65535, or a range, as tcp/9000-9100",
            "lab.toml:28:10: unknown action \"permit\": one of allow, deny, reject, pass may stand \
             here",
            "lab.toml:29:11: \"tomorrow\" is not a date: write it as \"2027-01-01\"",
        ];
        for (error, expected) in errors.iter().zip(expected) {
            assert_eq!(error, expected);
        }
        assert_eq!(errors.len(), expected.len());
    }

    #[test]
    fn a_wrong_value_neither_hides_a_wrong_name_nor_makes_one() {
        let wrong = with(
            "[[workload]]\nname = \"db\"\nkind = \"wm\"\nip = \"10.0.0.1/24\"\nvlan = 10\ntrunk = [20]\n\
             [[rule]]\nname = \"x\"\nfrom = { workload = [\"db\", \"dbb\"] }\nto = { any = 1 }\n\
             service = [\"http\", \"tcp/x\"]\naction = \"alow\"",
        );
        let errors = refused(&wrong);
        let expected = [
            "unknown kind \"wm\"",
            "address \"10.0.0.1\" is used twice: change one of the two; first used at lab.toml:9:7",
            "a workload has either vlan or trunk",
            "there is no workload \"dbb\": did you mean \"db\"?",
            "any is true or false, not a TOML integer",
            "\"tcp/x\" is not a service",
            "unknown action \"alow\"",
        ];
        assert_eq!(errors.len(), expected.len(), "{errors:?}");
        for (error, expected) in errors.iter().zip(expected) {
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_must_be_unique_is() {
        let twice = |key: &str, first: &str, second: &str| {
            let workload = |name, value| {
                format!("[[workload]]\nname = \"{name}\"\nkind = \"vm\"\n{key} = \"{value}\"\n")
            };
            refused(&with(&(workload("a", first) + &workload("b", second))))
        };
        let duplicate = |errors: Vec<String>, message: &str| {
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains(message), "{errors:?}");
        };
        duplicate(twice("ip", "10.0.0.9/24", "10.0.0.9/16"), "address \"10.0.0.9\" is used twice");
        duplicate(twice("ifname", "tap0", "tap0"), "interface \"tap0\" is used twice");
        let mac = "02:00:00:00:00:01";
        let errors = twice("mac", mac, mac);
        assert!(
            errors.iter().any(|e| e.contains("MAC address \"02:00:00:00:00:01\"")),
            "{errors:?}"
        );
        let name = "[[workload]]\nname = \"web\"\nkind = \"vm\"\n";
        duplicate(refused(&with(name)), "workload \"web\" is used twice");
        let group = "[[group]]\nname = \"office\"\ncidr = \"198.51.100.0/24\"\n";
        duplicate(refused(&with(group)), "group \"office\" is used twice");
    }

    #[test]
    fn unknown_names_come_with_a_suggestion() {
        let errors = refused(&with(
            "[[rule]]\nname = \"x\"\nfrom = { workload = \"wbe\" }\nto = { group = \"ofice\" }\n\
             service = \"htp\"\naction = \"allow\"",
        ));
        assert_eq!(errors.len(), 3);
        assert!(errors[0].contains("no workload \"wbe\": did you mean \"web"), "{errors:?}");
        assert!(errors[1].ends_with("no group \"ofice\": did you mean \"office\"?"), "{errors:?}");
        assert!(errors[2].ends_with("no service \"htp\": did you mean \"http\"?"), "{errors:?}");
    }

    /// A config with one more rule, of these lines.
    fn with_rule(lines: &str) -> String {
        with(&format!(
            "[[rule]]\nname = \"x\"\nfrom = {{ any = true }}\nto = {{ any = true }}\n\
             action = \"allow\"\n{lines}"
        ))
    }

    #[test]
    fn conditions_are_resolved() {
        let conditions = |lines: &str| {
            let snapshot = compiled(&with_rule(lines)).snapshot;
            snapshot.rules.iter().find(|rule| rule.name == "x").expect("it is there").conditions
        };
        let none = Conditions::default();
        assert_eq!(conditions(""), none);
        let src_ports = Some((1_024, 65_535));
        assert_eq!(conditions("source_port = \"1024-65535\""), Conditions { src_ports, ..none });
        let (src_ports, text) = (Some((68, 68)), "source_port = 68\nservice = \"udp/67\"");
        assert_eq!(conditions(text), Conditions { src_ports, ..none });
        let tcp_flags = Some(FlagMatch { mask: 0x12, value: 0x02 });
        assert_eq!(conditions("tcp_flags = \"syn,!ack\""), Conditions { tcp_flags, ..none });
        let ether_type = Some(0x88b5);
        assert_eq!(conditions("ethertype = \"0x88b5\""), Conditions { ether_type, ..none });
        assert_eq!(conditions("ethertype = 0x88b5"), Conditions { ether_type, ..none });
        let (ether_type, text) = (Some(0x86dd), "ethertype = \"ipv6\"\nvlan = 10");
        assert_eq!(conditions(text), Conditions { ether_type, vlan: Some(10), ..none });
    }

    #[test]
    fn conditions_that_cannot_be_are_refused() {
        let name_line = with_rule("").lines().position(|line| line.contains("\"x\"")).unwrap() + 1;
        let errors = |lines: &str| {
            refused(&with_rule(lines))
                .iter()
                .map(|error| {
                    let mut parts = error.splitn(4, ':');
                    let line: usize = parts.nth(1).and_then(|line| line.parse().ok()).unwrap();
                    format!(
                        "{}:{}:{}",
                        line - name_line,
                        parts.next().unwrap(),
                        parts.next().unwrap()
                    )
                })
                .collect::<Vec<_>>()
        };
        for (lines, expected) in [
            (
                "source_port = \"x\"",
                "4:15: \"x\" cannot be source_port: it names no port or range of ports: \
                 write a port from 0 to 65535, or a range, as \"1024-65535\"",
            ),
            (
                "source_port = 65536",
                "4:15: source_port is 65536, outside 0 to 65535: write a number \
              from 0 to 65535",
            ),
            (
                "source_port = true",
                "4:15: source_port is a port or range, as 68 or \"1024-65535\", not a TOML boolean: \
                 write a port or range, as 68 or \"1024-65535\"",
            ),
            (
                "tcp_flags = \"syn,akc\"",
                "4:13: \"syn,akc\" cannot be tcp_flags: TCP has no flag \"akc\": write names of \
                 fin, syn, rst, psh, ack, urg, ece and cwr, as \"syn,!ack\"",
            ),
            (
                "ethertype = \"arp\"",
                "4:13: \"arp\" cannot be ethertype: ARP is not for rules: the switch gives every \
                 request to its target alone: leave the rule out, and allow the service that is wanted",
            ),
            (
                "ethertype = 0x8100",
                "4:13: \"0x8100\" cannot be ethertype: it is a VLAN tag's, which stands before the \
                 ethertype: write vlan = 10",
            ),
            ("vlan = 4095", "4:8: vlan is 4095, outside 1 to 4094: write a number from 1 to 4094"),
            (
                "ethertype = \"0x88b5\"\nservice = \"any\"",
                "5:11: service is a matter of IP, and this rule is about ethertype 0x88b5: leave \
                 service out, or write a rule of its own for IP",
            ),
            (
                "ethertype = \"0x88b5\"\ntcp_flags = \"syn\"",
                "5:13: tcp_flags is a matter of IP, and this rule is about ethertype 0x88b5: leave \
                 tcp_flags out, or write a rule of its own for IP",
            ),
            (
                "service = [\"tcp/80\", \"icmp/echo\"]\nsource_port = 68",
                "5:15: source_port and the service icmp/echo exclude each other: only TCP, UDP and \
                 SCTP have ports: leave source_port out, or give the service a rule of its own",
            ),
            (
                "service = \"udp/53\"\ntcp_flags = \"syn\"",
                "5:13: tcp_flags and the service udp/53 exclude each other: only TCP has its flags: \
                 leave tcp_flags out, or give the service a rule of its own",
            ),
            (
                "service = \"icmp6\"\nethertype = \"ipv4\"",
                "5:13: ethertype and the service icmp6 exclude each other: ICMPv6 is of IPv6: leave \
                 ethertype out, or give the service a rule of its own",
            ),
            (
                "sorce_port = 68",
                "4:1: unknown key \"sorce_port\" in [[rule]]: did you mean \"source_port\"?",
            ),
        ] {
            assert_eq!(errors(lines), [expected], "{lines}");
        }
    }

    #[test]
    fn conditions_that_match_nothing_are_noticed() {
        let notices = |text: &str| -> Vec<_> {
            compiled(text).notices.into_iter().map(|notice| notice.message).collect()
        };
        assert_eq!(
            notices(&with_rule("vlan = 10")),
            ["rule \"x\" speaks of VLAN 10, which no port carries"]
        );
        let carried =
            "[[workload]]\nname = \"t\"\nkind = \"vm\"\nip = \"10.0.9.9/24\"\ntrunk = [10]\n";
        assert_eq!(notices(&(with_rule("vlan = 10\n") + carried)), [] as [&str; 0]);

        let late = with_rule("tcp_flags = \"ack\"");
        assert_eq!(
            notices(&late),
            [
                "rule \"x\" asks for ack, which begins no connection, and a connection's other frames \
              follow its first one: in enforce mode it allows nothing, unless midstream = true"
            ]
        );
        let lenient = late.replace("name = \"lab0\"", "name = \"lab0\"\nmidstream = true");
        assert_eq!(notices(&lenient), [] as [&str; 0]);
        assert_eq!(notices(&with_rule("tcp_flags = \"syn\"")), [] as [&str; 0]);
    }

    #[test]
    fn what_deserves_a_look_is_noticed() {
        let text = with(
            "[[workload]]\nname = \"bare\"\nkind = \"vm\"\n\
             [[workload]]\nname = \"wide\"\nkind = \"vm\"\nip = \"10.0.1.1/16\"\n\
             [[group]]\nname = \"inside\"\ncidr = \"10.0.0.0/8\"\nexcept = \"11.0.0.0/8\"\n\
             [[rule]]\nname = \"x\"\nfrom = { tier = \"wbe\" }\nto = { any = true }\n\
             action = \"allow\"",
        );
        let notices: Vec<_> = compiled(&text).notices.into_iter().map(|n| n.message).collect();
        let expected = [
            "overlap with different prefix lengths",
            "overlap with different prefix lengths",
            "\"bare\" has no ip",
            "\"inside\" contains an address of workload \"web\"",
            "\"inside\" excepts 11.0.0.0/8, which it does not contain",
            "rule \"x\" matches nothing in its \"from\"",
        ];
        assert_eq!(notices.len(), expected.len(), "{notices:?}");
        for (notice, expected) in notices.iter().zip(expected) {
            assert!(notice.contains(expected), "{notice}");
        }
    }
}
