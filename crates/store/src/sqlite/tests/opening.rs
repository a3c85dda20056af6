//! Files of every kind, and what becomes of them: nothing, unless they are a store.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::conformance::{commit, delete, get, put, put_leased};

async fn filled(path: &Path) {
    let store = SqliteStore::open(path).unwrap();
    for n in 0..50 {
        commit(&store, vec![put(&format!("key/{n}"), format!("value {n} ").repeat(100))]).await;
    }
}

/// Everything in the directory but SQLite's own bookkeeping.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
        .collect();
    all.sort();
    all
}

fn refused(path: &Path) -> StoreError {
    let before = contents(path.parent().unwrap());
    let error = SqliteStore::open(path).expect_err("it was opened");
    assert!(contents(path.parent().unwrap()) == before, "a refused store was changed");
    assert!(error.to_string().contains("store.db"), "{error} does not name the file");
    error
}

#[tokio::test]
async fn everything_is_there_when_it_is_opened_again() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.db");
    let (before, lease) = {
        let store = SqliteStore::open(&path).unwrap();
        let lease = store.lease_grant(Duration::from_secs(3600)).await.unwrap();
        commit(&store, vec![put("a", "1"), put("b", "2"), put_leased("c", lease)]).await;
        commit(&store, vec![put("a", "2"), delete("b")]).await;
        assert_eq!(store.bump_epoch(7).await.unwrap(), 8);
        (store.list("", None, 10).await.unwrap(), lease)
    };
    assert_eq!(contents(dir.path()).len(), 1, "a clean end leaves one file");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.list("", None, 10).await.unwrap(), before);
    assert_eq!(store.epoch(), 8);
    let mut watch = store.watch("", 0).await.unwrap();
    for revision in 1..=2 {
        assert_eq!(watch.next().await.unwrap().revision, revision, "history was lost");
    }
    let next = store.lease_grant(Duration::from_secs(1)).await.unwrap();
    assert_ne!(next, lease, "a lease's id was given twice");
    store.lease_keepalive(lease).await.expect("a lease lives on");
    store.lease_revoke(lease).await.unwrap();
    assert!(get(&store, "c").await.is_none(), "a lease forgot its key");
}

#[tokio::test]
async fn a_file_that_is_not_a_store_is_damage() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.db");
    for content in [&b""[..], b"hello", &[0; 8192]] {
        fs::write(&path, content).unwrap();
        assert!(matches!(refused(&path), StoreError::Damaged { .. }), "{content:?}");
    }
    fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let error = refused(&path).to_string();
    assert!(error.contains("not a store of rung's") && error.contains("backups"), "{error}");
}

#[tokio::test]
async fn damage_anywhere_is_refused_or_harmless_but_never_believed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.db");
    filled(&path).await;
    let whole = fs::read(&path).unwrap();
    let expected = {
        let store = SqliteStore::open(&path).unwrap();
        store.list("", None, 100).await.unwrap()
    };
    let mut found = 0;
    for n in 0..200 {
        let mut broken = whole.clone();
        let at = (n * 7919 + 13) % whole.len();
        for byte in &mut broken[at..(at + 16).min(whole.len())] {
            *byte ^= 0x55;
        }
        fs::write(&path, &broken).unwrap();
        match SqliteStore::open(&path) {
            Ok(store) => {
                let listed = store.list("", None, 100).await.unwrap();
                assert!(listed == expected, "damage at byte {at} was believed");
            }
            Err(StoreError::Damaged { .. }) => found += 1,
            Err(other) => panic!("damage at byte {at} was taken for {other:?}"),
        }
        // SQLite may have left a log of a store that it opened.
        drop(fs::remove_file(file::with_suffix(&path, "-wal")));
    }
    assert!(found > 100, "only {found} of 200 damages were found");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(refused(&path), StoreError::Damaged { .. }));
}

#[tokio::test]
async fn a_store_that_is_gone_while_its_log_is_there_is_damage() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.db");
    fs::write(file::with_suffix(&path, "-wal"), "x").unwrap();
    assert!(matches!(refused(&path), StoreError::Damaged { .. }));
}

#[tokio::test]
async fn a_newer_format_is_refused_with_the_way_out() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.db");
    filled(&path).await;
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", file::FORMAT + 1).unwrap();
    let error = refused(&path);
    assert!(matches!(error, StoreError::Newer { found: 2, known: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("use the newer rung"), "{error}");
}

#[tokio::test]
async fn a_second_opening_is_refused_while_the_first_lives() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.db");
    let first = SqliteStore::open(&path).unwrap();
    commit(&first, vec![put("a", "1")]).await;
    let error = SqliteStore::open(&path).expect_err("two stores on one file");
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    commit(&first, vec![put("a", "2")]).await;
    drop(first);
    let second = SqliteStore::open(&path).unwrap();
    assert_eq!(get(&second, "a").await.unwrap().value, b"2");
}

#[tokio::test]
async fn a_place_that_can_not_be_is_unavailable_not_damaged() {
    let dir = TempDir::new().unwrap();
    for place in ["missing/store.db", "file/store.db"] {
        fs::write(dir.path().join("file"), "x").unwrap();
        let error = SqliteStore::open(dir.path().join(place)).expect_err("it was opened");
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_backup_is_a_store_of_the_moment_it_was_made() {
    let dir = TempDir::new().unwrap();
    let (path, copy) = (dir.path().join("store.db"), dir.path().join("copy.db"));
    let store = SqliteStore::open(&path).unwrap();
    commit(&store, vec![put("a", "1")]).await;
    let then = store.list("", None, 10).await.unwrap();
    assert_eq!(store.backup_to(&copy).await.unwrap(), 1);
    commit(&store, vec![put("a", "2")]).await;
    assert!(store.backup_to(&copy).await.is_err(), "a backup was overwritten");
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);

    let restored = SqliteStore::open(&copy).unwrap();
    assert_eq!(restored.list("", None, 10).await.unwrap(), then);
    assert_eq!(restored.bump_epoch(store.epoch()).await.unwrap(), 2, "a restored history is a newer one");
    let left = contents(dir.path()).into_iter().filter(|(name, _)| name.contains(".part")).count();
    assert_eq!(left, 0, "a part of a backup was left behind");
}
