//! Members: machines that belong to the cluster and are recognized by their key.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::node::NodeRole;

/// At `members/<node>`. Whoever is not here is refused, whatever certificate they show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Member {
    pub node: NodeId,
    pub role: NodeRole,
    /// `sha256:…` of the public key.
    pub key: String,
    #[schema(value_type = String, format = DateTime)]
    pub joined: Timestamp,
    /// Of a server: where its API is reached from other machines, `https://10.0.0.1:7864`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
}
