//! ICMP and ICMPv6: queries by their identifier, errors by the packet they are about.
//!
//! An error is worth what it quotes: the switch passes it only if the quoted packet belongs to a
//! live connection, so the quote is read by the same rules as a packet, except that its payload may
//! be cut off. What the switch would have refused, it cannot have forwarded, and an error about it
//! is about nothing: an IPv4-mapped address, an error quoted in an error (which RFC 1122 §3.2.2
//! forbids). All make the error malformed. A quoted later fragment has no ports to know its
//! connection by. It is read as having [some that no connection has](NO_PORTS), so the error is
//! about no live connection, unless the protocol has no ports at all.

use super::{Chain, Embedded, Headers, Kind, is_v4_mapped, nd, skip_extensions};
use crate::verdict::DropReason;
use crate::wire::{icmp, icmpv6, ipv4, ipv6, protocol};

/// Transport bytes that every error quotes at least (RFC 792 "64 bits of data").
const QUOTED_TRANSPORT: usize = 8;

/// Ports, or identifier, type and code, that no connection has: port 0 is never a destination, and
/// there is no query of type 255.
const NO_PORTS: (u16, u16) = (0, 0);
const NO_QUERY: (u16, u16) = (0, u16::MAX);

/// Reads an ICMP message.
pub(super) fn v4(headers: &mut Headers, payload: &[u8]) -> Result<(), DropReason> {
    let message = icmp::Message::new_checked(payload).ok_or(DropReason::IcmpMalformed)?;
    let kind = message.kind();
    headers.key.dst_port = message.kind_and_code();
    if icmp::is_error(kind) {
        let embedded = quoted_v4(message.body()).ok_or(DropReason::IcmpMalformed)?;
        headers.kind = Kind::IcmpError(embedded);
    } else if icmp::is_request(kind) || icmp::is_reply(kind) {
        headers.key.src_port = message.identifier();
    }
    Ok(())
}

/// Reads an ICMPv6 message of a packet with this hop limit.
pub(super) fn v6(headers: &mut Headers, hop_limit: u8, payload: &[u8]) -> Result<(), DropReason> {
    let message = icmp::Message::new_checked(payload).ok_or(DropReason::IcmpMalformed)?;
    let kind = message.kind();
    headers.key.dst_port = message.kind_and_code();
    if icmpv6::is_error(kind) {
        let embedded = quoted_v6(message.body()).ok_or(DropReason::IcmpMalformed)?;
        headers.kind = Kind::IcmpError(embedded);
    } else if icmpv6::is_request(kind) || icmpv6::is_reply(kind) {
        headers.key.src_port = message.identifier();
    } else if crate::wire::nd::message(kind).is_some() {
        let nd = nd::read(&headers.key, hop_limit, &message).ok_or(DropReason::NdMalformed)?;
        headers.kind = Kind::Nd(nd);
    }
    Ok(())
}

/// The quoted IPv4 packet. Its header checksum is not verified: quoting routers differ in whether
/// they quote the header before or after they changed it. A first fragment may have been cut
/// behind the switch, and has ports; it is accepted.
fn quoted_v4(bytes: &[u8]) -> Option<Embedded> {
    let packet = ipv4::Packet::new_cut(bytes)?;
    let is_later = packet.fragment_offset() > 0;
    let (src_port, dst_port) = match packet.protocol() {
        protocol::ICMPV6 => return None,
        other if is_later => ports_of_later(other),
        protocol::ICMP => quoted_query(packet.payload(), is_query_v4)?,
        other => quoted_ports(other, packet.payload())?,
    };
    Some(Embedded {
        protocol: packet.protocol(),
        src: packet.source().to_ipv6_mapped().to_bits(),
        dst: packet.destination().to_ipv6_mapped().to_bits(),
        src_port,
        dst_port,
        seq: quoted_seq(packet.protocol(), packet.payload()).filter(|_| !is_later),
    })
}

fn quoted_v6(bytes: &[u8]) -> Option<Embedded> {
    let packet = ipv6::Packet::new_cut(bytes)?;
    let (source, destination) = (packet.source(), packet.destination());
    if is_v4_mapped(source) || is_v4_mapped(destination) {
        return None;
    }
    let Chain { protocol, payload, fragment, .. } = skip_extensions(&packet).ok()?;
    let is_later = fragment.is_some_and(|fragment| !fragment.is_first());
    let (src_port, dst_port) = match protocol {
        protocol::ICMP => return None,
        other if is_later => ports_of_later(other),
        protocol::ICMPV6 => quoted_query(payload, is_query_v6)?,
        other => quoted_ports(other, payload)?,
    };
    let (src, dst) = (source.to_bits(), destination.to_bits());
    let seq = quoted_seq(protocol, payload).filter(|_| !is_later);
    Some(Embedded { protocol, src, dst, src_port, dst_port, seq })
}

/// What stands for the ports of a quoted later fragment.
fn ports_of_later(protocol: u8) -> (u16, u16) {
    match protocol {
        protocol::ICMP | protocol::ICMPV6 => NO_QUERY,
        _ => NO_PORTS,
    }
}

/// Source and destination port; zeroes for protocols without.
fn quoted_ports(protocol: u8, transport: &[u8]) -> Option<(u16, u16)> {
    match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            // All three begin with their two ports (wire::tcp, wire::udp, wire::sctp).
            let [a, b, c, d, ..] = *transport.first_chunk::<QUOTED_TRANSPORT>()?;
            Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
        }
        _ => Some((0, 0)),
    }
}

/// The sequence number that stands after TCP's ports.
fn quoted_seq(protocol: u8, transport: &[u8]) -> Option<u32> {
    let [.., a, b, c, d] = *transport.first_chunk::<QUOTED_TRANSPORT>()?;
    (protocol == protocol::TCP).then_some(u32::from_be_bytes([a, b, c, d]))
}

/// Identifier, and type and code, of a quoted query; only queries make connections.
fn quoted_query(transport: &[u8], is_query: fn(u8) -> bool) -> Option<(u16, u16)> {
    let message = icmp::Message::new_checked(transport)?;
    is_query(message.kind()).then(|| (message.identifier(), message.kind_and_code()))
}

fn is_query_v4(kind: u8) -> bool {
    icmp::is_request(kind) || icmp::is_reply(kind)
}

fn is_query_v6(kind: u8) -> bool {
    icmpv6::is_request(kind) || icmpv6::is_reply(kind)
}
