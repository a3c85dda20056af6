//! Secrets on the wire: names, versions, and values on their way in.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rung_model::ids::{ReleaseNumber, SecretName};
use serde::{Deserialize, Serialize};

/// `PATCH …/secrets`; `None` unsets. Values are text; they are never answered back.
#[derive(Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretRequest {
    pub changes: BTreeMap<SecretName, Option<String>>,
    pub by: String,
}

impl std::fmt::Debug for SecretRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretRequest").field("names", &self.changes.keys()).field("by", &self.by).finish()
    }
}

/// `POST …/secrets/generate`: the server makes the value, and nobody sees it.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GenerateRequest {
    pub name: SecretName,
    /// Characters.
    pub length: usize,
    pub alphabet: Alphabet,
    pub existing: Existing,
    pub by: String,
}

/// What a generated value is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Alphabet {
    /// a to z, A to Z, 0 to 9.
    Alphanumeric,
    /// 0 to 9, a to f.
    Hex,
    /// Letters, digits, - and _.
    UrlSafe,
    /// Every printable character of ASCII but space, quotes, backslash and $.
    Symbols,
}

/// What happens to a value that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Existing {
    /// It stays: the request is refused.
    Keep,
    Replace,
}

/// `GET …/secrets`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretListing {
    pub name: SecretName,
    /// 0: required, and not set.
    pub version: u64,
    /// Named in the app file's `[secrets] required`.
    pub required: bool,
    /// Every version that is kept, newest first.
    #[serde(default)]
    pub versions: Vec<SecretVersion>,
}

/// A version stays as long as a release names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretVersion {
    pub version: u64,
    /// When it was set, and by whom; values that older versions of rung have sealed do not say.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    pub by: Option<String>,
    /// The releases that it belongs to.
    pub releases: Vec<ReleaseNumber>,
}

/// The answer to `POST /v1/secrets/rotate-key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyRotated {
    /// How many values are under the new master key now.
    pub wrapped: u64,
    /// Values that none of the keys opens, as `app/NAME/version`: they were lost before.
    pub lost: Vec<String>,
}
