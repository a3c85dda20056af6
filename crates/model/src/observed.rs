//! What a node does run, as its agent sees it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::generation::Generation;
use crate::ids::{AppName, Digest, InstanceId, NodeId, ReleaseNumber, RunId, ServiceName};
use crate::run::RunState;

/// An agent's whole report, at `observed/<node>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Observed {
    pub node: NodeId,
    /// The assignment that was converged to, or is being.
    pub assignment: Generation,
    /// Counts the reports of one agent process; with `agent_started` it orders them.
    pub sequence: u64,
    #[schema(value_type = String, format = DateTime)]
    pub agent_started: Timestamp,
    #[serde(default)]
    pub instances: BTreeMap<InstanceId, ObservedInstance>,
    #[serde(default)]
    pub runs: BTreeMap<RunId, ObservedRun>,
    /// Artifacts that are unpacked here.
    #[serde(default)]
    pub artifacts: Vec<Digest>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ObservedInstance {
    pub app: AppName,
    pub service: ServiceName,
    pub release: ReleaseNumber,
    pub state: InstanceState,
    /// Where it is reached; `None` for a service without a port.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<SocketAddr>,
    /// The main process, as the host sees it.
    pub pid: Option<u32>,
    /// How often it was started again since it was assigned.
    pub restarts: u32,
    /// How often it has ended although it shall run, as far as this agent has seen it. The end of the whole platform, or of its
    /// machine, is none of the instance's.
    #[serde(default)]
    pub exits: u32,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Why it is in this state, in words; with the last log lines when it is not healthy.
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub log_tail: Vec<String>,
}

/// ```text
/// Preparing ─► Starting ─► Healthy ◄──► Unhealthy
///                 │  ▲         │             │
///                 ▼  │         ▼             ▼
///              BackingOff / CrashLooping ◄───┘      Stopping ─► Stopped
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Its release and artifact are being fetched.
    Preparing,
    /// Its process runs and has not been healthy since it started.
    Starting,
    Healthy,
    /// It was healthy and its checks fail; restarted after the threshold.
    Unhealthy,
    /// It exited; the next start waits.
    BackingOff,
    /// It exited again and again (five times without having been healthy for a minute); starts go on, at the slowest pace.
    CrashLooping,
    Stopping,
    /// It is ended, to the last process; nothing of it listens.
    Stopped,
    /// It can't be started here, and trying again does not help (the command does not exist, the artifact is broken).
    Failed,
}

impl InstanceState {
    /// Whether a process of it may be alive.
    pub fn may_run(self) -> bool {
        matches!(self, Self::Starting | Self::Healthy | Self::Unhealthy | Self::Stopping)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ObservedRun {
    pub app: AppName,
    pub state: RunState,
    /// When its process began; `None`: not yet, or never.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started: Option<Timestamp>,
}
