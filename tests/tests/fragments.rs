//! Fragments over the whole path: whole packets arrive, in pieces, or nothing of them does.

mod common;

use common::*;
use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::snapshot::Mode;
use firedoor_classifier::{DropReason, Snapshot};
use firedoor_tests::fabric::{Fabric, next_snapshot, snapshot};
use proptest::prelude::*;

const BOTH_FAMILIES: [(Host, Host); 2] = [(WEB, API), (WEB_SIX, API_SIX)];

/// A datagram to a service that web may ask api for, of 4,008 bytes.
fn allowed(ends: Ends) -> Vec<u8> {
    let payload: Vec<u8> = (0..4_000_u16).map(|n| n as u8).collect();
    build::udp(ends, 5_000, 53, &payload)
}

/// The same to one it may not.
fn denied(ends: Ends) -> Vec<u8> {
    build::udp(ends, 5_000, 54, &[0; 4_000])
}

/// What a host with an MTU of 1,500 makes of a frame.
fn cut(frame: &[u8], id: u32) -> Vec<Vec<u8>> {
    build::fragments(frame, id, 1_448)
}

fn send_all(fabric: &mut Fabric, from: &str, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    frames.iter().flat_map(|frame| fabric.send(from, frame)).map(|(_, frame)| frame).collect()
}

fn reversed(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    frames.iter().rev().cloned().collect()
}

fn of_mode(mode: Mode) -> Snapshot {
    Snapshot { mode, ..snapshot(CONFIG) }
}

#[test]
fn fragments_of_an_allowed_datagram_arrive_unchanged_and_make_a_connection() {
    for (from, to) in BOTH_FAMILIES {
        let mut fabric = switch(CONFIG);
        let parts = cut(&allowed(ends(from, to)), 1);
        assert_eq!(parts.len(), 3);
        for part in &parts {
            assert_eq!(fabric.send("web", part), [("api".into(), part.clone())]);
        }
        let answer = cut(&build::udp(ends(to, from), 53, 5_000, &[7; 4_000]), 9);
        assert_eq!(send_all(&mut fabric, "api", &answer), answer, "the answer has no rule");
        assert_eq!(fabric.drops(), []);
        fabric.finish();
    }
}

#[test]
fn early_ones_follow_their_first_in_the_order_in_which_they_came() {
    let mut fabric = switch(CONFIG);
    let parts = cut(&allowed(ends(WEB, API)), 1);
    assert_eq!(fabric.send("web", &parts[2]), []);
    assert_eq!(fabric.send("web", &parts[1]), []);
    let all = fabric.send("web", &parts[0]);
    let expected = [0, 2, 1].map(|part: usize| ("api".into(), parts[part].clone()));
    assert_eq!(all, expected);
    fabric.finish();
}

#[test]
fn a_denied_datagram_is_denied_in_every_order_and_mirrored_once() {
    for (from, to) in BOTH_FAMILIES {
        let parts = cut(&denied(ends(from, to)), 1);
        for parts in [parts.clone(), reversed(&parts)] {
            let mut fabric = switch(CONFIG);
            assert_eq!(send_all(&mut fabric, "web", &parts), Vec::<Vec<u8>>::new());
            assert_eq!(fabric.drops(), [(DropReason::DefaultDeny, 3)]);
            let record = fabric.mirrored().expect("the first fragment");
            assert_eq!((record.key.dst_port, record.reason), (54, DropReason::DefaultDeny));
            assert!(fabric.mirrored().is_none());
            fabric.finish();
        }
    }
}

#[test]
fn a_rejected_datagram_is_answered_once() {
    let mut fabric = switch(CONFIG);
    let parts = cut(&build::udp(ends(WEB, DB), 5_000, 5432, &[0; 4_000]), 1);
    let answers: Vec<_> = parts.iter().flat_map(|part| fabric.send("web", part)).collect();
    assert!(matches!(&answers[..], [(to, _)] if to == "web"), "{answers:?}");
    assert_eq!(fabric.drops(), [(DropReason::Rejected, 3)]);
    fabric.finish();
}

