//! What ingresses count by route and instance, on its way to whoever looks.

use rung_model::tally::{Subject, Tally};
use serde::{Deserialize, Serialize};

/// `POST /v1/proxies/{proxy}/tally`: what changed of a process's totals since its last report.
///
/// Now and then a process begins to tell everything anew, in a next `round`. When nothing of a round is left to be told
/// it `is_complete`, and what was told only in earlier ones is not there any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TallyReport {
    /// Tells the process from others under the same name.
    pub life: u64,
    /// Since the process began.
    pub at_ms: u64,
    pub round: u32,
    pub is_complete: bool,
    pub lines: Vec<TallyLine>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TallyLine {
    pub subject: Subject,
    pub tally: Tally,
}

/// The answer to a [`TallyReport`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TallyHeard {
    /// Nothing was known of the process before: it shall begin the next round.
    pub tell_all: bool,
}

/// `GET /v1/traffic`: totals of each ingress since its process began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrafficReport {
    pub ingresses: Vec<IngressTraffic>,
    /// Servers that did not answer in time: what their ingresses count is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<String>,
}

/// One ingress in a [`TrafficReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct IngressTraffic {
    pub ingress: String,
    /// Another one under the same name counts from zero.
    pub life: u64,
    /// When it last told something, since its process began.
    pub at_ms: u64,
    pub lines: Vec<TallyLine>,
}
