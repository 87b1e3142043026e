//! Frame bytes to headers: one pass, bounds-checked, no copy.
//!
//! What comes out is what policy judges, so nothing may come out whose receiver could read it
//! differently. Bytes that contradict themselves, and headers that hide or replace what a verdict
//! depends on, are refused here with a [`DropReason`]; everything behind this module can trust its
//! input. The views of [`wire`](crate::wire) read the bytes; the rules are here, layer by layer, in
//! the order of the bytes, and the first one that is broken names the drop.
//!
//! Three rules need a word of explanation:
//!
//! - **A first fragment holds all headers** up to the transport's end (RFC 7112), so it can be judged
//!   like a whole packet; later ones have nothing to be judged by and follow it
//!   ([`fragments`](crate::fragments)). Neither may be so small, or begin so early, that a later one
//!   could stand in the transport header. An "atomic" IPv6 fragment is a whole packet (RFC 6946).
//! - **Addresses must be what they seem.** IPv4-mapped addresses in IPv6 headers would be taken for
//!   IPv4 by everything that works on [`FlowKey`]; source routes, routing headers and the Home
//!   Address option (RFC 6275 §6.3) replace an address on the way or on arrival. All are refused. So
//!   is ICMP in IPv6 and ICMPv6 in IPv4, which no host accepts.
//! - **Transport checksums are not verified.** A local sender leaves them
//!   [partial](crate::checksum), and a wrong one only hurts its own packet. The IPv4 header's is
//!   never offloaded; it is verified.
//!
//! Port 0 is reserved (RFC 6335 §6) and means "absent" in a flow key, so a frame that uses it is
//! malformed; a UDP source port of 0 is legitimate (RFC 768) and stays.
//!
//! Tunnels (ESP, GRE, IP in IP, VXLAN) are judged by their outside: who may send them is a rule's to
//! say, and what is in them is the two ends' own business.
//!
//! Of a protocol that is neither ARP nor IP nothing is read but its ethertype: rules may speak of that,
//! and of who sends to whom. A length in the ethertype's place (IEEE 802.3, LLC) is none.
//!
//! An unspecified source address is left to the pipeline, which knows the few messages that may
//! have one.

mod icmp;
mod nd;

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::key::FlowKey;
use crate::mac::MacAddr;
use crate::snapshot::PortId;
use crate::verdict::DropReason;
use crate::wire::ethernet::{self, ether_type};
use crate::wire::{arp, ipv4, ipv6, protocol, sctp, tcp, udp};

/// Most VLAN tags that are looked behind.
pub const MAX_VLAN_TAGS: u8 = 2;
/// Most extension headers of an IPv6 packet.
pub const MAX_EXTENSIONS: usize = 4;
/// Most bytes of extension headers of an IPv6 packet.
pub const MAX_EXTENSION_BYTES: usize = 256;

/// Longest packet: the IPv4 total length, or the IPv6 payload length.
const MAX_PACKET: usize = 65_535;

/// What one frame's headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The fields a verdict may depend on.
    pub key: FlowKey,
    /// VLAN tags before the ethertype: 0, 1 or 2.
    pub vlan_tags: u8,
    /// Offset of what follows the ethertype (ARP, IPv4, IPv6), in bytes from the frame's start.
    pub l3: u16,
    /// Offset of the transport header; equals `end` if there is none.
    pub l4: u16,
    /// Offset just past the network packet by its own length fields. Ethernet padding lies behind.
    /// The frame's end for [`Kind::NonIp`], which may be padding.
    pub end: u16,
    /// TCP's sequence space, if it is TCP.
    pub tcp: TcpFields,
    /// What is special about it.
    pub kind: Kind,
    /// Set if the packet is a part of a larger one.
    pub fragment: Option<Fragment>,
}

impl Headers {
    /// Those of the untagged frame that begins the conversation of a key, as far as policy looks at
    /// them.
    pub fn of_key(key: FlowKey) -> Self {
        Self {
            key,
            vlan_tags: 0,
            l3: 0,
            l4: 0,
            end: 0,
            tcp: TcpFields::default(),
            kind: Kind::Plain,
            fragment: None,
        }
    }
}

