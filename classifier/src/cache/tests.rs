use proptest::prelude::*;

use super::*;
use crate::verdict::{Action, Cause, DropReason};

const WHOLE: Mask = Mask::covering(128, 128, true);

fn key(n: u32) -> FlowKey {
    FlowKey { src: n.into(), dst: 1, dst_port: 80, ..FlowKey::default() }
}

fn forward(mask: Mask, epoch: u64) -> Cacheable {
    let verdict =
        Verdict { action: Action::Forward(PortId(1)), cause: Cause::Default, would_drop: None };
    Cacheable { mask, verdict, learned: None, epoch }
}

fn refuse(mask: Mask, epoch: u64) -> Cacheable {
    Cacheable { verdict: Verdict::drop(DropReason::DefaultDeny), ..forward(mask, epoch) }
}

fn fixture(max: u32) -> (FlowCache, Fdb) {
    (FlowCache::new(max), Fdb::new(300))
}

#[test]
fn an_entry_covers_what_its_mask_leaves_out_and_nothing_else() {
    let (mut cache, fdb) = fixture(1024);
    cache.install(&key(1), forward(Mask::covering(0, 128, true), 1), Nanos(0));
    assert!(cache.lookup(&key(2), 1, &fdb, Nanos(1)).verdict().is_some());
    let other_port = FlowKey { dst_port: 81, ..key(1) };
    assert_eq!(cache.lookup(&other_port, 1, &fdb, Nanos(1)), Lookup::Miss);
    let other_source_port = FlowKey { src_port: 5, tcp_flags: 2, ..key(1) };
    assert!(cache.lookup(&other_source_port, 1, &fdb, Nanos(1)).verdict().is_some());
}

#[test]
fn a_stale_epoch_is_never_given_out_and_leaves() {
    let (mut cache, fdb) = fixture(1024);
    cache.install(&key(1), forward(WHOLE, 1), Nanos(0));
    cache.install(&key(1), refuse(Mask::covering(0, 0, false), 2), Nanos(0));
    let verdict = cache.lookup(&key(1), 2, &fdb, Nanos(1));
    assert_eq!(verdict, Lookup::Current(Verdict::drop(DropReason::DefaultDeny)));
    assert_eq!((cache.masks(), cache.len()), (1, 1));
}

#[test]
fn a_flow_that_was_there_before_the_policy_changed_is_known_as_such_once() {
    let (mut cache, fdb) = fixture(1024);
    cache.install(&key(1), forward(WHOLE, 1), Nanos(0));
    assert_eq!(cache.lookup(&key(2), 2, &fdb, Nanos(1)), Lookup::Miss);
    assert_eq!(cache.lookup(&key(1), 2, &fdb, Nanos(1)), Lookup::Stale);
    assert_eq!(cache.lookup(&key(1), 2, &fdb, Nanos(1)), Lookup::Miss);
}

#[test]
fn a_learned_destination_counts_while_the_mac_table_agrees() {
    let (mut cache, mut fdb) = fixture(1024);
    let learned = Cacheable { learned: Some(PortId(1)), ..forward(WHOLE, 1) };
    fdb.learn(0, key(1).eth_dst, PortId(1), Nanos(0));
    cache.install(&key(1), learned, Nanos(0));
    assert!(cache.lookup(&key(1), 1, &fdb, Nanos(1)).verdict().is_some());
    fdb.learn(0, key(1).eth_dst, PortId(2), Nanos(2));
    assert_eq!(cache.lookup(&key(1), 1, &fdb, Nanos(3)), Lookup::Miss);
    assert!(cache.is_empty());
}

#[test]
fn a_denied_scan_evicts_no_allowed_flow() {
    let (mut cache, fdb) = fixture(4096);
    let allowed: Vec<u32> = (0..256).collect();
    for &n in &allowed {
        cache.install(&key(n), forward(WHOLE, 1), Nanos(0));
    }
    let kept = |cache: &mut FlowCache| {
        allowed
            .iter()
            .filter(|&&n| cache.lookup(&key(n), 1, &fdb, Nanos(1)).verdict().is_some())
            .count()
    };
    let before = kept(&mut cache);
    for n in 0..100_000 {
        cache.install(&key(1_000 + n), refuse(WHOLE, 1), Nanos(2));
    }
    assert_eq!(kept(&mut cache), before);
    assert!(cache.len() <= 4096);
}

