//! The HTTP API: who may call, and which endpoint is which function.
//!
//! The Unix socket (mode 0600) is for the roles on this machine and needs no token: whoever can open it owns the data
//! directory. On TCP every request but `/v1/health` carries a token. Where other machines can reach the port it is TLS
//! ([`connections`]), and a certificate of the cluster's authority says which node asks. What only nodes and proxies may
//! ask (opened secrets among it) is answered on the socket, and to nodes for themselves. Each endpoint for people states
//! the right it needs ([`right`]), and [`guard`] asks for it before the endpoint is reached.

mod apps;
mod audit;
mod callers;
mod certificates;
mod cluster;
mod connections;
mod deploy;
mod extract;
mod git;
mod guard;
mod jobs;
mod join;
mod maintenance;
mod nodes;
mod openapi;
mod releases;
mod right;
mod rollouts;
mod runs;
mod settings;
mod streams;
mod strict;
mod tokens;
mod traffic;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use rung_api::audit::{AuditRecord, KeptTrail, ServerTrail};
use rung_api::{Code, ErrorBody, paths, wire};
use rung_model::{Assignment, Deployment, NodeFacts, Observed, Run};
use tokio::net::{TcpListener, UnixListener};

pub(crate) use apps::no_such_app;
pub use callers::Via;
use extract::Json;
pub use openapi::document as openapi_document;

use crate::reconcile::Reconcile;
use crate::shared::Control;
use openapi::{Described, says};
use right::{DEPLOY, Right, VIEW};

/// An error body as an HTTP answer.
pub(crate) struct Refused(pub ErrorBody);

impl From<ErrorBody> for Refused {
    fn from(body: ErrorBody) -> Self {
        Self(body)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status =
            axum::http::StatusCode::from_u16(self.0.code.status()).expect("codes have real statuses");
        let code = self.0.code;
        let mut response = (status, Json(self.0)).into_response();
        // For the audit trail.
        response.extensions_mut().insert(code);
        response
    }
}

pub(crate) type Answer<T> = Result<Json<T>, Refused>;

/// Where others than the roles on this machine ask.
#[derive(Debug)]
pub enum Door {
    /// Only this machine reaches it.
    Plain(TcpListener),
    /// Other machines, and whatever listens between.
    Tls(rung_trust::Listener),
}

/// The sockets that the API is served on. Whoever has them can send somebody there: who comes before it is served waits.
#[derive(Debug)]
pub struct Listeners {
    door: Door,
    socket: UnixListener,
}

impl Listeners {
    pub fn new(door: Door, socket: &Path) -> std::io::Result<Self> {
        Ok(Self { door, socket: bind_private(socket)? })
    }
}

impl Control {
    /// Serves until it is dropped. What is being answered then is cut off: a committed write stays, and long polls,
    /// which are most of what is open at any time, are asked again anyway.
    pub async fn serve(self, listeners: Listeners) -> std::io::Result<()> {
        let on_socket = axum::serve(listeners.socket, router(self.clone()).layer(Extension(Via::Socket)));
        let on_door = async {
            match listeners.door {
                Door::Plain(tcp) => {
                    let router = router(self).layer(Extension(Via::Tcp));
                    let router = router.layer(middleware::from_fn(close_after));
                    let service = router.into_make_service_with_connect_info::<callers::CameFrom>();
                    axum::serve(strict::StrictListener(tcp), service).await
                }
                Door::Tls(listener) => {
                    let router = router(self).layer(middleware::from_fn(callers::note_caller));
                    match connections::serve(listener, router).await {}
                }
            }
        };
        tokio::try_join!(on_door, async { on_socket.await })?;
        Ok(())
    }
}

/// A Unix socket that only the owner may open; what a killed server left there is replaced.
fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// At the start, how long whoever asks waits for the state to be read.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// Bodies that are not archives are small.
const JSON_MAX_BYTES: usize = 2 * 1024 * 1024;

