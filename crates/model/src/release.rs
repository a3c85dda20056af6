//! Releases: immutable, numbered, everything that is needed to run one again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::appfile::AppFile;
use crate::ids::{AppName, Digest, ReleaseNumber, SecretName};

/// A release `v7` of an app, at `releases/<app>/<number>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Release {
    pub app: AppName,
    pub number: ReleaseNumber,
    pub artifact: Digest,
    /// The uploaded tree that the artifact was made of: the same source and build section need no second build.
    #[serde(default)]
    pub source: Option<Digest>,
    pub file: AppFile,
    pub config: BTreeMap<String, String>,
    pub secrets: BTreeMap<SecretName, u64>,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub by: String,
    /// Why it was made, in a few words: `deploy`, `config: LOG_LEVEL`, `rollback to v6`.
    pub reason: String,
    /// What `-m` said.
    #[serde(default)]
    pub note: Option<String>,
}

/// What will become a release once its artifact is known: carried by the deployment that builds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Draft {
    pub file: AppFile,
    pub config: BTreeMap<String, String>,
    pub secrets: BTreeMap<SecretName, u64>,
    /// The uploaded tree; `None` when the artifact of an earlier release is used again.
    pub source: Option<Digest>,
    /// Known at once when there is nothing to build, or when the same build was done before.
    pub artifact: Option<Digest>,
    pub reason: String,
    pub note: Option<String>,
}
