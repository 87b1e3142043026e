//! Rules that decide nothing, because earlier ones leave nothing to them.

use std::collections::{BTreeMap, HashSet};

use super::{Acl, CompiledRule, Permit};
use crate::snapshot::{Conditions, RuleAction, RuleId, Services, Tag};
use crate::wire::ethernet::ether_type;
use crate::wire::protocol::{SCTP, TCP, UDP};

impl Acl {
    /// The earlier rules, in order, that together leave nothing to this one of what these pairs of tags
    /// may say; `None` if something may be left to it.
    ///
    /// A rule that is called shadowed is so. The reverse need not hold: an earlier rule that asks how a
    /// conversation begins counts only where it asks for no more than this one.
    ///
    /// Cost: for each kind of pair, the services that its rules tell apart times these rules, until one
    /// is found that is left.
    pub fn shadows(
        &self,
        RuleId(number): RuleId,
        pairs: impl IntoIterator<Item = (Tag, Tag)>,
    ) -> Option<Vec<RuleId>> {
        let rule = &self.rules[number as usize];
        let (mut seen, mut shadows) = (HashSet::new(), BTreeMap::new());
        for (from, to) in pairs {
            if !seen.insert((self.from.of(from), self.to.of(to))) {
                continue;
            }
            let mut rules = self.candidates(from, to);
            rules.retain(|&other| self.order(other) <= self.order(number));
            for piece in self.cuts(&rules).filter(|&piece| rule.may_speak_of(piece)) {
                for permit in [Permit::Send, Permit::Receive] {
                    if rule.is_about(permit) {
                        let earlier = rules.split_last().map_or(&[][..], |(_, earlier)| earlier);
                        let shadow = self.shadow(rule, earlier, piece, permit)?;
                        shadows.insert(self.order(shadow), RuleId(shadow));
                    }
                }
            }
        }
        Some(shadows.into_values().collect())
    }

    /// The rule among `earlier` ones that takes this piece of the service space from `rule`.
    fn shadow(
        &self,
        rule: &CompiledRule,
        earlier: &[u32],
        piece: (u8, u16),
        permit: Permit,
    ) -> Option<u32> {
        let mut left = None;
        for &number in earlier {
            let other = &self.rules[number as usize];
            if !other.is_about(permit) || !other.serves_piece(piece) || left == Some(other.tier) {
                continue;
            }
            let takes_all =
                (rule.audit || !other.audit) && other.conditions.cover(&rule.conditions);
            match other.action {
                RuleAction::Pass if takes_all && other.tier == rule.tier => return Some(number),
                // It may leave its tier, and then none of that tier's later rules decides.
                RuleAction::Pass => left = Some(other.tier),
                _ if takes_all => return Some(number),
                _ => {}
            }
        }
        None
    }
}

impl CompiledRule {
    /// Whether its services include one, by protocol and port.
    fn serves_piece(&self, (protocol, port): (u8, u16)) -> bool {
        match &self.services {
            Services::Any => true,
            Services::Only(services) => services.iter().any(|one| one.matches(protocol, port)),
        }
    }

    /// Whether it matches such a service for some beginning.
    fn may_speak_of(&self, piece: (u8, u16)) -> bool {
        let has_ports = matches!(piece.0, TCP | UDP | SCTP);
        self.serves_piece(piece)
            && (has_ports || self.conditions.src_ports.is_none())
            && (piece.0 == TCP || self.conditions.tcp_flags.is_none())
    }
}

impl Conditions {
    /// Whether they hold wherever `narrow` ones do.
    fn cover(&self, narrow: &Self) -> bool {
        let is_ip = |named| matches!(named, ether_type::IPV4 | ether_type::IPV6);
        let ether_types = match self.ether_type {
            None => narrow.ether_type.is_none_or(is_ip),
            named => narrow.ether_type == named,
        };
        let vlans = self.vlan.is_none() || self.vlan == narrow.vlan;
        let src_ports = self.src_ports.is_none_or(|(first, last)| {
            narrow.src_ports.is_some_and(|ports| first <= ports.0 && ports.1 <= last)
        });
        let tcp_flags = self.tcp_flags.is_none_or(|wide| {
            narrow.tcp_flags.is_some_and(|narrow| {
                narrow.mask & wide.mask == wide.mask && narrow.value & wide.mask == wide.value
            })
        });
        ether_types && vlans && src_ports && tcp_flags
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::acl::tests::{TAGS, acl_of, any_rule, conversations, odd_rule};
    use crate::acl::{Conversation, Memo};
    use crate::fixture::{rule, tcp};
    use crate::snapshot::{Direction, Rule, Service};

    fn pairs() -> impl Iterator<Item = (Tag, Tag)> {
        (0..=TAGS).flat_map(|from| (0..=TAGS).map(move |to| (Tag(from), Tag(to))))
    }

    /// Rules of every kind, half of them with conditions.
    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let one = (any_rule(), odd_rule(), any::<bool>()).prop_map(|(rule, odd, is_odd)| {
            let Rule { services, conditions, .. } = odd;
            if is_odd { Rule { services, conditions, ..rule } } else { rule }
        });
        prop::collection::vec(one, 1..12).prop_map(|mut rules| {
            rules.sort_by_key(|rule| rule.tier);
            rules
        })
    }

