//! For people: where the state is kept.

use hyper::Method;

use super::Client;
use crate::client::ClientError;
use crate::paths;
use crate::wire::cluster::{AdmitRequest, ApproveRequest, ClusterReport, InitRequest, Moved, SnapshotTaken};

impl Client {
    pub async fn cluster(&self) -> Result<ClusterReport, ClientError> {
        self.get(paths::CLUSTER).await
    }

    pub async fn init_cluster(&self, request: &InitRequest) -> Result<Moved, ClientError> {
        self.call(Method::POST, paths::CLUSTER_INIT, request).await
    }

    pub async fn dissolve_cluster(&self) -> Result<Moved, ClientError> {
        self.call(Method::POST, paths::CLUSTER_DISSOLVE, &()).await
    }

    pub async fn take_snapshot(&self) -> Result<SnapshotTaken, ClientError> {
        self.call(Method::POST, paths::CLUSTER_SNAPSHOTS, &()).await
    }

    /// What makes a machine a server, as it is to be handed to it.
    pub async fn admit_server(&self, request: &AdmitRequest) -> Result<serde_json::Value, ClientError> {
        self.call(Method::POST, paths::CLUSTER_SERVERS, request).await
    }

    pub async fn remove_server(&self, name: &rung_model::NodeId) -> Result<(), ClientError> {
        self.call(Method::DELETE, &super::fill(paths::CLUSTER_SERVER, &[name]), &()).await
    }

    pub async fn approve_plan(&self, request: &ApproveRequest) -> Result<(), ClientError> {
        self.call(Method::POST, paths::CLUSTER_APPROVE, request).await
    }
}
