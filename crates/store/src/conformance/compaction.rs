//! What happens to those who come too late. The store's log must be limited to 10 revisions, or 1000 bytes.

use super::*;
use crate::WatchError;

pub async fn history_is_bounded(store: impl Store) {
    let mut slow = store.watch("", 0).await.unwrap();
    let mut elsewhere = store.watch("other/", 0).await.unwrap();
    let last = 40;
    for n in 1..=last {
        commit(&store, vec![put("k", format!("{n:060}"))]).await;
        // One that follows, though it has nothing to deliver, is never too late.
        let waited = tokio::time::timeout(Duration::ZERO, elsewhere.next()).await;
        assert!(waited.is_err(), "{waited:?} came although nothing changed there");
    }
    let Err(WatchError::Compacted(floor)) = slow.next().await else {
        panic!("a watch that slept through 40 revisions was promised 10");
    };
    assert!((last - 10..last).contains(&floor), "history before {floor} is gone at revision {last}");
    let refused = store.watch("", floor - 1).await.err();
    assert!(matches!(refused, Some(WatchError::Compacted(f)) if f == floor), "{refused:?}");

    let listed = store.list("", None, 10).await.unwrap();
    let mut again = store.watch("", listed.revision).await.unwrap();
    let mut from_floor = store.watch("", floor).await.unwrap();
    assert_eq!(next(&mut *from_floor).await.revision, floor + 1, "the floor itself can be resumed from");
    commit(&store, vec![put("k", "v")]).await;
    assert_eq!(next(&mut *again).await.revision, last + 1, "list, then watch from there");
}
