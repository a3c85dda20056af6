//! Copies of the whole state, each in a file of its own, in the format of the store of one machine.
//!
//! Not etcd's own snapshots: those bring members, addresses and history along, and only an etcd can look into them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rung_model::keys;
use rung_store::carry::{Source, carry};
use rung_store::{EtcdStore, Revision, SqliteStore, Store};

use super::{Quorum, QuorumError, Tell};

pub(super) const EVERY: Duration = Duration::from_secs(3600);

/// Three days of hours.
const KEPT: usize = 72;

/// What hangs on leases is not carried: who leads is decided anew, and each server tells of its proxies anew.
pub(super) const LEAVE: &[&str] = &[keys::LEADER, keys::SERVED];

/// A snapshot by its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub path: PathBuf,
    pub bytes: u64,
    pub taken: jiff::Timestamp,
}

fn directory(data: &Path) -> PathBuf {
    data.join("snapshots")
}

/// Oldest first.
pub(super) fn list(data: &Path) -> Vec<Snapshot> {
    let entries = std::fs::read_dir(directory(data)).into_iter().flatten().flatten();
    let mut found: Vec<Snapshot> = entries
        .filter_map(|entry| {
            let path = entry.path();
            let is_whole = path.extension().is_some_and(|extension| extension == "db");
            let found = entry.metadata().ok().filter(|_| is_whole)?;
            let taken = jiff::Timestamp::try_from(found.modified().ok()?).ok()?;
            Some(Snapshot { path, bytes: found.len(), taken })
        })
        .collect();
    // Their names begin with their time.
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

pub(super) async fn take(store: &EtcdStore, data: &Path) -> Result<Snapshot, QuorumError> {
    let directory = directory(data);
    std::fs::create_dir_all(&directory).map_err(QuorumError::file("making", &directory))?;
    let name = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S-%3f");
    let path = directory.join(format!("{name}-epoch{}.db", store.epoch()));
    write(store, &path).await?;
    let all = list(data);
    for old in &all[..all.len().saturating_sub(KEPT)] {
        std::fs::remove_file(&old.path).map_err(QuorumError::file("removing", &old.path))?;
    }
    all.into_iter()
        .find(|snapshot| snapshot.path == path)
        .ok_or_else(|| QuorumError::Refused(format!("snapshot {} is not there", path.display())))
}

/// Written beside its place; it gets its name when it is whole.
pub(super) async fn write(store: &EtcdStore, to: &Path) -> Result<Revision, QuorumError> {
    let part = to.with_extension("part");
    clear(&part)?;
    let revision = fill(store, &part).await;
    let revision = revision.inspect_err(|_| {
        // What is left of it is in nobody's way.
        let _ = clear(&part);
    })?;
    std::fs::rename(&part, to).map_err(QuorumError::file("writing", to))?;
    Ok(revision)
}

async fn fill(store: &EtcdStore, part: &Path) -> Result<Revision, QuorumError> {
    let copy = SqliteStore::open(part)?;
    let carried = carry(Source::Etcd(store), &copy, LEAVE).await?;
    // It goes on from where it was taken: whoever opens it knows which epoch to go beyond.
    if store.epoch() > copy.epoch() {
        copy.bump_epoch(store.epoch() - 1).await?;
    }
    Ok(carried.revision)
}

/// A store in files of SQLite's, all of them.
pub(super) fn clear(path: &Path) -> Result<(), QuorumError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(QuorumError::file("removing", Path::new(&name))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Quorum {
    /// Takes one every hour, and says when that fails. Never returns.
    pub async fn keep_snapshots(&self, tell: Tell<'_>) {
        loop {
            // Whoever starts again and again still gets one an hour, and one soon after a climb.
            let age = self.snapshots().last().map(|newest| {
                Duration::try_from(jiff::Timestamp::now().duration_since(newest.taken)).unwrap_or_default()
            });
            let due = age.map_or(Duration::ZERO, |age| EVERY.saturating_sub(age));
            tokio::time::sleep(due).await;
            if let Err(error) = self.take_snapshot().await {
                tell(&format!("the hourly snapshot failed: {}", crate::trees::chain(&error)));
                tokio::time::sleep(EVERY / 60).await;
            }
        }
    }
}
