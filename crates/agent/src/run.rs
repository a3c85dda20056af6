//! The agent put together: a thin shell around the converge machine.
//!
//! Tasks: the machine's loop, the assignment's long poll, the beats, the reports, the agent's own API. Each effect of
//! the machine is a task of its own and answers with an event.

use std::io;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rung_api::Client;
use rung_api::seal::KeyError;
use rung_model::app::Destroying;
use rung_model::node::ContainerEngine;
use rung_model::{AppName, Labels, NodeId, Observed};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api;
use crate::artifacts::{Artifacts, blocking, chain};
use crate::cgroups::Cgroups;
use crate::converge::{Converge, Effect, Event, Now};
use crate::driver::Driver;
use crate::driver::docker::{Doors, Porter};
use crate::engine::Engine;
use crate::facts::{Capabilities, Kind, Reached, look_for_engine, node_facts, short_of_disk};
use crate::firewall::walls::Walls;
use crate::firewall::{self, Firewall};
use crate::images::Images;
use crate::instances::{Events, Instances};
use crate::layout::Layout;
use crate::leases::{self, Leases};
use crate::ledger::{Ledger, LedgerError};
use crate::node::{Node, Shared};
use crate::runs::RunsDriver;

/// The server takes a node for lost after 8 s without a beat.
const BEAT: Duration = Duration::from_secs(2);
/// A beat or a report is answered at once; a silence of this length is a broken path.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// Short enough that a poll into a machine that has died is noticed soon.
const POLL_WAIT: Duration = Duration::from_secs(10);
/// Between attempts to reach a server that does not answer: soon at first, for it is usually just being restarted.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// The machine is stepped so often even when nothing happens: loops are level-triggered.
const TICK: Duration = Duration::from_secs(10);
/// Every grace period ends in a kill; an instance that is still there after this is beyond the kernel's help.
const STOP_MAX: Duration = Duration::from_secs(120);

/// The engine is asked for its version so often: one question over a local socket.
const ENGINE_EVERY: Duration = Duration::from_secs(5);

/// A container whose removal failed is looked for again.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Images are looked at once in so many sweeps, as often as the server looks at its artifacts.
const IMAGES_EVERY: u32 = 10;

#[derive(Debug, Clone)]
pub struct AgentConfig {
    pub node: NodeId,
    /// `<data>/node`.
    pub data: PathBuf,
    /// Where the agent's own API is served.
    pub socket: PathBuf,
    pub api: Client,
    /// The executable that becomes a shim when it is started with `shim`.
    pub program: PathBuf,
    /// What the command line says of the machine.
    pub labels: Labels,
    /// At which port this machine's proxy answers for the cluster's services, when it does.
    pub services: Option<u16>,
    /// That proxy, for calls from containers.
    pub porter: Option<Arc<dyn Porter>>,
}

/// What the one who runs the agent wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    No,
    /// The agent ends, the instances go on; the next agent adopts them.
    KeepInstances,
    /// Every instance is stopped in order. Desired state is untouched: the next agent starts them again.
    StopInstances,
}

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("preparing the node's directory {path}")]
    Data { path: String, source: io::Error },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("serving the agent's API at {path}")]
    Socket { path: String, source: io::Error },
}

impl AgentError {
    /// For people, where there is one that the message does not say.
    pub fn way_out(&self) -> Option<&'static str> {
        match self {
            Self::Data { .. }
            | Self::Ledger(LedgerError::Write { .. } | LedgerError::Key(KeyError::Io { .. })) => Some(
                "make room on that disk, or let the user that rung runs as write there, then start rung again; what it \
                 can't write down it does not start, and instances that run go on",
            ),
            Self::Ledger(_) | Self::Socket { .. } => None,
        }
    }
}

/// How other machines reach this node.
#[derive(Debug)]
pub struct Outside {
    pub listener: rung_trust::Listener,
    /// Of the agent, `10.0.0.2:7865`.
    pub agent: std::net::SocketAddr,
    /// Of the node's proxy.
    pub proxy: std::net::SocketAddr,
}

