//! What a transaction would do, before it does it.
//!
//! Between the two a shell may write it to disk, and may have several transactions waiting for the same sync: each is
//! judged as if those before it had happened.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::core::Core;
use crate::{Batch, Entry, Event, Guard, LeaseId, Op, Revision, StoreError, TXN_MAX_BYTES, TXN_MAX_OPS};

/// What one revision changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub revision: Revision,
    pub events: Vec<Changed>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Changed {
    Put { key: Arc<str>, value: Arc<[u8]>, created: Revision, lease: Option<LeaseId> },
    Deleted { key: Arc<str> },
}

impl Changed {
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { key, .. } | Self::Deleted { key } => key,
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Deleted { key } => key.len(),
        }
    }
}

impl Change {
    /// `None` when nothing below the prefix changed.
    pub fn batch(&self, prefix: &str) -> Option<Batch> {
        let below = self.events.iter().filter(|event| event.key().starts_with(prefix));
        let events: Vec<Event> = below
            .map(|event| match event {
                Changed::Deleted { key } => Event::Deleted { key: key.to_string() },
                Changed::Put { key, value, created, .. } => Event::Put(Entry {
                    key: key.to_string(),
                    value: value.to_vec(),
                    created: *created,
                    modified: self.revision,
                }),
            })
            .collect();
        (!events.is_empty()).then_some(Batch { revision: self.revision, events })
    }
}

#[derive(Debug)]
pub(crate) enum Evaluated {
    Conflict,
    /// The guards hold and there is nothing to change: true as of this revision.
    Nothing(Revision),
    Change(Change),
}

#[derive(Debug, Clone, Copy)]
struct Stamp {
    created: Revision,
    modified: Revision,
}

/// Changes that wait to be applied together.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    changes: Vec<Change>,
    /// `None`: deleted.
    keys: BTreeMap<Arc<str>, Option<Stamp>>,
}

impl Pending {
    pub fn push(&mut self, change: Change) {
        for event in &change.events {
            let stamp = match event {
                Changed::Deleted { .. } => None,
                Changed::Put { created, .. } => Some(Stamp { created: *created, modified: change.revision }),
            };
            self.keys.insert(event.key().clone(), stamp);
        }
        self.changes.push(change);
    }

    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    pub fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}

impl Core {
    pub(crate) fn evaluate(
        &self,
        pending: &Pending,
        guards: &[Guard],
        ops: Vec<Op>,
    ) -> Result<Evaluated, StoreError> {
        check_limits(guards, &ops)?;
        for op in &ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.lease_is_alive(*lease)
            {
                return Err(StoreError::NoLease(*lease));
            }
        }
        if !guards.iter().all(|guard| self.holds(pending, guard)) {
            return Ok(Evaluated::Conflict);
        }
        let now = pending.changes.last().map_or(self.revision(), |change| change.revision);
        let revision = now + 1;
        let events: Vec<Changed> =
            ops.into_iter().filter_map(|op| self.changed(pending, op, revision)).collect();
        Ok(if events.is_empty() {
            Evaluated::Nothing(now)
        } else {
            Evaluated::Change(Change { revision, events })
        })
    }

    fn changed(&self, pending: &Pending, op: Op, revision: Revision) -> Option<Changed> {
        match op {
            Op::Put { key, value, lease } => {
                let created = self.stamp(pending, &key).map_or(revision, |stamp| stamp.created);
                Some(Changed::Put { key: key.into(), value: value.into(), created, lease })
            }
            // To delete what is not there changes nothing, and watches are told nothing.
            Op::Delete { key } => self.stamp(pending, &key).map(|_| Changed::Deleted { key: key.into() }),
        }
    }

    fn holds(&self, pending: &Pending, guard: &Guard) -> bool {
        match guard {
            Guard::Absent { key } => self.stamp(pending, key).is_none(),
            Guard::Modified { key, revision } => {
                self.stamp(pending, key).is_some_and(|stamp| stamp.modified == *revision)
            }
            Guard::Created { key, revision } => {
                self.stamp(pending, key).is_some_and(|stamp| stamp.created == *revision)
            }
        }
    }

    fn stamp(&self, pending: &Pending, key: &str) -> Option<Stamp> {
        if let Some(stamp) = pending.keys.get(key) {
            return *stamp;
        }
        self.stored(key).map(|stored| Stamp { created: stored.created, modified: stored.modified })
    }
}

/// Guards count as operations do, each list for itself, as in etcd.
pub(crate) fn check_limits(guards: &[Guard], ops: &[Op]) -> Result<(), StoreError> {
    let op_key = |op: &Op| match op {
        Op::Put { key, .. } | Op::Delete { key } => key.len(),
    };
    let guard_bytes: usize = guards
        .iter()
        .map(|guard| match guard {
            Guard::Absent { key } | Guard::Modified { key, .. } | Guard::Created { key, .. } => key.len(),
        })
        .sum();
    let op_bytes: usize =
        ops.iter().map(|op| op_key(op) + if let Op::Put { value, .. } = op { value.len() } else { 0 }).sum();
    let (count, bytes) = (ops.len().max(guards.len()), op_bytes + guard_bytes);
    if count > TXN_MAX_OPS || bytes > TXN_MAX_BYTES {
        return Err(StoreError::TooLarge { ops: count, bytes });
    }
    let mut keys = BTreeSet::new();
    for op in ops {
        let (Op::Put { key, .. } | Op::Delete { key }) = op;
        if key.is_empty() {
            return Err(StoreError::InvalidKey { key: key.clone(), why: "is empty" });
        }
        if !keys.insert(key) {
            return Err(StoreError::InvalidKey { key: key.clone(), why: "occurs twice in one transaction" });
        }
    }
    Ok(())
}
