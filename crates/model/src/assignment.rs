//! Assignments: the whole of what one node shall run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::app::Destroying;
use crate::generation::Generation;
use crate::ids::{AppName, DeploymentNumber, InstanceId, NodeId, ReleaseNumber, RunId, ServiceName};
use crate::run::Run;

/// At `assign/<node>`. References only: the agent fetches releases and artifacts that it does not hold.
///
/// The generation is not stored inside the value: it is the store's epoch and the revision of the write, filled in
/// when the document is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Assignment {
    pub node: NodeId,
    #[serde(default)]
    pub generation: Generation,
    /// How many instance ids were ever made for this node; the next one is this plus one.
    #[serde(default)]
    pub minted: u64,
    #[serde(default)]
    pub instances: BTreeMap<InstanceId, AssignedInstance>,
    /// Runs that shall be executed here, whole. An ended run stays until the leader has recorded its outcome.
    #[serde(default)]
    pub runs: BTreeMap<RunId, Run>,
    /// Apps whose volumes, logs and caches shall be removed from this node.
    #[serde(default)]
    pub purge: Vec<AppName>,
    /// Apps whose logs and caches shall be removed from this node; their volumes stay.
    #[serde(default)]
    pub purge_but_volumes: Vec<AppName>,
}

impl Assignment {
    pub fn empty(node: NodeId) -> Self {
        Self {
            node,
            generation: Generation::ZERO,
            minted: 0,
            instances: BTreeMap::new(),
            runs: BTreeMap::new(),
            purge: Vec::new(),
            purge_but_volumes: Vec::new(),
        }
    }

    /// The apps of which something shall be removed, and how much.
    pub fn purges(&self) -> impl Iterator<Item = (&AppName, Destroying)> {
        let whole = self.purge.iter().map(|app| (app, Destroying::WithVolumes));
        whole.chain(self.purge_but_volumes.iter().map(|app| (app, Destroying::KeepVolumes)))
    }

    /// The list of apps of which so much shall be removed.
    pub fn purges_of(&mut self, volumes: Destroying) -> &mut Vec<AppName> {
        match volumes {
            Destroying::WithVolumes => &mut self.purge,
            Destroying::KeepVolumes => &mut self.purge_but_volumes,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AssignedInstance {
    pub app: AppName,
    pub service: ServiceName,
    pub release: ReleaseNumber,
    /// The cohort: the deployment that asked for it.
    pub deployment: DeploymentNumber,
    pub intent: Intent,
    /// Of an exclusive service: higher than that of every instance before it. What is beyond Rung's reach can refuse whoever
    /// shows a lower one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<u64>,
    /// It runs, and shall not stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub making_way: Option<Box<MakingWay>>,
}

/// Why an instance that runs where it may shall not stay there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum MakingWay {
    /// A better place for it is free: it goes when another one serves there.
    Rebalanced,
    /// A service of a higher priority needs the room.
    Displaced { by_app: AppName, by_service: ServiceName },
}

/// What shall be done with an instance. An instance that is missing from the assignment shall not exist: the agent
/// stops it (SIGTERM, grace, SIGKILL) and forgets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Keep it running: start it, restart it with backoff when it exits or stays unhealthy.
    Run,
    /// End it and report `Stopped`; it was un-routed and is drained.
    Stop,
}
