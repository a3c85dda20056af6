//! Deployments: the move of an app from one release to another. Each one ends.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::ids::{AppName, DeploymentNumber, ReleaseNumber, RunId, SecretName};
use crate::release::Draft;
use crate::rollout::{Aftercare, Rollout};

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
    /// Present until the release is made; for good when none was, because nothing would have changed.
    pub draft: Option<Draft>,
    /// The release that it brings; `None` while it is being built.
    pub release: Option<ReleaseNumber>,
    /// The release that served when it began.
    pub from: Option<ReleaseNumber>,
    /// The run of the current phase (a build or the release command).
    #[serde(default)]
    pub run: Option<RunId>,
    /// What is left of the present phase, or stage of it. A duration, not a deadline: clocks step, and servers restart.
    #[serde(rename = "remaining_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub remaining: Duration,
    /// Somebody asked to stop it.
    #[serde(default)]
    pub cancelled_by: Option<String>,
    /// Why it is being reverted, or why it failed, with the last log lines that explain it.
    #[serde(default)]
    pub trouble: Option<Trouble>,
    /// What happened, bounded.
    #[serde(default)]
    pub timeline: Vec<TimelineEntry>,
    /// What whoever began it wants otherwise than usual.
    #[serde(default)]
    pub asked: Asked,
    /// Its build, its restore point and its release command, as far as they were begun.
    #[serde(default)]
    pub runs: Vec<RunId>,
    /// Whom its end is told; `None` before it, and when nobody wants to know.
    #[serde(default)]
    pub notification: Option<Notification>,
    /// How far the traffic has moved, and what was decided by which numbers; `None` until it begins to.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// What goes on after success; `None` when nothing does any more.
    #[serde(default)]
    pub aftercare: Option<Aftercare>,
}

/// How a deployment differs from the usual one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Asked {
    #[serde(default)]
    pub release_command: ReleaseCommand,
    #[serde(default)]
    pub goal: Goal,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseCommand {
    /// It runs unless it ran for this artifact before.
    #[default]
    Once,
    Skip,
}

/// How far a deployment goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    #[default]
    Serve,
    /// A release is made, and nothing else changes.
    Release,
}

/// What became of telling a deployment's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Notification {
    pub webhook: String,
    /// The secret that signs it, in the version of that time.
    #[serde(default)]
    pub secret: Option<(SecretName, u64)>,
    pub state: NotificationState,
}

/// ```text
/// Pending ──► Delivered
///    └──────► GivenUp
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum NotificationState {
    Pending,
    Delivered {
        #[schema(value_type = String, format = DateTime)]
        at: Timestamp,
    },
    GivenUp {
        reason: String,
    },
}

impl Deployment {
    /// How much of the timeline is kept.
    pub const TIMELINE_MAX: usize = 200;
    /// How many of its entries are about single instances: milestones must not be pushed out by a hundred of them.
    pub const DETAILS_MAX: usize = 120;

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
    /// Of an artifact that another environment runs.
    Promote,
}

/// ```text
/// Building ──► Releasing ──► Rolling ──► Succeeded
///    │             │            │
///    ▼             ▼            ▼
///  Failed        Failed     Reverting ──► RolledBack
/// ```
/// `Building` is passed over when there is nothing to build, `Releasing` when there is no release command.
/// When only a release is wanted, `Building` is followed by `Succeeded`.
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
    #[serde(default)]
    pub kind: EntryKind,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// What a person who waits for the deployment is shown.
    #[default]
    Milestone,
    /// What one who looks into it later is shown, too.
    Detail,
}

impl TimelineEntry {
    pub fn milestone(at: Timestamp, phase: Phase, message: impl Into<String>) -> Self {
        Self { at, phase, message: message.into(), kind: EntryKind::Milestone }
    }

    pub fn detail(at: Timestamp, phase: Phase, message: impl Into<String>) -> Self {
        Self { at, phase, message: message.into(), kind: EntryKind::Detail }
    }
}
