//! Labels and ranges to tags.
//!
//! Two ends share a tag exactly if no rule could tell them apart. Workloads are told apart by their
//! labels, and by their name if some rule selects by it. Outside addresses are told apart by the
//! set of groups that hold them; an address that none holds is the world's.
//!
//! Ranges of groups nest or are disjoint, as prefixes do, so one walk in sorted order with a stack
//! of the enclosing ranges finds the set for every range. Only ranges whose set differs from that
//! of the range around them are kept, for a longest-prefix match.

use std::collections::{BTreeMap, BTreeSet};

use firedoor_classifier::snapshot::{Prefix, Tag, TagInfo, TagSet};
use ipnet::IpNet;

use crate::diagnostic::Spanned;
use crate::intent::{Group, Intent, Selector, Workload};

/// Indices into [`Intent::groups`].
type GroupSet = BTreeSet<usize>;

/// The tags that one word of a selector stands for.
type TagIndex = BTreeSet<Tag>;

/// Every tag of a snapshot.
pub(super) struct Tags {
    /// What each stands for; the index is the tag.
    pub(super) infos: Vec<TagInfo>,
    /// The tag of each workload, in the order of the file.
    pub(super) of_workloads: Vec<Tag>,
    /// The tags of outside addresses.
    pub(super) prefixes: Vec<Prefix>,
    /// The tag of every other outside address.
    pub(super) world: Tag,
    of_group_sets: BTreeMap<GroupSet, Tag>,
    by_label: BTreeMap<(String, String), TagIndex>,
    by_workload: BTreeMap<String, TagIndex>,
    by_group: BTreeMap<String, TagIndex>,
}

impl Tags {
    pub(super) fn of(intent: &Intent) -> Self {
        let mut tags = Self {
            infos: Vec::new(),
            of_workloads: Vec::new(),
            prefixes: Vec::new(),
            world: Tag(0),
            of_group_sets: BTreeMap::new(),
            by_label: BTreeMap::new(),
            by_workload: BTreeMap::new(),
            by_group: BTreeMap::new(),
        };
        tags.world = tags.add("world".into());
        tags.of_group_sets.insert(GroupSet::new(), tags.world);
        tags.tag_workloads(intent);
        tags.tag_ranges(&intent.groups);
        tags.index(intent);
        tags
    }

    /// The tags that any of `selectors` matches. Cost: what they match, not what there is.
    pub(super) fn select(&self, selectors: &[Selector]) -> TagSet {
        let mut selected = TagIndex::new();
        for selector in selectors {
            match selector {
                Selector::Any => return TagSet::Any,
                Selector::Labels(labels) => selected.extend(self.labelled(labels)),
                Selector::Workloads(names) => selected.extend(named(&self.by_workload, names)),
                Selector::Groups(names) => selected.extend(named(&self.by_group, names)),
            }
        }
        TagSet::Only(selected.into_iter().collect())
    }

    /// Tags whose workloads have every one of these keys with one of its values.
    fn labelled(&self, labels: &BTreeMap<String, Vec<String>>) -> TagIndex {
        let with_key = |(key, values): (&String, &Vec<String>)| -> TagIndex {
            let label = |value: &String| self.by_label.get(&(key.clone(), value.clone()));
            values.iter().filter_map(label).flatten().copied().collect()
        };
        let sets = labels.iter().map(with_key);
        sets.reduce(|all, with_key| &all & &with_key).unwrap_or_default()
    }

    fn index(&mut self, intent: &Intent) {
        for (workload, tag) in intent.workloads.iter().zip(&self.of_workloads) {
            self.by_workload.entry(workload.name.value.clone()).or_default().insert(*tag);
            for (key, value) in &workload.labels {
                self.by_label.entry((key.clone(), value.clone())).or_default().insert(*tag);
            }
        }
        for (groups, tag) in &self.of_group_sets {
            for group in groups.iter().filter_map(|&index| intent.groups.get(index)) {
                self.by_group.entry(group.name.value.clone()).or_default().insert(*tag);
            }
        }
    }

    fn add(&mut self, name: String) -> Tag {
        let tag = Tag(self.infos.len() as u32);
        self.infos.push(TagInfo { name });
        tag
    }

    fn tag_workloads(&mut self, intent: &Intent) {
        let sides = intent.rules.iter().flat_map(|rule| [&rule.from.value, &rule.to.value]);
        let selected_by_name: BTreeSet<&str> = sides
            .flatten()
            .filter_map(|selector| match selector {
                Selector::Workloads(names) => Some(names),
                _ => None,
            })
            .flatten()
            .map(|name| name.value.as_str())
            .collect();

        let mut by_labels = BTreeMap::new();
        for workload in &intent.workloads {
            let name = workload.name.value.as_str();
            let tag = if selected_by_name.contains(name) {
                self.add(format!("workload {name}"))
            } else if let Some(tag) = by_labels.get(&workload.labels) {
                *tag
            } else {
                let tag = self.add(label_text(workload));
                by_labels.insert(&workload.labels, tag);
                tag
            };
            self.of_workloads.push(tag);
        }
    }

