//! A thread of the data plane: its own runtime, its own copy of the listening sockets, its own pools.
//!
//! Threads share only counters and the way to the log. A thread takes a new table between two requests: choosing an
//! instance has no await in it, so once its following task ran, no choice is made from an older table.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rung_model::route::{Overload, Pages, Redirect};
use rung_model::{Absence, Hold, InstanceId, Protocol};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};

use crate::access_log::{AccessLog, LocalLog, Record};
use crate::balance::{InFlight, RetryBudget, ServiceLoad, Target, Tried};
use crate::buffer::BufferPool;
use crate::callers::{Call, Callers};
use crate::certificates::Certificates;
use crate::cluster::Cluster;
use crate::config::{Config, Limits, TrustedProxies};
use crate::doors;
use crate::error_page::Failure;
use crate::exchange::is_out_of_descriptors;
use crate::fields;
use crate::forward::serve;
use crate::handshake::serve_tls;
use crate::head::Request;
use crate::http2::Connections;
use crate::overload::Turn;
use crate::peer::{PeerDoor, serve_peer};
use crate::policy::Policy;
use crate::pool::Pool;
use crate::proxy_protocol;
use crate::routing::{Found, To};
use crate::split::{self, Lot};
use crate::squeeze::Encoders;
use crate::stream::Scheme;
use crate::table::{Crowd, Service, Table};
use crate::tally::{InTally, Tallies};
use crate::timer::{TICK, Timers};
use crate::traffic::CohortCounts;
use crate::upstream::Relay;
use crate::view::NEVER_AGAIN;

/// Before the next try when descriptors ran out: some requests end in that time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Kept connections are looked after once a second.
const POOL_SWEEP_TICKS: u32 = 20;

const AMBIGUOUS: Failure = Failure::BadRequest {
    status: 400,
    why: "its path can be read in two ways, and one of them is not for everybody",
};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Connections wait in the listening socket.
    Starting,
    Serving,
    /// Nothing new is accepted; what is in flight ends.
    Draining,
}

/// How HTTPS is served.
#[derive(Debug)]
pub(crate) struct Https {
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) certificates: Arc<Certificates>,
    /// Where plain requests are sent.
    pub(crate) redirect_port: Option<u16>,
    pub(crate) hsts_s: Option<u64>,
}

impl Https {
    /// What an authority is asked to be shown by this request, when a certificate is being ordered.
    pub(crate) fn proof(&self, request: &Request) -> Option<String> {
        self.certificates.managed().answer(&request.host, &request.path)
    }

    /// The port that a request shall come by instead.
    pub(crate) fn redirect(&self, request: &Request) -> Option<u16> {
        self.redirect_port.filter(|_| {
            request.scheme == Scheme::Http && request.path != "*" && self.certificates.has_own(&request.host)
        })
    }

    pub(crate) fn hsts_s(&self, request: &Request) -> Option<u64> {
        // Not for the development authority's names: a browser would remember it for whatever runs there next.
        self.hsts_s.filter(|_| request.scheme == Scheme::Https && self.certificates.has_own(&request.host))
    }
}

/// Who comes in by a listening socket, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    Http,
    Https,
    /// Other machines of the cluster.
    Peers,
    /// Instances of this machine that call services.
    Services,
}

/// A listening socket and what its connections begin with.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) entrance: Entrance,
    pub(crate) socket: TcpListener,
}

impl Listening {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { entrance: self.entrance, socket: self.socket.try_clone()? })
    }
}

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    https: Option<Https>,
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// Where other machines' requests come in.
    peers: Option<Arc<PeerDoor>>,
    /// Who they are that call services, and whose word of their own callers is believed.
    callers: Callers,
    loopback: TrustedProxies,
    /// Open client connections, in all threads, and how many there may be.
    open: AtomicUsize,
    open_max: usize,
    /// The server's word was heard, or documents were on disk.
    pub(crate) knows_routes: AtomicBool,
    draining: Flag,
}

/// Read with each request: what it shares a cache line with must not be written all the time.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Flag(AtomicBool);

impl Shared {
    pub(crate) fn new(
        config: Config,
        https: Option<Https>,
        cluster: Option<Arc<Cluster>>,
        open_max: usize,
    ) -> Self {
        let peers = cluster
            .as_ref()
            .map(|cluster| Arc::new(PeerDoor::new(cluster.identity.clone(), cluster.members.clone())));
        let callers = Callers::new(config.users.clone());
        Self {
            config,
            https,
            cluster,
            peers,
            callers,
            loopback: TrustedProxies::loopback(),
            open: AtomicUsize::new(0),
            open_max,
            knows_routes: AtomicBool::new(false),
            draining: Flag::default(),
        }
    }