fn router(control: Control) -> Router {
    let people = people().merge(for_git());
    let guard = guard::Guard { control: control.clone(), duties: Arc::new(people.duties) };
    let people = people.router.layer(middleware::from_fn_with_state(guard, guard::guard));
    let people = people.layer(middleware::from_fn(git::speak_git));
    let roles =
        roles().router.layer(middleware::from_fn_with_state(control.clone(), callers::only_for_roles));
    let when_read = middleware::from_fn_with_state(control.clone(), when_read);
    open()
        .router
        .merge(people)
        .merge(roles)
        .layer(when_read)
        .fallback(unknown_endpoint)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::extract::DefaultBodyLimit::max(JSON_MAX_BYTES))
        .with_state(control)
}

/// Everything that is served, for its description.
fn endpoints() -> Described {
    open().merge(people()).merge(for_git()).merge(roles())
}

/// For everybody who can connect.
fn open() -> Described {
    Described::new()
        .get(
            paths::HEALTH,
            apps::health,
            says(Right::Anybody, "The server's version, and where it serves").answers::<wire::HealthReport>(),
        )
        .post(
            paths::JOIN,
            join::join,
            says(Right::Anybody, "Become a node, by a join token")
                .takes::<rung_api::join::JoinRequest>()
                .answers::<rung_api::join::Certified>(),
        )
}

