//! The bounded history that watches resume from.

use std::collections::VecDeque;

use super::core::Seen;
use super::evaluate::{Change, Changed};
use crate::{Revision, TXN_MAX_BYTES, WatchError};

/// How much history is kept. The newest revision is kept in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    pub revisions: usize,
    pub bytes: usize,
}

impl Default for LogLimits {
    /// A deployment is some fifty revisions of a few KiB; this keeps dozens of them, and little memory.
    fn default() -> Self {
        Self { revisions: 4096, bytes: 4 * TXN_MAX_BYTES }
    }
}

/// What is handed to a watch at once: it is copied, and may wait in the watch.
const FETCH_MAX_BYTES: usize = TXN_MAX_BYTES;

/// Deque, vector and reference counts.
const CHANGE_OVERHEAD_BYTES: usize = 128;

#[derive(Debug, Clone)]
pub(super) struct Log {
    limits: LogLimits,
    /// The revision before the first one that is kept.
    floor: Revision,
    /// One for each revision after the floor.
    changes: VecDeque<Change>,
    bytes: usize,
}

fn weight(change: &Change) -> usize {
    CHANGE_OVERHEAD_BYTES + change.events.iter().map(Changed::bytes).sum::<usize>()
}

impl Log {
    pub fn new(limits: LogLimits, floor: Revision) -> Self {
        Self { limits, floor, changes: VecDeque::new(), bytes: 0 }
    }

    pub fn floor(&self) -> Revision {
        self.floor
    }

    pub fn limits(&self) -> LogLimits {
        self.limits
    }

    pub fn push(&mut self, change: Change) {
        self.bytes += weight(&change);
        self.changes.push_back(change);
        while self.changes.len() > 1
            && (self.changes.len() > self.limits.revisions || self.bytes > self.limits.bytes)
        {
            let oldest = self.changes.pop_front().expect("there is more than one");
            self.bytes -= weight(&oldest);
            self.floor = oldest.revision;
        }
    }

    pub fn events_after(&self, prefix: &str, after: Revision) -> Result<Seen, WatchError> {
        let Some(skip) = after.checked_sub(self.floor) else {
            return Err(WatchError::Compacted(self.floor));
        };
        let mut seen = Seen { batches: Vec::new(), up_to: after };
        let mut bytes = 0;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(self.changes.len());
        for change in self.changes.range(skip..) {
            // Even the largest transaction fits when it comes first.
            if let Some(batch) = change.batch(prefix) {
                bytes += weight(change);
                if bytes > FETCH_MAX_BYTES && !seen.batches.is_empty() {
                    break;
                }
                seen.batches.push(batch);
            }
            seen.up_to = change.revision;
        }
        Ok(seen)
    }
}
