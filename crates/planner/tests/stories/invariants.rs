//! What must hold after every single step of every plan.

use std::collections::{BTreeMap, BTreeSet};

use rung_model::{
    AppName, Assignment, Generation, InstanceId, InstanceState, Intent, NodeId, RouteDocument, RunId,
    ServiceName,
};
use rung_planner::{Step, World};

use crate::scene::Scene;

/// What the invariants need to know of the past.
#[derive(Debug, Default)]
pub struct History {
    /// How many routed instances a service never has less of, from now on.
    pub floors: BTreeMap<(AppName, ServiceName), usize>,
    pub run_outcomes: BTreeMap<RunId, String>,
    /// The documents that took each instance off its routes.
    pub unrouted: BTreeMap<InstanceId, Generation>,
}

impl Scene {
    /// From now on at least so many instances are routed, whatever is planned.
    pub fn hold_floor(&mut self, app: &str, service: &str, count: usize) {
        let key = (AppName::new(app).unwrap(), ServiceName::new(service).unwrap());
        self.history.floors.insert(key, count);
    }
}

pub fn assert_step(scene: &mut Scene, before: &World, step: &Step) {
    let after = &scene.world;
    for held in after.routes.values() {
        assert_routed_are_healthy(after, &held.value, step);
    }
    for ((app, service), floor) in &scene.history.floors {
        let routed = scene.routed(app.as_str(), service.as_str());
        assert!(routed.len() >= *floor, "{:?} took {app}/{service} below {floor}: {routed:?}", step.why);
    }
    scene.history.unrouted.extend(unrouted(before, after));
    let after = &scene.world;
    assert_stops_are_due(scene, before, step);
    assert_exclusive(after, step);
    assert_memory(after, step);
    // A new app of the same name may name its runs as the old one did.
    scene.history.run_outcomes.retain(|id, _| after.runs.contains_key(id));
    for (id, held) in &after.runs {
        let rung_model::RunState::Ended { outcome, .. } = &held.value.state else { continue };
        let outcome = format!("{outcome:?}");
        let known = scene.history.run_outcomes.entry(id.clone()).or_insert_with(|| outcome.clone());
        assert_eq!(*known, outcome, "{:?} gave run {id} another outcome", step.why);
    }
}

/// Invariant 1: of what the author knows.
fn assert_routed_are_healthy(world: &World, document: &RouteDocument, step: &Step) {
    // Only what this step wrote: between two plans a report may come in.
    if document.generation.revision != world.revision {
        return;
    }
    for endpoint in document.backends.values().flat_map(|backend| &backend.endpoints) {
        let seen = world.observed.values().find_map(|held| held.value.instances.get(&endpoint.instance));
        let state = seen.map(|seen| seen.state);
        assert_eq!(
            state,
            Some(InstanceState::Healthy),
            "{:?} routes {} although it is not healthy",
            step.why,
            endpoint.instance
        );
    }
}

fn unrouted(before: &World, after: &World) -> Vec<(InstanceId, Generation)> {
    let routed = |document: &RouteDocument| -> BTreeSet<InstanceId> {
        let backends = document.backends.values();
        backends.flat_map(|backend| &backend.endpoints).map(|endpoint| endpoint.instance.clone()).collect()
    };
    let mut gone = Vec::new();
    for (app, held) in &after.routes {
        let was = before.routes.get(app).map(|held| routed(&held.value)).unwrap_or_default();
        let is = routed(&held.value);
        gone.extend(was.difference(&is).map(|id| (id.clone(), held.value.generation)));
    }
    gone
}

/// The handoff's order: un-routed, acknowledged, drained, told to stop, ended, removed.
fn assert_stops_are_due(scene: &Scene, before: &World, step: &Step) {
    for (node, held) in &before.assignments {
        assert_stops_are_due_on(scene, node, &held.value, step);
    }
}

fn assert_stops_are_due_on(scene: &Scene, node: &NodeId, before: &Assignment, step: &Step) {
    let clock = scene.clock();
    let after = scene.assignment_of(node);
    for (id, was) in &before.instances {
        let seen = scene.observed_of(node).and_then(|observed| observed.instances.get(id));
        let Some(is) = after.instances.get(id) else {
            assert_eq!(was.intent, Intent::Stop, "{:?} removed {id} without telling it to stop", step.why);
            let ended = seen.is_none_or(|seen| seen.state == InstanceState::Stopped);
            // Of what runs on a lost node only the lease of an exclusive one tells; the stories count its time.
            let ended = ended || scene.liveness.is_lost(node);
            assert!(ended, "{:?} removed {id} while it was {seen:?}", step.why);
            continue;
        };
        if (was.intent, is.intent) != (Intent::Run, Intent::Stop) {
            continue;
        }
        let Some(routes) = scene.world.routes.get(&was.app) else { continue };
        let backends = || routes.value.backends.values();
        let routed = backends().any(|backend| backend.endpoints.iter().any(|e| e.instance == *id));
        assert!(!routed, "{:?} stops {id} while it is routed", step.why);
        let Some(unrouted) = scene.history.unrouted.get(id) else { continue };
        let acknowledged = scene.proxies.have_acknowledged(*unrouted, clock.elapsed);
        assert!(acknowledged, "{:?} stops {id} before its un-routing was acknowledged", step.why);
    }
}

/// Invariant 5: as soon as one of a service is exclusive, it is alone.
fn assert_exclusive(world: &World, step: &Step) {
    let mut alive: BTreeMap<(&AppName, &ServiceName), (bool, BTreeSet<&str>)> = BTreeMap::new();
    for (node, held) in &world.assignments {
        if !world.nodes.contains_key(node) {
            continue;
        }
        for (id, assigned) in &held.value.instances {
            let release = world.release(&assigned.app, assigned.release);
            let exclusive = release
                .and_then(|release| release.file.services.get(&assigned.service))
                .is_some_and(|service| service.exclusive);
            let of_service = alive.entry((&assigned.app, &assigned.service)).or_default();
            of_service.0 |= exclusive;
            of_service.1.insert(id.as_str());
        }
    }
    for ((app, service), (exclusive, ids)) in alive {
        let alone = !exclusive || ids.len() == 1;
        assert!(alone, "{:?} assigns exclusive {app}/{service} twice: {ids:?}", step.why);
    }
}

/// Invariant 4.
fn assert_memory(world: &World, step: &Step) {
    for (node, held) in &world.assignments {
        let limits = held.value.instances.values().filter_map(|assigned| {
            let release = world.release(&assigned.app, assigned.release)?;
            release.file.services.get(&assigned.service)?.memory_bytes
        });
        // One that has left has nothing to be measured by.
        let Some(has) = world.nodes.get(node).map(|held| held.value.facts.memory_bytes) else { continue };
        let given = limits.sum::<u64>();
        assert!(given <= has, "{:?} gives {given} bytes of memory, {node} has {has}", step.why);
    }
}
