//! What people are shown of an app: pure functions of the index.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rung_api::join::{NodeListing, NodeState};
use rung_api::wire::{
    AppStatus, Cohort, DeploymentSummary, EnvironmentStatus, InstanceStatus, ReleaseListing, ServiceStatus,
};
use rung_model::duration::in_words;
use rung_model::rollout::Stage;
use rung_model::route::Maintenance;
use rung_model::{
    App, AppName, AssignedInstance, Deployment, Digest, InstanceId, InstanceState, Intent, NodeId, NodeRole,
    Outcome, Phase, Release, ReleaseNumber, RouteDocument, ServiceName,
};
use rung_planner::liveness::RETURN_WITHIN;
use rung_planner::schedule::{Refusal, desired_instances};
use rung_planner::{Held, World};

use crate::prune::{artifacts_in_use, is_available, waits};
use crate::reconcile::Reconcile;

/// `None` when there is no such app. `http` is where the ingress serves, `127.0.0.1:8080`.
pub fn app_status(reconcile: &Reconcile, app: &AppName, http: &str) -> Option<AppStatus> {
    let world = reconcile.world();
    let record = &world.apps.get(app)?.value;
    let services = services(reconcile, record);
    let mut problems: Vec<String> = services.iter().flat_map(service_problems).collect();
    problems.extend(world.active_deployment(app).and_then(awaited));
    for waiting in reconcile.waiting().iter().filter(|waiting| waiting.app == *app) {
        let service = &waiting.service;
        let why = reasons(&waiting.reasons, waiting.others);
        let of = if waiting.instances == 1 { "instance" } else { "instances" };
        problems.push(format!("{service}: {} {of} can't be placed yet ({why})", waiting.instances));
    }
    for waiting in reconcile.waiting_runs().iter().filter(|waiting| waiting.app == *app) {
        problems.push(format!("run {} can't be placed yet ({})", waiting.run, reasons(&waiting.reasons, 0)));
    }
    problems.extend(on_lost_nodes(reconcile, app));
    if record.maintenance == Maintenance::On {
        problems.push(
            "every request is answered with the maintenance page (`rung maintenance off` ends it)".to_owned(),
        );
    }
    problems.extend(brake(reconcile));
    Some(AppStatus {
        app: app.clone(),
        current: record.current,
        urls: urls(world.routes.get(app).map(|held| &held.value), http),
        services,
        deployment: world.last_deployment(app).map(summary),
        destroying: record.destroying.is_some(),
        environments: environments(reconcile, app, http),
        problems,
    })
}

pub fn summary(deployment: &Deployment) -> DeploymentSummary {
    DeploymentSummary {
        number: deployment.number,
        release: deployment.release,
        phase: deployment.phase,
        by: deployment.by.clone(),
        at: deployment.at,
        goal: deployment.asked.goal,
        trouble: deployment.trouble.clone(),
    }
}

/// So many silent nodes are named; who has more looks at `rung node list`.
const BRAKED_NAMED: usize = 10;

/// The same app elsewhere.
fn environments(reconcile: &Reconcile, app: &AppName, http: &str) -> Vec<EnvironmentStatus> {
    let world = reconcile.world();
    let base = app.base();
    let others = world.apps.iter().filter(|(other, _)| **other != *app && other.base() == base);
    let in_short = |(other, held): (&AppName, &Held<App>)| {
        let services = services(reconcile, &held.value);
        EnvironmentStatus {
            app: other.clone(),
            current: held.value.current,
            urls: urls(world.routes.get(other).map(|held| &held.value), http),
            desired: services.iter().map(|service| service.desired).sum(),
            healthy: services.iter().map(|service| service.healthy).sum(),
            phase: world.last_deployment(other).map(|deployment| deployment.phase),
        }
    };
    others.map(in_short).collect()
}

/// What a deployment that holds a step is waiting for.
fn awaited(deployment: &Deployment) -> Option<String> {
    let (number, left) = (deployment.number, in_words(Duration::from_secs(deployment.remaining.as_secs())));
    match deployment.rollout.as_ref().filter(|_| deployment.phase == Phase::Rolling)?.stage {
        Stage::AwaitingWord => Some(format!("{number} waits for `rung continue`, {left} at most")),
        Stage::AwaitingTraffic => {
            Some(format!("{number} waits for requests, {left} at most; `rung continue` goes on without"))
        }
        Stage::Moving | Stage::Holding => None,
    }
}

