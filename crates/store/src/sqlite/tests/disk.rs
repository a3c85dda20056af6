//! A disk that is full, and has room again.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::conformance::{commit, get, put};

const CHILD: &str = "RUNG_STORE_TEST_FULL_DISK";

/// Runs as the child, in a mount namespace of its own with 2 MB at that place.
#[tokio::test]
async fn child_that_fills_its_disk() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let dir = PathBuf::from(dir);
    let store = SqliteStore::open(dir.join("store.db")).unwrap();
    commit(&store, vec![put("precious", "1")]).await;
    let before = refuse_until_full(&store, async |n| {
        store.txn(vec![], vec![put(&format!("filler/{n}"), vec![7; 60_000])]).await
    })
    .await;
    assert_eq!(store.revision(), before, "a refused transaction made a revision");
    let lease = store.lease_grant(Duration::from_secs(1)).await;
    let epoch = store.bump_epoch(0).await;
    println!("with a full disk: lease {lease:?}, epoch {epoch:?}");
    let backup = store.backup_to(dir.join("backup.db")).await;
    assert!(matches!(backup, Err(StoreError::Unavailable(_))), "{backup:?}");
    assert!(!dir.join("backup.db").exists(), "half a backup was left");
    assert_eq!(get(&store, "precious").await.unwrap().value, b"1", "a full disk stopped reads");

    // Somebody else had filled it.
    fs::remove_file(dir.join("ballast")).unwrap();
    let after = commit(&store, vec![put("precious", "2")]).await;
    assert_eq!(after, before + 1, "it does not go on where it was");
    drop(store);
    let store = SqliteStore::open(dir.join("store.db")).unwrap();
    assert_eq!(get(&store, "precious").await.unwrap().value, b"2");
    println!("disk was filled");
}

async fn refuse_until_full(
    store: &SqliteStore,
    write: impl AsyncFn(u64) -> Result<Txn, StoreError>,
) -> Revision {
    for n in 0..1000 {
        match write(n).await {
            Ok(Txn::Committed(_)) => {}
            Err(StoreError::Unavailable(detail)) => {
                println!("after {n}: {detail}");
                return store.revision();
            }
            other => panic!("a full disk gave {other:?}"),
        }
    }
    panic!("2 MB took 60 MB");
}

#[test]
fn a_full_disk_refuses_writes_and_the_store_goes_on_when_there_is_room() {
    let dir = TempDir::new().unwrap();
    // A mount namespace of the child's own; with a user namespace where we are not root.
    let script = "mount -t tmpfs -o size=2m none \"$1\" && head -c 500000 /dev/zero > \"$1/ballast\" && exec \"$2\" --exact sqlite::tests::disk::child_that_fills_its_disk --nocapture";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, dir.path())
        .output()
        .expect("`unshare` (package util-linux) is needed to mount a small disk");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("disk was filled"), "{text}\n{errors}");
}

const LIMITED: &str = "RUNG_STORE_TEST_FILE_LIMIT";

/// Runs as the child, with a limit on the size of its files: another error from the kernel, the same promise.
#[tokio::test]
async fn child_that_reaches_its_file_limit() {
    let Ok(dir) = std::env::var(LIMITED) else { return };
    let path = PathBuf::from(dir).join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    set_file_limit(1_000_000);
    let before = refuse_until_full(&store, async |n| {
        store.txn(vec![], vec![put(&format!("filler/{n}"), vec![7; 60_000])]).await
    })
    .await;
    set_file_limit(libc::RLIM_INFINITY);
    assert_eq!(commit(&store, vec![put("precious", "2")]).await, before + 1);
    drop(store);
    assert_eq!(SqliteStore::open(&path).unwrap().revision(), before + 1);
    println!("limit was reached");
}

#[allow(unsafe_code)]
fn set_file_limit(bytes: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: both calls take plain values or a pointer to a live struct; this process runs this test only.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0, "setrlimit failed");
    }
}

#[test]
fn a_limit_on_files_refuses_writes_and_the_store_goes_on_when_it_is_lifted() {
    let dir = TempDir::new().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sqlite::tests::disk::child_that_reaches_its_file_limit", "--nocapture"])
        .env(LIMITED, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("limit was reached"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
