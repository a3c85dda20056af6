//! A server: the leader's loop, its watch, and what nodes ask of it.

use std::time::Duration;

use jiff::SignedDuration;
use rung_control::election;
use rung_control::reconcile::{Effect, Event, Reconcile, StepId};
use rung_model::{Assignment, Document as _, InstanceId, Intent, NodeId, keys};
use rung_planner::Clock;
use rung_store::{Guard, Op, Revision, Txn};

use super::proxy::Poll;
use super::stage::wall;
use super::{Happening, Mistake, SERVERS, Story};

pub struct Server {
    pub reconcile: Reconcile,
    pub fence: Option<Revision>,
    watching_from: Option<Revision>,
    next_tick: Option<Duration>,
    /// Its cable to the store is pulled; nodes still reach it.
    pub cut_until: Duration,
    /// It stands still, and does not know.
    pub paused_until: Duration,
    /// By how much its wall clock is ahead, in seconds.
    pub clock_ahead: i64,
    /// It hears late of what is written.
    pub late_until: Duration,
    /// Counts its processes.
    pub life: u64,
    /// When its process began.
    pub began: Duration,
    /// The polls of proxies that wait here.
    pub polls: Vec<Poll>,
    /// When the lease of what it tells of them ends.
    pub served_until: Duration,
}

impl Server {
    pub fn new(number: usize, epoch: u64) -> Self {
        Self {
            // Each node's in a step of its own, so that they are in flight side by side, and arrive in any order.
            reconcile: Reconcile::follower(epoch).among_others(&id(number)).in_steps_of(1),
            fence: None,
            watching_from: None,
            next_tick: None,
            cut_until: Duration::ZERO,
            paused_until: Duration::ZERO,
            late_until: Duration::ZERO,
            clock_ahead: 0,
            life: 0,
            began: Duration::ZERO,
            polls: Vec::new(),
            served_until: Duration::from_secs(5),
        }
    }

    /// Its process dies, and another one begins with nothing.
    fn restart(&mut self, number: usize, epoch: u64, began: Duration) {
        let (cut_until, clock_ahead, life) = (self.cut_until, self.clock_ahead, self.life + 1);
        let served_until = began + Duration::from_secs(5);
        *self = Self { cut_until, clock_ahead, life, began, served_until, ..Self::new(number, epoch) };
    }
}

/// As it calls itself.
pub fn id(server: usize) -> NodeId {
    NodeId::new(format!("server-{server}")).expect("a good name")
}

impl Story {
    pub(super) fn reaches_the_store(&self, server: usize) -> bool {
        self.now >= self.servers[server].cut_until
    }

    /// It can be read, and nothing is written.
    pub(super) fn store_is_full(&self) -> bool {
        self.now < self.full_until
    }

    pub(super) fn step(&mut self, server: usize, event: Event) {
        let wall = wall(self.now) + SignedDuration::from_secs(self.servers[server].clock_ahead);
        let began = self.servers[server].began;
        let clock = Clock { elapsed: self.now - began, wall };
        let effects = self.servers[server].reconcile.step(event, clock);
        let sent = effects.iter().filter(|effect| matches!(effect, Effect::Commit { .. })).count();
        self.summary.side_by_side += u64::from(sent > 1);
        for effect in effects {
            match effect {
                Effect::Commit { step, why, mut guards, ops } => {
                    self.note(|_| format!("server {server} writes: {why}"));
                    let life = self.servers[server].life;
                    let fence = guards.iter().find_map(|guard| match guard {
                        Guard::Created { revision, .. } => Some(*revision),
                        _ => None,
                    });
                    let against = self.audit_plan(server, &ops);
                    if self.mistake == Mistake::NoFence {
                        guards.retain(|guard| !matches!(guard, Guard::Created { .. }));
                    }
                    self.send(Happening::Commit { server, life, step, fence, guards, ops, against });
                    if !self.faults_have_ended && self.rng.u32(0..1500) == 0 {
                        self.note(|_| format!("server {server} dies between two effects"));
                        return self.kill(server);
                    }
                }
                Effect::List => {
                    self.servers[server].watching_from = None;
                    self.after_ms(1, 50, Happening::Watch(server));
                }
                Effect::WakeAt(at) => {
                    let at = (began + at).max(self.now);
                    if self.servers[server].next_tick.replace(at) != Some(at) {
                        self.at(at, Happening::Tick(server));
                    }
                }
                Effect::Undecodable(what) => self.fail(format!("a stored document can't be read: {what}")),
            }
        }
        self.answer_proxies(server);
    }

    pub(super) fn tick(&mut self, server: usize) {
        if self.servers[server].next_tick.is_some_and(|at| at <= self.now) {
            self.servers[server].next_tick = None;
            self.step(server, Event::Tick);
        }
    }

    /// Takes in what was written since, or everything.
    pub(super) fn watch(&mut self, server: usize) {
        if !self.reaches_the_store(server) || self.now < self.servers[server].late_until {
            return;
        }
        let seen = self.servers[server].watching_from.map(|from| self.store.events_after("", from));
        let Some(Ok(seen)) = seen else {
            let read = self.store.list("", None, usize::MAX);
            self.servers[server].watching_from = Some(read.revision);
            return self.step(server, Event::Listed { revision: read.revision, entries: read.value.entries });
        };
        self.servers[server].watching_from = Some(seen.up_to);
        for batch in seen.batches {
            let is_lost = self.mistake == Mistake::LosesBatches && self.rng.u32(0..20) == 0;
            if !is_lost {
                self.step(server, Event::Changed(batch));
            }
        }
    }

