//! The store of several machines: etcd 3.4, an engine of others, behind the same trait.
//!
//! Below one root each store has a *head*, a key beside its entries, which says the epoch and what this history is good
//! for. The revision that created the head is revision nought, so that a store begins where every other begins. Each
//! transaction is guarded by the head, too: once a history has been ended (moved back to one machine, or replaced by a
//! restored one), no server that still believes in it can write to it.
//!
//! ```text
//!   nothing ──create──► ready ──end──► ended ──reopen──► ready (a higher epoch)
//!      └─begin──► filling ──finish──► ready
//! ```
//!
//! Reads are linearizable. A transaction is sent once: when no answer comes, its outcome is [`Txn::Unknown`]; it goes to
//! another member only when the first one surely did nothing. Everything else is asked again elsewhere.

mod admin;
mod channel;
mod connection;
mod head;
mod messages;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use self::admin::{EtcdAdmin, EtcdMember, MemberStatus};
use self::channel::{CallError, Channel, Repeat, code};
pub use self::connection::{EtcdTls, TlsError};
use self::head::Head;
use self::messages as m;
use crate::memory::check_limits;
use crate::{
    Entry, Fut, Guard, LeaseId, Op, Page, Read, Revision, Store, StoreError, Txn, Watch, WatchError,
};

/// What etcd must be told to allow: the limit of a transaction, and the guard of the head.
pub const ETCD_MAX_TXN_OPS: usize = crate::TXN_MAX_OPS + 1;

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const LEASE_REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const LEASE_KEEPALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// A lease's answer must come well before the lease is over.
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(2);

/// Where etcd is, and below which root of its keys.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// `host:port` of the members; the first one that answers is used.
    pub endpoints: Vec<String>,
    pub tls: Option<EtcdTls>,
    pub root: String,
}

/// A store below one root of an etcd cluster.
pub struct EtcdStore {
    inner: Arc<Inner>,
    /// Open for as long as the store is; watches end with it.
    _open: tokio::sync::watch::Sender<()>,
    closed: tokio::sync::watch::Receiver<()>,
}

/// What a store and its watches share.
struct Inner {
    channel: Channel,
    root: String,
    head: Head,
    /// The cluster that answered first. Endpoints that lead to another one (restored beside its ruins, say) are refused.
    cluster: AtomicU64,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("root", &self.inner.root)
            .field("epoch", &self.inner.head.epoch)
            .finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Opens the store below the root.
    pub async fn connect(config: EtcdConfig) -> Result<Self, StoreError> {
        let channel = Channel::new(config.endpoints, config.tls);
        let head = head::read(&channel, &config.root).await?;
        Self::open(channel, config.root, head)
    }

    /// Makes an empty store where none is.
    pub async fn create(config: EtcdConfig, epoch: u64) -> Result<Self, StoreError> {
        let channel = Channel::new(config.endpoints, config.tls);
        let head = head::create(&channel, &config.root, epoch, head::State::Ready).await?;
        Self::open(channel, config.root, head)
    }

    /// Makes a store that nobody can open until it is [finished](Self::finish): what is half filled is no store.
    pub async fn begin(config: EtcdConfig, epoch: u64) -> Result<Self, StoreError> {
        let channel = Channel::new(config.endpoints, config.tls);
        let head = head::create(&channel, &config.root, epoch, head::State::Filling).await?;
        Ok(Self::with_head(channel, config.root, head))
    }

    /// What was begun is whole.
    pub async fn finish(self) -> Result<Self, StoreError> {
        let epoch = self.inner.head.epoch;
        self.turn(head::State::Ready, epoch).await
    }

    /// Ends this history: nobody writes to it any more, in whatever server. It can be read, and be
    /// [reopened](Self::reopen).
    pub async fn end(self) -> Result<Self, StoreError> {
        let epoch = self.inner.head.epoch;
        self.turn(head::State::Ended, epoch).await
    }

