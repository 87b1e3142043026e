//! How a worker spends the time between two turns: at once the next, a yield, a pause, or sleep.
//!
//! Sleeping costs nothing but the way back: a system call here, and where the frame came from an
//! interrupt for a processor that may have halted. Looking again costs a processor, and pays only if
//! the next frame comes soon. So it depends on the traffic, as last seen:
//!
//! - **Conversation**: answers follow requests, from another port each time, in less than
//!   [`LIVELY`]. Whoever asks waits for each frame, and the next one is near: the worker looks again
//!   for [`PATIENT`] before it sleeps. It yields the processor between two looks, because the one it
//!   just woke may have been put on the same.
//! - **Openings**: TCP connections are asked for whose answers the kernel forwards, so that the worker sees
//!   none of them, and less than [`BRISK`] apart. Somebody waits for each, and where no processor is kept
//!   from halting, for longer than all the rest of it takes: the worker looks again for [`EXPECTANT`] after each.
//! - **Load**: one way, [`LOAD`] frames a window or more for [`SETTLED`] windows, but few in each
//!   turn. Frames that come together cost less than those that come alone, in the kernel above all,
//!   so after a turn that found few the worker pauses. It does not after a turn of [`ENOUGH`], so no
//!   ring fills up meanwhile. Nobody waits for each of so many frames.
//! - **Else** it looks again for [`BRIEF`].
//!
//! Who yields to a process that has much to do waits for its turn, for milliseconds, while who sleeps is woken and
//! goes first. So a yield that took [`LATE`] tells the worker to sleep rather than yield for [`CROWDED`].
//!
//! What is here is arithmetic on the time and on what turns found; the worker does the waiting.

use std::time::Duration;

use firedoor_classifier::Nanos;

/// How long the worker looks for more where nothing speaks for it.
const BRIEF: u64 = 20_000;
/// How long it looks for more in a conversation.
const PATIENT: u64 = 200_000;
/// Mean time between frames, at most, of a conversation worth waiting in.
const LIVELY: u64 = 100_000;
/// How long it looks for the next one where connections are opened.
const EXPECTANT: u64 = 500_000;
/// Mean time between openings, at most, that are worth waiting for. Whoever opens one connection after the other does
/// so more slowly while each has to wake the worker: a bound between the two paces would leave it to chance whether
/// the worker ever stays awake.
const BRISK: u64 = 400_000;
/// How long a yield takes, at least, where others want the processor for themselves.
const LATE: u64 = 1_000_000;
/// For how long they are believed to.
const CROWDED: u64 = 100_000_000;
/// What a longer gap counts as: one pause does not end a conversation, two do.
const LONGEST_GAP: u64 = 4 * LIVELY;
/// What a longer time between openings counts as.
const LONGEST_APART: u64 = 4 * BRISK;
/// Gaps and turns that means are taken over, about.
const MEMORY: u64 = 8;
/// A turn with answers, in the units of [`Pacing::answers`], and the least mean of traffic that is answered.
const SIGN: u64 = 1_024;
const TELLING: u64 = SIGN / 4;

/// Time over which frames are counted.
const WINDOW: u64 = 1_000_000;
/// Frames of one window from which on it is one of load, and below which load is over.
const LOAD: u64 = 150;
const LOAD_OVER: u64 = LOAD / 2;
/// Windows of load in a row before the worker pauses.
const SETTLED: u32 = 3;
/// How long it pauses.
const PAUSE: Duration = Duration::from_micros(30);
/// Frames of a turn after which it need not.
const ENOUGH: usize = 16;

/// What to do before the next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing.
    No,
    /// Let others run who want to.
    Yield,
    /// Wait that long, whatever comes.
    Pause(Duration),
    /// Wait for something to come.
    Sleep,
}

/// What a turn's frames tell of the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Some came from another port than those before.
    pub answers: bool,
    /// Some ask for connections whose answers the worker will not see.
    pub openings: bool,
}

/// What a worker remembers of its traffic to wait in the right way.
#[derive(Debug)]
pub struct Pacing {
    /// When a turn last found frames.
    last: u64,
    /// Mean time between turns that found frames, in ns.
    gap: u64,
    /// Mean of [`SIGN`] for turns with answers, 0 for others.
    answers: u64,
    /// When a turn last found openings.
    opened: u64,
    /// Mean time between turns that found openings, in ns.
    apart: u64,
    /// When it last yielded, if that was the last it did.
    yielded: Option<u64>,
    /// Until when it does not.
    crowded_until: u64,
    /// When the window began, and the frames in it.
    window: u64,
    frames: u64,
    /// Windows of load in a row.
    loaded: u32,
}

impl Default for Pacing {
    fn default() -> Self {
        Self {
            last: 0,
            gap: LONGEST_GAP,
            answers: 0,
            opened: 0,
            apart: LONGEST_APART,
            yielded: None,
            crowded_until: 0,
            window: 0,
            frames: 0,
            loaded: 0,
        }
    }
}

