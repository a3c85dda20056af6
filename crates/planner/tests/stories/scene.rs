//! A stage for the planner: a store, a node and a proxy that play their parts when told.
//!
//! Every step of every plan is applied one by one, with its guards, and after each of them the invariants of
//! [`crate::invariants`] are asserted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use rung_model::app::Destroying;
use rung_model::appfile::rollout::Share;
use rung_model::node::Drain;
use rung_model::rollout::Stage;
use rung_model::traffic::{Counts, class_of};
use rung_model::{
    App, AppFile, AppName, Assignment, Deployment, DeploymentKind, DeploymentNumber, Draft, Generation,
    InstanceId, InstanceState, Intent, JobName, JobRun, Label, Node, NodeFacts, NodeId, Observed,
    ObservedInstance, ObservedRun, Phase, ReleaseNumber, RouteDocument, Run, RunId, RunKind, RunOutcome,
    RunState, Scale, ServiceName, keys,
};
use rung_planner::{
    Clock, Input, Liveness, Plan, Progress, Proxies, Proxy, SHARED_MAX, Step, Traffic, World, plan,
};
use serde::Serialize;

use crate::files::digest;
use crate::invariants::{self, History};

pub const EPOCH: u64 = 3;
pub const PROXY: &str = "ingress";
/// The pace of [`Scene::play`].
const BEAT: Duration = Duration::from_millis(200);

pub struct Scene {
    pub world: World,
    pub store: BTreeMap<String, (Vec<u8>, u64)>,
    pub proxies: Proxies,
    pub liveness: Liveness,
    pub traffic: Traffic,
    /// What the proxy has counted in its life.
    counted: BTreeMap<DeploymentNumber, Counts>,
    pub progress: Progress,
    pub elapsed: Duration,
    /// How far the wall clock has stepped.
    pub stepped: jiff::SignedDuration,
    /// When this leader began, on the scene's own clock.
    led_since: Duration,
    pub revision: u64,
    pub last_plan: Plan,
    pub node: NodeId,
    reports: u64,
    /// Requests in flight that the proxy reports for a draining instance.
    pub in_flight: BTreeMap<InstanceId, u64>,
    pub proxy_is_silent: bool,
    /// Machines that are cut off: nothing of them is heard, and they hear nothing.
    silent: BTreeSet<NodeId>,
    /// Runs that the node was given, in order, each once.
    pub launched: Vec<RunId>,
    /// What the node was told to remove.
    pub purged: Vec<(String, Destroying)>,
    /// Outcomes of runs by a word in their command; others succeed.
    pub failing_commands: BTreeSet<String>,
    pub history: History,
    /// What the next deployments are to do otherwise.
    pub asked: rung_model::Asked,
}

impl Scene {
    pub fn new() -> Self {
        Self::with_memory(1 << 40)
    }

    pub fn with_memory(memory_bytes: u64) -> Self {
        let mut scene = Self::empty();
        scene.join(memory_bytes);
        scene
    }

    /// Without a node.
    pub fn empty() -> Self {
        let mut scene = Self {
            world: World::new(EPOCH),
            store: BTreeMap::new(),
            proxies: Proxies::default(),
            liveness: Liveness::default(),
            traffic: Traffic::default(),
            counted: BTreeMap::new(),
            progress: Progress::default(),
            elapsed: Duration::ZERO,
            stepped: jiff::SignedDuration::ZERO,
            led_since: Duration::ZERO,
            revision: 0,
            last_plan: Plan::default(),
            node: NodeId::new("box").unwrap(),
            reports: 0,
            in_flight: BTreeMap::new(),
            purged: Vec::new(),
            proxy_is_silent: false,
            silent: BTreeSet::new(),
            launched: Vec::new(),
            failing_commands: BTreeSet::new(),
            history: History::default(),
            asked: rung_model::Asked::default(),
        };
        scene.proxy_polls();
        scene
    }

    pub fn join(&mut self, memory_bytes: u64) {
        let node = self.node.clone();
        self.join_as(node.as_str(), memory_bytes, &[]);
    }

