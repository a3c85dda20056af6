//! The shell around [`crate::reconcile`]: it feeds events in and carries effects out.

use std::time::Duration;

use futures_util::FutureExt;
use rung_model::{NodeId, keys};
use rung_store::{Batch, Entry, Guard, Op, Revision, Store, StoreError, Txn, Watch};
use tokio::sync::mpsc;

use crate::bells::Concern;
use crate::cluster::MembersTouched;
use crate::reconcile::{Effect, Event, StepId};
use crate::shared::{Control, StartError};

/// Entries read at a time.
const PAGE: usize = 500;

/// So many revisions are taken in before the next plan, at most: what they bring is not kept waiting for long.
const READY_MAX: usize = 256;

/// Waiting before the store is listed again after that failed.
const LIST_AGAIN: Duration = Duration::from_millis(500);

/// Writes the leader key anew and returns the revision that created it: the fencing token of this leadership.
///
/// On one machine the lock of the data directory has already made sure that nobody else leads; whatever a server
/// that was killed left behind is replaced, and its late writes fail on the token.
pub(crate) async fn take_the_lead(store: &dyn Store, node: &NodeId) -> Result<Revision, StartError> {
    let held = store.get(keys::LEADER).await.map_err(StartError::Lead)?.value;
    if let Some(entry) = held {
        let guard = Guard::Modified { key: entry.key.clone(), revision: entry.modified };
        let delete = Op::Delete { key: entry.key };
        match store.txn(vec![guard], vec![delete]).await.map_err(StartError::Lead)? {
            Txn::Committed(_) => {}
            Txn::Conflict | Txn::Unknown => return Err(StartError::LeadTaken),
        }
    }
    let guard = Guard::Absent { key: keys::LEADER.to_owned() };
    let put = Op::Put { key: keys::LEADER.to_owned(), value: node.as_str().into(), lease: None };
    match store.txn(vec![guard], vec![put]).await.map_err(StartError::Lead)? {
        Txn::Committed(revision) => Ok(revision),
        Txn::Conflict | Txn::Unknown => Err(StartError::LeadTaken),
    }
}

/// Runs until the store is closed.
pub(crate) async fn lead(control: Control, mut inbox: mpsc::UnboundedReceiver<Event>) {
    let mut watch: Option<Box<dyn Watch>> = None;
    let mut wake_at = Duration::ZERO;
    let mut pending = vec![Effect::List];
    loop {
        while let Some(effect) = pending.pop() {
            match effect {
                Effect::WakeAt(at) => wake_at = at,
                Effect::Undecodable(message) => tracing::error!("{message}; it is left alone"),
                Effect::Commit { step, why, guards, ops } => commit(&control, step, why, guards, ops),
                Effect::List => match relist(&control).await {
                    Some((event, new_watch)) => {
                        watch = Some(new_watch);
                        pending.extend(take(&control, event));
                    }
                    None => return,
                },
            }
        }
        let until_wake = wake_at.saturating_sub(control.clock().elapsed);
        let event = tokio::select! {
            batch = next_batch(&mut watch) => match batch {
                Some(batch) => take_ready(&control, &mut watch, batch, &mut pending),
                None => {
                    pending.push(Effect::List);
                    continue;
                }
            },
            event = inbox.recv() => match event {
                Some(event) => event,
                None => return,
            },
            () = tokio::time::sleep(until_wake) => Event::Tick,
        };
        pending.extend(take(&control, event));
    }
}

/// Gives the machine an event and wakes whoever waits for a change.
fn take(control: &Control, event: Event) -> Vec<Effect> {
    let clock = control.clock();
    let (concern, members) = (Concern::of(&event), MembersTouched::by(&event));
    let (effects, transitions, changed, revision) = {
        let mut reconcile = control.inner.reconcile.lock().expect("no panic while held");
        let told = control.inner.events.tell_apart(&event, reconcile.world());
        let before = reconcile.changes();
        let effects = reconcile.step(event, clock);
        // Before anybody sees it in the index: one that has just joined is let in by the next connection.
        control.set_members(reconcile.world(), &members);
        (effects, told, reconcile.changes() != before, reconcile.world().revision)
    };
    for (app, kind, message) in transitions {
        control.record_seen(&app, kind, message);
    }
    if changed {
        control.inner.bells.ring(&concern, revision);
        // Those who wait for anything else wake up all.
        control.inner.changes.send_modify(|count| *count += 1);
    }
    effects
}

/// What has come meanwhile is taken in, too, but for the last: thousands of nodes that report at once are not planned for
/// one by one.
fn take_ready(
    control: &Control,
    watch: &mut Option<Box<dyn Watch>>,
    mut batch: Batch,
    pending: &mut Vec<Effect>,
) -> Event {
    for _ in 0..READY_MAX {
        let Some(ready) = next_batch(watch).now_or_never() else { break };
        let Some(next) = ready else {
            pending.push(Effect::List);
            break;
        };
        let before = std::mem::replace(&mut batch, next);
        pending.extend(take(control, Event::ChangedOnTheWay(before)));
    }
    Event::Changed(batch)
}

/// The transaction runs beside the loop, which goes on taking events meanwhile.
fn commit(control: &Control, step: StepId, why: String, guards: Vec<Guard>, ops: Vec<Op>) {
    let control = control.clone();
    tokio::spawn(async move {
        let outcome = match control.txn(guards, ops).await {
            Ok(outcome) => {
                tracing::debug!(%why, ?outcome, "step");
                Some(outcome)
            }
            Err(error @ StoreError::TooLarge { .. }) => {
                // Nothing a user does makes such a step: names, counts and sizes are bounded where they come in.
                tracing::error!(%why, %error, "step can't be written");
                None
            }
            Err(error) => {
                tracing::warn!(%why, %error, "step was not written");
                None
            }
        };
        let _ = control.inner.mailbox.send(Event::Written { step, outcome });
    });
}

async fn next_batch(watch: &mut Option<Box<dyn Watch>>) -> Option<Batch> {
    match watch {
        Some(watch) => watch.next().await.ok(),
        None => std::future::pending().await,
    }
}

/// Lists everything and opens a watch from there. `None`: the store is closed for good.
async fn relist(control: &Control) -> Option<(Event, Box<dyn Watch>)> {
    loop {
        match list_all(control.inner.store.as_ref()).await {
            Ok((revision, entries)) => match control.inner.store.watch("", revision).await {
                Ok(watch) => return Some((Event::Listed { revision, entries }, watch)),
                Err(rung_store::WatchError::Compacted(_)) => {}
                Err(rung_store::WatchError::Closed) => return None,
            },
            Err(error) => {
                tracing::warn!(%error, "the store can't be read");
                tokio::time::sleep(LIST_AGAIN).await;
            }
        }
    }
}

/// Pages are read at different revisions; the first one's is the truth from which the watch brings the rest up to date.
async fn list_all(store: &dyn Store) -> Result<(Revision, Vec<Entry>), StoreError> {
    let mut entries = Vec::new();
    let mut from: Option<String> = None;
    let mut revision = None;
    loop {
        let read = store.list("", from.as_deref(), PAGE).await?;
        let revision = *revision.get_or_insert(read.revision);
        entries.extend(read.value.entries);
        match read.value.next {
            Some(next) => from = Some(next),
            None => return Ok((revision, entries)),
        }
    }
}
