//! `firedoor bench tse`: tuple space explosion, against the whole pipeline.
//!
//! A router's port carries an [attack] into a [switch](scene) and, behind the same router, victims:
//! flows that policy allows. Another victim has a port of its own. Victims' frames are judged in
//! bursts, as the data plane does, and timed while it is quiet and while the attack goes on, in turn.
//! The attack's frames come once a microsecond by the pipeline's clock; now and then a new policy
//! comes into force, which makes everything that is cached stale.
//!
//! The attack has won if there are more masks than the family has, or if a victim loses a frame.

pub mod attack;
pub mod scene;

use std::path::PathBuf;
use std::time::Instant;

use firedoor_classifier::extract::Headers;
use firedoor_classifier::policy::PolicyError;
use firedoor_classifier::{DropReason, Verdict};
use serde::Serialize;

use crate::Progress;
use crate::classify::files::FileError;
use attack::Attack;
use scene::{Scene, VICTIMS, Victim};

/// Rounds of each measurement, half of them quiet.
const ROUNDS: usize = 1_000;
/// Rounds that are quiet, or not, in a row.
const BLOCK: usize = 50;
/// Frames of the attack between two looks at the victims.
const ATTACK_PER_ROUND: usize = 512;
/// Frames of each victim in a round.
const VICTIM_BURST: usize = 32;
/// Rounds of a pipeline between two changes of policy.
const ROUNDS_PER_POLICY: usize = 200;
/// Nanoseconds between two frames of an attack.
const SPACING: u64 = 1_000;

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Traces to play besides the attacks that are built in: files, or directories of `.trace` files.
    pub traces: Vec<PathBuf>,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One for each attack.
    pub attacks: Vec<AttackReport>,
}

/// What one attack did.
#[derive(Clone, Debug, Serialize)]
pub struct AttackReport {
    /// Its name.
    pub name: String,
    /// Rules of the policy.
    pub rules: usize,
    /// Its frames.
    pub frames: usize,
    /// Most masks that were in use at once.
    pub masks: usize,
    /// Most flows that were cached at once.
    pub entries: usize,
    /// Memory that the flow cache held, in bytes.
    pub bytes: usize,
    /// Time that a frame of the attack took, in nanoseconds, on average.
    pub frame_ns: f64,
    /// Upcalls that it got per second.
    pub upcalls_per_sec: f64,
    /// Frames of it that were refused because its port had had its upcalls.
    pub refused: usize,
    /// What others noticed of it.
    pub victims: Vec<VictimReport>,
}

/// What one victim noticed.
#[derive(Clone, Debug, Serialize)]
pub struct VictimReport {
    /// Who it is.
    pub name: &'static str,
    /// Time to judge one of its frames while it is quiet, in nanoseconds: the median of bursts.
    pub quiet_ns: f64,
    /// The same under attack.
    pub attacked_ns: f64,
    /// Under attack by quiet.
    pub ratio: f64,
    /// Its frames that were dropped, of all of them.
    pub lost: usize,
}

impl Report {
    /// Whether no attack made more than `masks` masks, or cost a victim a frame.
    pub fn holds(&self, masks: usize) -> bool {
        let lost = |attack: &AttackReport| attack.victims.iter().any(|victim| victim.lost > 0);
        !self.attacks.iter().any(|attack| attack.masks > masks || lost(attack))
    }
}

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum TseError {
    /// A trace is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// A directory of traces cannot be read.
    #[error("cannot read {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There are no traces where there should be some.
    #[error("{0} has no file that is called *.trace")]
    NoTrace(PathBuf),
    /// The rules make no policy.
    #[error("the rules make no policy")]
    Policy(#[from] PolicyError),
}

/// Lets every attack have its go.
///
/// # Errors
/// If a trace cannot be read.
pub fn run(options: &Options) -> Result<Report, TseError> {
    let attacks = attack::all(&options.traces)?;
    let progress = Progress::new(attacks.len() as u64);
    let attacks = attacks.into_iter().map(|attack| {
        progress.step(&attack.name);
        measure(attack)
    });
    Ok(Report { attacks: attacks.collect::<Result<_, _>>()? })
}

/// One attack, in blocks that alternate with quiet ones.
fn measure(mut attack: Attack) -> Result<AttackReport, TseError> {
    let rules = attack.snapshot.rules.len();
    let mut quiet = Scene::new(attack.snapshot.clone())?;
    let mut attacked = Scene::new(attack.snapshot.clone())?;
    let mut victims = VICTIMS.map(|victim| Watch::new(victim, &mut [&mut quiet, &mut attacked]));
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        let under_attack = round / BLOCK % 2 == 1;
        let scene = if under_attack { &mut attacked } else { &mut quiet };
        if round % ROUNDS_PER_POLICY == ROUNDS_PER_POLICY / 2 {
            quiet.renew_policy();
            attacked.renew_policy();
            continue;
        }
        if under_attack {
            tally.attack(scene, &mut attack);
        } else {
            scene.pass(SPACING * ATTACK_PER_ROUND as u64);
        }
        for watch in &mut victims {
            watch.look(scene, under_attack);
        }
    }
    let seconds = tally.frames as f64 * SPACING as f64 / 1e9;
    Ok(AttackReport {
        name: attack.name,
        rules,
        frames: tally.frames,
        masks: tally.masks,
        entries: tally.entries,
        bytes: tally.bytes,
        frame_ns: tally.ns / tally.frames as f64,
        upcalls_per_sec: tally.upcalls as f64 / seconds,
        refused: tally.refused,
        victims: victims.into_iter().map(Watch::report).collect(),
    })
}

