//! The suite over real members, and what only a store across machines promises.

mod faults;
mod heads;
mod members;
mod three;

use std::sync::Arc;

use self::members::Members;
use super::*;
use crate::conformance::{Any, commit, next, put};

// One member for each test; stores of one test come one after the other, each below a root of its own.
suite!({
    let one = tokio::sync::OnceCell::new();
    async move || {
        let members = one.get_or_init(async || Arc::new(Members::start(1).await)).await;
        let store = EtcdStore::create(members.fresh_root(), 1).await.unwrap();
        (Arc::new(store) as Any, Arc::clone(members))
    }
});

#[tokio::test]
async fn history_that_was_compacted_is_refused_and_the_rest_is_served() {
    let members = Members::start(1).await;
    let store = EtcdStore::create(members.fresh_root(), 1).await.unwrap();
    for n in 0..5 {
        commit(&store, vec![put("k", n.to_string()), put(&format!("gone/{n}"), "v")]).await;
    }
    // Revision 6 is a deletion, which etcd forgets when it compacts to it.
    commit(&store, vec![crate::conformance::delete("gone/0")]).await;
    commit(&store, vec![put("k", "last")]).await;
    store.compact(6).await.unwrap();
    for after in 0..6 {
        let refused = store.watch("", after).await;
        let refused = match refused {
            Err(error) => Err(error),
            Ok(mut watch) => watch.next().await,
        };
        assert!(
            matches!(refused, Err(WatchError::Compacted(_))),
            "a watch after {after} was served although history before 6 is gone: {refused:?}"
        );
    }
    let mut watch = store.watch("", 6).await.unwrap();
    assert_eq!(next(&mut *watch).await.revision, 7, "what is kept can be watched");
}
