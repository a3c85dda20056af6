//! The typed client: one method an endpoint, over a Unix socket, TCP or TLS.
//!
//! Connections are kept and used again, and between machines they are shared: [`lines`] says how. A request whose
//! connection was closed by the other side before a byte of the answer came is not sent again here: callers are loops, and
//! the next tick is the retry.

mod access;
mod authority;
mod certificates;
mod cluster;
mod lines;
mod maintenance;
mod nodes;
mod rollouts;
mod silence;
mod traffic;
mod witness;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use rung_model::{
    AppName, Deployment, DeploymentNumber, Digest, JobName, NodeId, NodeRole, ReleaseNumber, Run, RunId,
};

pub use self::access::AuditOf;
use self::lines::{Line, Lines, Way};
use self::silence::{Asked, Who};
use crate::error::{Code, ErrorBody};
use crate::paths;
use crate::sse::Message;
use crate::wire::{
    AppStatus, CommitStatus, ConfigRequest, DeployRequest, DestroyRequest, DoctorReport, EventRecord,
    HealthReport, JobListing, JobRequest, LogLine, LogQuery, PinRequest, PromoteRequest, ReleaseDetail,
    ReleaseDiff, ReleaseListing, ReleaseRequest, RestartRequest, RollbackRequest, RunRequest, ScaleRequest,
    SecretListing, SecretRequest, Started,
};

/// Where an API is served: `unix:/path/api.sock`, `http://127.0.0.1:7864` or `https://10.0.0.1:7864`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(String),
    /// With the cluster's certificates.
    Tls(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address of the API: write it like http://127.0.0.1:7864 or unix:/path/api.sock")]
pub struct InvalidAddress(String);

impl FromStr for Address {
    type Err = InvalidAddress;
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let (is_tls, rest) = match text.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("http://").unwrap_or(text)),
        };
        let authority = rest.trim_end_matches('/');
        if authority.contains('/') || !authority.contains(':') {
            return Err(InvalidAddress(text.to_owned()));
        }
        let authority = authority.to_owned();
        Ok(if is_tls { Self::Tls(authority) } else { Self::Tcp(authority) })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(authority) => write!(f, "http://{authority}"),
            Self::Tls(authority) => write!(f, "https://{authority}"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered, and said no.
    #[error(transparent)]
    Api(#[from] ErrorBody),
    #[error("connecting to the rung server at {address}")]
    Connect { address: String, source: std::io::Error },
    #[error("connecting to the rung server at {address}: {why}")]
    Untrusted { address: String, why: rung_trust::Explained },
    #[error("connecting to the rung server at {address}: nothing says whom to trust there")]
    NoTrust { address: String },
    #[error("talking to the rung server at {address}")]
    Broken { address: String, source: hyper::Error },
    #[error("answer of the rung server to {path} is not what this version understands")]
    NotUnderstood { path: String, source: serde_json::Error },
    /// A stream that stopped without saying that it is whole.
    #[error("answer of the rung server at {address} to {path} broke off before its end")]
    BrokenOff { address: String, path: String },
}

impl ClientError {
    /// The stable code, when the server said one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Api(body) => Some(body.code),
            _ => None,
        }
    }

    /// Whether nobody was there in time, or went away while it was asked: a server that is busy or starts does so.
    fn is_late(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.kind() == std::io::ErrorKind::TimedOut,
            Self::Broken { .. } => true,
            _ => false,
        }
    }
}

pub type Body = BoxBody<Bytes, std::io::Error>;

#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    servers: Mutex<Servers>,
    token: Option<String>,
    tls: Option<Tls>,
    lines: Lines,
}

/// Servers that are as good as each other.
#[derive(Debug)]
struct Servers {
    /// At least one.
    addresses: Vec<Address>,
    /// The one that answered last.
    current: usize,
}

/// How a TLS connection is begun, and who must be at its other end.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    /// The same, for connections that are not shared.
    one_by_one: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    pub fn to_servers(config: Arc<ClientConfig>) -> Self {
        Self::to(config, rung_trust::role_name(NodeRole::Server))
    }

    pub fn to_node(config: Arc<ClientConfig>, node: &NodeId) -> Self {
        Self::to(config, rung_trust::node_name(node))
    }

    fn to(config: Arc<ClientConfig>, name: String) -> Self {
        Self { one_by_one: rung_trust::one_by_one(&config), config, name: rung_trust::server_name(name) }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("servers", &self.inner.servers).finish_non_exhaustive()
    }
}

const PATHS_ARE_GOOD: &str = "paths are made of checked names and encoded queries";

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