#[test]
fn later_fragments_alone_never_pass_whatever_connection_is_live() {
    let mut fabric = switch(CONFIG);
    assert_eq!(fabric.send("web", &build::udp(ends(WEB, API), 5_000, 53, b"?")).len(), 1);
    let parts = cut(&allowed(ends(WEB, API)), 1);
    assert_eq!(send_all(&mut fabric, "web", &parts[1..]), Vec::<Vec<u8>>::new());
    fabric.wait(30);
    assert_eq!(fabric.received(), []);
    assert_eq!(fabric.drops(), [(DropReason::FragmentExpired, 2)]);
    fabric.finish();
}

#[test]
fn a_verdict_of_another_policy_is_not_followed() {
    let mut fabric = switch(CONFIG);
    let parts = cut(&allowed(ends(WEB, API)), 1);
    assert_eq!(send_all(&mut fabric, "web", &parts[..1]).len(), 1);
    let same = next_snapshot(CONFIG, &snapshot(CONFIG));
    fabric.install(same);
    assert_eq!(send_all(&mut fabric, "web", &parts[1..]), Vec::<Vec<u8>>::new());
    assert_eq!(fabric.drops(), [(DropReason::FragmentExpired, 2)]);
    let again = cut(&allowed(ends(WEB, API)), 2);
    assert_eq!(send_all(&mut fabric, "web", &again), again, "sent again");
    fabric.finish();
}

#[test]
fn what_waits_when_the_policy_changes_is_dropped() {
    let mut fabric = switch(CONFIG);
    let parts = cut(&allowed(ends(WEB, API)), 1);
    assert_eq!(send_all(&mut fabric, "web", &parts[1..]), Vec::<Vec<u8>>::new());
    fabric.install(next_snapshot(CONFIG, &snapshot(CONFIG)));
    assert_eq!(send_all(&mut fabric, "web", &parts[..1]), Vec::<Vec<u8>>::new());
    assert_eq!(fabric.drops(), [(DropReason::FragmentExpired, 3)]);
    fabric.finish();
}

#[test]
fn learn_and_audit_relax_what_policy_says_of_the_first_and_nothing_else() {
    for mode in [Mode::Learn, Mode::Audit] {
        let mut fabric = switch_of(of_mode(mode));
        let parts = cut(&denied(ends(WEB, API)), 1);
        assert_eq!(send_all(&mut fabric, "web", &parts), parts, "{mode:?}");
        let would_drop = fabric.count(|counters| counters.would_drops(DropReason::DefaultDeny));
        assert_eq!(would_drop, 3);
        assert_eq!(fabric.drops(), []);

        let datagram = allowed(ends(WEB, API));
        assert_eq!(fabric.send("web", &build::fragment(&datagram, 2, 0..800)).len(), 1);
        assert_eq!(fabric.send("web", &build::fragment(&datagram, 2, 792..4_008)), []);
        assert_eq!(fabric.drops(), [(DropReason::FragmentOverlap, 1)]);
        fabric.finish();
    }
}

#[test]
fn a_flooded_datagram_reaches_all_receivers_whole() {
    let open = CONFIG.replace("to = { tier = \"api\" }", "to = { any = true }");
    let mut fabric = switch(&open);
    let parts = cut(&build::udp(multicast(), 5_000, 53, &[0; 4_000]), 1);
    for parts in [parts.clone(), reversed(&parts)] {
        parts.iter().for_each(|part| fabric.wire("web").send(part.clone()));
        fabric.settle();
        let received = fabric.received();
        for to in ["api", "db"] {
            let count = received.iter().filter(|(name, _)| name == to).count();
            assert_eq!(count, 3, "{to}");
        }
    }
    fabric.finish();
}

#[test]
fn fragments_change_vlan_tags_like_any_frame() {
    let mut fabric = switch(VLANS);
    let parts = cut(&build::udp(ends(WEB, API), 5_000, 53, &[0; 2_000]), 1);
    let tagged: Vec<_> = parts.iter().map(|part| build::tagged(part.clone(), &[10])).collect();
    assert_eq!(send_all(&mut fabric, "a", &parts), tagged);
    let back = cut(&build::udp(ends(API, WEB), 53, 5_000, &[0; 2_000]), 1);
    let wire: Vec<_> = back.iter().map(|part| build::tagged(part.clone(), &[10])).collect();
    assert_eq!(send_all(&mut fabric, "b", &reversed(&wire)).len(), 2);
    let other: Vec<_> = back.iter().map(|part| build::tagged(part.clone(), &[20])).collect();
    assert_eq!(send_all(&mut fabric, "b", &other), Vec::<Vec<u8>>::new(), "another VLAN's");
    fabric.finish();
}

