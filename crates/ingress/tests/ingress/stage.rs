//! The stage: a server that answers polls, and an ingress under its supervisor.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rung_api::wire::{ProxyDocuments, ProxyPoll, ProxyTraffic, TallyReport};
use rung_ingress::{Control, Listen, Supervisor, SupervisorConfig};
use rung_model::tally::{Subject, Tally};
use rung_model::traffic::Counts;
use rung_model::{AppName, Backend, Endpoint, Generation, Hold, Route, RouteDocument, ServiceName};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

const PATIENCE: Duration = Duration::from_secs(20);

/// Plays the server: answers polls of proxies.
#[derive(Debug, Default)]
pub struct Server {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    documents: Vec<RouteDocument>,
    polls: Vec<ProxyPoll>,
    reports: Vec<ProxyTraffic>,
    /// With the round in which each was last told.
    tallies: BTreeMap<Subject, (u32, Tally)>,
    has_forgotten: bool,
    /// Names of proxies that said that they end.
    left: Vec<String>,
    is_down: bool,
}

impl Server {
    fn start() -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Arc::new(Self::default());
        let shared = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = shared.clone();
                std::thread::spawn(move || server.serve(stream));
            }
        });
        (server, address)
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        loop {
            let mut bytes = Vec::new();
            let head_end = loop {
                if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                    break at + 4;
                }
                let mut more = [0; 4096];
                let count = stream.read(&mut more).ok().filter(|count| *count > 0)?;
                bytes.extend_from_slice(&more[..count]);
            };
            let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap().to_lowercase();
            let length = head
                .split("content-length: ")
                .nth(1)
                .map_or(Some(0), |rest| rest.split("\r\n").next()?.parse().ok())?;
            while bytes.len() < head_end + length {
                let mut more = [0; 4096];
                let count = stream.read(&mut more).ok().filter(|count| *count > 0)?;
                bytes.extend_from_slice(&more[..count]);
            }
            if let Some(target) = head.strip_prefix("delete ") {
                self.forget(target.split(' ').next()?.rsplit('/').next()?);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull").ok()?;
                continue;
            }
            if head.lines().next().is_some_and(|line| line.contains("/limits")) {
                let alone = br#"{"others":0,"limits":[]}"#;
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", alone.len());
                stream.write_all(&[answer.as_bytes(), alone].concat()).ok()?;
                continue;
            }
            if head.lines().next().is_some_and(|line| line.contains("/tally")) {
                let heard = self.take_tally(serde_json::from_slice(&bytes[head_end..]).unwrap());
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{heard}", heard.len());
                stream.write_all(answer.as_bytes()).ok()?;
                continue;
            }
            if head.lines().next().is_some_and(|line| line.contains("/traffic")) {
                self.take_report(serde_json::from_slice(&bytes[head_end..]).unwrap());
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull").ok()?;
                continue;
            }
            if head.split(' ').nth(1)?.contains("/certificates") {
                // As a server of an older version, which orders none.
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}").ok()?;
                continue;
            }
            let wait = head.split("wait_ms=").nth(1)?.split([' ', '&']).next()?.parse().ok()?;
            let poll: ProxyPoll = serde_json::from_slice(&bytes[head_end..]).unwrap();
            let answer = serde_json::to_vec(&self.poll(poll, Duration::from_millis(wait))?).unwrap();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(&answer).ok()?;
        }
    }

    /// `None`: the server is down, and the connection breaks.
    fn poll(&self, poll: ProxyPoll, wait: Duration) -> Option<ProxyDocuments> {
        let mut state = self.state.lock().unwrap();
        state.polls.push(poll.clone());
        self.changed.notify_all();
        let is_news =
            |state: &State| state.is_down || poll.whole || poll.after < Generation::new(1, state.revision);
        let (state, _) = self.changed.wait_timeout_while(state, wait, |state| !is_news(state)).unwrap();
        if state.is_down {
            return None;
        }
        let whole = is_news(&state);
        let documents = if whole { state.documents.clone() } else { Vec::new() };
        let generation = Generation::new(1, state.revision);
        Some(ProxyDocuments { generation, whole, documents, removed: Vec::new() })
    }

    fn take_report(&self, report: ProxyTraffic) {
        self.state.lock().unwrap().reports.push(report);
        self.changed.notify_all();
    }

    fn take_tally(&self, report: TallyReport) -> String {
        let mut state = self.state.lock().unwrap();
        let tell_all = std::mem::take(&mut state.has_forgotten);
        for line in report.lines {
            state.tallies.insert(line.subject, (report.round, line.tally));
        }
        if report.is_complete {
            state.tallies.retain(|_, (round, _)| *round == report.round);
        }
        self.changed.notify_all();
        format!("{{\"tell_all\":{tell_all}}}")
    }

    /// As a server that has been started again.
    pub fn forget_tallies(&self) {
        let mut state = self.state.lock().unwrap();
        state.tallies.clear();
        state.has_forgotten = true;
    }

    /// Waits until nothing is told of an instance any more.
    pub fn await_forgotten(&self, of: &str) {
        let state = self.state.lock().unwrap();
        let is_there = |state: &State| state.tallies.keys().any(|subject| is_of(subject, of));
        let (state, _) = self.changed.wait_timeout_while(state, PATIENCE, |state| is_there(state)).unwrap();
        assert!(!is_there(&state), "{of} is still told of: {:?}", state.tallies);
    }

    /// Waits until `is_it` is true of what was told of a route (`/api/*`) or an instance.
    pub fn await_tally(&self, of: &str, what: &str, is_it: impl Fn(&Tally) -> bool) -> Tally {
        let state = self.state.lock().unwrap();
        let found = |state: &State| {
            let told = state.tallies.iter().find(|(subject, _)| is_of(subject, of));
            told.map(|(_, (_, tally))| tally.clone()).filter(&is_it)
        };
        let (state, _) =
            self.changed.wait_timeout_while(state, PATIENCE, |state| found(state).is_none()).unwrap();
        found(&state).unwrap_or_else(|| panic!("{of} was never told to have {what}: {:?}", state.tallies))
    }

    /// Waits for a report of which `is_it` is true of what was counted of a cohort.
    pub fn await_counts(&self, cohort: u64, what: &str, is_it: impl Fn(&Counts) -> bool) -> Counts {
        let state = self.state.lock().unwrap();
        let of = |report: &ProxyTraffic| {
            let counts = report.cohorts.iter().find(|counted| counted.cohort.0 == cohort);
            counts.map(|counted| counted.counts.clone())
        };
        let found = |state: &State| state.reports.iter().rev().filter_map(of).find(|counts| is_it(counts));
        let (state, _) =
            self.changed.wait_timeout_while(state, PATIENCE, |state| found(state).is_none()).unwrap();
        found(&state)
            .unwrap_or_else(|| panic!("no report said {what}; the last was {:?}", state.reports.last()))
    }

    fn forget(&self, proxy: &str) {
        self.state.lock().unwrap().left.push(proxy.to_owned());
        self.changed.notify_all();
    }

    pub fn await_leaving(&self, proxy: &str) {
        let state = self.state.lock().unwrap();
        let has_left = |state: &State| state.left.iter().any(|name| name == proxy);
        let (state, _) = self.changed.wait_timeout_while(state, PATIENCE, |state| !has_left(state)).unwrap();
        assert!(has_left(&state), "{proxy} never said that it ends; those that did: {:?}", state.left);
    }

    pub fn publish(&self, mut documents: Vec<RouteDocument>) -> Generation {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let generation = Generation::new(1, state.revision);
        for document in &mut documents {
            document.generation = generation;
        }
        state.documents = documents;
        self.changed.notify_all();
        generation
    }

    pub fn set_down(&self, is_down: bool) {
        self.state.lock().unwrap().is_down = is_down;
        self.changed.notify_all();
    }

    /// Waits for a poll of which `is_it` is true.
    pub fn await_poll(&self, what: &str, is_it: impl Fn(&ProxyPoll) -> bool) -> ProxyPoll {
        let state = self.state.lock().unwrap();
        let found = |state: &State| state.polls.iter().rev().find(|poll| is_it(poll)).cloned();
        let (state, _) =
            self.changed.wait_timeout_while(state, PATIENCE, |state| found(state).is_none()).unwrap();
        found(&state).unwrap_or_else(|| panic!("no poll said {what}; the last was {:?}", state.polls.last()))
    }

    pub fn await_acknowledged(&self, generation: Generation) {
        self.await_poll("that the generation is everywhere", |poll| poll.after >= generation);
    }
}

