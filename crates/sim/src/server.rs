//! The server: the leader's loop over the store, and what agents and proxies ask of it.

use std::time::Duration;

use jiff::Timestamp;
use rung_agent::converge;
use rung_control::reconcile::{Effect, Event, PollId, Reconcile, StepId};
use rung_model::traffic::Counts;
use rung_model::{
    AppName, DeploymentNumber, Document, Generation, Node, NodeFacts, Observed, ReleaseNumber, keys,
};
use rung_planner::Clock;
use rung_store::{Entry, Guard, Op, Revision, Txn};

use crate::agenda::{Happening, Life};
use crate::faults::Fate;
use crate::story::{Story, say};
use crate::wiring::Wiring;

/// How the proxy calls itself, in every life.
pub const PROXY: &str = "ingress";
const LONG_POLL: Duration = Duration::from_secs(30);
/// Small, so that listings often take several pages.
const PAGE: usize = 12;

#[derive(Debug, Default)]
pub struct Server {
    pub life: Life,
    /// `None`: it is not running.
    pub reconcile: Option<Reconcile>,
    began: Duration,
    began_by_the_wall: Timestamp,
    /// What passed since then by that clock, as far as it went forward.
    by_the_wall: Duration,
    watching_from: Option<Revision>,
    listing: Option<Listing>,
    next_tick: Option<Duration>,
    assignment_polls: Vec<AssignmentPoll>,
    routes_polls: Vec<RoutesPoll>,
    polls: u64,
}

#[derive(Debug, Default)]
struct Listing {
    revision: Option<Revision>,
    entries: Vec<Entry>,
    from: Option<String>,
}

#[derive(Debug)]
struct AssignmentPoll {
    life: Life,
    poll: u64,
    after: Generation,
}

#[derive(Debug)]
struct RoutesPoll {
    life: Life,
    ticket: u64,
    id: PollId,
    after: Generation,
    whole: bool,
}

impl Story {
    /// The machine registers once; it never leaves.
    pub fn join(&mut self) {
        let facts = NodeFacts {
            agent: "unix:agent.sock".into(),
            proxy: None,
            version: "1".into(),
            cpu_millis: 2000,
            memory_bytes: 1 << 34,
            engine: rung_model::node::ContainerEngine::default(),
            disk_bytes: None,
            short_of_disk: None,
            labels: Default::default(),
            lease_ms: None,
            isolation: Vec::new(),
        };
        let node = Node { id: self.node.clone(), number: 1, facts, labels: Default::default(), drain: None };
        let value = node.to_json();
        let put = Op::Put { key: keys::node(&node.id), value, lease: None };
        self.store.txn(&[], vec![put]).expect("the store is empty");
    }

    pub fn server_clock(&self) -> Clock {
        let elapsed = match self.wiring {
            Wiring::MeasuresByTheWall => self.server.by_the_wall,
            _ => self.now.saturating_sub(self.server.began),
        };
        Clock { elapsed, wall: self.wall() }
    }

    /// Reads the clock that people set, for a shell that takes it for the time that passes.
    fn look_at_the_wall(&mut self) {
        let since = self.wall().duration_since(self.server.began_by_the_wall);
        self.server.by_the_wall = self.server.by_the_wall.max(Duration::try_from(since).unwrap_or_default());
    }

    // Its life.

    pub fn start_server(&mut self) {
        if self.server.reconcile.is_some() {
            return;
        }
        if self.store_is_down() {
            self.after(Duration::from_millis(200), Happening::ServerStarts);
            return;
        }
        if let Some(held) = self.store.get(keys::LEADER).value {
            self.store.txn(&[], vec![Op::Delete { key: held.key }]).expect("it is one small operation");
        }
        let put = Op::Put { key: keys::LEADER.to_owned(), value: b"box".to_vec(), lease: None };
        let Ok(Txn::Committed(fence)) = self.store.txn(&[], vec![put]) else {
            self.fail("taking the lead did not work");
            return;
        };
        self.server = Server {
            life: Life(self.server.life.0 + 1),
            reconcile: Some(Reconcile::new(self.store.epoch(), fence)),
            began: self.now,
            began_by_the_wall: self.wall(),
            polls: self.server.polls,
            ..Server::default()
        };
        say!(self, "server {} leads with fence {fence}", self.server.life.0);
        self.list();
    }

    pub fn kill_server(&mut self) {
        if self.server.reconcile.take().is_none() {
            return;
        }
        say!(self, "server {} is killed", self.server.life.0);
        for poll in std::mem::take(&mut self.server.assignment_polls) {
            self.soon(Happening::AssignmentAnswered { life: poll.life, poll: poll.poll, answer: Err(()) });
        }
        for poll in std::mem::take(&mut self.server.routes_polls) {
            self.soon(Happening::RoutesFailed { life: poll.life, ticket: poll.ticket });
        }
        let delay = if self.once_in(4) { self.between_ms(2000, 15_000) } else { self.between_ms(5, 500) };
        self.after(delay, Happening::ServerStarts);
    }

