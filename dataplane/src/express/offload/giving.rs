//! What the kernel is given of a connection, and when: both directions' verdicts while its SYN-ACK is
//! waited for, or each direction's once it was spoken in; and its policy's epoch, when that is newer.

use firedoor_classifier::connections::{Established, Stage};
use firedoor_classifier::extract::Headers;
use firedoor_classifier::verdict::Cause;
use firedoor_classifier::wire::protocol;
use firedoor_classifier::{FlowKey, Nanos, Pipeline, PortId};

use super::finding::{flow_id, turned};
use super::{Flow, Offload, Pair};
use crate::express::{FlowVerdict, Kept, Progress};
use crate::sys::express::Begin;

/// Most connections of a port whose SYN-ACKs the kernel waits for. Answers are noticed within [`SOON`], so it
/// is enough for 50,000 connections a second, and a flood of SYNs that nobody answers takes no more of the
/// kernel's table, nor of the worker's time.
pub(super) const MOST_ASKED: u32 = 1024;

/// How long a flow is held before its count of frames under way is taken to be wrong, because some were
/// lost. Its frames are told from those of before by one of eight marks, so none may be under way for
/// eight times as long.
const HELD_TOO_LONG: Nanos = Nanos(10_000_000);

/// By what, and under which policy, a connection was allowed.
#[derive(Clone, Copy)]
struct Judged {
    cause: Cause,
    epoch: u64,
}

impl Offload {
    /// Whether the kernel may wait for one more SYN-ACK to this port.
    pub(super) fn may_ask(&self, port: PortId) -> bool {
        self.asked.get(usize::from(port.0)).is_none_or(|&asked| asked < MOST_ASKED)
    }

