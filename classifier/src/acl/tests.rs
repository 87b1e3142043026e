use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::fixture::{rule, snapshot, tcp};

const TAGS: u32 = 3;

fn tag_set() -> impl Strategy<Value = TagSet> {
    let only = subsequence((0..TAGS).map(Tag).collect::<Vec<_>>(), 1..=2);
    prop_oneof![Just(TagSet::Any), only.prop_map(TagSet::Only)]
}

fn service() -> impl Strategy<Value = Service> {
    let port = select(vec![0, 1, 21, 22, 23, 80, 65_534, 65_535]);
    prop_oneof![
        (select(vec![6, 17]), port.clone(), port)
            .prop_map(|(protocol, first, last)| Service::Ports { protocol, first, last }),
        (select(vec![0, 8, 255]), prop::option::of(select(vec![0, 1, 255])))
            .prop_map(|(kind, code)| Service::Icmp { protocol: 1, kind, code }),
        select(vec![0, 6, 47, 255]).prop_map(Service::Protocol),
    ]
}

fn acl() -> impl Strategy<Value = Acl> {
    use RuleAction::{Allow, Deny, Pass, Reject};
    let services = prop_oneof![
        1 => Just(Services::Any),
        3 => prop::collection::vec(service(), 1..3).prop_map(Services::Only),
    ];
    let direction = select(vec![Direction::Both, Direction::Ingress, Direction::Egress]);
    let action = select(vec![Allow, Allow, Deny, Reject, Pass]);
    let parts = (0u8..3, action, tag_set(), tag_set(), services, direction, any::<bool>());
    let rule = parts.prop_map(|(tier, action, from, to, services, direction, audit)| Rule {
        tier,
        from,
        to,
        services,
        direction,
        audit,
        ..rule("", action, 0, 0, tcp(0))
    });
    prop::collection::vec(rule, 0..8).prop_map(|mut rules| {
        rules.sort_by_key(|rule| rule.tier);
        Acl::new(&Snapshot { rules, ..snapshot() })
    })
}

impl Permission {
    fn holds(&self, protocol: u8, port: u16) -> bool {
        let has_protocol = match &self.protocols {
            Protocols::One(one) => *one == protocol,
            Protocols::Except(list) => !list.contains(&protocol),
        };
        has_protocol && self.ports.contains(&port)
    }
}

proptest! {
    #[test]
    fn allowed_services_are_those_that_are_allowed(acl in acl(), from in 0..TAGS, to in 0..TAGS) {
        let (from, to) = (Tag(from), Tag(to));
        let allowed = acl.allowed_services(from, to, Opening::COMMON);
        let mut memo = Memo::default();
        prop_assert_eq!(acl.may_talk(from, to, &mut memo), !allowed.is_empty());
        for protocol in [0, 1, 2, 6, 17, 47, 58, 254, 255] {
            for port in [0, 1, 2, 20, 21, 22, 23, 24, 79, 80, 81, 255, 256, 2047, 2048, 2049, 2303,
                2304, 65_279, 65_280, 65_281, 65_533, 65_534, 65_535]
            {
                // Other protocols have no ports: their key says 0.
                let port = if [1, 6, 17, 58].contains(&protocol) { port } else { 0 };
                let conversation = Conversation { from, to, protocol, dst_port: port, opening: Opening::COMMON };
                let judgement = acl.judge(&conversation, &mut memo);
                let holding: Vec<_> = allowed.iter().filter(|p| p.holds(protocol, port)).collect();
                let told = holding.first().map(|permission| (permission.cause, permission.audit));
                let is_allowed = judgement.action == RuleAction::Allow;
                prop_assert!(holding.len() <= 1, "disjoint");
                prop_assert_eq!(told, is_allowed.then_some((judgement.cause, judgement.audit)));
            }
        }
    }

    #[test]
    fn the_explanation_names_what_the_judgement_names(
        acl in acl(), from in 0..TAGS, to in 0..TAGS, port in select(vec![0, 22, 80, 2048]),
        protocol in select(vec![1, 6, 47]),
    ) {
        let conversation = Conversation { from: Tag(from), to: Tag(to), protocol, dst_port: port, opening: Opening::COMMON };
        let (judgement, rules) = acl.explain(&conversation);
        prop_assert_eq!(judgement, acl.judge(&conversation, &mut Memo::default()));
        prop_assert_eq!(rules.len(), 2 * acl.rules.len());
        let decides = |permission| {
            let mut deciding = rules.iter().filter(|considered| {
                considered.permission == permission && considered.outcome == Outcome::Decides
            });
            let first = deciding.next().map(|considered| considered.rule);
            assert_eq!(deciding.next(), None);
            first
        };
        let by_permission = [decides(Direction::Egress), decides(Direction::Ingress)];
        match judgement.cause {
            Cause::Rule(rule) => {
                prop_assert_eq!((rules[0].rule, rules[0].outcome), (rule, Outcome::Decides));
            }
            _ => prop_assert!(by_permission.contains(&None)),
        }
    }
}

#[test]
fn rules_beyond_the_first_word_are_found() {
    let mut rules: Vec<_> =
        (0..200).map(|n| rule("other", RuleAction::Allow, 1, 3 + n % 5, tcp(n as u16))).collect();
    rules.push(rule("wanted", RuleAction::Allow, 1, 2, tcp(80)));
    let acl = Acl::new(&Snapshot { rules, ..snapshot() });
    let conversation = Conversation {
        from: Tag(1),
        to: Tag(2),
        protocol: 6,
        dst_port: 80,
        opening: Opening::COMMON,
    };
    let judgement = acl.judge(&conversation, &mut Memo::default());
    assert_eq!((judgement.action, judgement.cause), (RuleAction::Allow, Cause::Rule(RuleId(200))));
}

#[test]
fn ports_count_as_consulted_only_where_a_rule_names_them() {
    let mut memo = Memo::default();
    let rules = vec![rule("web", RuleAction::Allow, 1, 2, tcp(80))];
    let acl = Acl::new(&Snapshot { rules, ..snapshot() });
    let mut used_ports = |to, protocol| {
        let conversation = Conversation {
            from: Tag(1),
            to: Tag(to),
            protocol,
            dst_port: 80,
            opening: Opening::COMMON,
        };
        acl.judge(&conversation, &mut memo).used_ports
    };
    assert!(used_ports(2, 6));
    assert!(!used_ports(2, 17), "another protocol");
    assert!(!used_ports(3, 6), "another destination");
}

#[test]
fn the_memo_is_bounded() {
    let rules = vec![rule("web", RuleAction::Allow, 1, 2, tcp(80))];
    let acl = Acl::new(&Snapshot { rules, ..snapshot() });
    let mut memo = Memo::default();
    for from in 0..400 {
        for to in 0..400 {
            memo.pair(&acl, Tag(from), Tag(to));
        }
    }
    assert!(memo.pairs.len() <= Memo::MAX_PAIRS);
}
