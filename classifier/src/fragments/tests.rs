use super::*;
use crate::build;
use crate::build::tests::{ENDS, ENDS_V6};
use crate::extract::extract;
use crate::snapshot::RuleId;
use crate::verdict::{Action, Cause, Verdict};

const PORT: PortId = PortId(1);
const NOW: Nanos = Nanos::from_secs(100);
const OVERLAP: DropReason = DropReason::FragmentOverlap;
const FULL: DropReason = DropReason::FragmentsFull;

fn table() -> Fragments<usize> {
    Fragments::new(&Settings::default(), usize::MAX)
}

/// The headers of one fragment of a UDP datagram with 1,000 bytes of IP payload.
fn part(id: u32, start: usize, end: usize) -> Headers {
    part_of(&build::udp(ENDS, 1_000, 53, &[0; 992]), PORT, id, start, end)
}

fn part_of(frame: &[u8], port: PortId, id: u32, start: usize, end: usize) -> Headers {
    extract(&build::fragment(frame, id, start..end), port).unwrap()
}

/// Lets fragments arrive, numbered from 0 on; returns which were released: `Ok` if they pass.
fn arrive(
    table: &mut Fragments<usize>,
    parts: &[Headers],
) -> Vec<(usize, Result<u16, DropReason>)> {
    for (item, headers) in parts.iter().enumerate() {
        table.arrive(headers, 7, item, NOW);
    }
    released(table)
}

fn released(table: &mut Fragments<usize>) -> Vec<(usize, Result<u16, DropReason>)> {
    std::iter::from_fn(|| table.release())
        .map(|released| match released {
            Release::Pass { item, owner } => (item, Ok(owner)),
            Release::Drop { item, reason } => (item, Err(reason)),
        })
        .collect()
}

#[test]
fn in_order_fragments_pass_as_they_come_and_leave_nothing_behind() {
    let mut table = table();
    let parts = [part(1, 0, 400), part(1, 400, 800), part(1, 800, 1_000)];
    assert_eq!(arrive(&mut table, &parts), [(0, Ok(7)), (1, Ok(7)), (2, Ok(7))]);
    assert_eq!(table.datagrams.of(PORT).count(), 0);
}

#[test]
fn early_ones_wait_for_the_first_and_follow_in_order_of_arrival() {
    let mut table = table();
    let parts = [part(1, 800, 1_000), part(1, 400, 800)];
    assert_eq!(arrive(&mut table, &parts), []);
    assert_eq!(table.waiting(), 2);
    table.arrive(&part(1, 0, 400), 3, 9, NOW);
    assert_eq!(released(&mut table), [(9, Ok(3)), (0, Ok(3)), (1, Ok(3))]);
    assert_eq!((table.waiting(), table.datagrams.of(PORT).count()), (0, 0));
}

#[test]
fn nothing_waits_longer_than_the_timeout_counted_from_the_earliest() {
    let mut table = table();
    table.arrive(&part(1, 400, 800), 0, 0, NOW);
    table.expire(NOW.plus(29_999_999_999));
    assert_eq!(released(&mut table), []);
    table.arrive(&part(1, 800, 1_000), 0, 1, NOW.plus(20_000_000_000));
    table.expire(NOW.plus(31_000_000_000));
    assert_eq!(released(&mut table), [(0, Err(EXPIRED)), (1, Err(EXPIRED))]);
    assert_eq!(table.waiting(), 0);
}

#[test]
fn an_expired_packet_is_not_gone_on_with() {
    let mut table = table();
    table.arrive(&part(1, 400, 800), 0, 0, NOW);
    table.arrive(&part(1, 0, 400), 0, 1, NOW.plus(30_000_000_000));
    assert_eq!(released(&mut table), [(0, Err(EXPIRED)), (1, Ok(0))]);
}

#[test]
fn an_overlap_condemns_the_packet_and_what_waits_of_it() {
    let mut table = table();
    let parts = [part(1, 400, 800), part(1, 792, 1_000), part(1, 0, 400), part(1, 800, 1_000)];
    let expected = [0, 1, 2, 3].map(|item| (item, Err(OVERLAP)));
    assert_eq!(arrive(&mut table, &parts), expected);
    let passed = [part(2, 0, 400), part(2, 392, 800), part(2, 400, 800)];
    assert_eq!(arrive(&mut table, &passed), [(0, Ok(7)), (1, Err(OVERLAP)), (2, Err(OVERLAP))]);
}

