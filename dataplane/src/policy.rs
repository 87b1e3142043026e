//! The policy in force: one snapshot at a time, swapped as a whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use firedoor_classifier::Policy;
use parking_lot::Mutex;

/// Where all workers read the policy in force.
///
/// Installing is one swap. A worker compares [`epoch`](Self::epoch), one shared read, at each turn
/// and takes the lock only when it changed.
#[derive(Default)]
pub struct PolicyCell {
    epoch: AtomicU64,
    policy: Mutex<Option<Arc<Policy>>>,
}

impl PolicyCell {
    /// Epoch in force; 0 if no policy is.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The policy in force.
    pub fn load(&self) -> Option<Arc<Policy>> {
        self.policy.lock().clone()
    }

    /// Puts a policy in force.
    pub fn install(&self, policy: Arc<Policy>) {
        let mut current = self.policy.lock();
        let epoch = policy.snapshot().epoch;
        *current = Some(policy);
        self.epoch.store(epoch, Ordering::Release);
    }
}
