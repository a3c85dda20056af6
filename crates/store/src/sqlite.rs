//! The store of one machine: SQLite on a thread of its own.
//!
//! The thread owns the connection and takes commands from a channel. Transactions that wait together are written
//! together, with one sync; each is judged as if those before it had happened, has its own revision, and gets its own
//! answer once all of them are on disk. Only then the shared [`Core`](crate::memory::Core) shows them to reads and
//! watches, which never wait for the disk.
//!
//! A machine's state is a few MB (history is bounded by those who write it), so all of it is in memory too. The file
//! is checked whole when it is opened: SQLite's own check, and a checksum in every row.

mod backup;
mod checksum;
mod file;
mod session;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use self::writer::{Command, Reply, Writer};
use crate::memory::LogLimits;
use crate::shared::{Expiry, Follower, Shared};
use crate::{
    Entry, Fut, Guard, LeaseId, Op, Page, Read, Revision, Store, StoreError, Txn, Watch, WatchError,
};

/// A store in one SQLite file (and its `-wal` beside it). Dropping it waits for what was sent to it.
pub struct SqliteStore {
    path: PathBuf,
    shared: Arc<Shared>,
    /// `None` only while it is dropped: the closed channel ends the thread.
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).field("revision", &self.revision()).finish()
    }
}

impl SqliteStore {
    /// Opens the store at `path`, or makes a new one where nothing is. Blocks for as long as it takes to read it.
    ///
    /// What is there is never overwritten: a file that is damaged, of a newer format, in use, or not a store gives an
    /// error and stays as it is.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with_log_limits(path, LogLimits::default())
    }

    pub fn open_with_log_limits(path: impl AsRef<Path>, limits: LogLimits) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let (connection, core) = file::open(&path, limits)?;
        let shared = Arc::new(Shared::new(core, Expiry::ByWriter));
        let (commands, inbox) = mpsc::channel();
        let writer = Writer::new(path.clone(), shared.clone(), inbox);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            // SQLite needs a few tens of KiB; the default of 2 MiB is only address space, but so is this.
            .stack_size(512 * 1024)
            .spawn(move || writer.run(connection))
            .map_err(|e| StoreError::Unavailable(format!("can't start the store's thread: {e}")))?;
        Ok(Self { path, shared, commands: Some(commands), thread: Some(thread) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn revision(&self) -> Revision {
        self.shared.core().revision()
    }

    /// Begins an epoch that is higher than this store's and than `above`, the highest that anybody else is known to
    /// have seen. To be called after a restore, a climb or a descent.
    pub async fn bump_epoch(&self, above: u64) -> Result<u64, StoreError> {
        self.ask(|reply| Command::BumpEpoch { above, reply }).await?
    }

    /// Writes a consistent copy, which [`open`](Self::open) can read, while the store goes on; transactions wait for
    /// the milliseconds that it takes. `to` must not exist, and appears only when it is whole and synced.
    pub async fn backup_to(&self, to: impl Into<PathBuf>) -> Result<Revision, StoreError> {
        let to = to.into();
        self.ask(|reply| Command::Backup { to, reply }).await?
    }

    /// Refuses every write from now on, and says at which revision; reads go on. For carrying the state elsewhere.
    pub async fn hold(&self) -> Result<Revision, StoreError> {
        self.ask(|reply| Command::Hold { reply }).await
    }

    /// Takes writes again after a [hold](Self::hold).
    pub async fn release(&self) -> Result<(), StoreError> {
        self.ask(|reply| Command::Release { reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Unavailable("the store's thread has ended".to_owned());
        let commands = self.commands.as_ref().expect("the channel is open until the store is dropped");
        commands.send(command(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the store's thread has panicked");
        }
    }
}

impl Store for SqliteStore {
    fn epoch(&self) -> u64 {
        self.shared.core().epoch()
    }

    fn get<'a>(&'a self, key: &'a str) -> Fut<'a, Result<Read<Option<Entry>>, StoreError>> {
        Box::pin(async move { Ok(self.shared.core().get(key)) })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        from: Option<&'a str>,
        limit: usize,
    ) -> Fut<'a, Result<Read<Page>, StoreError>> {
        Box::pin(async move { Ok(self.shared.core().list(prefix, from, limit)) })
    }

    /// Dropping the future does not stop the transaction.
    fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Fut<'_, Result<Txn, StoreError>> {
        Box::pin(async move {
            match self.ask(|reply| Command::Txn { guards, ops, reply }).await {
                Ok(answer) => answer,
                // It was sent, or may have been; the thread is gone, and nobody can say how far it came.
                Err(_) => Ok(Txn::Unknown),
            }
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Fut<'_, Result<Box<dyn Watch>, WatchError>> {
        let follower = Follower::new(&self.shared, prefix, after);
        Box::pin(async move { follower.map(|f| Box::new(f) as Box<dyn Watch>) })
    }

    fn lease_grant(&self, ttl: Duration) -> Fut<'_, Result<LeaseId, StoreError>> {
        Box::pin(async move { self.ask(|reply| Command::Grant { ttl, reply }).await? })
    }

    /// Touches no disk: a lease has its full time anew when the store is opened.
    fn lease_keepalive(&self, lease: LeaseId) -> Fut<'_, Result<(), StoreError>> {
        Box::pin(async move { self.shared.core().lease_keepalive(lease) })
    }

    fn lease_revoke(&self, lease: LeaseId) -> Fut<'_, Result<(), StoreError>> {
        Box::pin(async move { self.ask(|reply| Command::Revoke { lease, reply }).await? })
    }
}
