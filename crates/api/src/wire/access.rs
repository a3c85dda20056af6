//! Tokens on the wire.

use jiff::Timestamp;
use rung_model::access::Grant;
use rung_model::ids::TokenName;
use serde::{Deserialize, Serialize};

/// `POST /v1/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenRequest {
    pub name: TokenName,
    pub grant: Grant,
    /// From then on it is refused; `None`: it holds until it is revoked.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires: Option<Timestamp>,
    pub by: String,
}

/// The answer to it: the only time that the token is shown.
#[derive(Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenCreated {
    pub token: String,
    pub listing: TokenListing,
}

impl std::fmt::Debug for TokenCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCreated").field("listing", &self.listing).finish_non_exhaustive()
    }
}

/// `GET /v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenListing {
    pub name: TokenName,
    pub grant: Grant,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub by: String,
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires: Option<Timestamp>,
}

/// `GET /v1/whoami`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Whoami {
    /// The token's name; `owner` for the token of the first start, `local` on the server's own socket.
    pub name: String,
    pub grant: Grant,
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires: Option<Timestamp>,
}
