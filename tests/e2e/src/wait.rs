//! The one place that waits.

use std::time::{Duration, Instant};

/// Generous: a test that fails waits so long, one that passes never does. Two busy cores run everything at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at. Short against everything that is awaited, long against a look at `/proc`.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until `probe` answers `Ok`, and answers with what it found. `Err` says what is there instead, for the message.
///
/// # Panics
/// When nothing came within [`PATIENCE`]: with what was awaited and what was there instead.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match probe() {
            Ok(found) => return found,
            Err(instead) if Instant::now() >= deadline => {
                panic!("waited {} s in vain until {what}; instead: {instead}", PATIENCE.as_secs())
            }
            Err(_) => std::thread::sleep(LOOK_EVERY), // tidy: the one place that polls
        }
    }
}
