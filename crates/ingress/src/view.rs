//! The proxy's view of the cluster: which documents it holds and what it may acknowledge.
//!
//! A state machine without I/O: `step(event, now) -> effects`. The shell in [`crate::follow`] and the simulator drive
//! the same one. `now` is monotonic, counted from any fixed moment.
//!
//! ```text
//!            Answered, something new              every thread applied it; counted
//!  Polling ───────────────────────────► Applying ──────────────────────────────────┐
//!   ▲  │  ▲                                                                         │
//!   │  │  └─────────────────────────────────────────────────────────────────────────┘
//!   │  ├─ Answered, nothing new ──────► Waiting (until a moment after the poll was sent)
//!   │  └─ Failed ─────────────────────► Waiting (backoff)
//!   └─────────── its time came ────────────┘
//! ```
//!
//! Two promises live here. `after = g` is sent only once every thread picks from documents of `g` or newer. And
//! while a poll is outstanding, a draining instance whose last request ended makes it be abandoned and sent anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rung_api::wire::{ProxyDocuments, ProxyPoll};
use rung_model::{AppName, Generation, InstanceId, RouteDocument};

/// How long the server may keep a poll that has nothing to say. Below the idle limits of what may lie between.
pub const POLL_WAIT: Duration = Duration::from_secs(30);
/// Polls are not sent closer together than this unless something was applied in between, so that neither a burst of
/// drained instances nor a server that answers at once with nothing becomes a spin.
pub const POLL_SPACING: Duration = Duration::from_millis(10);
/// The first wait after a failure. A server that restarts on this machine is back within that order.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// A proxy counts as silent after 10 s: with this limit it is heard several times before.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The version that a thread holds which picks from no table any more. While a process drains its threads end one by
/// one, and those that are left must hear of new tables: what they hold waits for one.
pub const NEVER_AGAIN: u64 = u64::MAX;

/// What happened, as the shell saw it.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Once, at the start: the documents that were kept on disk.
    Started { documents: Vec<RouteDocument> },
    /// The answer to the poll with this ticket.
    Answered { ticket: u64, answer: ProxyDocuments },
    /// The poll with this ticket failed or was not understood.
    Failed { ticket: u64 },
    /// A thread picks from the table of this version, and from no older one, from now on; [`NEVER_AGAIN`] from one that
    /// has ended.
    Applied { thread: usize, version: u64 },
    /// Requests in flight of every draining instance, read just now. Given on [`Effect::Count`], and whenever one
    /// of them went down to zero.
    Counted { draining: BTreeMap<InstanceId, u64> },
    /// The moment that [`View::next_wake`] named has come.
    Tick,
}

/// What the shell shall do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Build a table of these documents and hand it to every thread; each reports [`Event::Applied`].
    /// A document that has not changed is the same one as before.
    Publish { version: u64, documents: Vec<Arc<RouteDocument>> },
    /// Keep the document on disk, in place of an older one.
    Keep(RouteDocument),
    /// Remove the app's document from disk.
    Forget(AppName),
    /// Read the counters of the draining instances and report [`Event::Counted`].
    Count,
    /// Send this poll now, abandoning an outstanding one.
    Poll { ticket: u64, poll: ProxyPoll, wait: Duration },
    /// Something was refused; say so in the log.
    Refused { what: String },
}

