//! The ways in which a conversation may begin, cut where some rule may tell two of them apart.
//!
//! Rules may ask for a source port, TCP flags, an ethertype or a VLAN. For one pair of ends, these cut all
//! beginnings into cells: whatever lies in one cell is judged alike, so judging one frame of each is
//! exact. TCP begins by a SYN, so of the flags only those count that may stand beside it.

use std::collections::BTreeSet;

use firedoor_classifier::acl::Opening;
use firedoor_classifier::snapshot::{Conditions, FlagMatch};
use firedoor_classifier::wire::tcp::TcpFlags;

use crate::condition;

/// Flags that a SYN may have beside it.
const FREE: TcpFlags = TcpFlags::PSH.union(TcpFlags::URG).union(TcpFlags::ECE).union(TcpFlags::CWR);

/// Beginnings that no rule tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) ether_type: u16,
    vlan: u16,
    /// First and last source port.
    ports: (u16, u16),
    /// Flags beside SYN, of those that rules ask for.
    flags: u8,
}

impl Cell {
    /// One beginning in it.
    pub(super) fn opening(&self) -> Opening {
        Opening {
            ether_type: self.ether_type,
            vlan: self.vlan,
            src_port: self.ports.0,
            tcp_flags: TcpFlags::SYN.bits() | self.flags,
        }
    }
}

/// All cells there are between two ends that share these VLANs and speak these ethertypes, as far as
/// rules with these conditions tell them apart. One of several ethertypes stands for all if no rule
/// names any.
pub(super) fn cells(vlans: &[u16], ether_types: &[u16], rules: &[&Conditions]) -> Vec<Cell> {
    let names_vlan = rules.iter().any(|rule| rule.vlan.is_some());
    let names_ether_type = rules.iter().any(|rule| rule.ether_type.is_some());
    let vlans = if names_vlan { vlans } else { &vlans[..vlans.len().min(1)] };
    let ether_types =
        if names_ether_type { ether_types } else { &ether_types[..ether_types.len().min(1)] };
    let flags = subsets(rules.iter().fold(0, |named, rule| {
        named | rule.tcp_flags.map_or(0, |FlagMatch { mask, .. }| mask & FREE.bits())
    }));
    let ports = port_cells(rules);
    let mut cells = Vec::new();
    for &ether_type in ether_types {
        for &vlan in vlans {
            for &flags in &flags {
                cells.extend(ports.iter().map(|&ports| Cell { ether_type, vlan, ports, flags }));
            }
        }
    }
    cells
}

fn port_cells(rules: &[&Conditions]) -> Vec<(u16, u16)> {
    let mut firsts = BTreeSet::from([0]);
    for (first, last) in rules.iter().filter_map(|rule| rule.src_ports) {
        firsts.insert(first);
        firsts.extend(last.checked_add(1));
    }
    let lasts = firsts.iter().skip(1).map(|&next| next - 1).chain([u16::MAX]);
    firsts.iter().copied().zip(lasts).collect()
}

fn subsets(flags: u8) -> Vec<u8> {
    (0..=flags).filter(|set| set & !flags == 0).collect()
}

/// What tells `some` cells from `all` of them, in the words of the config, alternatives apart. Both are
/// in order. Empty if they are the same.
pub(super) fn describe(some: &[Cell], all: &[Cell]) -> Vec<String> {
    if some == all {
        return Vec::new();
    }
    match as_product(some, all) {
        Some(text) => vec![text],
        None => {
            some.iter().filter_map(|cell| as_product(std::slice::from_ref(cell), all)).collect()
        }
    }
}

/// `None` if they are not every combination of what they have in each respect.
fn as_product(some: &[Cell], all: &[Cell]) -> Option<String> {
    let (these, those) = (Respects::of(some), Respects::of(all));
    if these.combinations() != some.len() {
        return None;
    }
    let mut texts = Vec::new();
    if these.ports != those.ports {
        texts.push(format!(
            "source_port {}",
            list(merged(&these.ports), |(first, last)| {
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            })
        ));
    }
    if these.flags != those.flags {
        let fixed = |bit: u8, wanted| these.flags.iter().all(|flags| (flags & bit != 0) == wanted);
        let bits = (0..8)
            .map(|bit| 1 << bit)
            .filter(|bit| those.flags.iter().any(|flags| flags & bit != 0));
        let (mut mask, mut value) = (0, 0);
        for bit in bits {
            mask |= if fixed(bit, true) || fixed(bit, false) { bit } else { 0 };
            value |= if fixed(bit, true) { bit } else { 0 };
        }
        texts.push(format!("tcp_flags {}", condition::flags_text(FlagMatch { mask, value })));
    }
    if these.ether_types != those.ether_types {
        texts.push(format!(
            "ethertype {}",
            list(&these.ether_types, |&e| condition::ether_type_text(e))
        ));
    }
    if these.vlans != those.vlans {
        texts.push(format!("vlan {}", list(&these.vlans, u16::to_string)));
    }
    Some(texts.join(", "))
}

