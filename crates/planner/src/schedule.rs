//! Where an instance runs.
//!
//! Memory is given out and never twice: a node is not assigned more than it has. A cpu limit is a ceiling, not a
//! reservation (`docs/decisions/0004-cpu-is-a-ceiling.md`), so it does not keep an instance from being placed.

use std::collections::BTreeMap;

use rung_model::appfile::Service;
use rung_model::{AppName, Intent, NodeId, ServiceName, VolumeName};

use crate::draft::Draft;
use crate::reconcile::aim;

/// What is not as desired, and why, node by node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub app: AppName,
    pub service: ServiceName,
    pub instances: u32,
    pub reasons: BTreeMap<NodeId, Refusal>,
}

/// Why a node can't take an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Memory {
        asked_bytes: u64,
        free_bytes: u64,
    },
    /// It was not heard of for a while.
    Lost,
    /// Somebody drains it.
    Draining,
    /// The data is on another node.
    VolumeElsewhere {
        volume: VolumeName,
        node: NodeId,
    },
    /// The exclusive service's last instance may still be alive somewhere.
    ExclusiveStillAlive,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const MB: u64 = 1_000_000;
        match self {
            Self::Memory { asked_bytes, free_bytes } => {
                write!(f, "{} MB of memory are asked for, {} MB are free", asked_bytes / MB, free_bytes / MB)
            }
            Self::Lost => f.write_str("it was not heard of for a while"),
            Self::Draining => f.write_str("it is being drained"),
            Self::VolumeElsewhere { volume, node } => write!(f, "volume {volume} is on {node}"),
            Self::ExclusiveStillAlive => f.write_str("the instance before it has not ended yet"),
        }
    }
}

/// Of the nodes that have room the one with the fewest instances of the service's cohort that shall serve, so that a lost
/// node takes as little of it as can be; among equals the one with the fewest instances at all, then by name.
pub fn choose_node(
    draft: &Draft<'_>,
    app: &AppName,
    name: &ServiceName,
    service: &Service,
) -> Result<NodeId, BTreeMap<NodeId, Refusal>> {
    let asked_bytes = service.memory_bytes.unwrap_or(0);
    let pinned = pinned_to(draft, app, service.mounts.keys());
    let mut refusals = BTreeMap::new();
    let mut best: Option<((usize, usize), &NodeId)> = None;
    for (id, node) in &draft.input.world.nodes {
        if let Some(refusal) = unusable(draft, id).or_else(|| elsewhere(pinned.as_ref(), id)) {
            refusals.insert(id.clone(), refusal);
            continue;
        }
        let free_bytes = node.value.facts.memory_bytes.saturating_sub(memory_given(draft, id));
        if asked_bytes > free_bytes {
            refusals.insert(id.clone(), Refusal::Memory { asked_bytes, free_bytes });
            continue;
        }
        let load = load_of(draft, id, app, name);
        if best.is_none_or(|(fewest, _)| load < fewest) {
            best = Some((load, id));
        }
    }
    best.map(|(_, id)| id.clone()).ok_or(refusals)
}

/// Why nothing new may be given to a node, whatever it is.
pub(crate) fn unusable(draft: &Draft<'_>, node: &NodeId) -> Option<Refusal> {
    if draft.input.liveness.is_lost(node) {
        return Some(Refusal::Lost);
    }
    let held = draft.input.world.nodes.get(node)?;
    held.value.drain.is_some().then_some(Refusal::Draining)
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

fn elsewhere(pinned: Option<&(VolumeName, NodeId)>, node: &NodeId) -> Option<Refusal> {
    let (volume, at) = pinned.filter(|(_, at)| at != node)?;
    Some(Refusal::VolumeElsewhere { volume: volume.clone(), node: at.clone() })
}

/// Instances of the service's cohort that shall run there, and all that shall. The cohort before it will be gone soon.
fn load_of(draft: &Draft<'_>, node: &NodeId, app: &AppName, service: &ServiceName) -> (usize, usize) {
    let Some(assignment) = draft.assignment(node) else { return (0, 0) };
    let instances = assignment.instances.values().filter(|assigned| assigned.intent == Intent::Run);
    let cohort = aim(draft, app).map(|aim| aim.cohort);
    let own = instances.clone().filter(|assigned| {
        assigned.app == *app && assigned.service == *service && Some(assigned.deployment) == cohort
    });
    (own.count(), instances.count())
}

/// The memory that assigned instances may use by their releases' limits.
fn memory_given(draft: &Draft<'_>, node: &NodeId) -> u64 {
    let Some(assignment) = draft.assignment(node) else { return 0 };
    let limits = assignment.instances.values().filter_map(|assigned| {
        let release = draft.release(&assigned.app, assigned.release)?;
        release.file.services.get(&assigned.service)?.memory_bytes
    });
    limits.sum()
}
