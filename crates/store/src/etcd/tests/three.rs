//! The whole suite over three members: while all are well, and while one of them is killed or paused again and again.
//!
//! The store keeps to the first member, which leads or follows; what goes through a member that fails is in `faults`.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::conformance::{leases, paging, transactions, watches};

/// Every promise, one after the other, each on a store of its own.
async fn keep_every_promise(members: &Members) {
    macro_rules! each {
        ($($group:ident :: $name:ident),* $(,)?) => {$(
            let store = EtcdStore::create(members.fresh_root(), 1).await.unwrap();
            $group::$name(Arc::new(store)).await;
        )*};
    }
    each!(
        transactions::a_new_store_is_empty_and_at_revision_nought,
        transactions::what_is_written_is_read_with_its_revisions,
        transactions::every_transaction_gets_the_next_revision,
        transactions::a_transaction_without_effect_makes_no_revision,
        transactions::absent_holds_until_the_key_is_there,
        transactions::modified_holds_for_the_last_write_only,
        transactions::created_holds_as_long_as_the_key_lives,
        transactions::one_failing_guard_stops_all_of_it,
        transactions::a_key_made_again_is_created_again,
        transactions::too_many_operations_or_bytes_are_refused,
        transactions::a_key_twice_or_an_empty_one_is_refused,
        transactions::counters_incremented_by_many_lose_nothing,
        transactions::one_of_many_wins_an_election,
        transactions::what_was_committed_is_read_at_once,
        paging::pages_come_in_order_and_end,
        paging::a_prefix_is_not_its_neighbour,
        paging::a_key_that_stays_is_listed_once_while_others_come_and_go,
        watches::a_watch_gets_one_batch_for_each_revision,
        watches::a_watch_sees_only_what_is_below_its_prefix,
        watches::a_watch_resumes_from_any_revision,
        watches::watches_that_run_beside_writers_miss_and_repeat_nothing,
        watches::a_waiting_watch_can_be_given_up_and_taken_up_again,
        watches::a_watch_ends_with_its_store,
        watches::a_watch_from_the_future_waits_for_it,
        leases::a_lease_takes_its_keys_along_and_watches_see_it,
        leases::a_revoked_lease_takes_its_keys_along_in_one_revision,
        leases::a_key_written_without_the_lease_stays,
        leases::a_key_moves_from_lease_to_lease,
        leases::a_lease_that_is_gone_is_refused,
        leases::lease_ids_are_never_given_twice,
    );
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