    /// A machine of that name, with labels like `disk=ssd`. Exclusive instances live there for ten seconds without a word.
    pub fn join_as(&mut self, name: &str, memory_bytes: u64, labels: &[&str]) {
        let labels = labels.iter().map(|label| label.parse::<Label>().unwrap());
        let number = self.world.nodes.values().map(|held| held.value.number).max().unwrap_or(0) + 1;
        let facts = NodeFacts {
            agent: "unix:agent.sock".into(),
            proxy: None,
            version: "1".into(),
            cpu_millis: 2000,
            memory_bytes,
            engine: rung_model::node::ContainerEngine::default(),
            disk_bytes: None,
            short_of_disk: None,
            labels: Default::default(),
            lease_ms: Some(10_000),
            isolation: Vec::new(),
        };
        let labels = labels.map(|label| (label.name, label.value)).collect();
        let node = Node { id: NodeId::new(name).unwrap(), number, facts, labels, drain: None };
        self.put(keys::node(&node.id), &node);
    }

    /// Somebody says what a machine is.
    pub fn label(&mut self, name: &str, label: &str) {
        let mut node = self.world.nodes[&NodeId::new(name).unwrap()].value.clone();
        let label: Label = label.parse().unwrap();
        node.labels.insert(label.name, label.value);
        self.put(keys::node(&node.id), &node);
    }

    pub fn drain(&mut self, name: &str) {
        let mut node = self.world.nodes[&NodeId::new(name).unwrap()].value.clone();
        let since = self.clock().wall;
        node.drain = Some(Drain { since, deadline: None, by: "ada".into() });
        self.put(keys::node(&node.id), &node);
    }

    /// A machine is not heard any more.
    pub fn cut_off(&mut self, name: &str) {
        self.silent.insert(NodeId::new(name).unwrap());
    }

    pub fn is_back(&mut self, name: &str) {
        self.silent.remove(&NodeId::new(name).unwrap());
    }

    // The store.

    pub fn put<T: Serialize>(&mut self, key: String, value: &T) {
        self.apply(vec![(key, Some(serde_json::to_vec(value).unwrap()))]);
    }

    pub fn delete(&mut self, key: String) {
        self.apply(vec![(key, None)]);
    }

    fn apply(&mut self, writes: Vec<(String, Option<Vec<u8>>)>) {
        self.revision += 1;
        for (key, value) in writes {
            match value {
                Some(value) => {
                    self.world.put(&key, &value, self.revision).unwrap();
                    self.store.insert(key, (value, self.revision));
                }
                None => {
                    self.world.delete(&key);
                    self.store.remove(&key);
                }
            }
        }
        self.world.revision = self.revision;
    }

    pub fn remove(&mut self, key: &str) {
        self.apply(vec![(key.to_owned(), None)]);
    }

    /// The world as a leader that begins now would have it.
    pub fn listed_world(&self) -> World {
        let mut world = World::new(EPOCH);
        for (key, (value, revision)) in &self.store {
            world.put(key, value, *revision).unwrap();
        }
        world.revision = self.revision;
        world
    }

    // Planning.

    pub fn clock(&self) -> Clock {
        let wall = Timestamp::from_second(1_700_000_000).unwrap() + self.elapsed + self.stepped;
        Clock { elapsed: self.elapsed - self.led_since, wall }
    }

    pub fn plan(&mut self) -> Plan {
        let input = Input {
            world: &self.world,
            proxies: &self.proxies,
            liveness: &self.liveness,
            traffic: &self.traffic,
            clock: self.clock(),
            shared_max: SHARED_MAX,
        };
        let made = plan(input, &mut self.progress);
        self.last_plan = made.clone();
        made
    }

    pub fn write(&mut self, step: &Step) {
        for write in &step.writes {
            let held = self.store.get(&write.key).map(|(_, revision)| *revision);
            assert_eq!(
                held, write.replaces,
                "step {:?} conflicts with its own plan at {}",
                step.why, write.key
            );
        }
        let before = self.world.clone();
        self.apply(step.writes.iter().map(|write| (write.key.clone(), write.value.clone())).collect());
        invariants::assert_step(self, &before, step);
    }