    /// From here on every answer says that its connection ends. Before anybody is told that the process drains: whoever
    /// hears of it may rely on that.
    pub(crate) fn begin_draining(&self) {
        self.draining.0.store(true, Ordering::Release);
    }

    pub(crate) fn https(&self) -> Option<&Https> {
        self.https.as_ref()
    }

    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_deref()
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// A thread picks from the table of this version from now on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applied {
    pub(crate) thread: usize,
    pub(crate) version: u64,
}

/// What the tasks of one thread share.
#[derive(Debug)]
pub(crate) struct Worker {
    shared: Arc<Shared>,
    table: RefCell<Arc<Table>>,
    /// Notified after each change of the table.
    pub(crate) changed: Notify,
    pub(crate) pool: Pool,
    pub(crate) http2: Connections,
    pub(crate) buffers: BufferPool,
    pub(crate) encoders: Encoders,
    pub(crate) timers: Rc<Timers>,
    pub(crate) log: LocalLog,
    pub(crate) tallies: Tallies,
    budgets: RefCell<Vec<RetryBudget>>,
    /// Open client connections of this thread.
    connections: Cell<usize>,
    /// Notified when housekeeping has something to do again, and when the last connection has ended.
    housekeeping: Notify,
    idle: Notify,
}

/// An instance was chosen for a request; it counts as in flight.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) address: SocketAddr,
    pub(crate) relay: Option<Arc<Relay>>,
    pub(crate) in_flight: InFlight,
    pub(crate) response_timeout: Duration,
    pub(crate) protocol: Protocol,
    pub(crate) service: usize,
    /// Where it is counted what becomes of the request.
    pub(crate) counts: Option<Arc<CohortCounts>>,
    /// How many others the service has: alone, it need not be measured.
    pub(crate) rivals: usize,
    /// It was tried for this request before.
    pub(crate) is_again: bool,
    /// The route bounds what an instance gets: then there is a turn, which is taken when the answer begins.
    pub(crate) is_bounded: bool,
    pub(crate) turn: RefCell<Option<Turn>>,
    version: u64,
}

#[derive(Debug)]
pub(crate) enum Choice {
    Target(Chosen),
    /// The route asks for something first.
    Gate(Arc<Policy>),
    /// `path` is the route's.
    Redirect {
        redirect: Arc<Redirect>,
        path: String,
    },
    Hold {
        hold: Hold,
        load: Arc<ServiceLoad>,
    },
    /// Every instance has as many requests as it can bear.
    Full {
        rule: Overload,
        load: Arc<ServiceLoad>,
    },
    Nothing {
        failure: Failure,
        explanation: String,
    },
}

