//! The leader's loop as a state machine without I/O.
//!
//! ```text
//!            batches, polls, time
//!                    │
//!                    ▼
//!   ┌────────► world changed? ── no ──► wait
//!   │                │ yes, and the last plan is written and seen
//!   │                ▼
//!   │              plan ──► step, step, steps that stand apart ──► all committed ──┐
//!   │                            │ conflict, unknown                               │
//!   └────────────────────────────┴─────────────────────────────────────────────────┘
//! ```
//!
//! One step is in flight at a time, but for those that stand apart: they go out side by side, so that a plan for thousands
//! of nodes waits for the store's disk a few times only, and is out before what the first of them report takes the rest of
//! it back. After a plan is written the next is made only from a world that holds it. A conflict drops the rest of the
//! plan: somebody else wrote, and the next plan starts from what is there. An unknown outcome makes everything be read
//! again.

mod elsewhere;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::quorum::Frozen;
use crate::served::{self, Served};
use rung_api::wire::{CohortTraffic, ProxyDocuments, ProxyTraffic};
use rung_model::traffic::Counts;
use rung_model::{
    AppName, Assignment, DeploymentNumber, Generation, InstanceId, InstanceState, Intent, NodeId,
    ObservedInstance, keys,
};
use rung_planner::proxies::SILENT_AFTER;
use rung_planner::{
    Clock, Input, Liveness, Order, Plan, Progress, Proxies, Proxy, SHARED_MAX, Step, Traffic, Waiting,
    WaitingRun, World, plan,
};
use rung_store::{Batch, Entry, Event as StoreEvent, Guard, Op, Revision, Txn};

use elsewhere::Elsewhere;

/// How long to wait after the store could not be written.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// A plan is made at least this often, signal or not.
const TICK: Duration = Duration::from_secs(10);

/// So many steps are in flight side by side, and so many bytes of them: what nodes of a large cluster are told at once, and
/// a few megabytes of documents on their way at the most.
const IN_FLIGHT_MAX: usize = 64;
const IN_FLIGHT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How many removed route documents are remembered for proxies that were away; beyond it they get everything.
const TOMBSTONES_MAX: usize = 1000;

/// The name of whatever proxy a server that has just begun to lead has not heard of; none of these can have it.
const UNHEARD: &str = "?";

#[derive(Debug)]
pub enum Event {
    /// Everything, read anew. `revision` is that of the listing.
    Listed {
        revision: Revision,
        entries: Vec<Entry>,
    },
    Changed(Batch),
    /// The same, and the next one is there already: one plan is made for both.
    ChangedOnTheWay(Batch),
    /// A proxy's poll came in. Polls of one proxy may overlap and overtake each other: it abandons one and sends the
    /// next on another connection.
    Polled {
        proxy: String,
        poll: PollId,
        acknowledged: Generation,
        draining: Vec<(InstanceId, u64)>,
    },
    /// A proxy's poll ended, however it did.
    PollEnded {
        proxy: String,
        poll: PollId,
    },
    /// What a process of a proxy has counted since it began.
    Traffic {
        proxy: String,
        life: u64,
        cohorts: Vec<(AppName, DeploymentNumber, Counts)>,
    },
    /// A proxy's process is known to be gone.
    ProxyGone {
        proxy: String,
    },
    /// A node's agent let itself be heard.
    Heard {
        node: NodeId,
    },
    /// This server leads from now on, with this fencing token, or follows.
    Lead(Option<Revision>),
    /// The outcome of a step in flight; `None`: the store was not available, nothing was written.
    Written {
        step: StepId,
        outcome: Option<Txn>,
    },
    Tick,
}

/// Tells polls apart; never given twice in one leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PollId(pub u64);

/// Tells steps apart that were sent to the store; never given twice by one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepId(u64);

#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Several may be on their way at a time, in any order.
    Commit { step: StepId, why: String, guards: Vec<Guard>, ops: Vec<Op> },
    /// List everything and send [`Event::Listed`]; watch from there.
    List,
    /// Wake up then, on `elapsed`, at the latest.
    WakeAt(Duration),
    /// Documents can't be read by this version; they are left alone.
    Undecodable(String),
}