    /// Opens a history that was ended, or begins a new epoch of one that was not; higher than its own and than `above`.
    pub async fn reopen(config: EtcdConfig, above: u64) -> Result<Self, StoreError> {
        let channel = Channel::new(config.endpoints, config.tls);
        let head = head::read(&channel, &config.root).await?;
        let epoch = head.epoch.max(above) + 1;
        Self::with_head(channel, config.root, head).turn(head::State::Ready, epoch).await
    }

    async fn turn(mut self, state: head::State, epoch: u64) -> Result<Self, StoreError> {
        let head = head::turn(&self.inner.channel, &self.inner.root, &self.inner.head, state, epoch).await?;
        // Watches that were opened before have their own hold on the inner part, and nobody else has one.
        let inner = Arc::get_mut(&mut self.inner).ok_or_else(|| {
            StoreError::Unavailable(
                "the store's history was turned while it is watched; open it again".into(),
            )
        })?;
        inner.head = head;
        Ok(self)
    }

    fn open(channel: Channel, root: String, head: Head) -> Result<Self, StoreError> {
        match head.state {
            head::State::Ready => Ok(Self::with_head(channel, root, head)),
            head::State::Filling => Err(StoreError::Unavailable(
                "etcd holds a state that was not filled to its end; it was never in use".to_owned(),
            )),
            head::State::Ended => Err(StoreError::Ended { epoch: head.epoch }),
        }
    }

    fn with_head(channel: Channel, root: String, head: Head) -> Self {
        let (open, closed) = tokio::sync::watch::channel(());
        let inner = Inner { channel, root, head, cluster: AtomicU64::new(0) };
        Self { inner: Arc::new(inner), _open: open, closed }
    }

    /// Members have come or gone: who is to be asked from now on.
    pub fn set_endpoints(&self, endpoints: Vec<String>) {
        self.inner.channel.set_endpoints(endpoints);
    }

    /// Forgets history up to a revision; watches that come later get [`WatchError::Compacted`].
    pub async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let request = m::CompactRequest { revision: self.inner.theirs(revision), physical: true };
        let compacted = self.inner.channel.call::<m::Done>(COMPACT, &request, Repeat::Freely).await;
        match compacted {
            Ok(_) => Ok(()),
            Err(CallError::Status { message, .. }) if message.contains("has been compacted") => Ok(()),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// A page as it was at a revision that was read before, so that all pages are of one moment.
    pub(crate) async fn list_at(
        &self,
        prefix: &str,
        from: Option<&str>,
        limit: usize,
        at: Revision,
    ) -> Result<Read<Page>, StoreError> {
        self.inner.list(prefix, from, limit, self.inner.theirs(at)).await
    }
}

fn unavailable(error: &CallError) -> StoreError {
    match error {
        CallError::Status { code: code::RESOURCE_EXHAUSTED, message }
            if message.contains("space exceeded") =>
        {
            StoreError::Full
        }
        _ => StoreError::Unavailable(error.to_string()),
    }
}

/// The first key behind all that start with the prefix.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // No key is behind: to the end of all keys, in etcd's words.
    vec![0]
}

impl Inner {
    /// Our revision in etcd's count.
    fn theirs(&self, revision: Revision) -> i64 {
        i64::try_from(revision).unwrap_or(i64::MAX / 2).saturating_add(self.head.created)
    }

    fn ours(&self, revision: i64) -> Revision {
        u64::try_from(revision - self.head.created).unwrap_or(0)
    }

    fn key(&self, key: &str) -> Vec<u8> {
        format!("{}/{key}", self.root).into_bytes()
    }

    /// An entry in our words; `None` when its key is none of ours.
    fn entry(&self, found: m::KeyValue) -> Option<Entry> {
        let key = self.strip(&found.key)?;
        let (created, modified) = (self.ours(found.created), self.ours(found.modified));
        Some(Entry { key, value: found.value, created, modified })
    }

    fn strip(&self, key: &[u8]) -> Option<String> {
        let key = std::str::from_utf8(key).ok()?;
        Some(key.strip_prefix(&self.root)?.strip_prefix('/')?.to_owned())
    }

