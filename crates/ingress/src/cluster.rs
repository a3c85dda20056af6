//! This machine among others: who it is, whom it admits, and how it reaches instances elsewhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rung_api::{Client, Tls};
use rung_model::{Endpoint, NodeId};
use rung_trust::{
    Belief, DirectoryError, Identity, Members, TrustDirectory, client_config, node_name, server_name,
};

use crate::config::Config;
use crate::upstream::Relay;

/// A renewed certificate is good for hours more than this.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The members that were known last, in the ingress's directory.
const MEMBERS: &str = "members.json";

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("{path} holds no identity of this machine")]
    NoIdentity { path: PathBuf },
    #[error(transparent)]
    Credentials(#[from] rung_trust::CredentialsError),
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) identity: Arc<Identity>,
    pub(crate) members: Members,
    directory: TrustDirectory,
    config: Arc<rustls::ClientConfig>,
}

impl Cluster {
    pub(crate) fn open(trust: &Path) -> Result<Self, ClusterError> {
        let directory = TrustDirectory::new(trust.to_owned());
        let credentials =
            directory.read()?.ok_or_else(|| ClusterError::NoIdentity { path: trust.to_owned() })?;
        let identity = Identity::new(&credentials)?;
        let belief = Belief::Authority(identity.authority().clone());
        let config = client_config(belief, Some(identity.clone()));
        Ok(Self { identity, members: Members::default(), directory, config })
    }

    fn node(&self) -> &NodeId {
        &self.identity.peer().node
    }

    /// How an endpoint is reached, when it is on another machine.
    pub(crate) fn relay(&self, endpoint: &Endpoint) -> Option<Relay> {
        let node = endpoint.node.as_ref().filter(|node| *node != self.node())?;
        let address = endpoint.proxy?;
        Some(Relay {
            address,
            config: self.config.clone(),
            name: server_name(node_name(node)),
            instance: endpoint.instance.clone(),
        })
    }

    /// Whether an endpoint is on this machine.
    pub(crate) fn is_here(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_ref() == Some(self.node())
    }

    /// Keeps identity and members as they are, until it is dropped; and the client's servers.
    pub(crate) async fn follow(self: Arc<Self>, client: Client, directory: PathBuf) {
        let members = rung_api::members::follow(client, self.members.clone(), directory.join(MEMBERS));
        let renewals = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let renewed = || -> Result<(), ClusterError> {
                    let credentials = self.directory.read()?;
                    Ok(credentials.map_or(Ok(()), |credentials| self.identity.renew(&credentials))?)
                };
                if let Err(error) = renewed() {
                    // Half replaced, most likely: the next look finds it whole.
                    tracing::debug!(%error, "reading this machine's certificate");
                }
            }
        };
        tokio::join!(members, renewals);
    }
}

/// Of the servers that were named; of the others, too, once they are known.
pub(crate) fn client(config: &Config, cluster: Option<&Cluster>) -> Client {
    let tls = cluster.map(|cluster| Tls::to_servers(cluster.config.clone()));
    Client::to_any(config.api.clone(), config.token.clone(), tls)
}
