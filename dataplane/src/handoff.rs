//! Frames that change worker: because another one owns their connection, or their output port.
//!
//! A connection's two directions may arrive at different workers. Its owner is the worker that a
//! symmetric hash of its addresses and ports names, so both directions meet at one table and
//! nothing is shared or locked (docs/adr/0003). Frames travel by bounded queues, one per receiving
//! worker; a full queue drops the frame under its own reason.
//!
//! Later fragments have no ports. All fragments of a packet go by way of the worker that a hash of
//! their addresses and identification names, which has seen where the first went
//! ([`fragments`](firedoor_classifier::fragments)).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use firedoor_classifier::PortId;
use firedoor_classifier::extract::{Headers, Kind};
use mio::Waker;
use parking_lot::RwLock;

use crate::frame::Frame;

/// Frames a worker's queue holds.
const DEPTH: usize = 4096;

/// A frame on its way to another worker.
#[derive(Debug)]
pub enum Parcel {
    /// A fragment, to be put in order there.
    Order(Frame, Headers),
    /// To be judged there; of a fragmented packet, behind its first fragment.
    Judge(Frame, Headers),
    /// Judged; to be sent by that port.
    Transmit(Frame, PortId),
}

impl Parcel {
    /// The frame, whatever was to happen to it.
    pub fn into_frame(self) -> Frame {
        match self {
            Self::Order(frame, _) | Self::Judge(frame, _) | Self::Transmit(frame, _) => frame,
        }
    }
}

/// A worker's doorstep: where others leave frames, and how they wake it.
#[derive(Debug)]
pub struct Doorstep {
    parcels: ArrayQueue<Parcel>,
    asleep: AtomicBool,
    waker: RwLock<Option<Waker>>,
}

impl Default for Doorstep {
    fn default() -> Self {
        Self {
            parcels: ArrayQueue::new(DEPTH),
            asleep: AtomicBool::new(false),
            waker: RwLock::default(),
        }
    }
}

impl Doorstep {
    /// Leaves a parcel, or gives it back if the queue is full. Wakes a sleeping worker.
    ///
    /// The error is the parcel itself, large as it is, because its frame must not be lost and a box
    /// would be an allocation per frame.
    ///
    /// # Errors
    /// The parcel, if there is no room.
    #[allow(clippy::result_large_err)]
    pub fn leave(&self, parcel: Parcel) -> Result<(), Parcel> {
        self.parcels.push(parcel)?;
        self.wake_if_asleep();
        Ok(())
    }

    /// The next parcel.
    pub fn take(&self) -> Option<Parcel> {
        self.parcels.pop()
    }

    /// Parcels that wait here now.
    pub fn waiting(&self) -> usize {
        self.parcels.len()
    }

    /// Sets how the worker is woken.
    pub fn set_waker(&self, waker: Waker) {
        *self.waker.write() = Some(waker);
    }

    /// Says that the worker is about to sleep. It may only if this returns true: what was left
    /// before is then in the queue no more, and what is left later wakes it.
    pub fn may_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let may = self.parcels.is_empty();
        if !may {
            self.awake();
        }
        may
    }

    /// Says that the worker is awake.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the worker if it sleeps. One system call when it does, none when not.
    pub fn wake_if_asleep(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    /// Wakes the worker whether it sleeps or not.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.read() {
            // An eventfd write fails only if the counter is full: then it is awake already.
            let _ = waker.wake();
        }
    }
}

/// All workers' doorsteps, as one worker sees them.
#[derive(Clone, Debug)]
pub struct Peers {
    me: u16,
    doorsteps: Arc<[Arc<Doorstep>]>,
}

impl Peers {
    /// The view of worker `me`.
    pub fn new(me: u16, doorsteps: Arc<[Arc<Doorstep>]>) -> Self {
        Self { me, doorsteps }
    }

    /// This worker's own doorstep.
    pub fn own(&self) -> &Doorstep {
        &self.doorsteps[self.me as usize]
    }

    /// The worker that judges this frame, if it is another one. With one worker, costs a compare.
    pub fn judge_of(&self, headers: &Headers) -> Option<&Doorstep> {
        self.other(self.owner_of(headers))
    }

    /// The number of the worker that judges this frame: this one, for frames that make no connection.
    pub fn owner_of(&self, headers: &Headers) -> u16 {
        self.named_by(|| connection_hash(headers))
    }

    /// The worker that puts the fragments of this one's packet in order, if it is another one.
    pub fn order_of(&self, headers: &Headers) -> Option<&Doorstep> {
        self.other(self.named_by(|| packet_hash(headers)))
    }

    /// A worker by its number, if it is another one.
    pub fn other(&self, worker: u16) -> Option<&Doorstep> {
        if worker == self.me { None } else { self.of(worker) }
    }

    fn named_by(&self, hash: impl FnOnce() -> Option<u64>) -> u16 {
        let workers = self.doorsteps.len() as u64;
        if workers == 1 {
            return self.me;
        }
        hash().map_or(self.me, |hash| (hash % workers) as u16)
    }

    /// Another worker's doorstep.
    pub fn of(&self, worker: u16) -> Option<&Doorstep> {
        self.doorsteps.get(worker as usize).map(|doorstep| &**doorstep)
    }
}

/// A hash that all fragments of a packet share, and none but a fragment has. The protocol is not part
/// of it: IPv6's later fragments may claim any.
fn packet_hash(headers: &Headers) -> Option<u64> {
    let id = u64::from(headers.fragment?.id);
    let addresses = headers.key.src ^ headers.key.dst;
    Some(spread((addresses >> 64) as u64 ^ addresses as u64 ^ id << 24))
}

/// A hash that both directions of a connection share; `None` for frames that make no connection,
/// which are judged where they arrive. An ICMP error goes where the connection it is about lives.
fn connection_hash(headers: &Headers) -> Option<u64> {
    let key = &headers.key;
    let (protocol, src, dst, ports) = match headers.kind {
        Kind::Plain if key.eth_dst.is_multicast() => return None,
        Kind::Plain => {
            (key.protocol, key.src, key.dst, fold_ports(key.protocol, key.src_port, key.dst_port))
        }
        Kind::IcmpError(inner) => (
            inner.protocol,
            inner.src,
            inner.dst,
            fold_ports(inner.protocol, inner.src_port, inner.dst_port),
        ),
        Kind::Arp { .. } | Kind::Nd(_) | Kind::DhcpClient | Kind::DhcpServer | Kind::NonIp => {
            return None;
        }
        // It goes where its first went, which a hash of its own could not tell.
        Kind::LaterFragment => return None,
    };
    let addresses = src ^ dst;
    Some(spread((addresses >> 64) as u64 ^ addresses as u64 ^ ports << 8 ^ u64::from(protocol)))
}

fn spread(folded: u64) -> u64 {
    folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

fn fold_ports(protocol: u8, src: u16, dst: u16) -> u64 {
    const ICMP: u8 = 1;
    const ICMPV6: u8 = 58;
    match protocol {
        // Request and reply share the identifier, not the type.
        ICMP | ICMPV6 => src.into(),
        _ => (src ^ dst).into(),
    }
}