/// For people and their tools.
fn people() -> Described {
    Described::new()
        .get(paths::OPENAPI, openapi::serve, says(Right::Anyone, "This description"))
        .get(
            paths::APPS,
            apps::list,
            says(Right::Anyone, "All apps with their status").answers::<Vec<wire::AppStatus>>(),
        )
        .delete(
            paths::APP,
            apps::destroy,
            says(DEPLOY, "Stop an app and forget it").takes::<wire::DestroyRequest>(),
        )
        .get(paths::APP_STATUS, apps::show, says(VIEW, "An app's status").answers::<wire::AppStatus>())
        .get(
            paths::SOURCE,
            deploy::has_source,
            says(Right::Anyone, "Whether a source is here already").answers::<bool>(),
        )
        .put(
            paths::SOURCE,
            deploy::put_source,
            says(Right::Anyone, "Upload a source under its digest").takes_archive(),
        )
        .get(
            paths::DEPLOYMENTS,
            deploy::list,
            says(VIEW, "Deployments, newest first").answers::<Vec<Deployment>>(),
        )
        .post(
            paths::DEPLOYMENTS,
            deploy::deploy,
            says(DEPLOY, "Deploy an uploaded source")
                .takes::<wire::DeployRequest>()
                .answers::<wire::Started>(),
        )
        .get(
            paths::DEPLOYMENT,
            deploy::show,
            says(VIEW, "A deployment, once its timeline is longer than `seen` or it has ended")
                .query(&["seen", "wait_ms"])
                .answers::<Deployment>(),
        )
        .post(
            paths::DEPLOYMENT_CONTINUE,
            rollouts::go_on,
            says(DEPLOY, "Let a deployment that holds a step, or waits, go on; who asks").takes::<String>(),
        )
        .post(
            paths::DEPLOYMENT_CANCEL,
            deploy::cancel,
            says(DEPLOY, "Stop a deployment; who asks").takes::<String>(),
        )
        .get(
            paths::RELEASES,
            apps::releases,
            says(VIEW, "Releases, newest first").answers::<Vec<wire::ReleaseListing>>(),
        )
        .get(
            paths::RELEASE,
            releases::show,
            says(VIEW, "A release in detail").answers::<wire::ReleaseDetail>(),
        )
        .post(
            paths::RELEASE_DEPLOY,
            releases::deploy,
            says(DEPLOY, "Roll out a release that was made before")
                .takes::<wire::ReleaseRequest>()
                .answers::<wire::Started>(),
        )
        .get(
            paths::RELEASE_DIFF,
            releases::diff,
            says(VIEW, "What another release has otherwise").answers::<wire::ReleaseDiff>(),
        )
        .post(
            paths::PROMOTE,
            releases::promote,
            says(DEPLOY, "Deploy the artifact of another environment")
                .takes::<wire::PromoteRequest>()
                .answers::<wire::Started>(),
        )
        .get(
            paths::COMMIT,
            releases::commit,
            says(VIEW, "What became of a commit, once its deployment has ended")
                .query(&["wait_ms"])
                .answers::<wire::CommitStatus>(),
        )
        .post(
            paths::ROLLBACK,
            deploy::rollback,
            says(DEPLOY, "Go back to an earlier release")
                .takes::<wire::RollbackRequest>()
                .answers::<wire::Started>(),
        )
        .post(
            paths::RESTART,
            deploy::restart,
            says(DEPLOY, "Replace every instance by a fresh one")
                .takes::<wire::RestartRequest>()
                .answers::<wire::Started>(),
        )
        .post(
            paths::SCALE,
            apps::scale,
            says(DEPLOY, "Change counts of instances")
                .takes::<wire::ScaleRequest>()
                .answers::<wire::AppStatus>(),
        )
        .put(
            paths::MAINTENANCE,
            maintenance::maintenance,
            says(DEPLOY, "Answer with the maintenance page, or with the app again")
                .takes::<wire::MaintenanceRequest>()
                .answers::<wire::AppStatus>(),
        )
        .get(paths::CONFIG, settings::config, says(VIEW, "Config").answers::<BTreeMap<String, String>>())
        .patch(
            paths::CONFIG,
            settings::set_config,
            says(DEPLOY, "Change config").takes::<wire::ConfigRequest>().answers::<wire::Started>(),
        )
        .get(
            paths::SECRETS,
            settings::list_secrets,
            says(VIEW, "Names and versions of secrets").answers::<Vec<wire::SecretListing>>(),
        )
        .patch(
            paths::SECRETS,
            settings::set_secrets,
            says(DEPLOY, "Change secrets").takes::<wire::SecretRequest>().answers::<wire::Started>(),
        )
        .post(
            paths::SECRETS_GENERATE,
            settings::generate_secret,
            says(DEPLOY, "Generate a secret that nobody sees")
                .takes::<wire::GenerateRequest>()
                .answers::<wire::Started>(),
        )
        .get(paths::RUNS, runs::list, says(VIEW, "Runs that go on, oldest first").answers::<Vec<Run>>())
        .post(
            paths::RUNS,
            runs::start,
            says(DEPLOY, "Run a command").takes::<wire::RunRequest>().answers::<Run>(),
        )
        .get(
            paths::RUN,
            runs::show,
            says(VIEW, "A run, once it has ended").query(&["wait_ms"]).answers::<Run>(),
        )
        .post(paths::RUN_CANCEL, runs::cancel, says(DEPLOY, "Stop a run"))
        .get(
            paths::RUN_ATTACH,
            streams::attach,
            says(DEPLOY, "A run's input and output, by an upgrade to `rung-attach`"),
        )
        .get(
            paths::JOBS,
            jobs::list,
            says(VIEW, "Jobs, with their next times").answers::<Vec<wire::JobListing>>(),
        )
        .get(paths::JOB_RUNS, jobs::runs, says(VIEW, "A job's runs, newest first").answers::<Vec<Run>>())
        .post(
            paths::JOB_RUNS,
            jobs::run,
            says(DEPLOY, "Run a job now").takes::<wire::JobRequest>().answers::<Run>(),
        )
        .post(
            paths::JOB_PAUSE,
            jobs::pause,
            says(DEPLOY, "Dispatch nothing by schedule; who asks").takes::<String>(),
        )
        .post(
            paths::JOB_RESUME,
            jobs::resume,
            says(DEPLOY, "Dispatch by schedule again; who asks").takes::<String>(),
        )
        .post(paths::JOB_PIN, jobs::pin, says(DEPLOY, "Run a certain release").takes::<wire::PinRequest>())
        .get(
            paths::LOGS,
            streams::logs,
            says(VIEW, "Log lines")
                .query(&["service", "instance", "run", "since", "tail", "follow"])
                .streams::<wire::LogLine>(),
        )
        .get(
            paths::EVENTS,
            streams::events,
            says(Right::Anyone, "Events").query(&["app", "follow"]).streams::<wire::EventRecord>(),
        )
        .get(
            paths::TRAFFIC,
            traffic::show,
            says(Right::Anyone, "What each ingress has counted, by route and by instance, since it began")
                .query(&["app"])
                .answers::<wire::TrafficReport>(),
        )
        .get(
            paths::METRICS,
            traffic::metrics,
            says(Right::Anyone, "The same in the text format of Prometheus")
                .answers_bytes("text/plain; version=0.0.4"),
        )
        .get(
            paths::DOCTOR,
            apps::doctor,
            says(Right::Admin, "What is not as it should be").answers::<wire::DoctorReport>(),
        )
        .get(
            paths::CLUSTER,
            cluster::show,
            says(Right::Admin, "Where the state is kept, and how that is")
                .answers::<wire::cluster::ClusterReport>(),
        )
        .post(
            paths::CLUSTER_INIT,
            cluster::init,
            says(Right::Admin, "Move the state to etcd")
                .takes::<wire::cluster::InitRequest>()
                .answers::<wire::cluster::Moved>(),
        )
        .post(
            paths::CLUSTER_DISSOLVE,
            cluster::dissolve,
            says(Right::Admin, "Move the state back to one machine").answers::<wire::cluster::Moved>(),
        )
        .post(
            paths::CLUSTER_SNAPSHOTS,
            cluster::snapshot,
            says(Right::Admin, "Take a snapshot of the state now").answers::<wire::cluster::SnapshotTaken>(),
        )
        .post(
            paths::CLUSTER_APPROVE,
            cluster::approve,
            says(Right::Admin, "Let the leader plan again after a restore")
                .takes::<wire::cluster::ApproveRequest>(),
        )
        .post(
            paths::JOIN_TOKENS,
            join::token,
            says(Right::Admin, "A token by which a machine joins, once")
                .takes::<rung_api::join::JoinTokenRequest>()
                .answers::<rung_api::join::JoinTokenIssued>(),
        )
        .get(
            paths::NODES,
            join::list,
            says(Right::Admin, "Nodes, and how they are").answers::<Vec<rung_api::join::NodeListing>>(),
        )
        .post(
            paths::NODE_DRAIN,
            join::drain,
            says(Right::Admin, "Move everything off a node").takes::<rung_api::join::DrainRequest>(),
        )
        .delete(
            paths::NODE_DRAIN,
            join::undrain,
            says(Right::Admin, "Let a drained node take instances again; who asks").takes::<String>(),
        )
        .post(
            paths::NODE_LABELS,
            join::label,
            says(Right::Admin, "Change the labels of a node").takes::<rung_api::join::LabelRequest>(),
        )
        .post(
            paths::NODE_REMOVE,
            join::remove,
            says(Right::Admin, "Take a node out of the cluster").takes::<rung_api::join::RemoveRequest>(),
        )
        .post(
            paths::UPGRADE,
            apps::upgrade,
            says(Right::Admin, "Let another binary take over").takes::<wire::UpgradeRequest>(),
        )
        .post(
            paths::ROTATE_KEY,
            settings::rotate_key,
            says(Right::Admin, "Put every secret under another master key").answers::<wire::KeyRotated>(),
        )
        .get(
            paths::AUDIT,
            audit::list,
            says(Right::Admin, "The audit trail, a page of it")
                .query(&["after", "tail", "server", "copy", "joined"])
                .answers::<Vec<AuditRecord>>(),
        )
        .get(
            paths::AUDIT_SERVERS,
            audit::of_servers,
            says(Right::Admin, "The newest of the audit trail of each server")
                .query(&["tail"])
                .answers::<Vec<ServerTrail>>(),
        )
        .get(
            paths::CERTIFICATES,
            certificates::list,
            says(Right::Admin, "Certificates of domains: until when, and who orders them")
                .answers::<wire::certificates::CertificateReport>(),
        )
        .put(
            paths::CERTIFICATE_ACCOUNT,
            certificates::set_account,
            says(Right::Admin, "Have certificates ordered from an authority")
                .takes::<wire::certificates::AccountRequest>(),
        )
        .delete(
            paths::CERTIFICATE_ACCOUNT,
            certificates::forget_account,
            says(Right::Admin, "Order no more certificates"),
        )
        .post(
            paths::CERTIFICATE_RENEW,
            certificates::renew,
            says(Right::Admin, "Order a domain's certificate now"),
        )
        .get(paths::WHOAMI, tokens::whoami, says(Right::Anyone, "Who calls").answers::<wire::Whoami>())
        .get(
            paths::TOKENS,
            tokens::list,
            says(Right::Admin, "Tokens, without themselves").answers::<Vec<wire::TokenListing>>(),
        )
        .post(
            paths::TOKENS,
            tokens::create,
            says(Right::Admin, "Make a token; it is shown this once")
                .takes::<wire::TokenRequest>()
                .answers::<wire::TokenCreated>(),
        )
        .delete(paths::TOKEN, tokens::revoke, says(Right::Admin, "Revoke a token, at once"))
}