/// What some cells have, in each respect.
#[derive(PartialEq, Eq)]
struct Respects {
    ether_types: BTreeSet<u16>,
    vlans: BTreeSet<u16>,
    ports: BTreeSet<(u16, u16)>,
    flags: BTreeSet<u8>,
}

impl Respects {
    fn of(cells: &[Cell]) -> Self {
        Self {
            ether_types: cells.iter().map(|cell| cell.ether_type).collect(),
            vlans: cells.iter().map(|cell| cell.vlan).collect(),
            ports: cells.iter().map(|cell| cell.ports).collect(),
            flags: cells.iter().map(|cell| cell.flags).collect(),
        }
    }

    fn combinations(&self) -> usize {
        // Sets of flags say something only if they are every combination of the flags that vary.
        let varying = self.flags.iter().fold(0, |any, flags| any | flags)
            & !self.flags.iter().fold(u8::MAX, |every, flags| every & flags);
        let others = self.ether_types.len() * self.vlans.len() * self.ports.len();
        others << varying.count_ones()
    }
}

/// Ranges with those that touch made one.
fn merged(ranges: &BTreeSet<(u16, u16)>) -> Vec<(u16, u16)> {
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for &(first, last) in ranges {
        match merged.last_mut() {
            Some(before) if before.1.checked_add(1) == Some(first) => before.1 = last,
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn list<T>(items: impl IntoIterator<Item = T>, text: impl Fn(T) -> String) -> String {
    items.into_iter().map(text).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: u16 = 0x0800;
    const V6: u16 = 0x86dd;

    #[test]
    fn without_conditions_there_is_one_cell() {
        let cells = cells(&[10, 20], &[V4, V6], &[]);
        assert_eq!(cells.len(), 1);
        assert_eq!(describe(&cells, &cells), [] as [&str; 0]);
    }

    #[test]
    fn conditions_cut_and_are_told() {
        let flags = Some(FlagMatch { mask: 0x42, value: 0x42 });
        let rule = Conditions {
            ether_type: Some(V6),
            vlan: Some(20),
            src_ports: Some((1_024, 2_000)),
            tcp_flags: flags,
        };
        let all = cells(&[10, 20], &[V4, V6], &[&rule]);
        assert_eq!(all.len(), 2 * 2 * 3 * 2);
        let those = |holds: &dyn Fn(&Cell) -> bool| -> Vec<Cell> {
            all.iter().copied().filter(|cell| holds(cell)).collect()
        };
        let text = |holds: &dyn Fn(&Cell) -> bool| describe(&those(holds), &all);
        assert_eq!(text(&|cell| cell.vlan == 20), ["vlan 20"]);
        assert_eq!(text(&|cell| cell.ports.0 != 1_024), ["source_port 0-1023 or 2001-65535"]);
        assert_eq!(text(&|cell| cell.ports.0 >= 1_024), ["source_port 1024-65535"]);
        assert_eq!(text(&|cell| cell.flags == 0), ["tcp_flags !ece"]);
        assert_eq!(
            text(&|cell| cell.ether_type == V6 && cell.flags == 0x40 && cell.ports.0 == 1_024),
            ["source_port 1024-2000, tcp_flags ece, ethertype ipv6"]
        );
        let torn = text(&|cell| {
            cell.ports.0 == 0 && cell.flags == 0 && (cell.vlan == 10) == (cell.ether_type == V4)
        });
        assert_eq!(
            torn,
            [
                "source_port 0-1023, tcp_flags !ece, ethertype ipv4, vlan 10",
                "source_port 0-1023, tcp_flags !ece, ethertype ipv6, vlan 20",
            ]
        );
    }
}
