//! A worker's half of the express lane: which of its connections the kernel forwards.
//!
//! After a frame was judged and forwarded, its connection may be one whose plain frames need no more
//! judging: TCP, UDP, pings. Its verdicts go to the kernel: both directions' of TCP with the SYN, good for
//! nothing but the SYN-ACK until that has passed, or with that if [many](MOST_ASKED) are waited for;
//! and of the others those of the directions in which they spoke, with the answer or a few frames. Before
//! a frame is judged, its connection is credited with what the kernel forwarded meanwhile, so that a SYN
//! or RST is judged by where TCP really is. And once a second each connection is credited and looked at,
//! so that it stays alive by traffic that the switch never sees, and its verdicts go when it does, or has
//! ended. What is half open is looked at sooner, so that it does not pass for what nobody completes.
//!
//! docs/adr/0005 says why. What the kernel cannot do stays on the switch lane: connections that live by
//! learn or audit mode, whose frames are recorded one by one; TCP where windows are checked; ports with
//! VLAN tags; routers, behind whom addresses move.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use firedoor_classifier::connections::{
    ConnectionId, Credit, Established, Sent, Side, Stage, ports_of_answer,
};
use firedoor_classifier::extract::Headers;
use firedoor_classifier::verdict::Cause;
use firedoor_classifier::wire::protocol;
use firedoor_classifier::wire::tcp::TcpFlags;
use firedoor_classifier::{DropReason, FlowKey, Nanos, Pipeline, PortId};

use super::{FlowId, FlowVerdict, Inherited, Kept, Lane, Member, Members, Progress, Slot};
use crate::counters::WorkerCounters;
use crate::outbox::Outbox;
use crate::path::Path;
use crate::sys::express::Begin;

/// How often each connection is looked at.
const ROUND: Nanos = Nanos::from_secs(1);

/// How soon a connection is looked at that was half open when the kernel got its verdicts, and again
/// while nobody has answered.
const SOON: Nanos = Nanos(20_000_000);

/// Most connections of a port whose SYN-ACKs the kernel waits for. Answers are noticed within [`SOON`], so it
/// is enough for 50,000 connections a second, and a flood of SYNs that nobody answers takes no more of the
/// kernel's table, nor of the worker's time.
const MOST_ASKED: u32 = 1024;

/// Most connections looked at by one call of [`Offload::tick`].
const PER_TICK: usize = 4096;

/// Most connections judged again by one call of [`Offload::renew_some`].
const PER_TURN: usize = 256;

/// How long a flow is held before its count of frames under way is taken to be wrong, because some were
/// lost. Its frames are told from those of before by one of eight marks, so none may be under way for
/// eight times as long.
const HELD_TOO_LONG: Nanos = Nanos(10_000_000);

/// One worker's connections that the kernel forwards.
#[derive(Default)]
pub struct Offload {
    members: Option<Arc<Members>>,
    /// The members as they were in version `seen`.
    ports: Vec<Option<Member>>,
    seen: u64,
    /// No port's frames can be forwarded by the kernel to any.
    is_idle: bool,
    lane: Option<Arc<Lane>>,
    pairs: Vec<Option<Pair>>,
    free: Vec<u32>,
    /// By the slots of the pairs' flows in the kernel's table: one more than the pair's place, or 0 or
    /// that of another if there is none.
    by_slot: Vec<u32>,
    /// Places of pairs that are half open, or were when they began, and when to look at them, if that is
    /// when they are due.
    young: VecDeque<(Nanos, usize)>,
    /// By the port that has asked: how many pairs wait for their SYN-ACKs.
    asked: Vec<u32>,
    /// Some wait since somebody last [asked](Self::take_has_asked).
    has_asked: bool,
    /// The next pair to look at, and when the round began.
    next: usize,
    round: Nanos,
    /// The next pair to judge again, while a new policy is in force under which not all were.
    renewing: Option<usize>,
}