/// For people's git.
fn for_git() -> Described {
    Described::new()
        .get(
            paths::GIT_REFS,
            git::advertise,
            says(DEPLOY, "What `git push` and `git fetch` ask first")
                .query(&["service"])
                .answers_bytes("application/x-git-receive-pack-advertisement"),
        )
        .post(
            paths::GIT_RECEIVE,
            git::receive,
            says(DEPLOY, "A `git push`, which is a deploy")
                .answers_bytes("application/x-git-receive-pack-result"),
        )
        .post(
            paths::GIT_UPLOAD,
            git::upload,
            says(DEPLOY, "A `git fetch` of what was pushed")
                .answers_bytes("application/x-git-upload-pack-result"),
        )
}

/// For nodes and proxies.
fn roles() -> Described {
    Described::new()
        .get(
            paths::MEMBERS,
            join::members,
            says(Right::Node, "Who belongs to the cluster, once it is not the list that `after` names")
                .query(&["after", "wait_ms", "brief"])
                .answers::<rung_api::join::MemberReport>(),
        )
        .post(
            paths::CERTIFICATE,
            join::certificate,
            says(Right::Node, "A node's certificate anew")
                .takes::<rung_api::join::CertificateRequest>()
                .answers::<rung_api::join::Certified>(),
        )
        .post(
            paths::CLUSTER_SERVERS,
            cluster::enter,
            says(Right::Node, "Become a server, after joining as one").takes::<wire::cluster::EnterRequest>(),
        )
        .put(paths::NODE, nodes::register, says(Right::Node, "Join as a node").takes::<NodeFacts>())
        .post(paths::NODE_BEAT, nodes::beat, says(Right::Node, "Say that the agent is alive"))
        .get(
            paths::NODE_LEASES,
            nodes::leases,
            says(Right::Node, "Which instances shall run there, read from the store")
                .answers::<rung_api::join::Leased>(),
        )
        .get(
            paths::ASSIGNMENT,
            nodes::assignment,
            says(Right::Node, "The node's assignment, once it is newer than `after`")
                .query(&["after", "wait_ms"])
                .answers::<Option<Assignment>>(),
        )
        .post(paths::OBSERVED, nodes::report, says(Right::Node, "Report what runs").takes::<Observed>())
        .get(
            paths::LAUNCH,
            nodes::launch,
            says(Right::Node, "What starting a release needs").answers::<wire::Launch>(),
        )
        .get(
            paths::ARTIFACT,
            nodes::artifact,
            says(Right::Node, "An artifact's archive").answers_bytes("application/x-tar"),
        )
        .put(
            paths::ARTIFACT,
            nodes::put_artifact,
            says(Right::Node, "Store what a build made").takes_archive(),
        )
        .delete(
            paths::PROXY,
            nodes::leave,
            says(Right::Node, "End as a proxy: it is not waited for any more"),
        )
        .post(
            paths::PROXY_POLL,
            nodes::poll_routes,
            says(Right::Node, "Acknowledge routes up to `after`, and wait for newer ones")
                .query(&["wait_ms"])
                .takes::<wire::ProxyPoll>()
                .answers::<wire::ProxyDocuments>(),
        )
        .post(
            paths::PROXY_LIMITS,
            nodes::limits,
            says(Right::Node, "Tell what was let pass of limits, and hear what others did")
                .takes::<wire::LimitsTaken>()
                .answers::<wire::LimitsTaken>(),
        )
        .post(
            paths::SERVER_LIMITS,
            nodes::limits_elsewhere,
            says(Right::Node, "Tell another server what ingresses let pass of limits, and how many they are")
                .takes::<wire::LimitsTaken>(),
        )
        .post(
            paths::PROXY_TRAFFIC,
            nodes::traffic,
            says(Right::Node, "Report what was counted of apps that are measured")
                .takes::<wire::ProxyTraffic>(),
        )
        .post(
            paths::PROXY_TALLY,
            traffic::report,
            says(Right::Node, "Report what was counted by route and by instance")
                .takes::<wire::TallyReport>()
                .answers::<wire::TallyHeard>(),
        )
        .get(
            paths::TALLIES,
            traffic::told_here,
            says(Right::Node, "What proxies have told this server, for the others")
                .answers::<Vec<wire::IngressTraffic>>(),
        )
        .get(
            paths::OWN_AUDIT,
            audit::own,
            says(
                Right::Node,
                "This server's audit trail after a record, once there is more, for the others' copies",
            )
            .query(&["after", "wait_ms"])
            .answers::<Vec<AuditRecord>>(),
        )
        .get(
            paths::KEPT_AUDITS,
            audit::kept,
            says(
                Right::Node,
                "The newest of this server's audit trail, and of the copies that it has, for the others",
            )
            .query(&["tail"])
            .answers::<Vec<KeptTrail>>(),
        )
        .get(
            paths::OWN_ARTIFACTS,
            apps::own_artifacts,
            says(Right::Node, "Where this server keeps artifacts, for the others")
                .answers::<wire::OwnPlace>(),
        )
        .get(
            paths::OWN_EVENTS,
            streams::own_events,
            says(Right::Node, "What happened at this server, once there is more, for the others")
                .query(&["after", "wait_ms"])
                .answers::<wire::OwnEvents>(),
        )
        .post(
            paths::PROXY_CERTIFICATES,
            certificates::poll,
            says(Right::Node, "Acknowledge certificates up to `after`, and wait for others")
                .query(&["wait_ms"])
                .takes::<wire::certificates::CertificatePoll>()
                .answers::<wire::certificates::CertificateNews>(),
        )
        .get(
            paths::PROXY_CERTIFICATE,
            certificates::pair,
            says(Right::Node, "A host's certificate with its key")
                .answers::<wire::certificates::CertificatePair>(),
        )
}

