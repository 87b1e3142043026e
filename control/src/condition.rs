//! What a rule asks of a conversation's first frame besides ends and service, as text and back.
//!
//! | key | text | asks for |
//! |---|---|---|
//! | `source_port` | `68`, `1024-65535` | a source port of TCP, UDP or SCTP |
//! | `tcp_flags` | `syn,!ack` | TCP flags that are set, and with `!` ones that are not |
//! | `ethertype` | `ipv4`, `ipv6`, `0x88b5` | what follows the MAC addresses and VLAN tag |
//! | `vlan` | `10` | the VLAN that the frame belongs to |

use std::fmt::Write;

use firedoor_classifier::snapshot::{Conditions, FlagMatch};
use firedoor_classifier::wire::ethernet::{self, ether_type};
use firedoor_classifier::wire::tcp::TcpFlags;

/// TCP's flags by name, in the order of their bits (RFC 9293 §3.1).
const FLAGS: [(&str, TcpFlags); 8] = [
    ("fin", TcpFlags::FIN),
    ("syn", TcpFlags::SYN),
    ("rst", TcpFlags::RST),
    ("psh", TcpFlags::PSH),
    ("ack", TcpFlags::ACK),
    ("urg", TcpFlags::URG),
    ("ece", TcpFlags::ECE),
    ("cwr", TcpFlags::CWR),
];

/// Why a text is not what its key asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// Neither a port nor a range of ports.
    #[error("it names no port or range of ports")]
    Ports,
    /// The range ends before it begins.
    #[error("its range ends before it begins")]
    Backwards,
    /// A word that is no flag's name.
    #[error("TCP has no flag {word:?}")]
    Flag {
        /// The word.
        word: String,
    },
    /// A flag is both wanted and unwanted.
    #[error("{flag} cannot be both set and clear")]
    Torn {
        /// The flag.
        flag: &'static str,
    },
    /// No well-formed segment has these flags.
    #[error("no TCP segment that is well formed has such flags")]
    Impossible,
    /// Not the name or number of an ethertype.
    #[error("it is no ethertype")]
    EtherType,
    /// A number that is a length where an ethertype would stand.
    #[error("below 0x0600 stand lengths, not ethertypes")]
    Length,
    /// ARP's ethertype.
    #[error("ARP is not for rules: the switch gives every request to its target alone")]
    Arp,
    /// A VLAN tag's ethertype.
    #[error("it is a VLAN tag's, which stands before the ethertype")]
    Tag,
}

impl ConditionError {
    /// What to write instead.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Ports => "write a port from 0 to 65535, or a range, as \"1024-65535\"",
            Self::Backwards => "put the lower port first, as \"1024-65535\"",
            Self::Flag { .. } => {
                "write names of fin, syn, rst, psh, ack, urg, ece and cwr, as \"syn,!ack\""
            }
            Self::Torn { .. } => "keep one of the two",
            Self::Impossible => {
                "a segment has one of syn, rst and ack, and syn goes with neither \
                 rst nor fin"
            }
            Self::EtherType => {
                "write \"ipv4\", \"ipv6\", or a number as IANA lists them, as \"0x88b5\""
            }
            Self::Length => "write the number of a protocol, as \"0x88b5\"",
            Self::Arp => "leave the rule out, and allow the service that is wanted",
            Self::Tag => "write vlan = 10",
        }
    }
}

/// Reads a port or a range of ports, first and last.
///
/// # Errors
/// If it is neither.
pub fn ports(text: &str) -> Result<(u16, u16), ConditionError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten().ok_or(ConditionError::Ports)
    };
    let (first, last) = (port(first)?, port(last)?);
    if first <= last { Ok((first, last)) } else { Err(ConditionError::Backwards) }
}

/// Reads flags that are asked for.
///
/// # Errors
/// If a word is no flag, or no segment has such flags.
pub fn flags(text: &str) -> Result<FlagMatch, ConditionError> {
    let (mut mask, mut value) = (0, 0);
    for word in text.split(',').map(str::trim) {
        let (name, is_set) = match word.strip_prefix('!') {
            Some(name) => (name.trim_start(), false),
            None => (word, true),
        };
        let (flag, bit) = flag(name)?;
        if mask & bit != 0 && (value & bit != 0) != is_set {
            return Err(ConditionError::Torn { flag });
        }
        mask |= bit;
        value |= if is_set { bit } else { 0 };
    }
    let asked = FlagMatch { mask, value };
    if segments(asked).next().is_none() { Err(ConditionError::Impossible) } else { Ok(asked) }
}

fn flag(name: &str) -> Result<(&'static str, u8), ConditionError> {
    let known = FLAGS.iter().find(|(known, _)| *known == name);
    let unknown = || ConditionError::Flag { word: name.to_owned() };
    known.map(|&(name, flag)| (name, flag.bits())).ok_or_else(unknown)
}

/// The flags of every well-formed segment that has those that are asked for.
fn segments(asked: FlagMatch) -> impl Iterator<Item = TcpFlags> {
    let all = (0..=u8::MAX).map(TcpFlags::from_bits_retain);
    all.filter(move |flags| flags.is_possible() && flags.bits() & asked.mask == asked.value)
}

/// Whether a segment with such flags may begin a connection.
pub fn may_begin(asked: FlagMatch) -> bool {
    segments(asked).any(|flags| flags.contains(TcpFlags::SYN) && !flags.contains(TcpFlags::ACK))
}

