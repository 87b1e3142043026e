//! Services as text: `tcp/8080`, `icmp/echo`, `ip/47`, and back.
//!
//! | text | matches |
//! |---|---|
//! | `tcp/8080`, `udp/9000-9100`, `sctp/3868` | destination ports |
//! | `icmp/echo`, `icmp/3`, `icmp/3/1`, `icmp6/echo`, `icmp6/128` | type, and code if given |
//! | `tcp`, `udp`, `sctp`, `icmp`, `icmp6`, `ip/47` | every frame of an IP protocol |
//! | `any` | all of IP |

use std::ops::RangeInclusive;

use firedoor_classifier::snapshot::{Service, Services};
use firedoor_classifier::wire::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};

/// IP protocol numbers that services have names for (IANA "Protocol Numbers").
const PROTOCOLS: [(&str, u8); 5] =
    [("tcp", TCP), ("udp", UDP), ("sctp", SCTP), ("icmp", ICMP), ("icmp6", ICMPV6)];

/// Why a text is not a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// It begins with none of the protocols.
    #[error("it names no known protocol")]
    Protocol,
    /// What follows the protocol is no port or range of ports.
    #[error("it names no port or range of ports")]
    Ports,
    /// The range ends before it begins.
    #[error("its range ends before it begins")]
    Backwards,
    /// What follows the protocol is no ICMP type and code.
    #[error("it names no ICMP type")]
    Icmp,
    /// What follows `ip/` is no protocol number.
    #[error("it names no IP protocol number")]
    Number,
}

impl ServiceError {
    /// What to write instead.
    pub fn help(self) -> &'static str {
        match self {
            Self::Protocol => {
                "write tcp/8080, udp/53, sctp/3868, icmp/echo, icmp6/echo, ip/47 or any"
            }
            Self::Ports => "write a port from 0 to 65535, or a range, as tcp/9000-9100",
            Self::Backwards => "put the lower port first, as tcp/9000-9100",
            Self::Icmp => "write echo or a type from 0 to 255, and a code, as icmp/3/1",
            Self::Number => "write a number from 0 to 255, as ip/47",
        }
    }
}

/// Reads a service's text.
///
/// # Errors
/// If it is none of the module's table.
pub fn parse(text: &str) -> Result<Services, ServiceError> {
    if text == "any" {
        return Ok(Services::Any);
    }
    let (name, rest) = match text.split_once('/') {
        Some((name, rest)) => (name, Some(rest)),
        None => (text, None),
    };
    if name == "ip" {
        let number = rest.and_then(number).ok_or(ServiceError::Number)?;
        return Ok(Services::Only(vec![Service::Protocol(number)]));
    }
    let &(_, protocol) =
        PROTOCOLS.iter().find(|(known, _)| *known == name).ok_or(ServiceError::Protocol)?;
    let service = match rest {
        None => Service::Protocol(protocol),
        Some(rest) if protocol == ICMP || protocol == ICMPV6 => icmp(protocol, rest)?,
        Some(rest) => ports(protocol, rest)?,
    };
    Ok(Services::Only(vec![service]))
}

fn ports(protocol: u8, text: &str) -> Result<Service, ServiceError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text| number::<u16>(text).ok_or(ServiceError::Ports);
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(ServiceError::Backwards);
    }
    Ok(Service::Ports { protocol, first, last })
}

fn icmp(protocol: u8, text: &str) -> Result<Service, ServiceError> {
    let byte = |text| number::<u8>(text).ok_or(ServiceError::Icmp);
    let (kind, code) = match text.split_once('/') {
        Some((kind, code)) => (kind, Some(byte(code)?)),
        None => (text, None),
    };
    let kind = if kind == "echo" { echo(protocol) } else { byte(kind)? };
    Ok(Service::Icmp { protocol, kind, code })
}

/// A decimal number: digits alone, so no sign.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The type of an echo request (RFC 792; RFC 4443 §4.1).
const fn echo(protocol: u8) -> u8 {
    if protocol == ICMP { 8 } else { 128 }
}

/// Whether `text` begins as a service's text does, so that it cannot name a `[[service]]`.
pub(crate) fn is_reserved(text: &str) -> bool {
    text == "any" || text == "ip" || PROTOCOLS.iter().any(|(name, _)| *name == text)
}

/// A service's text. [`parse`] reads it back.
pub fn text(service: &Service) -> String {
    match *service {
        Service::Ports { protocol, first, last } if first == last => {
            format!("{}/{first}", protocol_text(protocol))
        }
        Service::Ports { protocol, first, last } => {
            format!("{}/{first}-{last}", protocol_text(protocol))
        }
        Service::Icmp { protocol, kind, code } => {
            let name = protocol_text(protocol);
            let kind = if kind == echo(protocol) { "echo".to_owned() } else { kind.to_string() };
            code.map_or_else(|| format!("{name}/{kind}"), |code| format!("{name}/{kind}/{code}"))
        }
        Service::Protocol(protocol) => protocol_text(protocol),
    }
}

