//! The verbs of the command line, and how they are shown.
//!
//! [`Cli`] is the whole tree of commands. The binary dispatches those that run a role ([`Command::Up`], …) itself and
//! hands every other one to [`run`], which finds the server ([`connect`]), asks it through [`rung_api::Client`], and
//! shows what it says. [`deploy_directory`] is the verb `deploy` for `rung up DIR`, and for [`gate`], which git starts
//! on the server when somebody pushes.
//!
//! How it works: every verb is a function in [`verb`] that asks and follows; every screen is a pure function in
//! [`render`] from wire types to text; [`screen::Screen`] is the only place that writes, and knows whether it writes to
//! a terminal. An error is printed once, at the edge ([`edge::explain`]), with its chain, its hint and its exit code.
//!
//! What this crate deliberately does not do: it decides nothing that the server can decide, it keeps no state of its
//! own, and it never shows the value of a secret.

// They panic when nobody reads, or a disk is full.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod app;
pub mod args;
pub mod connect;
pub mod edge;
mod env_file;
pub mod follow;
pub mod gate;
mod git;
pub mod import;
mod login;
mod once;
pub mod person;
pub mod rates;
pub mod render;
pub mod run_log;
pub mod screen;
pub mod server_file;
pub mod tell;
pub mod upload;
pub mod verb;

pub use args::{
    Cli, ClusterCommand, ClusterRestoreArgs, Command, Global, JoinArgs, ServiceCommand, ServiceInstallArgs,
    UpArgs, UpgradeArgs, Verb,
};
pub use edge::{Exit, explain};
pub use follow::{Follow, OnInterrupt};
pub use gate::gate_main;
pub use screen::Screen;
pub use server_file::{ServerFile, data_directory};
pub use verb::deploy::{DeployOptions, Sends, check_directory, deploy_directory};
pub use verb::run;
