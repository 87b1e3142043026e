//! The linear oracle: judges by walking the snapshot's lists, with no table, cache or mask. Slow
//! and obvious; every fast path must agree with it.
//!
//! It shares the snapshot's types and the headers with the fast path, and nothing else: it finds
//! workloads, prefixes and rules by looking at each, keeps learned addresses and connections in
//! plain lists, and judges every frame of a connection as if it were the connection's first, now.
//! It knows no epochs, since it remembers no verdict; but for that of a packet's first fragment, which
//! the others follow until the policy changes.
//!
//! Left out: TCP's sequence numbers and states, timeouts and bounds of connections, which have an
//! oracle of their own in [`connections`](crate::connections), and bounds on fragments.

mod connection;
mod fragments;
mod rules;

use std::net::IpAddr;
use std::sync::Arc;

use crate::extract::{Headers, Kind, Nd, NdMessage};
use crate::key::FlowKey;
use crate::mac::MacAddr;
use crate::snapshot::{Mode, PortId, Rule, Snapshot, Tag, VlanMode, Workload};
use crate::time::Nanos;
use crate::verdict::{Cause, DropReason};

use connection::Connection;
use fragments::Packet;

/// What the oracle says of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The ports it leaves by, in order; or why it is dropped.
    pub fate: Result<Vec<PortId>, DropReason>,
    /// Who decided.
    pub cause: Cause,
    /// The reason it would have been dropped for.
    pub would_drop: Option<DropReason>,
}

impl Ruling {
    fn drop(reason: DropReason) -> Self {
        Self { fate: Err(reason), cause: Cause::Switch, would_drop: None }
    }
}

/// A whole switch, as lists.
#[derive(Clone, Debug)]
pub struct Oracle {
    snapshot: Arc<Snapshot>,
    learned: Vec<Learned>,
    connections: Vec<Connection>,
    packets: Vec<Packet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Learned {
    vlan: u16,
    mac: MacAddr,
    port: PortId,
    last: Nanos,
}

/// A frame, its VLAN, and who sent it.
#[derive(Clone, Copy)]
struct Frame<'a> {
    key: FlowKey,
    headers: &'a Headers,
    sender: &'a Workload,
    now: Nanos,
    /// For an ICMP error: where it may go, and who allowed the connection that it is about.
    related: Option<(PortId, Cause)>,
}

/// A refusal, and the rule behind it.
type Refusal = (DropReason, Cause);

/// What was found out about a frame so far.
struct Findings {
    /// The first refusal that the mode turns into a record.
    recorded: Option<Refusal>,
    relaxed: bool,
}

impl Findings {
    fn refuse(&mut self, reason: DropReason, cause: Cause) -> Result<(), Refusal> {
        use DropReason as R;
        let forgivable = matches!(
            reason,
            R::SpoofedMac
                | R::SpoofedIp
                | R::SpoofedArp
                | R::SpoofedNd
                | R::RogueRouter
                | R::RogueDhcp
                | R::Denied
                | R::Rejected
                | R::DefaultDeny
                | R::IcmpUnrelated
        );
        if !(self.relaxed && forgivable) {
            return Err((reason, cause));
        }
        if self.recorded.is_none() {
            self.recorded = Some((reason, cause));
        }
        Ok(())
    }
}

/// Outputs and the rule that allowed them.
type Delivery = Result<(Vec<PortId>, Cause), Refusal>;

fn refuse<T>(reason: DropReason) -> Result<T, Refusal> {
    Err((reason, Cause::Switch))
}

impl Oracle {
    /// A switch that has seen nothing yet.
    pub fn new(snapshot: Snapshot) -> Self {
        let snapshot = Arc::new(snapshot);
        Self { snapshot, learned: Vec::new(), connections: Vec::new(), packets: Vec::new() }
    }

    /// Puts another snapshot in force.
    pub fn install(&mut self, snapshot: Snapshot) {
        self.snapshot = Arc::new(snapshot);
        let mut learned = std::mem::take(&mut self.learned);
        learned.retain(|entry| self.may_learn(entry.port, entry.vlan, entry.mac));
        self.learned = learned;
        self.packets.iter_mut().for_each(|packet| packet.outdated = true);
    }

