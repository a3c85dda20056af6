//! The words of Rung as types.
//!
//! Everything that crosses a door between rooms is defined here: identities, generations, the app file, desired
//! state, assignments, what nodes observe, and the route documents that the ingress follows. The types are plain
//! data with serde; parsing and validation live beside them in [`appfile`].
//!
//! What this crate does not do: no I/O, no clock, no randomness, no async. `clippy.toml` holds it to that.

pub mod access;
pub mod address;
pub mod app;
pub mod appfile;
pub mod assignment;
pub mod deployment;
pub mod document;
pub mod duration;
pub mod generation;
pub mod ids;
pub mod image;
pub mod job;
pub mod keys;
pub mod label;
pub mod member;
pub mod network;
pub mod node;
pub mod observed;
pub mod release;
pub mod rollout;
pub mod route;
pub mod routes;
pub mod run;
pub mod schedule;
pub mod tally;
pub mod traffic;

pub use access::{AppPattern, Grant, Role, Token};
pub use address::{AddressBlock, BlockNumber, Inside, Users};
pub use app::{App, Scale};
pub use appfile::AppFile;
pub use assignment::{AssignedInstance, Assignment, Intent, MakingWay};
pub use deployment::{
    Asked, Deployment, DeploymentKind, Goal, Notification, NotificationState, Outcome, Phase, ReleaseCommand,
    TimelineEntry,
};
pub use document::Document;
pub use generation::Generation;
pub use ids::{
    AppName, CommitId, DeploymentNumber, Digest, EnvironmentName, InstanceId, InvalidId, JobName, LabelName,
    LabelValue, NodeId, ReleaseNumber, RunId, SecretName, ServiceName, TokenName, VolumeName,
};
pub use image::{ImageBuild, ImageName, ImageSource};
pub use job::{CatchUp, JobRun, JobState, Overlap};
pub use label::{Label, Labels};
pub use member::Member;
pub use network::Network;
pub use node::{Node, NodeFacts, NodeRole, NodesCounted};
pub use observed::{InstanceState, Observed, ObservedInstance, ObservedRun};
pub use release::{Draft, Origin, Promoted, Provenance, Release};
pub use rollout::Rollout;
pub use route::Route;
pub use routes::{Absence, Backend, Endpoint, Hold, Protocol, RouteDocument, Split};
pub use run::{Run, RunKind, RunOutcome, RunState};
pub use schedule::{Schedule, Zone};
