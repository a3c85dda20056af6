//! Where an instance runs.
//!
//! Memory is given out and never twice: a node is not assigned more than it has. A cpu limit is a ceiling, not a
//! reservation (`docs/decisions/0004-cpu-is-a-ceiling.md`), so it does not keep an instance from being placed.

use std::collections::BTreeMap;

use rung_model::appfile::Service;
use rung_model::node::ContainerEngine;
use rung_model::{AppName, Intent, NodeId, Run, RunId, RunKind, ServiceName, VolumeName};

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

/// A run that no node can take yet, and why, node by node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingRun {
    pub app: AppName,
    pub run: RunId,
    pub reasons: BTreeMap<NodeId, Refusal>,
}

/// Why a node can't take an instance or a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Memory {
        asked_bytes: u64,
        free_bytes: u64,
    },
    /// The app runs from an image, and no container engine answers there.
    NoEngine {
        why: String,
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
            Self::NoEngine { why } => f.write_str(why),
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
    let of_image = runs_from_image(draft, app);
    let mut refusals = BTreeMap::new();
    let mut best: Option<((usize, usize), &NodeId)> = None;
    for (id, node) in &draft.input.world.nodes {
        let without_engine = || no_engine(&node.value.facts.engine).filter(|_| of_image);
        let refusal = unusable(draft, id).or_else(|| elsewhere(pinned.as_ref(), id)).or_else(without_engine);
        if let Some(refusal) = refusal {
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

fn runs_from_image(draft: &Draft<'_>, app: &AppName) -> bool {
    let release = aim(draft, app).and_then(|aim| draft.release(app, aim.release));
    release.is_some_and(|release| release.file.build.image.is_some())
}

fn no_engine(engine: &ContainerEngine) -> Option<Refusal> {
    match engine {
        ContainerEngine::Silent { why } => Some(Refusal::NoEngine { why: why.clone() }),
        ContainerEngine::Answers { .. } | ContainerEngine::Unknown => None,
    }
}

/// Of the nodes that can take a run the one with the fewest; where its volumes are, when it may use some.
///
/// When no engine answers anywhere a run of an image goes to a node all the same: it fails there at once, and says what
/// is missing.
pub(crate) fn choose_node_for_run(draft: &Draft<'_>, run: &Run) -> Result<NodeId, BTreeMap<NodeId, Refusal>> {
    let file =
        run.release().and_then(|release| draft.release(&run.app, release)).map(|release| &release.file);
    let pinned = file.and_then(|file| match run.of_job() {
        Some(of) => pinned_to(draft, &run.app, file.jobs.get(&of.job)?.mounts.keys()),
        None => pinned_to(draft, &run.app, file.services.values().flat_map(|service| service.mounts.keys())),
    });
    let of_image = match &run.kind {
        RunKind::Build { image, .. } => image.is_some(),
        _ => file.is_some_and(|file| file.build.image.is_some()),
    };
    let asked_bytes = memory_of_run(draft, run);
    let mut refusals = BTreeMap::new();
    let mut best: Option<((bool, usize), &NodeId)> = None;
    for (id, node) in &draft.input.world.nodes {
        let no_room = || {
            if asked_bytes == 0 {
                return None;
            }
            let free_bytes = node.value.facts.memory_bytes.saturating_sub(memory_given(draft, id));
            (asked_bytes > free_bytes).then_some(Refusal::Memory { asked_bytes, free_bytes })
        };
        let refusal = unusable(draft, id).or_else(|| elsewhere(pinned.as_ref(), id)).or_else(no_room);
        if let Some(refusal) = refusal {
            refusals.insert(id.clone(), refusal);
            continue;
        }
        let lacks_engine = of_image && no_engine(&node.value.facts.engine).is_some();
        let runs = draft.assignment(id).map_or(0, |assignment| assignment.runs.len());
        if best.is_none_or(|(least, _)| (lacks_engine, runs) < least) {
            best = Some(((lacks_engine, runs), id));
        }
    }
    best.map(|(_, id)| id.clone()).ok_or(refusals)
}

/// Why a run can't ever be placed on the machines that there are, whatever ends before it.
pub(crate) fn is_too_large(draft: &Draft<'_>, run: &Run) -> Option<String> {
    const MB: u64 = 1_000_000;
    let asked_bytes = Some(memory_of_run(draft, run)).filter(|bytes| *bytes > 0)?;
    let nodes = draft.input.world.nodes.values();
    let largest = nodes.map(|held| held.value.facts.memory_bytes).max()?;
    (asked_bytes > largest).then(|| {
        format!("it asks for {} MB of memory, and the largest node has {} MB", asked_bytes / MB, largest / MB)
    })
}

/// What a job may use by its release's limit; builds and commands have none of their own.
fn memory_of_run(draft: &Draft<'_>, run: &Run) -> u64 {
    let of_job = || {
        let release = draft.release(&run.app, run.release()?)?;
        release.file.jobs.get(&run.of_job()?.job)?.memory_bytes
    };
    of_job().unwrap_or(0)
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

/// The memory that assigned instances and runs may use by their releases' limits.
fn memory_given(draft: &Draft<'_>, node: &NodeId) -> u64 {
    let Some(assignment) = draft.assignment(node) else { return 0 };
    let limits = assignment.instances.values().filter_map(|assigned| {
        let release = draft.release(&assigned.app, assigned.release)?;
        release.file.services.get(&assigned.service)?.memory_bytes
    });
    limits.sum::<u64>() + assignment.runs.values().map(|run| memory_of_run(draft, run)).sum::<u64>()
}
