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

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_store_at_rest_is_small() {
    let dir = TempDir::new().unwrap();
    let before = resident_kib();
    let store = SqliteStore::open(dir.path().join("store.db")).unwrap();
    let opened = resident_kib() - before;
    for n in 0..1000 {
        commit(&store, vec![put(&format!("key/{}", n % 200), [7; 2000])]).await;
    }
    let used = resident_kib() - before;
    println!(
        "a store takes {opened} KiB when it is new, {used} KiB with 200 entries and 1000 revisions of 2 KB"
    );
    assert!(used < 16 * 1024, "a small store takes {used} KiB");
}