/// Which part of which packet a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Names the whole packet, together with its addresses; for IPv4 (16 bits) also its protocol.
    pub id: u32,
    /// Bytes of the fragmented payload before this part. A multiple of 8.
    pub offset: u16,
    /// Bytes of this part: at least 1, and a multiple of 8 if more follow.
    pub len: u16,
    /// Whether more follow it.
    pub more: bool,
}

impl Fragment {
    /// Whether this is the part with the transport header.
    pub const fn is_first(&self) -> bool {
        self.offset == 0
    }

    /// Just past its last byte, from the beginning of the fragmented payload.
    pub const fn end(&self) -> u32 {
        self.offset as u32 + self.len as u32
    }

    /// Checks a fragment of a packet that has `beside` bytes more than what was fragmented. Longer
    /// than 65,535 bytes in all is a "ping of death" (RFC 791 §3.1, RFC 8200 §4.5).
    fn checked(self, beside: usize, malformed: DropReason) -> Result<Self, DropReason> {
        if self.len == 0 || (self.more && !self.len.is_multiple_of(8)) {
            return Err(malformed);
        }
        if self.end() as usize + beside > MAX_PACKET {
            return Err(DropReason::FragmentTooLong);
        }
        Ok(self)
    }
}

/// TCP fields that connections follow. Zero for other protocols. Flags are in the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFields {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window as it stands in the header, unscaled.
    pub window: u16,
    /// Bytes of payload.
    pub payload: u16,
    /// The window scale option of a SYN.
    pub window_scale: Option<u8>,
}

/// Frames that need more than their key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing special: judged by its key.
    Plain,
    /// ARP for IPv4 over Ethernet (RFC 826). Sender and target addresses are in the key.
    Arp {
        /// Sender hardware address.
        sender: MacAddr,
        /// Target hardware address.
        target: MacAddr,
    },
    /// Neighbour discovery (RFC 4861).
    Nd(Nd),
    /// An ICMP or ICMPv6 error, with the packet it is about.
    IcmpError(Embedded),
    /// DHCP or DHCPv6, from client to server.
    DhcpClient,
    /// DHCP or DHCPv6, to a client, or between relay and server.
    DhcpServer,
    /// Of an ethertype that is neither ARP, IPv4 nor IPv6. Nothing behind it is read.
    NonIp,
    /// A fragment without transport header. It has no ports to be judged by: it goes where the
    /// first fragment of its packet went.
    LaterFragment,
}

/// A neighbour discovery message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nd {
    /// Which message.
    pub message: NdMessage,
    /// Target address, for solicitation, advertisement and redirect; 0 otherwise.
    pub target: u128,
    /// Source or target link-layer address option, whichever the message carries.
    pub link_addr: Option<MacAddr>,
}

/// Neighbour discovery messages (RFC 4861 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NdMessage {
    /// ICMPv6 type 133.
    RouterSolicitation,
    /// ICMPv6 type 134.
    RouterAdvertisement,
    /// ICMPv6 type 135.
    NeighborSolicitation,
    /// ICMPv6 type 136.
    NeighborAdvertisement,
    /// ICMPv6 type 137.
    Redirect,
}

/// The packet that an ICMP error is about, as its sender sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// IP protocol.
    pub protocol: u8,
    /// Source address bits, as in [`FlowKey::src`].
    pub src: u128,
    /// Destination address bits.
    pub dst: u128,
    /// Source port or ICMP identifier.
    pub src_port: u16,
    /// Destination port, or ICMP `type << 8 | code`.
    pub dst_port: u16,
    /// Sequence number, of TCP; `None` if a later fragment is quoted, which has none.
    pub seq: Option<u32>,
}

/// Reads the headers of `frame`, which came in by `ingress`.
///
/// Looks at headers alone: the cost does not depend on the payload's length.
///
/// # Errors
/// The reason to drop a frame that is malformed or that cannot be judged.
pub fn extract(frame: &[u8], ingress: PortId) -> Result<Headers, DropReason> {
    let mut headers = Headers::of_key(FlowKey::default());
    extract_into(frame, ingress, &mut headers)?;
    Ok(headers)
}

