//! What the demo found, told to a person or to a script.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use firedoor_classifier::DropReason;
use firedoor_lab::Lab;
use firedoor_lab::probe::{Outcome, Service};
use firedoor_lab::reach::Question;
use serde::Serialize;

use super::{Finding, Measurement};
use crate::output::{Bytes, Cell, Count, Output, Table, Tone};

/// Everything there is to tell.
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
    pub(super) rates: Vec<Measurement>,
    pub(super) capture: PathBuf,
    /// The lab, if it is left running.
    pub(super) kept: Option<Lab>,
    pub(super) took: Duration,
}

/// An outcome in words.
pub(super) fn heard(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Reachable => "reachable",
        Outcome::Refused => "refused",
        Outcome::Silent => "silence",
    }
}

/// What a measurement goes over, as `TCP over IPv4`.
pub(super) fn over(question: &Question) -> String {
    let protocol = match question.service {
        Service::Tcp(_) => "TCP",
        Service::Udp(_) => "UDP",
        Service::Ping => "ICMP",
    };
    let family = if question.address.is_ipv6() { "IPv6" } else { "IPv4" };
    format!("{protocol} over {family}")
}

impl Report {
    /// Whether everything was as policy says.
    pub(super) fn agrees(&self) -> bool {
        self.findings.iter().all(|finding| finding.differs.is_empty())
    }

    pub(super) fn show(&self, out: &mut Output) -> io::Result<()> {
        self.show_reachability(out)?;
        self.show_refusals(out)?;
        self.show_throughput(out)?;
        self.show_differences(out)?;

        let capture = self.capture.display();
        writeln!(out, "The denied frames are in {}", out.paint(Tone::Strong, &capture))?;
        writeln!(out, "  tshark -r {capture} -T fields -e frame.number -e frame.comment")?;
        let seconds = self.took.as_secs_f64();
        match &self.kept {
            Some(lab) => {
                let name = lab.name();
                writeln!(out, "Took {seconds:.1} s. The lab is still up:")?;
                if let [from, to, ..] = self.names()[..] {
                    writeln!(out, "  firedoor lab exec --switch {name} {from} -- ping -c1 {to}")?;
                }
                writeln!(out, "  firedoor lab down --switch {name}")
            }
            None => writeln!(out, "Took {seconds:.1} s. Everything it made is removed."),
        }
    }

    fn show_reachability(&self, out: &mut Output) -> io::Result<()> {
        let names = self.names();
        writeln!(out, "{}\n", out.paint(Tone::Strong, "Who reached whom, on what"))?;
        let headings = std::iter::once("from".to_owned());
        let headings = headings.chain(names.iter().map(|name| format!("to {name}")));
        let mut table = Table::with_headings(headings);
        for &from in &names {
            let cells = names.iter().map(|&to| self.cell(from, to));
            table.row(std::iter::once(Cell::new(Tone::Strong, from)).chain(cells));
        }
        out.table(&table)?;
        let asked = Count(self.findings.len() as u64);
        writeln!(out, "\n{asked} questions asked with real TCP, UDP and ICMP, IPv4 and IPv6.\n")
    }