#[test]
fn a_fragmented_ping_and_the_error_about_it_pass() {
    for (from, to) in BOTH_FAMILIES {
        let mut fabric = switch(CONFIG);
        let (there, back) = (ends(from, to), ends(to, from));
        let is_v4 = there.src.is_ipv4();
        let (request, reply) = if is_v4 { (8, 0) } else { (128, 129) };
        let echo = |ends, kind| {
            let header = firedoor_classifier::wire::icmp::Repr::query(kind, 7, 1);
            build::icmp_message(ends, header, &[0; 4_000])
        };
        let ping = cut(&echo(there, request), 1);
        assert_eq!(send_all(&mut fabric, "web", &ping), ping);
        let pong = cut(&echo(back, reply), 2);
        assert_eq!(send_all(&mut fabric, "api", &reversed(&pong)).len(), 3);

        let (kind, code) = if is_v4 { (11, 1) } else { (3, 1) };
        let quote = |part: &[u8]| part[14..].iter().copied().take(500).collect::<Vec<_>>();
        let about_first = build::icmp_error(back, kind, code, &quote(&ping[0]));
        assert_eq!(fabric.send("api", &about_first).len(), 1, "reassembly took too long");
        let about_later = build::icmp_error(back, kind, code, &quote(&ping[1]));
        assert_eq!(fabric.send("api", &about_later), []);
        assert_eq!(fabric.drops(), [(DropReason::IcmpUnrelated, 1)]);
        fabric.finish();
    }
}

#[test]
fn a_first_fragment_keeps_its_checksum() {
    let mut fabric = switch(CONFIG);
    let partial = build::partial(allowed(ends(WEB, API)));
    let parts = cut(&partial, 1);
    assert_eq!(send_all(&mut fabric, "web", &parts), parts);
    assert_eq!(fabric.count(|counters| counters.checksums_completed.get()), 0);
    fabric.finish();
}

#[test]
fn fragmented_tcp_follows_its_connection() {
    let mut fabric = switch(CONFIG);
    handshake(&mut fabric);
    let header = firedoor_classifier::wire::tcp::Repr {
        source_port: 40_000,
        destination_port: 8080,
        sequence: 101,
        acknowledgement: 501,
        flags: TcpFlags::ACK | TcpFlags::PSH,
        window: 64_240,
    };
    let parts = cut(&build::tcp_segment(ends(WEB, API), header, &[0; 4_000]), 1);
    assert_eq!(send_all(&mut fabric, "web", &parts), parts);
    let back = ends(API, WEB);
    let acknowledged = segment(back, (8080, 40_000), TcpFlags::ACK, 501, 4_101);
    assert_eq!(fabric.send("api", &acknowledged).len(), 1);
    let stray = build::tcp_segment(ends(WEB, API), tcp_of(40_001), &[0; 4_000]);
    assert_eq!(send_all(&mut fabric, "web", &cut(&stray, 2)), Vec::<Vec<u8>>::new());
    assert_eq!(fabric.drops(), [(DropReason::TcpNotSyn, 3)]);
    fabric.finish();
}

fn tcp_of(source_port: u16) -> firedoor_classifier::wire::tcp::Repr {
    firedoor_classifier::wire::tcp::Repr {
        source_port,
        destination_port: 8080,
        flags: TcpFlags::ACK,
        ..Default::default()
    }
}

#[test]
fn an_atomic_fragment_is_judged_as_the_whole_packet_that_it_is() {
    let atomic = |port| {
        let datagram = build::udp(ends(WEB_SIX, API_SIX), 5_000, port, b"?");
        build::fragment(&datagram, 1, 0..usize::MAX)
    };
    let mut fabric = switch(CONFIG);
    assert_eq!(fabric.send("web", &atomic(53)), [("api".into(), atomic(53))]);
    assert_eq!(fabric.send("web", &atomic(54)), []);
    assert_eq!(fabric.drops(), [(DropReason::DefaultDeny, 1)]);
    fabric.finish();
}