#[test]
fn flows_in_use_survive_a_flood_of_unused_ones() {
    let (mut cache, fdb) = fixture(64);
    cache.install(&key(0), forward(WHOLE, 1), Nanos(0));
    for n in 1..10_000 {
        assert!(cache.lookup(&key(0), 1, &fdb, Nanos(n.into())).verdict().is_some(), "after {n}");
        cache.install(&key(n), forward(WHOLE, 1), Nanos(n.into()));
    }
}

fn from(port: u16, n: u32) -> FlowKey {
    FlowKey { ingress: PortId(port), ..key(n) }
}

/// A cache full of the flows of port 1, which nobody uses, meets a scan of port 2 that is
/// allowed and never ends. The scan gets its share of each set once, and then only its own.
#[test]
fn an_allowed_scan_takes_its_share_from_other_ports_and_no_more() {
    let (mut cache, fdb) = fixture(4096);
    let mut clock = (0..).map(Nanos);
    let mut now = || clock.next().unwrap_or_default();
    (0..100_000).for_each(|n| cache.install(&from(1, n), forward(WHOLE, 1), now()));
    let held = |cache: &FlowCache, port| {
        let flows = cache.list(0, usize::MAX, 1).0;
        flows.iter().filter(|flow| flow.key.ingress == PortId(port)).count()
    };
    (0..100_000).for_each(|n| cache.install(&from(2, n), forward(WHOLE, 1), now()));
    let (one, two) = (held(&cache, 1), held(&cache, 2));
    assert_eq!((one, two), (1024, 1024), "half of 2,048 forwarding ways each");
    let flows = cache.list(0, usize::MAX, 1).0;
    let mut lost = 0;
    for flow in flows.iter().filter(|flow| flow.key.ingress == PortId(1)) {
        for _ in 0..20 {
            cache.install(&from(2, noise()), forward(WHOLE, 1), now());
        }
        lost += usize::from(cache.lookup(&flow.key, 1, &fdb, now()).verdict().is_none());
    }
    assert_eq!(lost, 0, "the other half is safe whatever the scan does");
}

/// Numbers without a pattern that the hash could follow.
fn noise() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u32
}

/// Behind one port, a flow among others that fill every subtable and are hit more often: its
/// frames still find it by the first probe. Behind another port, nothing changes at all.
#[test]
fn poisoned_ranks_cost_a_flow_in_use_one_probe() {
    let (mut cache, fdb) = fixture(65_536);
    let (victim, elsewhere) = (from(1, 7), from(2, 7));
    cache.install(&victim, forward(WHOLE, 1), Nanos(0));
    cache.install(&elsewhere, forward(WHOLE, 1), Nanos(0));
    let attack = |n: u32| FlowKey { src: u128::from(n) << 96, dst: 2, ..from(1, n) };
    let others = || Mask::family().filter(|&mask| mask != WHOLE).enumerate();
    for (n, mask) in others() {
        let key = FlowKey { vlan: n as u16 + 1, ..attack(n as u32) };
        cache.install(&key, forward(mask, 1), Nanos(1));
        for _ in 0..1_000 {
            cache.lookup(&key, 1, &fdb, Nanos(1));
        }
    }
    assert_eq!(cache.ports[1].ranking.len(), MASKS);
    assert_ne!(cache.ports[1].ranking[0], WHOLE);
    assert!(cache.lookup(&victim, 1, &fdb, Nanos(2)).verdict().is_some());
    assert_eq!(cache.first(1, &victim.words()), Some(WHOLE));
    assert_eq!(cache.ports[2].ranking, [WHOLE]);
}