/// [`extract`] in place of any other headers, for batches of frames: to move headers costs more than
/// to read them. What they say after an error is of no use.
///
/// # Errors
/// As [`extract`].
pub fn extract_into(
    frame: &[u8],
    ingress: PortId,
    headers: &mut Headers,
) -> Result<(), DropReason> {
    let packet = link(frame, ingress, headers)?;
    match headers.key.ether_type {
        ether_type::ARP => address_resolution(headers, packet),
        ether_type::IPV4 => internet_v4(headers, packet),
        ether_type::IPV6 => internet_v6(headers, packet),
        other if is_length(other) || ethernet::is_tag(other) => Err(DropReason::UnknownEtherType),
        _ => {
            other_protocol(headers, frame);
            Ok(())
        }
    }
}

/// Whether the field where an ethertype belongs is a length (IEEE 802.3 §3.2.6).
fn is_length(ether_type: u16) -> bool {
    ether_type < ethernet::FIRST_ETHER_TYPE
}

/// Not ours to read, so what Ethernet padding is in it cannot be told from the rest.
fn other_protocol(headers: &mut Headers, frame: &[u8]) {
    headers.kind = Kind::NonIp;
    headers.end = u16::try_from(frame.len()).unwrap_or(u16::MAX);
    headers.l4 = headers.end;
}

/// Ethernet and its tags. A frame with a third tag, or with an 802.3 length instead of an
/// ethertype, leaves here with an ethertype that [`extract`] does not know.
///
/// Frames to the reserved group addresses are named as such here, because what they carry (BPDUs,
/// LLDP, pause frames) is nothing the next layer would know.
fn link<'a>(
    frame: &'a [u8],
    ingress: PortId,
    headers: &mut Headers,
) -> Result<&'a [u8], DropReason> {
    let (header, mut packet) =
        ethernet::Header::new_checked(frame).ok_or(DropReason::FrameTruncated)?;
    let (eth_dst, eth_src) = (header.destination(), header.source());
    if eth_src.is_multicast() || eth_src == MacAddr::ZERO {
        return Err(DropReason::SourceInvalid);
    }
    if eth_dst.is_bridge_reserved() {
        return Err(DropReason::BridgeReserved);
    }
    let mut key = FlowKey {
        ingress,
        ether_type: header.ether_type(),
        eth_dst,
        eth_src,
        ..Default::default()
    };
    let (mut vlan_tags, mut l3) = (0, ethernet::HEADER_LEN as u16);
    while vlan_tags < MAX_VLAN_TAGS && ethernet::is_tag(key.ether_type) {
        let (tag, rest) = ethernet::Tag::new_checked(packet).ok_or(DropReason::FrameTruncated)?;
        if vlan_tags == 0 {
            key.vlan = tag.vlan();
        }
        key.ether_type = tag.next();
        packet = rest;
        vlan_tags += 1;
        l3 += ethernet::TAG_LEN as u16;
    }
    *headers = Headers { vlan_tags, l3, l4: l3, end: l3, ..Headers::of_key(key) };
    Ok(packet)
}

/// ARP. A sender address may be unspecified: that is a probe (RFC 5227 §2.1.1). A multicast sender
/// MAC must not be believed (RFC 1812 §3.3.2).
fn address_resolution(headers: &mut Headers, packet: &[u8]) -> Result<(), DropReason> {
    let message = arp::Message::new_checked(packet).ok_or(DropReason::ArpMalformed)?;
    let operation = message.operation();
    if !matches!(operation, arp::REQUEST | arp::REPLY) {
        return Err(DropReason::ArpMalformed);
    }
    let (sender, target) = (message.sender_mac(), message.target_mac());
    if sender.is_multicast() || sender == MacAddr::ZERO || !can_send_v4(message.sender()) {
        return Err(DropReason::SourceInvalid);
    }
    headers.key.protocol = operation as u8;
    headers.key.src = message.sender().to_ipv6_mapped().to_bits();
    headers.key.dst = message.target().to_ipv6_mapped().to_bits();
    headers.kind = Kind::Arp { sender, target };
    bound(headers, arp::MESSAGE_LEN, arp::MESSAGE_LEN).ok_or(DropReason::ArpMalformed)
}