#[derive(Debug)]
pub struct Reconcile {
    world: World,
    proxies: Proxies,
    liveness: Liveness,
    traffic: Traffic,
    /// The polls that wait here, by proxy.
    polls: BTreeMap<String, BTreeSet<PollId>>,
    progress: Progress,
    /// The fencing token: the revision at which this leader's key was created. `None`: another server plans.
    fence: Option<Revision>,
    queue: VecDeque<Step>,
    in_flight: BTreeMap<StepId, InFlight>,
    /// Counts the steps that were sent.
    sent: u64,
    shared_max: usize,
    /// Revisions that this loop wrote and has not seen yet.
    own: BTreeSet<Revision>,
    is_listed: bool,
    is_dirty: bool,
    /// The newest revision that this loop wrote; plans wait until the world holds it.
    written: Revision,
    blocked_until: Duration,
    rests_until: Duration,
    waiting: Vec<Waiting>,
    waiting_runs: Vec<WaitingRun>,
    wake_at: Option<Duration>,
    tombstones: VecDeque<(Revision, AppName)>,
    /// Removals at or before this revision may have been missed.
    tombstone_floor: Revision,
    /// Why nothing is planned, and nothing that was planned goes out.
    frozen: Option<Frozen>,
    /// The key under which this server tells of its own proxies; `None` where it is alone.
    own_served: Option<String>,
    elsewhere: Elsewhere,
    /// When this server began to plan, where it is among others.
    leads_since: Option<Duration>,
    /// The time of the last step.
    stepped: Duration,
    /// Counts the steps that changed anything that can be asked of this machine: thousands of beats a second do not.
    changes: u64,
}

/// A step whose outcome is not known yet.
#[derive(Debug)]
struct InFlight {
    /// In its order.
    keys: Vec<String>,
    bytes: usize,
    order: Order,
}

impl Reconcile {
    /// Of a server that leads.
    pub fn new(epoch: u64, fence: Revision) -> Self {
        Self { fence: Some(fence), ..Self::follower(epoch) }
    }

    /// Of a server that knows everything and plans nothing, until it is told to.
    pub fn follower(epoch: u64) -> Self {
        Self {
            world: World::new(epoch),
            proxies: Proxies::default(),
            liveness: Liveness::default(),
            traffic: Traffic::default(),
            polls: BTreeMap::new(),
            progress: Progress::default(),
            fence: None,
            queue: VecDeque::new(),
            in_flight: BTreeMap::new(),
            sent: 0,
            shared_max: SHARED_MAX,
            own: BTreeSet::new(),
            is_listed: false,
            is_dirty: false,
            written: 0,
            blocked_until: Duration::ZERO,
            rests_until: Duration::ZERO,
            waiting: Vec::new(),
            waiting_runs: Vec::new(),
            wake_at: None,
            tombstones: VecDeque::new(),
            tombstone_floor: 0,
            frozen: None,
            own_served: None,
            elsewhere: Elsewhere::default(),
            leads_since: None,
            stepped: Duration::ZERO,
            changes: 0,
        }
    }

    /// Listens to what other servers tell of their proxies.
    #[must_use]
    pub fn among_others(mut self, server: &NodeId) -> Self {
        self.own_served = Some(served::key(server));
        self
    }