/// What an attack has done so far.
#[derive(Default)]
struct Tally {
    frames: usize,
    ns: f64,
    upcalls: u64,
    refused: usize,
    masks: usize,
    entries: usize,
    bytes: usize,
}

impl Tally {
    /// One round of the attack.
    fn attack(&mut self, scene: &mut Scene, attack: &mut Attack) {
        let mut frames: Vec<Headers> = (0..ATTACK_PER_ROUND).map(|_| attack.frame()).collect();
        let before = scene.pipeline().stats().upcalls;
        let start = Instant::now();
        let refused = |verdict: Verdict| verdict.drop_reason() == Some(DropReason::UpcallLimit);
        self.refused += scene.judge(&mut frames, SPACING, refused);
        self.ns += start.elapsed().as_nanos() as f64;
        self.frames += frames.len();
        self.upcalls += scene.pipeline().stats().upcalls - before;
        let (entries, bytes) = scene.pipeline().cached_flows();
        self.masks = self.masks.max(scene.pipeline().masks());
        self.entries = self.entries.max(entries);
        self.bytes = self.bytes.max(bytes);
    }
}

/// One victim, and how long its frames took.
struct Watch {
    victim: Victim,
    frames: Vec<Headers>,
    next: usize,
    quiet: Vec<f64>,
    attacked: Vec<f64>,
    lost: usize,
}

impl Watch {
    /// A victim whose flows are known already.
    fn new(victim: Victim, scenes: &mut [&mut Scene]) -> Self {
        let frames = scene::frames_of(victim);
        let mut lost = 0;
        for scene in scenes {
            // Twice: what a first frame installs, the second one finds.
            for _ in 0..2 {
                lost += scene.judge(&mut frames.clone(), 0, |verdict| !verdict.is_forwarded());
            }
        }
        Self { victim, frames, next: 0, quiet: Vec::new(), attacked: Vec::new(), lost }
    }

    /// Sends one burst.
    fn look(&mut self, scene: &mut Scene, under_attack: bool) {
        let count = self.frames.len();
        let mut burst: Vec<Headers> =
            (0..VICTIM_BURST).map(|n| self.frames[(self.next + n) % count]).collect();
        self.next = (self.next + VICTIM_BURST) % count;
        let start = Instant::now();
        self.lost += scene.judge(&mut burst, 0, |verdict| !verdict.is_forwarded());
        let ns = start.elapsed().as_nanos() as f64 / VICTIM_BURST as f64;
        if under_attack { &mut self.attacked } else { &mut self.quiet }.push(ns);
    }

    fn report(self) -> VictimReport {
        let (quiet_ns, attacked_ns) = (median(self.quiet), median(self.attacked));
        let (name, lost) = (self.victim.name(), self.lost);
        VictimReport { name, quiet_ns, attacked_ns, ratio: attacked_ns / quiet_ns, lost }
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use firedoor_classifier::mask::MASKS;

    /// What is promised, without the times: this machine may be doing anything else.
    #[test]
    fn no_attack_makes_another_mask_or_costs_a_victim_a_frame() {
        let report = run(&Options::default()).expect("nothing is read");
        assert!(report.holds(MASKS), "{report:#?}");
        let worst = report.attacks.iter().map(|attack| attack.masks).max();
        assert!(worst > Some(30), "the attacks reach most of the family: {worst:?}");
        assert!(report.attacks.iter().all(|attack| attack.bytes < 1 << 24));
    }
}
