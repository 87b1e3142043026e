//! The table as its callers see it: by scenario, and against a slow oracle.

mod model;

use super::*;
use crate::extract::{Kind, TcpFields};
use crate::snapshot::RuleId;
use crate::wire::tcp::TcpFlags;

const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const RST: TcpFlags = TcpFlags::RST;
const FIN: TcpFlags = TcpFlags::FIN;

const A: u128 = 0xffff_0a00_0001;
const B: u128 = 0xffff_0a00_0002;
const TIMEOUTS: Timeouts = Timeouts {
    tcp_handshake: 30,
    tcp_established: 7_440,
    tcp_closing: 120,
    tcp_time_wait: 60,
    tcp_reset: 10,
    udp_single: 20,
    udp_both: 180,
    icmp: 40,
    other: 600,
};

/// A frame from host `src` to host `dst`: hosts are ports, and their MAC ends in the number.
fn frame(protocol: u8, hosts: (u16, u16), src_port: u16, dst_port: u16) -> Headers {
    let key = FlowKey {
        ingress: PortId(hosts.0),
        vlan: 7,
        ether_type: 0x0800,
        protocol,
        tcp_flags: 0,
        eth_dst: mac(hosts.1),
        eth_src: mac(hosts.0),
        src: addr(hosts.0),
        dst: addr(hosts.1),
        src_port,
        dst_port,
    };
    let tcp = TcpFields::default();
    Headers { key, vlan_tags: 0, l3: 14, l4: 34, end: 60, tcp, kind: Kind::Plain, fragment: None }
}

fn mac(host: u16) -> MacAddr {
    let [high, low] = host.to_be_bytes();
    MacAddr([2, 0, 0, 0, high, low])
}

fn addr(host: u16) -> u128 {
    A - 1 + u128::from(host)
}

fn tcp(hosts: (u16, u16), ports: (u16, u16), flags: TcpFlags, seq: u32, ack: u32) -> Headers {
    let mut headers = frame(protocol::TCP, hosts, ports.0, ports.1);
    headers.key.tcp_flags = flags.bits();
    headers.tcp = TcpFields { seq, ack, window: 1_000, payload: 0, window_scale: None };
    headers
}

fn udp(hosts: (u16, u16), ports: (u16, u16)) -> Headers {
    frame(protocol::UDP, hosts, ports.0, ports.1)
}

fn echo(hosts: (u16, u16), identifier: u16, kind: u8) -> Headers {
    frame(protocol::ICMP, hosts, identifier, u16::from(kind) << 8)
}

fn commit_of(headers: &Headers, output: u16, epoch: u64) -> Commit {
    Commit {
        output: PortId(output),
        reply_mac: headers.key.eth_dst,
        cause: Cause::Rule(RuleId(3)),
        would_drop: None,
        epoch,
    }
}

fn limits(connections: u32) -> Limits {
    Limits { connections, per_port: u32::MAX, timeouts: TIMEOUTS, tcp_window_check: true }
}

fn table(max: u32) -> Connections {
    Connections::with_seed(limits(max), 1)
}

/// Commits a frame to the port of the host that it is for.
fn begin(table: &mut Connections, headers: &Headers, now: Nanos) -> Result<(), DropReason> {
    let output = (headers.key.dst - (A - 1)) as u16;
    table.commit(headers, commit_of(headers, output, 1), 100, now).map(drop)
}

fn hit(lookup: Lookup) -> Hit {
    match lookup {
        Lookup::Current(hit) => hit,
        other => panic!("no current connection: {other:?}"),
    }
}

/// Looks a frame up and, if it is a connection's, lets it pass.
fn pass(table: &mut Connections, headers: &Headers, now: Nanos) -> Lookup {
    let lookup = table.lookup(headers, 1, now);
    if let Lookup::Current(hit) = lookup {
        table.observe(&hit, headers, 100, now);
    }
    lookup
}

/// Opens TCP from host 1 to host 2.
fn establish(table: &mut Connections, ports: (u16, u16), now: Nanos) {
    begin(table, &tcp((1, 2), ports, SYN, 10, 0), now).unwrap();
    let back = (ports.1, ports.0);
    hit(pass(table, &tcp((2, 1), back, SYN | ACK, 90, 11), now));
    hit(pass(table, &tcp((1, 2), ports, ACK, 11, 91), now));
}

