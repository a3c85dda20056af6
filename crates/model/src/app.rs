//! What is desired of an app, beside its releases.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{
    AppName, DeploymentNumber, Digest, NodeId, ReleaseNumber, SecretName, ServiceName, VolumeName,
};
use crate::release::Release;
use crate::route::Maintenance;

/// The desired state of one app, at `apps/<app>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
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
    /// Releases whose deployment succeeded, oldest first, bounded: what can be rolled back to.
    #[serde(default)]
    pub succeeded: Vec<ReleaseNumber>,
    /// Release commands that ran to success, each with its artifact, oldest first, bounded: none is run twice for the same.
    #[serde(default, deserialize_with = "one_or_many")]
    pub migrated: Vec<Migrated>,
    /// The node that each volume is on, from its first use: data does not move by itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<VolumeName, NodeId>,
    #[serde(default, skip_serializing_if = "Maintenance::is_off")]
    pub maintenance: Maintenance,
    /// Set by `rung destroy`: everything of the app is stopped, then the app is forgotten.
    #[serde(default)]
    pub destroying: Option<Destroying>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Migrated {
    pub artifact: Digest,
    pub command: String,
}

/// Older versions remembered the last one only.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Migrated>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        None,
        One(Migrated),
        Many(Vec<Migrated>),
    }
    Ok(match Written::deserialize(deserializer)? {
        Written::None => Vec::new(),
        Written::One(migrated) => vec![migrated],
        Written::Many(all) => all,
    })
}

impl App {
    /// How many successful releases are remembered; `rollback` reaches as far as their artifacts are kept.
    pub const SUCCEEDED_MAX: usize = 100;
    /// How many release commands are remembered; more artifacts than these are not kept anyway.
    pub const MIGRATED_MAX: usize = 100;

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
            volumes: BTreeMap::new(),
            succeeded: Vec::new(),
            migrated: Vec::new(),
            maintenance: Maintenance::Off,
            destroying: None,
        }
    }
}

/// A service's count of instances: the person's word, until the app file says something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Scale {
    pub count: u32,
    /// What the app file said when `count` was last taken from it.
    pub from_file: u32,
}

/// How much of an app goes when it is destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Destroying {
    KeepVolumes,
    WithVolumes,
}

impl App {
    /// How many instances of a service a release with this app file shall have: what a person said last, unless the
    /// file's own number changed since.
    pub fn count(&self, service: &ServiceName, from_file: u32) -> u32 {
        match self.scale.get(service) {
            Some(scale) if scale.from_file == from_file => scale.count,
            _ => from_file,
        }
    }

    /// Whether a release's command ran for its artifact, or there is none to run.
    pub fn has_migrated(&self, release: &Release) -> bool {
        let Some(command) = &release.file.deploy.release else { return true };
        self.migrated.iter().any(|known| known.artifact == release.artifact && known.command == *command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_version_remembered_of_release_commands_is_understood() {
        let mut record = serde_json::to_value(App::new(AppName::new("shop").unwrap())).unwrap();
        let read = |record: &serde_json::Value| -> App { serde_json::from_value(record.clone()).unwrap() };
        record["migrated"] = serde_json::Value::Null;
        assert_eq!(read(&record).migrated, []);
        let artifact = format!("sha256:{}", "a".repeat(64));
        record["migrated"] = serde_json::json!({ "artifact": artifact, "command": "bin/migrate" });
        assert_eq!(read(&record).migrated.len(), 1);
        record["migrated"] = serde_json::json!([record["migrated"], record["migrated"]]);
        assert_eq!(read(&record).migrated.len(), 2);
    }
}
