//! Drives [`View`]: polls the server, hands tables to the threads, keeps documents on disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rung_api::wire::{ProxyDocuments, ProxyPoll};
use rung_api::{Client, ClientError};
use rung_model::{Generation, InstanceId, RouteDocument};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::balance::Registry;
use crate::cluster;
use crate::documents::Documents;
use crate::share::{self, Sharing};
use crate::table::Table;
use crate::tally::{TELL_EVERY, Teller};
use crate::traffic::{REPORT_EVERY, Reporter};
use crate::view::{Effect, Event, View};
use crate::worker::{Applied, Shared};

/// Beyond the time that the server was allowed, before a poll counts as failed.
const POLL_MARGIN: Duration = Duration::from_secs(10);

/// What is known of the following, for the control socket and the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Following {
    /// Every thread picks from it.
    pub(crate) generation: Generation,
    /// There is something to serve by: the server's word, or documents from disk.
    pub(crate) is_ready: bool,
}

impl Following {
    pub(crate) const NOTHING: Self = Self { generation: Generation::ZERO, is_ready: false };
}

/// Where tables come from and what is told to whom.
#[derive(Debug)]
pub(crate) struct Follower {
    shared: Arc<Shared>,
    view: View,
    registry: Registry,
    documents: Documents,
    client: Client,
    tables: watch::Sender<Arc<Table>>,
    following: watch::Sender<Following>,
    poll: Option<Poll>,
    started: Instant,
    /// Said once, not at each try.
    is_failing: bool,
    reporter: Reporter,
    sharing: Sharing,
    /// The report on its way.
    reporting: Option<tokio::task::JoinHandle<()>>,
    teller: Teller,
    /// The tallies on their way.
    telling: Option<tokio::task::JoinHandle<Told>>,
}

/// What became of a report of tallies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Heard,
    /// It has not been heard, or the server knew nothing of this process.
    Missed,
}

/// The outstanding poll; dropped, it is abandoned.
#[derive(Debug)]
struct Poll {
    ticket: u64,
    answer: tokio::sync::oneshot::Receiver<Result<ProxyDocuments, ClientError>>,
    task: AbortHandle,
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    pub(crate) fn new(
        shared: Arc<Shared>,
        documents: Documents,
        tables: watch::Sender<Arc<Table>>,
        following: watch::Sender<Following>,
    ) -> Self {
        let config = &shared.config;
        let client = cluster::client(config, shared.cluster());
        Self {
            view: View::new(config.threads),
            registry: Registry::new(),
            documents,
            client,
            shared,
            tables,
            following,
            poll: None,
            started: Instant::now(),
            is_failing: false,
            reporter: Reporter::new(),
            sharing: Sharing::default(),
            reporting: None,
            teller: Teller::new(),
            telling: None,
        }
    }

