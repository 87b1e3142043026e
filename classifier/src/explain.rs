//! What would become of one hypothetical frame, step by step: for `firedoor trace`.
//!
//! The steps have the names of the path of a frame, and go through the same functions. Tables that
//! traffic fills (connections, flow cache, MAC table) are taken to be empty: the frame is the first
//! of its conversation.

use std::fmt::Write;

use crate::acl::{Considered, Conversation, Memo};
use crate::classify::{Classified, Context, admit, classify, is_conversation};
use crate::extract::{Headers, Kind};
use crate::fdb::Fdb;
use crate::key::FlowKey;
use crate::mask::Mask;
use crate::pipeline::{Opening, opening};
use crate::policy::Policy;
use crate::snapshot::PortId;
use crate::time::Nanos;
use crate::verdict::{Action, Verdict};

/// What becomes of one frame, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The verdict.
    pub verdict: Verdict,
    /// The ports it leaves by; empty if it is dropped.
    pub outputs: Vec<PortId>,
    /// The conversation that the ACL was asked about (of several, the first); `None` if the frame
    /// did not get that far, or needs no permission.
    pub conversation: Option<Conversation>,
    /// Every rule's part in judging that conversation: what decided first, then by how near they
    /// came, in evaluation order.
    pub rules: Vec<Considered>,
    /// What the flow cache would keep the verdict under, if it may.
    pub mask: Option<Mask>,
    /// The path of the frame.
    pub steps: Vec<Step>,
}

/// One step of the path of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name, as in the crate's and the data plane's documentation.
    pub name: &'static str,
    /// What it found, one clause.
    pub text: String,
}

impl Policy {
    /// Judges the first frame of a conversation and tells how. Cost: as an upcall, and a walk over
    /// all rules.
    pub fn explain(&self, headers: &Headers) -> Explanation {
        let mut steps = vec![Step { name: "extract", text: self.describe(&headers.key) }];
        let admitted = match admit(self, headers) {
            Ok(admitted) => admitted,
            Err(reason) => {
                let verdict = Verdict::drop(reason);
                steps.push(Step { name: "apply", text: self.describe_verdict(&verdict, &[]) });
                return Explanation {
                    verdict,
                    outputs: Vec::new(),
                    conversation: None,
                    rules: Vec::new(),
                    mask: None,
                    steps,
                };
            }
        };
        let (classified, receivers) = self.classify_first(&admitted);
        let Classified { mask, asked, .. } = classified;
        let (verdict, lookup) = self.open(&admitted, classified.verdict);
        let outputs = match verdict.action {
            Action::Forward(port) => vec![port],
            Action::Flood => receivers,
            Action::Drop(_) => Vec::new(),
        };
        let mut rules = Vec::new();
        if let Some(conversation) = asked {
            rules = self.acl().explain(&conversation).1;
        }
        steps.push(Step { name: "Connections::lookup", text: lookup.to_owned() });
        steps.push(Step { name: "FlowCache::lookup", text: describe_mask(mask) });
        steps.push(Step { name: "upcall", text: self.describe_upcall(asked) });
        steps.push(Step { name: "apply", text: self.describe_verdict(&verdict, &outputs) });
        Explanation { verdict, outputs, conversation: asked, rules, mask, steps }
    }

    fn classify_first(&self, headers: &Headers) -> (Classified, Vec<PortId>) {
        let mut receivers = Vec::new();
        let context = Context {
            policy: self,
            fdb: &Fdb::new(0),
            memo: &mut Memo::default(),
            receivers: &mut receivers,
            related: None,
            now: Nanos::default(),
        };
        (classify(context, headers), receivers)
    }

    /// What connections make of the verdict.
    fn open(&self, headers: &Headers, verdict: Verdict) -> (Verdict, &'static str) {
        if let Kind::IcmpError(_) = headers.kind {
            return (verdict, "the packet that the error is about belongs to no connection");
        }
        if !is_conversation(headers) {
            return (verdict, "not asked: frames of this kind belong to no connection");
        }
        if !verdict.is_forwarded() {
            return (verdict, "none: a frame that is refused begins no connection");
        }
        match opening(self, headers) {
            Opening::Connection => {
                (verdict, "none yet: this frame begins one, replies need no rule")
            }
            Opening::Untracked => (verdict, "none, and this frame begins none"),
            Opening::Refused(reason) => {
                (Verdict::drop(reason), "none, and this frame cannot begin one")
            }
        }
    }

