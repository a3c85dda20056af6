//! The HTTP API: wire types, endpoints, error codes, and the typed client that every other role uses.
//!
//! The CLI, the agent and the ingress speak to the server through [`Client`] only. Bodies are JSON. Watches are long
//! polls; logs and events stream as server-sent events. An error is always an [`ErrorBody`] with a stable code.
//!
//! What this crate does not do: it holds no state of the platform and decides nothing.

pub mod attach;
pub mod audit;
pub mod client;
pub mod error;
pub mod join;
pub mod members;
pub mod paths;
pub mod seal;
pub mod sse;
pub mod wire;

pub use client::{Address, Client, ClientError, Tls};
pub use error::{Code, ErrorBody};