    /// Plans in steps of so few assignments that a small cluster's go out side by side, as those of a large one do.
    #[must_use]
    pub fn in_steps_of(mut self, assignments: usize) -> Self {
        self.shared_max = assignments;
        self
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    pub fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    /// What the last plan could not place, and why.
    pub fn waiting(&self) -> &[Waiting] {
        &self.waiting
    }

    pub fn waiting_runs(&self) -> &[WaitingRun] {
        &self.waiting_runs
    }

    /// Whether this server plans.
    pub fn leads(&self) -> bool {
        self.fence.is_some()
    }

    /// After a restore, until an operator has approved what would be done.
    pub fn frozen(&self) -> Option<&Frozen> {
        self.frozen.as_ref()
    }

    /// What would be done first, in words.
    pub fn preview(&self, clock: Clock) -> Vec<String> {
        let proxies = self.all_proxies(clock.elapsed);
        let plan = plan(self.input(&proxies, clock), &mut self.progress.clone());
        let world = &self.world;
        let given = world.assignments.values().flat_map(|held| self.given(&held.value));
        given.chain(plan.steps.into_iter().map(|step| step.why)).collect()
    }

    fn input<'a>(&'a self, proxies: &'a Proxies, clock: Clock) -> Input<'a> {
        let Self { world, liveness, traffic, shared_max, .. } = self;
        Input { world, proxies, liveness, traffic, clock, shared_max: *shared_max }
    }

    /// What a node does when it is given its assignment, beside what it has said that it runs.
    fn given(&self, assignment: &Assignment) -> Vec<String> {
        let node = &assignment.node;
        let is_wanted = |id| assignment.instances.get(id).is_some_and(|wanted| wanted.intent == Intent::Run);
        let observed = self.world.observed.get(node).map(|held| &held.value.instances);
        let is_there = |it: &ObservedInstance| it.state != InstanceState::Stopped;
        let runs = |id| observed.and_then(|observed| observed.get(id)).is_some_and(is_there);
        let starts = assignment.instances.keys().filter(|id| is_wanted(id) && !runs(id));
        let ends = observed.into_iter().flatten().filter(|(id, it)| it.state.may_run() && !is_wanted(id));
        let starts = starts.map(|id| format!("{node} starts {id}"));
        starts.chain(ends.map(|(id, _)| format!("{node} ends {id}"))).collect()
    }

    /// Takes in what another server tells of its proxies.
    fn hear_from_afar(&mut self, key: &str, value: Option<&[u8]>) {
        let Some(server) = key.strip_prefix(keys::SERVED) else { return };
        if self.own_served.as_deref().is_none_or(|own| own == key) {
            return;
        }
        let served = value.and_then(|value| serde_json::from_slice::<Served>(value).ok());
        match served {
            Some(served) => {
                for (proxy, counted) in &served.traffic {
                    let cohorts = counted.cohorts.iter().cloned();
                    let cohorts = cohorts.map(|counted| (counted.app, counted.cohort, counted.counts));
                    self.traffic.hear_from_afar(&format!("{server}/{proxy}"), counted.life, cohorts);
                }
                self.elsewhere.hear(server, served, self.stepped);
            }
            None => self.elsewhere.lose(server, self.stepped),
        }
        self.liveness.nodes_changed();
        self.is_dirty = true;
    }

    /// What the proxies here counted, for the server that plans.
    pub(crate) fn traffic_to_pass_on(&self) -> BTreeMap<String, ProxyTraffic> {
        if self.leads() {
            return BTreeMap::new();
        }
        // What was passed on by others is theirs to tell.
        let own = self.traffic.reports(|app| self.world.is_judged(app)).into_iter();
        let own = own.filter(|(proxy, _)| self.proxies.0.contains_key(proxy));
        let told = own.map(|(proxy, report)| {
            let cohorts = report.cohorts.into_iter();
            let cohorts = cohorts.map(|(app, cohort, counts)| CohortTraffic { app, cohort, counts });
            (proxy, ProxyTraffic { life: report.life, cohorts: cohorts.collect() })
        });
        told.collect()
    }

    /// Those that poll here, and those that poll other servers. One that has just begun to lead may not have heard of all
    /// that serve, by a server that died or was restarted meanwhile: it waits for a whole window as if there was another one.
    fn all_proxies(&self, elapsed: Duration) -> Proxies {
        let mut all = self.proxies.clone();
        all.0.extend(self.elsewhere.proxies(&self.proxies));
        if let Some(since) = self.leads_since.filter(|since| elapsed < *since + SILENT_AFTER) {
            let unheard = Proxy {
                acknowledged: Generation::ZERO,
                draining: BTreeMap::new(),
                silent_since: Some(since),
            };
            all.0.insert(UNHEARD.to_owned(), unheard);
        }
        all
    }

    fn freeze(&mut self, value: Option<&[u8]>) {
        // One that can't be read freezes all the same.
        self.frozen = value.map(|value| {
            serde_json::from_slice(value).unwrap_or_else(|_| Frozen {
                why: "the state was restored".to_owned(),
                since: jiff::Timestamp::UNIX_EPOCH,
            })
        });
        self.is_dirty = true;
    }

    /// Apps whose routes were removed after a revision; `None` when that is not known any more.
    pub fn removed_since(&self, revision: Revision) -> Option<Vec<AppName>> {
        if revision < self.tombstone_floor {
            return None;
        }
        let since = self.tombstones.iter().filter(|(removed, _)| *removed > revision);
        Some(since.map(|(_, app)| app.clone()).collect())
    }

    /// What a proxy that follows `after` has to hear; `None` when there is nothing new. `whole`: it holds nothing.
    pub fn routes_after(&self, after: Generation, whole: bool) -> Option<ProxyDocuments> {
        let world = &self.world;
        if world.revision == 0 || self.frozen.is_some() {
            return None;
        }
        let generation = Generation::new(world.epoch, world.revision);
        let documents = world.routes.values().map(|held| &held.value);
        let removed = (after.epoch == world.epoch).then(|| self.removed_since(after.revision)).flatten();
        let Some(removed) = removed.filter(|_| !whole) else {
            let documents = documents.cloned().collect();
            return Some(ProxyDocuments { generation, whole: true, documents, removed: Vec::new() });
        };
        let documents: Vec<_> = documents.filter(|document| document.generation > after).cloned().collect();
        let removed: Vec<AppName> =
            removed.into_iter().filter(|app| !world.routes.contains_key(app)).collect();
        let is_news = !documents.is_empty() || !removed.is_empty();
        is_news.then_some(ProxyDocuments { generation, whole: false, documents, removed })
    }

    /// As often as it has changed, something else may be read here.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn step(&mut self, event: Event, clock: Clock) -> Vec<Effect> {
        let mut effects = Vec::new();
        let stepped = std::mem::replace(&mut self.stepped, clock.elapsed);
        let was_dirty = std::mem::take(&mut self.is_dirty);
        let says_little = matches!(event, Event::Heard { .. } | Event::Written { .. } | Event::Tick);
        if self.is_listed && self.liveness.is_overdue(clock.elapsed) {
            self.look(stepped, clock.elapsed);
        }
        let is_on_the_way = matches!(event, Event::ChangedOnTheWay(_));
        self.take_in(event, clock, &mut effects);
        if self.is_listed && self.liveness.wants_look(clock.elapsed) {
            self.look(clock.elapsed, clock.elapsed);
        }
        if !says_little || self.is_dirty {
            self.changes += 1;
        }
        self.is_dirty |= was_dirty;
        if self.wake_at.is_some_and(|at| clock.elapsed >= at) {
            self.wake_at = None;
            self.is_dirty = true;
        }
        if !is_on_the_way {
            self.go_on(clock, &mut effects);
        }
        effects
    }

