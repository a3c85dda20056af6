//! The instances of one service, with everything that is known of each.

use rung_model::{
    AppName, DeploymentNumber, InstanceId, InstanceState, Intent, MakingWay, NodeId, ObservedInstance,
    ReleaseNumber, RouteDocument, ServiceName,
};

use crate::draft::Draft;
use crate::lease::{Lease, lease};

/// One assigned instance.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub id: InstanceId,
    pub node: NodeId,
    pub release: ReleaseNumber,
    pub cohort: DeploymentNumber,
    pub intent: Intent,
    /// `None` while its node has not reported on it.
    pub observed: Option<ObservedInstance>,
    /// The node converges on an assignment that holds it, and does not know it: it is gone. So is an exclusive one on a lost
    /// node when its lease is over.
    pub gone: bool,
    pub routing: Routing,
    pub making_way: Option<MakingWay>,
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
        self.observed.as_ref().map_or(InstanceState::Preparing, |observed| observed.state)
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
    let world = draft.input.world;
    let document = world.routes.get(app).map(|held| &held.value);
    let mut members = Vec::new();
    for (id, node, assigned) in draft.instances_of(app, service) {
        let observed = world.observed.get(node).map(|held| &held.value);
        // What was assigned just now can't have been reported yet.
        let stored = world.assignments.get(node).map(|held| &held.value);
        let seen = observed.and_then(|observed| observed.instances.get(id));
        let told = stored.filter(|stored| stored.instances.contains_key(id));
        let converged =
            observed.zip(told).is_some_and(|(observed, told)| observed.assignment >= told.generation);
        let is_stopping = assigned.intent == Intent::Stop;
        let lease = || lease(draft, node, id, app, service, assigned.release);
        members.push(Member {
            id: id.clone(),
            node: node.clone(),
            release: assigned.release,
            cohort: assigned.deployment,
            intent: assigned.intent,
            observed: seen.cloned(),
            gone: is_stopping && ((seen.is_none() && converged) || lease() == Lease::Over),
            routing: document.map_or(Routing::Absent, |document| routing(document, service, id)),
            making_way: assigned.making_way.clone(),
        });
    }
    members.sort_by(|a, b| a.id.as_str().len().cmp(&b.id.as_str().len()).then_with(|| a.id.cmp(&b.id)));
    members
}

fn routing(document: &RouteDocument, service: &ServiceName, id: &InstanceId) -> Routing {
    let Some(backend) = document.backends.get(service) else { return Routing::Absent };
    if backend.endpoints.iter().any(|endpoint| endpoint.instance == *id) {
        Routing::Routed
    } else if backend.draining.iter().any(|endpoint| endpoint.instance == *id) {
        Routing::Draining
    } else {
        Routing::Absent
    }
}
