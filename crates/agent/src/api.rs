//! The agent's own API on `agent.sock`: logs, and the terminals of runs. The server passes people's requests on to it.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as PathParameter, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rung_api::attach::{self, PROTOCOL};
use rung_api::sse::Message;
use rung_api::wire::{LogLine, LogQuery};
use rung_api::{Code, ErrorBody, paths};
use rung_model::{NodeRole, RunId};
use rung_trust::{Caller, Guarded};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;

use crate::driver::TalkError;
use crate::logs;
use crate::node::Shared;
use crate::runs::MAIN;

/// Somebody may attach before the run has begun: its artifact is still being fetched.
const ATTACH_WAIT: Duration = Duration::from_secs(30);
const ATTACH_POLL: Duration = Duration::from_millis(20);
/// Comments keep proxies and clients from taking a quiet log for a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

struct ApiError(ErrorBody);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).expect("codes have valid statuses");
        (status, axum::Json(self.0)).into_response()
    }
}

/// Binds by the directory's descriptor: paths of data directories are longer than a socket's address.
pub fn bind(socket: &Path) -> std::io::Result<UnixListener> {
    use std::os::fd::AsRawFd;
    let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(std::io::Error::other("the agent's socket has no directory"));
    };
    let _ = std::fs::remove_file(socket);
    let directory = std::fs::File::open(parent)?;
    let listener =
        UnixListener::bind(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn router(node: Shared) -> Router {
    Router::new()
        .route(paths::AGENT_LOGS, get(read_logs))
        .route(paths::AGENT_ATTACH, get(attach_to_run).post(attach_to_run))
        .with_state(node)
}

pub async fn serve(listener: UnixListener, node: Shared) {
    if let Err(error) = axum::serve(listener, router(node)).await {
        tracing::error!(%error, "serving the agent's socket");
    }
}

/// For servers on other machines.
pub async fn serve_servers(listener: rung_trust::Listener, node: Shared) {
    if let Err(error) = axum::serve(ServersOnly(listener), router(node)).await {
        tracing::error!(%error, "serving the agent's port");
    }
}

/// Other nodes have no business here: their connections are dropped.
struct ServersOnly(rung_trust::Listener);

impl axum::serve::Listener for ServersOnly {
    type Io = Guarded<TlsStream<TcpStream>>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let accepted = self.0.accept().await;
            if matches!(&accepted.caller, Caller::Member(peer) if peer.role == NodeRole::Server) {
                return (accepted.stream, accepted.address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(self.0.local_addr())
    }
}

async fn read_logs(State(node): State<Shared>, Query(query): Query<LogQuery>) -> Result<Response, ApiError> {
    let Some(app) = query.app.clone() else {
        let body = ErrorBody::new(Code::InvalidRequest, "logs of which app is not said");
        return Err(ApiError(body.hint("add ?app=<name>")));
    };
    let (sender, receiver) = mpsc::channel(256);
    tokio::task::spawn_blocking(move || logs::read(&node.layout, &app, &query, &sender));
    let events = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let event = next_event(&mut receiver).await?;
        Some((Ok::<_, Infallible>(event), receiver))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// A reader that dies takes the sender with it: the stream then stops without its end, which its reader takes for an error.
async fn next_event(receiver: &mut mpsc::Receiver<Message<LogLine>>) -> Option<Bytes> {
    match tokio::time::timeout(KEEP_ALIVE, receiver.recv()).await {
        Ok(Some(first)) => {
            let mut text = first.encode();
            // What is ready goes in one piece: a long log is read at the disk's speed.
            while text.len() < 64 * 1024
                && let Ok(message) = receiver.try_recv()
            {
                text.push_str(&message.encode());
            }
            Some(text.into())
        }
        Ok(None) => None,
        Err(_) => Some(Bytes::from_static(b": still here\n\n")),
    }
}

/// Frames of `rung_api::attach`, passed on between the shim and the connection as they are.
async fn attach_to_run(
    State(node): State<Shared>,
    PathParameter(run): PathParameter<RunId>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let upgrade = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if upgrade != Some(PROTOCOL) {
        let body = ErrorBody::new(Code::InvalidRequest, "attaching to a run needs an upgrade");
        return Err(ApiError(body.hint(format!("send `Upgrade: {PROTOCOL}`"))));
    }
    let shim = await_shim(&node, &run).await?;
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            // A connection that breaks is seen by the shim as a closed terminal.
            Ok(connection) => attach::pass_on(TokioIo::new(connection), shim).await,
            Err(error) => tracing::debug!(%error, %run, "the upgrade did not come"),
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

async fn await_shim(node: &Shared, run: &RunId) -> Result<tokio::net::UnixStream, ApiError> {
    let directory = node.layout.run(run).join(MAIN);
    let until = tokio::time::Instant::now() + ATTACH_WAIT;
    loop {
        match node.driver.attach(&directory).await {
            Ok(stream) => return Ok(stream),
            Err(TalkError::Refused(reason)) => {
                let message = format!("attaching to run {run}: {reason}");
                return Err(ApiError(ErrorBody::new(Code::Refused, message)));
            }
            Err(_) => {}
        }
        let has_ended = directory.join(crate::shim::protocol::EXIT_FILE).exists();
        if has_ended || tokio::time::Instant::now() >= until {
            let message = format!("run {run} is not running here");
            let body = ErrorBody::new(Code::NotFound, message).hint("its output is in `rung logs`");
            return Err(ApiError(body));
        }
        tokio::time::sleep(ATTACH_POLL).await;
    }
}
