//! What must hold for any text as a config: it is compiled or refused, and a snapshot that comes of
//! it keeps what the data plane relies on.

use std::collections::BTreeSet;

use firedoor_classifier::snapshot::{Snapshot, TagSet};
use firedoor_control::compile::compile;
use firedoor_control::edit::{add_workload, remove_workload};
use jiff::civil::date;

/// Compiles and edits, and looks at what comes out.
pub(crate) fn check(text: &str) {
    match compile("fuzz.toml", text, None, date(2026, 6, 1)) {
        Ok(compiled) => {
            let again = compile("fuzz.toml", text, Some(&compiled.snapshot), date(2026, 6, 1));
            let again = again.expect("what compiled once compiles again");
            assert_eq!(again.snapshot.workloads, compiled.snapshot.workloads);
            keeps_its_promises(&compiled.snapshot);
        }
        Err(errors) => {
            assert_ne!(errors.problems().len(), 0);
            let (plain, coloured) = (errors.render(false), errors.render(true));
            assert!(!plain.contains('\u{1b}') && !coloured.is_empty());
        }
    }
    let _ = add_workload(text, "name = \"x\"");
    let _ = add_workload("", text);
    let _ = remove_workload(text, "web");
}

/// The invariants of [`firedoor_classifier::snapshot`].
pub(crate) fn keeps_its_promises(snapshot: &Snapshot) {
    let tags = snapshot.tags.len() as u32;
    let is_tag = |tag: u32| tag < tags;
    let is_unique = |len: usize, count: usize| assert_eq!(len, count);
    let workloads = &snapshot.workloads;
    let names: BTreeSet<_> = workloads.iter().map(|workload| &workload.name).collect();
    let ports: BTreeSet<_> = workloads.iter().map(|workload| workload.port).collect();
    let macs: Vec<_> = workloads.iter().filter_map(|workload| workload.mac).collect();
    let addresses: Vec<_> = workloads.iter().flat_map(|workload| &workload.addresses).collect();
    is_unique(names.len(), workloads.len());
    is_unique(ports.len(), workloads.len());
    is_unique(macs.iter().collect::<BTreeSet<_>>().len(), macs.len());
    is_unique(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len());
    for workload in workloads {
        assert!(is_tag(workload.tag.0) && workload.port.0 != 0);
        assert!((1..=15).contains(&workload.ifname.len()), "{}", workload.ifname);
    }
    assert!(is_tag(snapshot.world.0));
    assert!(snapshot.prefixes.iter().all(|prefix| is_tag(prefix.tag.0)));
    assert!(snapshot.rules.is_sorted_by_key(|rule| (rule.tier, rule.priority)));
    for set in snapshot.rules.iter().flat_map(|rule| [&rule.from, &rule.to]) {
        if let TagSet::Only(tags) = set {
            assert!(tags.is_sorted() && tags.windows(2).all(|pair| pair[0] != pair[1]));
            assert!(tags.iter().all(|tag| is_tag(tag.0)));
        }
    }
}