impl Client {
    pub fn new(address: Address, token: Option<String>) -> Self {
        Self::to_any(vec![address], token, None)
    }

    /// Speaks TLS where the address says so.
    pub fn over_tls(address: Address, token: Option<String>, tls: Tls) -> Self {
        Self::to_any(vec![address], token, Some(tls))
    }

    /// Of several servers that are as good as each other.
    ///
    /// # Panics
    /// When there is none.
    pub fn to_any(addresses: Vec<Address>, token: Option<String>, tls: Option<Tls>) -> Self {
        assert!(!addresses.is_empty(), "a client has a server");
        let servers = Mutex::new(Servers { addresses, current: 0 });
        Self { inner: Arc::new(Inner { servers, token, tls, lines: Lines::default() }) }
    }

    fn servers(&self) -> MutexGuard<'_, Servers> {
        self.inner.servers.lock().expect("no panic while held")
    }

    /// The server that answered last.
    pub fn address(&self) -> Address {
        let servers = self.servers();
        servers.addresses[servers.current].clone()
    }

    /// Servers have come or gone. A socket of this machine stays, and so does the server that answered last as long as it
    /// is one of them.
    pub fn set_servers(&self, others: Vec<Address>) {
        if others.is_empty() || self.inner.tls.is_none() {
            return;
        }
        let now = self.address();
        let is_here = |address: &Address| matches!(address, Address::Unix(_));
        let mut addresses = self.servers().addresses.clone();
        addresses.retain(is_here);
        addresses.extend(others);
        let current = addresses.iter().position(|address| *address == now).unwrap_or(0);
        *self.servers() = Servers { addresses, current };
    }

    /// Asks another server from now on, where there is one.
    fn turn_away_from(&self, address: &Address) {
        let mut servers = self.servers();
        // Of several calls that fail at once only the first one turns.
        if servers.addresses[servers.current] == *address {
            servers.current = (servers.current + 1) % servers.addresses.len();
        }
        drop(servers);
        self.inner.lines.forget_those_to(address);
    }

    fn who(&self) -> Who {
        if self.inner.token.is_some() { Who::Person } else { Who::Role }
    }

    /// Sends a request and answers with the response's head and streaming body. Statuses of 400 and more are errors.
    async fn send(
        &self,
        way: Way,
        method: Method,
        path: &str,
        content_type: &str,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut line = self.line(way).await?;
        let request = line.request(method, path).header("content-type", content_type);
        let request = self.sign(request).body(body).expect(PATHS_ARE_GOOD);
        let asked = Asked::by(self, &line);
        let response = line.send(request).await?;
        asked.answered();
        let response = self.refuse_errors(path, &line, response).await?;
        self.keep(line);
        Ok(response)
    }

    fn sign(&self, request: hyper::http::request::Builder) -> hyper::http::request::Builder {
        match &self.inner.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Changes the protocol of a fresh connection to [`crate::attach::PROTOCOL`]; what comes after it are its frames.
    pub async fn upgrade(&self, path: &str) -> Result<TokioIo<hyper::upgrade::Upgraded>, ClientError> {
        let mut line = self.connect(Way::Alone).await?;
        let request = line.request(Method::GET, path);
        let request = request.header("connection", "upgrade").header("upgrade", crate::attach::PROTOCOL);
        let request = self.sign(request).body(full(Bytes::new())).expect(PATHS_ARE_GOOD);
        let response = line.send(request).await?;
        let response = self.refuse_errors(path, &line, response).await?;
        if response.status() != hyper::StatusCode::SWITCHING_PROTOCOLS {
            let message = format!("{path} was answered with status {} and no upgrade", response.status());
            return Err(ClientError::Api(ErrorBody::new(Code::Internal, message)));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|source| line.broken(source))?;
        Ok(TokioIo::new(upgraded))
    }

    /// What a body broke off with, after its head had come.
    fn broken(&self, source: hyper::Error) -> ClientError {
        ClientError::Broken { address: self.address().to_string(), source }
    }

    async fn refuse_errors(
        &self,
        path: &str,
        line: &Line,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, ClientError> {
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(|source| line.broken(source))?.to_bytes();
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => {
                // One that is cut off from the others knows nothing that another one does not know better.
                if body.code == Code::Unavailable {
                    self.turn_away_from(line.address());
                }
                Err(ClientError::Api(body))
            }
            Err(_) => Err(ClientError::Api(ErrorBody::new(
                Code::Internal,
                format!("{path} was answered with status {status}"),
            ))),
        }
    }

    /// Sends a value as JSON and reads the answer as JSON.
    pub async fn call<I: Serialize + Sync, O: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        input: &I,
    ) -> Result<O, ClientError> {
        let body = full(serde_json::to_vec(input).expect("wire types serialize"));
        self.read(path, self.send(Way::Beside, method, path, "application/json", body).await?).await
    }

    pub async fn get<O: DeserializeOwned>(&self, path: &str) -> Result<O, ClientError> {
        let nothing = full(Bytes::new());
        self.read(path, self.send(Way::Beside, Method::GET, path, "application/json", nothing).await?).await
    }

    async fn read<O: DeserializeOwned>(
        &self,
        path: &str,
        response: Response<Incoming>,
    ) -> Result<O, ClientError> {
        let bytes = response.into_body().collect().await.map_err(|source| self.broken(source))?.to_bytes();
        serde_json::from_slice(&bytes)
            .map_err(|source| ClientError::NotUnderstood { path: path.to_owned(), source })
    }

    /// Follows a stream of server-sent events; each call of `next` gives one event.
    pub async fn stream<O: DeserializeOwned>(&self, path: &str) -> Result<EventStream<O>, ClientError> {
        let nothing = full(Bytes::new());
        let response = self.send(Way::Alone, Method::GET, path, "application/json", nothing).await?;
        Ok(EventStream {
            client: self.clone(),
            path: path.to_owned(),
            body: response.into_body(),
            decoder: crate::sse::Decoder::default(),
            ready: std::collections::VecDeque::new(),
            is_over: false,
            kind: std::marker::PhantomData,
        })
    }
}

