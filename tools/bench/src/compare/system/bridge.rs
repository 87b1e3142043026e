//! The kernel's bridge, alone and with a stateful nftables policy.

use std::fmt::Write;
use std::fs;

use super::{Missing, Site, System, Up, need};
use crate::compare::error::BuildError;
use crate::compare::policy::Policy;
use crate::compare::tool::{ToolError, tool, tool_with_input};
use crate::compare::topology::Topology;

/// The bridge's name.
const BRIDGE: &str = "fdbr0";
/// Whether IPv4 frames that the bridge forwards pass the hooks of the IP layer (br_netfilter).
const CALL_IPTABLES: &str = "bridge/bridge-nf-call-iptables";

/// The kernel's bridge.
pub(super) struct Bridge;

impl System for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn about(&self) -> &'static str {
        "the kernel's bridge, no policy"
    }

    fn version(&self) -> Result<String, Missing> {
        need(&[("ip", "iproute2"), ("ethtool", "ethtool")])?;
        Ok(format!("Linux {}", kernel()))
    }

    fn takes_policy(&self) -> bool {
        false
    }

    fn up(&self, site: &Site<'_>) -> Result<Up, BuildError> {
        // Without the IP layer's hooks, which some kernels call by default, the bridge is at its
        // best. Where there is no such parameter there are no such calls.
        let _ = site.topology.switch.set(CALL_IPTABLES, "0");
        bridge(site.topology)?;
        Ok(Up::new(()))
    }
}

/// The kernel's bridge with nftables behind it.
pub(super) struct Nft;

impl System for Nft {
    fn name(&self) -> &'static str {
        "bridge+nft"
    }

    fn about(&self) -> &'static str {
        "the kernel's bridge with a stateful nftables policy"
    }

    fn version(&self) -> Result<String, Missing> {
        need(&[("ip", "iproute2"), ("nft", "nftables"), ("ethtool", "ethtool")])?;
        let version = tool(None, "nft", ["--version"]).unwrap_or_default();
        let version = version.split_whitespace().nth(1).unwrap_or("of unknown version");
        Ok(format!("nftables {version}, Linux {}", kernel()))
    }

    fn takes_policy(&self) -> bool {
        true
    }

    fn up(&self, site: &Site<'_>) -> Result<Up, BuildError> {
        bridge(site.topology)?;
        // The bridge's own connection tracking, where the kernel has it.
        let _ = site.topology.switch.set(CALL_IPTABLES, "0");
        let room = Room::for_connections(site.connections);
        if load(site.policy, "bridge", site.topology).is_ok() {
            return Ok(Up::new(room).with_note("connections tracked by nf_conntrack_bridge"));
        }
        site.topology.switch.set(CALL_IPTABLES, "1")?;
        load(site.policy, "ip", site.topology)?;
        Ok(Up::new(room).with_note(
            "connections tracked by br_netfilter: the kernel has no nf_conntrack_bridge",
        ))
    }
}

/// More room in the kernel's connection table, which all namespaces share, until this is dropped.
struct Room {
    before: Option<String>,
}

impl Room {
    /// Makes room for twice as many connections, at least [`Self::LEAST`], if there is less.
    fn for_connections(connections: usize) -> Self {
        let wanted = (2 * connections).max(Self::LEAST);
        let before = fs::read_to_string(Self::LIMIT).ok();
        let before = before.filter(|limit| limit.trim().parse().is_ok_and(|n: usize| n < wanted));
        // Where the limit cannot be raised, connections beyond it are refused, and that shows.
        let raised = before.is_some() && fs::write(Self::LIMIT, wanted.to_string()).is_ok();
        Self { before: before.filter(|_| raised) }
    }

    const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    /// Room for a minute of short connections, which the kernel remembers for two.
    const LEAST: usize = 1 << 21;
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = fs::write(Self::LIMIT, before);
        }
    }
}

/// Plugs all ports into a bridge.
fn bridge(topology: &Topology) -> Result<(), BuildError> {
    let mut batch = format!("link add {BRIDGE} type bridge\nlink set {BRIDGE} up\n");
    for host in &topology.hosts {
        let _ = writeln!(batch, "link set {} master {BRIDGE}", host.port);
    }
    tool_with_input(Some(&topology.switch), "ip", ["-batch", "-"], &batch)?;
    Ok(())
}

fn load(policy: &Policy, family: &str, topology: &Topology) -> Result<(), ToolError> {
    let script = policy.nft(family, topology);
    tool_with_input(Some(&topology.switch), "nft", ["-f", "-"], &script).map(drop)
}

fn kernel() -> String {
    crate::compare::machine::kernel()
}