#[derive(Debug)]
enum Link {
    /// Not started yet.
    New,
    /// A table is on its way to the threads; the next poll acknowledges it.
    Applying,
    /// `reported` went out with the poll. `again_at` is set when it shall be abandoned then.
    Polling {
        sent: Duration,
        reported: BTreeMap<InstanceId, u64>,
        again_at: Option<Duration>,
    },
    Waiting {
        until: Duration,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct View {
    documents: BTreeMap<AppName, Arc<RouteDocument>>,
    /// Of the newest answer that was taken in; nothing older is.
    known: Generation,
    /// What every thread picks from: the `after` of polls.
    acknowledged: Generation,
    /// Of the newest table that was published.
    version: u64,
    /// The version that each thread picks from.
    threads: Vec<u64>,
    link: Link,
    ticket: u64,
    failures: u32,
    /// The server was heard since the start.
    heard: bool,
}

impl View {
    /// `threads` is how many of them pick instances; each will report [`Event::Applied`].
    pub fn new(threads: usize) -> Self {
        Self {
            documents: BTreeMap::new(),
            known: Generation::ZERO,
            acknowledged: Generation::ZERO,
            version: 0,
            threads: vec![0; threads],
            link: Link::New,
            ticket: 0,
            failures: 0,
            heard: false,
        }
    }

    /// What every thread picks from.
    pub fn acknowledged(&self) -> Generation {
        self.acknowledged
    }

    /// Whether the server's word was heard and every thread picks by it.
    pub fn is_current(&self) -> bool {
        self.heard && !matches!(self.link, Link::Applying | Link::New)
    }

    /// Whether the server was heard since the start.
    pub fn is_heard(&self) -> bool {
        self.heard
    }

    /// Whether every thread picks from the newest table.
    pub fn is_applied(&self) -> bool {
        self.version > 0 && self.threads.iter().all(|held| *held >= self.version)
    }

    pub fn documents(&self) -> &BTreeMap<AppName, Arc<RouteDocument>> {
        &self.documents
    }

    /// Instances that the held documents name as draining.
    pub fn draining(&self) -> BTreeSet<&InstanceId> {
        let backends = self.documents.values().flat_map(|document| document.backends.values());
        backends.flat_map(|backend| &backend.draining).map(|endpoint| &endpoint.instance).collect()
    }

    /// When [`Event::Tick`] shall come, unless another event changes it.
    pub fn next_wake(&self) -> Option<Duration> {
        match &self.link {
            Link::Waiting { until } => Some(*until),
            Link::Polling { again_at, .. } => *again_at,
            Link::New | Link::Applying => None,
        }
    }

    /// Takes an event in and says what shall be done. Events that are out of date change nothing.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        match event {
            Event::Started { documents } => self.start(documents),
            Event::Answered { ticket, answer } if self.is_outstanding(ticket) => self.take_in(answer, now),
            Event::Failed { ticket } if self.is_outstanding(ticket) => {
                self.back_off(now);
                Vec::new()
            }
            Event::Answered { .. } | Event::Failed { .. } => Vec::new(),
            Event::Applied { thread, version } => self.applied(thread, version),
            Event::Counted { draining } => self.counted(draining, now),
            Event::Tick => self.tick(now),
        }
    }

    fn is_outstanding(&self, ticket: u64) -> bool {
        ticket == self.ticket && matches!(self.link, Link::Polling { .. })
    }

    fn start(&mut self, documents: Vec<RouteDocument>) -> Vec<Effect> {
        if !matches!(self.link, Link::New) {
            return Vec::new();
        }
        for document in documents {
            self.known = self.known.max(document.generation);
            self.documents.insert(document.app.clone(), Arc::new(document));
        }
        // `acknowledged` stays zero: what was on disk is served, and asked for again, not acknowledged.
        self.publish()
    }

    fn publish(&mut self) -> Vec<Effect> {
        self.version += 1;
        self.link = Link::Applying;
        vec![Effect::Publish { version: self.version, documents: self.documents.values().cloned().collect() }]
    }