    /// The earlier rules that shadow the last one.
    fn shadows(rules: Vec<Rule>) -> Option<Vec<u32>> {
        let last = RuleId(rules.len() as u32 - 1);
        let shadows = acl_of(rules).shadows(last, pairs())?;
        Some(shadows.into_iter().map(|RuleId(number)| number).collect())
    }

    fn allow(service: Service) -> Rule {
        Rule { tier: 1, ..rule("", RuleAction::Allow, 1, 2, service) }
    }

    fn ports(first: u16, last: u16) -> Service {
        Service::Ports { protocol: TCP, first, last }
    }

    #[test]
    fn rules_shadow_together_what_none_of_them_shadows_alone() {
        let (low, high) = (allow(ports(0, 99)), allow(ports(90, u16::MAX)));
        let tcp = allow(Service::Protocol(TCP));
        assert_eq!(shadows(vec![low.clone(), high.clone(), tcp.clone()]), Some(vec![0, 1]));
        assert_eq!(shadows(vec![low, tcp.clone()]), None);
        assert_eq!(shadows(vec![high, tcp]), None);
    }

    #[test]
    fn a_rule_about_one_permission_leaves_the_other() {
        let both = allow(tcp(80));
        let one = |direction| Rule { direction, ..both.clone() };
        let (egress, ingress) = (one(Direction::Egress), one(Direction::Ingress));
        assert_eq!(shadows(vec![egress.clone(), both.clone()]), None);
        assert_eq!(shadows(vec![egress, ingress.clone(), both.clone()]), Some(vec![0, 1]));
        assert_eq!(shadows(vec![both, ingress]), Some(vec![0]));
    }

    #[test]
    fn a_pass_shadows_its_own_tier_and_spares_the_next() {
        let pass = Rule { action: RuleAction::Pass, ..allow(Service::Protocol(TCP)) };
        let next = Rule { tier: 2, ..allow(tcp(80)) };
        assert_eq!(shadows(vec![pass.clone(), allow(tcp(80))]), Some(vec![0]));
        assert_eq!(shadows(vec![pass.clone(), next.clone()]), None);
        assert_eq!(shadows(vec![pass, allow(tcp(80)), next]), None);
    }

    #[test]
    fn what_asks_for_more_shadows_nothing() {
        let asks = |src_ports| Rule {
            conditions: Conditions { src_ports, ..Conditions::default() },
            ..allow(tcp(80))
        };
        let (narrow, wide) = (asks(Some((53, 53))), asks(Some((0, 1_023))));
        assert_eq!(shadows(vec![narrow.clone(), wide.clone()]), None);
        assert_eq!(shadows(vec![wide.clone(), allow(tcp(80))]), None);
        assert_eq!(shadows(vec![wide, narrow]), Some(vec![0]));
        let audited = Rule { audit: true, ..allow(tcp(80)) };
        assert_eq!(shadows(vec![audited.clone(), allow(tcp(80))]), None);
        assert_eq!(shadows(vec![allow(tcp(80)), audited]), Some(vec![0]));
    }

    proptest! {
        #[test]
        fn without_a_shadowed_rule_every_judgement_is_the_same(
            rules in rules(), conversations in conversations(),
        ) {
            let acl = acl_of(rules.clone());
            let judge = |acl: &Acl, one: &Conversation| {
                let judged = acl.judge(one, &mut Memo::default());
                (judged.action, judged.cause, judged.audit)
            };
            for number in (0..rules.len() as u32).map(RuleId) {
                if acl.shadows(number, pairs()).is_none() {
                    continue;
                }
                let mut without = acl.clone();
                without.remove(number);
                for one in &conversations {
                    prop_assert_eq!(judge(&without, one), judge(&acl, one), "{:?} {:?}", number, one);
                }
            }
        }
    }
}
