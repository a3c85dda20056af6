//! Watches: one batch for each revision, no gap, no duplicate, from wherever one likes.

use super::*;
use crate::WatchError;

pub async fn a_watch_gets_one_batch_for_each_revision(store: Any) {
    let mut watch = store.watch("", 0).await.unwrap();
    commit(&*store, vec![put("a", "1"), put("b", "1")]).await;
    commit(&*store, vec![delete("a"), put("b", "2")]).await;
    let first = next(&mut *watch).await;
    assert_eq!((first.revision, keys(&first)), (1, vec!["a", "b"]));
    let second = next(&mut *watch).await;
    let entry = Entry { key: "b".into(), value: b"2".to_vec(), created: 1, modified: 2 };
    let events = vec![Event::Deleted { key: "a".into() }, Event::Put(entry)];
    assert_eq!(second, Batch { revision: 2, events });
}

pub async fn a_watch_sees_only_what_is_below_its_prefix(store: Any) {
    let mut watch = store.watch("apps/", 0).await.unwrap();
    commit(&*store, vec![put("apps", "1"), put("appsx", "1")]).await;
    commit(&*store, vec![put("apps/a", "1"), put("nodes/n", "1")]).await;
    let batch = next(&mut *watch).await;
    assert_eq!((batch.revision, keys(&batch)), (2, vec!["apps/a"]));
}

pub async fn a_watch_resumes_from_any_revision(store: Any) {
    for n in 1..=10 {
        commit(&*store, vec![put("k", n.to_string())]).await;
    }
    for after in 0..10 {
        let mut watch = store.watch("k", after).await.unwrap();
        for expected in after + 1..=10 {
            assert_eq!(next(&mut *watch).await.revision, expected, "resumed after {after}");
        }
    }
}

pub async fn watches_that_run_beside_writers_miss_and_repeat_nothing(store: Any) {
    const WRITERS: u64 = 4;
    const EACH: u64 = 30;
    let mut followers = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let mut watch = store.watch("", 0).await.unwrap();
        followers.spawn(async move {
            for expected in 1..=WRITERS * EACH {
                assert_eq!(next(&mut *watch).await.revision, expected, "a gap or a duplicate");
            }
        });
    }
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..EACH {
                commit(&*store, vec![put(&format!("w{writer}"), n.to_string())]).await;
            }
        });
    }
    writers.join_all().await;
    followers.join_all().await;
}

pub async fn a_waiting_watch_can_be_given_up_and_taken_up_again(store: Any) {
    let mut watch = store.watch("", 0).await.unwrap();
    for expected in 1..=5 {
        let waited = tokio::time::timeout(Duration::from_millis(1), watch.next()).await;
        assert!(waited.is_err(), "{waited:?} came although nothing was written");
        commit(&*store, vec![put("k", "v")]).await;
        assert_eq!(next(&mut *watch).await.revision, expected);
    }
}

pub async fn a_watch_ends_with_its_store(store: Any) {
    let mut watch = store.watch("", 0).await.unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    drop(store);
    let end =
        tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it waits forever").unwrap();
    assert!(matches!(end, Err(WatchError::Closed)), "{end:?}");
}

pub async fn a_watch_from_the_future_waits_for_it(store: Any) {
    let mut watch = store.watch("", 2).await.unwrap();
    for _ in 0..3 {
        commit(&*store, vec![put("k", "v")]).await;
    }
    assert_eq!(next(&mut *watch).await.revision, 3);
}
