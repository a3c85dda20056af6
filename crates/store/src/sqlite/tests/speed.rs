//! What transactions cost here: printed, and held to what only a mistake would miss.

use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::conformance::{commit, put};

#[tokio::test]
async fn transactions_that_wait_together_share_a_sync() {
    let dir = TempDir::new().unwrap();
    let store: Any = Arc::new(SqliteStore::open(dir.path().join("store.db")).unwrap());
    let value = [7; 500];
    let start = Instant::now();
    for _ in 0..200 {
        commit(&*store, vec![put("one", value)]).await;
    }
    let alone = start.elapsed() / 200;
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64 {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..20 {
                commit(&*store, vec![put(&format!("many/{n}"), value)]).await;
            }
        });
    }
    tasks.join_all().await;
    let together = start.elapsed() / (64 * 20);
    let start = Instant::now();
    for _ in 0..10_000 {
        store.get("one").await.unwrap();
    }
    let read = start.elapsed() / 10_000;
    println!("a transaction alone {alone:?}, 64 at a time {together:?} each, a read {read:?}");
    assert!(together < alone, "a group of 64 is no faster: {together:?} each, {alone:?} alone");
}
