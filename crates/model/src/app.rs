//! What is desired of an app, beside its releases.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{AppName, DeploymentNumber, ReleaseNumber, SecretName, ServiceName};

/// The desired state of one app, at `apps/<app>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    pub name: AppName,
    /// The cohort that serves: the last deployment that succeeded. While another runs, this is what it reverts to.
    pub live: Option<DeploymentNumber>,
    /// The release of the live cohort.
    pub current: Option<ReleaseNumber>,
    /// The highest number ever given to a release; numbers are never used twice.
    pub last_release: ReleaseNumber,
    /// The highest number ever given to a deployment. The last one may still be going on.
    pub last_deployment: DeploymentNumber,
    /// How many instances each service shall have. Survives deploys and rollbacks.
    #[serde(default)]
    pub scale: BTreeMap<ServiceName, Scale>,
    /// What `rung config set` said; wins over the app file's `[env]`.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// The newest version of each secret. The sealed values are at `secrets/<app>/<name>`.
    #[serde(default)]
    pub secrets: BTreeMap<SecretName, u64>,
    /// Set by `rung destroy`: everything of the app is stopped, then the app is forgotten.
    #[serde(default)]
    pub destroying: Option<Destroying>,
}

impl App {
    pub fn new(name: AppName) -> Self {
        Self {
            name,
            live: None,
            current: None,
            last_release: ReleaseNumber(0),
            last_deployment: DeploymentNumber(0),
            scale: BTreeMap::new(),
            config: BTreeMap::new(),
            secrets: BTreeMap::new(),
            destroying: None,
        }
    }
}

/// A service's count of instances: the person's word, until the app file says something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    pub count: u32,
    /// What the app file said when `count` was last taken from it.
    pub from_file: u32,
}

/// How much of an app goes when it is destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destroying {
    KeepVolumes,
    WithVolumes,
}
