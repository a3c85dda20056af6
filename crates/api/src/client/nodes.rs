//! Machines: what people do with them, and what agents and proxies ask for.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use hyper::body::Incoming;
use rung_model::{
    AppName, Assignment, Digest, Generation, NodeFacts, NodeId, NodeRole, Observed, ReleaseNumber,
};

use super::lines::Way;
use super::{Body, Client, ClientError, encode_query, fill, full, with_wait};
use crate::join::{
    CertificateRequest, Certified, DrainRequest, JoinRequest, JoinTokenIssued, JoinTokenRequest,
    LabelRequest, Leased, MemberReport, NodeListing, RemoveRequest,
};
use crate::paths;
use crate::wire::{Launch, LimitsTaken, ProxyDocuments, ProxyPoll, ProxyTraffic};

/// For those who look after the cluster, and for machines that join it.
impl Client {
    pub async fn make_join_token(&self, role: NodeRole, by: &str) -> Result<JoinTokenIssued, ClientError> {
        self.call(Method::POST, paths::JOIN_TOKENS, &JoinTokenRequest { role, by: by.to_owned() }).await
    }

    pub async fn nodes(&self) -> Result<Vec<NodeListing>, ClientError> {
        self.get(paths::NODES).await
    }

    pub async fn drain(&self, node: &NodeId, request: &DrainRequest) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::NODE_DRAIN, &[node]), request).await
    }

    /// Lets a drained node take instances again.
    pub async fn undrain(&self, node: &NodeId, by: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &fill(paths::NODE_DRAIN, &[node]), &by).await
    }

    pub async fn label(&self, node: &NodeId, request: &LabelRequest) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::NODE_LABELS, &[node]), request).await
    }

    pub async fn remove_node(&self, node: &NodeId, request: &RemoveRequest) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::NODE_REMOVE, &[node]), request).await
    }

    /// Asks again for a while when the server does not come to it in time, as when thousands join at once. The same machine
    /// may: when only the answer was late, it is given again.
    pub async fn join(&self, request: &JoinRequest) -> Result<Certified, ClientError> {
        let (began, mut pause) = (Instant::now(), JOIN_AGAIN);
        loop {
            match self.call(Method::POST, paths::JOIN, request).await {
                Err(error) if error.is_late() && began.elapsed() < JOIN_WITHIN => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                answer => return answer,
            }
        }
    }
}

/// Doubled with each try.
const JOIN_AGAIN: Duration = Duration::from_millis(500);
/// No new try is begun after it: a person waits for the word that there is nobody.
const JOIN_WITHIN: Duration = Duration::from_secs(15);

/// For nodes.
impl Client {
    pub async fn renew_certificate(&self, node: &NodeId, key: &str) -> Result<Certified, ClientError> {
        let request = CertificateRequest { key: key.to_owned() };
        self.call(Method::POST, &fill(paths::CERTIFICATE, &[node]), &request).await
    }

    /// The members once they are others than those that `after` names. After `wait` at the latest, then perhaps with the
    /// same mark and none of them.
    pub async fn members(&self, after: &str, wait: Duration) -> Result<MemberReport, ClientError> {
        let path = with_wait(paths::MEMBERS.to_owned(), wait);
        self.get(&format!("{path}&brief=true&after={}", encode_query(after))).await
    }

    pub async fn register(&self, node: &NodeId, facts: &NodeFacts) -> Result<(), ClientError> {
        self.call(Method::PUT, &fill(paths::NODE, &[node]), facts).await
    }

    pub async fn beat(&self, node: &NodeId) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::NODE_BEAT, &[node]), &()).await
    }

    /// Which instances shall run there: as long as they do, the node may let exclusive ones live.
    pub async fn leases(&self, node: &NodeId) -> Result<Leased, ClientError> {
        self.get(&fill(paths::NODE_LEASES, &[node])).await
    }

    /// The assignment once it is newer than `after`; `None` when nothing came within `wait`.
    pub async fn assignment(
        &self,
        node: &NodeId,
        after: Generation,
        wait: Duration,
    ) -> Result<Option<Assignment>, ClientError> {
        let path = with_wait(fill(paths::ASSIGNMENT, &[node]), wait);
        self.get(&format!("{path}&after={after}")).await
    }

    pub async fn report(&self, observed: &Observed) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::OBSERVED, &[&observed.node]), observed).await
    }

    pub async fn launch(&self, app: &AppName, release: ReleaseNumber) -> Result<Launch, ClientError> {
        self.get(&fill(paths::LAUNCH, &[app, &release.0])).await
    }

    /// The archive of an artifact or an uploaded source, as a stream.
    pub async fn artifact(&self, digest: &Digest) -> Result<Incoming, ClientError> {
        let path = fill(paths::ARTIFACT, &[digest]);
        let nothing = full(Bytes::new());
        Ok(self.send(Way::Alone, Method::GET, &path, "application/json", nothing).await?.into_body())
    }

    pub async fn put_artifact(&self, digest: &Digest, archive: Body) -> Result<(), ClientError> {
        let path = fill(paths::ARTIFACT, &[digest]);
        let response = self.send(Way::Alone, Method::PUT, &path, "application/x-tar", archive).await?;
        self.read(&path, response).await
    }
}

/// For proxies.
impl Client {
    pub async fn poll_routes(
        &self,
        proxy: &str,
        poll: &ProxyPoll,
        wait: Duration,
    ) -> Result<ProxyDocuments, ClientError> {
        self.call(Method::POST, &with_wait(fill(paths::PROXY_POLL, &[&proxy]), wait), poll).await
    }

    /// Reports what was counted.
    pub async fn report_traffic(&self, proxy: &str, traffic: &ProxyTraffic) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::PROXY_TRAFFIC, &[&proxy]), traffic).await
    }

    /// Tells what was let pass, and hears what others did.
    pub async fn share_limits(&self, proxy: &str, taken: &LimitsTaken) -> Result<LimitsTaken, ClientError> {
        self.call(Method::POST, &fill(paths::PROXY_LIMITS, &[&proxy]), taken).await
    }

    /// For servers: tells another one what ingresses let pass here.
    pub async fn pass_limits_on(&self, own: &NodeId, taken: &LimitsTaken) -> Result<(), ClientError> {
        self.call(Method::POST, &fill(paths::SERVER_LIMITS, &[own]), taken).await
    }

    /// The proxy ends in order: nobody need wait for its acknowledgements any more.
    pub async fn leave(&self, proxy: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &fill(paths::PROXY, &[&proxy]), &()).await
    }
}