    fn describe(&self, key: &FlowKey) -> String {
        format!(
            "in by port {} ({}), from {} {} to {} {}",
            key.ingress,
            self.workload_name(key.ingress),
            key.eth_src,
            key.src_addr(),
            key.eth_dst,
            key.dst_addr(),
        )
    }

    fn describe_upcall(&self, asked: Option<Conversation>) -> String {
        match asked {
            Some(Conversation { from, to, .. }) => {
                format!("source is {}, destination is {}", self.name_of(from), self.name_of(to))
            }
            None => "decided without the ACL".to_owned(),
        }
    }

    fn describe_verdict(&self, verdict: &Verdict, outputs: &[PortId]) -> String {
        let by = self.rule_name(verdict.cause);
        let mut text = match verdict.action {
            Action::Drop(reason) => format!("dropped: {} ({by})", reason.explain()),
            Action::Forward(_) | Action::Flood => {
                let names: Vec<_> = outputs.iter().map(|&port| self.workload_name(port)).collect();
                format!("forwarded to {} ({by})", names.join(", "))
            }
        };
        if let Some(reason) = verdict.would_drop {
            // Writing to a string cannot fail.
            _ = write!(text, "; enforced, it would be dropped: {}", reason.explain());
        }
        text
    }
}

fn describe_mask(mask: Option<Mask>) -> String {
    let Some(mask) = mask else {
        return "not asked: verdicts on frames of this kind are not cached".to_owned();
    };
    let port = if mask.has_port() { ", destination port" } else { "" };
    format!(
        "miss; the verdict will be kept under ports, VLAN, MACs, protocol, {} bits of the source \
         address, {} of the destination{port}",
        mask.src_bits(),
        mask.dst_bits(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acl::Outcome;
    use crate::build::{self, TcpFlags};
    use crate::fixture::{API, DB, WEB, ends, headers, mac, policy, snapshot};
    use crate::snapshot::RuleId;
    use crate::verdict::{Cause, DropReason};

    #[test]
    fn the_winner_stands_first_and_the_path_is_complete() {
        let policy = policy(snapshot());
        let frame = build::tcp(ends(WEB, API), 40_000, 8080, TcpFlags::SYN);
        let explained = policy.explain(&headers(WEB, &frame));
        assert_eq!(explained.outputs, [PortId(API)]);
        let first = explained.rules[0];
        assert_eq!((first.rule, first.outcome), (RuleId(0), Outcome::Decides));
        assert_eq!(explained.rules.len(), 2 * policy.snapshot().rules.len());
        let names: Vec<_> = explained.steps.iter().map(|step| step.name).collect();
        let path = ["extract", "Connections::lookup", "FlowCache::lookup", "upcall", "apply"];
        assert_eq!(names, path);
    }

    #[test]
    fn refusals_name_their_rule_or_the_default() {
        let policy = policy(snapshot());
        let explain = |from, to, port, flags| {
            let frame = build::tcp(ends(from, to), 40_000, port, flags);
            policy.explain(&headers(from, &frame)).verdict
        };
        let verdict = explain(API, WEB, 22, TcpFlags::SYN);
        assert_eq!(
            (verdict.drop_reason(), verdict.cause),
            (Some(DropReason::Denied), Cause::Rule(RuleId(2)))
        );
        let verdict = explain(WEB, DB, 22, TcpFlags::SYN);
        assert_eq!(
            (verdict.drop_reason(), verdict.cause),
            (Some(DropReason::DefaultDeny), Cause::Default)
        );
        let verdict = explain(WEB, API, 8080, TcpFlags::ACK);
        assert_eq!(verdict.drop_reason(), Some(DropReason::TcpNotSyn));
    }

    #[test]
    fn frames_that_need_no_permission_are_explained_too() {
        let policy = policy(snapshot());
        let question = build::arp_request(mac(WEB), [10, 10, 0, 1].into(), [10, 10, 0, 3].into());
        let explained = policy.explain(&headers(WEB, &question));
        assert_eq!((explained.outputs, explained.conversation), (vec![PortId(DB)], None));
    }
}
