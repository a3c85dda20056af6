//! From SQLite to etcd, and back.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rung_store::carry::{Carried, Source, carry};
use rung_store::etcd::EtcdAdmin;
use rung_store::{EtcdStore, SqliteStore, Store};

use super::member::{self, Member};
use super::record::{Record, SQLITE, Start, usual_quota};
use super::snapshots::{LEAVE, clear};
use super::{Quorum, QuorumError, authority};

/// RUNG on a keypad is 7864, the API; a node's own ports follow it, and then those of etcd.
pub(super) const CLIENT_PORT: u16 = 7870;
pub(super) const PEER_PORT: u16 = 7871;
const PORTS_TRIED: u16 = 50;
const STARTS_TRIED: u32 = 5;

/// A new member on a slow disk takes seconds.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(50);

/// What a climb needs to know.
#[derive(Debug, Clone)]
pub struct Climb {
    pub name: String,
    /// Where other servers will reach this machine.
    pub address: IpAddr,
}

/// What was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Climbed {
    pub carried: Carried,
    pub epoch: u64,
}

/// Fills an etcd with what SQLite holds and puts it in charge. On success SQLite stays held: whoever called starts again.
/// On failure everything is as it was.
pub async fn climb(data: &Path, store: &SqliteStore, climb: &Climb) -> Result<Climbed, QuorumError> {
    if Record::read(data)?.is_some() {
        return Err(QuorumError::Refused("this server's state is in etcd already".to_owned()));
    }
    member::check_program()?;
    member::stop_any(data).await;
    let directory = data.join("etcd");
    remove(&directory)?;
    let moved = move_to_etcd(data, store, climb).await;
    if moved.is_err() {
        member::stop_any(data).await;
        let _ = remove(&directory);
        store.release().await?;
    }
    moved
}

async fn move_to_etcd(data: &Path, store: &SqliteStore, climb: &Climb) -> Result<Climbed, QuorumError> {
    let (record, member) = start_founding(data, || found(data, climb, store.epoch() + 1, "member-1")).await?;
    let tls = authority::client(data)?;
    let filling = EtcdStore::begin(record.config(&tls), record.epoch).await?;
    // Only from here on writes have to wait.
    store.hold().await?;
    let carried = carry(Source::Sqlite(store), &filling, LEAVE).await?;
    let epoch = filling.finish().await?.epoch();
    record.write(member.data())?;
    Ok(Climbed { carried, epoch })
}

/// Starts the first member. A port that was free a moment ago may be somebody else's when etcd wants it: then with others.
pub(super) async fn start_founding(
    data: &Path,
    found: impl Fn() -> Result<Record, QuorumError>,
) -> Result<(Record, Member), QuorumError> {
    let mut tries = STARTS_TRIED;
    loop {
        let record = found()?;
        tries -= 1;
        match start_member(data, &record).await {
            Err(QuorumError::Etcd(why)) if tries > 0 && why.contains("address already in use") => {
                tracing::info!(why, "starting etcd on other ports");
            }
            started => return started.map(|member| (record, member)),
        }
    }
}

/// A record of a cluster of one, on ports that are free now.
pub(super) fn found(data: &Path, climb: &Climb, epoch: u64, directory: &str) -> Result<Record, QuorumError> {
    let client = free_port(climb.address, CLIENT_PORT, None)?;
    let peer = free_port(climb.address, PEER_PORT, Some(client.port()))?;
    authority::ensure(data, &climb.name, climb.address)?;
    Ok(Record {
        name: climb.name.clone(),
        client,
        peer,
        directory: directory.to_owned(),
        token: token(),
        start: Start::Founds,
        initial: vec![(climb.name.clone(), peer)],
        endpoints: vec![client],
        epoch,
        quota_bytes: usual_quota(),
    })
}

/// Members compare it; it must differ between clusters, and is no secret.
pub(super) fn token() -> String {
    format!("rung-{}-{}", std::process::id(), jiff::Timestamp::now().as_nanosecond())
}

