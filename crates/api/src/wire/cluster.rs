//! Where the state is kept, and how that is.

use jiff::Timestamp;
use rung_model::ids::NodeId;
use serde::{Deserialize, Serialize};

/// `GET /v1/cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClusterReport {
    pub store: StoreKind,
    pub epoch: u64,
    pub revision: u64,
    /// The server that answered.
    pub server: NodeId,
    /// The server that plans; `None` while none does.
    pub leader: Option<NodeId>,
    /// Of etcd; none on one machine.
    pub members: Vec<MemberReport>,
    pub snapshots: SnapshotsReport,
    /// The bucket where artifacts are; `None`: on the disks of the servers.
    #[serde(default)]
    pub artifacts: Option<String>,
    pub frozen: Option<FrozenReport>,
    /// What is wrong, each with the way out.
    pub problems: Vec<ClusterProblem>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// A file on one machine.
    Sqlite,
    Etcd,
}

/// A member of etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MemberReport {
    pub name: String,
    /// Where it serves clients, and where other members reach it.
    pub client: String,
    pub peer: String,
    pub state: MemberState,
    pub version: Option<String>,
    pub db_bytes: u64,
    /// Its file has reached its quota: etcd takes no changes.
    #[serde(default)]
    pub is_full: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    Leads,
    Follows,
    /// It answers, but knows of no leader: too few members are left, or it is cut off from them.
    Leaderless,
    /// It gets the state, and counts for no majority yet.
    Learns,
    /// It was added and did not come yet.
    Awaited,
    Unreachable,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SnapshotsReport {
    pub kept: u64,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub newest: Option<Timestamp>,
}

/// Nothing is changed until somebody has approved what would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FrozenReport {
    pub why: String,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Nodes that have said what runs on them since this server started, and those that have not.
    pub reported: Vec<NodeId>,
    pub silent: Vec<NodeId>,
    /// What would be done first.
    pub plan: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClusterProblem {
    pub what: String,
    pub way_out: String,
}

/// `POST /v1/cluster/init`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct InitRequest {
    /// Where other servers will reach this machine; by default only itself.
    #[schema(value_type = Option<String>)]
    pub address: Option<std::net::IpAddr>,
}

/// What `init` and `dissolve` moved. The server then starts again, with its state in the other store.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Moved {
    pub entries: u64,
    pub epoch: u64,
}

/// `POST /v1/cluster/servers`, by a machine that joined as a server: what it answers is kept as keys are.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EnterRequest {
    /// Where the others will reach it.
    #[schema(value_type = String)]
    pub address: std::net::IpAddr,
}

/// `POST /v1/cluster/approve`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ApproveRequest {
    /// Nodes that have not reported are taken for lost.
    pub without_silent: bool,
}

/// `POST /v1/cluster/snapshots`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SnapshotTaken {
    pub path: String,
    pub bytes: u64,
}
