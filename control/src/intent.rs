//! Intent: the config file as its author wrote it, with places for errors.
//!
//! This module knows what a config may say and whether each value can be what it claims to be;
//! how values relate to each other is for [`compile`](crate::compile). Everything that is wrong is
//! reported, not the first thing alone: reading goes on after an error, and a table whose name could be
//! read stays, so that nothing that refers to it seems to be wrong as well. A rule stays without a name,
//! too: nothing refers to it, but it refers to others.
//!
//! Every table is read through a [`Reader`]: keys are asked for by name, and what nobody asked for
//! is an unknown key. So the list of known keys, which suggestions are taken from, cannot differ
//! from the keys that are read. Here are the tables; [`rules`] has the largest of them, [`values`] what
//! a single value can be, and [`pieces`] how a long text is read table by table.

mod pieces;
mod reader;
mod rules;
mod values;

use std::collections::BTreeMap;
use std::io::{self, Read};

use firedoor_classifier::MacAddr;
use firedoor_classifier::snapshot::{
    Direction, FlagMatch, Kind, Lane, Mode, RuleAction, Service, Settings, Timeouts, VlanMode,
};
use ipnet::IpNet;
use jiff::civil::Date;
use toml::de::DeTable;

use self::reader::Reader;
use self::rules::{rule, service_text};
pub use self::values::is_name;
use self::values::{ifname, label_key, label_value, mac, range, workload_address};
use crate::diagnostic::{Problem, Spanned};
use crate::service;

/// Highest VLAN identifier (IEEE 802.1Q-2018 §9.6 reserves 4095).
const LAST_VLAN: u32 = 4_094;

/// A config.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Intent {
    /// The `[switch]` table.
    pub switch: Switch,
    /// The `[[workload]]` tables, in the order of the file, like all that follow.
    pub workloads: Vec<Workload>,
    /// The `[[service]]` tables.
    pub services: Vec<NamedService>,
    /// The `[[group]]` tables.
    pub groups: Vec<Group>,
    /// The `[[rule]]` tables.
    pub rules: Vec<Rule>,
}

/// The switch itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Switch {
    /// Its name.
    pub name: String,
    /// What happens to frames that policy denies.
    pub mode: Mode,
    /// Limits and timeouts.
    pub settings: Settings,
}

/// One workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its name, unique among workloads.
    pub name: Spanned<String>,
    /// What it is.
    pub kind: Kind,
    /// What selectors find it by.
    pub labels: BTreeMap<String, String>,
    /// Its addresses, each with the prefix length of its subnet.
    pub addresses: Vec<Spanned<IpNet>>,
    /// Its Ethernet address, if it is given.
    pub mac: Option<Spanned<MacAddr>>,
    /// The switch-side interface, if it is given.
    pub ifname: Option<Spanned<String>>,
    /// VLAN membership.
    pub vlan: VlanMode,
    /// Which lanes its port may use.
    pub lane: Lane,
    /// Whether it forwards for others.
    pub router: bool,
    /// Whether it may answer DHCP.
    pub dhcp_server: bool,
}

/// A named set of services.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedService {
    /// Its name, unique among services.
    pub name: Spanned<String>,
    /// What it matches.
    pub matches: Vec<ServiceRef>,
}

/// A part of a rule's or a named service's services.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceRef {
    /// All of IP.
    Any,
    /// One service.
    One(Service),
    /// The `[[service]]` of this name.
    Named(Spanned<String>),
}

