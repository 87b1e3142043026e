//! One hypothetical frame, step by step: the first of a new conversation, or the question for the other
//! end's MAC address that comes before it.
//!
//! The frame is built, extracted and judged by the very code that the data plane runs; only what
//! each step consulted is told in words. It meets empty tables, as a first frame does. The steps
//! have the names of the path of a frame, as the README lists them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use firedoor_classifier::acl::{Considered, Conversation, Opening, Outcome};
use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::classify::{admit, is_conversation};
use firedoor_classifier::extract::{Headers, Kind, extract};
use firedoor_classifier::policy::Owner;
use firedoor_classifier::snapshot::{
    Direction, Mode, PortId, RuleAction, Service, VlanMode, Workload,
};
use firedoor_classifier::verdict::{Action, Cause, DropGroup};
use firedoor_classifier::wire::icmp;
use firedoor_classifier::wire::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};
use firedoor_classifier::{DropReason, MacAddr, Nanos, Pipeline, Policy, Tag, Verdict};
use serde::Serialize;

use crate::connectivity::is_link_local;
use crate::diagnostic::nearest;
use crate::intent::TIERS;
use crate::{condition, service};

/// Where the clients of a first frame sit: the first dynamic port (RFC 6335 §6).
const CLIENT_PORT: u16 = 49_152;

/// A locally administered address that stands for a next hop whose own one is not known.
const UNKNOWN_MAC: MacAddr = MacAddr([0x02, 0xff, 0xff, 0xff, 0xff, 0xfe]);

/// Which frame to follow.
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    /// A workload's name, or an address outside the switch.
    pub from: &'q str,
    /// Likewise.
    pub to: &'q str,
    /// What it is.
    pub what: What,
    /// True for IPv4, false for IPv6; `None` takes IPv4 if both ends have it.
    pub v4: Option<bool>,
    /// How it begins.
    pub begins: Beginning,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The first of a conversation.
    Service(Service),
    /// One of this ethertype, which is neither IP's nor ARP's.
    EtherType(u16),
    /// The question who has the other end's IPv4 address.
    Arp,
    /// Likewise for IPv6: a neighbour solicitation.
    Nd,
}

impl What {
    /// As the command line has it.
    fn text(self) -> String {
        match self {
            Self::Service(service) => service::text(&service),
            Self::EtherType(number) => format!("ethertype/{}", condition::ether_type_text(number)),
            Self::Arp => "arp".to_owned(),
            Self::Nd => "nd".to_owned(),
        }
    }
}

/// What rules may ask of a first frame besides its ends and service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The source port, of protocols that have one; the identifier of ICMP queries.
    pub source_port: u16,
    /// The flags, of TCP.
    pub flags: TcpFlags,
}

impl Default for Beginning {
    /// As a common client begins: from a dynamic port (RFC 6335 §6), with a SYN.
    fn default() -> Self {
        Self { source_port: CLIENT_PORT, flags: TcpFlags::SYN }
    }
}

/// Why there is no such frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// Neither a workload nor an address.
    #[error(
        "there is no workload {name:?}: {}give an address if it is outside the switch",
        nearest.as_ref().map(|near| format!("did you mean {near:?}? Else ")).unwrap_or_default()
    )]
    UnknownEnd {
        /// The name.
        name: String,
        /// The nearest name that exists.
        nearest: Option<String>,
    },
    /// An address outside the switch, and no router to reach it by.
    #[error(
        "{addr} is outside the switch, and no router shares a VLAN with the other end: a workload with \
         router = true would lead there"
    )]
    NoRouter {
        /// The address.
        addr: IpAddr,
    },
    /// Both ends are outside the switch.
    #[error("neither end is a workload: give the name of one")]
    BothOutside,
    /// The ends have no address family in common, or not the wanted one.
    #[error("{from} and {to} have no addresses of one family for this service")]
    NoFamily {
        /// One end.
        from: String,
        /// The other.
        to: String,
    },
    /// A service that is a whole protocol: a frame must have a port or type.
    #[error("a frame has one port or type: give it, as {0}")]
    NotOneFrame(&'static str),
}

/// What became of the frame, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trace {
    /// Who sends.
    pub from: String,
    /// Whom it is for.
    pub to: String,
    /// What it begins or is, as `tcp/8080`, `ethertype/0x88b5`, `arp` or `nd`.
    pub service: String,
    /// Source address, if it has one.
    pub src: Option<IpAddr>,
    /// Destination address, or that which is asked for; if it has one.
    pub dst: Option<IpAddr>,
    /// Whether it leaves by a port.
    pub forwarded: bool,
    /// Slug of the reason it was dropped for, or would have been.
    pub reason: Option<&'static str>,
    /// Who decided: a rule's name, `default` or `switch`.
    pub cause: String,
    /// The steps it took.
    pub steps: Vec<Step>,
    /// Every rule's part, the one that decided first. Empty if the ACL was not asked.
    pub rules: Vec<RulePart>,
}

