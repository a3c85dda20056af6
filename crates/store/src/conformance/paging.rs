//! Listings.

use super::*;

async fn all_pages(store: &dyn Store, prefix: &str, limit: usize) -> Vec<String> {
    let (mut keys, mut from) = (Vec::new(), None);
    loop {
        let page = store.list(prefix, from.as_deref(), limit).await.unwrap().value;
        assert!(page.entries.len() <= limit.max(1), "a page is larger than asked for");
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
        match page.next {
            Some(next) => from = Some(next),
            None => return keys,
        }
    }
}

pub async fn pages_come_in_order_and_end(store: Any) {
    let mut expected: Vec<_> = (0..25).map(|n| format!("apps/{n}")).collect();
    commit(&*store, expected.iter().map(|key| put(key, "v")).collect()).await;
    expected.sort();
    for limit in [0, 1, 2, 7, 24, 25, 26, 1000] {
        assert_eq!(all_pages(&*store, "apps/", limit).await, expected, "with pages of {limit}");
    }
    let exact = store.list("apps/", None, 25).await.unwrap();
    assert_eq!(exact.value.next, None, "a full last page promises nothing more");
    assert_eq!(exact.revision, 1);
}

pub async fn a_prefix_is_not_its_neighbour(store: Any) {
    let all = ["app", "app/", "app/a", "app/ü", "app0", "apps/a", "b"];
    commit(&*store, all.iter().map(|key| put(key, "v")).collect()).await;
    assert_eq!(all_pages(&*store, "app/", 2).await, ["app/", "app/a", "app/ü"]);
    assert_eq!(all_pages(&*store, "app", 2).await.len(), 6);
    assert_eq!(all_pages(&*store, "", 2).await.len(), 7);
    assert_eq!(all_pages(&*store, "c", 2).await.len(), 0);
    assert_eq!(all_pages(&*store, "app/\u{10ffff}", 2).await.len(), 0);
}

pub async fn a_key_that_stays_is_listed_once_while_others_come_and_go(store: Any) {
    let stable: Vec<_> = (0..30).map(|n| format!("k/{n:02}")).collect();
    commit(&*store, stable.iter().map(|key| put(key, "v")).collect()).await;
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for round in 0..60 {
                let key = format!("k/{:02}x", (round * 7) % 30);
                commit(&*store, vec![put(&key, "v")]).await;
                commit(&*store, vec![delete(&key), put(&format!("k/{:02}", round % 30), "again")]).await;
            }
        }
    });
    while !writer.is_finished() {
        let mut keys = all_pages(&*store, "k/", 4).await;
        keys.retain(|key| !key.ends_with('x'));
        assert_eq!(keys, stable, "a key that was there all the time was missed or repeated");
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}