/// A connection whose verdicts the kernel has.
struct Pair {
    id: ConnectionId,
    original: FlowKey,
    epoch: u64,
    /// What the SYN-ACK acknowledges, if the kernel waits for it.
    answer: Option<u32>,
    /// When it is looked at soon.
    due: Nanos,
    original_side: Flow,
    reply_side: Flow,
}

/// One direction of it.
struct Flow {
    id: FlowId,
    ingress: PortId,
    egress: PortId,
    is_reply: bool,
    /// `None` if the switch lane forwards it: as its port's, or because it was not spoken in yet.
    slot: Option<Slot>,
    credited: Progress,
    /// When a frame was first judged after it was installed, or began anew.
    since: Option<Nanos>,
}

impl Pair {
    const fn sides(&self) -> [&Flow; 2] {
        [&self.original_side, &self.reply_side]
    }
}

/// Where a frame's connection is among the pairs, if it is: good until one is given to the kernel or
/// taken from it.
#[derive(Clone, Copy)]
pub(crate) struct Place(Option<usize>);

/// By what, and under which policy, a connection was allowed.
#[derive(Clone, Copy)]
struct Judged {
    cause: Cause,
    epoch: u64,
}

/// Where what was forwarded is counted.
struct Counts<'a> {
    counters: &'a WorkerCounters,
    outbox: &'a Outbox,
}

impl Path {
    /// Takes note of ports that came and went.
    pub(crate) fn refresh_offload(&mut self, now: Nanos) {
        let (offload, pipeline, counts) = self.offloading();
        offload.refresh(pipeline, &counts, now);
    }

    /// Before a frame is judged, which stands at position `at` of the burst: its connection catches up
    /// with what the kernel forwarded. `None` if [`judged`](Self::judged) need not hear of the frame.
    pub(crate) fn catch_up(&mut self, headers: &Headers, at: usize, now: Nanos) -> Option<Place> {
        let concerned = self.offload.concerns(headers);
        concerned.then(|| {
            let (offload, pipeline, counts) = self.offloading();
            offload.before(headers, at, pipeline, &counts, now)
        })
    }

    /// After a frame was judged, which stands at position `at` of the burst: its connection's verdicts
    /// go to the kernel, or leave it.
    pub(crate) fn judged(&mut self, headers: &Headers, at: usize, place: Place, now: Nanos) {
        let (offload, pipeline, counts) = self.offloading();
        let established = pipeline.established_next(headers, at, now);
        offload.after(headers, established, place, pipeline, &counts, now);
    }

    /// Looks at some of the connections that the kernel forwards. Returns whether there are more to
    /// look at soon.
    pub(crate) fn tick_offload(&mut self, now: Nanos) -> bool {
        let (offload, pipeline, counts) = self.offloading();
        offload.tick(pipeline, &counts, now)
    }

    /// A new policy is in force: [`renew_offload`](Self::renew_offload) is to be called until all of the
    /// connections that the kernel forwards were judged again.
    pub(crate) fn begin_renewal(&mut self, now: Nanos) {
        self.refresh_offload(now);
        self.offload.renewing = Some(0);
    }

    /// Judges some of these connections again. Those that policy still allows never leave the kernel;
    /// the others' next frames are misses. Returns whether there are more.
    pub(crate) fn renew_offload(&mut self, now: Nanos) -> bool {
        let (offload, pipeline, counts) = self.offloading();
        offload.renew_some(pipeline, &counts, now)
    }

    fn offloading(&mut self) -> (&mut Offload, &mut Pipeline, Counts<'_>) {
        let Self { offload, pipeline, counters, outbox, .. } = self;
        (offload, pipeline, Counts { counters, outbox })
    }
}

impl Offload {
    /// Nothing yet, of the ports that are in `members`.
    pub fn new(members: Arc<Members>) -> Self {
        Self { members: Some(members), ..Self::default() }
    }