    /// Plans and writes until there is nothing more to do without new facts.
    pub fn settle(&mut self) {
        for _ in 0..30 {
            let plan = self.plan();
            if plan.steps.is_empty() {
                return;
            }
            for step in &plan.steps {
                self.write(step);
            }
        }
        panic!("the planner does not come to rest: {:?}", self.plan().steps);
    }

    /// Another leader takes over: it knows the store and nothing else.
    pub fn change_leader(&mut self) {
        self.progress = Progress::default();
        self.proxies = Proxies::default();
        self.traffic = Traffic::default();
        self.liveness = Liveness::default();
        self.led_since = self.elapsed;
        self.world = self.listed_world();
        if !self.proxy_is_silent {
            self.proxy_polls();
        }
    }

    /// The wall clock is set.
    pub fn step_clock(&mut self, by: jiff::SignedDuration) {
        self.stepped += by;
    }

    pub fn pass(&mut self, time: Duration) {
        self.elapsed += time;
    }

    /// Time passes, the node and the proxy do their parts, the plan follows; until something holds.
    pub fn play(&mut self, until: &str, done: impl Fn(&Self) -> bool) {
        self.play_within(Duration::from_secs(120), until, done);
    }

    pub fn play_within(&mut self, limit: Duration, until: &str, done: impl Fn(&Self) -> bool) {
        let end = self.elapsed + limit;
        self.settle();
        while !done(self) {
            assert!(
                self.elapsed < end,
                "not within {limit:?}: {until}\nassignment: {:#?}\nroutes: {:#?}\ndeployment: {:#?}",
                self.assignment().instances,
                self.world.routes,
                self.world.deployments.values().flat_map(|of| of.values().last()).collect::<Vec<_>>(),
            );
            self.beat();
        }
    }

    pub fn beat(&mut self) {
        self.pass(BEAT);
        self.nodes_beat();
        self.node_moves();
        self.settle();
        if !self.proxy_is_silent {
            self.proxy_polls();
        }
        self.settle();
    }

    // The proxy.

    pub fn proxy_polls(&mut self) {
        let draining = self.in_flight.clone();
        let acknowledged = Generation::new(EPOCH, self.revision);
        let proxy = Proxy { acknowledged, draining, silent_since: None };
        self.proxies.0.insert(PROXY.into(), proxy);
    }

    /// So many more requests went to a cohort of `shop`, of which so many failed, and each took so long.
    pub fn requests(&mut self, cohort: u64, requests: u64, errors: u64, time: Duration) {
        // What a leader hears first is what another may have counted.
        self.proxy_reports();
        let counts = self.counted.entry(DeploymentNumber(cohort)).or_default();
        let times = [(class_of(time), requests)].into();
        counts.add(&Counts { requests, errors, times });
        self.proxy_reports();
    }

    fn proxy_reports(&mut self) {
        let counts = self.counted.iter().map(|(cohort, counts)| (name("shop"), *cohort, counts.clone()));
        self.traffic.hear(PROXY, 1, counts);
    }

    pub fn proxy_falls_silent(&mut self) {
        self.proxy_is_silent = true;
        let elapsed = self.clock().elapsed;
        self.proxies.0.get_mut(PROXY).unwrap().silent_since = Some(elapsed);
    }

    // The nodes.

    fn nodes_beat(&mut self) {
        let now = self.clock().elapsed;
        for node in self.world.nodes.keys().filter(|node| !self.silent.contains(*node)) {
            self.liveness.heard(node, now);
        }
        self.liveness.look(self.world.nodes.keys(), now);
    }

    pub fn assignment_of(&self, node: &NodeId) -> Assignment {
        let held = self.world.assignments.get(node);
        held.map_or_else(|| Assignment::empty(node.clone()), |held| held.value.clone())
    }

