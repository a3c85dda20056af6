//! What keeps two histories apart.

use super::*;
use crate::conformance::get;

#[tokio::test]
async fn a_store_is_made_once_and_found_again_with_its_epoch() {
    let members = Members::start(1).await;
    let config = members.fresh_root();
    let missing = EtcdStore::connect(config.clone()).await;
    assert!(matches!(missing, Err(StoreError::Empty)), "{missing:?}");
    let store = EtcdStore::create(config.clone(), 7).await.unwrap();
    commit(&store, vec![put("a", "1")]).await;
    assert!(EtcdStore::create(config.clone(), 8).await.is_err(), "a store was made over another");
    let again = EtcdStore::connect(config).await.unwrap();
    assert_eq!((again.epoch(), again.get("a").await.unwrap().revision), (7, 1));
}

#[tokio::test]
async fn nobody_writes_to_a_history_that_has_ended_until_it_is_opened_again() {
    let members = Members::start(1).await;
    let config = members.fresh_root();
    let other = EtcdStore::create(config.clone(), 3).await.unwrap();
    commit(&other, vec![put("a", "1")]).await;
    let store = EtcdStore::connect(config.clone()).await.unwrap();
    let ended = store.end().await.unwrap();
    let late = other.txn(vec![], vec![put("a", "2")]).await;
    assert!(matches!(late, Err(StoreError::Ended { epoch: 3 })), "another server wrote on: {late:?}");
    assert_eq!(get(&ended, "a").await.unwrap().value, b"1", "what was ended can be read");
    assert!(matches!(EtcdStore::connect(config.clone()).await, Err(StoreError::Ended { epoch: 3 })));

    let reopened = EtcdStore::reopen(config, 9).await.unwrap();
    assert_eq!(reopened.epoch(), 10, "the new epoch is higher than what was known");
    commit(&reopened, vec![put("a", "3")]).await;
    let late = other.txn(vec![], vec![put("a", "2")]).await;
    assert!(matches!(late, Err(StoreError::Ended { epoch: 10 })), "an old server wrote on: {late:?}");
}

#[tokio::test]
async fn a_store_that_was_half_filled_is_none() {
    let members = Members::start(1).await;
    let config = members.fresh_root();
    let filling = EtcdStore::begin(config.clone(), 2).await.unwrap();
    commit(&filling, vec![put("a", "1")]).await;
    assert!(EtcdStore::connect(config.clone()).await.is_err(), "half a state was taken for a whole one");
    let filled = filling.finish().await.unwrap();
    assert_eq!(get(&filled, "a").await.unwrap().modified, 1);
    EtcdStore::connect(config).await.expect("it is whole now");
}

#[tokio::test]
async fn a_member_of_another_cluster_is_not_believed() {
    let (members, strangers) = (Members::start(1).await, Members::start(1).await);
    let mut config = members.fresh_root();
    EtcdStore::create(strangers.fresh_root(), 1).await.unwrap();
    config.endpoints.extend(strangers.fresh_root().endpoints);
    let store = EtcdStore::create(config, 1).await.unwrap();
    commit(&store, vec![put("a", "1")]).await;
    assert_eq!(get(&store, "a").await.unwrap().value, b"1");
    members.members[0].kill();
    let read = store.get("a").await;
    assert!(
        matches!(&read, Err(StoreError::Unavailable(why)) if why.contains("another etcd cluster")),
        "what a stranger says was taken for the state: {read:?}"
    );
}

#[tokio::test]
async fn a_state_goes_to_etcd_and_back_while_others_write_and_nothing_is_mixed() {
    use crate::SqliteStore;
    use crate::carry::{Source, carry};
    let members = Members::start(1).await;
    let dir = tempfile::tempdir().unwrap();
    let before = SqliteStore::open(dir.path().join("before.db")).unwrap();
    for n in 0..600 {
        commit(&before, vec![put(&format!("k/{n:03}"), n.to_string())]).await;
    }
    let etcd = EtcdStore::begin(members.fresh_root(), 2).await.unwrap();
    carry(Source::Sqlite(&before), &etcd, &[]).await.unwrap();
    let etcd = Arc::new(etcd.finish().await.unwrap());

    // One moment of a store that goes on: each transaction changes two keys together.
    let writer = tokio::spawn({
        let etcd = Arc::clone(&etcd);
        async move {
            for n in 0.. {
                commit(&*etcd, vec![put("k/000", n.to_string()), put("k/599", n.to_string())]).await;
            }
        }
    });
    for round in 0..3 {
        let after = SqliteStore::open(dir.path().join(format!("after{round}.db"))).unwrap();
        carry(Source::Etcd(&etcd), &after, &[]).await.unwrap();
        let (first, last) = (get(&after, "k/000").await.unwrap(), get(&after, "k/599").await.unwrap());
        assert!(first.value == last.value || round == 0, "two moments were mixed");
    }
    writer.abort();
}
