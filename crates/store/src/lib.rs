//! A revisioned key-value store with compare-and-swap transactions, watches that resume, and leases.
//!
//! One trait, several backends, one conformance suite (`conformance`, in tests) that runs over all of them. Every
//! committed transaction gets the next revision; a watch delivers exactly one batch per revision that changed
//! something below its prefix, with no gap and no duplicate.
//!
//! How it works: [`memory::Core`] holds the whole state and decides everything, without clock, thread or runtime; the
//! simulator drives it as it is. [`SqliteStore`] reads from one too, and lets a thread of its own write each change to
//! disk before the core shows it to anybody. [`EtcdStore`] is a client of etcd's, and shares the suite only.
//!
//! What this crate deliberately does not do: it knows nothing of apps or nodes, it never retries a transaction whose
//! outcome is unknown (only the caller knows what that would mean), and it keeps no history beyond a bounded log for
//! watches that resume.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub mod carry;
#[cfg(test)]
#[macro_use]
mod conformance;
pub mod etcd;
pub mod memory;
mod shared;
pub mod sqlite;

pub use etcd::EtcdStore;
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// Counts committed transactions, from 1. 0 is before the first.
pub type Revision = u64;

/// Limits of a transaction that hold in every backend (they are etcd's).
pub const TXN_MAX_OPS: usize = 128;
pub const TXN_MAX_BYTES: usize = 1024 * 1024;

/// A key with its value and the revisions that guards compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    /// The revision that created the key (after its last deletion).
    pub created: Revision,
    /// The revision that wrote this value.
    pub modified: Revision,
}

/// What was read, and the revision at which it was true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read<T> {
    pub revision: Revision,
    pub value: T,
}

/// All guards must hold for a transaction to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    Absent {
        key: String,
    },
    /// The key exists and was last written at this revision.
    Modified {
        key: String,
        revision: Revision,
    },
    /// The key exists and was created at this revision: the fencing token of the `leader` key.
    Created {
        key: String,
        revision: Revision,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put { key: String, value: Vec<u8>, lease: Option<LeaseId> },
    Delete { key: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Txn {
    /// The revision it made; one that had nothing to change (no operation, or only deletions of what is not there)
    /// makes none, and gets the one it was true at.
    Committed(Revision),
    /// A guard did not hold; nothing was changed.
    Conflict,
    /// It may have been applied, or may still be. The caller reads again before it does anything that depends on it.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put(Entry),
    Deleted { key: String },
}

impl Event {
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted { key } => key,
        }
    }
}

/// What one committed transaction changed below the watched prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub revision: Revision,
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "transaction has {ops} operations and {bytes} bytes; at most {TXN_MAX_OPS} and {TXN_MAX_BYTES} are allowed"
    )]
    TooLarge { ops: usize, bytes: usize },
    #[error("key {key:?} {why}")]
    InvalidKey { key: String, why: &'static str },
    #[error("lease {} does not exist or has expired", .0.0)]
    NoLease(LeaseId),
    /// The disk is full, the file is damaged, the server can't be reached. Nothing was applied.
    #[error("store is unavailable: {0}")]
    Unavailable(String),
    #[error(
        "store at {path} is damaged: {detail}; nothing was changed. Move it away and put a backup in its place: each \
         upgrade leaves one in the data directory's `backups`. Without a backup begin with another data directory and deploy \
         again; config, secrets and the history are in the damaged file only"
    )]
    Damaged { path: String, detail: String },
    /// Two processes on one store would each believe to be alone.
    #[error(
        "store at {path} is in use by another process; stop that one first, or choose another data directory"
    )]
    InUse { path: String },
    #[error(
        "store at {path} has format {found}, this version of rung knows up to {known}; use the newer rung that wrote it"
    )]
    Newer { path: String, found: u32, known: u32 },
    /// Another history goes on elsewhere, or under a higher epoch; nothing was applied.
    #[error(
        "this history of the store has ended at epoch {epoch}: its state was moved or restored; start rung again"
    )]
    Ended { epoch: u64 },
    #[error("etcd holds no state of rung's")]
    Empty,
    /// Nothing was applied, and nothing will be before there is room.
    #[error("etcd is out of space: its file has reached its quota")]
    Full,
}

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The log no longer reaches back to where the watch wanted to resume: list again, then watch from there.
    #[error("history before revision {0} is compacted")]
    Compacted(Revision),
    #[error("store is closed")]
    Closed,
}

pub type Fut<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

/// The next batch of a watch. Dropping it ends the watch.
pub trait Watch: Send {
    /// Waits for the next batch. Dropping the future loses nothing. After an error there is nothing more to come.
    fn next(&mut self) -> Fut<'_, Result<Batch, WatchError>>;
}

/// Reads are linearizable. See the crate's documentation for the rest of the contract.
pub trait Store: Send + Sync {
    /// The epoch of this history: higher than that of any history that was restored or left behind.
    fn epoch(&self) -> u64;

    fn get<'a>(&'a self, key: &'a str) -> Fut<'a, Result<Read<Option<Entry>>, StoreError>>;

    /// Entries whose keys start with `prefix`, in the order of their keys, at most `limit` of them; goes on after
    /// `from`, the [`Page::next`] of the page before. Each page is true at its own revision: a key that exists all the
    /// time is listed exactly once.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        from: Option<&'a str>,
        limit: usize,
    ) -> Fut<'a, Result<Read<Page>, StoreError>>;

    /// All of it or nothing. Every key at most once; limits are [`TXN_MAX_OPS`] and [`TXN_MAX_BYTES`].
    fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Fut<'_, Result<Txn, StoreError>>;

    /// Batches of all transactions after `after` that touched `prefix`. Nothing is queued for a watch: one that is
    /// slower than the log is long gets [`WatchError::Compacted`], lists again and goes on from there.
    fn watch(&self, prefix: &str, after: Revision) -> Fut<'_, Result<Box<dyn Watch>, WatchError>>;

    /// Time is counted while the store is open; after a restart a lease has its full time anew.
    fn lease_grant(&self, ttl: Duration) -> Fut<'_, Result<LeaseId, StoreError>>;
    fn lease_keepalive(&self, lease: LeaseId) -> Fut<'_, Result<(), StoreError>>;
    /// Deletes the lease and every key that hangs on it.
    fn lease_revoke(&self, lease: LeaseId) -> Fut<'_, Result<(), StoreError>>;
}