    pub fn observed_of(&self, node: &NodeId) -> Option<&Observed> {
        self.world.observed.get(node).map(|held| &held.value)
    }

    /// How many instances of an app shall run on each machine.
    pub fn running(&self, app: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (node, held) in &self.world.assignments {
            let here = held.value.instances.values();
            let here = here.filter(|is| is.app == name(app) && is.intent == Intent::Run).count();
            if here > 0 {
                counts.insert(node.to_string(), here);
            }
        }
        counts
    }

    pub fn assignment(&self) -> Assignment {
        let held = self.world.assignments.get(&self.node);
        held.map_or_else(|| Assignment::empty(self.node.clone()), |held| held.value.clone())
    }

    pub fn observed(&self) -> Option<&Observed> {
        self.world.observed.get(&self.node).map(|held| &held.value)
    }

    /// On every machine each instance goes one state further, as its command says; each run too. Reported when anything
    /// changed.
    pub fn node_moves(&mut self) {
        let nodes: Vec<NodeId> = self.world.nodes.keys().cloned().collect();
        for node in nodes.iter().filter(|node| !self.silent.contains(*node)).cloned().collect::<Vec<_>>() {
            self.moves_on(&node);
        }
    }

    fn moves_on(&mut self, node: &NodeId) {
        let assignment = self.assignment_of(node);
        let before = self.observed_of(node).cloned();
        let mut instances = BTreeMap::new();
        for (id, assigned) in &assignment.instances {
            let seen = before.as_ref().and_then(|observed| observed.instances.get(id));
            let file = self.world.release(&assigned.app, assigned.release).map(|release| &release.file);
            let service = &file.expect("an assigned release is kept").services[&assigned.service];
            let (state, restarts) =
                next_state(seen, assigned.intent, service.command.as_deref().unwrap_or_default());
            let digits = id.as_str().trim_start_matches(|c: char| !c.is_ascii_digit());
            let number = digits.parse::<u16>().unwrap_or(0);
            instances.insert(
                id.clone(),
                ObservedInstance {
                    app: assigned.app.clone(),
                    service: assigned.service.clone(),
                    release: assigned.release,
                    state,
                    endpoint: service.port.then(|| ([127, 0, 0, 1], 20_000 + number).into()),
                    pid: None,
                    restarts,
                    exits: seen.map_or(0, |seen| seen.exits) + u32::from(state == InstanceState::BackingOff),
                    since: self.clock().wall,
                    reason: (state == InstanceState::CrashLooping).then(|| "exited with code 3".to_owned()),
                    log_tail: vec!["boom".into()],
                },
            );
        }
        let runs =
            assignment.runs.iter().map(|(id, run)| (id.clone(), self.next_run(id, run, before.as_ref())));
        let runs: BTreeMap<_, _> = runs.collect();
        for id in runs.keys() {
            if !self.launched.contains(id) {
                self.launched.push(id.clone());
            }
        }
        self.purged.extend(assignment.purges().map(|(app, volumes)| (app.to_string(), volumes)));
        self.report_of(node, assignment.generation, instances, runs);
    }

    fn next_run(&self, id: &RunId, run: &Run, before: Option<&Observed>) -> ObservedRun {
        let at = self.clock().wall;
        let seen = before.and_then(|observed| observed.runs.get(id)).map(|seen| &seen.state);
        let state = match seen {
            Some(RunState::Ended { .. }) => seen.unwrap().clone(),
            _ if run.cancelled => RunState::Ended { at, outcome: RunOutcome::Cancelled },
            Some(RunState::Running { since }) => match self.outcome(run) {
                Some(outcome) => RunState::Ended { at, outcome },
                None => RunState::Running { since: *since },
            },
            _ => RunState::Running { since: at },
        };
        let started = match (before.and_then(|observed| observed.runs.get(id)), &state) {
            (Some(seen), _) => seen.started,
            (None, RunState::Running { since }) => Some(*since),
            (None, _) => None,
        };
        ObservedRun { app: run.app.clone(), state, started }
    }

