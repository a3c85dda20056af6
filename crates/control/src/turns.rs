//! One at a time for each thing: whoever asks for an artifact that is being fetched already waits for it instead, and who
//! changes an app decides by what the one before has written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;

type Waiting<K> = Mutex<BTreeMap<K, Arc<tokio::sync::Mutex<()>>>>;

#[derive(Debug, Clone)]
pub(crate) struct Turns<K> {
    waiting: Arc<Waiting<K>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { waiting: Arc::default() }
    }
}

/// As long as it lives it is nobody else's turn.
#[derive(Debug)]
pub(crate) struct Turn<K: Ord> {
    thing: K,
    waiting: Arc<Waiting<K>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K: Ord + Clone> Turns<K> {
    pub async fn take(&self, thing: &K) -> Turn<K> {
        let lock = {
            let mut waiting = self.waiting.lock().expect("no panic while held");
            waiting.entry(thing.clone()).or_default().clone()
        };
        let guard = Some(lock.lock_owned().await);
        Turn { thing: thing.clone(), waiting: self.waiting.clone(), guard }
    }
}

impl<K: Ord> Drop for Turn<K> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        self.guard.take();
        // The table's alone: nobody else waits for it. Whoever comes takes it from the table, which is locked.
        if waiting.get(&self.thing).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            waiting.remove(&self.thing);
        }
    }
}
