//! Address resolution: ARP (RFC 826) and neighbour discovery (RFC 4861).
//!
//! A question about a workload's address goes to that workload alone, whatever the ACL says: all it
//! can learn is a MAC address, and the refusal is seen on the IP frame that follows, with its rule.
//! Other questions go to routers. What a station announces of itself reaches those that it may send
//! something to. Nobody may speak for an address or a MAC that is not its own; a router may for all
//! that are not another workload's.

use super::{Destination, Step, Upcall, drop};
use crate::extract::{Nd, NdMessage};
use crate::mac::MacAddr;
use crate::policy::Owner;
use crate::snapshot::{PortId, Tag};
use crate::verdict::{Cause, DropReason, Verdict};

/// ARP operations (RFC 826).
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

impl Upcall<'_> {
    pub(super) fn arp(&mut self, sender: MacAddr) -> Step<Verdict> {
        let from = self.arp_sender(sender)?;
        // A probe (RFC 5227 §1.1) has no sender address yet and names its own as target.
        let is_probe = self.is_unspecified(self.key.src);
        match self.key.protocol {
            REQUEST if is_probe || self.key.src == self.key.dst => self.announce(from),
            REQUEST => self.resolve(self.key.dst),
            REPLY if self.key.eth_dst.is_multicast() => self.announce(from),
            REPLY => self.answer(),
            _ => drop(DropReason::ArpMalformed),
        }
    }

    /// The tag of an ARP message's sender, whose MAC and address must be its port's.
    fn arp_sender(&mut self, sender: MacAddr) -> Step<Tag> {
        let claimed = if self.is_unspecified(self.key.src) { self.key.dst } else { self.key.src };
        match self.tag_as_source(self.policy.owner(claimed).0) {
            Some(tag) if self.may_use_mac(sender) => Ok(tag),
            _ => self.refuse_claim(DropReason::SpoofedArp),
        }
    }

    pub(super) fn neighbour_discovery(&mut self, nd: &Nd) -> Step<Verdict> {
        use NdMessage::{
            NeighborAdvertisement, NeighborSolicitation, Redirect, RouterAdvertisement,
            RouterSolicitation,
        };
        let is_router_message = matches!(nd.message, RouterAdvertisement | Redirect);
        if is_router_message && !self.ingress.router {
            self.refuse(DropReason::RogueRouter, Cause::Switch)?;
        }
        let from = self.nd_sender(nd)?;
        let is_to_group = self.key.eth_dst.is_multicast();
        match nd.message {
            RouterSolicitation => {
                let to = self.routers_or(DropReason::NoReceiver)?;
                self.deliver(to, Cause::Switch)
            }
            RouterAdvertisement | Redirect if is_to_group => self.flood_all(),
            NeighborSolicitation if self.is_unspecified(self.key.src) => self.announce(from),
            NeighborSolicitation => self.resolve(nd.target),
            NeighborAdvertisement if is_to_group => self.announce(from),
            RouterAdvertisement | Redirect | NeighborAdvertisement => self.answer(),
        }
    }

    /// The tag of a neighbour discovery message's sender. Its source, what it says of a target that
    /// it speaks for, and its link-layer address must be its port's.
    fn nd_sender(&mut self, nd: &Nd) -> Step<Tag> {
        use NdMessage::{
            NeighborAdvertisement, NeighborSolicitation, Redirect, RouterSolicitation,
        };
        let source = self.policy.owner(self.key.src).0;
        let target = self.tag_as_source(self.policy.owner(nd.target).0);
        let tag = match (nd.message, source) {
            // Duplicate address detection (RFC 4862 §5.4) asks for the address it is about to use.
            (NeighborSolicitation, Owner::Unspecified) => target,
            (RouterSolicitation, Owner::Unspecified) => Some(self.ingress.tag),
            (NeighborAdvertisement, _) => target.and(self.tag_as_source(source)),
            _ => self.tag_as_source(source),
        };
        let may_use_link = nd.link_addr.is_none_or(|link_addr| match nd.message {
            // It is about the target, which is another station.
            Redirect => self.may_be_at(nd.target, link_addr),
            _ => self.may_use_mac(link_addr),
        });
        match tag {
            Some(tag) if may_use_link => Ok(tag),
            _ => self.refuse_claim(DropReason::SpoofedNd),
        }
    }

    /// Whether somebody else may say that `addr` is at `mac`: not if it is a workload's with another.
    fn may_be_at(&self, addr: u128, mac: MacAddr) -> bool {
        match self.policy.owner(addr).0 {
            Owner::Workload(port, _) => {
                let known = self.policy.port(port).and_then(|workload| workload.mac);
                known.is_none_or(|known| known == mac)
            }
            Owner::Outside(_) | Owner::Unspecified => true,
        }
    }

    /// Refuses a claim; if it is let through, it counts as the ingress workload's.
    fn refuse_claim(&mut self, reason: DropReason) -> Step<Tag> {
        self.refuse(reason, Cause::Switch)?;
        Ok(self.ingress.tag)
    }

    /// A question for the MAC of `target`.
    fn resolve(&mut self, target: u128) -> Step<Verdict> {
        let to = match self.policy.owner(target).0 {
            Owner::Workload(port, _) if self.vlan.has(port) => Destination::Port(port),
            _ => self.routers_or(DropReason::UnknownDestination)?,
        };
        self.deliver(to, Cause::Switch)
    }

    /// A message to one station, which asked for it.
    fn answer(&mut self) -> Step<Verdict> {
        let to = self.destination()?;
        self.deliver(to, Cause::Switch)
    }

    /// What a station says of itself, to all in its VLAN that it may send something to.
    fn announce(&mut self, from: Tag) -> Step<Verdict> {
        self.receivers.clear();
        for &port in &self.vlan.members {
            if port != self.key.ingress && (self.relaxes() || self.may_reach(from, port)) {
                self.receivers.push(port);
            }
        }
        self.deliver_to_receivers(Cause::Switch, DropReason::NoReceiver)
    }

    fn may_reach(&mut self, from: Tag, port: PortId) -> bool {
        let to = self.policy.port(port).map(|workload| workload.tag);
        to.is_some_and(|to| self.policy.acl().may_talk(from, to, self.memo))
    }

    pub(super) fn is_unspecified(&self, addr: u128) -> bool {
        self.policy.owner(addr).0 == Owner::Unspecified
    }
}
