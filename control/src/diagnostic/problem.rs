//! What keeps a config from compiling: what it is, and what to do about it.

use super::{Span, nearest};
use crate::condition::ConditionError;
use crate::service::ServiceError;

/// Why a config does not compile.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    /// It is not TOML.
    #[error("this is not TOML: {message}")]
    Syntax {
        /// The parser's words.
        message: String,
    },
    /// A table has a key that means nothing there.
    #[error("unknown key {key:?} in {table}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The table.
        table: &'static str,
        /// Every key that means something there.
        known: Vec<&'static str>,
    },
    /// A table lacks a key.
    #[error("{table} has no {key}")]
    Missing {
        /// The table.
        table: String,
        /// The key.
        key: &'static str,
        /// How it is written.
        example: &'static str,
    },
    /// A value has the wrong type.
    #[error("{key} is {expected}, not a TOML {found}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
        /// TOML's name of what it is.
        found: &'static str,
    },
    /// A value is none of those that its key allows.
    #[error("unknown {key} {value:?}")]
    UnknownValue {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it may be.
        known: Vec<&'static str>,
    },
    /// A number is too small or too large.
    #[error("{key} is {value}, outside {first} to {last}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// The value, as it is written.
        value: String,
        /// The least it may be.
        first: u32,
        /// The most it may be.
        last: u32,
    },
    /// The umem's size is not a power of two.
    #[error("frames is {value}, which is not a power of two")]
    NotPowerOfTwo {
        /// The value.
        value: u32,
    },
    /// A name that cannot be one.
    #[error("{value:?} cannot be a name")]
    BadName {
        /// The name.
        value: String,
    },
    /// A name that means something else already.
    #[error("the name {value:?} is taken by Firedoor itself")]
    ReservedName {
        /// The name.
        value: String,
    },
    /// A label whose key or value cannot be one.
    #[error("{value:?} cannot be a label's {part}")]
    BadLabel {
        /// `key` or `value`.
        part: &'static str,
        /// The text.
        value: String,
    },
    /// Not an Ethernet address.
    #[error("{value:?} is not a MAC address")]
    BadMac {
        /// The text.
        value: String,
    },
    /// An Ethernet address that no station may have.
    #[error("{value:?} is not the address of one station")]
    MacNotUnicast {
        /// The text.
        value: String,
    },
    /// Not an IP address with a prefix length.
    #[error("{value:?} is not an address with a prefix length")]
    BadAddress {
        /// The text.
        value: String,
    },
    /// An IP address that no workload may have.
    #[error("{value:?} cannot be a workload's address: {why}")]
    UnusableAddress {
        /// The text.
        value: String,
        /// Why not.
        why: &'static str,
    },
    /// A range whose address has bits set behind the prefix.
    #[error("{value:?} has address bits behind its prefix length")]
    HostBits {
        /// The text.
        value: String,
        /// The range that it lies in.
        range: String,
    },
    /// A name that no interface can have.
    #[error("{value:?} cannot be an interface's name")]
    BadIfname {
        /// The text.
        value: String,
    },
    /// Neither a service's text nor a service's name.
    #[error("{value:?} is not a service: {source}")]
    BadService {
        /// The text.
        value: String,
        /// Why not.
        source: ServiceError,
    },
    /// Not what a rule can ask for by this key.
    #[error("{value:?} cannot be {key}: {source}")]
    BadCondition {
        /// The key.
        key: &'static str,
        /// The text.
        value: String,
        /// Why not.
        source: ConditionError,
    },
    /// A key that means something for IP alone, in a rule about another ethertype.
    #[error("{key} is a matter of IP, and this rule is about ethertype {ether_type}")]
    NotOfIp {
        /// The key.
        key: &'static str,
        /// The ethertype.
        ether_type: String,
    },
    /// A condition that a service of the same rule can never meet.
    #[error("{key} and the service {service} exclude each other: {why}")]
    Excluded {
        /// The condition's key.
        key: &'static str,
        /// The service.
        service: String,
        /// Why.
        why: &'static str,
    },
    /// Not a date.
    #[error("{value:?} is not a date")]
    BadDate {
        /// The text.
        value: String,
    },
    /// A list that needs an element.
    #[error("{key} is an empty list")]
    EmptyList {
        /// The key.
        key: &'static str,
    },
    /// A selector that names nothing.
    #[error("this selector selects nothing")]
    EmptySelector,
    /// A selector that names things in two ways at once.
    #[error("this selector mixes {first} with {second}")]
    MixedSelector {
        /// One way.
        first: &'static str,
        /// Another.
        second: &'static str,
    },
    /// An access VLAN and a trunk.
    #[error("a workload has either vlan or trunk, not both")]
    VlanAndTrunk,
    /// An external workload lacks what only its owner can know.
    #[error("external workload {workload:?} has no {key}")]
    ExternalNeeds {
        /// The workload.
        workload: String,
        /// What it lacks.
        key: &'static str,
    },
    /// More workloads than port numbers.
    #[error("{count} workloads, more than the {limit} ports that a switch can have")]
    TooManyWorkloads {
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Two things share what must be unique.
    #[error("{what} {value:?} is used twice")]
    Duplicate {
        /// What is shared.
        what: &'static str,
        /// Its value.
        value: String,
        /// Where it was used before.
        first: Span,
    },
    /// A name that nothing has.
    #[error("there is no {what} {value:?}")]
    UnknownName {
        /// What was looked for.
        what: &'static str,
        /// The name.
        value: String,
        /// The nearest name that exists.
        nearest: Option<String>,
    },
}

