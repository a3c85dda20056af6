//! What a machine that joined remembers of its cluster, beside its key and certificates.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use jiff::Timestamp;
use rung_api::join::{JoinRequest, JoinToken};
use rung_api::seal::write_private;
use rung_api::{Address, Client, ClientError, Tls};
use rung_cli::edge::Hinted;
use rung_control::quorum;
use rung_model::{NodeId, NodeRole};
use rung_trust::{
    Belief, Explained, Identity, LOOK_AT_THE_CLOCK, TrustDirectory, client_config, renewal_is_due,
};

const FILE: &str = "cluster.json";
/// When no server could renew it; then again and again, for hours if need be.
const RENEW_AGAIN: Duration = Duration::from_secs(30);

/// `<data>/trust/cluster.json`.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Membership {
    pub node: NodeId,
    pub role: NodeRole,
    /// Any of them; `https://10.0.0.1:7864`.
    pub servers: Vec<String>,
    pub certified: Timestamp,
    pub life_ms: u64,
}

/// Says what can be done about it by whoever joins: what a person may do who asks a server something is other.
fn not_joined(error: ClientError, node: &NodeId) -> anyhow::Error {
    let hint = match &error {
        ClientError::Connect { .. } => {
            "is it running, and does it listen for other machines (`rung up --api 0.0.0.0:7864`)?".into()
        }
        ClientError::Untrusted { why: Explained::Clock, .. } => {
            let now = Timestamp::now();
            format!("this machine's clock shows {now}: set the one that is wrong, and join again; the token was not used")
        }
        ClientError::Untrusted { why: Explained::NoTls, .. } => {
            "give the address and port of the API: `rung node token` prints it with the token".into()
        }
        ClientError::Untrusted { .. } => {
            "nothing was sent there; if the address is right, the token is of another cluster or was changed: make another one \
             with `rung node token` on a server"
                .into()
        }
        _ => return anyhow::Error::from(error).context(format!("joining as {node}")),
    };
    let message = format!("joining as {node}: {:#}", anyhow::Error::from(error));
    Hinted::failed(message, hint).into()
}

impl Membership {
    pub fn read(trust: &TrustDirectory) -> anyhow::Result<Option<Self>> {
        let path = trust.path().join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let read = serde_json::from_slice(&bytes);
                read.map(Some).with_context(|| format!("reading {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn keep(&self, trust: &TrustDirectory) -> anyhow::Result<()> {
        let path = trust.path().join(FILE);
        let bytes = serde_json::to_vec_pretty(self).expect("names and times serialize");
        write_private(&path, &bytes).with_context(|| format!("writing {}", path.display()))
    }

    fn end(&self) -> Timestamp {
        self.certified + Duration::from_millis(self.life_ms)
    }

    /// Asks a server to let this machine in. Nothing secret is sent before the server has shown that it is of the
    /// cluster that the token is of.
    pub async fn join(
        trust: &TrustDirectory,
        server: &str,
        token: &JoinToken,
        node: NodeId,
    ) -> anyhow::Result<Self> {
        let address = match server.parse::<Address>() {
            Ok(Address::Tcp(authority) | Address::Tls(authority)) => Address::Tls(authority),
            Ok(Address::Unix(_)) | Err(_) => {
                let message = format!("{server:?} is not the address of a server");
                return Err(Hinted::usage(message, "write it with its port, like 10.0.0.1:7864").into());
            }
        };
        let key = trust.ensure_key()?.public();
        let tls = Tls::to_servers(client_config(Belief::Hash(token.authority), None));
        let client = Client::over_tls(address.clone(), None, tls);
        let certified = Timestamp::now();
        let request = JoinRequest {
            token: token.name.clone(),
            secret: token.secret.clone(),
            role: token.role,
            node: node.clone(),
            key: key.to_hex(),
            clock: certified,
        };
        let answer = client.join(&request).await.map_err(|error| not_joined(error, &node))?;
        trust.keep(&answer.certificate, &answer.authority)?;
        let mut servers = answer.servers;
        if servers.is_empty() {
            servers.push(address.to_string());
        }
        let membership = Self { node, role: token.role, servers, certified, life_ms: answer.life_ms };
        membership.keep(trust)?;
        Ok(membership)
    }

    /// Who this machine is, if its certificate still holds.
    pub fn identity(&self, trust: &TrustDirectory) -> anyhow::Result<std::sync::Arc<Identity>> {
        if Timestamp::now() > self.end() {
            let message = format!("the certificate of {} ended at {}", self.node, self.end());
            let hint = format!(
                "it was off for too long (or its clock is wrong): on a server `rung node remove {}` and `rung node \
                 token`, then remove {} here and join again",
                self.node,
                trust.path().display()
            );
            return Err(Hinted::failed(message, hint).into());
        }
        let credentials = trust.read()?.context("the certificates of this machine are incomplete")?;
        Ok(Identity::new(&credentials)?)
    }

    pub fn client(&self, identity: &std::sync::Arc<Identity>) -> anyhow::Result<Client> {
        let belief = Belief::Authority(identity.authority().clone());
        let tls = Tls::to_servers(client_config(belief, Some(identity.clone())));
        Ok(Client::to_any(self.addresses()?, None, Some(tls)))
    }

    pub fn addresses(&self) -> anyhow::Result<Vec<Address>> {
        Ok(self.servers.iter().map(|server| server.parse()).collect::<Result<_, _>>()?)
    }

    /// Renews the certificate at two thirds of its life, for as long as it is polled.
    pub async fn keep_renewed(
        mut self,
        trust: TrustDirectory,
        identity: std::sync::Arc<Identity>,
        client: Client,
    ) {
        loop {
            tokio::time::sleep(LOOK_AT_THE_CLOCK).await;
            let (made, life) = (SystemTime::from(self.certified), Duration::from_millis(self.life_ms));
            if !renewal_is_due(made, life, SystemTime::now()) {
                continue;
            }
            if let Err(error) = self.renew(&trust, &identity, &client).await {
                tracing::warn!(error = format!("{error:#}"), until = %self.end(), "renewing this node's certificate");
                tokio::time::sleep(RENEW_AGAIN).await;
            }
        }
    }

    async fn renew(
        &mut self,
        trust: &TrustDirectory,
        identity: &Identity,
        client: &Client,
    ) -> anyhow::Result<()> {
        let key = trust.ensure_key()?.public();
        let certified = Timestamp::now();
        let answer = client.renew_certificate(&self.node, &key.to_hex()).await?;
        trust.keep(&answer.certificate, &answer.authority)?;
        identity.renew(&trust.read()?.context("the certificates are incomplete")?)?;
        self.certified = certified;
        self.life_ms = answer.life_ms;
        if !answer.servers.is_empty() {
            self.servers = answer.servers;
        }
        self.keep(trust)
    }
}

/// A directory that is a server's already is nobody else's.
pub fn refuse_servers(data: &Path) -> anyhow::Result<()> {
    if let Some(state) = quorum::state_in(data) {
        let message = format!("{} is there: this data directory is a server's", state.display());
        let hint = "start it with `rung up`, or join with another data directory: --data DIR";
        return Err(Hinted::failed(message, hint).into());
    }
    Ok(())
}
