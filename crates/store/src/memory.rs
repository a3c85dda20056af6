//! The store in memory: for the simulator, for tests, and as what [`SqliteStore`](crate::SqliteStore) reads from.
//!
//! [`Core`] decides everything and is synchronous and deterministic: no clock, no thread, no runtime. [`MemoryStore`]
//! is the asynchronous shell around it.

mod core;
mod evaluate;
mod lease;
mod log;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use self::core::{Core, Seen};
pub(crate) use self::core::{Parts, Stored};
pub(crate) use self::evaluate::{Change, Changed, Evaluated, Pending, check_limits};
pub use self::log::LogLimits;

use crate::shared::{Expiry, Follower, Shared};
use crate::{
    Entry, Fut, Guard, LeaseId, Op, Page, Read, Revision, Store, StoreError, Txn, Watch, WatchError,
};

/// A store that forgets everything when it is dropped.
pub struct MemoryStore {
    shared: Arc<Shared>,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("revision", &self.shared.core().revision()).finish()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::from_core(Core::new())
    }

    pub fn from_core(core: Core) -> Self {
        Self { shared: Arc::new(Shared::new(core, Expiry::WhenAsked)) }
    }

    pub fn revision(&self) -> Revision {
        self.shared.core().revision()
    }

    /// Runs an operation with all expired leases gone, and wakes the watches.
    fn with<T>(&self, act: impl FnOnce(&mut Core) -> T) -> T {
        self.shared.settle();
        let result = act(&mut self.shared.core());
        self.shared.announce();
        result
    }
}

impl Store for MemoryStore {
    fn epoch(&self) -> u64 {
        self.shared.core().epoch()
    }

    fn get<'a>(&'a self, key: &'a str) -> Fut<'a, Result<Read<Option<Entry>>, StoreError>> {
        Box::pin(async move { Ok(self.with(|core| core.get(key))) })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        from: Option<&'a str>,
        limit: usize,
    ) -> Fut<'a, Result<Read<Page>, StoreError>> {
        Box::pin(async move { Ok(self.with(|core| core.list(prefix, from, limit))) })
    }

    fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Fut<'_, Result<Txn, StoreError>> {
        Box::pin(async move { self.with(|core| core.txn(&guards, ops)) })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Fut<'_, Result<Box<dyn Watch>, WatchError>> {
        let follower = Follower::new(&self.shared, prefix, after);
        Box::pin(async move { follower.map(|f| Box::new(f) as Box<dyn Watch>) })
    }

    fn lease_grant(&self, ttl: Duration) -> Fut<'_, Result<LeaseId, StoreError>> {
        Box::pin(async move { Ok(self.with(|core| core.lease_grant(ttl))) })
    }

    fn lease_keepalive(&self, lease: LeaseId) -> Fut<'_, Result<(), StoreError>> {
        Box::pin(async move { self.with(|core| core.lease_keepalive(lease)) })
    }

    fn lease_revoke(&self, lease: LeaseId) -> Fut<'_, Result<(), StoreError>> {
        Box::pin(async move { self.with(|core| core.lease_revoke(lease)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    suite!(async || (Arc::new(MemoryStore::new()) as crate::conformance::Any, ()));

    #[tokio::test]
    async fn history_is_compacted_by_count_and_by_bytes() {
        use crate::conformance::compaction;
        let by_count = LogLimits { revisions: 10, ..LogLimits::default() };
        compaction::history_is_bounded(MemoryStore::from_core(Core::with_log_limits(by_count))).await;
        let by_bytes = LogLimits { bytes: 1000, ..LogLimits::default() };
        compaction::history_is_bounded(MemoryStore::from_core(Core::with_log_limits(by_bytes))).await;
    }

    #[test]
    fn the_core_counts_time_only_when_told() {
        let mut core = Core::new();
        let lease = core.lease_grant(Duration::from_secs(10));
        let put = Op::Put { key: "leader".into(), value: vec![1], lease: Some(lease) };
        core.txn(&[], vec![put]).unwrap();
        assert_eq!(core.next_expiry(), Some(Duration::from_secs(10)));
        assert!(core.tick(Duration::from_secs(9)).is_empty(), "it expired early");
        core.lease_keepalive(lease).unwrap();
        assert!(core.tick(Duration::from_secs(9)).is_empty(), "keepalive gave it less than its time");
        assert_eq!(core.tick(Duration::from_secs(1)), [lease]);
        assert!(core.get("leader").value.is_none(), "the key outlived its lease");
        assert_eq!(core.revision(), 2, "the expiry is a revision, so that watches see it");
        assert_eq!(core.next_expiry(), None);
    }
}