/// One step of the path of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its name.
    pub step: &'static str,
    /// What happened, one fact each.
    pub facts: Vec<String>,
}

/// One rule's part in the judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RulePart {
    /// The rule.
    pub rule: String,
    /// What it says.
    pub action: RuleAction,
    /// Its tier's name.
    pub tier: String,
    /// Its priority.
    pub priority: u32,
    /// What it asks of the first frame, as `source_port 1024-65535`; empty if nothing.
    pub when: String,
    /// What became of it when the source's permission to send was judged.
    pub send: &'static str,
    /// Likewise for the destination's permission to receive.
    pub receive: &'static str,
    /// Whether it is the cause of the verdict.
    pub decides: bool,
}

/// Follows the frame of `question` under `policy`.
///
/// # Errors
/// If there is no such frame.
pub fn trace(policy: &Arc<Policy>, question: &Question<'_>) -> Result<Trace, TraceError> {
    let route = Route::find(policy, question)?;
    let frame = frame(&route, question.what, question.begins)?;
    let mut story = Story { policy, route: &route, steps: Vec::new() };
    story.receive(&frame);
    let headers = match extract(&frame, route.ingress.port) {
        Ok(headers) => headers,
        Err(reason) => {
            story.tell("extract", [reason.explain().to_owned()]);
            return Ok(story.end(question, &Verdict::drop(reason), Vec::new()));
        }
    };
    story.extract(&headers);

    let mut pipeline = Pipeline::new(Arc::clone(policy));
    let verdict = pipeline.judge(&headers, frame.len(), Nanos::default());
    if is_conversation(&headers) {
        let connection = match headers.kind {
            Kind::NonIp => "none: only IP has connections",
            _ => "no connection yet: this is a first frame",
        };
        story.tell("Connections::lookup", [connection.into()]);
        story.tell("FlowCache::lookup", ["nothing cached for it".into()]);
    }
    let rules = story.upcall(&headers, &verdict);
    let receivers = match verdict.action {
        Action::Forward(port) => vec![port],
        Action::Flood => pipeline.receivers().to_vec(),
        Action::Drop(_) => Vec::new(),
    };
    story.apply(&verdict, pipeline.connections() > 0);
    story.transmit(&receivers);
    Ok(story.end(question, &verdict, rules))
}

/// The frame's ends, as addresses and ports.
struct Route<'p> {
    /// The workload whose port it comes in by.
    ingress: &'p Workload,
    from: String,
    to: String,
    /// Without addresses, unspecified ones.
    ends: Ends,
    /// VLAN tag on the ingress port's wire.
    tag: Option<u16>,
}