impl Pacing {
    /// After a turn at `now` that found this many frames.
    pub fn after(&mut self, found: usize, signs: Signs, now: Nanos) -> Wait {
        if self.yielded.take().is_some_and(|then| now.0.saturating_sub(then) >= LATE) {
            self.crowded_until = now.0 + CROWDED;
        }
        if found == 0 {
            return self.idle(now.0);
        }
        let gap = now.0.saturating_sub(self.last).min(LONGEST_GAP);
        self.gap = mean(self.gap, gap);
        self.answers = mean(self.answers, if signs.answers { SIGN } else { 0 });
        self.last = now.0;
        if signs.openings {
            self.apart = mean(self.apart, now.0.saturating_sub(self.opened).min(LONGEST_APART));
            self.opened = now.0;
        }
        self.count(found as u64, now.0);
        match self.loaded >= SETTLED && found < ENOUGH && !self.is_answered() {
            true => Wait::Pause(PAUSE),
            false => Wait::No,
        }
    }

    fn idle(&mut self, now: u64) -> Wait {
        let is_patient = now.saturating_sub(self.last) < self.patience();
        if now < self.crowded_until || !(is_patient || self.is_expectant(now)) {
            return Wait::Sleep;
        }
        self.yielded = Some(now);
        Wait::Yield
    }

    /// How long it looks for more.
    fn patience(&self) -> u64 {
        match self.gap <= LIVELY && self.is_answered() {
            true => PATIENT,
            false => BRIEF,
        }
    }

    /// Whether a connection was opened of late, and the next one is near.
    fn is_expectant(&self, now: u64) -> bool {
        self.apart <= BRISK && now.saturating_sub(self.opened) < EXPECTANT
    }

    /// Whether frames are answered, rather than sent one way.
    fn is_answered(&self) -> bool {
        self.answers >= TELLING
    }

    /// Counts frames, and at a window's end says whether it was one of load.
    fn count(&mut self, found: u64, now: u64) {
        self.frames += found;
        let passed = now.saturating_sub(self.window);
        if passed < WINDOW {
            return;
        }
        let least = if self.loaded >= SETTLED { LOAD_OVER } else { LOAD };
        let is_load = self.frames >= least * passed / WINDOW;
        self.loaded = if is_load { self.loaded.saturating_add(1) } else { 0 };
        (self.window, self.frames) = (now, 0);
    }
}