/// Events of one stream, in order.
#[derive(Debug)]
pub struct EventStream<O> {
    client: Client,
    path: String,
    body: Incoming,
    decoder: crate::sse::Decoder,
    ready: std::collections::VecDeque<Message<String>>,
    /// It has said how it ended; there is nothing after that.
    is_over: bool,
    kind: std::marker::PhantomData<fn() -> O>,
}

impl<O: DeserializeOwned> EventStream<O> {
    /// `None` once all has come that there is to come; a stream that stops before that is an error, told once.
    pub async fn next(&mut self) -> Option<Result<O, ClientError>> {
        while !self.is_over {
            match self.ready.pop_front() {
                Some(Message::Item(json)) => {
                    let read = serde_json::from_slice(json.as_bytes());
                    let path = || self.path.clone();
                    return Some(read.map_err(|source| ClientError::NotUnderstood { path: path(), source }));
                }
                Some(Message::End) => self.is_over = true,
                Some(Message::Failed(body)) => return Some(Err(self.fail(ClientError::Api(body)))),
                None => match self.body.frame().await {
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            self.ready.extend(self.decoder.push(data));
                        }
                    }
                    Some(Err(source)) => return Some(Err(self.fail(self.client.broken(source)))),
                    None => {
                        let address = self.client.address().to_string();
                        let path = self.path.split('?').next().unwrap_or_default().to_owned();
                        return Some(Err(self.fail(ClientError::BrokenOff { address, path })));
                    }
                },
            }
        }
        None
    }

    fn fail(&mut self, error: ClientError) -> ClientError {
        self.is_over = true;
        error
    }
}

/// Fills `{…}` of a path in order.
pub fn fill(path: &str, values: &[&(dyn fmt::Display + Sync)]) -> String {
    let mut out = String::with_capacity(path.len() + 32);
    let mut values = values.iter();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let value = values.next().expect("as many values as parameters");
        out.push_str(&value.to_string());
        rest = after.split_once('}').expect("braces in paths are closed").1;
    }
    out.push_str(rest);
    out
}

/// Percent-encodes one value of a query.
pub fn encode_query(value: &str) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => write!(out, "%{byte:02X}").expect("writing to a string succeeds"),
        }
    }
    out
}

fn with_wait(path: String, wait: Duration) -> String {
    format!("{path}?wait_ms={}", wait.as_millis())
}

/// For people and their tools.
impl Client {
    pub async fn health(&self) -> Result<HealthReport, ClientError> {
        self.get(paths::HEALTH).await
    }

    pub async fn apps(&self) -> Result<Vec<AppStatus>, ClientError> {
        self.get(paths::APPS).await
    }

    pub async fn app(&self, app: &AppName) -> Result<AppStatus, ClientError> {
        self.get(&fill(paths::APP_STATUS, &[app])).await
    }

    /// Whether the server holds this tree already, so that it need not be sent.
    pub async fn has_source(&self, digest: &Digest) -> Result<bool, ClientError> {
        self.get(&fill(paths::SOURCE, &[digest])).await
    }

