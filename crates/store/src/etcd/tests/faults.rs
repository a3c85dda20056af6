//! Writers and watchers while any member, the leader and the one that is talked to included, is killed or paused.
//!
//! What is shown: nothing that was acknowledged is lost, nothing happens twice, no watch misses or repeats a revision,
//! and what is unknown is said to be unknown.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::conformance::{absent, modified};
use crate::{Batch, Event};

const WRITERS: usize = 4;
const ROUNDS: usize = 6;

/// What a writer knows of its own key: which values were acknowledged, and which may have been written.
#[derive(Default)]
struct Journal {
    acknowledged: Vec<(Revision, String)>,
    unknown: Vec<String>,
}

/// Writes a value after the other, each guarded by the one before; an unknown outcome is looked up before it goes on.
async fn write(store: &EtcdStore, key: &str, is_over: &AtomicBool) -> Journal {
    let mut journal = Journal::default();
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        let Ok(held) = store.get(key).await else { continue };
        let guard = held.value.map_or_else(|| absent(key), |entry| modified(key, entry.modified));
        number += 1;
        let value = format!("{key}:{number}");
        match store.txn(vec![guard], vec![put(key, &value)]).await {
            Ok(Txn::Committed(revision)) => journal.acknowledged.push((revision, value)),
            Ok(Txn::Unknown) => journal.unknown.push(value),
            // Its own write of which it did not know came in between the read and this one.
            Ok(Txn::Conflict) => {}
            Err(StoreError::Unavailable(_)) => {}
            Err(other) => panic!("writing {key}: {other}"),
        }
    }
    journal
}

async fn disturb(members: &Members) {
    for round in 0..ROUNDS {
        let status = EtcdAdmin::new(members.fresh_root().endpoints, None).status().await.unwrap();
        let mut leader = 0;
        for (n, member) in members.members.iter().enumerate() {
            let own = EtcdAdmin::new(vec![member.endpoint()], None).status().await.unwrap();
            if Some(own.id) == status.leader {
                leader = n;
            }
        }
        // The leader in every other round, else one that follows.
        let member = &members.members[(leader + round % 2) % members.members.len()];
        if round % 4 < 2 {
            member.kill();
            tokio::time::sleep(Duration::from_millis(2500)).await; // tidy: so long the fault lasts
            member.start();
        } else {
            member.pause();
            tokio::time::sleep(Duration::from_millis(4000)).await; // tidy: so long the fault lasts
            member.go_on();
        }
        assert!(member.is_ready().await, "a member did not come back");
        tokio::time::sleep(Duration::from_millis(300)).await; // tidy: so long all is well
    }
}

/// Follows from the beginning until a revision, over whatever happens to the members.
async fn follow(
    store: &EtcdStore,
    prefix: &str,
    mut until: tokio::sync::watch::Receiver<Option<Revision>>,
) -> Vec<Batch> {
    let mut watch = store.watch(prefix, 0).await.unwrap();
    let mut seen: Vec<Batch> = Vec::new();
    loop {
        let last = seen.last().map_or(0, |batch| batch.revision);
        if until.borrow_and_update().is_some_and(|until| last >= until) {
            return seen;
        }
        tokio::select! {
            batch = watch.next() => seen.push(batch.expect("the watch ended")),
            _ = until.changed() => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_no_watch_misses_anything_while_members_fail() {
    let members = Members::start(3).await;
    let config = members.fresh_root();
    let first = Arc::new(EtcdStore::create(config.clone(), 1).await.unwrap());
    let mut elsewhere = config;
    elsewhere.endpoints.rotate_left(1);
    let second = Arc::new(EtcdStore::connect(elsewhere).await.unwrap());
    let stores = [first, second];
    let (end, ended) = tokio::sync::watch::channel(None);
    let followers: Vec<_> = stores
        .iter()
        .cloned()
        .map(|store| {
            let ended = ended.clone();
            tokio::spawn(async move { follow(&store, "", ended).await })
        })
        .collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|n| {
            let (store, is_over) = (Arc::clone(&stores[n % 2]), Arc::clone(&is_over));
            tokio::spawn(async move { write(&store, &format!("w{n}"), &is_over).await })
        })
        .collect();
    disturb(&members).await;
    is_over.store(true, Ordering::Relaxed);
    let mut journals = Vec::new();
    for writer in writers {
        journals.push(writer.await.unwrap());
    }
    let last = commit(&*stores[0], vec![put("end", "")]).await;
    end.send(Some(last)).unwrap();
    let mut histories = Vec::new();
    for follower in followers {
        histories.push(follower.await.unwrap());
    }
    check(&journals, &histories, last);
}

fn check(journals: &[Journal], histories: &[Vec<Batch>], last: Revision) {
    let [one, other] = histories else { panic!("two watches were opened") };
    assert_eq!(one, other, "two watches saw two histories");
    let revisions: Vec<Revision> = one.iter().map(|batch| batch.revision).collect();
    assert_eq!(revisions, (1..=last).collect::<Vec<_>>(), "a revision was missed or came twice");
    let mut written: BTreeMap<String, Revision> = BTreeMap::new();
    for batch in one {
        for event in &batch.events {
            let Event::Put(entry) = event else { panic!("nobody deleted anything") };
            let value = String::from_utf8(entry.value.clone()).unwrap();
            let twice = written.insert(value.clone(), batch.revision);
            assert!(twice.is_none() || value.is_empty(), "{value} was written twice");
        }
    }
    let mut acknowledged = 0;
    for journal in journals {
        for (revision, value) in &journal.acknowledged {
            assert_eq!(written.remove(value), Some(*revision), "{value} was acknowledged and is not there");
            acknowledged += 1;
        }
        for value in &journal.unknown {
            written.remove(value);
        }
    }
    written.remove("");
    assert!(written.is_empty(), "written although it was said that it was not: {written:?}");
    assert!(
        acknowledged > 100,
        "only {acknowledged} writes were acknowledged; the faults were too hard to show much"
    );
}