fn secs(secs: u64) -> Nanos {
    Nanos::from_secs(secs)
}

/// A million connections may take 160 MB; here a fiftieth of that, at the bound.
#[test]
fn a_full_table_takes_160_bytes_a_connection() {
    let max = 5 * 4_096;
    let mut table = table(u32::from(max));
    for n in 0..max {
        let headers = udp((1, 2), (n, 53));
        begin(&mut table, &headers, secs(0)).unwrap();
    }
    assert_eq!(table.len(), usize::from(max));
    let each = table.memory() as f64 / f64::from(max);
    assert!(each <= 160.0, "{each} bytes");
}

#[test]
fn a_raised_bound_holds_at_once_and_finds_what_was_there() {
    let mut table = table(2);
    let flows: Vec<Headers> = (1..=600).map(|port| tcp((1, 2), (port, 80), SYN, 10, 0)).collect();
    for (bound, flows) in [(2, &flows[..2]), (100, &flows[..100]), (600, &flows[..])] {
        table.configure(limits(bound));
        for headers in flows {
            if table.lookup(headers, 1, secs(0)) == Lookup::Miss {
                begin(&mut table, headers, secs(0)).unwrap();
            }
        }
        assert_eq!((table.len(), table.stats().evicted), (bound as usize, 0));
        table.set_aside();
    }
    let mut hints = Hints::new();
    table.prepare(&flows, &mut hints, |_| ());
    for (at, headers) in flows.iter().enumerate() {
        let hinted = hints.get(at).map(|hint| table.lookup_hinted(headers, hint, 1, secs(1)));
        assert_eq!(hinted.is_some(), at < BATCH);
        let found = table.lookup(headers, 1, secs(1));
        assert!(hinted.is_none_or(|hinted| hinted == found) && found != Lookup::Miss);
    }
    flows.iter().for_each(|headers| {
        let id = hit(table.lookup(headers, 1, secs(1))).id;
        table.remove(id);
    });
    table.table.check(secs(1));
}

/// When what may be silent for so long has certainly timed out.
fn after(timeout: u64) -> Nanos {
    Nanos::from_millis(timeout * 1_000 + 34)
}

#[test]
fn a_reply_finds_the_connection_and_leaves_by_the_first_frames_port() {
    let mut table = table(8);
    let first = udp((1, 2), (1000, 53));
    begin(&mut table, &first, secs(5)).unwrap();
    let there = hit(table.lookup(&first, 1, secs(6)));
    let back = hit(table.lookup(&udp((2, 1), (53, 1000)), 1, secs(6)));
    assert_eq!((there.side, there.output), (Side::Original, PortId(2)));
    assert_eq!((back.side, back.output), (Side::Reply, PortId(1)));
    assert_eq!(table.original(back.id), Some(first.key));
    assert_eq!(table.verdict(back.id), (Cause::Rule(RuleId(3)), None));
}

#[test]
fn another_port_mac_vlan_or_protocol_is_a_miss() {
    let mut table = table(8);
    begin(&mut table, &udp((1, 2), (1000, 53)), secs(0)).unwrap();
    for reply in [false, true] {
        let own = if reply { udp((2, 1), (53, 1000)) } else { udp((1, 2), (1000, 53)) };
        hit(table.lookup(&own, 1, secs(1)));
        let changes: [fn(&mut FlowKey); 7] = [
            |key| key.ingress = PortId(9),
            |key| key.eth_src = mac(9),
            |key| key.eth_dst = mac(9),
            |key| key.vlan = 8,
            |key| key.protocol = 132,
            |key| key.src_port += 1,
            |key| key.dst = addr(9),
        ];
        for change in changes {
            let mut other = own;
            change(&mut other.key);
            assert_eq!(table.lookup(&other, 1, secs(1)), Lookup::Miss, "{other:?}");
        }
    }
}

