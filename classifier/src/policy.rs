//! A policy: one snapshot, compiled for judging. Immutable; shared by all workers.

mod addresses;
mod validate;

use std::net::IpAddr;

use hashbrown::HashMap;
use ipnet::IpNet;

use crate::acl::Acl;
use crate::key::{FlowKey, from_bits, to_bits};
use crate::mac::MacAddr;
use crate::snapshot::{Mode, PortId, Rule, RuleId, Settings, Snapshot, Tag, VlanMode, Workload};
use crate::verdict::Cause;

pub use addresses::{Addresses, Owner, Piece};
pub use validate::PolicyError;

/// One snapshot and the tables built of it.
#[derive(Clone, Debug)]
pub struct Policy {
    snapshot: Snapshot,
    /// Position in the snapshot's workloads, by port.
    ports: Vec<Option<u16>>,
    /// Port by fixed MAC address.
    macs: HashMap<MacAddr, PortId>,
    addresses: Addresses,
    vlans: HashMap<u16, Vlan>,
    /// Ethertypes that rules name.
    ether_types: Vec<u16>,
    acl: Acl,
}

/// Who is in a VLAN. All lists are in order of port number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vlan {
    /// Every port that carries it.
    pub members: Vec<PortId>,
    /// Routers among them.
    pub routers: Vec<PortId>,
    /// DHCP servers among them.
    pub dhcp_servers: Vec<PortId>,
}

impl Vlan {
    /// Whether `port` carries it.
    pub fn has(&self, port: PortId) -> bool {
        self.members.binary_search(&port).is_ok()
    }
}

impl Policy {
    /// Compiles a snapshot.
    ///
    /// # Errors
    /// If the snapshot breaks one of its invariants.
    pub fn build(snapshot: Snapshot) -> Result<Self, PolicyError> {
        validate::validate(&snapshot)?;
        Ok(Self {
            ports: ports(&snapshot.workloads),
            macs: snapshot.workloads.iter().filter_map(|w| Some((w.mac?, w.port))).collect(),
            addresses: Addresses::new(pieces(&snapshot), snapshot.world),
            vlans: vlans(&snapshot.workloads),
            ether_types: ether_types(&snapshot.rules),
            acl: Acl::new(&snapshot),
            snapshot,
        })
    }

    /// The snapshot it was built from.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Its version.
    pub fn epoch(&self) -> u64 {
        self.snapshot.epoch
    }

    /// Makes it another version of the same policy, without compiling it again.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.snapshot.epoch = epoch;
    }

    /// What happens to frames that it denies.
    pub fn mode(&self) -> Mode {
        self.snapshot.mode
    }

    /// Limits and timeouts.
    pub fn settings(&self) -> &Settings {
        &self.snapshot.settings
    }

    /// The rules, compiled.
    pub fn acl(&self) -> &Acl {
        &self.acl
    }

    /// The workload at `port`, if there is one. Cost: two array reads.
    pub fn port(&self, port: PortId) -> Option<&Workload> {
        let at = (*self.ports.get(usize::from(port.0))?)?;
        self.snapshot.workloads.get(usize::from(at))
    }

    /// The workload of this name. Cost: a walk over all.
    pub fn workload(&self, name: &str) -> Option<&Workload> {
        self.snapshot.workloads.iter().find(|workload| workload.name == name)
    }

    /// The port of the workload that has this MAC address by snapshot.
    pub fn fixed(&self, mac: MacAddr) -> Option<PortId> {
        self.macs.get(&mac).copied()
    }

    /// Whom an address (as in [`FlowKey::src`]) belongs to, and how many of its leading bits that
    /// answer depends on.
    pub fn owner(&self, addr: u128) -> (Owner, u8) {
        self.addresses.owner(addr)
    }

    /// Whom addresses belong to.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Who is in a VLAN; `None` if no port carries it.
    pub fn vlan(&self, vlan: u16) -> Option<&Vlan> {
        self.vlans.get(&vlan)
    }

    /// Whether some rule names this ethertype. Cost: a walk over those that are named.
    pub fn names_ether_type(&self, ether_type: u16) -> bool {
        self.ether_types.contains(&ether_type)
    }

    /// What a tag stands for.
    pub fn name_of(&self, tag: Tag) -> &str {
        self.snapshot.tags.get(tag.0 as usize).map_or("unknown", |info| &info.name)
    }

    /// The name of the workload at `port`.
    pub fn workload_name(&self, port: PortId) -> &str {
        self.port(port).map_or("unknown", |workload| &workload.name)
    }

    /// The rule that decided; `default` or `switch` where none did.
    pub fn rule_name(&self, cause: Cause) -> &str {
        match cause {
            Cause::Rule(RuleId(id)) => {
                self.snapshot.rules.get(id as usize).map_or("unknown", |rule| &rule.name)
            }
            Cause::Default => "default",
            Cause::Switch => "switch",
        }
    }

    /// Who sent a frame, for people: the workload at its port, or for a router that forwards for
    /// others, the group its source address is in.
    pub fn source_name(&self, key: &FlowKey) -> String {
        match (self.port(key.ingress), self.owner(key.src).0) {
            (Some(workload), Owner::Outside(tag)) if workload.router => {
                self.outside_name(tag, key.src)
            }
            (Some(workload), _) => workload.name.clone(),
            (None, _) => self.address_name(key.src),
        }
    }

    /// Whom a frame is for, for people: a workload, a group, or an address where neither is known.
    pub fn destination_name(&self, key: &FlowKey) -> String {
        if key.dst == 0
            && let Some(port) = self.fixed(key.eth_dst)
        {
            return self.workload_name(port).to_owned();
        }
        if key.dst == 0 { key.eth_dst.to_string() } else { self.address_name(key.dst) }
    }

    fn address_name(&self, addr: u128) -> String {
        match self.owner(addr).0 {
            Owner::Workload(port, _) => self.workload_name(port).to_owned(),
            Owner::Outside(tag) => self.outside_name(tag, addr),
            Owner::Unspecified => from_bits(addr).to_string(),
        }
    }

    fn outside_name(&self, tag: Tag, addr: u128) -> String {
        if tag == self.snapshot.world {
            from_bits(addr).to_string()
        } else {
            self.name_of(tag).to_owned()
        }
    }
}

