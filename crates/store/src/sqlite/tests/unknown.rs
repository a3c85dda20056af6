//! A sync that failed: nobody knows what is on disk, until it is read again.

use tempfile::TempDir;

use super::*;
use crate::conformance::{commit, get, next, put, put_on_a_short_lease};
use crate::sqlite::session::Failed;

fn fail(store: &SqliteStore, failed: Failed) {
    store.commands.as_ref().unwrap().send(Command::Fail(failed)).unwrap();
}

#[tokio::test]
async fn after_an_unknown_outcome_the_store_shows_what_is_on_disk() {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(dir.path().join("store.db")).unwrap();
    let lease = store.lease_grant(Duration::from_secs(3600)).await.unwrap();
    commit(&store, vec![put("a", "1")]).await;
    let mut watch = store.watch("", 0).await.unwrap();
    assert_eq!(next(&mut *watch).await.revision, 1);

    fail(&store, Failed::Unknown("sync failed".into()));
    let unknown = store.txn(vec![], vec![put("a", "2")]).await.unwrap();
    assert_eq!(unknown, Txn::Unknown, "nobody could know, but somebody said so");
    // Here it had happened. Whoever copes reads first; so does the watch, once and without a gap.
    assert_eq!(commit(&store, vec![put("b", "1")]).await, 3);
    assert_eq!(get(&store, "a").await.unwrap().value, b"2");
    assert_eq!((next(&mut *watch).await.revision, next(&mut *watch).await.revision), (2, 3));
    store.lease_keepalive(lease).await.expect("leases live on");
}

#[tokio::test]
async fn after_a_refusal_nothing_has_happened_and_the_next_one_succeeds() {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(dir.path().join("store.db")).unwrap();
    commit(&store, vec![put("a", "1")]).await;
    let before = store.list("", None, 10).await.unwrap();

    fail(&store, Failed::Refused("disk is full".into()));
    let refused = store.txn(vec![], vec![put("a", "2")]).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert_eq!(store.list("", None, 10).await.unwrap(), before);
    assert_eq!(commit(&store, vec![put("a", "2")]).await, 2);

    fail(&store, Failed::Refused("disk is full".into()));
    assert!(store.lease_grant(Duration::from_secs(9)).await.is_err());
    fail(&store, Failed::Refused("disk is full".into()));
    assert!(store.bump_epoch(5).await.is_err());
    assert_eq!(store.epoch(), 1, "an epoch that is not on disk was shown");
}

#[tokio::test]
async fn a_lease_whose_end_could_not_be_written_ends_later_and_is_not_kept_alive() {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(dir.path().join("store.db")).unwrap();
    let mut watch = store.watch("", 0).await.unwrap();
    let lease = put_on_a_short_lease(&store, &["leader"]).await;
    fail(&store, Failed::Refused("disk is full".into()));
    assert_eq!(next(&mut *watch).await.revision, 1);
    let gone = next(&mut *watch).await;
    assert_eq!(gone.events, [crate::Event::Deleted { key: "leader".into() }]);
    assert!(store.lease_keepalive(lease).await.is_err());
}