impl Worker {
    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.config.limits
    }

    /// Whose word counts of who comes behind them: what calls a service was called itself.
    pub(crate) fn trusted(&self, call: Option<&Call>) -> &TrustedProxies {
        if call.is_some() { &self.shared.loopback } else { &self.shared.config.trusted }
    }

    pub(crate) fn https(&self) -> Option<&Https> {
        self.shared.https.as_ref()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.shared.draining.0.load(Ordering::Acquire)
    }

    pub(crate) fn local_address(&self, instance: &InstanceId) -> Option<SocketAddr> {
        self.table.borrow().local_address(instance)
    }

    pub(crate) fn is_routed(&self, slot: u64) -> bool {
        self.table.borrow().is_routed(slot)
    }

    /// Whether the choice still stands after an await.
    pub(crate) fn is_still_routed(&self, chosen: &Chosen) -> bool {
        let table = self.table.borrow();
        table.version == chosen.version || table.is_routed(chosen.in_flight.load().slot)
    }

    /// `lot` is the visitor's place while two releases serve side by side; it is kept for the request's next try. From
    /// its first route on the request is in flight in the route's tally, `seen`.
    pub(crate) fn choose(
        &self,
        request: &Request,
        head: &[u8],
        tried: &Tried,
        lot: &mut Option<Lot>,
        seen: &mut Option<InTally>,
    ) -> Choice {
        if let Some(call) = &request.call {
            return self.choose_inside(call, head, tried, lot, seen);
        }
        let nothing = |failure| Choice::Nothing { failure, explanation: String::new() };
        let table = self.table.borrow();
        let entry = match table.find(request, head) {
            Found::Entry(entry) => entry,
            Found::Nothing => {
                let is_ready = !table.is_empty() || self.shared.knows_routes.load(Ordering::Relaxed);
                return nothing(if is_ready { Failure::NoRoute } else { Failure::NotReady });
            }
            Found::Maintenance => return nothing(Failure::Maintenance),
            Found::Ambiguous => return nothing(AMBIGUOUS),
        };
        seen.get_or_insert_with(|| self.tallies.begin(&entry.tallied));
        let policy = entry.policy.as_ref();
        if let Some(policy) = policy.filter(|_| request.dress.borrow().is_none()) {
            return Choice::Gate(policy.clone());
        }
        let service = match &entry.to {
            To::Service(service) => service,
            To::Redirect(redirect) => {
                return Choice::Redirect { redirect: redirect.clone(), path: entry.path.clone() };
            }
            To::Nothing => return nothing(Failure::NoRoute),
        };
        *lot = service.draw(*lot, head);
        let overload = policy.and_then(|policy| policy.rule.overload);
        let crowded;
        let tried = match overload.map(|rule| service.with_room(lot.as_ref(), tried, rule.max)) {
            None => tried,
            Some(Ok(passed)) => {
                crowded = passed;
                &crowded
            }
            Some(Err(Crowd::Broken)) => return nothing(Failure::CircuitOpen),
            Some(Err(Crowd::Full)) => {
                let rule = overload.expect("it was asked whether there is room");
                return Choice::Full { rule, load: service.load.clone() };
            }
        };
        let picked = match policy.and_then(|policy| policy.cookie.as_deref()) {
            None => service.pick(lot.as_ref(), tried),
            Some(cookie) => pick_again(service, cookie, request, head, lot.as_ref(), tried),
        };
        let own_timeout = policy.and_then(|policy| policy.rule.response_timeout);
        let Some(target) = picked else { return without_instance(service) };
        let mut chosen = Chosen::new(service, target, tried, table.version);
        chosen.response_timeout = own_timeout.unwrap_or(service.response_timeout);
        chosen.is_bounded = overload.is_some();
        chosen.turn = RefCell::new(overload.map(|_| Turn::begin(&target.load)));
        Choice::Target(chosen)
    }

    /// The same for a call from inside the cluster: the address says which service it is, and no route is asked.
    fn choose_inside(
        &self,
        call: &Call,
        head: &[u8],
        tried: &Tried,
        lot: &mut Option<Lot>,
        seen: &mut Option<InTally>,
    ) -> Choice {
        let table = self.table.borrow();
        let Some(callee) = table.callee(call.address) else {
            let is_ready = self.shared.knows_routes.load(Ordering::Relaxed);
            let failure = if is_ready { Failure::NoService } else { Failure::NotReady };
            return Choice::Nothing { failure, explanation: String::new() };
        };
        seen.get_or_insert_with(|| self.tallies.begin(&callee.tallied));
        if !callee.admits(&call.caller) {
            let explanation = callee.refusal(&call.caller);
            return Choice::Nothing { failure: Failure::CallerRefused, explanation };
        }
        let Some(service) = &callee.service else {
            let explanation = format!("{} has no instance yet", callee.name);
            return Choice::Nothing { failure: Failure::NoInstance(Absence::Intended), explanation };
        };
        *lot = service.draw(*lot, head);
        match service.pick_near(lot.as_ref(), tried) {
            Some(target) => Choice::Target(Chosen::new(service, target, tried, table.version)),
            None => without_instance(service),
        }
    }

    /// A request has come to its end. `head` is what went to the instance; nothing of one that was not understood.
    pub(crate) fn ended(&self, client: IpAddr, request: &Request, head: &[u8], record: &mut Record) {
        if let Some(seen) = record.route.take() {
            record.tell(seen);
        }
        self.log.add(client, request, head, record);
    }

    /// The pages of the app that answers to a host, where it has some.
    pub(crate) fn pages(&self, host: &str) -> Option<Arc<Pages>> {
        self.table.borrow().app(host).and_then(|app| app.pages.clone())
    }

    fn with_budget<T>(&self, service: usize, act: impl FnOnce(&mut RetryBudget) -> T) -> T {
        let mut budgets = self.budgets.borrow_mut();
        if budgets.len() <= service {
            budgets.resize_with(service + 1, RetryBudget::new);
        }
        act(&mut budgets[service])
    }

    pub(crate) fn earn_retry(&self, service: usize) {
        self.with_budget(service, RetryBudget::earn);
    }

    pub(crate) fn spend_retry(&self, service: usize) -> bool {
        self.with_budget(service, RetryBudget::spend)
    }

    fn apply(&self, table: Arc<Table>) {
        self.pool.retain(|slot| table.is_routed(slot));
        self.http2.retain(|slot| table.is_routed(slot));
        *self.table.borrow_mut() = table;
        self.tallies.forget_retired();
        self.changed.notify_waiters();
    }
}

