//! The HTTP API: who may call, and which endpoint is which function.
//!
//! The Unix socket (mode 0600) is for the roles on this machine and needs no token: whoever can open it owns the data
//! directory. On TCP every request but `/v1/health` carries the token. What only nodes and proxies may ask (opened
//! secrets among it) is answered on the socket alone.

mod apps;
mod deploy;
mod extract;
mod nodes;
mod openapi;
mod runs;
mod settings;
mod streams;

use std::path::{Path, PathBuf};

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use rung_api::{Code, ErrorBody, paths};
use tokio::net::{TcpListener, UnixListener};

pub use openapi::document as openapi_document;

use crate::shared::Control;

/// How a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Socket,
    Tcp,
}

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

/// The sockets that the API is served on.
#[derive(Debug)]
pub struct Listeners {
    pub tcp: TcpListener,
    pub socket: PathBuf,
}

impl Control {
    /// Serves until it is dropped. What is being answered then is cut off: a committed write stays, and long polls,
    /// which are most of what is open at any time, are asked again anyway.
    pub async fn serve(self, listeners: Listeners) -> std::io::Result<()> {
        let socket = bind_private(&listeners.socket)?;
        let on_tcp = axum::serve(listeners.tcp, router(self.clone(), Via::Tcp));
        let on_socket = axum::serve(socket, router(self, Via::Socket));
        tokio::try_join!(async { on_tcp.await }, async { on_socket.await })?;
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

fn router(control: Control, via: Via) -> Router {
    let people = Router::new()
        .route(paths::OPENAPI, get(openapi::serve))
        .route(paths::APPS, get(apps::list))
        .route(paths::APP, get(apps::show).delete(apps::destroy))
        .route(paths::APP_STATUS, get(apps::show))
        .route(paths::SOURCE, get(deploy::has_source).put(deploy::put_source))
        .route(paths::DEPLOYMENTS, get(deploy::list).post(deploy::deploy))
        .route(paths::DEPLOYMENT, get(deploy::show))
        .route(paths::DEPLOYMENT_CANCEL, post(deploy::cancel))
        .route(paths::RELEASES, get(apps::releases))
        .route(paths::ROLLBACK, post(deploy::rollback))
        .route(paths::RESTART, post(deploy::restart))
        .route(paths::SCALE, post(apps::scale))
        .route(paths::CONFIG, get(settings::config).patch(settings::set_config))
        .route(paths::SECRETS, get(settings::secrets).patch(settings::set_secrets))
        .route(paths::RUNS, post(runs::start))
        .route(paths::RUN, get(runs::show))
        .route(paths::RUN_CANCEL, post(runs::cancel))
        .route(paths::RUN_ATTACH, get(streams::attach))
        .route(paths::LOGS, get(streams::logs))
        .route(paths::EVENTS, get(streams::events))
        .route(paths::DOCTOR, get(apps::doctor))
        .route(paths::UPGRADE, post(apps::upgrade));
    let roles = Router::new()
        .route(paths::NODE, axum::routing::put(nodes::register))
        .route(paths::NODE_BEAT, post(nodes::beat))
        .route(paths::ASSIGNMENT, get(nodes::assignment))
        .route(paths::OBSERVED, post(nodes::report))
        .route(paths::LAUNCH, get(nodes::launch))
        .route(paths::ARTIFACT, get(nodes::artifact).put(nodes::put_artifact))
        .route(paths::PROXY_POLL, post(nodes::poll_routes))
        .layer(middleware::from_fn(only_on_the_socket));
    let guarded = people.merge(roles).layer(middleware::from_fn_with_state(control.clone(), require_token));
    let open = Router::new().route(paths::HEALTH, get(apps::health));
    open.merge(guarded)
        .fallback(unknown_endpoint)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::extract::DefaultBodyLimit::max(JSON_MAX_BYTES))
        .layer(Extension(via))
        .with_state(control)
}

async fn require_token(
    State(control): State<Control>,
    Extension(via): Extension<Via>,
    request: Request,
    next: Next,
) -> Response {
    if via == Via::Tcp && !carries_token(&request, &control.inner.token) {
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

async fn only_on_the_socket(Extension(via): Extension<Via>, request: Request, next: Next) -> Response {
    if via == Via::Tcp {
        let body = ErrorBody::new(Code::Unauthorized, "this endpoint is for nodes and proxies");
        return Refused(body).into_response();
    }
    next.run(request).await
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
