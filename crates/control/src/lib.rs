//! The server role: the HTTP API, the leader's loop, artifacts and secrets.
//!
//! A request that changes something writes desired state to the store by compare-and-swap and is answered once that
//! is durable. The leader's loop ([`reconcile`], driven by [`leader`]) sees the change, lets the planner make a plan,
//! and writes assignments and routes. Agents and proxies take theirs by long polls. Reads come from the loop's index
//! of the store, which is as new as the last committed write that the caller made.
//!
//! What it deliberately does not do: it never runs users' code (a build is a run on an agent), never talks to
//! instances, and keeps nothing that matters outside the store and the artifacts' directory.

// They panic when nobody reads, or a disk is full.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod access;
mod audit;
mod bells;
mod certificates;
mod cluster;
mod diff;
pub mod doctor;
pub mod election;
pub mod events;
mod git;
mod given;
mod hosts;
pub mod http;
pub mod keyring;
mod launch;
pub mod leader;
mod metrics;
mod notify;
mod numbers;
mod others;
mod outbound;
pub mod prune;
pub mod quorum;
pub mod reconcile;
pub(crate) mod replicas;
mod run_logs;
mod secrets;
pub mod served;
pub mod shared;
mod shares;
pub mod status;
mod tallies;
pub mod trees;
mod turns;
mod verifiers;

use std::path::PathBuf;

use rung_model::NodeId;

pub use cluster::{ClusterError, Issued};
pub use http::{Door, Listeners, Via};
pub use keyring::Keyring;
pub use shared::{Control, StartError};

/// What the server role is made of; composed by the `rung` crate.
pub struct ControlConfig {
    /// The store that is in use.
    pub backing: quorum::Backing,
    /// Where artifacts, events and spools are kept.
    pub data: PathBuf,
    /// Where artifacts shall be kept.
    pub artifacts: trees::Setting,
    /// The master keys under which secrets are sealed.
    pub keys: Keyring,
    /// The owner's token, made at the first start: an admin's.
    pub token: String,
    pub node: NodeId,
    /// Where apps are served, for URLs that are shown to people.
    pub http: String,
    /// At which port this machine's instances call services.
    pub services: Option<u16>,
    pub version: String,
    /// Asked to replace this process by another binary.
    pub upgrades: tokio::sync::mpsc::Sender<PathBuf>,
    /// Told why this process can't go on as it is.
    pub endings: tokio::sync::mpsc::Sender<Ending>,
}

/// Why a server must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The state is in another store now: the process is to replace itself.
    StateMoved,
    /// The other servers know this one no more.
    Removed,
}

impl std::fmt::Debug for ControlConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlConfig")
            .field("data", &self.data)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}