    /// Judges one frame.
    pub fn judge(&mut self, headers: &Headers, now: Nanos) -> Ruling {
        let snapshot = Arc::clone(&self.snapshot);
        let key = headers.key;
        let Some(sender) = snapshot.workloads.iter().find(|w| w.port == key.ingress) else {
            return Ruling::drop(DropReason::NoPolicy);
        };
        let named = |rule: &Rule| rule.conditions.ether_type == Some(key.ether_type);
        if headers.kind == Kind::NonIp && !snapshot.rules.iter().any(named) {
            return Ruling::drop(DropReason::UnknownEtherType);
        }
        let Some(vlan) = vlan_of(sender, headers) else {
            return Ruling::drop(DropReason::VlanNotAllowed);
        };
        let mut frame = Frame { key: FlowKey { vlan, ..key }, headers, sender, now, related: None };
        self.learn(&frame);
        frame.related = self.related(&frame);
        if headers.kind == Kind::Plain && !key.eth_dst.is_multicast() {
            self.judge_conversation(&frame)
        } else {
            self.rule(&frame)
        }
    }

    /// What policy says of a frame by itself.
    fn rule(&self, frame: &Frame<'_>) -> Ruling {
        let mut findings =
            Findings { recorded: None, relaxed: self.snapshot.mode != Mode::Enforce };
        match self.deliver(frame, &mut findings) {
            Err((reason, cause)) => Ruling { fate: Err(reason), cause, would_drop: None },
            Ok((mut outputs, allowed_by)) => {
                outputs.sort_unstable();
                let (would_drop, cause) = match findings.recorded {
                    Some((reason, cause)) => (Some(reason), cause),
                    None => (None, allowed_by),
                };
                Ruling { fate: Ok(outputs), cause, would_drop }
            }
        }
    }

    fn deliver(&self, frame: &Frame<'_>, findings: &mut Findings) -> Delivery {
        let key = &frame.key;
        if key.eth_dst.0[..5] == [1, 0x80, 0xc2, 0, 0] && key.eth_dst.0[5] < 16 {
            return refuse(DropReason::BridgeReserved);
        }
        if key.eth_src.is_multicast() || key.eth_src == MacAddr::ZERO {
            return refuse(DropReason::SourceInvalid);
        }
        if !self.is_own_mac(frame.sender, key.eth_src) {
            findings.refuse(DropReason::SpoofedMac, Cause::Switch)?;
        }
        let to_group = key.eth_dst.is_multicast();
        match frame.headers.kind {
            Kind::Arp { sender, .. } => self.deliver_arp(frame, sender, findings),
            Kind::Nd(nd) => self.deliver_nd(frame, &nd, findings),
            Kind::DhcpClient => self.deliver_dhcp_request(frame, findings),
            Kind::DhcpServer => self.deliver_dhcp_answer(frame, findings),
            Kind::IcmpError(_) => self.deliver_icmp_error(frame, findings),
            Kind::NonIp => self.deliver_non_ip(frame, findings),
            Kind::LaterFragment => refuse(DropReason::FragmentExpired),
            Kind::Plain if to_group => self.deliver_group(frame, findings),
            Kind::Plain => {
                let from = self.source_tag(frame, findings)?;
                let outputs = self.outputs(frame)?;
                let to = self.destination_tag(frame, &outputs)?;
                let cause = self.permit(frame, from, to, findings)?;
                self.unless_hairpin(frame, outputs, cause)
            }
        }
    }

    fn deliver_arp(&self, frame: &Frame<'_>, hw: MacAddr, findings: &mut Findings) -> Delivery {
        let (sender, target) = (frame.key.src_addr(), frame.key.dst_addr());
        let probe = sender.is_unspecified();
        let claimed = if probe { target } else { sender };
        let honest = self.is_own_mac(frame.sender, hw) && self.may_send_from(frame.sender, claimed);
        let from = if honest { self.tag_of(claimed) } else { frame.sender.tag };
        if !honest {
            findings.refuse(DropReason::SpoofedArp, Cause::Switch)?;
        }
        match frame.key.protocol {
            1 if probe || sender == target => self.announce(frame, from, findings),
            1 => self.ask_owner(frame, target),
            2 if frame.key.eth_dst.is_multicast() => self.announce(frame, from, findings),
            2 => self.to_station(frame),
            _ => refuse(DropReason::ArpMalformed),
        }
    }

