//! `firedoor demo`: a small lab, real traffic between every two of its workloads, and what became
//! of it.
//!
//! The story: build the lab; ask every workload for every service of every other; hold the answers
//! against what policy promises, and the refusals against what the switch recorded; measure; take
//! everything away again. [`report`] tells it.

mod report;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use firedoor_api::control::{Deny, Reply, Request};
use firedoor_classifier::snapshot::{Kind, Mode};
use firedoor_lab::probe::{Answer, Outcome, Service};
use firedoor_lab::reach::{self, Crew, Expectation, Oracle, Question};
use firedoor_lab::throughput::{Rate, tcp_bulk, udp_small};
use firedoor_lab::{Lab, Options, Temporary};
use indicatif::{ProgressBar, ProgressStyle};

use super::lab::{interrupted, need_root, shown, spinner};
use crate::args::DemoArgs;
use crate::output::{NO, Output, YES};

/// What the demo shows unless it is told otherwise.
const CONFIG: &str = include_str!("../../../../../configs/three-tier.toml");
/// Where that is in the repository.
const CONFIG_PATH: &str = "configs/three-tier.toml";

/// The demo's own name, so that a lab of the same config is left alone.
const NAME: &str = "demo";

/// How long a question waits for its answer. TCP asks a second time after one second.
const ANSWER_PATIENCE: Duration = Duration::from_millis(1_500);

/// How long the record of a refusal may take from the data plane to control.
const RECORD_PATIENCE: Duration = Duration::from_secs(3);

/// File name of the capture that is kept.
const CAPTURE: &str = "firedoor-demo-denies.pcapng";

pub(crate) fn run(args: &DemoArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    need_root("demo")?;
    let (path, text) = config(args)?;
    let interrupted = interrupted()?;
    let start = Instant::now();

    let lab = build(&path, &text, &interrupted)?;
    let findings = explore(&lab, &interrupted)?;
    let rates = measure(&lab, &findings, args.seconds, &interrupted)?;
    let capture = keep_capture(&lab).context("cannot keep the capture of denied frames")?;
    let kept = if args.keep { Some(lab.keep()?) } else { lab.down().map(|()| None)? };

    let report = report::Report { findings, rates, capture, kept, took: start.elapsed() };
    if args.json {
        report.json(out)?;
    } else {
        report.show(out)?;
    }
    Ok(if report.agrees() { YES } else { NO })
}

fn config(args: &DemoArgs) -> anyhow::Result<(PathBuf, String)> {
    let Some(path) = &args.config else { return Ok((CONFIG_PATH.into(), CONFIG.to_owned())) };
    let text = super::source::read(path)?;
    Ok((path.clone(), text))
}

fn build(path: &Path, text: &str, interrupted: &AtomicBool) -> anyhow::Result<Temporary> {
    let spinner = spinner();
    let options = Options {
        firedoor: std::env::current_exe().context("cannot find the firedoor executable")?,
        name: Some(NAME.to_owned()),
        interrupted,
        progress: &|step| spinner.set_message(format!("building a lab: {step}")),
    };
    let lab = Temporary::up(path, text, &options);
    spinner.finish_and_clear();
    shown(lab)
}

/// One question, what came of it, and what should have.
pub(crate) struct Finding {
    question: Question,
    answer: Answer,
    expected: Expectation,
    /// What the switch recorded, if it refused.
    deny: Option<Deny>,
    /// What of this is not as policy says; empty if nothing.
    differs: Vec<String>,
}

/// Asks everyone for everything.
fn explore(lab: &Lab, interrupted: &AtomicBool) -> anyhow::Result<Vec<Finding>> {
    let snapshot = lab.snapshot()?;
    let services = reach::services(&snapshot);
    let questions = reach::questions(lab.hosts(), &services);
    let mode = snapshot.mode;
    let oracle = Oracle::new(snapshot)?;
    let expected = questions.iter().map(|question| {
        oracle.expect(question).with_context(|| format!("no one is called {}", question.to))
    });
    let expected: Vec<Expectation> = expected.collect::<anyhow::Result<_>>()?;

    let bar = bar(questions.len() as u64, "asking everyone for everything");
    let crew = Crew::start(lab, &services)?;
    let answers = crew.ask(&questions, ANSWER_PATIENCE, &|| bar.inc(1));
    bar.finish_and_clear();
    stop_if(interrupted)?;
    let asked: Vec<_> = questions.into_iter().zip(answers?).zip(expected).collect();

    let refused = asked.iter().filter(|(_, expected)| expected.outcome != Outcome::Reachable);
    let refused: Vec<&Question> = refused.map(|((question, _), _)| question).collect();
    let denies = recorded(lab, &refused)?;
    let findings = asked.into_iter().map(|((question, answer), expected)| {
        let deny = denies.get(&key(&question)).cloned();
        let is_guest = crew.guest(&question.from).is_some();
        let differs = differences(mode, answer.outcome, &expected, deny.as_ref(), is_guest);
        Finding { question, answer, expected, deny, differs }
    });
    Ok(findings.collect())
}

