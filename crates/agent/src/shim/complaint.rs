//! What a failing health command printed, in the instance's log: why it fails is nowhere else.
//!
//! Bounded: only the end of what it said, not more often than once a second, and not again while it says the same.

use std::time::{Duration, Instant};

use crate::shim::logger::Logger;

/// So much of a check's output is kept.
pub const SAID_MAX: usize = 2048;
const LINES: usize = 5;
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Complained {
    last: Vec<u8>,
    at: Option<Instant>,
}

impl Complained {
    /// Writes the last lines of a check that failed.
    pub fn tell(&mut self, logger: &mut Logger, said: &[u8]) {
        if said == self.last || self.at.is_some_and(|at| at.elapsed() < PAUSE) {
            return;
        }
        (self.last, self.at) = (said.to_owned(), Some(Instant::now()));
        let text = String::from_utf8_lossy(said);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            logger.say(&format!("health command: {line}"));
        }
    }
}