    fn deliver_nd(&self, frame: &Frame<'_>, nd: &Nd, findings: &mut Findings) -> Delivery {
        let me = frame.sender;
        let to_group = frame.key.eth_dst.is_multicast();
        let router_message =
            matches!(nd.message, NdMessage::RouterAdvertisement | NdMessage::Redirect);
        if router_message && !me.router {
            findings.refuse(DropReason::RogueRouter, Cause::Switch)?;
        }
        let source = frame.key.src_addr();
        let target = crate::key::from_bits(nd.target);
        let dad = nd.message == NdMessage::NeighborSolicitation && source.is_unspecified();
        let identity = if dad { target } else { source };
        let blank = nd.message == NdMessage::RouterSolicitation && source.is_unspecified();
        let mut honest = blank || self.may_send_from(me, identity);
        if nd.message == NdMessage::NeighborAdvertisement {
            honest &= self.may_send_from(me, target);
        }
        if let Some(mac) = nd.link_addr {
            let mut owner = self.snapshot.workloads.iter();
            honest &= match owner.find(|w| w.addresses.contains(&target)) {
                _ if nd.message != NdMessage::Redirect => self.is_own_mac(me, mac),
                Some(owner) => owner.mac.is_none_or(|known| known == mac),
                None => true,
            };
        }
        let from = if honest && !blank { self.tag_of(identity) } else { me.tag };
        if !honest {
            findings.refuse(DropReason::SpoofedNd, Cause::Switch)?;
        }
        match nd.message {
            NdMessage::RouterSolicitation => self.to_routers(frame, DropReason::NoReceiver),
            NdMessage::NeighborSolicitation if dad => self.announce(frame, from, findings),
            NdMessage::NeighborSolicitation => self.ask_owner(frame, target),
            NdMessage::NeighborAdvertisement if to_group => self.announce(frame, from, findings),
            _ if to_group => self.to_everyone(frame),
            _ => self.to_station(frame),
        }
    }

    fn deliver_dhcp_request(&self, frame: &Frame<'_>, findings: &mut Findings) -> Delivery {
        let nobody = frame.key.src_addr() == IpAddr::from([0, 0, 0, 0]);
        let from = if nobody { frame.sender.tag } else { self.source_tag(frame, findings)? };
        if frame.key.eth_dst.is_multicast() {
            let mut candidates: Vec<&Workload> = self.others(frame).collect();
            candidates.retain(|workload| workload.dhcp_server || workload.router);
            candidates.sort_by_key(|workload| (!workload.dhcp_server, workload.port));
            return self.to_allowed(frame, from, &candidates, findings);
        }
        let outputs = self.outputs(frame)?;
        let servers = self.snapshot.workloads.iter().filter(|w| w.dhcp_server);
        let mut asked = servers.filter(|w| w.addresses.contains(&frame.key.dst_addr()));
        if asked.any(|server| outputs == [server.port]) {
            return self.unless_hairpin(frame, outputs, Cause::Switch);
        }
        let to = self.destination_tag(frame, &outputs)?;
        let cause = self.permit(frame, from, to, findings)?;
        self.unless_hairpin(frame, outputs, cause)
    }

