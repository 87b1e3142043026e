//! One worker's deciding half: connections, flow cache, MAC table and policy in a straight line.
//!
//! [`Pipeline::judge`] is that line. Policy always comes first: a frame that the ACL refuses is
//! refused for that, whatever its connection state would have said. TCP flags are looked at after
//! the policy's verdict, so no cached verdict depends on them.

use std::sync::Arc;

use crate::acl::Memo;
use crate::cache::{self, Cacheable, FlowCache, FlowHint, FlowHints, FlowInfo};
use crate::classify::{
    Classified, Context, Related, classify, is_conversation, may_learn, vlan_of,
};
use crate::connections::{
    self, Bucket, Claims, Commit, ConnectionId, ConnectionInfo, Connections, Credit, Established,
    Hint, Hints, Hit, Lookup, Side, Stage,
};
use crate::extract::{Embedded, Headers, Kind};
use crate::fdb::Fdb;
use crate::key::FlowKey;
use crate::policy::Policy;
use crate::pressure::Pressure;
use crate::snapshot::{Mode, PortId};
use crate::time::Nanos;
use crate::verdict::{Action, Cause, DropGroup, DropReason, Verdict};
use crate::wire::protocol;

/// Frames that are judged together, at most, without an allocation.
pub const BURST: usize = connections::BATCH;
/// Connections and MAC addresses looked at for expiry, per [`Pipeline::tick`].
const TICK_LIMIT: usize = 256;

/// Judges frames, one after the other, for one worker.
pub struct Pipeline {
    policy: Arc<Policy>,
    connections: Connections,
    cache: FlowCache,
    fdb: Fdb,
    memo: Memo,
    pressure: Pressure,
    /// Why frames of the burst that is being judged may not be admitted, by their position.
    refusals: Vec<Option<DropReason>>,
    /// Where the burst's connections are.
    hints: Hints,
    /// Where the cached flows are of those that have none.
    flow_hints: FlowHints,
    /// Where the last flood goes.
    receivers: Vec<PortId>,
    /// Hits and upcalls; the tables count the rest themselves.
    stats: PipelineStats,
}

/// Running totals of a pipeline, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipelineStats {
    /// Verdicts by connections.
    pub connection_hits: u64,
    /// Verdicts by the flow cache.
    pub cache_hits: u64,
    /// Verdicts by upcall.
    pub upcalls: u64,
    /// Connections begun.
    pub connections_created: u64,
    /// Connections that ended or timed out.
    pub connections_ended: u64,
    /// Learned MAC addresses that moved to another port.
    pub mac_moves: u64,
}

impl Pipeline {
    /// A pipeline with empty tables, as large as the policy's settings say.
    pub fn new(policy: Arc<Policy>) -> Self {
        let settings = policy.settings();
        Self {
            connections: Connections::new(settings.connection_limits()),
            cache: FlowCache::new(settings.max_flows),
            fdb: Fdb::new(settings.mac_ageing_secs),
            memo: Memo::default(),
            pressure: Pressure::new(&policy),
            refusals: Vec::with_capacity(BURST),
            hints: Hints::new(),
            flow_hints: FlowHints::new(),
            receivers: Vec::with_capacity(policy.snapshot().workloads.len()),
            stats: PipelineStats::default(),
            policy,
        }
    }

    /// Shares connections with other workers' pipelines; see [`Connections::share`].
    pub fn share(&mut self, claims: Claims) {
        self.connections.share(claims);
    }

    /// Which pipeline judges which frame; `None` if this is the only one.
    pub const fn claims(&mut self) -> Option<&mut Claims> {
        self.connections.claims()
    }

    /// Takes now what memory connections may need; see [`Connections::set_aside`].
    pub fn set_aside(&mut self) {
        self.connections.set_aside();
    }