    /// Gives the kernel a connection's verdicts, as far as it can apply them. Returns where it is among the pairs,
    /// if the kernel has any of them now.
    pub(in crate::express) fn begin(
        &mut self,
        established: &Established,
        pipeline: &Pipeline,
        now: Nanos,
    ) -> Option<usize> {
        let original = established.original;
        let (from, to) = (original.ingress, established.output);
        if Kept::of(pipeline.policy(), &original, to).is_some() {
            return None;
        }
        let (Some(original_side), Some(reply_side)) =
            (self.flow(&original, to, false), self.flow(&turned(&original, to), from, true))
        else {
            return None;
        };
        let epoch = pipeline.policy().epoch();
        let id = established.id;
        let (answer, due) = (None, Nanos(0));
        let mut pair = Pair { id, original, epoch, answer, due, original_side, reply_side };
        let is_installed = match established.stage {
            Stage::Asked => self.ask(&mut pair, established),
            _ => self.give(&mut pair, established),
        };
        if !is_installed {
            return None;
        }
        let at = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() as u32 - 1
        });
        let at = at as usize;
        if let Some(place) = self.pairs.get_mut(at) {
            *place = Some(pair);
            self.note_slots(at);
        }
        if matches!(established.stage, Stage::Asked | Stage::Opening) {
            self.look_soon(at, now);
        }
        Some(at)
    }

    /// Gives the kernel the verdicts of a connection that was asked for. Both, or what has begun the one would
    /// be unknown to the other. Returns whether it has them now.
    fn ask(&mut self, pair: &mut Pair, established: &Established) -> bool {
        let Pair { original, original_side, reply_side, .. } = pair;
        let judged = Judged { cause: established.cause, epoch: pair.epoch };
        if !self.install(original_side, original, judged, Begin::Asked) {
            return false;
        }
        let asked = original_side.slot.unwrap_or_default();
        let begin = Begin::Answer { ack: established.answer, other: asked.number() as u32 };
        if !self.install(reply_side, &turned(original, established.output), judged, begin) {
            self.remove(original_side);
            return false;
        }
        pair.answer = Some(established.answer);
        self.has_asked = true;
        self.asked.resize(self.asked.len().max(usize::from(original.ingress.0) + 1), 0);
        self.asked[usize::from(original.ingress.0)] += 1;
        true
    }

    /// Gives the kernel the verdicts of those directions of a connection that are due. Returns whether it
    /// has any now.
    fn give(&self, pair: &mut Pair, established: &Established) -> bool {
        let Pair { original, original_side, reply_side, .. } = pair;
        let judged = Judged { cause: established.cause, epoch: pair.epoch };
        let [there, back] = beginnings(established);
        let turned = turned(original, established.output);
        let mut is_installed = self.install(original_side, original, judged, there);
        if is_due(&turned, established) {
            is_installed |= self.install(reply_side, &turned, judged, back);
        }
        is_installed
    }

    /// The kernel does not wait for a pair's SYN-ACK any longer, if it did. Returns what that acknowledges.
    pub(super) fn stop_waiting(&mut self, at: usize) -> Option<u32> {
        let pair = self.pairs.get_mut(at)?.as_mut()?;
        let answer = pair.answer.take()?;
        if let Some(asked) = self.asked.get_mut(usize::from(pair.original.ingress.0)) {
            *asked -= 1;
        }
        Some(answer)
    }

    /// A frame of a connection that the kernel forwards took the long way. Its direction's verdict goes
    /// to the kernel too, if it is due; or begins anew, if it is held for long: then some frames were
    /// lost on the way here.
    pub(super) fn go_on(
        &mut self,
        headers: &Headers,
        established: &Established,
        at: usize,
        pipeline: &Pipeline,
        now: Nanos,
    ) {
        if established.stage == Stage::Asked {
            return;
        }
        if self.stop_waiting(at).is_some() {
            return self.open(at, established);
        }
        let Some(mut pair) = self.pairs.get_mut(at).and_then(Option::take) else { return };
        let (flow, key) = if headers.key.ingress == pair.original_side.ingress {
            (&mut pair.original_side, established.original)
        } else {
            (&mut pair.reply_side, turned(&established.original, established.output))
        };
        match (&self.lane, flow.slot) {
            (_, None) if is_due(&key, established) && established.stage != Stage::Closing => {
                let judged = Judged { cause: established.cause, epoch: pipeline.policy().epoch() };
                self.install(flow, &key, judged, Begin::Held);
            }
            (Some(lane), Some(slot)) => {
                // Not since it began: of a burst that was under way then, no frame was counted, and
                // the next one, which is, must not make it begin again.
                let since = *flow.since.get_or_insert(now);
                if now.since(since) > HELD_TOO_LONG.0 && lane.flows().is_held(slot) {
                    lane.flows().restart(slot);
                    flow.since = None;
                }
            }
            _ => {}
        }
        if let Some(place) = self.pairs.get_mut(at) {
            *place = Some(pair);
            self.note_slots(at);
        }
    }

    /// The SYN-ACK has taken the long way, after all.
    fn open(&self, at: usize, established: &Established) {
        let (Some(lane), Some(pair)) = (&self.lane, self.pair(at)) else { return };
        for (flow, begin) in pair.sides().into_iter().zip(beginnings(established)) {
            if let Some(slot) = flow.slot {
                lane.flows().answered(slot, begin);
            }
        }
    }

    /// Says that a pair's verdicts are those of the policy in force. Returns false if it keeps their
    /// connection from the kernel.
    pub(super) fn renew(
        &mut self,
        at: usize,
        established: &Established,
        pipeline: &Pipeline,
    ) -> bool {
        let Some(Some(pair)) = self.pairs.get_mut(at) else { return false };
        let policy = pipeline.policy();
        if pair.epoch == policy.epoch() {
            return true;
        }
        if Kept::of(policy, &established.original, established.output).is_some() {
            return false;
        }
        pair.epoch = policy.epoch();
        if let Some(lane) = &self.lane {
            let slots = [pair.original_side.slot, pair.reply_side.slot].into_iter().flatten();
            let rule = rule_number(established.cause);
            slots.for_each(|slot| lane.flows().renew(slot, rule, pair.epoch));
        }
        true
    }

    /// One direction of a connection, of which the kernel knows nothing yet. `None` if one of its ports
    /// is none that the express lane reaches.
    fn flow(&self, key: &FlowKey, egress: PortId, is_reply: bool) -> Option<Flow> {
        let id = flow_id(key, self.member(key.ingress)?);
        self.member(egress)?;
        let (slot, credited, since) = (None, Progress::default(), None);
        Some(Flow { id, ingress: key.ingress, egress, is_reply, slot, credited, since })
    }

    /// Gives the kernel one direction's verdict. Returns whether it has it now: not if no program looks
    /// up what comes in there or could send it on, or if the table is full.
    fn install(&self, flow: &mut Flow, key: &FlowKey, judged: Judged, begin: Begin) -> bool {
        let (Some(from), Some(to)) = (self.member(flow.ingress), self.member(flow.egress)) else {
            return false;
        };
        let Some(lane) = self.lane.as_ref().filter(|_| from.reaches(to)) else { return false };
        let verdict = FlowVerdict {
            eth_dst: key.eth_dst.0,
            eth_src: key.eth_src.0,
            egress: to.egress,
            max_frame: to.max_frame,
            rule: rule_number(judged.cause),
            epoch: judged.epoch,
            is_reply: flow.is_reply,
            tcp_flags: key.tcp_flags,
        };
        flow.slot = lane.flows().put(&flow.id, &verdict, begin).ok();
        flow.since = None;
        flow.slot.is_some()
    }
}

/// What the kernel's entry says of the rule.
fn rule_number(cause: Cause) -> u32 {
    match cause {
        Cause::Rule(rule) => rule.0,
        Cause::Default | Cause::Switch => u32::MAX,
    }
}

/// What becomes of the first frames of a connection's directions, once it is answered. Who asked has sent
/// nothing but SYNs before it hears of the first answer, which has not left yet. Who answered waits
/// for the handshake's end, unless it took data of the SYN.
fn beginnings(established: &Established) -> [Begin; 2] {
    let is_fresh = established.stage == Stage::Opening && established.frames[1] == 1;
    [is_fresh, is_fresh && !established.is_early]
        .map(|is_fresh| if is_fresh { Begin::AtOnce } else { Begin::Held })
}

/// Whether a direction's verdict, of the key of its frames, is for the kernel by now: but for TCP, not
/// before it was spoken in.
fn is_due(key: &FlowKey, established: &Established) -> bool {
    let [_, back] = established.frames;
    key.protocol == protocol::TCP || back > 0 || key.ingress == established.original.ingress
}
