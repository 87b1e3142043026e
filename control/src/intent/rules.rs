//! A `[[rule]]`: its ends, its services and its conditions.

use std::collections::BTreeMap;

use firedoor_classifier::snapshot::{Direction, RuleAction, Services};
use toml::de::DeValue;

use super::reader::{self, Reader};
use super::values::{label_key, label_value};
use super::{Conditions, LAST_VLAN, Rule, Selector, ServiceRef, TIERS};
use crate::condition::{self, ConditionError};
use crate::diagnostic::{Problem, Spanned};
use crate::service;

const DEFAULT_TIER: u8 = 3;
const DEFAULT_PRIORITY: u32 = 100;

const ACTIONS: [(&str, RuleAction); 4] = [
    ("allow", RuleAction::Allow),
    ("deny", RuleAction::Deny),
    ("reject", RuleAction::Reject),
    ("pass", RuleAction::Pass),
];
const DIRECTIONS: [(&str, Direction); 3] =
    [("both", Direction::Both), ("ingress", Direction::Ingress), ("egress", Direction::Egress)];
const RULE_MODES: [(&str, bool); 2] = [("enforce", false), ("audit", true)];

/// By these a selector says that it does not speak of labels.
pub(super) const SELECTOR_WORDS: [&str; 3] = ["any", "workload", "group"];

pub(super) fn rule(table: &mut Reader<'_, '_>) -> Option<Rule> {
    let name = table.name("name = \"web-to-api\"");
    // Denials name the rule behind them, or one of these words where there is none.
    if let Some(name) = name.as_ref().filter(|n| ["default", "switch"].contains(&&*n.value)) {
        table.problem(name.span.clone(), Problem::ReservedName { value: name.value.clone() });
    }
    let from = selectors(table, "from");
    let to = selectors(table, "to");
    let services = table.list("service", service_ref);
    let action = table.choice("action", &ACTIONS);
    table.require("action", "action = \"allow\", \"deny\", \"reject\" or \"pass\"");
    let tiers: Vec<_> = (0..).zip(TIERS).map(|(rank, name)| (name, rank)).collect();
    let tier = table.choice("tier", &tiers).unwrap_or(DEFAULT_TIER);
    let priority = table.number("priority", 0, u32::MAX).unwrap_or(DEFAULT_PRIORITY);
    let direction = table.choice("direction", &DIRECTIONS).unwrap_or_default();
    let conditions = conditions(table);
    let audit = table.choice("mode", &RULE_MODES).unwrap_or_default();
    let expires = table.date("expires");
    let [owner, reason, ticket] =
        ["owner", "reason", "ticket"].map(|key| table.text(key, "a string").map(|text| text.value));
    Some(Rule {
        // What it refers to is looked at all the same.
        name: name.unwrap_or_else(|| Spanned { span: table.span(), value: String::new() }),
        from,
        to,
        services: if services.is_empty() {
            vec![ServiceRef::Any]
        } else {
            services.into_iter().flatten().collect()
        },
        action: action.unwrap_or(RuleAction::Deny),
        tier,
        priority,
        direction,
        conditions,
        audit,
        expires,
        owner,
        reason,
        ticket,
    })
}

fn conditions(table: &mut Reader<'_, '_>) -> Conditions {
    let source_port = table.read("source_port", |value, problems| {
        if value.get_ref().as_integer().is_some() {
            let port = reader::number("source_port", value, 0, u16::MAX.into(), problems)?;
            return Some(Spanned { span: value.span(), value: (port, port) });
        }
        let expected = "a port or range, as 68 or \"1024-65535\"";
        let text = reader::text("source_port", expected, value, problems)?;
        reader::parsed(text, |text| asked("source_port", text, condition::ports), problems)
    });
    let tcp_flags = table.parsed("tcp_flags", "a string, as \"syn,!ack\"", |text| {
        asked("tcp_flags", text, condition::flags)
    });
    let ether_type = table.read("ethertype", ether_type);
    let vlan = table.number("vlan", 1, LAST_VLAN);
    let vlan = vlan.map(|value| Spanned { span: table.span_of("vlan"), value });
    if let Some(named) = ether_type.as_ref().filter(|named| !condition::is_ip(named.value)) {
        for key in ["service", "source_port", "tcp_flags"] {
            let ether_type = condition::ether_type_text(named.value);
            if table.has(key) {
                table.problem(table.span_of(key), Problem::NotOfIp { key, ether_type });
            }
        }
    }
    Conditions { source_port, tcp_flags, ether_type, vlan }
}