/// Runs the node role until it is told to end. Without an outside the node is alone.
pub async fn run(
    config: AgentConfig,
    outside: Option<Outside>,
    shutdown: watch::Receiver<Shutdown>,
) -> Result<(), AgentError> {
    let mode = if outside.is_some() { leases::Mode::InCluster } else { leases::Mode::Alone };
    let node = open(&config, mode).await?;
    // What runs already is behind it before anything else happens.
    firewall::ensure(&node).await;
    let listener = api::bind(&config.socket)
        .map_err(|source| AgentError::Socket { path: config.socket.display().to_string(), source })?;
    let (events, received) = mpsc::unbounded_channel();
    let (reports, to_report) = watch::channel(None);
    let (follow, following) = watch::channel(rung_model::Generation::ZERO);
    let began = node.ledger().begin(jiff::Timestamp::now())?;
    let agent = Agent {
        machine: Converge::new(node.id.clone(), began),
        origin: Instant::now(),
        instances: Instances::new(node.clone(), events.clone()),
        runs: RunsDriver::new(node.clone(), events.clone()),
        node: node.clone(),
        events: events.clone(),
        reports,
        follow,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(api::serve(listener, node.clone()));
    let reached = match &outside {
        Some(outside) => Reached { agent: format!("https://{}", outside.agent), proxy: Some(outside.proxy) },
        None => Reached { agent: format!("unix:{}", config.socket.display()), proxy: None },
    };
    if let Some(outside) = outside {
        tasks.spawn(api::serve_servers(outside.listener, node.clone()));
    }
    let (found, engine) = watch::channel(look_for_engine(node.images.engine()).await);
    tasks.spawn(watch_engine(node.clone(), found));
    tasks.spawn(keep_registered(node.clone(), reached, engine));
    tasks.spawn(keep_engine_clean(node.clone()));
    tasks.spawn(node.driver.containers().doors().clone().keep());
    tasks.spawn(leases::keep(node.clone()));
    tasks.spawn(firewall::keep(node.clone()));
    tasks.spawn(node.walls.clone().keep());
    tasks.spawn(send_reports(node.client.clone(), to_report));
    tasks.spawn(follow_assignment(node.clone(), events, following));
    let end = agent.run(received, shutdown).await;
    // The last report may still be on its way; what it says is seen at the next start anyway.
    tasks.shutdown().await;
    if end == End::Quiet {
        firewall::remove(&node).await;
        node.walls.remove().await;
    }
    node.capabilities.cgroups.release();
    let _ = std::fs::remove_file(&config.socket);
    Ok(())
}

async fn open(config: &AgentConfig, mode: leases::Mode) -> Result<Shared, AgentError> {
    let layout = Layout::new(config.data.clone());
    let fail = |source| AgentError::Data { path: config.data.display().to_string(), source };
    for directory in
        [layout.root().to_owned(), layout.launches(), layout.instances(), layout.runs(), layout.logs()]
    {
        std::fs::create_dir_all(&directory).map_err(fail)?;
    }
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(layout.root(), std::fs::Permissions::from_mode(0o700)).map_err(fail)?;
    let ledger = Ledger::open(layout.clone())?;
    let artifacts = Artifacts::open(layout.clone(), config.api.clone()).map_err(fail)?;
    let name = name_of(layout.root());
    let engine = Engine::of_this_machine();
    let doors = config.porter.clone().map(Doors::new).unwrap_or_default();
    let driver = Driver::new(config.program.clone(), engine.clone(), &name).with_doors(doors);
    let images = Images::new(engine.clone(), artifacts.clone(), config.api.clone());
    let cgroups_name = name.clone();
    let cgroups = blocking(move || {
        let cgroups = Cgroups::detect(&cgroups_name);
        cgroups.sweep();
        cgroups
    })
    .await;
    let capabilities = Capabilities::detect(driver.processes(), layout.root(), cgroups).await;
    let (firewall, walls) = match capabilities.kind {
        Kind::OwnUsers => {
            (Firewall::new(&name, layout.root()), Walls::new(engine, &name, layout.root(), layout.users()))
        }
        Kind::UserNamespace | Kind::Plain => (Firewall::without_users(), Walls::default()),
    };
    // The whole data directory is out of sight: the store and the keys lie beside the node's part of it.
    let masked = vec![layout.root().parent().unwrap_or(layout.root()).to_owned()];
    Ok(Shared::new(Node {
        id: config.node.clone(),
        layout,
        masked,
        client: config.api.clone(),
        driver: driver.with_walls(walls.clone()),
        artifacts,
        images,
        capabilities,
        labels: config.labels.clone(),
        services: config.services,
        porter: config.porter.clone(),
        leases: Leases::new(mode),
        firewall,
        walls,
        ledger: std::sync::Mutex::new(ledger),
        fetching: tokio::sync::Mutex::default(),
    }))
}

/// Two data directories on one machine must not meet in a cgroup, nor in a table of the firewall.
fn name_of(data: &Path) -> String {
    let path = std::fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let hash = path
        .to_string_lossy()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("rung-{:08x}", hash >> 32)
}

/// How the agent's loop has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing runs any more.
    Quiet,
    /// Instances go on, or do not end.
    Alive,
}

