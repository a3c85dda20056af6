//! What the crate promises, told as stories.

#![allow(clippy::unwrap_used, reason = "a test that finds something else has failed")]

mod hostile;
mod packing;
mod roundtrip;
mod speed;