    /// `None`: it hangs.
    fn outcome(&self, run: &Run) -> Option<RunOutcome> {
        let (command, artifact) = match &run.kind {
            RunKind::Build { source, command, .. } => {
                (command.clone().unwrap_or_default(), Some(digest(&format!("built {source}"))))
            }
            RunKind::Release { command, .. }
            | RunKind::Job { command, .. }
            | RunKind::OneOff { command, .. } => (command.clone(), None),
        };
        if command.contains("hang") {
            return None;
        }
        if self.failing_commands.iter().any(|word| command.contains(word)) {
            let log_tail = vec!["no such table".to_owned()];
            return Some(RunOutcome::Failed {
                reason: "exited with code 1".into(),
                exit_code: Some(1),
                log_tail,
            });
        }
        Some(RunOutcome::Succeeded { artifact })
    }

    pub fn report(
        &mut self,
        assignment: Generation,
        instances: BTreeMap<InstanceId, ObservedInstance>,
        runs: BTreeMap<RunId, ObservedRun>,
    ) {
        self.report_of(&self.node.clone(), assignment, instances, runs);
    }

    fn report_of(
        &mut self,
        node: &NodeId,
        assignment: Generation,
        instances: BTreeMap<InstanceId, ObservedInstance>,
        runs: BTreeMap<RunId, ObservedRun>,
    ) {
        if let Some(held) = self.observed_of(node)
            && (held.assignment, &held.instances, &held.runs) == (assignment, &instances, &runs)
        {
            return;
        }
        self.reports += 1;
        let observed = Observed {
            node: node.clone(),
            assignment,
            sequence: self.reports,
            agent_started: Timestamp::UNIX_EPOCH,
            instances,
            runs,
            artifacts: Vec::new(),
        };
        self.put(keys::observed(node), &observed);
    }

    /// One instance's state, all else as reported before.
    pub fn report_state(&mut self, id: &InstanceId, state: InstanceState) {
        let mut observed = self.observed().expect("the node has reported before").clone();
        let instance = observed.instances.get_mut(id).expect("the instance was reported before");
        instance.state = state;
        instance.exits += u32::from(state == InstanceState::BackingOff);
        self.report(observed.assignment, observed.instances, observed.runs);
    }

    /// The machine was off, and its agent has started everything again: a life later, with no exit that it has seen.
    pub fn started_again(&mut self) {
        let mut observed = self.observed().expect("it has reported before").clone();
        for instance in observed.instances.values_mut() {
            instance.restarts += 1;
            instance.exits = 0;
        }
        self.report(observed.assignment, observed.instances, observed.runs);
    }

    // People.

    pub fn app(&self, app: &str) -> &App {
        &self.world.apps[&name(app)].value
    }

    /// What the API does: the app and its next deployment, in one transaction.
    pub fn begin(
        &mut self,
        app: &str,
        kind: DeploymentKind,
        draft: Option<Draft>,
        again: Option<ReleaseNumber>,
    ) -> DeploymentNumber {
        let app = name(app);
        let held = self.world.apps.get(&app).map(|held| held.value.clone());
        let mut record = held.unwrap_or_else(|| App::new(app.clone()));
        assert!(record.destroying.is_none(), "the API refuses to change an app that is being destroyed");
        assert!(self.world.active_deployment(&app).is_none(), "the API refuses a second deployment");
        let number = record.last_deployment.next();
        record.last_deployment = number;
        let deployment = Deployment {
            app: app.clone(),
            number,
            kind,
            by: "ada".into(),
            at: self.clock().wall,
            phase: match again {
                // A release that was made before and never served still has its release command before it.
                Some(_) if kind == DeploymentKind::Deploy => Phase::Building,
                Some(_) => Phase::Rolling,
                None => Phase::Building,
            },
            draft,
            release: again,
            from: record.current,
            run: None,
            remaining: Duration::from_secs(60),
            cancelled_by: None,
            trouble: None,
            timeline: Vec::new(),
            asked: self.asked,
            runs: Vec::new(),
            notification: None,
            rollout: None,
            aftercare: None,
        };
        let writes = vec![
            (keys::app(&app), Some(serde_json::to_vec(&record).unwrap())),
            (keys::deployment(&app, number), Some(serde_json::to_vec(&deployment).unwrap())),
        ];
        self.apply(writes);
        number
    }

