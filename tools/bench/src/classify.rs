//! `firedoor bench classify`: the ACL on rules and headers from files.
//!
//! The rules become a [policy](scene) and go through the tables that the switch judges by: addresses
//! to tags by longest prefix, tags and services to a verdict by the ACL. Every verdict is compared
//! with the first line that matches, which the trace may know and a linear search finds otherwise:
//! looked up one by one, in batches, and in batches again after the updates.
//!
//! # What the times are
//!
//! A lookup begins with the header's addresses and ends with the verdict: both address lookups and
//! the judgement are in it. Times are medians of nine passes over the whole trace, so between two
//! lookups of one header all others come by. Time is what the thread had of a processor, which other
//! programs' turns do not add to. They are warm: the pass before compiled the program of
//! every pair of classes in the trace. `ns_cold` is the time with an empty memo, so with compiling.
//!
//! An update removes a random rule or puts it back in its place, in turn. The times are those of the
//! ACL alone, without building another policy.

pub mod conditions;
pub mod files;
pub mod scene;

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use firedoor_classifier::acl::{Acl, Conversation, Judgement, Memo};
use firedoor_classifier::policy::{Addresses, Owner, PolicyError};
use firedoor_classifier::snapshot::{Rule, Snapshot};
use firedoor_classifier::verdict::Cause;
use firedoor_classifier::{Policy, RuleId};
use nix::time::{ClockId, clock_gettime};
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
    /// Headers of a batch, at least 1.
    pub batch: usize,
    /// Rules to remove or put back.
    pub updates: usize,
    /// How many rules of 100 are [given](conditions::give) more to ask for.
    pub conditions: u32,
}

/// What came out. Times are in nanoseconds unless their names say otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Rules.
    pub rules: usize,
    /// Headers.
    pub headers: usize,
    /// Time to compile the rules to a policy, in milliseconds.
    pub build_ms: f64,
    /// What the compiled rules and addresses take.
    pub bytes: usize,
    /// Per lookup, one at a time.
    pub ns_batch1: f64,
    /// Per lookup, in batches.
    pub ns_batch: f64,
    /// Headers of a batch.
    pub batch: usize,
    /// Per lookup, one at a time and with nothing in the memo.
    pub ns_cold: f64,
    /// Pairs of classes in the memo after the trace.
    pub pairs: usize,
    /// What the memo takes then.
    pub memo_bytes: usize,
    /// Per update.
    pub update_ns: f64,
    /// Verdicts that name another rule than the first that matches.
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

/// Passes that a time is the median of.
const PASSES: usize = 9;

/// Headers that are looked up with an empty memo.
const COLD: usize = 20_000;

/// Reads, compiles, checks and measures.
///
/// # Errors
/// If a file cannot be read, or the trace not be written.
pub fn run(options: &Options) -> Result<Report, ClassifyError> {
    let progress = Progress::new(7);
    let Task { snapshot, headers, expected } = Task::read(options, &progress)?;

    progress.step("compiling");
    let start = Instant::now();
    let policy = Policy::build(snapshot)?;
    let build_ms = start.elapsed().as_secs_f64() * 1e3;
    let (acl, addresses) = (policy.acl(), policy.addresses());

    progress.step("looking up one by one");
    let mut memo = Memo::default();
    let judged: Vec<_> =
        headers.iter().map(|header| look_up(addresses, acl, &mut memo, header)).collect();
    let mut wrong = count_wrong(&judged, &expected);
    let ns_batch1 = median_ns(headers.len(), || {
        for header in &headers {
            black_box(look_up(addresses, acl, &mut memo, header));
        }
    });

    progress.step("looking up in batches");
    let mut batch = Batch::new(options.batch);
    wrong += count_wrong(&batch.judge_all(addresses, acl, &mut memo, &headers), &expected);
    let ns_batch = median_ns(headers.len(), || {
        for some in headers.chunks(options.batch) {
            black_box(batch.look_up(addresses, acl, &mut memo, some));
        }
    });
    let (pairs, memo_bytes) = (memo.len(), memo.bytes());

    progress.step("looking up with an empty memo");
    let ns_cold = cold(addresses, acl, &headers[..headers.len().min(COLD)]);

    progress.step("updating");
    let mut changing = acl.clone();
    let rules = &policy.snapshot().rules;
    let update_ns = update(&mut changing, rules, options.updates);
    wrong += count_wrong(&batch.judge_all(addresses, &changing, &mut memo, &headers), &expected);

    Ok(Report {
        rules: rules.len(),
        headers: headers.len(),
        build_ms,
        bytes: acl.bytes() + addresses.bytes(),
        ns_batch1,
        ns_batch,
        batch: options.batch,
        ns_cold,
        pairs,
        memo_bytes,
        update_ns,
        wrong,
    })
}

/// What is to be looked up among what, and what must come out.
struct Task {
    snapshot: Snapshot,
    headers: Vec<Header>,
    /// For each header the first rule that matches.
    expected: Vec<Option<u32>>,
}