/// The first fragment's connection lives at one worker, the hash of the packet may name another, and
/// the ports are dealt out among all.
#[test]
fn with_several_workers_fragments_find_their_first() {
    for workers in [2, 3] {
        let mut fabric = Fabric::with_workers(CONFIG, workers);
        let mut expired = 0;
        for n in 0..48_u16 {
            let (from, to) = BOTH_FAMILIES[usize::from(n % 2)];
            let (there, back) = (ends(from, to), ends(to, from));
            let ask = cut(&build::udp(there, 5_000 + n, 53, &[0; 4_000]), n.into());
            let ask = if n % 3 == 0 { reversed(&ask) } else { ask };
            assert_eq!(send_all(&mut fabric, "web", &ask).len(), 3);
            let answer = cut(&build::udp(back, 53, 5_000 + n, &[0; 4_000]), n.into());
            assert_eq!(send_all(&mut fabric, "api", &answer), answer, "one connection");
            let whole = build::udp(back, 53, 5_000 + n, b"whole");
            assert_eq!(fabric.send("api", &whole).len(), 1, "of both");
            let shut = cut(&build::udp(there, 5_000 + n, 54, &[0; 4_000]), 1_000 + u32::from(n));
            assert_eq!(send_all(&mut fabric, "web", &shut), Vec::<Vec<u8>>::new());
            expired += u64::from(fabric.drops().iter().any(|d| d.0 == DropReason::FragmentExpired));
        }
        assert_eq!((fabric.drops(), expired), (vec![(DropReason::DefaultDeny, 3 * 48)], 0));
        fabric.finish();
    }
}

/// A bound of each worker, so of one alone.
#[test]
fn a_flood_of_early_fragments_takes_neither_frames_nor_room_from_others() {
    let mut fabric = Fabric::new(CONFIG);
    let datagram = allowed(ends(WEB, API));
    (0..1_000).for_each(|id| fabric.wire("web").send(build::fragment(&datagram, id, 1_448..2_896)));
    fabric.settle();
    assert_eq!(fabric.count(|c| c.drops(DropReason::FragmentsFull)), 1_000 - 16);
    let mine = cut(&allowed(ends(WEB, API)), 5_000);
    assert_eq!(send_all(&mut fabric, "web", &mine), mine, "in order, its own pass too");
    let db = cut(&build::udp(ends(DB, API), 5_000, 53, &[0; 4_000]), 1);
    let of_db = send_all(&mut fabric, "db", &reversed(&db));
    assert_eq!(of_db, Vec::<Vec<u8>>::new());
    assert_eq!(fabric.count(|c| c.drops(DropReason::DefaultDeny)), 3, "judged, not out of room");
    fabric.finish();
}

#[test]
fn a_port_that_is_removed_takes_its_fragments_with_it() {
    let mut fabric = switch(CONFIG);
    let parts = cut(&allowed(ends(WEB, API)), 1);
    assert_eq!(send_all(&mut fabric, "web", &parts[1..]), Vec::<Vec<u8>>::new());
    fabric.unplug("web");
    assert_eq!(fabric.drops(), [(DropReason::FragmentExpired, 2)]);
    fabric.plug_in("web");
    assert_eq!(send_all(&mut fabric, "web", &parts[..1]).len(), 1, "and nothing behind it");
    fabric.finish();
}

/// One datagram of a random history: cut somewhere, shuffled, some parts twice.
#[derive(Clone, Debug)]
struct Datagram {
    port: u16,
    is_v6: bool,
    id: u32,
    parts: Vec<std::ops::Range<usize>>,
}

const LENGTH: usize = 1_608;

fn datagram() -> impl Strategy<Value = Datagram> {
    let port = prop_oneof![3 => Just(53_u16), 1 => Just(54)];
    let cuts = prop::collection::btree_set(1..LENGTH / 8, 1..6);
    let overlaps = prop::collection::vec((1..LENGTH / 8, 1..8_usize), 0..2);
    let parts = (cuts, overlaps, any::<bool>()).prop_flat_map(|(cuts, overlaps, inject)| {
        let places: Vec<_> = [0].into_iter().chain(cuts).map(|unit| unit * 8).collect();
        let ends = places[1..].iter().copied().chain([LENGTH]);
        let mut parts: Vec<_> = places.iter().copied().zip(ends).map(|(a, b)| a..b).collect();
        if inject {
            parts.extend(overlaps.into_iter().map(|(at, len)| at * 8..(at + len) * 8));
        }
        Just(parts).prop_shuffle()
    });
    (port, any::<bool>(), 0..4_u32, parts).prop_map(|(port, is_v6, id, parts)| Datagram {
        port,
        is_v6,
        id,
        parts,
    })
}

