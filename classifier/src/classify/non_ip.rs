//! Frames that are neither IP nor ARP, of an ethertype that some rule names.
//!
//! They have no addresses that could be checked or looked up, so their ends are the workloads at the
//! ports that they come in and go out by. A router's port stands for the router alone: whoever is
//! behind it speaks in its name. There is no connection: an answer needs a rule of its own.

use super::{Destination, Step, Upcall};
use crate::verdict::{DropReason, Verdict};

impl Upcall<'_> {
    pub(super) fn non_ip(&mut self) -> Step<Verdict> {
        let from = self.ingress.tag;
        if self.key.eth_dst.is_multicast() {
            return self.flood_permitted(from, self.vlan.members.iter().copied(), |_| false);
        }
        let to = self.destination()?;
        let Destination::Port(port) = to else {
            return self.flood_permitted(from, self.vlan.routers.iter().copied(), |_| false);
        };
        let Some(receiver) = self.policy.port(port) else {
            return super::drop(DropReason::UnknownDestination);
        };
        let cause = self.permit(from, receiver.tag)?;
        self.deliver(to, cause)
    }
}
