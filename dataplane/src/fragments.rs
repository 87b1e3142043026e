//! Fragments on the path of a frame: put in order between steps 2 and 3, judged with their first.
//!
//! What the rules are, and why, is in [`firedoor_classifier::fragments`]. Here are the frames: those
//! that wait for the first of their packet stay in their umem chunks, which copies nothing and keeps
//! them in the count of frames. Since a chunk that waits is one that no port can receive into, at most
//! one in [`UMEM_SHARE`] of them may, whatever the settings allow.
//!
//! A later fragment is counted under the reason of its first, but neither mirrored nor answered: the
//! first one stands for its packet (RFC 1122 §3.2.2 forbids errors about others).

use firedoor_classifier::extract::{Headers, Kind};
use firedoor_classifier::fragments::{Fragments, Release, Verdicts};
use firedoor_classifier::snapshot::Settings;
use firedoor_classifier::{Nanos, PortId, Verdict};

use crate::frame::Frame;
use crate::handoff::{Errand, Parcel};
use crate::path::Path;
use crate::pool::FramePool;

/// One in so many of the umem's frames may wait, at each worker.
const UMEM_SHARE: u32 = 16;

/// One worker's fragments.
pub struct Fragmented {
    order: Fragments<(Frame, Headers)>,
    verdicts: Verdicts,
    /// Where the later fragment in hand is flooded to.
    receivers: Vec<PortId>,
    max_waiting: usize,
}

impl Fragmented {
    /// None yet; `frames` are the umem's, of which few may wait.
    pub fn new(settings: &Settings, frames: u32) -> Self {
        let max_waiting = (frames / UMEM_SHARE) as usize;
        Self {
            order: Fragments::new(settings, max_waiting),
            verdicts: Verdicts::new(settings),
            receivers: Vec::new(),
            max_waiting,
        }
    }

    /// The ports that the last later fragment is flooded to.
    pub(crate) fn receivers(&self) -> &[PortId] {
        &self.receivers
    }

    /// Gives the frames that wait back, as a worker's end wants it.
    pub(crate) fn clear(&mut self, pool: &mut FramePool) {
        self.order.forget_waiting();
        while let Some(released) = self.order.release() {
            let (Release::Pass { item, .. } | Release::Drop { item, .. }) = released;
            pool.give(item.0);
        }
    }
}

impl Path {
    /// Puts a fragment in order, here or at the worker that has the others of its packet.
    pub(crate) fn order(&mut self, frame: Frame, headers: &Headers, now: Nanos) {
        if let Some(worker) = self.peers.order_of(headers) {
            let port = headers.key.ingress;
            return self.hand(worker, Parcel { frame, port, errand: Errand::Order });
        }
        let owner = self.owner_of_fragment(headers);
        self.fragments.order.arrive(headers, owner, (frame, *headers), now);
        self.release_fragments();
    }

    /// Hands on what may pass, behind the frames that wait to be judged, and drops what may not.
    fn release_fragments(&mut self) {
        while let Some(released) = self.fragments.order.release() {
            match released {
                Release::Drop { item: (frame, headers), reason } => {
                    self.discard(frame, reason, headers.key.ingress);
                }
                Release::Pass { item: (frame, headers), owner } if owner == self.peers.me() => {
                    self.burst.push(frame, &headers);
                }
                Release::Pass { item: (frame, headers), owner } => {
                    let port = headers.key.ingress;
                    self.hand(owner, Parcel { frame, port, errand: Errand::JudgeInOrder });
                }
            }
        }
    }

    /// Steps 3 to 5 for a fragment, the frame at position `at` of the burst: a first one is judged
    /// like any frame, and for those behind it.
    pub(crate) fn judge_fragment(
        &mut self,
        headers: &Headers,
        at: usize,
        bytes: usize,
        now: Nanos,
    ) -> Verdict {
        let epoch = self.pipeline.policy().epoch();
        if headers.kind == Kind::LaterFragment {
            let Fragmented { verdicts, receivers, .. } = &mut self.fragments;
            return verdicts.follow(headers, epoch, now, receivers);
        }
        let verdict = self.pipeline.judge_next(headers, at, bytes, now);
        let receivers = self.pipeline.receivers();
        self.fragments.verdicts.remember(headers, verdict, receivers, epoch, now);
        verdict
    }

    /// Drops what has waited too long for its first.
    pub(crate) fn expire_fragments(&mut self, now: Nanos) {
        self.fragments.order.expire(now);
        self.release_fragments();
    }

    /// Applies the settings of a new policy, under which nothing that waits may go on waiting.
    pub(crate) fn renew_fragments(&mut self, settings: &Settings) {
        let Fragmented { order, verdicts, max_waiting, .. } = &mut self.fragments;
        order.configure(settings, *max_waiting);
        order.forget_waiting();
        verdicts.configure(settings);
        self.release_fragments();
    }

    /// Forgets the fragments of a port that is gone.
    pub(crate) fn forget_fragments(&mut self, port: PortId) {
        self.fragments.order.forget_port(port);
        self.fragments.verdicts.forget_port(port);
        self.release_fragments();
    }
}
