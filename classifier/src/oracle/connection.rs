//! Connections as a list: every frame of one is judged as its first was, now.

use super::{Frame, Oracle, Ruling};
use crate::extract::{Embedded, Headers, Kind};
use crate::key::FlowKey;
use crate::snapshot::{Mode, PortId};
use crate::verdict::{Cause, DropGroup, DropReason};

/// ICMP and ICMPv6 types of requests that are answered, and of the answers.
const QUERIES: [(u8, u8, u8); 3] = [(1, 8, 0), (1, 13, 14), (58, 128, 129)];

#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    /// Key of its first frame.
    original: FlowKey,
    /// The port that its first frame went to.
    replier: PortId,
}

impl Oracle {
    /// A frame from one station to another.
    pub(super) fn judge_conversation(&mut self, frame: &Frame<'_>) -> Ruling {
        let key = &frame.key;
        let found = self.connections.iter().position(|connection| {
            let Connection { original, replier } = connection;
            let forth = is_same(key, original)
                && (key.ingress, key.eth_src) == (original.ingress, original.eth_src)
                && key.eth_dst == original.eth_dst;
            let back = is_answer(key, original)
                && (key.ingress, key.eth_src) == (*replier, original.eth_dst)
                && key.eth_dst == original.eth_src;
            forth || back
        });
        match found {
            Some(at) => self.go_on(frame, at),
            None => self.begin(frame),
        }
    }

    fn go_on(&mut self, frame: &Frame<'_>, at: usize) -> Ruling {
        let Connection { original, replier } = self.connections[at];
        let ruling = self.rule_original(frame, &original);
        let Ok(outputs) = &ruling.fate else {
            self.connections.remove(at);
            return ruling;
        };
        let output = match outputs.as_slice() {
            [output] => *output,
            // Several routers may know it; the one that it went to is as good as any.
            outputs if outputs.contains(&replier) => replier,
            _ => {
                self.connections.remove(at);
                return self.begin(frame);
            }
        };
        self.connections[at].replier = output;
        if is_same(&frame.key, &original) {
            Ruling { fate: Ok(vec![output]), ..ruling }
        } else if output == replier {
            Ruling { fate: Ok(vec![original.ingress]), ..ruling }
        } else {
            self.begin(frame)
        }
    }

    fn begin(&mut self, frame: &Frame<'_>) -> Ruling {
        let ruling = self.rule(frame);
        let Ok(outputs) = &ruling.fate else { return ruling };
        let enforced = self.snapshot.mode == Mode::Enforce;
        let is_syn = frame.key.tcp_flags & 0b1_0110 == 0b10;
        if frame.key.protocol == 6 && !is_syn && enforced && !self.snapshot.settings.midstream {
            return Ruling::drop(DropReason::TcpNotSyn);
        }
        if ruling.would_drop.is_some_and(|reason| reason.group() == DropGroup::Spoofed) {
            return ruling;
        }
        if let ([replier], true) = (outputs.as_slice(), may_ask(&frame.key)) {
            let original = frame.key;
            let replier = *replier;
            self.connections.retain(|old| !is_one_conversation(&old.original, &original));
            self.connections.push(Connection { original, replier });
        }
        ruling
    }

    /// What policy says, now, of a connection's first frame.
    fn rule_original(&self, frame: &Frame<'_>, original: &FlowKey) -> Ruling {
        let Some(sender) = self.workload(original.ingress) else {
            return Ruling::drop(DropReason::NoPolicy);
        };
        if !super::carries(sender, original.vlan) {
            return Ruling::drop(DropReason::VlanNotAllowed);
        }
        let headers = Headers { key: *original, kind: Kind::Plain, ..*frame.headers };
        self.rule(&Frame { key: *original, headers: &headers, sender, ..*frame })
    }

    /// Where an ICMP error may go, and who allowed the connection that it is about. If policy denies
    /// that connection now, it is forgotten.
    pub(super) fn related(&mut self, frame: &Frame<'_>) -> Option<(PortId, Cause)> {
        let Kind::IcmpError(embedded) = frame.headers.kind else { return None };
        let quoted = quoted_key(&embedded, frame.key.vlan);
        let at = self.connections.iter().position(|connection| {
            is_same(&quoted, &connection.original) || is_answer(&quoted, &connection.original)
        })?;
        let Connection { original, replier } = self.connections[at];
        let ruling = self.rule_original(frame, &original);
        let Ok(outputs) = &ruling.fate else {
            self.connections.remove(at);
            return None;
        };
        let to = match outputs.as_slice() {
            _ if is_same(&quoted, &original) => original.ingress,
            [output] => *output,
            outputs => *outputs.iter().find(|&&port| port == replier)?,
        };
        let receiver = crate::key::from_bits(embedded.dst);
        let from_there = frame.sender.addresses.contains(&receiver);
        let is_related = frame.key.dst == embedded.src && (from_there || frame.sender.router);
        is_related.then_some((to, ruling.cause))
    }
}

fn quoted_key(embedded: &Embedded, vlan: u16) -> FlowKey {
    let &Embedded { protocol, src, dst, src_port, dst_port, .. } = embedded;
    FlowKey { vlan, protocol, src, dst, src_port, dst_port, ..FlowKey::default() }
}

/// Whether a frame goes the way of the connection's first.
fn is_same(key: &FlowKey, original: &FlowKey) -> bool {
    let ends = |key: &FlowKey| (key.vlan, key.protocol, key.src, key.dst, ports(key));
    ends(key) == ends(original)
}

/// Whether a frame answers the connection's first. Nothing that goes to its own sender is answered.
fn is_answer(key: &FlowKey, original: &FlowKey) -> bool {
    if is_same(key, original) {
        return false;
    }
    let (key_vlan, key_ends) = ((key.vlan, key.protocol), (key.dst, key.src));
    if (key_vlan, key_ends) != ((original.vlan, original.protocol), (original.src, original.dst)) {
        return false;
    }
    match query(original) {
        Some((_, reply)) => {
            key.dst_port == u16::from(reply) << 8 && key.src_port == original.src_port
        }
        None => {
            let (from, to) = ports(key);
            (to, from) == ports(original)
        }
    }
}

/// Whether two first frames would make the same connection.
fn is_one_conversation(one: &FlowKey, other: &FlowKey) -> bool {
    is_same(one, other) || query(one).is_none() && is_answer(one, other)
}

fn ports(key: &FlowKey) -> (u16, u16) {
    match key.protocol {
        1 | 6 | 17 | 58 | 132 => (key.src_port, key.dst_port),
        _ => (0, 0),
    }
}

/// The types of request and reply, if this is a request.
fn query(key: &FlowKey) -> Option<(u8, u8)> {
    let matching = QUERIES.iter().find(|&&(protocol, request, _)| {
        (protocol, u16::from(request) << 8) == (key.protocol, key.dst_port)
    });
    matching.map(|&(_, request, reply)| (request, reply))
}

/// Whether a frame may begin a connection, flags apart.
fn may_ask(key: &FlowKey) -> bool {
    !matches!(key.protocol, 1 | 58) || query(key).is_some()
}
