//! Joining: what a machine says to become a node, and what it is told.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use rung_model::{InstanceId, LabelName, Labels, Member, NodeId, NodeRole};
use rung_trust::Fingerprint;
use serde::{Deserialize, Serialize};

/// `POST /v1/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JoinTokenRequest {
    pub role: NodeRole,
    pub by: String,
}

/// The answer: what a machine needs to join, once.
#[derive(Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JoinTokenIssued {
    /// See [`JoinToken`].
    pub token: String,
    /// Where servers are reached, `https://10.0.0.1:7864`.
    pub servers: Vec<String>,
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
}

impl fmt::Debug for JoinTokenIssued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinTokenIssued").field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// What `rung node token` prints: role, name, secret, and the hash by which the cluster is recognized before the secret
/// is sent. `worker.6b1f….9e02….4c7d…`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub role: NodeRole,
    pub name: String,
    pub secret: String,
    pub authority: Fingerprint,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("role", &self.role)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "that is no join token; `rung node token` on a server prints one: worker, and three long words after dots"
)]
pub struct InvalidToken;

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.role, self.name, self.secret, self.authority.hex())
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let words: Vec<&str> = text.trim().split('.').collect();
        let [role, name, secret, authority] = words.as_slice() else { return Err(InvalidToken) };
        let is_word = |word: &str| word.len() >= 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_word(name) || !is_word(secret) {
            return Err(InvalidToken);
        }
        Ok(Self {
            role: role.parse().map_err(|_| InvalidToken)?,
            name: (*name).to_owned(),
            secret: (*secret).to_owned(),
            authority: authority.parse().map_err(|_| InvalidToken)?,
        })
    }
}

/// `POST /v1/join`, over TLS; the token is all the authority that the caller has.
#[derive(Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JoinRequest {
    pub token: String,
    pub secret: String,
    pub role: NodeRole,
    pub node: NodeId,
    /// The node's public key, a point of P-256 in hexadecimal digits.
    pub key: String,
    /// What the machine's clock shows.
    #[schema(value_type = String, format = DateTime)]
    pub clock: Timestamp,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest")
            .field("node", &self.node)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// The answer to joining and to `POST /v1/nodes/{node}/certificate`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Certified {
    /// PEM.
    pub certificate: String,
    /// The cluster's authority, PEM.
    pub authority: String,
    /// From its making to its end.
    pub life_ms: u64,
    pub servers: Vec<String>,
}

/// `POST /v1/nodes/{node}/certificate`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CertificateRequest {
    /// As at joining; a node keeps its key.
    pub key: String,
}

/// `GET /v1/members?after=…&wait_ms=…`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MemberReport {
    /// Names this list; what to send as `after`.
    pub mark: String,
    pub members: Vec<Member>,
}

/// One line of `GET /v1/nodes`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeListing {
    pub node: NodeId,
    pub role: NodeRole,
    pub state: NodeState,
    pub instances: u32,
    pub version: Option<String>,
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// What keeps a drain from ending.
    #[serde(default)]
    pub blocked: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    Ready,
    /// It has not been heard of for a while; what ran there runs elsewhere.
    Lost,
    /// It has not been heard of for a while, as most have not: nothing is moved.
    Silent,
    Draining,
    Drained,
    /// It takes requests and runs nothing.
    Serving,
}

/// `POST /v1/nodes/{node}/drain`; without a deadline it waits as long as it takes.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DrainRequest {
    pub deadline_ms: Option<u64>,
    pub by: String,
}

/// `POST /v1/nodes/{node}/labels`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LabelRequest {
    pub by: String,
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub set: Labels,
    #[serde(default)]
    pub remove: Vec<LabelName>,
}

/// `GET /v1/nodes/{node}/leases`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Leased {
    /// The instances that shall run there.
    pub instances: Vec<InstanceId>,
}

/// `POST /v1/nodes/{node}/remove`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RemoveRequest {
    pub by: String,
    /// Even while it runs instances.
    #[serde(default)]
    pub force: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_being_printed_and_a_torn_one_is_no_token() {
        let token = JoinToken {
            role: NodeRole::Worker,
            name: "00112233445566778899".into(),
            secret: "ffeeddccbbaa99887766554433221100".into(),
            authority: Fingerprint::of(b"x"),
        };
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token));
        for wrong in ["", "worker", &text[..text.len() - 3], &text.replace("worker", "king")] {
            assert_eq!(wrong.parse::<JoinToken>(), Err(InvalidToken), "{wrong}");
        }
    }
}