fn free_port(address: IpAddr, usual: u16, taken: Option<u16>) -> Result<SocketAddr, QuorumError> {
    let mut last = None;
    let candidates =
        (0..PORTS_TRIED).map(|n| usual.saturating_add(2 * n)).filter(|port| Some(*port) != taken);
    for port in candidates {
        match TcpListener::bind((address, port)) {
            Ok(_) => return Ok(SocketAddr::new(address, port)),
            Err(error) => last = Some(error),
        }
    }
    let error = last.expect("at least one port was tried");
    Err(QuorumError::Etcd(format!("no port from {usual} on is free on {address}: {error}")))
}

/// Starts a member and waits until it answers and leads, or says why it does not.
pub(super) async fn start_member(data: &Path, record: &Record) -> Result<Member, QuorumError> {
    let member = Member::ensure(data, record).await?;
    let admin = EtcdAdmin::new(vec![record.client.to_string()], Some(authority::client(data)?));
    let ready = async {
        while admin.status().await.ok().and_then(|status| status.leader).is_none() {
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    let ended = member.ended();
    tokio::select! {
        answered = tokio::time::timeout(READY_WITHIN, ready) => match answered {
            Ok(()) => Ok(member),
            Err(_) => Err(QuorumError::Etcd(format!(
                "it does not answer within {} s{}", READY_WITHIN.as_secs(), said(data)
            ))),
        },
        () = ended => Err(QuorumError::Etcd(format!("it ended at once{}", said(data)))),
    }
}

fn said(data: &Path) -> String {
    member::last_words(data).map(|words| format!("; it said: {words}")).unwrap_or_default()
}

fn remove(directory: &Path) -> Result<(), QuorumError> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(QuorumError::file("removing", directory)(error))
        }
        _ => Ok(()),
    }
}

/// After a climb the old file would only mislead; it is kept as a backup.
pub(super) fn put_sqlite_away(data: &Path) -> Result<(), QuorumError> {
    let path = data.join(SQLITE);
    if !path.exists() {
        return Ok(());
    }
    let backups = data.join("backups");
    std::fs::create_dir_all(&backups).map_err(QuorumError::file("making", &backups))?;
    let name = format!("store-{}-before-etcd.db", jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S-%3f"));
    // The last commits may be in the log beside it: opened and closed, it is one file.
    match SqliteStore::open(&path) {
        Ok(store) => drop(store),
        Err(error) => {
            tracing::warn!(%error, "the state from before etcd can't be opened; it is kept as it is")
        }
    }
    std::fs::rename(&path, backups.join(name)).map_err(QuorumError::file("moving", &path))?;
    clear(&path)
}

/// Back to one machine: etcd's history is ended, SQLite filled and put in charge. Whoever called starts again, whatever
/// this returns: after an error the state is still in etcd, under a new epoch.
pub async fn descend(data: &Path, quorum: &Arc<Quorum>) -> Result<Climbed, QuorumError> {
    let others: Vec<String> = quorum
        .admin()
        .members()
        .await?
        .into_iter()
        .filter(|member| member.name != quorum.record.name)
        .map(|member| if member.name.is_empty() { member.peers.join(" ") } else { member.name })
        .collect();
    if !others.is_empty() {
        return Err(QuorumError::Refused(format!(
            "other servers still belong to this cluster: {}; remove them first, with `rung node remove`",
            others.join(", ")
        )));
    }
    let config = quorum.now().config(&quorum.tls);
    let ended = EtcdStore::connect(config).await?.end().await?;
    let path = data.join(SQLITE);
    let new = data.join("store.db.new");
    clear(&new)?;
    let filled = SqliteStore::open(&new)?;
    let carried = carry(Source::Etcd(&ended), &filled, LEAVE).await?;
    let epoch = filled.bump_epoch(ended.epoch()).await?;
    // Closed, it is one file.
    drop(filled);
    clear(&path)?;
    std::fs::rename(&new, &path).map_err(QuorumError::file("putting in place", &path))?;
    Record::take_away(data)?;
    Ok(Climbed { carried, epoch })
}