impl Chosen {
    /// Where a route asks for nothing beside it.
    fn new(service: &Service, target: &Target, tried: &Tried, version: u64) -> Self {
        Self {
            address: target.relay.as_ref().map_or(target.address, |relay| relay.address),
            relay: target.relay.clone(),
            in_flight: InFlight::begin(&target.load),
            response_timeout: service.response_timeout,
            protocol: service.protocol,
            service: service.load.slot,
            counts: target.counts.clone(),
            rivals: service.targets.len() - 1,
            is_again: tried.contains(target.load.slot),
            is_bounded: false,
            turn: RefCell::new(None),
            version,
        }
    }
}

fn without_instance(service: &Service) -> Choice {
    match service.hold {
        Some(hold) => Choice::Hold { hold, load: service.load.clone() },
        None => Choice::Nothing {
            failure: Failure::NoInstance(service.absence),
            explanation: service.explanation.clone(),
        },
    }
}

/// Its visitor comes back to the instance that the cookie names, or is told another one.
fn pick_again<'t>(
    service: &'t Service,
    cookie: &str,
    request: &Request,
    head: &[u8],
    lot: Option<&Lot>,
    tried: &Tried,
) -> Option<&'t Target> {
    let named = fields::cookie(head, cookie).unwrap_or_default();
    let picked = service.pick_again(named, lot, tried)?;
    let spelled = split::spelled(split::number_of(picked.load.id.as_str()));
    if let Some(dress) = request.dress.borrow_mut().as_mut() {
        dress.cookie = (spelled != *named).then_some(spelled);
    }
    Some(picked)
}

/// What a thread is started with.
#[derive(Debug)]
pub(crate) struct WorkerStart {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) listeners: Vec<Listening>,
    pub(crate) doors: watch::Receiver<doors::Open>,
    pub(crate) tables: watch::Receiver<Arc<Table>>,
    pub(crate) applied: mpsc::UnboundedSender<Applied>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) log: AccessLog,
}

/// Runs the thread until it has drained.
pub(crate) fn run(start: WorkerStart) -> io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(work(start))
}

async fn work(start: WorkerStart) -> io::Result<()> {
    let WorkerStart { index, shared, listeners, doors, tables, applied, mut phase, log } = start;
    let worker = Rc::new(Worker {
        shared,
        table: RefCell::new(Arc::new(Table::empty())),
        changed: Notify::new(),
        pool: Pool::default(),
        http2: Connections::default(),
        buffers: BufferPool::default(),
        encoders: Encoders::default(),
        timers: Timers::new(),
        log: LocalLog::new(log),
        tallies: Tallies::default(),
        budgets: RefCell::default(),
        connections: Cell::new(0),
        housekeeping: Notify::new(),
        idle: Notify::new(),
    });
    tokio::task::spawn_local(follow_tables(worker.clone(), index, tables, applied.clone()));
    tokio::task::spawn_local(keep_house(worker.clone()));
    // An error means that the sender is gone, and with it the process.
    let reached = phase.wait_for(|phase| *phase >= Phase::Serving).await.map(|phase| *phase);
    if reached.is_ok_and(|phase| phase == Phase::Serving) {
        let mut accepting = Vec::new();
        for listener in listeners {
            let socket = tokio::net::TcpListener::from_std(listener.socket)?;
            let entrance = listener.entrance;
            let begin = move |worker: &Rc<Worker>, stream, from| begin(worker, entrance, stream, from);
            accepting.push(tokio::task::spawn_local(accept(worker.clone(), socket, begin)));
        }
        accepting.push(tokio::task::spawn_local(doors::serve(worker.clone(), doors)));
        let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
        for task in accepting {
            task.abort();
            // Its listener is closed once it has ended.
            let _ = task.await;
        }
    }
    drain(&worker).await;
    // An error means that nobody follows any more.
    let _ = applied.send(Applied { thread: index, version: NEVER_AGAIN });
    worker.log.flush();
    Ok(())
}

async fn follow_tables(
    worker: Rc<Worker>,
    thread: usize,
    mut tables: watch::Receiver<Arc<Table>>,
    applied: mpsc::UnboundedSender<Applied>,
) {
    while tables.changed().await.is_ok() {
        let table = tables.borrow_and_update().clone();
        let version = table.version;
        worker.apply(table);
        if applied.send(Applied { thread, version }).is_err() {
            return;
        }
    }
}

