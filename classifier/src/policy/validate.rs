//! The invariants of a snapshot. Everything after [`Policy::build`](super::Policy::build) relies on
//! them, so that the frame path needs no checks of its own.

use std::fmt::Display;
use std::hash::Hash;

use hashbrown::HashMap;

use crate::snapshot::{Snapshot, Tag, TagSet, VlanMode, Workload};

/// Largest VLAN identifier that a port may carry (IEEE 802.1Q §9.6 reserves 4095).
const MAX_VLAN: u16 = 4_094;

/// Why a snapshot cannot be enforced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Two workloads share something that must be unique.
    #[error("workloads {first:?} and {second:?} share the {what} {value}")]
    Duplicate {
        /// What is shared.
        what: &'static str,
        /// Its value.
        value: String,
        /// One workload.
        first: String,
        /// The other.
        second: String,
    },
    /// A tag is out of range.
    #[error("{what} has tag {tag}, but there are only {tags} tags")]
    TagOutOfRange {
        /// Whose tag.
        what: String,
        /// The tag.
        tag: u32,
        /// Number of tags.
        tags: usize,
    },
    /// The rules are not in evaluation order.
    #[error("rule {rule:?} stands after one that must be judged later")]
    RuleOrder {
        /// The rule.
        rule: String,
    },
    /// A rule's tags are not sorted, or repeat.
    #[error("the tags of rule {rule:?} are not in ascending order")]
    TagOrder {
        /// The rule.
        rule: String,
    },
    /// Only a router may do without a MAC address.
    #[error("workload {workload:?} has no MAC address; only a router can do without")]
    NoMac {
        /// The workload.
        workload: String,
    },
    /// No station can have this MAC address.
    #[error("workload {workload:?} has {mac}, which is no station's address")]
    GroupMac {
        /// The workload.
        workload: String,
        /// The address.
        mac: String,
    },
    /// A VLAN identifier that no port may carry.
    #[error(
        "workload {workload:?} carries VLAN {vlan}; a trunk takes 1 to 4094, each once, an access port 0 to 4094"
    )]
    BadVlan {
        /// The workload.
        workload: String,
        /// The identifier.
        vlan: u16,
    },
    /// An address or prefix that is written as IPv6, but is in the range of mapped IPv4 addresses.
    #[error("{what} is an IPv4-mapped IPv6 address; write it as IPv4")]
    Mapped {
        /// The address or prefix.
        what: String,
    },
    /// A prefix that has two tags.
    #[error("the prefix {prefix} has two tags")]
    DuplicatePrefix {
        /// The prefix.
        prefix: String,
    },
}

/// Checks every invariant.
pub(super) fn validate(snapshot: &Snapshot) -> Result<(), PolicyError> {
    for workload in &snapshot.workloads {
        check_mac(workload)?;
        check_vlans(workload)?;
    }
    check_unique(&snapshot.workloads)?;
    check_addresses(snapshot)?;
    check_tags(snapshot)?;
    check_rules(snapshot)
}

fn check_mac(workload: &Workload) -> Result<(), PolicyError> {
    match workload.mac {
        None if !workload.router => Err(PolicyError::NoMac { workload: workload.name.clone() }),
        Some(mac) if mac.is_multicast() || mac == crate::MacAddr::ZERO => {
            Err(PolicyError::GroupMac { workload: workload.name.clone(), mac: mac.to_string() })
        }
        _ => Ok(()),
    }
}

fn check_vlans(workload: &Workload) -> Result<(), PolicyError> {
    let bad = |vlan: u16| Err(PolicyError::BadVlan { workload: workload.name.clone(), vlan });
    match &workload.vlan {
        VlanMode::Access(vlan) if *vlan > MAX_VLAN => bad(*vlan),
        VlanMode::Access(_) => Ok(()),
        VlanMode::Trunk(vlans) => {
            let wrong = vlans
                .iter()
                .enumerate()
                .find(|&(at, vlan)| !(1..=MAX_VLAN).contains(vlan) || vlans[..at].contains(vlan));
            wrong.map_or(Ok(()), |(_, &vlan)| bad(vlan))
        }
    }
}

fn check_unique(workloads: &[Workload]) -> Result<(), PolicyError> {
    unique("name", workloads.iter().map(|w| (w.name.as_str(), w)))?;
    unique("port", workloads.iter().map(|w| (w.port, w)))?;
    unique("MAC address", workloads.iter().filter_map(|w| Some((w.mac?, w))))?;
    unique("address", workloads.iter().flat_map(|w| w.addresses.iter().map(move |&a| (a, w))))
}

fn unique<'a, T: Hash + Eq + Copy + Display>(
    what: &'static str,
    values: impl Iterator<Item = (T, &'a Workload)>,
) -> Result<(), PolicyError> {
    let mut seen: HashMap<T, &Workload> = HashMap::new();
    for (value, workload) in values {
        if let Some(first) = seen.insert(value, workload) {
            return Err(PolicyError::Duplicate {
                what,
                value: value.to_string(),
                first: first.name.clone(),
                second: workload.name.clone(),
            });
        }
    }
    Ok(())
}

fn check_addresses(snapshot: &Snapshot) -> Result<(), PolicyError> {
    let is_mapped = |addr: std::net::IpAddr| match addr {
        std::net::IpAddr::V4(_) => false,
        std::net::IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    let mut addresses = snapshot.workloads.iter().flat_map(|w| &w.addresses);
    if let Some(addr) = addresses.find(|&&addr| is_mapped(addr)) {
        return Err(PolicyError::Mapped { what: addr.to_string() });
    }
    let mut seen = hashbrown::HashSet::new();
    for prefix in &snapshot.prefixes {
        if is_mapped(prefix.net.network()) && prefix.net.prefix_len() >= 96 {
            return Err(PolicyError::Mapped { what: prefix.net.to_string() });
        }
        if !seen.insert(prefix.net.trunc()) {
            return Err(PolicyError::DuplicatePrefix { prefix: prefix.net.to_string() });
        }
    }
    Ok(())
}

fn check_tags(snapshot: &Snapshot) -> Result<(), PolicyError> {
    let tags = snapshot.tags.len();
    let check = |tag: Tag, what: &dyn Fn() -> String| {
        if (tag.0 as usize) < tags {
            Ok(())
        } else {
            Err(PolicyError::TagOutOfRange { what: what(), tag: tag.0, tags })
        }
    };
    check(snapshot.world, &|| "the world".to_owned())?;
    for workload in &snapshot.workloads {
        check(workload.tag, &|| format!("workload {:?}", workload.name))?;
    }
    for prefix in &snapshot.prefixes {
        check(prefix.tag, &|| format!("prefix {}", prefix.net))?;
    }
    for rule in &snapshot.rules {
        for set in [&rule.from, &rule.to] {
            let TagSet::Only(tags) = set else { continue };
            for &tag in tags {
                check(tag, &|| format!("rule {:?}", rule.name))?;
            }
        }
    }
    Ok(())
}

fn check_rules(snapshot: &Snapshot) -> Result<(), PolicyError> {
    for pair in snapshot.rules.windows(2) {
        let [before, after] = pair else { continue };
        if (after.tier, after.priority) < (before.tier, before.priority) {
            return Err(PolicyError::RuleOrder { rule: after.name.clone() });
        }
    }
    for rule in &snapshot.rules {
        for set in [&rule.from, &rule.to] {
            if let TagSet::Only(tags) = set
                && !tags.is_sorted_by(|a, b| a < b)
            {
                return Err(PolicyError::TagOrder { rule: rule.name.clone() });
            }
        }
    }
    Ok(())
}