    fn is_server(&self, life: Life) -> bool {
        self.server.reconcile.is_some() && self.server.life == life
    }

    // The machine.

    pub fn step_server(&mut self, event: Event) {
        self.look_at_the_wall();
        let clock = self.server_clock();
        let Some(reconcile) = &mut self.server.reconcile else { return };
        let effects = reconcile.step(event, clock);
        self.audit_silence();
        let life = self.server.life;
        for effect in effects {
            if self.faulty(|faults| faults.killed_between) {
                self.kill_server();
            }
            if !self.is_server(life) {
                return;
            }
            self.carry_out_of_server(effect);
        }
        self.answer_polls();
    }

    fn carry_out_of_server(&mut self, effect: Effect) {
        match effect {
            Effect::Commit { step, why, guards, ops } => {
                say!(self, "server commits: {why}");
                self.audit_plan(&ops);
                let delay = self.between_ms(0, 4);
                let life = self.server.life;
                self.after(delay, Happening::Commit { life, step, guards, ops });
            }
            Effect::List => self.list(),
            Effect::WakeAt(at) => {
                let at = self.now + at.saturating_sub(self.server_clock().elapsed);
                if self.server.next_tick != Some(at) {
                    self.server.next_tick = Some(at);
                    self.agenda.at(at, Happening::ServerTick(self.server.life));
                }
            }
            Effect::Undecodable(what) => self.fail(format!("a stored document can't be read: {what}")),
        }
    }

    pub fn tick_server(&mut self, life: Life) {
        if self.is_server(life) && self.server.next_tick.is_some_and(|at| at <= self.now) {
            self.server.next_tick = None;
            self.step_server(Event::Tick);
        }
    }

    // The store.

    fn list(&mut self) {
        self.server.watching_from = None;
        self.server.listing = Some(Listing::default());
        let delay = self.between_ms(0, 20);
        self.after(delay, Happening::ListPage(self.server.life));
    }

    pub fn list_page(&mut self, life: Life) {
        let Some(listing) = self.server.listing.as_mut().filter(|_| self.server.life == life) else { return };
        let read = self.store.list("", listing.from.as_deref(), PAGE);
        let revision = *listing.revision.get_or_insert(read.revision);
        listing.entries.extend(read.value.entries);
        listing.from = read.value.next;
        if listing.from.is_some() {
            let delay = self.between_ms(0, 10);
            self.after(delay, Happening::ListPage(life));
            return;
        }
        let entries = std::mem::take(&mut listing.entries);
        self.server.listing = None;
        self.server.watching_from = Some(revision);
        say!(self, "server lists everything at revision {revision}");
        self.step_server(Event::Listed { revision, entries });
        self.soon(Happening::WatchReady(life));
    }

    pub fn watch(&mut self, life: Life) {
        let Some(from) = self.server.watching_from.filter(|_| self.is_server(life)) else { return };
        match self.store.events_after("", from) {
            Ok(seen) => {
                self.server.watching_from = Some(seen.up_to);
                for batch in seen.batches {
                    if self.is_server(life) {
                        self.step_server(Event::Changed(batch));
                    }
                }
            }
            Err(_) => {
                say!(self, "the watch from {from} is compacted");
                self.list();
            }
        }
    }

    /// A transaction, with the outcome as the caller hears it. `None`: the store is unavailable.
    pub fn txn(&mut self, by: Option<Life>, guards: Vec<Guard>, ops: Vec<Op>) -> Option<Txn> {
        if self.store_is_down() {
            return None;
        }
        if !self.faulty(|faults| faults.unknown_commit) {
            return Some(self.apply(by, &guards, ops));
        }
        match self.rng.u32(0..3) {
            0 => {
                self.apply(by, &guards, ops);
            }
            1 => {
                let delay = self.between_ms(1, 3000);
                self.after(delay, Happening::LateCommit { by, guards, ops });
            }
            _ => {}
        }
        say!(self, "the outcome of a transaction is unknown");
        Some(Txn::Unknown)
    }

