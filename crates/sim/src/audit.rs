//! The invariants, asserted at every commit, every start of a process, every table and every request.

mod jobs;
mod rollouts;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rung_model::{
    App, AppFile, AppName, AssignedInstance, Assignment, Deployment, Document, Generation, InstanceId,
    InstanceState, Intent, Observed, Phase, Release, RouteDocument, Run, RunId, RunState, ServiceName, keys,
};
use rung_planner::World;
use rung_planner::proxies::SILENT_AFTER;
use rung_store::{Op, Revision};

use crate::agenda::Life;
use crate::story::{Story, say};

/// A stop that was planned while a proxy was silent is excused for so long after the proxy came back.
const EXCUSED_FOR: Duration = Duration::from_secs(3);

/// What the invariants need to know of the past.
#[derive(Debug, Default)]
pub struct Audit {
    /// The highest generation that the proxy has truly acknowledged.
    pub acknowledged: Generation,
    /// When the server last did without the proxy's word.
    silent: Option<Duration>,
    /// Which document took an instance off its routes, and when.
    unrouted: BTreeMap<InstanceId, (Generation, Duration)>,
    /// Told to stop; whether it was in a proxy's silence.
    stopped: BTreeMap<InstanceId, bool>,
    /// Runs that were begun, with the revision that created their app's record.
    begun: BTreeSet<(RunId, Revision)>,
    times: jobs::Times,
    steps: rollouts::Steps,
}

pub(crate) fn parse<T: Document>(bytes: &[u8]) -> T {
    T::from_json(bytes).expect("only documents of the model are stored")
}

fn endpoints(document: &RouteDocument) -> BTreeSet<&InstanceId> {
    let backends = document.backends.values();
    backends.flat_map(|backend| &backend.endpoints).map(|endpoint| &endpoint.instance).collect()
}

impl Story {
    // What the leader decides, by what it knows.

    pub fn audit_silence(&mut self) {
        let Some(reconcile) = &self.server.reconcile else { return };
        let elapsed = self.server_clock().elapsed;
        let proxies = reconcile.proxies();
        let nobody = proxies.0.is_empty() && elapsed >= SILENT_AFTER;
        if nobody || proxies.heard(elapsed).count() < proxies.0.len() {
            self.audit.silent = Some(self.now);
        }
    }

    /// Invariants 1 and 2, of what the author of a document knows.
    pub fn audit_plan(&mut self, ops: &[Op]) {
        let Some(reconcile) = &self.server.reconcile else { return };
        let world = reconcile.world();
        let mut broken = None;
        for op in ops {
            let Op::Put { key, value, .. } = op else { continue };
            if !key.starts_with(keys::ROUTES) {
                continue;
            }
            let document: RouteDocument = parse(value);
            let below = below_floor(world, &document)
                .and_then(|_| below_floor(&self.as_planned(world, &document.app), &document));
            broken = broken.or(unhealthy_listed(world, &document)).or(below);
        }
        if let Some(what) = broken {
            self.fail(what);
        }
    }

    /// The author's world with the earlier steps of its own plan, which it has not seen come back yet: what the same plan
    /// has begun counts for what it routes.
    fn as_planned(&self, world: &World, app: &AppName) -> World {
        let mut known = world.clone();
        let mut take = |key: String| {
            if let Some(entry) = self.store.get(&key).value {
                known.put(&key, &entry.value, entry.modified).expect("what is stored can be read");
            }
        };
        take(keys::app(app));
        if let Some(record) = world.apps.get(app) {
            take(keys::deployment(app, record.value.last_deployment));
            take(keys::deployment(app, record.value.last_deployment.next()));
            take(keys::release(app, record.value.last_release));
            take(keys::release(app, record.value.last_release.next()));
        }
        known
    }

    // What is committed.

