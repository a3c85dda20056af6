//! A state from a snapshot, when what was in charge is lost.
//!
//! The server must not run. Applications go on meanwhile: they are under their shims, and follow documents on disk.

use std::path::Path;

use rung_model::{Document, Member, NodeRole, keys};
use rung_store::carry::{Source, carry};
use rung_store::{EtcdStore, Op, SqliteStore, Store, Txn};
use serde::{Deserialize, Serialize};

use super::climb::{Climb, found, start_member};
use super::member;
use super::record::{Record, SQLITE};
use super::snapshots::{LEAVE, clear};
use super::{QuorumError, authority};

const PAGE: usize = 500;

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub entries: usize,
    pub epoch: u64,
    /// Members that are none any more: they must not be started with what they have.
    pub left: Vec<String>,
}

/// At [`keys::FROZEN`]: the leader writes nothing until an operator has approved what it would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    pub why: String,
    pub since: jiff::Timestamp,
}

/// Puts a snapshot in charge, under an epoch higher than `above` and than everything this machine knows of. Where the
/// state was in etcd it is again, with this machine as the only member.
pub async fn restore(data: &Path, snapshot: &Path, above: u64) -> Result<Restored, QuorumError> {
    let copy = data.join("restored.db");
    clear(&copy)?;
    // Opening a store may write to it; the snapshot stays as it is.
    std::fs::copy(snapshot, &copy).map_err(QuorumError::file("reading", snapshot))?;
    let restored = fill(data, snapshot, &copy, above).await;
    clear(&copy)?;
    restored
}

async fn fill(data: &Path, snapshot: &Path, copy: &Path, above: u64) -> Result<Restored, QuorumError> {
    let source = SqliteStore::open(copy)?;
    if source.revision() == 0 {
        return Err(QuorumError::Refused(format!("{} holds no state", snapshot.display())));
    }
    let frozen = Frozen {
        why: format!("the state was restored from {}", snapshot.display()),
        since: jiff::Timestamp::now(),
    };
    match Record::read(data)? {
        Some(record) => into_etcd(data, &source, record, above, &frozen).await,
        None => into_sqlite(data, &source, above, &frozen).await,
    }
}

async fn into_etcd(
    data: &Path,
    source: &SqliteStore,
    old: Record,
    above: u64,
    frozen: &Frozen,
) -> Result<Restored, QuorumError> {
    member::stop_any(data).await;
    let epoch = source.epoch().max(above).max(old.epoch) + 1;
    let climb = Climb { name: old.name.clone(), address: old.client.ip() };
    let record = Record {
        client: old.client,
        peer: old.peer,
        initial: vec![(old.name.clone(), old.peer)],
        endpoints: vec![old.client],
        quota_bytes: old.quota_bytes,
        ..found(data, &climb, epoch, &format!("member-{epoch}"))?
    };
    let started = start_member(data, &record).await?;
    let filling = EtcdStore::begin(record.config(&authority::client(data)?), epoch).await?;
    let carried = carry(Source::Sqlite(source), &filling, LEAVE).await?;
    freeze(&filling, frozen).await?;
    filling.finish().await?;
    record.write(started.data())?;
    let left = other_servers(source, &record.name).await?;
    Ok(Restored { entries: carried.entries, epoch, left })
}

/// As the state names them.
async fn other_servers(source: &SqliteStore, own: &str) -> Result<Vec<String>, QuorumError> {
    let mut names = Vec::new();
    let mut from: Option<String> = None;
    loop {
        let page = source.list(keys::MEMBERS, from.as_deref(), PAGE).await?.value;
        let members = page.entries.iter().filter_map(|entry| Member::from_json(&entry.value).ok());
        let servers = members.filter(|member| member.role == NodeRole::Server && member.node.as_str() != own);
        names.extend(servers.map(|member| member.node.to_string()));
        match page.next {
            Some(next) => from = Some(next),
            None => return Ok(names),
        }
    }
}

async fn into_sqlite(
    data: &Path,
    source: &SqliteStore,
    above: u64,
    frozen: &Frozen,
) -> Result<Restored, QuorumError> {
    let path = data.join(SQLITE);
    let new = data.join("store.db.new");
    clear(&new)?;
    let filled = SqliteStore::open(&new)?;
    let carried = carry(Source::Sqlite(source), &filled, LEAVE).await?;
    let epoch = filled.bump_epoch(source.epoch().max(above)).await?;
    freeze(&filled, frozen).await?;
    drop(filled);
    super::climb::put_sqlite_away(data)?;
    std::fs::rename(&new, &path).map_err(QuorumError::file("putting in place", &path))?;
    Ok(Restored { entries: carried.entries, epoch, left: Vec::new() })
}

async fn freeze(store: &dyn Store, frozen: &Frozen) -> Result<(), QuorumError> {
    let value = serde_json::to_vec(frozen).expect("two texts serialize");
    match store.txn(Vec::new(), vec![Op::Put { key: keys::FROZEN.to_owned(), value, lease: None }]).await? {
        Txn::Committed(_) => Ok(()),
        Txn::Conflict | Txn::Unknown => {
            Err(QuorumError::Refused("the restored state could not be frozen; try again".to_owned()))
        }
    }
}