fn urls(document: Option<&RouteDocument>, http: &str) -> Vec<String> {
    let Some(document) = document.filter(|document| !document.rules.is_empty()) else { return Vec::new() };
    let port = http.rsplit_once(':').map_or("80", |(_, port)| port);
    let suffix = if port == "80" { String::new() } else { format!(":{port}") };
    document.hosts.iter().map(|host| format!("http://{host}{suffix}/")).collect()
}

fn services(reconcile: &Reconcile, app: &App) -> Vec<ServiceStatus> {
    let world = reconcile.world();
    let file = app.current.and_then(|number| world.release(&app.name, number)).map(|release| &release.file);
    let rolling = world.active_deployment(&app.name).and_then(|deployment| deployment.release);
    let file = file
        .or_else(|| rolling.and_then(|number| world.release(&app.name, number)).map(|release| &release.file));
    let mut statuses: Vec<ServiceStatus> = Vec::new();
    for (name, declared) in file.into_iter().flat_map(|file| &file.services) {
        statuses.push(ServiceStatus {
            name: name.clone(),
            desired: desired_instances(
                world,
                reconcile.liveness(),
                declared,
                app.count(name, declared.instances),
            ),
            healthy: 0,
            exclusive: declared.exclusive,
            port: declared.port,
            scale: app.scale.get(name).copied(),
            unplaced: None,
            inside: None,
            instances: Vec::new(),
        });
    }
    for (node, held) in &world.assignments {
        for (id, assigned) in held.value.instances.iter().filter(|(_, assigned)| assigned.app == app.name) {
            let is_live = app.live.is_none_or(|live| assigned.deployment == live);
            let cohort = if is_live { Cohort::Live } else { Cohort::Other };
            let status = instance_status(reconcile, node, id, assigned, cohort);
            let service = find_or_add(&mut statuses, &assigned.service, status.endpoint.is_some());
            // Those that are on their way out, or in, don't count.
            let counts = is_live && assigned.intent == Intent::Run && !status.lost;
            service.healthy += u32::from(counts && status.state == InstanceState::Healthy);
            service.instances.push(status);
        }
    }
    for waiting in reconcile.waiting().iter().filter(|waiting| waiting.app == app.name) {
        let service = statuses.iter_mut().find(|status| status.name == waiting.service);
        if let Some(service) = service {
            service.unplaced = Some(reasons(&waiting.reasons, waiting.others));
        }
    }
    for service in &mut statuses {
        // `a9` before `a10`.
        service.instances.sort_by(|a, b| (a.id.as_str().len(), &a.id).cmp(&(b.id.as_str().len(), &b.id)));
    }
    statuses
}

/// A service that the file does not name any more is shown as long as it has instances.
fn find_or_add<'a>(
    statuses: &'a mut Vec<ServiceStatus>,
    name: &ServiceName,
    port: bool,
) -> &'a mut ServiceStatus {
    let index = statuses.iter().position(|status| status.name == *name).unwrap_or_else(|| {
        statuses.push(ServiceStatus {
            name: name.clone(),
            desired: 0,
            healthy: 0,
            exclusive: false,
            port,
            scale: None,
            unplaced: None,
            inside: None,
            instances: Vec::new(),
        });
        statuses.len() - 1
    });
    &mut statuses[index]
}

fn instance_status(
    reconcile: &Reconcile,
    node: &NodeId,
    id: &InstanceId,
    assigned: &AssignedInstance,
    cohort: Cohort,
) -> InstanceStatus {
    let world = reconcile.world();
    let held = world.observed.get(node);
    let observed = held.and_then(|held| held.value.instances.get(id));
    let document = world.routes.get(&assigned.app).map(|held| &held.value);
    let backend = document.and_then(|document| document.backends.get(&assigned.service));
    let routed =
        backend.is_some_and(|backend| backend.endpoints.iter().any(|endpoint| endpoint.instance == *id));
    InstanceStatus {
        id: id.clone(),
        node: node.clone(),
        lost: reconcile.liveness().is_lost(node),
        service: assigned.service.clone(),
        release: assigned.release,
        cohort,
        state: observed.map_or(InstanceState::Preparing, |observed| observed.state),
        routed,
        endpoint: observed.and_then(|observed| observed.endpoint),
        pid: observed.and_then(|observed| observed.pid),
        restarts: observed.map_or(0, |observed| observed.restarts),
        since: observed.map_or(jiff::Timestamp::UNIX_EPOCH, |observed| observed.since),
        reason: observed.and_then(|observed| observed.reason.clone()),
        log_tail: observed.map(|observed| observed.log_tail.clone()).unwrap_or_default(),
    }
}

