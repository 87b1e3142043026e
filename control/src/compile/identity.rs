//! What a workload is called on the wire and in the kernel, where the config leaves it open.
//!
//! Derived names depend on the names of switch and workload alone. They may collide; the compiler
//! finds that out like any other duplicate.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use firedoor_classifier::MacAddr;
use firedoor_classifier::snapshot::{Kind, PortId, Snapshot};

use super::Planned;
use crate::intent::Intent;

/// Every workload's port, interface and addresses, in the order of the file.
pub(super) fn plan(intent: &Intent, previous: Option<&Snapshot>) -> Vec<Planned> {
    let switch = &intent.switch.name;
    let ports = ports(intent, previous);
    let workloads = intent.workloads.iter().zip(ports);
    workloads
        .map(|(workload, port)| {
            let name = &workload.name.value;
            let ifname = workload.ifname.as_ref().map(|ifname| ifname.value.clone());
            let mac = workload.mac.as_ref().map(|mac| mac.value);
            let any_mac = workload.router && workload.kind == Kind::External;
            Planned {
                name: name.clone(),
                kind: workload.kind,
                labels: workload.labels.clone(),
                port,
                ifname: ifname.unwrap_or_else(|| derived_ifname(switch, name)),
                mac: mac.or_else(|| (!any_mac).then(|| derived_mac(switch, name))),
                nets: workload.addresses.iter().map(|net| net.value).collect(),
                vlan: workload.vlan.clone(),
                router: workload.router,
                dhcp_server: workload.dhcp_server,
            }
        })
        .collect()
}

/// A name keeps its port; a new one takes the lowest free number, from 1.
fn ports(intent: &Intent, previous: Option<&Snapshot>) -> Vec<PortId> {
    let before: BTreeMap<&str, PortId> = previous
        .iter()
        .flat_map(|snapshot| &snapshot.workloads)
        .map(|workload| (workload.name.as_str(), workload.port))
        .collect();
    let kept = |name: &str| before.get(name).copied();
    let names = || intent.workloads.iter().map(|workload| workload.name.value.as_str());
    let taken: BTreeSet<PortId> = names().filter_map(kept).collect();
    let mut free = (1..=u16::MAX).map(PortId).filter(|port| !taken.contains(port));
    // There are enough: more workloads than numbers are refused.
    names().map(|name| kept(name).or_else(|| free.next()).unwrap_or_default()).collect()
}

/// `fd`, six hexadecimal digits, and as much of the name as fits the kernel's 15 bytes.
fn derived_ifname(switch: &str, workload: &str) -> String {
    let digits = hash(switch, workload) & 0xff_ffff;
    let name: String = workload.chars().take(6).collect();
    format!("fd{digits:06x}.{name}")
}

/// A locally administered unicast address (IEEE 802-2014 §8.2.2).
fn derived_mac(switch: &str, workload: &str) -> MacAddr {
    let [a, b, c, d, e, ..] = hash(switch, workload).to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

/// The IPv6 link-local address that a host forms of its MAC address (RFC 4291 appendix A).
pub(super) fn link_local(mac: MacAddr) -> IpAddr {
    let [a, b, c, d, e, f] = mac.0;
    let interface = u64::from_be_bytes([a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]);
    IpAddr::V6(Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(interface)))
}

/// 64-bit FNV-1a (draft-eastlake-fnv) of `switch/workload`, then MurmurHash3's finaliser, because
/// FNV alone hardly lets a last character reach the high bytes.
///
/// Interface names and MAC addresses are made of it, so it must never change.
fn hash(switch: &str, workload: &str) -> u64 {
    let bytes = switch.bytes().chain([b'/']).chain(workload.bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_names_never_change() {
        assert_eq!(derived_ifname("lab0", "database"), "fd355aa1.databa");
        assert_eq!(derived_mac("lab0", "database").to_string(), "02:cf:a5:86:08:13");
    }

    #[test]
    fn link_local_is_modified_eui_64() {
        let mac = MacAddr([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]);
        assert_eq!(link_local(mac).to_string(), "fe80::3656:78ff:fe9a:bcde");
    }
}
