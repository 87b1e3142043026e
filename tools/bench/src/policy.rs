//! `firedoor bench policy`: a large policy on its way from a file into force, step by step.
//!
//! The steps are those of `firedoor policy apply` once its text has reached control, run by the same
//! code, in one process and one after the other, without a switch: control compiles the text, saves what
//! is applied, and sends the snapshot; the data plane reads it and compiles it for judging. A switch adds
//! what it takes to learn what was in force, to save the snapshot, and to attach ports.

mod scale;

use std::io;
use std::time::Instant;

use firedoor_api::dataplane::Request;
use firedoor_api::{Decoder, ProtocolError, encode};
use firedoor_classifier::Policy;
use firedoor_classifier::policy::PolicyError;
use firedoor_control::applied::{Applied, AppliedError};
use jiff::civil::Date;
use serde::Serialize;

use crate::Progress;
use scale::Scale;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Rules.
    pub rules: usize,
    /// Bytes of the config.
    pub text_bytes: usize,
    /// Bytes of the snapshot as it is sent and saved.
    pub snapshot_bytes: usize,
    /// What the compiled rules take.
    pub acl_bytes: usize,
    /// From text to snapshot.
    pub compile_ms: f64,
    /// Saving what is applied, until it is on disk.
    pub save_ms: f64,
    /// Snapshot to message.
    pub encode_ms: f64,
    /// Message to snapshot.
    pub decode_ms: f64,
    /// From snapshot to a policy that judges.
    pub build_ms: f64,
    /// All of these.
    pub total_ms: f64,
}

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum PolicyBenchError {
    /// The config does not compile.
    #[error(transparent)]
    Applied(#[from] AppliedError),
    /// There is no place to save it.
    #[error("cannot save what is applied in a temporary directory")]
    Save(#[from] io::Error),
    /// It is more than a message can hold.
    #[error("the policy does not fit in a message: {0}")]
    Message(#[from] ProtocolError),
    /// The message holds something else than what was sent.
    #[error("the policy did not come back from its message")]
    Lost,
    /// The snapshot cannot be enforced.
    #[error("the snapshot makes no policy")]
    Policy(#[from] PolicyError),
}

/// Makes a config of so many rules and takes it through every step.
///
/// # Errors
/// If a step fails.
pub fn run(rules: usize) -> Result<Report, PolicyBenchError> {
    let progress = Progress::new(6);
    progress.step("writing a config");
    let groups = rules.div_ceil(10);
    let text = Scale { rules, groups, workloads: groups.min(1_000), apps: 20 }.config();
    let text_bytes = text.len();
    let directory = tempfile::tempdir()?;
    let before = Applied::of(String::new(), String::new());

    progress.step("compiling it");
    let (compile_ms, compiled) = timed(|| {
        let (applied, _) = before.with_config("scale.toml".to_owned(), text);
        applied.compile(None, Date::MIN).map(|compiled| (applied, compiled.snapshot))
    });
    let (applied, snapshot) = compiled?;

    progress.step("saving what is applied");
    let (save_ms, saved) = timed(|| applied.save(&directory.path().join("applied.json")));
    saved?;

    progress.step("sending it");
    let request = Request::Install(Box::new(snapshot));
    let (encode_ms, bytes) = timed(|| encode(&request));
    let bytes = bytes?;

    progress.step("reading it");
    let (decode_ms, decoded) = timed(|| {
        let mut decoder = Decoder::<Request>::default();
        decoder.push(&bytes);
        decoder.next_message()
    });
    let Some(Request::Install(snapshot)) = decoded? else { return Err(PolicyBenchError::Lost) };

    progress.step("compiling it for judging");
    let (build_ms, policy) = timed(|| Policy::build(*snapshot));
    Ok(Report {
        rules,
        text_bytes,
        snapshot_bytes: bytes.len(),
        acl_bytes: policy?.acl().bytes(),
        compile_ms,
        save_ms,
        encode_ms,
        decode_ms,
        build_ms,
        total_ms: compile_ms + save_ms + encode_ms + decode_ms + build_ms,
    })
}

/// What a step comes to, and the milliseconds that it takes.
fn timed<T>(step: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = step();
    (start.elapsed().as_secs_f64() * 1e3, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_goes_through_every_step() {
        let report = run(200).expect("every step succeeds");
        assert_eq!(report.rules, 200);
        assert!(report.snapshot_bytes > 200 && report.acl_bytes > 200 * 8, "{report:?}");
    }
}
