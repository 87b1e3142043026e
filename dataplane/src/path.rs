//! The path of a frame, in eight steps.
//!
//! 1. [`Port::receive`](crate::port::Port::receive): rx ring to a batch of frames.
//! 2. [`extract`](firedoor_classifier::extract::extract): bytes to headers; malformed, to a drop reason. [Fragments](crate::fragments) are
//!    put in order, behind the first of their packet.
//! 3. [`Connections::lookup`](firedoor_classifier::connections::Connections::lookup): the exact
//!    entry, either direction.
//! 4. [`FlowCache::lookup`](firedoor_classifier::cache::FlowCache::lookup): the tuple space.
//! 5. [`upcall`](firedoor_classifier::classify): on a miss, MAC table, tags and ACL.
//! 6. [`Path::apply`]: count, mirror, complete checksums, retag, queue.
//! 7. [`Port::transmit`](crate::port::Port::transmit): one tx batch per output port, one kick.
//! 8. [`Port::reclaim`](crate::port::Port::reclaim): completion ring to free list to fill ring.
//!
//! Steps 3 to 5 are [`Pipeline::judge`]. Steps 1, 7 and 8 are the [worker](crate::worker)'s turn.
//! Nothing here allocates, locks or calls the kernel per frame. Every frame that enters a function
//! of this module leaves it in the outbox, with another worker, or in the pool.

use std::hint::black_box;
use std::sync::Arc;

use firedoor_classifier::checksum::complete_partial;
use firedoor_classifier::connections::Bucket;
use firedoor_classifier::extract::{Headers, Kind, extract_into};
use firedoor_classifier::reply::{MAX_REPLY, refuse};
use firedoor_classifier::snapshot::Mode;
use firedoor_classifier::verdict::{Action, DropGroup, Verdict};
use firedoor_classifier::{DropReason, FlowKey, Nanos, Pipeline, PortId};

use crate::counters::{PortCells, WorkerCounters};
use crate::express::offload::Offload;
use crate::fragments::Fragmented;
use crate::frame::Frame;
use crate::handoff::{Errand, Parcel, Peers};
use crate::mirror::MirrorSender;
use crate::outbox::{Home, Outbox};
use crate::pool::FramePool;
use crate::port::BURST;
use crate::sys::prefetch::prefetch;
use crate::vlan::retag;

/// How many frames ahead of a frame's turn what it changes of its connection is asked for: early enough to
/// be there then, and few at once, since a processor waits when it has asked for more than some twenty lines.
pub const ENTRIES_AHEAD: usize = 8;

/// How many frames ahead its bytes are. Not more: chunks are 4 KiB apart, so all frames' first bytes have
/// the same few places in the nearest cache.
const BYTES_AHEAD: usize = 4;

/// Parcels taken at once.
pub const PARCELS: usize = 4 * BURST;

/// One worker's half of the path that knows no rings: frames in, frames queued for output.
pub struct Path {
    /// Decides.
    pub pipeline: Pipeline,
    /// Free frames.
    pub pool: FramePool,
    /// Frames queued for output.
    pub outbox: Outbox,
    /// What happened.
    pub counters: Arc<WorkerCounters>,
    /// Copies of denied frames.
    pub mirror: MirrorSender,
    /// The other workers.
    pub peers: Peers,
    /// Frames that wait to be judged together.
    pub burst: Burst,
    /// What other workers left, while it is dealt with.
    pub parcels: Vec<Parcel>,
    /// Packets of which not all fragments have come.
    pub fragments: Fragmented,
    /// Connections that the kernel forwards.
    pub offload: Offload,
}

/// Frames whose headers were read, in the order in which they came.
#[derive(Debug, Default)]
pub struct Burst {
    frames: Vec<Frame>,
    /// Those of the frame at the same position. Beyond them are old ones, to be written over.
    headers: Vec<Headers>,
    /// What says who judges it, while they are asked; `None` if it is this worker anyway.
    buckets: Vec<Option<Bucket>>,
    /// Who judges it; nobody's, if there is one worker.
    owners: Vec<u16>,
}

/// How the frames of a burst came to this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// By a port.
    Port,
    /// Another worker handed them over.
    Worker,
}

/// The worker that should judge a frame of a connection that nobody owns yet. It stays where it was handed
/// to, and where it came in by a port of which every worker has a queue, since the other direction should
/// come in here too. A port with fewer queues says nothing of where the other direction arrives; then any
/// worker is as good, and `number` picks one, so that all have their share.
fn wish(peers: &Peers, outbox: &Outbox, headers: &Headers, origin: Origin, number: u32) -> u16 {
    let home = outbox.home(headers.key.ingress);
    let is_everywhere = matches!(home, Some(Home::Here { everywhere: true, .. }));
    if origin == Origin::Worker || is_everywhere { peers.me() } else { peers.any_of(number) }
}