#[test]
fn a_reused_echo_identifier_lets_nothing_through() {
    let mut table = table(8);
    begin(&mut table, &echo((1, 2), 77, 8), secs(0)).unwrap();
    hit(table.lookup(&echo((1, 2), 77, 8), 1, secs(1)));
    assert_eq!(hit(table.lookup(&echo((2, 1), 77, 0), 1, secs(1))).side, Side::Reply);
    let others =
        [echo((2, 1), 77, 8), echo((1, 2), 77, 0), echo((1, 3), 77, 8), echo((3, 1), 77, 0)];
    for other in others {
        assert_eq!(table.lookup(&other, 1, secs(1)), Lookup::Miss, "{other:?}");
    }
    begin(&mut table, &echo((2, 1), 77, 8), secs(1)).unwrap();
    assert_eq!(table.len(), 2);
    assert_eq!(hit(table.lookup(&echo((1, 2), 77, 0), 1, secs(1))).side, Side::Reply);
}

#[test]
fn frames_that_are_not_tracked_leave_nothing() {
    let mut table = table(8);
    let mut nd = frame(protocol::ICMPV6, (1, 2), 0, 135 << 8);
    nd.kind = Kind::Nd(crate::extract::Nd {
        message: crate::extract::NdMessage::NeighborSolicitation,
        target: 0,
        link_addr: None,
    });
    for headers in [echo((1, 2), 77, 0), nd, echo((1, 2), 0, 11)] {
        assert!(!Connections::may_begin(&headers, true));
        let id = table.commit(&headers, commit_of(&headers, 2, 1), 100, secs(0));
        assert_eq!(id, Ok(ConnectionId::NONE));
        assert!(table.is_empty());
    }
}

#[test]
fn only_a_syn_begins_tcp_unless_midstream() {
    let may =
        |flags, midstream| Connections::may_begin(&tcp((1, 2), (1, 2), flags, 0, 0), midstream);
    assert!(may(SYN, false) && may(SYN, true));
    for flags in [ACK, SYN | ACK, FIN | ACK] {
        assert!(!may(flags, false) && may(flags, true), "{flags:?}");
    }
    for flags in [TcpFlags::empty(), RST, RST | ACK, SYN | FIN] {
        assert!(!may(flags, false) && !may(flags, true), "{flags:?}");
    }
}

#[test]
fn a_stale_entry_is_renewed_or_removed() {
    let mut table = table(8);
    let first = udp((1, 2), (1000, 53));
    begin(&mut table, &first, secs(0)).unwrap();
    let Lookup::Stale(stale) = table.lookup(&first, 2, secs(1)) else { panic!() };
    assert_eq!(table.original(stale.id), Some(first.key));
    let mut commit = commit_of(&first, 5, 2);
    commit.would_drop = Some(DropReason::Denied);
    commit.cause = Cause::Default;
    table.refresh(stale.id, commit);
    let renewed = hit(table.lookup(&first, 2, secs(1)));
    assert_eq!(renewed.output, PortId(5));
    assert_eq!(table.verdict(renewed.id), (Cause::Default, Some(DropReason::Denied)));
    table.remove(stale.id);
    assert_eq!(table.lookup(&first, 2, secs(1)), Lookup::Miss);
    table.remove(stale.id);
    assert_eq!(table.stats(), ConnectionStats { created: 1, ended: 1, ..Default::default() });
}

#[test]
fn tcp_moves_by_observed_frames_only() {
    let mut table = table(8);
    begin(&mut table, &tcp((1, 2), (5, 80), SYN, 10, 0), secs(0)).unwrap();
    let syn_ack = tcp((2, 1), (80, 5), SYN | ACK, 90, 11);
    let ack = tcp((1, 2), (5, 80), ACK, 11, 91);
    hit(table.lookup(&syn_ack, 1, secs(1)));
    assert_eq!(table.lookup(&ack, 1, secs(1)), Lookup::Invalid(DropReason::TcpState));
    hit(pass(&mut table, &syn_ack, secs(1)));
    hit(pass(&mut table, &ack, secs(1)));
    assert_eq!(table.list(0, 1, secs(1)).0[0].state, "established");
}

