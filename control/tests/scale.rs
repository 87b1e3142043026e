//! A large policy, from the text of a config to a policy that judges: 100,000 rules and 10,000 groups in
//! a release build, a fiftieth of that in a debug build.

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

#[path = "../../tools/bench/src/policy/scale.rs"]
mod scale;

use scale::Scale;

const PART: usize = if cfg!(debug_assertions) { 50 } else { 1 };
const RULES: usize = 100_000 / PART;
const GROUPS: usize = 10_000 / PART;
const WORKLOADS: usize = 1_000 / PART;
const APPS: usize = 20;

fn config() -> String {
    Scale { rules: RULES, groups: GROUPS, workloads: WORKLOADS, apps: APPS }.config()
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
                dst_port: Scale::port(rule),
                opening: Opening::COMMON,
            };
            let judgement = policy.acl().judge(&conversation, &mut Memo::default());
            assert_eq!(judgement.action == RuleAction::Allow, allowed, "rule {rule}, host {host}");
            if allowed {
                assert_eq!(policy.rule_name(judgement.cause), format!("r{}", rule % Scale::PERIOD));
            }
        }
    }
}

#[test]
fn among_a_hundred_thousand_rules_the_shadowed_ones_are_found() {
    let findings = lint("scale.toml", &config(), date(2026, 6, 1));
    let findings = findings.unwrap_or_else(|errors| panic!("{errors}"));
    assert!(findings.iter().all(|finding| finding.code == "shadowed"), "{:?}", findings.first());
    assert_eq!(findings.len(), RULES.saturating_sub(Scale::PERIOD));
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
