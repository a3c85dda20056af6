//! User stories against the real binary, real processes and real components.
//!
//! [`Rung`] starts a platform in a directory of its own, on ports that the kernel chose, and takes everything down
//! again, whatever happens. [`TestApp`] writes a small application that behaves as badly as a story asks.
//! [`Load`] asks for it all the time and counts every single outcome, so that "no request was lost" is a count.
//! [`Hosts`] makes several machines of network namespaces. [`eventually`] is the one place where anything waits: for a condition that can be observed, with a deadline.
//!
//! What this crate does not do: it never looks into the platform's own files or types beyond `rung.json` and the
//! API's wire types; what a person can't observe is not tested here.

pub mod advice;
mod app;
pub mod authority;
mod binary;
mod bucket;
mod cgroups;
mod clock;
mod disk;
pub mod ending;
pub mod engine;
pub mod git;
pub mod grpc;
pub mod hosts;
pub mod http;
mod load;
mod page;
pub mod podman;
pub mod process;
mod reserved;
mod rung;
mod said;
mod wait;
mod webhook;

pub use app::{Service, TestApp, example};
pub use binary::rung_binary;
pub use bucket::Bucket;
pub use cgroups::Cgroups;
pub use clock::WallClock;
pub use disk::SmallDisk;
pub use hosts::{Host, Hosts, Network, Way};
pub use load::{Load, Outcome, Tally};
pub use page::Page;
pub use reserved::Reserved;
pub use rung::{Rung, Start};
pub use said::Said;
pub use wait::{PATIENCE, eventually};
pub use webhook::Webhook;

/// Whether `cargo xtask test --long` asked for more of everything.
pub fn long() -> bool {
    std::env::var_os("RUNG_TEST_LONG").is_some()
}