#[test]
fn ports_may_be_used_again_after_a_reset() {
    let mut table = table(8);
    establish(&mut table, (5, 80), secs(0));
    let syn = tcp((1, 2), (5, 80), SYN, 5_000, 0);
    hit(pass(&mut table, &syn, secs(1)));
    hit(pass(&mut table, &tcp((1, 2), (5, 80), RST, 11, 0), secs(1)));
    assert_eq!(table.lookup(&syn, 1, secs(1)), Lookup::Miss);
    begin(&mut table, &syn, secs(1)).unwrap();
    assert_eq!(table.len(), 1);
    assert_eq!(table.list(0, 1, secs(1)).0[0].state, "syn-sent");
}

#[test]
fn an_error_goes_to_the_sender_of_what_it_quotes() {
    let mut table = table(8);
    begin(&mut table, &udp((1, 2), (1000, 53)), secs(0)).unwrap();
    begin(&mut table, &echo((1, 2), 77, 8), secs(0)).unwrap();
    let embedded = |protocol, src, dst, src_port, dst_port| Embedded {
        protocol,
        src,
        dst,
        src_port,
        dst_port,
        seq: None,
    };
    for (quoted, side, output) in [
        (embedded(17, A, B, 1000, 53), Side::Reply, 1),
        (embedded(17, B, A, 53, 1000), Side::Original, 2),
        (embedded(1, A, B, 77, 8 << 8), Side::Reply, 1),
        (embedded(1, B, A, 77, 0), Side::Original, 2),
    ] {
        let hit = hit(table.lookup_embedded(&quoted, 7, 1, secs(1)));
        assert_eq!((hit.side, hit.output), (side, PortId(output)), "{quoted:?}");
        assert!(matches!(table.lookup_embedded(&quoted, 7, 2, secs(1)), Lookup::Stale(_)));
        assert_eq!(table.lookup_embedded(&quoted, 8, 1, secs(1)), Lookup::Miss);
        assert_eq!(table.lookup_embedded(&quoted, 7, 1, secs(99)), Lookup::Miss);
    }
    for unrelated in [embedded(17, A, B, 1000, 54), embedded(1, B, A, 77, 8 << 8)] {
        assert_eq!(table.lookup_embedded(&unrelated, 7, 1, secs(1)), Lookup::Miss);
    }
}

#[test]
fn with_the_window_check_an_error_must_quote_what_is_under_way() {
    for tcp_window_check in [false, true] {
        let mut table = Connections::with_seed(Limits { tcp_window_check, ..limits(8) }, 1);
        establish(&mut table, (1000, 80), secs(0));
        let quoted = |seq| {
            let (protocol, src_port, dst_port) = (protocol::TCP, 1000, 80);
            Embedded { protocol, src: A, dst: B, src_port, dst_port, seq }
        };
        for (seq, is_right) in [(None, true), (Some(11), true), (Some(12), false), (Some(9), false)]
        {
            let found = table.lookup_embedded(&quoted(seq), 7, 1, secs(1));
            assert_eq!(found != Lookup::Miss, is_right || !tcp_window_check, "{seq:?}");
        }
    }
}

#[test]
fn silence_ends_a_connection_after_its_states_timeout() {
    let mut table = table(8);
    let (there, back) = (udp((1, 2), (1, 53)), udp((2, 1), (53, 1)));
    begin(&mut table, &there, secs(0)).unwrap();
    hit(table.lookup(&back, 1, secs(20)));
    assert_eq!(table.lookup(&back, 1, after(20)), Lookup::Miss);
    hit(pass(&mut table, &back, secs(19)));
    hit(pass(&mut table, &there, secs(198)));
    assert_eq!(table.expire(secs(377), 9), 0);
    assert_eq!(table.lookup(&there, 1, after(378)), Lookup::Miss);
    assert_eq!(table.expire(secs(380), 9), 1);
    assert!(table.is_empty());
}

#[test]
fn expiry_is_bounded_and_reaches_every_class() {
    let mut table = table(100);
    for port in 0..10 {
        begin(&mut table, &udp((1, 2), (port, 53)), secs(0)).unwrap();
        begin(&mut table, &tcp((1, 2), (port, 80), SYN, 1, 0), secs(0)).unwrap();
        begin(&mut table, &echo((1, 2), port, 8), secs(0)).unwrap();
    }
    for left in (0..10).rev() {
        assert_eq!(table.expire(secs(50), 3), 3);
        assert_eq!(table.len(), left * 3);
    }
    assert_eq!(table.expire(secs(50), 3), 0);
}

