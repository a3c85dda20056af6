//! Telling webhooks of deployments that ended.
//!
//! What is to be told stands in the deployment itself, written with its end, so a restart forgets nothing; that it was
//! told is written there, too. Between the two lies the sending: told at least once, with an id that tells doubles. A
//! webhook that does not take it is tried again with growing pauses, a bounded number of times; no deployment waits.
//!
//! [`Outbox`] decides what is sent when, without clock or network; [`tell_of_ends`] is the shell around it.

mod message;
mod post;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use rung_model::{AppName, Deployment, DeploymentNumber, Notification, NotificationState, Release, keys};
use rung_planner::World;
use rung_store::{Guard, Op};
use tokio::sync::mpsc;

use crate::shared::{ATTEMPTS, Committed, Control};

/// With the pauses between them they reach over half an hour: longer than a deploy of whatever listens there.
const TRIES_MAX: u32 = 12;
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Webhooks that hang must not gather.
const SENDING_MAX: usize = 4;
/// The index changes often, and nobody waits for a webhook by the millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Without any change: what failed for want of the store is looked at again.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);

type Key = (AppName, DeploymentNumber);

/// Which ends are being told, and when the others are due.
#[derive(Debug, Default)]
struct Outbox {
    tries: BTreeMap<Key, Try>,
}

#[derive(Debug)]
struct Try {
    count: u32,
    /// `None` while it is being sent.
    due: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Delivered,
    Again,
    GiveUp(String),
}

impl Outbox {
    /// What is to be sent now, of all that waits.
    fn take_due(&mut self, pending: &BTreeSet<Key>, now: Duration) -> Vec<Key> {
        self.tries.retain(|key, known| known.due.is_none() || pending.contains(key));
        let mut sending = self.tries.values().filter(|known| known.due.is_none()).count();
        let mut taken = Vec::new();
        for key in pending {
            let known = self.tries.entry(key.clone()).or_insert(Try { count: 0, due: Some(Duration::ZERO) });
            if sending < SENDING_MAX && known.due.is_some_and(|due| due <= now) {
                known.due = None;
                sending += 1;
                taken.push(key.clone());
            }
        }
        taken
    }

    /// When the next one is due, of those that wait for their time.
    fn next_due(&self) -> Option<Duration> {
        self.tries.values().filter_map(|known| known.due).min()
    }

    fn sent(&mut self, key: &Key, outcome: Result<(), String>, now: Duration) -> Verdict {
        let known = self.tries.entry(key.clone()).or_insert(Try { count: 0, due: None });
        known.count += 1;
        let why = match outcome {
            Ok(()) => {
                self.tries.remove(key);
                return Verdict::Delivered;
            }
            Err(why) => why,
        };
        if known.count >= TRIES_MAX {
            let reason = format!("tried {TRIES_MAX} times; the last time {why}");
            self.tries.remove(key);
            return Verdict::GiveUp(reason);
        }
        let pause = PAUSE_FIRST.saturating_mul(1 << (known.count - 1)).min(PAUSE_MAX);
        known.due = Some(now + pause);
        Verdict::Again
    }
}