    /// Nodes that are heard by other servers were heard at that time.
    fn look(&mut self, heard_elsewhere: Duration, now: Duration) {
        for node in self.elsewhere.nodes() {
            self.is_dirty |= self.liveness.heard(node, heard_elsewhere);
        }
        self.is_dirty |= self.liveness.look(self.world.nodes.keys(), now);
    }

    fn take_in(&mut self, event: Event, clock: Clock, effects: &mut Vec<Effect>) {
        match event {
            Event::Listed { revision, entries } => self.list(revision, &entries, effects),
            Event::Changed(batch) | Event::ChangedOnTheWay(batch) => self.change(batch, effects),
            Event::Polled { proxy, poll, acknowledged, draining } => {
                self.polls.entry(proxy.clone()).or_default().insert(poll);
                self.hear(proxy, acknowledged, draining.into_iter().collect());
            }
            Event::PollEnded { proxy, poll } => {
                let waiting = self.polls.entry(proxy.clone()).or_default();
                let was_last = waiting.remove(&poll) && waiting.is_empty();
                if let Some(proxy) = self.proxies.0.get_mut(&proxy).filter(|_| was_last) {
                    proxy.silent_since = Some(clock.elapsed);
                }
            }
            Event::Traffic { proxy, life, cohorts } => {
                let world = &self.world;
                let is_news = self.traffic.hear(&proxy, life, cohorts);
                self.traffic.retain(|app, cohort| world.deployment(app, cohort).is_some());
                self.is_dirty |= is_news && world.is_judging();
            }
            Event::ProxyGone { proxy } => {
                self.polls.remove(&proxy);
                self.is_dirty |= self.proxies.0.remove(&proxy).is_some();
            }
            Event::Heard { node } => self.is_dirty |= self.liveness.heard(&node, clock.elapsed),
            Event::Lead(fence) => {
                self.fence = fence;
                self.leads_since = fence.and(self.own_served.as_ref()).map(|_| clock.elapsed);
                // What those before it wrote was written before its token, and nothing after.
                self.written = self.written.max(fence.unwrap_or(0));
                // Every node counts as alive for a whole window.
                self.liveness = Liveness::default();
                // Timers begin anew with each leadership, and what an earlier one planned is not written any more.
                self.progress = Progress::default();
                self.queue.clear();
                self.is_dirty = true;
            }
            Event::Written { step, outcome } => {
                self.in_flight.remove(&step);
                self.take_outcome(outcome, clock, effects);
            }
            Event::Tick => {}
        }
    }