    /// Puts another policy in force, of a higher epoch. Every cached verdict is stale from here on.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
        let (old, new) = (self.policy.settings(), policy.settings());
        if old.max_flows != new.max_flows {
            self.cache = FlowCache::new(new.max_flows);
        }
        self.connections.configure(new.connection_limits());
        self.fdb.set_ageing(new.mac_ageing_secs);
        self.fdb.retain(|vlan, mac, port| {
            may_learn(&policy, port, mac) && policy.vlan(vlan).is_some_and(|vlan| vlan.has(port))
        });
        self.memo.clear();
        self.pressure.configure(&policy);
        self.policy = policy;
    }

    /// The policy in force.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Judges one frame of `bytes` bytes and, if it is forwarded, commits its connection.
    ///
    /// This is steps 3 to 5 of the path of a frame, and the state half of step 6.
    pub fn judge(&mut self, headers: &Headers, bytes: usize, now: Nanos) -> Verdict {
        let mut burst = [*headers];
        self.prepare(&mut burst, |_| ());
        let [admitted] = &burst;
        self.judge_next(admitted, 0, bytes, now)
    }

    /// Makes ready to judge a burst of frames, in their order, by [`Pipeline::judge_next`]: in each,
    /// [`FlowKey::vlan`] becomes the VLAN that the frame belongs to.
    ///
    /// Nothing is decided here but whether a frame may be admitted, so it does not matter what the
    /// first frames of a burst change for the later ones.
    ///
    /// `fetch` has the processor get the cache line of a pointer, and waits for nothing.
    pub fn prepare(&mut self, burst: &mut [Headers], fetch: impl Fn(*const ()) + Copy) {
        self.find_connections(burst, fetch);
        (0..burst.len()).for_each(|at| self.prepare_to_pass(at, fetch));
        self.find_flows(burst, |_| true);
    }

    /// The first half of [`Pipeline::prepare`].
    pub fn find_connections(&mut self, burst: &mut [Headers], fetch: impl Fn(*const ())) {
        self.refusals.clear();
        for headers in burst.iter_mut() {
            let vlan = vlan_of(&self.policy, headers);
            self.refusals.push(vlan.err());
            headers.key.vlan = vlan.unwrap_or(headers.key.vlan);
        }
        self.connections.prepare(burst, &mut self.hints, fetch);
    }

    /// Asks for what is changed when the frame at position `at` of the burst passes, if it does; a few
    /// frames ahead of it, so that it is neither waited for nor gone again.
    #[inline]
    pub fn prepare_to_pass(&self, at: usize, fetch: impl Fn(*const ())) {
        self.connections.prepare_to_observe(&self.hints, at, fetch);
    }

    /// The bucket of the frame at position `at` of the burst, if another worker may be the one that judges
    /// it; see [`Claims::owner_of`].
    #[inline]
    pub fn bucket_of(
        &self,
        headers: &Headers,
        at: usize,
        fetch: impl Fn(*const ()),
    ) -> Option<Bucket> {
        self.connections.bucket_of(headers, &self.hints, at, fetch)
    }

    /// The second half of [`Pipeline::prepare`]: for those frames of the burst, by their position, that
    /// are to be judged here.
    pub fn find_flows(&mut self, burst: &[Headers], is_judged_here: impl Fn(usize) -> bool) {
        let hints = &self.hints;
        let is_known = |at| hints.get(at).is_some_and(Hint::is_found);
        if (0..burst.len()).all(is_known) {
            return self.flow_hints.clear();
        }
        let unknown = |(at, headers)| {
            (!is_known(at) && is_conversation(headers) && is_judged_here(at))
                .then_some(&headers.key)
        };
        self.cache.prepare(burst.iter().enumerate().map(unknown), &mut self.flow_hints);
    }

    /// Judges the frame at position `at` of the [prepared](Pipeline::prepare) burst, as
    /// [`Pipeline::judge`] does.
    pub fn judge_next(
        &mut self,
        headers: &Headers,
        at: usize,
        bytes: usize,
        now: Nanos,
    ) -> Verdict {
        self.receivers.clear();
        if let Some(reason) = self.refusals.get(at).copied().flatten() {
            return Verdict::drop(reason);
        }
        self.learn(&headers.key, now);
        if is_conversation(headers) {
            return self.judge_conversation(&Arrival { headers, at, bytes, now });
        }
        if !self.pressure.take_upcall(&headers.key, now) {
            return Verdict::drop(DropReason::UpcallLimit);
        }
        let related = match headers.kind {
            Kind::IcmpError(embedded) => self.related(&embedded, headers.key.vlan, now),
            _ => None,
        };
        self.upcall(headers, related, now).verdict
    }

    /// The ports that the last [`Action::Flood`] verdict reaches.
    pub fn receivers(&self) -> &[PortId] {
        &self.receivers
    }

    /// Work that is due by time alone: expiry and ageing, a bounded amount per call.
    pub fn tick(&mut self, now: Nanos) {
        self.connections.expire(now, TICK_LIMIT);
        self.fdb.expire(now, TICK_LIMIT);
    }

    /// The connection of the frame at position `at` of the [prepared](Pipeline::prepare) burst, if its
    /// like need no more judging under the policy in force; see [`Connections::established`].
    pub fn established_next(
        &self,
        headers: &Headers,
        at: usize,
        now: Nanos,
    ) -> Option<Established> {
        let epoch = self.policy.epoch();
        match self.hints.get(at) {
            Some(hint) => self.connections.established_hinted(headers, hint, epoch, now),
            None => self.connections.established(headers, epoch, now),
        }
    }

    /// Whether a connection that was [`Established`] is so still, and neither about to end nor silent for too
    /// long.
    pub fn is_established(&self, id: ConnectionId, original: &FlowKey, now: Nanos) -> bool {
        let established = self.connections.still_established(id, original);
        established.is_some_and(|established| established.stage != Stage::Closing)
            && !self.connections.has_timed_out(id, now)
    }

    /// Judges a connection that was [`Established`] again, by the policy in force, as its next frame would
    /// be: for connections whose frames do not pass here. `None` if policy refuses it, if its like need
    /// judging frame by frame now, or if it would go elsewhere; its next frame says which.
    pub fn renew(
        &mut self,
        id: ConnectionId,
        original: &FlowKey,
        now: Nanos,
    ) -> Option<Established> {
        let established = self.connections.still_established(id, original)?;
        self.receivers.clear();
        let verdict = self.judge_again(&Headers::of_key(*original), now);
        if verdict.action != Action::Forward(established.output) {
            return None;
        }
        let commit = self.commit(established.output, original, &verdict);
        self.connections.refresh(id, commit);
        self.connections.still_established(id, original)
    }

    /// Takes over a connection that was established before this pipeline was there. `original` is the
    /// key of the frame that began it, as that came in: it is judged anew, as such a frame would be,
    /// and the connection is recorded, with so many `frames` of each side, if it still goes to `output`.
    /// `None` if it does not, or if its like need judging frame by frame.
    pub fn adopt(
        &mut self,
        original: &FlowKey,
        output: PortId,
        frames: [u64; 2],
        now: Nanos,
    ) -> Option<Established> {
        let mut headers = Headers::of_key(*original);
        headers.key.vlan = vlan_of(&self.policy, &headers).ok()?;
        self.receivers.clear();
        let verdict = self.judge_again(&headers, now);
        if verdict.action != Action::Forward(output) {
            return None;
        }
        let commit = self.commit(output, &headers.key, &verdict);
        self.connections.adopt(&headers, commit, frames, now).ok()?;
        self.connections.established(&headers, self.policy.epoch(), now)
    }

    /// Counts what was forwarded of a connection elsewhere, if it is still the one that began so; see
    /// [`Connections::credit`].
    pub fn credit(
        &mut self,
        id: ConnectionId,
        original: &FlowKey,
        side: Side,
        credit: &Credit,
        now: Nanos,
    ) {
        if self.connections.original(id).is_some_and(|key| key == *original) {
            self.connections.credit(id, side, credit, now);
        }
    }

    /// Running totals.
    pub fn stats(&self) -> PipelineStats {
        let connections = self.connections.stats();
        PipelineStats {
            connections_created: connections.created,
            connections_ended: connections.ended,
            mac_moves: self.fdb.moves(),
            ..self.stats
        }
    }

    /// Live connections.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Distinct masks in the flow cache, at most [`MASKS`](crate::mask::MASKS).
    pub fn masks(&self) -> usize {
        self.cache.masks()
    }

    /// Distinct masks in the flow cache that frames of one port use.
    pub fn masks_of(&self, port: PortId) -> usize {
        self.cache.masks_of(port)
    }

    /// Cached flows, stale ones included, and the memory that the flow cache holds, in bytes.
    pub fn cached_flows(&self) -> (usize, usize) {
        (self.cache.len(), self.cache.bytes())
    }

    /// A page of live connections; see [`Connections::list`].
    pub fn list_connections(
        &self,
        from: usize,
        limit: usize,
        now: Nanos,
    ) -> (Vec<ConnectionInfo>, Option<usize>) {
        self.connections.list(from, limit, now)
    }

    /// A page of cached flows of the current epoch.
    pub fn list_flows(&self, from: usize, limit: usize) -> (Vec<FlowInfo>, Option<usize>) {
        self.cache.list(from, limit, self.policy.epoch())
    }

    fn judge_conversation(&mut self, frame: &Arrival<'_>) -> Verdict {
        let Arrival { headers, at, bytes, now } = *frame;
        let epoch = self.policy.epoch();
        let found = match self.hints.get(at) {
            Some(hint) => self.connections.lookup_hinted(headers, hint, epoch, now),
            None => self.connections.lookup(headers, epoch, now),
        };
        match found {
            Lookup::Current(hit) if !self.has_moved(&hit, &headers.key, now) => {
                self.stats.connection_hits += 1;
                self.connections.observe(&hit, headers, bytes, now);
                self.forward_by(&hit)
            }
            Lookup::Current(hit) | Lookup::Stale(hit) => self.rejudge(hit, frame),
            Lookup::Invalid(reason) => self.judge_invalid(reason, frame),
            Lookup::Miss => self.begin(frame),
        }
    }

    /// A frame that no connection knows: policy decides, then whether a connection may begin so.
    fn begin(&mut self, frame: &Arrival<'_>) -> Verdict {
        let verdict = self.judge_by_policy(frame);
        // What claims another's identity may pass in learn and audit mode, but takes nobody's connection over.
        let is_claim = |reason: DropReason| reason.group() == DropGroup::Spoofed;
        if !verdict.is_forwarded() || verdict.would_drop.is_some_and(is_claim) {
            return verdict;
        }
        let Arrival { headers, bytes, now, .. } = *frame;
        match opening(&self.policy, headers) {
            Opening::Connection => {}
            Opening::Untracked => return verdict,
            Opening::Refused(reason) => return Verdict::drop(reason),
        }
        let Action::Forward(output) = verdict.action else { return verdict };
        let commit = self.commit(output, &headers.key, &verdict);
        match self.connections.commit(headers, commit, bytes, now) {
            Ok(_) => verdict,
            Err(reason) => Verdict::drop(reason),
        }
    }

    /// A connection's frame, but its verdict is of another epoch or its destination has moved: the
    /// frame that began it is judged again, and what comes out holds for the whole connection.
    fn rejudge(&mut self, hit: Hit, frame: &Arrival<'_>) -> Verdict {
        let Arrival { headers, bytes, now, .. } = *frame;
        let Some(original) = self.connections.original(hit.id) else {
            return self.begin(frame);
        };
        let verdict = self.judge_again(&Headers::of_key(original), now);
        let replier = match hit.side {
            Side::Original => hit.output,
            Side::Reply => headers.key.ingress,
        };
        let output = match verdict.action {
            Action::Forward(output) => Some(output),
            // The MAC table has forgotten where the replier is. It is where it was.
            Action::Flood => self.receivers.contains(&replier).then_some(replier),
            Action::Drop(_) => None,
        };
        let Some(output) = output else {
            self.connections.remove(hit.id);
            return if verdict.is_forwarded() { self.begin(frame) } else { verdict };
        };
        let commit = self.commit(output, &original, &verdict);
        self.connections.refresh(hit.id, commit);
        if hit.side == Side::Reply && output != replier {
            // Another port replies now; this frame is not the connection's any more.
            return self.begin(frame);
        }
        self.connections.observe(&hit, headers, bytes, now);
        let output = if hit.side == Side::Original { output } else { hit.output };
        Verdict { action: Action::Forward(output), ..verdict }
    }

    /// A frame that contradicts its connection's state. Where nothing is blocked it goes where policy
    /// sends it, and changes nothing.
    fn judge_invalid(&mut self, reason: DropReason, frame: &Arrival<'_>) -> Verdict {
        let is_relaxed = reason.group().is_relaxed_by_mode();
        if self.policy.mode() == Mode::Enforce || !is_relaxed {
            return Verdict::drop(reason);
        }
        let verdict = self.judge_by_policy(frame);
        if !verdict.is_forwarded() {
            return verdict;
        }
        Verdict { cause: Cause::Switch, would_drop: Some(reason), ..verdict }
    }

    /// The policy's verdict: cached, or by upcall if the port may have one.
    ///
    /// A flow that was cached before the policy changed comes back at nobody's expense: once per epoch,
    /// and there are only so many.
    fn judge_by_policy(&mut self, frame: &Arrival<'_>) -> Verdict {
        let Arrival { headers, at, now, .. } = *frame;
        match self.cached(headers, self.flow_hints.get(at), now) {
            cache::Lookup::Current(verdict) => verdict,
            cache::Lookup::Stale => self.upcall_and_cache(headers, true, now),
            cache::Lookup::Miss if self.pressure.take_upcall(&headers.key, now) => {
                self.upcall_and_cache(headers, false, now)
            }
            cache::Lookup::Miss => Verdict::drop(DropReason::UpcallLimit),
        }
    }

    /// The policy's verdict on a frame that began a live connection.
    ///
    /// Its port does not pay: connections lose nothing while a new policy comes into force, however
    /// many they are. A connection is judged again once per epoch or move of its destination, so this
    /// is bounded by the port's share of connections.
    fn judge_again(&mut self, original: &Headers, now: Nanos) -> Verdict {
        match self.cached(original, None, now) {
            cache::Lookup::Current(verdict) => verdict,
            cache::Lookup::Stale => self.upcall_and_cache(original, true, now),
            cache::Lookup::Miss => self.upcall_and_cache(original, false, now),
        }
    }

    fn cached(&mut self, headers: &Headers, hint: Option<FlowHint>, now: Nanos) -> cache::Lookup {
        let epoch = self.policy.epoch();
        let found = self.cache.lookup_hinted(&headers.key, hint, epoch, &self.fdb, now);
        self.stats.cache_hits += u64::from(found.verdict().is_some());
        found
    }

    /// Judges by upcall. The verdict is cached if it was before, or its port may have one more.
    fn upcall_and_cache(&mut self, headers: &Headers, was_cached: bool, now: Nanos) -> Verdict {
        let Classified { verdict, mask, learned, .. } = self.upcall(headers, None, now);
        if let Some(mask) = mask
            && (was_cached || self.pressure.take_install(headers.key.ingress, now))
        {
            let epoch = self.policy.epoch();
            self.cache.install(&headers.key, Cacheable { mask, verdict, learned, epoch }, now);
        }
        verdict
    }

    fn upcall(&mut self, headers: &Headers, related: Option<Related>, now: Nanos) -> Classified {
        self.stats.upcalls += 1;
        let context = Context {
            policy: &self.policy,
            fdb: &self.fdb,
            memo: &mut self.memo,
            receivers: &mut self.receivers,
            related,
            now,
        };
        classify(context, headers)
    }

    /// The connection that an ICMP error is about, if it is live under the policy in force.
    fn related(&mut self, embedded: &Embedded, vlan: u16, now: Nanos) -> Option<Related> {
        let found = self.connections.lookup_embedded(embedded, vlan, self.policy.epoch(), now);
        let (Lookup::Current(hit) | Lookup::Stale(hit)) = found else { return None };
        let original = self.connections.original(hit.id)?;
        if matches!(found, Lookup::Current(_)) && !self.has_moved(&hit, &original, now) {
            let (cause, _) = self.connections.verdict(hit.id);
            return Some(Related { output: hit.output, cause });
        }
        let verdict = self.judge_again(&Headers::of_key(original), now);
        let output = match (verdict.action, hit.side) {
            (Action::Drop(_), _) => {
                self.connections.remove(hit.id);
                return None;
            }
            (Action::Forward(output), Side::Original) => output,
            (Action::Flood, Side::Original) if !self.receivers.contains(&hit.output) => {
                return None;
            }
            (Action::Forward(_) | Action::Flood, _) => hit.output,
        };
        Some(Related { output, cause: verdict.cause })
    }

    /// Routers' ports learn the addresses behind them.
    fn learn(&mut self, key: &FlowKey, now: Nanos) {
        if may_learn(&self.policy, key.ingress, key.eth_src) {
            self.fdb.learn(key.vlan, key.eth_src, key.ingress, now);
        }
    }

    /// Whether the destination of a connection's original side was learned at another port since.
    /// `key` is any of that side's: all have one destination.
    fn has_moved(&self, hit: &Hit, key: &FlowKey, now: Nanos) -> bool {
        let learns = || self.policy.port(hit.output).is_some_and(|workload| workload.router);
        let &FlowKey { vlan, eth_dst, .. } = key;
        hit.side == Side::Original
            && learns()
            && self.fdb.port(vlan, eth_dst, now).is_some_and(|port| port != hit.output)
    }

    fn forward_by(&self, hit: &Hit) -> Verdict {
        let (cause, would_drop) = self.connections.verdict(hit.id);
        Verdict { action: Action::Forward(hit.output), cause, would_drop }
    }

    fn commit(&self, output: PortId, original: &FlowKey, verdict: &Verdict) -> Commit {
        Commit {
            output,
            reply_mac: original.eth_dst,
            cause: verdict.cause,
            would_drop: verdict.would_drop,
            epoch: self.policy.epoch(),
        }
    }
}

/// One frame of a burst, as it is judged.
#[derive(Clone, Copy)]
struct Arrival<'a> {
    headers: &'a Headers,
    /// Its position in the burst.
    at: usize,
    bytes: usize,
    now: Nanos,
}

/// What a frame that policy allows, and no connection knows, does to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// It begins one.
    Connection,
    /// It passes, and leaves no trace.
    Untracked,
    /// It can only be part of one, and there is none.
    Refused(DropReason),
}

pub(crate) fn opening(policy: &Policy, headers: &Headers) -> Opening {
    let enforced = policy.mode() == Mode::Enforce;
    let midstream = policy.settings().midstream || !enforced;
    if Connections::may_begin(headers, midstream) {
        Opening::Connection
    } else if enforced && headers.key.protocol == protocol::TCP {
        Opening::Refused(DropReason::TcpNotSyn)
    } else {
        Opening::Untracked
    }
}

#[cfg(test)]
mod tests;
