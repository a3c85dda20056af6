//! The instances of one service, with everything that is known of each.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use rung_model::{
    AppName, Backend, DeploymentNumber, InstanceId, InstanceState, Intent, MakingWay, NodeId,
    ObservedInstance, ReleaseNumber, ServiceName,
};

use crate::draft::Draft;
use crate::lease::{Lease, lease};
use crate::numbers::NodeNumber;
use crate::placed::{Placement, by_age};

/// One assigned instance.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub id: InstanceId,
    pub node: NodeId,
    /// The same, by its number.
    pub at: NodeNumber,
    pub release: ReleaseNumber,
    pub cohort: DeploymentNumber,
    pub intent: Intent,
    /// `None` while its node has not reported on it.
    pub seen: Option<InstanceState>,
    /// Where it listens, as its node says.
    pub endpoint: Option<SocketAddr>,
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
        self.seen.and_then(|_| draft.known(self.at).observed?.instances.get(&self.id))
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
    let mut routings = Routings::new(backend);
    let mut all: Vec<(&InstanceId, &Placement)> = draft.instances_of(app, service).collect();
    // The index has them in this order; what is new in this plan is not in it.
    all.sort_by(|(a, _), (b, _)| by_age(a, b));
    let of_instance = |(id, placement): (&InstanceId, &Placement)| Member {
        id: id.clone(),
        node: draft.known(placement.node).id.clone(),
        at: placement.node,
        release: placement.release,
        cohort: placement.cohort,
        intent: placement.intent,
        seen: placement.state,
        endpoint: placement.endpoint,
        gone: placement.intent == Intent::Stop && is_gone(draft, app, service, id, placement),
        routing: routings.of(id),
        making_way: placement.making_way.clone(),
    };
    all.into_iter().map(of_instance).collect()
}

fn is_gone(
    draft: &Draft<'_>,
    app: &AppName,
    service: &ServiceName,
    id: &InstanceId,
    placement: &Placement,
) -> bool {
    let node = draft.known(placement.node);
    // What was assigned just now can't have been reported yet.
    let told = node.told.filter(|stored| stored.instances.contains_key(id));
    let converged =
        node.observed.zip(told).is_some_and(|(observed, told)| observed.assignment >= told.generation);
    (placement.state.is_none() && converged)
        || lease(draft, node.id, id, app, service, placement.release) == Lease::Over
}

/// How a backend names instances that are asked for in the order of their age.
///
/// That is nearly the order of its endpoints, so that most are found where the last one was left.
struct Routings<'a> {
    backend: Option<&'a Backend>,
    next: usize,
    /// Made when one is not found like that: what it is, and where the one behind it stands.
    by_name: OnceCell<BTreeMap<&'a InstanceId, (Routing, Option<usize>)>>,
}

impl<'a> Routings<'a> {
    fn new(backend: Option<&'a Backend>) -> Self {
        Self { backend, next: 0, by_name: OnceCell::new() }
    }

    fn of(&mut self, id: &InstanceId) -> Routing {
        let Some(backend) = self.backend else { return Routing::Absent };
        if backend.endpoints.get(self.next).is_some_and(|endpoint| endpoint.instance == *id) {
            self.next += 1;
            return Routing::Routed;
        }
        let found = self.by_name.get_or_init(|| by_name(backend)).get(id).copied();
        let (routing, next) = found.unwrap_or((Routing::Absent, None));
        self.next = next.unwrap_or(self.next);
        routing
    }
}

fn by_name(backend: &Backend) -> BTreeMap<&InstanceId, (Routing, Option<usize>)> {
    let draining = backend.draining.iter().map(|endpoint| (&endpoint.instance, (Routing::Draining, None)));
    // The later of two wins: what is both gets requests.
    let routed = backend.endpoints.iter().zip(1..);
    let routed = routed.map(|(endpoint, next)| (&endpoint.instance, (Routing::Routed, Some(next))));
    draining.chain(routed).collect()
}
