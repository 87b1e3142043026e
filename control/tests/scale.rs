//! A large policy, from the text of a config to a policy that judges: 100,000 rules and 10,000 groups in
//! a release build, a fiftieth of that in a debug build.

use std::fmt::Write;

use firedoor_api::dataplane::Request;
use firedoor_api::{Decoder, encode};
use firedoor_classifier::acl::{Conversation, Memo, Opening};
use firedoor_classifier::key::to_bits;
use firedoor_classifier::policy::Owner;
use firedoor_classifier::snapshot::RuleAction;
use firedoor_classifier::{Policy, Snapshot};
use firedoor_control::compile::compile;
use firedoor_control::intent::MAX_TEXT;
use firedoor_control::lint::lint;
use jiff::civil::date;

const SCALE: usize = if cfg!(debug_assertions) { 50 } else { 1 };
const RULES: usize = 100_000 / SCALE;
const GROUPS: usize = 10_000 / SCALE;
const WORKLOADS: usize = 1_000 / SCALE;
const APPS: usize = 20;

fn config() -> String {
    let mut text = String::from(
        "[switch]\nname = \"scale\"\n\n[[workload]]\nname = \"uplink\"\nkind = \"external\"\n\
         ifname = \"eth1\"\nrouter = true\n",
    );
    for n in 0..WORKLOADS {
        let app = n % APPS;
        writeln!(
            text,
            "\n[[workload]]\nname = \"w{n}\"\nkind = \"container\"\nlabels = {{ app = \"a{app}\" }}\n\
             ip = \"10.{}.{}.1/8\"",
            n >> 8,
            n & 255
        )
        .expect("a string takes everything");
    }
    for n in 0..GROUPS {
        let (high, low) = (n >> 8, n & 255);
        writeln!(
            text,
            "\n[[group]]\nname = \"g{n}\"\ncidr = [\"100.{}.{low}.0/24\", \"2001:db8:{n:x}::/48\"]\n\
             except = \"100.{}.{low}.128/25\"",
            64 + high,
            64 + high
        )
        .expect("a string takes everything");
    }
    for n in 0..RULES {
        let (group, app, port) = (n % GROUPS, n % APPS, port(n));
        writeln!(
            text,
            "\n[[rule]]\nname = \"r{n}\"\nfrom = {{ group = \"g{group}\" }}\nto = {{ app = \"a{app}\" }}\n\
             service = \"tcp/{port}\"\naction = \"allow\"\nowner = \"team-{app}\""
        )
        .expect("a string takes everything");
    }
    text
}

/// Rules after which the same come again.
const PERIOD: usize = 60_000;

fn port(rule: usize) -> u16 {
    1 + (rule % PERIOD) as u16
}

#[test]
fn a_hundred_thousand_rules_become_a_policy() {
    let text = config();
    assert!((text.len() as u64) < MAX_TEXT, "{} bytes of text", text.len());
    let compiled = compile("scale.toml", &text, None, date(2026, 6, 1));
    let snapshot = compiled.unwrap_or_else(|errors| panic!("{errors}")).snapshot;
    assert_eq!((snapshot.rules.len(), snapshot.workloads.len()), (RULES, WORKLOADS + 1));

    let policy = Policy::build(sent(snapshot)).expect("a compiled snapshot can be enforced");
    for rule in [0, RULES / 2, RULES - 1] {
        let (group, app) = (rule % GROUPS, rule % APPS);
        for (host, allowed) in [(1, true), (200, false)] {
            let source = [100, 64 + (group >> 8) as u8, group as u8, host];
            let Owner::Outside(from) = policy.owner(to_bits(source.into())).0 else {
                panic!("{source:?} is in the switch")
            };
            let to = policy.workload(&format!("w{app}")).expect("it is there").tag;
            let conversation = Conversation {
                from,
                to,
                protocol: 6,
                dst_port: port(rule),
                opening: Opening::COMMON,
            };
            let judgement = policy.acl().judge(&conversation, &mut Memo::default());
            assert_eq!(judgement.action == RuleAction::Allow, allowed, "rule {rule}, host {host}");
            if allowed {
                assert_eq!(policy.rule_name(judgement.cause), format!("r{}", rule % PERIOD));
            }
        }
    }
}

#[test]
fn among_a_hundred_thousand_rules_the_shadowed_ones_are_found() {
    let findings = lint("scale.toml", &config(), date(2026, 6, 1));
    let findings = findings.unwrap_or_else(|errors| panic!("{errors}"));
    assert!(findings.iter().all(|finding| finding.code == "shadowed"), "{:?}", findings.first());
    assert_eq!(findings.len(), RULES.saturating_sub(PERIOD));
}

/// A snapshot as it arrives at the data plane.
fn sent(snapshot: Snapshot) -> Snapshot {
    let bytes = encode(&Request::Install(Box::new(snapshot))).expect("it fits in a message");
    let mut decoder = Decoder::<Request>::default();
    decoder.push(&bytes);
    match decoder.next_message() {
        Ok(Some(Request::Install(snapshot))) => *snapshot,
        other => panic!("it arrives as {:?}", other.map(|request| request.is_some())),
    }
}
