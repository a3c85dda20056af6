//! What the server's parts share: the store, the loop's index, artifacts, events.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rung_api::{Code, ErrorBody};
use rung_model::{AppName, Digest, Document, NodeId, keys};
use rung_planner::{Clock, World};
use rung_store::{Guard, Op, Revision, Store, StoreError, Txn};
use rung_trust::{Authority, Identity, Members};
use tokio::sync::{mpsc, watch};

use crate::access::Access;
use crate::audit::Audit;
use crate::bells::{Bells, Topic};
use crate::certificates::Shelf;
use crate::events::EventLog;
use crate::git::Repositories;
use crate::hosts::Hosts;
use crate::keyring::Keyring;
use crate::numbers::Numbers;
use crate::quorum::Backing;
use crate::reconcile::{Event, Reconcile};
use crate::shares::Shares;
use crate::tallies::Tallies;
use crate::trees::{Trees, TreesError};
use crate::turns::{Turn, Turns};
use crate::{ControlConfig, Ending};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("taking the lead")]
    Lead(#[source] StoreError),
    #[error("another server took the lead at the same moment; start again")]
    LeadTaken,
    #[error("opening the artifacts' directory")]
    Trees(#[from] TreesError),
    #[error("opening the audit trail at {path}")]
    Audit { path: String, source: std::io::Error },
    #[error("opening the event log at {path}")]
    Events { path: String, source: std::io::Error },
}

/// The server's state; cheap to clone.
#[derive(Clone)]
pub struct Control {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub store: Arc<dyn Store>,
    pub keys: Keyring,
    pub access: Access,
    pub audit: Audit,
    pub backing: Backing,
    /// Whether the state is being moved to another store.
    pub is_moving: AtomicBool,
    /// Among several servers: see [`crate::served`].
    pub is_cut_off: AtomicBool,
    pub endings: mpsc::Sender<Ending>,
    pub node: NodeId,
    pub http: String,
    pub services: Option<u16>,
    pub version: String,
    pub data: std::path::PathBuf,
    pub trees: Trees,
    /// Artifacts that are being fetched from other servers.
    pub fetching: Turns<Digest>,
    /// Requests that change an app.
    pub changing: Turns<AppName>,
    pub repositories: Repositories,
    pub events: EventLog,
    pub upgrades: mpsc::Sender<std::path::PathBuf>,
    pub reconcile: Mutex<Reconcile>,
    /// Wakes the leader's loop.
    pub mailbox: mpsc::UnboundedSender<Event>,
    /// Counts the polls of proxies, to tell them apart.
    pub polls: AtomicU64,
    /// Counts changes of the index; what long polls wait for.
    pub changes: watch::Sender<u64>,
    /// The same for what thousands wait for.
    pub bells: Bells,
    pub started: Instant,
    pub started_at: Timestamp,
    /// Why the last write to the store failed; `None` since one succeeded.
    pub store_trouble: Mutex<Option<String>>,
    /// Made when the API is first served to other machines.
    pub authority: OnceLock<Authority>,
    pub members: Members,
    /// Who this server is to agents on other machines.
    pub identity: OnceLock<Arc<Identity>>,
    pub numbers: Numbers,
    pub hosts: Hosts,
    /// What ingresses tell each other.
    pub shares: Mutex<Shares>,
    /// What they count.
    pub tallies: Mutex<Tallies>,
    /// When each node's agent last beat.
    pub beats: Mutex<std::collections::BTreeMap<NodeId, Instant>>,
    /// What is known of certificates.
    pub shelf: Shelf,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

/// Longer only when the store's watch has broken off; the write is done all the same.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// What a transaction of a request came to.
pub(crate) enum Committed {
    Done,
    /// Somebody else wrote; read again and decide anew.
    Conflict,
}

impl Control {
    /// Takes the lead and starts the loop. The returned task ends when the store is closed.
    pub async fn start(config: ControlConfig) -> Result<(Self, tokio::task::JoinHandle<()>), StartError> {
        let store = config.backing.store();
        let reconcile = match &config.backing {
            // Nobody else can lead: the lock of the data directory sees to that.
            Backing::One(_) => {
                let fence = crate::leader::take_the_lead(store.as_ref(), &config.node).await?;
                Reconcile::new(store.epoch(), fence)
            }
            Backing::Several(_) => Reconcile::follower(store.epoch()).among_others(&config.node),
        };
        let trees = Trees::open(&config.data.join("artifacts"), &config.artifacts)?;
        let repositories = Repositories::new(&config.data);
        let events_path = config.data.join("events.jsonl");
        let events = EventLog::open(&events_path)
            .map_err(|source| StartError::Events { path: events_path.display().to_string(), source })?;
        let audit_path = config.data.join("audit");
        let audit = Audit::open(&audit_path)
            .map_err(|source| StartError::Audit { path: audit_path.display().to_string(), source })?;
        let (mailbox, inbox) = mpsc::unbounded_channel();
        let inner = Inner {
            keys: config.keys,
            access: Access::new(&config.token),
            audit,
            store,
            backing: config.backing,
            is_moving: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
            endings: config.endings,
            node: config.node,
            http: config.http,
            services: config.services,
            version: config.version,
            data: config.data,
            trees,
            fetching: Turns::default(),
            changing: Turns::default(),
            repositories,
            events,
            upgrades: config.upgrades,
            reconcile: Mutex::new(reconcile),
            mailbox,
            polls: AtomicU64::new(0),
            changes: watch::Sender::new(0),
            bells: Bells::default(),
            started: Instant::now(),
            started_at: Timestamp::now(),
            store_trouble: Mutex::default(),
            authority: OnceLock::new(),
            members: Members::default(),
            identity: OnceLock::new(),
            numbers: Numbers::default(),
            hosts: Hosts::default(),
            shares: Mutex::default(),
            tallies: Mutex::default(),
            beats: Mutex::default(),
            shelf: Shelf::new(),
        };
        let control = Self { inner: Arc::new(inner) };
        let task = control.start_loops(inbox);
        Ok((control, task))
    }

    /// Not async: what an async function awaits or spawns is compiled where that is awaited, in the binary.
    fn start_loops(&self, inbox: mpsc::UnboundedReceiver<Event>) -> tokio::task::JoinHandle<()> {
        tokio::spawn(crate::prune::prune_now_and_then(self.clone()));
        tokio::spawn(crate::trees::keep_in_their_place(self.clone()));
        tokio::spawn(crate::access::watch_tokens(self.clone()));
        tokio::spawn(crate::secrets::end_rotation_of_before(self.clone()));
        tokio::spawn(crate::notify::tell_of_ends(self.clone()));
        tokio::spawn(crate::run_logs::keep_run_logs(self.clone()));
        tokio::spawn(self.clone().keep_quorum());
        tokio::spawn(crate::certificates::follow(self.clone()));
        tokio::spawn(crate::certificates::keep_ordered(self.clone()));
        tokio::spawn(crate::leader::lead(self.clone(), inbox))
    }

    /// Looks after this machine's member of etcd, where there is one.
    async fn keep_quorum(self) {
        let Some(quorum) = self.inner.backing.quorum().cloned() else { return };
        tokio::spawn(crate::election::stand(self.clone()));
        tokio::spawn(crate::served::tell(self.clone()));
        tokio::spawn(crate::replicas::keep_copies(self.clone()));
        tokio::spawn(crate::others::follow(self.clone()));
        tokio::spawn(crate::shares::pass_on(self.clone()));
        let tell = |message: &str| self.record(None, crate::quorum::EVENT_KIND, message);
        tokio::join!(
            quorum.member.clone().supervise(quorum.record.clone(), &tell),
            quorum.keep_snapshots(&tell),
            quorum.keep_room(&tell),
            async {
                quorum.keep_membership(&tell).await;
                // One that is asked for already is enough.
                let _ = self.inner.endings.try_send(Ending::Removed);
            }
        );
    }

    /// What an election came to.
    pub(crate) fn lead_or_follow(&self, fence: Option<Revision>) {
        let node = &self.inner.node;
        let words = if fence.is_some() { "plans from now on" } else { "plans no more" };
        self.record(None, "leader", format!("server {node} {words}"));
        let _ = self.inner.mailbox.send(Event::Lead(fence));
    }

    pub(crate) fn clock(&self) -> Clock {
        Clock { elapsed: self.inner.started.elapsed(), wall: Timestamp::now() }
    }

    /// Reads the index. The closure must be quick: everything waits for it.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&World) -> T) -> T {
        self.read_loop(|reconcile| read(reconcile.world()))
    }

    /// A document as it is to be stored: see [`World::encode`].
    pub(crate) fn encode<T: Document>(&self, key: &str, document: &T) -> Vec<u8> {
        self.read(|world| world.encode(key, document))
    }

    pub(crate) fn read_loop<T>(&self, read: impl FnOnce(&Reconcile) -> T) -> T {
        read(&self.inner.reconcile.lock().expect("no panic while held"))
    }

    /// A proxy's process has ended or is about to.
    pub(crate) fn proxy_gone(&self, proxy: &str) {
        let _ = self.inner.mailbox.send(Event::ProxyGone { proxy: proxy.to_owned() });
    }

    /// Writes down that something happened here, for `rung events`.
    pub fn record(&self, app: Option<&AppName>, kind: &str, message: impl Into<String>) {
        let own = matches!(self.inner.backing, Backing::Several(_)).then_some(&self.inner.node);
        self.inner.events.record(app, own, kind, message.into());
    }

    /// The same of what each server sees in the state.
    pub(crate) fn record_seen(&self, app: &AppName, kind: &str, message: String) {
        self.inner.events.record(Some(app), None, kind, message);
    }

    /// Waits until `ready` finds something in the index, at the latest for `wait`.
    pub(crate) async fn wait_for<T>(
        &self,
        wait: Duration,
        ready: impl FnMut(&Reconcile) -> Option<T>,
    ) -> Option<T> {
        self.wait_with(self.inner.changes.subscribe(), wait, ready).await
    }

    /// The same, looking only when what is named has changed.
    pub(crate) async fn wait_for_topic<T>(
        &self,
        topic: Topic,
        wait: Duration,
        ready: impl FnMut(&Reconcile) -> Option<T>,
    ) -> Option<T> {
        self.wait_with(self.inner.bells.subscribe(topic), wait, ready).await
    }

    async fn wait_with<T, C>(
        &self,
        mut changes: watch::Receiver<C>,
        wait: Duration,
        mut ready: impl FnMut(&Reconcile) -> Option<T>,
    ) -> Option<T> {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            if let Some(found) = self.read_loop(&mut ready) {
                return Some(found);
            }
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return None,
            }
        }
    }

    /// Every write goes through here, so that it is known whether the store can be written at all.
    pub(crate) async fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Result<Txn, StoreError> {
        let outcome = self.inner.store.txn(guards, ops).await;
        let trouble = match &outcome {
            Err(error @ (StoreError::Unavailable(_) | StoreError::Full)) => Some(error.to_string()),
            _ => None,
        };
        *self.inner.store_trouble.lock().expect("no panic while held") = trouble;
        outcome
    }

    /// For people: what the index shows may be old while nothing can be written.
    pub(crate) fn store_trouble(&self) -> Option<String> {
        if self.is_cut_off() && matches!(self.inner.backing, Backing::Several(_)) {
            let message = "what is shown may be old: this server does not reach most of the others; ask one of those, or look at \
                           `rung cluster`. What runs goes on, and what crashes is started again where it was";
            return Some(message.to_owned());
        }
        let trouble = self.inner.store_trouble.lock().expect("no panic while held").clone();
        trouble.map(|why| format!("what is shown may be old: {why}. What runs goes on; what crashes is not started again before that is mended"))
    }

    /// Waits until the index holds everything up to this revision.
    pub(crate) async fn see(&self, revision: Revision) {
        let bell = self.inner.bells.at(revision);
        if self.read(|world| world.revision < revision) {
            let _ = tokio::time::timeout(SEEN_WITHIN, bell).await;
        }
    }

    /// Waits until the index holds what anybody has written until now: from what is old nothing new would be decided.
    pub(crate) async fn catch_up(&self) -> Result<(), ErrorBody> {
        let read = self.inner.store.get(keys::LEADER).await.map_err(|error| store_error(&error))?;
        self.see(read.revision).await;
        Ok(())
    }

    /// Requests that change an app take turns at this server, so that only other servers are in their way, and decide by
    /// what was written before them, wherever it was asked for.
    pub(crate) async fn turn_of(&self, app: &AppName) -> Result<Turn<AppName>, ErrorBody> {
        let turn = self.inner.changing.take(app).await;
        if let Backing::Several(_) = self.inner.backing {
            self.catch_up().await?;
        }
        Ok(turn)
    }

    /// Commits a request's writes and waits until the index holds them, so that the next read sees them.
    pub(crate) async fn commit(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Result<Committed, ErrorBody> {
        match self.txn(guards, ops).await.map_err(|error| store_error(&error))? {
            Txn::Committed(revision) => {
                self.see(revision).await;
                Ok(Committed::Done)
            }
            Txn::Conflict => {
                self.catch_up().await?;
                Ok(Committed::Conflict)
            }
            Txn::Unknown => {
                Err(ErrorBody::new(Code::Unknown, "the store did not say whether the change was made")
                    .hint("look with `rung status` before doing it again"))
            }
        }
    }
}

/// How often a request decides anew when others write the same documents at the same moment.
pub(crate) const ATTEMPTS: usize = 16;

pub(crate) fn contended(what: &str) -> ErrorBody {
    ErrorBody::new(Code::Conflict, format!("{what} was changed by others again and again")).hint("try again")
}

pub(crate) fn store_error(error: &StoreError) -> ErrorBody {
    let code = match error {
        StoreError::TooLarge { .. } => Code::TooLarge,
        StoreError::Unavailable(_) | StoreError::Full | StoreError::Ended { .. } | StoreError::Empty => {
            Code::Unavailable
        }
        StoreError::NoLease(_)
        | StoreError::InvalidKey { .. }
        | StoreError::InUse { .. }
        | StoreError::Damaged { .. }
        | StoreError::Newer { .. } => Code::Internal,
    };
    let body = ErrorBody::new(code, error.to_string());
    match code {
        _ if matches!(error, StoreError::Full) => body
            .hint("room is made by itself within seconds; when it is not, `rung cluster` says the way out"),
        Code::Unavailable => body.hint(
            "nothing was changed; is the disk full, or are the other servers away? `rung doctor` and `rung cluster` tell",
        ),
        _ => body,
    }
}
