//! Transactions, guards, limits, and reads after them.

use super::*;
use crate::{TXN_MAX_BYTES, TXN_MAX_OPS};

pub async fn a_new_store_is_empty_and_at_revision_nought(store: Any) {
    let read = store.get("a").await.unwrap();
    assert_eq!((read.revision, read.value), (0, None));
    let listed = store.list("", None, 10).await.unwrap();
    assert_eq!((listed.revision, listed.value.entries.len(), listed.value.next), (0, 0, None));
    assert_eq!(store.epoch(), 1);
}

pub async fn what_is_written_is_read_with_its_revisions(store: Any) {
    let first = commit(&*store, vec![put("a", "1"), put("b", b"\x00\xff")]).await;
    let second = commit(&*store, vec![put("a", "2")]).await;
    let read = store.get("a").await.unwrap();
    let entry = Entry { key: "a".into(), value: b"2".to_vec(), created: first, modified: second };
    assert_eq!((read.revision, read.value), (second, Some(entry)));
    assert_eq!(get(&*store, "b").await.unwrap().value, b"\x00\xff", "bytes are kept as they are");
    assert_eq!(get(&*store, "b").await.unwrap().modified, first);

    let third = commit(&*store, vec![delete("a")]).await;
    let read = store.get("a").await.unwrap();
    assert_eq!((read.revision, read.value), (third, None), "a read of nothing says its revision too");
}

pub async fn every_transaction_gets_the_next_revision(store: Any) {
    for expected in 1..=20 {
        assert_eq!(commit(&*store, vec![put("k", expected.to_string())]).await, expected);
    }
}

pub async fn a_transaction_without_effect_makes_no_revision(store: Any) {
    commit(&*store, vec![put("a", "1")]).await;
    assert_eq!(commit(&*store, vec![]).await, 1);
    assert_eq!(commit(&*store, vec![delete("nothing")]).await, 1);
    assert_eq!(commit(&*store, vec![delete("nothing"), put("a", "1")]).await, 2, "the same value is a write");
}

pub async fn absent_holds_until_the_key_is_there(store: Any) {
    let ops = || vec![put("a", "mine")];
    assert_eq!(store.txn(vec![absent("a")], ops()).await.unwrap(), Txn::Committed(1));
    assert_eq!(store.txn(vec![absent("a")], ops()).await.unwrap(), Txn::Conflict);
    commit(&*store, vec![delete("a")]).await;
    assert_eq!(store.txn(vec![absent("a")], ops()).await.unwrap(), Txn::Committed(3));
}

pub async fn modified_holds_for_the_last_write_only(store: Any) {
    let first = commit(&*store, vec![put("a", "1")]).await;
    let second = commit(&*store, vec![put("a", "2")]).await;
    assert_eq!(store.txn(vec![modified("a", first)], vec![put("a", "x")]).await.unwrap(), Txn::Conflict);
    assert_eq!(store.txn(vec![modified("b", 0)], vec![put("b", "x")]).await.unwrap(), Txn::Conflict);
    let third = store.txn(vec![modified("a", second)], vec![put("a", "3")]).await.unwrap();
    assert_eq!(third, Txn::Committed(3));
}

pub async fn created_holds_as_long_as_the_key_lives(store: Any) {
    let token = commit(&*store, vec![put("leader", "me")]).await;
    commit(&*store, vec![put("leader", "still me")]).await;
    let guarded = |token| store.txn(vec![created("leader", token)], vec![put("work", "done")]);
    assert!(matches!(guarded(token).await.unwrap(), Txn::Committed(_)));
    commit(&*store, vec![delete("leader")]).await;
    assert_eq!(guarded(token).await.unwrap(), Txn::Conflict, "a fenced leader wrote");
    let next = commit(&*store, vec![put("leader", "another")]).await;
    assert_eq!(guarded(token).await.unwrap(), Txn::Conflict, "a fenced leader wrote");
    assert!(matches!(guarded(next).await.unwrap(), Txn::Committed(_)));
}

pub async fn one_failing_guard_stops_all_of_it(store: Any) {
    let revision = commit(&*store, vec![put("a", "1")]).await;
    let guards = vec![modified("a", revision), absent("b"), absent("a")];
    let result = store.txn(guards, vec![put("b", "1"), delete("a")]).await.unwrap();
    assert_eq!(result, Txn::Conflict);
    assert!(get(&*store, "a").await.is_some() && get(&*store, "b").await.is_none(), "half of it was applied");
    assert_eq!(store.get("a").await.unwrap().revision, revision, "a conflict made a revision");
}

