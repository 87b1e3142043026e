//! The slow path: one frame's headers to a verdict and the mask of what was consulted.
//!
//! [`admit`] says which VLAN a frame belongs to; it is the first step of every frame. [`classify`]
//! judges an admitted frame by policy and MAC table alone, with neither connections nor cache:
//!
//! 1. its port and VLAN exist, its destination is not reserved for bridges;
//! 2. its source MAC, then its source address (or what ARP and ND claim) is its port's;
//! 3. its destination MAC names an output port, and its destination address belongs there;
//! 4. the ACL allows the conversation;
//! 5. the output is not where it came from.
//!
//! The first refusal is the verdict. In learn and audit mode a refusal of kind "spoofed" or "policy"
//! is remembered instead, and judging goes on to find out where the frame would go: that is the one
//! place where the mode matters, [`Upcall::refuse`].
//!
//! A later fragment has nothing to be judged by. Who asks about one all the same hears that its
//! first has not come: [`fragments`](crate::fragments) asks only about first ones.
//!
//! Address resolution, DHCP and group addresses have rules of their own, in this module's files.
//! Verdicts on them are not cached, nor do they begin connections. Frames that are not IP have no
//! addresses and no connections; where rules name their ethertype, ports stand for their ends.

mod dhcp;
mod group;
mod neighbour;
mod non_ip;

use crate::acl::{Conversation, Judgement, Memo, Opening};
use crate::extract::{Embedded, Headers, Kind};
use crate::fdb::Fdb;
use crate::key::FlowKey;
use crate::mac::MacAddr;
use crate::mask::Mask;
use crate::policy::{Owner, Policy, Vlan};
use crate::snapshot::{Mode, PortId, Tag, VlanMode, Workload};
use crate::time::Nanos;
use crate::verdict::{Action, Cause, DropReason, Verdict};
use crate::wire::{icmp, protocol};

/// What a verdict is reached with, besides the frame.
pub struct Context<'a> {
    /// The policy in force.
    pub policy: &'a Policy,
    /// Learned MAC addresses.
    pub fdb: &'a Fdb,
    /// What was found out about pairs of tags under this policy.
    pub memo: &'a mut Memo,
    /// Filled with the ports that an [`Action::Flood`] reaches.
    pub receivers: &'a mut Vec<PortId>,
    /// For an ICMP error: the live connection that it is about.
    pub related: Option<Related>,
    /// The time, for ageing.
    pub now: Nanos,
}

/// The live connection that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Related {
    /// The port of the embedded packet's sender.
    pub output: PortId,
    /// Who allowed the connection.
    pub cause: Cause,
}

/// What the slow path found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classified {
    /// The verdict.
    pub verdict: Verdict,
    /// Which bits of the key it depends on; `None` if it holds for this frame alone.
    pub mask: Option<Mask>,
    /// The port that the MAC table named for the destination, if it was asked.
    pub learned: Option<PortId>,
    /// The first conversation that the ACL was asked about, if it was.
    pub asked: Option<Conversation>,
}

/// The headers with [`FlowKey::vlan`] set to the VLAN that the frame belongs to, instead of the
/// identifier on the wire. Everything after this step judges by that.
///
/// # Errors
/// [`DropReason::NoPolicy`] if the policy knows no such port, [`DropReason::UnknownEtherType`] if
/// neither it nor a rule speaks of the ethertype, [`DropReason::VlanNotAllowed`] if the port does
/// not carry the VLAN or not with this tagging.
pub fn admit(policy: &Policy, headers: &Headers) -> Result<Headers, DropReason> {
    let vlan = vlan_of(policy, headers)?;
    Ok(Headers { key: FlowKey { vlan, ..headers.key }, ..*headers })
}

/// The VLAN that a frame belongs to.
///
/// # Errors
/// As [`admit`].
pub fn vlan_of(policy: &Policy, headers: &Headers) -> Result<u16, DropReason> {
    let workload = policy.port(headers.key.ingress).ok_or(DropReason::NoPolicy)?;
    if headers.kind == Kind::NonIp && !policy.names_ether_type(headers.key.ether_type) {
        return Err(DropReason::UnknownEtherType);
    }
    let tag = headers.key.vlan;
    let is_tagged = headers.vlan_tags > 0 && tag != 0;
    let vlan = match workload.vlan {
        _ if headers.vlan_tags > 1 => None,
        VlanMode::Access(vlan) => (!is_tagged).then_some(vlan),
        VlanMode::Trunk(_) => {
            let carries = policy.vlan(tag).is_some_and(|vlan| vlan.has(workload.port));
            (is_tagged && carries).then_some(tag)
        }
    };
    vlan.ok_or(DropReason::VlanNotAllowed)
}

