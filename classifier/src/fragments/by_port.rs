//! A short list of entries for each port, none longer than [`DATAGRAMS`].

use super::{DATAGRAMS, Identity};
use crate::snapshot::PortId;
use crate::time::Nanos;

/// What is kept about one packet.
pub(super) trait Entry {
    /// Which packet.
    fn identity(&self) -> &Identity;

    /// Since when.
    fn since(&self) -> Nanos;
}

/// Entries by the ingress port of their packets, in no order.
#[derive(Debug)]
pub(super) struct ByPort<E> {
    ports: Vec<Vec<E>>,
}

impl<E> Default for ByPort<E> {
    fn default() -> Self {
        Self { ports: Vec::new() }
    }
}

impl<E: Entry> ByPort<E> {
    /// Takes a packet's entry out.
    pub(super) fn take(&mut self, port: PortId, identity: &Identity) -> Option<E> {
        let entries = self.ports.get_mut(usize::from(port.0))?;
        let at = entries.iter().position(|entry| entry.identity() == identity)?;
        Some(entries.swap_remove(at))
    }

    /// Puts an entry in. Returns the port's oldest if there is no room for it beside the new one.
    pub(super) fn put(&mut self, port: PortId, entry: E) -> Option<E> {
        let index = usize::from(port.0);
        if self.ports.len() <= index {
            self.ports.resize_with(index + 1, Vec::new);
        }
        let entries = &mut self.ports[index];
        entries.push(entry);
        if entries.len() <= DATAGRAMS {
            return None;
        }
        // The new one is last, and of equally old ones the first is found.
        let oldest = entries.iter().enumerate().min_by_key(|(_, entry)| entry.since());
        oldest.map(|(at, _)| at).map(|at| entries.swap_remove(at))
    }

    /// Takes every entry out that `which` holds for.
    pub(super) fn take_all(&mut self, mut which: impl FnMut(&mut E) -> bool) -> Vec<E> {
        let mut taken = Vec::new();
        for entries in &mut self.ports {
            taken.extend(entries.extract_if(.., &mut which));
        }
        taken
    }

    /// A port's entries.
    pub(super) fn of(&self, port: PortId) -> impl Iterator<Item = &E> {
        self.ports.get(usize::from(port.0)).into_iter().flatten()
    }

    /// All entries.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut E> {
        self.ports.iter_mut().flatten()
    }

    /// Takes all of a port's entries out.
    pub(super) fn remove(&mut self, port: PortId) -> Vec<E> {
        self.ports.get_mut(usize::from(port.0)).map(std::mem::take).unwrap_or_default()
    }
}
