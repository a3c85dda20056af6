use rung_store::Entry;

use super::*;

const AT: Duration = Duration::from_secs(100);

fn clock(elapsed: Duration) -> Clock {
    Clock { elapsed, wall: jiff::Timestamp::UNIX_EPOCH }
}

/// One of several servers, which knows everything up to a revision.
fn one_of_several(revision: Revision) -> Reconcile {
    let mut reconcile = Reconcile::follower(1).among_others(&NodeId::new("server-1").unwrap());
    reconcile.step(Event::Listed { revision, entries: Vec::new() }, clock(AT));
    reconcile
}

fn leader_key(revision: Revision) -> Batch {
    let key = keys::LEADER.to_owned();
    let entry = Entry { key, value: b"server-1".to_vec(), created: revision, modified: revision };
    Batch { revision, events: vec![StoreEvent::Put(entry)] }
}

#[test]
fn a_new_leader_plans_only_from_a_world_that_holds_its_own_token_and_so_all_that_was_written_before_it() {
    let mut reconcile = one_of_several(10);
    reconcile.step(Event::Lead(Some(12)), clock(AT));
    assert!(reconcile.is_dirty, "it has planned without what the one before it wrote at 11");
    reconcile.step(Event::Changed(leader_key(12)), clock(AT));
    assert!(!reconcile.is_dirty, "it knows all there is, and plans nothing");
}

#[test]
fn a_new_leader_waits_a_whole_window_for_proxies_that_it_may_not_have_heard_of() {
    let mut reconcile = one_of_several(10);
    let acknowledged = Generation::new(1, 10);
    let (proxy, poll) = ("ingress".to_owned(), PollId(1));
    reconcile.step(Event::Polled { proxy, poll, acknowledged, draining: Vec::new() }, clock(AT));
    reconcile.step(Event::Lead(Some(12)), clock(AT));
    let have = |elapsed| reconcile.all_proxies(elapsed).have_acknowledged(acknowledged, elapsed);
    assert!(!have(AT), "another one may serve, behind a server that was restarted");
    assert!(have(AT + SILENT_AFTER), "it waits for nobody");
}