#[test]
fn a_full_table_gives_up_half_open_first_and_established_never() {
    let mut table = table(7);
    establish(&mut table, (1, 80), secs(0));
    begin(&mut table, &echo((1, 2), 1, 8), secs(1)).unwrap();
    begin(&mut table, &udp((1, 2), (1, 53)), secs(2)).unwrap();
    begin(&mut table, &udp((1, 2), (2, 53)), secs(4)).unwrap();
    begin(&mut table, &tcp((1, 2), (2, 80), SYN, 1, 0), secs(6)).unwrap();
    begin(&mut table, &tcp((1, 2), (3, 80), SYN, 1, 0), secs(8)).unwrap();
    establish(&mut table, (4, 80), secs(8));
    hit(pass(&mut table, &tcp((1, 2), (4, 80), RST, 11, 0), secs(8)));
    let victims = [
        tcp((1, 2), (2, 80), SYN, 1, 0),
        tcp((1, 2), (3, 80), SYN, 1, 0),
        udp((1, 2), (1, 53)),
        udp((1, 2), (2, 53)),
        echo((1, 2), 1, 8),
        tcp((1, 2), (4, 80), RST, 11, 0),
    ];
    for (count, victim) in victims.iter().enumerate() {
        let now = secs(9);
        hit(table.lookup(victim, 1, now));
        let host = 10 + count as u16;
        begin(&mut table, &frame(47, (1, host), 0, 0), now).unwrap();
        hit(pass(&mut table, &frame(47, (host, 1), 0, 0), now));
        assert_eq!(table.lookup(victim, 1, now), Lookup::Miss, "{victim:?}");
        assert_eq!(table.stats().evicted, count as u64 + 1);
    }
    let refused = begin(&mut table, &udp((1, 2), (9, 9)), secs(9));
    assert_eq!(refused, Err(DropReason::ConnectionsFull));
    hit(table.lookup(&tcp((1, 2), (1, 80), ACK, 11, 91), 1, secs(9)));
    assert_eq!((table.len(), table.stats().refused), (7, 1));
}

/// It takes no answer to send any protocol to any number of addresses, so nobody may fill the table
/// for all by that.
#[test]
fn protocols_without_an_answer_do_not_keep_others_out() {
    let mut table = table(4);
    begin(&mut table, &frame(47, (1, 2), 0, 0), secs(0)).unwrap();
    hit(pass(&mut table, &frame(47, (2, 1), 0, 0), secs(0)));
    for host in 3..9 {
        begin(&mut table, &frame(47, (1, host), 0, 0), secs(1)).unwrap();
    }
    establish(&mut table, (1, 80), secs(2));
    hit(table.lookup(&frame(47, (1, 2), 0, 0), 1, secs(2)));
    assert_eq!((table.len(), table.stats().evicted), (4, 4));
}

#[test]
fn a_full_table_makes_room_of_what_has_timed_out() {
    let mut table = table(1);
    establish(&mut table, (1, 80), secs(0));
    let other = udp((1, 3), (1, 53));
    assert_eq!(begin(&mut table, &other, secs(7_440)), Err(DropReason::ConnectionsFull));
    assert_eq!(begin(&mut table, &other, after(7_440)), Ok(()));
    assert_eq!(table.stats().evicted, 0);
}

#[test]
fn a_lowered_bound_keeps_what_lives_and_refuses_more() {
    let mut table = table(4);
    for port in 0..4 {
        begin(&mut table, &udp((1, 2), (port, 53)), secs(0)).unwrap();
    }
    table.configure(limits(2));
    assert_eq!(begin(&mut table, &udp((1, 2), (9, 53)), secs(1)), Err(DropReason::ConnectionsFull));
    table.configure(Limits { per_port: 2, ..limits(9) });
    let refused = begin(&mut table, &udp((1, 2), (9, 53)), secs(1));
    assert_eq!(refused, Err(DropReason::PortConnectionsFull));
    assert_eq!(table.len(), 4);
    begin(&mut table, &udp((1, 2), (3, 53)), secs(1)).unwrap();
    let short = Timeouts { udp_single: 2, ..TIMEOUTS };
    table.configure(Limits { timeouts: short, ..limits(2) });
    assert_eq!(table.expire(secs(3), 9), 3);
    begin(&mut table, &udp((1, 2), (9, 53)), secs(3)).unwrap();
}

