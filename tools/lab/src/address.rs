//! Addresses and routes of a container's interface, through rtnetlink. Links themselves are
//! [`firedoor_dataplane::link`]'s.

use std::io;
use std::net::IpAddr;

use firedoor_dataplane::link::Netlink;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// Gives the interface of this index an address. IPv6 addresses may be used at once: they skip
/// duplicate address detection, since the config makes sure that there are no duplicates.
///
/// # Errors
/// The kernel's.
pub fn add(netlink: &mut Netlink, index: u32, address: IpNet) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Address(address.addr()));
    match address {
        IpNet::V4(net) => {
            message.attributes.push(AddressAttribute::Local(net.addr().into()));
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        IpNet::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
    }
    let request = RouteNetlinkMessage::NewAddress(message);
    netlink.request(request, NLM_F_CREATE | NLM_F_EXCL).map(drop)
}

/// Sends everything without a better route to `gateway`.
///
/// # Errors
/// The kernel's, such as `ENETUNREACH` if no address is in the gateway's network.
pub fn set_default_route(netlink: &mut Netlink, gateway: IpAddr) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(gateway),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    let request = RouteNetlinkMessage::NewRoute(message);
    netlink.request(request, NLM_F_CREATE | NLM_F_EXCL).map(drop)
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
