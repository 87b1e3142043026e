use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::fixture::{rule, snapshot, tcp};
use crate::snapshot::{FlagMatch, TagSet};

pub(super) const TAGS: u32 = 3;

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

fn services() -> impl Strategy<Value = Services> {
    prop_oneof![
        1 => Just(Services::Any),
        3 => prop::collection::vec(service(), 1..3).prop_map(Services::Only),
    ]
}

/// Rules of every kind, without conditions.
pub(super) fn any_rule() -> impl Strategy<Value = Rule> {
    use RuleAction::{Allow, Deny, Pass, Reject};
    let direction = select(vec![Direction::Both, Direction::Ingress, Direction::Egress]);
    let action = select(vec![Allow, Allow, Deny, Reject, Pass]);
    let parts = (0u8..3, action, tag_set(), tag_set(), services(), direction, any::<bool>());
    parts.prop_map(|(tier, action, from, to, services, direction, audit)| Rule {
        tier,
        from,
        to,
        services,
        direction,
        audit,
        ..rule("", action, 0, 0, tcp(0))
    })
}

/// Rules without terms.
fn plain_rule() -> impl Strategy<Value = Rule> {
    let action = select(vec![RuleAction::Allow, RuleAction::Deny, RuleAction::Reject]);
    let src_ports =
        prop::option::weighted(0.3, select(vec![(0, 65_535), (53, 53), (1_024, 65_535)]));
    (action, tag_set(), tag_set(), services(), src_ports).prop_map(
        |(action, from, to, services, src_ports)| Rule {
            from,
            to,
            services,
            conditions: Conditions { src_ports, ..Conditions::default() },
            ..rule("", action, 0, 0, tcp(0))
        },
    )
}

/// Rules with every kind of terms.
pub(super) fn odd_rule() -> impl Strategy<Value = Rule> {
    let ether_type = prop::option::weighted(0.2, select(vec![0x0800, 0x86dd, 0x88cc]));
    let vlan = prop::option::weighted(0.2, select(vec![0, 10]));
    let flags = select(vec![(0x12, 2), (0x10, 0x10), (0x10, 0), (0, 0), (2, 0x12)]);
    let flags = flags.prop_map(|(mask, value)| FlagMatch { mask, value });
    let tcp_flags = prop::option::weighted(0.2, flags);
    (any_rule(), plain_rule(), ether_type, vlan, tcp_flags).prop_map(
        |(rule, Rule { conditions, .. }, ether_type, vlan, tcp_flags)| {
            let services = if ether_type.is_some() { Services::Any } else { rule.services };
            let conditions = Conditions { ether_type, vlan, tcp_flags, ..conditions };
            Rule { services, conditions, ..rule }
        },
    )
}

/// Few or many, without terms, with them, or mixed; so many that pairs share long groups.
fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let mixed = || prop_oneof![plain_rule(), odd_rule()];
    let rules = prop_oneof![
        3 => prop::collection::vec(mixed(), 0..12),
        1 => prop::collection::vec(plain_rule(), 0..12),
        1 => prop::collection::vec(plain_rule(), 100..300),
        2 => prop::collection::vec(mixed(), 100..300),
        1 => (prop::collection::vec(plain_rule(), 100..300), prop::collection::vec(odd_rule(), 1..4))
            .prop_map(|(many, few)| [many, few].concat()),
    ];
    (rules, any::<bool>()).prop_map(|(mut rules, has_tiers)| {
        for rule in &mut rules {
            rule.tier *= u8::from(has_tiers);
        }
        rules.sort_by_key(|rule| rule.tier);
        rules
    })
}

fn acl() -> impl Strategy<Value = Acl> {
    prop::collection::vec(any_rule(), 0..8).prop_map(|mut rules| {
        rules.sort_by_key(|rule| rule.tier);
        acl_of(rules)
    })
}

pub(super) fn acl_of(rules: Vec<Rule>) -> Acl {
    Acl::new(&Snapshot { rules, ..snapshot() })
}

fn conversation(from: Tag, to: Tag) -> Conversation {
    Conversation { from, to, protocol: 6, dst_port: 80, opening: Opening::COMMON }
}

