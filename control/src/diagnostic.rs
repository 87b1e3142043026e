//! What is wrong with a config, or deserves a look: what, where, and what to do about it.
//!
//! A [`Problem`] keeps a config from compiling; a [`Remark`] does not. Both are values, and carry a
//! [`Span`] of the config's text until they are shown. All problems of a config are reported at
//! once, in the order of the file. The text of a config is never trusted with a terminal: quoted
//! values are escaped, and control characters of a source line are replaced.

use std::fmt::{self, Display};
use std::ops::Range;
use std::sync::Arc;

use jiff::civil::Date;
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use crate::condition::ConditionError;
use crate::service::ServiceError;

/// Most characters of a source line that are shown.
const EXCERPT_WIDTH: usize = 160;

/// A range of bytes in a config's text.
pub type Span = Range<usize>;

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

    /// Another place that has to do with it, and what it is.
    fn related(&self) -> Option<(&Span, &'static str)> {
        match self {
            Self::Duplicate { first, .. } => Some((first, "first used here")),
            _ => None,
        }
    }
}

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

/// Something and the text it is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Spanned<T> {
    /// Where.
    pub span: Span,
    /// What.
    pub value: T,
}

/// A remark with its place, ready to be shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Notice {
    /// Path of the config.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The remark's [code](Remark::code).
    pub code: &'static str,
    /// The remark's sentence.
    pub message: String,
}

impl Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

/// Every problem of one config, with the text they are about.
///
/// Shown plainly it is a line each, as `lab.toml:3:1: unknown key "lables" in [[workload]]: did you
/// mean "labels"?`; [`Diagnostics::render`] shows the source too.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostics {
    source: Source,
    problems: Vec<Spanned<Problem>>,
}

impl std::error::Error for Diagnostics {}

impl Diagnostics {
    /// Puts `problems` in the order of the file.
    pub(crate) fn new(source: Source, mut problems: Vec<Spanned<Problem>>) -> Self {
        problems.sort_by_key(|problem| (problem.span.start, problem.span.end));
        Self { source, problems }
    }

    /// The problems, in the order of the file.
    pub fn problems(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.problems.iter().map(|problem| &problem.value)
    }

    /// For a terminal: each problem with its source line, the place marked, and what to do.
    pub fn render(&self, colour: bool) -> String {
        let paint = Paint { colour };
        let mut text = String::new();
        for problem in &self.problems {
            let help = problem.value.help();
            text += &format!("{}: {}\n", paint.red("error"), paint.bold(&problem.value));
            text += &self.source.excerpt(&problem.span, &help, paint);
            if let Some((span, label)) = problem.value.related() {
                text += &self.source.excerpt(span, label, paint);
            }
            text.push('\n');
        }
        let (path, count) = (&self.source.path, self.problems.len());
        let errors = if count == 1 { "1 error".to_owned() } else { format!("{count} errors") };
        text + &format!("{path} does not compile: {errors}\n")
    }
}

impl Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let Place { line, column } = self.source.place(problem.span.start);
            let (path, what) = (&self.source.path, &problem.value);
            let end = if i + 1 < self.problems.len() { "\n" } else { "" };
            write!(f, "{path}:{line}:{column}: {what}: {}{end}", what.help())?;
        }
        Ok(())
    }
}

impl Serialize for Diagnostics {
    /// A list of `{file, line, column, length, code, message, help}`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            file: &'a str,
            line: usize,
            column: usize,
            length: usize,
            code: &'a str,
            message: String,
            help: String,
        }
        let mut list = serializer.serialize_seq(Some(self.problems.len()))?;
        for Spanned { span, value } in &self.problems {
            let Place { line, column } = self.source.place(span.start);
            list.serialize_element(&Entry {
                file: &self.source.path,
                line,
                column,
                length: self.source.slice(span).chars().count(),
                code: value.code(),
                message: value.to_string(),
                help: value.help(),
            })?;
        }
        list.end()
    }
}

/// A position for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// From 1.
    pub(crate) line: usize,
    /// In characters, from 1.
    pub(crate) column: usize,
}