struct Agent {
    machine: Converge,
    origin: Instant,
    node: Shared,
    instances: Instances,
    runs: RunsDriver,
    events: Events,
    reports: watch::Sender<Option<Observed>>,
    follow: watch::Sender<rung_model::Generation>,
}

impl Agent {
    async fn run(
        mut self,
        mut received: mpsc::UnboundedReceiver<Event>,
        mut shutdown: watch::Receiver<Shutdown>,
    ) -> End {
        self.recall().await;
        let mut give_up: Option<Instant> = None;
        loop {
            let wake = self.machine.wake_at().map_or(Instant::now() + TICK, |at| self.origin + at);
            let wake = wake.min(Instant::now() + TICK);
            tokio::select! {
                event = received.recv() => self.step(event.expect("this agent keeps a sender")),
                () = tokio::time::sleep_until(wake) => self.step(Event::Tick),
                asked = asked_for(&mut shutdown), if give_up.is_none() => match asked {
                    Shutdown::StopInstances => {
                        give_up = Some(Instant::now() + STOP_MAX);
                        self.step(Event::ShutDown);
                    }
                    Shutdown::KeepInstances | Shutdown::No => return End::Alive,
                },
            }
            let Some(give_up) = give_up else { continue };
            if self.machine.is_quiet() {
                // What has ended may still be cleared away: the end of this process would cut that off.
                let _ = tokio::time::timeout_at(give_up, self.instances.cleared()).await;
                return End::Quiet;
            }
            if Instant::now() >= give_up {
                return End::Alive;
            }
        }
    }

    /// Everything that an earlier agent left, then the beginning.
    async fn recall(&mut self) {
        let releases: Vec<_> = self.node.ledger().launches().map(|launch| launch.release.clone()).collect();
        for release in releases {
            self.step(Event::Release(Box::new(release)));
        }
        for digest in self.node.artifacts.present().unwrap_or_default() {
            self.step(Event::Artifact { digest });
        }
        let assignment = self.node.ledger().assignment();
        let assignment = assignment.unwrap_or_else(|error| {
            tracing::warn!(
                error = chain(&error),
                "the kept assignment can't be read; waiting for the server's"
            );
            None
        });
        self.instances.find().await;
        self.instances.sweep_strays().await;
        if let Some(assignment) = &assignment {
            self.runs.sweep_strays(|run| assignment.runs.contains_key(run)).await;
        }
        // What was found was sent as events: they come before these.
        for event in assignment.map(Event::Assigned).into_iter().chain([Event::Begin]) {
            let _ = self.events.send(event);
        }
    }

    fn step(&mut self, event: Event) {
        let now = Now { elapsed: self.origin.elapsed(), wall: jiff::Timestamp::now() };
        for effect in self.machine.step(event, now) {
            self.carry_out(effect);
        }
        self.follow.send_if_modified(|known| {
            let generation = self.machine.generation();
            std::mem::replace(known, generation) != generation
        });
    }

