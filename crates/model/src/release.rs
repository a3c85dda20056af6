//! Releases: immutable, numbered, everything that is needed to run one again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::appfile::{AppFile, AppText};
use crate::ids::{AppName, CommitId, Digest, ReleaseNumber, RunId, SecretName};

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
    #[serde(default)]
    pub provenance: Provenance,
}

/// Where a release comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Provenance {
    /// The app file as it was written, with every overlay: it says what the same artifact is in another environment.
    /// `None` in releases of older versions.
    #[serde(default)]
    pub text: Option<AppText>,
    /// `None`: it did not come from a git repository.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// The build that made the artifact, of this app or of the one that it was promoted from. `None`: nothing was built.
    #[serde(default)]
    pub build: Option<RunId>,
    #[serde(default)]
    pub promoted_from: Option<Promoted>,
}

/// What git says of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Origin {
    pub commit: CommitId,
    #[serde(default)]
    pub branch: Option<String>,
    /// The tree had changes that the commit has not.
    #[serde(default)]
    pub dirty: bool,
}

/// The release whose artifact was taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Promoted {
    pub app: AppName,
    pub release: ReleaseNumber,
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
    #[serde(default)]
    pub provenance: Provenance,
}