    /// The revision an answer was true at.
    fn revision(&self, header: Option<&m::Header>) -> Result<Revision, StoreError> {
        let header = header.ok_or_else(|| StoreError::Unavailable("etcd answered without a head".into()))?;
        self.check_cluster(header)?;
        Ok(self.ours(header.revision))
    }

    fn check_cluster(&self, header: &m::Header) -> Result<(), StoreError> {
        let known = self.cluster.compare_exchange(0, header.cluster, Ordering::Relaxed, Ordering::Relaxed);
        match known {
            Err(known) if known != header.cluster => Err(StoreError::Unavailable(format!(
                "a member of another etcd cluster answered ({:x} instead of {known:x})",
                header.cluster
            ))),
            _ => Ok(()),
        }
    }

    async fn range(&self, request: m::RangeRequest) -> Result<m::RangeResponse, StoreError> {
        self.channel.call(RANGE, &request, Repeat::Freely).await.map_err(|error| unavailable(&error))
    }

    async fn list(
        &self,
        prefix: &str,
        from: Option<&str>,
        limit: usize,
        at: i64,
    ) -> Result<Read<Page>, StoreError> {
        let limit = limit.max(1);
        let mut key = self.key(prefix);
        let end = end_of(&key);
        if let Some(from) = from.filter(|from| *from >= prefix) {
            key = self.key(from);
            key.push(0);
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found =
            self.range(m::RangeRequest { key, end, limit, revision: at, ..Default::default() }).await?;
        let revision = self.revision(found.header.as_ref())?;
        let entries: Vec<Entry> = found.entries.into_iter().filter_map(|entry| self.entry(entry)).collect();
        let next = found.more.then(|| entries.last().map(|last| last.key.clone())).flatten();
        Ok(Read { revision, value: Page { entries, next } })
    }

    fn guard(&self, guard: &Guard) -> m::Compare {
        let (key, target, expected) = match guard {
            Guard::Absent { key } => (key, m::Target::Created, m::Expected::Created(0)),
            Guard::Modified { key, revision } => {
                (key, m::Target::Modified, m::Expected::Modified(self.theirs(*revision)))
            }
            Guard::Created { key, revision } => {
                (key, m::Target::Created, m::Expected::Created(self.theirs(*revision)))
            }
        };
        m::Compare { target: target.into(), key: self.key(key), expected: Some(expected) }
    }

    fn op(&self, op: Op) -> m::RequestOp {
        let request = match op {
            Op::Put { key, value, lease } => {
                let lease = lease.map_or(0, |lease| lease.0.cast_signed());
                m::Request::Put(m::PutRequest { key: self.key(&key), value, lease })
            }
            Op::Delete { key } => m::Request::Delete(m::DeleteRequest { key: self.key(&key) }),
        };
        m::RequestOp { request: Some(request) }
    }

    async fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Result<Txn, StoreError> {
        check_limits(&guards, &ops)?;
        let lease = ops.iter().find_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } => None,
        });
        let mut compare = vec![self.head.guard(&self.root)];
        compare.extend(guards.iter().map(|guard| self.guard(guard)));
        let success = ops.into_iter().map(|op| self.op(op)).collect();
        let failure = vec![head::ask(&self.root)];
        let request = m::TxnRequest { compare, success, failure };
        match self.channel.call::<m::TxnResponse>(TXN, &request, Repeat::WhenWithoutEffect).await {
            Ok(answer) if answer.succeeded => {
                Ok(self.revision(answer.header.as_ref()).map_or(Txn::Unknown, Txn::Committed))
            }
            Ok(answer) => self.head.still_holds(answer).map(|()| Txn::Conflict),
            Err(CallError::Status { code: code::NOT_FOUND, message }) if message.contains("lease") => {
                Err(StoreError::NoLease(lease.unwrap_or(LeaseId(0))))
            }
            Err(error) if error.has_no_effect() => Err(unavailable(&error)),
            Err(error) => {
                tracing::warn!(%error, "the outcome of a transaction is unknown");
                Ok(Txn::Unknown)
            }
        }
    }

    /// `Ok(false)`: there is no such lease.
    async fn keepalive(&self, lease: LeaseId) -> Result<bool, CallError> {
        let request = m::LeaseRequest { id: lease.0.cast_signed() };
        let (connection, mut stream) = self.channel.open(LEASE_KEEPALIVE, &request).await?;
        let answer = tokio::time::timeout(KEEPALIVE_WITHIN, stream.next::<m::LeaseResponse>()).await;
        let answer = answer.unwrap_or_else(|_| Err(CallError::Lost("no answer in time".to_owned())));
        match answer {
            Ok(Some(answer)) => Ok(answer.ttl_s > 0),
            Ok(None) => Err(CallError::Lost("the member ended the call".to_owned())),
            Err(error) => {
                self.channel.give_up(connection);
                Err(error)
            }
        }
    }
}