/// One request a connection: see [`strict`].
async fn close_after(request: Request, next: Next) -> Response {
    close(next.run(request).await)
}

fn close(mut response: Response) -> Response {
    if response.status() != axum::http::StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    response
}

/// Until the index was read once there seems to be no app, no node and no token.
async fn when_read(State(control): State<Control>, request: Request, next: Next) -> Response {
    let has_read = |reconcile: &Reconcile| (reconcile.world().revision > 0).then_some(());
    if request.uri().path() == paths::HEALTH || control.wait_for(READ_WITHIN, has_read).await.is_some() {
        return next.run(request).await;
    }
    let body = ErrorBody::new(Code::Unavailable, "the server starts, and has not read its state yet");
    Refused(body.hint("try again in a moment; when it stays so, the server's own output says why"))
        .into_response()
}

async fn unknown_endpoint(request: Request) -> Refused {
    let message = format!("the API has no endpoint {}", request.uri().path());
    Refused(ErrorBody::new(Code::NotFound, message).hint("/v1/openapi.json lists them all"))
}

async fn wrong_method(request: Request) -> Refused {
    let message = format!("{} can't be called with {}", request.uri().path(), request.method());
    Refused(ErrorBody::new(Code::InvalidRequest, message).hint("/v1/openapi.json lists the methods"))
}