    fn carry_out(&self, effect: Effect) {
        let (instances, node, events) = (self.instances.clone(), self.node.clone(), self.events.clone());
        match effect {
            Effect::Launch { instance, assigned, attempt, port } => {
                tokio::spawn(async move { instances.launch(instance, assigned, attempt, port).await });
            }
            Effect::Probe { instance, attempt, with_tail } => {
                tokio::spawn(async move { instances.probe(instance, attempt, with_tail).await });
            }
            Effect::Stop { instance, attempt, grace } => {
                tokio::spawn(async move { instances.stop(&instance, attempt, grace).await });
            }
            Effect::Forget { instance } => {
                tokio::spawn(async move { instances.forget(instance).await });
            }
            Effect::FetchRelease { app, release } => {
                tokio::spawn(async move {
                    let event = match node.launch(&app, release).await {
                        Ok(launch) => Event::Release(Box::new(launch.release.clone())),
                        Err(error) => Event::ReleaseFailed { app, release, reason: chain(&error) },
                    };
                    let _ = events.send(event);
                });
            }
            Effect::FetchArtifact { digest } => {
                tokio::spawn(async move {
                    let event = match node.ensure_artifact(&digest).await {
                        Ok(()) => Event::Artifact { digest },
                        Err((reason, cause)) => Event::ArtifactFailed { digest, reason, cause },
                    };
                    let _ = events.send(event);
                });
            }
            Effect::StartRun { run } => self.runs.start(*run),
            Effect::CancelRun { run } => self.runs.cancel(&run),
            Effect::ForgetRun { run } => {
                let runs = self.runs.clone();
                tokio::spawn(async move { runs.forget(run).await });
            }
            Effect::Keep { mut artifacts, releases } => {
                // Those of runs, too: a job goes on through deploys.
                let mut ledger = node.ledger();
                ledger.keep_launches(&releases);
                artifacts.extend(ledger.launches().map(|launch| launch.release.artifact.clone()));
                drop(ledger);
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = node.artifacts.keep(&artifacts) {
                        tracing::warn!(%error, "removing artifacts that are not used");
                    }
                });
            }
            Effect::Purge { app, volumes } => {
                tokio::task::spawn_blocking(move || {
                    purge(&node, &app, volumes);
                    let _ = events.send(Event::Purged { app, volumes });
                });
            }
            Effect::Record { assignment } => {
                let ledger = self.node.ledger();
                if let Err(error) = ledger.record_assignment(&assignment) {
                    tracing::warn!(
                        error = chain(&error),
                        "keeping the assignment for a time without servers"
                    );
                }
            }
            Effect::Report { observed } => drop(self.reports.send_replace(Some(*observed))),
        }
    }
}

/// Whoever would have asked may be gone: the instances are not.
async fn asked_for(shutdown: &mut watch::Receiver<Shutdown>) -> Shutdown {
    match shutdown.wait_for(|asked| *asked != Shutdown::No).await {
        Ok(asked) => *asked,
        Err(_) => Shutdown::KeepInstances,
    }
}

fn purge(node: &Node, app: &AppName, volumes: Destroying) {
    let layout = &node.layout;
    let mut directories = vec![layout.app_logs(app), layout.cache(app)];
    if volumes == Destroying::WithVolumes {
        directories.push(layout.app_volumes(app));
    }
    // A tree that stayed where it was built goes when no instance of any app needs the artifact.
    let builds = std::fs::read_dir(layout.app_builds(app)).into_iter().flatten().flatten();
    directories.extend(builds.map(|build| build.path()).filter(|built| !node.artifacts.is_tree(built)));
    directories.iter().for_each(|directory| remove(directory));
    let _ = std::fs::remove_dir(layout.app_builds(app));
}

fn remove(directory: &Path) {
    match rung_artifact::remove_tree(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, directory = %directory.display(), "removing the data of an app that is gone");
        }
        _ => {}
    }
}

/// Grows with each failure in a row.
struct Retry(Duration);

impl Retry {
    fn new() -> Self {
        Self(RETRY_MIN)
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(RETRY_MAX);
    }
}