impl Store for EtcdStore {
    fn epoch(&self) -> u64 {
        self.inner.head.epoch
    }

    fn get<'a>(&'a self, key: &'a str) -> Fut<'a, Result<Read<Option<Entry>>, StoreError>> {
        Box::pin(async move {
            let request = m::RangeRequest { key: self.inner.key(key), ..Default::default() };
            let found = self.inner.range(request).await?;
            let revision = self.inner.revision(found.header.as_ref())?;
            let value = found.entries.into_iter().find_map(|entry| self.inner.entry(entry));
            Ok(Read { revision, value })
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        from: Option<&'a str>,
        limit: usize,
    ) -> Fut<'a, Result<Read<Page>, StoreError>> {
        Box::pin(self.inner.list(prefix, from, limit, 0))
    }

    /// Dropping the future does not take back what was sent.
    fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Fut<'_, Result<Txn, StoreError>> {
        Box::pin(self.inner.txn(guards, ops))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Fut<'_, Result<Box<dyn Watch>, WatchError>> {
        let mut follower = watch::Follower::new(&self.inner, self.closed.clone(), prefix, after);
        Box::pin(async move {
            follower.try_to_open().await?;
            Ok(Box::new(follower) as Box<dyn Watch>)
        })
    }

    /// etcd counts in seconds, and gives at least one and a half times what an election takes.
    fn lease_grant(&self, ttl: Duration) -> Fut<'_, Result<LeaseId, StoreError>> {
        let seconds = ttl.as_millis().div_ceil(1000).max(1);
        Box::pin(async move {
            let request = m::LeaseGrantRequest { ttl_s: i64::try_from(seconds).unwrap_or(i64::MAX) };
            // A lease that was granted without anybody hearing of it runs out by itself.
            let granted = self.inner.channel.call::<m::LeaseResponse>(LEASE_GRANT, &request, Repeat::Freely);
            let granted = granted.await.map_err(|error| unavailable(&error))?;
            Ok(LeaseId(granted.id.cast_unsigned()))
        })
    }

    fn lease_keepalive(&self, lease: LeaseId) -> Fut<'_, Result<(), StoreError>> {
        Box::pin(async move {
            match self.inner.keepalive(lease).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(StoreError::NoLease(lease)),
                Err(error) => Err(unavailable(&error)),
            }
        })
    }

    fn lease_revoke(&self, lease: LeaseId) -> Fut<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let request = m::LeaseRequest { id: lease.0.cast_signed() };
            let once = self.inner.channel.call::<m::Done>(LEASE_REVOKE, &request, Repeat::WhenWithoutEffect);
            match once.await {
                Ok(_) => Ok(()),
                Err(CallError::Status { code: code::NOT_FOUND, .. }) => Err(StoreError::NoLease(lease)),
                Err(error) if error.has_no_effect() => Err(unavailable(&error)),
                // It may be gone already; that it is gone is all that was asked.
                Err(_) => {
                    match self.inner.channel.call::<m::Done>(LEASE_REVOKE, &request, Repeat::Freely).await {
                        Ok(_) | Err(CallError::Status { code: code::NOT_FOUND, .. }) => Ok(()),
                        Err(error) => Err(unavailable(&error)),
                    }
                }
            }
        })
    }
}
