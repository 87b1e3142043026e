//! Connections whose frames are forwarded elsewhere, on the verdict that they have here: which those are, and how
//! they catch up.

use super::entry::Identity;
use super::key::FrameKey;
use super::{Commit, ConnectionId, Connections, Side};
use crate::extract::Headers;
use crate::key::FlowKey;
use crate::snapshot::PortId;
use crate::time::Nanos;
use crate::verdict::{Cause, DropReason};

/// A connection whose plain frames need no more judging under the policy in force: TCP from the SYN-ACK
/// on, and of what is [asked](Stage::Asked) that one; UDP from its first frame on; and nothing about it is
/// recorded frame by frame. Not where TCP's windows are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Established {
    /// Handle of the entry.
    pub id: ConnectionId,
    /// Key of the first frame.
    pub original: FlowKey,
    /// Output port of the first frame, where replies come from.
    pub output: PortId,
    /// Who allowed it.
    pub cause: Cause,
    /// Frames so far, of the original and of the reply side.
    pub frames: [u64; 2],
    /// How far it is.
    pub stage: Stage,
    /// TCP: what a SYN-ACK acknowledges, of the SYN alone.
    pub answer: u32,
    /// TCP: the SYN's data was taken, so who answered may send its own before the handshake is complete
    /// (RFC 7413).
    pub is_early: bool,
}

/// How far a connection is of which it is known what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// TCP: one side has sent a SYN. Nothing else passes before the other has sent a SYN-ACK with
    /// [what acknowledges it](Established::answer), and that does.
    Asked,
    /// TCP: both sides have sent a SYN, and the handshake's last ACK is to come.
    Opening,
    /// It may last.
    Open,
    /// TCP: both sides have ended it, and a last ACK may be to come.
    Closing,
}

/// What was forwarded of one side of a connection without passing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Frames.
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
    /// Of TCP: the side's sequence numbers after it all.
    pub tcp: Option<Sent>,
}

/// Where a side of a TCP connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// After the last byte it sent, and its FIN.
    pub next: u32,
    /// After the last byte it acknowledged.
    pub ack: u32,
    /// The window it granted, as in the header.
    pub window: u16,
    /// Whether it has sent a FIN.
    pub has_ended: bool,
}

impl Connections {
    /// Records a connection that was established before this table was there, and had so many `frames`
    /// of each side. `headers` are those of the frame that began it, as far as they are known.
    ///
    /// # Errors
    /// As [`Connections::commit`].
    pub fn adopt(
        &mut self,
        headers: &Headers,
        commit: Commit,
        frames: [u64; 2],
        now: Nanos,
    ) -> Result<ConnectionId, DropReason> {
        let ConnectionId(id) = self.commit(headers, commit, 0, now)?;
        let Some(state) = self.table.identity(id).map(Identity::state) else {
            return Ok(ConnectionId::NONE);
        };
        if let Some(activity) = self.table.activity_mut(id) {
            activity.set_unseen(frames);
        }
        let [_, back] = frames;
        self.table.refresh(id, state.as_established(back > 0), now);
        Ok(ConnectionId(id))
    }

    /// The live connection that a frame is of, if it is [`Established`] under a verdict of this epoch.
    pub fn established(&self, headers: &Headers, epoch: u64, now: Nanos) -> Option<Established> {
        let frame = FrameKey::of_frame(headers)?;
        let found = self.table.find_key(&frame.key, self.table.hash(&frame.key))?;
        self.established_of(headers, frame.endpoints(), found, epoch, now)
    }

    pub(super) fn established_of(
        &self,
        headers: &Headers,
        endpoints: [u64; 2],
        (id, identity): (u32, &Identity),
        epoch: u64,
        now: Nanos,
    ) -> Option<Established> {
        let holds = identity.binds(identity.side(endpoints), &headers.key)
            && identity.is_of_epoch(epoch)
            && !self.table.has_expired(identity, now);
        if holds { self.as_established(id) } else { None }
    }

    /// A connection that began so, if it lives still, and is established still, under whatever policy.
    pub fn still_established(&self, id: ConnectionId, original: &FlowKey) -> Option<Established> {
        self.as_established(id.0).filter(|established| established.original == *original)
    }

    /// Whether a connection has been silent for its timeout, and only waits to be forgotten.
    pub fn has_timed_out(&self, id: ConnectionId, now: Nanos) -> bool {
        self.table.identity(id.0).is_some_and(|identity| self.table.has_expired(identity, now))
    }

    fn as_established(&self, id: u32) -> Option<Established> {
        let identity = self.table.identity(id)?;
        let stage = identity.state().stage()?;
        let (cause, would_drop) = self.verdict(ConnectionId(id));
        if would_drop.is_some() {
            return None;
        }
        let activity = self.table.activity(id)?;
        Some(Established {
            id: ConnectionId(id),
            original: self.original(ConnectionId(id))?,
            output: identity.hit(id, Side::Original).output,
            cause,
            frames: activity.frames(),
            stage,
            answer: activity.answer(),
            is_early: activity.has_taken_syn_data(),
        })
    }

    /// Counts what was forwarded of a side elsewhere, on this connection's verdict. It has kept the
    /// connection alive, if it would have here, and TCP's numbers catch up; its handshake, or its end, may have been completed so.
    pub fn credit(&mut self, id: ConnectionId, side: Side, credit: &Credit, now: Nanos) {
        let Some(state) = self.table.identity(id.0).map(Identity::state) else { return };
        let Some(activity) = self.table.activity_mut(id.0) else { return };
        if let Some(state) = activity.credit(state, side, credit) {
            self.table.refresh(id.0, state, now);
        }
    }
}