/// Whether the address may be learned from a frame that `port` sent: only routers' ports learn, and
/// neither a group's address nor one that the snapshot gives to a workload.
pub fn may_learn(policy: &Policy, port: PortId, mac: MacAddr) -> bool {
    policy.port(port).is_some_and(|workload| workload.router)
        && is_station(mac)
        && policy.fixed(mac).is_none()
}

/// Judges an [admitted](admit) frame by policy and MAC table.
pub fn classify(context: Context<'_>, headers: &Headers) -> Classified {
    let Context { policy, fdb, memo, receivers, related, now } = context;
    receivers.clear();
    let key = &headers.key;
    let (Some(ingress), Some(vlan)) = (policy.port(key.ingress), policy.vlan(key.vlan)) else {
        return Classified::once(DropReason::NoPolicy);
    };
    if !vlan.has(key.ingress) {
        return Classified::once(DropReason::VlanNotAllowed);
    }
    let mut upcall = Upcall {
        policy,
        fdb,
        memo,
        receivers,
        related,
        now,
        key,
        ingress,
        vlan,
        src_bits: 0,
        dst_bits: 0,
        port: false,
        learned: None,
        asked: None,
        is_cacheable: is_conversation(headers),
        recorded: None,
    };
    let verdict = upcall.judge(headers.kind).unwrap_or_else(|refusal| refusal);
    upcall.finish(verdict)
}

/// Whether a frame is part of a conversation between two stations, which the flow cache and, if it
/// is IP, connections may know. All others are judged one by one.
pub fn is_conversation(headers: &Headers) -> bool {
    matches!(headers.kind, Kind::Plain | Kind::NonIp) && !headers.key.eth_dst.is_multicast()
}

impl Classified {
    const fn once(reason: DropReason) -> Self {
        Self { verdict: Verdict::drop(reason), mask: None, learned: None, asked: None }
    }
}

/// One frame being judged.
struct Upcall<'a> {
    policy: &'a Policy,
    fdb: &'a Fdb,
    memo: &'a mut Memo,
    receivers: &'a mut Vec<PortId>,
    related: Option<Related>,
    now: Nanos,
    key: &'a FlowKey,
    ingress: &'a Workload,
    vlan: &'a Vlan,
    /// Leading bits of the source address consulted so far.
    src_bits: u8,
    /// Leading bits of the destination address consulted so far.
    dst_bits: u8,
    /// Whether the destination port was consulted.
    port: bool,
    learned: Option<PortId>,
    asked: Option<Conversation>,
    is_cacheable: bool,
    /// The first refusal that was recorded instead of enforced.
    recorded: Option<(DropReason, Cause)>,
}

/// Judging goes on with a value, or the frame is dropped.
type Step<T = ()> = Result<T, Verdict>;

/// Where a unicast frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    /// Out of this port.
    Port(PortId),
    /// To several routers, one of which may know its MAC address: [`Upcall::receivers`].
    Routers,
}

