//! Room for what matters more: instances of a lower priority make way.
//!
//! Bounded on purpose. A service of which an instance waits for memory gets the room of one instance at a time, on one node,
//! from a few instances of a lower priority, the lowest first, never of the same. No service loses its last instance that
//! way, and none that a deployment is about. Those that make way are un-routed, drained and stopped like all that leave; if
//! the room is not needed any more before they were told to stop, they stay.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use rung_model::appfile::{Priority, Service};
use rung_model::{
    AppName, AssignedInstance, DeploymentNumber, InstanceId, Intent, MakingWay, NodeId, ReleaseNumber,
    ServiceName,
};

use crate::draft::Draft;
use crate::placed::Given;

/// Whoever needs the room of more than these is too large for a full node.
const DISPLACED_MAX: usize = 8;

/// What makes way on a node; the smaller the better.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sacrifice {
    highest: Priority,
    count: usize,
    freed_bytes: u64,
    node: NodeId,
    instances: Vec<InstanceId>,
}

pub(crate) fn priority_of(
    draft: &Draft<'_>,
    app: &AppName,
    release: ReleaseNumber,
    service: &ServiceName,
) -> Priority {
    let declared = draft.release(app, release).and_then(|release| release.file.services.get(service));
    declared.map(|declared| declared.place.priority).unwrap_or_default()
}

/// Asks instances of a lower priority to make way, on one of the nodes that lack nothing but memory.
pub(crate) fn make_room(
    draft: &mut Draft<'_>,
    app: &AppName,
    name: &ServiceName,
    service: &Service,
    full: &[NodeId],
) {
    let priority = service.place.priority;
    let Some(asked) = service.memory_bytes.filter(|_| priority > Priority::Low) else { return };
    let mut best: Option<Sacrifice> = None;
    for node in full {
        let free = draft.ground().node(node).map_or(0, |standing| standing.free_memory());
        let lacking = asked.saturating_sub(free);
        if leaving_bytes(draft, node) >= lacking {
            return;
        }
        let found = sacrifice(draft, node, priority, lacking);
        best = [best, found].into_iter().flatten().min();
    }
    let Some(Sacrifice { node, instances, .. }) = best else { return };
    for id in instances {
        let why = MakingWay::Displaced { by_app: app.clone(), by_service: name.clone() };
        draft.make_way(&node, &id, Some(why));
    }
}

fn memory(draft: &Draft<'_>, assigned: &AssignedInstance) -> u64 {
    Given::of(assigned, draft.release(&assigned.app, assigned.release)).memory_bytes
}

/// Memory that is about to become free.
fn leaving_bytes(draft: &Draft<'_>, node: &NodeId) -> u64 {
    let instances = draft.assignment(node).into_iter().flat_map(|told| told.instances.values());
    let leaving = instances.filter(|assigned| {
        assigned.intent == Intent::Stop
            || matches!(assigned.making_way.as_deref(), Some(MakingWay::Displaced { .. }))
    });
    leaving.map(|assigned| memory(draft, assigned)).sum()
}

/// The fewest of the lowest priority that make up for what is lacking.
fn sacrifice(draft: &Draft<'_>, node: &NodeId, below: Priority, lacking: u64) -> Option<Sacrifice> {
    let here = draft.assignment(node)?.instances.iter();
    let mut lower: Vec<(Priority, Reverse<u64>, &InstanceId, &AssignedInstance)> = here
        .filter(|(_, assigned)| may_be_displaced(draft, assigned))
        .map(|(id, assigned)| {
            let priority = priority_of(draft, &assigned.app, assigned.release, &assigned.service);
            (priority, Reverse(memory(draft, assigned)), id, assigned)
        })
        .filter(|(priority, bytes, ..)| *priority < below && bytes.0 > 0)
        .collect();
    lower.sort_by_key(|(priority, bytes, id, _)| (*priority, *bytes, *id));
    let mut left = BTreeMap::new();
    let (mut freed_bytes, mut highest, mut instances) = (0, Priority::Low, Vec::new());
    for (priority, Reverse(bytes), id, assigned) in lower {
        if freed_bytes >= lacking || instances.len() == DISPLACED_MAX {
            break;
        }
        let of_service = (&assigned.app, &assigned.service);
        let left = left.entry(of_service).or_insert_with(|| staying(draft, assigned));
        // Its floor: a service has fewer for a while, never none.
        if *left <= 1 {
            continue;
        }
        *left -= 1;
        freed_bytes += bytes;
        highest = priority;
        instances.push(id.clone());
    }
    let count = instances.len();
    (freed_bytes >= lacking).then_some(Sacrifice {
        highest,
        count,
        freed_bytes,
        node: node.clone(),
        instances,
    })
}

fn may_be_displaced(draft: &Draft<'_>, assigned: &AssignedInstance) -> bool {
    assigned.intent == Intent::Run
        && assigned.making_way.is_none()
        && live_cohort(draft, &assigned.app) == Some(assigned.deployment)
}

/// The cohort that serves, while nothing is about to replace it.
fn live_cohort(draft: &Draft<'_>, app: &AppName) -> Option<DeploymentNumber> {
    let at_rest = draft.deployment(app).is_none_or(|deployment| deployment.has_ended());
    draft.input.world.apps.get(app)?;
    draft.app(app).live.filter(|_| at_rest)
}

/// How many of the same service go on running where they are heard of.
fn staying(draft: &Draft<'_>, like: &AssignedInstance) -> usize {
    let all = draft.instances_of(&like.app, &like.service);
    let stay = all.filter(|(_, placement)| {
        placement.intent == Intent::Run
            && placement.making_way.is_none()
            && placement.cohort == like.deployment
            && !draft.known(placement.node).is_lost
    });
    stay.count()
}

/// Takes back what is not needed any more: whoever asked for the room does not wait.
pub(crate) fn withdraw(draft: &mut Draft<'_>) {
    let world = draft.input.world;
    for (id, node) in world.placed.making_way() {
        let assigned = draft.assignment(node).and_then(|told| told.instances.get(id));
        let Some(AssignedInstance { intent: Intent::Run, making_way, .. }) = assigned else { continue };
        let Some(MakingWay::Displaced { by_app, by_service }) = making_way.as_deref() else { continue };
        if !draft.is_waiting(by_app, by_service) {
            draft.make_way(node, id, None);
        }
    }
}