#[test]
fn masks_and_entries_stay_bounded_whatever_is_installed() {
    let (mut cache, fdb) = fixture(512);
    for n in 0..20_000u32 {
        let mask = Mask::covering((n % 129) as u8, (n / 7 % 129) as u8, n % 3 == 0);
        let flow = if n % 2 == 0 { forward(mask, 1) } else { refuse(mask, 1) };
        cache.install(&key(n), flow, Nanos(n.into()));
        cache.lookup(&key(n / 2), 1, &fdb, Nanos(n.into()));
        assert!(cache.masks() <= MASKS && cache.len() <= 512);
    }
    let of_port = cache.ports[0].entries.iter().filter(|&&entries| entries > 0).count();
    assert_eq!((of_port, cache.ports[0].ranking.len()), (cache.masks(), cache.masks()));
    assert_eq!(cache.list(0, usize::MAX, 1).0.len(), cache.len());
}

#[test]
fn listing_goes_page_by_page_through_current_flows() {
    let (mut cache, _) = fixture(1024);
    for n in 0..10 {
        cache.install(&key(n), forward(WHOLE, u64::from(n % 2)), Nanos(0));
    }
    let (mut flows, mut from) = (Vec::new(), Some(0));
    while let Some(position) = from {
        let (page, next) = cache.list(position, 2, 1);
        assert!(page.len() <= 2);
        flows.extend(page);
        from = next;
    }
    assert_eq!(flows.len(), 5);
}

/// A step of a cache's life: install, or look up, a key under a mask and an epoch.
fn step() -> impl Strategy<Value = (bool, FlowKey, Mask, u64)> {
    let key = (0u16..2, 0u128..3, 0u128..3, 0u16..2).prop_map(|(port, src, dst, service)| {
        let (src, dst) = (src << 64 | src, dst << 8 | dst);
        FlowKey { ingress: PortId(port), src, dst, dst_port: service, ..FlowKey::default() }
    });
    let mask = (0..MASKS as u8).prop_map(Mask::of_index);
    (any::<bool>(), key, mask, 1u64..3)
}

proptest! {
    /// Hints are taken at the start and used at the end: what happens between makes them wrong.
    #[test]
    fn a_hint_changes_no_answer(steps in prop::collection::vec(step(), 1..60)) {
        let fdb = Fdb::new(300);
        let (mut plain, mut hinted) = (FlowCache::new(4_096), FlowCache::new(4_096));
        let mut hints = FlowHints::new();
        for burst in steps.chunks(8) {
            hinted.prepare(burst.iter().map(|(_, key, ..)| Some(key)), &mut hints);
            for (at, (installs, key, mask, epoch)) in burst.iter().enumerate() {
                let output = PortId(key.words().iter().sum::<u64>() as u16 + mask.index() as u16);
                let action = Action::Forward(output);
                let verdict = Verdict { action, cause: Cause::Default, would_drop: None };
                let flow = Cacheable { mask: *mask, verdict, learned: None, epoch: *epoch };
                if *installs && plain.lookup(key, *epoch, &fdb, Nanos(0)).verdict().is_none() {
                    plain.install(key, flow, Nanos(0));
                    hinted.lookup(key, *epoch, &fdb, Nanos(0));
                    hinted.install(key, flow, Nanos(0));
                    continue;
                }
                let answer = plain.lookup(key, *epoch, &fdb, Nanos(0));
                let other = hinted.lookup_hinted(key, hints.get(at), *epoch, &fdb, Nanos(0));
                let known = |answer: Lookup| answer.verdict().is_some();
                prop_assert_eq!(known(answer), known(other));
            }
        }
    }

    #[test]
    fn a_set_finds_every_way_with_a_fingerprint(
        ways in prop::array::uniform8(0u16..4),
        wanted in 1u16..4,
    ) {
        let mut set = Set::default();
        for (way, &fingerprint) in ways.iter().enumerate() {
            set.put(way, fingerprint);
        }
        let bits = set.matches(wanted);
        let found: Vec<usize> =
            (0..64).filter(|bit| bits >> bit & 1 == 1).map(Set::way).collect();
        for (way, &fingerprint) in ways.iter().enumerate() {
            prop_assert_eq!(set.get(way), fingerprint);
            prop_assert!(fingerprint != wanted || found.contains(&way));
        }
        // A mistake is only above a way that is none.
        prop_assert!(found.is_empty() || ways.contains(&wanted));
    }
}
