//! What is measured of a scenario, and how its values are shown.

use serde::{Deserialize, Serialize};

/// What a run measures, and in which unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Frames that arrived, per second.
    FramesPerSecond,
    /// Payload bits that arrived, per second.
    BitsPerSecond,
    /// TCP connections opened and closed, per second.
    ConnectionsPerSecond,
    /// Time that all processors together were busy, in nanoseconds per frame that arrived.
    CpuNsPerFrame,
    /// Of that, what the system's own processes ran, as the scheduler knows it.
    OwnNsPerFrame,
    /// Like [`Metric::CpuNsPerFrame`], per 1,000 bytes of payload.
    CpuNsPerKilobyte,
    /// Likewise, per connection.
    CpuNsPerConnection,
    /// Frames that the generator offered, or an attacker, per second.
    Offered,
    /// Share of the offered frames that did not arrive, 0 to 1.
    Lost,
    /// Highest rate at which all frames arrived, per second.
    LossFree,
    /// Round trip that half of all did not exceed, in nanoseconds.
    P50,
    /// Likewise, 90 %.
    P90,
    /// Likewise, 99 %.
    P99,
    /// Likewise, 99.9 %.
    P999,
    /// Half of all later round trips of the same conversations did not exceed it, in nanoseconds.
    Later,
    /// By how much the median of the first ones is above that.
    More,
    /// Share of the time that no other machine slowed the processor down in; what was seen in the rest does not count.
    Undisturbed,
    /// Processors busy while nothing is sent, 0.01 for 1 % of one.
    IdleProcessors,
    /// Of those, what the system added: less those that were busy on the same wires before it was there.
    AddedProcessors,
    /// Those that were busy before.
    BareProcessors,
    /// What the system's own processes ran, to the nanosecond.
    OwnProcessors,
    /// Share of its own rate that the victim keeps while an attack goes on.
    Kept,
}

impl Metric {
    /// What it is called where there is little room.
    pub fn name(self) -> &'static str {
        match self {
            Self::FramesPerSecond | Self::BitsPerSecond | Self::ConnectionsPerSecond => "rate",
            Self::Offered => "offered",
            Self::LossFree => "without loss",
            Self::CpuNsPerFrame => "CPU per frame",
            Self::OwnNsPerFrame => "its own per frame",
            Self::CpuNsPerKilobyte => "CPU per kB",
            Self::CpuNsPerConnection => "CPU per connection",
            Self::Lost => "lost",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Later => "later p50",
            Self::More => "more than later",
            Self::Undisturbed => "undisturbed",
            Self::IdleProcessors => "busy processors",
            Self::AddedProcessors => "added",
            Self::BareProcessors => "without it",
            Self::OwnProcessors => "its own",
            Self::Kept => "kept",
        }
    }

    /// A value of it with its unit, to three significant digits.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::FramesPerSecond | Self::Offered | Self::LossFree => scaled(value, "pps"),
            Self::BitsPerSecond => scaled(value, "bit/s"),
            Self::ConnectionsPerSecond => scaled(value, "conn/s"),
            Self::CpuNsPerFrame | Self::CpuNsPerKilobyte | Self::CpuNsPerConnection => time(value),
            Self::OwnNsPerFrame => time(value),
            Self::P50 | Self::P90 | Self::P99 | Self::P999 => time(value),
            Self::Later | Self::More => time(value),
            Self::Lost | Self::Kept | Self::Undisturbed => share(value),
            Self::IdleProcessors | Self::AddedProcessors => share(value),
            Self::BareProcessors | Self::OwnProcessors => share(value),
        }
    }

    /// Whether more of it is better.
    pub fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::FramesPerSecond
                | Self::BitsPerSecond
                | Self::ConnectionsPerSecond
                | Self::LossFree
                | Self::Kept
        )
    }
}

/// A share of one, in percent.
fn share(value: f64) -> String {
    format!("{} %", digits(value * 100.0))
}

/// A value with the largest prefix that keeps it above one.
fn scaled(value: f64, unit: &str) -> String {
    const PREFIXES: [&str; 4] = ["", "k", "M", "G"];
    let mut value = value;
    let mut prefix = 0;
    // What would round to four digits goes to the next prefix.
    while value >= 999.5 && prefix + 1 < PREFIXES.len() {
        value /= 1e3;
        prefix += 1;
    }
    format!("{} {}{unit}", digits(value), PREFIXES[prefix])
}

/// A time given in nanoseconds.
fn time(ns: f64) -> String {
    match ns {
        _ if !ns.is_finite() => "∞".to_owned(),
        _ if ns.abs() < 999.5 => format!("{} ns", digits(ns)),
        _ if ns.abs() < 999.5e3 => format!("{} µs", digits(ns / 1e3)),
        _ => format!("{} ms", digits(ns / 1e6)),
    }
}

/// Three significant digits, and no more than two behind the point.
fn digits(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".to_owned(),
        99.95.. => format!("{value:.0}"),
        9.995.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_with_three_digits() {
        assert_eq!(Metric::FramesPerSecond.show(1_744_321.0), "1.74 Mpps");
        assert_eq!(Metric::FramesPerSecond.show(999_600.0), "1.00 Mpps");
        assert_eq!(Metric::FramesPerSecond.show(0.0), "0.00 pps");
        assert_eq!(Metric::BitsPerSecond.show(32.1e9), "32.1 Gbit/s");
        assert_eq!(Metric::P99.show(44_700.0), "44.7 µs");
        assert_eq!(Metric::P50.show(812.0), "812 ns");
        assert_eq!(Metric::P999.show(2.5e6), "2.50 ms");
        assert_eq!(Metric::CpuNsPerFrame.show(f64::INFINITY), "∞");
        assert_eq!(Metric::Lost.show(0.123), "12.3 %");
        assert_eq!(Metric::Kept.show(1.0), "100 %");
    }
}
