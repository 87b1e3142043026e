//! Looking a batch of frames up ahead of their turn, so that what one has to wait for comes while the others'
//! is on its way.

use super::entry;
use super::key::{FrameKey, Upper};
use super::{Connections, Established, Lookup};
use crate::extract::Headers;
use crate::time::Nanos;

/// Most frames that [`Connections::prepare`] looks ahead.
pub const BATCH: usize = 64;

/// How many frames ahead of the step that reads its bucket a frame's bucket is asked for.
const BUCKETS_AHEAD: usize = 8;

/// Frames of one batch, looked up ahead of their turn.
///
/// A table of a million connections does not fit into any cache, so a lookup waits for memory two or
/// three times. [`Connections::prepare`] takes these steps for several frames of a batch at once, so that
/// the waits overlap; [`Connections::lookup_hinted`] then finds everything at hand.
///
/// A hint stays right whatever happens to the table in between: it saves time or nothing.
pub struct Hints {
    hints: [Hint; BATCH],
    len: usize,
}

/// What [`Connections::prepare`] found out about one frame.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Hint {
    /// [`FrameKey::endpoints`].
    endpoints: [u64; 2],
    /// Its [`Key::upper`](super::key::Key::upper), if it has any.
    upper: Upper,
    hash: u32,
    /// The entry that had the frame's key then.
    id: u32,
}

impl Hint {
    const NONE: Self = Self { endpoints: entry::NOBODYS, upper: [0; 3], hash: 0, id: entry::NIL };

    /// Whether the table seemed to have the frame's connection then: hashes were compared, not keys.
    pub const fn is_found(&self) -> bool {
        self.id != entry::NIL
    }
}

impl Hints {
    /// No hints.
    pub const fn new() -> Self {
        Self { hints: [Hint::NONE; BATCH], len: 0 }
    }

    /// The hint for the frame that stood at this place of the batch.
    #[inline(always)]
    pub fn get(&self, at: usize) -> Option<&Hint> {
        self.hints.get(at).filter(|_| at < self.len)
    }

    /// Frames that there are hints for.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Default for Hints {
    fn default() -> Self {
        Self::new()
    }
}

impl Connections {
    /// Looks up to [`BATCH`] frames ahead, for [`Connections::lookup_hinted`]; further ones get no
    /// hint. Reads only.
    ///
    /// Every step is taken for some frames before the next one, which then finds at hand what `fetch` has
    /// asked for: it has the processor get the cache line of a pointer, and waits for nothing.
    pub fn prepare(&self, frames: &[Headers], hints: &mut Hints, fetch: impl Fn(*const ())) {
        hints.len = frames.len().min(BATCH);
        if self.table.is_large() {
            let hints = hints.hints.get_mut(..hints.len).unwrap_or_default();
            self.prepare_far(frames, hints, fetch);
        } else {
            self.prepare_near(frames, &mut hints.hints);
        }
    }

    /// [`Connections::prepare`], where nothing waits for memory.
    fn prepare_near(&self, frames: &[Headers], hints: &mut [Hint]) {
        for (headers, hint) in frames.iter().zip(hints) {
            let hash = self.describe(hint, headers);
            hint.id = self.table.candidate(hash);
        }
    }

    /// [`Connections::prepare`], where everything does. The two steps follow each other through the batch,
    /// so that memory has as much to do in the first half of it as in the second.
    fn prepare_far(&self, frames: &[Headers], hints: &mut [Hint], fetch: impl Fn(*const ())) {
        for at in 0..hints.len() + BUCKETS_AHEAD {
            if let (Some(headers), Some(hint)) = (frames.get(at), hints.get_mut(at)) {
                let hash = self.describe(hint, headers);
                fetch(self.table.place_of_bucket(hash));
            }
            if let Some(hint) = at.checked_sub(BUCKETS_AHEAD).and_then(|at| hints.get_mut(at)) {
                let fetch = |id| fetch(self.table.place_of_identity(id));
                hint.id = self.table.candidates(hint.hash, fetch);
                fetch(hint.id);
            }
        }
    }

    /// Notes what a frame is looked for by. Returns the hash.
    #[inline(always)]
    fn describe(&self, hint: &mut Hint, headers: &Headers) -> u32 {
        let Some(frame) = FrameKey::of_plain_frame(headers) else {
            return self.describe_other(hint, headers);
        };
        hint.endpoints = frame.endpoints();
        hint.hash = self.table.hash(&frame.key);
        hint.hash
    }

    /// Likewise, of a frame that is not as most are.
    fn describe_other(&self, hint: &mut Hint, headers: &Headers) -> u32 {
        *hint = FrameKey::of_frame(headers).map_or(Hint::NONE, |frame| Hint {
            endpoints: frame.endpoints(),
            upper: frame.key.upper.unwrap_or_default(),
            hash: self.table.hash(&frame.key),
            id: entry::NIL,
        });
        hint.hash
    }

    /// Asks for what [`Connections::observe`] will change, and what a TCP lookup and
    /// [`Connections::verdict`] read, of the frame that stood at this place of the batch; see
    /// [`Connections::prepare`]. Worth its while a few frames ahead, if most have connections.
    #[inline]
    pub fn prepare_to_observe(&self, hints: &Hints, at: usize, fetch: impl Fn(*const ())) {
        if let Some(hint) = hints.get(at) {
            fetch(self.table.place_of_activity(hint.id));
        }
    }

    /// Whether a connection with the key of the frame that stood at this place of the batch is in this
    /// table, live or not. It is certain to be if so; if not, it may be.
    #[inline]
    pub(super) fn has(&self, hints: &Hints, at: usize) -> bool {
        let Some(hint) = hints.get(at) else { return false };
        self.table.with_key(hint.id, hint.endpoints, &hint.upper).is_some()
    }

    /// [`Connections::lookup`] of a frame that [`Connections::prepare`] was shown: the same answer,
    /// whatever was committed, observed, removed or expired since.
    ///
    /// `hint` must be this frame's, and of this table.
    #[inline]
    pub fn lookup_hinted(&self, headers: &Headers, hint: &Hint, epoch: u64, now: Nanos) -> Lookup {
        match self.table.with_key(hint.id, hint.endpoints, &hint.upper) {
            Some(identity) => self.judge(headers, hint.endpoints, (hint.id, identity), epoch, now),
            None => self.lookup_again(headers, hint, epoch, now),
        }
    }

    /// [`Connections::lookup_hinted`], if the hint names another frame's entry, or none.
    fn lookup_again(&self, headers: &Headers, hint: &Hint, epoch: u64, now: Nanos) -> Lookup {
        match self.table.find(hint.endpoints, &hint.upper, hint.hash) {
            Some(found) => self.judge(headers, hint.endpoints, found, epoch, now),
            None => Lookup::Miss,
        }
    }

    /// [`Connections::established`] of a frame that [`Connections::prepare`] was shown.
    ///
    /// `hint` must be this frame's, and of this table.
    pub fn established_hinted(
        &self,
        headers: &Headers,
        hint: &Hint,
        epoch: u64,
        now: Nanos,
    ) -> Option<Established> {
        let found = match self.table.with_key(hint.id, hint.endpoints, &hint.upper) {
            Some(identity) => (hint.id, identity),
            None => self.table.find(hint.endpoints, &hint.upper, hint.hash)?,
        };
        self.established_of(headers, hint.endpoints, found, epoch, now)
    }
}