/// A config's text and its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Source {
    path: String,
    text: Arc<str>,
    /// Where each line begins, in bytes.
    lines: Arc<[usize]>,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let newlines = text.match_indices('\n').map(|(newline, _)| newline + 1);
        let lines = std::iter::once(0).chain(newlines).collect();
        Self { path: path.to_owned(), text: text.into(), lines }
    }

    /// A remark, as it is shown.
    pub(crate) fn notice(&self, remark: &Spanned<Remark>) -> Notice {
        let Place { line, column } = self.place(remark.span.start);
        let (code, message) = (remark.value.code(), remark.value.to_string());
        Notice { file: self.path.clone(), line, column, code, message }
    }

    /// Where byte `offset` is. Any offset has a place, be it inside a character or behind the end.
    fn place(&self, offset: usize) -> Place {
        let line = self.lines.partition_point(|&start| start <= offset.min(self.text.len()));
        Place { line, column: self.slice(&(self.line_start(line)..offset)).chars().count() + 1 }
    }

    /// Where line `line`, from 1, begins.
    fn line_start(&self, line: usize) -> usize {
        self.lines.get(line.saturating_sub(1)).copied().unwrap_or(self.text.len())
    }

    /// The text of a span, cut to whole characters that exist.
    fn slice(&self, span: &Span) -> &str {
        let floor = |offset: usize| {
            let offset = offset.min(self.text.len());
            (0..=offset).rev().find(|&i| self.text.is_char_boundary(i)).unwrap_or(0)
        };
        let (start, end) = (floor(span.start), floor(span.end));
        &self.text[start..end.max(start)]
    }

    /// The line that `span` begins on, with `label` under it.
    fn excerpt(&self, span: &Span, label: &str, paint: Paint) -> String {
        let Place { line, column } = self.place(span.start);
        let source =
            self.slice(&(self.line_start(line)..self.line_start(line + 1))).trim_end().chars();
        // Of a very long line, what is around the place.
        let skipped = if column > EXCERPT_WIDTH { column - EXCERPT_WIDTH / 2 } else { 0 };
        let source = source.skip(skipped).take(EXCERPT_WIDTH);
        let source: String = source.map(|c| if c.is_control() { ' ' } else { c }).collect();
        let indent = column - 1 - skipped;
        let on_this_line = source.chars().count().saturating_sub(indent);
        let marked = self.slice(span).chars().count().min(on_this_line).max(1);

        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(indent);
        let marks = paint.red("^".repeat(marked));
        let bar = paint.blue('|');
        format!(
            "{margin}{} {}:{line}:{column}\n{margin} {bar}\n{} {bar} {source}\n{margin} {bar} {indent}{marks} {label}\n",
            paint.blue("-->"),
            self.path,
            paint.blue(number),
        )
    }
}

#[derive(Clone, Copy)]
struct Paint {
    colour: bool,
}

impl Paint {
    fn red(self, text: impl Display) -> String {
        self.with("1;31", text)
    }

    fn blue(self, text: impl Display) -> String {
        self.with("1;34", text)
    }

    fn bold(self, text: impl Display) -> String {
        self.with("1", text)
    }

    /// ECMA-48 §8.3.117, select graphic rendition.
    fn with(self, sgr: &str, text: impl Display) -> String {
        if self.colour { format!("\u{1b}[{sgr}m{text}\u{1b}[0m") } else { text.to_string() }
    }
}

fn one_of(given: &str, known: &[&str], role: &str) -> String {
    match nearest(given, known.iter().copied()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("one of {} {role}", known.join(", ")),
    }
}

/// The candidate that `given` was most likely meant to be, if one is near enough.
pub(crate) fn nearest<'a>(
    given: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    // A pasted novel is no typing error, and its distance would be slow to compute.
    if given.len() > 64 {
        return None;
    }
    candidates
        .map(|candidate| (strsim::jaro_winkler(given, candidate), candidate))
        .filter(|&(likeness, _)| likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown_key(text: &str, key: &str) -> Diagnostics {
        let start = text.find(key).expect("the key is in the text");
        let value = Problem::UnknownKey {
            key: key.into(),
            table: "[[workload]]",
            known: vec!["labels", "lane"],
        };
        let problem = Spanned { span: start..start + key.len(), value };
        Diagnostics::new(Source::new("lab.toml", text), vec![problem])
    }

    #[test]
    fn shows_the_line_the_place_and_what_to_do() {
        let diagnostics = unknown_key("# é\n[[workload]]\nlables = 1\n", "lables");
        assert_eq!(
            diagnostics.to_string(),
            "lab.toml:3:1: unknown key \"lables\" in [[workload]]: did you mean \"labels\"?"
        );
        assert_eq!(
            diagnostics.render(false),
            "error: unknown key \"lables\" in [[workload]]\n \
             --> lab.toml:3:1\n  \
             |\n\
             3 | lables = 1\n  \
             | ^^^^^^ did you mean \"labels\"?\n\
             \n\
             lab.toml does not compile: 1 error\n"
        );
        let json = serde_json::to_value(&diagnostics).expect("it is plain data");
        assert_eq!(json[0]["line"], 3);
        assert_eq!(json[0]["length"], 6);
        assert_eq!(json[0]["code"], "unknown-key");
    }

    #[test]
    fn a_config_cannot_write_to_the_terminal() {
        let text = "x = \"\u{1b}[2J\" # bell\u{7}";
        let rendered = unknown_key(text, "\u{1b}[2J").render(false);
        assert!(!rendered.contains(['\u{1b}', '\u{7}']), "{rendered}");
    }

    #[test]
    fn of_a_long_line_the_part_in_question_is_shown() {
        let text = format!("{}lables{}", "x".repeat(10_000), "y".repeat(10_000));
        let rendered = unknown_key(&text, "lables").render(false);
        assert!(rendered.lines().all(|line| line.len() < 200), "{rendered}");
        let lines: Vec<_> = rendered.lines().collect();
        assert_eq!(lines[3].find("lables"), lines[4].find("^^^^^^ did you mean"), "{rendered}");
    }

    #[test]
    fn every_offset_has_a_place() {
        let source = Source::new("x", "é\nü");
        for offset in 0..10 {
            let _ = source.excerpt(&(offset..offset + 2), "", Paint { colour: true });
        }
        assert_eq!(source.place(100), Place { line: 2, column: 2 });
        assert_eq!(source.slice(&(1..2)), "é", "cut to the characters that begin in it");
    }

    #[test]
    fn suggestions_are_near() {
        let known = ["labels", "lane", "kind"];
        assert_eq!(nearest("lables", known.into_iter()), Some("labels"));
        assert_eq!(nearest("kimd", known.into_iter()), Some("kind"));
        assert_eq!(nearest("zebra", known.into_iter()), None);
    }
}