/// What one conversation is, by its key: protocol and `dst_port` (for ICMP, `type << 8 | code`).
pub fn conversation_text(protocol: u8, dst_port: u16) -> String {
    match protocol {
        TCP | UDP | SCTP => text(&Service::Ports { protocol, first: dst_port, last: dst_port }),
        ICMP | ICMPV6 => {
            let [kind, code] = dst_port.to_be_bytes();
            text(&Service::Icmp { protocol, kind, code: (code != 0).then_some(code) })
        }
        _ => text(&Service::Protocol(protocol)),
    }
}

/// A range of a protocol's `dst_port` words: ports, or ICMP types and codes. Ranges that no single
/// text of a config matches are written alike, as `icmp/3-8`.
pub fn range_text(protocol: u8, words: &RangeInclusive<u16>) -> String {
    let (first, last) = (*words.start(), *words.end());
    if (first, last) == (0, u16::MAX) {
        return protocol_text(protocol);
    }
    if protocol != ICMP && protocol != ICMPV6 {
        return text(&Service::Ports { protocol, first, last });
    }
    let ([kind, code], [last_kind, last_code]) = (first.to_be_bytes(), last.to_be_bytes());
    let one = |code| text(&Service::Icmp { protocol, kind, code });
    match (kind == last_kind, code, last_code) {
        (true, 0, u8::MAX) => one(None),
        (true, ..) if code == last_code => one(Some(code)),
        (true, ..) => format!("{}-{last_code}", one(Some(code))),
        (false, 0, u8::MAX) => format!("{}/{kind}-{last_kind}", protocol_text(protocol)),
        (false, ..) => {
            format!("{}/{kind}/{code}-{last_kind}/{last_code}", protocol_text(protocol))
        }
    }
}

fn protocol_text(protocol: u8) -> String {
    match PROTOCOLS.iter().find(|(_, number)| *number == protocol) {
        Some((name, _)) => (*name).to_owned(),
        None => format!("ip/{protocol}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_every_form() {
        let one = |service| Ok(Services::Only(vec![service]));
        assert_eq!(parse("any"), Ok(Services::Any));
        assert_eq!(parse("tcp"), one(Service::Protocol(6)));
        assert_eq!(parse("ip/47"), one(Service::Protocol(47)));
        assert_eq!(parse("udp/53"), one(Service::Ports { protocol: 17, first: 53, last: 53 }));
        assert_eq!(
            parse("tcp/9000-9100"),
            one(Service::Ports { protocol: 6, first: 9000, last: 9100 })
        );
        assert_eq!(parse("icmp/echo"), one(Service::Icmp { protocol: 1, kind: 8, code: None }));
        assert_eq!(parse("icmp6/echo"), one(Service::Icmp { protocol: 58, kind: 128, code: None }));
        assert_eq!(parse("icmp/3/1"), one(Service::Icmp { protocol: 1, kind: 3, code: Some(1) }));
    }

    #[test]
    fn refuses_the_rest_with_a_reason() {
        for (text, error) in [
            ("", ServiceError::Protocol),
            ("http", ServiceError::Protocol),
            ("tcp/", ServiceError::Ports),
            ("tcp/+80", ServiceError::Ports),
            ("tcp/65536", ServiceError::Ports),
            ("tcp/1-2-3", ServiceError::Ports),
            ("tcp/90-80", ServiceError::Backwards),
            ("icmp/256", ServiceError::Icmp),
            ("icmp/3/", ServiceError::Icmp),
            ("ip", ServiceError::Number),
            ("ip/tcp", ServiceError::Number),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn conversations_have_the_names_that_rules_use() {
        assert_eq!(conversation_text(6, 8080), "tcp/8080");
        assert_eq!(conversation_text(1, 0x0800), "icmp/echo");
        assert_eq!(conversation_text(58, 0x8000), "icmp6/echo");
        assert_eq!(conversation_text(1, 0x0301), "icmp/3/1");
        assert_eq!(conversation_text(47, 0), "ip/47");
    }

    #[test]
    fn ranges_are_told_as_short_as_they_can_be() {
        for (protocol, words, expected) in [
            (TCP, 0..=u16::MAX, "tcp"),
            (TCP, 80..=80, "tcp/80"),
            (UDP, 80..=90, "udp/80-90"),
            (ICMP, 0x0800..=0x08ff, "icmp/echo"),
            (ICMP, 0x0301..=0x0301, "icmp/3/1"),
            (ICMP, 0x0301..=0x0304, "icmp/3/1-4"),
            (ICMPV6, 0x0000..=0x7fff, "icmp6/0-127"),
            (ICMP, 0x0301..=0x04ff, "icmp/3/1-4/255"),
        ] {
            assert_eq!(range_text(protocol, &words), expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(tcp|udp|sctp|icmp6?|ip|any)?/?[0-9a-z/-]{0,12}") {
            if let Ok(Services::Only(services)) = parse(&text) {
                for service in services {
                    let again = super::text(&service);
                    prop_assert_eq!(parse(&again), Ok(Services::Only(vec![service])));
                }
            }
        }
    }
}
