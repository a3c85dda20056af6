//! Which of several servers plans: a state machine without I/O, and its shell.
//!
//! ```text
//!              holder is gone,                  granted           written
//!   ┌─► follows ──or our own past──► clearing ──────► campaigning ──────► leads
//!   │      ▲                                              │ conflict        │ the key is another's,
//!   │      └──────────── look again ◄─────────────────────┴─────────────────┘ or not kept in time
//!   └ a key that another server holds
//! ```
//!
//! The key `leader` hangs on a lease. Whoever created it leads, and the revision that created it fences every write; so
//! two that believe to lead do no harm, and all times here only decide how soon somebody plans again.

use std::time::Duration;

use rung_model::{NodeId, keys};
use rung_store::{Event as StoreEvent, Guard, LeaseId, Op, Revision, Store, StoreError, Txn, Watch};

use crate::shared::Control;

/// A leader that dies is followed by another after this and the half second in which etcd looks at leases.
pub const LEASE: Duration = Duration::from_secs(3);

/// Two may be lost before the third is too late.
const KEEP_EVERY: Duration = Duration::from_millis(800);

/// After something failed.
const AGAIN: Duration = Duration::from_millis(300);

/// The key, as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub node: String,
    pub created: Revision,
    pub modified: Revision,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was read, or a watch brought it.
    Holder(Option<Holder>),
    /// It could not be read.
    Unseen,
    /// What stood there of our own past was removed, or was not.
    Cleared,
    Granted(Option<LeaseId>),
    Campaigned(Option<Txn>),
    /// `None`: nobody answered.
    Kept {
        lease: LeaseId,
        asked: Duration,
        is_kept: Option<bool>,
    },
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Look,
    Clear(Revision),
    Grant,
    Campaign(LeaseId),
    Keep(LeaseId),
    /// From now on with this fencing token, or no more.
    Lead(Option<Revision>),
    WakeAt(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The key is to be read at this time.
    Looking(Duration),
    Following,
    Clearing,
    Granting {
        asked: Duration,
    },
    Campaigning {
        lease: LeaseId,
        /// When the lease was certainly not older.
        asked: Duration,
    },
    Leading {
        lease: LeaseId,
        fence: Revision,
        /// When the last keepalive that succeeded was sent.
        kept: Duration,
        keep_at: Duration,
    },
}

#[derive(Debug)]
pub struct Election {
    node: String,
    state: State,
}

impl Election {
    pub fn new(node: &NodeId) -> Self {
        Self { node: node.to_string(), state: State::Looking(Duration::ZERO) }
    }

    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.take_in(event, now, &mut effects);
        self.go_on(now, &mut effects);
        effects
    }

    fn take_in(&mut self, event: Event, now: Duration, effects: &mut Vec<Effect>) {
        match (event, self.state) {
            (Event::Holder(holder), State::Leading { fence, .. }) => {
                let is_own = holder.is_some_and(|holder| holder.created == fence);
                if !is_own {
                    self.step_down(now, effects);
                }
            }
            (Event::Holder(holder), State::Looking(_) | State::Following) => match holder {
                Some(holder) if holder.node != self.node => self.state = State::Following,
                // This server's own, from before it was started again: nobody else has its name.
                Some(holder) => {
                    self.state = State::Clearing;
                    effects.push(Effect::Clear(holder.modified));
                }
                None => {
                    self.state = State::Granting { asked: now };
                    effects.push(Effect::Grant);
                }
            },
            (Event::Unseen, State::Looking(_)) => self.state = State::Looking(now + AGAIN),
            (Event::Cleared, State::Clearing) => self.state = State::Looking(now),
            (Event::Granted(Some(lease)), State::Granting { asked }) => {
                self.state = State::Campaigning { lease, asked };
                effects.push(Effect::Campaign(lease));
            }
            (Event::Granted(None), State::Granting { .. }) => self.state = State::Looking(now + AGAIN),
            (Event::Campaigned(outcome), State::Campaigning { lease, asked }) => match outcome {
                Some(Txn::Committed(fence)) => {
                    self.state = State::Leading { lease, fence, kept: asked, keep_at: asked + KEEP_EVERY };
                    effects.push(Effect::Lead(Some(fence)));
                }
                // An unknown outcome is read, and cleared away if it was written.
                Some(Txn::Conflict | Txn::Unknown) => self.state = State::Looking(now),
                None => self.state = State::Looking(now + AGAIN),
            },
            (Event::Kept { lease, asked, is_kept }, State::Leading { lease: own, fence, kept, keep_at })
                if lease == own =>
            {
                match is_kept {
                    Some(true) => {
                        self.state = State::Leading { lease, fence, kept: kept.max(asked), keep_at }
                    }
                    Some(false) => self.step_down(now, effects),
                    None => {}
                }
            }
            _ => {}
        }
    }

    fn step_down(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.state = State::Looking(now);
        effects.push(Effect::Lead(None));
    }

    fn go_on(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if let State::Leading { kept, .. } = self.state
            && now >= kept + LEASE
        {
            // Others may lead by now, and this server would not hear of it.
            self.step_down(now, effects);
        }
        match self.state {
            State::Looking(at) if now >= at => {
                // Again, should the answer never come.
                self.state = State::Looking(now + LEASE);
                effects.push(Effect::Look);
                effects.push(Effect::WakeAt(now + LEASE));
            }
            State::Looking(at) => effects.push(Effect::WakeAt(at)),
            State::Leading { lease, fence, kept, keep_at } => {
                let mut next = keep_at;
                if now >= keep_at {
                    next = now + KEEP_EVERY;
                    effects.push(Effect::Keep(lease));
                }
                self.state = State::Leading { lease, fence, kept, keep_at: next };
                effects.push(Effect::WakeAt(next.min(kept + LEASE)));
            }
            State::Following | State::Clearing | State::Granting { .. } | State::Campaigning { .. } => {
                effects.push(Effect::WakeAt(now + LEASE));
            }
        }
    }
}

