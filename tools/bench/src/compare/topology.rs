//! The wires of a comparison: a namespace for the system under test, and hosts around it.
//!
//! Port 0 is the sender's, port 1 the receiver's, port 2, where there is one, the attacker's; the
//! rest are plugged in and silent, and share one namespace. Every run builds its own wires and
//! removes them, so that no system finds what another left behind: an XDP program that turned an
//! offload off, a learned address, a tracked connection.
//!
//! Namespaces are named after the process that made them. [`sweep`] removes those of dead ones,
//! and ends what still runs in them.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use firedoor_classifier::MacAddr;
use firedoor_dataplane::link::{Netlink, VethEnd};
use firedoor_lab::address;
use firedoor_lab::netns::Netns;
use firedoor_lab::state::ran_for;
use ipnet::{IpNet, Ipv4Net};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::{BuildError, building};
use super::tool::tool;

/// What the names of all namespaces begin with; the process id follows.
const PREFIX: &str = "fd-bench-";
/// A host's end of its wire, in its own namespace.
pub(super) const HOST_IFNAME: &str = "fdh0";
/// Length of the network prefix that all hosts share.
const PREFIX_LEN: u8 = 16;

/// Position of the sender's port.
pub(super) const SENDER: usize = 0;
/// Position of the receiver's port.
pub(super) const RECEIVER: usize = 1;
/// Position of the attacker's port.
pub(super) const ATTACKER: usize = 2;

/// One port of the switch, and who is at its other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// What policy calls it.
    pub name: String,
    /// The switch's end of the wire.
    pub port: String,
    /// The host's end of the wire.
    pub ifname: String,
    /// The host's Ethernet address.
    pub mac: MacAddr,
    /// The host's IPv4 address.
    pub ip: Ipv4Addr,
}

impl Host {
    /// The host at the port of this position.
    pub(super) fn at(position: usize) -> Self {
        let [high, low] = u16::try_from(position + 1).unwrap_or(u16::MAX).to_be_bytes();
        let (name, ifname) = match position {
            SENDER => ("sender".to_owned(), HOST_IFNAME.to_owned()),
            RECEIVER => ("receiver".to_owned(), HOST_IFNAME.to_owned()),
            ATTACKER => ("attacker".to_owned(), HOST_IFNAME.to_owned()),
            _ => (format!("silent-{position}"), format!("fdh{position}")),
        };
        Self {
            name,
            port: format!("fdp{position}"),
            ifname,
            mac: MacAddr([0x02, 0xfd, 0, 0, high, low]),
            ip: Ipv4Addr::new(10, 60, high, low),
        }
    }
}

/// Namespaces and wires, removed when dropped.
#[derive(Debug)]
pub struct Topology {
    /// Where the system under test runs.
    pub switch: Netns,
    /// The hosts, by position of their port.
    pub hosts: Vec<Host>,
    /// The namespaces of sender, receiver and attacker, by position.
    inside: Vec<Netns>,
    names: Names,
}

impl Topology {
    /// Builds a topology of `ports` ports, at least two.
    ///
    /// # Errors
    /// If a namespace or an interface cannot be made; then nothing is left.
    pub fn build(ports: usize) -> Result<Self, BuildError> {
        // From here on, whatever fails, these are removed.
        let mut names = Names(Vec::new());
        let hosts: Vec<Host> = (0..ports.max(2)).map(Host::at).collect();
        let switch = names.create("switch")?;
        switch.run(|| set_up("lo"))??;
        let inside = hosts.iter().take(ATTACKER + 1);
        let inside: Vec<Netns> =
            inside.map(|host| names.create(&host.name)).collect::<Result<_, _>>()?;
        let silent = match hosts.len() > inside.len() {
            true => Some(names.create("silent")?),
            false => None,
        };
        for (position, host) in hosts.iter().enumerate() {
            let Some(netns) = inside.get(position).or(silent.as_ref()) else { continue };
            connect(&switch, netns, host)?;
        }
        for (netns, host) in inside.iter().zip(&hosts) {
            netns.run(|| set_up_host(host))??;
            widen_ports(netns)?;
        }
        Ok(Self { switch, hosts, inside, names })
    }

    /// The sender.
    pub fn sender(&self) -> &Host {
        &self.hosts[SENDER]
    }

    /// The receiver.
    pub fn receiver(&self) -> &Host {
        &self.hosts[RECEIVER]
    }

    /// The attacker, in a topology of three ports or more.
    pub fn attacker(&self) -> Option<&Host> {
        self.hosts.get(ATTACKER)
    }

    /// The namespace of the sender, the receiver or the attacker.
    pub fn inside(&self, position: usize) -> Option<&Netns> {
        self.inside.get(position)
    }

    /// The sender's namespace.
    pub fn sender_netns(&self) -> &Netns {
        &self.inside[SENDER]
    }

    /// The receiver's namespace.
    pub fn receiver_netns(&self) -> &Netns {
        &self.inside[RECEIVER]
    }

    /// How long the processes of the system under test ran so far, those in its namespace.
    pub fn ran_in_switch(&self) -> Duration {
        processes_in(self.switch.name()).filter_map(|pid| ran_for(pid).ok()).sum()
    }

    /// Makes the hosts compute transport checksums themselves, for systems that neither keep the
    /// kernel's promise to complete them nor keep it themselves.
    ///
    /// # Errors
    /// If `ethtool` is missing or fails.
    pub fn complete_checksums(&self) -> Result<(), BuildError> {
        self.set_offload("tx", "off")
    }

