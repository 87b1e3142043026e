//! DHCP (RFC 2131) and DHCPv6 (RFC 8415): anyone may ask a workload marked `dhcp_server`, and only
//! such a workload may answer.
//!
//! Neither takes a rule between workloads of one VLAN. Whatever is for somewhere else is judged as any
//! conversation is, so that nobody's mark is a way out: ports alone make a datagram DHCP.

use std::net::{IpAddr, Ipv4Addr};

use super::{Destination, Step, Upcall};
use crate::key::to_bits;
use crate::policy::Owner;
use crate::snapshot::{Tag, Workload};
use crate::verdict::{Cause, DropReason, Verdict};

impl Upcall<'_> {
    /// From client to server.
    pub(super) fn dhcp_client(&mut self) -> Step<Verdict> {
        let from = self.dhcp_source()?;
        if self.key.eth_dst.is_multicast() {
            return self.ask_dhcp_servers(from);
        }
        let to = self.destination()?;
        if self.is_at_workload(to, |workload| workload.dhcp_server) {
            return self.deliver(to, Cause::Switch);
        }
        self.deliver_permitted(from, to)
    }

    /// From server or relay to client.
    pub(super) fn dhcp_server(&mut self) -> Step<Verdict> {
        if !self.ingress.dhcp_server {
            self.refuse(DropReason::RogueDhcp, Cause::Switch)?;
        }
        let from = self.source()?;
        if self.key.eth_dst.is_multicast() {
            return self.flood_all();
        }
        let to = self.destination()?;
        if self.is_at_workload(to, |_| true) || self.is_to_all_of_one_station(to) {
            return self.deliver(to, Cause::Switch);
        }
        self.deliver_permitted(from, to)
    }

    /// A client without a lease sends from 0.0.0.0.
    fn dhcp_source(&mut self) -> Step<Tag> {
        let unspecified = to_bits(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        if self.key.src == unspecified { Ok(self.ingress.tag) } else { self.source() }
    }

    /// To the VLAN's DHCP servers, and to those routers, as relays, that policy allows.
    fn ask_dhcp_servers(&mut self, from: Tag) -> Step<Verdict> {
        let servers = self.vlan.dhcp_servers.iter();
        let relays = self.vlan.routers.iter().filter(|port| !self.vlan.dhcp_servers.contains(port));
        self.flood_permitted(from, servers.chain(relays).copied(), |workload| workload.dhcp_server)
    }

    /// Whether the frame is for such a workload itself: one that routes too must not be a way out.
    fn is_at_workload(&self, to: Destination, wanted: impl Fn(&Workload) -> bool) -> bool {
        match self.policy.owner(self.key.dst).0 {
            Owner::Workload(port, _) => {
                to == Destination::Port(port) && self.policy.port(port).is_some_and(wanted)
            }
            Owner::Outside(_) | Owner::Unspecified => false,
        }
    }

    /// Whether an answer for a client without an address goes to its MAC alone: it is then sent to
    /// all hosts (RFC 2131 §4.1), which no router passes on.
    fn is_to_all_of_one_station(&self, to: Destination) -> bool {
        self.key.dst == to_bits(IpAddr::V4(Ipv4Addr::BROADCAST))
            && matches!(to, Destination::Port(_))
    }
}