    fn deliver_dhcp_answer(&self, frame: &Frame<'_>, findings: &mut Findings) -> Delivery {
        if !frame.sender.dhcp_server {
            findings.refuse(DropReason::RogueDhcp, Cause::Switch)?;
        }
        let from = self.source_tag(frame, findings)?;
        if frame.key.eth_dst.is_multicast() {
            return self.to_everyone(frame);
        }
        let outputs = self.outputs(frame)?;
        let dst = frame.key.dst_addr();
        let all_hosts = dst == IpAddr::from([255; 4]) && outputs.len() == 1;
        let mut owners = self.snapshot.workloads.iter().filter(|w| w.addresses.contains(&dst));
        if all_hosts || owners.any(|owner| outputs == [owner.port]) {
            return self.unless_hairpin(frame, outputs, Cause::Switch);
        }
        let to = self.destination_tag(frame, &outputs)?;
        let cause = self.permit(frame, from, to, findings)?;
        self.unless_hairpin(frame, outputs, cause)
    }

    fn deliver_icmp_error(&self, frame: &Frame<'_>, findings: &mut Findings) -> Delivery {
        let is_redirect = frame.key.protocol == 1 && frame.key.dst_port >> 8 == 5;
        if is_redirect && !frame.sender.router {
            findings.refuse(DropReason::RogueRouter, Cause::Switch)?;
        }
        self.source_tag(frame, findings)?;
        if frame.key.eth_dst.is_multicast() {
            findings.refuse(DropReason::IcmpUnrelated, Cause::Switch)?;
            return self.deliver_group(frame, findings);
        }
        let outputs = self.outputs(frame)?;
        if let Some((to, cause)) = frame.related
            && outputs.contains(&to)
        {
            return self.unless_hairpin(frame, vec![to], cause);
        }
        findings.refuse(DropReason::IcmpUnrelated, Cause::Switch)?;
        self.unless_hairpin(frame, outputs, Cause::Switch)
    }

    fn deliver_group(&self, frame: &Frame<'_>, findings: &mut Findings) -> Delivery {
        let kind = frame.key.dst_port >> 8;
        let mld = frame.key.protocol == 58 && [130, 131, 132, 143].contains(&kind);
        if mld || frame.key.protocol == 2 {
            if !(mld && frame.key.src_addr().is_unspecified()) {
                self.source_tag(frame, findings)?;
            }
            return self.to_routers(frame, DropReason::NoReceiver);
        }
        let from = self.source_tag(frame, findings)?;
        let mut candidates: Vec<&Workload> = self.others(frame).collect();
        candidates.sort_by_key(|workload| workload.port);
        self.to_allowed(frame, from, &candidates, findings)
    }

    /// The ends are the workloads at both ports, whatever addresses might be inside.
    fn deliver_non_ip(&self, frame: &Frame<'_>, findings: &mut Findings) -> Delivery {
        let from = frame.sender.tag;
        if frame.key.eth_dst.is_multicast() {
            let mut candidates: Vec<&Workload> = self.others(frame).collect();
            candidates.sort_by_key(|workload| workload.port);
            return self.to_allowed(frame, from, &candidates, findings);
        }
        let mut outputs = self.outputs(frame)?;
        outputs.sort_unstable();
        let receivers: Vec<_> = outputs.iter().filter_map(|&port| self.workload(port)).collect();
        match receivers.as_slice() {
            [receiver] => {
                let cause = self.permit(frame, from, receiver.tag, findings)?;
                self.unless_hairpin(frame, outputs, cause)
            }
            routers => self.to_allowed(frame, from, routers, findings),
        }
    }

    /// To those candidates that the rules allow, DHCP servers without asking for DHCP.
    fn to_allowed(
        &self,
        frame: &Frame<'_>,
        from: Tag,
        candidates: &[&Workload],
        findings: &mut Findings,
    ) -> Delivery {
        let (mut outputs, mut first_cause, mut first_refusal) = (Vec::new(), None, None);
        for to in candidates {
            let exempt = frame.headers.kind == Kind::DhcpClient && to.dhcp_server;
            let opinion = self.opinion(from, to.tag, &frame.key);
            match opinion.refusal {
                Some(refusal) if !exempt => {
                    first_refusal = first_refusal.or(Some(refusal));
                    if findings.relaxed {
                        outputs.push(to.port);
                    }
                }
                _ => {
                    let cause = if exempt { Cause::Switch } else { opinion.allowed_by };
                    first_cause = first_cause.or(Some(cause));
                    outputs.push(to.port);
                    if let (false, Some(refusal)) = (exempt, opinion.audited) {
                        findings.recorded = findings.recorded.or(Some(refusal));
                    }
                }
            }
        }
        if let (None, Some((reason, cause))) = (first_cause, first_refusal) {
            findings.refuse(reason, cause)?;
        }
        if outputs.is_empty() {
            return refuse(DropReason::NoReceiver);
        }
        Ok((outputs, first_cause.unwrap_or(Cause::Switch)))
    }

