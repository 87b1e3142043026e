//! What a single value can be: names, labels, addresses, interfaces.

use std::net::IpAddr;

use firedoor_classifier::MacAddr;
use ipnet::IpNet;
use toml::de::DeValue;

use super::reader::{self, Reader};
use super::rules::SELECTOR_WORDS;
use crate::diagnostic::{Problem, Spanned};

/// Longest name, label key and label value, in bytes.
const MAX_NAME: usize = 63;

pub(super) fn label_key(table: &mut Reader<'_, '_>, key: Spanned<String>) -> Option<String> {
    reader::parsed(key, |text| label_part("key", text), table.problems()).map(|key| key.value)
}

pub(super) fn label_value(
    value: &toml::Spanned<DeValue<'_>>,
    problems: &mut Vec<Spanned<Problem>>,
) -> Option<String> {
    let text = reader::text("a label's value", "a string, as \"web\"", value, problems)?;
    reader::parsed(text, |text| label_part("value", text), problems).map(|value| value.value)
}

/// Whether `text` can name a switch, workload, service, group or rule. Names become parts of paths,
/// interface names and command lines, hence the few characters.
pub fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn label_part(part: &'static str, text: &str) -> Result<String, Problem> {
    let is_taken = part == "key" && SELECTOR_WORDS.contains(&text);
    let is_valid = (1..=MAX_NAME).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    if is_valid && !is_taken {
        Ok(text.to_owned())
    } else {
        Err(Problem::BadLabel { part, value: text.to_owned() })
    }
}

pub(super) fn mac(text: &str) -> Result<MacAddr, Problem> {
    let value = || text.to_owned();
    let mac: MacAddr = text.parse().map_err(|_| Problem::BadMac { value: value() })?;
    if mac.is_multicast() || mac == MacAddr::ZERO {
        return Err(Problem::MacNotUnicast { value: value() });
    }
    Ok(mac)
}

/// What the kernel's `dev_valid_name` accepts (net/core/dev.c), in ASCII.
pub(super) fn ifname(text: &str) -> Result<String, Problem> {
    let valid = (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && text.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != ':');
    if valid { Ok(text.to_owned()) } else { Err(Problem::BadIfname { value: text.to_owned() }) }
}

fn net(text: &str) -> Result<IpNet, Problem> {
    text.parse().map_err(|_| Problem::BadAddress { value: text.to_owned() })
}

pub(super) fn workload_address(
    value: &toml::Spanned<DeValue<'_>>,
    problems: &mut Vec<Spanned<Problem>>,
) -> Option<Spanned<IpNet>> {
    let text = reader::text("ip", "a string, as \"10.10.0.10/24\"", value, problems)?;
    reader::parsed(text, host_address, problems)
}

fn host_address(text: &str) -> Result<IpNet, Problem> {
    let net = net(text)?;
    match unusable(net) {
        Some(why) => Err(Problem::UnusableAddress { value: text.to_owned(), why }),
        None => Ok(net),
    }
}

/// Why no workload can have this address and prefix length.
fn unusable(net: IpNet) -> Option<&'static str> {
    let addr = net.addr();
    let (shortest, has_hosts) = match net {
        IpNet::V4(_) => (8, net.prefix_len() <= 30),
        IpNet::V6(_) => (16, net.prefix_len() <= 126),
    };
    let mapped = matches!(addr, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let broadcast = matches!(net, IpNet::V4(v4) if v4.addr() == v4.broadcast())
        || matches!(addr, IpAddr::V4(v4) if v4.is_broadcast());
    if addr.is_multicast() {
        Some("it is a multicast address")
    } else if addr.is_loopback() {
        Some("it is a loopback address")
    } else if addr.is_unspecified() {
        Some("it is the unspecified address")
    } else if mapped {
        Some("it is an IPv4 address in IPv6 form")
    } else if net.prefix_len() < shortest {
        Some("its prefix length puts half the world on one wire")
    } else if has_hosts && addr == net.network() {
        Some("it is the address of the subnet itself")
    } else if has_hosts && broadcast {
        Some("it is the broadcast address of its subnet")
    } else {
        None
    }
}

pub(super) fn range(
    key: &'static str,
    value: &toml::Spanned<DeValue<'_>>,
    problems: &mut Vec<Spanned<Problem>>,
) -> Option<Spanned<IpNet>> {
    let text = reader::text(key, "a string, as \"192.0.2.0/24\"", value, problems)?;
    reader::parsed(text, exact_range, problems)
}

fn exact_range(text: &str) -> Result<IpNet, Problem> {
    let net = net(text)?;
    if net.trunc() != net {
        let range = net.trunc().to_string();
        return Err(Problem::HostBits { value: text.to_owned(), range });
    }
    Ok(net)
}