    /// By which the servers are asked.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Follows until it is dropped.
    pub(crate) async fn run(mut self, mut applied: mpsc::UnboundedReceiver<Applied>) {
        let documents = self.documents.load();
        self.step(Event::Started { documents });
        let drained = self.registry.drained.clone();
        let mut reports = tokio::time::interval(REPORT_EVERY);
        reports.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The proxy of a node passes connections; limits are for who takes requests of clients.
        let takes_clients = !self.shared.config.listen.is_empty();
        let takes_requests = takes_clients || !self.shared.config.services.is_empty();
        let mut shares = tokio::time::interval(share::EVERY);
        shares.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tells = tokio::time::interval(TELL_EVERY);
        tells.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.view.next_wake().map(|at| tokio::time::Instant::from(self.started + at));
            let event = tokio::select! {
                Some(Applied { thread, version }) = applied.recv() => Event::Applied { thread, version },
                (ticket, answer) = next_answer(&mut self.poll) => self.understand(ticket, answer),
                () = drained.notified() => self.counted(),
                () = sleep_until(wake) => Event::Tick,
                _ = shares.tick(), if takes_clients && self.registry.has_limits() => {
                    self.sharing.tick(&self.client, &self.shared.config.proxy, self.registry.limits());
                    continue;
                }
                _ = tells.tick(), if takes_requests => {
                    self.tell().await;
                    continue;
                }
                _ = reports.tick(), if self.registry.is_measuring() => {
                    self.report();
                    continue;
                }
            };
            self.step(event);
        }
    }

    fn step(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let effects = self.view.step(event, self.started.elapsed());
            events.extend(effects.into_iter().filter_map(|effect| self.perform(effect)));
        }
        let is_ready =
            self.view.is_current() || (self.view.is_applied() && !self.view.documents().is_empty());
        let generation = self.view.acknowledged();
        self.following.send_if_modified(|following| {
            let now = Following { generation, is_ready: following.is_ready || is_ready };
            std::mem::replace(following, now) != now
        });
    }

    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Publish { version, documents } => self.publish(version, &documents),
            Effect::Keep(document) => {
                if let Err(error) = self.documents.keep(&document) {
                    tracing::warn!(app = %document.app, %error, "keeping a route document on disk failed");
                }
            }
            Effect::Forget(app) => {
                if let Err(error) = self.documents.forget(&app) {
                    tracing::warn!(%app, %error, "removing a route document from disk failed");
                }
            }
            Effect::Count => return Some(self.counted()),
            Effect::Poll { ticket, poll, wait } => self.send(ticket, poll, wait),
            Effect::Refused { what } => tracing::warn!(what, "refusing what is older than what is held"),
        }
        None
    }

    fn publish(&mut self, version: u64, documents: &[Arc<RouteDocument>]) {
        let before = self.tables.borrow().clone();
        let table = Table::build(version, documents, &before, &mut self.registry, self.shared.cluster());
        if self.view.is_heard() || !documents.is_empty() {
            self.shared.knows_routes.store(true, Ordering::Relaxed);
        }
        self.tables.send_replace(Arc::new(table));
    }

    /// Tells the server what was counted, unless the last report is still on its way: the next one holds it all.
    fn report(&mut self) {
        if self.reporting.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Some(traffic) = self.reporter.report(self.registry.traffic()) else { return };
        let client = self.client.clone();
        let proxy = self.shared.config.proxy.clone();
        self.reporting = Some(tokio::spawn(async move {
            let told = tokio::time::timeout(POLL_MARGIN, client.report_traffic(&proxy, &traffic)).await;
            if let Ok(Err(error)) = told {
                tracing::debug!(%error, "the server was not told what was counted; the next report holds it too");
            }
        }));
    }

    /// Tells the server what has changed of the tallies. What a lost report held, the next round holds.
    async fn tell(&mut self) {
        if self.telling.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let last = match self.telling.take() {
            Some(task) => task.await.unwrap_or(Told::Missed),
            None => Told::Heard,
        };
        if last == Told::Missed || self.registry.has_retired() {
            self.teller.begin_anew();
        }
        let Some(report) = self.teller.report(self.registry.tallied(), Instant::now()) else { return };
        let client = self.client.clone();
        let proxy = self.shared.config.proxy.clone();
        self.telling = Some(tokio::spawn(async move {
            let told = tokio::time::timeout(POLL_MARGIN, client.report_tally(&proxy, &report)).await;
            match told {
                Ok(Ok(heard)) if !heard.tell_all => Told::Heard,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the server was not told what was counted");
                    Told::Missed
                }
                _ => Told::Missed,
            }
        }));
    }

    fn counted(&self) -> Event {
        let count = |id: &InstanceId| (id.clone(), self.registry.in_flight(id));
        let draining: BTreeMap<InstanceId, u64> = self.view.draining().into_iter().map(count).collect();
        Event::Counted { draining }
    }

    fn send(&mut self, ticket: u64, poll: ProxyPoll, wait: Duration) {
        let client = self.client.clone();
        let proxy = self.shared.config.proxy.clone();
        let (sender, answer) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let asked = tokio::time::timeout(wait + POLL_MARGIN, client.poll_routes(&proxy, &poll, wait));
            // Without an answer in time the sender is dropped, which the receiver takes for a failure.
            if let Ok(answer) = asked.await {
                // Nobody waits any more when the poll was abandoned.
                let _ = sender.send(answer);
            }
        });
        self.poll = Some(Poll { ticket, answer, task: task.abort_handle() });
    }

    fn understand(&mut self, ticket: u64, answer: Option<Result<ProxyDocuments, ClientError>>) -> Event {
        self.poll = None;
        let error = match answer {
            Some(Ok(answer)) => {
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("the server answers again");
                }
                return Event::Answered { ticket, answer };
            }
            Some(Err(error)) => error.to_string(),
            None => "no answer in time".to_owned(),
        };
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(error, "polling the server failed; serving by the routes that are held");
        }
        Event::Failed { ticket }
    }
}

async fn next_answer(poll: &mut Option<Poll>) -> (u64, Option<Result<ProxyDocuments, ClientError>>) {
    match poll {
        Some(poll) => (poll.ticket, (&mut poll.answer).await.ok()),
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
