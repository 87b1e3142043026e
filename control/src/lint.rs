//! What a config says in vain, or more widely than its author may mean.
//!
//! Whatever [`compile`] remarks on is a finding too; this module adds what takes a look at the policy
//! as a whole. A finding is true of the policy as it is: a rule is called shadowed only if earlier ones
//! decide all that it matches between ends that there are. Nobody outside is an end unless some
//! workload is a router.

use std::collections::{BTreeMap, BTreeSet};

use firedoor_classifier::acl::Acl;
use firedoor_classifier::snapshot::{
    Conditions, Rule, RuleAction, RuleId, Services, Snapshot, Tag, TagSet,
};
use jiff::civil::Date;

use crate::compile::{Compiled, compile};
use crate::diagnostic::{Diagnostics, Notice, Remark, Source, Span, Spanned};
use crate::intent::{self, Intent, Selector, ServiceRef};

/// Looks for what deserves a look, in the order of the file. Arguments are those of [`compile`].
///
/// Cost: compiling, and for each rule a walk over the earlier ones that speak of the same ends, until
/// some service is left to it.
///
/// # Errors
/// Those of [`compile`].
pub fn lint(path: &str, text: &str, today: Date) -> Result<Vec<Notice>, Diagnostics> {
    let Compiled { snapshot, mut notices, .. } = compile(path, text, None, today)?;
    let source = Source::new(path, text);
    // It compiles, so there are no problems.
    let (intent, _) = intent::parse(text);
    let remarks = unused(&intent).into_iter().chain(of_rules(&intent, &snapshot));
    notices.extend(remarks.map(|remark| source.notice(&remark)));
    notices.sort_by_key(|notice| (notice.line, notice.column));
    Ok(notices)
}

fn at(span: &Span, value: Remark) -> Spanned<Remark> {
    Spanned { span: span.clone(), value }
}

/// Groups and services that no rule names.
fn unused(intent: &Intent) -> Vec<Spanned<Remark>> {
    let (mut groups, mut services) = (BTreeSet::new(), BTreeSet::new());
    for rule in &intent.rules {
        for selector in rule.from.value.iter().chain(&rule.to.value) {
            if let Selector::Groups(names) = selector {
                groups.extend(names.iter().map(|name| &name.value));
            }
        }
        services.extend(rule.services.iter().filter_map(|service| match service {
            ServiceRef::Named(name) => Some(&name.value),
            ServiceRef::Any | ServiceRef::One(_) => None,
        }));
    }
    let groups = intent.groups.iter().map(|group| ("group", &group.name, &groups));
    let services = intent.services.iter().map(|service| ("service", &service.name, &services));
    let unused = groups.chain(services).filter(|(_, name, used)| !used.contains(&name.value));
    let remark = |(what, name, _): (_, &Spanned<String>, _)| {
        at(&name.span, Remark::Unused { what, name: name.value.clone() })
    };
    unused.map(remark).collect()
}

/// Rules that allow more than most should, and those that decide nothing.
fn of_rules(intent: &Intent, snapshot: &Snapshot) -> Vec<Spanned<Remark>> {
    let spans: BTreeMap<_, _> =
        intent.rules.iter().map(|rule| (rule.name.value.as_str(), &rule.name.span)).collect();
    let (ends, acl) = (Ends::of(snapshot), Acl::new(snapshot));
    let mut remarks = Vec::new();
    for (number, rule) in (0..).map(RuleId).zip(&snapshot.rules) {
        let Some(span) = spans.get(rule.name.as_str()) else { continue };
        let name = || rule.name.clone();
        if let Some(what) = allows_any(rule) {
            remarks.push(at(span, Remark::AllowsAny { rule: name(), what }));
        }
        let nothing = TagSet::Only(Vec::new());
        if rule.from == nothing || rule.to == nothing {
            continue; // The compiler has said so.
        }
        if ends.pairs(rule).next().is_none() {
            remarks.push(at(span, Remark::NoPair { rule: name(), why: ends.why_none(rule) }));
        } else if let Some(shadows) = acl.shadows(number, ends.pairs(rule)) {
            let name_of = |&RuleId(id): &RuleId| snapshot.rules.get(id as usize);
            let by = shadows.iter().filter_map(name_of).map(|rule| rule.name.clone()).collect();
            remarks.push(at(span, Remark::Shadowed { rule: name(), by }));
        }
    }
    remarks
}

/// What a rule allows that has hardly a limit.
fn allows_any(rule: &Rule) -> Option<&'static str> {
    let is_wide = rule.action == RuleAction::Allow
        && rule.services == Services::Any
        && rule.conditions == Conditions::default();
    match (&rule.from, &rule.to) {
        _ if !is_wide => None,
        (TagSet::Any, TagSet::Any) => Some("everyone reach everyone on every service"),
        (TagSet::Any, TagSet::Only(_)) => Some("everyone reach its \"to\" on every service"),
        (TagSet::Only(_), TagSet::Any) => Some("its \"from\" reach everyone on every service"),
        (TagSet::Only(_), TagSet::Only(_)) => None,
    }
}

/// The tags of all who may talk to each other.
struct Ends {
    inside: BTreeSet<Tag>,
    /// None if there is no router.
    outside: BTreeSet<Tag>,
}

impl Ends {
    fn of(snapshot: &Snapshot) -> Self {
        let mut outside = BTreeSet::new();
        if snapshot.workloads.iter().any(|workload| workload.router) {
            outside.extend(snapshot.prefixes.iter().map(|prefix| prefix.tag));
            outside.insert(snapshot.world);
        }
        Self { inside: snapshot.workloads.iter().map(|workload| workload.tag).collect(), outside }
    }