impl Path {
    /// Steps 2 to 6 for a batch of frames that came in by one port.
    pub fn forward(
        &mut self,
        ingress: PortId,
        cells: &PortCells,
        batch: &mut Vec<Frame>,
        now: Nanos,
    ) {
        self.counters.received.add(batch.len() as u64);
        cells.rx_frames.add(batch.len() as u64);
        cells.rx_bytes.add(batch.iter().map(|frame| frame.len() as u64).sum());
        let mut waiting = batch.drain(..);
        while let Some(frame) = waiting.next() {
            self.fetch_next(waiting.as_slice());
            self.read(ingress, frame, None, now);
        }
        drop(waiting);
        self.judge_burst(Origin::Port, now);
    }

    /// Asks for the bytes of one of the frames that wait for their turn, which is soon.
    fn fetch_next(&self, waiting: &[Frame]) {
        if let Some(frame) = waiting.get(BYTES_AHEAD - 1) {
            self.pool.umem().prefetch(frame);
        }
    }

    /// Step 2: reads the headers. `errand` is why the frame was handed over, if it was.
    fn read(&mut self, ingress: PortId, frame: Frame, errand: Option<Errand>, now: Nanos) {
        let headers = self.burst.next();
        if let Err(reason) = extract_into(self.pool.umem().bytes(&frame), ingress, headers) {
            let key = FlowKey { ingress, ..FlowKey::default() };
            self.record_denial(&frame, &key, &Verdict::drop(reason), now);
            return self.pool.give(frame);
        }
        if headers.fragment.is_some() && errand != Some(Errand::JudgeInOrder) {
            let headers = *headers;
            return self.order(frame, &headers, now);
        }
        self.burst.frames.push(frame);
    }

    /// Steps 3 to 6 for the frames that wait, one after the other. They are prepared together: so
    /// what one has to wait for, memory above all, comes while the others' is on its way.
    ///
    /// Those that another worker judges go there.
    fn judge_burst(&mut self, origin: Origin, now: Nanos) {
        let Burst { mut frames, mut headers, mut buckets, mut owners } =
            std::mem::take(&mut self.burst);
        let burst = &mut headers[..frames.len()];
        self.refresh_offload(now);
        self.pipeline.find_connections(burst, prefetch);
        self.find_owners(burst, origin, &mut buckets, &mut owners);
        let me = self.peers.me();
        let owner_of = |at: usize| owners.get(at).copied().unwrap_or(me);
        self.pipeline.find_flows(burst, |at| owner_of(at) == me);
        (0..ENTRIES_AHEAD).for_each(|at| self.pipeline.prepare_to_pass(at, prefetch));
        let mut waiting = frames.drain(..);
        for (at, headers) in burst.iter().enumerate() {
            let Some(frame) = waiting.next() else { break };
            self.pipeline.prepare_to_pass(at + ENTRIES_AHEAD, prefetch);
            self.fetch_next(waiting.as_slice());
            let owner = owner_of(at);
            if owner == me {
                self.judge(frame, headers, at, now);
            } else {
                let is_ordered = headers.fragment.is_some();
                let errand = if is_ordered { Errand::JudgeInOrder } else { Errand::Judge };
                self.hand(owner, Parcel { frame, port: headers.key.ingress, errand });
            }
        }
        drop(waiting);
        owners.clear();
        self.burst = Burst { frames, headers, buckets, owners };
    }

    /// Steps 3 to 6 for one frame, which stands at position `at` of the burst.
    fn judge(&mut self, frame: Frame, headers: &Headers, at: usize, now: Nanos) {
        let place = self.catch_up(headers, at, now);
        let verdict = match headers.fragment {
            None => self.pipeline.judge_next(headers, at, frame.len(), now),
            Some(_) => self.judge_fragment(headers, at, frame.len(), now),
        };
        self.apply(frame, headers, &verdict, now);
        if let Some(place) = place {
            self.judged(headers, at, place, now);
        }
    }

