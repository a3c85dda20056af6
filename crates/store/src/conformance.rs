//! One suite over every backend: what the trait promises, each promise a test with a name.
//!
//! `suite!` makes the tests; its argument is an async closure that gives a fresh store, and what must live as long.

pub mod compaction;
pub mod leases;
pub mod model;
pub mod paging;
pub mod transactions;
pub mod watches;

use std::sync::Arc;
use std::time::Duration;

use crate::{Batch, Entry, Event, Guard, LeaseId, Op, Revision, Store, StoreError, Txn, Watch};

/// Every promise, by name: hands the list to a macro of the caller's, behind what that wants to know itself.
macro_rules! promises {
    ($then:ident!($($own:tt)*)) => {
        $then! {
            $($own)*;
            transactions::a_new_store_is_empty_and_at_revision_nought,
            transactions::what_is_written_is_read_with_its_revisions,
            transactions::every_transaction_gets_the_next_revision,
            transactions::a_transaction_without_effect_makes_no_revision,
            transactions::absent_holds_until_the_key_is_there,
            transactions::modified_holds_for_the_last_write_only,
            transactions::created_holds_as_long_as_the_key_lives,
            transactions::one_failing_guard_stops_all_of_it,
            transactions::a_key_made_again_is_created_again,
            transactions::too_many_operations_or_bytes_are_refused,
            transactions::a_key_twice_or_an_empty_one_is_refused,
            transactions::counters_incremented_by_many_lose_nothing,
            transactions::one_of_many_wins_an_election,
            transactions::what_was_committed_is_read_at_once,
            paging::pages_come_in_order_and_end,
            paging::a_prefix_is_not_its_neighbour,
            paging::a_key_that_stays_is_listed_once_while_others_come_and_go,
            watches::a_watch_gets_one_batch_for_each_revision,
            watches::a_watch_sees_only_what_is_below_its_prefix,
            watches::a_watch_resumes_from_any_revision,
            watches::watches_that_run_beside_writers_miss_and_repeat_nothing,
            watches::a_waiting_watch_can_be_given_up_and_taken_up_again,
            watches::a_watch_ends_with_its_store,
            watches::a_watch_from_the_future_waits_for_it,
            leases::a_lease_takes_its_keys_along_and_watches_see_it,
            leases::a_revoked_lease_takes_its_keys_along_in_one_revision,
            leases::a_key_written_without_the_lease_stays,
            leases::a_key_moves_from_lease_to_lease,
            leases::a_lease_that_is_gone_is_refused,
            leases::lease_ids_are_never_given_twice,
        }
    };
}

macro_rules! suite {
    ($make:expr) => {
        promises!(each_a_test!($make));

        #[test]
        fn any_sequence_of_calls_behaves_like_a_map_with_a_history() {
            $crate::conformance::model::check($make);
        }
    };
}

macro_rules! each_a_test {
    ($make:expr; $($group:ident :: $name:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $name() {
            let (store, _kept) = ($make)().await;
            $crate::conformance::$group::$name(store).await;
        }
    )*};
}

pub type Any = Arc<dyn Store>;

pub fn put(key: &str, value: impl AsRef<[u8]>) -> Op {
    Op::Put { key: key.to_owned(), value: value.as_ref().to_vec(), lease: None }
}

pub fn put_leased(key: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.to_owned(), value: b"leased".to_vec(), lease: Some(lease) }
}

pub fn delete(key: &str) -> Op {
    Op::Delete { key: key.to_owned() }
}

pub fn absent(key: &str) -> Guard {
    Guard::Absent { key: key.to_owned() }
}

pub fn modified(key: &str, revision: Revision) -> Guard {
    Guard::Modified { key: key.to_owned(), revision }
}

pub fn created(key: &str, revision: Revision) -> Guard {
    Guard::Created { key: key.to_owned(), revision }
}

/// Commits, and says at which revision.
pub async fn commit(store: &dyn Store, ops: Vec<Op>) -> Revision {
    match store.txn(vec![], ops).await.expect("a transaction failed") {
        Txn::Committed(revision) => revision,
        other => panic!("a transaction without guards gave {other:?}"),
    }
}

pub async fn get(store: &dyn Store, key: &str) -> Option<Entry> {
    store.get(key).await.expect("a read failed").value
}

/// Puts keys on a lease that is about to end. On a machine that is busy it may end first; then a longer one will do.
pub async fn put_on_a_short_lease(store: &dyn Store, keys: &[&str]) -> LeaseId {
    for ttl_ms in (0..12).map(|doubled| 50 << doubled) {
        let lease = store.lease_grant(Duration::from_millis(ttl_ms)).await.expect("a lease was not granted");
        let ops = keys.iter().map(|key| put_leased(key, lease)).collect();
        match store.txn(vec![], ops).await {
            Ok(Txn::Committed(_)) => return lease,
            Err(StoreError::NoLease(_)) => {}
            other => panic!("putting keys on a lease gave {other:?}"),
        }
    }
    panic!("every lease was over before a key could be put on it");
}

/// Waits for an event. The time is for a machine that hangs, not for the test to pass.
pub async fn next(watch: &mut dyn Watch) -> Batch {
    let batch = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
    batch.expect("a batch did not come").expect("the watch ended")
}

pub fn keys(batch: &Batch) -> Vec<&str> {
    batch
        .events
        .iter()
        .map(|event| match event {
            Event::Put(entry) => entry.key.as_str(),
            Event::Deleted { key } => key.as_str(),
        })
        .collect()
}