    /// Deploys a file whose source is named; without a build section the source is the artifact.
    pub fn deploy(&mut self, file: &AppFile, source: &str) -> DeploymentNumber {
        let source = digest(source);
        let draft = Draft {
            file: file.clone(),
            config: BTreeMap::new(),
            secrets: BTreeMap::new(),
            artifact: file.build.is_empty().then(|| source.clone()),
            source: Some(source),
            reason: "deploy".into(),
            note: None,
            provenance: Default::default(),
        };
        self.begin(file.app.as_str(), DeploymentKind::Deploy, Some(draft), None)
    }

    /// A deployment of what an earlier release was made of.
    pub fn redeploy(&mut self, app: &str, kind: DeploymentKind, of: ReleaseNumber) -> DeploymentNumber {
        let release = self.world.release(&name(app), of).expect("the release is kept").clone();
        let draft = Draft {
            file: release.file,
            config: release.config,
            secrets: release.secrets,
            source: release.source,
            artifact: Some(release.artifact),
            reason: "again".into(),
            note: None,
            provenance: Default::default(),
        };
        self.begin(app, kind, Some(draft), None)
    }

    pub fn scale(&mut self, app: &str, service: &str, count: u32) {
        let mut record = self.app(app).clone();
        let release = self.world.release(&record.name, record.current.unwrap()).unwrap();
        let service = ServiceName::new(service).unwrap();
        let from_file = release.file.services[&service].instances;
        record.scale.insert(service, Scale { count, from_file });
        self.put(keys::app(&record.name), &record);
    }

    pub fn cancel(&mut self, app: &str) {
        let mut deployment = self.deployment(app).clone();
        deployment.cancelled_by = Some("bob".into());
        self.put(keys::deployment(&deployment.app, deployment.number), &deployment);
    }

    /// What the API does for `rung continue`.
    pub fn go_on(&mut self, app: &str) {
        let mut deployment = self.deployment(app).clone();
        deployment.rollout.get_or_insert_default().continued_by = Some("bob".into());
        self.put(keys::deployment(&deployment.app, deployment.number), &deployment);
    }

    pub fn destroy(&mut self, app: &str, volumes: Destroying) {
        let mut record = self.app(app).clone();
        record.destroying = Some(volumes);
        self.put(keys::app(&record.name), &record);
    }

    pub fn run(&mut self, app: &str, id: &str, command: &str) -> RunId {
        let run = Run {
            id: RunId::new(id).unwrap(),
            app: name(app),
            kind: RunKind::OneOff {
                release: self.app(app).current.unwrap(),
                command: command.into(),
                terminal: None,
            },
            by: "ada".into(),
            at: self.clock().wall,
            node: None,
            timeout: Duration::from_secs(60),
            cancelled: false,
            state: RunState::Pending,
        };
        self.put(keys::run(&run.app, &run.id), &run);
        run.id
    }

    /// What the API does for `rung job run report`.
    pub fn run_job(&mut self, id: &str) {
        let app = name("shop");
        let release = self.app("shop").current.expect("the app serves");
        let of = JobName::new("report").unwrap();
        let job = self.world.release(&app, release).unwrap().file.jobs[&of].clone();
        let run = JobRun {
            job: of,
            scheduled: None,
            through: None,
            started: None,
            attempt: 1,
            retries_left: job.retries,
            retry_after: job.retry_after,
        };
        let run = Run {
            id: RunId::new(id).unwrap(),
            app,
            kind: RunKind::Job { release, run, command: job.command, env: BTreeMap::new() },
            by: "ada".into(),
            at: self.clock().wall,
            node: None,
            timeout: job.timeout,
            cancelled: false,
            state: RunState::Pending,
        };
        self.put(keys::run(&run.app, &run.id), &run);
    }