/// What is not as policy says.
fn differences(
    mode: Mode,
    answer: Outcome,
    expected: &Expectation,
    deny: Option<&Deny>,
    asker_is_guest: bool,
) -> Vec<String> {
    let mut differs = Vec::new();
    if !reach::agrees(expected.outcome, answer, asker_is_guest) {
        let [expected, answer] = [expected.outcome, answer].map(report::heard);
        differs.push(format!("policy promises {expected}, but it was {answer}"));
    }
    match deny {
        _ if mode != Mode::Enforce || expected.outcome == Outcome::Reachable => {}
        None => differs.push("the switch recorded no refusal".to_owned()),
        Some(deny) if deny.rule != expected.rule => differs.push(format!(
            "policy refuses it by {}, but the switch recorded {}",
            expected.rule, deny.rule
        )),
        Some(_) => {}
    }
    differs
}

/// Ends of a conversation and its service, as denials are recorded by.
type Key = (String, String, String);

fn key(question: &Question) -> Key {
    let Question { from, to, address, service } = question;
    (from.clone(), to.clone(), service.name(*address))
}

/// The switch's records of refusals, once those of `refused` are among them or patience is at an
/// end. Both address families share a record.
fn recorded(lab: &Lab, refused: &[&Question]) -> anyhow::Result<BTreeMap<Key, Deny>> {
    let start = Instant::now();
    loop {
        let Reply::Denies(denies) = lab.ask(&Request::Denies)? else {
            bail!("control gave an answer that does not fit the question");
        };
        let denies: BTreeMap<Key, Deny> = denies
            .into_iter()
            .map(|deny| ((deny.from.clone(), deny.to.clone(), deny.service.clone()), deny))
            .collect();
        let complete = refused.iter().all(|question| denies.contains_key(&key(question)));
        if complete || start.elapsed() > RECORD_PATIENCE {
            return Ok(denies);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One measurement.
pub(crate) struct Measurement {
    question: Question,
    rate: Rate,
}

/// Measures the first TCP and the first UDP service that is reachable between two containers, over
/// each address family.
fn measure(
    lab: &Lab,
    findings: &[Finding],
    seconds: u16,
    interrupted: &AtomicBool,
) -> anyhow::Result<Vec<Measurement>> {
    if seconds == 0 {
        return Ok(Vec::new());
    }
    let is_container = |name: &str| lab.host(name).is_ok_and(|h| h.kind == Kind::Container);
    let first = |wanted: &dyn Fn(Service, IpAddr) -> bool| {
        findings.iter().find(|finding| {
            let Question { from, to, address, service } = &finding.question;
            finding.answer.outcome == Outcome::Reachable
                && is_container(from)
                && is_container(to)
                && wanted(*service, *address)
        })
    };
    let mut measurements = Vec::new();
    for v6 in [false, true] {
        let tcp = first(&|s, a| matches!(s, Service::Tcp(_)) && a.is_ipv6() == v6);
        let udp = first(&|s, a| matches!(s, Service::Udp(_)) && a.is_ipv6() == v6);
        for finding in [tcp, udp].into_iter().flatten() {
            let rate = measure_one(lab, &finding.question, Duration::from_secs(seconds.into()))?;
            measurements.push(Measurement { question: finding.question.clone(), rate });
            stop_if(interrupted)?;
        }
    }
    Ok(measurements)
}

fn measure_one(lab: &Lab, question: &Question, time: Duration) -> anyhow::Result<Rate> {
    const STEPS: u64 = 1_000;
    let Question { from, to, address, service } = question;
    let bar = bar(STEPS, &format!("measuring {from} → {to}, {}", report::over(question)));
    let progress = |share: f64| bar.set_position((share * STEPS as f64) as u64);
    let (near, far) = (lab.netns(from)?, lab.netns(to)?);
    let rate = match *service {
        Service::Tcp(port) => tcp_bulk(&near, &far, *address, port, time, &progress),
        Service::Udp(port) => udp_small(&near, &far, *address, port, time, &progress),
        Service::Ping => bail!("ping is not a measure of throughput"),
    };
    bar.finish_and_clear();
    rate.with_context(|| format!("cannot measure {service} from {from} to {to}"))
}

/// Copies the capture out of the run directory, which will be removed: here, or where temporary
/// files go.
fn keep_capture(lab: &Lab) -> anyhow::Result<PathBuf> {
    let capture = lab.status()?.capture;
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into()).join(CAPTURE);
    if fs::copy(&capture, &here).is_ok() {
        return Ok(here);
    }
    let elsewhere = std::env::temp_dir().join(CAPTURE);
    fs::copy(&capture, &elsewhere)
        .with_context(|| format!("cannot copy {capture} to {}", elsewhere.display()))?;
    Ok(elsewhere)
}

fn stop_if(interrupted: &AtomicBool) -> anyhow::Result<()> {
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted; what was built is removed");
    }
    Ok(())
}

fn bar(length: u64, message: &str) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(message.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
        bar.set_style(style);
    }
    bar
}
