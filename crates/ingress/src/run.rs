//! The process of `rung ingress`: threads that serve, and a main thread that follows, answers and drains.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

use crate::access_log::{AccessLog, Style, Writer};
use crate::certificates::Certificates;
use crate::cluster::{self, Cluster, ClusterError};
use crate::config::{AccessLogSetting, Config, ConfigError, RedirectSetting};
use crate::control::{Facts, Server, Status};
use crate::development::{AUTHORITY, AuthorityError, DevelopmentAuthority};
use crate::documents::Documents;
use crate::doors;
use crate::follow::{Follower, Following};
use crate::managed::Managed;
use crate::names;
use crate::sockets;
use crate::table::Table;
use crate::worker::{self, Applied, Entrance, Https, Listening, Phase, Shared, WorkerStart};

/// With nothing on disk and no server in sight for so long, clients get an error page rather than silence.
const START_WITHOUT_ROUTES: Duration = Duration::from_secs(5);
/// Where pairs of certificates and keys lie, in the ingress's directory.
const CERTIFICATES: &str = "certificates";
/// Where those lie that the platform orders.
const MANAGED: &str = "managed";
/// A server answers at once; one that is gone or stopped notices the end by the silence.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Descriptors that are not for connections: logs, listeners, event loops, the server's connection.
const DESCRIPTORS_KEPT: u64 = 64;