impl Problem {
    /// A stable word for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Syntax { .. } => "syntax",
            Self::UnknownKey { .. } => "unknown-key",
            Self::Missing { .. } => "missing",
            Self::WrongType { .. } => "wrong-type",
            Self::UnknownValue { .. } => "unknown-value",
            Self::OutOfRange { .. } => "out-of-range",
            Self::NotPowerOfTwo { .. } => "not-power-of-two",
            Self::BadName { .. } => "bad-name",
            Self::ReservedName { .. } => "reserved-name",
            Self::BadLabel { .. } => "bad-label",
            Self::BadMac { .. } => "bad-mac",
            Self::MacNotUnicast { .. } => "mac-not-unicast",
            Self::BadAddress { .. } => "bad-address",
            Self::UnusableAddress { .. } => "unusable-address",
            Self::HostBits { .. } => "host-bits",
            Self::BadIfname { .. } => "bad-ifname",
            Self::BadService { .. } => "bad-service",
            Self::BadCondition { .. } => "bad-condition",
            Self::NotOfIp { .. } => "not-of-ip",
            Self::Excluded { .. } => "excluded",
            Self::BadDate { .. } => "bad-date",
            Self::EmptyList { .. } => "empty-list",
            Self::EmptySelector => "empty-selector",
            Self::MixedSelector { .. } => "mixed-selector",
            Self::VlanAndTrunk => "vlan-and-trunk",
            Self::ExternalNeeds { .. } => "external-needs",
            Self::TooManyWorkloads { .. } => "too-many-workloads",
            Self::Duplicate { .. } => "duplicate",
            Self::UnknownName { .. } => "unknown-name",
        }
    }

    /// What to do about it.
    pub fn help(&self) -> String {
        match self {
            Self::Syntax { .. } => "see https://toml.io for how TOML is written".into(),
            Self::UnknownKey { key, known, .. } => one_of(key, known, "is known here"),
            Self::UnknownValue { value, known, .. } => one_of(value, known, "may stand here"),
            Self::Missing { example, .. } => format!("add {example}"),
            Self::WrongType { expected, .. } => format!("write {expected}"),
            Self::OutOfRange { first, last, .. } => {
                format!("write a number from {first} to {last}")
            }
            Self::NotPowerOfTwo { value } => {
                format!("write {}", value.checked_next_power_of_two().unwrap_or(1 << 31))
            }
            Self::BadName { .. } => {
                "use letters, digits, '.', '_' and '-', a letter or digit first, at most 63 in all"
                    .into()
            }
            Self::ReservedName { .. } => "choose another name".into(),
            Self::BadLabel { .. } => "use letters, digits, '.', '_', '-' and '/', at most 63; \
                 workload, group and any cannot be keys"
                .into(),
            Self::BadMac { .. } => "write six hexadecimal bytes, as \"02:00:00:00:00:10\"".into(),
            Self::MacNotUnicast { .. } => {
                "use one whose first byte is even, such as \"02:00:00:00:00:10\"".into()
            }
            Self::BadAddress { .. } => "write it as \"10.10.0.10/24\" or \"fd00:10::10/64\"".into(),
            Self::UnusableAddress { .. } => "use an address of one host in its subnet".into(),
            Self::HostBits { range, .. } => format!("write {range:?}"),
            Self::BadIfname { .. } => {
                "use 1 to 15 bytes without '/', ':' or white space, as the kernel does".into()
            }
            Self::BadService { source, .. } => source.help().into(),
            Self::BadCondition { source, .. } => source.help().into(),
            Self::NotOfIp { key, .. } => {
                format!("leave {key} out, or write a rule of its own for IP")
            }
            Self::Excluded { key, .. } => {
                format!("leave {key} out, or give the service a rule of its own")
            }
            Self::BadDate { .. } => "write it as \"2027-01-01\"".into(),
            Self::EmptyList { .. } => "name at least one, or leave the key out".into(),
            Self::EmptySelector => {
                "name labels, as { tier = \"web\" }, or write { any = true }".into()
            }
            Self::MixedSelector { .. } => {
                "write a list of selectors, as [{ tier = \"web\" }, { group = \"office\" }]".into()
            }
            Self::VlanAndTrunk => "keep the one that its frames look like on the wire".into(),
            Self::ExternalNeeds { key: "mac", .. } => {
                "add its address, as mac = \"02:00:00:00:00:10\", or router = true".into()
            }
            Self::ExternalNeeds { .. } => "add the interface, as ifname = \"eth1\"".into(),
            Self::TooManyWorkloads { .. } => "split them over several switches".into(),
            Self::Duplicate { .. } => "change one of the two".into(),
            Self::UnknownName { nearest: Some(nearest), .. } => {
                format!("did you mean {nearest:?}?")
            }
            Self::UnknownName { what, .. } => format!("add a [[{what}]] of this name"),
        }
    }

    /// What to do about it, for who has given arguments of `port add` and has not seen a config.
    pub fn help_with_arguments(&self) -> String {
        match self {
            Self::ExternalNeeds { key: "mac", .. } => {
                "give its address, as --mac 02:00:00:00:00:10, or --router".into()
            }
            Self::ExternalNeeds { .. } => "give the interface, as --ifname eth1".into(),
            Self::BadMac { .. } => "write six hexadecimal bytes, as 02:00:00:00:00:10".into(),
            Self::MacNotUnicast { .. } => {
                "use one whose first byte is even, such as 02:00:00:00:00:10".into()
            }
            Self::BadAddress { .. } => "write it as 10.10.0.10/24 or fd00:10::10/64".into(),
            Self::Duplicate { .. } => "choose another".into(),
            other => other.help(),
        }
    }

    /// Where what must be unique was used before.
    pub(super) fn first_use(&self) -> Option<&Span> {
        match self {
            Self::Duplicate { first, .. } => Some(first),
            _ => None,
        }
    }
}

fn one_of(given: &str, known: &[&str], role: &str) -> String {
    match nearest(given, known.iter().copied()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("one of {} {role}", known.join(", ")),
    }
}