    fn take_in(&mut self, answer: ProxyDocuments, now: Duration) -> Vec<Effect> {
        if answer.generation < self.known {
            let what = format!("routes of generation {}: {} is held", answer.generation, self.known);
            self.back_off(now);
            return vec![Effect::Refused { what }];
        }
        let mut effects = Vec::new();
        let gone: Vec<AppName> = if answer.whole {
            let named: BTreeSet<&AppName> = answer.documents.iter().map(|document| &document.app).collect();
            self.documents.keys().filter(|app| !named.contains(app)).cloned().collect()
        } else {
            answer.removed
        };
        let mut changed = answer.generation > self.known || !self.heard;
        for app in gone {
            changed |= self.documents.remove(&app).is_some();
            effects.push(Effect::Forget(app));
        }
        for document in answer.documents {
            let held = self.documents.get(&document.app).map(|held| held.generation);
            if held > Some(document.generation) {
                let what = format!("routes of {} of generation {}", document.app, document.generation);
                effects.push(Effect::Refused { what });
                continue;
            }
            if self.documents.get(&document.app).is_none_or(|held| **held != document) {
                changed = true;
                effects.push(Effect::Keep(document.clone()));
                self.documents.insert(document.app.clone(), Arc::new(document));
            }
        }
        self.known = answer.generation;
        self.failures = 0;
        self.heard = true;
        if changed {
            // Threads first: what is on disk matters only to the next start.
            let mut all = self.publish();
            all.append(&mut effects);
            return all;
        }
        let Link::Polling { sent, .. } = self.link else { return effects };
        self.link = Link::Waiting { until: now.max(sent + POLL_SPACING) };
        effects.extend(self.tick(now));
        effects
    }

    fn back_off(&mut self, now: Duration) {
        let wait = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(10)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.link = Link::Waiting { until: now + wait };
    }

    fn applied(&mut self, thread: usize, version: u64) -> Vec<Effect> {
        if let Some(held) = self.threads.get_mut(thread) {
            *held = version.max(*held);
        }
        if self.is_applied() && matches!(self.link, Link::Applying) {
            if self.heard {
                self.acknowledged = self.known;
            }
            // The counters are read after the last thread's word: no thread adds to them any more.
            return vec![Effect::Count];
        }
        Vec::new()
    }

