//! The whole state of a store, and every decision about it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::evaluate::{Change, Changed, Evaluated, Pending};
use super::lease::Leases;
use super::log::{Log, LogLimits};
use crate::{Batch, Entry, Guard, LeaseId, Op, Page, Read, Revision, StoreError, Txn, WatchError};

/// A current value. Its bytes are shared with the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub value: Arc<[u8]>,
    pub created: Revision,
    pub modified: Revision,
    pub lease: Option<LeaseId>,
}

impl Stored {
    pub fn entry(&self, key: &str) -> Entry {
        Entry {
            key: key.to_owned(),
            value: self.value.to_vec(),
            created: self.created,
            modified: self.modified,
        }
    }
}

/// What a watch has to deliver next, and up to where it has then seen everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub batches: Vec<Batch>,
    pub up_to: Revision,
}

/// A store without clock, thread or runtime: the same calls in the same order give the same answers.
#[derive(Debug, Clone)]
pub struct Core {
    epoch: u64,
    revision: Revision,
    entries: BTreeMap<Arc<str>, Stored>,
    log: Log,
    leases: Leases,
}

/// What a core is made of when it is loaded from a disk.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub epoch: u64,
    pub revision: Revision,
    pub entries: BTreeMap<Arc<str>, Stored>,
    /// In order, without gaps, up to `revision`.
    pub changes: Vec<Change>,
    pub leases: BTreeMap<LeaseId, Duration>,
    pub last_lease: u64,
}

impl Default for Core {
    fn default() -> Self {
        Self::new()
    }
}

impl Core {
    pub fn new() -> Self {
        Self::with_log_limits(LogLimits::default())
    }

    pub fn with_log_limits(limits: LogLimits) -> Self {
        Self::from_parts(Parts { epoch: 1, ..Parts::default() }, limits)
    }

    /// Leases get their full time anew: nobody could keep them alive while the store was away.
    pub(crate) fn from_parts(parts: Parts, limits: LogLimits) -> Self {
        let floor = parts.changes.first().map_or(parts.revision, |first| first.revision - 1);
        let mut log = Log::new(limits, floor);
        for change in parts.changes {
            log.push(change);
        }
        let mut leases = Leases::new(parts.leases, parts.last_lease);
        for (key, stored) in &parts.entries {
            leases.attach(stored.lease, key);
        }
        Self { epoch: parts.epoch, revision: parts.revision, entries: parts.entries, log, leases }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Begins a history that is newer than this one and than `above`, whichever is higher.
    pub fn bump_epoch(&mut self, above: u64) -> u64 {
        self.epoch = self.epoch.max(above) + 1;
        self.epoch
    }

    pub fn get(&self, key: &str) -> Read<Option<Entry>> {
        Read { revision: self.revision, value: self.entries.get(key).map(|stored| stored.entry(key)) }
    }

    /// A limit of 0 is taken for 1: a page that never moves on would be listed forever.
    pub fn list(&self, prefix: &str, from: Option<&str>, limit: usize) -> Read<Page> {
        let start = match from {
            Some(from) if from >= prefix => Bound::Excluded(from),
            _ => Bound::Included(prefix),
        };
        let mut below = self
            .entries
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, stored)| stored.entry(key));
        let entries: Vec<Entry> = below.by_ref().take(limit.max(1)).collect();
        let next = below.next().and_then(|_| entries.last().map(|last| last.key.clone()));
        Read { revision: self.revision, value: Page { entries, next } }
    }

    pub fn txn(&mut self, guards: &[Guard], ops: Vec<Op>) -> Result<Txn, StoreError> {
        Ok(match self.evaluate(&Pending::default(), guards, ops)? {
            Evaluated::Conflict => Txn::Conflict,
            Evaluated::Nothing(revision) => Txn::Committed(revision),
            Evaluated::Change(change) => {
                let revision = change.revision;
                self.apply(change);
                Txn::Committed(revision)
            }
        })
    }

    /// Whole batches of what changed below `prefix` after a revision: as many as are at hand, up to a bound.
    pub fn events_after(&self, prefix: &str, after: Revision) -> Result<Seen, WatchError> {
        self.log.events_after(prefix, after)
    }

    pub fn lease_grant(&mut self, ttl: Duration) -> LeaseId {
        let lease = self.leases.next_id();
        self.leases.grant(lease, ttl);
        lease
    }

    pub fn lease_keepalive(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        self.leases.keepalive(lease)
    }

    pub fn lease_revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        let change = self.evaluate_revoke(lease)?;
        self.forget_lease(lease, change);
        Ok(())
    }

    /// Time passes. Leases whose time is over go, with their keys, each in a revision of its own.
    pub fn tick(&mut self, elapsed: Duration) -> Vec<LeaseId> {
        self.elapse(elapsed);
        let expired = self.leases.expired();
        for &lease in &expired {
            self.lease_revoke(lease).expect("an expired lease exists until it is revoked");
        }
        expired
    }

    /// How long until [`tick`](Self::tick) has something to do.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.leases.next_expiry()
    }

    /// Time passes, and nothing else happens: for a shell that must write an expiry to disk before it happens.
    pub(crate) fn elapse(&mut self, elapsed: Duration) {
        self.leases.elapse(elapsed);
    }

    /// Leases whose time is over. They can't be kept alive any more.
    pub(crate) fn expired(&mut self) -> Vec<LeaseId> {
        self.leases.expired()
    }

    pub(crate) fn next_lease_id(&self) -> LeaseId {
        self.leases.next_id()
    }

    pub(crate) fn grant(&mut self, lease: LeaseId, ttl: Duration) {
        self.leases.grant(lease, ttl);
    }

    pub(crate) fn set_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// History up to here is gone.
    pub(crate) fn floor(&self) -> Revision {
        self.log.floor()
    }

    pub(crate) fn log_limits(&self) -> LogLimits {
        self.log.limits()
    }

    pub(crate) fn lease_is_alive(&self, lease: LeaseId) -> bool {
        self.leases.is_alive(lease)
    }

    pub(crate) fn stored(&self, key: &str) -> Option<&Stored> {
        self.entries.get(key)
    }

    /// The deletion of every key that hangs on the lease; `None` when none does.
    pub(crate) fn evaluate_revoke(&self, lease: LeaseId) -> Result<Option<Change>, StoreError> {
        let keys = self.leases.keys(lease)?;
        let events: Vec<Changed> = keys.map(|key| Changed::Deleted { key: key.clone() }).collect();
        Ok((!events.is_empty()).then_some(Change { revision: self.revision + 1, events }))
    }

    pub(crate) fn forget_lease(&mut self, lease: LeaseId, change: Option<Change>) {
        if let Some(change) = change {
            self.apply(change);
        }
        self.leases.remove(lease);
    }

    pub(crate) fn apply(&mut self, change: Change) {
        debug_assert_eq!(change.revision, self.revision + 1, "revisions have no gap");
        self.revision = change.revision;
        for event in &change.events {
            if let Some(old) = self.entries.get(event.key()) {
                self.leases.detach(old.lease, event.key());
            }
            match event {
                Changed::Deleted { key } => {
                    self.entries.remove(key);
                }
                Changed::Put { key, value, created, lease } => {
                    self.leases.attach(*lease, key);
                    let (value, modified) = (value.clone(), change.revision);
                    let stored = Stored { value, created: *created, modified, lease: *lease };
                    self.entries.insert(key.clone(), stored);
                }
            }
        }
        self.log.push(change);
    }
}
