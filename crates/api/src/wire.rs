//! Bodies of requests and answers. Documents of the model travel as they are.

mod access;
pub mod certificates;
pub mod cluster;
mod releases;
mod secrets;
mod tally;

use std::collections::BTreeMap;

pub use access::{TokenCreated, TokenListing, TokenRequest, Whoami};
use jiff::Timestamp;
use rung_model::app::{Destroying, Scale};
use rung_model::appfile::AppText;
use rung_model::deployment::{Asked, Goal, Phase, Trouble};
use rung_model::generation::Generation;
use rung_model::ids::{
    AppName, DeploymentNumber, Digest, InstanceId, JobName, NodeId, ReleaseNumber, RunId, ServiceName,
};
use rung_model::job::Paused;
use rung_model::node::IsolationFact;
use rung_model::observed::InstanceState;
use rung_model::release::Origin;
use rung_model::route::Maintenance;
use rung_model::routes::RouteDocument;
use rung_model::run::{Run, Terminal};
use rung_model::schedule::{Schedule, Zone};
use rung_model::traffic::Counts;
pub use secrets::{
    Alphabet, Existing, GenerateRequest, KeyRotated, SecretListing, SecretRequest, SecretVersion,
};
use serde::{Deserialize, Serialize};
pub use tally::{IngressTraffic, TallyHeard, TallyLine, TallyReport, TrafficReport};

pub use releases::{
    ArtifactDiff, Change, CommitState, CommitStatus, FileChange, PromoteRequest, ReleaseDetail, ReleaseDiff,
    ReleaseRequest, SecretChange, ValueChange,
};

/// `GET /v1/health`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HealthReport {
    pub version: String,
    pub node: NodeId,
    /// Where requests for apps are served, `127.0.0.1:8080`.
    pub http: String,
    pub data: String,
    /// When the server's process began; an upgrade begins a new one under the same pid.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
}

/// `POST /v1/apps/{app}/deployments`. The source was uploaded with `PUT /v1/sources/{digest}` before.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeployRequest {
    /// With every overlay: which one counts is said by the app's name.
    pub file: AppText,
    /// `None`: only the app file is new; the artifact of the release that serves is used again.
    #[serde(default)]
    pub source: Option<Digest>,
    /// What git says of the source.
    #[serde(default)]
    pub origin: Option<Origin>,
    #[serde(default)]
    pub asked: Asked,
    #[serde(default)]
    pub note: Option<String>,
    pub by: String,
}

/// The answer to everything that starts a deployment.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum Started {
    Deployment {
        number: DeploymentNumber,
        /// Known at once when nothing is built.
        release: Option<ReleaseNumber>,
        /// What the person should know: `the build of v6 is used again`.
        #[serde(default)]
        remarks: Vec<String>,
    },
    /// What was asked for is what is there.
    Unchanged { release: ReleaseNumber },
    /// Kept for the next deployment: nothing is deployed yet.
    Kept,
}

/// `POST …/rollback`; without a release: the one before the current.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RollbackRequest {
    pub to: Option<ReleaseNumber>,
    pub by: String,
}

/// `POST …/restart`; without services: all.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RestartRequest {
    pub by: String,
}

/// `POST …/scale`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ScaleRequest {
    pub services: BTreeMap<ServiceName, u32>,
    pub by: String,
}

/// `PUT …/maintenance`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MaintenanceRequest {
    pub maintenance: Maintenance,
    pub by: String,
}

/// `PATCH …/config`; `None` unsets.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigRequest {
    pub changes: BTreeMap<String, Option<String>>,
    pub by: String,
}

/// `POST …/runs`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunRequest {
    pub command: String,
    pub terminal: Option<Terminal>,
    pub by: String,
}

/// `GET …/jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobListing {
    pub name: JobName,
    /// `None`: on demand only.
    pub schedule: Option<Schedule>,
    pub timezone: Zone,
    pub command: String,
    pub paused: Option<Paused>,
    pub pinned: Option<ReleaseNumber>,
    /// The next scheduled times, at most five; empty while it is paused.
    #[schema(value_type = Vec<String>, format = DateTime)]
    pub next: Vec<Timestamp>,
    /// The newest run, going on or ended.
    pub last: Option<Run>,
}

/// `POST …/jobs/{job}/runs`: a run on demand.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobRequest {
    /// Words after the job's command, each kept whole.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// Wins over the release's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    pub by: String,
}

/// `POST …/jobs/{job}/pin`; `None`: the release that serves again.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PinRequest {
    pub release: Option<ReleaseNumber>,
    pub by: String,
}