fn ports(workloads: &[Workload]) -> Vec<Option<u16>> {
    let len = workloads.iter().map(|workload| usize::from(workload.port.0) + 1).max();
    let mut ports = vec![None; len.unwrap_or(0)];
    for (at, workload) in workloads.iter().enumerate() {
        ports[usize::from(workload.port.0)] = Some(at as u16);
    }
    ports
}

/// `::` and 0.0.0.0 in the 128 bits of the flow key.
const UNSPECIFIED: [u128; 2] = [0, 0xffff << 32];

/// What owns addresses, the stronger of two equal claims last.
fn pieces(snapshot: &Snapshot) -> Vec<Piece> {
    // A group such as ::/0 is about IPv6. Without this piece it would own the mapped IPv4 addresses.
    let ipv4 = Piece {
        start: to_bits(IpAddr::from([0, 0, 0, 0])),
        len: 96,
        owner: Owner::Outside(snapshot.world),
    };
    let groups = snapshot.prefixes.iter().map(|prefix| {
        let (start, len) = bits_of(prefix.net);
        Piece { start, len, owner: Owner::Outside(prefix.tag) }
    });
    let workloads = snapshot.workloads.iter().flat_map(|workload| {
        workload.addresses.iter().map(|&addr| Piece {
            start: to_bits(addr),
            len: 128,
            owner: Owner::Workload(workload.port, workload.tag),
        })
    });
    let unspecified = UNSPECIFIED.map(|start| Piece { start, len: 128, owner: Owner::Unspecified });
    std::iter::once(ipv4).chain(groups).chain(workloads).chain(unspecified).collect()
}

/// A range of addresses in the 128 bits of the flow key.
fn bits_of(net: IpNet) -> (u128, u8) {
    let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
    (to_bits(net.network()), net.prefix_len() + mapped)
}

fn ether_types(rules: &[Rule]) -> Vec<u16> {
    let mut named: Vec<_> = rules.iter().filter_map(|rule| rule.conditions.ether_type).collect();
    named.sort_unstable();
    named.dedup();
    named
}

fn vlans(workloads: &[Workload]) -> HashMap<u16, Vlan> {
    let mut vlans: HashMap<u16, Vlan> = HashMap::new();
    let mut by_port: Vec<_> = workloads.iter().collect();
    by_port.sort_by_key(|workload| workload.port);
    for workload in by_port {
        let carried = match &workload.vlan {
            VlanMode::Access(vlan) => std::slice::from_ref(vlan),
            VlanMode::Trunk(vlans) => vlans,
        };
        for &vlan in carried {
            let vlan = vlans.entry(vlan).or_default();
            vlan.members.push(workload.port);
            if workload.router {
                vlan.routers.push(workload.port);
            }
            if workload.dhcp_server {
                vlan.dhcp_servers.push(workload.port);
            }
        }
    }
    vlans
}

#[cfg(test)]
mod tests;
