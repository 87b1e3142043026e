//! A worker's half of the express lane: which of its connections the kernel forwards.
//!
//! After a frame was judged and forwarded, its connection may be one whose plain frames need no more
//! judging: TCP, UDP, pings. Its verdicts go to the kernel: both directions' of TCP with the SYN, good for
//! nothing but the SYN-ACK until that has passed, or with that if [many](giving::MOST_ASKED) are waited for;
//! and of the others those of the directions in which they spoke, with the answer or a few frames. Before
//! a frame is judged, its connection is credited with what the kernel forwarded meanwhile, so that a SYN
//! or RST is judged by where TCP really is. And once a second each connection is credited and looked at,
//! so that it stays alive by traffic that the switch never sees, and its verdicts go when it does, or has
//! ended. What is half open is looked at sooner, so that it does not pass for what nobody completes.
//!
//! docs/adr/0005 says why. What the kernel cannot do stays on the switch lane: connections that live by
//! learn or audit mode, whose frames are recorded one by one; TCP where windows are checked; ports with
//! VLAN tags; routers, behind whom addresses move.
//!
//! Here is what happens beside each frame; [`giving`] has what the kernel is given and when, [`crediting`]
//! what it did since, [`rounds`] what is looked at without a frame, and [`finding`] how a frame leads to its
//! connection.

mod crediting;
mod finding;
mod giving;
mod rounds;

use std::collections::VecDeque;
use std::sync::Arc;

use firedoor_classifier::connections::{ConnectionId, Established, Stage};
use firedoor_classifier::extract::Headers;
use firedoor_classifier::wire::tcp::TcpFlags;
use firedoor_classifier::{FlowKey, Nanos, Pipeline, PortId};

use self::crediting::Counts;
pub(super) use self::finding::{flow_id, turned};
use super::members::member_at;
use super::{FlowId, Kept, Lane, Member, Members, Progress, Slot};
use crate::path::Path;

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

    /// Whether the kernel can forward it as it did, now that its ports, which were those of `before`, are
    /// those of `ports`.
    fn goes_on(&self, before: &[Option<Member>], ports: &[Option<Member>]) -> bool {
        self.sides().into_iter().all(|flow| {
            let (Some(from), Some(to)) =
                (member_at(ports, flow.ingress), member_at(ports, flow.egress))
            else {
                return false;
            };
            let is_same = member_at(before, flow.ingress).is_some_and(|was| from.is_still(was));
            is_same && (flow.slot.is_none() || from.reaches(to))
        })
    }
}

/// Where a frame's connection is among the pairs, if it is: good until one is given to the kernel or
/// taken from it.
#[derive(Clone, Copy)]
pub(crate) struct Place(Option<usize>);

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

    /// Takes note of ports that came and went, or to which frames can no longer be redirected. Their flows
    /// are forgotten: an interface may have become another. All others go on.
    fn refresh(&mut self, pipeline: &mut Pipeline, counts: &Counts<'_>, now: Nanos) {
        let Some(members) = &self.members else { return };
        if members.version() == self.seen {
            return;
        }
        let view = members.view();
        let (_, ports, _) = &view;
        for at in 0..self.pairs.len() {
            if self.pair(at).is_some_and(|pair| !pair.goes_on(&self.ports, ports)) {
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
