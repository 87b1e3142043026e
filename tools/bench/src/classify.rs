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
use firedoor_classifier::acl::{Conversation, Judgement, Memo};
use firedoor_classifier::policy::{Owner, PolicyError};
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
    /// Headers of a batch.
    pub batch: usize,
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
    /// Time per lookup in batches, in nanoseconds.
    pub ns_batch: f64,
    /// cold
    pub ns_cold: f64,
    /// Headers of a batch.
    pub batch: usize,
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

    progress.step("looking up one by one");
    let mut memo = Memo::default();
    let wrong = trace
        .iter()
        .filter(|(header, first)| rule_of(&judge(&policy, &mut memo, header)) != *first);
    let wrong = wrong.count();
    let headers: Vec<_> = trace.iter().map(|(header, _)| *header).collect();
    let ns_batch1 = median_ns(headers.len(), || {
        for header in &headers {
            black_box(judge(&policy, &mut memo, header));
        }
    });
    progress.step("looking up in batches");
    let mut batch = Batch::new(options.batch);
    let mut judged = Vec::new();
    batch.pass(&policy, &mut memo, &headers, |judgements| judged.extend_from_slice(judgements));
    let expected = trace.iter().map(|(_, first)| *first);
    let wrong_batched = judged.iter().map(rule_of).zip(expected).filter(|(a, b)| a != b).count();
    let ns_batch = median_ns(headers.len(), || {
        batch.pass(&policy, &mut memo, &headers, |judgements| {
            black_box(judgements);
        });
    });
    progress.step("looking up without a memo");
    let cold = headers.len().min(COLD);
    let ns_cold = median_ns(cold, || {
        for header in &headers[..cold] {
            memo.clear();
            black_box(judge(&policy, &mut memo, header));
        }
    });
    Ok(Report {
        rules: rules.len(),
        headers: trace.len(),
        build_ms,
        ns_batch1,
        ns_batch,
        ns_cold,
        batch: options.batch,
        wrong: wrong + wrong_batched,
    })
}

const COLD: usize = 20_000;

struct Batch {
    addrs: Vec<u128>,
    owners: Vec<Owner>,
    conversations: Vec<Conversation>,
    judgements: Vec<Judgement>,
    size: usize,
}

impl Batch {
    fn new(size: usize) -> Self {
        Self {
            addrs: vec![0; 2 * size],
            owners: vec![Owner::Unspecified; 2 * size],
            conversations: Vec::with_capacity(size),
            judgements: Vec::with_capacity(size),
            size,
        }
    }

    fn pass(
        &mut self,
        policy: &Policy,
        memo: &mut Memo,
        headers: &[Header],
        mut told: impl FnMut(&[Judgement]),
    ) {
        for some in headers.chunks(self.size) {
            for (header, addrs) in some.iter().zip(self.addrs.chunks_exact_mut(2)) {
                (addrs[0], addrs[1]) = scene::addresses(header);
            }
            policy.addresses().owners(&self.addrs[..2 * some.len()], &mut self.owners);
            self.conversations.clear();
            let owners = self.owners.chunks_exact(2);
            self.conversations.extend(
                some.iter()
                    .zip(owners)
                    .map(|(header, owners)| scene::conversation(header, owners[0], owners[1])),
            );
            policy.acl().judge_batch(&self.conversations, memo, &mut self.judgements);
            told(&self.judgements);
        }
    }
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