/// Reads an ethertype's name or number.
///
/// # Errors
/// If it is neither, or one that no rule can speak of.
pub fn ether_type(text: &str) -> Result<u16, ConditionError> {
    match text {
        "ipv4" => return Ok(ether_type::IPV4),
        "ipv6" => return Ok(ether_type::IPV6),
        "arp" => return Err(ConditionError::Arp),
        _ => {}
    }
    let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
    let number = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
    match number.ok_or(ConditionError::EtherType)? {
        ether_type::ARP => Err(ConditionError::Arp),
        number if number < ethernet::FIRST_ETHER_TYPE => Err(ConditionError::Length),
        number if ethernet::is_tag(number) => Err(ConditionError::Tag),
        number => Ok(number),
    }
}

/// Whether it is an IP version's ethertype.
pub const fn is_ip(number: u16) -> bool {
    matches!(number, ether_type::IPV4 | ether_type::IPV6)
}

/// An ethertype's name or number. [`ether_type()`] reads it back.
pub fn ether_type_text(number: u16) -> String {
    match number {
        ether_type::IPV4 => "ipv4".into(),
        ether_type::IPV6 => "ipv6".into(),
        number => format!("{number:#06x}"),
    }
}

/// Flags as they are asked for. [`flags`] reads them back.
pub fn flags_text(asked: FlagMatch) -> String {
    let named = FLAGS.iter().filter(|(_, flag)| asked.mask & flag.bits() != 0);
    let words = named.map(|(name, flag)| {
        let not = if asked.value & flag.bits() == 0 { "!" } else { "" };
        format!("{not}{name}")
    });
    words.collect::<Vec<_>>().join(",")
}

/// Everything that is asked, in the words of the config: `source_port 1024-65535, vlan 10`. Empty if
/// nothing is.
pub fn text(conditions: &Conditions) -> String {
    let Conditions { ether_type, vlan, src_ports, tcp_flags } = *conditions;
    let mut text = String::new();
    let mut say = |key: &str, value: String| {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        _ = write!(text, "{comma}{key} {value}");
    };
    match src_ports {
        Some((first, last)) if first == last => say("source_port", first.to_string()),
        Some((first, last)) => say("source_port", format!("{first}-{last}")),
        None => {}
    }
    tcp_flags.into_iter().for_each(|asked| say("tcp_flags", flags_text(asked)));
    ether_type.into_iter().for_each(|number| say("ethertype", ether_type_text(number)));
    vlan.into_iter().for_each(|vlan| say("vlan", vlan.to_string()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges_are_read() {
        assert_eq!(ports("68"), Ok((68, 68)));
        assert_eq!(ports("1024-65535"), Ok((1024, 65_535)));
        for text in ["", "-", "1-", "+1", "65536", "1-2-3", "a"] {
            assert_eq!(ports(text), Err(ConditionError::Ports), "{text:?}");
        }
        assert_eq!(ports("2-1"), Err(ConditionError::Backwards));
    }

    #[test]
    fn flags_are_read_and_told_alike() {
        assert_eq!(flags("syn,!ack"), Ok(FlagMatch { mask: 0x12, value: 0x02 }));
        assert_eq!(flags(" !ack , syn "), flags("syn,!ack"));
        let every = "!fin,syn,!rst,psh,!ack,urg,ece,!cwr";
        assert_eq!(flags(every).map(flags_text), Ok(every.to_owned()));
        assert_eq!(flags("syn,!syn"), Err(ConditionError::Torn { flag: "syn" }));
        assert_eq!(flags("syn,fin"), Err(ConditionError::Impossible));
        assert_eq!(flags("!syn,!rst,!ack"), Err(ConditionError::Impossible));
        for text in ["", "sin", "syn ack", "syn,,ack", "SYN"] {
            assert!(matches!(flags(text), Err(ConditionError::Flag { .. })), "{text:?}");
        }
    }

    #[test]
    fn it_is_known_which_flags_begin_a_connection() {
        for (text, begins) in
            [("syn", true), ("!ack", true), ("ece,cwr", true), ("ack", false), ("rst", false)]
        {
            assert_eq!(flags(text).map(may_begin), Ok(begins), "{text}");
        }
    }

    #[test]
    fn ethertypes_are_names_or_numbers_that_rules_can_speak_of() {
        assert_eq!(ether_type("ipv6"), Ok(0x86dd));
        assert_eq!(ether_type("0x88b5"), Ok(0x88b5));
        assert_eq!(ether_type("0x88B5").map(ether_type_text), Ok("0x88b5".to_owned()));
        for (text, error) in [
            ("arp", ConditionError::Arp),
            ("0x0806", ConditionError::Arp),
            ("0x05ff", ConditionError::Length),
            ("0x8100", ConditionError::Tag),
            ("0x88a8", ConditionError::Tag),
            ("88b5", ConditionError::EtherType),
            ("0x+8b5", ConditionError::EtherType),
            ("0x188b5", ConditionError::EtherType),
            ("", ConditionError::EtherType),
        ] {
            assert_eq!(ether_type(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn all_that_is_asked_is_told() {
        assert_eq!(text(&Conditions::default()), "");
        let conditions = Conditions {
            ether_type: Some(0x0800),
            vlan: Some(10),
            src_ports: Some((53, 53)),
            tcp_flags: Some(FlagMatch { mask: 0x12, value: 0x02 }),
        };
        assert_eq!(
            text(&conditions),
            "source_port 53, tcp_flags syn,!ack, ethertype ipv4, vlan 10"
        );
    }
}
