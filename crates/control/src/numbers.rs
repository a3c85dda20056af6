//! The number that a new node gets: none that another one has or ever had.
//!
//! A node's letters begin the ids of its instances, and the planner's index knows instances by their ids alone. Machines that
//! join at the same moment, at whichever server, therefore count in the store, and not each in what its server knows of the
//! others.

use rung_model::{Document, NodesCounted, keys};
use rung_store::{Guard, Op, Store, StoreError, Txn};

#[derive(Debug, Default)]
pub(crate) struct Numbers {
    /// Those who ask this server ask one after the other: only servers are in each other's way.
    turn: tokio::sync::Mutex<()>,
}

impl Numbers {
    /// A number above `known`, which nobody else gets. One that is not used in the end is left out.
    pub async fn take(&self, store: &dyn Store, known: u32) -> Result<u32, StoreError> {
        let _turn = self.turn.lock().await;
        let key = keys::NODES_COUNTED.to_owned();
        loop {
            let held = store.get(&key).await?.value;
            // Without one, or with one that can't be read, it is counted from those who are known.
            let counted = held.as_ref().and_then(|entry| NodesCounted::from_json(&entry.value).ok());
            let highest = counted.unwrap_or_default().highest.max(known) + 1;
            let guard = match held {
                Some(entry) => Guard::Modified { key: key.clone(), revision: entry.modified },
                None => Guard::Absent { key: key.clone() },
            };
            let value = NodesCounted { highest }.to_json();
            let put = Op::Put { key: key.clone(), value, lease: None };
            match store.txn(vec![guard], vec![put]).await? {
                Txn::Committed(_) => return Ok(highest),
                // Another server counted, or it is not known who has this one: the next is free.
                Txn::Conflict | Txn::Unknown => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rung_store::SqliteStore;

    use super::*;

    #[tokio::test]
    async fn machines_that_join_at_the_same_moment_at_two_servers_get_numbers_of_their_own() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(directory.path().join("store.db")).unwrap();
        let servers = [Numbers::default(), Numbers::default()];
        let taking = (0..64).map(|machine| servers[machine % 2].take(&store, 3));
        let taken = futures_util::future::try_join_all(taking).await.unwrap();
        let own: BTreeSet<u32> = taken.iter().copied().collect();
        assert_eq!(own.len(), 64, "somebody got another one's number: {taken:?}");
        assert_eq!(own.first(), Some(&4), "those before have theirs still");
    }

    #[tokio::test]
    async fn the_number_of_a_machine_that_was_removed_is_not_given_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(directory.path().join("store.db")).unwrap();
        let numbers = Numbers::default();
        assert_eq!(numbers.take(&store, 0).await.unwrap(), 1);
        assert_eq!(numbers.take(&store, 1).await.unwrap(), 2);
        assert_eq!(numbers.take(&store, 1).await.unwrap(), 3, "the second has been removed meanwhile");
    }
}
