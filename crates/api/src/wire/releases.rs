//! Releases in detail: what is in one, what tells two apart, what became of a commit.

use std::collections::BTreeMap;

use rung_model::deployment::ReleaseCommand;
use rung_model::ids::{AppName, CommitId, Digest, ReleaseNumber, RunId, SecretName};
use rung_model::release::Promoted;
use rung_model::run::Run;
use serde::{Deserialize, Serialize};

use super::{DeploymentSummary, ReleaseListing};

/// `POST …/releases/{release}/deploy`: rolls out a release that was made before.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReleaseRequest {
    #[serde(default)]
    pub release_command: ReleaseCommand,
    pub by: String,
}

/// `POST …/promote`: deploys the artifact of another environment here, with the config and the secrets of this one.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PromoteRequest {
    pub from: AppName,
    /// `None`: the one that serves there.
    #[serde(default)]
    pub release: Option<ReleaseNumber>,
    #[serde(default)]
    pub release_command: ReleaseCommand,
    #[serde(default)]
    pub note: Option<String>,
    pub by: String,
}

/// `GET …/releases/{release}`.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReleaseDetail {
    pub listing: ReleaseListing,
    /// The build that made the artifact; its id begins with the app that it was built for.
    pub build: Option<RunId>,
    pub promoted_from: Option<Promoted>,
    pub config: BTreeMap<String, String>,
    /// Versions only.
    pub secrets: BTreeMap<SecretName, u64>,
    /// Those that brought it, oldest first.
    pub deployments: Vec<DeploymentSummary>,
    /// Its build, its restore point and its release command, as far as they are kept.
    pub runs: Vec<Run>,
}

/// `GET …/releases/{release}/diff/{other}`: what the other has otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReleaseDiff {
    pub from: ReleaseNumber,
    pub to: ReleaseNumber,
    pub artifact: ArtifactDiff,
    /// Of the app file's meaning, defaults filled in.
    pub file: Vec<ValueChange>,
    pub config: Vec<ValueChange>,
    pub secrets: Vec<SecretChange>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ArtifactDiff {
    pub from: Digest,
    pub to: Digest,
    /// By path; the first thousand.
    pub files: Vec<FileChange>,
    /// How many more there are.
    pub omitted: u64,
    /// Why the files can't be compared: an artifact is not kept any more.
    pub unknown: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileChange {
    pub path: String,
    pub change: Change,
    pub bytes_before: Option<u64>,
    pub bytes_after: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Added,
    Removed,
    Changed,
}

/// `None`: it is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ValueChange {
    pub name: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// By versions; values are never told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretChange {
    pub name: SecretName,
    pub before: Option<u64>,
    pub after: Option<u64>,
}

/// `GET …/commits/{commit}`: what became of the newest deployment of a commit.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CommitStatus {
    pub commit: CommitId,
    pub state: CommitState,
    pub deployment: DeploymentSummary,
    /// The release that serves now is of this commit.
    pub serves: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommitState {
    Going,
    Succeeded,
    RolledBack,
    Failed,
}