/// Addresses outside the switch.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its name, unique among groups.
    pub name: Spanned<String>,
    /// The ranges it consists of.
    pub cidr: Vec<Spanned<IpNet>>,
    /// Ranges taken out of those.
    pub except: Vec<Spanned<IpNet>>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name, unique among rules; empty if it could not be read.
    pub name: Spanned<String>,
    /// What it matches as source: any of these.
    pub from: Spanned<Vec<Selector>>,
    /// What it matches as destination: any of these.
    pub to: Spanned<Vec<Selector>>,
    /// The services it matches: any of these.
    pub services: Vec<ServiceRef>,
    /// What it says.
    pub action: RuleAction,
    /// Tier, by rank.
    pub tier: u8,
    /// Priority within its tier.
    pub priority: u32,
    /// Which permission it is about.
    pub direction: Direction,
    /// What else it asks of a conversation's first frame.
    pub conditions: Conditions,
    /// Whether it is recorded instead of enforced.
    pub audit: bool,
    /// The first day, in UTC, on which it no longer holds.
    pub expires: Option<Spanned<Date>>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Why it exists.
    pub reason: Option<String>,
    /// Where it was decided.
    pub ticket: Option<String>,
}

/// What a rule asks of a conversation's first frame besides ends and services.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conditions {
    /// First and last source port.
    pub source_port: Option<Spanned<(u16, u16)>>,
    /// TCP flags.
    pub tcp_flags: Option<Spanned<FlagMatch>>,
    /// The ethertype; it is not ARP's.
    pub ether_type: Option<Spanned<u16>>,
    /// The VLAN that the frame belongs to.
    pub vlan: Option<Spanned<u16>>,
}

/// One way to name ends of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Selector {
    /// Everything, inside the switch and outside.
    Any,
    /// Workloads that have every one of these keys with one of its values.
    Labels(BTreeMap<String, Vec<String>>),
    /// Workloads by name.
    Workloads(Vec<Spanned<String>>),
    /// Groups by name.
    Groups(Vec<Spanned<String>>),
}

/// Tiers by rank: the first is judged first.
pub const TIERS: [&str; 5] =
    ["emergency", "infrastructure", "environment", "application", "baseline"];

const MODES: [(&str, Mode); 3] =
    [("learn", Mode::Learn), ("audit", Mode::Audit), ("enforce", Mode::Enforce)];
const KINDS: [(&str, Kind); 3] =
    [("container", Kind::Container), ("vm", Kind::Vm), ("external", Kind::External)];
const LANES: [(&str, Lane); 3] =
    [("auto", Lane::Auto), ("switch", Lane::Switch), ("express", Lane::Express)];
/// Longest text of a config, in bytes. 65,000 workloads or 100,000 rules fit, and so does the text in
/// a request to control.
pub const MAX_TEXT: u64 = 32 << 20;

/// Takes the text of a config from a file, of which it keeps no more than [`MAX_TEXT`] bytes.
///
/// # Errors
/// If it is longer or not UTF-8, or the system says no.
pub fn read(file: impl Read) -> io::Result<String> {
    let mut text = String::new();
    // One byte more tells a text that is too long from one that just fits.
    let length = file.take(MAX_TEXT + 1).read_to_string(&mut text)?;
    if length as u64 > MAX_TEXT {
        let too_long = format!("it is longer than {MAX_TEXT} bytes, which no config may be");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, too_long));
    }
    Ok(text)
}

/// Reads a config, and tells everything that is wrong with single values, in no order.
///
/// If anything is, the intent is what could be read, and good for nothing but to find what else is
/// wrong. A text that is not TOML is not looked into any further: its intent is empty, because what
/// its author meant to say is a guess.
pub fn parse(text: &str) -> (Intent, Vec<Spanned<Problem>>) {
    pieces::read(text).map_or_else(|| parse_whole(text), |intent| (intent, Vec::new()))
}

fn parse_whole(text: &str) -> (Intent, Vec<Spanned<Problem>>) {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut problems: Vec<_> = errors
        .iter()
        .map(|error| Spanned {
            span: error.span().unwrap_or(0..0),
            value: Problem::Syntax { message: error.message().replace('\n', " ") },
        })
        .collect();
    if !problems.is_empty() {
        return (Intent::default(), problems);
    }

    let mut config = Reader::new("the config", 0..0, document.get_ref(), &mut problems);
    let switch = config.table("switch", "[switch]", switch);
    let mut tables = Tables::default();
    tables.read(&mut config);
    config.require("switch", "[switch] with name = \"lab0\"");
    config.finish();
    (tables.with_switch(switch.unwrap_or_default()), problems)
}