    /// Whether since the last call the kernel was given verdicts of connections whose SYN-ACKs it waits for.
    pub(crate) fn take_has_asked(&mut self) -> bool {
        std::mem::take(&mut self.has_asked)
    }

    /// Whether it has anything to do with a frame.
    fn concerns(&self, headers: &Headers) -> bool {
        self.lane.is_some()
            && !self.is_idle
            && (is_ending(headers)
                || self.member(headers.key.ingress).is_some_and(|member| member.hook.is_some()))
    }

    /// Takes note of ports that came and went. Their flows are forgotten: an interface may have
    /// become another.
    fn refresh(&mut self, pipeline: &mut Pipeline, counts: &Counts<'_>, now: Nanos) {
        let Some(members) = &self.members else { return };
        if members.version() == self.seen {
            return;
        }
        let view = members.view();
        let (_, ports, _) = &view;
        for at in 0..self.pairs.len() {
            let Some(Pair { original_side, .. }) = self.pair(at) else { continue };
            let ends = [original_side.ingress, original_side.egress];
            let is_same = |end: PortId| {
                self.member(end) == ports.get(usize::from(end.0)).and_then(Option::as_ref)
            };
            if !ends.into_iter().all(is_same) {
                self.end(at, pipeline, counts, now);
            }
        }
        (self.seen, self.ports, self.lane) = view;
        let members = || self.ports.iter().flatten();
        self.is_idle = !members().any(|from| members().any(|to| from.reaches(to)));
    }

    /// Before a frame is judged: its connection catches up.
    fn before(
        &mut self,
        headers: &Headers,
        number: usize,
        pipeline: &mut Pipeline,
        counts: &Counts<'_>,
        now: Nanos,
    ) -> Place {
        let found = self.find(headers).or_else(|| {
            // Of the other direction alone the kernel may have forwarded what this one is judged by.
            let established =
                is_ending(headers).then(|| pipeline.established_next(headers, number, now));
            self.find_by_other(headers, &established.flatten()?)
        });
        if let Some(at) = found {
            self.credit(at, pipeline, counts, now);
        }
        Place(found)
    }

    /// After a frame was judged: its connection's verdicts go to the kernel, or leave it.
    fn after(
        &mut self,
        headers: &Headers,
        established: Option<Established>,
        Place(found): Place,
        pipeline: &mut Pipeline,
        counts: &Counts<'_>,
        now: Nanos,
    ) {
        let Some(established) = established else {
            if let Some(at) = found {
                self.end(at, pipeline, counts, now);
            }
            return;
        };
        let is_new =
            established.stage == Stage::Asked && established.frames == [1, 0] && is_asking(headers);
        if let Some(at) = found.or_else(|| self.find_by_other(headers, &established)) {
            let same = |pair: &Pair| {
                pair.id == established.id
                    && pair.original == established.original
                    && pair.reply_side.ingress == established.output
            };
            if is_new {
                self.disown(at);
            } else if self.pair(at).is_some_and(same) && self.renew(at, &established, pipeline) {
                return self.go_on(headers, &established, at, pipeline, now);
            }
            self.end(at, pipeline, counts, now);
        }
        let is_due = match established.stage {
            Stage::Asked => is_new && self.may_ask(headers.key.ingress),
            Stage::Closing => false,
            _ => !Kept::is_short(established.original.protocol, established.frames),
        };
        if is_due {
            self.begin(&established, pipeline, now);
        }
    }

    /// A pair's connection has ended, and its handle may be another's.
    fn disown(&mut self, at: usize) {
        if let Some(Some(pair)) = self.pairs.get_mut(at) {
            pair.id = ConnectionId::NONE;
        }
    }

    /// Whether the kernel may wait for one more SYN-ACK to this port.
    fn may_ask(&self, port: PortId) -> bool {
        self.asked.get(usize::from(port.0)).is_none_or(|&asked| asked < MOST_ASKED)
    }

