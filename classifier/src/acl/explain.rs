//! Why the ACL says what it says: every rule, and what kept it from deciding.

use super::{Acl, CompiledRule, Conversation, Judgement, Memo, Permit, Used};
use crate::snapshot::{Direction, RuleAction, RuleId};
use crate::verdict::Cause;

/// One rule's part in one judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Considered {
    /// Which permission was judged: the source's ([`Direction::Egress`]) or the destination's
    /// ([`Direction::Ingress`]).
    pub permission: Direction,
    /// The rule.
    pub rule: RuleId,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a rule in a judgement. Ordered: what matters most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It matches first and decides.
    Decides,
    /// It matches and leaves its tier.
    Passes,
    /// It matches, but is under audit.
    Audited,
    /// It would match, but an earlier rule decided.
    Late,
    /// It would match, but an earlier `pass` left its tier.
    PassedOver,
    /// It speaks of the other permission.
    OtherDirection,
    /// It speaks of this pair, but its [conditions](crate::snapshot::Conditions) do not hold.
    OtherConditions,
    /// It speaks of this pair, but not of this service.
    OtherService,
    /// It does not speak of this destination.
    OtherDestination,
    /// It does not speak of this source.
    OtherSource,
}

impl Acl {
    /// Judges one conversation and tells every rule's part in it, for both permissions: those that
    /// decide first, then by how near they came, in evaluation order.
    pub fn explain(&self, conversation: &Conversation) -> (Judgement, Vec<Considered>) {
        let judgement = self.judge(conversation, &mut Memo::default());
        let mut rules = self.consider(conversation, Permit::Send);
        rules.extend(self.consider(conversation, Permit::Receive));
        rules.sort_by_key(|considered| {
            (judgement.cause != Cause::Rule(considered.rule), considered.outcome)
        });
        (judgement, rules)
    }

    fn consider(&self, conversation: &Conversation, permit: Permit) -> Vec<Considered> {
        let permission = match permit {
            Permit::Send => Direction::Egress,
            Permit::Receive => Direction::Ingress,
        };
        let (mut decided, mut left) = (false, None);
        let mut considered = Vec::with_capacity(self.in_order.len());
        for &RuleId(id) in self.in_order.values() {
            let rule = &self.rules[id as usize];
            let outcome = match self.mismatch(rule, conversation, permit) {
                Some(outcome) => outcome,
                None if left == Some(rule.tier) => Outcome::PassedOver,
                None if decided => Outcome::Late,
                None if rule.audit => Outcome::Audited,
                None if rule.action == RuleAction::Pass => {
                    left = Some(rule.tier);
                    Outcome::Passes
                }
                None => {
                    decided = true;
                    Outcome::Decides
                }
            };
            considered.push(Considered { permission, rule: RuleId(id), outcome });
        }
        considered
    }

    /// Why the rule does not match, if it does not.
    fn mismatch(
        &self,
        rule: &CompiledRule,
        conversation: &Conversation,
        permit: Permit,
    ) -> Option<Outcome> {
        if !self.from.has(rule.from, conversation.from) {
            Some(Outcome::OtherSource)
        } else if !self.to.has(rule.to, conversation.to) {
            Some(Outcome::OtherDestination)
        } else if !self.serves(rule, conversation, &mut Used::default()) {
            let Conversation { protocol, opening, .. } = conversation;
            let begins_so = rule.conditions.hold(*protocol, opening);
            Some(if begins_so { Outcome::OtherService } else { Outcome::OtherConditions })
        } else if !rule.is_about(permit) {
            Some(Outcome::OtherDirection)
        } else {
            None
        }
    }
}