fn internet_v4(headers: &mut Headers, packet: &[u8]) -> Result<(), DropReason> {
    let packet = ipv4::Packet::new_checked(packet)
        .filter(ipv4::Packet::checksum_is_right)
        .ok_or(DropReason::Ipv4Malformed)?;
    refuse_source_route(packet.options())?;
    if !can_send_v4(packet.source()) {
        return Err(DropReason::SourceInvalid);
    }
    headers.key.src = packet.source().to_ipv6_mapped().to_bits();
    headers.key.dst = packet.destination().to_ipv6_mapped().to_bits();
    headers.key.protocol = packet.protocol();
    bound(headers, packet.header_len(), packet.total_len()).ok_or(DropReason::Ipv4Malformed)?;
    headers.fragment = part_v4(&packet)?;
    match packet.protocol() {
        protocol::ICMPV6 => Err(DropReason::IcmpMalformed),
        _ if is_later_fragment(headers, packet.payload())? => Ok(()),
        protocol::ICMP => icmp::v4(headers, packet.payload()),
        _ => transport(headers, packet.payload()),
    }
}

fn part_v4(packet: &ipv4::Packet<'_>) -> Result<Option<Fragment>, DropReason> {
    if !packet.is_fragment() {
        return Ok(None);
    }
    let fragment = Fragment {
        id: packet.identification().into(),
        offset: packet.fragment_offset(),
        len: length(packet.payload()),
        more: packet.has_more_fragments(),
    };
    fragment.checked(packet.header_len(), DropReason::Ipv4Malformed).map(Some)
}

fn refuse_source_route(options: ipv4::Options<'_>) -> Result<(), DropReason> {
    use ipv4::option::{LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE};
    for option in options {
        match option {
            Ok(LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE) => {
                return Err(DropReason::Ipv4SourceRoute);
            }
            Ok(_) => {}
            Err(ipv4::MalformedOption) => return Err(DropReason::Ipv4Malformed),
        }
    }
    Ok(())
}

fn internet_v6(headers: &mut Headers, packet: &[u8]) -> Result<(), DropReason> {
    let packet = ipv6::Packet::new_checked(packet).ok_or(DropReason::Ipv6Malformed)?;
    let (source, destination) = (packet.source(), packet.destination());
    if is_v4_mapped(source) || is_v4_mapped(destination) {
        return Err(DropReason::Ipv6Malformed);
    }
    if source.is_multicast() || source.is_loopback() {
        return Err(DropReason::SourceInvalid);
    }
    let chain = skip_extensions(&packet)?;
    let Chain { protocol, payload, .. } = chain;
    headers.key.src = source.to_bits();
    headers.key.dst = destination.to_bits();
    headers.key.protocol = protocol;
    let unfragmented = chain.unfragmented.unwrap_or(0);
    let checked = |part: Fragment| part.checked(unfragmented, DropReason::Ipv6Malformed);
    headers.fragment = chain.fragment.map(checked).transpose()?;
    let packet_len = ipv6::HEADER_LEN + packet.payload_len();
    bound(headers, packet_len - payload.len(), packet_len).ok_or(DropReason::Ipv6Malformed)?;
    match protocol {
        _ if is_later_fragment(headers, payload)? => Ok(()),
        protocol::ICMPV6 => icmp::v6(headers, packet.hop_limit(), payload),
        protocol::ICMP => Err(DropReason::IcmpMalformed),
        _ => transport(headers, payload),
    }?;
    // Hosts ignore neighbour discovery with a fragment header, atomic or not (RFC 6980 §5).
    let is_discovery = matches!(headers.kind, Kind::Nd(_));
    if is_discovery && chain.unfragmented.is_some() { Err(DropReason::NdMalformed) } else { Ok(()) }
}

/// What an IPv6 packet's extension headers lead to.
struct Chain<'a> {
    /// The protocol behind them; of a later fragment, what its fragment header claims.
    protocol: u8,
    /// Its bytes; none behind "no next header".
    payload: &'a [u8],
    /// Set if the packet is a part of a larger one. Not [checked](Fragment::checked): in an ICMP
    /// error's quote it may be cut.
    fragment: Option<Fragment>,
    /// Bytes of extension headers before the fragment header, which an atomic fragment has too; `None`
    /// without one.
    unfragmented: Option<usize>,
}

