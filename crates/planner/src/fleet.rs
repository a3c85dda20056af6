//! The instances of one service, with everything that is known of each.

use std::collections::BTreeMap;

use rung_model::{
    AppName, Backend, DeploymentNumber, InstanceId, InstanceState, Intent, MakingWay, NodeId,
    ObservedInstance, ReleaseNumber, ServiceName,
};

use crate::draft::Draft;
use crate::lease::{Lease, lease};
use crate::placed::{Placement, by_age};

/// One assigned instance.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub id: InstanceId,
    pub node: NodeId,
    pub release: ReleaseNumber,
    pub cohort: DeploymentNumber,
    pub intent: Intent,
    /// `None` while its node has not reported on it.
    pub seen: Option<InstanceState>,
    /// The node converges on an assignment that holds it, and does not know it: it is gone. So is an exclusive one on a lost
    /// node when its lease is over.
    pub gone: bool,
    pub routing: Routing,
    pub making_way: Option<Box<MakingWay>>,
}

/// How the stored route document names an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Routing {
    Absent,
    Routed,
    Draining,
}

impl Member {
    pub fn state(&self) -> InstanceState {
        self.seen.unwrap_or(InstanceState::Preparing)
    }

    /// Everything that its node says of it.
    pub fn observed<'a>(&self, draft: &Draft<'a>) -> Option<&'a ObservedInstance> {
        self.seen.and_then(|_| draft.input.world.observed.get(&self.node)?.value.instances.get(&self.id))
    }

    pub fn is_healthy(&self) -> bool {
        self.state() == InstanceState::Healthy
    }

    /// Ended to the last process, as its node says.
    pub fn has_ended(&self) -> bool {
        self.gone || (self.intent == Intent::Stop && self.state() == InstanceState::Stopped)
    }
}

/// All assigned instances of a service, oldest first.
pub(crate) fn members(draft: &Draft<'_>, app: &AppName, service: &ServiceName) -> Vec<Member> {
    let backend = draft.route_document(app).and_then(|document| document.backends.get(service));
    let routings = backend.map(routings).unwrap_or_default();
    let of_instance = |(id, placement): (&InstanceId, &Placement)| Member {
        id: id.clone(),
        node: placement.node.clone(),
        release: placement.release,
        cohort: placement.cohort,
        intent: placement.intent,
        seen: placement.state,
        gone: placement.intent == Intent::Stop && is_gone(draft, app, service, id, placement),
        routing: routings.get(id).copied().unwrap_or(Routing::Absent),
        making_way: placement.making_way.clone(),
    };
    let mut members: Vec<Member> = draft.instances_of(app, service).map(of_instance).collect();
    members.sort_by(|a, b| by_age(&a.id, &b.id));
    members
}

fn is_gone(
    draft: &Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    id: &InstanceId,
    placement: &Placement,
) -> bool {
    let (world, node) = (draft.input.world, &placement.node);
    let observed = world.observed.get(node).map(|held| &held.value);
    // What was assigned just now can't have been reported yet.
    let stored = world.assignments.get(node).map(|held| &held.value);
    let told = stored.filter(|stored| stored.instances.contains_key(id));
    let converged = observed.zip(told).is_some_and(|(observed, told)| observed.assignment >= told.generation);
    (placement.state.is_none() && converged)
        || lease(draft, node, id, app, service, placement.release) == Lease::Over
}

fn routings(backend: &Backend) -> BTreeMap<&InstanceId, Routing> {
    let draining = backend.draining.iter().map(|endpoint| (&endpoint.instance, Routing::Draining));
    // The later of two wins: what is both gets requests.
    let routed = backend.endpoints.iter().map(|endpoint| (&endpoint.instance, Routing::Routed));
    draining.chain(routed).collect()
}
