//! Carries a whole state from one store to another: to climb, to go back, for a snapshot, and out of one.
//!
//! What is carried is all entries as they were at one revision, without history and without leases. The target counts
//! revisions anew, so it needs an epoch that is higher than its source's. Nothing is believed: at the end both are read
//! side by side.

use crate::{
    Entry, EtcdStore, Op, Page, Read, Revision, SqliteStore, Store, StoreError, TXN_MAX_BYTES, TXN_MAX_OPS,
    Txn,
};

/// Entries read at a time.
const PAGE: usize = 500;

/// How often a write of unknown outcome is made again; putting the same values twice does no harm.
const TRIES: usize = 5;

/// Where a state is taken from. It must hold still, or be able to show its past.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// [Held](SqliteStore::hold), or opened by nobody else.
    Sqlite(&'a SqliteStore),
    /// All pages are read as of the first one's revision.
    Etcd(&'a EtcdStore),
}

#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    #[error("reading the state that is to be carried")]
    Read(#[source] StoreError),
    #[error("writing the state that is carried")]
    Write(#[source] StoreError),
    #[error("the state changed while it was carried (from revision {from} to {to})")]
    Moved { from: Revision, to: Revision },
    #[error("the carried state is not what it was: entry {key:?} differs")]
    Differs { key: String },
}

/// What was carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    pub entries: usize,
    /// The source's, at which all of it was true.
    pub revision: Revision,
}

impl Source<'_> {
    async fn page(&self, from: Option<&str>, at: Option<Revision>) -> Result<Read<Page>, CarryError> {
        let read = match (self, at) {
            (Self::Etcd(store), Some(at)) => store.list_at("", from, PAGE, at).await,
            (Self::Etcd(store), None) => store.list("", from, PAGE).await,
            (Self::Sqlite(store), _) => store.list("", from, PAGE).await,
        };
        read.map_err(CarryError::Read)
    }

    /// Everything but what is left behind, at one revision.
    async fn all(&self, leave: &[&str]) -> Result<(Revision, Vec<Entry>), CarryError> {
        let (mut entries, mut from, mut at) = (Vec::new(), None::<String>, None);
        loop {
            let read = self.page(from.as_deref(), at).await?;
            let first = *at.get_or_insert(read.revision);
            if matches!(self, Self::Sqlite(_)) && first != read.revision {
                return Err(CarryError::Moved { from: first, to: read.revision });
            }
            let stays = |key: &str| leave.iter().any(|prefix| key.starts_with(prefix));
            entries.extend(read.value.entries.into_iter().filter(|entry| !stays(&entry.key)));
            match read.value.next {
                Some(next) => from = Some(next),
                None => return Ok((first, entries)),
            }
        }
    }
}

/// Copies everything but what begins with one of `leave` into a store that is empty and that nobody else uses.
pub async fn carry(from: Source<'_>, into: &dyn Store, leave: &[&str]) -> Result<Carried, CarryError> {
    let (revision, entries) = from.all(leave).await?;
    let (mut ops, mut bytes) = (Vec::new(), 0);
    for entry in &entries {
        let size = entry.key.len() + entry.value.len();
        if ops.len() == TXN_MAX_OPS || bytes + size > TXN_MAX_BYTES {
            write(into, std::mem::take(&mut ops)).await?;
            bytes = 0;
        }
        bytes += size;
        ops.push(Op::Put { key: entry.key.clone(), value: entry.value.clone(), lease: None });
    }
    write(into, ops).await?;
    compare(&entries, into).await?;
    Ok(Carried { entries: entries.len(), revision })
}

async fn write(into: &dyn Store, ops: Vec<Op>) -> Result<(), CarryError> {
    for _ in 0..TRIES {
        match into.txn(Vec::new(), ops.clone()).await.map_err(CarryError::Write)? {
            Txn::Committed(_) => return Ok(()),
            Txn::Conflict | Txn::Unknown => {}
        }
    }
    let why = "its outcome stays unknown".to_owned();
    Err(CarryError::Write(StoreError::Unavailable(why)))
}

/// Both are in the order of their keys.
async fn compare(expected: &[Entry], into: &dyn Store) -> Result<(), CarryError> {
    let mut expected = expected.iter();
    let mut from = None::<String>;
    loop {
        let page = into.list("", from.as_deref(), PAGE).await.map_err(CarryError::Read)?.value;
        for found in &page.entries {
            let known = expected.next();
            if known.is_none_or(|known| (&known.key, &known.value) != (&found.key, &found.value)) {
                return Err(CarryError::Differs { key: found.key.clone() });
            }
        }
        match page.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    match expected.next() {
        Some(missing) => Err(CarryError::Differs { key: missing.key.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;
    use crate::conformance::{commit, get, put};

    async fn filled() -> (SqliteStore, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path().join("store.db")).unwrap();
        for n in 0..700 {
            commit(&store, vec![put(&format!("k/{n:04}"), [n as u8; 3000])]).await;
        }
        commit(&store, vec![put("leader", "me"), put("large", vec![1; TXN_MAX_BYTES - 20])]).await;
        (store, dir)
    }

    #[tokio::test]
    async fn all_of_a_state_arrives_but_what_is_left_behind() {
        let (store, _dir) = filled().await;
        let revision = store.hold().await.unwrap();
        let into = MemoryStore::new();
        let carried = carry(Source::Sqlite(&store), &into, &["leader"]).await.unwrap();
        assert_eq!(carried, Carried { entries: 701, revision });
        assert!(get(&into, "leader").await.is_none(), "the old leader came along");
        assert_eq!(get(&into, "k/0007").await.unwrap().value, [7; 3000]);
    }

    #[tokio::test]
    async fn a_held_store_refuses_writes_and_shows_its_state_until_it_is_released() {
        let (store, _dir) = filled().await;
        let lease = store.lease_grant(std::time::Duration::from_millis(1)).await.unwrap();
        let held = store.hold().await.unwrap();
        let refused = store.txn(vec![], vec![put("a", "1")]).await;
        assert!(
            matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("moved")),
            "{refused:?}"
        );
        assert!(store.lease_revoke(lease).await.is_err(), "the end of a lease was written");
        assert_eq!(store.get("a").await.unwrap().revision, held, "something was written");
        store.release().await.unwrap();
        assert_eq!(commit(&store, vec![put("a", "1")]).await, held + 1);
    }

    #[tokio::test]
    async fn what_was_in_the_target_before_is_noticed() {
        let (store, _dir) = filled().await;
        let into = MemoryStore::new();
        commit(&into, vec![put("stranger", "1")]).await;
        let differs = carry(Source::Sqlite(&store), &into, &["leader"]).await;
        assert!(matches!(&differs, Err(CarryError::Differs { key }) if key == "stranger"), "{differs:?}");
    }
}