/// Timers, kept connections and the log need a look now and then; with none of them the thread sleeps.
async fn keep_house(worker: Rc<Worker>) {
    let mut ticks: u32 = 0;
    loop {
        if worker.timers.is_empty() && worker.pool.is_empty() && worker.log.is_empty() {
            worker.housekeeping.notified().await;
        }
        tokio::time::sleep(TICK).await;
        ticks = ticks.wrapping_add(1);
        worker.timers.sweep();
        worker.log.flush_old();
        if ticks.is_multiple_of(POOL_SWEEP_TICKS) {
            worker.pool.sweep();
        }
    }
}

/// Counts a client's connection for as long as it is open.
struct OpenConnection(Rc<Worker>);

impl OpenConnection {
    fn new(worker: Rc<Worker>) -> Self {
        worker.shared.open.fetch_add(1, Ordering::Relaxed);
        worker.connections.set(worker.connections.get() + 1);
        worker.housekeeping.notify_one();
        Self(worker)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.shared.open.fetch_sub(1, Ordering::Relaxed);
        self.0.connections.set(self.0.connections.get() - 1);
        if self.0.connections.get() == 0 {
            self.0.idle.notify_one();
        }
    }
}

pub(crate) async fn accept(
    worker: Rc<Worker>,
    listener: tokio::net::TcpListener,
    begin: impl Fn(&Rc<Worker>, TcpStream, SocketAddr),
) {
    loop {
        if worker.shared.open() >= worker.shared.open_max {
            // They wait in the kernel's queue rather than failing here.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, peer)) => {
                begin(&worker, stream, peer);
                // The other threads get their share of a burst.
                tokio::task::yield_now().await;
            }
            Err(error) if is_out_of_descriptors(&error) => {
                tracing::warn!(%error, "not accepting connections for a moment");
                worker.pool.clear();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            // The client changed its mind before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection in a task of its own.
fn begin(worker: &Rc<Worker>, entrance: Entrance, stream: TcpStream, from: SocketAddr) {
    let peer = from.ip();
    let open = OpenConnection::new(worker.clone());
    let shared = worker.shared.clone();
    match (entrance, worker.https(), &shared.peers) {
        (Entrance::Peers, _, Some(door)) => {
            let door = door.clone();
            drop(tokio::task::spawn_local(async move {
                serve_peer(open.0.clone(), door, stream).await;
                drop(open);
            }));
        }
        (Entrance::Https, Some(https), _) => {
            let tls = https.tls.clone();
            drop(tokio::task::spawn_local(async move {
                if let Some((stream, client)) = introduced(&open.0, stream, peer).await {
                    serve_tls(open.0.clone(), tls, stream, client).await;
                }
                drop(open);
            }));
        }
        (Entrance::Http, _, _) => drop(tokio::task::spawn_local(async move {
            if let Some((stream, client)) = introduced(&open.0, stream, peer).await {
                serve(open.0.clone(), stream, client, None).await;
            }
            drop(open);
        })),
        (Entrance::Services, _, _) => {
            // Whoever comes by an address of the machine itself is closed upon: nothing is served there.
            let Some(call) = shared.callers.identify(&stream, from) else { return };
            begin_call(worker, stream, peer, call);
        }
        // Such a socket is not listened on without what it needs.
        (Entrance::Peers | Entrance::Https, _, _) => {}
    }
}

/// Serves the connection of somebody inside the cluster.
pub(crate) fn begin_call(worker: &Rc<Worker>, stream: TcpStream, from: IpAddr, call: Call) {
    let open = OpenConnection::new(worker.clone());
    drop(tokio::task::spawn_local(async move {
        serve(open.0.clone(), stream, from, Some(Rc::new(call))).await;
        drop(open);
    }));
}

/// Who the client is: whoever connected, or whom a load balancer in front names.
async fn introduced(worker: &Worker, mut stream: TcpStream, peer: IpAddr) -> Option<(TcpStream, IpAddr)> {
    if !worker.shared.config.proxy_protocol.contains(peer) {
        return Some((stream, peer));
    }
    let client = proxy_protocol::client(worker, &mut stream, peer).await?;
    Some((stream, client))
}

async fn drain(worker: &Worker) {
    // Also where the server was never told to serve, or is gone.
    worker.shared.begin_draining();
    worker.timers.wake_all();
    let limits = worker.limits();
    let longest = limits.drain.max(limits.upgrade_grace) + TICK * 2;
    let all_ended = async {
        while worker.connections.get() > 0 {
            worker.idle.notified().await;
        }
    };
    if tokio::time::timeout(longest, all_ended).await.is_err() {
        tracing::warn!(
            connections = worker.connections.get(),
            "closing connections that did not end in time"
        );
    }
}