/// The tables that a config may have many of.
#[derive(Default)]
struct Tables {
    workloads: Vec<Workload>,
    services: Vec<NamedService>,
    groups: Vec<Group>,
    rules: Vec<Rule>,
}

impl Tables {
    const HEADINGS: [&str; 4] = ["[[workload]]", "[[service]]", "[[group]]", "[[rule]]"];

    /// Adds those of `config`.
    fn read(&mut self, config: &mut Reader<'_, '_>) {
        let [workloads, services, groups, rules] = Self::HEADINGS;
        self.workloads.extend(config.tables(
            "workload",
            "a table, as [[workload]]",
            workloads,
            workload,
        ));
        self.services.extend(config.tables(
            "service",
            "a table, as [[service]]",
            services,
            named_service,
        ));
        self.groups.extend(config.tables("group", "a table, as [[group]]", groups, group));
        self.rules.extend(config.tables("rule", "a table, as [[rule]]", rules, rule));
    }

    fn with_switch(self, switch: Switch) -> Intent {
        let Self { workloads, services, groups, rules } = self;
        Intent { switch, workloads, services, groups, rules }
    }
}

fn switch(table: &mut Reader<'_, '_>) -> Option<Switch> {
    let default = Settings::default();
    let name = table.name("name = \"lab0\"");
    let mode = table.choice("mode", &MODES).unwrap_or_default();
    let max_connections =
        table.number("max_connections", 1, 1 << 26).unwrap_or(default.max_connections);
    let settings = Settings {
        workers: table.number("workers", 1, 256).unwrap_or(default.workers),
        frames: frames(table).unwrap_or(default.frames),
        max_connections,
        express_flows: table
            .number("express_flows", 0, 1 << 27)
            .unwrap_or(max_connections.saturating_mul(2)),
        max_connections_per_port: table
            .number("max_connections_per_port", 1, max_connections)
            .unwrap_or(max_connections.div_ceil(2)),
        max_flows: table.number("max_flows", 1, 1 << 24).unwrap_or(default.max_flows),
        upcalls_per_sec: table
            .number("upcalls_per_sec", 1, 1_000_000_000)
            .unwrap_or(default.upcalls_per_sec),
        midstream: table.flag("midstream").unwrap_or(default.midstream),
        tcp_window_check: table.flag("tcp_window_check").unwrap_or(default.tcp_window_check),
        mac_ageing_secs: table
            .number("mac_ageing_secs", 10, 1_000_000)
            .unwrap_or(default.mac_ageing_secs),
        timeouts: table.table("timeouts", "timeouts", timeouts).unwrap_or(default.timeouts),
        mirror_per_sec: table
            .number("mirror_per_sec", 0, 1_000_000)
            .unwrap_or(default.mirror_per_sec),
        mirror_snaplen: table.number("mirror_snaplen", 64, 2_048).unwrap_or(default.mirror_snaplen),
        max_fragments: table.number("max_fragments", 0, 65_536).unwrap_or(default.max_fragments),
        fragment_timeout_secs: table
            .number("fragment_timeout_secs", 1, 120)
            .unwrap_or(default.fragment_timeout_secs),
        express_grace_secs: table
            .number("express_grace_secs", 3, 3_600)
            .unwrap_or(default.express_grace_secs),
        wake_within_us: table.number("wake_within_us", 0, 10_000),
    };
    Some(Switch { name: name?.value, mode, settings })
}

fn frames(table: &mut Reader<'_, '_>) -> Option<u32> {
    let span = table.span_of("frames");
    let value: u32 = table.number("frames", 256, 1 << 22)?;
    if !value.is_power_of_two() {
        table.problem(span, Problem::NotPowerOfTwo { value });
        return None;
    }
    Some(value)
}