/// `DELETE /v1/apps/{app}`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DestroyRequest {
    pub volumes: Destroying,
    pub by: String,
}

/// `GET /v1/apps/{app}/status` and, as a list, `GET /v1/apps`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AppStatus {
    pub app: AppName,
    pub current: Option<ReleaseNumber>,
    pub urls: Vec<String>,
    pub services: Vec<ServiceStatus>,
    pub deployment: Option<DeploymentSummary>,
    pub destroying: bool,
    /// The same app in other environments.
    #[serde(default)]
    pub environments: Vec<EnvironmentStatus>,
    /// What keeps the app from what is desired, in words; empty when all is well.
    pub problems: Vec<String>,
}

/// An app in another environment, in short.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EnvironmentStatus {
    pub app: AppName,
    pub current: Option<ReleaseNumber>,
    pub urls: Vec<String>,
    /// Instances of all its services.
    pub desired: u32,
    pub healthy: u32,
    /// Of its newest deployment.
    pub phase: Option<Phase>,
}

#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServiceStatus {
    pub name: ServiceName,
    pub desired: u32,
    pub healthy: u32,
    pub exclusive: bool,
    pub port: bool,
    pub scale: Option<Scale>,
    /// Why some of them can't be placed yet.
    #[serde(default)]
    pub unplaced: Option<String>,
    /// Where other services reach it, from instances beside this server: `http://127.99.3.1:7700`.
    #[serde(default)]
    pub inside: Option<String>,
    pub instances: Vec<InstanceStatus>,
}

#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct InstanceStatus {
    pub id: InstanceId,
    pub node: NodeId,
    /// Its node was not heard of for a while, and everything else here is what was heard last.
    #[serde(default)]
    pub lost: bool,
    pub service: ServiceName,
    pub release: ReleaseNumber,
    #[serde(default)]
    pub cohort: Cohort,
    pub state: InstanceState,
    /// Gets requests now.
    pub routed: bool,
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<std::net::SocketAddr>,
    pub pid: Option<u32>,
    pub restarts: u32,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    pub reason: Option<String>,
    pub log_tail: Vec<String>,
}

/// Which of an app's cohorts an instance belongs to; the counts of a service are about the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cohort {
    /// The one that serves; every one, when none has served yet.
    #[default]
    Live,
    /// One that a deployment brings, or that is kept warm, or whose time is over.
    Other,
}

#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeploymentSummary {
    pub number: DeploymentNumber,
    pub release: Option<ReleaseNumber>,
    pub phase: Phase,
    pub by: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    #[serde(default)]
    pub goal: Goal,
    pub trouble: Option<Trouble>,
}

/// `GET …/releases`, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReleaseListing {
    pub number: ReleaseNumber,
    pub current: bool,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub by: String,
    pub reason: String,
    pub note: Option<String>,
    #[serde(default)]
    pub origin: Option<Origin>,
    pub artifact: Digest,
    /// Whether its artifact is still kept, so that it can be rolled back to, or out.
    pub available: bool,
    /// It was made to be rolled out later, and was not yet.
    #[serde(default)]
    pub waits: bool,
    /// Every deployment of it failed or was rolled back.
    #[serde(default)]
    pub failed: bool,
    /// The same, and of the last one somebody had said so.
    #[serde(default)]
    pub cancelled: bool,
    /// A deployment is rolling it out, or back.
    #[serde(default)]
    pub deploying: bool,
}

/// `GET …/launch`: what an agent needs to start instances of a release. Answered to nodes only.
#[derive(Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Launch {
    pub release: rung_model::Release,
    /// Config and secrets, opened.
    pub env: BTreeMap<String, String>,
    /// Where the services are that it may call, by how their variables begin (`RUNG_SERVICE_API`).
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub services: BTreeMap<String, std::net::Ipv4Addr>,
    /// The same by the names that they have there (`api.shop.internal`).
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub names: BTreeMap<String, std::net::Ipv4Addr>,
}

impl std::fmt::Debug for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launch")
            .field("release", &self.release.number)
            .field("env", &self.env.keys())
            .finish()
    }
}

/// `POST /v1/proxies/{proxy}/poll?wait_ms=…`: waits until something is newer than `after`.
///
/// `after` is an acknowledgement: all of the proxy's threads pick from documents of that generation or newer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProxyPoll {
    pub after: Generation,
    /// Requests in flight for each instance that the held documents name as draining.
    #[serde(default)]
    pub draining: BTreeMap<InstanceId, u64>,
    /// The proxy holds nothing (or doubts what it holds) and asks for every document.
    #[serde(default)]
    pub whole: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProxyDocuments {
    /// What to send as `after` once these are applied.
    pub generation: Generation,
    /// `documents` is all there is; apps that are not in it are gone.
    pub whole: bool,
    pub documents: Vec<RouteDocument>,
    /// Apps that have no routes any more.
    pub removed: Vec<AppName>,
}

