//! A plan in the making: changed documents beside the held ones, turned into guarded writes at the end.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rung_model::{
    AddressBlock, App, AppName, AssignedInstance, Assignment, BlockNumber, Deployment, DeploymentNumber,
    Document, Generation, InstanceId, Intent, JobName, JobRun, JobState, MakingWay, NodeId, Release,
    ReleaseNumber, RouteDocument, Run, RunId, RunOutcome, RunState, ServiceName, keys,
};

use crate::numbers::NodeNumber;
use crate::placed::{Given, Placement};
use crate::roster::{Known, Roster};
use crate::schedule::ground::Ground;
use crate::schedule::memory_of_run;
use crate::told::{BatchNumber, Batches, Told};
use crate::{Input, Order, Plan, Progress, Step, Waiting, WaitingRun, Write};

/// How many runs a plan writes beside an assignment: a transaction of the store holds 128 operations.
const RUNS_RECORDED_MAX: usize = 90;

/// And how many bytes of them: with the log lines of a failed one each is some ten kilobytes, and a transaction of the
/// store holds a megabyte.
const RUNS_RECORDED_BYTES_MAX: usize = 300 * 1024;

/// Writes of one step of dispatches; below the store's limit of 128 operations. One job that catches up has 102.
const DISPATCHED_MAX: usize = 110;

/// Bytes of one step of dispatches, the last of which may be as large again.
const DISPATCHED_BYTES_MAX: usize = 400 * 1024;

/// Writes and bytes of one step that several assignments share; one that is larger has a step of its own.
pub const SHARED_MAX: usize = 110;
const SHARED_BYTES_MAX: usize = 800 * 1024;

/// What the runs of one assignment may come to, all else of it being small: it is one document, in one transaction with
/// the runs that are recorded with it. More of them wait.
const ASSIGNED_RUNS_BYTES_MAX: usize = 600 * 1024;

pub struct Draft<'a> {
    pub(crate) input: Input<'a>,
    pub(crate) progress: &'a mut Progress,
    /// Documents of one app that change together: the app, its deployment, a new release, a new run.
    changed: BTreeMap<AppName, Changed>,
    /// Every node that the index knows.
    roster: Roster<'a>,
    /// What is written anew of each of them, by its number.
    told: Vec<Option<Told>>,
    /// Instances of this plan, which the world's index does not know yet.
    batches: Batches,
    minted: BTreeMap<AppName, BTreeMap<ServiceName, Vec<BatchNumber>>>,
    /// Instances that this plan changes, or takes off their nodes, where the batches and the index have them otherwise.
    altered: BTreeMap<AppName, BTreeMap<InstanceId, Option<Placement>>>,
    ground: OnceCell<Ground>,
    /// Instances that have ended. They are taken off at the plan's end: what becomes free is first offered to those that
    /// matter most, in the next plan.
    ended: Vec<(NodeId, InstanceId)>,
    routes: BTreeMap<AppName, Option<RouteDocument>>,
    addresses: BTreeMap<BlockNumber, AddressBlock>,
    recorded_runs: BTreeMap<RunId, Run>,
    recorded_bytes: usize,
    dispatched: Vec<Dispatch>,
    /// Gathered when they are first asked for.
    job_runs: OnceCell<JobRuns<'a>>,
    going_runs: OnceCell<BTreeMap<&'a AppName, Vec<&'a Run>>>,
    deleted: BTreeSet<String>,
    /// Written last: while anything of an app is left, its name is not free.
    forgotten: BTreeSet<AppName>,
    waiting: Vec<Waiting>,
    waiting_runs: Vec<WaitingRun>,
    wake_at: Option<Duration>,
}

/// The runs of jobs, by what is asked of them.
#[derive(Debug, Default)]
struct JobRuns<'a> {
    /// Those that go on, as far as their nodes have said.
    going: BTreeMap<&'a AppName, BTreeMap<&'a JobName, Vec<&'a Run>>>,
    /// Those that failed and are tried again.
    failed: BTreeMap<&'a AppName, Vec<&'a Run>>,
}

/// A job's progress and the runs that come of it: written together, so that a scheduled time has its record when it
/// counts as handled, and never twice.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub state: Option<JobState>,
    pub runs: Vec<Run>,
}

#[derive(Debug, Default)]
struct Changed {
    app: Option<App>,
    /// The last one.
    deployment: Option<Deployment>,
    earlier: BTreeMap<DeploymentNumber, Deployment>,
    release: Option<Release>,
    run: Option<Run>,
}