    /// Lets the hosts take frames that were redirected to the other end of their wire: a veth does so
    /// only where its far end polls (NAPI), which generic receive offload turns on.
    ///
    /// # Errors
    /// If `ethtool` is missing or fails.
    pub fn receive_redirected(&self) -> Result<(), BuildError> {
        self.set_offload("gro", "on")
    }

    fn set_offload(&self, feature: &str, value: &str) -> Result<(), BuildError> {
        for (netns, host) in self.inside.iter().zip(&self.hosts) {
            tool(Some(netns), "ethtool", ["-K", &host.ifname, feature, value])?;
        }
        Ok(())
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        // The switch first: nothing is to find its wires torn while it still runs.
        self.names.remove();
    }
}

/// Namespaces by name, removed when dropped.
#[derive(Debug)]
struct Names(Vec<String>);

impl Names {
    fn create(&mut self, role: &str) -> Result<Netns, BuildError> {
        let name = format!("{PREFIX}{}-{role}", std::process::id());
        let netns = Netns::create(&name)?;
        self.0.push(name);
        for conf in ["all", "default"] {
            // Nobody speaks unless asked to: idle is idle.
            netns.set(&format!("ipv6/conf/{conf}/disable_ipv6"), "1")?;
        }
        Ok(netns)
    }

    fn remove(&mut self) {
        for name in self.0.drain(..) {
            end_processes_in(&name);
            if let Err(error) = Netns::delete(&name) {
                tracing::warn!("{error}");
            }
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.remove();
    }
}

fn set_up(ifname: &str) -> Result<(), BuildError> {
    let mut netlink = building("open a netlink socket", Netlink::open())?;
    Ok(netlink.set_up(ifname, true)?)
}

/// Makes the wire between the switch and a host.
fn connect(switch: &Netns, inside: &Netns, host: &Host) -> Result<(), BuildError> {
    switch.run(|| -> Result<(), BuildError> {
        let mut netlink = building("open a netlink socket", Netlink::open())?;
        let far = VethEnd {
            mac: Some(host.mac.0),
            netns: Some(inside.file().as_fd()),
            ..VethEnd::new(&host.ifname)
        };
        netlink.create_veth(VethEnd::new(&host.port), far, 1)?;
        Ok(netlink.set_up(&host.port, true)?)
    })??;
    inside.run(|| set_up(&host.ifname))?
}

/// Inside a host that speaks: loopback up, and its address.
fn set_up_host(host: &Host) -> Result<(), BuildError> {
    set_up("lo")?;
    let mut netlink = building("open a netlink socket", Netlink::open())?;
    let index = netlink.link(&host.ifname)?.index;
    let net = Ipv4Net::new(host.ip, PREFIX_LEN).map_err(io::Error::other);
    let net = building("make an address", net)?;
    let added = address::add(&mut netlink, index, IpNet::V4(net));
    building(format!("give {} the address {}", host.name, IpAddr::V4(host.ip)), added)
}

/// Lets a host that opens and closes many connections use every port, and again soon.
fn widen_ports(netns: &Netns) -> Result<(), BuildError> {
    netns.set("ipv4/ip_local_port_range", "20000 65000")?;
    netns.set("ipv4/tcp_tw_reuse", "1")?;
    Ok(())
}

/// Removes what comparisons left whose processes were killed.
///
/// # Errors
/// If the list of namespaces cannot be read.
pub(super) fn sweep() -> Result<(), BuildError> {
    let entries = match fs::read_dir("/run/netns") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => building("list the network namespaces", entries)?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for name in names.filter(|name| owner(name).is_some_and(|pid| !is_alive(pid))) {
        end_processes_in(&name);
        Netns::delete(&name)?;
    }
    Ok(())
}

/// The process that made the namespace of this name, if it is a comparison's.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// Whether the process runs. A stranger with its number only makes the leftovers wait.
fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Ends every process whose network namespace is this one, but for our own.
fn end_processes_in(name: &str) {
    for pid in processes_in(name) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
}

/// The processes whose network namespace is this one, but for our own.
fn processes_in(name: &str) -> impl Iterator<Item = u32> {
    let namespace = inode(&Path::new("/run/netns").join(name));
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter(|&pid| pid != std::process::id());
    others.filter(move |pid| {
        namespace.is_some() && inode(Path::new(&format!("/proc/{pid}/ns/net"))) == namespace
    })
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    Some(fs::metadata(path).ok()?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_differ_in_every_name() {
        let hosts: Vec<Host> = (0..200).map(Host::at).collect();
        let distinct = |name: fn(&Host) -> String| {
            hosts.iter().map(name).collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!(distinct(|h| h.name.clone()), 200);
        assert_eq!(distinct(|h| h.port.clone()), 200);
        assert_eq!(distinct(|h| h.mac.to_string()), 200);
        assert_eq!(distinct(|h| h.ip.to_string()), 200);
        assert!(hosts.iter().all(|h| h.port.len() <= 15 && h.ifname.starts_with("fd")));
    }

    #[test]
    fn only_namespaces_of_comparisons_have_an_owner() {
        assert_eq!(owner("fd-bench-4711-switch"), Some(4711));
        for other in ["fd-bench", "fd-bench-x-switch", "fd-lab0", "fd-bench-4711"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