#[test]
fn pages_cover_the_table_once() {
    let mut table = table(100);
    for port in 0..100 {
        begin(&mut table, &udp((1, 2), (port, 53)), secs(0)).unwrap();
        if port % 3 == 0 {
            let gone = hit(table.lookup(&udp((1, 2), (port, 53)), 1, secs(0)));
            table.remove(gone.id);
        }
    }
    let (mut seen, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let (page, next) = table.list(at, 7, secs(1));
        assert!(page.len() <= 7 && next.is_none_or(|next| next > at));
        seen.extend(page.iter().map(|info| info.original.src_port));
        from = next;
    }
    seen.sort_unstable();
    let live: Vec<u16> = (0..100).filter(|port| port % 3 != 0).collect();
    assert_eq!(seen, live);
}

#[test]
fn udp_is_established_at_once_and_tcp_between_its_handshake_and_both_ends() {
    let (mut table, empty) = (table(10), table(10));
    let (there, back) = ((1, 2), (2, 1));
    let ask = |table: &Connections, headers: &Headers| {
        let (mut hints, found) = (Hints::new(), table.established(headers, 1, secs(0)));
        for prepared in [table, &empty] {
            prepared.prepare(std::slice::from_ref(headers), &mut hints, |_| ());
            let hint = hints.get(0).unwrap();
            assert_eq!(table.established_hinted(headers, hint, 1, secs(0)), found);
        }
        found
    };

    let (question, answer) = (udp(there, (5, 53)), udp(back, (53, 5)));
    begin(&mut table, &question, secs(0)).unwrap();
    assert_eq!(ask(&table, &question).map(|it| it.frames), Some([1, 0]), "one way");
    hit(pass(&mut table, &answer, secs(0)));
    let established = ask(&table, &answer).expect("both have spoken");
    assert_eq!((established.original, established.output), (question.key, PortId(2)));
    assert_eq!(established.frames, [1, 1]);
    assert_eq!(ask(&table, &question), Some(established));
    assert_eq!(table.established(&question, 2, secs(0)), None, "of another epoch");
    assert_eq!(table.established(&question, 1, secs(200)), None, "timed out");
    let elsewhere = Headers { key: FlowKey { ingress: PortId(9), ..question.key }, ..question };
    assert_eq!(ask(&table, &elsewhere), None, "another port's frame");
    let is_still =
        |table: &Connections, key| table.still_established(established.id, key).is_some();
    assert!(is_still(&table, &question.key));
    assert!(!is_still(&table, &answer.key), "another connection");
    table.remove(established.id);
    assert!(!is_still(&table, &question.key));

    let data = tcp(there, (1, 80), ACK, 11, 91);
    begin(&mut table, &tcp(there, (1, 80), SYN, 10, 0), secs(0)).unwrap();
    let asked = ask(&table, &data).map(|it| (it.stage, it.answer));
    assert_eq!(asked, Some((Stage::Asked, 11)), "nobody has answered");
    hit(pass(&mut table, &tcp(back, (80, 1), SYN | ACK, 90, 11), secs(0)));
    assert_eq!(ask(&table, &data).map(|it| it.stage), Some(Stage::Opening));
    hit(pass(&mut table, &data, secs(0)));
    let established = ask(&table, &data).expect("the handshake is complete");
    assert_eq!(established.stage, Stage::Open);
    hit(pass(&mut table, &tcp(there, (1, 80), FIN | ACK, 11, 91), secs(0)));
    let half_closed = ask(&table, &data).expect("one side may go on");
    assert_eq!(half_closed.id, established.id);
    assert_eq!(half_closed.frames[0], established.frames[0] + 1);
    hit(pass(&mut table, &tcp(back, (80, 1), FIN | ACK, 91, 12), secs(0)));
    assert_eq!(ask(&table, &data).map(|it| it.stage), Some(Stage::Closing), "a last ACK may come");
}

