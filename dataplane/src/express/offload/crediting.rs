//! Counting for a connection and its ports what the kernel forwarded, up to when its verdicts are taken
//! from the kernel: so no frame is counted twice, and none is missed.

use firedoor_classifier::connections::{Credit, Sent, Side};
use firedoor_classifier::wire::protocol;
use firedoor_classifier::{DropReason, Nanos, Pipeline};

use super::{Flow, Offload};
use crate::counters::WorkerCounters;
use crate::express::{Inherited, Progress};
use crate::outbox::Outbox;

/// Where what was forwarded is counted.
pub(super) struct Counts<'a> {
    pub(super) counters: &'a WorkerCounters,
    pub(super) outbox: &'a Outbox,
}

impl Offload {
    /// Counts what the kernel forwarded of a connection since the last time.
    pub(super) fn credit(
        &mut self,
        at: usize,
        pipeline: &mut Pipeline,
        counts: &Counts<'_>,
        now: Nanos,
    ) {
        self.credit_answer(at, pipeline, now);
        self.credit_sides(at, pipeline, Some(counts), now);
    }

    /// A connection that was taken over hears of all that the kernel has forwarded of it, for the
    /// predecessor. The ports do not: their counts begin at zero with the process, and whoever adds up
    /// what one process after the other says has those frames from the predecessor.
    pub(in crate::express) fn credit_earlier(
        &mut self,
        at: usize,
        pipeline: &mut Pipeline,
        now: Nanos,
    ) {
        self.credit_sides(at, pipeline, None, now);
    }

    /// Without `counts`, for the connection only.
    fn credit_sides(
        &mut self,
        at: usize,
        pipeline: &mut Pipeline,
        counts: Option<&Counts<'_>>,
        now: Nanos,
    ) {
        let (Some(lane), Some(Some(pair))) = (&self.lane, self.pairs.get_mut(at)) else { return };
        let is_tcp = pair.original.protocol == protocol::TCP;
        let sides =
            [(Side::Original, &mut pair.original_side), (Side::Reply, &mut pair.reply_side)];
        for (side, flow) in sides {
            let Some(slot) = flow.slot else { continue };
            let Some(progress) = lane.flows().progress(slot) else { continue };
            let drained = progress.drained.wrapping_sub(flow.credited.drained);
            if drained > 0 {
                flow.credited.drained = progress.drained;
                if let Some(counts) = counts {
                    counts.add_drained(flow, drained.into());
                }
            }
            let frames = u64::from(progress.frames.wrapping_sub(flow.credited.frames));
            if frames == 0 {
                continue;
            }
            let bytes = progress.bytes.saturating_sub(flow.credited.bytes);
            flow.credited = progress;
            let Progress { seq: next, ack, window, has_ended, .. } = progress;
            let tcp = is_tcp.then_some(Sent { next, ack, window, has_ended });
            pipeline.credit(pair.id, &pair.original, side, &Credit { frames, bytes, tcp }, now);
            if let Some(counts) = counts {
                counts.add(flow, frames, bytes);
            }
        }
    }

    /// A connection hears of the SYN-ACK that the kernel waited for, if that has passed: before it does of
    /// anything else, which came later.
    fn credit_answer(&mut self, at: usize, pipeline: &mut Pipeline, now: Nanos) {
        let (Some(lane), Some(pair)) = (&self.lane, self.pair(at)) else { return };
        let (Some(_), Some(slot)) = (pair.answer, pair.reply_side.slot) else { return };
        let progress = lane.flows().progress(slot).filter(|progress| progress.frames > 0);
        let Some(Progress { begun: next, window, .. }) = progress else { return };
        let (id, original) = (pair.id, pair.original);
        let tcp = self.stop_waiting(at).map(|ack| Sent { next, ack, window, has_ended: false });
        let credit = Credit { frames: 0, bytes: 0, tcp };
        pipeline.credit(id, &original, Side::Reply, &credit, now);
    }

    /// Takes a connection's verdicts from the kernel, and counts what they did.
    pub(super) fn end(
        &mut self,
        at: usize,
        pipeline: &mut Pipeline,
        counts: &Counts<'_>,
        now: Nanos,
    ) {
        self.credit(at, pipeline, counts, now);
        self.stop_waiting(at);
        let Some(pair) = self.pairs.get_mut(at).and_then(Option::take) else { return };
        self.free.push(at as u32);
        self.remove(&pair.original_side);
        self.remove(&pair.reply_side);
    }

    pub(super) fn remove(&self, flow: &Flow) {
        if let (Some(lane), Some(slot)) = (&self.lane, flow.slot) {
            lane.flows().remove(&flow.id, slot);
        }
    }

    /// Takes a flow from the kernel that is of none of the pairs.
    pub(in crate::express) fn forget(&self, flow: &Inherited) {
        if let Some(lane) = &self.lane {
            lane.flows().remove(&flow.id, flow.slot);
        }
    }
}

impl Counts<'_> {
    /// Counts frames that the kernel dropped to empty the long way.
    fn add_drained(&self, flow: &Flow, frames: u64) {
        self.counters.received_by_kernel.add(frames);
        self.counters.dropped_many(DropReason::LaneChange, frames);
        if let Some(cells) = self.outbox.cells(flow.ingress) {
            cells.rx_frames.add(frames);
            cells.drops.add(frames);
        }
    }

    /// Counts frames as received and sent, whoever did it.
    fn add(&self, flow: &Flow, frames: u64, bytes: u64) {
        self.counters.received_by_kernel.add(frames);
        self.counters.sent.add(frames);
        if let Some(cells) = self.outbox.cells(flow.ingress) {
            cells.rx_frames.add(frames);
            cells.rx_bytes.add(bytes);
        }
        if let Some(cells) = self.outbox.cells(flow.egress) {
            cells.tx_frames.add(frames);
            cells.tx_bytes.add(bytes);
        }
    }
}
