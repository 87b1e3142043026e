//! Subscribers: who hears of denied frames, and how they cannot hold anything up.
//!
//! Each subscriber has a bounded queue and a thread that writes to its socket. A full queue loses
//! the event; lost denied frames are counted and reported.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use firedoor_api::dataplane::{Denied, Event};
use parking_lot::Mutex;

use crate::mirror::{Mirror, Record};

/// Events that wait for one subscriber.
const QUEUE: usize = 4096;

/// Everyone who subscribed, and the mirrors that feed them.
#[derive(Default)]
pub(crate) struct Subscribers {
    queues: Mutex<Vec<Sender<Event>>>,
    mirrors: Mutex<Vec<Arc<Mirror>>>,
    /// Denied frames lost on the way to a subscriber.
    lost: AtomicU64,
    /// Total of losses that were last reported.
    reported: AtomicU64,
    reader: Mutex<Option<std::thread::Thread>>,
}

impl Subscribers {
    /// A new subscriber's queue. Dropping it ends the subscription.
    pub(crate) fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = bounded(QUEUE);
        self.queues.lock().push(sender);
        receiver
    }

    /// Gives an event to every subscriber; forgets those that are gone.
    pub(crate) fn publish(&self, event: &Event) {
        self.queues.lock().retain(|queue| match queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                if matches!(event, Event::Denied(_)) {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }

    /// Denied frames lost between mirror and subscribers.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Reads these mirrors from now on.
    pub(crate) fn read_from(&self, mirrors: Vec<Arc<Mirror>>) {
        if let Some(reader) = &*self.reader.lock() {
            mirrors.iter().for_each(|mirror| mirror.set_reader(reader.clone()));
        }
        *self.mirrors.lock() = mirrors;
    }

    /// Publishes everything the mirrors hold. Called by one thread, which they wake from then on.
    pub(crate) fn drain(&self, describe: impl Fn(&Record) -> Option<Denied>) {
        let me = std::thread::current();
        let mirrors = self.mirrors.lock().clone();
        if self.reader.lock().replace(me.clone()).is_none() {
            mirrors.iter().for_each(|mirror| mirror.set_reader(me.clone()));
        }
        for mirror in mirrors {
            while let Some(record) = mirror.next() {
                if let Some(denied) = describe(&record) {
                    self.publish(&Event::Denied(Box::new(denied)));
                }
                mirror.recycle(record);
            }
        }
    }

    /// Tells the subscribers of losses since the last call; `mirror_lost` is the mirrors' total.
    pub(crate) fn report_lost(&self, mirror_lost: u64) {
        let total = mirror_lost + self.lost();
        let news = total.saturating_sub(self.reported.swap(total, Ordering::Relaxed));
        if news > 0 {
            self.publish(&Event::MirrorLost(news));
        }
    }
}