fn timeouts(table: &mut Reader<'_, '_>) -> Option<Timeouts> {
    let mut timeouts = Timeouts::default();
    for (key, secs) in [
        ("tcp_handshake", &mut timeouts.tcp_handshake),
        ("tcp_established", &mut timeouts.tcp_established),
        ("tcp_closing", &mut timeouts.tcp_closing),
        ("tcp_time_wait", &mut timeouts.tcp_time_wait),
        ("tcp_reset", &mut timeouts.tcp_reset),
        ("udp_single", &mut timeouts.udp_single),
        ("udp_both", &mut timeouts.udp_both),
        ("icmp", &mut timeouts.icmp),
        ("other", &mut timeouts.other),
    ] {
        *secs = table.number(key, 1, 10_000_000).unwrap_or(*secs);
    }
    Some(timeouts)
}

fn workload(table: &mut Reader<'_, '_>) -> Option<Workload> {
    let name = table.name("name = \"web\"");
    let kind = table.choice("kind", &KINDS);
    table.require("kind", "kind = \"container\", \"vm\" or \"external\"");
    let labels = table.table("labels", "labels", labels).unwrap_or_default();
    let addresses = table.list("ip", workload_address);
    let mac = table.parsed("mac", "a string, as \"02:00:00:00:00:10\"", mac);
    let ifname = table.parsed("ifname", "a string, as \"tap3\"", ifname);
    let vlan = vlan(table);
    let lane = table.choice("lane", &LANES).unwrap_or_default();
    let router = table.flag("router").unwrap_or_default();
    let dhcp_server = table.flag("dhcp_server").unwrap_or_default();

    let name = name?;
    if kind == Some(Kind::External) {
        let lacks = [("ifname", !table.has("ifname")), ("mac", !table.has("mac") && !router)];
        for (key, _) in lacks.into_iter().filter(|&(_, lacks)| lacks) {
            let problem = Problem::ExternalNeeds { workload: name.value.clone(), key };
            table.problem(name.span.clone(), problem);
        }
    }
    Some(Workload {
        name,
        kind: kind.unwrap_or(Kind::Container),
        labels,
        addresses,
        mac,
        ifname,
        vlan,
        lane,
        router,
        dhcp_server,
    })
}

fn labels(table: &mut Reader<'_, '_>) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for (key, value) in table.rest() {
        let key = label_key(table, key);
        let value = label_value(value, table.problems());
        labels.extend(key.zip(value));
    }
    Some(labels)
}

fn vlan(table: &mut Reader<'_, '_>) -> VlanMode {
    let access = table.number("vlan", 1, LAST_VLAN).unwrap_or_default();
    let span = table.span_of("trunk");
    let mut trunk = table.list("trunk", |value, problems| {
        reader::number::<u16>("trunk", value, 1, LAST_VLAN, problems)
    });
    trunk.sort_unstable();
    trunk.dedup();
    if table.has("vlan") && table.has("trunk") {
        table.problem(span, Problem::VlanAndTrunk);
    }
    if table.has("trunk") { VlanMode::Trunk(trunk) } else { VlanMode::Access(access) }
}

fn named_service(table: &mut Reader<'_, '_>) -> Option<NamedService> {
    let name = table.name("name = \"api\"");
    if let Some(name) = name.as_ref().filter(|name| service::is_reserved(&name.value)) {
        let problem = Problem::ReservedName { value: name.value.clone() };
        table.problem(name.span.clone(), problem);
    }
    let matches = table.list("match", |value, problems| {
        let text = reader::text("match", "a string, as \"tcp/8080\"", value, problems)?;
        reader::parsed(text, service_text, problems).map(|services| services.value)
    });
    table.require("match", "match = [\"tcp/8080\"]");
    Some(NamedService { name: name?, matches: matches.into_iter().flatten().collect() })
}

fn group(table: &mut Reader<'_, '_>) -> Option<Group> {
    let name = table.name("name = \"office\"");
    let cidr = table.list("cidr", |value, problems| range("cidr", value, problems));
    table.require("cidr", "cidr = [\"192.0.2.0/24\"]");
    let except = table.list("except", |value, problems| range("except", value, problems));
    Some(Group { name: name?, cidr, except })
}
