//! kill -9 at any moment: what was acknowledged is there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;
use crate::conformance::{get, put};

const CHILD: &str = "RUNG_STORE_TEST_CRASH_AT";

/// Runs as the child, which writes until it is killed and says what was acknowledged. Without its variable, as any
/// other test, it has nothing to do.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store: Any = Arc::new(SqliteStore::open(path).unwrap());
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..4 {
            let store = store.clone();
            writers.spawn(async move {
                let key = format!("writer/{writer}");
                // Goes on where the last life ended.
                let count = get(&*store, &key).await.map_or(0, |entry| count_of(&entry));
                for count in count + 1.. {
                    let value = format!("{count} {}", "x".repeat(1000));
                    let done =
                        store.txn(vec![], vec![put(&key, &value), put(&format!("{key}/{}", count % 7), "v")]);
                    assert!(matches!(done.await.unwrap(), Txn::Committed(_)));
                    println!("acknowledged {writer} {count}");
                    std::io::stdout().flush().unwrap();
                }
            });
        }
        writers.join_all().await;
    });
}

fn count_of(entry: &Entry) -> u64 {
    std::str::from_utf8(&entry.value).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_nine_at_any_moment() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.db");
    let mut acknowledged = [0u64; 4];
    for life in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sqlite::tests::crash::child_that_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        let mut note = |line: &str| {
            // The test harness writes on the same stream, and may share a line.
            let Some(at) = line.find("acknowledged ") else { return 0 };
            let mut words = line[at..].split(' ').skip(1).map(|word| word.parse::<u64>());
            if let (Some(Ok(writer)), Some(Ok(count))) = (words.next(), words.next()) {
                acknowledged[writer as usize] = count;
            }
            1
        };
        while seen < 5 + life * 23 {
            seen += note(&lines.next().expect("the child ended by itself").unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said before it died; the last line may be cut, and a cut line is none.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        for line in rest.split_last().map_or(&[][..], |(_, whole)| whole) {
            note(line);
        }

        let store = SqliteStore::open(&path).unwrap();
        for (writer, &count) in acknowledged.iter().enumerate() {
            let found = get(&store, &format!("writer/{writer}")).await.map_or(0, |entry| count_of(&entry));
            assert!(found >= count, "life {life}: writer {writer} was told {count}, the store has {found}");
        }
        let floor = store.shared.core().floor();
        let mut watch = store.watch("", floor).await.unwrap();
        for revision in floor + 1..=store.revision() {
            assert_eq!(watch.next().await.unwrap().revision, revision, "history has a gap after a crash");
        }
    }
}