    /// A proxy that acknowledges nothing began anew; otherwise what it says never goes back, and a poll that acknowledges
    /// less than is known was overtaken by a later one.
    fn hear(&mut self, proxy: String, acknowledged: Generation, draining: BTreeMap<InstanceId, u64>) {
        let known = self.proxies.0.get_mut(&proxy);
        let began_anew = acknowledged == Generation::ZERO;
        match known {
            Some(known) if acknowledged < known.acknowledged && !began_anew => known.silent_since = None,
            Some(known) => {
                self.is_dirty |= known.acknowledged != acknowledged || known.draining != draining;
                *known = Proxy { acknowledged, draining, silent_since: None };
            }
            None => {
                self.is_dirty = true;
                self.proxies.0.insert(proxy, Proxy { acknowledged, draining, silent_since: None });
            }
        }
    }

    fn list(&mut self, revision: Revision, entries: &[Entry], effects: &mut Vec<Effect>) {
        let mut world = World::new(self.world.epoch);
        for entry in entries {
            if let Err(error) = world.put(&entry.key, &entry.value, entry.modified) {
                effects.push(Effect::Undecodable(error.to_string()));
            }
        }
        world.revision = revision;
        self.world = world;
        let frozen = entries.iter().find(|entry| entry.key == keys::FROZEN);
        self.freeze(frozen.map(|entry| entry.value.as_slice()));
        let served = || entries.iter().filter(|entry| entry.key.starts_with(keys::SERVED));
        let there: Vec<&str> = served().filter_map(|entry| entry.key.strip_prefix(keys::SERVED)).collect();
        self.elsewhere.lose_others(&there, self.stepped);
        for entry in served() {
            self.hear_from_afar(&entry.key, Some(&entry.value));
        }
        self.own.clear();
        // Pages that were read later hold newer entries: until the watch has come as far, the world is none that ever was.
        let newest = entries.iter().map(|entry| entry.modified).max();
        self.written = self.written.max(newest.unwrap_or(0));
        self.tombstones.clear();
        self.tombstone_floor = revision;
        self.queue.clear();
        self.liveness.nodes_changed();
        self.is_listed = true;
        self.is_dirty = true;
    }

    fn change(&mut self, batch: Batch, effects: &mut Vec<Effect>) {
        if !self.is_listed || batch.revision <= self.world.revision {
            return;
        }
        if !self.is_own(&batch) {
            // What was planned before this was known is not written any more: a table must not list an instance
            // against what its author knows. Each plan gets at least its first step written, so there is progress.
            self.queue.clear();
        }
        for event in batch.events {
            if event.key().starts_with(keys::NODES) {
                self.liveness.nodes_changed();
            }
            match event {
                StoreEvent::Put(entry) => {
                    if entry.key == keys::FROZEN {
                        self.freeze(Some(&entry.value));
                    }
                    self.hear_from_afar(&entry.key, Some(&entry.value));
                    if let Err(error) = self.world.put(&entry.key, &entry.value, entry.modified) {
                        effects.push(Effect::Undecodable(error.to_string()));
                    }
                }
                StoreEvent::Deleted { key } => {
                    if key == keys::FROZEN {
                        self.freeze(None);
                    }
                    self.hear_from_afar(&key, None);
                    self.bury(batch.revision, &key);
                    self.world.delete(&key);
                }
            }
        }
        self.world.revision = batch.revision;
        self.is_dirty = true;
    }

    /// Whether this loop wrote it. A batch may come before the word that its transaction is committed.
    fn is_own(&mut self, batch: &Batch) -> bool {
        let known = self.own.remove(&batch.revision);
        let mut in_flight = self.in_flight.values();
        known || in_flight.any(|sent| batch.events.iter().map(StoreEvent::key).eq(sent.keys.iter()))
    }

    fn bury(&mut self, revision: Revision, key: &str) {
        let Some(Ok(app)) = key.strip_prefix(keys::ROUTES).map(AppName::new) else { return };
        self.tombstones.push_back((revision, app));
        if self.tombstones.len() > TOMBSTONES_MAX
            && let Some((dropped, _)) = self.tombstones.pop_front()
        {
            self.tombstone_floor = dropped;
        }
    }

