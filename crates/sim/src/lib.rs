//! The real planner and loops over a simulated clock, network, store and drivers.
//!
//! One seed is one story of one machine: a server, an agent with its instances, an ingress, and people who deploy,
//! scale and destroy, while things fail. The machines that decide are the real ones: [`rung_planner::plan`] inside
//! [`rung_control::reconcile::Reconcile`], [`rung_agent::converge::Converge`], [`rung_ingress::view::View`] and
//! [`rung_store::memory::Core`]. Simulated is what lies between them: time, messages, disks, processes.
//!
//! How it works: [`run`] takes happenings off an agenda in the order of simulated time and gives each to its part
//! ([`server`], [`node`], [`proxy`], [`people`], [`faults`]). [`audit`] watches every commit, every start of a process
//! and every request, and says which invariant was broken. All randomness comes from one generator that is seeded
//! with the story's number and only ordered maps are used, so a story that failed is told again exactly: the failure
//! carries the tail of its trace, made by telling the story a second time with the trace on.
//!
//! [`cluster`] tells stories of several servers and nodes in the same way, with nodes of its own.
//!
//! What it deliberately does not do: no threads, no I/O, no wall clock. It does not test the shells around the
//! machines (that is what the end-to-end suite is for); [`wiring`] says what it takes for granted of them, and plants
//! mistakes there to prove that the simulator finds such.

pub mod agenda;
pub mod apps;
pub mod audit;
pub mod cluster;
pub mod faults;
pub mod node;
pub mod people;
pub mod proxy;
pub mod rest;
pub mod server;
pub mod story;
pub mod wiring;

pub use story::{Failure, Summary, run};
pub use wiring::Wiring;