/// `POST /v1/proxies/{proxy}/traffic`: what a process of a proxy has counted since it began, of apps that are measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProxyTraffic {
    /// Tells the process from others under the same name.
    pub life: u64,
    pub cohorts: Vec<CohortTraffic>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CohortTraffic {
    pub app: AppName,
    pub cohort: DeploymentNumber,
    /// Totals: a later report holds at least as many.
    pub counts: Counts,
}

/// `POST …/limits`: what an ingress let pass of limits, and in the answer what the others did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LimitsTaken {
    /// In the answer: how many other ingresses there are. From a server to another: how many ask it.
    #[serde(default)]
    pub others: usize,
    /// How long ago the first of these passed, at most.
    #[serde(default)]
    pub age_ms: u64,
    pub limits: Vec<LimitTaken>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LimitTaken {
    /// The same for every ingress.
    pub limit: String,
    /// By client, in hexadecimal.
    pub taken: BTreeMap<String, u32>,
}

/// `GET …/logs`, and `GET /v1/agent/logs` with `app` as a parameter.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogQuery {
    #[serde(default)]
    pub app: Option<AppName>,
    #[serde(default)]
    pub service: Option<ServiceName>,
    #[serde(default)]
    pub instance: Option<InstanceId>,
    #[serde(default)]
    pub run: Option<RunId>,
    /// Only lines from then on.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// Only the newest so many lines of what is there.
    #[serde(default)]
    pub tail: Option<usize>,
    /// Go on with what comes.
    #[serde(default)]
    pub follow: bool,
}

/// One record of a log, as a server-sent event's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogLine {
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// An instance's or a run's id.
    pub source: String,
    pub service: Option<ServiceName>,
    pub stream: Stream,
    /// The line without its end; bytes that are not UTF-8 and control characters are escaped as `\xNN`.
    pub text: String,
    /// The line was longer than a record; the next record goes on with it.
    #[serde(default)]
    pub partial: bool,
}

/// What Rung says in a log when a command begins: `started`, and from the second time on which life this is.
pub fn said_at_start(attempt: u32) -> String {
    if attempt <= 1 { "started".to_owned() } else { format!("started (attempt {attempt})") }
}

impl LogLine {
    /// Whether this is Rung's word that the command has begun, not one of its end.
    pub fn says_started(&self) -> bool {
        self.stream == Stream::Rung && is_start(&self.text)
    }
}

/// Of Rung's own words: whether they are [`said_at_start`].
pub fn is_start(text: &str) -> bool {
    text == "started" || text.starts_with("started ")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
    /// Rung's own words: `started`, `120 lines were dropped`.
    Rung,
}

/// What happened, for `rung events`; kept bounded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventRecord {
    pub sequence: u64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Of several servers the one that it happened at; `None`: all of them see it in the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<NodeId>,
    /// Which one of that server's it is, where this server has heard it from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence_there: Option<u64>,
    pub app: Option<AppName>,
    /// Stable: `deployment_started`, `instance_exited`, `ingress_restarted`…
    pub kind: String,
    pub message: String,
}

/// What happened at a server, for the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OwnEvents {
    pub events: Vec<EventRecord>,
    /// The sequence of the newest event of all there.
    pub newest: u64,
}

/// Where a server keeps artifacts, for the others: they shall be in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OwnPlace {
    /// As it is shown; `None`: on its disk.
    pub bucket: Option<String>,
    /// The word that whoever looked last whether all is well has left in the bucket.
    pub word: Option<String>,
}

/// `GET /v1/doctor`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DoctorReport {
    pub version: String,
    pub checks: Vec<DoctorCheck>,
    pub isolation: BTreeMap<NodeId, Vec<IsolationFact>>,
}

#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DoctorCheck {
    pub name: String,
    pub state: DoctorState,
    pub detail: String,
    pub hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DoctorState {
    Fine,
    Warning,
    Broken,
}

/// `POST /v1/upgrade`: the running server replaces itself by this binary, after a backup of its state.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UpgradeRequest {
    /// An absolute path on the server's machine.
    #[schema(value_type = String)]
    pub program: std::path::PathBuf,
}