    fn announce(&self, frame: &Frame<'_>, from: Tag, findings: &Findings) -> Delivery {
        let hears = |w: &&Workload| findings.relaxed || self.may_say_anything(from, w.tag);
        let outputs: Vec<_> = self.others(frame).filter(hears).map(|w| w.port).collect();
        if outputs.is_empty() {
            refuse(DropReason::NoReceiver)
        } else {
            Ok((outputs, Cause::Switch))
        }
    }

    fn ask_owner(&self, frame: &Frame<'_>, target: IpAddr) -> Delivery {
        let owner = self.snapshot.workloads.iter().find(|w| w.addresses.contains(&target));
        match owner.filter(|w| carries(w, frame.key.vlan) && !target.is_unspecified()) {
            Some(owner) => self.unless_hairpin(frame, vec![owner.port], Cause::Switch),
            None => self.to_routers(frame, DropReason::UnknownDestination),
        }
    }

    fn to_routers(&self, frame: &Frame<'_>, otherwise: DropReason) -> Delivery {
        let routers: Vec<_> = self.others(frame).filter(|w| w.router).map(|w| w.port).collect();
        if routers.is_empty() { refuse(otherwise) } else { Ok((routers, Cause::Switch)) }
    }

    fn to_everyone(&self, frame: &Frame<'_>) -> Delivery {
        let all: Vec<_> = self.others(frame).map(|w| w.port).collect();
        if all.is_empty() { refuse(DropReason::NoReceiver) } else { Ok((all, Cause::Switch)) }
    }

    fn to_station(&self, frame: &Frame<'_>) -> Delivery {
        let outputs = self.outputs(frame)?;
        self.unless_hairpin(frame, outputs, Cause::Switch)
    }

    fn unless_hairpin(&self, frame: &Frame<'_>, outputs: Vec<PortId>, cause: Cause) -> Delivery {
        if outputs == [frame.sender.port] {
            refuse(DropReason::Hairpin)
        } else {
            Ok((outputs, cause))
        }
    }

    /// The other workloads in the frame's VLAN.
    fn others<'a>(&'a self, frame: &Frame<'_>) -> impl Iterator<Item = &'a Workload> {
        let (vlan, port) = (frame.key.vlan, frame.sender.port);
        self.snapshot.workloads.iter().filter(move |w| carries(w, vlan) && w.port != port)
    }

    /// Where the destination MAC is.
    fn outputs(&self, frame: &Frame<'_>) -> Result<Vec<PortId>, Refusal> {
        let mac = frame.key.eth_dst;
        if let Some(fixed) = self.snapshot.workloads.iter().find(|w| w.mac == Some(mac)) {
            let here = carries(fixed, frame.key.vlan);
            return if here {
                Ok(vec![fixed.port])
            } else {
                refuse(DropReason::UnknownDestination)
            };
        }
        match self.learned_port(frame.key.vlan, mac, frame.now) {
            Some(port) => Ok(vec![port]),
            None => Ok(self.to_routers(frame, DropReason::UnknownDestination)?.0),
        }
    }

    fn source_tag(&self, frame: &Frame<'_>, findings: &mut Findings) -> Result<Tag, Refusal> {
        let source = frame.key.src_addr();
        if self.may_send_from(frame.sender, source) {
            return Ok(self.tag_of(source));
        }
        findings.refuse(DropReason::SpoofedIp, Cause::Switch)?;
        Ok(frame.sender.tag)
    }

