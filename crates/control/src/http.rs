//! The HTTP API: who may call, and which endpoint is which function.
//!
//! The Unix socket (mode 0600) is for the roles on this machine and needs no token: whoever can open it owns the data
//! directory. On TCP every request but `/v1/health` carries the token. Where other machines can reach the port it is TLS,
//! and a certificate of the cluster's authority says which node asks. What only nodes and proxies may ask (opened secrets
//! among it) is answered on the socket, and to nodes for themselves.

mod apps;
mod callers;
mod deploy;
mod extract;
mod jobs;
mod nodes;
mod openapi;
mod runs;
mod settings;
mod streams;
mod strict;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use rung_api::{Code, ErrorBody, paths, wire};
use rung_model::{Assignment, Deployment, NodeFacts, Observed, Run};
use tokio::net::{TcpListener, UnixListener};

pub use callers::Via;
pub use openapi::document as openapi_document;

use crate::shared::Control;
use openapi::{Described, says};

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
        (status, Json(self.0)).into_response()
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

/// The sockets that the API is served on.
#[derive(Debug)]
pub struct Listeners {
    pub door: Door,
    pub socket: PathBuf,
}

impl Control {
    /// Serves until it is dropped. What is being answered then is cut off: a committed write stays, and long polls,
    /// which are most of what is open at any time, are asked again anyway.
    pub async fn serve(self, listeners: Listeners) -> std::io::Result<()> {
        let socket = bind_private(&listeners.socket)?;
        let on_socket = axum::serve(socket, router(self.clone()).layer(Extension(Via::Socket)));
        let on_door = async {
            match listeners.door {
                Door::Plain(tcp) => {
                    let router = router(self).layer(Extension(Via::Tcp));
                    let router = router.layer(middleware::from_fn(close_after));
                    axum::serve(strict::StrictListener(tcp), router).await
                }
                Door::Tls(listener) => {
                    let router = router(self).layer(middleware::from_fn(callers::note_caller));
                    let service = router.into_make_service_with_connect_info::<callers::CallerInfo>();
                    axum::serve(callers::TlsListener(listener), service).await
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

/// Bodies that are not archives are small.
const JSON_MAX_BYTES: usize = 2 * 1024 * 1024;

fn router(control: Control) -> Router {
    let people = people().router.layer(middleware::from_fn_with_state(control.clone(), require_token));
    let roles =
        roles().router.layer(middleware::from_fn_with_state(control.clone(), callers::only_for_roles));
    open()
        .router
        .merge(people)
        .merge(roles)
        .fallback(unknown_endpoint)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::extract::DefaultBodyLimit::max(JSON_MAX_BYTES))
        .with_state(control)
}

/// Everything that is served, for its description.
fn endpoints() -> Described {
    open().merge(people()).merge(roles())
}

/// For everybody who can connect.
fn open() -> Described {
    Described::new().get(
        paths::HEALTH,
        apps::health,
        says("The server's version, and where it serves").answers::<wire::HealthReport>(),
    )
}

/// For people and their tools.
fn people() -> Described {
    Described::new()
        .get(paths::OPENAPI, openapi::serve, says("This description"))
        .get(paths::APPS, apps::list, says("All apps with their status").answers::<Vec<wire::AppStatus>>())
        .delete(paths::APP, apps::destroy, says("Stop an app and forget it").takes::<wire::DestroyRequest>())
        .get(paths::APP_STATUS, apps::show, says("An app's status").answers::<wire::AppStatus>())
        .get(paths::SOURCE, deploy::has_source, says("Whether a source is here already").answers::<bool>())
        .put(paths::SOURCE, deploy::put_source, says("Upload a source under its digest").takes_archive())
        .get(paths::DEPLOYMENTS, deploy::list, says("Deployments, newest first").answers::<Vec<Deployment>>())
        .post(
            paths::DEPLOYMENTS,
            deploy::deploy,
            says("Deploy an uploaded source").takes::<wire::DeployRequest>().answers::<wire::Started>(),
        )
        .get(
            paths::DEPLOYMENT,
            deploy::show,
            says("A deployment, once its timeline is longer than `seen` or it has ended")
                .query(&["seen", "wait_ms"])
                .answers::<Deployment>(),
        )
        .post(paths::DEPLOYMENT_CANCEL, deploy::cancel, says("Stop a deployment; who asks").takes::<String>())
        .get(
            paths::RELEASES,
            apps::releases,
            says("Releases, newest first").answers::<Vec<wire::ReleaseListing>>(),
        )
        .post(
            paths::ROLLBACK,
            deploy::rollback,
            says("Go back to an earlier release").takes::<wire::RollbackRequest>().answers::<wire::Started>(),
        )
        .post(
            paths::RESTART,
            deploy::restart,
            says("Replace every instance by a fresh one")
                .takes::<wire::RestartRequest>()
                .answers::<wire::Started>(),
        )
        .post(
            paths::SCALE,
            apps::scale,
            says("Change counts of instances").takes::<wire::ScaleRequest>().answers::<wire::AppStatus>(),
        )
        .get(paths::CONFIG, settings::config, says("Config").answers::<BTreeMap<String, String>>())
        .patch(
            paths::CONFIG,
            settings::set_config,
            says("Change config").takes::<wire::ConfigRequest>().answers::<wire::Started>(),
        )
        .get(
            paths::SECRETS,
            settings::secrets,
            says("Names of secrets").answers::<Vec<wire::SecretListing>>(),
        )
        .patch(
            paths::SECRETS,
            settings::set_secrets,
            says("Change secrets").takes::<wire::SecretRequest>().answers::<wire::Started>(),
        )
        .get(paths::RUNS, runs::list, says("Runs that go on, oldest first").answers::<Vec<Run>>())
        .post(paths::RUNS, runs::start, says("Run a command").takes::<wire::RunRequest>().answers::<Run>())
        .get(paths::RUN, runs::show, says("A run, once it has ended").query(&["wait_ms"]).answers::<Run>())
        .post(paths::RUN_CANCEL, runs::cancel, says("Stop a run"))
        .get(
            paths::RUN_ATTACH,
            streams::attach,
            says("A run's input and output, by an upgrade to `rung-attach`"),
        )
        .get(paths::JOBS, jobs::list, says("Jobs, with their next times").answers::<Vec<wire::JobListing>>())
        .get(paths::JOB_RUNS, jobs::runs, says("A job's runs, newest first").answers::<Vec<Run>>())
        .post(paths::JOB_RUNS, jobs::run, says("Run a job now").takes::<wire::JobRequest>().answers::<Run>())
        .post(paths::JOB_PAUSE, jobs::pause, says("Dispatch nothing by schedule; who asks").takes::<String>())
        .post(paths::JOB_RESUME, jobs::resume, says("Dispatch by schedule again; who asks").takes::<String>())
        .post(paths::JOB_PIN, jobs::pin, says("Run a certain release").takes::<wire::PinRequest>())
        .get(
            paths::LOGS,
            streams::logs,
            says("Log lines")
                .query(&["service", "instance", "run", "since", "tail", "follow"])
                .streams::<wire::LogLine>(),
        )
        .get(
            paths::EVENTS,
            streams::events,
            says("Events").query(&["app", "follow"]).streams::<wire::EventRecord>(),
        )
        .get(paths::DOCTOR, apps::doctor, says("What is not as it should be").answers::<wire::DoctorReport>())
        .post(
            paths::UPGRADE,
            apps::upgrade,
            says("Let another binary take over").takes::<wire::UpgradeRequest>(),
        )
}

/// For nodes and proxies.
fn roles() -> Described {
    Described::new()
        .put(paths::NODE, nodes::register, says("Join as a node").takes::<NodeFacts>())
        .post(paths::NODE_BEAT, nodes::beat, says("Say that the agent is alive"))
        .get(
            paths::ASSIGNMENT,
            nodes::assignment,
            says("The node's assignment, once it is newer than `after`")
                .query(&["after", "wait_ms"])
                .answers::<Option<Assignment>>(),
        )
        .post(paths::OBSERVED, nodes::report, says("Report what runs").takes::<Observed>())
        .get(paths::LAUNCH, nodes::launch, says("What starting a release needs").answers::<wire::Launch>())
        .get(
            paths::ARTIFACT,
            nodes::artifact,
            says("An artifact's archive").answers_bytes("application/x-tar"),
        )
        .put(paths::ARTIFACT, nodes::put_artifact, says("Store what a build made").takes_archive())
        .delete(paths::PROXY, nodes::leave, says("End as a proxy: it is not waited for any more"))
        .post(
            paths::PROXY_POLL,
            nodes::poll_routes,
            says("Acknowledge routes up to `after`, and wait for newer ones")
                .query(&["wait_ms"])
                .takes::<wire::ProxyPoll>()
                .answers::<wire::ProxyDocuments>(),
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

async fn require_token(
    State(control): State<Control>,
    Extension(via): Extension<Via>,
    request: Request,
    next: Next,
) -> Response {
    if via != Via::Socket && !carries_token(&request, &control.inner.token) {
        let body = ErrorBody::new(Code::Unauthorized, "request carries no valid token")
            .hint("set RUNG_TOKEN, or run the command as the user who started rung");
        return Refused(body).into_response();
    }
    next.run(request).await
}

fn carries_token(request: &Request, token: &str) -> bool {
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = header.and_then(|value| value.strip_prefix("Bearer "));
    given.is_some_and(|given| is_equal(given.as_bytes(), token.as_bytes()))
}

/// In a time that depends on the lengths only, so that a token can't be guessed byte by byte.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

async fn unknown_endpoint(request: Request) -> Refused {
    let message = format!("the API has no endpoint {}", request.uri().path());
    Refused(ErrorBody::new(Code::NotFound, message).hint("/v1/openapi.json lists them all"))
}

async fn wrong_method(request: Request) -> Refused {
    let message = format!("{} can't be called with {}", request.uri().path(), request.method());
    Refused(ErrorBody::new(Code::InvalidRequest, message).hint("/v1/openapi.json lists the methods"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_equal_only_when_every_byte_is() {
        assert!(is_equal(b"abc", b"abc"));
        assert!(!is_equal(b"abc", b"abd"));
        assert!(!is_equal(b"abc", b"ab"));
    }
}