    /// Finds the worker that judges each frame of a burst; none, if this is the only one.
    fn find_owners(
        &mut self,
        burst: &[Headers],
        origin: Origin,
        buckets: &mut Vec<Option<Bucket>>,
        owners: &mut Vec<u16>,
    ) {
        let Self { pipeline, peers, outbox, .. } = self;
        if pipeline.claims().is_none() {
            return;
        }
        let bucket_of = |(at, headers)| pipeline.bucket_of(headers, at, prefetch);
        buckets.extend(burst.iter().enumerate().map(bucket_of));
        let Some(claims) = pipeline.claims() else { return };
        owners.extend(burst.iter().zip(buckets.drain(..)).map(|(headers, bucket)| {
            let Some(bucket) = bucket else { return claims.me() };
            let wish = |number| wish(peers, outbox, headers, origin, number);
            let is_clear = |last| origin == Origin::Worker || peers.is_clear(last);
            claims.owner_of(bucket, wish, is_clear)
        }));
    }

    /// The worker that judges a fragment which is put in order here.
    pub(crate) fn owner_of_fragment(&mut self, headers: &Headers) -> u16 {
        let me = self.peers.me();
        let Some(claims) = self.pipeline.claims() else { return me };
        let Some(bucket) = claims.bucket_of(headers, |_| ()) else { return me };
        claims.owner_of(bucket, |_| me, |_| true)
    }

    /// Hands a frame to another worker.
    pub(crate) fn hand(&mut self, worker: u16, parcel: Parcel) {
        if let Err(parcel) = self.peers.hand(worker, parcel) {
            self.counters.dropped(DropReason::HandoffFull);
            self.pool.give(parcel.frame);
        }
    }

    /// Step 6: does what the verdict says.
    fn apply(&mut self, mut frame: Frame, headers: &Headers, verdict: &Verdict, now: Nanos) {
        match (verdict.denied(), headers.kind) {
            (None, _) => {}
            (Some(reason), Kind::LaterFragment) => {
                self.count_denial(reason, headers.key.ingress, verdict);
            }
            (Some(_), _) => self.record_denial(&frame, &headers.key, verdict, now),
        }
        match verdict.action {
            Action::Drop(reason) => {
                if reason == DropReason::Rejected {
                    self.refuse(&frame, headers);
                }
                self.pool.give(frame);
            }
            Action::Forward(output) => {
                self.finish(&mut frame, headers);
                self.send(frame, headers, output);
            }
            Action::Flood => {
                self.finish(&mut frame, headers);
                self.flood(frame, headers);
            }
        }
    }

    /// Counts a denial and mirrors it, if its kind is mirrored in this mode.
    fn record_denial(&mut self, frame: &Frame, key: &FlowKey, verdict: &Verdict, now: Nanos) {
        let Some(reason) = verdict.denied() else { return };
        self.count_denial(reason, key.ingress, verdict);
        let snapshot = self.pipeline.policy().snapshot();
        let wanted = matches!(reason.group(), DropGroup::Policy | DropGroup::Spoofed)
            && snapshot.mode != Mode::Learn;
        if !wanted {
            return;
        }
        let taken = self.mirror.offer(now, self.pool.umem().bytes(frame), |record| {
            record.epoch = snapshot.epoch;
            record.key = *key;
            record.cause = verdict.cause;
            record.reason = reason;
            record.dropped = !verdict.is_forwarded();
        });
        let count = if taken { &self.counters.mirrored } else { &self.counters.mirror_lost };
        count.add(1);
    }

    /// Counts a frame that was dropped for this reason, or would have been.
    fn count_denial(&self, reason: DropReason, ingress: PortId, verdict: &Verdict) {
        if verdict.is_forwarded() {
            self.counters.would_drop(reason);
        } else {
            self.count_drop(reason, ingress);
        }
    }

    /// Counts a frame that leaves the path without being sent.
    fn count_drop(&self, reason: DropReason, ingress: PortId) {
        self.counters.dropped(reason);
        if let Some(cells) = self.outbox.cells(ingress) {
            cells.drops.add(1);
        }
    }

    /// Tells the sender of a refused frame, by a frame of the switch's own.
    fn refuse(&mut self, frame: &Frame, headers: &Headers) {
        let mut answer = [0; MAX_REPLY];
        let Some(len) = refuse(self.pool.umem().bytes(frame), headers, &mut answer) else { return };
        match self.pool.copy_of(&answer[..len]) {
            Some(answer) => self.queue(answer, headers.key.ingress, headers.key.ingress),
            None => self.count_drop(DropReason::NoFrame, headers.key.ingress),
        }
    }

    /// Makes a frame what its headers say and no more. What stands behind the packet is padding at
    /// best, and at worst a message that no policy has seen. And a workload with checksum offload
    /// leaves the transport checksum to its device: that is us.
    fn finish(&mut self, frame: &mut Frame, headers: &Headers) {
        let len = frame.len().min(headers.end.into());
        frame.set_span(frame.offset().into(), len);
        if complete_partial(self.pool.umem().bytes_mut(frame), headers) {
            self.counters.checksums_completed.add(1);
        }
    }