    pub fn audit_commit(
        &mut self,
        by: Option<Life>,
        revision: Revision,
        before: &[(String, Option<Vec<u8>>)],
    ) {
        for (key, old) in before {
            let new = self.store.get(key).value.map(|entry| entry.value);
            let (old, new) = (old.as_deref(), new.as_deref());
            let (kind, _) = key.split_once('/').unwrap_or((key, ""));
            say!(self, "revision {revision}: {key}{}", if new.is_none() { " is deleted" } else { "" });
            match kind {
                "apps" => self.audit_app(by, old, new),
                "deployments" => self.audit_deployment(key, old, new),
                "runs" => self.audit_outcome(key, old, new),
                "jobs" => self.audit_line(old, new),
                "assign" => self.audit_assignment(old, new),
                "routes" => self.audit_routes(revision, old, new),
                "observed" => self.audit_report(old, new),
                _ => {}
            }
        }
    }

    /// Invariant 6: the leader never takes back what people said. With the end of a move of settings they become those of
    /// the release that serves: what was rolled back does not come again with the next change.
    fn audit_app(&mut self, by: Option<Life>, old: Option<&[u8]>, new: Option<&[u8]>) {
        let (old, new) = (old.map(parse::<App>), new.map(parse::<App>));
        match (old, new) {
            (Some(old), None) => self.people.app_is_gone(&old.name),
            (Some(old), Some(new)) if by.is_some() => {
                let same = (&old.config, &old.secrets) == (&new.config, &new.secrets);
                if old.destroying != new.destroying || !(same || self.are_of_the_serving_release(&new)) {
                    self.fail(format!("the leader changed what people said of {}", old.name));
                }
                if new.last_release < old.last_release || new.last_deployment < old.last_deployment {
                    self.fail(format!("numbers of {} went back", old.name));
                }
            }
            _ => {}
        }
    }

    fn are_of_the_serving_release(&self, app: &App) -> bool {
        let release = app.current.and_then(|number| self.store.get(&keys::release(&app.name, number)).value);
        release
            .map(|entry| parse::<Release>(&entry.value))
            .is_some_and(|release| (&release.config, &release.secrets) == (&app.config, &app.secrets))
    }

    fn audit_deployment(&mut self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>) {
        let (Some(new), old) = (new.map(parse::<Deployment>), old.map(parse::<Deployment>)) else { return };
        match old {
            None => {
                self.summary.deployments += 1;
                if new.by == "rung" {
                    // As with a person's rollback, what the other release says counts again.
                    let promises = self.people.promises.entry(new.app.clone()).or_default();
                    promises.scale.clear();
                    promises.config.clear();
                }
            }
            Some(old) if old.has_ended() && old.phase != new.phase => {
                self.fail(format!("{key} had ended {:?} and is {:?}", old.phase, new.phase));
            }
            Some(old) if old.phase != new.phase => {
                let why = new.trouble.as_ref().map(|trouble| trouble.reason.as_str()).unwrap_or_default();
                say!(self, "{key}: {:?} -> {:?} {why}", old.phase, new.phase);
            }
            Some(_) => {}
        }
        self.audit_step(key, &new);
        self.audit_verdict(key, &new);
    }

    fn audit_outcome(&mut self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>) {
        let (old, new) = (old.map(parse::<Run>), new.map(parse::<Run>));
        if let (None, Some(new)) = (&old, &new) {
            self.audit_schedule(new);
        }
        let (Some(old), Some(new)) = (old, new) else { return };
        if matches!(old.state, RunState::Ended { .. }) && old.state != new.state {
            self.fail(format!("the outcome of {key} was {:?} and is {:?}", old.state, new.state));
        }
    }

    fn audit_assignment(&mut self, old: Option<&[u8]>, new: Option<&[u8]>) {
        let Some(new) = new.map(parse::<Assignment>) else {
            self.fail("an assignment was deleted");
            return;
        };
        let old = old.map_or_else(|| Assignment::empty(new.node.clone()), parse);
        for (id, was) in &old.instances {
            match new.instances.get(id) {
                Some(is) if (was.intent, is.intent) == (Intent::Run, Intent::Stop) => {
                    self.audit_stop(id, was)
                }
                Some(_) => {}
                None => {
                    self.audit.stopped.remove(id);
                    self.audit.unrouted.remove(id);
                    if self.machine.processes.get(id).is_some_and(|process| process.is_alive()) {
                        self.fail(format!("{id} was taken from the assignment while it is alive"));
                    }
                }
            }
        }
    }