/// An end as it was named.
#[derive(Clone, Copy)]
enum Named<'p> {
    Workload(&'p Workload),
    /// One address of a workload.
    Address(&'p Workload, IpAddr),
    Outside(IpAddr),
}

impl<'p> Named<'p> {
    fn find(policy: &'p Policy, name: &str) -> Result<Self, TraceError> {
        let workloads = &policy.snapshot().workloads;
        if let Some(workload) = policy.workload(name) {
            return Ok(Self::Workload(workload));
        }
        let Ok(addr) = name.parse::<IpAddr>() else {
            let nearest = nearest(name, workloads.iter().map(|workload| workload.name.as_str()));
            let nearest = nearest.map(str::to_owned);
            return Err(TraceError::UnknownEnd { name: name.to_owned(), nearest });
        };
        let owner = workloads.iter().find(|workload| workload.addresses.contains(&addr));
        Ok(owner.map_or(Self::Outside(addr), |owner| Self::Address(owner, addr)))
    }

    /// Its address of a family, one that is not link-local if it has the choice.
    fn address(self, v4: bool) -> Option<IpAddr> {
        match self {
            Self::Address(_, addr) | Self::Outside(addr) => (addr.is_ipv4() == v4).then_some(addr),
            Self::Workload(workload) => {
                let mut family: Vec<_> =
                    workload.addresses.iter().filter(|addr| addr.is_ipv4() == v4).collect();
                family.sort_by_key(|addr| is_link_local(**addr));
                family.first().map(|addr| **addr)
            }
        }
    }

    /// The workload whose port it is behind: itself, or the way out that `other` has.
    fn via(self, policy: &'p Policy, other: Self) -> Result<&'p Workload, TraceError> {
        match (self, other) {
            (Self::Workload(workload) | Self::Address(workload, _), _) => Ok(workload),
            (Self::Outside(addr), Self::Workload(other) | Self::Address(other, _)) => {
                let routers = policy.snapshot().workloads.iter().filter(|w| w.router);
                routers
                    .filter(|router| router.port != other.port)
                    .find(|router| shared_vlan(router, other).is_some())
                    .ok_or(TraceError::NoRouter { addr })
            }
            (Self::Outside(_), Self::Outside(_)) => Err(TraceError::BothOutside),
        }
    }
}

impl<'p> Route<'p> {
    fn find(policy: &'p Policy, question: &Question<'_>) -> Result<Self, TraceError> {
        let from = Named::find(policy, question.from)?;
        let to = Named::find(policy, question.to)?;
        let (ingress, egress) = (from.via(policy, to)?, to.via(policy, from)?);
        let (src, dst) = match question.what {
            What::EtherType(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()),
            _ => family(from, to, question).ok_or_else(|| TraceError::NoFamily {
                from: question.from.to_owned(),
                to: question.to.to_owned(),
            })?,
        };
        let vlan = shared_vlan(ingress, egress);
        let tag = match &ingress.vlan {
            VlanMode::Access(_) => None,
            VlanMode::Trunk(vlans) => vlan.or_else(|| vlans.first().copied()),
        };
        let mac = |workload: &Workload| workload.mac.unwrap_or(UNKNOWN_MAC);
        Ok(Self {
            ingress,
            from: question.from.to_owned(),
            to: question.to.to_owned(),
            ends: Ends { eth_src: mac(ingress), eth_dst: mac(egress), src, dst },
            tag,
        })
    }
}

/// A pair of addresses of one family that the service can be spoken in.
fn family(from: Named<'_>, to: Named<'_>, question: &Question<'_>) -> Option<(IpAddr, IpAddr)> {
    let only = match question.what {
        What::Arp | What::Service(Service::Icmp { protocol: ICMP, .. }) => Some(true),
        What::Nd | What::Service(Service::Icmp { .. }) => Some(false),
        What::EtherType(_) | What::Service(_) => None,
    };
    let both = |v4| Some((from.address(v4)?, to.address(v4)?));
    let wanted = |v4: &bool| [only, question.v4].into_iter().flatten().all(|one| one == *v4);
    let pairs: Vec<_> = [true, false].into_iter().filter(wanted).filter_map(both).collect();
    let routed = pairs.iter().find(|(src, dst)| !is_link_local(*src) && !is_link_local(*dst));
    routed.or(pairs.first()).copied()
}

fn shared_vlan(a: &Workload, b: &Workload) -> Option<u16> {
    let vlans = |workload: &Workload| match &workload.vlan {
        VlanMode::Access(vlan) => vec![*vlan],
        VlanMode::Trunk(vlans) => vlans.clone(),
    };
    let others = vlans(b);
    vlans(a).into_iter().find(|vlan| others.contains(vlan))
}

/// The frame that is followed.
fn frame(route: &Route<'_>, what: What, begins: Beginning) -> Result<Vec<u8>, TraceError> {
    let Ends { eth_src, eth_dst, src, dst } = route.ends;
    let frame = match (what, src, dst) {
        (What::Service(service), ..) => first_frame(route.ends, &service, begins)?,
        (What::Arp, IpAddr::V4(src), IpAddr::V4(dst)) => build::arp_request(eth_src, src, dst),
        (What::Nd, IpAddr::V6(src), IpAddr::V6(dst)) => {
            build::neighbor_solicitation(eth_src, src, dst)
        }
        (What::EtherType(number), ..) => build::ethernet(eth_src, eth_dst, number, b"firedoor"),
        (What::Arp | What::Nd, ..) => {
            return Err(TraceError::NoFamily { from: route.from.clone(), to: route.to.clone() });
        }
    };
    Ok(build::tagged(frame, route.tag.as_slice()))
}

/// The first frame of a conversation.
fn first_frame(ends: Ends, service: &Service, begins: Beginning) -> Result<Vec<u8>, TraceError> {
    let Beginning { source_port, flags } = begins;
    Ok(match *service {
        Service::Ports { protocol: TCP, first, .. } => build::tcp(ends, source_port, first, flags),
        Service::Ports { protocol: UDP, first, .. } => build::udp(ends, source_port, first, &[]),
        Service::Ports { protocol: SCTP, first, .. } => build::sctp(ends, source_port, first, &[]),
        Service::Icmp { kind, code, .. } => {
            let code = code.unwrap_or_default();
            let header = icmp::Repr { code, ..icmp::Repr::query(kind, source_port, 1) };
            build::icmp_message(ends, header, b"firedoor")
        }
        Service::Protocol(TCP) => return Err(TraceError::NotOneFrame("tcp/8080")),
        Service::Protocol(UDP) => return Err(TraceError::NotOneFrame("udp/53")),
        Service::Protocol(SCTP) => return Err(TraceError::NotOneFrame("sctp/3868")),
        Service::Protocol(ICMP) => return Err(TraceError::NotOneFrame("icmp/echo")),
        Service::Protocol(ICMPV6) => return Err(TraceError::NotOneFrame("icmp6/echo")),
        Service::Protocol(protocol) | Service::Ports { protocol, .. } => {
            build::ip(ends, protocol, b"firedoor")
        }
    })
}

/// The steps, as they are told.
struct Story<'a> {
    policy: &'a Policy,
    route: &'a Route<'a>,
    steps: Vec<Step>,
}

impl Story<'_> {
    fn tell(&mut self, step: &'static str, facts: impl IntoIterator<Item = String>) {
        self.steps.push(Step { step, facts: facts.into_iter().collect() });
    }

    fn receive(&mut self, frame: &[u8]) {
        let Workload { port, name, ifname, .. } = self.route.ingress;
        let tag = self.route.tag.map(|tag| format!(", tagged {tag}")).unwrap_or_default();
        let fact = format!("{} bytes from {name}, port {port} ({ifname}){tag}", frame.len());
        self.tell("Port::receive", [fact]);
    }

    fn extract(&mut self, headers: &Headers) {
        let key = &headers.key;
        let Ends { src, dst, .. } = self.route.ends;
        let what = match headers.kind {
            Kind::NonIp => format!("ethertype {}", condition::ether_type_text(key.ether_type)),
            Kind::Arp { .. } => format!("arp: {src} asks who has {dst}"),
            Kind::Nd(_) => format!("neighbour solicitation: {src} asks who has {dst}"),
            _ => {
                let service = service::conversation_text(key.protocol, key.dst_port);
                format!("{service} from {src} to {dst}")
            }
        };
        let macs = format!("{} to {}", key.eth_src, key.eth_dst);
        self.tell("extract", [what, macs]);
    }

    /// What the slow path consulted, and every rule's part if it asked the ACL.
    fn upcall(&mut self, headers: &Headers, verdict: &Verdict) -> Vec<RulePart> {
        let policy = self.policy;
        let mut facts = Vec::new();
        match admit(policy, headers) {
            Ok(admitted) if admitted.key.vlan != 0 => {
                facts.push(format!("belongs to VLAN {}", admitted.key.vlan));
            }
            Ok(_) => {}
            Err(reason) => {
                self.tell("upcall", [reason.explain().to_owned()]);
                return Vec::new();
            }
        }
        let key = &headers.key;
        let from = self.tag_of(policy.owner(key.src).0, self.route.ingress);
        let receiver = policy.fixed(key.eth_dst).and_then(|port| policy.port(port));
        facts.push(format!("source tag {}: {}", from.0, policy.name_of(from)));
        facts.push(match receiver {
            _ if !is_conversation(headers) => "a question for a MAC address: it goes to whoever \
                has the address, else to the routers of the VLAN, whatever rules say"
                .into(),
            Some(to) => format!("destination MAC is {}'s, port {}", to.name, to.port),
            None => "destination MAC is not known: to the routers of the VLAN".into(),
        });
        let refused_before =
            verdict.drop_reason().filter(|reason| reason.group() != DropGroup::Policy);
        if let Some(reason) = refused_before {
            facts.push(format!("refused before policy is asked: {}", reason.explain()));
            self.tell("upcall", facts);
            return Vec::new();
        }
        if !is_conversation(headers) {
            self.tell("upcall", facts);
            return Vec::new();
        }
        let to = match (policy.owner(key.dst).0, receiver) {
            (_, Some(receiver)) if headers.kind == Kind::NonIp => receiver.tag,
            (Owner::Workload(_, tag) | Owner::Outside(tag), _) => tag,
            (Owner::Unspecified, _) => policy.snapshot().world,
        };
        facts.push(format!("destination tag {}: {}", to.0, policy.name_of(to)));
        let conversation = Conversation {
            from,
            to,
            protocol: key.protocol,
            dst_port: key.dst_port,
            opening: Opening::of(key),
        };
        let (judgement, considered) = policy.acl().explain(&conversation);
        facts.push(match judgement.refusal() {
            None => format!("ACL: allowed by rule {}", policy.rule_name(judgement.cause)),
            Some(DropReason::DefaultDeny) => "ACL: denied by default, no rule allows it".into(),
            Some(reason) => {
                format!("ACL: {} by rule {}", reason.slug(), policy.rule_name(judgement.cause))
            }
        });
        self.tell("upcall", facts);
        rule_parts(policy, &considered, judgement.cause)
    }

    fn tag_of(&self, owner: Owner, ingress: &Workload) -> Tag {
        match owner {
            Owner::Workload(_, tag) => tag,
            Owner::Outside(tag) if ingress.router => tag,
            Owner::Outside(_) | Owner::Unspecified => ingress.tag,
        }
    }

    fn apply(&mut self, verdict: &Verdict, committed: bool) {
        let mut facts = Vec::new();
        if let Some(reason) = verdict.would_drop {
            facts.push(format!("would be dropped as {}: {}", reason.slug(), reason.explain()));
        }
        match verdict.drop_reason() {
            Some(reason) => {
                facts.push(format!("dropped as {}: {}", reason.slug(), reason.explain()));
            }
            None if committed => facts.push("forwarded; the connection is remembered".into()),
            None => facts.push("forwarded".into()),
        }
        // Learning is for finding out what there is; it accuses nobody.
        let is_recorded = !verdict.is_forwarded() || self.policy.mode() != Mode::Learn;
        let is_mirrored = is_recorded
            && verdict.denied().is_some_and(|reason| {
                matches!(reason.group(), DropGroup::Policy | DropGroup::Spoofed)
            });
        if is_mirrored {
            facts.push("mirrored to the capture of denied frames".into());
        }
        self.tell("apply", facts);
    }

    fn transmit(&mut self, receivers: &[PortId]) {
        let facts: Vec<_> = receivers
            .iter()
            .filter_map(|port| self.policy.port(*port))
            .map(|to| format!("to {}, port {} ({})", to.name, to.port, to.ifname))
            .collect();
        if !facts.is_empty() {
            self.tell("Port::transmit", facts);
        }
        self.tell("Port::reclaim", ["its frame is free again".into()]);
    }

    fn end(self, question: &Question<'_>, verdict: &Verdict, rules: Vec<RulePart>) -> Trace {
        let Ends { src, dst, .. } = self.route.ends;
        let has_addresses = !matches!(question.what, What::EtherType(_));
        Trace {
            from: self.route.from.clone(),
            to: self.route.to.clone(),
            service: question.what.text(),
            src: has_addresses.then_some(src),
            dst: has_addresses.then_some(dst),
            forwarded: verdict.is_forwarded(),
            reason: verdict.denied().map(DropReason::slug),
            cause: self.policy.rule_name(verdict.cause).to_owned(),
            steps: self.steps,
            rules,
        }
    }
}

