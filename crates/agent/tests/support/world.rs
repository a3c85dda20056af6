//! A server that says what a test wants, and an agent that believes it.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Path as Parameter, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use rung_agent::{AgentConfig, Shutdown};
use rung_api::wire::Launch;
use rung_api::{Address, Client, paths};
use rung_model::appfile::{Check, Health, Service};
use rung_model::assignment::{AssignedInstance, Assignment, Intent};
use rung_model::*;
use tokio::sync::watch;

pub const PATIENCE: Duration = Duration::from_secs(30);

/// What the fake server holds.
pub struct Server {
    pub assignment: watch::Sender<Assignment>,
    pub observed: watch::Sender<Option<Observed>>,
    /// Every state that was ever reported of an instance, in order.
    pub history: Mutex<Vec<(InstanceId, InstanceState)>>,
    pub launches: Mutex<BTreeMap<(String, u64), Launch>>,
    /// How often one was asked for.
    pub fetched: AtomicUsize,
    pub artifacts: Mutex<BTreeMap<String, Vec<u8>>>,
}

type Shared = Arc<Server>;

async fn assignment(
    State(server): State<Shared>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Json<Option<Assignment>> {
    let after: Generation = query["after"].parse().unwrap();
    let wait = Duration::from_millis(query["wait_ms"].parse().unwrap());
    let mut receiver = server.assignment.subscribe();
    let newer = receiver.wait_for(|assignment| assignment.generation > after);
    match tokio::time::timeout(wait, newer).await {
        Ok(Ok(assignment)) => Json(Some(assignment.clone())),
        _ => Json(None),
    }
}

async fn observe(State(server): State<Shared>, Json(observed): Json<Observed>) -> Json<()> {
    let mut history = server.history.lock().unwrap();
    for (id, instance) in &observed.instances {
        if history.iter().rev().find(|(other, _)| other == id).is_none_or(|(_, last)| *last != instance.state)
        {
            history.push((id.clone(), instance.state));
        }
    }
    drop(history);
    server.observed.send_replace(Some(observed));
    Json(())
}

async fn launch(
    State(server): State<Shared>,
    Parameter((app, release)): Parameter<(String, u64)>,
) -> axum::response::Response {
    server.fetched.fetch_add(1, Ordering::Relaxed);
    match server.launches.lock().unwrap().get(&(app, release)) {
        Some(launch) => Json(launch.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn artifact(
    State(server): State<Shared>,
    Parameter(digest): Parameter<String>,
) -> axum::response::Response {
    match server.artifacts.lock().unwrap().get(&digest) {
        Some(bytes) => Body::from(bytes.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn put_artifact(
    State(server): State<Shared>,
    Parameter(digest): Parameter<String>,
    body: Bytes,
) -> Json<()> {
    server.artifacts.lock().unwrap().insert(digest, body.to_vec());
    Json(())
}

/// A node with its fake server. Dropping it stops every instance.
pub struct World {
    pub directory: tempfile::TempDir,
    pub server: Shared,
    pub runtime: tokio::runtime::Runtime,
    agent: Option<Agent>,
    generation: u64,
}

struct Agent {
    shutdown: watch::Sender<Shutdown>,
    runtime: tokio::runtime::Runtime,
    task: tokio::task::JoinHandle<()>,
}

pub fn app() -> AppName {
    AppName::new("shop").unwrap()
}

pub fn web() -> ServiceName {
    ServiceName::new("web").unwrap()
}

pub fn id(name: &str) -> InstanceId {
    InstanceId::new(name).unwrap()
}

/// A service that is checked by connecting to its port.
pub fn service(command: &str) -> Service {
    Service {
        command: Some(command.to_owned()),
        port: true,
        image_port: None,
        instances: 1,
        exclusive: false,
        memory_bytes: None,
        cpu_millis: None,
        health: Health {
            check: Check::Tcp,
            grace: Duration::from_secs(10),
            interval: Duration::from_millis(100),
            timeout: Duration::from_secs(2),
            unhealthy_after: 2,
            restart_after: 4,
        },
        drain: Duration::from_secs(1),
        stop_grace: Duration::from_secs(5),
        response_timeout: Duration::from_secs(10),
        protocol: Protocol::Http1,
        place: Default::default(),
        allow: Vec::new(),
        hold: Hold { max_requests: 10, max_time: Duration::from_secs(1) },
        mounts: BTreeMap::new(),
    }
}

pub fn worker(command: &str) -> Service {
    let mut service = service(command);
    service.port = false;
    service.health.check = Check::Up;
    service
}

impl World {
    /// A running agent on an empty node.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let node = NodeId::new("here").unwrap();
        let server = Arc::new(Server {
            assignment: watch::Sender::new(Assignment::empty(node)),
            observed: watch::Sender::new(None),
            history: Mutex::default(),
            launches: Mutex::default(),
            fetched: AtomicUsize::new(0),
            artifacts: Mutex::default(),
        });
        let router = Router::new()
            .route(paths::NODE, put(async || Json(())))
            .route(paths::NODE_BEAT, post(async || Json(())))
            .route(paths::ASSIGNMENT, get(assignment))
            .route(paths::OBSERVED, post(observe))
            .route(paths::LAUNCH, get(launch))
            .route(paths::ARTIFACT, get(artifact).put(put_artifact))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(server.clone());
        let guard = runtime.enter();
        let listener = tokio::net::UnixListener::bind(directory.path().join("api.sock")).unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        drop(guard);
        let mut world = Self { directory, server, runtime, agent: None, generation: 0 };
        world.start_agent();
        world
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data/node")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub fn start_agent(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (shutdown, asked) = watch::channel(Shutdown::No);
        let api = format!("unix:{}", self.directory.path().join("api.sock").display());
        let config = AgentConfig {
            node: NodeId::new("here").unwrap(),
            data: self.data(),
            socket: self.socket(),
            api: Client::new(api.parse::<Address>().unwrap(), None),
            program: env!("CARGO_BIN_EXE_rung-test-shim").into(),
            labels: Default::default(),
            services: Some(7700),
            porter: None,
        };
        let task = runtime.spawn(async move { rung_agent::run(config, None, asked).await.unwrap() });
        self.agent = Some(Agent { shutdown, runtime, task });
    }

    /// As `kill -9` would: nothing is told to anybody, every task just ends.
    pub fn crash_agent(&mut self) {
        let agent = self.agent.take().expect("an agent runs");
        agent.runtime.shutdown_background();
    }

    pub fn stop_agent(&mut self, how: Shutdown) {
        let agent = self.agent.take().expect("an agent runs");
        agent.shutdown.send_replace(how);
        agent.runtime.block_on(async { tokio::time::timeout(PATIENCE, agent.task).await.unwrap().unwrap() });
    }

    /// A release with these services and this tree.
    pub fn release(&self, number: u64, services: &[(&str, Service)], files: &[(&str, &str)]) -> Release {
        let (digest, archive) = self.pack(files);
        self.server.artifacts.lock().unwrap().insert(digest.to_string(), archive);
        // By way of the wire, where what is not said has its default.
        let services: BTreeMap<&str, &Service> = services.iter().map(|(name, s)| (*name, s)).collect();
        let file = serde_json::json!({
            "app": "shop",
            "deploy": { "release": null, "release_timeout_ms": 60_000, "deadline_ms": 60_000 },
            "services": services,
        });
        let file: AppFile = serde_json::from_value(file).unwrap();
        let release = Release {
            app: app(),
            number: ReleaseNumber(number),
            artifact: digest,
            source: None,
            file,
            config: BTreeMap::new(),
            secrets: BTreeMap::new(),
            at: jiff::Timestamp::UNIX_EPOCH,
            by: "test".into(),
            reason: "deploy".into(),
            note: None,
            provenance: Default::default(),
        };
        let env = BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]);
        let launch =
            Launch { release: release.clone(), env, services: BTreeMap::new(), names: BTreeMap::new() };
        self.server.launches.lock().unwrap().insert(("shop".into(), number), launch);
        release
    }

    pub fn pack(&self, files: &[(&str, &str)]) -> (Digest, Vec<u8>) {
        let source = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = source.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut archive = Vec::new();
        let packed = rung_artifact::pack_tree(source.path(), &mut archive).unwrap();
        (packed.digest, archive)
    }

    pub fn assign(&mut self, change: impl FnOnce(&mut Assignment)) {
        self.generation += 1;
        let generation = Generation::new(1, self.generation);
        self.server.assignment.send_modify(|assignment| {
            change(assignment);
            assignment.generation = generation;
        });
    }

    pub fn run_instance(&mut self, name: &str, service: &str, release: u64) {
        let assigned = AssignedInstance {
            app: app(),
            service: ServiceName::new(service).unwrap(),
            release: ReleaseNumber(release),
            deployment: DeploymentNumber(1),
            intent: Intent::Run,
            fence: None,
            making_way: None,
        };
        self.assign(|assignment| drop(assignment.instances.insert(id(name), assigned)));
    }

    /// One instance `a1` of a service with this command.
    pub fn run_web(&mut self, service: Service, files: &[(&str, &str)]) {
        self.release(1, &[("web", service)], files);
        self.run_instance("a1", "web", 1);
    }

    /// The report in which the condition holds.
    pub fn await_report(&self, what: &str, condition: impl Fn(&Observed) -> bool) -> Observed {
        let mut receiver = self.server.observed.subscribe();
        self.runtime.block_on(async {
            let found = tokio::time::timeout(
                PATIENCE,
                receiver.wait_for(|observed| observed.as_ref().is_some_and(&condition)),
            );
            let outcome = found.await.map(|found| found.unwrap().clone().unwrap());
            outcome
                .unwrap_or_else(|_| panic!("{what}; the last report is {:#?}", self.server.observed.borrow()))
        })
    }

    pub fn await_state(&self, name: &str, state: InstanceState) -> ObservedInstance {
        let id = id(name);
        let what = format!("{name} did not become {state:?}");
        let observed = self.await_report(&what, |observed| {
            observed.instances.get(&id).is_some_and(|instance| instance.state == state)
        });
        observed.instances[&id].clone()
    }

    pub fn await_run(&self, run: &str) -> RunOutcome {
        let id = RunId::new(run).unwrap();
        let ended = |observed: &Observed| match observed.runs.get(&id).map(|run| run.state.clone()) {
            Some(RunState::Ended { outcome, .. }) => Some(outcome),
            _ => None,
        };
        let observed = self.await_report("the run did not end", |observed| ended(observed).is_some());
        ended(&observed).unwrap()
    }

    pub fn start_run(&mut self, run: &str, kind: RunKind, timeout: Duration) {
        self.start_runs(&[run], &kind, timeout);
    }

    /// All of them in one assignment.
    pub fn start_runs(&mut self, runs: &[&str], kind: &RunKind, timeout: Duration) {
        let run = |name: &&str| Run {
            id: RunId::new(*name).unwrap(),
            app: app(),
            kind: kind.clone(),
            by: "test".into(),
            at: jiff::Timestamp::UNIX_EPOCH,
            node: None,
            timeout,
            cancelled: false,
            state: RunState::Pending,
        };
        self.assign(|assignment| {
            assignment.runs.extend(runs.iter().map(run).map(|run| (run.id.clone(), run)))
        });
    }

    /// Everything that was logged by an instance of the service `web`.
    pub fn log(&self, name: &str) -> String {
        let directory = self.data().join("logs/shop/web").join(name);
        read_logs(&directory)
    }

    pub fn run_log(&self, run: &str) -> String {
        read_logs(&self.data().join("logs/shop/.runs").join(run))
    }

    pub fn history(&self, name: &str) -> Vec<InstanceState> {
        let history = self.server.history.lock().unwrap();
        history.iter().filter(|(other, _)| other.as_str() == name).map(|(_, state)| *state).collect()
    }
}

fn read_logs(directory: &Path) -> String {
    let mut text = String::new();
    for file in ["log.4", "log.3", "log.2", "log.1", "log"] {
        text += &std::fs::read_to_string(directory.join(file)).unwrap_or_default();
    }
    text
}

impl Drop for World {
    fn drop(&mut self) {
        if self.agent.is_none() {
            self.start_agent();
        }
        if !std::thread::panicking() {
            self.stop_agent(Shutdown::StopInstances);
            return;
        }
        // The test has failed already: no second panic hides the first, and no process stays.
        if let Some(agent) = self.agent.take() {
            agent.shutdown.send_replace(Shutdown::StopInstances);
            agent.runtime.block_on(async { drop(tokio::time::timeout(PATIENCE, agent.task).await) });
        }
    }
}

/// Waits for something that no report tells of.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10)); // tidy: the pause between two looks at the condition
    }
}

/// Answers every request with a short page; what it is asked for beside that is in its arguments.
pub const SERVER: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if os.path.exists("/tmp/sick") else 200)
        self.end_headers()
        self.wfile.write(b"hello")
    def log_message(self, *args):
        pass
print("listening on", os.environ["PORT"], flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// The body of an answer, or why there is none.
pub fn fetch(port: u16) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
