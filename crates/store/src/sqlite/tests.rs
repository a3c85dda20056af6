//! What only a store on disk promises.

mod crash;
mod disk;
mod opening;
mod speed;
mod unknown;

use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::conformance::{Any, compaction};

suite!(async || {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(dir.path().join("store.db")).unwrap();
    (Arc::new(store) as Any, dir)
});

#[tokio::test]
async fn history_is_compacted_by_count_and_by_bytes() {
    for limits in [
        LogLimits { revisions: 10, ..LogLimits::default() },
        LogLimits { bytes: 1000, ..LogLimits::default() },
    ] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("store.db");
        compaction::history_is_bounded(SqliteStore::open_with_log_limits(&path, limits).unwrap()).await;

        let file = rusqlite::Connection::open(&path).unwrap();
        let rows: i64 = file.query_row("SELECT count(*) FROM log", [], |row| row.get(0)).unwrap();
        file.close().unwrap();
        assert!(rows < 30, "{rows} revisions of history are on disk");
        let again = SqliteStore::open_with_log_limits(&path, limits).unwrap();
        assert!(
            matches!(again.watch("", 20).await, Err(WatchError::Compacted(_))),
            "the floor was forgotten"
        );
    }
}