    /// Queues a copy for each receiver; the last one gets the frame itself.
    fn flood(&mut self, frame: Frame, headers: &Headers) {
        let count = self.receivers(headers).len();
        for i in 0..count.saturating_sub(1) {
            let output = self.receivers(headers)[i];
            match self.pool.duplicate(&frame) {
                Some(copy) => self.send(copy, headers, output),
                None => self.count_drop(DropReason::NoFrame, headers.key.ingress),
            }
        }
        match self.receivers(headers).last() {
            Some(&output) => self.send(frame, headers, output),
            None => self.discard(frame, DropReason::NoReceiver, headers.key.ingress),
        }
    }

    /// The ports that the frame that was judged last is flooded to.
    fn receivers(&self, headers: &Headers) -> &[PortId] {
        match headers.kind {
            Kind::LaterFragment => self.fragments.receivers(),
            _ => self.pipeline.receivers(),
        }
    }

    /// Gives the frame the form that the output port's VLAN mode wants, and queues it.
    fn send(&mut self, mut frame: Frame, headers: &Headers, output: PortId) {
        let policy = self.pipeline.policy();
        let ingress = headers.key.ingress;
        let Some(to) = policy.port(output) else {
            return self.discard(frame, DropReason::PortDown, ingress);
        };
        let (tags, vlan) = (headers.vlan_tags, headers.key.vlan);
        if retag(self.pool.umem(), &mut frame, tags, vlan, &to.vlan) {
            self.queue(frame, ingress, output);
        } else {
            self.discard(frame, DropReason::TooBig, ingress);
        }
    }

    /// Queues a finished frame for a port of this worker, or of another one.
    fn queue(&mut self, frame: Frame, ingress: PortId, output: PortId) {
        match self.outbox.home(output) {
            None => self.discard(frame, DropReason::PortDown, ingress),
            Some(Home::Here { .. }) => {
                if let Err((frame, reason)) = self.outbox.push(output, frame) {
                    self.discard(frame, reason, ingress);
                }
            }
            Some(Home::Worker(worker)) => {
                self.hand(worker, Parcel { frame, port: output, errand: Errand::Transmit });
            }
        }
    }

    /// Takes what other workers left, up to [`PARCELS`]: frames to judge and frames to send.
    pub fn take_parcels(&mut self, now: Nanos) -> usize {
        let mut parcels = std::mem::take(&mut self.parcels);
        self.peers.take(PARCELS, &mut parcels);
        self.touch(&parcels);
        let count = parcels.len();
        for Parcel { frame, port, errand } in parcels.drain(..) {
            if errand != Errand::Transmit {
                self.read(port, frame, Some(errand), now);
                if self.burst.is_full() {
                    self.judge_burst(Origin::Worker, now);
                }
            } else if let Err((frame, reason)) = self.outbox.push(port, frame) {
                self.counters.dropped(reason);
                self.pool.give(frame);
            }
        }
        self.judge_burst(Origin::Worker, now);
        self.parcels = parcels;
        count
    }

    /// Has the frames' bytes at hand, which another processor had last: all waits overlap.
    fn touch(&self, parcels: &[Parcel]) {
        let is_read = |parcel: &&Parcel| parcel.errand != Errand::Transmit;
        let first = |parcel: &Parcel| self.pool.umem().bytes(&parcel.frame).first().copied();
        let touched = parcels.iter().filter(is_read).filter_map(first);
        black_box(touched.fold(0, |all, byte| all ^ byte));
    }

    /// Everything that was judged and taken so far has been sent: other workers may act on it.
    pub fn settle(&mut self) {
        if let Some(claims) = self.pipeline.claims() {
            claims.settle();
            self.peers.acknowledge();
        }
    }

    pub(crate) fn discard(&mut self, frame: Frame, reason: DropReason, ingress: PortId) {
        self.count_drop(reason, ingress);
        self.pool.give(frame);
    }
}

impl Burst {
    pub(crate) fn push(&mut self, frame: Frame, headers: &Headers) {
        *self.next() = *headers;
        self.frames.push(frame);
    }

    /// Where the next frame's headers go: into their place, since they are larger than what it takes to
    /// read them.
    fn next(&mut self) -> &mut Headers {
        let at = self.frames.len();
        if at == self.headers.len() {
            self.headers.push(Headers::of_key(FlowKey::default()));
        }
        &mut self.headers[at]
    }

    fn is_full(&self) -> bool {
        self.frames.len() >= BURST
    }
}
