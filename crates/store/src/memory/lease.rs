//! Leases: keys that go when their holder no longer says that it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::{LeaseId, StoreError};

#[derive(Debug, Clone)]
struct Lease {
    ttl: Duration,
    /// On the clock that [`Leases::elapse`] moves.
    deadline: Duration,
    expired: bool,
    keys: BTreeSet<Arc<str>>,
}

#[derive(Debug, Clone)]
pub(super) struct Leases {
    /// Time since the store was opened, as far as it was told.
    now: Duration,
    /// Ids are never given twice: who holds an old one must not keep a stranger's lease alive.
    last_id: u64,
    leases: BTreeMap<LeaseId, Lease>,
}

impl Leases {
    pub fn new(ttls: BTreeMap<LeaseId, Duration>, last_id: u64) -> Self {
        let mut leases = Self { now: Duration::ZERO, last_id, leases: BTreeMap::new() };
        for (id, ttl) in ttls {
            leases.grant(id, ttl);
        }
        leases
    }

    pub fn next_id(&self) -> LeaseId {
        LeaseId(self.last_id + 1)
    }

    pub fn grant(&mut self, id: LeaseId, ttl: Duration) {
        self.last_id = self.last_id.max(id.0);
        let deadline = self.now.saturating_add(ttl);
        self.leases.insert(id, Lease { ttl, deadline, expired: false, keys: BTreeSet::new() });
    }

    pub fn keepalive(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let lease = self.leases.get_mut(&id).filter(|lease| !lease.expired).ok_or(StoreError::NoLease(id))?;
        lease.deadline = self.now.saturating_add(lease.ttl);
        Ok(())
    }

    pub fn elapse(&mut self, elapsed: Duration) {
        self.now = self.now.saturating_add(elapsed);
    }

    /// Marks what is over, for good: a keepalive that comes between the decision and its commit is too late.
    pub fn expired(&mut self) -> Vec<LeaseId> {
        let now = self.now;
        let over = self.leases.iter_mut().filter(|(_, lease)| lease.expired || lease.deadline <= now);
        over.map(|(&id, lease)| {
            lease.expired = true;
            id
        })
        .collect()
    }

    pub fn next_expiry(&self) -> Option<Duration> {
        self.leases.values().map(|lease| lease.deadline.saturating_sub(self.now)).min()
    }

    pub fn is_alive(&self, id: LeaseId) -> bool {
        self.leases.get(&id).is_some_and(|lease| !lease.expired)
    }

    pub fn keys(&self, id: LeaseId) -> Result<impl Iterator<Item = &Arc<str>>, StoreError> {
        Ok(self.leases.get(&id).ok_or(StoreError::NoLease(id))?.keys.iter())
    }

    pub fn attach(&mut self, id: Option<LeaseId>, key: &Arc<str>) {
        if let Some(lease) = id.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.insert(key.clone());
        }
    }

    pub fn detach(&mut self, id: Option<LeaseId>, key: &Arc<str>) {
        if let Some(lease) = id.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.remove(key);
        }
    }

    pub fn remove(&mut self, id: LeaseId) {
        self.leases.remove(&id);
    }
}
