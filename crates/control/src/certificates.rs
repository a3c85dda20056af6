//! Certificates for the domains of apps, ordered from an authority by ACME (RFC 8555) and renewed in time.
//!
//! ```text
//! domains of apps ─► schedule ─► order ─► record in the store ─► shelf ─► every ingress, by its long poll
//!                       ▲          │                                         │ "in use up to this mark"
//!                       └──────────┴── challenge in the store ─► shelf ──────┘
//! ```
//! [`schedule`] decides when which domain is due (a machine without I/O), [`desk`] is its shell on the server that leads,
//! [`order`] carries one order through. Records rest in the store with their keys sealed, so that all ingresses show the
//! same certificate and another server goes on where one died. An order itself has no state worth keeping: one that was
//! cut off is begun anew, and an authority remembers for days what was proved to it.
//!
//! What this deliberately does not do: wildcards (they need access to a zone's DNS), certificates for addresses, and
//! revocation.

mod carrier;
mod challenge;
mod desk;
mod look;
mod order;
mod record;
mod schedule;
mod shelf;

pub(crate) use desk::keep_ordered;
pub(crate) use record::Account;
pub(crate) use schedule::is_orderable;
pub(crate) use shelf::{Shelf, follow};