    /// Workloads, in the order of the config.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for finding in &self.findings {
            for name in [&finding.question.from, &finding.question.to] {
                if !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
        }
        names
    }

    fn between<'a>(&'a self, from: &'a str, to: &'a str) -> impl Iterator<Item = &'a Finding> {
        self.findings.iter().filter(move |f| f.question.from == from && f.question.to == to)
    }

    fn cell(&self, from: &str, to: &str) -> Cell {
        if from == to {
            return Cell::new(Tone::Dim, "·");
        }
        let findings: Vec<_> = self.between(from, to).collect();
        if findings.is_empty() {
            return Cell::new(Tone::Dim, "no shared network");
        }
        let reached = findings.iter().filter(|f| f.answer.outcome == Outcome::Reachable);
        let reached = by_family(reached.map(|f| &f.question), findings.iter().map(|f| &f.question));
        let tone = if findings.iter().any(|f| !f.differs.is_empty()) {
            Tone::Warn
        } else if reached.is_empty() {
            Tone::Bad
        } else {
            Tone::Good
        };
        Cell::new(tone, if reached.is_empty() { "✗".to_owned() } else { reached.join(", ") })
    }

    /// Refusals with the same ends, answer and ground make a line.
    fn show_refusals(&self, out: &mut Output) -> io::Result<()> {
        let refused = self.findings.iter().filter(|f| f.answer.outcome != Outcome::Reachable);
        let mut groups: BTreeMap<usize, Vec<&Finding>> = BTreeMap::new();
        let mut seen: Vec<(&str, &str, Outcome, String)> = Vec::new();
        for finding in refused {
            let Question { from, to, .. } = &finding.question;
            let group = (from.as_str(), to.as_str(), finding.answer.outcome, ground(finding));
            let index = seen.iter().position(|other| *other == group).unwrap_or_else(|| {
                seen.push(group);
                seen.len() - 1
            });
            groups.entry(index).or_default().push(finding);
        }
        if seen.is_empty() {
            return Ok(());
        }
        writeln!(out, "{}\n", out.paint(Tone::Strong, "Doors that stayed shut"))?;
        let mut table = Table::new(["from", "to", "asked for", "heard", "because"]);
        for ((from, to, outcome, ground), findings) in seen.iter().zip(groups.values()) {
            let all = self.between(from, to).map(|f| &f.question);
            let services = by_family(findings.iter().map(|f| &f.question), all);
            table.row([
                Cell::new(Tone::Strong, from),
                Cell::new(Tone::Strong, to),
                services.join(", ").into(),
                Cell::new(Tone::Bad, heard(*outcome)),
                ground.into(),
            ]);
        }
        out.table(&table)?;
        writeln!(out)
    }

    fn show_throughput(&self, out: &mut Output) -> io::Result<()> {
        if self.rates.is_empty() {
            return Ok(());
        }
        writeln!(out, "{}\n", out.paint(Tone::Strong, "Throughput, measured where it arrived"))?;
        let mut table = Table::new(["from", "to", "over", ">rate", ">arrived"]);
        for Measurement { question, rate } in &self.rates {
            let (figure, arrived) = match question.service {
                Service::Udp(_) => (
                    format!("{} frames/s", Count(rate.datagrams_per_second() as u64)),
                    format!("{} of {}", Count(rate.datagrams), Count(rate.sent)),
                ),
                _ => (
                    format!("{:.2} Gbit/s", rate.bits_per_second() / 1e9),
                    Bytes(rate.bytes).to_string(),
                ),
            };
            table.row([
                Cell::new(Tone::Strong, &question.from),
                Cell::new(Tone::Strong, &question.to),
                over(question).into(),
                Cell::new(Tone::Good, figure),
                arrived.into(),
            ]);
        }
        out.table(&table)?;
        writeln!(out)
    }

    fn show_differences(&self, out: &mut Output) -> io::Result<()> {
        for finding in self.findings.iter().filter(|finding| !finding.differs.is_empty()) {
            let Question { from, to, address, service } = &finding.question;
            let what = format!("{from} → {to}, {} at {address}", service.name(*address));
            let differs = finding.differs.join("; ");
            writeln!(out, "{}: {differs}", out.paint(Tone::Warn, what))?;
        }
        let verdict = if self.agrees() {
            out.paint(Tone::Good, "Every answer was what policy says.")
        } else {
            out.paint(Tone::Bad, "This is not what policy says.")
        };
        writeln!(out, "{verdict}\n")
    }

    pub(super) fn json(&self, out: &mut Output) -> io::Result<()> {
        out.json(&Json {
            agrees: self.agrees(),
            findings: self.findings.iter().map(JsonFinding::of).collect(),
            throughput: self.rates.iter().map(JsonRate::of).collect(),
            capture: &self.capture,
            kept: self.kept.as_ref().map(Lab::name),
            took_ms: self.took.as_millis() as u64,
        })
    }
}

/// Each service of `some` once, in order; with its address family behind it if `all` asks for it
/// over both and `some` only over one.
fn by_family<'a>(
    some: impl Iterator<Item = &'a Question>,
    all: impl Iterator<Item = &'a Question>,
) -> Vec<String> {
    fn families<'a>(questions: impl Iterator<Item = &'a Question>) -> BTreeMap<Service, [bool; 2]> {
        let mut families = BTreeMap::<Service, [bool; 2]>::new();
        for question in questions {
            let [v4, v6] = families.entry(question.service).or_default();
            match question.address {
                IpAddr::V4(_) => *v4 = true,
                IpAddr::V6(_) => *v6 = true,
            }
        }
        families
    }
    let all = families(all);
    let text = |(service, which): (Service, [bool; 2])| match which {
        _ if all.get(&service) == Some(&which) => service.to_string(),
        [true, _] => format!("{service} (IPv4)"),
        [false, _] => format!("{service} (IPv6)"),
    };
    families(some).into_iter().map(text).collect()
}

/// Why it was refused, from the switch's own record.
fn ground(finding: &Finding) -> String {
    let Some(deny) = &finding.deny else { return "not recorded".to_owned() };
    let reason = DropReason::ALL.iter().find(|reason| reason.slug() == deny.reason);
    let reason = reason.map_or(deny.reason.as_str(), |reason| reason.explain());
    match deny.rule.as_str() {
        "default" => format!("default: {reason}"),
        "switch" => format!("switch: {reason}"),
        rule => format!("rule {rule}: {reason}"),
    }
}

#[derive(Serialize)]
struct Json<'a> {
    agrees: bool,
    findings: Vec<JsonFinding<'a>>,
    throughput: Vec<JsonRate<'a>>,
    capture: &'a PathBuf,
    kept: Option<&'a str>,
    took_ms: u64,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    #[serde(flatten)]
    question: &'a Question,
    outcome: Outcome,
    after_us: u64,
    expected: Outcome,
    rule: Option<&'a str>,
    reason: Option<&'a str>,
    differs: &'a [String],
}

impl<'a> JsonFinding<'a> {
    fn of(finding: &'a Finding) -> Self {
        let Finding { question, answer, expected, deny, differs } = finding;
        Self {
            question,
            outcome: answer.outcome,
            after_us: answer.after.as_micros() as u64,
            expected: expected.outcome,
            rule: deny.as_ref().map(|deny| deny.rule.as_str()),
            reason: deny.as_ref().map(|deny| deny.reason.as_str()),
            differs,
        }
    }
}

#[derive(Serialize)]
struct JsonRate<'a> {
    #[serde(flatten)]
    question: &'a Question,
    bits_per_second: f64,
    datagrams_per_second: f64,
    bytes: u64,
}

impl<'a> JsonRate<'a> {
    fn of(Measurement { question, rate }: &'a Measurement) -> Self {
        Self {
            question,
            bits_per_second: rate.bits_per_second(),
            datagrams_per_second: rate.datagrams_per_second(),
            bytes: rate.bytes,
        }
    }
}
