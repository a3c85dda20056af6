//! A monotonic clock in milliseconds, counted from the first look at it.

use std::sync::OnceLock;
use std::time::Instant;

/// Starts at 1, so that 0 can stand for "never".
pub(crate) fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}
