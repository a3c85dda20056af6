//! Runs: executions that end. A build and a release command are runs too.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::ids::{AppName, Digest, NodeId, ReleaseNumber, RunId};
use crate::image::ImageBuild;
use crate::job::JobRun;

/// A run, at `runs/<app>/<id>`; written before it is launched, so that it is never launched unrecorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Run {
    pub id: RunId,
    pub app: AppName,
    pub kind: RunKind,
    pub by: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Where it runs; `None` until it is placed.
    pub node: Option<NodeId>,
    /// It is ended, and has failed, when it takes longer.
    #[serde(rename = "timeout_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub timeout: Duration,
    /// Somebody asked to stop it.
    #[serde(default)]
    pub cancelled: bool,
    pub state: RunState,
}

/// What a run executes. Commands go through `/bin/sh -c`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RunKind {
    /// Unpack `source` into a clean directory, run `command`, keep the tree as an artifact, run `test`.
    /// Sees the app file's `[env]`, no config and no secrets.
    /// With an `image` it is pulled or built instead, and what is kept as the artifact says which image it is.
    Build {
        source: Digest,
        command: Option<String>,
        test: Option<String>,
        env: BTreeMap<String, String>,
        #[serde(default)]
        image: Option<ImageBuild>,
    },
    /// The release command, with the environment of the release that is about to start.
    Release { release: ReleaseNumber, command: String },
    /// A job, in the environment of a release; `env` wins over the release's.
    Job { release: ReleaseNumber, run: JobRun, command: String, env: BTreeMap<String, String> },
    /// `rung run`: a command in a new instance of the given release.
    OneOff { release: ReleaseNumber, command: String, terminal: Option<Terminal> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Terminal {
    pub rows: u16,
    pub columns: u16,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum RunState {
    Pending,
    Running {
        #[schema(value_type = String, format = DateTime)]
        since: Timestamp,
    },
    Ended {
        #[schema(value_type = String, format = DateTime)]
        at: Timestamp,
        outcome: RunOutcome,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum RunOutcome {
    Succeeded {
        /// What a build made.
        artifact: Option<Digest>,
    },
    Failed {
        /// In words: `exited with code 3`, `test exited with code 1`, `killed by signal 9`, `took longer than 10 minutes`.
        reason: String,
        /// `None` when it did not get so far as to exit by itself.
        exit_code: Option<i32>,
        #[serde(default)]
        log_tail: Vec<String>,
    },
    Cancelled,
    /// It was never started: why, in words. The record of a scheduled time at which nothing ran.
    Skipped {
        reason: String,
    },
}

impl Run {
    /// Which job it belongs to, and for which time.
    pub fn of_job(&self) -> Option<&JobRun> {
        match &self.kind {
            RunKind::Job { run, .. } => Some(run),
            RunKind::Build { .. } | RunKind::Release { .. } | RunKind::OneOff { .. } => None,
        }
    }

    /// Whose environment it has; a build has none.
    pub fn release(&self) -> Option<ReleaseNumber> {
        match &self.kind {
            RunKind::Release { release, .. }
            | RunKind::Job { release, .. }
            | RunKind::OneOff { release, .. } => Some(*release),
            RunKind::Build { .. } => None,
        }
    }

    /// The record that nothing ran.
    pub fn was_skipped(&self) -> bool {
        matches!(&self.state, RunState::Ended { outcome: RunOutcome::Skipped { .. }, .. })
    }

    /// About how many bytes it takes in the store, generously: documents and transactions are bounded.
    pub fn size_estimate(&self) -> usize {
        // Names, times and numbers.
        const FRAME: usize = 600;
        let command = match &self.kind {
            RunKind::Build { command, test, .. } => {
                [command, test].into_iter().flatten().map(String::len).sum()
            }
            RunKind::Job { command, .. }
            | RunKind::Release { command, .. }
            | RunKind::OneOff { command, .. } => command.len(),
        };
        let env = match &self.kind {
            RunKind::Build { env, .. } | RunKind::Job { env, .. } => {
                env.iter().map(|(name, value)| name.len() + value.len() + 6).sum()
            }
            RunKind::Release { .. } | RunKind::OneOff { .. } => 0,
        };
        let words = match &self.state {
            RunState::Ended { outcome: RunOutcome::Failed { reason, log_tail, .. }, .. } => {
                reason.len() + log_tail.iter().map(|line| line.len() + 3).sum::<usize>()
            }
            _ => 0,
        };
        // Quotes and line ends are escaped.
        FRAME + (command + env + words) * 5 / 4
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.state, RunState::Ended { .. })
    }
}