    fn tag_ranges(&mut self, groups: &[Group]) {
        for (net, set) in ranges(groups) {
            let tag = match self.of_group_sets.get(&set) {
                Some(tag) => *tag,
                None => {
                    let tag = self.add(group_text(groups, &set));
                    self.of_group_sets.insert(set, tag);
                    tag
                }
            };
            self.prefixes.push(Prefix { net, tag });
        }
    }
}

fn named<'t>(
    index: &'t BTreeMap<String, TagIndex>,
    names: &'t [Spanned<String>],
) -> impl Iterator<Item = Tag> + 't {
    names.iter().filter_map(|name| index.get(&name.value)).flatten().copied()
}

fn label_text(workload: &Workload) -> String {
    if workload.labels.is_empty() {
        return "no labels".into();
    }
    let labels: Vec<_> =
        workload.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.join(",")
}

fn group_text(groups: &[Group], set: &GroupSet) -> String {
    let names: Vec<_> =
        set.iter().filter_map(|&i| groups.get(i)).map(|g| g.name.value.as_str()).collect();
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("group{plural} {}", names.join("+"))
}

/// What begins at one range.
#[derive(Clone, Default)]
struct Cover {
    /// Groups with this range, or one around it, in their `cidr`.
    within: GroupSet,
    /// Likewise in their `except`.
    excepted: GroupSet,
}

impl Cover {
    fn members(&self) -> GroupSet {
        &self.within - &self.excepted
    }
}

/// The ranges where the set of groups changes, each with its set. A longest-prefix match over them
/// gives the groups of any address; where none matches, there are none.
fn ranges(groups: &[Group]) -> Vec<(IpNet, GroupSet)> {
    let mut starts: BTreeMap<IpNet, Cover> = BTreeMap::new();
    for (index, group) in groups.iter().enumerate() {
        for range in &group.cidr {
            starts.entry(range.value).or_default().within.insert(index);
        }
        for range in &group.except {
            starts.entry(range.value).or_default().excepted.insert(index);
        }
    }

    let mut ranges = Vec::new();
    let mut around: Vec<(IpNet, Cover)> = Vec::new();
    for (net, start) in starts {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
            around.pop();
        }
        let outer = around.last().map(|(_, cover)| cover.clone()).unwrap_or_default();
        let before = outer.members();
        let cover = Cover {
            within: &outer.within | &start.within,
            excepted: &outer.excepted | &start.excepted,
        };
        let members = cover.members();
        if members != before {
            ranges.push((net, members));
        }
        around.push((net, cover));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn group(cidr: &[IpNet], except: &[IpNet]) -> Group {
        let spanned = |nets: &[IpNet]| {
            nets.iter().map(|&value| Spanned { span: 0..0, value }).collect::<Vec<_>>()
        };
        let name = Spanned { span: 0..0, value: String::new() };
        Group { name, cidr: spanned(cidr), except: spanned(except) }
    }

    /// Ranges of a small corner of the address space, so that they often meet.
    fn any_net() -> impl Strategy<Value = IpNet> {
        (0u32..64, 24u8..=32).prop_map(|(host, length)| {
            let net = ipnet::Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 | host), length);
            IpNet::V4(net.expect("the length is at most 32").trunc())
        })
    }

    fn any_group() -> impl Strategy<Value = Group> {
        let nets = || prop::collection::vec(any_net(), 0..4);
        (nets(), nets()).prop_map(|(cidr, except)| group(&cidr, &except))
    }

    proptest! {
        #[test]
        fn longest_prefix_match_finds_the_groups_of_an_address(
            groups in prop::collection::vec(any_group(), 0..5),
            host in 0u32..80,
        ) {
            let addr = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | host));
            let holds = |nets: &[Spanned<IpNet>]| nets.iter().any(|net| net.value.contains(&addr));
            let expected: GroupSet = (0..groups.len())
                .filter(|&i| holds(&groups[i].cidr) && !holds(&groups[i].except))
                .collect();

            let ranges = ranges(&groups);
            let matching = ranges.iter().filter(|(net, _)| net.contains(&addr));
            let longest = matching.max_by_key(|(net, _)| net.prefix_len());
            prop_assert_eq!(longest.map(|(_, set)| set.clone()).unwrap_or_default(), expected);
        }
    }
}