/// A step in the making.
#[derive(Debug, Default)]
struct SharedStep {
    nodes: Vec<NodeId>,
    writes: Vec<Write>,
    bytes: usize,
}

impl SharedStep {
    fn has_room_for(&self, writes: &[Write], most: usize) -> bool {
        self.writes.is_empty()
            || (self.writes.len() + writes.len() <= most && self.bytes + bytes_of(writes) <= SHARED_BYTES_MAX)
    }

    fn add(&mut self, node: NodeId, writes: Vec<Write>) {
        self.bytes += bytes_of(&writes);
        self.nodes.push(node);
        self.writes.extend(writes);
    }
}

fn bytes_of(writes: &[Write]) -> usize {
    writes.iter().filter_map(|write| write.value.as_ref()).map(Vec::len).sum()
}

impl std::fmt::Debug for Draft<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft").field("changed", &self.changed).finish_non_exhaustive()
    }
}

impl<'a> Draft<'a> {
    pub(crate) fn new(input: Input<'a>, progress: &'a mut Progress) -> Self {
        let roster = Roster::of(&input);
        let mut told = Vec::new();
        told.resize_with(roster.len(), || None);
        Self {
            input,
            progress,
            changed: BTreeMap::new(),
            roster,
            told,
            batches: Batches::default(),
            minted: BTreeMap::new(),
            altered: BTreeMap::new(),
            ground: OnceCell::new(),
            ended: Vec::new(),
            routes: BTreeMap::new(),
            addresses: BTreeMap::new(),
            recorded_runs: BTreeMap::new(),
            recorded_bytes: 0,
            dispatched: Vec::new(),
            job_runs: OnceCell::new(),
            going_runs: OnceCell::new(),
            deleted: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            waiting: Vec::new(),
            waiting_runs: Vec::new(),
            wake_at: None,
        }
    }

    // Reading: what was changed in this plan first, then what is held.

    pub(crate) fn app(&self, app: &AppName) -> &App {
        let changed = self.changed.get(app).and_then(|changed| changed.app.as_ref());
        changed.unwrap_or_else(|| &self.input.world.apps[app].value)
    }

    pub(crate) fn deployment(&self, app: &AppName) -> Option<&Deployment> {
        let changed = self.changed.get(app).and_then(|changed| changed.deployment.as_ref());
        changed.or_else(|| self.input.world.last_deployment(app))
    }

    pub(crate) fn deployment_of(&self, app: &AppName, number: DeploymentNumber) -> Option<&Deployment> {
        let last = self.deployment(app).filter(|deployment| deployment.number == number);
        let changed = || self.changed.get(app).and_then(|changed| changed.earlier.get(&number));
        last.or_else(changed).or_else(|| self.input.world.deployment(app, number))
    }

    /// Whether this plan writes the app's deployment anyway.
    pub(crate) fn writes_deployment(&self, app: &AppName) -> bool {
        self.changed.get(app).is_some_and(|changed| changed.deployment.is_some())
    }

    pub(crate) fn release(&self, app: &AppName, number: ReleaseNumber) -> Option<&Release> {
        let changed = self.changed.get(app).and_then(|changed| changed.release.as_ref());
        changed.filter(|release| release.number == number).or_else(|| self.input.world.release(app, number))
    }