/// Conversations between tags that rules know, and one that none does.
pub(super) fn conversations() -> impl Strategy<Value = Vec<Conversation>> {
    let tag = || (0..=TAGS).prop_map(Tag);
    let ends = (select(vec![0, 1, 6, 17, 47, 132]), select(vec![0, 1, 22, 80, 2048, 65_535]));
    let opening = (
        select(vec![0x0800, 0x0800, 0x86dd, 0x88cc]),
        select(vec![0, 10]),
        select(vec![0, 53, 1_023, 1_024]),
        select(vec![2, 16, 18]),
    );
    let one =
        (tag(), tag(), ends, opening).prop_map(|(from, to, (protocol, dst_port), opening)| {
            let (ether_type, vlan, src_port, tcp_flags) = opening;
            let opening = Opening { ether_type, vlan, src_port, tcp_flags };
            Conversation { from, to, protocol, dst_port, opening }
        });
    prop::collection::vec(one, 1..100)
}

/// What a walk over all rules that name both tags comes to.
fn walked(acl: &Acl, rules: &[Rule], conversation: &Conversation) -> Judgement {
    let speaks =
        |rule: &Rule| rule.from.contains(conversation.from) && rule.to.contains(conversation.to);
    let candidates: Vec<u32> =
        (0..).zip(rules).filter(|(_, rule)| speaks(rule)).map(|(number, _)| number).collect();
    acl.judge_by(&candidates, conversation)
}

/// What a judgement says, without what it consulted for that.
fn said(judgement: &Judgement) -> (RuleAction, Cause, Option<Cause>) {
    (judgement.action, judgement.cause, judgement.audit)
}

impl Judgement {
    /// What was not consulted, taken from `other`: which must make no difference.
    fn vary(&self, one: &Conversation, other: &Conversation) -> Conversation {
        let mut varied = *one;
        if !self.used_ports {
            varied.dst_port = other.dst_port;
        }
        if !self.used_opening {
            let Opening { src_port, tcp_flags, .. } = other.opening;
            varied.opening = Opening { src_port, tcp_flags, ..one.opening };
        }
        varied
    }
}