    pub async fn put_source(&self, digest: &Digest, archive: Body) -> Result<(), ClientError> {
        let path = fill(paths::SOURCE, &[digest]);
        let response = self.send(Way::Alone, Method::PUT, &path, "application/x-tar", archive).await?;
        self.read(&path, response).await
    }

    pub async fn deploy(&self, app: &AppName, request: &DeployRequest) -> Result<Started, ClientError> {
        self.call(Method::POST, &fill(paths::DEPLOYMENTS, &[app]), request).await
    }

    pub async fn deployments(&self, app: &AppName) -> Result<Vec<Deployment>, ClientError> {
        self.get(&fill(paths::DEPLOYMENTS, &[app])).await
    }

    /// The deployment once its timeline has more than `seen` entries or it has ended, at the latest after `wait`.
    pub async fn deployment(
        &self,
        app: &AppName,
        number: DeploymentNumber,
        seen: usize,
        wait: Duration,
    ) -> Result<Deployment, ClientError> {
        let path = with_wait(fill(paths::DEPLOYMENT, &[app, &number.0]), wait);
        self.get(&format!("{path}&seen={seen}")).await
    }
    pub async fn releases(&self, app: &AppName) -> Result<Vec<ReleaseListing>, ClientError> {
        self.get(&fill(paths::RELEASES, &[app])).await
    }

    pub async fn release(&self, app: &AppName, number: ReleaseNumber) -> Result<ReleaseDetail, ClientError> {
        self.get(&fill(paths::RELEASE, &[app, &number.0])).await
    }

    /// What `to` has otherwise than `from`.
    pub async fn diff(
        &self,
        app: &AppName,
        from: ReleaseNumber,
        to: ReleaseNumber,
    ) -> Result<ReleaseDiff, ClientError> {
        self.get(&fill(paths::RELEASE_DIFF, &[app, &from.0, &to.0])).await
    }

    /// Rolls out a release that was made before.
    pub async fn deploy_release(
        &self,
        app: &AppName,
        number: ReleaseNumber,
        request: &ReleaseRequest,
    ) -> Result<Started, ClientError> {
        self.call(Method::POST, &fill(paths::RELEASE_DEPLOY, &[app, &number.0]), request).await
    }

    pub async fn promote(&self, app: &AppName, request: &PromoteRequest) -> Result<Started, ClientError> {
        self.call(Method::POST, &fill(paths::PROMOTE, &[app]), request).await
    }

    /// What became of a commit, named by ten digits of it or more, once that is known, at the latest after `wait`.
    pub async fn commit(
        &self,
        app: &AppName,
        commit: &str,
        wait: Duration,
    ) -> Result<CommitStatus, ClientError> {
        self.get(&with_wait(fill(paths::COMMIT, &[app, &encode_query(commit)]), wait)).await
    }

    pub async fn rollback(&self, app: &AppName, request: &RollbackRequest) -> Result<Started, ClientError> {
        self.call(Method::POST, &fill(paths::ROLLBACK, &[app]), request).await
    }

    pub async fn restart(&self, app: &AppName, request: &RestartRequest) -> Result<Started, ClientError> {
        self.call(Method::POST, &fill(paths::RESTART, &[app]), request).await
    }

    pub async fn scale(&self, app: &AppName, request: &ScaleRequest) -> Result<AppStatus, ClientError> {
        self.call(Method::POST, &fill(paths::SCALE, &[app]), request).await
    }

    pub async fn config(
        &self,
        app: &AppName,
    ) -> Result<std::collections::BTreeMap<String, String>, ClientError> {
        self.get(&fill(paths::CONFIG, &[app])).await
    }

    pub async fn set_config(&self, app: &AppName, request: &ConfigRequest) -> Result<Started, ClientError> {
        self.call(Method::PATCH, &fill(paths::CONFIG, &[app]), request).await
    }

    pub async fn secrets(&self, app: &AppName) -> Result<Vec<SecretListing>, ClientError> {
        self.get(&fill(paths::SECRETS, &[app])).await
    }

    pub async fn set_secrets(&self, app: &AppName, request: &SecretRequest) -> Result<Started, ClientError> {
        self.call(Method::PATCH, &fill(paths::SECRETS, &[app]), request).await
    }

    pub async fn start_run(&self, app: &AppName, request: &RunRequest) -> Result<Run, ClientError> {
        self.call(Method::POST, &fill(paths::RUNS, &[app]), request).await
    }