fn service_problems(service: &ServiceStatus) -> Vec<String> {
    let heard = service.instances.iter().filter(|instance| !instance.lost);
    let ill = heard.filter(|instance| {
        matches!(
            instance.state,
            InstanceState::Unhealthy
                | InstanceState::BackingOff
                | InstanceState::CrashLooping
                | InstanceState::Failed
        )
    });
    ill.map(|instance| {
        let state = match instance.state {
            InstanceState::CrashLooping => "exits again and again",
            InstanceState::BackingOff => "has exited and is started again soon",
            InstanceState::Failed => "can't be started",
            _ => "does not pass its health checks",
        };
        let reason = instance.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("{} {state}{reason}", instance.id)
    })
    .collect()
}

fn has_failed(world: &World, app: &AppName, release: ReleaseNumber) -> bool {
    let deployments = world.deployments.get(app).into_iter().flat_map(|of_app| of_app.values());
    let mut outcomes = deployments
        .filter(|held| held.value.release == Some(release))
        .map(|held| held.value.outcome())
        .peekable();
    outcomes.peek().is_some()
        && outcomes.all(|outcome| matches!(outcome, Some(Outcome::Failed | Outcome::RolledBack)))
}

/// Whether a person ended its last deployment.
fn was_cancelled(world: &World, app: &AppName, release: ReleaseNumber) -> bool {
    let mut deployments = world.deployments.get(app).into_iter().flat_map(|of_app| of_app.values());
    let last = deployments.rfind(|held| held.value.release == Some(release));
    last.is_some_and(|held| held.value.cancelled_by.is_some())
}

/// Every member of the cluster, and nodes of a machine that is alone.
pub fn nodes(reconcile: &Reconcile) -> Vec<NodeListing> {
    let world = reconcile.world();
    let mut names: Vec<&NodeId> = world.nodes.keys().chain(world.members.keys()).collect();
    names.sort();
    names.dedup();
    names.into_iter().map(|node| node_listing(reconcile, node)).collect()
}