/// A change of one rule: what to add where, or which to take away. Places count modulo rules.
#[derive(Clone, Debug)]
enum Change {
    Insert(usize, Box<Rule>),
    Remove(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let rule = prop_oneof![plain_rule(), odd_rule()].prop_map(Box::new);
    prop_oneof![
        (any::<usize>(), rule).prop_map(|(place, rule)| Change::Insert(place, rule)),
        any::<usize>().prop_map(Change::Remove),
    ]
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
    fn one_by_one_and_in_batches_judgements_are_what_a_walk_comes_to(
        rules in rules(), conversations in conversations(),
    ) {
        let acl = acl_of(rules.clone());
        let (mut memo, mut batch) = (Memo::default(), Vec::new());
        acl.judge_batch(&conversations, &mut Memo::default(), &mut batch);
        prop_assert_eq!(batch.len(), conversations.len());
        let others = conversations.iter().cycle().skip(1);
        for ((one, other), batched) in conversations.iter().zip(others).zip(batch) {
            let expected = walked(&acl, &rules, one);
            for judged in [acl.judge(one, &mut memo), batched, acl.judge(one, &mut memo)] {
                prop_assert_eq!(said(&judged), said(&expected), "{:?}", one);
                let varied = walked(&acl, &rules, &judged.vary(one, other));
                prop_assert_eq!(said(&judged), said(&varied), "{:?} {:?}", one, other);
            }
        }
    }

    #[test]
    fn without_terms_no_more_is_consulted_than_by_a_walk(
        rules in prop::collection::vec(plain_rule(), 0..100), conversations in conversations(),
    ) {
        let acl = acl_of(rules.clone());
        let mut memo = Memo::default();
        for one in &conversations {
            let (judged, walked) = (acl.judge(one, &mut memo), walked(&acl, &rules, one));
            prop_assert!(judged.used_ports <= walked.used_ports, "{:?}", one);
            prop_assert!(judged.used_opening <= walked.used_opening, "{:?}", one);
        }
    }

    #[test]
    fn after_each_change_judgements_are_those_of_rules_compiled_anew(
        mut rules in rules(),
        changes in prop::collection::vec((change(), conversations()), 1..12),
    ) {
        let mut acl = acl_of(rules.clone());
        let mut numbers: Vec<RuleId> = (0..rules.len() as u32).map(RuleId).collect();
        let mut memo = Memo::default();
        for (change, conversations) in changes {
            match change {
                Change::Insert(place, rule) => {
                    // Tiers stay together: it is of the tier of the rule before it.
                    let place = place % (rules.len() + 1);
                    let tier = place.checked_sub(1).map_or(0, |before| rules[before].tier);
                    let rule = Rule { tier, ..*rule };
                    let number = acl.insert(&rule, numbers.get(place).copied());
                    numbers.insert(place, number);
                    rules.insert(place, rule);
                }
                Change::Remove(_) if rules.is_empty() => {}
                Change::Remove(place) => {
                    let place = place % rules.len();
                    prop_assert!(acl.remove(numbers[place]));
                    prop_assert!(!acl.remove(numbers[place]), "it is gone");
                    numbers.remove(place);
                    rules.remove(place);
                }
            }
            prop_assert_eq!(acl.len(), rules.len());
            let anew = acl_of(rules.clone());
            for conversation in conversations {
                let mut expected = walked(&anew, &rules, &conversation);
                for cause in [Some(&mut expected.cause), expected.audit.as_mut()] {
                    if let Some(Cause::Rule(rule)) = cause {
                        *rule = numbers[rule.0 as usize];
                    }
                }
                let judged = acl.judge(&conversation, &mut memo);
                prop_assert_eq!(said(&judged), said(&expected), "{:?}", conversation);
            }
        }
    }

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
        prop_assert_eq!(rules.len(), 2 * acl.len());
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
    let conversation = conversation(Tag(1), Tag(2));
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
fn there_is_always_room_before_a_rule() {
    let rules = vec![
        rule("first", RuleAction::Allow, 1, 2, tcp(80)),
        rule("last", RuleAction::Deny, 1, 2, tcp(80)),
    ];
    let mut acl = acl_of(rules);
    let mut memo = Memo::default();
    let mut last = RuleId(1);
    acl.remove(RuleId(0));
    for _ in 0..200 {
        last = acl.insert(&rule("new", RuleAction::Reject, 1, 2, tcp(80)), Some(last));
        let judgement = acl.judge(&conversation(Tag(1), Tag(2)), &mut memo);
        assert_eq!(judgement.cause, Cause::Rule(last));
    }
    assert_eq!(acl.len(), 201);
}

#[test]
fn the_memo_is_bounded() {
    let rules = vec![rule("web", RuleAction::Allow, 1, 2, tcp(80))];
    let mut acl = Acl::new(&Snapshot { rules, ..snapshot() });
    let mut memo = Memo::default();
    let names = |n| TagSet::Only(vec![Tag(n)]);
    for n in 0..400 {
        let rule = rule("one of many classes", RuleAction::Allow, 0, 0, tcp(80));
        acl.insert(&Rule { from: names(n), to: names(n), ..rule }, None);
    }
    for from in 0..400 {
        for to in 0..400 {
            acl.judge(&conversation(Tag(from), Tag(to)), &mut memo);
        }
    }
    assert!(memo.len() > 1_000);
    assert!(memo.len() <= Memo::MAX_PAIRS);
}

#[test]
fn rules_that_come_and_go_leave_nothing_behind() {
    const RULES: usize = 50;
    let changes = if cfg!(debug_assertions) { 4_000 } else { 1_000_000 };
    // As good as random, and never the same again.
    let set = |seed: u64| {
        let bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
        TagSet::Only((0..40).filter(|tag| bits >> tag & 1 != 0).map(Tag).collect())
    };
    let mut acl = acl_of(Vec::new());
    let mut live = VecDeque::new();
    let (mut at_first, mut at_last) = (0, 0);
    for change in 0..changes {
        let one = rule("", RuleAction::Allow, 0, 0, tcp(80));
        live.push_back(
            acl.insert(&Rule { from: set(2 * change), to: set(2 * change + 1), ..one }, None),
        );
        if live.len() > RULES {
            assert!(live.pop_front().is_some_and(|oldest| acl.remove(oldest)));
        }
        let most = if change < changes / 2 { &mut at_first } else { &mut at_last };
        *most = acl.bytes().max(*most);
    }
    assert!(at_last <= at_first + at_first / 8, "{at_first} bytes, then {at_last}");
}
