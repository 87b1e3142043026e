//! What a data plane finds when it starts and the last one has not ended in order: the kernel still
//! forwards by the verdicts that it was given.
//!
//! The maps say all there is to know: each flow's verdict, whose answers it is, the TCP flags that the
//! connection began with, and how far TCP has come. From that the first frame's key is put together,
//! and every connection is judged again as that frame would be, by the policy in force, before the
//! switch takes it for its own. What policy refuses, what has lost its port, and what cannot be read
//! is removed. What stays is forwarded all the while: an entry that says what would be written now is
//! left as it is.
//!
//! A flow with frames under way when the last process ended begins anew: they are lost.

use std::sync::Arc;

use firedoor_classifier::extract::Headers;
use firedoor_classifier::mac::MacAddr;
use firedoor_classifier::wire::ethernet::ether_type;
use firedoor_classifier::{FlowKey, Nanos, Pipeline, PortId};
use hashbrown::HashMap;

use super::offload::Offload;
use super::{FlowId, Inherited};
use crate::path::Path;

/// A connection that the kernel forwards for a process that is gone.
#[derive(Clone, Copy, Debug)]
pub struct Legacy {
    /// The direction in which it began.
    original: FlowId,
    /// Interface that this direction leaves by.
    egress: u32,
    /// What is in the table of it: at least one.
    flows: [Option<Inherited>; 2],
}

impl Legacy {
    /// Puts the flows together that are of one connection.
    pub fn of_flows(flows: Vec<Inherited>) -> Arc<[Self]> {
        let mut connections: HashMap<FlowId, Self> = HashMap::with_capacity(flows.len());
        for flow in flows {
            let (ingress, egress) = (flow.id.ingress, flow.verdict.egress.ifindex());
            let (original, egress) = if flow.verdict.is_reply {
                (flow.id.turned(egress), ingress)
            } else {
                (flow.id, egress)
            };
            let connection = connections.entry(original).or_insert(Self {
                original,
                egress,
                flows: [None, None],
            });
            connection.flows[usize::from(flow.verdict.is_reply)] = Some(flow);
        }
        connections.into_values().collect()
    }

    fn flows(&self) -> impl Iterator<Item = Inherited> {
        self.flows.into_iter().flatten()
    }

    /// Frames that each side has sent for certain.
    fn frames(&self) -> [u64; 2] {
        self.flows.map(|flow| flow.is_some().into())
    }

    /// Key of the frame that began it, if it came in by that port.
    fn key(&self, ingress: PortId) -> Option<FlowKey> {
        let FlowId { src, dst, src_port, dst_port, protocol, .. } = self.original;
        let verdict = self.flows().next()?.verdict;
        let macs = [verdict.eth_src, verdict.eth_dst].map(MacAddr);
        let [eth_src, eth_dst] = if verdict.is_reply { [macs[1], macs[0]] } else { macs };
        let (src, dst) = (u128::from_be_bytes(src), u128::from_be_bytes(dst));
        let is_ipv4 = src >> 32 == 0xffff;
        Some(FlowKey {
            ingress,
            ether_type: if is_ipv4 { ether_type::IPV4 } else { ether_type::IPV6 },
            protocol: u8::try_from(protocol).ok()?,
            tcp_flags: verdict.tcp_flags,
            eth_dst,
            eth_src,
            src,
            dst,
            src_port: u16::from_be_bytes(src_port),
            dst_port: u16::from_be_bytes(dst_port),
            ..FlowKey::default()
        })
    }
}

impl Path {
    /// Takes over those of the connections that this worker judges.
    pub(crate) fn inherit(&mut self, connections: &[Legacy], now: Nanos) {
        self.refresh_offload(now);
        for connection in connections {
            // Which port it is does not matter here.
            let Some(key) = connection.key(PortId::default()) else { continue };
            if self.takes_over(&Headers::of_key(key)) {
                self.offload.inherit(connection, &mut self.pipeline, now);
            }
        }
    }

    /// Whether a connection that nobody owns yet is to be this worker's.
    fn takes_over(&mut self, headers: &Headers) -> bool {
        let Self { pipeline, peers, .. } = self;
        let wish = |number| peers.any_of(number);
        let Some(claims) = pipeline.claims() else { return true };
        let Some(bucket) = claims.bucket_of(headers, |_| ()) else { return true };
        claims.owner_of(bucket, wish, |_| true) == peers.me()
    }
}

impl Offload {
    /// Takes over a connection, or removes its flows from the kernel.
    fn inherit(&mut self, connection: &Legacy, pipeline: &mut Pipeline, now: Nanos) {
        let ends = [connection.original.ingress, connection.egress].map(|end| self.port_of(end));
        if let [Some(ingress), Some(output)] = ends
            && let Some(key) = connection.key(ingress)
            && let Some(established) = pipeline.adopt(&key, output, connection.frames(), now)
            && let Some(at) = self.begin(&established, pipeline, now)
        {
            self.credit_earlier(at, pipeline, now);
        }
        for flow in connection.flows() {
            if !self.has(&flow.id) {
                self.forget(&flow);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::express::{FlowEgress, FlowVerdict, Slot};

    fn flow(id: FlowId, egress: u32, is_reply: bool) -> Inherited {
        let [eth_src, eth_dst] = if is_reply { [[2; 6], [1; 6]] } else { [[1; 6], [2; 6]] };
        let egress = FlowEgress::Peer(egress);
        let verdict = FlowVerdict {
            eth_dst,
            eth_src,
            egress,
            max_frame: 1514,
            rule: 0,
            epoch: 1,
            is_reply,
            tcp_flags: 2,
        };
        Inherited { id, slot: Slot::default(), verdict }
    }

    #[test]
    fn either_flow_tells_of_the_first_frame() {
        let [a, b]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let there = flow(FlowId::new(7, 6, (a, 40_000), (b, 80)), 8, false);
        let back = flow(FlowId::new(8, 6, (b, 80), (a, 40_000)), 7, true);
        assert_eq!((there.id.turned(8), back.id.turned(7)), (back.id, there.id));
        let whole = Legacy::of_flows(vec![back, there]);
        assert_eq!(whole.len(), 1);
        let keys = [vec![back, there], vec![there], vec![back]].map(|flows| {
            let [legacy] = *Legacy::of_flows(flows) else { panic!("one connection") };
            assert_eq!((legacy.original.ingress, legacy.egress), (7, 8));
            legacy.key(PortId(3)).unwrap()
        });
        assert_eq!(keys, [keys[0]; 3]);
        let key = keys[0];
        assert_eq!((key.eth_src, key.eth_dst), (MacAddr([1; 6]), MacAddr([2; 6])));
        assert_eq!((key.src_port, key.dst_port, key.tcp_flags), (40_000, 80, 2));
        assert_eq!((key.ingress, key.ether_type), (PortId(3), ether_type::IPV4));
    }

    #[test]
    fn a_ping_began_with_a_request_whichever_flow_tells_of_it() {
        let [a, b]: [IpAddr; 2] = ["fd00::1", "fd00::2"].map(|ip| ip.parse().unwrap());
        let there = flow(FlowId::new(7, 58, (a, 77), (b, 128 << 8)), 8, false);
        let back = flow(FlowId::new(8, 58, (b, 77), (a, 129 << 8)), 7, true);
        for flows in [vec![there, back], vec![there], vec![back]] {
            let [legacy] = *Legacy::of_flows(flows) else { panic!("one connection") };
            let key = legacy.key(PortId(3)).unwrap();
            assert_eq!((key.src_port, key.dst_port), (77, 128 << 8));
        }
    }
}