    fn apply(&mut self, by: Option<Life>, guards: &[Guard], ops: Vec<Op>) -> Txn {
        if self.wiring == Wiring::TearsTransactions && ops.len() > 1 {
            return self.apply_torn(by, guards, ops);
        }
        let before: Vec<(String, Option<Vec<u8>>)> = ops
            .iter()
            .map(|op| match op {
                Op::Put { key, .. } | Op::Delete { key } => key.clone(),
            })
            .map(|key| {
                let held = self.store.get(&key).value.map(|entry| entry.value);
                (key, held)
            })
            .collect();
        let outcome = match self.store.txn(guards, ops) {
            Ok(outcome) => outcome,
            Err(error) => {
                self.fail(format!("the store refuses a transaction: {error}"));
                return Txn::Conflict;
            }
        };
        if let Txn::Committed(revision) = outcome {
            if by.is_some_and(|by| by != self.server.life) {
                let led = by.unwrap_or_default().0;
                self.fail(format!("server {led} wrote at revision {revision} although another leads"));
            }
            self.audit_commit(by, revision, &before);
            let delay = if self.faulty(|faults| faults.slow_message) {
                self.between_ms(0, 1500)
            } else {
                self.between_ms(0, 3)
            };
            self.after(delay, Happening::WatchReady(self.server.life));
        }
        outcome
    }

    /// Each part on its own, the last one first, and all others unguarded.
    fn apply_torn(&mut self, by: Option<Life>, guards: &[Guard], ops: Vec<Op>) -> Txn {
        let mut guards = guards;
        let mut outcome = Txn::Unknown;
        for op in ops.into_iter().rev() {
            outcome = self.apply(by, guards, vec![op]);
            if !matches!(outcome, Txn::Committed(_)) {
                break;
            }
            guards = &[];
        }
        outcome
    }

    pub fn commit_of_leader(&mut self, life: Life, step: StepId, guards: Vec<Guard>, ops: Vec<Op>) {
        // What a killed server had sent may arrive or not.
        if !self.is_server(life) && self.rng.bool() {
            return;
        }
        let outcome = self.txn(Some(life), guards, ops);
        let delay = self.between_ms(0, 3);
        self.after(delay, Happening::Written { life, step, outcome });
    }

    pub fn commit_late(&mut self, by: Option<Life>, guards: &[Guard], ops: Vec<Op>) {
        if !self.store_is_down() {
            let outcome = self.apply(by, guards, ops);
            say!(self, "a late transaction: {outcome:?}");
        }
    }

    pub fn written(&mut self, life: Life, step: StepId, outcome: Option<Txn>) {
        if self.is_server(life) {
            self.step_server(Event::Written { step, outcome });
        }
    }

    // What agents ask.

    pub fn assignment_polled(&mut self, life: Life, poll: u64, after: Generation) {
        if self.server.reconcile.is_none() {
            self.soon(Happening::AssignmentAnswered { life, poll, answer: Err(()) });
            return;
        }
        self.server.assignment_polls.push(AssignmentPoll { life, poll, after });
        self.after(LONG_POLL, Happening::AssignmentPollOver { server: self.server.life, life, poll });
        self.answer_polls();
    }

    pub fn assignment_poll_over(&mut self, server: Life, life: Life, poll: u64) {
        if self.is_server(server) {
            let before = self.server.assignment_polls.len();
            self.server.assignment_polls.retain(|waiting| (waiting.life, waiting.poll) != (life, poll));
            if self.server.assignment_polls.len() < before {
                self.soon(Happening::AssignmentAnswered { life, poll, answer: Ok(None) });
            }
        }
    }

    fn answer_polls(&mut self) {
        let Some(reconcile) = &self.server.reconcile else { return };
        let held = reconcile.world().assignments.get(&self.node).map(|held| held.value.clone());
        if let Some(assignment) = held {
            let is_due = |poll: &mut AssignmentPoll| assignment.generation > poll.after;
            let due: Vec<_> = self.server.assignment_polls.extract_if(.., is_due).collect();
            for AssignmentPoll { life, poll, .. } in due {
                let answer = Ok(Some(Box::new(assignment.clone())));
                self.send(
                    Happening::AssignmentAnswered { life, poll, answer },
                    Happening::AssignmentAnswered { life, poll, answer: Err(()) },
                );
            }
        }
        self.answer_proxies();
    }

    /// Sends a message; what becomes of it is fate, and when it is lost its waiting end notices that later.
    pub fn send(&mut self, message: Happening, when_lost: Happening) {
        match self.fate() {
            Fate::Arrives(delays) => delays.into_iter().for_each(|delay| self.after(delay, message.clone())),
            Fate::Lost(noticed) => self.after(noticed, when_lost),
        }
    }

    /// As the handler of the API: an older report is passed over.
    pub fn reported(&mut self, life: Life, message: u64, observed: &Observed) {
        let taken = self.take_report(observed);
        let lost = Happening::ReportAnswered { life, message, taken: false };
        self.send(Happening::ReportAnswered { life, message, taken }, lost);
    }

