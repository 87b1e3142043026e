//! `firedoor denies`: refused conversations.

use std::io::Write;
use std::process::ExitCode;

use firedoor_api::control::{Deny, Reply, Request};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::ask::{ask, connect, unexpected};
use crate::args::DeniesArgs;
use crate::output::{Cell, Count, Output, Table, Tone, YES};

pub(crate) fn run(args: &DeniesArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    if args.follow {
        return follow(args, out);
    }
    let Reply::Denies(denies) = ask(&args.switch, &Request::Denies)? else {
        return Err(unexpected());
    };
    if args.json {
        out.json(&denies.iter().map(DenyView::of).collect::<Vec<_>>())?;
    } else if denies.is_empty() {
        out.note("nothing was refused since control started");
    } else {
        out.table(&table(&denies))?;
    }
    Ok(YES)
}

/// Prints what there is, then each conversation again when another of its frames is refused.
fn follow(args: &DeniesArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let mut control = connect(&args.switch)?;
    control.send(&Request::FollowDenies)?;
    loop {
        let Reply::Denies(denies) = control.news()? else { return Err(unexpected()) };
        for deny in &denies {
            if args.json {
                serde_json::to_writer(&mut *out, &DenyView::of(deny))?;
                writeln!(out)?;
            } else {
                let line = line(deny, out);
                writeln!(out, "{line}")?;
            }
        }
        out.flush()?;
    }
}

/// What `--json` prints of each conversation.
#[derive(Serialize)]
struct DenyView<'a> {
    /// When its last frame was refused, RFC 3339.
    time: String,
    #[serde(flatten)]
    deny: &'a Deny,
}

impl<'a> DenyView<'a> {
    fn of(deny: &'a Deny) -> Self {
        let time = timestamp(deny.last_unix_ns).map(|t| t.to_string()).unwrap_or_default();
        Self { time, deny }
    }
}

fn table(denies: &[Deny]) -> Table {
    let mut table =
        Table::new(["last", "from", "to", "service", "rule", "reason", ">frames", "capture"]);
    for deny in denies {
        table.row([
            Cell::new(Tone::Dim, clock(deny.last_unix_ns)),
            Cell::new(Tone::Strong, &deny.from),
            Cell::new(Tone::Strong, &deny.to),
            Cell::from(&deny.service),
            Cell::from(&deny.rule),
            Cell::new(tone(deny), reason(deny)),
            Cell::from(Count(deny.count)),
            Cell::new(Tone::Dim, place(deny)),
        ]);
    }
    table
}

fn line(deny: &Deny, out: &Output) -> String {
    format!(
        "{}  {} -> {}  {}  {}  by {}  ×{}  {}",
        out.paint(Tone::Dim, clock(deny.last_unix_ns)),
        out.paint(Tone::Strong, &deny.from),
        out.paint(Tone::Strong, &deny.to),
        deny.service,
        out.paint(tone(deny), reason(deny)),
        deny.rule,
        Count(deny.count),
        out.paint(Tone::Dim, place(deny)),
    )
}

/// Its slug; in learn and audit mode nothing was dropped.
fn reason(deny: &Deny) -> String {
    if deny.dropped { deny.reason.clone() } else { format!("would be {}", deny.reason) }
}

fn tone(deny: &Deny) -> Tone {
    if deny.dropped { Tone::Bad } else { Tone::Warn }
}

/// Where its last frame is captured.
fn place(deny: &Deny) -> String {
    match deny.capture.as_str() {
        "" => "-".to_owned(),
        file => format!("{file}@{}", deny.capture_offset),
    }
}

fn timestamp(unix_ns: u64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(unix_ns.into()).ok()
}

/// The time of day here, with milliseconds.
fn clock(unix_ns: u64) -> String {
    let time = timestamp(unix_ns).map(|t| t.to_zoned(TimeZone::system()));
    time.map_or_else(|| "-".to_owned(), |time| time.strftime("%H:%M:%S%.3f").to_string())
}

#[cfg(test)]
mod tests {
    use super::super::documented::assert_documented;
    use super::*;

    fn deny(dropped: bool, capture: &str) -> Deny {
        Deny {
            first_unix_ns: 1_790_000_000_000_000_000,
            last_unix_ns: 1_790_000_000_123_456_789,
            from: "intruder".into(),
            to: "db".into(),
            service: "tcp/5432".into(),
            rule: "default".into(),
            reason: "default-deny".into(),
            dropped,
            count: 1_500,
            capture: capture.into(),
            capture_offset: 4_096,
        }
    }

    #[test]
    fn lines_say_what_was_dropped_and_where_it_is_captured() {
        let text = table(&[deny(true, "denies.pcapng"), deny(false, "")]).render(false);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].contains(" default-deny "), "{text}");
        assert!(lines[1].ends_with("1,500  denies.pcapng@4096"), "{text}");
        assert!(lines[2].contains(" would be default-deny "), "{text}");
        assert!(lines[2].ends_with("1,500  -"), "{text}");
    }

    #[test]
    fn json_has_the_time_for_people_and_for_programs() {
        let json = serde_json::to_value(DenyView::of(&deny(true, ""))).unwrap();
        assert_eq!(json["time"], "2026-09-21T14:13:20.123456789Z");
        assert_eq!(json["last_unix_ns"], 1_790_000_000_123_456_789u64);
        assert_eq!(json["count"], 1_500);
        assert_documented("denies", &json);
    }
}