    fn destination_tag(&self, frame: &Frame<'_>, outputs: &[PortId]) -> Result<Tag, Refusal> {
        let destination = frame.key.dst_addr();
        let owner = self.snapshot.workloads.iter().find(|w| w.addresses.contains(&destination));
        let by_router = outputs.iter().all(|&port| self.workload(port).is_some_and(|w| w.router));
        let is_there = match owner {
            _ if destination.is_unspecified() => false,
            Some(owner) => by_router || outputs == [owner.port],
            None => by_router,
        };
        if is_there { Ok(self.tag_of(destination)) } else { refuse(DropReason::AddressMismatch) }
    }

    fn permit(
        &self,
        frame: &Frame<'_>,
        from: Tag,
        to: Tag,
        findings: &mut Findings,
    ) -> Result<Cause, Refusal> {
        let opinion = self.opinion(from, to, &frame.key);
        match opinion.refusal {
            Some((reason, cause)) => {
                findings.refuse(reason, cause)?;
                Ok(cause)
            }
            None => {
                findings.recorded = findings.recorded.or(opinion.audited);
                Ok(opinion.allowed_by)
            }
        }
    }

    fn workload(&self, port: PortId) -> Option<&Workload> {
        self.snapshot.workloads.iter().find(|w| w.port == port)
    }

    fn is_own_mac(&self, me: &Workload, mac: MacAddr) -> bool {
        let others = || self.snapshot.workloads.iter().filter(|w| w.port != me.port);
        if me.router { others().all(|w| w.mac != Some(mac)) } else { me.mac == Some(mac) }
    }

    fn may_send_from(&self, me: &Workload, address: IpAddr) -> bool {
        let owner = self.snapshot.workloads.iter().find(|w| w.addresses.contains(&address));
        match owner {
            _ if address.is_unspecified() => false,
            Some(owner) => owner.port == me.port,
            None => me.router,
        }
    }

    fn tag_of(&self, address: IpAddr) -> Tag {
        let owner = self.snapshot.workloads.iter().find(|w| w.addresses.contains(&address));
        let covering = self.snapshot.prefixes.iter().filter(|prefix| prefix.net.contains(&address));
        match (owner, covering.max_by_key(|prefix| prefix.net.prefix_len())) {
            (Some(owner), _) => owner.tag,
            (None, Some(prefix)) => prefix.tag,
            (None, None) => self.snapshot.world,
        }
    }

    fn learn(&mut self, frame: &Frame<'_>) {
        let FlowKey { vlan, eth_src: mac, .. } = frame.key;
        let (port, last) = (frame.sender.port, frame.now);
        if self.may_learn(port, vlan, mac) {
            self.learned.retain(|entry| (entry.vlan, entry.mac) != (vlan, mac));
            self.learned.push(Learned { vlan, mac, port, last });
        }
    }

    fn may_learn(&self, port: PortId, vlan: u16, mac: MacAddr) -> bool {
        self.workload(port).is_some_and(|w| w.router && carries(w, vlan))
            && !mac.is_multicast()
            && mac != MacAddr::ZERO
            && self.snapshot.workloads.iter().all(|w| w.mac != Some(mac))
    }

    fn learned_port(&self, vlan: u16, mac: MacAddr, now: Nanos) -> Option<PortId> {
        let ageing = u64::from(self.snapshot.settings.mac_ageing_secs) * 1_000_000_000;
        let known = self.learned.iter().find(|entry| (entry.vlan, entry.mac) == (vlan, mac))?;
        (now.since(known.last) < ageing).then_some(known.port)
    }
}

/// The VLAN that a frame belongs to.
fn vlan_of(sender: &Workload, headers: &Headers) -> Option<u16> {
    match (&sender.vlan, headers.vlan_tags, headers.key.vlan) {
        (VlanMode::Access(vlan), 0, _) | (VlanMode::Access(vlan), 1, 0) => Some(*vlan),
        (VlanMode::Trunk(list), 1, vlan) if list.contains(&vlan) => Some(vlan),
        _ => None,
    }
}

fn carries(workload: &Workload, vlan: u16) -> bool {
    match &workload.vlan {
        VlanMode::Access(own) => *own == vlan,
        VlanMode::Trunk(list) => list.contains(&vlan),
    }
}
