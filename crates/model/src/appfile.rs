//! The app file: what a team says of its app, validated.
//!
//! [`AppFile`] is the meaning of a `rung.toml` (or a `Procfile`) with every default filled in. [`parse`] reads the
//! text and reports all errors at once, each with its place and a suggestion. What differs in an environment stands in
//! an overlay ([`AppText`]).

mod check;
pub mod defaults;
mod error;
mod gateway;
mod job;
mod notify;
mod overlay;
mod pages;
mod parse;
mod place;
mod procfile;
mod read;
pub mod rollout;
mod routes;
pub mod schema;
mod service;
mod strategy;
#[cfg(test)]
mod tests;
pub mod values;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::duration;
use crate::ids::{AppName, JobName, SecretName, ServiceName, VolumeName};
use crate::image::{ImageBuild, ImageSource};
use crate::job::{CatchUp, Overlap};
use crate::route::{Pages, Route};
use crate::routes::Protocol;
use crate::schedule::{Schedule, Zone};

pub use check::is_reserved;
pub use error::{AppFileError, AppFileErrors};
pub use overlay::{AppText, Texts, overlay_environment, overlay_file};
pub use parse::{name_of, parse, slug};
pub use place::{Count, Place, Priority, Spread};
pub use procfile::parse_procfile;
pub use rollout::RolloutPolicy;

/// How an app file is called.
pub const FILE_NAME: &str = "rung.toml";

/// How an app file without TOML is called.
pub const PROCFILE: &str = "Procfile";

/// An app file with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AppFile {
    /// In the environment that it was read for.
    pub app: AppName,
    /// Host names beside [`AppName::host`].
    #[serde(default)]
    pub domains: Vec<String>,
    #[serde(default)]
    pub build: Build,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Secrets without which nothing is deployed.
    #[serde(default)]
    pub required_secrets: Vec<SecretName>,
    #[serde(default)]
    pub volumes: BTreeMap<VolumeName, Volume>,
    pub deploy: DeployPolicy,
    #[serde(default)]
    pub git: GitPolicy,
    pub services: BTreeMap<ServiceName, Service>,
    #[serde(default)]
    pub jobs: BTreeMap<JobName, Job>,
    /// Empty: everything goes to the only service with a port, or to `web`.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Shown instead of Rung's own.
    #[serde(default, skip_serializing_if = "Pages::is_empty")]
    pub pages: Pages,
    /// Who is told when a deployment ends.
    #[serde(default)]
    pub notify: Option<Notify>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Notify {
    /// `https://…` or `http://…`; gets a POST with JSON.
    pub webhook: String,
    /// The secret of the app that signs it.
    pub secret: Option<SecretName>,
}

