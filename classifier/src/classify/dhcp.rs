//! DHCP (RFC 2131) and DHCPv6 (RFC 8415): anyone may ask a workload marked `dhcp_server`, and only
//! such a workload may answer.

use super::{Destination, Step, Upcall};
use crate::key::to_bits;
use crate::policy::Owner;
use crate::snapshot::Tag;
use crate::verdict::{Cause, DropReason, Verdict};

impl Upcall<'_> {
    /// From client to server.
    pub(super) fn dhcp_client(&mut self) -> Step<Verdict> {
        let from = self.dhcp_source()?;
        if self.key.eth_dst.is_multicast() {
            return self.ask_dhcp_servers(from);
        }
        let to = self.destination()?;
        if self.is_at_dhcp_server(to) {
            return self.deliver(to, Cause::Switch);
        }
        let to_tag = self.destination_tag(to)?;
        let cause = self.permit(from, to_tag)?;
        self.deliver(to, cause)
    }

    /// From server or relay to client.
    pub(super) fn dhcp_server(&mut self) -> Step<Verdict> {
        if !self.ingress.dhcp_server {
            self.refuse(DropReason::RogueDhcp, Cause::Switch)?;
        }
        self.source()?;
        if self.key.eth_dst.is_multicast() {
            return self.flood_all();
        }
        let to = self.destination()?;
        self.deliver(to, Cause::Switch)
    }

    /// A client without a lease sends from 0.0.0.0.
    fn dhcp_source(&mut self) -> Step<Tag> {
        let unspecified = to_bits(std::net::IpAddr::from([0, 0, 0, 0]));
        if self.key.src == unspecified { Ok(self.ingress.tag) } else { self.source() }
    }

    /// To the VLAN's DHCP servers, and to those routers, as relays, that policy allows.
    fn ask_dhcp_servers(&mut self, from: Tag) -> Step<Verdict> {
        let servers = self.vlan.dhcp_servers.iter();
        let relays = self.vlan.routers.iter().filter(|port| !self.vlan.dhcp_servers.contains(port));
        self.flood_permitted(from, servers.chain(relays).copied(), |workload| workload.dhcp_server)
    }

    /// Whether the frame is for a DHCP server itself: one that routes too must not be a way out.
    fn is_at_dhcp_server(&self, to: Destination) -> bool {
        match self.policy.owner(self.key.dst).0 {
            Owner::Workload(port, _) => {
                to == Destination::Port(port)
                    && self.policy.port(port).is_some_and(|workload| workload.dhcp_server)
            }
            Owner::Outside(_) | Owner::Unspecified => false,
        }
    }
}