    fn take_report(&mut self, observed: &Observed) -> bool {
        let Some(reconcile) = &self.server.reconcile else { return false };
        let held = reconcile.world().observed.get(&self.node);
        let age = |observed: &Observed| (observed.agent_started, observed.sequence);
        if held.is_some_and(|held| age(&held.value) >= age(observed)) {
            return true;
        }
        let key = keys::observed(&self.node);
        let guard = match held {
            Some(held) => Guard::Modified { key: key.clone(), revision: held.revision },
            None => Guard::Absent { key: key.clone() },
        };
        let value = observed.to_json();
        let outcome = self.txn(None, vec![guard], vec![Op::Put { key, value, lease: None }]);
        matches!(outcome, Some(Txn::Committed(_)))
    }

    pub fn release_asked(&mut self, life: Life, app: &AppName, release: ReleaseNumber) {
        let world = self.server.reconcile.as_ref().map(Reconcile::world);
        let found = world.and_then(|world| world.release(app, release)).cloned();
        let failed = || converge::Event::ReleaseFailed {
            app: app.clone(),
            release,
            reason: "the server does not answer".into(),
        };
        let event = found.map_or_else(failed, |release| converge::Event::Release(Box::new(release)));
        let lost = Happening::AgentHears(life, Box::new(failed()));
        self.send(Happening::AgentHears(life, Box::new(event)), lost);
    }

    // What proxies ask.

    pub fn routes_polled(&mut self, life: Life, ticket: u64, poll: rung_api::wire::ProxyPoll) {
        if self.server.reconcile.is_none() {
            self.soon(Happening::RoutesFailed { life, ticket });
            return;
        }
        self.server.polls += 1;
        let id = PollId(self.server.polls);
        self.audit.acknowledged = self.audit.acknowledged.max(poll.after);
        let mut acknowledged = poll.after;
        if self.wiring == Wiring::AcknowledgesForTheProxy {
            acknowledged = Generation::new(u64::MAX, u64::MAX);
        }
        say!(self, "the proxy polls after {} with {:?} in flight", poll.after, poll.draining);
        self.server.routes_polls.push(RoutesPoll { life, ticket, id, after: poll.after, whole: poll.whole });
        self.after(LONG_POLL, Happening::RoutesPollOver { server: self.server.life, poll: id });
        self.step_server(Event::Polled {
            proxy: PROXY.to_owned(),
            poll: id,
            acknowledged,
            draining: poll.draining.into_iter().collect(),
        });
    }

    pub fn traffic_reported(&mut self, life: Life, cohorts: Vec<(AppName, DeploymentNumber, Counts)>) {
        let event = Event::Traffic { proxy: PROXY.to_owned(), life: u64::from(life.0), cohorts };
        self.step_server(event);
    }

    fn answer_proxies(&mut self) {
        let Some(reconcile) = &self.server.reconcile else { return };
        let mut answers = Vec::new();
        self.server.routes_polls.retain(|poll| match reconcile.routes_after(poll.after, poll.whole) {
            Some(answer) => {
                answers.push((poll.life, poll.ticket, poll.id, answer));
                false
            }
            None => true,
        });
        for (life, ticket, poll, answer) in answers {
            self.send(
                Happening::RoutesAnswered { life, ticket, answer },
                Happening::RoutesFailed { life, ticket },
            );
            self.step_server(Event::PollEnded { proxy: PROXY.to_owned(), poll });
        }
    }

    pub fn routes_poll_over(&mut self, server: Life, poll: PollId) {
        let Some(at) = self.server.routes_polls.iter().position(|waiting| waiting.id == poll) else { return };
        if !self.is_server(server) {
            return;
        }
        let RoutesPoll { life, ticket, after, .. } = self.server.routes_polls.remove(at);
        let answer = rung_api::wire::ProxyDocuments {
            generation: after,
            whole: false,
            documents: Vec::new(),
            removed: Vec::new(),
        };
        self.soon(Happening::RoutesAnswered { life, ticket, answer });
        self.step_server(Event::PollEnded { proxy: PROXY.to_owned(), poll });
    }

    /// The proxy dropped the connection.
    pub fn routes_poll_closed(&mut self, life: Life, ticket: u64) {
        let is_it = |poll: &mut RoutesPoll| (poll.life, poll.ticket) == (life, ticket);
        let closed: Vec<_> = self.server.routes_polls.extract_if(.., is_it).collect();
        for poll in closed {
            self.step_server(Event::PollEnded { proxy: PROXY.to_owned(), poll: poll.id });
        }
    }

    /// A proxy's process ended: its connections close.
    pub fn proxy_process_ended(&mut self, life: Life) {
        let tickets: Vec<u64> = self
            .server
            .routes_polls
            .iter()
            .filter(|poll| poll.life == life)
            .map(|poll| poll.ticket)
            .collect();
        for ticket in tickets {
            self.soon(Happening::RoutesPollClosed { life, ticket });
        }
    }
}
