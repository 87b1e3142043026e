//! Runs a peer's own benchmark and ours in turn, on the same input.
//!
//! `acl`: DPDK's rte_acl by its test program, against `firedoor bench classify`. Both get the same
//! rules and the same headers, in bursts of the same size, and what counts is processor time: the
//! test program's, of many passes over the headers less that of few, so that start and compiling are
//! left out; ours as it reports it. Rounds alternate, medians are printed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

/// Passes over the headers in the short and in the long run of rte_acl.
const PASSES: [u32; 2] = [10, 210];

/// Headers that ours generates for each set of rules.
const HEADERS: u32 = 100_000;

/// One round's figures, in nanoseconds per lookup.
struct Round {
    rte_acl: f64,
    ours: f64,
    wrong: u64,
}

/// Compares on each file of rules; on those of the tests if none is named.
pub(crate) fn acl(files: &[PathBuf], rounds: usize, burst: u32) -> anyhow::Result<()> {
    let files = if files.is_empty() { test_sets()? } else { files.to_vec() };
    build()?;
    println!("{:<12} {:>8} {:>8} {:>6} {:>6}", "rules", "rte_acl", "firedoor", "ratio", "wrong");
    for rules in &files {
        let trace = std::env::temp_dir().join(format!("firedoor-peers-{}", std::process::id()));
        let result = compare(rules, &trace, rounds, burst);
        let _ = fs::remove_file(&trace);
        let rounds = result?;
        let rte_acl = median(rounds.iter().map(|round| round.rte_acl));
        let ours = median(rounds.iter().map(|round| round.ours));
        let wrong = rounds.iter().map(|round| round.wrong).max().unwrap_or(0);
        let name = rules.file_name().unwrap_or_default().to_string_lossy();
        let ratio = ours / rte_acl;
        println!("{name:<12} {rte_acl:>5.1} ns {ours:>5.1} ns {ratio:>6.2} {wrong:>6}");
    }
    Ok(())
}

fn compare(rules: &Path, trace: &Path, rounds: usize, burst: u32) -> anyhow::Result<Vec<Round>> {
    let headers = HEADERS.to_string();
    classify(rules, &["--headers", &headers, "--write-trace", path(trace)?])?;
    let round = || {
        let report = classify(rules, &["--trace", path(trace)?, "--batch", &burst.to_string()])?;
        let figure = |key: &str| report[key].as_f64().with_context(|| format!("no {key}"));
        let [short, long] = PASSES.map(|passes| rte_acl(rules, trace, passes, burst));
        let lookups = f64::from(PASSES[1] - PASSES[0]) * f64::from(HEADERS);
        Ok(Round {
            rte_acl: (long? - short?) * 1e9 / lookups,
            ours: figure("ns_batch")?,
            wrong: report["wrong"].as_u64().context("no wrong")?,
        })
    };
    (0..rounds).map(|_| round()).collect()
}

/// The rule sets that the tests use.
fn test_sets() -> anyhow::Result<Vec<PathBuf>> {
    let folder = root().join("tests/data/classbench");
    let entries = fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut sets: Vec<_> = paths.filter(|path| path.extension().is_none()).collect();
    sets.sort();
    Ok(sets)
}

fn build() -> anyhow::Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--quiet", "--package", "firedoor"]).current_dir(root());
    ensure!(cargo.status()?.success(), "firedoor does not build");
    Ok(())
}

/// Our report. Some verdicts being wrong is part of it.
fn classify(rules: &Path, options: &[&str]) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut firedoor = Command::new(root().join("target/release/firedoor"));
    firedoor.args(["bench", "classify", "--json", "--rules", path(rules)?]).args(options);
    let output = firedoor.stderr(Stdio::inherit()).output().context("cannot run firedoor")?;
    serde_json::from_slice(&output.stdout).context("firedoor bench classify gave no report")
}

/// Processor time in seconds that rte_acl's test program takes for this many passes.
fn rte_acl(rules: &Path, trace: &Path, passes: u32, burst: u32) -> anyhow::Result<f64> {
    let before = children_time()?;
    let mut peer = Command::new("dpdk-test-acl");
    peer.args(["--no-huge", "-m", "1024", "--no-pci", "-l", "0", "--no-telemetry"])
        .args(["--force-max-simd-bitwidth=512", "--", "--alg", "avx512x32", "--verbose", "0"])
        .args(["--rulesf", path(rules)?, "--tracef", path(trace)?])
        .args(["--rulenum", "200000", "--tracenum", &HEADERS.to_string()])
        .args(["--iter", &passes.to_string(), "--tracestep", &burst.to_string()]);
    let output = peer.output().context("cannot run dpdk-test-acl; apt-get install dpdk-dev")?;
    ensure!(
        output.status.success(),
        "dpdk-test-acl failed (its algorithm avx512x32 needs a processor with AVX-512):\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(children_time()? - before)
}

/// User time in seconds of the children that have ended: proc_pid_stat(5), field 16, in the hundredths
/// of a second that Linux tells user space.
fn children_time() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').context("/proc/self/stat has no name")?.1;
    let ticks = after_name.split_whitespace().nth(13).context("/proc/self/stat has no cutime")?;
    Ok(ticks.parse::<f64>()? / 100.0)
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
