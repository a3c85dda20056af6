//! Who waits for what in the index: each change wakes those whom it concerns.
//!
//! Thousands of agents wait for their own assignments and for the list of members. Waking all of them with each report of
//! one would make a deployment that touches them all cost the square of their number.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use rung_model::{NodeId, keys};
use rung_store::{Event as StoreEvent, Revision};
use tokio::sync::{oneshot, watch};

use crate::reconcile::Event;

/// What is waited for by so many that it is told apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    Assignment(NodeId),
    Members,
}

/// Whom an event concerns, beside those who wait for anything.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Concern {
    Topics(Vec<Topic>),
    All,
}

impl Concern {
    pub fn of(event: &Event) -> Self {
        match event {
            Event::Listed { .. } => Self::All,
            Event::Changed(batch) | Event::ChangedOnTheWay(batch) => {
                let keys = batch.events.iter().map(StoreEvent::key);
                let topics: Option<Vec<Vec<Topic>>> = keys.map(topics).collect();
                topics.map_or(Self::All, |topics| Self::Topics(topics.concat()))
            }
            _ => Self::Topics(Vec::new()),
        }
    }
}

/// `None`: all of them.
fn topics(key: &str) -> Option<Vec<Topic>> {
    if key == keys::FROZEN {
        return None;
    }
    let node = key.strip_prefix(keys::ASSIGN).and_then(|node| NodeId::new(node).ok());
    let members = key.starts_with(keys::MEMBERS).then_some(Topic::Members);
    Some(node.map(Topic::Assignment).into_iter().chain(members).collect())
}

#[derive(Debug, Default)]
pub(crate) struct Bells {
    topics: Mutex<BTreeMap<Topic, watch::Sender<()>>>,
    revisions: Mutex<BTreeMap<Revision, Vec<oneshot::Sender<()>>>>,
}

impl Bells {
    pub fn subscribe(&self, topic: Topic) -> watch::Receiver<()> {
        self.topics().entry(topic).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    /// Told when the index holds everything up to this revision.
    pub fn at(&self, revision: Revision) -> oneshot::Receiver<()> {
        let (bell, told) = oneshot::channel();
        self.revisions().entry(revision).or_default().push(bell);
        told
    }

    /// The index has taken an event in, and is at this revision now.
    pub fn ring(&self, concern: &Concern, revision: Revision) {
        let mut bells = self.topics();
        match concern {
            // Those that nobody listens to are for later.
            Concern::All => bells.values().for_each(|bell| bell.send_replace(())),
            Concern::Topics(topics) => {
                for topic in topics {
                    // What nobody waits for is made anew by the next one who does.
                    if bells.get(topic).is_some_and(|bell| bell.send(()).is_err()) {
                        bells.remove(topic);
                    }
                }
            }
        }
        drop(bells);
        let mut waiting = self.revisions();
        let later = waiting.split_off(&(revision + 1));
        for bell in std::mem::replace(&mut *waiting, later).into_values().flatten() {
            // Whoever does not wait any more does not hear it.
            let _ = bell.send(());
        }
    }

    fn topics(&self) -> MutexGuard<'_, BTreeMap<Topic, watch::Sender<()>>> {
        self.topics.lock().expect("ringing does not panic")
    }

    fn revisions(&self) -> MutexGuard<'_, BTreeMap<Revision, Vec<oneshot::Sender<()>>>> {
        self.revisions.lock().expect("ringing does not panic")
    }
}

#[cfg(test)]
mod tests {
    use rung_store::Batch;

    use super::*;

    fn changed(keys: &[&str]) -> Event {
        let events = keys.iter().map(|key| StoreEvent::Deleted { key: (*key).to_owned() }).collect();
        Event::Changed(Batch { revision: 7, events })
    }

    fn assignment(node: &str) -> Topic {
        Topic::Assignment(NodeId::new(node).unwrap())
    }

    #[test]
    fn a_report_wakes_no_agent_and_an_assignment_its_own() {
        let bells = Bells::default();
        let (mut a, mut b) = (bells.subscribe(assignment("a")), bells.subscribe(assignment("b")));
        let mut members = bells.subscribe(Topic::Members);
        let heard = |bell: &mut watch::Receiver<()>| {
            let heard = bell.has_changed().unwrap();
            bell.borrow_and_update();
            heard
        };
        let mut ring = |event: Event| {
            bells.ring(&Concern::of(&event), 7);
            (heard(&mut a), heard(&mut b), heard(&mut members))
        };
        assert_eq!(ring(changed(&["observed/a", "runs/shop/1"])), (false, false, false));
        assert_eq!(ring(changed(&["observed/a", "assign/b"])), (false, true, false));
        assert_eq!(ring(changed(&["members/c", "assign/a"])), (true, false, true));
        assert_eq!(ring(changed(&["frozen"])), (true, true, true), "what is frozen concerns everybody");
    }

    #[test]
    fn a_write_is_seen_when_the_index_has_reached_it() {
        let bells = Bells::default();
        let (mut sixth, mut eighth) = (bells.at(6), bells.at(8));
        bells.ring(&Concern::Topics(Vec::new()), 7);
        assert!(sixth.try_recv().is_ok(), "revision 7 holds revision 6");
        assert!(eighth.try_recv().is_err(), "revision 8 is not there yet");
        bells.ring(&Concern::Topics(Vec::new()), 8);
        assert!(eighth.try_recv().is_ok());
    }
}