/// Walks the extension headers, of a later fragment up to its fragment header.
///
/// Hop-by-hop options stand first or not at all (RFC 8200 §4.1). The chain is bounded in headers
/// and bytes, so a frame cannot make this loop long. Headers that can change who the packet is
/// from or to, or that make the rest unreadable to us but not to the receiver (routing,
/// authentication, mobility, HIP, Shim6), are refused; ESP is a protocol like any other, its
/// payload is never ours to read. A second fragment header would make fragments of fragments.
fn skip_extensions<'a>(packet: &ipv6::Packet<'a>) -> Result<Chain<'a>, DropReason> {
    use protocol::{
        AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, HOST_IDENTITY, MOBILITY,
        NO_NEXT_HEADER, ROUTING, SHIM6,
    };
    let (mut next, mut rest) = (packet.next_header(), packet.payload());
    let (mut fragment, mut unfragmented) = (None, None);
    for position in 0..=MAX_EXTENSIONS {
        let chain = |payload| Chain { protocol: next, payload, fragment, unfragmented };
        match next {
            HOP_BY_HOP if position > 0 => return Err(DropReason::Ipv6Extension),
            HOP_BY_HOP | DESTINATION_OPTIONS if position < MAX_EXTENSIONS => {
                let cut = match fragment {
                    Some(_) => DropReason::FragmentTiny,
                    None => DropReason::Ipv6Malformed,
                };
                let (header, behind) = ipv6::OptionsHeader::new_checked(rest).ok_or(cut)?;
                if packet.payload().len() - behind.len() > MAX_EXTENSION_BYTES {
                    return Err(DropReason::Ipv6Extension);
                }
                refuse_address_options(header.options())?;
                (next, rest) = (header.next_header(), behind);
            }
            FRAGMENT if position < MAX_EXTENSIONS && unfragmented.is_none() => {
                let (header, behind) =
                    ipv6::FragmentHeader::new_checked(rest).ok_or(DropReason::Ipv6Malformed)?;
                unfragmented = Some(packet.payload().len() - rest.len());
                fragment = part_v6(&header, behind);
                (next, rest) = (header.next_header(), behind);
                if header.offset() > 0 {
                    return Ok(Chain { protocol: next, payload: rest, fragment, unfragmented });
                }
            }
            DESTINATION_OPTIONS | FRAGMENT | ROUTING | AUTHENTICATION | MOBILITY
            | HOST_IDENTITY | SHIM6 => {
                return Err(DropReason::Ipv6Extension);
            }
            NO_NEXT_HEADER => return Ok(chain(&[])),
            _ => return Ok(chain(rest)),
        }
    }
    Err(DropReason::Ipv6Extension)
}

/// The part of a larger packet that stands behind this header; `None` if it is all of its packet.
fn part_v6(header: &ipv6::FragmentHeader<'_>, payload: &[u8]) -> Option<Fragment> {
    (!header.is_atomic()).then(|| Fragment {
        id: header.identification(),
        offset: header.offset(),
        len: length(payload),
        more: header.has_more(),
    })
}

/// Whether this is a fragment without transport header, which ends reading here. Of a first one that
/// has not all of it, and of a later one that begins where every first one still has it, nothing
/// good can come.
fn is_later_fragment(headers: &mut Headers, payload: &[u8]) -> Result<bool, DropReason> {
    let Some(fragment) = headers.fragment else { return Ok(false) };
    let (protocol, first) = (headers.key.protocol, fragment.is_first());
    let is_tiny = if first {
        payload.len() < transport_len(protocol, payload)
    } else {
        usize::from(fragment.offset) < transport_len(protocol, &[])
    };
    if is_tiny {
        return Err(DropReason::FragmentTiny);
    }
    if !first {
        headers.kind = Kind::LaterFragment;
    }
    Ok(!first)
}

/// Bytes of transport header that `payload` begins with; if it is too short to tell, the fewest
/// that the protocol has. 0 for protocols that are judged by their addresses alone.
fn transport_len(protocol: u8, payload: &[u8]) -> usize {
    match protocol {
        protocol::TCP => {
            let data_offset = payload.get(tcp::field::DATA_OFFSET).map_or(0, |byte| byte >> 4);
            tcp::HEADER_LEN.max(usize::from(data_offset) * 4)
        }
        protocol::UDP => udp::HEADER_LEN,
        protocol::SCTP => sctp::HEADER_LEN,
        protocol::ICMP | protocol::ICMPV6 => crate::wire::icmp::HEADER_LEN,
        _ => 0,
    }
}

/// The bytes of a packet's payload, as its own length field counts them.
fn length(payload: &[u8]) -> u16 {
    u16::try_from(payload.len()).unwrap_or(u16::MAX)
}