#[test]
fn a_repeated_fragment_is_dropped_alone() {
    let mut table = table();
    let parts = [part(1, 0, 400), part(1, 0, 400), part(1, 8, 16), part(1, 400, 1_000)];
    let expected = [(0, Ok(7)), (1, Err(OVERLAP)), (2, Err(OVERLAP)), (3, Ok(7))];
    assert_eq!(arrive(&mut table, &parts), expected);
}

#[test]
fn there_is_one_last_fragment_and_nothing_behind_it() {
    let longer = build::udp(ENDS, 1_000, 53, &[0; 1_992]);
    let behind = part_of(&longer, PORT, 1, 1_000, 1_200);
    let expected = [(0, Ok(7)), (1, Ok(7)), (2, Err(OVERLAP)), (3, Err(OVERLAP))];
    for odd in [behind, part_of(&longer, PORT, 1, 1_200, 2_000)] {
        let parts = [part(1, 0, 400), part(1, 800, 1_000), odd, part(1, 400, 800)];
        assert_eq!(arrive(&mut table(), &parts), expected, "behind the last");
        let parts = [part(1, 0, 400), odd, part(1, 800, 1_000), part(1, 400, 800)];
        assert_eq!(arrive(&mut table(), &parts), expected, "the last one too early");
    }
}

#[test]
fn packets_are_told_apart_by_port_vlan_addresses_identification_and_protocol() {
    let first = part(1, 0, 400);
    let other_vlan = |headers: Headers| Headers {
        key: crate::FlowKey { vlan: 5, ..headers.key },
        vlan_tags: 1,
        ..headers
    };
    let gre = build::ip(ENDS, 47, &[0; 1_000]);
    let others = [
        part(2, 400, 800),
        part_of(&build::udp(ENDS, 1, 53, &[0; 992]), PortId(2), 1, 400, 800),
        other_vlan(part(1, 400, 800)),
        part_of(&build::udp(ENDS.reversed(), 1, 53, &[0; 992]), PORT, 1, 400, 800),
        part_of(&gre, PORT, 1, 400, 800),
    ];
    for other in others {
        assert_eq!(arrive(&mut table(), &[first, other]), [(0, Ok(7))], "{other:?} waits");
    }
}

#[test]
fn later_fragments_of_ipv6_belong_together_whatever_protocol_they_claim() {
    let first = part_of(&build::udp(ENDS_V6, 1, 53, &[0; 992]), PORT, 1, 0, 400);
    let later = part_of(&build::ip(ENDS_V6, 47, &[0; 1_000]), PORT, 1, 400, 1_000);
    assert_eq!(arrive(&mut table(), &[first, later]), [(0, Ok(7)), (1, Ok(7))]);
    let overlapping = part_of(&build::ip(ENDS_V6, 47, &[0; 1_000]), PORT, 1, 392, 1_000);
    assert_eq!(arrive(&mut table(), &[first, overlapping]), [(0, Ok(7)), (1, Err(OVERLAP))]);
}

#[test]
fn both_halves_come_from_and_go_to_the_same_station() {
    let elsewhere = build::Ends { eth_dst: MacAddr([2, 0, 0, 0, 0, 9]), ..ENDS };
    let other = part_of(&build::udp(elsewhere, 1, 53, &[0; 992]), PORT, 1, 400, 1_000);
    let parts = [part(1, 0, 400), other, part(1, 400, 1_000)];
    assert_eq!(arrive(&mut table(), &parts), [(0, Ok(7)), (1, Err(OVERLAP)), (2, Ok(7))]);
}

#[test]
fn a_flood_of_one_port_leaves_room_for_others() {
    let mut table = table();
    let flood: Vec<_> = (0..100).map(|id| part(id, 400, 800)).collect();
    let dropped = arrive(&mut table, &flood);
    assert_eq!(dropped.len(), 100 - 64 / PORT_SHARE);
    assert!(dropped.iter().all(|&(_, fate)| fate == Err(FULL)));
    let datagram = build::udp(ENDS, 1_000, 53, &[0; 992]);
    for port in 2..5 {
        for id in 0..16 {
            table.arrive(&part_of(&datagram, PortId(port), id, 400, 800), 0, 0, NOW);
        }
        assert_eq!(released(&mut table), []);
    }
    table.arrive(&part_of(&datagram, PortId(5), 0, 400, 800), 0, 1, NOW);
    assert_eq!(released(&mut table), [(1, Err(FULL))], "the whole store is full");
    let in_order = [part(1_000, 0, 400), part(1_000, 400, 1_000)];
    assert_eq!(arrive(&mut table, &in_order), [(0, Ok(7)), (1, Ok(7))], "these need no room");
}

