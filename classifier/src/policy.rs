//! A policy: one snapshot, compiled for judging. Immutable; shared by all workers.

use crate::snapshot::Snapshot;

/// One snapshot and the tables built of it.
pub struct Policy {
    snapshot: Snapshot,
}

/// Why a snapshot cannot be enforced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Two workloads share something that must be unique.
    #[error("workloads {first:?} and {second:?} share the {what} {value}")]
    Duplicate {
        /// What is shared.
        what: &'static str,
        /// Its value.
        value: String,
        /// One workload.
        first: String,
        /// The other.
        second: String,
    },
    /// A tag is out of range.
    #[error("{what} has tag {tag}, but there are only {tags} tags")]
    TagOutOfRange {
        /// Whose tag.
        what: String,
        /// The tag.
        tag: u32,
        /// Number of tags.
        tags: usize,
    },
    /// The rules are not in evaluation order.
    #[error("rule {rule:?} stands after one that must be judged later")]
    RuleOrder {
        /// The rule.
        rule: String,
    },
}

impl Policy {
    /// Compiles a snapshot.
    ///
    /// # Errors
    /// If the snapshot breaks one of its invariants.
    pub fn build(snapshot: Snapshot) -> Result<Self, PolicyError> {
        Ok(Self { snapshot })
    }

    /// The snapshot it was built from.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}
