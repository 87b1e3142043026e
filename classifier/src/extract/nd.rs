//! Neighbour discovery: the validation that RFC 4861 demands of receivers, done for them.
//!
//! Beyond it, the link-layer address option must be there once at most and be an Ethernet unicast
//! address. The switch checks that address against the sender's port; a second option, or one that
//! hosts read in different ways, would slip past. And a solicitation or advertisement holds at most
//! three short options of known kinds: address resolution reaches its target whatever policy says, so
//! options that receivers ignore would be a letterbox in every shut door.

use std::net::Ipv6Addr;

use super::{Nd, NdMessage, is_v4_mapped};
use crate::key::FlowKey;
use crate::mac::MacAddr;
use crate::wire::{icmp, nd};

/// Most options of a solicitation or advertisement: one of each known kind.
const MAX_OPTIONS: usize = 3;

/// Reads a message of the packet whose addresses are in `key`; `None` if it is invalid.
pub(super) fn read(key: &FlowKey, hop_limit: u8, message: &icmp::Message<'_>) -> Option<Nd> {
    let body = nd::Body::new_checked(message)?;
    let link_addr = link_addr(&body)?;
    // Hop limit 255 proves that no router forwarded it (§3.1, §11.2).
    let valid = hop_limit == 255
        && message.code() == 0
        && body.target().is_none_or(|target| !target.is_multicast() && !is_v4_mapped(target))
        && addresses_are_valid(key, message, &body, link_addr);
    let target = body.target().map_or(0, Ipv6Addr::to_bits);
    valid.then_some(Nd { message: body.message(), target, link_addr })
}

/// The rules about who may send the message, to whom, and what about.
fn addresses_are_valid(
    key: &FlowKey,
    message: &icmp::Message<'_>,
    body: &nd::Body<'_>,
    link_addr: Option<MacAddr>,
) -> bool {
    let (source, destination) = (Ipv6Addr::from_bits(key.src), Ipv6Addr::from_bits(key.dst));
    let target = body.target().unwrap_or(Ipv6Addr::UNSPECIFIED);
    match body.message() {
        // §6.1.1: who has no address yet cannot be answered by its link-layer address.
        NdMessage::RouterSolicitation => !source.is_unspecified() || link_addr.is_none(),
        // §6.1.2: hosts tell routers apart by their link-local addresses.
        NdMessage::RouterAdvertisement => source.is_unicast_link_local(),
        // §7.1.1: duplicate address detection asks the target's group, and gives no address.
        NdMessage::NeighborSolicitation => {
            !source.is_unspecified()
                || (link_addr.is_none() && destination == nd::solicited_node(target))
        }
        // §7.1.2: who answers a group answers nobody in particular.
        NdMessage::NeighborAdvertisement => {
            let [flags, ..] = message.rest();
            !source.is_unspecified() && (!destination.is_multicast() || flags & nd::SOLICITED == 0)
        }
        // §8.1: the better first hop is a router, or the destination itself.
        NdMessage::Redirect => {
            let redirected = body.redirected().unwrap_or(Ipv6Addr::UNSPECIFIED);
            source.is_unicast_link_local()
                && !redirected.is_multicast()
                && (target.is_unicast_link_local() || target == redirected)
        }
    }
}

/// The link-layer address option that belongs into the message; `Some(None)` if there is none,
/// `None` if the options are malformed.
fn link_addr(body: &nd::Body<'_>) -> Option<Option<MacAddr>> {
    let wanted = match body.message() {
        NdMessage::NeighborAdvertisement | NdMessage::Redirect => nd::option::TARGET_LINK_ADDR,
        _ => nd::option::SOURCE_LINK_ADDR,
    };
    let mut found = None;
    for (position, option) in body.options().enumerate() {
        let option = option.ok()?;
        if is_resolution(body.message()) && (position >= MAX_OPTIONS || !is_known(&option)) {
            return None;
        }
        if option.kind == wanted {
            let mac = MacAddr(option.value.try_into().ok()?);
            if found.is_some() || mac.is_multicast() || mac == MacAddr::ZERO {
                return None;
            }
            found = Some(mac);
        }
    }
    Some(found)
}

fn is_resolution(message: NdMessage) -> bool {
    matches!(message, NdMessage::NeighborSolicitation | NdMessage::NeighborAdvertisement)
}

/// A link-layer address, or a nonce.
fn is_known(option: &nd::NdOption<'_>) -> bool {
    use nd::option::{NONCE, SOURCE_LINK_ADDR, TARGET_LINK_ADDR};
    [SOURCE_LINK_ADDR, TARGET_LINK_ADDR, NONCE].contains(&option.kind) && option.value.len() == 6
}
