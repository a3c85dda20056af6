//! Leases. Time is real here; the exact counting is tested on the core, which is told of it.

use super::*;

const LONG: Duration = Duration::from_secs(3600);

pub async fn a_lease_takes_its_keys_along_and_watches_see_it(store: Any) {
    let mut watch = store.watch("", 0).await.unwrap();
    let lease = put_on_a_short_lease(&*store, &["a", "b"]).await;
    assert_eq!(next(&mut *watch).await.revision, 1);
    let gone = next(&mut *watch).await;
    let events = ["a", "b"].map(|key| Event::Deleted { key: key.into() }).to_vec();
    assert_eq!(gone, Batch { revision: 2, events });
    assert!(get(&*store, "a").await.is_none());
    let late = store.lease_keepalive(lease).await;
    assert!(matches!(late, Err(StoreError::NoLease(l)) if l == lease), "{late:?}");
}

pub async fn a_revoked_lease_takes_its_keys_along_in_one_revision(store: Any) {
    let lease = store.lease_grant(LONG).await.unwrap();
    // More than a transaction may have: the limit is for callers.
    for n in 0..3 {
        let ops = (0..100).map(|i| put_leased(&format!("k{n}/{i}"), lease)).collect();
        commit(&*store, ops).await;
    }
    store.lease_keepalive(lease).await.unwrap();
    store.lease_revoke(lease).await.unwrap();
    let listed = store.list("", None, 10).await.unwrap();
    assert_eq!((listed.revision, listed.value.entries.len()), (4, 0));
    let mut watch = store.watch("", 3).await.unwrap();
    assert_eq!(next(&mut *watch).await.events.len(), 300);
}

pub async fn a_key_written_without_the_lease_stays(store: Any) {
    let lease = store.lease_grant(LONG).await.unwrap();
    commit(&*store, vec![put_leased("a", lease), put_leased("b", lease), put_leased("c", lease)]).await;
    commit(&*store, vec![put("a", "mine"), delete("b")]).await;
    commit(&*store, vec![put("b", "new")]).await;
    store.lease_revoke(lease).await.unwrap();
    assert!(get(&*store, "a").await.is_some(), "it was written without the lease since");
    assert!(get(&*store, "b").await.is_some(), "it was deleted and made again since");
    assert!(get(&*store, "c").await.is_none());
}

pub async fn a_key_moves_from_lease_to_lease(store: Any) {
    let (one, two) = (store.lease_grant(LONG).await.unwrap(), store.lease_grant(LONG).await.unwrap());
    commit(&*store, vec![put_leased("a", one)]).await;
    commit(&*store, vec![put_leased("a", two)]).await;
    store.lease_revoke(one).await.unwrap();
    assert!(get(&*store, "a").await.is_some(), "it went with a lease it had left");
    assert_eq!(store.get("a").await.unwrap().revision, 2, "a lease without keys leaves without a revision");
    store.lease_revoke(two).await.unwrap();
    assert!(get(&*store, "a").await.is_none());
}

pub async fn a_lease_that_is_gone_is_refused(store: Any) {
    let lease = store.lease_grant(LONG).await.unwrap();
    store.lease_revoke(lease).await.unwrap();
    let results = [
        store.lease_keepalive(lease).await,
        store.lease_revoke(lease).await,
        store.txn(vec![], vec![put("b", "1"), put_leased("a", lease)]).await.map(drop),
    ];
    for result in results {
        assert!(matches!(result, Err(StoreError::NoLease(l)) if l == lease), "{result:?}");
    }
    assert!(get(&*store, "b").await.is_none(), "half of it was applied");
}

pub async fn lease_ids_are_never_given_twice(store: Any) {
    let mut given = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let lease = store.lease_grant(LONG).await.unwrap();
        assert!(given.insert(lease), "{lease:?} was given twice");
        store.lease_revoke(lease).await.unwrap();
    }
}