pub struct Stage {
    pub server: Arc<Server>,
    pub http: SocketAddr,
    https: Option<SocketAddr>,
    pub directory: TempDir,
    pub rung: Option<Rung>,
    api: SocketAddr,
}

/// The part that lives in `rung up`.
pub struct Rung {
    thread: std::thread::JoinHandle<()>,
    shutdown: watch::Sender<bool>,
    lost: watch::Sender<bool>,
    /// At which port services are called.
    services: u16,
    pub events: mpsc::UnboundedReceiver<String>,
}

impl Stage {
    /// An ingress that serves by these documents.
    pub fn start(documents: Vec<RouteDocument>) -> Self {
        Self::with_arguments(documents, &[])
    }

    pub fn with_arguments(documents: Vec<RouteDocument>, arguments: &[&str]) -> Self {
        Self::with_sockets(documents, None, arguments)
    }

    /// An ingress that serves over TLS too.
    pub fn with_https(documents: Vec<RouteDocument>, arguments: &[&str]) -> Self {
        Self::with_sockets(documents, Some("127.0.0.1:0".parse().unwrap()), arguments)
    }

    fn with_sockets(documents: Vec<RouteDocument>, https: Option<SocketAddr>, arguments: &[&str]) -> Self {
        let (server, api) = Server::start();
        let generation = server.publish(documents);
        let directory = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let (rung, http, https) = Rung::start(directory.path(), api, any, https, arguments);
        server.await_acknowledged(generation);
        let mut stage = Self { server, http, https, directory, rung: Some(rung), api };
        stage.await_event("serves on");
        stage
    }

