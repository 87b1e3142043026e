//! Looking at what the kernel forwards from time to time: at each connection once a second, at half-open
//! ones sooner, and at all under a new policy. Each call does a bounded part, so that frames need not wait.

use std::time::Duration;

use firedoor_classifier::{Nanos, Pipeline};

use super::Offload;
use super::crediting::Counts;

/// How often each connection is looked at.
const ROUND: Nanos = Nanos::from_secs(1);

/// How soon a connection is looked at that was half open when the kernel got its verdicts, and again
/// while nobody has answered.
const SOON: Nanos = Nanos(20_000_000);

/// Most connections looked at by one call of [`Offload::tick`].
const PER_TICK: usize = 4096;

/// Most connections judged again by one call of [`Offload::renew_some`].
const PER_TURN: usize = 256;

impl Offload {
    /// Looks at some connections, if the round is due. Returns whether there are more to look at
    /// soon.
    pub(super) fn tick(
        &mut self,
        pipeline: &mut Pipeline,
        counts: &Counts<'_>,
        now: Nanos,
    ) -> bool {
        self.refresh(pipeline, counts, now);
        let Some(lane) = &self.lane else { return false };
        let grace = pipeline.policy().settings().express_grace_secs;
        lane.keep_open(Duration::from_secs(grace.into()));
        while let Some((due, at)) = self.young.pop_front_if(|(due, _)| *due <= now) {
            let Some(pair) = self.pair(at).filter(|pair| pair.due == due) else { continue };
            let was_asked = pair.answer.is_some();
            self.look(at, pipeline, counts, now);
            if was_asked {
                self.look_soon(at, now);
            }
        }
        if self.next == 0 {
            if now.since(self.round) < ROUND.0 {
                return false;
            }
            self.round = now;
            self.lane.iter().for_each(|lane| lane.take_misses_back());
        }
        let end = (self.next + PER_TICK).min(self.pairs.len());
        for at in self.next..end {
            self.look(at, pipeline, counts, now);
        }
        self.next = if end == self.pairs.len() { 0 } else { end };
        self.next != 0
    }

    /// How long it is until the next round is due, in nanoseconds.
    pub(crate) const fn until_round(&self, now: Nanos) -> u64 {
        match self.lane {
            Some(_) => ROUND.0.saturating_sub(now.since(self.round)),
            None => ROUND.0,
        }
    }

    /// A pair, if there is one, is looked at before the round comes to it.
    pub(super) fn look_soon(&mut self, at: usize, now: Nanos) {
        if let Some(Some(pair)) = self.pairs.get_mut(at) {
            pair.due = Nanos(now.0 + SOON.0);
            self.young.push_back((pair.due, at));
        }
    }

    /// A connection catches up, and its verdicts go if it has ended.
    fn look(&mut self, at: usize, pipeline: &mut Pipeline, counts: &Counts<'_>, now: Nanos) {
        self.credit(at, pipeline, counts, now);
        let Some(pair) = self.pair(at) else { return };
        if !pipeline.is_established(pair.id, &pair.original, now) {
            self.end(at, pipeline, counts, now);
        }
    }

    pub(super) fn renew_some(
        &mut self,
        pipeline: &mut Pipeline,
        counts: &Counts<'_>,
        now: Nanos,
    ) -> bool {
        let Some(from) = self.renewing else { return false };
        let end = (from + PER_TURN).min(self.pairs.len());
        for at in from..end {
            let Some(pair) = self.pair(at) else { continue };
            let (id, original) = (pair.id, pair.original);
            let renewed = pipeline.renew(id, &original, now);
            if !renewed.is_some_and(|established| self.renew(at, &established, pipeline)) {
                self.end(at, pipeline, counts, now);
            }
        }
        self.renewing = (end < self.pairs.len()).then_some(end);
        self.renewing.is_some()
    }
}