impl Upcall<'_> {
    fn judge(&mut self, kind: Kind) -> Step<Verdict> {
        self.bridge_reserved()?;
        self.source_mac()?;
        match kind {
            Kind::Arp { sender, .. } => self.arp(sender),
            Kind::Nd(nd) => self.neighbour_discovery(&nd),
            Kind::DhcpClient => self.dhcp_client(),
            Kind::DhcpServer => self.dhcp_server(),
            Kind::IcmpError(embedded) => self.icmp_error(&embedded),
            Kind::LaterFragment => drop(DropReason::FragmentExpired),
            Kind::Plain if self.key.eth_dst.is_multicast() => self.group(),
            Kind::Plain => self.conversation(),
            Kind::NonIp => self.non_ip(),
        }
    }

    /// The mask of everything that was consulted goes with the verdict.
    fn finish(self, verdict: Verdict) -> Classified {
        let mask = Mask::covering(self.src_bits, self.dst_bits, self.port);
        Classified {
            verdict,
            mask: self.is_cacheable.then_some(mask),
            learned: self.learned,
            asked: self.asked,
        }
    }

    /// IP from one station to another.
    fn conversation(&mut self) -> Step<Verdict> {
        let from = self.source()?;
        let to = self.destination()?;
        self.deliver_permitted(from, to)
    }

    /// An error about a packet that the receiver sent in a live connection.
    fn icmp_error(&mut self, embedded: &Embedded) -> Step<Verdict> {
        if self.is_icmp_redirect() && !self.ingress.router {
            self.refuse(DropReason::RogueRouter, Cause::Switch)?;
        }
        self.source()?;
        if self.key.eth_dst.is_multicast() {
            self.refuse(DropReason::IcmpUnrelated, Cause::Switch)?;
            return self.group();
        }
        let to = self.destination()?;
        match self.related.filter(|related| self.is_related(embedded, related, to)) {
            Some(related) => self.deliver(Destination::Port(related.output), related.cause),
            None => {
                self.refuse(DropReason::IcmpUnrelated, Cause::Switch)?;
                self.deliver(to, Cause::Switch)
            }
        }
    }

    /// Whether an ICMP error comes from where the embedded packet went, or from a router on its way,
    /// and goes to its sender.
    fn is_related(&self, embedded: &Embedded, related: &Related, to: Destination) -> bool {
        let is_from_there = match self.policy.owner(embedded.dst).0 {
            Owner::Workload(port, _) => port == self.key.ingress,
            Owner::Outside(_) | Owner::Unspecified => false,
        };
        let goes_there = match to {
            Destination::Port(port) => port == related.output,
            Destination::Routers => self.receivers.contains(&related.output),
        };
        self.key.dst == embedded.src && goes_there && (is_from_there || self.ingress.router)
    }

    fn is_icmp_redirect(&self) -> bool {
        let [kind, _] = self.key.dst_port.to_be_bytes();
        self.key.protocol == protocol::ICMP && kind == icmp::kind::REDIRECT
    }

    fn bridge_reserved(&self) -> Step {
        if self.key.eth_dst.is_bridge_reserved() {
            drop(DropReason::BridgeReserved)
        } else {
            Ok(())
        }
    }

    fn source_mac(&mut self) -> Step {
        if !is_station(self.key.eth_src) {
            return drop(DropReason::SourceInvalid);
        }
        if self.may_use_mac(self.key.eth_src) {
            return Ok(());
        }
        self.refuse(DropReason::SpoofedMac, Cause::Switch)
    }

    /// Whether frames from the ingress port may come from `mac`.
    fn may_use_mac(&self, mac: MacAddr) -> bool {
        if self.ingress.router {
            self.policy.fixed(mac).is_none_or(|port| port == self.key.ingress)
        } else {
            self.ingress.mac == Some(mac)
        }
    }

    /// The source's tag.
    fn source(&mut self) -> Step<Tag> {
        let (owner, bits) = self.policy.owner(self.key.src);
        self.src_bits = bits;
        match self.tag_as_source(owner) {
            Some(tag) => Ok(tag),
            None => {
                self.refuse(DropReason::SpoofedIp, Cause::Switch)?;
                Ok(self.ingress.tag)
            }
        }
    }

    /// The tag under which the ingress port may send from an address of this owner, if it may.
    fn tag_as_source(&self, owner: Owner) -> Option<Tag> {
        match owner {
            Owner::Workload(port, tag) => (port == self.key.ingress).then_some(tag),
            Owner::Outside(tag) => self.ingress.router.then_some(tag),
            Owner::Unspecified => None,
        }
    }

    /// Where the destination MAC is.
    fn destination(&mut self) -> Step<Destination> {
        let mac = self.key.eth_dst;
        if let Some(port) = self.policy.fixed(mac) {
            let is_here = self.vlan.has(port);
            return if is_here {
                Ok(Destination::Port(port))
            } else {
                drop(DropReason::UnknownDestination)
            };
        }
        if let Some(port) = self.fdb.port(self.key.vlan, mac, self.now) {
            self.learned = Some(port);
            return Ok(Destination::Port(port));
        }
        // Without routers nothing is ever learned in this VLAN, so "unknown" may be cached.
        self.is_cacheable &= self.vlan.routers.is_empty();
        self.routers_or(DropReason::UnknownDestination)
    }

    /// The VLAN's routers; the frame is dropped for `otherwise` if there is none but the ingress.
    fn routers_or(&mut self, otherwise: DropReason) -> Step<Destination> {
        let ingress = self.key.ingress;
        self.receivers.clear();
        self.receivers.extend(self.vlan.routers.iter().filter(|&&port| port != ingress));
        match *self.receivers.as_slice() {
            [] => drop(otherwise),
            [port] => Ok(Destination::Port(port)),
            _ => Ok(Destination::Routers),
        }
    }

    /// The destination's tag, by its address: which must belong to where the frame goes.
    fn destination_tag(&mut self, to: Destination) -> Step<Tag> {
        let (owner, bits) = self.policy.owner(self.key.dst);
        self.dst_bits = bits;
        let is_router = match to {
            Destination::Port(port) => self.policy.port(port).is_some_and(|w| w.router),
            Destination::Routers => true,
        };
        match owner {
            Owner::Workload(port, tag) if is_router || to == Destination::Port(port) => Ok(tag),
            Owner::Outside(tag) if is_router => Ok(tag),
            _ => drop(DropReason::AddressMismatch),
        }
    }

    /// Asks the ACL, and refuses if it does.
    fn permit(&mut self, from: Tag, to: Tag) -> Step<Cause> {
        let judgement = self.ask(from, to);
        match judgement.refusal() {
            Some(reason) => self.refuse(reason, judgement.cause)?,
            None => self.record_audit(&judgement),
        }
        Ok(judgement.cause)
    }

    /// What the ACL says of this frame between these tags.
    fn ask(&mut self, from: Tag, to: Tag) -> Judgement {
        let FlowKey { protocol, dst_port, .. } = *self.key;
        let opening = Opening::of(self.key);
        let conversation = Conversation { from, to, protocol, dst_port, opening };
        let judgement = self.policy.acl().judge(&conversation, self.memo);
        self.port |= judgement.used_ports;
        self.is_cacheable &= !judgement.used_opening;
        self.asked.get_or_insert(conversation);
        judgement
    }

    fn record_audit(&mut self, judgement: &Judgement) {
        if let Some(cause) = judgement.audit {
            self.recorded.get_or_insert((DropReason::Denied, cause));
        }
    }

    /// Refuses the frame: by dropping it, or by recording that it would have been.
    fn refuse(&mut self, reason: DropReason, cause: Cause) -> Step {
        if self.relaxes() && reason.group().is_relaxed_by_mode() {
            self.recorded.get_or_insert((reason, cause));
            return Ok(());
        }
        Err(Verdict { action: Action::Drop(reason), cause, would_drop: None })
    }

    /// Whether denied frames are recorded instead of dropped.
    fn relaxes(&self) -> bool {
        self.policy.mode() != Mode::Enforce
    }

    /// Delivers if the ACL lets `from` reach whoever the destination address belongs to.
    fn deliver_permitted(&mut self, from: Tag, to: Destination) -> Step<Verdict> {
        let to_tag = self.destination_tag(to)?;
        let cause = self.permit(from, to_tag)?;
        self.deliver(to, cause)
    }

    fn deliver(&self, to: Destination, cause: Cause) -> Step<Verdict> {
        let action = match to {
            Destination::Port(port) if port == self.key.ingress => {
                return drop(DropReason::Hairpin);
            }
            Destination::Port(port) => Action::Forward(port),
            Destination::Routers => Action::Flood,
        };
        Ok(self.forward(action, cause))
    }

    /// Delivers to every receiver; drops for `otherwise` if there is none.
    fn deliver_to_receivers(&self, cause: Cause, otherwise: DropReason) -> Step<Verdict> {
        match *self.receivers.as_slice() {
            [] => drop(otherwise),
            [port] => Ok(self.forward(Action::Forward(port), cause)),
            _ => Ok(self.forward(Action::Flood, cause)),
        }
    }

    fn forward(&self, action: Action, cause: Cause) -> Verdict {
        match self.recorded {
            Some((reason, cause)) => Verdict { action, cause, would_drop: Some(reason) },
            None => Verdict { action, cause, would_drop: None },
        }
    }
}

/// Drops for a reason that no rule gave.
fn drop<T>(reason: DropReason) -> Step<T> {
    Err(Verdict::drop(reason))
}

/// Whether a station may have this address.
fn is_station(mac: MacAddr) -> bool {
    !mac.is_multicast() && mac != MacAddr::ZERO
}
