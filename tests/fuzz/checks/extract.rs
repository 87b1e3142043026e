//! What must hold for extraction, whatever the bytes. Shared by the fuzz target and the test that
//! replays the corpus.

use firedoor_classifier::checksum::{Sum, complete_partial};
use firedoor_classifier::extract::{Headers, Kind, extract};
use firedoor_classifier::reply::{MAX_REPLY, refuse};
use firedoor_classifier::snapshot::PortId;
use firedoor_classifier::wire::ethernet::{self, ether_type};
use firedoor_classifier::wire::ipv4;

const PORT: PortId = PortId(1);

/// Panics if extraction, checksum completion or refusal breaks its promise for `frame`, as it is
/// and with a right IPv4 header checksum. (A fuzzer does not guess checksums; without this it would
/// hardly see what is behind one.)
pub(crate) fn check(frame: &[u8]) {
    check_as_it_is(frame);
    if let Some(summed) = with_right_ipv4_checksum(frame) {
        check_as_it_is(&summed);
    }
}

fn with_right_ipv4_checksum(frame: &[u8]) -> Option<Vec<u8>> {
    let (link, packet) = frame.split_at_checked(ethernet::HEADER_LEN)?;
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    if header_len < ipv4::HEADER_LEN || !link.ends_with(&ether_type::IPV4.to_be_bytes()) {
        return None;
    }
    let mut frame = frame.to_vec();
    let header = frame[ethernet::HEADER_LEN..].get_mut(..header_len)?;
    header[ipv4::field::CHECKSUM].fill(0);
    let checksum = Sum::default().bytes(header).checksum();
    header[ipv4::field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    Some(frame)
}

fn check_as_it_is(frame: &[u8]) {
    let Ok(headers) = extract(frame, PORT) else { return };
    offsets_stand_in_order(frame, &headers);
    bytes_behind_the_packet_do_not_count(frame, &headers);
    completion_is_idempotent(frame, &headers);
    refusal_is_a_frame_for_the_sender(frame, &headers);
}

fn offsets_stand_in_order(frame: &[u8], headers: &Headers) {
    assert!(headers.l3 <= headers.l4 && headers.l4 <= headers.end, "{headers:?}");
    assert!(usize::from(headers.end) <= frame.len(), "{headers:?}");
    assert!(headers.tcp.payload <= headers.end - headers.l4, "{headers:?}");
}

fn bytes_behind_the_packet_do_not_count(frame: &[u8], headers: &Headers) {
    let packet = &frame[..usize::from(headers.end)];
    assert_eq!(extract(packet, PORT).as_ref(), Ok(headers));
    // What is not IP has no length of its own.
    if let ([shorter @ .., _], true) = (packet, headers.kind != Kind::NonIp) {
        assert!(extract(shorter, PORT).is_err(), "a cut frame");
    }
}

fn completion_is_idempotent(frame: &[u8], headers: &Headers) {
    let mut completed = frame.to_vec();
    let changed = complete_partial(&mut completed, headers);
    assert_eq!(changed, completed != frame);
    assert_eq!(extract(&completed, PORT).as_ref(), Ok(headers), "only the checksum changes");
    assert!(!complete_partial(&mut completed, headers), "complete is complete");
}

fn refusal_is_a_frame_for_the_sender(frame: &[u8], headers: &Headers) {
    let mut answer = [0; MAX_REPLY];
    let Some(len) = refuse(frame, headers, &mut answer) else { return };
    let answer = &mut answer[..len];
    let Ok(back) = extract(answer, PORT) else { panic!("refused with {answer:02x?}") };
    assert_eq!((back.key.eth_dst, back.key.eth_src), (headers.key.eth_src, headers.key.eth_dst));
    assert_eq!((back.key.dst, back.key.src), (headers.key.src, headers.key.dst));
    assert_eq!((back.key.vlan, back.vlan_tags), (headers.key.vlan, headers.vlan_tags));
    assert!(!complete_partial(answer, &back), "an answer's checksum is complete");
    assert_eq!(refuse(answer, &back, &mut [0; MAX_REPLY]), None, "no answer to an answer");
}