    /// The handoff's order: un-routed, acknowledged, drained, told to stop.
    fn audit_stop(&mut self, id: &InstanceId, assigned: &AssignedInstance) {
        say!(self, "{id} shall stop");
        let is_excused = self.audit.silent.is_some_and(|at| self.now <= at + EXCUSED_FOR);
        self.audit.stopped.insert(id.clone(), is_excused);
        let Some(held) = self.store.get(&keys::routes(&assigned.app)).value else { return };
        let document: RouteDocument = parse(&held.value);
        if endpoints(&document).contains(id) {
            self.fail(format!("{id} shall stop and is routed"));
        }
        let Some((unrouted, since)) = self.audit.unrouted.get(id).copied() else { return };
        if self.audit.acknowledged < unrouted && !is_excused {
            self.fail(format!("{id} shall stop before its un-routing at {unrouted} was acknowledged"));
        }
        let is_draining =
            document.backends.values().flat_map(|backend| &backend.draining).any(|e| e.instance == *id);
        let in_flight = self.ingress.in_flight.get(id).copied().unwrap_or(0);
        let release = self.store.get(&keys::release(&assigned.app, assigned.release)).value;
        let drain = release
            .map(|held| parse::<Release>(&held.value))
            .and_then(|release| release.file.services.get(&assigned.service).map(|service| service.drain));
        let is_over = drain.is_none_or(|drain| self.now >= since + drain);
        if is_draining && in_flight > 0 && !is_over && !is_excused {
            self.fail(format!("{id} shall stop with {in_flight} requests in flight, before its drain time"));
        }
    }

    fn audit_routes(&mut self, revision: Revision, old: Option<&[u8]>, new: Option<&[u8]>) {
        let (old, new) = (old.map(parse::<RouteDocument>), new.map(parse::<RouteDocument>));
        let was = old.as_ref().map(endpoints).unwrap_or_default();
        let is = new.as_ref().map(endpoints).unwrap_or_default();
        let generation = Generation::new(self.store.epoch(), revision);
        say!(self, "routed: {was:?} -> {is:?}");
        if let Some(new) = &new {
            self.audit_shares(new);
        }
        for id in &is {
            self.audit.unrouted.remove(*id);
        }
        for id in was.difference(&is) {
            self.audit.unrouted.insert((*id).clone(), (generation, self.now));
        }
    }

    /// Invariant 3, of reports.
    fn audit_report(&mut self, old: Option<&[u8]>, new: Option<&[u8]>) {
        let (Some(old), Some(new)) = (old.map(parse::<Observed>), new.map(parse::<Observed>)) else { return };
        if (old.agent_started, old.sequence) >= (new.agent_started, new.sequence) {
            self.fail(format!("report {} went back to {}", old.sequence, new.sequence));
        }
        if self.is_traced() {
            let states: Vec<_> = new.instances.iter().map(|(id, seen)| (id, seen.state)).collect();
            say!(self, "reported at {}: {states:?}", new.assignment);
        }
    }

    // What the node does.

    /// Invariant 5, and that what is started is what the server says.
    pub fn audit_spawn(&mut self, id: &InstanceId, assigned: &AssignedInstance, release: &Release) {
        let is_exclusive = release.file.services[&assigned.service].exclusive;
        let mut broken = None;
        for (other, process) in self.machine.processes.iter().filter(|(_, process)| process.is_alive()) {
            let same_service =
                (&process.assigned.app, &process.assigned.service) == (&assigned.app, &assigned.service);
            if other == id {
                broken = Some(format!("{id} is started although it is alive"));
            } else if same_service && (is_exclusive || process.is_exclusive) {
                broken = Some(format!("{id} of an exclusive service is started beside {other}"));
            }
        }
        let stored = self.store.get(&keys::release(&assigned.app, assigned.release)).value;
        let stored = stored.map(|held| parse::<Release>(&held.value));
        if stored
            .is_some_and(|stored| (&stored.artifact, &stored.config) != (&release.artifact, &release.config))
        {
            broken = Some(format!("{id} is started from another {} than the server's", assigned.release));
        }
        if let Some(what) = broken {
            self.fail(what);
        }
    }

    /// A run is executed once.
    pub fn audit_run(&mut self, run: &Run) {
        let created = self.store.get(&keys::app(&run.app)).value.map_or(0, |held| held.created);
        if !self.audit.begun.insert((run.id.clone(), created)) {
            self.fail(format!("run {} is started twice", run.id));
        }
    }

