//! The node role: keeps the instances of its assignment running.
//!
//! [`run`] follows the node's assignment and reports what is observed. What is to be done is decided by a state
//! machine without I/O, [`converge::Converge`]; a thin shell carries its effects out. Each instance lives under a
//! *shim* ([`shim_main`], the same binary started as `rung shim`), which outlives the agent: an agent that was killed
//! or replaced finds its instances again and restarts none. What must be remembered for that is in the [`ledger`].
//!
//! ```text
//! assignment ─► converge ─► effects ─► shims, health checks, fetches, runs
//!                  ▲                              │
//!                  └────────── events ◄───────────┘
//! ```
//!
//! What this crate deliberately does not do: it decides nothing about how many instances there are or where, it never
//! edits desired state, it routes no requests, and it trusts no command that it runs.

// They panic when nobody reads, or a disk is full.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod api;
pub mod artifacts;
pub mod cgroups;
pub mod containers;
pub mod converge;
pub mod driver;
pub mod engine;
pub mod environment;
pub mod facts;
pub mod firewall;
pub mod health;
pub mod images;
pub mod instances;
pub mod layout;
mod leases;
pub mod ledger;
pub mod logs;
pub mod node;
pub mod procfs;
pub mod registry;
pub mod run;
pub mod runs;
pub mod shim;

pub use driver::docker::Porter;
pub use run::{AgentConfig, AgentError, Outside, Shutdown, run};
pub use shim::shim_main;