fn ether_type(
    value: &toml::Spanned<DeValue<'_>>,
    problems: &mut Vec<Spanned<Problem>>,
) -> Option<Spanned<u16>> {
    let text = if value.get_ref().as_integer().is_some() {
        let number: u16 = reader::number("ethertype", value, 0, u16::MAX.into(), problems)?;
        Spanned { span: value.span(), value: format!("{number:#06x}") }
    } else {
        reader::text("ethertype", "a string, as \"0x88b5\"", value, problems)?
    };
    reader::parsed(text, |text| asked("ethertype", text, condition::ether_type), problems)
}

/// What the text of a condition means.
fn asked<T>(
    key: &'static str,
    text: &str,
    read: impl Fn(&str) -> Result<T, ConditionError>,
) -> Result<T, Problem> {
    read(text).map_err(|source| Problem::BadCondition { key, value: text.to_owned(), source })
}

fn service_ref(
    value: &toml::Spanned<DeValue<'_>>,
    problems: &mut Vec<Spanned<Problem>>,
) -> Option<Vec<ServiceRef>> {
    let text = reader::text("service", "a string, as \"tcp/8080\"", value, problems)?;
    // A name has no slash, and a service's text is a protocol or has one.
    if text.value.contains('/') || service::is_reserved(&text.value) {
        reader::parsed(text, service_text, problems).map(|services| services.value)
    } else {
        Some(vec![ServiceRef::Named(text)])
    }
}

pub(super) fn service_text(text: &str) -> Result<Vec<ServiceRef>, Problem> {
    match service::parse(text) {
        Ok(Services::Any) => Ok(vec![ServiceRef::Any]),
        Ok(Services::Only(services)) => Ok(services.into_iter().map(ServiceRef::One).collect()),
        Err(source) => Err(Problem::BadService { value: text.to_owned(), source }),
    }
}

fn selectors(table: &mut Reader<'_, '_>, key: &'static str) -> Spanned<Vec<Selector>> {
    table.require(key, "from = { tier = \"web\" } and to = { tier = \"api\" }");
    let span = table.span_of(key);
    let value = table.tables(key, "a selector, as { tier = \"web\" }", "a selector", selector);
    Spanned { span, value }
}

fn selector(table: &mut Reader<'_, '_>) -> Option<Selector> {
    let [any, workload, group] = SELECTOR_WORDS.map(|word| table.has(word).then_some(word));
    let labels = table.has_others(&SELECTOR_WORDS).then_some("labels");
    let mut ways = [any, workload, group, labels].into_iter().flatten();
    let problem = match (ways.next(), ways.next()) {
        (Some(first), Some(second)) => {
            table.rest();
            Problem::MixedSelector { first, second }
        }
        (Some("any"), None) => match table.flag("any") {
            Some(true) => return Some(Selector::Any),
            Some(false) => Problem::EmptySelector,
            None => return None,
        },
        (Some("workload"), None) => return Some(Selector::Workloads(table.names("workload"))),
        (Some("group"), None) => return Some(Selector::Groups(table.names("group"))),
        (Some(_), None) => return Some(Selector::Labels(label_values(table))),
        (None, _) => Problem::EmptySelector,
    };
    table.problem(table.span(), problem);
    None
}

fn label_values(table: &mut Reader<'_, '_>) -> BTreeMap<String, Vec<String>> {
    let mut labels = BTreeMap::new();
    for (key, value) in table.rest() {
        let key = label_key(table, key);
        let values = reader::list("a label's value", value, table.problems(), label_value);
        labels.extend(key.map(|key| (key, values)));
    }
    labels
}
