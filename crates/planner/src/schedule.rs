//! Where an instance runs.
//!
//! A [`Placer`] looks at every node once for a service, keeps those that may take an instance in the order of how well
//! they suit, and gives out the best as often as it is asked: two thousand instances cost one look at the nodes.
//!
//! Memory, ports and disk are given out and never twice: a node is not assigned more than it has. A cpu limit is a ceiling,
//! not a reservation (`docs/decisions/0004-cpu-is-a-ceiling.md`), so it does not keep an instance from being placed, but of
//! nodes that suit equally well the one with the smallest part of its cores and memory given out is taken.

pub(crate) mod ground;
mod placer;
pub(crate) mod refusal;
mod runs;

use std::collections::BTreeMap;

use rung_model::appfile::{Count, Place, Service};
use rung_model::{AppName, Node, NodeId, RunId, ServiceName, VolumeName};

pub(crate) use placer::Placer;
pub use refusal::Refusal;
pub(crate) use runs::{choose_node_for_run, is_too_large, memory_of_run};

use crate::draft::Draft;
use crate::roster::Known;
use crate::{Liveness, World};

/// What is not as desired, and why, node by node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub app: AppName,
    pub service: ServiceName,
    pub instances: u32,
    pub reasons: BTreeMap<NodeId, Refusal>,
    /// Nodes that are not among the reasons: thousands of them are no explanation.
    pub others: u32,
}

/// A run that no node can take yet, and why, node by node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingRun {
    pub app: AppName,
    pub run: RunId,
    pub reasons: BTreeMap<NodeId, Refusal>,
}

/// So many nodes are explained one by one.
pub const EXPLAINED_MAX: usize = 200;

/// The node for one instance.
pub fn choose_node(
    draft: &Draft<'_>,
    app: &AppName,
    name: &ServiceName,
    service: &Service,
) -> Result<NodeId, BTreeMap<NodeId, Refusal>> {
    let mut placer = Placer::new(draft, app, name, service);
    let found = placer.next(draft);
    found.map(|node| draft.known(node).id.clone()).ok_or_else(|| placer.refusals(draft))
}

/// Why nothing new may be given to a node, whatever it is.
pub(crate) fn unusable(node: &Known<'_>) -> Option<Refusal> {
    if node.is_lost {
        return Some(Refusal::Lost);
    }
    node.is_drained.then_some(Refusal::Draining)
}

/// The first label that the service asks for and the node does not have.
pub(crate) fn unlabelled(place: &Place, node: &Node) -> Option<Refusal> {
    let missing = place.require.iter().find(|(name, asked)| !node.is(name, asked));
    missing.map(|(name, asked)| Refusal::Label {
        name: name.clone(),
        asked: asked.clone(),
        has: node.labels.get(name).cloned(),
    })
}

/// How many instances a service shall have, when its file and its people say `count`: of a service with so many a node that
/// many for each node which may run it.
pub fn desired_instances(world: &World, liveness: &Liveness, service: &Service, count: u32) -> u32 {
    match service.place.count {
        _ if service.exclusive => count.min(1),
        Count::Total => count,
        Count::PerNode => {
            let eligible = world.nodes.iter().filter(|(id, held)| {
                !liveness.is_lost(id)
                    && held.value.drain.is_none()
                    && unlabelled(&service.place, &held.value).is_none()
            });
            count.saturating_mul(u32::try_from(eligible.count()).unwrap_or(u32::MAX))
        }
    }
}

/// The node that one of the volumes is on already.
pub(crate) fn pinned_to<'v>(
    draft: &Draft<'_>,
    app: &AppName,
    mut volumes: impl Iterator<Item = &'v VolumeName>,
) -> Option<(VolumeName, NodeId)> {
    let pins = &draft.app(app).volumes;
    volumes.find_map(|volume| Some((volume.clone(), pins.get(volume)?.clone())))
}
