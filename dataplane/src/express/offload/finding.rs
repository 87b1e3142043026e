//! Finding a connection among those that the kernel forwards: by a frame's key, through the slot of the
//! kernel's table that its flow is in. So the kernel's index is the only one there is.

use firedoor_classifier::connections::{Established, ports_of_answer};
use firedoor_classifier::extract::Headers;
use firedoor_classifier::{FlowKey, PortId};

use super::{Flow, Offload, Pair};
use crate::express::members::member_at;
use crate::express::{FlowId, Member};

impl Offload {
    /// The port of an interface.
    pub(in crate::express) fn port_of(&self, ifindex: u32) -> Option<PortId> {
        let is_it = |port: &Option<Member>| port.is_some_and(|member| member.ifindex == ifindex);
        self.ports.iter().position(is_it).and_then(|at| u16::try_from(at).ok()).map(PortId)
    }

    /// Whether a flow is of one of the pairs.
    pub(in crate::express) fn has(&self, flow: &FlowId) -> bool {
        self.pair_of(flow).is_some()
    }

    /// The pair that a frame is of.
    pub(super) fn find(&self, headers: &Headers) -> Option<usize> {
        let member = self.member(headers.key.ingress)?;
        self.pair_of(&flow_id(&headers.key, member))
    }

    /// The pair of a frame's connection, by the direction that the frame is not of.
    pub(super) fn find_by_other(
        &self,
        headers: &Headers,
        established: &Established,
    ) -> Option<usize> {
        let original = established.original;
        let other = if headers.key.ingress == original.ingress {
            turned(&original, established.output)
        } else {
            original
        };
        self.pair_of(&flow_id(&other, self.member(other.ingress)?))
    }

    /// The pair that a flow in the kernel's table is of.
    fn pair_of(&self, id: &FlowId) -> Option<usize> {
        let slot = self.lane.as_ref()?.flows().find(id)?;
        let at = self.by_slot.get(slot.number())?.checked_sub(1)? as usize;
        let is_it = |flow: &Flow| flow.slot == Some(slot) && flow.id == *id;
        self.pair(at)?.sides().into_iter().any(is_it).then_some(at)
    }

    /// Notes which slots the flows of a pair are in.
    pub(super) fn note_slots(&mut self, at: usize) {
        let Some(Some(pair)) = self.pairs.get(at) else { return };
        for slot in pair.sides().into_iter().filter_map(|flow| flow.slot) {
            if self.by_slot.len() <= slot.number() {
                self.by_slot.resize(slot.number() + 1, 0);
            }
            self.by_slot[slot.number()] = at as u32 + 1;
        }
    }

    pub(super) fn member(&self, port: PortId) -> Option<&Member> {
        member_at(&self.ports, port)
    }

    pub(super) fn pair(&self, at: usize) -> Option<&Pair> {
        self.pairs.get(at)?.as_ref()
    }
}

/// The key of the answers to that one, which come in at `ingress`.
pub(in crate::express) fn turned(key: &FlowKey, ingress: PortId) -> FlowKey {
    let [src_port, dst_port] = ports_of_answer(key.protocol, [key.src_port, key.dst_port]);
    FlowKey {
        ingress,
        eth_src: key.eth_dst,
        eth_dst: key.eth_src,
        src: key.dst,
        dst: key.src,
        src_port,
        dst_port,
        ..*key
    }
}

/// The flow of a key, as the program would name it.
pub(in crate::express) fn flow_id(key: &FlowKey, member: &Member) -> FlowId {
    FlowId {
        ingress: member.ifindex,
        src: key.src.to_be_bytes(),
        dst: key.dst.to_be_bytes(),
        src_port: key.src_port.to_be_bytes(),
        dst_port: key.dst_port.to_be_bytes(),
        protocol: key.protocol.into(),
    }
}