/// Stands for election as long as the server runs.
pub(crate) async fn stand(control: Control) {
    let store = control.inner.store.clone();
    let mut election = Election::new(&control.inner.node);
    let (answers, mut inbox) = tokio::sync::mpsc::unbounded_channel();
    let mut watch: Option<Box<dyn Watch>> = None;
    let mut pending = election.step(Event::Tick, control.clock().elapsed);
    let mut wake_at = Duration::ZERO;
    loop {
        for effect in std::mem::take(&mut pending) {
            let now = control.clock().elapsed;
            match effect {
                Effect::WakeAt(at) => wake_at = at,
                Effect::Lead(fence) => control.lead_or_follow(fence),
                Effect::Look => {
                    let (event, new_watch) = look(store.as_ref()).await;
                    watch = new_watch;
                    let _ = answers.send(event);
                }
                Effect::Campaign(lease) => {
                    let _ = answers.send(Event::Campaigned(campaign(&control, lease).await));
                }
                Effect::Clear(modified) => {
                    let guard = Guard::Modified { key: keys::LEADER.to_owned(), revision: modified };
                    // Whatever comes of it is read next.
                    let _ = store.txn(vec![guard], vec![Op::Delete { key: keys::LEADER.to_owned() }]).await;
                    let _ = answers.send(Event::Cleared);
                }
                Effect::Grant => {
                    let _ = answers.send(Event::Granted(store.lease_grant(LEASE).await.ok()));
                }
                Effect::Keep(lease) => {
                    let (store, answers) = (store.clone(), answers.clone());
                    tokio::spawn(async move {
                        let is_kept = match store.lease_keepalive(lease).await {
                            Ok(()) => Some(true),
                            Err(StoreError::NoLease(_)) => Some(false),
                            Err(_) => None,
                        };
                        let _ = answers.send(Event::Kept { lease, asked: now, is_kept });
                    });
                }
            }
        }
        let event = tokio::select! {
            event = inbox.recv() => event.expect("this holds a sender"),
            changed = next(&mut watch) => changed,
            () = tokio::time::sleep(wake_at.saturating_sub(control.clock().elapsed)) => Event::Tick,
        };
        pending = election.step(event, control.clock().elapsed);
    }
}

async fn look(store: &dyn Store) -> (Event, Option<Box<dyn Watch>>) {
    let Ok(read) = store.get(keys::LEADER).await else { return (Event::Unseen, None) };
    let Ok(watch) = store.watch(keys::LEADER, read.revision).await else { return (Event::Unseen, None) };
    (Event::Holder(read.value.map(|entry| holder(&entry))), Some(watch))
}