/// Why an ingress process could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("preparing the ingress's directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("taking the inherited listening socket {number}")]
    Listener { number: i32, source: io::Error },
    #[error("starting the ingress: {act}")]
    Start { act: &'static str, source: io::Error },
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("preparing TLS")]
    Tls(#[from] rustls::Error),
    #[error("an ingress thread ended")]
    Thread(#[source] io::Error),
    #[error("an ingress thread panicked; what it said is above")]
    Panicked,
}

fn start_error(act: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Start { act, source }
}

/// Runs an ingress with the arguments of `rung ingress` until SIGTERM has drained it.
///
/// # Errors
/// When the arguments are not understood, or the system refuses what it needs.
pub fn run_process(args: &[String]) -> Result<(), RunError> {
    let ready = ready_descriptor(args)?;
    let config = Config::parse(&ready.rest)?;
    let open_max = raise_descriptor_limit();
    std::fs::create_dir_all(&config.directory)
        .map_err(|source| RunError::Directory { path: config.directory.clone(), source })?;
    // In this order the control socket hands them over, and their numbers tell them apart.
    let mut listeners = listening(&config.services, Entrance::Services)?;
    listeners.extend(listening(&config.listen, Entrance::Http)?);
    let https = prepare_https(&config)?;
    listeners.extend(https.sockets);
    listeners.extend(listening(&config.peers, Entrance::Peers)?);
    let cluster = config.trust.as_deref().map(Cluster::open).transpose()?.map(Arc::new);
    let names = config.names.map(|number| {
        sockets::inherited_datagrams(number).map_err(|source| RunError::Listener { number, source })
    });
    let names = names.transpose()?;
    let (log, writer) = open_log(&config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .map_err(start_error("making a runtime"))?;
    let shared = Arc::new(Shared::new(config, https.serving, cluster, open_max));
    let result = runtime.block_on(Process { shared, listeners, names, log }.run(ready.file));
    // Tasks hold ways to the log; with the runtime they end.
    drop(runtime);
    if let Some(writer) = writer {
        writer.finish();
    }
    result
}

fn listening(numbers: &[RawFd], entrance: Entrance) -> Result<Vec<Listening>, RunError> {
    let take = |number: &RawFd| {
        let number = *number;
        let socket = sockets::inherited_listener(number);
        let socket = socket.map_err(|source| RunError::Listener { number, source })?;
        Ok(Listening { entrance, socket })
    };
    numbers.iter().map(take).collect()
}

struct PreparedHttps {
    sockets: Vec<Listening>,
    serving: Option<Https>,
}

fn prepare_https(config: &Config) -> Result<PreparedHttps, RunError> {
    let sockets = listening(&config.https, Entrance::Https)?;
    let Some(first) = sockets.first() else { return Ok(PreparedHttps { sockets, serving: None }) };
    let port = first.socket.local_addr().map_err(start_error("asking where HTTPS is served"))?.port();
    let authority = DevelopmentAuthority::ensure(&config.directory.join(AUTHORITY))?;
    let directory = config.directory.join(MANAGED);
    let managed =
        Managed::open(directory.clone()).map_err(|source| RunError::Directory { path: directory, source })?;
    let directory = config.directory.join(CERTIFICATES);
    let certificates = Certificates::open(directory.clone(), Arc::new(managed), authority)
        .map_err(|source| RunError::Directory { path: directory, source })?;
    let certificates = Arc::new(certificates);
    let serving = Https {
        tls: Arc::new(certificates.clone().server_config()?),
        certificates,
        redirect_port: match config.redirect {
            RedirectSetting::Off => None,
            RedirectSetting::On => Some(port),
            RedirectSetting::Port(port) => Some(port.get()),
        },
        hsts_s: config.hsts.map(|time| time.as_secs()),
    };
    Ok(PreparedHttps { sockets, serving: Some(serving) })
}

struct Ready {
    file: Option<File>,
    rest: Vec<String>,
}

/// The supervisor learns through `--ready-fd N` that connections are accepted.
fn ready_descriptor(args: &[String]) -> Result<Ready, RunError> {
    let Some(at) = args.iter().position(|arg| arg == "--ready-fd") else {
        return Ok(Ready { file: None, rest: args.to_vec() });
    };
    let mut rest = args.to_vec();
    let taken: Vec<String> = rest.drain(at..(at + 2).min(args.len())).collect();
    let value = taken.get(1).ok_or_else(|| ConfigError::NoValue("--ready-fd".into()))?;
    let number = value.parse().map_err(|error: std::num::ParseIntError| ConfigError::Invalid {
        name: "--ready-fd".into(),
        value: value.clone(),
        why: error.to_string(),
    })?;
    let descriptor =
        sockets::inherited(number).map_err(start_error("taking the descriptor of --ready-fd"))?;
    Ok(Ready { file: Some(File::from(descriptor)), rest })
}

/// Each request may need two descriptors. Returns how many clients there may be.
fn raise_descriptor_limit() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    // A tenth more for instances than for clients, whose connections are kept beyond a request.
    usize::try_from(limit.saturating_sub(DESCRIPTORS_KEPT) * 10 / 21).unwrap_or(usize::MAX).max(8)
}

fn open_log(config: &Config) -> (AccessLog, Option<Writer>) {
    let AccessLogSetting::On(format) = config.access_log else { return (AccessLog::off(), None) };
    let style = Style { format, sample: config.access_log_sample };
    match AccessLog::start(&config.directory, style) {
        Ok((log, writer)) => (log, Some(writer)),
        Err(error) => {
            tracing::warn!(%error, "going on without an access log");
            (AccessLog::off(), None)
        }
    }
}

struct Process {
    shared: Arc<Shared>,
    listeners: Vec<Listening>,
    /// Where names of services are asked for.
    names: Option<UdpSocket>,
    log: AccessLog,
}

type Thread = JoinHandle<io::Result<()>>;

/// Says when a thread ends, by a panic too.
struct End(mpsc::UnboundedSender<()>);

impl Drop for End {
    fn drop(&mut self) {
        // Nobody listens any more once the process ends.
        let _ = self.0.send(());
    }
}

impl Process {
    async fn run(self, ready: Option<File>) -> Result<(), RunError> {
        let config = self.shared.config.clone();
        let directory = config.directory.clone();
        let mut terminate = signal(SignalKind::terminate()).map_err(start_error("listening for SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(start_error("listening for SIGINT"))?;
        let documents = Documents::open(directory.join("documents"))
            .map_err(|source| RunError::Directory { path: directory.clone(), source })?;
        let (tables, table_changes) = watch::channel(Arc::new(Table::empty()));
        let (applied, applied_events) = mpsc::unbounded_channel();
        let (phase, phases) = watch::channel(Phase::Starting);
        let (following, mut followed) = watch::channel(Following::NOTHING);
        let (end, mut ends) = mpsc::unbounded_channel();
        let (doors, door_changes) = watch::channel(doors::Open::new());

        let threads = self.start_threads(&table_changes, &door_changes, &applied, &phases, &end)?;
        let names =
            self.names.as_ref().map(|socket| answer_names(socket, table_changes.clone())).transpose()?;
        // What the threads got copies of would keep their ends from being noticed.
        drop((table_changes, door_changes, applied, end));
        let follower = Follower::new(self.shared.clone(), documents, tables, following);
        if let Some(cluster) = self.shared.cluster.clone() {
            tokio::spawn(cluster.follow(follower.client(), directory.clone()));
        }
        let following_task = tokio::task::spawn_local(follower.run(applied_events));
        if let Some(https) = self.shared.https() {
            tokio::spawn(https.certificates.clone().follow());
            let managed = https.certificates.managed().clone();
            let client = cluster::client(&config, self.shared.cluster());
            tokio::spawn(managed.follow(client, config.proxy.clone(), https.certificates.clone()));
        }
        drop(self.log);
        let count =
            |entrance| self.listeners.iter().filter(|listening| listening.entrance == entrance).count();
        let counts = Counts {
            services: count(Entrance::Services),
            https: count(Entrance::Https),
            peers: count(Entrance::Peers),
        };
        let facts = Rc::new(Facts {
            status: status(self.shared.clone(), counts, followed.clone(), phases),
            listeners: self.listeners.into_iter().map(|listening| listening.socket).collect(),
            names: self.names,
            doors,
            drain: Notify::new(),
        });
        let told = facts.clone();
        let mut over = Box::pin(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = told.drain.notified() => {}
                // One thread less would never acknowledge anything again: the whole process is replaced.
                _ = ends.recv() => {}
            }
        });
        let is_ready = async {
            let is_ready = followed.wait_for(|following| following.is_ready);
            // What it returns holds a lock on what the follower writes: it must not outlive this line.
            drop(tokio::time::timeout(START_WITHOUT_ROUTES, is_ready).await);
        };
        let mut serving = None;
        let mut supervisor = None;
        tokio::select! {
            () = &mut over => {}
            // Ready or not, it is time to serve.
            () = is_ready => {
                inherit_doors(&facts.doors, directory.clone()).await;
                phase.send_replace(Phase::Serving);
                // Only now does it take the place of an earlier ingress.
                let server = Server::bind(&directory).map_err(start_error("binding the control socket"))?;
                serving = Some(tokio::task::spawn_local(async move { server.run(facts).await }));
                // The supervisor may be gone; serving goes on all the same.
                supervisor = ready.filter(|mut ready| ready.write_all(b"ready\n").is_ok());
                over.as_mut().await;
            }
        }
        drop(over);
        tracing::info!("draining");
        self.shared.begin_draining();
        // The next ingress has the same sockets.
        names.inspect(|task| task.abort());
        told.doors.send_replace(doors::Open::new());
        phase.send_replace(Phase::Draining);
        // Whoever told it to drain has another one already; after any other signal one must come now, and not at its end.
        supervisor.inspect(|mut pipe| drop(pipe.write_all(b"draining\n")));
        let result = join(threads, ends).await;
        following_task.abort();
        // Its poll goes with it: no later one takes the leaving back.
        let _ = following_task.await;
        leave(&self.shared).await;
        if let Some(task) = serving {
            task.abort();
            // Its end removes the socket.
            let _ = task.await;
        }
        result
    }

    fn start_threads(
        &self,
        tables: &watch::Receiver<Arc<Table>>,
        doors: &watch::Receiver<doors::Open>,
        applied: &mpsc::UnboundedSender<Applied>,
        phases: &watch::Receiver<Phase>,
        end: &mpsc::UnboundedSender<()>,
    ) -> Result<Vec<Thread>, RunError> {
        let mut threads = Vec::new();
        for index in 0..self.shared.config.threads {
            let listeners = self.listeners.iter().map(Listening::try_clone).collect::<Result<Vec<_>, _>>();
            let start = WorkerStart {
                index,
                shared: self.shared.clone(),
                listeners: listeners.map_err(start_error("copying a listening socket"))?,
                doors: doors.clone(),
                tables: tables.clone(),
                applied: applied.clone(),
                phase: phases.clone(),
                log: self.log.clone(),
            };
            let end = End(end.clone());
            let thread = std::thread::Builder::new().name(format!("ingress-{index}")).spawn(move || {
                let _end = end;
                worker::run(start)
            });
            threads.push(thread.map_err(start_error("starting a thread"))?);
        }
        Ok(threads)
    }
}

/// Those of the ingress before this one, which still serves: no container notices.
async fn inherit_doors(doors: &watch::Sender<doors::Open>, directory: PathBuf) {
    let found = tokio::task::spawn_blocking(move || doors::of_earlier(&directory)).await;
    for (name, app, socket) in found.unwrap_or_default() {
        if let Err(error) = doors::take(doors, name, app, socket) {
            tracing::warn!(%error, "taking a container's door over");
        }
    }
}

fn answer_names(
    socket: &UdpSocket,
    tables: watch::Receiver<Arc<Table>>,
) -> Result<tokio::task::JoinHandle<()>, RunError> {
    let socket = socket.try_clone().and_then(tokio::net::UdpSocket::from_std);
    let socket = socket.map_err(start_error("taking the socket for names"))?;
    Ok(tokio::spawn(names::serve(socket, tables)))
}

/// Waits for every thread, without keeping this one from following meanwhile.
async fn join(threads: Vec<Thread>, mut ends: mpsc::UnboundedReceiver<()>) -> Result<(), RunError> {
    while ends.recv().await.is_some() {}
    for thread in threads {
        thread.join().map_err(|_| RunError::Panicked)?.map_err(RunError::Thread)?;
    }
    Ok(())
}

/// Nobody need wait for the acknowledgements of an ingress that has drained.
async fn leave(shared: &Shared) {
    let config = &shared.config;
    let client = cluster::client(config, shared.cluster());
    match tokio::time::timeout(LEAVE_TIMEOUT, client.leave(&config.proxy)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the server was not told of the end"),
        Err(_) => tracing::debug!("the server was not told of the end in time"),
    }
}

/// Of the listening sockets.
#[derive(Debug, Clone, Copy)]
struct Counts {
    services: usize,
    https: usize,
    peers: usize,
}

fn status(
    shared: Arc<Shared>,
    counts: Counts,
    followed: watch::Receiver<Following>,
    phase: watch::Receiver<Phase>,
) -> Box<dyn Fn() -> Status> {
    Box::new(move || {
        let following = *followed.borrow();
        let phase = *phase.borrow();
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            proxy: shared.config.proxy.clone(),
            generation: following.generation,
            ready: following.is_ready && phase == Phase::Serving,
            draining: phase == Phase::Draining,
            connections: shared.open() as u64,
            services: counts.services,
            https: counts.https,
            peers: counts.peers,
            doors: BTreeMap::new(),
        }
    })
}
