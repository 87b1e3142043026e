//! The kernel's bridge, alone and with a stateful nftables policy.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use firedoor_dataplane::wakefulness::{DEVICE, keep_awake};

use super::{Missing, Site, System, Up, need, wakes_processors};
use crate::compare::error::{BuildError, building};
use crate::compare::machine;
use crate::compare::policy::Policy;
use crate::compare::scenario::Traffic;
use crate::compare::tool::{ToolError, tool, tool_with_input};
use crate::compare::topology::Topology;

/// The bridge's name.
const IFNAME: &str = "fdbr0";
/// Whether IPv4 frames that the bridge forwards pass the hooks of the IP layer (br_netfilter).
const CALL_IPTABLES: &str = "bridge/bridge-nf-call-iptables";

/// The kernel's bridge.
pub(super) struct Bridge {
    name: &'static str,
    about: &'static str,
    /// Whether nftables judges what it forwards.
    judged: bool,
    /// Whether processors are kept awake for as long as it is up.
    wakes: bool,
}

pub(super) static BRIDGE: Bridge =
    Bridge { name: "bridge", about: "the kernel's bridge, no policy", judged: false, wakes: false };

/// What the bridge's users gain if somebody else keeps processors awake: it cannot do so by itself.
pub(super) static BRIDGE_AWAKE: Bridge = Bridge {
    name: "bridge+awake",
    about: "the same while another program holds /dev/cpu_dma_latency at 0, so that no processor ever halts",
    wakes: true,
    ..BRIDGE
};

pub(super) static BRIDGE_NFT: Bridge = Bridge {
    name: "bridge+nft",
    about: "the kernel's bridge with a stateful nftables policy",
    judged: true,
    wakes: false,
};

impl System for Bridge {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn version(&self) -> Result<String, Missing> {
        need(&[("ip", "iproute2"), ("ethtool", "ethtool")])?;
        let linux = format!("Linux {}", machine::kernel());
        if !self.judged {
            return Ok(linux);
        }
        need(&[("nft", "nftables")])?;
        let version = tool(None, "nft", ["--version"]).unwrap_or_default();
        let version = version.split_whitespace().nth(1).unwrap_or("of unknown version");
        Ok(format!("nftables {version}, {linux}"))
    }

    fn takes_policy(&self) -> bool {
        self.judged
    }

    fn is_for(&self, traffic: Traffic) -> bool {
        !self.wakes || wakes_processors(traffic)
    }

    fn up(&self, site: &Site<'_>) -> Result<Up, BuildError> {
        // Without the IP layer's hooks, which some kernels call by default, the bridge is at its
        // best. Where there is no such parameter there are no such calls.
        let _ = site.topology.switch.set(CALL_IPTABLES, "0");
        plug(site.topology)?;
        match self.judged {
            true => judge(site),
            false if self.wakes => {
                let request = keep_awake(Path::new(DEVICE), 0);
                Ok(Up::new(building("keep processors awake", request)?))
            }
            false => Ok(Up::new(())),
        }
    }
}

/// Loads the policy.
fn judge(site: &Site<'_>) -> Result<Up, BuildError> {
    let room = match site.room {
        Some(room) => Room::of(room),
        None => Room::for_connections(site.connections),
    };
    // The bridge's own connection tracking, where the kernel has it.
    if load(site.policy, "bridge", site.topology).is_ok() {
        return Ok(Up::new(room).with_note("connections tracked by nf_conntrack_bridge"));
    }
    site.topology.switch.set(CALL_IPTABLES, "1")?;
    load(site.policy, "ip", site.topology)?;
    Ok(Up::new(room)
        .with_note("connections tracked by br_netfilter: the kernel has no nf_conntrack_bridge"))
}

/// Another size of the kernel's connection table, which all namespaces share, until this is dropped.
struct Room {
    before: Option<String>,
}

impl Room {
    /// Makes room for twice as many connections, at least [`Self::LEAST`], if there is less.
    fn for_connections(connections: usize) -> Self {
        let wanted = (2 * connections).max(Self::LEAST);
        match fs::read_to_string(Self::LIMIT) {
            Ok(limit) if limit.trim().parse().is_ok_and(|limit: usize| limit < wanted) => {
                Self::of(wanted)
            }
            _ => Self { before: None },
        }
    }

    /// Makes room for just so many.
    fn of(wanted: usize) -> Self {
        let before = fs::read_to_string(Self::LIMIT).ok();
        // Where the limit cannot be changed, more or fewer connections are refused, and that shows.
        let changed = before.is_some() && fs::write(Self::LIMIT, wanted.to_string()).is_ok();
        Self { before: before.filter(|_| changed) }
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
fn plug(topology: &Topology) -> Result<(), BuildError> {
    let mut batch = format!("link add {IFNAME} type bridge\nlink set {IFNAME} up\n");
    for host in &topology.hosts {
        let _ = writeln!(batch, "link set {} master {IFNAME}", host.port);
    }
    tool_with_input(Some(&topology.switch), "ip", ["-batch", "-"], &batch)?;
    Ok(())
}

fn load(policy: &Policy, family: &str, topology: &Topology) -> Result<(), ToolError> {
    let script = policy.nft(family, topology);
    tool_with_input(Some(&topology.switch), "nft", ["-f", "-"], &script).map(drop)
}
