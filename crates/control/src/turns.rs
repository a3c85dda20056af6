//! One at a time for each digest: whoever asks for what is being fetched already waits for it instead.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rung_model::Digest;
use tokio::sync::OwnedMutexGuard;

type Waiting = Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Turns {
    waiting: Arc<Waiting>,
}

/// As long as it lives it is nobody else's turn.
#[derive(Debug)]
pub(crate) struct Turn {
    digest: Digest,
    waiting: Arc<Waiting>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    pub async fn take(&self, digest: &Digest) -> Turn {
        let lock = {
            let mut waiting = self.waiting.lock().expect("no panic while held");
            waiting.entry(digest.clone()).or_default().clone()
        };
        let guard = Some(lock.lock_owned().await);
        Turn { digest: digest.clone(), waiting: self.waiting.clone(), guard }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        self.guard.take();
        // The table's alone: nobody else waits for it. Whoever comes takes it from the table, which is locked.
        if waiting.get(&self.digest).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            waiting.remove(&self.digest);
        }
    }
}
