//! For people: where the state is kept.

use hyper::Method;

use super::Client;
use crate::client::ClientError;
use crate::paths;
use crate::wire::cluster::{ApproveRequest, ClusterReport, EnterRequest, InitRequest, Moved, SnapshotTaken};

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

    /// What makes the machine that asks a server.
    pub async fn enter_cluster(&self, request: &EnterRequest) -> Result<serde_json::Value, ClientError> {
        self.call(Method::POST, paths::CLUSTER_SERVERS, request).await
    }

    pub async fn approve_plan(&self, request: &ApproveRequest) -> Result<(), ClientError> {
        self.call(Method::POST, paths::CLUSTER_APPROVE, request).await
    }
}