/// What a receiver has of the fragments that reached it: each byte once, and a first fragment's
/// header before anything else.
fn check_received(received: &[Vec<u8>]) -> Result<(), TestCaseError> {
    use firedoor_classifier::PortId;
    use firedoor_classifier::extract::{Kind, extract};
    let mut packets = std::collections::BTreeMap::<_, Vec<bool>>::new();
    for frame in received {
        let headers = extract(frame, PortId(0)).expect("the switch sends what it could read");
        let fragment = headers.fragment.expect("only fragments were sent");
        let packet = packets.entry((headers.key.src, fragment.id));
        if headers.kind != Kind::LaterFragment {
            prop_assert_eq!(headers.key.dst_port, 53, "policy allows no other");
        }
        let bytes = packet.or_insert_with(|| vec![false; 65_536]);
        let part = usize::from(fragment.offset)..fragment.end() as usize;
        prop_assert!(fragment.is_first() || bytes[0], "the first one came first");
        prop_assert!(bytes[part.clone()].iter().all(|&seen| !seen), "no byte came twice");
        bytes[part].fill(true);
        let total = bytes.iter().filter(|&&seen| seen).count();
        if total == LENGTH {
            packets.remove(&(headers.key.src, fragment.id));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Fragments of several datagrams, mixed: those of denied ones never pass, no byte passes twice,
    /// and what passes follows a first fragment that policy allows. A datagram whose fragments nothing
    /// overlaps passes whole iff policy allows it whole.
    #[test]
    fn random_fragments_pass_only_behind_a_judged_first_and_never_twice(
        datagrams in prop::collection::vec(datagram(), 1..5),
        workers in 1..3_u16,
        order in any::<prop::sample::Index>(),
    ) {
        let roomy = CONFIG.replace("max_flows = 1024", "max_flows = 1024\nmax_fragments = 256");
        let mut fabric = Fabric::with_workers(&roomy, workers);
        let frames: Vec<Vec<Vec<u8>>> = datagrams.iter().map(|datagram| {
            let ends = if datagram.is_v6 { ends(WEB_SIX, API_SIX) } else { ends(WEB, API) };
            let whole = build::udp(ends, 5_000, datagram.port, &[0x55; LENGTH - 8]);
            let parts = datagram.parts.iter().cloned();
            parts.map(|part| build::fragment(&whole, datagram.id, part)).collect()
        }).collect();
        let longest = frames.iter().map(Vec::len).max().unwrap_or(0);
        let (mut received, mut sent) = (Vec::new(), 0);
        for round in 0..longest {
            for turn in 0..frames.len() {
                let nth = (turn + order.index(frames.len())) % frames.len();
                let Some(frame) = frames[nth].get(round) else { continue };
                sent += 1;
                received.extend(send_all(&mut fabric, "web", std::slice::from_ref(frame)));
            }
        }
        fabric.wait(31);
        received.extend(fabric.received().into_iter().map(|(_, frame)| frame));
        check_received(&received)?;
        for (nth, datagram) in datagrams.iter().enumerate() {
            let name = (datagram.is_v6, datagram.id);
            let namesakes = datagrams.iter().filter(|other| (other.is_v6, other.id) == name);
            let bytes: usize = datagram.parts.iter().map(std::ops::Range::len).sum();
            if namesakes.count() == 1 && bytes == LENGTH {
                let arrived = frames[nth].iter().filter(|frame| received.contains(frame)).count();
                let expected = if datagram.port == 53 { frames[nth].len() } else { 0 };
                prop_assert_eq!(arrived, expected, "of {:?}", datagram);
            }
        }
        let dropped: u64 = fabric.drops().iter().map(|&(_, count)| count).sum();
        prop_assert_eq!(received.len() as u64 + dropped, sent, "each was sent or dropped");
        fabric.finish();
    }
}