/// The mean after one more value.
fn mean(before: u64, value: u64) -> u64 {
    (before * (MEMORY - 1) + value) / MEMORY
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays traffic to a worker that takes 1 us for a turn and 20 us to wake up: frames that come
    /// at given times by a port each. Returns what it waited for, each time.
    fn play(pacing: &mut Pacing, frames: impl IntoIterator<Item = (u64, u32)>) -> Vec<Wait> {
        let (mut now, mut source) = (0, 0);
        let mut waits = Vec::new();
        let mut frames = frames.into_iter().peekable();
        while let Some(&(next, _)) = frames.peek() {
            let (mut found, mut signs) = (0, Signs::default());
            while let Some((_, port)) = frames.next_if(|&(at, _)| at <= now) {
                found += 1;
                signs.answers |= port != source;
                source = port;
            }
            let wait = pacing.after(found, signs, Nanos(now));
            now += match wait {
                Wait::No | Wait::Yield => 1_000,
                Wait::Pause(time) => time.as_nanos() as u64,
                Wait::Sleep => next.saturating_sub(now) + 20_000,
            };
            waits.push(wait);
        }
        waits
    }

    /// Requests and answers, `gap` ns between each frame and the next.
    fn conversation(gap: u64) -> impl Iterator<Item = (u64, u32)> {
        (1..1_000).map(move |n| (n * gap, (n % 2) as u32))
    }

    fn one_way(gap: u64) -> impl Iterator<Item = (u64, u32)> {
        (1..10_000).map(move |n| (n * gap, 0))
    }

    fn share(waits: &[Wait], is: impl Fn(&Wait) -> bool) -> f64 {
        waits.iter().filter(|wait| is(wait)).count() as f64 / waits.len() as f64
    }

    #[test]
    fn a_lively_conversation_keeps_the_worker_awake() {
        for gap in [5_000, 20_000, 60_000] {
            let waits = play(&mut Pacing::default(), conversation(gap));
            let later = &waits[waits.len() / 2..];
            assert!(later.iter().all(|wait| matches!(wait, Wait::No | Wait::Yield)), "{gap} ns");
        }
    }

    #[test]
    fn a_trickle_is_slept_through() {
        let waits = play(&mut Pacing::default(), conversation(100_000_000));
        let naps = waits.iter().filter(|&&wait| wait == Wait::Sleep).count();
        let looks = waits.iter().filter(|&&wait| wait == Wait::Yield).count();
        assert!(naps >= 998, "it sleeps after each frame");
        assert!(
            looks <= naps * (BRIEF / 1_000) as usize,
            "and has looked for no longer than briefly"
        );
    }

    #[test]
    fn one_pause_does_not_end_a_conversation_but_some_do() {
        let mut pacing = Pacing::default();
        play(&mut pacing, conversation(20_000));
        let mut now = pacing.last;
        let mut wait = |idle: u64| {
            assert_eq!(pacing.after(0, Signs::default(), Nanos(now + PATIENT)), Wait::Sleep);
            now += idle;
            pacing.after(1, Signs { answers: true, openings: false }, Nanos(now));
            pacing.idle(now + 2 * BRIEF)
        };
        assert_eq!(wait(50_000_000), Wait::Yield);
        assert_eq!((0..3).map(|_| wait(50_000_000)).last(), Some(Wait::Sleep));
    }

    /// What it waits for when one opening after the other comes so many ns apart, just before the next one.
    fn between_openings(pacing: &mut Pacing, gap: u64, count: u64) -> Wait {
        let (from, signs) = (pacing.last, Signs { answers: false, openings: true });
        for n in 1..=count {
            pacing.after(1, signs, Nanos(from + n * gap));
        }
        pacing.idle(pacing.last + gap - 1)
    }

    #[test]
    fn brisk_openings_keep_the_worker_awake_though_it_sees_no_answers() {
        for gap in [30_000, 100_000, 250_000, 390_000] {
            assert_eq!(between_openings(&mut Pacing::default(), gap, 100), Wait::Yield, "{gap} ns");
        }
        assert_eq!(between_openings(&mut Pacing::default(), 1_000_000, 100), Wait::Sleep);
    }

    #[test]
    fn openings_that_become_rare_are_slept_through() {
        let mut pacing = Pacing::default();
        between_openings(&mut pacing, 100_000, 100);
        assert_eq!(between_openings(&mut pacing, 10_000_000, 10), Wait::Sleep);
        assert_eq!(
            pacing.idle(pacing.last + BRIEF),
            Wait::Sleep,
            "no longer looked for than briefly"
        );
    }

    #[test]
    fn other_frames_after_the_last_opening_do_not_keep_the_worker_awake() {
        let mut pacing = Pacing::default();
        between_openings(&mut pacing, 100_000, 100);
        for _ in 0..100 {
            pacing.after(1, Signs::default(), Nanos(pacing.last + 50_000));
        }
        assert_eq!(pacing.idle(pacing.last + BRIEF), Wait::Sleep);
    }

    #[test]
    fn where_a_yield_takes_long_the_worker_sleeps_instead_for_a_while() {
        let mut pacing = Pacing::default();
        assert_eq!(between_openings(&mut pacing, 100_000, 100), Wait::Yield);
        let back = pacing.last + 100_000 + LATE;
        assert_eq!(pacing.after(0, Signs::default(), Nanos(back)), Wait::Sleep);
        assert_eq!(between_openings(&mut pacing, 100_000, 900), Wait::Sleep);
        assert_eq!(between_openings(&mut pacing, 100_000, 200), Wait::Yield);
    }

    #[test]
    fn what_comes_from_one_side_only_is_no_conversation() {
        let waits = play(&mut Pacing::default(), one_way(30_000));
        assert!(share(&waits[100..], |&wait| wait == Wait::Sleep) > 0.03);
    }

    #[test]
    fn load_in_small_pieces_is_collected_and_a_conversation_never_is() {
        let is_pause = |wait: &Wait| matches!(wait, Wait::Pause(_));
        let waits = play(&mut Pacing::default(), one_way(2_000));
        assert!(share(&waits[waits.len() - 300..], is_pause) > 0.9, "500,000 a second");
        for waits in [
            play(&mut Pacing::default(), conversation(2_000)),
            play(&mut Pacing::default(), one_way(10_000)),
        ] {
            assert_eq!(share(&waits, is_pause), 0.0);
        }
    }

    #[test]
    fn load_that_comes_in_large_batches_is_not_held_up() {
        let mut pacing = Pacing::default();
        let waits: Vec<Wait> =
            (0..1_000).map(|n| pacing.after(64, Signs::default(), Nanos(n * 80_000))).collect();
        assert!(waits.iter().all(|&wait| wait == Wait::No));
    }

    #[test]
    fn the_pause_ends_with_the_load() {
        let mut pacing = Pacing::default();
        play(&mut pacing, one_way(2_000));
        let from = pacing.last;
        let after: Vec<Wait> =
            (1..300).map(|n| pacing.after(1, Signs::default(), Nanos(from + n * 20_000))).collect();
        assert_eq!(after.last(), Some(&Wait::No));
    }
}