/// Runs as long as the server.
pub(crate) async fn tell_of_ends(control: Control) {
    let mut outbox = Outbox::default();
    let mut changes = control.inner.changes.subscribe();
    let (answers, mut answered) = mpsc::unbounded_channel();
    loop {
        // Among several servers the one that plans tells.
        let pending = control.read_loop(|reconcile| match reconcile.leads() {
            true => pending(reconcile.world()),
            false => BTreeSet::new(),
        });
        for key in outbox.take_due(&pending, control.clock().elapsed) {
            let (control, answers) = (control.clone(), answers.clone());
            tokio::spawn(async move {
                let outcome = control.send_end(&key).await;
                let _ = answers.send((key, outcome));
            });
        }
        let now = control.clock().elapsed;
        let until_due = outbox.next_due().map(|due| due.saturating_sub(now)).unwrap_or(LOOK_ANYWAY);
        let wait = until_due.clamp(LOOK_EVERY, LOOK_ANYWAY);
        tokio::select! {
            Some((key, outcome)) = answered.recv() => {
                if let Err(why) = &outcome {
                    tracing::warn!(app = %key.0, deployment = %key.1, why, "a webhook was not told");
                }
                let state = match outbox.sent(&key, outcome, control.clock().elapsed) {
                    Verdict::Delivered => NotificationState::Delivered { at: Timestamp::now() },
                    Verdict::GiveUp(reason) => NotificationState::GivenUp { reason },
                    Verdict::Again => continue,
                };
                control.settle_notification(&key, state).await;
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Deployments whose end is still to be told.
fn pending(world: &World) -> BTreeSet<Key> {
    let all = world.deployments.values().flat_map(|of_app| of_app.values()).map(|held| &held.value);
    let waits = |deployment: &&Deployment| {
        let notification = deployment.notification.as_ref();
        notification.is_some_and(|notification| notification.state == NotificationState::Pending)
    };
    all.filter(waits).map(|deployment| (deployment.app.clone(), deployment.number)).collect()
}

impl Control {
    /// Sends one; `Err` says why it did not arrive.
    async fn send_end(&self, (app, number): &Key) -> Result<(), String> {
        let found = self.read(|world| {
            let deployment = world.deployment(app, *number)?.clone();
            let release = deployment.release.and_then(|number| world.release(app, number)).cloned();
            Some((deployment, release))
        });
        let Some((deployment, release)) = found else { return Ok(()) };
        let Some(notification) = deployment.notification.clone() else { return Ok(()) };
        let Notification { webhook, secret, .. } = notification;
        let secret = match secret {
            Some((name, version)) => {
                let opened = self.open_secret(app, &name, version).await;
                Some(opened.map_err(|error| error.message)?)
            }
            None => None,
        };
        self.post_end(&webhook, secret.as_deref(), &deployment, release.as_ref()).await
    }

    async fn post_end(
        &self,
        webhook: &str,
        secret: Option<&str>,
        deployment: &Deployment,
        release: Option<&Release>,
    ) -> Result<(), String> {
        let body = message::body(deployment, release);
        let mut headers = vec![
            ("rung-delivery", message::id(deployment)),
            ("rung-event", message::EVENT.to_owned()),
            ("user-agent", format!("rung/{}", self.inner.version)),
        ];
        if let Some(secret) = secret {
            headers.push(("rung-signature", message::signature(secret, Timestamp::now(), &body)));
        }
        post::post(webhook, &headers, body).await
    }

    async fn settle_notification(&self, (app, number): &Key, state: NotificationState) {
        for _ in 0..ATTEMPTS {
            let held = self.read(|world| world.deployments.get(app)?.get(number).cloned());
            let Some(held) = held else { return };
            let mut deployment = held.value;
            let Some(notification) = &mut deployment.notification else { return };
            notification.state = state.clone();
            let key = keys::deployment(app, *number);
            let value = self.encode(&key, &deployment);
            let guard = Guard::Modified { key: key.clone(), revision: held.revision };
            match self.commit(vec![guard], vec![Op::Put { key, value, lease: None }]).await {
                Ok(Committed::Done) => return,
                Ok(Committed::Conflict) => {}
                // It is told once more then: at least once is what is promised.
                Err(error) => {
                    tracing::warn!(%app, deployment = %number, %error, "what became of a webhook was not written");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Key {
        (AppName::new("shop").unwrap(), DeploymentNumber(n))
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn what_does_not_arrive_is_tried_again_with_growing_pauses_and_then_given_up() {
        let mut outbox = Outbox::default();
        let pending = BTreeSet::from([key(1)]);
        let mut now = seconds(0);
        let mut pauses = Vec::new();
        let reason = loop {
            assert_eq!(outbox.take_due(&pending, now), [key(1)]);
            assert!(outbox.take_due(&pending, now).is_empty(), "it is being sent already");
            match outbox.sent(&key(1), Err("status 500".into()), now) {
                Verdict::Again => {
                    let due = outbox.next_due().expect("it waits");
                    assert!(outbox.take_due(&pending, due - seconds(1) / 2).is_empty(), "it did not wait");
                    pauses.push((due - now).as_secs());
                    now = due;
                }
                Verdict::GiveUp(reason) => break reason,
                Verdict::Delivered => panic!("it did not arrive"),
            }
        };
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(reason, "tried 12 times; the last time status 500");
    }

    #[test]
    fn few_are_sent_at_once_and_one_that_arrived_is_done() {
        let mut outbox = Outbox::default();
        let pending: BTreeSet<Key> = (1..=6).map(key).collect();
        assert_eq!(outbox.take_due(&pending, seconds(0)).len(), SENDING_MAX);
        assert_eq!(outbox.sent(&key(1), Ok(()), seconds(0)), Verdict::Delivered);
        let left: BTreeSet<Key> = (2..=6).map(key).collect();
        assert_eq!(outbox.take_due(&left, seconds(0)), [key(5)]);
    }
}