/// One part per rule out of two considerations, in the order in which they come first.
fn rule_parts(policy: &Policy, considered: &[Considered], cause: Cause) -> Vec<RulePart> {
    let mut parts: Vec<RulePart> = Vec::new();
    let mut places = BTreeMap::new();
    for Considered { permission, rule: id, outcome } in considered {
        let Some(rule) = policy.snapshot().rules.get(id.0 as usize) else { continue };
        let place = *places.entry(id).or_insert_with(|| {
            let tier = TIERS.get(usize::from(rule.tier));
            parts.push(RulePart {
                rule: rule.name.clone(),
                action: rule.action,
                tier: tier.map_or_else(|| rule.tier.to_string(), |tier| (*tier).to_owned()),
                priority: rule.priority,
                when: condition::text(&rule.conditions),
                send: "",
                receive: "",
                decides: cause == Cause::Rule(*id),
            });
            parts.len() - 1
        });
        match permission {
            Direction::Egress => parts[place].send = outcome_text(*outcome),
            Direction::Ingress | Direction::Both => parts[place].receive = outcome_text(*outcome),
        }
    }
    parts
}

fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Decides => "decides",
        Outcome::Passes => "passes to the next tier",
        Outcome::Audited => "matches, under audit",
        Outcome::Late => "matches, too late",
        Outcome::PassedOver => "matches, passed over",
        Outcome::OtherDirection => "other direction",
        Outcome::OtherConditions => "other conditions",
        Outcome::OtherService => "other service",
        Outcome::OtherDestination => "other destination",
        Outcome::OtherSource => "other source",
    }
}
