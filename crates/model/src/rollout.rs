//! How far a deployment's traffic has moved: kept with the deployment, so that a server that dies goes on where it was.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::appfile::rollout::Share;
use crate::duration;
use crate::ids::{DeploymentNumber, InstanceId, ReleaseNumber};
use crate::traffic::Counts;

/// The steps of a rollout in phase `Rolling`. Each step goes through:
///
/// ```text
///            its instances serve         its time is over, nothing speaks against it
///  Moving ────────────────────► Holding ───────────────────────────────────────────► the next step's Moving
///    │                            │  └─► AwaitingWord ──── somebody says so ─────────►     │
///    │                            └────► AwaitingTraffic ─ enough requests ──────────►     │
///    └───────────── late ──────────────────── worse than the old one ──────────────► reverted
/// ```
///
/// What is left of a stage is the deployment's `remaining`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rollout {
    /// Counted from 0; the last is everybody.
    pub step: u32,
    pub stage: Stage,
    /// Who said that this step shall end.
    #[serde(default)]
    pub continued_by: Option<String>,
    /// Of this step.
    #[serde(default)]
    pub new: Counts,
    #[serde(default)]
    pub old: Counts,
    #[serde(default)]
    pub evidence: Evidence,
    /// The newest ones.
    #[serde(default)]
    pub decisions: Vec<Decision>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Instances start and become routed.
    #[default]
    Moving,
    /// The step's time passes.
    Holding,
    /// A person shall say `rung continue`.
    AwaitingWord,
    /// There were too few requests.
    AwaitingTraffic,
}

/// How strongly the counts speak against the new release; see `docs/decisions/0030-judging-a-canary.md`.
///
/// Natural logarithms of betting gains, one for each assumed size of the effect; empty: nothing was counted yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Evidence {
    /// Its errors are above the limit.
    #[serde(default)]
    pub errors_above: Vec<f64>,
    /// Its errors are more than the old one's at the same time.
    #[serde(default)]
    pub errors_worse: Vec<f64>,
    #[serde(default)]
    pub slow_above: Vec<f64>,
    #[serde(default)]
    pub slow_worse: Vec<f64>,
}

/// Something that was decided, with its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Decision {
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub step: u32,
    pub share: Share,
    pub verdict: Verdict,
    /// In words, with the numbers.
    pub reason: String,
    pub new: Numbers,
    pub old: Numbers,
}

impl Rollout {
    /// How many decisions are kept: those of the largest number of steps, twice.
    pub const DECISIONS_MAX: usize = 40;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Continue,
    Wait,
    Abort,
}

/// Counts as people read them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Numbers {
    pub requests: u64,
    pub errors: u64,
    #[serde(rename = "p95_ms", with = "duration::optional_ms", default)]
    #[schema(value_type = Option<u64>)]
    pub p95: Option<Duration>,
}

impl From<&Counts> for Numbers {
    fn from(counts: &Counts) -> Self {
        Self { requests: counts.requests, errors: counts.errors, p95: counts.p95() }
    }
}

/// What goes on after success, while no other deployment does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Aftercare {
    #[serde(default)]
    pub warm: Option<Warm>,
    #[serde(default)]
    pub watch: Option<Watch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settling: Option<Settling>,
}

/// Instances that exit by themselves take the release back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Settling {
    #[serde(rename = "remaining_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub remaining: Duration,
    /// How often instances had ended before: those that needed more than one start.
    #[serde(default)]
    pub exits: BTreeMap<InstanceId, u32>,
}

/// The instances that served before: they run on and get no requests, and going back to them starts nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Warm {
    pub cohort: DeploymentNumber,
    pub release: ReleaseNumber,
    #[serde(rename = "remaining_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub remaining: Duration,
}

/// A regression still reverts by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Watch {
    #[serde(rename = "remaining_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub remaining: Duration,
    /// Of the release before, while it served.
    pub before: Counts,
    #[serde(default)]
    pub new: Counts,
    #[serde(default)]
    pub evidence: Evidence,
}
