//! How the traffic moves from one release to the next: the part of `[deploy]` that is about it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::defaults;
use crate::duration;
use crate::routes::{SplitBy, Testers};

/// See the module's text. The default is what an app file without a word about it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RolloutPolicy {
    pub strategy: Strategy,
    /// What decides who belongs to the share of a step.
    pub split: SplitBy,
    /// Who gets the new release at every step, beside the share.
    #[serde(default)]
    pub testers: Option<Testers>,
    #[serde(default)]
    pub abort_if: Option<AbortIf>,
    /// What is done at the end of a step that had too few requests to be judged.
    #[serde(default)]
    pub without_traffic: WithoutTraffic,
    /// The longest wait for a person's word, or for requests.
    #[serde(rename = "wait_at_most_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub wait_at_most: Duration,
    /// How long the old instances are kept running after success; zero: not at all.
    #[serde(rename = "keep_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub keep: Duration,
    /// How long after success a regression still reverts by itself; zero: not at all.
    #[serde(rename = "watch_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub watch: Duration,
    /// How long after success a release whose instances exit by themselves is taken back; zero: not at all.
    #[serde(rename = "settle_ms", with = "duration::ms", default = "settle")]
    #[schema(value_type = u64)]
    pub settle: Duration,
}

/// What app files that were stored before there was the key mean.
fn settle() -> Duration {
    defaults::SETTLE
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            split: SplitBy::Visitor,
            testers: None,
            abort_if: None,
            without_traffic: WithoutTraffic::Wait,
            wait_at_most: defaults::WAIT_AT_MOST,
            keep: Duration::ZERO,
            watch: Duration::ZERO,
            settle: defaults::SETTLE,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Strategy {
    /// New instances take over one by one.
    Rolling {
        /// So many beyond the count run at a time; `None`: all of the new beside all of the old.
        batch: Option<u32>,
    },
    /// All new instances start without a request; then everybody changes over at once.
    BlueGreen,
    /// Shares of the visitors, step by step. The last step is everybody.
    Canary { steps: Vec<CanaryStep> },
}

impl Default for Strategy {
    fn default() -> Self {
        Self::Rolling { batch: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CanaryStep {
    pub share: Share,
    /// `None`: until a person says `rung continue`.
    #[serde(rename = "time_ms", with = "duration::optional_ms", default)]
    #[schema(value_type = Option<u64>)]
    pub time: Option<Duration>,
}

/// A part of a whole in hundredths of a percent.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Share(pub u32);

impl Share {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(10_000);

    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(Self::ALL.0)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole} %"),
            (whole, part) if part % 10 == 0 => write!(f, "{whole}.{} %", part / 10),
            (whole, part) => write!(f, "{whole}.{part:02} %"),
        }
    }
}

/// When a release is taken back because of how it answers, always against the old one at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AbortIf {
    /// Answers with a status of 500 and more, and those that did not come.
    #[serde(default)]
    pub error_rate: Option<Share>,
    /// Nineteen of twenty answers begin sooner.
    #[serde(rename = "p95_ms", with = "duration::optional_ms", default)]
    #[schema(value_type = Option<u64>)]
    pub p95: Option<Duration>,
    /// Nothing is decided by fewer requests of the new release.
    pub requests: u64,
}

/// What becomes of a step whose time is over when the new release had fewer requests than it takes to judge it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WithoutTraffic {
    /// Wait for requests, as long as `wait_at_most`, then revert.
    #[default]
    Wait,
    /// Go on all the same.
    Continue,
    /// Revert.
    Abort,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_read_as_people_write_them() {
        let said: Vec<String> = [0, 500, 50, 25, 10_000].map(|share| Share(share).to_string()).into();
        assert_eq!(said, ["0 %", "5 %", "0.5 %", "0.25 %", "100 %"]);
    }
}