    pub fn audit_purge(&mut self, app: &AppName) {
        say!(self, "the data of {app} is removed");
        let processes = self.machine.processes.values();
        let used = processes.filter(|process| process.is_alive()).any(|process| process.assigned.app == *app)
            || self.machine.runs.values().any(|run| run.run.app == *app && run.outcome.is_none());
        if used {
            self.fail(format!("the data of {app} is removed while it is used"));
        }
    }

    // What the ingress does.

    /// Invariant 3, of tables.
    pub fn audit_table(&mut self, thread: usize, documents: &[RouteDocument]) {
        let mut broken = None;
        for held in &self.ingress.threads[thread].documents {
            let next = documents.iter().find(|document| document.app == held.app);
            if next.is_some_and(|next| next.generation < held.generation) {
                broken = Some(format!(
                    "thread {thread}: routes of {} went back from {}",
                    held.app, held.generation
                ));
            }
        }
        if let Some(what) = broken {
            self.fail(what);
        }
    }

    /// Invariant 1: no request after the un-routing was acknowledged.
    pub fn audit_request(&mut self, thread: usize, app: &AppName, id: &InstanceId) {
        if let Some((unrouted, _)) = self.audit.unrouted.get(id)
            && *unrouted <= self.audit.acknowledged
        {
            let what = format!(
                "thread {thread} sends a request of {app} to {id} although its un-routing at {unrouted} was acknowledged"
            );
            self.fail(what);
        }
        if self.audit.stopped.get(id) == Some(&false) {
            self.fail(format!("thread {thread} sends a request of {app} to {id}, which was told to stop"));
        }
    }
}

pub(crate) fn unhealthy_listed(world: &World, document: &RouteDocument) -> Option<String> {
    endpoints(document).into_iter().find_map(|id| {
        let seen = world.observed.values().find_map(|held| held.value.instances.get(id));
        let state = seen.map(|seen| seen.state);
        (state != Some(InstanceState::Healthy))
            .then(|| format!("routes of {} list {id}, last reported {state:?}", document.app))
    })
}

/// A planned change never leaves less than the floor of those that were there and healthy.
pub(crate) fn below_floor(world: &World, document: &RouteDocument) -> Option<String> {
    let held = &world.routes.get(&document.app)?.value;
    held.backends.iter().find_map(|(service, was)| {
        let healthy = was.endpoints.iter().filter(|endpoint| {
            let seen = world.observed.values().find_map(|held| held.value.instances.get(&endpoint.instance));
            seen.is_some_and(|seen| seen.state == InstanceState::Healthy)
        });
        let healthy = healthy.count();
        let floor = floor(world, &document.app, service).min(healthy);
        let routed = document.backends.get(service).map_or(0, |backend| backend.endpoints.len());
        let app = &document.app;
        (routed < floor)
            .then(|| format!("a plan takes {app}/{service} from {healthy} to {routed}, below {floor}"))
    })
}

/// How many of a service a deployment must leave routed.
fn floor(world: &World, app: &AppName, service: &ServiceName) -> usize {
    let Some(record) = world.apps.get(app).map(|held| &held.value) else { return 0 };
    if record.destroying.is_some() {
        return 0;
    }
    let file = |number| world.release(app, number).map(|release| &release.file);
    let Some(current) = record.current.and_then(file) else { return 0 };
    let Some(declared) = current.services.get(service).filter(|declared| declared.port) else { return 0 };
    let wanted = |file: &AppFile| {
        let declared = file.services.get(service).filter(|declared| declared.port)?;
        Some(if declared.exclusive { 0 } else { record.count(service, declared.instances) })
    };
    let rolling = world.active_deployment(app).filter(|deployment| deployment.phase == Phase::Rolling);
    let aimed = rolling.and_then(|deployment| deployment.release).and_then(file);
    let of_current = if declared.exclusive { 0 } else { record.count(service, declared.instances) };
    // While one rolls, a service that it has no more goes on as it was.
    let of_aimed = aimed.and_then(wanted).unwrap_or(of_current);
    of_current.min(of_aimed) as usize
}