impl Task {
    /// Reads or makes it, and searches rule by rule for what the trace does not say.
    fn read(options: &Options, progress: &Progress) -> Result<Self, ClassifyError> {
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
        let mut snapshot = scene::snapshot(&rules);
        conditions::give(&mut snapshot.rules, options.conditions);
        let search = |header: &Header| match options.conditions {
            0 => files::linear_search(&rules, header),
            _ => conditions::search(&rules, &snapshot.rules, header),
        };
        let answer = |(header, known): files::Expected| match known {
            Some(rule) if options.conditions == 0 => (header, rule),
            _ => (header, search(&header)),
        };
        let trace: Vec<_> = trace.into_iter().map(answer).collect();
        if let Some(path) = &options.write_trace {
            files::write_trace(path, &trace)?;
        }
        let (headers, expected) = trace.into_iter().unzip();
        Ok(Self { snapshot, headers, expected })
    }
}

/// The time of a lookup that finds nothing in the memo.
fn cold(addresses: &Addresses, acl: &Acl, headers: &[Header]) -> f64 {
    let mut memo = Memo::default();
    median_ns(headers.len(), || {
        for header in headers {
            memo.clear();
            black_box(look_up(addresses, acl, &mut memo, header));
        }
    })
}

/// Looks one header up.
pub fn look_up(addresses: &Addresses, acl: &Acl, memo: &mut Memo, header: &Header) -> Judgement {
    let (src, dst) = scene::addresses(header);
    let (from, to) = (addresses.owner(src).0, addresses.owner(dst).0);
    acl.judge(&scene::conversation(header, from, to), memo)
}

/// What a batch of lookups needs, made once.
#[derive(Debug)]
pub struct Batch {
    /// Source and destination of each header.
    addrs: Vec<u128>,
    owners: Vec<Owner>,
    conversations: Vec<Conversation>,
    judgements: Vec<Judgement>,
}

impl Batch {
    /// For batches of at most `size` headers.
    pub fn new(size: usize) -> Self {
        Self {
            addrs: vec![0; 2 * size],
            owners: vec![Owner::Unspecified; 2 * size],
            conversations: Vec::with_capacity(size),
            judgements: Vec::with_capacity(size),
        }
    }

    /// Looks up as many headers as it is made for, or fewer.
    pub fn look_up(
        &mut self,
        addresses: &Addresses,
        acl: &Acl,
        memo: &mut Memo,
        headers: &[Header],
    ) -> &[Judgement] {
        for (header, ends) in headers.iter().zip(self.addrs.chunks_exact_mut(2)) {
            (ends[0], ends[1]) = scene::addresses(header);
        }
        addresses.owners(&self.addrs[..2 * headers.len()], &mut self.owners);
        self.conversations.clear();
        let ends = headers.iter().zip(self.owners.chunks_exact(2));
        self.conversations
            .extend(ends.map(|(header, ends)| scene::conversation(header, ends[0], ends[1])));
        acl.judge_batch(&self.conversations, memo, &mut self.judgements);
        &self.judgements
    }

    fn judge_all(
        &mut self,
        addresses: &Addresses,
        acl: &Acl,
        memo: &mut Memo,
        headers: &[Header],
    ) -> Vec<Judgement> {
        let size = self.addrs.len() / 2;
        let batches = headers.chunks(size);
        batches.flat_map(|some| self.look_up(addresses, acl, memo, some).to_vec()).collect()
    }
}

/// Removes random rules and puts each back before the next is removed. Returns the time of one
/// update.
fn update(acl: &mut Acl, rules: &[Rule], updates: usize) -> f64 {
    let mut rng = fastrand::Rng::with_seed(1);
    let lines: Vec<usize> = (0..updates.div_ceil(2)).map(|_| rng.usize(..rules.len())).collect();
    median_ns(2 * lines.len(), || {
        for &line in &lines {
            let rule = RuleId(line as u32);
            acl.remove(rule);
            // The number that was free last is given first, so the rule gets its own again.
            let next = RuleId(rule.0 + 1);
            black_box(acl.insert(&rules[line], Some(next)));
        }
    })
}

fn count_wrong(judgements: &[Judgement], expected: &[Option<u32>]) -> usize {
    let rule = |judgement: &Judgement| match judgement.cause {
        Cause::Rule(rule) => Some(rule.0),
        Cause::Default | Cause::Switch => None,
    };
    judgements.iter().zip(expected).filter(|&(judgement, first)| rule(judgement) != *first).count()
}

/// The time that this thread has had a processor for.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The median time of one of `count` steps of `pass`, in nanoseconds.
fn median_ns(count: usize, mut pass: impl FnMut()) -> f64 {
    let mut times: Vec<_> = (0..PASSES)
        .map(|_| {
            let start = processor_time();
            pass();
            processor_time() - start
        })
        .collect();
    times.sort_unstable();
    times[PASSES / 2].as_secs_f64() * 1e9 / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_verdict_is_wrong_on_any_rule_set() {
        let sets = ["acl1_1k", "fw1_1k", "ipc1_1k"];
        for (set, conditions) in sets.iter().flat_map(|set| [(set, 0), (set, 30)]) {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/classbench");
            let report = run(&Options {
                rules: PathBuf::from(folder).join(set),
                trace: None,
                headers: 5_000,
                write_trace: None,
                batch: 33,
                updates: 500,
                conditions,
            });
            let report = report.expect("the files are there");
            assert_eq!((report.wrong, report.headers), (0, 5_000), "{set}, {conditions} %");
            assert!(report.rules > 800 && report.pairs > 100, "{set}");
        }
    }
}
