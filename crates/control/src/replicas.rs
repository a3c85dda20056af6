//! Artifacts among several servers: each server keeps all that are in use, and has what it lacks from one that has it.
//!
//! What is uploaded is answered for when a second server has it, too, unless none can be reached: losing one machine
//! loses no artifact of a deploy that was acknowledged. Whatever is missing here afterwards (this server was away, or came
//! later) is fetched in the background, and at once when somebody asks for it.
//!
//! Where artifacts are in a bucket (see [`crate::trees`]) no copies are made; what a bucket lacks is still asked of others.

use std::time::Duration;

use axum::body::Body as HttpBody;
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use rung_api::{Address, Client, ErrorBody, Tls};
use rung_artifact::Limits;
use rung_model::{Digest, NodeId, NodeRole};
use rung_trust::{Belief, client_config};
use tokio::sync::mpsc;

use crate::prune::artifacts_in_use;
use crate::shared::Control;
use crate::trees::chain;

/// After a change of the index; a deploy changes it some dozen times.
const SETTLES_WITHIN: Duration = Duration::from_secs(2);
/// What could not be fetched is tried again then.
const LOOK_ANYWAY: Duration = Duration::from_secs(60);
/// Whoever uploads waits for the second copy no longer than that.
const COPIED_WITHIN: Duration = Duration::from_secs(30);

/// Read ahead of the other side.
const CHUNKS: usize = 4;

/// Keeps here what is in use, as long as the server runs.
pub(crate) async fn keep_copies(control: Control) {
    if control.inner.trees.are_shared() {
        return;
    }
    let mut changes = control.inner.changes.subscribe();
    loop {
        for digest in control.read(artifacts_in_use) {
            if let Err(error) = control.has_artifact(&digest).await {
                tracing::warn!(%digest, %error, "looking for an artifact");
            }
        }
        let _ = tokio::time::timeout(LOOK_ANYWAY, changes.changed()).await;
        tokio::time::sleep(SETTLES_WITHIN).await;
    }
}

impl Control {
    /// Whether a server keeps the artifact; this one does from now on, then.
    pub(crate) async fn has_artifact(&self, digest: &Digest) -> Result<bool, ErrorBody> {
        if self.inner.trees.has(digest).await? {
            return Ok(true);
        }
        let others = self.other_servers();
        if others.is_empty() {
            return Ok(false);
        }
        let _turn = self.inner.fetching.take(digest).await;
        Ok(self.inner.trees.has(digest).await? || self.fetch(digest, &others).await)
    }

    async fn fetch(&self, digest: &Digest, others: &[(NodeId, Client)]) -> bool {
        for (server, client) in others {
            let fetched = async {
                let archive = HttpBody::new(client.artifact(digest).await.map_err(|error| chain(&error))?);
                let stored = self.inner.trees.put(digest, Limits::tree(), archive.into_data_stream()).await;
                stored.map_err(|error| error.message)
            };
            match fetched.await {
                Ok(()) => return true,
                Err(why) => tracing::debug!(%server, %digest, why, "fetching an artifact"),
            }
        }
        false
    }

    /// Gives another server a copy of what was stored here just now.
    pub(crate) async fn copy_to_another(&self, digest: &Digest) {
        if self.inner.trees.are_shared() {
            return;
        }
        let mut copies: FuturesUnordered<_> = self
            .other_servers()
            .into_iter()
            .map(|(server, client)| self.copy(digest, server, client))
            .collect();
        let first = async {
            while let Some(is_copied) = copies.next().await {
                if is_copied {
                    return;
                }
            }
        };
        if tokio::time::timeout(COPIED_WITHIN, first).await.is_err() {
            tracing::warn!(%digest, "no other server has taken a copy of an artifact yet");
        }
    }

    async fn copy(&self, digest: &Digest, server: NodeId, client: Client) -> bool {
        let sent = async {
            let archive = self.inner.trees.get(digest).await.map_err(|error| error.message)?;
            client.put_artifact(digest, body(archive)).await.map_err(|error| chain(&error))
        };
        match sent.await {
            Ok(()) => true,
            Err(why) => {
                tracing::debug!(%server, %digest, why, "giving a copy of an artifact");
                false
            }
        }
    }

    pub(crate) fn has_other_servers(&self) -> bool {
        self.read(|world| {
            let mut members = world.members.values().map(|held| &held.value);
            members.any(|member| member.role == NodeRole::Server && member.node != self.inner.node)
        })
    }

    /// The other servers, as they are reached by this one.
    pub(crate) fn other_servers(&self) -> Vec<(NodeId, Client)> {
        let servers = self.where_other_servers_are().into_iter();
        servers
            .filter_map(|(server, address)| Some((server.clone(), self.client_of(&server, address)?)))
            .collect()
    }

    /// `None` as long as this server is nobody to others.
    pub(crate) fn client_of(&self, server: &NodeId, address: Address) -> Option<Client> {
        let identity = self.inner.identity.get()?;
        let config = client_config(Belief::Authority(identity.authority().clone()), Some(identity.clone()));
        Some(Client::over_tls(address, None, Tls::to_node(config, server)))
    }

    pub(crate) fn where_other_servers_are(&self) -> Vec<(NodeId, Address)> {
        let own = &self.inner.node;
        self.read(|world| {
            let members = world.members.values().map(|held| &held.value);
            let servers = members.filter(|member| member.role == NodeRole::Server && member.node != *own);
            servers
                .filter_map(|member| {
                    let address: Address = member.api.as_ref()?.parse().ok()?;
                    Some((member.node.clone(), address))
                })
                .collect()
        })
    }
}

/// An archive as a request's body.
fn body<S, E>(mut archive: S) -> rung_api::client::Body
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    // Streams of the object store are not shared between threads, as a body must be.
    let (sender, receiver) = mpsc::channel(CHUNKS);
    tokio::spawn(async move {
        while let Some(chunk) = archive.next().await {
            let failed = chunk.is_err();
            if sender.send(chunk.map_err(std::io::Error::other)).await.is_err() || failed {
                return;
            }
        }
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk: std::io::Result<Bytes>| (chunk.map(Frame::data), receiver))
    });
    BodyExt::boxed(StreamBody::new(stream))
}