    /// Looks at some connections, if the round is due. Returns whether there are more to look at
    /// soon.
    fn tick(&mut self, pipeline: &mut Pipeline, counts: &Counts<'_>, now: Nanos) -> bool {
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
    fn look_soon(&mut self, at: usize, now: Nanos) {
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

    fn renew_some(&mut self, pipeline: &mut Pipeline, counts: &Counts<'_>, now: Nanos) -> bool {
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

    /// Says that a pair's verdicts are those of the policy in force. Returns false if it keeps their
    /// connection from the kernel.
    fn renew(&mut self, at: usize, established: &Established, pipeline: &Pipeline) -> bool {
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

    /// The port of an interface.
    pub(super) fn port_of(&self, ifindex: u32) -> Option<PortId> {
        let is_it = |port: &Option<Member>| port.is_some_and(|member| member.ifindex == ifindex);
        self.ports.iter().position(is_it).and_then(|at| u16::try_from(at).ok()).map(PortId)
    }

    /// Whether a flow is of one of the pairs.
    pub(super) fn has(&self, flow: &FlowId) -> bool {
        self.pair_of(flow).is_some()
    }

    /// Takes a flow from the kernel that is of none of the pairs.
    pub(super) fn forget(&self, flow: &Inherited) {
        if let Some(lane) = &self.lane {
            lane.flows().remove(&flow.id, flow.slot);
        }
    }

    /// The pair that a frame is of.
    fn find(&self, headers: &Headers) -> Option<usize> {
        let member = self.member(headers.key.ingress)?;
        self.pair_of(&flow_id(&headers.key, member))
    }

    /// The pair of a frame's connection, by the direction that the frame is not of.
    fn find_by_other(&self, headers: &Headers, established: &Established) -> Option<usize> {
        let original = established.original;
        let other = if headers.key.ingress == original.ingress {
            turned(&original, established.output)
        } else {
            original
        };
        self.pair_of(&flow_id(&other, self.member(other.ingress)?))
    }

    /// The pair that a flow in the kernel's table is of.
    fn pair_of(&self, id: &FlowId) -> Option<usize> {
        let slot = self.lane.as_ref()?.flows().find(id)?;
        let at = self.by_slot.get(slot.number())?.checked_sub(1)? as usize;
        let is_it = |flow: &Flow| flow.slot == Some(slot) && flow.id == *id;
        self.pair(at)?.sides().into_iter().any(is_it).then_some(at)
    }

    /// Notes which slots the flows of a pair are in.
    fn note_slots(&mut self, at: usize) {
        let Some(Some(pair)) = self.pairs.get(at) else { return };
        for slot in pair.sides().into_iter().filter_map(|flow| flow.slot) {
            if self.by_slot.len() <= slot.number() {
                self.by_slot.resize(slot.number() + 1, 0);
            }
            self.by_slot[slot.number()] = at as u32 + 1;
        }
    }

    fn member(&self, port: PortId) -> Option<&Member> {
        self.ports.get(usize::from(port.0))?.as_ref()
    }

    fn pair(&self, at: usize) -> Option<&Pair> {
        self.pairs.get(at)?.as_ref()
    }

    /// Gives the kernel a connection's verdicts, as far as it can apply them.
    pub(super) fn begin(&mut self, established: &Established, pipeline: &Pipeline, now: Nanos) {
        let original = established.original;
        let (from, to) = (original.ingress, established.output);
        if Kept::of(pipeline.policy(), &original, to).is_some() {
            return;
        }
        let (Some(original_side), Some(reply_side)) =
            (self.flow(&original, to, false), self.flow(&turned(&original, to), from, true))
        else {
            return;
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
            return;
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
    fn stop_waiting(&mut self, at: usize) -> Option<u32> {
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
    fn go_on(
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

    /// Counts what the kernel forwarded of a connection since the last time.
    fn credit(&mut self, at: usize, pipeline: &mut Pipeline, counts: &Counts<'_>, now: Nanos) {
        self.credit_answer(at, pipeline, now);
        let (Some(lane), Some(Some(pair))) = (&self.lane, self.pairs.get_mut(at)) else { return };
        let is_tcp = pair.original.protocol == protocol::TCP;
        let sides =
            [(Side::Original, &mut pair.original_side), (Side::Reply, &mut pair.reply_side)];
        for (side, flow) in sides {
            let Some(slot) = flow.slot else { continue };
            let progress = lane.flows().progress(slot);
            let drained = progress.drained.wrapping_sub(flow.credited.drained);
            if drained > 0 {
                flow.credited.drained = progress.drained;
                counts.add_drained(flow, drained.into());
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
            counts.add(flow, frames, bytes);
        }
    }

    /// A connection hears of the SYN-ACK that the kernel waited for, if that has passed: before it does of
    /// anything else, which came later.
    fn credit_answer(&mut self, at: usize, pipeline: &mut Pipeline, now: Nanos) {
        let (Some(lane), Some(pair)) = (&self.lane, self.pair(at)) else { return };
        let (Some(_), Some(slot)) = (pair.answer, pair.reply_side.slot) else { return };
        let Progress { frames, begun: next, window, .. } = lane.flows().progress(slot);
        if frames == 0 {
            return;
        }
        let (id, original) = (pair.id, pair.original);
        let tcp = self.stop_waiting(at).map(|ack| Sent { next, ack, window, has_ended: false });
        let credit = Credit { frames: 0, bytes: 0, tcp };
        pipeline.credit(id, &original, Side::Reply, &credit, now);
    }

    /// Takes a connection's verdicts from the kernel, and counts what they did.
    fn end(&mut self, at: usize, pipeline: &mut Pipeline, counts: &Counts<'_>, now: Nanos) {
        self.credit(at, pipeline, counts, now);
        self.stop_waiting(at);
        let Some(pair) = self.pairs.get_mut(at).and_then(Option::take) else { return };
        self.free.push(at as u32);
        self.remove(&pair.original_side);
        self.remove(&pair.reply_side);
    }

    fn remove(&self, flow: &Flow) {
        if let (Some(lane), Some(slot)) = (&self.lane, flow.slot) {
            lane.flows().remove(&flow.id, slot);
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

/// Whether a frame asks for a connection.
fn is_asking(headers: &Headers) -> bool {
    let flags = TcpFlags::from_bits_retain(headers.key.tcp_flags);
    flags.contains(TcpFlags::SYN)
}

/// Whether a frame ends its connection, or its side of it.
fn is_ending(headers: &Headers) -> bool {
    let flags = TcpFlags::from_bits_retain(headers.key.tcp_flags);
    flags.intersects(TcpFlags::FIN | TcpFlags::RST)
}

/// Whether a direction's verdict, of the key of its frames, is for the kernel by now: but for TCP, not
/// before it was spoken in.
fn is_due(key: &FlowKey, established: &Established) -> bool {
    let [_, back] = established.frames;
    key.protocol == protocol::TCP || back > 0 || key.ingress == established.original.ingress
}

/// The key of the answers to that one, which come in at `ingress`.
pub(crate) fn turned(key: &FlowKey, ingress: PortId) -> FlowKey {
    let [src_port, dst_port] = ports_of_answer(key.protocol, [key.src_port, key.dst_port]);
    FlowKey {
        ingress,
        eth_src: key.eth_dst,
        eth_dst: key.eth_src,
        src: key.dst,
        dst: key.src,
        src_port,
        dst_port,
        ..*key
    }
}

/// The flow of a key, as the program would name it.
pub(super) fn flow_id(key: &FlowKey, member: &Member) -> FlowId {
    FlowId {
        ingress: member.ifindex,
        src: key.src.to_be_bytes(),
        dst: key.dst.to_be_bytes(),
        src_port: key.src_port.to_be_bytes(),
        dst_port: key.dst_port.to_be_bytes(),
        protocol: key.protocol.into(),
    }
}
