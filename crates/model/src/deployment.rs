//! Deployments: the move of an app from one release to another. Each one ends.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::ids::{AppName, DeploymentNumber, ReleaseNumber, RunId};
use crate::release::Draft;

/// A deployment, at `deployments/<app>/<number>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Deployment {
    pub app: AppName,
    pub number: DeploymentNumber,
    pub kind: DeploymentKind,
    pub by: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub phase: Phase,
    /// Present until the release is made.
    pub draft: Option<Draft>,
    /// The release that it brings; `None` while it is being built.
    pub release: Option<ReleaseNumber>,
    /// The release that served when it began.
    pub from: Option<ReleaseNumber>,
    /// The run of the current phase (a build or the release command).
    #[serde(default)]
    pub run: Option<RunId>,
    /// What is left until it must have ended. A duration, not a deadline: clocks step, and servers restart.
    #[serde(rename = "remaining_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub remaining: Duration,
    /// Somebody asked to stop it.
    #[serde(default)]
    pub cancelled_by: Option<String>,
    /// Why it is being reverted, or why it failed, with the last log lines that explain it.
    #[serde(default)]
    pub trouble: Option<Trouble>,
    /// What happened, bounded to the newest entries.
    #[serde(default)]
    pub timeline: Vec<TimelineEntry>,
}

impl Deployment {
    /// How much of the timeline is kept; a deployment of a hundred instances writes about a tenth of it.
    pub const TIMELINE_MAX: usize = 200;

    pub fn outcome(&self) -> Option<Outcome> {
        match self.phase {
            Phase::Succeeded => Some(Outcome::Succeeded),
            Phase::RolledBack => Some(Outcome::RolledBack),
            Phase::Failed => Some(Outcome::Failed),
            Phase::Building | Phase::Releasing | Phase::Rolling | Phase::Reverting => None,
        }
    }

    pub fn has_ended(&self) -> bool {
        self.outcome().is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentKind {
    Deploy,
    Config,
    Secret,
    Rollback,
    Restart,
}

/// ```text
/// Building ──► Releasing ──► Rolling ──► Succeeded
///    │             │            │
///    ▼             ▼            ▼
///  Failed        Failed     Reverting ──► RolledBack
/// ```
/// `Building` is passed over when there is nothing to build, `Releasing` when there is no release command.
/// A first deployment has nothing to go back to: reverting removes its instances and it ends `Failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Building,
    Releasing,
    Rolling,
    Reverting,
    Succeeded,
    RolledBack,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    RolledBack,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Trouble {
    pub reason: String,
    #[serde(default)]
    pub log_tail: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TimelineEntry {
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub phase: Phase,
    pub message: String,
}