#[test]
fn what_lives_by_audit_alone_is_not_established() {
    let mut table = table(10);
    let question = udp((1, 2), (5, 53));
    let would_drop = Some(DropReason::DefaultDeny);
    let commit = Commit { would_drop, ..commit_of(&question, 2, 1) };
    table.commit(&question, commit, 100, secs(0)).unwrap();
    hit(pass(&mut table, &udp((2, 1), (53, 5)), secs(0)));
    assert_eq!(table.established(&question, 1, secs(0)), None);
}

#[test]
fn a_handshake_may_be_completed_past_the_table() {
    let mut table = table(10);
    begin(&mut table, &tcp((1, 2), (1, 80), SYN, 10, 0), secs(0)).unwrap();
    let id = hit(pass(&mut table, &tcp((2, 1), (80, 1), SYN | ACK, 90, 11), secs(0))).id;
    let state = |table: &Connections| table.list(0, 1, secs(1)).0[0].state;
    let credit = |next, ack| Credit {
        frames: 1,
        bytes: 60,
        tcp: Some(Sent { next, ack, window: 9, has_ended: false }),
    };
    table.credit(id, Side::Reply, &credit(191, 11), secs(1));
    assert_eq!(state(&table), "syn-received", "not its own");
    table.credit(id, Side::Original, &credit(11, 90), secs(1));
    assert_eq!(state(&table), "syn-received", "that is before it");
    table.credit(id, Side::Original, &credit(11, 191), secs(1));
    assert_eq!(state(&table), "established");
    hit(table.lookup(&tcp((1, 2), (1, 80), FIN | ACK, 11, 191), 1, secs(100)));
}

#[test]
fn a_connection_may_be_answered_past_the_table() {
    let mut table = table(10);
    begin(&mut table, &tcp((1, 2), (1, 80), SYN, 10, 0), secs(0)).unwrap();
    let id = hit(table.lookup(&tcp((1, 2), (1, 80), SYN, 10, 0), 1, secs(0))).id;
    let mut after = |side, next, ack| {
        let tcp = Some(Sent { next, ack, window: 9, has_ended: false });
        table.credit(id, side, &Credit { frames: 0, bytes: 0, tcp }, secs(1));
        table.list(0, 1, secs(1)).0[0].state
    };
    assert_eq!(after(Side::Reply, 91, 12), "syn-sent", "to another connection's SYN");
    assert_eq!(after(Side::Reply, 91, 11), "syn-received");
    assert_eq!(after(Side::Original, 11, 91), "established");
    let reset = |seq| table.lookup(&tcp((2, 1), (80, 1), RST, seq, 0), 1, secs(1));
    hit(reset(91));
    assert_eq!(reset(90), Lookup::Invalid(DropReason::TcpState), "its SYN is counted");
}

#[test]
fn an_end_may_pass_by_the_table() {
    let mut table = table(10);
    begin(&mut table, &tcp((1, 2), (1, 80), SYN, 10, 0), secs(0)).unwrap();
    let id = hit(pass(&mut table, &tcp((2, 1), (80, 1), SYN | ACK, 90, 11), secs(0))).id;
    let mut after = |side, next, ack, has_ended| {
        let tcp = Some(Sent { next, ack, window: 9, has_ended });
        table.credit(id, side, &Credit { frames: 1, bytes: 60, tcp }, secs(1));
        table.list(0, 1, secs(1)).0[0].state
    };
    assert_eq!(after(Side::Original, 12, 91, true), "half-closed", "the handshake's end besides");
    assert_eq!(after(Side::Original, 12, 91, true), "half-closed", "again");
    assert_eq!(after(Side::Reply, 91, 12, false), "half-closed");
    assert_eq!(after(Side::Reply, 92, 12, true), "closing");
    assert_eq!(after(Side::Original, 12, 92, true), "time-wait");
    hit(pass(&mut table, &tcp((1, 2), (1, 80), ACK, 12, 92), secs(2)));
    let again = tcp((1, 2), (1, 80), SYN, 500, 0);
    assert!(matches!(pass(&mut table, &again, secs(2)), Lookup::Miss), "it may begin anew");
}