    fn counted(&mut self, draining: BTreeMap<InstanceId, u64>, now: Duration) -> Vec<Effect> {
        let everywhere = self.is_applied();
        match &mut self.link {
            Link::Applying if everywhere => self.poll(draining, now),
            Link::Polling { sent, reported, again_at } => {
                let news = draining.iter().any(|(id, count)| *count == 0 && reported.get(id) != Some(&0));
                if !news {
                    return Vec::new();
                }
                let allowed = *sent + POLL_SPACING;
                if now >= allowed {
                    return self.poll(draining, now);
                }
                *again_at = Some(allowed);
                Vec::new()
            }
            Link::New | Link::Applying | Link::Waiting { .. } => Vec::new(),
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<Effect> {
        match &mut self.link {
            Link::Waiting { until } if now >= *until => {
                // A table is everywhere, or `Applying` would hold; only the counters are missing.
                self.link = Link::Applying;
                vec![Effect::Count]
            }
            Link::Polling { again_at, .. } if again_at.is_some_and(|at| now >= at) => {
                *again_at = None;
                vec![Effect::Count]
            }
            _ => Vec::new(),
        }
    }

    fn poll(&mut self, draining: BTreeMap<InstanceId, u64>, now: Duration) -> Vec<Effect> {
        self.ticket += 1;
        self.link = Link::Polling { sent: now, reported: draining.clone(), again_at: None };
        let poll = ProxyPoll { after: self.acknowledged, draining, whole: !self.heard };
        vec![Effect::Poll { ticket: self.ticket, poll, wait: POLL_WAIT }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rung_model::{Backend, DeploymentNumber, Endpoint, ReleaseNumber, ServiceName};

    fn endpoint(id: &str) -> Endpoint {
        Endpoint {
            node: None,
            proxy: None,
            instance: InstanceId::new(id).unwrap(),
            address: "127.0.0.1:20000".parse().unwrap(),
            release: ReleaseNumber(1),
            cohort: DeploymentNumber(1),
            weight: 1,
        }
    }

    fn document(app: &str, revision: u64, routed: &[&str], draining: &[&str]) -> RouteDocument {
        let backend = Backend {
            endpoints: routed.iter().map(|id| endpoint(id)).collect(),
            draining: draining.iter().map(|id| endpoint(id)).collect(),
            protocol: rung_model::Protocol::Http1,
            hold: None,
            response_timeout: Duration::from_secs(30),
            explanation: String::new(),
            absence: Default::default(),
            split: None,
        };
        RouteDocument {
            generation: Generation::new(1, revision),
            ..RouteDocument::new(
                AppName::new(app).unwrap(),
                vec![format!("{app}.localhost")],
                Vec::new(),
                [(ServiceName::new("web").unwrap(), backend)].into(),
            )
        }
    }

    fn answer(revision: u64, whole: bool, documents: Vec<RouteDocument>) -> ProxyDocuments {
        ProxyDocuments { generation: Generation::new(1, revision), whole, documents, removed: Vec::new() }
    }

    const AT: Duration = Duration::from_secs(1);

    /// Reports every thread, counts as told, and returns the poll that follows.
    fn settle(view: &mut View, threads: usize, counts: &[(&str, u64)], now: Duration) -> ProxyPoll {
        for thread in 0..threads {
            view.step(Event::Applied { thread, version: view.version }, now);
        }
        let draining = counts.iter().map(|(id, n)| (InstanceId::new(*id).unwrap(), *n)).collect();
        let effects = view.step(Event::Counted { draining }, now);
        let [Effect::Poll { poll, .. }] = &effects[..] else { panic!("no poll was sent: {effects:?}") };
        poll.clone()
    }

    fn started(threads: usize) -> View {
        let mut view = View::new(threads);
        view.step(Event::Started { documents: Vec::new() }, AT);
        view
    }

    #[test]
    fn a_generation_is_acknowledged_only_when_the_last_thread_picks_from_it() {
        let mut view = started(2);
        let first = settle(&mut view, 2, &[], AT);
        assert!(first.whole, "a proxy that heard nothing yet asks for everything");
        assert_eq!(first.after, Generation::ZERO);

        let effects = view.step(
            Event::Answered { ticket: 1, answer: answer(5, true, vec![document("shop", 4, &["a-1"], &[])]) },
            AT,
        );
        assert!(
            matches!(effects[0], Effect::Publish { version: 2, .. }),
            "nothing was published: {effects:?}"
        );
        assert_eq!(
            view.step(Event::Applied { thread: 0, version: 2 }, AT),
            [],
            "one thread still picks from old"
        );
        assert_eq!(
            view.step(Event::Counted { draining: BTreeMap::new() }, AT),
            [],
            "polled before the last thread"
        );
        assert_eq!(view.acknowledged(), Generation::ZERO);
        let poll = settle(&mut view, 2, &[], AT);
        assert_eq!(poll.after, Generation::new(1, 5));
        assert!(!poll.whole);
    }

    #[test]
    fn threads_that_have_ended_are_not_waited_for_so_that_what_is_held_hears_of_new_tables() {
        let mut view = started(2);
        settle(&mut view, 2, &[], AT);
        view.step(Event::Applied { thread: 0, version: NEVER_AGAIN }, AT);
        for revision in [5, 6] {
            let ticket = view.ticket;
            let news = answer(revision, true, vec![document("shop", revision, &["a-1"], &[])]);
            view.step(Event::Answered { ticket, answer: news }, AT);
            view.step(Event::Applied { thread: 1, version: view.version }, AT);
            let effects = view.step(Event::Counted { draining: BTreeMap::new() }, AT);
            let [Effect::Poll { poll, .. }] = &effects[..] else { panic!("it polls no more: {effects:?}") };
            assert_eq!(poll.after, Generation::new(1, revision));
        }
    }

    #[test]
    fn what_is_older_than_what_is_held_is_refused() {
        let mut view = started(1);
        settle(&mut view, 1, &[], AT);
        let newest = vec![document("shop", 9, &["a-2"], &[])];
        view.step(Event::Answered { ticket: 1, answer: answer(9, true, newest.clone()) }, AT);
        settle(&mut view, 1, &[], AT);
        let stale = answer(8, true, vec![document("shop", 7, &["a-1"], &[])]);
        let effects = view.step(Event::Answered { ticket: 2, answer: stale }, AT);
        assert!(matches!(effects[..], [Effect::Refused { .. }]), "an older answer was taken in: {effects:?}");
        let held: Vec<RouteDocument> = view.documents().values().map(|held| (**held).clone()).collect();
        assert_eq!(held, newest);
        assert!(view.next_wake().is_some_and(|at| at > AT), "it asks again at once, without a pause");
    }

    #[test]
    fn the_last_request_of_a_draining_instance_makes_the_poll_be_sent_anew() {
        let mut view = started(1);
        settle(&mut view, 1, &[], AT);
        let answer = answer(5, true, vec![document("shop", 5, &["a-2"], &["a-1"])]);
        view.step(Event::Answered { ticket: 1, answer }, AT);
        let poll = settle(&mut view, 1, &[("a-1", 3)], AT);
        assert_eq!(poll.draining[&InstanceId::new("a-1").unwrap()], 3);

        let zero: BTreeMap<_, _> = [(InstanceId::new("a-1").unwrap(), 0)].into();
        let early = AT + Duration::from_millis(2);
        assert_eq!(
            view.step(Event::Counted { draining: zero.clone() }, early),
            [],
            "sent without any spacing"
        );
        let allowed = view.next_wake().expect("it shall be sent a little later");
        assert_eq!(view.step(Event::Tick, allowed), [Effect::Count]);
        let effects = view.step(Event::Counted { draining: zero.clone() }, allowed);
        let [Effect::Poll { ticket: 3, poll, .. }] = &effects[..] else {
            panic!("not sent anew: {effects:?}")
        };
        assert_eq!(poll.draining, zero);
        assert_eq!(
            view.step(Event::Failed { ticket: 2 }, allowed),
            [],
            "the abandoned poll's end was counted"
        );
        assert_eq!(
            view.step(Event::Counted { draining: zero }, allowed + AT),
            [],
            "zero was reported already"
        );
    }

    #[test]
    fn documents_on_disk_are_served_but_not_acknowledged() {
        let mut view = View::new(1);
        let kept = document("shop", 4, &["a-1"], &[]);
        let effects = view.step(Event::Started { documents: vec![kept.clone()] }, AT);
        assert_eq!(effects, [Effect::Publish { version: 1, documents: vec![Arc::new(kept)] }]);
        let poll = settle(&mut view, 1, &[], AT);
        assert_eq!(poll.after, Generation::ZERO);
        assert!(poll.whole);
        let mut last = Duration::ZERO;
        for ticket in 1..12 {
            view.step(Event::Failed { ticket }, AT);
            let wake = view.next_wake().expect("a failed poll is tried again");
            assert!(wake - AT >= last.min(BACKOFF_MAX), "the pause became shorter");
            last = wake - AT;
            assert_eq!(view.step(Event::Tick, wake), [Effect::Count]);
            view.step(Event::Counted { draining: BTreeMap::new() }, wake);
        }
        assert_eq!(last, BACKOFF_MAX);
        assert_eq!(view.documents().len(), 1, "an outage of the server took the routes away");
    }

    #[test]
    fn an_app_that_is_gone_is_forgotten() {
        let mut view = started(1);
        settle(&mut view, 1, &[], AT);
        let both = vec![document("blog", 1, &[], &[]), document("shop", 2, &[], &[])];
        view.step(Event::Answered { ticket: 1, answer: answer(2, true, both) }, AT);
        settle(&mut view, 1, &[], AT);
        let mut less = answer(3, false, Vec::new());
        less.removed.push(AppName::new("blog").unwrap());
        let effects = view.step(Event::Answered { ticket: 2, answer: less }, AT);
        assert!(effects.contains(&Effect::Forget(AppName::new("blog").unwrap())), "{effects:?}");
        assert_eq!(view.documents().len(), 1);
    }
}