pub async fn a_key_made_again_is_created_again(store: Any) {
    commit(&*store, vec![put("a", "1")]).await;
    commit(&*store, vec![delete("a")]).await;
    let again = commit(&*store, vec![put("a", "1")]).await;
    assert_eq!(get(&*store, "a").await.unwrap().created, again);
}

pub async fn too_many_operations_or_bytes_are_refused(store: Any) {
    let many = |n: usize| (0..n).map(|i| put(&format!("k{i}"), "v")).collect::<Vec<_>>();
    let result = store.txn(vec![], many(TXN_MAX_OPS + 1)).await;
    assert!(matches!(result, Err(StoreError::TooLarge { ops: 129, .. })), "{result:?}");
    let guards = (0..=TXN_MAX_OPS).map(|i| absent(&i.to_string())).collect();
    assert!(matches!(store.txn(guards, vec![]).await, Err(StoreError::TooLarge { .. })));
    let result = store.txn(vec![], vec![put("k", vec![0; TXN_MAX_BYTES])]).await;
    assert!(matches!(result, Err(StoreError::TooLarge { bytes: 1_048_577, .. })), "{result:?}");
    assert_eq!(store.get("k").await.unwrap().revision, 0, "something was applied");

    commit(&*store, many(TXN_MAX_OPS)).await;
    commit(&*store, vec![put("k", vec![7; TXN_MAX_BYTES - 1])]).await;
    assert_eq!(
        get(&*store, "k").await.unwrap().value.len(),
        TXN_MAX_BYTES - 1,
        "the limit itself is allowed"
    );
}

pub async fn a_key_twice_or_an_empty_one_is_refused(store: Any) {
    for ops in [vec![put("a", "1"), delete("a")], vec![put("a", "1"), put("a", "1")], vec![put("", "1")]] {
        let result = store.txn(vec![], ops).await;
        assert!(matches!(result, Err(StoreError::InvalidKey { .. })), "{result:?}");
    }
    assert_eq!(store.get("a").await.unwrap().revision, 0, "something was applied");
}

pub async fn counters_incremented_by_many_lose_nothing(store: Any) {
    const TASKS: u64 = 8;
    const EACH: u64 = 25;
    let increment = async |store: Any| {
        for _ in 0..EACH {
            loop {
                let entry = get(&*store, "counter").await;
                let (count, guard) = match &entry {
                    None => (0, absent("counter")),
                    Some(entry) => {
                        let text = std::str::from_utf8(&entry.value).unwrap();
                        (text.parse::<u64>().unwrap(), modified("counter", entry.modified))
                    }
                };
                let op = put("counter", (count + 1).to_string());
                match store.txn(vec![guard], vec![op]).await.unwrap() {
                    Txn::Committed(_) => break,
                    Txn::Conflict => tokio::task::yield_now().await,
                    Txn::Unknown => panic!("nothing fails here"),
                }
            }
        }
    };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        tasks.spawn(increment(store.clone()));
    }
    tasks.join_all().await;
    let counter = get(&*store, "counter").await.unwrap();
    assert_eq!(counter.value, (TASKS * EACH).to_string().as_bytes(), "increments were lost");
    assert_eq!(counter.modified, TASKS * EACH, "revisions were lost");
}

pub async fn one_of_many_wins_an_election(store: Any) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20u8 {
        let store = store.clone();
        tasks.spawn(async move {
            (n, store.txn(vec![absent("leader")], vec![put("leader", [n])]).await.unwrap())
        });
    }
    let results = tasks.join_all().await;
    let winners: Vec<_> = results.iter().filter(|(_, txn)| matches!(txn, Txn::Committed(_))).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    assert_eq!(get(&*store, "leader").await.unwrap().value, [winners[0].0], "the loser's name is there");
}

pub async fn what_was_committed_is_read_at_once(store: Any) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            let key = format!("k{n}");
            for round in 0..20 {
                let revision = commit(&*store, vec![put(&key, round.to_string())]).await;
                let read = store.get(&key).await.unwrap();
                assert!(read.revision >= revision, "a read from before the commit it follows");
                assert_eq!(read.value.unwrap().modified, revision);
                let page = store.list(&key, None, 1).await.unwrap();
                assert!(page.revision >= revision, "a listing from before the commit it follows");
            }
        });
    }
    tasks.join_all().await;
}
