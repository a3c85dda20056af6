//! Who asks: a role on this machine, a person, or another machine's role with its certificate.

use std::net::SocketAddr;

use axum::Extension;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::Version;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use rung_api::{Code, ErrorBody};
use rung_model::NodeRole;
use rung_trust::{Caller, Peer};

use super::Refused;
use super::strict::StrictListener;
use crate::shared::Control;

/// How a request came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    Socket,
    /// A person: by TCP on this machine, or by TLS without a certificate.
    Tcp,
    Node(Peer),
}

impl Via {
    /// Another server; this machine's own roles are none.
    pub fn is_server(&self) -> bool {
        matches!(self, Self::Node(peer) if peer.role == NodeRole::Server)
    }
}

/// What a connection's certificate came to.
#[derive(Debug, Clone)]
pub(super) struct CallerInfo {
    pub caller: Caller,
    pub address: SocketAddr,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct CameFrom(pub SocketAddr);

impl Connected<IncomingStream<'_, StrictListener>> for CameFrom {
    fn connect_info(stream: IncomingStream<'_, StrictListener>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// On the TLS port: notes who asks, and answers those who do not belong here any more.
pub(super) async fn note_caller(
    ConnectInfo(CallerInfo { caller, address }): ConnectInfo<CallerInfo>,
    mut request: Request,
    next: Next,
) -> Response {
    let version = request.version();
    let via = match caller {
        Caller::Anybody => Via::Tcp,
        Caller::Member(peer) => Via::Node(peer),
        Caller::Removed(peer) => {
            let message = format!("node {} does not belong to this cluster any more", peer.node);
            let body = ErrorBody::new(Code::Removed, message)
                .hint("to let it join again, make a token with `rung node token` on a server");
            let response = Refused(body).into_response();
            // Where several share a connection it is ended otherwise.
            return if version == Version::HTTP_2 { response } else { super::close(response) };
        }
    };
    let is_person = via == Via::Tcp;
    request.extensions_mut().insert(via);
    request.extensions_mut().insert(ConnectInfo(CameFrom(address)));
    let response = next.run(request).await;
    if is_person { super::close(response) } else { response }
}

/// What only nodes and proxies may ask; each for itself alone.
pub(super) async fn only_for_roles(
    State(control): State<Control>,
    Extension(via): Extension<Via>,
    request: Request,
    next: Next,
) -> Response {
    let refusal = match &via {
        Via::Socket => None,
        Via::Tcp => Some("this endpoint is for nodes and proxies".to_owned()),
        Via::Node(_) if control.is_cut_off() => {
            let message = "this server has lost the other servers, and knows nothing new";
            let body = ErrorBody::new(Code::Unavailable, message).hint("ask another one");
            return Refused(body).into_response();
        }
        Via::Node(peer) => (!may_ask(&control, peer, request.uri().path()))
            .then(|| format!("node {} ({}) may not ask for {}", peer.node, peer.role, request.uri().path())),
    };
    match refusal {
        Some(message) => Refused(ErrorBody::new(Code::Unauthorized, message)).into_response(),
        None => next.run(request).await,
    }
}

fn may_ask(control: &Control, peer: &Peer, path: &str) -> bool {
    let runs_instances = peer.role != NodeRole::Ingress;
    let node = peer.node.as_str();
    let segments: Vec<&str> = path.split('/').skip(2).collect();
    match segments.as_slice() {
        ["members"] => true,
        ["tallies"] | ["own", _] => peer.role == NodeRole::Server,
        ["cluster", "servers"] => peer.role == NodeRole::Server,
        ["servers", named, "limits"] => peer.role == NodeRole::Server && *named == node,
        ["nodes", named, "certificate"] => *named == node,
        ["nodes", named, ..] => runs_instances && *named == node,
        // A node's proxies are named after it: `worker-1.ingress`.
        // Keys are for who shows certificates.
        ["proxies", _, "certificates", ..] if peer.role == NodeRole::Worker => false,
        ["proxies", proxy, ..] => proxy.strip_prefix(node).is_some_and(|rest| rest.starts_with('.')),
        ["artifacts", _] => runs_instances,
        ["apps", app, "releases", _, "launch"] => runs_instances && is_assigned(control, peer, app),
        _ => false,
    }
}

/// Secrets of an app are for nodes that run something of it.
fn is_assigned(control: &Control, peer: &Peer, app: &str) -> bool {
    control.read(|world| {
        world.assignments.get(&peer.node).is_some_and(|held| {
            let instances = held.value.instances.values().map(|assigned| &assigned.app);
            let runs = held.value.runs.values().map(|run| &run.app);
            instances.chain(runs).any(|assigned| assigned.to_string() == app)
        })
    })
}