/// An engine that was started after Rung counts, and one that has gone does not.
async fn watch_engine(node: Shared, found: watch::Sender<ContainerEngine>) {
    loop {
        tokio::time::sleep(ENGINE_EVERY).await;
        let now = look_for_engine(node.images.engine()).await;
        found.send_if_modified(|known| {
            let is_news = *known != now;
            *known = now;
            is_news
        });
    }
}

async fn keep_registered(node: Shared, reached: Reached, mut engine: watch::Receiver<ContainerEngine>) {
    let mut retry = Retry::new();
    let mut told = false;
    let mut short = None;
    loop {
        short = short_of_disk(node.layout.root(), short);
        let found = engine.borrow_and_update().clone();
        let (open_ports, open_addresses) = (node.firewall.shortfall(), node.walls.shortfall());
        let facts = node_facts(&reached, &node, found, short);
        if let Err(error) = in_time(ANSWER_WITHIN, node.client.register(&node.id, &facts)).await {
            if matches!(&error, CallError::Client(error) if error.code() == Some(rung_api::Code::Removed))
                && !told
            {
                told = true;
                let _ = writeln!(io::stderr(), "this node was taken out of its cluster: {}", chain(&error));
            }
            tracing::debug!(error = chain(&error), "registering");
            retry.pause().await;
            continue;
        }
        retry = Retry::new();
        // A server that lost sight of the node wants to hear of it from the beginning.
        while in_time(ANSWER_WITHIN, node.client.beat(&node.id)).await.is_ok()
            && !engine.has_changed().unwrap_or(false)
            && facts.lease_ms == node.leases.promise()
            && open_ports == node.firewall.shortfall()
            && open_addresses == node.walls.shortfall()
            && short == short_of_disk(node.layout.root(), short)
        {
            tokio::time::sleep(BEAT).await;
        }
    }
}

/// A server whose machine has died says nothing at all.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Client(#[from] rung_api::ClientError),
    #[error("no answer in time")]
    Silence,
}

async fn in_time<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, rung_api::ClientError>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::Silence),
    }
}

/// Sends the newest report until it has arrived, or a newer one is there.
async fn send_reports(client: Client, mut reports: watch::Receiver<Option<Observed>>) {
    let mut retry = Retry::new();
    while reports.changed().await.is_ok() {
        loop {
            let Some(observed) = reports.borrow_and_update().clone() else { break };
            match in_time(ANSWER_WITHIN, client.report(&observed)).await {
                Ok(()) => {
                    retry = Retry::new();
                    break;
                }
                Err(error) => {
                    tracing::debug!(error = chain(&error), "reporting");
                    retry.pause().await;
                }
            }
        }
    }
}

async fn follow_assignment(node: Shared, events: Events, held: watch::Receiver<rung_model::Generation>) {
    let mut retry = Retry::new();
    let mut after = *held.borrow();
    loop {
        after = after.max(*held.borrow());
        match in_time(POLL_WAIT + ANSWER_WITHIN, node.client.assignment(&node.id, after, POLL_WAIT)).await {
            Ok(Some(assignment)) => {
                retry = Retry::new();
                after = assignment.generation;
                if events.send(Event::Assigned(assignment)).is_err() {
                    return;
                }
            }
            Ok(None) => retry = Retry::new(),
            Err(error) => {
                tracing::debug!(error = chain(&error), "following the assignment");
                retry.pause().await;
            }
        }
    }
}

/// Containers that nobody knows, and images that no release needs. An engine that does not answer, or is not there, is
/// asked again the next time.
async fn keep_engine_clean(node: Shared) {
    let homes = [node.layout.instances(), node.layout.runs()];
    for turn in 0_u32.. {
        let homes: Vec<&Path> = homes.iter().map(PathBuf::as_path).collect();
        let swept = node.driver.containers().sweep(&homes).await;
        if swept.is_ok() && turn.is_multiple_of(IMAGES_EVERY) {
            match node.images.prune().await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "images pruned"),
                Err(error) => tracing::debug!(error = chain(&error), "pruning images"),
            }
        }
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}
