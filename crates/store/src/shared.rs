//! What a store's handle, its writer and its watches share.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::memory::Core;
use crate::{Batch, Fut, Revision, Watch, WatchError};

/// Who removes leases whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// Whoever uses the store, first thing; a watch that waits sets itself a timer.
    WhenAsked,
    /// A thread of the store's own.
    ByWriter,
}

pub(crate) struct Shared {
    core: Mutex<Clocked>,
    changed: watch::Sender<Revision>,
    expiry: Expiry,
}

struct Clocked {
    core: Core,
    /// Until when the core has been told of time passing.
    told: Instant,
}

/// The core, with its clock up to date.
pub(crate) struct CoreGuard<'a>(MutexGuard<'a, Clocked>);

impl std::ops::Deref for CoreGuard<'_> {
    type Target = Core;
    fn deref(&self) -> &Core {
        &self.0.core
    }
}

impl std::ops::DerefMut for CoreGuard<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.0.core
    }
}

impl Shared {
    pub fn new(core: Core, expiry: Expiry) -> Self {
        let changed = watch::Sender::new(core.revision());
        Self { core: Mutex::new(Clocked { core, told: Instant::now() }), changed, expiry }
    }

    /// Held for microseconds only, never across an await or a write to disk.
    pub fn core(&self) -> CoreGuard<'_> {
        let mut clocked = self.core.lock().expect("nobody panics while holding the core");
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(clocked.told);
        clocked.told = now;
        clocked.core.elapse(elapsed);
        CoreGuard(clocked)
    }

    /// Removes expired leases where that is not a writer's business. Returns when to come again.
    pub fn settle(&self) -> Option<Duration> {
        if self.expiry == Expiry::ByWriter {
            return None;
        }
        let mut core = self.core();
        let expired = core.tick(Duration::ZERO);
        let next = core.next_expiry();
        drop(core);
        if !expired.is_empty() {
            self.announce();
        }
        next
    }

    /// Wakes the watches if there is something new.
    pub fn announce(&self) {
        let revision = self.core().revision();
        self.changed.send_if_modified(|known| {
            let newer = revision > *known;
            *known = revision.max(*known);
            newer
        });
    }
}

/// A watch: a place in the log. It holds no queue of its own that could grow; who is too slow finds the log compacted.
pub(crate) struct Follower {
    /// Weak, so that a watch does not keep a closed store open.
    shared: Weak<Shared>,
    changed: watch::Receiver<Revision>,
    prefix: String,
    after: Revision,
    ready: VecDeque<Batch>,
}

impl Follower {
    pub fn new(shared: &Arc<Shared>, prefix: &str, after: Revision) -> Result<Self, WatchError> {
        let changed = shared.changed.subscribe();
        let mut follower = Self {
            shared: Arc::downgrade(shared),
            changed,
            prefix: prefix.to_owned(),
            after,
            ready: VecDeque::new(),
        };
        follower.fetch(shared)?;
        Ok(follower)
    }

    fn fetch(&mut self, shared: &Shared) -> Result<(), WatchError> {
        // Before the log is read, so that what comes in between wakes us.
        self.changed.borrow_and_update();
        let seen = shared.core().events_after(&self.prefix, self.after)?;
        self.after = seen.up_to;
        self.ready.extend(seen.batches);
        Ok(())
    }
}

impl Watch for Follower {
    fn next(&mut self) -> Fut<'_, Result<Batch, WatchError>> {
        Box::pin(async move {
            loop {
                if let Some(batch) = self.ready.pop_front() {
                    return Ok(batch);
                }
                let nap = {
                    let shared = self.shared.upgrade().ok_or(WatchError::Closed)?;
                    let nap = shared.settle();
                    self.fetch(&shared)?;
                    nap
                };
                if !self.ready.is_empty() {
                    continue;
                }
                let changed = self.changed.changed();
                match nap {
                    // A timer that ends early is harmless: the loop looks again.
                    Some(nap) => drop(tokio::time::timeout(nap.max(Duration::from_millis(1)), changed).await),
                    None => changed.await.map_err(|_| WatchError::Closed)?,
                }
            }
        })
    }
}