    fn take_outcome(&mut self, outcome: Option<Txn>, clock: Clock, effects: &mut Vec<Effect>) {
        match outcome {
            Some(Txn::Committed(revision)) => {
                self.written = self.written.max(revision);
                if revision > self.world.revision {
                    self.own.insert(revision);
                }
            }
            Some(Txn::Conflict) => {
                self.queue.clear();
                self.is_dirty = true;
                // What conflicted is on its way here; should it be our own misunderstanding, the pause bounds the spin.
                self.blocked_until = clock.elapsed + Duration::from_millis(5);
            }
            Some(Txn::Unknown) => {
                self.queue.clear();
                self.is_listed = false;
                effects.push(Effect::List);
            }
            None => {
                self.queue.clear();
                self.is_dirty = true;
                self.blocked_until = clock.elapsed + RETRY_AFTER;
            }
        }
    }

    fn go_on(&mut self, clock: Clock, effects: &mut Vec<Effect>) {
        if self.in_flight.is_empty() && self.queue.is_empty() && self.may_plan(clock) {
            self.make_plan(clock);
        }
        while let Some(fence) = self.fence
            && self.queue.front().is_some_and(|step| self.may_go(step))
            && let Some(step) = self.queue.pop_front()
        {
            effects.push(self.send(step, fence));
        }
        let mut wake_at = clock.elapsed + TICK;
        wake_at = wake_at.min(self.wake_at.unwrap_or(wake_at));
        let next_plan = self.blocked_until.max(self.rests_until);
        if self.is_dirty && next_plan > clock.elapsed {
            wake_at = wake_at.min(next_plan);
        }
        wake_at = wake_at.min(self.liveness.due().filter(|at| *at > clock.elapsed).unwrap_or(wake_at));
        effects.push(Effect::WakeAt(wake_at));
    }

    fn may_plan(&self, clock: Clock) -> bool {
        self.is_listed
            && self.is_dirty
            && self.fence.is_some()
            && self.frozen.is_none()
            && self.world.revision >= self.written
            && clock.elapsed >= self.blocked_until
            && clock.elapsed >= self.rests_until
    }

    fn make_plan(&mut self, clock: Clock) {
        self.is_dirty = false;
        self.changes += 1;
        let proxies = self.all_proxies(clock.elapsed);
        let mut progress = std::mem::take(&mut self.progress);
        let Plan { steps, waiting, waiting_runs, wake_at } = plan(self.input(&proxies, clock), &mut progress);
        self.progress = progress;
        self.queue = steps.into();
        self.waiting = waiting;
        self.waiting_runs = waiting_runs;
        self.wake_at = wake_at;
        // A plan looks at everything: what comes meanwhile is planned for in one.
        self.rests_until = clock.elapsed + rung_planner::liveness::rest(self.world.nodes.len());
    }

    /// Whether a step may go out now, beside those that are on their way.
    fn may_go(&self, step: &Step) -> bool {
        let stands_apart = |order: Order| order == Order::Apart;
        let bytes: usize = self.in_flight.values().map(|sent| sent.bytes).sum();
        self.in_flight.is_empty()
            || (stands_apart(step.order)
                && self.in_flight.values().all(|sent| stands_apart(sent.order))
                && self.in_flight.len() < IN_FLIGHT_MAX
                && bytes < IN_FLIGHT_BYTES_MAX)
    }

    fn send(&mut self, step: Step, fence: Revision) -> Effect {
        let id = StepId(self.sent);
        self.sent += 1;
        let keys = step.writes.iter().map(|write| write.key.clone()).collect();
        let bytes = step.writes.iter().filter_map(|write| write.value.as_ref()).map(Vec::len).sum();
        self.in_flight.insert(id, InFlight { keys, bytes, order: step.order });
        commit(id, step, fence)
    }
}

/// Each write replaces just the revision that it was planned from, and only while this leader leads.
fn commit(id: StepId, step: Step, fence: Revision) -> Effect {
    let mut guards = vec![Guard::Created { key: keys::LEADER.to_owned(), revision: fence }];
    let mut ops = Vec::new();
    for write in step.writes {
        guards.push(match write.replaces {
            Some(revision) => Guard::Modified { key: write.key.clone(), revision },
            None => Guard::Absent { key: write.key.clone() },
        });
        ops.push(match write.value {
            Some(value) => Op::Put { key: write.key, value, lease: None },
            None => Op::Delete { key: write.key },
        });
    }
    Effect::Commit { step: id, why: step.why, guards, ops }
}