    /// Runs that go on, oldest first: builds, release commands, jobs, one-off commands.
    pub async fn runs(&self, app: &AppName) -> Result<Vec<Run>, ClientError> {
        self.get(&fill(paths::RUNS, &[app])).await
    }

    /// The run once it has ended, at the latest after `wait`.
    pub async fn run(&self, app: &AppName, run: &RunId, wait: Duration) -> Result<Run, ClientError> {
        self.get(&with_wait(fill(paths::RUN, &[app, run]), wait)).await
    }

    pub async fn cancel_run(&self, app: &AppName, run: &RunId) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::RUN_CANCEL, &[app, run]), &()).await
    }

    /// The input and output of a run, as frames of [`crate::attach`].
    pub async fn attach(
        &self,
        app: &AppName,
        run: &RunId,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, ClientError> {
        self.upgrade(&fill(paths::RUN_ATTACH, &[app, run])).await
    }

    pub async fn jobs(&self, app: &AppName) -> Result<Vec<JobListing>, ClientError> {
        self.get(&fill(paths::JOBS, &[app])).await
    }

    pub async fn run_job(
        &self,
        app: &AppName,
        job: &JobName,
        request: &JobRequest,
    ) -> Result<Run, ClientError> {
        self.call(Method::POST, &fill(paths::JOB_RUNS, &[app, job]), request).await
    }

    /// The runs of a job that are kept, newest first.
    pub async fn job_runs(&self, app: &AppName, job: &JobName) -> Result<Vec<Run>, ClientError> {
        self.get(&fill(paths::JOB_RUNS, &[app, job])).await
    }

    pub async fn pause_job(&self, app: &AppName, job: &JobName, by: &str) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::JOB_PAUSE, &[app, job]), &by).await
    }

    pub async fn resume_job(&self, app: &AppName, job: &JobName, by: &str) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::JOB_RESUME, &[app, job]), &by).await
    }

    pub async fn pin_job(
        &self,
        app: &AppName,
        job: &JobName,
        request: &PinRequest,
    ) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::JOB_PIN, &[app, job]), request).await
    }

    pub async fn destroy(&self, app: &AppName, request: &DestroyRequest) -> Result<(), ClientError> {
        self.call(Method::DELETE, &fill(paths::APP, &[app]), request).await
    }

    pub async fn logs(&self, app: &AppName, query: &LogQuery) -> Result<EventStream<LogLine>, ClientError> {
        self.stream(&format!("{}?{}", fill(paths::LOGS, &[app]), log_query(query))).await
    }

    pub async fn events(
        &self,
        app: Option<&AppName>,
        follow: bool,
    ) -> Result<EventStream<EventRecord>, ClientError> {
        let app = app.map(|app| format!("&app={app}")).unwrap_or_default();
        self.stream(&format!("{}?follow={follow}{app}", paths::EVENTS)).await
    }

    pub async fn upgrade_server(&self, program: &std::path::Path) -> Result<(), ClientError> {
        let request = crate::wire::UpgradeRequest { program: program.to_owned() };
        self.call(Method::POST, paths::UPGRADE, &request).await
    }

    pub async fn doctor(&self) -> Result<DoctorReport, ClientError> {
        self.get(paths::DOCTOR).await
    }
}

/// A log query as the query of a URL.
pub fn log_query(query: &LogQuery) -> String {
    let mut parts = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            parts.push(format!("{name}={}", encode_query(&value)));
        }
    };
    add("app", query.app.as_ref().map(ToString::to_string));
    add("service", query.service.as_ref().map(ToString::to_string));
    add("instance", query.instance.as_ref().map(ToString::to_string));
    add("run", query.run.as_ref().map(ToString::to_string));
    add("since", query.since.map(|since| since.to_string()));
    add("tail", query.tail.map(|tail| tail.to_string()));
    add("follow", query.follow.then(|| "true".to_owned()));
    parts.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        assert_eq!("http://127.0.0.1:7864/".parse(), Ok(Address::Tcp("127.0.0.1:7864".into())));
        assert_eq!("unix:/run/rung/api.sock".parse(), Ok(Address::Unix("/run/rung/api.sock".into())));
        assert_eq!("https://10.0.0.1:7864".parse(), Ok(Address::Tls("10.0.0.1:7864".into())));
        assert!("https//nonsense".parse::<Address>().is_err());
    }

    #[test]
    fn paths_are_filled_in_order() {
        assert_eq!(fill(paths::DEPLOYMENT, &[&"shop", &7]), "/v1/apps/shop/deployments/7");
    }
}