    /// A `kill -9` of rung: its supervisor is gone from one moment to the next, the ingress is not.
    pub fn lose_rung(&mut self) {
        let rung = self.rung.take().expect("rung runs");
        rung.lost.send_replace(true);
        rung.thread.join().unwrap();
    }

    /// Another `rung up` on the same directory.
    pub fn start_rung(&mut self) -> SocketAddr {
        let (rung, http, https) = Rung::start(self.directory.path(), self.api, self.http, self.https, &[]);
        assert_eq!(https, self.https, "TLS is served elsewhere");
        self.rung = Some(rung);
        http
    }

    pub fn https(&self) -> SocketAddr {
        self.https.expect("the story serves over TLS")
    }

    /// Where the service is called that has this address.
    pub fn inside(&self, address: Ipv4Addr) -> SocketAddr {
        SocketAddr::from((address, self.rung.as_ref().expect("rung runs").services))
    }

    pub fn await_event(&mut self, what: &str) {
        let rung = self.rung.as_mut().expect("rung runs");
        let until = Instant::now() + PATIENCE;
        loop {
            let event = loop {
                match rung.events.try_recv() {
                    Ok(event) => break event,
                    Err(_) if Instant::now() < until => std::thread::yield_now(),
                    Err(_) => panic!("no event said {what:?}"),
                }
            };
            if event.contains(what) {
                return;
            }
        }
    }

    pub fn status(&self) -> rung_ingress::Status {
        Control::connect(self.directory.path()).expect("an ingress runs").status().unwrap()
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.status().pid.cast_signed())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(rung) = self.rung.take() {
            rung.shutdown.send_replace(true);
            let _ = rung.thread.join();
        } else if let Ok(control) = Control::connect(self.directory.path()) {
            // The story failed while nobody looked after the ingress.
            if let Ok(status) = control.status() {
                let pid = nix::unistd::Pid::from_raw(status.pid.cast_signed());
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
}

impl Rung {
    fn start(
        directory: &Path,
        api: SocketAddr,
        http: SocketAddr,
        https: Option<SocketAddr>,
        arguments: &[&str],
    ) -> (Self, SocketAddr, Option<SocketAddr>) {
        let program = directory.join("ingress-under-test");
        if !program.exists() {
            let this = std::env::current_exe().unwrap();
            let script = format!(
                "#!/bin/sh\nshift\nRUNG_INGRESS_TEST_ARGS=\"$*\" exec '{}' --exact ingress_process --nocapture\n",
                this.display()
            );
            std::fs::write(&program, script).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let (shutdown, stopping) = watch::channel(false);
        let (lost, mut losing) = watch::channel(false);
        let (say, events) = mpsc::unbounded_channel();
        let config = SupervisorConfig {
            program,
            http: Some(Listen { address: http, next_free: false }),
            cluster: None,
            services: Some(rung_ingress::ServicesSetting {
                port: rung_model::address::SERVICE_PORT,
                users: None,
            }),
            https: https.map(|address| Listen { address, next_free: false }),
            api: vec![rung_api::Address::Tcp(api.to_string())],
            data: directory.to_owned(),
            threads: 2,
        };
        let supervisor =
            Supervisor::bind(config).expect("binding failed").arguments(arguments.iter().copied());
        let (http, https) = (supervisor.http().expect("it was asked for"), supervisor.https());
        let services = supervisor.services().expect("the loopback device is there");
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = supervisor.run(stopping, say) => {}
                    _ = losing.wait_for(|is_lost| *is_lost) => {}
                }
            });
        });
        (Self { thread, shutdown, lost, services, events }, http, https)
    }
}

fn is_of(subject: &Subject, of: &str) -> bool {
    match subject {
        Subject::Route { route, .. } => route == of,
        Subject::Instance { instance, .. } => instance.as_str() == of,
    }
}

pub fn backend(endpoints: Vec<Endpoint>) -> Backend {
    Backend {
        endpoints,
        draining: Vec::new(),
        protocol: rung_model::Protocol::Http1,
        hold: None,
        response_timeout: Duration::from_secs(10),
        explanation: String::new(),
        absence: Default::default(),
        split: None,
    }
}

pub fn held(max_requests: u32, max_time: Duration) -> Backend {
    Backend { hold: Some(Hold { max_requests, max_time }), ..backend(Vec::new()) }
}

/// The app `shop` with one service.
pub fn shop(backend: Backend) -> RouteDocument {
    let web = ServiceName::new("web").unwrap();
    RouteDocument::new(
        AppName::new("shop").unwrap(),
        vec!["shop.localhost".into()],
        vec![Route::to_service("/*", web.clone())],
        [(web, backend)].into(),
    )
}
