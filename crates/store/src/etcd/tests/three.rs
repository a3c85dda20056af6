//! The whole suite over three members: while all are well, and while one of them is killed or paused again and again.
//!
//! The store keeps to the first member, which leads or follows; what goes through a member that fails is in `faults`.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::conformance::{leases, paging, transactions, watches};

/// Every promise, one after the other, each on a store of its own.
async fn keep_every_promise(members: &Members) {
    macro_rules! kept_by {
        ($members:expr; $($group:ident :: $name:ident),* $(,)?) => {$(
            let store = EtcdStore::create($members.fresh_root(), 1).await.unwrap();
            $group::$name(Arc::new(store)).await;
        )*};
    }
    promises!(kept_by!(members));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_keep_every_promise() {
    let members = Members::start(3).await;
    keep_every_promise(&members).await;
}

/// The member that leads comes first: without it the others would elect, and outcomes be unknown, rightly.
async fn leader_first(members: &mut Members) {
    let status = EtcdAdmin::new(vec![members.members[0].endpoint()], None).status().await.unwrap();
    let leader = status.leader.expect("a cluster that is ready has a leader");
    for n in 0..members.members.len() {
        let admin = EtcdAdmin::new(vec![members.members[n].endpoint()], None);
        if admin.status().await.unwrap().id == leader {
            members.members.swap(0, n);
            return;
        }
    }
    panic!("the leader is none of the members");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_keep_every_promise_while_one_is_killed_or_paused() {
    let mut members = Members::start(3).await;
    leader_first(&mut members).await;
    let is_over = AtomicBool::new(false);
    let disturb = async {
        for round in 0.. {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            let member = &members.members[1 + round / 2 % 2];
            if round % 2 == 0 {
                member.kill();
                commit_somewhere(&members).await;
                member.start();
            } else {
                member.pause();
                commit_somewhere(&members).await;
                member.go_on();
            }
            assert!(member.is_ready().await, "a member did not come back");
        }
    };
    let promises = async {
        keep_every_promise(&members).await;
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(disturb, promises);
}

/// So that the fault lasts for something: a store's life is one or two dozen of these.
async fn commit_somewhere(members: &Members) {
    // Other roots count other revisions, but the same history: the suite's stores would see gaps in theirs. So only read.
    let admin = EtcdAdmin::new(vec![members.members[0].endpoint()], None);
    for _ in 0..20 {
        admin.members().await.expect("two of three members are enough");
    }
    tokio::time::sleep(Duration::from_millis(300)).await; // tidy: so long the fault lasts
}
