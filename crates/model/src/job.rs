//! Jobs: work that runs to completion, on a schedule or on demand.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::ids::{AppName, JobName, ReleaseNumber, RunId};
use crate::schedule::{Schedule, Zone};

/// What is remembered of a job beside its runs, at `jobs/<app>/<job>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobState {
    pub app: AppName,
    pub job: JobName,
    /// Every scheduled time up to this one has its record. It only goes forward, whatever the clock does: no time is
    /// dispatched twice. (A person who resumes a job puts it to the present, should the clock have been ahead.)
    #[schema(value_type = String, format = DateTime)]
    pub handled_until: Timestamp,
    /// What `handled_until` counts on. When the release that serves says something else, the job counts from then on:
    /// times of the new schedule that passed before are nobody's. `None`: on demand only, or not in that release.
    #[serde(default)]
    pub timing: Option<Timing>,
    /// Times up to then get a record that says why nothing ran.
    #[serde(default)]
    pub passed_over: Option<PassedOver>,
    /// Nothing is dispatched by schedule; on demand still works.
    #[serde(default)]
    pub paused: Option<Paused>,
    /// Runs use this release instead of the one that serves.
    #[serde(default)]
    pub pinned: Option<ReleaseNumber>,
}

impl JobState {
    /// Of a job that is met at `now`, and has no schedule yet.
    pub fn new(app: AppName, job: JobName, now: Timestamp) -> Self {
        Self { app, job, handled_until: now, timing: None, passed_over: None, paused: None, pinned: None }
    }

    /// Ends the pause. What was due in between is not made up for, but recorded; a time of a clock that was ahead is
    /// taken back.
    pub fn resume(&mut self, now: Timestamp) {
        if let Some(paused) = self.paused.take()
            && self.handled_until < now
        {
            let reason = format!("it was paused by {}", paused.by);
            self.passed_over = Some(PassedOver { through: now, reason });
        }
        self.handled_until = self.handled_until.min(now);
    }
}

/// When a job is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Timing {
    pub schedule: Schedule,
    pub timezone: Zone,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PassedOver {
    #[schema(value_type = String, format = DateTime)]
    pub through: Timestamp,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Paused {
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    pub by: String,
}

/// Which job a run belongs to, and for which time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobRun {
    pub job: JobName,
    /// `None`: on demand.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub scheduled: Option<Timestamp>,
    /// This one record stands for every scheduled time from `scheduled` through this one: nothing ran at any of them.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub through: Option<Timestamp>,
    /// When its process began, as its node said; what it waited before is not part of how long it took.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started: Option<Timestamp>,
    /// Counted from 1.
    pub attempt: u32,
    /// How often it is tried again when it fails. With the next try they go over to that one.
    pub retries_left: u32,
    /// Before the next try.
    #[serde(rename = "retry_after_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub retry_after: Duration,
}

impl JobRun {
    /// The id of a scheduled run: app, job and time. That it can be made once only is what keeps a time from being
    /// dispatched twice.
    pub fn scheduled_id(app: &AppName, job: &JobName, time: Timestamp) -> RunId {
        RunId::new(format!("{app}.{job}-{}", time.as_second())).expect("two names and a number make an id")
    }

    /// The id of the next try of a run that failed.
    pub fn retry_id(&self, of: &RunId) -> RunId {
        let first = of.as_str().strip_suffix(&format!("-try{}", self.attempt)).unwrap_or(of.as_str());
        RunId::new(format!("{first}-try{}", self.attempt + 1)).expect("an id and a number make an id")
    }
}

/// What happens when a run is due while an earlier one goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// It is recorded as skipped.
    #[default]
    Forbid,
    Allow,
    /// The earlier one is ended, then this one starts.
    Replace,
}

/// What happens to scheduled times that passed while nobody dispatched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// They are recorded as missed.
    None,
    /// The last of them runs, the others are recorded as missed.
    #[default]
    Last,
    /// Each of them runs, up to a hundred. Only with [`Overlap::Allow`]: they run beside each other.
    All,
}