    pub(crate) fn known(&self, node: NodeNumber) -> &Known<'a> {
        &self.roster[node]
    }

    fn number(&self, node: &NodeId) -> Option<NodeNumber> {
        self.input.world.placed.numbers().find(node)
    }

    /// Without the instances that it gets by this plan.
    pub(crate) fn assignment(&self, node: &NodeId) -> Option<&Assignment> {
        let number = self.number(node)?;
        let told = self.told[number.index()].as_ref().map(|told| &told.document);
        told.or(self.known(number).told)
    }

    /// The app's runs whose end is not recorded.
    pub(crate) fn unended_runs(&self, app: &AppName) -> Vec<&'a Run> {
        let by_app = self.going_runs.get_or_init(|| {
            let mut by_app: BTreeMap<&AppName, Vec<&Run>> = BTreeMap::new();
            let runs = self.input.world.runs.values().map(|held| &held.value);
            for run in runs.filter(|run| !run.has_ended()) {
                by_app.entry(&run.app).or_default().push(run);
            }
            by_app
        });
        by_app.get(app).cloned().unwrap_or_default()
    }

    /// The job's runs that have not ended.
    pub(crate) fn going_runs(&self, app: &AppName, job: &JobName) -> &[&'a Run] {
        let going = &self.job_runs().going;
        going.get(app).and_then(|of_app| of_app.get(job)).map(Vec::as_slice).unwrap_or_default()
    }

    pub(crate) fn is_going(&self, app: &AppName, job: &JobName) -> bool {
        !self.going_runs(app, job).is_empty()
    }

    pub(crate) fn failed_with_tries_left(&self, app: &AppName) -> &[&'a Run] {
        self.job_runs().failed.get(app).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether the job has a run that was made after this one, for another time.
    pub(crate) fn has_newer_run(&self, than: &Run, of: &JobRun) -> bool {
        let runs = self.input.world.runs.values().map(|held| &held.value);
        let mut others = runs.filter(|run| run.app == than.app && run.id != than.id && run.at > than.at);
        others.any(|run| {
            run.of_job().is_some_and(|other| other.job == of.job && other.through.is_none())
                && !run.was_skipped()
        })
    }

    fn job_runs(&self) -> &JobRuns<'a> {
        self.job_runs.get_or_init(|| {
            let mut found = JobRuns::default();
            for run in self.input.world.runs.values().map(|held| &held.value) {
                let Some(of) = run.of_job() else { continue };
                match &run.state {
                    RunState::Ended { outcome: RunOutcome::Failed { .. }, .. } if of.retries_left > 0 => {
                        found.failed.entry(&run.app).or_default().push(run);
                    }
                    RunState::Ended { .. } => {}
                    RunState::Pending | RunState::Running { .. } if self.is_seen_ended(run) => {}
                    RunState::Pending | RunState::Running { .. } => {
                        found.going.entry(&run.app).or_default().entry(&of.job).or_default().push(run);
                    }
                }
            }
            found
        })
    }

    /// Its node has said so, and it is not recorded yet.
    fn is_seen_ended(&self, run: &Run) -> bool {
        let observed = run.node.as_ref().and_then(|node| self.input.world.observed.get(node));
        let seen = observed.and_then(|observed| observed.value.runs.get(&run.id));
        seen.is_some_and(|seen| matches!(seen.state, RunState::Ended { .. }))
    }

    /// Every node's assignment, as changed so far.
    pub(crate) fn assignments(&self) -> impl Iterator<Item = (&NodeId, &Assignment)> {
        self.input.world.nodes.keys().filter_map(|node| Some((node, self.assignment(node)?)))
    }

    /// The services of which an app has instances, each once.
    pub(crate) fn running_services(&self, app: &AppName) -> impl Iterator<Item = &ServiceName> {
        let placed = &self.input.world.placed;
        let minted = self.minted.get(app).into_iter().flat_map(BTreeMap::keys);
        placed.services(app).chain(minted.filter(move |service| !placed.has_service(app, service)))
    }

    /// A service's instances, as changed so far.
    pub(crate) fn instances_of(
        &self,
        app: &AppName,
        service: &ServiceName,
    ) -> impl Iterator<Item = (&InstanceId, &Placement)> {
        let batches = self.minted.get(app).and_then(|of_app| of_app.get(service)).into_iter().flatten();
        let minted = batches.flat_map(|batch| &self.batches.get(*batch).made);
        let known = self.input.world.placed.instances(app, service);
        let altered = self.altered.get(app);
        let all = known.chain(minted.map(|(id, placement)| (id, placement)));
        all.filter_map(move |(id, placement)| {
            let placement = match altered.and_then(|altered| altered.get(id)) {
                Some(altered) => altered.as_ref()?,
                None => placement,
            };
            // What a removed node had is not there any more.
            self.known(placement.node).node.is_some().then_some((id, placement))
        })
    }

    /// Whether anything of an app is assigned to a node.
    pub(crate) fn has_instances(&self, app: &AppName) -> bool {
        self.running_services(app).any(|service| self.instances_of(app, service).next().is_some())
    }

    pub(crate) fn route_document(&self, app: &AppName) -> Option<&'a RouteDocument> {
        self.input.world.routes.get(app).map(|held| &held.value)
    }

    /// Whether every proxy follows the stored route document of an app, and it was not changed in this plan.
    pub(crate) fn routes_acknowledged(&self, app: &AppName) -> bool {
        if self.routes.contains_key(app) {
            return false;
        }
        let Some(document) = self.route_document(app) else { return true };
        self.acknowledged(document.generation)
    }

    /// The app's blocks of addresses, as changed so far.
    pub(crate) fn address_blocks(&self, app: &AppName) -> impl Iterator<Item = &AddressBlock> {
        let held = self.input.world.addresses.blocks_of(app).map(|held| &held.value);
        let held = held.filter(|block| !self.addresses.contains_key(&block.number));
        held.chain(self.addresses.values().filter(move |block| block.app == *app))
    }

    pub(crate) fn is_block_free(&self, block: BlockNumber) -> bool {
        !self.addresses.contains_key(&block) && self.input.world.addresses.revision_of(block).is_none()
    }

    pub(crate) fn acknowledged(&self, generation: Generation) -> bool {
        self.input.proxies.have_acknowledged(generation, self.input.clock.elapsed)
    }

    /// Proxies that nobody waits for any more and that may not follow the app's stored route document; those of machines that
    /// were removed are not missed.
    pub(crate) fn given_up_proxies(&self, app: &AppName) -> Vec<&'a str> {
        let Some(document) = self.route_document(app) else { return Vec::new() };
        let given_up = self.input.proxies.given_up(document.generation, self.input.clock.elapsed);
        given_up.into_iter().filter(|proxy| self.input.world.knows_machine_of(proxy)).collect()
    }

    // Changing.

    pub(crate) fn change_app(&mut self, app: &AppName) -> &mut App {
        let held = &self.input.world.apps[app].value;
        self.changed.entry(app.clone()).or_default().app.get_or_insert_with(|| held.clone())
    }

    pub(crate) fn change_deployment(&mut self, app: &AppName) -> &mut Deployment {
        let world = self.input.world;
        self.changed.entry(app.clone()).or_default().deployment.get_or_insert_with(|| {
            world.last_deployment(app).expect("a deployment is changed only where one is").clone()
        })
    }

    /// Changes one that another may have followed already.
    pub(crate) fn change_deployment_of(
        &mut self,
        app: &AppName,
        number: DeploymentNumber,
    ) -> &mut Deployment {
        if self.deployment(app).is_some_and(|deployment| deployment.number == number) {
            return self.change_deployment(app);
        }
        let world = self.input.world;
        self.changed.entry(app.clone()).or_default().earlier.entry(number).or_insert_with(|| {
            world.deployment(app, number).expect("a deployment is changed only where it is").clone()
        })
    }

    /// Records the app's next deployment.
    pub(crate) fn begin_deployment(&mut self, deployment: Deployment) {
        let changed = self.changed.entry(deployment.app.clone()).or_default();
        if let Some(before) = changed.deployment.replace(deployment) {
            changed.earlier.insert(before.number, before);
        }
    }

    pub(crate) fn add_release(&mut self, release: Release) {
        let changed = self.changed.entry(release.app.clone()).or_default();
        changed.release = Some(release);
    }

    /// Records a run before it is launched: it is written in the same step as the deployment that waits for it.
    pub(crate) fn add_run(&mut self, run: Run) {
        let changed = self.changed.entry(run.app.clone()).or_default();
        changed.run = Some(run);
    }

    pub(crate) fn change_assignment(&mut self, node: &NodeId) -> &mut Assignment {
        let number = self.number(node).expect("what is assigned to is in the index");
        self.ensure_told(number);
        let told = self.told[number.index()].as_mut().expect("it was just made");
        told.document_mut(&self.batches)
    }

    fn ensure_told(&mut self, node: NodeNumber) {
        let known = &self.roster[node];
        let empty = || Assignment::empty(known.id.clone());
        self.told[node.index()].get_or_insert_with(|| Told::new(known.told.cloned().unwrap_or_else(empty)));
    }

    /// Begins with instances that are all like this one.
    pub(crate) fn begin_batch(&mut self, instance: AssignedInstance) -> BatchNumber {
        let given = Given::of(&instance, self.release(&instance.app, instance.release));
        let of_app = self.minted.entry(instance.app.clone()).or_default();
        let of_service = of_app.entry(instance.service.clone()).or_default();
        let batch = self.batches.begin(instance, given);
        of_service.push(batch);
        batch
    }

    /// Assigns one more of a batch, with an id that this node never had before.
    pub(crate) fn mint(&mut self, batch: BatchNumber, node: NodeNumber) {
        self.ensure_told(node);
        self.ground.get_or_init(|| Ground::of(&self.input, &self.roster));
        let ground = self.ground.get_mut().expect("it was just made");
        let told = self.told[node.index()].as_mut().expect("it was just made");
        let of_batch = self.batches.get_mut(batch);
        ground.change(node, |of_node| of_node.take(of_batch.given));
        let standing = ground.standing(node).expect("only what stands is given out");
        told.mint(batch, of_batch, node, &standing.letters);
    }

    /// Takes an instance off its node at the plan's end.
    pub(crate) fn let_end(&mut self, node: &NodeId, id: &InstanceId) {
        self.ended.push((node.clone(), id.clone()));
    }

    pub(crate) fn remove_ended(&mut self) {
        for (node, id) in std::mem::take(&mut self.ended) {
            self.unassign(&node, &id);
        }
    }

    fn unassign(&mut self, node: &NodeId, id: &InstanceId) {
        let Some(assigned) = self.instance(node, id) else { return };
        let given = Given::of(assigned, self.release(&assigned.app, assigned.release));
        let app = assigned.app.clone();
        self.change_ground(node, |of_node| of_node.give_back(given));
        self.change_assignment(node).instances.remove(id);
        self.altered.entry(app).or_default().insert(id.clone(), None);
    }

    fn alter(&mut self, node: &NodeId, id: &InstanceId, change: impl FnOnce(&mut AssignedInstance)) {
        let Some(number) = self.number(node) else { return };
        let seen = self.known(number).observed.and_then(|observed| observed.instances.get(id));
        let Some(assigned) = self.change_assignment(node).instances.get_mut(id) else { return };
        change(assigned);
        let (app, placement) = (assigned.app.clone(), Placement::of(number, assigned, seen));
        self.altered.entry(app).or_default().insert(id.clone(), Some(placement));
    }

    /// Tells an instance to stop. Until it has, its node keeps for it what it was given.
    pub(crate) fn stop(&mut self, node: &NodeId, id: &InstanceId) {
        if self.instance(node, id).is_none_or(|assigned| assigned.intent == Intent::Stop) {
            return;
        }
        self.change_ground(node, |of_node| of_node.running = of_node.running.saturating_sub(1));
        self.alter(node, id, |assigned| assigned.intent = Intent::Stop);
    }

    /// Says, or takes back, why an instance shall not stay where it is.
    pub(crate) fn make_way(&mut self, node: &NodeId, id: &InstanceId, why: Option<MakingWay>) {
        self.alter(node, id, |assigned| assigned.making_way = why.map(Box::new));
    }

    /// Gives an instance to another cohort.
    pub(crate) fn adopt(&mut self, node: &NodeId, id: &InstanceId, cohort: DeploymentNumber) {
        self.alter(node, id, |assigned| assigned.deployment = cohort);
    }

    /// Gives a run to a node, with the memory that it may use.
    pub(crate) fn give_run(&mut self, node: &NodeId, run: Run) {
        let bytes = memory_of_run(self.input.world, &run);
        self.change_ground(node, |of_node| of_node.memory_bytes += bytes);
        self.change_assignment(node).runs.insert(run.id.clone(), run);
    }

    /// Takes a run that has ended off its node.
    pub(crate) fn take_run(&mut self, node: &NodeId, id: &RunId) {
        let Some(run) = self.assignment(node).and_then(|told| told.runs.get(id)) else { return };
        let bytes = memory_of_run(self.input.world, run);
        self.change_ground(node, |of_node| {
            of_node.memory_bytes = of_node.memory_bytes.saturating_sub(bytes);
        });
        self.change_assignment(node).runs.remove(id);
    }

    fn instance(&self, node: &NodeId, id: &InstanceId) -> Option<&AssignedInstance> {
        let number = self.number(node)?;
        match &self.told[number.index()] {
            Some(told) => told.instance(&self.batches, id),
            None => self.known(number).told?.instances.get(id),
        }
    }

    /// What is left on each node, as changed so far.
    pub(crate) fn ground(&self) -> &Ground {
        self.ground.get_or_init(|| Ground::of(&self.input, &self.roster))
    }

    /// Made from the world alone: every change of instances in this plan comes by here, or by [`Self::mint`], first.
    fn change_ground(&mut self, node: &NodeId, change: impl FnOnce(&mut Given)) {
        self.ground.get_or_init(|| Ground::of(&self.input, &self.roster));
        let number = self.number(node);
        let ground = self.ground.get_mut().expect("it was just made");
        if let Some(number) = number {
            ground.change(number, change);
        }
    }

    pub(crate) fn give_addresses(&mut self, block: AddressBlock) {
        self.addresses.insert(block.number, block);
    }

    pub(crate) fn publish(&mut self, app: &AppName, document: Option<RouteDocument>) {
        self.routes.insert(app.clone(), document);
    }

    /// Writes a known run anew, in the step of its node's assignment when that changes too.
    pub(crate) fn record_run(&mut self, run: Run) {
        self.recorded_bytes += run.size_estimate();
        self.recorded_runs.insert(run.id.clone(), run);
    }

    /// A step holds so many operations and bytes; what does not fit is for the next plan.
    pub(crate) fn has_room_for_runs(&self) -> bool {
        self.recorded_runs.len() < RUNS_RECORDED_MAX && self.recorded_bytes < RUNS_RECORDED_BYTES_MAX
    }

    /// Whether one more run fits the node's assignment; the first always does.
    pub(crate) fn has_room_for_run(&self, node: &NodeId, run: &Run) -> bool {
        let runs = self.assignment(node).into_iter().flat_map(|assignment| assignment.runs.values());
        let assigned: usize = runs.map(Run::size_estimate).sum();
        assigned == 0 || assigned + run.size_estimate() <= ASSIGNED_RUNS_BYTES_MAX
    }

    pub(crate) fn dispatch(&mut self, dispatch: Dispatch) {
        self.dispatched.push(dispatch);
    }

    pub(crate) fn delete(&mut self, key: String) {
        self.deleted.insert(key);
    }

    /// Deletes an app's record, after everything else that this plan deletes.
    pub(crate) fn forget(&mut self, app: &AppName) {
        self.forgotten.insert(app.clone());
    }

    /// Whether this plan writes anything of the app beside assignments and routes. What it writes it can't delete.
    pub(crate) fn changes(&self, app: &AppName) -> bool {
        self.changed.contains_key(app) || self.recorded_runs.values().any(|run| run.app == *app)
    }

    pub(crate) fn wait_for(&mut self, waiting: Waiting) {
        self.waiting.push(waiting);
    }

    pub(crate) fn run_waits(&mut self, waiting: WaitingRun) {
        self.waiting_runs.push(waiting);
    }

    pub(crate) fn is_waiting(&self, app: &AppName, service: &ServiceName) -> bool {
        self.waiting.iter().any(|waiting| waiting.app == *app && waiting.service == *service)
    }

    pub(crate) fn wake_at(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    // The end.

    pub(crate) fn into_plan(mut self) -> Plan {
        if let Some(at) = self.input.proxies.next_silence(self.input.clock.elapsed) {
            self.wake_at(at);
        }
        // All of it stands in what is told, too, and a large plan's documents want the room.
        self.batches.forget_made();
        self.altered.clear();
        let mut steps = Vec::new();
        // Before the releases that need them: whoever starts an instance of one finds them.
        for (number, block) in std::mem::take(&mut self.addresses) {
            let write = self.write(keys::addresses(number), &block);
            self.push(&mut steps, format!("give addresses to {}", block.app), vec![write]);
        }
        for (app, changed) in std::mem::take(&mut self.changed) {
            self.push(&mut steps, format!("move {app} on"), self.writes_of(&app, &changed));
        }
        for (app, document) in std::mem::take(&mut self.routes) {
            let key = keys::routes(&app);
            let write = match document {
                Some(document) => self.write(key, &document),
                None => self.removal(key),
            };
            self.push(&mut steps, format!("route {app}"), vec![write]);
        }
        self.push_dispatches(&mut steps);
        self.push_assignments(&mut steps);
        // Etcd's limit of a transaction is 128 operations; the leader's guard and some room are left.
        let deleted: Vec<String> = std::mem::take(&mut self.deleted).into_iter().collect();
        for chunk in deleted.chunks(100) {
            let writes = chunk.iter().map(|key| self.removal(key.clone())).collect();
            self.push(&mut steps, "forget what is not needed any more".to_owned(), writes);
        }
        for app in std::mem::take(&mut self.forgotten) {
            let write = self.removal(keys::app(&app));
            self.push(&mut steps, format!("forget {app}"), vec![write]);
        }
        Plan { steps, waiting: self.waiting, waiting_runs: self.waiting_runs, wake_at: self.wake_at }
    }

    fn writes_of(&self, app: &AppName, changed: &Changed) -> Vec<Write> {
        let mut writes = Vec::new();
        if let Some(release) = &changed.release {
            writes.push(self.write(keys::release(app, release.number), release));
        }
        if let Some(run) = &changed.run {
            writes.push(self.write(keys::run(app, &run.id), run));
        }
        for deployment in changed.earlier.values() {
            writes.push(self.write(keys::deployment(app, deployment.number), deployment));
        }
        if let Some(deployment) = &changed.deployment {
            writes.push(self.write(keys::deployment(app, deployment.number), deployment));
        }
        if let Some(value) = &changed.app {
            writes.push(self.write(keys::app(app), value));
        }
        writes
    }

    /// Dispatches of many jobs share a step as far as it holds them, so that a thousand that are due in the same second
    /// take twenty steps.
    fn push_dispatches(&mut self, steps: &mut Vec<Step>) {
        let (mut writes, mut bytes) = (Vec::new(), 0);
        for dispatch in std::mem::take(&mut self.dispatched) {
            let states =
                dispatch.state.iter().map(|state| self.write(keys::job(&state.app, &state.job), state));
            let runs = dispatch.runs.iter().map(|run| self.write(keys::run(&run.app, &run.id), run));
            let own: Vec<Write> = runs.chain(states).collect();
            // What is written is not forgotten in the same plan.
            for write in &own {
                self.deleted.remove(&write.key);
            }
            if writes.len() + own.len() > DISPATCHED_MAX || bytes > DISPATCHED_BYTES_MAX {
                self.push(steps, "dispatch jobs".to_owned(), std::mem::take(&mut writes));
                bytes = 0;
            }
            bytes += bytes_of(&own);
            writes.extend(own);
        }
        self.push(steps, "dispatch jobs".to_owned(), writes);
    }

    /// A run is recorded in the same step that gives it to its node or takes it away: neither is seen without the other.
    /// Assignments of several nodes share a step as far as it holds them: each says the whole of its node, and a plan for
    /// thousands of nodes waits for the store's disk some hundreds of times.
    fn push_assignments(&mut self, steps: &mut Vec<Step>) {
        let mut recorded = std::mem::take(&mut self.recorded_runs);
        let mut shared = SharedStep::default();
        let world = self.input.world;
        for (node, number) in world.placed.numbers().by_name() {
            let Some(mut told) = self.told[number.index()].take() else { continue };
            let mut writes = Vec::new();
            recorded.retain(|id, run| {
                let here = run.node.as_ref() == Some(node);
                if here {
                    writes.push(self.write(keys::run(&run.app, id), run));
                }
                !here
            });
            writes.push(self.write(keys::assign(node), told.document_mut(&self.batches)));
            if !shared.has_room_for(&writes, self.input.shared_max) {
                self.push_shared(steps, std::mem::take(&mut shared));
            }
            shared.add(node.clone(), writes);
        }
        self.push_shared(steps, shared);
        for (id, run) in recorded {
            let write = self.write(keys::run(&run.app, &id), &run);
            self.push(steps, format!("record {id}"), vec![write]);
        }
    }

    fn push_shared(&self, steps: &mut Vec<Step>, shared: SharedStep) {
        let why = match shared.nodes.as_slice() {
            [] => return,
            [node] => format!("assign to {node}"),
            [first, others @ ..] => format!("assign to {first} and {} more", others.len()),
        };
        steps.push(Step { why, writes: shared.writes, order: Order::Apart });
    }

    fn push(&self, steps: &mut Vec<Step>, why: String, mut writes: Vec<Write>) {
        writes.retain(|write| write.value.is_some() || write.replaces.is_some());
        if !writes.is_empty() {
            steps.push(Step { why, writes, order: Order::AfterAll });
        }
    }

    fn write<T: Document>(&self, key: String, value: &T) -> Write {
        let replaces = self.input.world.revision_of(&key);
        let value = self.input.world.encode(&key, value);
        Write { key, value: Some(value), replaces }
    }

    fn removal(&self, key: String) -> Write {
        let replaces = self.input.world.revision_of(&key);
        Write { key, value: None, replaces }
    }
}