#[test]
fn a_fragment_that_found_no_room_may_come_again() {
    let mut table = Fragments::new(&Settings::default(), 1);
    let parts = [part(1, 400, 800), part(1, 800, 1_000)];
    assert_eq!(arrive(&mut table, &parts), [(1, Err(FULL))]);
    let parts = [part(1, 0, 400), part(1, 800, 1_000)];
    assert_eq!(arrive(&mut table, &parts), [(0, Ok(7)), (0, Ok(7)), (1, Ok(7))]);
}

#[test]
fn a_port_follows_a_bounded_number_of_packets_and_forgets_its_oldest() {
    let mut table = table();
    table.arrive(&part(0, 400, 800), 0, 5_000, NOW);
    for id in 1..=DATAGRAMS as u32 {
        table.arrive(&part(id, 0, 400), 0, 0, NOW.plus(id.into()));
    }
    assert_eq!(table.datagrams.of(PORT).count(), DATAGRAMS);
    let all = released(&mut table);
    assert_eq!(all.last(), Some(&(5_000, Err(FULL))), "it waited for the oldest's first");
    assert_eq!(table.waiting(), 0);
}

#[test]
fn under_another_policy_nothing_that_waited_goes_on() {
    let mut table = table();
    table.arrive(&part(1, 400, 800), 0, 0, NOW);
    table.forget_waiting();
    table.arrive(&part(1, 0, 400), 0, 1, NOW);
    assert_eq!(released(&mut table), [(0, Err(EXPIRED)), (1, Err(EXPIRED))]);
}

#[test]
fn a_port_that_goes_takes_its_fragments_with_it() {
    let mut table = table();
    table.arrive(&part(1, 400, 800), 0, 0, NOW);
    table.forget_port(PortId(2));
    assert_eq!(released(&mut table), []);
    table.forget_port(PORT);
    assert_eq!(released(&mut table), [(0, Err(EXPIRED))]);
    assert_eq!((table.waiting(), table.datagrams.of(PORT).count()), (0, 0));
}

mod following {
    use super::*;

    fn flooded() -> Verdict {
        Verdict { action: Action::Flood, cause: Cause::Rule(RuleId(3)), would_drop: None }
    }

    fn follow(
        verdicts: &mut Verdicts,
        part: &Headers,
        epoch: u64,
        now: Nanos,
    ) -> (Verdict, Vec<PortId>) {
        let mut receivers = vec![PortId(99)];
        let verdict = verdicts.follow(part, epoch, now, &mut receivers);
        (verdict, receivers)
    }

    #[test]
    fn later_fragments_have_the_verdict_and_receivers_of_their_first_until_all_have_come() {
        let mut verdicts = Verdicts::new(&Settings::default());
        let ports = [PortId(4), PortId(5)];
        verdicts.remember(&part(1, 0, 400), flooded(), &ports, 1, NOW);
        let expected = (flooded(), ports.to_vec());
        assert_eq!(follow(&mut verdicts, &part(1, 800, 1_000), 1, NOW), expected);
        assert_eq!(follow(&mut verdicts, &part(1, 400, 800), 1, NOW), expected);
        let none = (Verdict::drop(EXPIRED), Vec::new());
        assert_eq!(follow(&mut verdicts, &part(1, 400, 800), 1, NOW), none, "all have come");
    }

    #[test]
    fn a_verdict_holds_for_its_epoch_and_for_the_timeout() {
        let first = part(1, 0, 400);
        for (epoch, wait, holds) in
            [(1, 29_999_999_999, true), (1, 30_000_000_000, false), (2, 0, false), (0, 0, false)]
        {
            let mut verdicts = Verdicts::new(&Settings::default());
            verdicts.remember(&first, flooded(), &[], 1, NOW);
            let verdict = follow(&mut verdicts, &part(1, 400, 800), epoch, NOW.plus(wait)).0;
            let expected = if holds { flooded() } else { Verdict::drop(EXPIRED) };
            assert_eq!(verdict, expected, "epoch {epoch}, {wait} ns");
        }
    }

    #[test]
    fn nothing_is_remembered_of_others_nor_of_a_port_that_is_gone() {
        let mut verdicts = Verdicts::new(&Settings::default());
        let none = (Verdict::drop(EXPIRED), Vec::new());
        verdicts.remember(&part(1, 400, 800), flooded(), &[], 1, NOW);
        assert_eq!(follow(&mut verdicts, &part(1, 800, 1_000), 1, NOW), none, "not a first one");
        verdicts.remember(&part(2, 0, 400), flooded(), &[], 1, NOW);
        verdicts.forget_port(PORT);
        assert_eq!(follow(&mut verdicts, &part(2, 400, 800), 1, NOW), none, "gone");
    }
}