    pub(super) fn heard(&mut self, server: usize, node: usize) {
        let node = self.machines[node].id.clone();
        self.step(server, Event::Heard { node });
    }

    pub(super) fn commit(
        &mut self,
        server: usize,
        (life, step): (u64, StepId),
        fence: Option<Revision>,
        guards: &[Guard],
        ops: Vec<Op>,
        against: Option<String>,
    ) {
        if !self.reaches_the_store(server) || self.store_is_full() {
            return self.send(Happening::Written { server, life, step, outcome: None });
        }
        let mut outcome = self.txn(guards, ops);
        if matches!(outcome, Txn::Committed(_)) {
            self.audit_leader(server, fence);
            if let Some(what) = against {
                self.fail(what);
            }
        }
        if !self.faults_have_ended && self.rng.u32(0..25) == 0 {
            outcome = Txn::Unknown;
        }
        self.send(Happening::Written { server, life, step, outcome: Some(outcome) });
    }

    pub(super) fn txn(&mut self, guards: &[Guard], ops: Vec<Op>) -> Txn {
        let before = self.routed_before(&ops);
        match self.store.txn(guards, ops) {
            Ok(outcome) => {
                if let Txn::Committed(revision) = outcome {
                    self.audit_routes(revision, before);
                }
                (0..SERVERS).for_each(|server| self.send(Happening::Watch(server)));
                outcome
            }
            Err(error) => {
                self.fail(format!("the store refuses a transaction: {error}"));
                Txn::Conflict
            }
        }
    }

    pub(super) fn written(&mut self, server: usize, life: u64, step: StepId, outcome: Option<Txn>) {
        if life == self.servers[server].life {
            self.step(server, Event::Written { step, outcome });
        }
    }

    /// Its process is killed. Another one knows nothing, and leads when it is elected.
    pub(super) fn kill(&mut self, server: usize) {
        let epoch = self.store.epoch();
        self.polls_fail(server);
        let now = self.now;
        self.servers[server].restart(server, epoch, now);
        if self.rng.bool() {
            // Its machine begins anew, too.
            self.servers[server].paused_until = now + self.seconds(1, 20);
        }
        self.after_ms(200, 2000, Happening::Watch(server));
    }

    /// Whoever leads keeps the lease of its key as long as it reaches the store and is awake. When it has not for as long
    /// as that lasts, one of those that can leads next.
    pub(super) fn campaign(&mut self) {
        self.after_ms(300, 700, Happening::Campaign);
        let is_well =
            |server: usize| self.reaches_the_store(server) && self.now >= self.servers[server].paused_until;
        let leads = (0..SERVERS).find(|server| self.servers[*server].fence.is_some());
        if leads.is_some_and(is_well) {
            self.kept = self.now;
        } else if self.now >= self.kept + election::LEASE {
            let able: Vec<usize> = (0..SERVERS).filter(|server| is_well(*server)).collect();
            if let Some(next) = self.rng.choice(able) {
                self.elect(next);
            }
        }
    }

    /// The key of whoever led is gone by its lease; the one that led learns of it sooner or later.
    pub(super) fn elect(&mut self, server: usize) {
        let is_well = self.reaches_the_store(server) && self.now >= self.servers[server].paused_until;
        if !is_well || self.store_is_full() {
            return;
        }
        for other in 0..SERVERS {
            if self.servers[other].fence.take().is_some() {
                let longest = if self.faults_have_ended { 10 } else { 15_000 };
                self.after_ms(0, longest, Happening::Deposed(other));
            }
        }
        if self.store.get(keys::LEADER).value.is_some() {
            self.txn(&[], vec![Op::Delete { key: keys::LEADER.to_owned() }]);
        }
        let put = Op::Put { key: keys::LEADER.to_owned(), value: b"a server".to_vec(), lease: None };
        if let Txn::Committed(fence) = self.txn(&[], vec![put]) {
            self.servers[server].fence = Some(fence);
            self.kept = self.now;
            self.note(|_| format!("server {server} leads"));
            self.summary.leaders += 1;
            self.step(server, Event::Lead(Some(fence)));
        }
    }

    pub(super) fn deposed(&mut self, server: usize) {
        // It may lead anew since.
        if self.servers[server].fence.is_none() {
            self.step(server, Event::Lead(None));
        }
    }

    /// What its index holds for a node.
    pub(super) fn assignment_of(&self, server: usize, node: &NodeId) -> Option<Assignment> {
        let world = self.servers[server].reconcile.world();
        world.assignments.get(node).map(|held| held.value.clone())
    }

    /// Read from the store itself, or not answered.
    pub(super) fn leases_asked(&mut self, server: usize, node: usize, asked: Duration) {
        let id = self.machines[node].id.clone();
        let assignment = if self.mistake == Mistake::LeasesFromMemory {
            self.assignment_of(server, &id)
        } else if self.reaches_the_store(server) {
            let read = self.store.get(&keys::assign(&id)).value;
            read.map(|entry| Assignment::from_json(&entry.value).expect("only documents are stored"))
        } else {
            return;
        };
        let instances = assignment.map(|assignment: Assignment| assignment.instances).unwrap_or_default();
        let running = instances.into_iter().filter(|(_, assigned)| assigned.intent == Intent::Run);
        let instances: Vec<InstanceId> = running.map(|(id, _)| id).collect();
        self.send_unsure(Happening::LeasesRead { node, asked, instances });
    }
}