/// As it would be if it passed here.
#[test]
fn what_answers_no_handshake_past_the_table_keeps_nothing_alive() {
    let mut table = table(10);
    begin(&mut table, &tcp((1, 2), (1, 80), SYN, 10, 0), secs(0)).unwrap();
    let answer = tcp((2, 1), (80, 1), SYN | ACK, 90, 11);
    let id = hit(pass(&mut table, &answer, secs(0))).id;
    // It acknowledges what was never sent.
    let tcp_of = |next, ack| Some(Sent { next, ack, window: 9, has_ended: false });
    table.credit(id, Side::Reply, &Credit { frames: 1, bytes: 60, tcp: tcp_of(91, 60) }, secs(20));
    hit(pass(&mut table, &answer, secs(20)));
    table.credit(id, Side::Reply, &Credit { frames: 1, bytes: 60, tcp: tcp_of(91, 60) }, secs(40));
    assert_eq!(table.list(0, 1, secs(40)).0[0].frames, [1, 4]);
    assert!(table.list(0, 1, secs(60)).0.is_empty(), "it outlives the handshake's timeout");
}

#[test]
fn nothing_follows_a_fin_past_the_table() {
    let mut table = table(10);
    establish(&mut table, (1, 80), secs(0));
    let id = hit(pass(&mut table, &tcp((1, 2), (1, 80), FIN | ACK, 11, 91), secs(0))).id;
    let tcp_of = Some(Sent { next: 500, ack: 91, window: 9, has_ended: true });
    table.credit(id, Side::Original, &Credit { frames: 1, bytes: 600, tcp: tcp_of }, secs(1));
    let reset = |seq| table.lookup(&tcp((1, 2), (1, 80), RST, seq, 0), 1, secs(1));
    let next = hit(reset(12)).id;
    hit(pass(&mut table, &tcp((1, 2), (1, 80), RST, 12, 0), secs(1)));
    assert_eq!((next, table.list(0, 1, secs(1)).0[0].state), (id, "reset"));
}

#[test]
fn who_took_data_of_a_syn_may_speak_early() {
    for (ack, is_early) in [(11, false), (15, true)] {
        let mut table = table(10);
        begin(&mut table, &tcp((1, 2), (1, 80), SYN, 10, 0), secs(0)).unwrap();
        let answer = tcp((2, 1), (80, 1), SYN | ACK, 90, ack);
        hit(pass(&mut table, &answer, secs(0)));
        assert_eq!(table.established(&answer, 1, secs(0)).map(|it| it.is_early), Some(is_early));
    }
}

/// Gigabytes went past the table, further than any window: its numbers are those of before.
#[test]
fn a_credited_connection_lives_and_knows_a_real_reset() {
    let mut table = table(10);
    establish(&mut table, (1, 80), secs(0));
    let far = 3_000_000_000;
    let reset = tcp((1, 2), (1, 80), RST | ACK, far, 500);
    assert_eq!(table.lookup(&reset, 1, secs(1)), Lookup::Invalid(DropReason::TcpState));
    let id = hit(table.lookup(&tcp((1, 2), (1, 80), ACK, 11, 91), 1, secs(1))).id;
    let sent = |next, ack| Some(Sent { next, ack, window: 1_000, has_ended: false });
    let credit = Credit { frames: 2_000_000, bytes: 3_000_000_000, tcp: sent(far, 500) };
    table.credit(id, Side::Original, &credit, secs(7_000));
    let credit = Credit { frames: 40_000, bytes: 2_000_000, tcp: sent(500, far) };
    table.credit(id, Side::Reply, &credit, secs(7_000));

    let (page, _) = table.list(0, 10, secs(10_000));
    let [info] = &page[..] else { panic!("{page:?}") };
    assert_eq!(info.frames, [2_000_002, 40_001]);
    assert!(info.last > secs(6_999), "{info:?}");
    assert_eq!(info.bytes, [3_000_000_200, 2_000_100]);
    let stale = tcp((1, 2), (1, 80), RST | ACK, 11, 91);
    assert_eq!(table.lookup(&stale, 1, secs(10_000)), Lookup::Invalid(DropReason::TcpState));
    hit(pass(&mut table, &reset, secs(10_000)));
    assert_eq!(table.list(0, 1, secs(10_000)).0[0].state, "reset");
}