fn refuse_address_options(options: ipv6::Options<'_>) -> Result<(), DropReason> {
    use ipv6::option::{HOME_ADDRESS, JUMBO_PAYLOAD};
    for option in options {
        match option {
            Ok(HOME_ADDRESS) => return Err(DropReason::Ipv6Extension),
            Ok(JUMBO_PAYLOAD) | Err(ipv6::MalformedOption) => {
                return Err(DropReason::Ipv6Malformed);
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// TCP, UDP and SCTP. Other protocols are judged by their addresses alone.
fn transport(headers: &mut Headers, payload: &[u8]) -> Result<(), DropReason> {
    match headers.key.protocol {
        protocol::TCP => transmission_control(headers, payload).ok_or(DropReason::TcpMalformed),
        protocol::UDP => user_datagram(headers, payload).ok_or(DropReason::UdpMalformed),
        protocol::SCTP => stream_control(headers, payload).ok_or(DropReason::SctpMalformed),
        _ => Ok(()),
    }
}

fn transmission_control(headers: &mut Headers, payload: &[u8]) -> Option<()> {
    let segment = tcp::Segment::new_checked(payload)?;
    let (source, destination) = (segment.source_port(), segment.destination_port());
    if source == 0 || destination == 0 || !segment.flags().is_possible() {
        return None;
    }
    headers.key.src_port = source;
    headers.key.dst_port = destination;
    headers.key.tcp_flags = segment.flags().bits();
    let is_syn = segment.flags().contains(tcp::TcpFlags::SYN);
    headers.tcp = TcpFields {
        seq: segment.sequence(),
        ack: segment.acknowledgement(),
        window: segment.window(),
        payload: u16::try_from(segment.payload().len()).ok()?,
        window_scale: is_syn.then(|| segment.window_scale()).flatten(),
    };
    Some(())
}

fn user_datagram(headers: &mut Headers, payload: &[u8]) -> Option<()> {
    let datagram = match headers.fragment {
        None => udp::Datagram::new_checked(payload)?,
        Some(_) => udp::Datagram::new_first_fragment(payload)?,
    };
    let (source, destination) = (datagram.source_port(), datagram.destination_port());
    if destination == 0 {
        return None;
    }
    headers.key.src_port = source;
    headers.key.dst_port = destination;
    headers.kind = host_configuration(headers.key.ether_type, source, destination);
    Some(())
}

/// Tells DHCP by its ports. Clients hear what comes to their port from any source port, so the
/// source port does not make a server's message less of one. What goes from server port to server
/// port is a relay's.
fn host_configuration(ether_type: u16, source: u16, destination: u16) -> Kind {
    use udp::port::{DHCP_CLIENT, DHCP_SERVER, DHCPV6_CLIENT, DHCPV6_SERVER};
    let (client, server) = match ether_type {
        ether_type::IPV4 => (DHCP_CLIENT, DHCP_SERVER),
        _ => (DHCPV6_CLIENT, DHCPV6_SERVER),
    };
    match (source, destination) {
        (_, to) if to == client => Kind::DhcpServer,
        (from, to) if from == server && to == server => Kind::DhcpServer,
        (from, to) if from == client && to == server => Kind::DhcpClient,
        _ => Kind::Plain,
    }
}

fn stream_control(headers: &mut Headers, payload: &[u8]) -> Option<()> {
    let packet = sctp::Packet::new_checked(payload)?;
    let (source, destination) = (packet.source_port(), packet.destination_port());
    if source == 0 || destination == 0 {
        return None;
    }
    headers.key.src_port = source;
    headers.key.dst_port = destination;
    Some(())
}

/// Sets where the transport header begins and the packet ends, both counted from `l3`. `None` if
/// the packet ends beyond what an offset can say: 65,535 bytes from the frame's start.
fn bound(headers: &mut Headers, header_len: usize, packet_len: usize) -> Option<()> {
    let offset = |len| u16::try_from(usize::from(headers.l3) + len).ok();
    (headers.l4, headers.end) = (offset(header_len)?, offset(packet_len)?);
    Some(())
}

/// Whether a frame may come from `addr`; the unspecified address is the pipeline's to judge.
fn can_send_v4(addr: Ipv4Addr) -> bool {
    !(addr.is_multicast() || addr.is_broadcast() || addr.is_loopback())
}

fn is_v4_mapped(addr: Ipv6Addr) -> bool {
    addr.to_ipv4_mapped().is_some()
}

#[cfg(test)]
mod tests;
