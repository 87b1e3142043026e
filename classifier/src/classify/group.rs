//! Group addresses: broadcast and multicast.
//!
//! A frame to a group is a conversation with each workload that could receive it, and reaches those
//! that policy allows. It begins no connection: an answer needs its own rule.

use super::{Step, Upcall};
use crate::snapshot::{PortId, Tag, Workload};
use crate::verdict::{Cause, DropReason, Verdict};

const IGMP: u8 = 2;
const ICMPV6: u8 = 58;
/// Multicast listener query, report, done (RFC 2710) and version 2 report (RFC 3810), by ICMPv6 type.
const MLD: [u8; 4] = [130, 131, 132, 143];

impl Upcall<'_> {
    /// IP to a group.
    pub(super) fn group(&mut self) -> Step<Verdict> {
        if self.is_membership_report() {
            return self.membership_report();
        }
        let from = self.source()?;
        self.flood_permitted(from, self.vlan.members.iter().copied(), |_| false)
    }

    /// Who listens to what is between hosts and routers (RFC 4541 §2.1.1).
    fn membership_report(&mut self) -> Step<Verdict> {
        // A host may report before it has an address (RFC 3590 §4).
        if self.key.protocol != ICMPV6 || !self.is_unspecified(self.key.src) {
            self.source()?;
        }
        let to = self.routers_or(DropReason::NoReceiver)?;
        self.deliver(to, Cause::Switch)
    }

    fn is_membership_report(&self) -> bool {
        let [kind, _] = self.key.dst_port.to_be_bytes();
        self.key.protocol == IGMP || self.key.protocol == ICMPV6 && MLD.contains(&kind)
    }

    /// To every other port of the VLAN.
    pub(super) fn flood_all(&mut self) -> Step<Verdict> {
        let ingress = self.key.ingress;
        self.receivers.clear();
        self.receivers.extend(self.vlan.members.iter().filter(|&&port| port != ingress));
        self.deliver_to_receivers(Cause::Switch, DropReason::NoReceiver)
    }

    /// To those `candidates` that policy lets `from` send this frame to, and those that are `exempt`.
    /// If it lets none, its first refusal is the verdict.
    pub(super) fn flood_permitted(
        &mut self,
        from: Tag,
        candidates: impl Iterator<Item = PortId>,
        exempt: impl Fn(&Workload) -> bool,
    ) -> Step<Verdict> {
        self.receivers.clear();
        let (mut allowed, mut refused) = (None, None);
        for port in candidates.filter(|&port| port != self.key.ingress) {
            let Some(workload) = self.policy.port(port) else { continue };
            let (cause, refusal) = if exempt(workload) {
                (Cause::Switch, None)
            } else {
                let judgement = self.ask(from, workload.tag);
                self.record_audit(&judgement);
                (judgement.cause, judgement.refusal())
            };
            match refusal {
                None => _ = allowed.get_or_insert(cause),
                Some(reason) => _ = refused.get_or_insert((reason, cause)),
            }
            if refusal.is_none() || self.relaxes() {
                self.receivers.push(port);
            }
        }
        if let (None, Some((reason, cause))) = (allowed, refused) {
            self.refuse(reason, cause)?;
        }
        self.deliver_to_receivers(allowed.unwrap_or(Cause::Switch), DropReason::NoReceiver)
    }
}
