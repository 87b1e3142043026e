//! What a lab consists of, worked out from a config before anything is made.
//!
//! Names of namespaces follow from the names in the config, so that people find them in
//! `ip netns` and nothing has to be looked up to remove them.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use firedoor_classifier::MacAddr;
use firedoor_classifier::snapshot::Kind;
use firedoor_control::compile::Planned;
use ipnet::IpNet;

/// Longest name of a namespace that is not shortened, in bytes.
const MAX_NETNS_NAME: usize = 40;

/// The interface inside every container.
pub const CONTAINER_IFNAME: &str = "eth0";

/// Name of the namespace that the switch of this name runs in.
pub fn switch_netns(switch: &str) -> String {
    shortened(format!("fd-{switch}"))
}

/// Name of the namespace of one container workload.
pub fn workload_netns(switch: &str, workload: &str) -> String {
    shortened(format!("fd-{switch}-{workload}"))
}

fn shortened(name: String) -> String {
    if name.len() <= MAX_NETNS_NAME {
        return name;
    }
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let kept: String = name.chars().take(MAX_NETNS_NAME - 9).collect();
    format!("{kept}.{:08x}", hasher.finish() as u32)
}

/// One workload, as the lab makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The workload's name.
    pub workload: String,
    /// What is made for it: a namespace with a veth, a tap, or nothing.
    pub kind: Kind,
    /// Its interface in the switch's namespace.
    pub ifname: String,
    /// Its Ethernet address; `None` leaves the kernel's choice.
    pub mac: Option<MacAddr>,
    /// Its addresses, with the networks they are in.
    pub addresses: Vec<IpNet>,
    /// Routers in its networks, at most one per address family.
    pub gateways: Vec<IpAddr>,
    /// It forwards for others.
    pub router: bool,
}

impl Host {
    /// The address that `self` reaches `other` at in one family: on a network that both are in.
    pub fn address_of<'a>(&self, other: &'a Self, v6: bool) -> Option<IpNet> {
        let shared = |net: &&'a IpNet| {
            net.addr().is_ipv6() == v6 && self.addresses.iter().any(|own| own.contains(&net.addr()))
        };
        other.addresses.iter().find(shared).copied()
    }
}

/// The hosts of a compiled config, in its order.
pub fn hosts(plan: &[Planned]) -> Vec<Host> {
    let mut hosts: Vec<Host> = plan
        .iter()
        .map(|planned| Host {
            workload: planned.name.clone(),
            kind: planned.kind,
            ifname: planned.ifname.clone(),
            mac: planned.mac,
            addresses: planned.nets.clone(),
            gateways: Vec::new(),
            router: planned.router,
        })
        .collect();
    let routers: Vec<Host> = hosts.iter().filter(|host| host.router).cloned().collect();
    for host in hosts.iter_mut().filter(|host| !host.router) {
        let gateway = |v6| routers.iter().find_map(|router| host.address_of(router, v6));
        host.gateways =
            [gateway(false), gateway(true)].into_iter().flatten().map(|n| n.addr()).collect();
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_until_they_get_long() {
        assert_eq!(workload_netns("lab0", "web"), "fd-lab0-web");
        let [a, b] =
            ["a", "b"].map(|end| workload_netns("lab0", &format!("{}{end}", "x".repeat(60))));
        assert_ne!(a, b);
        assert_eq!(a.len(), MAX_NETNS_NAME);
    }

    #[test]
    fn hosts_reach_each_other_only_on_a_shared_network() {
        let host = |addresses: &[&str]| Host {
            workload: String::new(),
            kind: Kind::Container,
            ifname: String::new(),
            mac: None,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            gateways: Vec::new(),
            router: false,
        };
        let (a, b) = (host(&["10.0.0.1/24", "fd00::1/64"]), host(&["10.0.1.2/24", "fd00::2/64"]));
        assert_eq!(a.address_of(&b, false), None);
        assert_eq!(a.address_of(&b, true), Some("fd00::2/64".parse().unwrap()));
    }
}
