//! What deserves a look in a config, though it compiles.

use std::fmt::{self, Display};

use jiff::civil::Date;

/// What deserves a look in a config that compiles.
#[derive(Clone, Debug, PartialEq)]
pub enum Remark {
    /// A rule's selector matches nothing.
    SelectsNothing {
        /// The rule.
        rule: String,
        /// `from` or `to`.
        side: &'static str,
    },
    /// A rule speaks of a VLAN that is nowhere.
    NoSuchVlan {
        /// The rule.
        rule: String,
        /// The VLAN.
        vlan: u16,
    },
    /// A rule asks for flags that come later in a connection, if at all.
    NeverBegins {
        /// The rule.
        rule: String,
        /// The flags.
        flags: String,
    },
    /// A rule is left out, because its day has come.
    Expired {
        /// The rule.
        rule: String,
        /// The day.
        day: Date,
    },
    /// An `except` that takes nothing away.
    ExceptOutside {
        /// The group.
        group: String,
        /// The range.
        range: String,
    },
    /// A group's range holds a workload's address.
    GroupCovers {
        /// The group.
        group: String,
        /// The workload.
        workload: String,
    },
    /// A workload without an address.
    NoAddress {
        /// The workload.
        workload: String,
    },
    /// Two workloads of a VLAN disagree on which addresses are their neighbours.
    SubnetsDiffer {
        /// One address with its prefix length.
        one: String,
        /// Another workload.
        workload: String,
        /// That one's address.
        other: String,
    },
    /// Earlier rules decide all that a rule matches.
    Shadowed {
        /// The rule.
        rule: String,
        /// The earlier ones, in order.
        by: Vec<String>,
    },
    /// A rule's ends never talk to each other.
    NoPair {
        /// The rule.
        rule: String,
        /// Why not.
        why: &'static str,
    },
    /// A rule that has hardly a limit.
    AllowsAny {
        /// The rule.
        rule: String,
        /// What it lets whom do.
        what: &'static str,
    },
    /// Something that no rule names.
    Unused {
        /// `group` or `service`.
        what: &'static str,
        /// Its name.
        name: String,
    },
}

impl Remark {
    /// A short name that stays the same.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::SelectsNothing { .. } => "selects-nothing",
            Self::NoSuchVlan { .. } => "no-such-vlan",
            Self::NeverBegins { .. } => "never-begins",
            Self::Expired { .. } => "expired",
            Self::ExceptOutside { .. } => "except-outside",
            Self::GroupCovers { .. } => "group-covers",
            Self::NoAddress { .. } => "no-address",
            Self::SubnetsDiffer { .. } => "subnets-differ",
            Self::Shadowed { .. } => "shadowed",
            Self::NoPair { .. } => "no-pair",
            Self::AllowsAny { .. } => "allows-any",
            Self::Unused { .. } => "unused",
        }
    }
}

impl Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SelectsNothing { rule, side } => {
                write!(f, "rule {rule:?} matches nothing in its {side:?}")
            }
            Self::NoSuchVlan { rule, vlan } => {
                write!(f, "rule {rule:?} speaks of VLAN {vlan}, which no port carries")
            }
            Self::NeverBegins { rule, flags } => write!(
                f,
                "rule {rule:?} asks for {flags}, which begins no connection, and a connection's \
                 other frames follow its first one: in enforce mode it allows nothing, unless \
                 midstream = true"
            ),
            Self::Expired { rule, day } => {
                write!(f, "rule {rule:?} expired on {day} and is left out")
            }
            Self::ExceptOutside { group, range } => {
                write!(f, "group {group:?} excepts {range}, which it does not contain")
            }
            Self::GroupCovers { group, workload } => write!(
                f,
                "group {group:?} contains an address of workload {workload:?}, \
                 but groups speak of addresses outside the switch: select it by its labels"
            ),
            Self::NoAddress { workload } => {
                write!(f, "workload {workload:?} has no ip, so it can only use IPv6 link-local")
            }
            Self::SubnetsDiffer { one, workload, other } => write!(
                f,
                "{one} and {other} of workload {workload:?} overlap with different prefix lengths, \
                 so one of them looks for a router on the way"
            ),
            Self::Shadowed { rule, by } => write!(
                f,
                "rule {rule:?} never decides: {}, before it, decide{} all that it matches",
                named(by),
                if by.len() == 1 { "s" } else { "" }
            ),
            Self::NoPair { rule, why } => write!(f, "rule {rule:?} matches nobody: {why}"),
            Self::AllowsAny { rule, what } => write!(f, "rule {rule:?} lets {what}"),
            Self::Unused { what, name } => write!(f, "no rule names {what} {name:?}"),
        }
    }
}

/// Rules, the first few by name.
fn named(rules: &[String]) -> String {
    const MOST: usize = 3;
    let names: Vec<_> = rules.iter().take(MOST).map(|name| format!("{name:?}")).collect();
    let names = names.join(", ");
    match rules.len() {
        1 => format!("rule {names}"),
        count if count <= MOST => format!("rules {names}"),
        count => format!("rules {names} and {} more", count - MOST),
    }
}