fn holder(entry: &rung_store::Entry) -> Holder {
    let node = String::from_utf8_lossy(&entry.value).into_owned();
    Holder { node, created: entry.created, modified: entry.modified }
}

async fn next(watch: &mut Option<Box<dyn Watch>>) -> Event {
    let Some(open) = watch else { return std::future::pending().await };
    match open.next().await {
        Ok(batch) => {
            let last = batch.events.into_iter().rev().find_map(|event| match event {
                StoreEvent::Put(entry) if entry.key == keys::LEADER => Some(Some(holder(&entry))),
                StoreEvent::Deleted { key } if key == keys::LEADER => Some(None),
                _ => None,
            });
            last.map_or(Event::Tick, Event::Holder)
        }
        Err(_) => {
            *watch = None;
            Event::Unseen
        }
    }
}

async fn campaign(control: &Control, lease: LeaseId) -> Option<Txn> {
    let guard = Guard::Absent { key: keys::LEADER.to_owned() };
    let value = control.inner.node.as_str().into();
    let put = Op::Put { key: keys::LEADER.to_owned(), value, lease: Some(lease) };
    control.inner.store.txn(vec![guard], vec![put]).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn holder(node: &str, created: Revision) -> Event {
        Event::Holder(Some(Holder { node: node.into(), created, modified: created }))
    }

    fn election() -> Election {
        let mut election = Election::new(&NodeId::new("here").unwrap());
        assert!(election.step(Event::Tick, at(0)).contains(&Effect::Look));
        election
    }

    fn leading() -> Election {
        let mut election = election();
        assert!(election.step(Event::Holder(None), at(1)).contains(&Effect::Grant));
        let lease = LeaseId(7);
        assert!(election.step(Event::Granted(Some(lease)), at(2)).contains(&Effect::Campaign(lease)));
        let won = election.step(Event::Campaigned(Some(Txn::Committed(40))), at(3));
        assert!(won.contains(&Effect::Lead(Some(40))), "{won:?}");
        election
    }

    #[test]
    fn a_server_follows_whoever_leads_and_stands_when_that_one_is_gone() {
        let mut election = election();
        assert_eq!(election.step(holder("there", 9), at(1)), [Effect::WakeAt(at(1) + LEASE)]);
        assert!(election.step(Event::Holder(None), at(9000)).contains(&Effect::Grant));
    }

    #[test]
    fn what_a_server_left_when_it_was_killed_is_cleared_at_once() {
        let mut election = election();
        assert!(
            election.step(holder("here", 9), at(1)).contains(&Effect::Clear(9)),
            "it waits for its own past"
        );
        assert!(election.step(Event::Cleared, at(2)).contains(&Effect::Look));
    }

    #[test]
    fn a_leader_keeps_its_lease_and_steps_down_when_it_can_not() {
        let mut election = leading();
        let lease = LeaseId(7);
        assert!(election.step(Event::Tick, at(801)).contains(&Effect::Keep(lease)));
        let kept = Event::Kept { lease, asked: at(801), is_kept: Some(true) };
        assert!(!election.step(kept, at(900)).contains(&Effect::Lead(None)));
        election.step(Event::Tick, at(1700));
        let unheard = Event::Kept { lease, asked: at(1700), is_kept: None };
        assert!(!election.step(unheard, at(3700)).contains(&Effect::Lead(None)), "the lease is not over yet");
        let over = election.step(Event::Tick, at(801) + LEASE);
        assert!(over.contains(&Effect::Lead(None)), "it leads on although its lease is over: {over:?}");
        assert!(over.contains(&Effect::Look));
    }

    #[test]
    fn a_leader_whose_key_is_anothers_steps_down_at_once() {
        for event in [holder("there", 41), holder("here", 41), Event::Holder(None)] {
            let effects = leading().step(event.clone(), at(50));
            assert!(effects.contains(&Effect::Lead(None)), "{event:?} gave {effects:?}");
        }
        assert!(
            !leading().step(holder("here", 40), at(50)).contains(&Effect::Lead(None)),
            "it is its own key"
        );
    }

    #[test]
    fn a_campaign_of_unknown_outcome_is_looked_up() {
        let mut election = election();
        election.step(Event::Holder(None), at(1));
        election.step(Event::Granted(Some(LeaseId(7))), at(2));
        assert!(election.step(Event::Campaigned(Some(Txn::Unknown)), at(3)).contains(&Effect::Look));
    }
}
