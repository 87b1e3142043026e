//! Verdicts of first fragments, for those behind them.

use super::by_port::{ByPort, Entry};
use super::{EXPIRED, Identity};
use crate::extract::{Fragment, Headers};
use crate::snapshot::{PortId, Settings};
use crate::time::Nanos;
use crate::verdict::{Action, Verdict};

/// What became of the first fragments of packets of which not all has come.
#[derive(Debug)]
pub struct Verdicts {
    judged: ByPort<Judged>,
    timeout: u64,
}

/// A packet whose first fragment was judged.
#[derive(Debug)]
struct Judged {
    identity: Identity,
    since: Nanos,
    epoch: u64,
    verdict: Verdict,
    /// Where [`Action::Flood`] goes.
    receivers: Vec<PortId>,
    /// Bytes that have come.
    seen: u32,
    /// Bytes of the whole, known from the last fragment on.
    total: Option<u32>,
}

impl Entry for Judged {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn since(&self) -> Nanos {
        self.since
    }
}

impl Verdicts {
    /// None yet.
    pub fn new(settings: &Settings) -> Self {
        let mut verdicts = Self { judged: ByPort::default(), timeout: 0 };
        verdicts.configure(settings);
        verdicts
    }

    /// Applies another timeout.
    pub fn configure(&mut self, settings: &Settings) {
        self.timeout = Nanos::from_secs(settings.fragment_timeout_secs.into()).0;
    }

    /// Remembers what became, under the policy of this epoch, of a first fragment; `receivers` are
    /// the ports it went to if it was flooded. Anything but a first fragment is not remembered.
    pub fn remember(
        &mut self,
        headers: &Headers,
        verdict: Verdict,
        receivers: &[PortId],
        epoch: u64,
        now: Nanos,
    ) {
        let Some(fragment) = headers.fragment.filter(Fragment::is_first) else {
            return;
        };
        let (port, identity) = (headers.key.ingress, Identity::of(headers, &fragment));
        let flooded = verdict.action == Action::Flood;
        let receivers = if flooded { receivers.to_vec() } else { Vec::new() };
        let seen = fragment.len.into();
        self.judged.take(port, &identity);
        let judged = Judged { identity, since: now, epoch, verdict, receivers, seen, total: None };
        // Whose place it takes is forgotten: what follows that one is dropped.
        let _ = self.judged.put(port, judged);
    }

    /// What becomes of a later fragment: what became of its first, if that was under the policy of
    /// this epoch. Fills `receivers` with the ports that a flood reaches.
    ///
    /// Relies on [`Fragments`](super::Fragments) to hand on no byte twice: the packet is forgotten
    /// when as many have come as it has.
    pub fn follow(
        &mut self,
        headers: &Headers,
        epoch: u64,
        now: Nanos,
        receivers: &mut Vec<PortId>,
    ) -> Verdict {
        receivers.clear();
        let followed = headers.fragment.and_then(|fragment| {
            let port = headers.key.ingress;
            let mut judged = self.judged.take(port, &Identity::of(headers, &fragment))?;
            if now.since(judged.since) >= self.timeout {
                return None;
            }
            judged.seen += u32::from(fragment.len);
            judged.total = judged.total.or((!fragment.more).then_some(fragment.end()));
            receivers.extend_from_slice(&judged.receivers);
            let verdict = (judged.epoch == epoch).then_some(judged.verdict);
            if judged.total.is_none_or(|total| judged.seen < total) {
                // It has just been taken out, so there is room.
                let _ = self.judged.put(port, judged);
            }
            verdict
        });
        followed.unwrap_or(Verdict::drop(EXPIRED))
    }

    /// Forgets a port that is gone.
    pub fn forget_port(&mut self, port: PortId) {
        self.judged.remove(port);
    }
}