    /// Pairs that a rule matches. Two ends outside are none: they do not talk through the switch.
    fn pairs<'a>(&'a self, rule: &'a Rule) -> impl Iterator<Item = (Tag, Tag)> + 'a {
        let of = |tags: &'a BTreeSet<Tag>, side: &'a TagSet| {
            tags.iter().copied().filter(|&tag| side.contains(tag))
        };
        let from_inside = of(&self.inside, &rule.from).flat_map(move |from| {
            let to = of(&self.inside, &rule.to).chain(of(&self.outside, &rule.to));
            to.map(move |to| (from, to))
        });
        let from_outside = of(&self.outside, &rule.from)
            .flat_map(move |from| of(&self.inside, &rule.to).map(move |to| (from, to)));
        from_inside.chain(from_outside)
    }

    /// Why a rule whose sides both match something matches no pair.
    fn why_none(&self, rule: &Rule) -> &'static str {
        let has_inside = |side: &TagSet| self.inside.iter().any(|&tag| side.contains(tag));
        if has_inside(&rule.from) || has_inside(&rule.to) {
            "one of its ends is outside the switch, and no workload is a router"
        } else {
            "both its ends are outside the switch"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: Date = jiff::civil::date(2026, 6, 1);

    const WORKLOADS: &str = r#"[switch]
name = "lab0"
[[workload]]
name = "web"
kind = "vm"
ip = "10.0.0.1/24"
labels = { tier = "web" }
[[workload]]
name = "api"
kind = "vm"
ip = "10.0.0.2/24"
labels = { tier = "api" }
"#;

    const GATEWAY: &str = r#"[[workload]]
name = "gateway"
kind = "vm"
ip = "10.0.0.3/24"
router = true
"#;

    const OFFICE: &str = "[[group]]\nname = \"office\"\ncidr = \"192.0.2.0/24\"\n";

    fn rule(name: &str, from: &str, to: &str, rest: &str) -> String {
        format!(
            "[[rule]]\nname = \"{name}\"\nfrom = {{ {from} }}\nto = {{ {to} }}\n{rest}\n\
             action = \"allow\"\n"
        )
    }

    /// Codes and sentences of what is found in these lines.
    fn found(parts: &[&str]) -> Vec<(&'static str, String)> {
        let text = format!("{WORKLOADS}{}", parts.concat());
        let notices = lint("a.toml", &text, TODAY).unwrap_or_else(|errors| panic!("{errors}"));
        notices.into_iter().map(|notice| (notice.code, notice.message)).collect()
    }

    fn codes(parts: &[&str]) -> Vec<&'static str> {
        found(parts).into_iter().map(|(code, _)| code).collect()
    }

    const WEB: &str = "tier = \"web\"";
    const API: &str = "tier = \"api\"";
    const ANY: &str = "any = true";

    #[test]
    fn a_good_config_has_no_findings() {
        let web_to_api = rule("web-to-api", WEB, API, "service = \"tcp/80\"");
        let out = rule("out", API, "group = \"office\"", "service = \"tcp/443\"");
        assert_eq!(codes(&[&web_to_api, GATEWAY, OFFICE, &out]), [] as [&str; 0]);
    }

    #[test]
    fn a_shadowed_rule_is_named_with_what_shadows_it() {
        let wide = rule("wide", WEB, API, "service = \"tcp/1-100\"");
        let others = rule("others", WEB, ANY, "service = \"tcp/100-200\"");
        let narrow = rule("narrow", WEB, API, "service = \"tcp/90-110\"");
        let message = "rule \"narrow\" never decides: rules \"wide\", \"others\", before it, decide \
                       all that it matches";
        let expected = ("shadowed", message.to_owned());
        assert_eq!(found(&[&wide, &others, &narrow]), [expected]);
        assert_eq!(codes(&[&narrow, &wide, &others]), [] as [&str; 0]);
    }

    #[test]
    fn outsiders_count_only_where_a_router_brings_them() {
        let inside = rule("inside", WEB, API, "service = \"tcp/80\"");
        let wide = rule("wide", ANY, API, "service = \"tcp/80\"");
        let web_and_api = rule("rest", API, API, "service = \"tcp/80\"");
        assert_eq!(codes(&[&inside, &web_and_api, &wide]), ["shadowed"]);
        assert_eq!(codes(&[GATEWAY, &inside, &web_and_api, &wide]), [] as [&str; 0]);
    }

    #[test]
    fn a_rule_that_no_two_ends_can_meet_is_found() {
        let office = "group = \"office\"";
        let in_vain = rule("x", office, API, "service = \"tcp/80\"");
        let outside = rule("x", office, office, "service = \"tcp/80\"");
        assert_eq!(codes(&[OFFICE, &in_vain]), ["no-pair"]);
        assert_eq!(codes(&[OFFICE, GATEWAY, &in_vain]), [] as [&str; 0]);
        assert_eq!(codes(&[OFFICE, GATEWAY, &outside]), ["no-pair"]);
        let nobody = rule("x", "tier = \"wbe\"", API, "service = \"tcp/80\"");
        assert_eq!(codes(&[&nobody]), ["selects-nothing"]);
    }

    #[test]
    fn what_is_unused_expired_or_wide_open_is_found_in_the_order_of_the_file() {
        let service = "[[service]]\nname = \"dns\"\nmatch = [\"udp/53\"]\n";
        let old = rule("old", WEB, API, "expires = \"2026-01-01\"");
        let open = rule("open", ANY, WEB, "");
        let closed = open.replace("allow", "deny").replace("open", "closed");
        let parts = [service, OFFICE, &old, &open, &closed];
        assert_eq!(codes(&parts), ["unused", "unused", "expired", "allows-any", "shadowed"]);
    }
}
