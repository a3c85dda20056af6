//! Where the state is kept: SQLite on one machine, etcd on several; and the ways between them.
//!
//! `cluster.json` in the data directory is the one truth about that: where it is, the state is in etcd, else in
//! `store.db`. Climbing and going back fill the other store first, compare it with the old one, and then write or take
//! away this one file; a crash at any moment leaves one of them in charge, and the next start says which.
//!
//! ```text
//!   SQLite ──hold writes, start etcd, carry, compare──► write cluster.json ──start again──► etcd
//!   etcd ──end its history, carry, compare──► take cluster.json away ──start again──► SQLite
//! ```
//!
//! "Start again" means that the process replaces itself: applications and the ingress are processes of their own and do
//! not notice. Each way begins a new epoch.
//!
//! What this deliberately does not do: it never decides by itself to leave etcd, to restore, or to remove a member.

mod authority;
mod climb;
mod member;
mod record;
mod restore;
mod room;
mod servers;
mod snapshots;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use rung_store::carry::CarryError;
use rung_store::etcd::{EtcdAdmin, EtcdConfig, EtcdTls};
use rung_store::{EtcdStore, Revision, SqliteStore, Store, StoreError};

pub use self::climb::{Climb, Climbed, climb, descend};
pub use self::member::{EVENT_KIND, Member};
pub use self::record::Record;
pub use self::restore::{Frozen, Restored, restore};
pub(crate) use self::room::is_full;
pub use self::servers::{Bundle, enter, state_in};
pub(crate) use self::servers::{Standing, socket_of};
pub use self::snapshots::Snapshot;

/// The root of Rung's keys in etcd.
const ROOT: &str = "rung";

/// While no quorum answers, it is said again so often.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Members come and go rarely.
const LOOK_AT_MEMBERS_EVERY: Duration = Duration::from_secs(5);

/// A list without this server may be of before it was admitted.
const MISSED_FOR_GOOD: u32 = 2;

const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What a start is told while it waits.
pub type Tell<'a> = &'a (dyn Fn(&str) + Send + Sync);