/// Why nothing is moved although nodes are silent, and what a person can say to it.
fn brake(reconcile: &Reconcile) -> Option<String> {
    let silent: Vec<&str> =
        reconcile.liveness().silent().iter().map(NodeId::as_str).take(BRAKED_NAMED).collect();
    let more = reconcile.liveness().silent().len().saturating_sub(silent.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let silent = silent.join(", ");
    if silent.is_empty() {
        return None;
    }
    if reconcile.world().nodes.len() == 1 {
        // It is this machine itself, or it would have nobody to tell.
        let busy = "this machine's agent was not heard of for a while: it is very busy, or hangs; what is shown may be old";
        return Some(busy.to_owned());
    }
    Some(if reconcile.liveness().is_returning() {
        format!(
            "most nodes fell silent at once and are back, but for {silent}{more}: nothing is moved from there until nobody \
             came back for {} s",
            RETURN_WITHIN.as_secs()
        )
    } else {
        format!(
            "most nodes fell silent at once ({silent}{more}): nothing is moved until they are heard again, or you say that \
             they are off for good (`rung node remove NODE`)"
        )
    })
}

/// What is shown of these instances is what was heard last.
fn on_lost_nodes(reconcile: &Reconcile, app: &AppName) -> Vec<String> {
    let assigned = reconcile.world().assignments.iter();
    let lost = assigned.filter(|(node, _)| reconcile.liveness().is_lost(node));
    let counted = lost.map(|(node, held)| {
        let here = held.value.instances.values().filter(|assigned| assigned.app == *app);
        (node, here.count())
    });
    let told = counted.filter(|(_, count)| *count > 0).map(|(node, count)| {
        let theirs = match count {
            1 => "its instance of the app is".to_owned(),
            count => format!("its {count} instances of the app are"),
        };
        format!(
            "node {node} was not heard of for a while: {theirs} started elsewhere (if it is off for good: `rung node remove \
             {node}`)"
        )
    });
    told.collect()
}

fn node_listing(reconcile: &Reconcile, id: &NodeId) -> NodeListing {
    let world = reconcile.world();
    let node = world.nodes.get(id).map(|held| &held.value);
    let role = world.members.get(id).map_or(NodeRole::Server, |held| held.value.role);
    let assignment = world.assignments.get(id).map(|held| &held.value);
    let instances = assignment.map_or(0, |assignment| assignment.instances.len()) as u32;
    let runs = assignment.map_or(0, |assignment| assignment.runs.len());
    let state = match node {
        None if role == NodeRole::Ingress => NodeState::Serving,
        None => NodeState::Lost,
        Some(_) if reconcile.liveness().is_lost(id) => NodeState::Lost,
        Some(_) if reconcile.liveness().silent().contains(id) => NodeState::Silent,
        Some(node) if node.drain.is_none() => NodeState::Ready,
        Some(_) if instances == 0 && runs == 0 => NodeState::Drained,
        Some(_) => NodeState::Draining,
    };
    let mut blocked = Vec::new();
    if state == NodeState::Draining {
        let here: BTreeSet<_> = assignment
            .into_iter()
            .flat_map(|assignment| assignment.instances.values())
            .map(|assigned| (&assigned.app, &assigned.service))
            .collect();
        let waiting = reconcile.waiting().iter();
        for waiting in waiting.filter(|waiting| here.contains(&(&waiting.app, &waiting.service))) {
            blocked.push(format!(
                "{} {}: {}",
                waiting.app,
                waiting.service,
                reasons(&waiting.reasons, waiting.others)
            ));
        }
        let runs = assignment.into_iter().flat_map(|assignment| assignment.runs.keys());
        blocked.extend(runs.map(|run| format!("run {run} goes on")));
    }
    let version = node.map(|node| node.facts.version.clone());
    let labels = node.map(|node| node.labels.clone()).unwrap_or_default();
    NodeListing { node: id.clone(), role, state, instances, version, labels, blocked }
}

fn reasons(reasons: &BTreeMap<NodeId, Refusal>, others: u32) -> String {
    let mut alike: Vec<(String, Vec<&str>)> = Vec::new();
    for (node, refusal) in reasons {
        let why = refusal.to_string();
        match alike.iter_mut().find(|(known, _)| *known == why) {
            Some((_, nodes)) => nodes.push(node.as_str()),
            None => alike.push((why, vec![node.as_str()])),
        }
    }
    let mut reasons: Vec<String> =
        alike.into_iter().map(|(why, nodes)| format!("{}: {why}", nodes.join(", "))).collect();
    if others > 0 {
        reasons.push(format!("and {others} other nodes"));
    }
    if reasons.is_empty() { "no node has joined".to_owned() } else { reasons.join("; ") }
}

/// Newest first.
pub fn releases(world: &World, app: &AppName) -> Vec<ReleaseListing> {
    let in_use = artifacts_in_use(world);
    let releases = world.releases.get(app).into_iter().flatten().rev();
    releases.map(|(_, held)| listing(world, &in_use, &held.value)).collect()
}

/// `in_use`: the artifacts that are kept.
pub fn listing(world: &World, in_use: &BTreeSet<Digest>, release: &Release) -> ReleaseListing {
    let (app, number) = (&release.app, release.number);
    ReleaseListing {
        number,
        current: world.apps.get(app).and_then(|held| held.value.current) == Some(number),
        at: release.at,
        by: release.by.clone(),
        reason: release.reason.clone(),
        note: release.note.clone(),
        origin: release.provenance.origin.clone(),
        artifact: release.artifact.clone(),
        available: is_available(in_use, world, app, number),
        waits: waits(world, app, number),
        failed: has_failed(world, app, number),
        cancelled: has_failed(world, app, number) && was_cancelled(world, app, number),
        deploying: world.active_deployment(app).and_then(|deployment| deployment.release) == Some(number),
    }
}
