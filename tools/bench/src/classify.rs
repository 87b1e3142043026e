//! `firedoor bench classify`: the ACL on rules and headers from files.
//!
//! The rules become a [policy](scene) and go through the tables that the switch judges by: addresses
//! to tags by longest prefix, tags and services to a verdict by the ACL. Every verdict is compared
//! with the first line that matches, which the trace may know and a linear search finds otherwise.

pub mod files;
pub mod scene;

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use firedoor_classifier::Policy;
use firedoor_classifier::acl::{Judgement, Memo};
use firedoor_classifier::policy::PolicyError;
use firedoor_classifier::verdict::Cause;
use serde::Serialize;

use crate::Progress;
use files::{FileError, Header};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The rules.
    pub rules: PathBuf,
    /// The headers; generated from the rules if `None`.
    pub trace: Option<PathBuf>,
    /// How many headers to generate.
    pub headers: usize,
    /// Where to write headers and answers.
    pub write_trace: Option<PathBuf>,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Rules.
    pub rules: usize,
    /// Headers.
    pub headers: usize,
    /// Time to compile the rules, in milliseconds.
    pub build_ms: f64,
    /// Time per lookup, one at a time, in nanoseconds.
    pub ns_batch1: f64,
    /// Headers whose verdict names another rule than the first that matches.
    pub wrong: usize,
}

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum ClassifyError {
    /// A file is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// The rules make no policy.
    #[error("the rules make no policy")]
    Policy(#[from] PolicyError),
}

/// Passes over the trace that a time is the median of.
const PASSES: usize = 9;

/// Reads, compiles, checks and measures.
///
/// # Errors
/// If a file cannot be read, or the trace not be written.
pub fn run(options: &Options) -> Result<Report, ClassifyError> {
    let progress = Progress::new(4);
    progress.step("reading");
    let rules = files::read_rules(&options.rules)?;
    let trace = match &options.trace {
        Some(path) => files::read_trace(path)?,
        None => {
            let headers = scene::headers(&rules, options.headers);
            headers.into_iter().map(|header| (header, None)).collect()
        }
    };

    progress.step("searching rule by rule");
    let answer = |(header, known): (Header, Option<Option<u32>>)| {
        let first = known.unwrap_or_else(|| files::linear_search(&rules, &header));
        (header, first)
    };
    let trace: Vec<_> = trace.into_iter().map(answer).collect();
    if let Some(path) = &options.write_trace {
        files::write_trace(path, &trace)?;
    }

    progress.step("compiling");
    let snapshot = scene::snapshot(&rules);
    let start = Instant::now();
    let policy = Policy::build(snapshot)?;
    let build_ms = start.elapsed().as_secs_f64() * 1e3;

    progress.step("looking up");
    let mut memo = Memo::default();
    let wrong = trace
        .iter()
        .filter(|(header, first)| rule_of(&judge(&policy, &mut memo, header)) != *first);
    let wrong = wrong.count();
    let ns_batch1 = median_ns(trace.len(), || {
        for (header, _) in &trace {
            black_box(judge(&policy, &mut memo, header));
        }
    });
    Ok(Report { rules: rules.len(), headers: trace.len(), build_ms, ns_batch1, wrong })
}

fn judge(policy: &Policy, memo: &mut Memo, header: &Header) -> Judgement {
    let (src, dst) = scene::addresses(header);
    let (from, to) = (policy.owner(src).0, policy.owner(dst).0);
    policy.acl().judge(&scene::conversation(header, from, to), memo)
}

/// The rule that decided.
fn rule_of(judgement: &Judgement) -> Option<u32> {
    match judgement.cause {
        Cause::Rule(rule) => Some(rule.0),
        Cause::Default | Cause::Switch => None,
    }
}

/// The median time of one of `count` steps of `pass`, in nanoseconds.
fn median_ns(count: usize, mut pass: impl FnMut()) -> f64 {
    let mut times: Vec<_> = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            pass();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[PASSES / 2].as_secs_f64() * 1e9 / count as f64
}