#[derive(Debug, thiserror::Error)]
pub enum QuorumError {
    #[error("{act} {path}")]
    File { act: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} does not say where the state is: {detail}")]
    Record { path: PathBuf, detail: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Carry(#[from] CarryError),
    #[error("making certificates for etcd")]
    Certificates(#[from] rcgen::Error),
    #[error("using the certificates for etcd")]
    Tls(#[from] rung_store::etcd::TlsError),
    #[error("etcd can't be started: {0}")]
    Etcd(String),
    #[error("{0}")]
    Refused(String),
    /// The same works a moment later.
    #[error("{0}")]
    Later(String),
}

impl QuorumError {
    fn file(act: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { act, path, source }
    }
}

/// The store that is in use, by what it is.
#[derive(Debug, Clone)]
pub enum Backing {
    One(Arc<SqliteStore>),
    Several(Arc<Quorum>),
}

/// A store on etcd, and this machine's member of it.
#[derive(Debug)]
pub struct Quorum {
    pub store: Arc<EtcdStore>,
    /// As it was when this server started.
    pub record: Record,
    pub member: Member,
    tls: EtcdTls,
    /// Where members serve clients; they come and go.
    endpoints: RwLock<Vec<SocketAddr>>,
}

impl Backing {
    /// Opens what `cluster.json` says, or `store.db` without it. Waits for as long as no quorum answers.
    ///
    /// # Errors
    /// What is there can't be used; nothing was changed then.
    pub async fn open(data: &Path, tell: Tell<'_>) -> Result<Self, QuorumError> {
        match Record::read(data)? {
            None => {
                // Left behind by a climb that did not come to its end, or by the way back.
                member::stop_any(data).await;
                Ok(Self::One(Arc::new(SqliteStore::open(data.join(record::SQLITE))?)))
            }
            Some(record) => {
                climb::put_sqlite_away(data)?;
                Quorum::open(data, record, tell).await.map(|quorum| Self::Several(Arc::new(quorum)))
            }
        }
    }

    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::One(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Several(quorum) => Arc::clone(&quorum.store) as Arc<dyn Store>,
        }
    }

    pub fn quorum(&self) -> Option<&Arc<Quorum>> {
        match self {
            Self::One(_) => None,
            Self::Several(quorum) => Some(quorum),
        }
    }

    pub async fn revision(&self) -> Result<Revision, StoreError> {
        self.store().get(rung_model::keys::LEADER).await.map(|read| read.revision)
    }

    /// Begins an epoch that is higher than the store's own and than `above`.
    pub async fn begin_epoch(self, above: u64) -> Result<Self, QuorumError> {
        match self {
            Self::One(store) => {
                store.bump_epoch(above).await?;
                Ok(Self::One(store))
            }
            Self::Several(quorum) => {
                let store = EtcdStore::reopen(quorum.record.config(&quorum.tls), above).await?;
                let (mut record, member) = (quorum.record.clone(), quorum.member.clone());
                record.epoch = store.epoch();
                record.write(member.data())?;
                Ok(Self::Several(Arc::new(Quorum::new(store, record, member, quorum.tls.clone()))))
            }
        }
    }

    /// A copy of the whole state in a file, which [`restore`] and [`SqliteStore::open`] read.
    pub async fn back_up(&self, to: &Path) -> Result<Revision, QuorumError> {
        match self {
            Self::One(store) => Ok(store.backup_to(to).await?),
            Self::Several(quorum) => snapshots::write(&quorum.store, to).await,
        }
    }
}

impl Quorum {
    async fn open(data: &Path, mut record: Record, tell: Tell<'_>) -> Result<Self, QuorumError> {
        let member = Member::ensure(data, &record).await?;
        let tls = authority::client(data)?;
        let config = record.config(&tls);
        let mut said = tokio::time::Instant::now();
        let store = loop {
            match EtcdStore::connect(config.clone()).await {
                Ok(store) => break store,
                // The way back was begun and not finished: nobody else uses this history.
                Err(StoreError::Ended { epoch }) if record.endpoints.len() == 1 => {
                    tell("going back to one machine was not finished; the state is still in etcd");
                    break EtcdStore::reopen(config.clone(), epoch).await?;
                }
                Err(StoreError::Unavailable(why)) => {
                    if said.elapsed() >= SAY_EVERY {
                        said = tokio::time::Instant::now();
                        tell(&format!(
                            "waiting for a quorum of etcd ({why}); start the other servers, or when they are lost \
                             for good, stop rung and run `rung cluster restore`"
                        ));
                    }
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        if record.epoch != store.epoch() {
            record.epoch = store.epoch();
            record.write(data)?;
        }
        Ok(Self::new(store, record, member, tls))
    }

    fn new(store: EtcdStore, record: Record, member: Member, tls: EtcdTls) -> Self {
        let endpoints = RwLock::new(record.endpoints.clone());
        Self { store: Arc::new(store), record, member, tls, endpoints }
    }

    /// Whichever member answers.
    pub fn admin(&self) -> EtcdAdmin {
        EtcdAdmin::new(self.now().config(&self.tls).endpoints, Some(self.tls.clone()))
    }

    /// The record, with the members of now.
    fn now(&self) -> Record {
        let endpoints = self.endpoints.read().expect("no panic while held").clone();
        Record { endpoints, ..self.record.clone() }
    }

    /// Whether there is no other server, as far as this one knows.
    pub fn is_alone(&self) -> bool {
        self.endpoints.read().expect("no panic while held").len() < 2
    }

    /// One member alone.
    pub fn admin_of(&self, endpoint: &str) -> EtcdAdmin {
        EtcdAdmin::new(vec![endpoint.to_owned()], Some(self.tls.clone()))
    }

    /// Looks after this server's place among the members, for as long as it has one.
    pub async fn keep_membership(&self, tell: Tell<'_>) {
        self.promote_itself(tell).await;
        let mut missed = 0;
        while missed < MISSED_FOR_GOOD {
            missed = if self.is_removed().await == Some(true) { missed + 1 } else { 0 };
            match self.endpoints().await {
                Ok(endpoints) if !endpoints.is_empty() && endpoints != self.now().endpoints => {
                    if let Err(error) = self.learn(endpoints) {
                        tell(&format!("keeping where etcd's members are: {}", crate::trees::chain(&error)));
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "asking for etcd's members"),
            }
            tokio::time::sleep(LOOK_AT_MEMBERS_EVERY).await;
        }
        tell("the other servers have taken this one out");
    }

    /// Goes by these members from now on, also after a restart.
    fn learn(&self, endpoints: Vec<SocketAddr>) -> Result<(), QuorumError> {
        self.endpoints.write().expect("no panic while held").clone_from(&endpoints);
        self.store.set_endpoints(self.now().config(&self.tls).endpoints);
        let data = self.member.data();
        match Record::read(data)? {
            // What an operator has written there meanwhile stays.
            Some(record) => Record { endpoints, ..record }.write(data),
            // The state has just moved to one machine.
            None => Ok(()),
        }
    }

    pub async fn take_snapshot(&self) -> Result<Snapshot, QuorumError> {
        snapshots::take(&self.store, self.member.data()).await
    }

    pub fn snapshots(&self) -> Vec<Snapshot> {
        snapshots::list(self.member.data())
    }
}

impl Record {
    fn config(&self, tls: &EtcdTls) -> EtcdConfig {
        let mut endpoints: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
        // The member beside this server first: nothing has to travel for it.
        let own = self.client.to_string();
        endpoints.retain(|endpoint| *endpoint != own);
        endpoints.insert(0, own);
        EtcdConfig { endpoints, tls: Some(tls.clone()), root: ROOT.to_owned() }
    }
}