    // What there is to see.

    pub fn deployment(&self, app: &str) -> &Deployment {
        self.world.last_deployment(&name(app)).expect("the app was deployed")
    }

    pub fn phase(&self, app: &str) -> Phase {
        self.deployment(app).phase
    }

    pub fn has_ended(&self, app: &str) -> bool {
        self.deployment(app).has_ended()
    }

    pub fn trouble(&self, app: &str) -> String {
        self.deployment(app).trouble.as_ref().map(|trouble| trouble.reason.clone()).unwrap_or_default()
    }

    pub fn routes(&self, app: &str) -> Option<&RouteDocument> {
        self.world.routes.get(&name(app)).map(|held| &held.value)
    }

    /// Routed instances of a service, by id.
    pub fn routed(&self, app: &str, service: &str) -> Vec<String> {
        self.backend_ids(app, service, |backend| &backend.endpoints)
    }

    pub fn draining(&self, app: &str, service: &str) -> Vec<String> {
        self.backend_ids(app, service, |backend| &backend.draining)
    }

    fn backend_ids(
        &self,
        app: &str,
        service: &str,
        which: impl Fn(&rung_model::Backend) -> &Vec<rung_model::Endpoint>,
    ) -> Vec<String> {
        let service = ServiceName::new(service).unwrap();
        let backend = self.routes(app).and_then(|document| document.backends.get(&service));
        backend.map(|b| which(b).iter().map(|e| e.instance.to_string()).collect()).unwrap_or_default()
    }

    /// The part of the visitors of `shop` that the new release gets; `None` when there is nothing to share between.
    pub fn share(&self) -> Option<Share> {
        let web = ServiceName::new("web").unwrap();
        Some(self.routes("shop")?.backends.get(&web)?.split.as_ref()?.share)
    }

    pub fn stage(&self) -> Stage {
        self.deployment("shop").rollout.as_ref().map(|rollout| rollout.stage).unwrap_or_default()
    }

    /// Assigned instances of an app, by id, with what shall become of them.
    pub fn assigned(&self, app: &str) -> BTreeMap<String, Intent> {
        let instances = self.world.assignments.values().flat_map(|held| held.value.instances.clone());
        let of_app = instances.filter(|(_, assigned)| assigned.app == name(app));
        of_app.map(|(id, assigned)| (id.to_string(), assigned.intent)).collect()
    }

    pub fn says(&self, app: &str, words: &str) -> bool {
        self.deployment(app).timeline.iter().any(|entry| entry.message.contains(words))
    }
}

pub fn name(app: &str) -> AppName {
    AppName::new(app).unwrap()
}

pub fn id(text: &str) -> InstanceId {
    InstanceId::new(text).unwrap()
}

/// `good` gets healthy, `crash` exits until it is a crash loop, `never` starts and stays so.
fn next_state(seen: Option<&ObservedInstance>, intent: Intent, command: &str) -> (InstanceState, u32) {
    use InstanceState::{
        BackingOff, CrashLooping, Failed, Healthy, Preparing, Starting, Stopped, Stopping, Unhealthy,
    };
    let (state, restarts) = seen.map_or((None, 0), |seen| (Some(seen.state), seen.restarts));
    if intent == Intent::Stop {
        let state = match state {
            Some(Starting | Healthy | Unhealthy) => Stopping,
            _ => Stopped,
        };
        return (state, restarts);
    }
    match state {
        None => (Preparing, 0),
        Some(Preparing) => (Starting, 0),
        Some(Starting) if command.contains("crash") => (BackingOff, restarts),
        Some(Starting) if command.contains("never") => (Starting, restarts),
        Some(Starting | Unhealthy) => (Healthy, restarts),
        Some(BackingOff) if restarts >= 4 => (CrashLooping, restarts),
        Some(BackingOff) => (Starting, restarts + 1),
        Some(state @ (Healthy | CrashLooping | Failed | Stopping | Stopped)) => (state, restarts),
    }
}