impl AppFile {
    /// What a build run of this file makes, when its services run from an image.
    pub fn image_build(&self) -> Option<ImageBuild> {
        let source = self.build.image.clone()?;
        let commandless = self.services.iter().filter(|(_, service)| service.command.is_none());
        Some(ImageBuild { source, commandless: commandless.map(|(name, _)| name.clone()).collect() })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Build {
    pub command: Option<String>,
    pub test: Option<String>,
    #[serde(rename = "timeout_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub timeout: Duration,
    /// The app runs in containers of this image instead of the deployed tree.
    #[serde(default)]
    pub image: Option<ImageSource>,
}

impl Build {
    pub fn is_empty(&self) -> bool {
        self.command.is_none() && self.test.is_none() && self.image.is_none()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Volume {
    /// Documented size in bytes; `None` when the file does not say.
    pub size_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeployPolicy {
    /// Runs once with the new artifact before any new instance starts.
    pub release: Option<String>,
    /// Runs before the release command, to make a restore point; when it fails, nothing else happens.
    #[serde(default)]
    pub before_release: Option<String>,
    /// Of each of the two.
    #[serde(rename = "release_timeout_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub release_timeout: Duration,
    /// From the end of the build, and anew for each step of a canary: instances that do not serve by then make the
    /// deployment be reverted.
    #[serde(rename = "deadline_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub deadline: Duration,
    /// How the traffic moves over.
    #[serde(default)]
    pub rollout: RolloutPolicy,
}

/// What `git push` does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GitPolicy {
    /// The branch that is deployed when it is pushed; `None`: `main` or `master`.
    pub branch: Option<String>,
}

impl GitPolicy {
    /// Whether a push of this branch is a deploy.
    pub fn deploys(&self, branch: &str) -> bool {
        match &self.branch {
            Some(said) => said == branch,
            None => matches!(branch, "main" | "master"),
        }
    }

    /// The branch in words: `main or master`.
    pub fn shown(&self) -> &str {
        self.branch.as_deref().unwrap_or("main or master")
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Service {
    /// Goes through `/bin/sh -c`, in the artifact's root. `None`: the image's own.
    pub command: Option<String>,
    /// Whether it gets `PORT` and listens on it.
    pub port: bool,
    /// The port that the image listens on, where the file says so.
    #[serde(default)]
    pub image_port: Option<u16>,
    pub instances: u32,
    /// One process owns its state: never two at a time.
    #[serde(default)]
    pub exclusive: bool,
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core.
    pub cpu_millis: Option<u32>,
    pub health: Health,
    /// How long requests in flight may take after the un-routing, before SIGTERM.
    #[serde(rename = "drain_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub drain: Duration,
    /// From SIGTERM to SIGKILL.
    #[serde(rename = "stop_grace_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub stop_grace: Duration,
    /// Until the first byte of an answer.
    #[serde(rename = "response_timeout_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub response_timeout: Duration,
    #[serde(default, skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
    /// How requests are held while an exclusive service changes hands.
    pub hold: crate::routes::Hold,
    /// Where in the instance each volume is seen.
    #[serde(default)]
    pub mounts: BTreeMap<VolumeName, String>,
    #[serde(default, skip_serializing_if = "Place::is_default")]
    pub place: Place,
    /// Apps of the same environment that may call it, beside its own; without environment in their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<AppName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Health {
    pub check: Check,
    /// From the start: failures do not count until then, or until the first success.
    #[serde(rename = "grace_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub grace: Duration,
    #[serde(rename = "interval_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub interval: Duration,
    #[serde(rename = "timeout_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub timeout: Duration,
    /// So many failures in a row make it unhealthy (un-routed).
    pub unhealthy_after: u32,
    /// So many failures in a row make it restart.
    pub restart_after: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "check")]
pub enum Check {
    /// Answers GET with a status from 200 to 399.
    Http { path: String },
    /// Accepts connections on its port. The default of a service with a port.
    Tcp,
    /// Exits with 0, in the instance's environment.
    Command { command: String },
    /// Has stayed up for half a second. The default of a service without a port.
    Up,
    /// As the image's HEALTHCHECK says; without one as `Tcp` or `Up`. The default of a service of an image.
    Image,
}

/// Work that runs to completion, on a schedule or on demand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Job {
    /// Goes through `/bin/sh -c`, in the artifact's root.
    pub command: String,
    /// `None`: on demand only.
    pub schedule: Option<Schedule>,
    /// In which the schedule is read.
    pub timezone: Zone,
    pub overlap: Overlap,
    pub catch_up: CatchUp,
    /// A run that could not be started so long after its time is recorded as missed.
    #[serde(rename = "start_deadline_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub start_deadline: Duration,
    /// A run that takes longer is ended, and has failed.
    #[serde(rename = "timeout_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub timeout: Duration,
    /// How often a run that failed is tried again.
    pub retries: u32,
    /// Before the first retry; doubled before each further one.
    #[serde(rename = "retry_after_ms", with = "duration::ms")]
    #[schema(value_type = u64)]
    pub retry_after: Duration,
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core.
    pub cpu_millis: Option<u32>,
    #[serde(default)]
    pub mounts: BTreeMap<VolumeName, String>,
}
